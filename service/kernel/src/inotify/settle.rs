//! Debouncing: events of the same path become one when nothing more has come for a while.
//!
//! The names are those of all events, in the order in which each came last, so that the last one is
//! what happened last. A path that never gets quiet is told after [`PATIENCE`] times the while. What is
//! told is in the order of the last events.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use crate::shape::Event;

/// How many times the quiet time a path is waited for.
pub const PATIENCE: u32 = 10;

/// Paths that may wait; then the one whose turn comes first is told early.
const MAX_WAITING: usize = 4096;

pub struct Settle {
    quiet: Duration,
    waiting: HashMap<Vec<u8>, Waiting>,
    /// When each is due, and a number that keeps the order.
    order: BTreeMap<(Instant, u64), Vec<u8>>,
    next: u64,
}

struct Waiting {
    event: Event,
    first: Instant,
    due: (Instant, u64),
}

impl Settle {
    pub fn new(quiet: Duration) -> Self {
        Self { quiet, waiting: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }

    /// How many paths wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes an event, and puts what can no longer wait for it into `told`.
    pub fn push(&mut self, event: Event, now: Instant, told: &mut Vec<Event>) {
        let moves =
            event.names.iter().any(|name| name.starts_with("MOVED")) || event.names.contains(&"DELETE");
        if moves && event.names.contains(&"ISDIR") {
            // What waits may be below it, under a path that is no more.
            self.flush(told);
        }
        if !event.from.is_empty() {
            for path in [&event.from, &event.path] {
                told.extend(self.take(path).map(|waiting| waiting.event));
            }
        }
        let (event, first) = match self.take(&event.path) {
            Some(earlier) => (merged(earlier.event, event), earlier.first),
            None => (event, now),
        };
        self.next += 1;
        let due = ((now + self.quiet).min(first + self.quiet * PATIENCE), self.next);
        self.order.insert(due, event.path.clone());
        self.waiting.insert(event.path.clone(), Waiting { event, first, due });
        if self.waiting.len() > MAX_WAITING {
            told.extend(self.first());
        }
    }

    /// What has been quiet long enough.
    pub fn release(&mut self, now: Instant, told: &mut Vec<Event>) {
        while self.due().is_some_and(|due| due <= now) {
            told.extend(self.first());
        }
    }

    /// Everything: what follows must not be told before it.
    pub fn flush(&mut self, told: &mut Vec<Event>) {
        while let Some(event) = self.first() {
            told.push(event);
        }
    }

    /// When the next one is due.
    pub fn due(&self) -> Option<Instant> {
        self.order.first_key_value().map(|((due, _), _)| *due)
    }

    fn first(&mut self) -> Option<Event> {
        let (_, path) = self.order.pop_first()?;
        self.waiting.remove(&path).map(|waiting| waiting.event)
    }

    fn take(&mut self, path: &[u8]) -> Option<Waiting> {
        let waiting = self.waiting.remove(path)?;
        self.order.remove(&waiting.due);
        Some(waiting)
    }
}

fn merged(earlier: Event, later: Event) -> Event {
    let mut names = earlier.names;
    names.retain(|name| !later.names.contains(name));
    names.extend(later.names);
    let from = if later.from.is_empty() { earlier.from } else { later.from };
    let note = if later.note.is_empty() { earlier.note } else { later.note };
    Event { names, path: later.path, from, note }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(names: &[&'static str], path: &str, from: &str) -> Event {
        Event { names: names.to_owned(), path: path.into(), from: from.into(), ..Event::default() }
    }

    #[test]
    fn a_path_is_told_once_when_it_is_quiet() {
        let ms = Duration::from_millis;
        let (mut settle, start, mut told) = (Settle::new(ms(50)), Instant::now(), Vec::new());
        settle.push(event(&["CREATE"], "/a", ""), start, &mut told);
        settle.push(event(&["MODIFY"], "/b", ""), start + ms(1), &mut told);
        settle.push(event(&["MODIFY"], "/a", ""), start + ms(2), &mut told);
        settle.push(event(&["CLOSE_WRITE"], "/a", ""), start + ms(40), &mut told);
        settle.push(event(&["MODIFY"], "/a", ""), start + ms(41), &mut told);
        settle.release(start + ms(60), &mut told);
        assert_eq!(told, [event(&["MODIFY"], "/b", "")]);
        assert_eq!(settle.due(), Some(start + ms(91)));
        settle.release(start + ms(91), &mut told);
        assert_eq!(told[1..], [event(&["CREATE", "CLOSE_WRITE", "MODIFY"], "/a", "")]);
        assert!(settle.due().is_none());
    }

    #[test]
    fn what_never_gets_quiet_is_told_all_the_same() {
        let (mut settle, start, mut told) =
            (Settle::new(Duration::from_millis(10)), Instant::now(), Vec::new());
        for turn in 0..30 {
            let now = start + Duration::from_millis(turn * 5);
            settle.push(event(&["MODIFY"], "/log", ""), now, &mut told);
            settle.release(now, &mut told);
        }
        assert_eq!(told.len(), 1);
    }

    #[test]
    fn a_rename_is_told_after_what_was_known_by_the_old_name() {
        let (mut settle, now, mut told) =
            (Settle::new(Duration::from_millis(10)), Instant::now(), Vec::new());
        settle.push(event(&["CREATE"], "/a", ""), now, &mut told);
        settle.push(event(&["MOVED_FROM", "MOVED_TO"], "/b", "/a"), now, &mut told);
        settle.push(event(&["MODIFY"], "/b", ""), now, &mut told);
        settle.push(event(&["CREATE"], "/d/f", ""), now, &mut told);
        settle.push(event(&["MOVED_FROM", "MOVED_TO", "ISDIR"], "/e", "/d"), now, &mut told);
        let renamed = event(&["MOVED_FROM", "MOVED_TO", "MODIFY"], "/b", "/a");
        assert_eq!(told, [event(&["CREATE"], "/a", ""), renamed, event(&["CREATE"], "/d/f", "")]);
        settle.flush(&mut told);
        assert_eq!(told.len(), 4);
    }
}
