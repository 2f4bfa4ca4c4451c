//! What an endpoint tells, stage by stage: from what waits for it to what its caller hears.

use std::{
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

use libc::{IN_IGNORED, IN_ISDIR, IN_MOVE, IN_MOVED_FROM, IN_MOVED_TO, IN_UNMOUNT};

use crate::{
    Attempt, Error, Kind, Readiness, Result,
    inotify::{
        filter::Filter,
        hub::stamp,
        mask,
        pairs::{Pairs, Step},
        poll::Poll,
        queue::{Handle, MAX_QUEUED},
        settle::Settle,
        tree::{Tree, join},
    },
    shape::{Event, Notice},
};

/// Directories that are looked at, and steps that are taken, before other work has its turn.
const LOOKS: usize = 64;
const STEPS: usize = 4096;

const ONESHOT: &str = "the watch was for one event (oneshot)";

/// Where events come from.
pub enum Source {
    /// One watch, of which nothing is remembered.
    One(One),
    /// Directories with their names.
    Tree(Box<Tree>),
    /// Looking again and again.
    Poll(Box<Poll>),
}

pub struct One {
    pub handle: Handle,
    pub filter: Filter,
    pub wd: i32,
}

pub struct Flow {
    pub source: Source,
    pairs: Pairs,
    settle: Option<Settle>,
    oneshot: bool,
    told: Vec<Notice>,
    ended: Option<String>,
}

impl Flow {
    pub fn new(source: Source, settle: Option<Settle>, oneshot: bool) -> Self {
        Self { source, pairs: Pairs::default(), settle, oneshot, told: Vec::new(), ended: None }
    }

    pub fn oneshot(&self) -> bool {
        self.oneshot
    }

    /// Why it has ended.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Events that wait for a partner, for quiet, or for their turn.
    pub fn waiting(&self) -> usize {
        let queued = match &self.source {
            Source::One(one) => one.handle.queued(),
            Source::Tree(tree) => tree.handle.queued(),
            Source::Poll(_) => 0,
        };
        queued + self.pairs.len() + self.settle.as_ref().map_or(0, Settle::waiting)
    }

    /// What has happened since the last call.
    pub fn attempt(&mut self) -> Result<Attempt<Vec<Notice>>> {
        loop {
            if let Some(reason) = &self.ended {
                return Err(Error::new(Kind::Closed, format!("the watch has ended: {reason}")));
            }
            let now = Instant::now();
            let waits = match &self.source {
                Source::Poll(_) => self.poll(now),
                _ => self.work(now),
            };
            self.release(now);
            if !self.told.is_empty() {
                return Ok(Attempt::Done(std::mem::take(&mut self.told)));
            }
            if let Some(readiness) = waits? {
                return Ok(Attempt::Wait(readiness));
            }
        }
    }

    fn poll(&mut self, now: Instant) -> Result<Option<Readiness>> {
        let Source::Poll(poll) = &mut self.source else { return Ok(None) };
        let readiness = poll.next(now)?;
        let told = std::mem::take(&mut poll.told);
        let any = !told.is_empty();
        told.into_iter().for_each(|notice| self.tell(notice, now));
        Ok(match readiness {
            _ if any => None,
            // A look that goes on is not given up for something else.
            Readiness::After(pause) => {
                Some(Readiness::After(self.due(now).map_or(pause, |due| due.min(pause))))
            }
            readiness => Some(readiness),
        })
    }

    /// Takes what waits through the stages; says what to wait for, None: there is more at once.
    fn work(&mut self, now: Instant) -> Result<Option<Readiness>> {
        let handle = match &self.source {
            Source::One(one) => &one.handle,
            Source::Tree(tree) => &tree.handle,
            Source::Poll(_) => return Ok(None),
        };
        // What is held back is bounded, as the queue is.
        let listener = match self.pairs.len() < MAX_QUEUED {
            false => None,
            true => match handle.take() {
                Ok(items) => {
                    self.pairs.extend(items, now);
                    None
                }
                Err(listener) => Some(listener),
            },
        };
        if !self.steps(now) {
            return Ok(Some(Readiness::After(Duration::ZERO)));
        }
        let after = self.due(now).map(Readiness::After);
        Ok(match (listener, after) {
            (Some(listener), None) => Some(Readiness::Notified(listener)),
            (Some(listener), Some(after)) => Some(Readiness::Any(vec![Readiness::Notified(listener), after])),
            (None, Some(after)) if self.pairs.len() >= MAX_QUEUED => Some(after),
            (None, _) => None,
        })
    }

    /// Says whether nothing is left that can be done now.
    fn steps(&mut self, now: Instant) -> bool {
        let stamp = stamp();
        for _ in 0..STEPS {
            if self.ended.is_some() {
                return true;
            }
            let looked = match &mut self.source {
                Source::Tree(tree) => {
                    tree.come_ashore(now);
                    tree.look(LOOKS)
                }
                _ => true,
            };
            let step = if looked { self.pairs.next(now) } else { None };
            let last = step.is_none();
            match &mut self.source {
                Source::Tree(tree) => {
                    step.into_iter().for_each(|step| tree.step(step, stamp));
                    for notice in std::mem::take(&mut tree.told) {
                        self.tell(notice, now);
                    }
                }
                Source::One(one) => {
                    if let Some(notice) = step.and_then(|step| one.told(step)) {
                        self.tell(notice, now);
                    }
                }
                Source::Poll(_) => {}
            }
            if last {
                return looked;
            }
        }
        false
    }

    /// How long until something that is held back may go on.
    fn due(&self, now: Instant) -> Option<Duration> {
        let tree = match &self.source {
            Source::Tree(tree) => tree.due(),
            _ => None,
        };
        let due =
            [self.pairs.due(), self.settle.as_ref().and_then(Settle::due), tree].into_iter().flatten().min();
        due.map(|due| due.saturating_duration_since(now).max(Duration::from_millis(1)))
    }

    /// The last stage but one: what is to settle waits.
    fn tell(&mut self, notice: Notice, now: Instant) {
        let Some(settle) = &mut self.settle else { return self.say(notice) };
        let mut told = Vec::new();
        match notice {
            Notice::Event(event) if !event.names.contains(&"INITIAL") => {
                settle.push(event, now, &mut told);
                told.into_iter().for_each(|event| self.say(Notice::Event(event)));
            }
            notice => {
                settle.flush(&mut told);
                told.into_iter().for_each(|event| self.say(Notice::Event(event)));
                self.say(notice);
            }
        }
    }

    fn release(&mut self, now: Instant) {
        let Some(settle) = &mut self.settle else { return };
        let mut told = Vec::new();
        settle.release(now, &mut told);
        told.into_iter().for_each(|event| self.say(Notice::Event(event)));
    }

    fn say(&mut self, notice: Notice) {
        if self.ended.is_some() {
            return;
        }
        if let Notice::End(reason) = &notice {
            self.ended = Some(reason.clone());
        }
        let counts = matches!(&notice, Notice::Event(event)
            if !event.names.iter().any(|name| ["INITIAL", "UNWATCHED", "IGNORED"].contains(name)));
        self.told.push(notice);
        if self.oneshot && counts {
            // As the kernel says it of a watch with IN_ONESHOT.
            let path = match &self.source {
                Source::One(one) => one.handle.wish.path.as_os_str().as_bytes().to_owned(),
                Source::Tree(tree) => tree.handle.wish.path.as_os_str().as_bytes().to_owned(),
                Source::Poll(poll) => poll.wish.path.as_os_str().as_bytes().to_owned(),
            };
            self.told.push(Notice::Event(Event { names: vec!["IGNORED"], path, ..Event::default() }));
            self.say(Notice::End(ONESHOT.to_owned()));
        }
    }
}

impl One {
    fn told(&self, step: Step) -> Option<Notice> {
        let asked = self.handle.wish.mask;
        let path = |name: &[u8]| join(self.handle.wish.path.as_os_str().as_bytes(), name);
        let (mask, path, from) = match step {
            Step::Overflow { .. } => return Some(Notice::Overflow),
            Step::Ended { reason, .. } => return Some(Notice::End(reason.to_owned())),
            Step::Happened { mask, name, .. } => {
                if !self.filter.tells(&name) {
                    return None;
                }
                (mask & (asked | IN_ISDIR | IN_UNMOUNT | IN_IGNORED), path(&name), Vec::new())
            }
            Step::Renamed { from: (_, from), to: (_, to), mask } => {
                let moves = if asked & IN_MOVE != 0 { mask & (IN_MOVE | IN_ISDIR) } else { 0 };
                match (self.filter.tells(&from), self.filter.tells(&to)) {
                    (true, true) => (moves, path(&to), path(&from)),
                    (true, false) => (moves & !IN_MOVED_TO, path(&from), Vec::new()),
                    (false, true) => (moves & !IN_MOVED_FROM, path(&to), Vec::new()),
                    (false, false) => return None,
                }
            }
        };
        let names = mask::names(mask);
        (mask & !IN_ISDIR != 0).then(|| Notice::Event(Event { names, path, from, note: String::new() }))
    }
}
