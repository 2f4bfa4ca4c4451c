//! What a [`Tree`] tells: what is asked for, and not left out by the filter.

use libc::{
    IN_ACCESS, IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_IGNORED, IN_ISDIR, IN_MODIFY,
    IN_MOVE, IN_MOVED_FROM, IN_MOVED_TO, IN_OPEN, IN_UNMOUNT,
};

use crate::{
    inotify::{
        mask,
        tree::{Mark, Place, Tree},
    },
    shape::{Event, Notice},
};

/// The service opens and reads directories itself; who does it, inotify does not say.
const LOOKING: u32 = IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE;

impl Tree {
    /// What is told of, of what may happen.
    fn asked(&self) -> u32 {
        self.handle.wish.mask
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

    /// Tells of a name that is there, in the words of what was asked for.
    pub(super) fn tell_found(&mut self, place: &Place, directory: bool, mark: Mark) {
        let kind = if directory { IN_ISDIR } else { 0 };
        match mark {
            Mark::Initial { told: false } => {}
            Mark::Initial { told: true } => {
                if self.filter.tells(&self.below(place)) {
                    let mut names = mask::names(IN_CREATE | kind);
                    names.push(mark.name());
                    let event = Event { names, path: self.path(place), ..Event::default() };
                    self.told.push_back(Notice::Event(event));
                }
            }
            // Whoever asked for complete files only, hears of one that came before it could be watched.
            _ if directory => self.tell_first(&[IN_CREATE, IN_MOVED_TO], kind, place, mark),
            _ => self.tell_first(&[IN_CREATE, IN_CLOSE_WRITE, IN_MOVED_TO, IN_MODIFY], kind, place, mark),
        }
    }

    /// Tells of a name that is not there any more.
    pub(super) fn tell_gone(&mut self, place: &Place, directory: bool, mark: Mark) {
        let kind = if directory { IN_ISDIR } else { 0 };
        self.tell_first(&[IN_DELETE, IN_MOVED_FROM], kind, place, mark);
    }

    /// Tells the first of these events that is asked for.
    pub(super) fn tell_first(&mut self, events: &[u32], kind: u32, place: &Place, mark: Mark) {
        if let Some(event) = mask::first(self.handle.wish.mask, events) {
            self.tell(event | kind, place, Some(mark));
        }
    }

    /// Tells that what is known in a directory is not there.
    pub(super) fn tell_content_gone(&mut self, wd: i32) {
        let Some(node) = self.nodes.get(&wd) else { return };
        let mut entries: Vec<_> =
            node.entries.iter().map(|(name, entry)| (name.clone(), entry.directory)).collect();
        entries.sort_unstable();
        for (name, directory) in entries {
            self.tell_gone(&(wd, name), directory, Mark::Rescanned);
        }
    }
}
