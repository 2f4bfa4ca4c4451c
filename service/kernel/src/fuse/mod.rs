//! FUSE, fuse(4): files that this process serves.
//!
//! A mount ([`mount`]) has one thread, the `fuser` session's, which takes the kernel's requests ([`serve`]). What
//! is held here (content, logs) it answers at once; it waits for nobody. What somebody else has (an endpoint's
//! messages, a semaphore's value) it puts into a queue ([`requests`]) together with the answer that is owed: whoever
//! runs the waits takes it from there and answers from wherever he is. The names are a tree ([`tree`]) of files
//! ([`file`]).

mod announce;
pub mod detached;
pub mod file;
pub mod filesystem;
pub mod list;
pub mod mount;
pub mod opened;
pub mod requests;
pub mod serve;
pub mod shape;
pub mod tree;
