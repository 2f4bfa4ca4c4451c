//! What a relay has moved, and how fast. The rate is worked out when somebody asks, from sums
//! that are kept as the bytes go by: no timer runs, and an idle relay costs no wake-up.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The rate is that of the last four seconds, in sixteen parts.
const PART: Duration = Duration::from_millis(250);
const PARTS: usize = 16;

/// The counters of one direction.
#[derive(Debug)]
pub(crate) struct Meter {
    bytes: AtomicU64,
    messages: AtomicU64,
    started: Instant,
    recent: Mutex<[Part; PARTS]>,
}

/// The bytes of one part of time, by its number since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    number: u64,
    bytes: u64,
    /// When the last of them came.
    last: Duration,
}

impl Meter {
    pub fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            started: Instant::now(),
            recent: Mutex::default(),
        }
    }

    /// So many bytes have arrived in the sink.
    pub fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.add_recent(self.started.elapsed(), bytes as u64);
    }

    /// So many messages have arrived in the sink, with so many bytes together.
    pub fn add_messages(&self, count: u64, bytes: usize) {
        self.add_bytes(bytes);
        self.messages.fetch_add(count, Ordering::Relaxed);
    }

    /// A message has arrived in the sink; its bytes are counted by [`add_bytes`](Self::add_bytes).
    pub fn add_message(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Bytes a second over the last four seconds, or since the start where that is less.
    pub fn rate(&self) -> u64 {
        self.rate_at(self.started.elapsed())
    }

    fn add_recent(&self, elapsed: Duration, bytes: u64) {
        let number = part_of(elapsed);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // The remainder is below the array's length.
        let part = &mut recent[(number % PARTS as u64) as usize];
        if part.number != number {
            *part = Part { number, bytes: 0, last: elapsed };
        }
        part.bytes += bytes;
        part.last = elapsed;
    }

    /// For how long nothing has arrived.
    pub fn still(&self) -> Duration {
        self.still_at(self.started.elapsed())
    }

    fn still_at(&self, elapsed: Duration) -> Duration {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // A part only makes way for a newer one.
        let last = recent.iter().map(|part| part.last).max().unwrap_or_default();
        elapsed.saturating_sub(last)
    }

    fn rate_at(&self, elapsed: Duration) -> u64 {
        let now = part_of(elapsed);
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: u64 = recent
            .iter()
            .filter(|part| part.number + PARTS as u64 > now && part.number <= now)
            .map(|part| part.bytes)
            .sum();
        // The window reaches from the start of its oldest part to this moment.
        let oldest = PART * u32::try_from((now + 1).saturating_sub(PARTS as u64)).unwrap_or(u32::MAX);
        let window = elapsed.saturating_sub(oldest).max(PART);
        (bytes as f64 / window.as_secs_f64()) as u64
    }
}

fn part_of(elapsed: Duration) -> u64 {
    (elapsed.as_millis() / PART.as_millis()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let meter = Meter::new();
        for quarter in 0..40 {
            meter.add_recent(PART * quarter, 1000);
        }
        let rate = meter.rate_at(PART * 40 - Duration::from_millis(1));
        assert!((3900..4200).contains(&rate), "{rate}");
        // Nothing came for two seconds, then for a minute.
        let rate = meter.rate_at(PART * 48 - Duration::from_millis(1));
        assert!((1900..2200).contains(&rate), "{rate}");
        assert_eq!(meter.rate_at(Duration::from_secs(60)), 0);
    }

    #[test]
    fn it_knows_how_long_it_stood_still() {
        let meter = Meter::new();
        assert_eq!(meter.still_at(PART), PART, "nothing has come yet");
        meter.add_recent(PART * 3, 1);
        meter.add_recent(PART * 3 + Duration::from_millis(7), 0);
        assert_eq!(meter.still_at(PART * 40), PART * 37 - Duration::from_millis(7));
    }

    #[test]
    fn a_young_relay_is_not_diluted() {
        let meter = Meter::new();
        meter.add_recent(Duration::from_millis(10), 500);
        assert_eq!(meter.rate_at(Duration::from_millis(500)), 1000);
    }
}
