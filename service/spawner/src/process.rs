//! Forks, and the identity that a fork takes on for good.

use std::fs;

use crate::Error;
use crate::error::Attempting;

/// fork(2) copies the calling thread only: what others hold stays locked for ever.
pub fn single_threaded() -> Result<(), Error> {
    let status = fs::read_to_string("/proc/self/status").attempting("reading /proc/self/status")?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    if threads.is_some_and(|count| count.trim() == "1") { Ok(()) } else { Err(Error::Threads) }
}
