//! One CPU for all who take part: a round trip between two is the scheduler's more than anybody's. Whoever is woken
//! on another CPU waits until that one is awake, and whoever is asked again at once has not slept.

use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Runs it on the last CPU that we may use: the first has the interrupts. What it starts inherits that; the rest of
/// this process keeps its own.
pub fn on_one_cpu<T: Send + 'static>(measure: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let pinned = thread::spawn(|| {
        pin()?;
        measure()
    });
    match pinned.join() {
        Ok(result) => result,
        Err(_) => bail!("the measuring thread panicked"),
    }
}

fn pin() -> Result<()> {
    let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu)).context("no CPU")?;
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).context("sched_setaffinity")
}
