//! The bus layer: it translates between D-Bus and the engine, and does nothing else.
//!
//! One file an interface under [`interfaces`]; [`errors`] is the one place that names errors on
//! the wire; [`tree`] serves the objects on every connection; [`announcer`] turns what happens
//! into signals, and [`herald`] what the kernel tells everybody. No system call is made here and nothing is unsafe.

#![forbid(unsafe_code)]

mod announcer;
mod callee;
mod dbus;
pub mod errors;
mod face;
mod herald;
pub mod interfaces;
pub mod introspect;
pub mod mounts;
mod outbox;
mod paths;
mod property;
mod rows;
pub mod serve;
mod tree;
mod variants;
pub mod worker;

/// Every mechanism that the service offers.
pub static MECHANISMS: Register = Register::with(&[&dbus::DESCRIPTOR]);

use ipc_kernel::mechanisms::Register;
pub use serve::{NAME, Service, StartError};
pub use tree::Tree;
