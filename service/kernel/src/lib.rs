//! Every system call of `org.example.IPC`.
//!
//! The idea: a *mechanism* (pipe, FIFO, socket, semaphore, …) is one file under [`mechanisms`]
//! that exports one row, its [`Descriptor`]; the register in `mechanisms/mod.rs` lists the rows.
//! A mechanism's objects are [`Endpoint`]s. What can be done with an endpoint is its *shapes*
//! ([`shape`]): traits that every mechanism of that shape implements in the same way.
//!
//! Nothing here blocks for long and nothing here waits: an operation either completes or says
//! what has to happen first ([`Attempt`], [`Readiness`]); whoever calls does the waiting. There
//! is no D-Bus, no async runtime and no logging in this crate.

#[cfg(test)]
extern crate self as ipc_kernel; // What tests share, is written for those outside.

pub mod ability;
pub mod address;
pub mod blocked;
pub mod datagrams;
pub mod dev_shm;
pub mod dialed;
pub mod error;
pub mod fd;
pub mod fifo_ends;
pub mod fuse;
pub mod futex_owner;
pub mod futex_waiters;
pub mod futex_word;
pub mod guard;
pub mod inet;
pub mod inotify;
pub mod leases;
pub mod listing;
pub mod mapped;
pub mod mechanism;
pub mod mechanisms;
pub mod memory_file;
pub mod memory_io;
pub mod memory_list;
pub mod mqueue;
pub mod named_file;
pub mod nameless;
pub mod netlink;
pub mod parameters;
pub mod peer;
pub mod pipe_io;
pub mod proc;
pub mod relay_io;
pub mod semaphore_lease;
pub mod semaphore_place;
pub mod semaphore_word;
pub mod shape;
pub mod signal;
pub mod sock_diag;
pub mod socket_io;
pub mod socket_messages;
pub mod socket_options;
pub mod sysv;
pub mod unix;
pub mod value;
pub mod word;
pub mod word_place;
pub mod word_value;

pub use ability::{Ability, Lack};
pub use address::Address;
pub use error::{Error, Kind, Result};
pub use fd::Fd;
pub use mechanism::{Attempt, Descriptor, Endpoint, Opening, Readiness};
pub use parameters::{Parameter, Parameters, Type};
pub use value::{Dict, Value};
