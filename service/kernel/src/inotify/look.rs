//! Looking at the file system, for [`Tree`]: what is in a directory that is new, and what has become
//! of a known one of which events were lost.
//!
//! Directories are opened from the watched one downwards, without following symbolic links and
//! without leaving the file system, and only for a moment: a directory that is open is not deleted, and
//! its file system is not unmounted.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    time::{Duration, Instant},
};

use libc::{IN_ATTRIB, IN_CLOSE_WRITE, IN_ISDIR, IN_MODIFY};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::{
    Error, Fd, Kind, Result, error, fd,
    inotify::{
        hub::{HUB, Want, stamp},
        queue::Wish,
        tree::{FOLLOWED, Job, MAX_REMEMBERED, Mark, NONE, Node, Place, Tree},
    },
    shape::{Event, Notice},
};

/// How long a watched directory may be missing at its path before its end is told without an event that
/// says why.
const GRACE: Duration = Duration::from_millis(100);

/// Why a directory could not be opened.
enum Missing {
    /// It is not at the path at which it is known, at this moment.
    Elsewhere,
    /// The watched directory itself is not at its path.
    Root,
}

/// Why what was found is not watched.
enum Refused {
    /// What was renamed to there is not known yet.
    Elsewhere,
    Because(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Because(error)
    }
}

