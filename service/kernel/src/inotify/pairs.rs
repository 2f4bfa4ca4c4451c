//! Renames told as one event: joins IN_MOVED_FROM with the IN_MOVED_TO of the same cookie.
//!
//! The kernel puts both into the queue one after the other, but others may come in between, and
//! one is missing when the other directory is not watched. So what follows a MOVED_FROM waits
//! until its partner is there, or for a moment; its partner is then told in its place. No other change
//! of a name in either directory can lie in between, as both are locked during the rename.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use libc::{IN_MOVED_FROM, IN_MOVED_TO};

use crate::inotify::queue::Item;

/// How long a MOVED_FROM waits for its partner. A rename that leaves the watched directories is told
/// that much later; one whose thread did not run for longer between its two events is told as two.
pub const HOLD: Duration = Duration::from_millis(20);

/// What happened, renames joined.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Happened {
        wd: i32,
        mask: u32,
        name: Box<[u8]>,
    },
    /// A name became another, in the same directory or in another one.
    Renamed {
        from: (i32, Box<[u8]>),
        to: (i32, Box<[u8]>),
        mask: u32,
    },
    Overflow {
        since: i64,
    },
    Ended {
        wd: i32,
        reason: &'static str,
    },
}

#[derive(Default)]
pub struct Pairs {
    /// With the time of arrival.
    waiting: VecDeque<(Instant, Item)>,
    /// The cookies of all MOVED_TO that wait.
    arrivals: HashSet<u32>,
}

impl Pairs {
    pub fn extend(&mut self, items: impl IntoIterator<Item = Item>, now: Instant) {
        for item in items {
            if let Item::Happened { mask, cookie, .. } = item
                && mask & IN_MOVED_TO != 0
            {
                self.arrivals.insert(cookie);
            }
            self.waiting.push_back((now, item));
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The next thing that may be told.
    pub fn next(&mut self, now: Instant) -> Option<Step> {
        let (arrived, first) = self.waiting.front()?;
        if let Item::Happened { mask, cookie, .. } = first
            && mask & IN_MOVED_FROM != 0
        {
            let cookie = *cookie;
            if self.arrivals.remove(&cookie) {
                return self.join(cookie);
            }
            // After an overflow no partner comes any more.
            let overflowed = self.waiting.iter().any(|(_, item)| matches!(item, Item::Overflow { .. }));
            if !overflowed && now.duration_since(*arrived) < HOLD {
                return None;
            }
        }
        let (_, item) = self.waiting.pop_front()?;
        Some(match item {
            Item::Happened { wd, mask, cookie, name } => {
                if mask & IN_MOVED_TO != 0 {
                    self.arrivals.remove(&cookie);
                }
                Step::Happened { wd, mask, name }
            }
            Item::Overflow { since } => Step::Overflow { since },
            Item::Ended { wd, reason } => Step::Ended { wd, reason },
        })
    }

    /// Takes the MOVED_FROM at the front, and its partner from where it is.
    fn join(&mut self, wanted: u32) -> Option<Step> {
        let (_, from) = self.waiting.pop_front()?;
        let is_partner = |item: &Item| matches!(item, Item::Happened { mask, cookie, .. } if mask & IN_MOVED_TO != 0 && *cookie == wanted);
        let at = self.waiting.iter().position(|(_, item)| is_partner(item))?;
        let (_, to) = self.waiting.remove(at)?;
        match (from, to) {
            (Item::Happened { wd: from, name: old, .. }, Item::Happened { wd: to, name: new, mask, .. }) => {
                Some(Step::Renamed { from: (from, old), to: (to, new), mask: mask | IN_MOVED_FROM })
            }
            _ => None,
        }
    }

    /// When what waits may be told without a partner; None: nothing waits.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|(arrived, _)| *arrived + HOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(mask: u32, cookie: u32, name: &str) -> Item {
        Item::Happened { wd: 1, mask, cookie, name: name.as_bytes().into() }
    }

    fn all(pairs: &mut Pairs, now: Instant) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(step) = pairs.next(now) {
            told.push(match step {
                Step::Happened { mask, name, .. } => format!("{mask:x} {}", String::from_utf8_lossy(&name)),
                Step::Renamed { from, to, .. } => {
                    format!("{} > {}", String::from_utf8_lossy(&from.1), String::from_utf8_lossy(&to.1))
                }
                other => format!("{other:?}"),
            });
        }
        told
    }

    #[test]
    fn halves_meet_across_other_events_and_across_reads() {
        let (mut pairs, now) = (Pairs::default(), Instant::now());
        pairs.extend([item(IN_MOVED_FROM, 7, "a"), item(2, 0, "x")], now);
        assert!(all(&mut pairs, now).is_empty() && pairs.due() == Some(now + HOLD));
        pairs.extend([item(IN_MOVED_TO, 7, "b"), item(2, 0, "y")], now);
        assert_eq!(all(&mut pairs, now), ["a > b", "2 x", "2 y"]);
        assert!(pairs.due().is_none() && pairs.arrivals.is_empty());
    }

    #[test]
    fn a_half_alone_is_told_after_a_moment_and_holds_nobody_longer() {
        let (mut pairs, now) = (Pairs::default(), Instant::now());
        pairs.extend((0..1000).map(|n| item(IN_MOVED_FROM, n, "out")), now);
        pairs.extend([item(IN_MOVED_TO, 5000, "in")], now);
        assert!(pairs.next(now).is_none());
        assert_eq!(all(&mut pairs, now + HOLD).len(), 1001);
        // After an overflow at once.
        pairs.extend([item(IN_MOVED_FROM, 9, "out"), Item::Overflow { since: 0 }], now);
        assert_eq!(all(&mut pairs, now).len(), 2);
    }
}
