//! What happened to an endpoint, numbered and kept: nothing is lost silently.
//!
//! The last events of each endpoint stay in a ring, bounded in number and in bytes. Whoever
//! missed a signal sees the gap in the numbers and asks `Since`.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use event_listener::{Event as Bell, EventListener};
use ipc_kernel::{
    Dict,
    shape::{Event, Exit, Received},
};

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Happening {
    /// A watched file changed.
    Changed(Event),
    /// The kernel dropped events; how many it does not say.
    Overflow,
    /// Bytes or a message came and were taken (option `deliver`).
    Received { data: Vec<u8>, attributes: Dict },
    /// A connection was accepted (option `accept`): the new endpoint's number.
    Accepted(u64),
    /// Something is waiting to be received (option `notify`).
    Ready,
    /// A futex was woken (option `notify`): its value then.
    Woken(u32),
    /// Memory under a watch has changed; where nothing has (length 0), the watch has ended.
    RangeChanged { watch: u32, offset: u64, length: u64 },
    /// A process has ended.
    Exited(Exit),
    /// A mailbox has received a signal.
    Signalled(Received),
    /// A published file is read by a process.
    Read { name: String, pid: u32 },
    /// Bytes were written to a published file.
    Written { name: String, data: Vec<u8> },
}

/// What is kept in a ring.
pub trait Kept: Clone {
    /// About as many as it takes to keep it or to send it.
    fn bytes(&self) -> usize;
}

impl Kept for Happening {
    fn bytes(&self) -> usize {
        64 + match self {
            Self::Changed(event) => event.path.len() + event.from.len() + event.note.len(),
            Self::Received { data, .. } => data.len(),
            Self::Read { name, .. } => name.len(),
            Self::Written { name, data } => name.len() + data.len(),
            Self::Overflow
            | Self::Accepted(_)
            | Self::Ready
            | Self::Woken(_)
            | Self::RangeChanged { .. }
            | Self::Exited(_)
            | Self::Signalled(_) => 0,
        }
    }
}

/// A happening with its number (from 1) and its time (microseconds since the epoch).
#[derive(Debug, Clone)]
pub struct Numbered<T = Happening> {
    pub seq: u64,
    pub at: u64,
    pub happening: T,
}

/// The bytes that one ring may hold.
const RING_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub struct Ring<T = Happening> {
    kept: usize,
    inner: Mutex<Inner<T>>,
    /// Rings when events were announced.
    announced: Bell,
    /// Rings when there are new events.
    pushed: Bell,
}

#[derive(Debug)]
struct Inner<T> {
    last: u64,
    announced: u64,
    bytes: usize,
    events: VecDeque<Numbered<T>>,
}

impl<T: Kept> Ring<T> {
    /// Numbers from 1.
    pub fn new(kept: u32) -> Self {
        Self::after(0, kept)
    }

    /// Numbers from the one after `last`.
    pub fn after(last: u64, kept: u32) -> Self {
        let inner = Inner { last, announced: last, bytes: 0, events: VecDeque::new() };
        Self { kept: kept as usize, inner: Mutex::new(inner), announced: Bell::new(), pushed: Bell::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, happening: T) -> u64 {
        let mut inner = self.inner();
        inner.last += 1;
        inner.bytes += happening.bytes();
        let numbered = Numbered { seq: inner.last, at: now(), happening };
        inner.events.push_back(numbered);
        while inner.events.len() > self.kept || (inner.bytes > RING_BYTES && inner.events.len() > 1) {
            if let Some(oldest) = inner.events.pop_front() {
                inner.bytes -= oldest.happening.bytes();
            }
        }
        self.pushed.notify(usize::MAX);
        inner.last
    }

    /// What to wait for until there is an event that is not there yet.
    pub fn pushed(&self) -> EventListener {
        self.pushed.listen()
    }

    /// The number of the newest event, 0 where there was none.
    pub fn last(&self) -> u64 {
        self.inner().last
    }

    /// What came after `seq`, and how much of that is no longer kept.
    pub fn since(&self, seq: u64) -> (Vec<Numbered<T>>, u64) {
        self.since_at_most(seq, usize::MAX)
    }

    /// The same, of those that are kept at most `max`.
    pub fn since_at_most(&self, seq: u64, max: usize) -> (Vec<Numbered<T>>, u64) {
        self.inner().since(seq, max)
    }

    /// The next events that nobody has announced yet, at most `max`; they count as announced.
    pub fn unannounced(&self, max: usize) -> Vec<Numbered<T>> {
        let mut inner = self.inner();
        let (events, _) = inner.since(inner.announced, max);
        if let Some(newest) = events.last() {
            inner.announced = newest.seq;
            self.announced.notify(usize::MAX);
        }
        events
    }

    /// How many events nobody has announced yet.
    pub fn backlog(&self) -> u64 {
        let inner = self.inner();
        inner.last - inner.announced
    }

    /// What to wait for while so many events are not announced yet that one more might push one of them out;
    /// None: there is room.
    pub fn full(&self) -> Option<EventListener> {
        let is_full = || {
            let inner = self.inner();
            inner.last - inner.announced > (self.kept / 2) as u64
                || inner.bytes > RING_BYTES / 2 && inner.last > inner.announced + 64
        };
        if !is_full() {
            return None;
        }
        let listener = self.announced.listen();
        is_full().then_some(listener)
    }
}

impl<T: Clone> Inner<T> {
    fn since(&self, seq: u64, max: usize) -> (Vec<Numbered<T>>, u64) {
        let oldest = self.events.front().map_or(self.last + 1, |event| event.seq);
        let lost = oldest.saturating_sub(seq.saturating_add(1));
        let skip = usize::try_from(seq.saturating_add(1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        (self.events.iter().skip(skip).take(max).cloned().collect(), lost)
    }
}

/// Microseconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_and_counts_the_rest() {
        let ring = Ring::<Happening>::new(4);
        for _ in 0..10 {
            ring.push(Happening::Ready);
        }
        let (events, lost) = ring.since(0);
        assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [7, 8, 9, 10]);
        assert_eq!(lost, 6);
        let (events, lost) = ring.since(8);
        assert_eq!(events.len(), 2);
        assert_eq!(lost, 0);
        assert_eq!(ring.since(10).0.len(), 0);
        assert_eq!(ring.since(u64::MAX).0.len(), 0);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let ring = Ring::new(1024);
        for _ in 0..100 {
            ring.push(Happening::Received { data: vec![0; 64 * 1024], attributes: Dict::new() });
        }
        let (events, lost) = ring.since(0);
        assert!(events.len() < 20 && !events.is_empty());
        assert_eq!(lost + events.len() as u64, 100);
    }

    #[test]
    fn announcing_goes_on_where_it_stopped() {
        let ring = Ring::new(8);
        for _ in 0..5 {
            ring.push(Happening::Ready);
        }
        assert_eq!(ring.unannounced(3).len(), 3);
        assert_eq!(ring.unannounced(3).iter().map(|e| e.seq).collect::<Vec<_>>(), [4, 5]);
        assert!(ring.unannounced(3).is_empty());
    }
}
