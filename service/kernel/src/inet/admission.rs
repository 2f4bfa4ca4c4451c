//! Whom a socket admits (the key `range`), and how many it has turned away.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Dict, inet::address::Ranges};

/// How many out of range are turned away before other work gets its turn.
pub const REFUSALS_AT_ONCE: usize = 64;

#[derive(Default)]
pub struct Admission {
    ranges: Ranges,
    refused: AtomicU64,
}

impl Admission {
    pub fn new(ranges: Ranges) -> Self {
        Self { ranges, refused: AtomicU64::new(0) }
    }

    /// Whether the peer is in range.
    pub fn admits(&self, peer: &SocketAddr) -> bool {
        self.ranges.admit(peer)
    }

    /// Whether anybody may be turned away.
    pub fn is_selective(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Counts one that was turned away.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the ranges and the count to what `Inspect` tells, where ranges were given.
    pub fn inspect(&self, state: &mut Dict) {
        if self.is_selective() {
            state.insert("range".into(), self.ranges.to_string().into());
            state.insert("refused".into(), self.refused.load(Ordering::Relaxed).into());
        }
    }
}
