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

use std::{
    collections::{HashMap, VecDeque},
    os::unix::ffi::OsStrExt,
    time::Instant,
};

use libc::{
    IN_ACCESS, IN_ATTRIB, IN_CLOSE_NOWRITE, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_IGNORED, IN_ISDIR,
    IN_MOVE, IN_MOVE_SELF, IN_MOVED_FROM, IN_MOVED_TO, IN_OPEN, IN_UNMOUNT,
};

use crate::{
    inotify::{
        budget::{Budget, Share},
        filter::Filter,
        hub::HUB,
        mask,
        pairs::Step,
        queue::Handle,
    },
    shape::{Event, Notice},
};

/// What has to be known to follow a tree, whatever is asked for.
pub const FOLLOWED: u32 =
    IN_CREATE | IN_DELETE | IN_MOVE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | libc::IN_ONLYDIR;

/// The service opens and reads directories itself; who does it, inotify does not say.
const LOOKING: u32 = IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE;

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
    /// What was lost since when; looked for by jobs.
    pub(super) lost_since: Option<i64>,
    /// Where the last rename went to, if something may have been there, which it then took the place of.
    /// When two names change places (RENAME_EXCHANGE), the second half looks as if it took away the first.
    replaced: Option<Place>,
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
    pub _share: Option<Share>,
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
    /// Watch the directory that is at this place, and list it if it is not known. `deep`: also look for
    /// what was lost in it.
    Enter { place: Place, mark: Mark, deep: bool },
    /// Look for what was lost in a known directory.
    Look { wd: i32, deep: bool },
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
            lost_since: None,
            replaced: None,
            adrift: None,
            inode,
            told: VecDeque::new(),
            ended: false,
        }
    }

    /// What is told of, of what may happen.
    fn asked(&self) -> u32 {
        self.handle.wish.mask
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
            Step::Happened { wd, mask, name } => self.happened((wd, name), mask, now),
            Step::Renamed { from, to, mask } => self.renamed(from, to, mask, now),
            Step::Overflow { since } => self.overflowed(since),
            Step::Ended { wd, reason } if wd == self.root => self.end(reason),
            Step::Ended { wd, .. } => self.forget(wd),
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
        let replaced = self.replaced.take();
        let known = self.entry(&place).map(|entry| entry.directory);
        if mask & (IN_CREATE | IN_MOVED_TO) != 0 {
            self.enter_name(&place, directory, now);
            // Known, and yet moved to: it has taken the place of what was there. Whether a directory has, its
            // watch descriptor says, when it is visited.
            let watched = self.entry(&place).is_some_and(|entry| entry.wd != NONE);
            let replaces = mask & IN_MOVED_TO != 0 && !watched;
            if known != Some(directory) || replaces || self.partial {
                self.tell(mask, &place, None);
            }
            if mask & IN_MOVED_TO != 0 && (known.is_some() || directory) {
                self.replaced = Some(place.clone());
            }
            self.visit(place, directory, Mark::Found);
        } else if mask & (IN_DELETE | IN_MOVED_FROM) != 0 {
            let exchanged = replaced.is_some_and(|last| last == place);
            // One of the other kind is there already, by an exchange.
            if known == Some(directory) && self.take_name(&place) || known.is_none() && self.partial {
                self.tell(mask, &place, None);
            }
            if exchanged {
                self.jobs.push_back(Job::Look { wd: place.0, deep: false });
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
        let exchanged = self.replaced.take().is_some_and(|last| last == from);
        let [moved, there] = [&from, &to].map(|place| self.entry(place).map_or(NONE, |entry| entry.wd));
        if directory && moved == NONE && there != NONE {
            // It was seen at its new place ahead of this, and told.
            self.take_name(&from);
            self.tell(mask & !IN_MOVED_TO, &from, None);
            self.replaced = Some(to.clone());
        } else {
            if directory || self.entry(&to).is_some() {
                self.replaced = Some(to.clone());
            }
            self.tell_rename(&from, &to, mask, None);
            self.move_name(&from, &to, directory, now);
        }
        if exchanged {
            self.jobs.push_back(Job::Look { wd: from.0, deep: false });
        }
        self.visit(to, directory, Mark::Rescanned);
        self.try_stale_again(true);
    }

    /// Has a name, and the directory of this name, at another place; what was there goes.
    pub(super) fn move_name(&mut self, from: &Place, to: &Place, directory: bool, now: i64) {
        let moved = self.entry(from).map_or(NONE, |entry| std::mem::replace(&mut entry.wd, NONE));
        self.take_name(from);
        self.take_name(to);
        self.enter_name(to, directory, now);
        if moved != NONE && !self.reparent(moved, to) {
            self.forget(moved);
        }
    }

    fn overflowed(&mut self, since: i64) {
        self.told.push_back(Notice::Overflow);
        self.replaced = None;
        let alive = HUB.alive(&self.handle);
        let dead: Vec<i32> =
            self.nodes.keys().copied().filter(|wd| !alive.contains(wd) && *wd != self.root).collect();
        dead.into_iter().for_each(|wd| self.forget(wd));
        self.lost_since = Some(self.lost_since.map_or(since, |earlier| earlier.min(since)));
        self.stale.clear();
        self.jobs.clear();
        self.jobs.push_back(Job::Look { wd: self.root, deep: true });
    }

    pub(super) fn end(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.ended, true) {
            self.told.push_back(Notice::End(reason.to_owned()));
        }
    }

    /// Has the directory at a place looked at.
    pub(super) fn visit(&mut self, place: Place, directory: bool, mark: Mark) {
        if directory && self.recursive {
            self.jobs.push_back(Job::Enter { place, mark, deep: false });
        }
    }

    fn try_stale_again(&mut self, moved: bool) {
        if moved {
            self.jobs.extend(self.stale.drain(..));
        }
    }

    /// Tells of an event, if it is asked for.
    pub(super) fn tell(&mut self, mask: u32, place: &Place, mark: Option<Mark>) {
        let mask = mask & (self.asked() | IN_ISDIR | IN_UNMOUNT | IN_IGNORED);
        let looking = mask & IN_ISDIR != 0 && mask & LOOKING != 0;
        if mask & !IN_ISDIR == 0 || looking || !self.filter.tells(&self.below(place)) {
            return;
        }
        let mut names = mask::names(mask);
        names.extend(mark.map(Mark::name));
        let event = Event { names, path: self.path(place), ..Event::default() };
        self.told.push_back(Notice::Event(event));
    }

    /// Tells of a rename, or of the half of it that is told of.
    pub(super) fn tell_rename(&mut self, from: &Place, to: &Place, mask: u32, mark: Option<Mark>) {
        if self.asked() & IN_MOVE == 0 {
            return;
        }
        let kind = mask & IN_ISDIR;
        let tells = [from, to].map(|place| self.filter.tells(&self.below(place)));
        let (mask, from, path) = match tells {
            [true, true] => (IN_MOVE, self.path(from), self.path(to)),
            [true, false] => (IN_MOVED_FROM, Vec::new(), self.path(from)),
            [false, true] => (IN_MOVED_TO, Vec::new(), self.path(to)),
            [false, false] => return,
        };
        let mut names = mask::names(mask | kind);
        names.extend(mark.map(Mark::name));
        self.told.push_back(Notice::Event(Event { names, path, from, note: String::new() }));
    }

    /// The path from the watched directory on; empty for that itself.
    pub(super) fn below(&self, place: &Place) -> Vec<u8> {
        let mut names = vec![&place.1];
        let mut wd = place.0;
        // As many steps as there are directories at most, should the map have a circle.
        for _ in 0..self.nodes.len() {
            match self.nodes.get(&wd) {
                Some(node) if wd != self.root => {
                    names.push(&node.place.1);
                    wd = node.place.0;
                }
                _ => break,
            }
        }
        names
            .iter()
            .rev()
            .filter(|name| !name.is_empty())
            .map(|name| &name[..])
            .collect::<Vec<_>>()
            .join(&b'/')
    }

    pub(super) fn path(&self, place: &Place) -> Vec<u8> {
        join(self.handle.wish.path.as_os_str().as_bytes(), &self.below(place))
    }

    pub(super) fn entry(&mut self, place: &Place) -> Option<&mut Entry> {
        self.nodes.get_mut(&place.0)?.entries.get_mut(&place.1)
    }

    /// Remembers a name.
    pub(super) fn enter_name(&mut self, place: &Place, directory: bool, now: i64) {
        if self.entry(place).is_some_and(|entry| entry.directory != directory) {
            self.take_name(place);
        }
        if let Some(entry) = self.entry(place) {
            entry.at = now;
            return;
        }
        if self.remembered >= MAX_REMEMBERED && !directory {
            self.partial = true;
            return;
        }
        if let Some(node) = self.nodes.get_mut(&place.0) {
            node.entries.insert(place.1.clone(), Entry { directory, wd: NONE, unwatched: false, at: now });
            self.remembered += 1;
        }
    }

    /// Forgets a name and all that is below it; says whether it was known.
    pub(super) fn take_name(&mut self, place: &Place) -> bool {
        let Some(entry) = self.nodes.get_mut(&place.0).and_then(|node| node.entries.remove(&place.1)) else {
            return false;
        };
        self.remembered -= 1;
        self.forget(entry.wd);
        true
    }

    /// Forgets a directory with all that is below it, and ends the watches.
    pub(super) fn forget(&mut self, wd: i32) {
        let mut gone = vec![wd];
        while let Some(wd) = gone.pop() {
            if wd == self.root {
                continue;
            }
            let Some(node) = self.nodes.remove(&wd) else { continue };
            if let Some(entry) = self.entry(&node.place)
                && entry.wd == wd
            {
                entry.wd = NONE;
            }
            self.remembered -= node.entries.len();
            gone.extend(node.entries.values().map(|entry| entry.wd));
            HUB.unwatch(&self.handle, wd);
        }
    }

    /// Puts a known directory at another place, whose name is known. Not below itself.
    fn reparent(&mut self, wd: i32, place: &Place) -> bool {
        if self.is_within(place.0, wd) {
            return false;
        }
        let Some(node) = self.nodes.get_mut(&wd) else { return false };
        node.place = place.clone();
        if let Some(entry) = self.entry(place) {
            (entry.wd, entry.unwatched) = (wd, false);
        }
        true
    }

    pub(super) fn is_within(&self, mut wd: i32, above: i32) -> bool {
        for _ in 0..=self.nodes.len() {
            if wd == above {
                return true;
            }
            match self.nodes.get(&wd) {
                Some(node) if wd != self.root => wd = node.place.0,
                _ => return false,
            }
        }
        true
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
