//! Promise G4: one caller cannot stop the others. While an attack runs, another user pings the service, and every
//! ping must be answered.
//!
//! How soon is printed. The promise, 99 of 100 answers within 50 ms, is made for a release build on a machine with
//! nothing else to do: `IPC_P99_MS=50 IPCD=…/release/ipcd` holds it to that. Without the variable no time fails a test.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipc_harness::system::{Identity, User};

use crate::Stage;

/// How long it took another user to be answered, sorted.
#[derive(Debug)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn p99(&self) -> Duration {
        self.0[(self.0.len() * 99).div_ceil(100).saturating_sub(1)]
    }

    pub fn p50(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    pub fn longest(&self) -> Duration {
        self.0[self.0.len() - 1]
    }

    /// Prints what the attack did to the other user; panics when that is more than the bound that was set.
    #[track_caller]
    pub fn assert_calm(&self, attack: &str) {
        let (p50, p99, longest, count) = (self.p50(), self.p99(), self.longest(), self.0.len());
        println!("{attack}: another user's Ping: p50 {p50:?}, p99 {p99:?}, longest {longest:?}, of {count}");
        if let Some(bound) = bound() {
            assert!(p99 < bound, "{attack}: the p99 of another user's Ping is {p99:?}, of {count}");
        }
    }
}

fn bound() -> Option<Duration> {
    std::env::var("IPC_P99_MS").ok().and_then(|text| text.parse().ok()).map(Duration::from_millis)
}

/// The fewest pings of which a p99 says anything.
const PINGS: usize = 200;

/// Runs the attack while this user pings, before, during and until there are enough.
#[track_caller]
pub fn pings_during<T>(stage: &Stage, user: User, attack: impl FnOnce() -> T) -> (T, Latencies) {
    let mut raw = stage.raw(Identity::from(user));
    raw.ping().expect("an answer before the attack");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            let mut taken = Vec::new();
            while !over.load(Ordering::Acquire) || taken.len() < PINGS {
                let started = Instant::now();
                raw.ping().expect("an answer during the attack");
                taken.push(started.elapsed());
            }
            taken
        });
        // Also when the attack panics: nobody would end the pings, and the scope waits for them.
        let end = End(&over);
        let outcome = attack();
        drop(end);
        let mut taken = match pinging.join() {
            Ok(taken) => taken,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        taken.sort_unstable();
        (outcome, Latencies(taken))
    })
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
