//! Signals and processes, for `mechanisms/signal.rs`.
//!
//! Two kinds of endpoints: a [`process`] that signals are sent to and whose end is watched, held as
//! a pidfd so that its number cannot come to mean another one; and a [`mailbox`], a process of
//! the service's own ([`child`]) that receives signals for the caller.

pub mod address;
pub mod child;
pub mod exit;
pub mod mailbox;
pub mod names;
pub mod pidfd;
pub mod process;
pub mod status;