impl Tree {
    /// Watches the directory, and all below it if that is asked for; nothing is left behind if it fails.
    pub fn start(&mut self, pinned: &Fd, mark: Mark) -> Result<()> {
        let Wish { path, mask, excl_unlink, .. } = self.handle.wish.clone();
        let want = Want { path, mask: mask | FOLLOWED, excl_unlink, inode: None };
        self.root = HUB.watch(&self.handle, pinned, want)?;
        let place = (self.root, Box::default());
        self.nodes.insert(self.root, Node::new(place, self.inode, None));
        let attempt = format!("list {}", self.handle.wish.path.display());
        self.list(self.root, pinned, mark).map_err(|errno| Error::from_errno(errno, attempt))?;
        // One after the other, as a limit that is reached is the end.
        while self.full.is_none() && !self.partial && self.look_once() {}
        if let Some(why) = self.full.take() {
            return Err(Error::new(Kind::LimitExceeded, why).help("or leave directories out with exclude"));
        }
        if self.partial {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot watch {}: more than {MAX_REMEMBERED} names are in it, which is what one endpoint remembers; \
                     watch a part of it, or leave directories out with exclude",
                    self.handle.wish.path.display()
                ),
            ));
        }
        Ok(())
    }

    /// Does at most so many jobs; says whether none is left.
    pub fn look(&mut self, most: usize) -> bool {
        for _ in 0..most {
            if !self.look_once() {
                self.full = None;
                return true;
            }
        }
        self.jobs.is_empty()
    }

    /// Does one job; says whether there was one.
    fn look_once(&mut self) -> bool {
        let Some(job) = self.jobs.pop_front() else { return false };
        let done = match &job {
            Job::Enter { place, mark } => self.enter(place, *mark),
            Job::Look { wd } => self.look_again(*wd),
            Job::Check { place } => self.check_name(place),
        };
        match done {
            Ok(()) => {}
            Err(Missing::Elsewhere) => self.stale.push(job),
            Err(Missing::Root) if self.recursive => {
                self.stale.push(job);
                self.adrift.get_or_insert_with(|| Instant::now() + GRACE);
            }
            // The watch goes on with that directory, wherever it is.
            Err(Missing::Root) => {}
        }
        true
    }

    /// When it has to be asked whether the watched directory is at its path.
    pub fn due(&self) -> Option<Instant> {
        self.adrift
    }

    /// Ends a watch whose path leads elsewhere: one of the directories above was renamed, of which there
    /// is no event.
    pub fn come_ashore(&mut self, now: Instant) {
        if self.adrift.is_none_or(|due| due > now) {
            return;
        }
        self.adrift = None;
        match self.open(self.root) {
            Err(_) => self.end(
                "the watched directory is no longer at its path, which a recursive watch follows; watch the new path",
            ),
            Ok(_) => self.jobs.extend(self.stale.drain(..)),
        }
    }

    fn enter(&mut self, place: &Place, mark: Mark) -> Result<(), Missing> {
        if !self.entry(place).is_some_and(|entry| entry.directory) {
            return Ok(());
        }
        let above = self.open(place.0)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let pinned = match open_below(&above, &place.1, flags) {
            Ok(pinned) => pinned,
            // Gone, or something else by now: there is an event of that.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(Errno::XDEV) => {
                self.leave_out(place, "another file system is mounted there; watch it by itself");
                return Ok(());
            }
            Err(errno) => {
                self.leave_out(place, &error::describe(errno));
                return Ok(());
            }
        };
        match self.watch(place, &pinned, mark) {
            Err(Refused::Elsewhere) => return Err(Missing::Elsewhere),
            Err(Refused::Because(error)) => {
                if error.kind == Kind::LimitExceeded {
                    self.full.get_or_insert_with(|| error.text.clone());
                }
                self.leave_out(place, &error.text);
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Watches what was found at a place. What is new is listed.
    fn watch(&mut self, place: &Place, pinned: &Fd, mark: Mark) -> Result<(), Refused> {
        let known = self.entry(place).map_or(NONE, |entry| entry.wd);
        let mut share = None;
        if known == NONE {
            if let Some(why) = &self.full {
                return Err(Error::new(Kind::LimitExceeded, why.clone()).into());
            }
            share = self.budget.take()?;
        }
        let wish = &self.handle.wish;
        let want = Want {
            path: OsString::from_vec(self.path(place)).into(),
            mask: wish.mask | FOLLOWED,
            excl_unlink: wish.excl_unlink,
            inode: None,
        };
        let wd = HUB.watch(&self.handle, pinned, want)?;
        if known != NONE && known != wd {
            // What was told to be there was something else.
            self.tell_content_gone(known);
            self.forget(known);
        }
        if wd != known
            && let Some(from) = self.nodes.get(&wd).map(|node| node.place.clone())
        {
            // Renamed to here, of which the event is still to come, or was lost.
            if self.is_within(place.0, wd) {
                return Err(Refused::Elsewhere);
            }
            self.tell_rename(&from, place, IN_ISDIR, Some(Mark::Rescanned));
            self.move_name(&from, place, true, stamp());
            self.jobs.push_back(Job::Check { place: from });
            self.try_stale_again(true);
        }
        if let Some(node) = self.nodes.get(&wd) {
            if node.lost.is_some() {
                self.jobs.push_back(Job::Look { wd });
            }
            return Ok(());
        }
        if known != NONE {
            share = self.budget.take().inspect_err(|_| HUB.unwatch(&self.handle, wd))?;
        }
        let stat = fd::stat(pinned)?;
        let (place, inode) = (place.clone(), (stat.st_dev, stat.st_ino));
        if let Some(entry) = self.entry(&place) {
            (entry.wd, entry.unwatched) = (wd, false);
        }
        self.nodes.insert(wd, Node::new(place, inode, share));
        self.list(wd, pinned, mark).map_err(|errno| Error::from_errno(errno, "list it").into())
    }

    /// Tells that a directory is not watched, and why; once for each time that it changes.
    fn leave_out(&mut self, place: &Place, why: &str) {
        let Some(entry) = self.entry(place) else { return };
        let (again, wd) = (std::mem::replace(&mut entry.unwatched, true), entry.wd);
        self.forget(wd);
        if !again {
            let names = vec!["UNWATCHED", "ISDIR"];
            let event = Event { names, path: self.path(place), note: why.to_owned(), ..Event::default() };
            self.told.push_back(Notice::Event(event));
        }
    }

    /// Takes up what is in a directory that is watched as of now.
    fn list(&mut self, wd: i32, pinned: &Fd, mark: Mark) -> rustix::io::Result<()> {
        let now = stamp();
        for (name, directory) in names(pinned)? {
            self.found((wd, name), directory, mark, now);
        }
        Ok(())
    }

    /// A name that is there, and may be new.
    fn found(&mut self, place: Place, directory: bool, mark: Mark, now: i64) {
        if directory && self.filter.prunes(&self.below(&place)) {
            return;
        }
        if self.entry(&place).is_some_and(|entry| entry.directory != directory) {
            self.tell_gone(&place, !directory, Mark::Rescanned);
            self.take_name(&place);
        }
        if self.entry(&place).is_none() {
            self.enter_name(&place, directory, now);
            self.tell_found(&place, directory, mark);
        }
        self.visit(place, directory, mark);
    }

    /// Compares a known directory with what was told of it.
    fn look_again(&mut self, wd: i32) -> Result<(), Missing> {
        let Some(since) = self.nodes.get(&wd).and_then(|node| node.lost) else { return Ok(()) };
        let now = stamp();
        let directory = self.open(wd)?;
        let there: BTreeMap<_, _> = match names(&directory) {
            Ok(names) => names.into_iter().collect(),
            Err(errno) => {
                let place = self.nodes.get(&wd).map(|node| node.place.clone());
                place.into_iter().for_each(|place| self.leave_out(&place, &error::describe(errno)));
                return Ok(());
            }
        };
        let mut known: Vec<_> = match self.nodes.get_mut(&wd) {
            Some(node) => {
                node.lost = None;
                node.entries.iter().map(|(name, entry)| (name.clone(), entry.directory, entry.at)).collect()
            }
            None => return Ok(()),
        };
        known.sort_unstable();
        for (name, is_directory, at) in known {
            let place = (wd, name);
            match there.get(&place.1) {
                Some(same) if *same == is_directory => {
                    if !is_directory {
                        self.compare(&directory, &place, since.max(at));
                    }
                }
                _ => {
                    self.tell_gone(&place, is_directory, Mark::Rescanned);
                    self.take_name(&place);
                }
            }
        }
        for (name, is_directory) in there {
            self.found((wd, name), is_directory, Mark::Rescanned, now);
        }
        Ok(())
    }

    /// Compares one name in a known directory with what was told of it.
    fn check_name(&mut self, place: &Place) -> Result<(), Missing> {
        if !self.nodes.contains_key(&place.0) {
            return Ok(());
        }
        let directory = self.open(place.0)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match rustix::fs::statat(&directory, &place.1[..], flags) {
            Ok(stat) => {
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                self.found(place.clone(), is_directory, Mark::Rescanned, stamp());
            }
            Err(Errno::NOENT) => {
                if let Some(is_directory) = self.entry(place).map(|entry| entry.directory) {
                    self.tell_gone(place, is_directory, Mark::Rescanned);
                    self.take_name(place);
                }
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Tells of a file that was changed while events were lost, and later than something was told of it.
    fn compare(&mut self, directory: &Fd, place: &Place, since: i64) {
        let Ok(stat) = rustix::fs::statat(directory, &place.1[..], AtFlags::SYMLINK_NOFOLLOW) else { return };
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        let changed = nanoseconds(stat.st_ctime, stat.st_ctime_nsec as i64);
        if changed < since {
            return;
        }
        let written = nanoseconds(stat.st_mtime, stat.st_mtime_nsec as i64) >= since;
        let events: &[u32] = if written { &[IN_MODIFY, IN_CLOSE_WRITE] } else { &[IN_ATTRIB] };
        self.tell_first(events, 0, place, Mark::Rescanned);
        if let Some(entry) = self.entry(place) {
            entry.at = stamp();
        }
    }

    /// Opens a known directory, if it is where it is known to be.
    fn open(&self, wd: i32) -> Result<Fd, Missing> {
        let root = self.handle.wish.pin().map_err(|_| Missing::Root)?;
        let is = |fd: &Fd, inode| fd::stat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == inode);
        if !is(&root, self.inode) {
            return Err(Missing::Root);
        }
        if wd == self.root {
            return Ok(root);
        }
        let Some(node) = self.nodes.get(&wd) else { return Err(Missing::Elsewhere) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match open_below(&root, &self.below(&node.place), flags) {
            Ok(found) if is(&found, node.inode) => Ok(found),
            _ => Err(Missing::Elsewhere),
        }
    }
}

/// Opens what is below a directory, on the same file system, without following links.
pub fn open_below(directory: &Fd, path: &[u8], flags: OFlags) -> rustix::io::Result<Fd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let open = || rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    // EAGAIN: something was renamed at this moment (openat2(2)).
    for _ in 0..16 {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened.map(Fd::from),
        }
    }
    open().map(Fd::from)
}

/// The names in a directory, in order, and which of them are directories.
pub fn names(directory: &Fd) -> rustix::io::Result<Vec<(Box<[u8]>, bool)>> {
    let opened: Fd = fd::reopen(directory, OFlags::RDONLY | OFlags::DIRECTORY)?.into();
    let mut names = Vec::new();
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
            kind => kind,
        };
        names.push((name.into(), kind == FileType::Directory));
    }
    names.sort_unstable();
    Ok(names)
}
