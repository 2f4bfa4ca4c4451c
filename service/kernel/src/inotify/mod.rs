//! The one inotify instance of the process and what it hands out, beside the row in
//! `mechanisms/inotify.rs`.
//!
//! An event goes from the instance (`hub.rs`) into the endpoint's queue (`queue.rs`); there renames are
//! joined (`pairs.rs`), names become paths and new directories are watched (`tree.rs`, `look.rs`), what
//! is not asked for is left out (`filter.rs`), and what comes too fast settles (`settle.rs`). `flow.rs` is
//! the line of these stages. Where inotify sees nothing, `poll.rs` takes the place of the first three.

pub mod budget;
pub mod filesystem;
pub mod filter;
pub mod flow;
pub mod hub;
#[cfg(test)]
mod interleaved;
mod look;
pub mod mask;
mod memory;
mod pairs;
pub mod poll;
pub mod queue;
pub mod settle;
mod tell;
pub mod tree;
pub mod users;
