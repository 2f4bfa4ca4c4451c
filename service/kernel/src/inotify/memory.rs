//! What a [`Tree`] remembers: names, and directories with their places.

use std::os::unix::ffi::OsStrExt;

use crate::inotify::{
    hub::HUB,
    tree::{Entry, MAX_REMEMBERED, NONE, Place, Tree, join},
};

impl Tree {
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
}
