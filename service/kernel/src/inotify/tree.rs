//! The directories that one endpoint watches: the watched one, and with `recursive` all below it.
//!
//! A [`Tree`] remembers what the endpoint was told: each directory with its watch descriptor, and the
//! names in it. The queue of the kernel tells what *was*; looking at the file system (`inotify/look.rs`)
//! shows what *is*, a moment ahead of the queue. Both are told, and what both saw is told once, by
//! these rules:
//!
//! - A directory is watched first, then listed. What the list has is new, unless its name is known.
//! - A name that is created is told if it is not known, one that is deleted if it is.
//! - Which directory is at a path, the kernel says, by the descriptor that it gives for it: after every
//!   change of a directory's name the new path is looked at, and a directory that is known under another
//!   path has moved.
//! - A directory that cannot be found because a directory above it was renamed meanwhile is looked
//!   for again after the event that says so.
//! - Where a directory turns out not to be, something else may be, of which the event came already: the
//!   name is checked.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use libc::{
    IN_ATTRIB, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_ISDIR, IN_MOVE, IN_MOVE_SELF, IN_MOVED_FROM,
    IN_MOVED_TO,
};

use crate::{
    inotify::{
        budget::{Budget, Share},
        filter::Filter,
        hub::HUB,
        pairs::Step,
        queue::Handle,
    },
    shape::Notice,
};

/// What has to be known to follow a tree, whatever is asked for.
pub const FOLLOWED: u32 =
    IN_CREATE | IN_DELETE | IN_MOVE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | libc::IN_ONLYDIR;

/// No watch.
pub const NONE: i32 = -1;

/// Names that one endpoint remembers, apart from those of directories.
pub const MAX_REMEMBERED: usize = 1 << 18;

pub struct Tree {
    pub handle: Handle,
    pub filter: Filter,
    pub recursive: bool,
    pub budget: Budget,
    pub root: i32,
    pub(super) nodes: HashMap<i32, Node>,
    pub(super) jobs: VecDeque<Job>,
    /// Jobs whose directory was not at its path.
    pub(super) stale: Vec<Job>,
    pub(super) remembered: usize,
    /// Not all names are remembered, so that one that is not known may be an old one.
    pub(super) partial: bool,
    /// Why no more directories can be watched; forgotten when all was tried.
    pub(super) full: Option<String>,
    /// The watched directory was not at its path; when to look again.
    pub(super) adrift: Option<Instant>,
    /// Device and inode of the watched directory.
    pub(super) inode: (u64, u64),
    pub told: VecDeque<Notice>,
    pub ended: bool,
}

/// A name in a directory.
pub type Place = (i32, Box<[u8]>);

pub(super) struct Node {
    pub place: Place,
    pub inode: (u64, u64),
    pub entries: HashMap<Box<[u8]>, Entry>,
    pub last: Last,
    /// Since when events of it may have been lost, until it was looked for, wherever it is by then.
    pub lost: Option<i64>,
    pub _share: Option<Share>,
}

impl Node {
    pub fn new(place: Place, inode: (u64, u64), share: Option<Share>) -> Self {
        Self { place, inode, entries: HashMap::new(), last: Last::Unknown, lost: None, _share: share }
    }
}

/// The last change of a name in a directory. When two names change places (RENAME_EXCHANGE), the second
/// half looks as if it took away what the first has brought: a name comes, and in the next change of the
/// directory, which is locked during all of it, goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// It was not seen: it came before the watch, or was lost.
    Unknown,
    /// This name was renamed to.
    Came(Box<[u8]>),
    Other,
}

pub(super) struct Entry {
    pub directory: bool,
    /// The watch of a directory, or [`NONE`].
    pub wd: i32,
    /// It was told that this directory is not watched.
    pub unwatched: bool,
    /// When something was told of it last.
    pub at: i64,
}

/// Something to be looked at.
#[derive(Debug, Clone)]
pub(super) enum Job {
    /// Watch the directory that is at this place, and list it if it is not known.
    Enter { place: Place, mark: Mark },
    /// Look for what was lost in a known directory.
    Look { wd: i32 },
    /// Compare one name with what was told of it.
    Check { place: Place },
}

