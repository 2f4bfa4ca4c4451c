//! The one inotify instance of the process and what it hands out, beside the row in
//! `mechanisms/inotify.rs`.

pub mod hub;
pub mod mask;
pub mod queue;
