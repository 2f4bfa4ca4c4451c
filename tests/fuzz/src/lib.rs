//! What the front and the spawner read from those whom they do not trust, with any bytes.
//!
//! Each target is a function that panics when a promise is broken. `cargo xtask fuzz` lets libFuzzer look for
//! such bytes; `tests/corpus.rs` calls the same functions with the seeds, and with thousands of changed ones.
//!
//! | target | whose bytes | promise |
//! | --- | --- | --- |
//! | `spawner` | a front's to the spawner, and the spawner's to the front | what is taken is within the limits, and says the same when it is sent again |
//! | `worker` | a worker's to the front | only valid answers to calls, once each, and signals of this service to the worker's own clients get to the bus |
//! | `front` | what the bus hands to the front, and then what a worker says about it | the same, seen from the bus; and a caller who comes later is served |

#![forbid(unsafe_code)]

mod bus;
mod front;
mod spawner;
mod worker;
mod workers;

pub use front::front;
pub use spawner::spawner;
pub use worker::{allowed, worker};

/// The name of a target, and the function that is called with an input.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("spawner", spawner), ("worker", worker), ("front", front)];

/// One thread, as the front has.
fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(future)
}
