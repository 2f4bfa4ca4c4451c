//! The front: the process that has the name on the system bus, and nothing else to lose.
//!
//! It admits each message, finds out who sent it, and hands it, unopened, to the worker that is
//! that caller; what the worker answers it checks and hands back. It knows no interface of the
//! mechanisms, opens nothing and maps nothing.
//!
//! `bus.rs` and `router.rs` read from the bus, `worker.rs` and `life.rs` are a worker, `herald.rs` is the one
//! that speaks to everybody, `judge.rs` is what a worker may say, `sending.rs` what goes to the bus. Everything is bounded: `admission.rs` by what is in flight,
//! `budget.rs` by what is not read, `starts.rs` by what is started, `closer.rs` by what cannot be
//! closed.

#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

mod admission;
mod budget;
mod bus;
mod closer;
mod front;
#[doc(hidden)]
pub mod fuzzing;
mod herald;
mod identity;
mod judge;
mod life;
mod limits;
mod log;
mod mounts;
mod outbox;
mod parcel;
mod pending;
mod refusals;
mod router;
mod sending;
mod spawner;
mod starts;
mod worker;

pub use front::{FdStore, Front, NoStore, Start, StartError};
pub use limits::Limits;
pub use refusals::NAMES as REFUSALS;
pub use spawner::Reconnect;

/// Nothing panics while something is locked; what is in it stays usable if something did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
