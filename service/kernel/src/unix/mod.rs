//! What Unix domain sockets need, beside their row in `mechanisms/unix.rs`.

pub mod client;
pub mod endpoint;
pub mod list;
mod messages;
pub mod name;
pub mod peers;
