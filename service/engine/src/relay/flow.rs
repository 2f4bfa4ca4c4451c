//! What bounds the flow of one direction: after how much it ends.
//!
//! A relay without such options has no [`Flow`], and its loops ask nothing.

use super::{options::Options, task::Ended};

/// What one direction keeps to.
#[derive(Debug)]
pub(super) struct Flow {
    /// It ends when so many messages or bytes are in the sink.
    count: u64,
    bytes: u64,
}

impl Flow {
    /// None: nothing bounds it.
    pub fn new(options: &Options) -> Option<Self> {
        let Options { count, bytes, .. } = *options;
        let bounds = count.is_some() || bytes.is_some();
        bounds.then(|| Self { count: count.unwrap_or(u64::MAX), bytes: bytes.unwrap_or(u64::MAX) })
    }

    /// Before the next message, of which so many have arrived. Some: there is to be none.
    pub fn ended(&self, arrived: u64) -> Option<Ended> {
        (arrived >= self.count).then(|| Ended::Enough(format!("count={} is reached", self.count)))
    }

    /// How many bytes may be taken after so many that were. Err: none any more.
    pub fn most(&self, taken: u64) -> Result<usize, Ended> {
        match self.bytes.saturating_sub(taken) {
            0 => Err(Ended::Enough(format!("bytes={} is reached", self.bytes))),
            left => Ok(usize::try_from(left).unwrap_or(usize::MAX)),
        }
    }
}
