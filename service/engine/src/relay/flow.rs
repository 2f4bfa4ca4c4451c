//! What bounds the flow of one direction: after how much it ends, and how fast it is.
//!
//! A relay without such options has no [`Flow`], and its loops ask nothing. What is too fast is not taken from the
//! source, so that its writer feels it.

use tokio::time::Instant;

use super::{bucket::Bucket, meter::Meter, options::Options, task::Ended};

/// What one direction keeps to.
#[derive(Debug)]
pub(super) struct Flow {
    /// It ends when so many messages or bytes are in the sink.
    count: u64,
    bytes: u64,
    rate_messages: Option<Bucket>,
    rate_bytes: Option<Bucket>,
}

/// What may be taken from a stream now.
#[derive(Debug)]
pub(super) enum Bound {
    /// At most so many bytes, and at least one.
    Bytes(u64),
    Later(Instant),
    Ended(Ended),
}

impl Flow {
    /// None: nothing bounds it.
    pub fn new(options: &Options) -> Option<Self> {
        let Options { count, bytes, rate_messages, rate_bytes, .. } = *options;
        [count, bytes, rate_messages, rate_bytes].iter().any(Option::is_some).then(|| Self {
            count: count.unwrap_or(u64::MAX),
            bytes: bytes.unwrap_or(u64::MAX),
            rate_messages: rate_messages.map(Bucket::new),
            rate_bytes: rate_bytes.map(Bucket::new),
        })
    }

    /// Waits until the next message may be taken, after those that the meter has counted. Some: there is to be none.
    /// May be dropped, and called again.
    pub async fn next(&mut self, meter: &Meter) -> Option<Ended> {
        let arrived = meter.messages();
        if arrived >= self.count {
            return Some(Ended::Enough(format!("count={} is reached", self.count)));
        }
        for (bucket, total) in [(&mut self.rate_messages, arrived), (&mut self.rate_bytes, meter.bytes())] {
            if let Some(bucket) = bucket {
                bucket.charge(total);
                bucket.one().await;
            }
        }
        None
    }

    /// How many bytes may be taken, after so many that were.
    pub fn most(&mut self, taken: u64) -> Bound {
        let left = self.bytes.saturating_sub(taken);
        if left == 0 {
            return Bound::Ended(Ended::Enough(format!("bytes={} is reached", self.bytes)));
        }
        let Some(bucket) = &mut self.rate_bytes else {
            return Bound::Bytes(left);
        };
        bucket.charge(taken);
        bucket.some(left).map_or_else(Bound::Later, Bound::Bytes)
    }
}