/// How the service came to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It was there when the watch was made, and that is asked for; or it is not.
    Initial { told: bool },
    /// It was in a directory that had just come.
    Found,
    /// It differs from what was told.
    Rescanned,
}

impl Mark {
    pub fn name(self) -> &'static str {
        match self {
            Self::Initial { .. } => "INITIAL",
            Self::Found => "FOUND",
            Self::Rescanned => "RESCANNED",
        }
    }
}

impl Tree {
    pub fn new(handle: Handle, filter: Filter, recursive: bool, budget: Budget, inode: (u64, u64)) -> Self {
        Self {
            handle,
            filter,
            recursive,
            budget,
            root: NONE,
            nodes: HashMap::new(),
            jobs: VecDeque::new(),
            stale: Vec::new(),
            remembered: 0,
            partial: false,
            full: None,
            adrift: None,
            inode,
            told: VecDeque::new(),
            ended: false,
        }
    }

    pub fn directories(&self) -> usize {
        self.nodes.len()
    }

    /// Names and directories that are remembered, and whether these are all.
    pub fn remembered(&self) -> (usize, bool) {
        (self.remembered, !self.partial)
    }

    /// Directories that are not watched though they are in the tree.
    pub fn unwatched(&self) -> usize {
        self.nodes.values().flat_map(|node| node.entries.values()).filter(|entry| entry.unwatched).count()
    }

    /// Takes what happened into account, and tells what is to be told. `now` is [`hub::stamp`](super::hub::stamp).
    pub fn step(&mut self, step: Step, now: i64) {
        match step {
            Step::Happened { wd, mask, name } if name.is_empty() => self.happened_to_itself(wd, mask),
            Step::Happened { wd, mask, name } => {
                let place = (wd, name);
                let exchanged = self.changed(&place, mask);
                self.happened(place.clone(), mask, now);
                self.check(exchanged, place);
            }
            Step::Renamed { from, to, mask } => {
                let exchanged = self.changed(&from, IN_MOVED_FROM);
                self.changed(&to, IN_MOVED_TO);
                self.renamed(from.clone(), to, mask, now);
                self.check(exchanged, from);
            }
            Step::Overflow { since } => self.overflowed(since),
            Step::Ended { wd, reason } if wd == self.root => self.end(reason),
            Step::Ended { wd, .. } => self.forget(wd),
        }
    }

    /// Notes the last change of a name; says whether it may be the second half of an exchange, so that the
    /// name is still there.
    fn changed(&mut self, place: &Place, mask: u32) -> bool {
        let Some(node) = self.nodes.get_mut(&place.0) else { return false };
        if mask & (IN_CREATE | IN_DELETE | IN_MOVE) == 0 {
            return false;
        }
        let came = mask & IN_MOVED_TO != 0;
        let last =
            std::mem::replace(&mut node.last, if came { Last::Came(place.1.clone()) } else { Last::Other });
        let exchanged = match last {
            Last::Unknown => true,
            Last::Came(name) => name == place.1,
            Last::Other => false,
        };
        mask & IN_MOVED_FROM != 0 && exchanged
    }

    fn check(&mut self, exchanged: bool, place: Place) {
        if exchanged {
            self.jobs.push_back(Job::Check { place });
        }
    }

    fn happened_to_itself(&mut self, wd: i32, mask: u32) {
        // What happens to a directory below, the one above it tells.
        if wd != self.root {
            return;
        }
        self.tell(mask, &(wd, Box::default()), None);
        if self.recursive && mask & IN_MOVE_SELF != 0 {
            self.end(
                "the watched directory was renamed, and a recursive watch follows paths; watch the new path",
            );
        }
    }

