//! Buffers for relays that copy. They are only held while bytes are on their way, so a thousand
//! idle relays hold none; a few are kept for the next one, as fresh memory costs page faults.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many idle buffers are kept, whatever the number of relays.
const KEPT: usize = 2;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Vec<u8>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer of this length; what is in it does not matter.
pub(super) fn take(length: usize) -> Vec<u8> {
    let found = idle().pop();
    match found {
        Some(buffer) if buffer.len() == length => buffer,
        _ => vec![0; length],
    }
}

/// Gives a buffer back, of the length with which it was taken.
pub(super) fn put(buffer: Vec<u8>) {
    let mut idle = idle();
    if idle.len() < KEPT {
        idle.push(buffer);
    }
}

/// Bytes that were taken from a source and are not in the sink yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

/// A buffer with little in it is exchanged for one of that size when the sink makes it wait.
const SMALL: usize = 16 * 1024;

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What is still to be written.
    pub fn rest(&self) -> &[u8] {
        // start <= end <= data.len() by construction.
        &self.data[self.start..self.end]
    }

    /// Takes over a buffer with `length` bytes in it. There must be nothing pending.
    pub fn fill(&mut self, data: Vec<u8>, length: usize) {
        *self = Self { start: 0, end: length.min(data.len()), data };
    }

    /// So many bytes were written; the buffer goes back with the last.
    pub fn written(&mut self, length: usize) {
        self.start = (self.start + length).min(self.end);
        if self.is_empty() {
            self.release();
        }
    }

    /// Gives everything out and leaves nothing.
    pub fn take(&mut self) -> Vec<u8> {
        let rest = self.rest().to_vec();
        self.release();
        rest
    }

    /// The sink is not ready: a big buffer is not held for a few bytes.
    pub fn shrink(&mut self) {
        let length = self.end - self.start;
        if length <= SMALL && self.data.len() > SMALL {
            let rest = self.rest().to_vec();
            put(std::mem::replace(&mut self.data, rest));
            (self.start, self.end) = (0, length);
        }
    }

    fn release(&mut self) {
        let data = std::mem::take(&mut self.data);
        (self.start, self.end) = (0, 0);
        if data.len() > SMALL {
            put(data);
        }
    }
}
