//! What every mechanism promises, checked for every mechanism in the register.
//!
//! One file a shape ([`stream`], [`listener`], [`messages`], [`memory`], [`semaphore`],
//! [`futex`], [`watch`], [`process`], [`mailbox`]) one for the row itself ([`register`]) and one for what it says it can do ([`abilities`]). A check is written once, against the
//! trait, and runs over all fixtures of its shape ([`fixtures`]): a mechanism says there how its
//! objects are made and which rules of the shape it has by nature (whether messages may be
//! empty, whether a stream ends). It cannot dodge: a mechanism that declares a shape and has no
//! fixture for it fails the suite.
//!
//! Everything is made through the public interface, a [`Descriptor`](ipc_kernel::Descriptor) and
//! checked parameters, as the engine does it. [`driver`] does the waiting, with a watchdog.

mod abilities;
mod driver;
mod filesystem;
mod fixtures;
mod futex;
mod listener;
mod mailbox;
mod making;
mod memory;
mod messages;
mod process;
mod register;
mod row;
mod semaphore;
mod sets;
mod stream;
mod suite;
mod watch;

/// The rows that the suites run over.
pub const REGISTER: ipc_kernel::mechanisms::Register = ipc_kernel::mechanisms::KERNEL;

/// Those that have fixtures here: all.
pub fn rows() -> impl Iterator<Item = &'static ipc_kernel::Descriptor> {
    REGISTER.iter()
}

/// What a check needs around it: nothing.
pub fn within<T>(check: impl FnOnce() -> T) -> T {
    check()
}