    fn happened(&mut self, place: Place, mask: u32, now: i64) {
        let directory = mask & IN_ISDIR != 0;
        if !self.nodes.contains_key(&place.0) || directory && self.filter.prunes(&self.below(&place)) {
            return;
        }
        let known = self.entry(&place).map(|entry| entry.directory);
        if mask & (IN_CREATE | IN_MOVED_TO) != 0 {
            if mask & IN_CREATE != 0 && known == Some(!directory) {
                // One of the other kind was seen there ahead of this.
                self.tell_gone(&place, !directory, Mark::Rescanned);
                self.take_name(&place);
            }
            self.enter_name(&place, directory, now);
            // Known, and yet moved to: it has taken the place of what was there. Whether a directory has, its
            // watch descriptor says, when it is visited.
            let watched = self.entry(&place).is_some_and(|entry| entry.wd != NONE);
            let replaces = mask & IN_MOVED_TO != 0 && !watched;
            if known != Some(directory) || replaces || self.partial {
                self.tell(mask, &place, None);
            }
            self.visit(place, directory, Mark::Found);
        } else if mask & (IN_DELETE | IN_MOVED_FROM) != 0 {
            // One of the other kind is there already, by an exchange.
            if known == Some(directory) && self.take_name(&place) || known.is_none() && self.partial {
                self.tell(mask, &place, None);
            }
        } else {
            if let Some(entry) = self.entry(&place) {
                entry.at = now;
            }
            self.tell(mask, &place, None);
            if mask & IN_ATTRIB != 0 {
                // It may have become unreadable, or readable.
                self.visit(place, directory, Mark::Found);
            }
        }
        self.try_stale_again(mask & IN_MOVE != 0);
    }

    fn renamed(&mut self, from: Place, to: Place, mask: u32, now: i64) {
        let directory = mask & IN_ISDIR != 0;
        let here = |tree: &Self, place: &Place| {
            tree.nodes.contains_key(&place.0) && !(directory && tree.filter.prunes(&tree.below(place)))
        };
        let known = self.entry(&from).is_some_and(|entry| entry.directory == directory) || self.partial;
        match (known && here(self, &from), here(self, &to)) {
            (true, true) => {}
            (true, false) => return self.happened(from, mask & !IN_MOVED_TO, now),
            (false, _) => return self.happened(to, mask & !IN_MOVED_FROM, now),
        }
        let [moved, there] = [&from, &to].map(|place| self.entry(place).map_or(NONE, |entry| entry.wd));
        if directory && moved == NONE && there != NONE {
            // It was seen at its new place ahead of this, and told.
            self.take_name(&from);
            self.tell(mask & !IN_MOVED_TO, &from, None);
        } else if directory && self.is_within(to.0, moved) {
            // Into itself, by what was seen ahead of this: all that is known of it is of no use.
            self.take_name(&from);
            self.tell(mask & !IN_MOVED_TO, &from, None);
            // No change of a file was lost.
            self.look_for(i64::MAX);
        } else {
            self.tell_rename(&from, &to, mask, None);
            self.move_name(&from, &to, directory, now);
        }
        self.visit(to, directory, Mark::Rescanned);
        self.try_stale_again(true);
    }

    fn overflowed(&mut self, since: i64) {
        self.told.push_back(Notice::Overflow);
        self.nodes.values_mut().for_each(|node| node.last = Last::Unknown);
        let alive = HUB.alive(&self.handle);
        let mut dead: Vec<_> = self
            .nodes
            .iter()
            .filter(|(wd, _)| !alive.contains(wd) && **wd != self.root)
            .map(|(wd, node)| (self.below(&node.place), *wd))
            .collect();
        // What they held is gone with them, the lowest first; others may have taken their names.
        dead.sort_unstable_by(|one, other| other.cmp(one));
        dead.iter().for_each(|(_, wd)| self.tell_content_gone(*wd));
        dead.iter().for_each(|(_, wd)| self.forget(*wd));
        self.stale.clear();
        self.jobs.clear();
        self.look_for(since);
    }

    /// Has everything compared with what was told.
    fn look_for(&mut self, since: i64) {
        for node in self.nodes.values_mut() {
            node.lost = Some(node.lost.map_or(since, |earlier| earlier.min(since)));
        }
        self.jobs.push_back(Job::Look { wd: self.root });
    }

    pub(super) fn end(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.ended, true) {
            self.told.push_back(Notice::End(reason.to_owned()));
        }
    }

    /// Has the directory at a place looked at.
    pub(super) fn visit(&mut self, place: Place, directory: bool, mark: Mark) {
        if directory && self.recursive {
            self.jobs.push_back(Job::Enter { place, mark });
        }
    }

    pub(super) fn try_stale_again(&mut self, moved: bool) {
        if moved {
            self.jobs.extend(self.stale.drain(..));
        }
    }
}

/// The path of a directory's entry; the directory's own where there is no name.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_owned();
    if !name.is_empty() {
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    path
}
