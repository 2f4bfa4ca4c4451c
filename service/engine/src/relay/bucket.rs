//! A token bucket, as tc-tbf(8) has it: so much a second, and up to a burst at once after a pause.
//!
//! What is kept is the moment at which the bucket is full again; each thing that goes by puts it off by what it costs.
//! Nothing runs in between, and nothing is added up that could drift.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What comes at once after a pause: what the rate gives in this time, and at least one.
const BURST: Duration = Duration::from_millis(100);

/// Who has to wait, waits for at least what this time gives: fifty wake-ups a second are enough for any rate.
const GRAIN: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    burst: Duration,
    full_at: Instant,
    /// How much has gone by in all.
    total: u64,
}

impl Bucket {
    /// A full one; `rate` is at least 1.
    pub fn new(rate: u64) -> Self {
        let mut bucket = Self { rate, burst: BURST, full_at: Instant::now(), total: 0 };
        bucket.burst = BURST.max(bucket.cost(1));
        bucket
    }

    /// In all so much has gone by until now.
    pub fn charge(&mut self, total: u64) {
        let more = total.saturating_sub(self.total);
        if more > 0 {
            self.total = total;
            self.full_at = self.full_at.max(Instant::now()) + self.cost(more);
        }
    }

    /// How long so many take; rounded up, so that nothing is ever too fast.
    fn cost(&self, amount: u64) -> Duration {
        let nanos = (u128::from(amount) * 1_000_000_000).div_ceil(u128::from(self.rate));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many may go by now.
    fn there(&self, now: Instant) -> u64 {
        let time = (now + self.burst).saturating_duration_since(self.full_at.max(now));
        u64::try_from(time.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX)
    }

    /// So many that waiting for them is worth it.
    fn grain(&self) -> u64 {
        u64::try_from(GRAIN.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX).max(1)
    }

    /// How many of `wanted` may go by now. Err: none, come again then.
    pub fn some(&self, wanted: u64) -> Result<u64, Instant> {
        let there = self.there(Instant::now());
        let least = self.grain().min(wanted);
        if there >= least { Ok(there.min(wanted)) } else { Err(self.when(least)) }
    }

    /// Completes when one may go by, however large it is: what follows pays for it.
    pub async fn one(&self) {
        if self.there(Instant::now()) == 0 {
            sleep_until(self.when(self.grain())).await;
        }
    }

    /// When so many will be there, which is no more than a burst.
    fn when(&self, amount: u64) -> Instant {
        (self.full_at + self.cost(amount)).checked_sub(self.burst).unwrap_or(self.full_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what it gets, in pieces of these sizes, for so long; says when how much was taken.
    async fn hungry(bucket: &mut Bucket, pieces: &[u64], time: Duration) -> Vec<(Duration, u64)> {
        let (start, mut total, mut log) = (Instant::now(), bucket.total, Vec::new());
        let mut pieces = pieces.iter().cycle();
        while start.elapsed() < time {
            match bucket.some(*pieces.next().unwrap()) {
                Ok(length) => {
                    total += length;
                    bucket.charge(total);
                    log.push((start.elapsed(), length));
                }
                Err(then) => {
                    assert!(then > Instant::now(), "a wait that is none would spin");
                    sleep_until(then).await;
                }
            }
        }
        log
    }

    /// In no window more than the rate and one burst, and over all not less than the rate.
    #[tokio::test(start_paused = true)]
    async fn any_window_is_within_the_rate() {
        for rate in [1, 7, 20, 1000, 65_537, 10_000_000, 1 << 30] {
            let mut bucket = Bucket::new(rate);
            let burst = bucket.burst.as_secs_f64() * rate as f64;
            let time = Duration::from_secs(if rate < 100 { 60 } else { 3 });
            let log = hungry(&mut bucket, &[1 << 20, 1, 4096, 333], time).await;
            for (n, (from, _)) in log.iter().enumerate().step_by(log.len().div_ceil(100)) {
                let mut sum = 0;
                for (at, length) in &log[n..] {
                    sum += length;
                    let most = burst + (*at - *from).as_secs_f64() * rate as f64;
                    assert!(sum as f64 <= most + 1.0, "{rate}/s: {sum} within {:?}", *at - *from);
                }
            }
            let all: u64 = log.iter().map(|(_, length)| length).sum();
            let least = time.as_secs_f64() * rate as f64 * 0.95;
            assert!(all as f64 >= least, "{rate}/s: {all} of {least}");
        }
    }

    /// After a pause of any length there is one burst, and no more.
    #[tokio::test(start_paused = true)]
    async fn a_pause_gives_one_burst() {
        let mut bucket = Bucket::new(1000);
        for pause in [1, 60, 100_000] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            assert_eq!(bucket.some(1 << 20), Ok(100));
            bucket.charge(bucket.total + 100);
            let then = bucket.some(1 << 20).unwrap_err();
            assert_eq!(then - Instant::now(), GRAIN);
            // The last bytes are not kept waiting for more.
            assert_eq!(bucket.some(3).unwrap_err() - Instant::now(), Duration::from_millis(3));
        }
    }

    /// A message goes as a whole, and is paid for by those behind it.
    #[tokio::test(start_paused = true)]
    async fn one_that_is_larger_than_a_burst_is_paid_for_later() {
        let mut bucket = Bucket::new(1000);
        let start = Instant::now();
        bucket.one().await;
        bucket.charge(5000);
        bucket.one().await;
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(4900) && waited < Duration::from_millis(5000), "{waited:?}");
    }

    /// Below one in a burst's time, they come one by one.
    #[tokio::test(start_paused = true)]
    async fn slow_rates_are_even() {
        let mut bucket = Bucket::new(2);
        let start = Instant::now();
        for n in 0..10u32 {
            bucket.one().await;
            let late = start.elapsed() - Duration::from_millis(500) * n;
            assert!(late <= Duration::from_millis(2), "{n}: {late:?}");
            bucket.charge(u64::from(n) + 1);
        }
    }
}
