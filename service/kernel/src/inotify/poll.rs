//! Looking again and again (`poll-ms`), for file systems that inotify does not see the changes of.
//!
//! Each look makes a [`Snapshot`] on a thread of its own, as such file systems may be slow, or hang; the
//! difference from the last one is told in the words of inotify(7), marked as `POLLED`. What came and went
//! between two looks is not seen.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use libc::{
    IN_ATTRIB, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_ISDIR, IN_MODIFY, IN_MOVE,
    IN_MOVED_FROM, IN_MOVED_TO,
};
use rustix::{
    fs::{AtFlags, FileType, OFlags, Stat},
    io::Errno,
};

use crate::{
    Error, Fd, Kind, Readiness, Result,
    blocked::{Blocked, Ended},
    error,
    inotify::{
        filter::Filter,
        look::{names, open_below},
        mask,
        queue::Wish,
        tree::join,
    },
    shape::{Event, Notice},
};

/// Files and directories that one endpoint can poll.
pub const MAX_POLLED: usize = 1 << 16;

pub struct Poll {
    pub wish: Wish,
    look: Arc<Look>,
    every: Duration,
    due: Instant,
    last: Snapshot,
    /// Where the look that goes on puts what it sees.
    looking: Option<Arc<Mutex<Option<Seen>>>>,
    pub told: VecDeque<Notice>,
}

struct Look {
    wish: Wish,
    filter: Filter,
    recursive: bool,
}

type Seen = std::result::Result<Snapshot, Failure>;

/// By the path below the watched file or directory, which has the empty one.
type Snapshot = BTreeMap<Vec<u8>, Stamp>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    directory: bool,
    inode: u64,
    size: i64,
    written: (i64, i64),
    changed: (i64, i64),
}

enum Failure {
    Errno(Errno),
    TooMany,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Poll {
    pub fn new(wish: Wish, filter: Filter, recursive: bool, every: Duration, initial: bool) -> Result<Self> {
        let look = Look { wish: wish.clone(), filter, recursive };
        let last = look.look().map_err(|failure| match failure {
            Failure::Errno(errno) => Error::from_errno(errno, wish.attempt()),
            Failure::TooMany => Error::new(Kind::LimitExceeded, too_many(&wish)),
        })?;
        let mut told = VecDeque::new();
        if initial {
            for (below, stamp) in
                last.iter().filter(|(below, _)| !below.is_empty() && look.filter.tells(below))
            {
                let mut names = mask::names(IN_CREATE | kind(stamp));
                names.push("INITIAL");
                told.push_back(Notice::Event(Event {
                    names,
                    path: wish_path(&wish, below),
                    ..Event::default()
                }));
            }
        }
        let due = Instant::now() + every;
        Ok(Self { wish, look: Arc::new(look), every, due, last, looking: None, told })
    }

    /// Files and directories that are looked at.
    pub fn polled(&self) -> usize {
        self.last.len()
    }

    /// Takes in what was seen; says what to wait for then.
    pub fn next(&mut self, now: Instant) -> Result<Readiness> {
        if let Some(slot) = &self.looking {
            let seen = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(seen) = seen {
                self.looking = None;
                self.due = now + self.every;
                self.seen(seen);
            }
        }
        if now < self.due {
            return Ok(Readiness::After(self.due - now));
        }
        let slot = self.looking.get_or_insert_default().clone();
        let look = self.look.clone();
        Ok(Readiness::Blocked(Blocked::new(move || match look.look() {
            Err(Failure::Errno(Errno::INTR)) => Ended::Interrupted,
            seen => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                Ended::Done
            }
        })))
    }

    fn seen(&mut self, seen: Seen) {
        match seen {
            Ok(new) => {
                let old = std::mem::replace(&mut self.last, new);
                let events = difference(&old, &self.last, self.wish.mask);
                for change in events {
                    self.tell(change);
                }
            }
            Err(Failure::TooMany) => self.told.push_back(Notice::End(too_many(&self.wish))),
            Err(Failure::Errno(Errno::NOENT)) => {
                self.tell(Change { mask: IN_DELETE_SELF & self.wish.mask, path: Vec::new(), from: None });
                self.told.push_back(Notice::End("the watched file was removed".to_owned()));
            }
            // A server that is away may come back; what differs then is told.
            Err(Failure::Errno(Errno::TIMEDOUT | Errno::NOTCONN | Errno::STALE | Errno::IO)) => {}
            Err(Failure::Errno(errno)) => {
                let text = format!("cannot {}: {}", self.wish.attempt(), error::describe(errno));
                self.told.push_back(Notice::End(text));
            }
        }
    }

    fn tell(&mut self, change: Change) {
        let Change { mask, path, from } = change;
        if mask & !IN_ISDIR == 0 || !self.look.filter.tells(&path) {
            return;
        }
        let mut names = mask::names(mask);
        names.push("POLLED");
        let from = from.map(|from| wish_path(&self.wish, &from)).unwrap_or_default();
        let event = Event { names, path: wish_path(&self.wish, &path), from, note: String::new() };
        self.told.push_back(Notice::Event(event));
    }
}

fn wish_path(wish: &Wish, below: &[u8]) -> Vec<u8> {
    join(wish.path.as_os_str().as_bytes(), below)
}

fn too_many(wish: &Wish) -> String {
    format!(
        "cannot {}: it has more than {MAX_POLLED} files, the most that one endpoint polls; watch a part of it, or leave \
         directories out with exclude",
        wish.attempt()
    )
}

impl Look {
    fn look(&self) -> Seen {
        let root = self.wish.pin()?;
        let stat = rustix::fs::fstat(&root)?;
        let mut snapshot = Snapshot::from([(Vec::new(), Stamp::of(&stat))]);
        let mut directories = Vec::new();
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.directory(&root, &[], &mut snapshot, &mut directories)?;
        }
        while let Some(below) = directories.pop() {
            let opened = open_below(&root, &below, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW);
            match opened.and_then(|directory| {
                self.directory(&directory, &below, &mut snapshot, &mut directories).map_err(|failure| {
                    match failure {
                        Failure::Errno(errno) => errno,
                        Failure::TooMany => Errno::OVERFLOW,
                    }
                })
            }) {
                Err(Errno::INTR) => return Err(Errno::INTR.into()),
                Err(Errno::OVERFLOW) => return Err(Failure::TooMany),
                // Gone meanwhile, not readable, or another file system.
                Err(_) | Ok(()) => {}
            }
        }
        Ok(snapshot)
    }

    fn directory(
        &self,
        directory: &Fd,
        below: &[u8],
        snapshot: &mut Snapshot,
        directories: &mut Vec<Vec<u8>>,
    ) -> std::result::Result<(), Failure> {
        for (name, _) in names(directory)? {
            let path = if below.is_empty() { name.to_vec() } else { join(below, &name) };
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            let stat = match rustix::fs::statat(directory, &name[..], flags) {
                Ok(stat) => stat,
                Err(Errno::INTR) => return Err(Errno::INTR.into()),
                Err(_) => continue,
            };
            let stamp = Stamp::of(&stat);
            if stamp.directory && self.filter.prunes(&path) {
                continue;
            }
            if snapshot.len() >= MAX_POLLED {
                return Err(Failure::TooMany);
            }
            if stamp.directory && self.recursive {
                directories.push(path.clone());
            }
            snapshot.insert(path, stamp);
        }
        Ok(())
    }
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            inode: stat.st_ino,
            size: stat.st_size,
            written: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Change {
    mask: u32,
    path: Vec<u8>,
    from: Option<Vec<u8>>,
}

fn kind(stamp: &Stamp) -> u32 {
    if stamp.directory { IN_ISDIR } else { 0 }
}

/// What has to have happened between two looks. What has the inode of something that has gone was renamed.
fn difference(old: &Snapshot, new: &Snapshot, asked: u32) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut come: HashMap<(u64, bool), &Vec<u8>> = HashMap::new();
    for (path, stamp) in new.iter().filter(|(path, _)| !old.contains_key(*path)) {
        come.entry((stamp.inode, stamp.directory)).or_insert(path);
    }
    // From where to where; with a directory goes all that is in it.
    let mut renamed: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    let mut arrived: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for (path, stamp) in old.iter().filter(|(path, _)| !new.contains_key(*path)) {
        let to = come.remove(&(stamp.inode, stamp.directory));
        let Some(to) = to else {
            let event = mask::first(asked, &[IN_DELETE, IN_MOVED_FROM]).unwrap_or(0);
            changes.push(Change { mask: event | kind(stamp), path: path.clone(), from: None });
            continue;
        };
        let (above, name) = split(path);
        let with_its_directory = renamed.get(above).is_some_and(|new| *to == join(new, name));
        if !with_its_directory && asked & IN_MOVE != 0 {
            changes.push(Change { mask: IN_MOVE | kind(stamp), path: to.clone(), from: Some(path.clone()) });
        }
        renamed.insert(path, to);
        arrived.insert(to, path);
    }
    for (path, stamp) in new {
        let before = arrived.get(path.as_slice()).and_then(|from| old.get(*from)).or_else(|| old.get(path));
        let Some(before) = before.filter(|before| before.directory == stamp.directory) else {
            let events: &[u32] = if stamp.directory {
                &[IN_CREATE, IN_MOVED_TO]
            } else {
                &[IN_CREATE, IN_CLOSE_WRITE, IN_MOVED_TO, IN_MODIFY]
            };
            let event = mask::first(asked, events).unwrap_or(0);
            changes.push(Change { mask: event | kind(stamp), path: path.clone(), from: None });
            continue;
        };
        // That of a directory says that its names have changed, which is told already.
        let written = !stamp.directory && (before.size, before.written) != (stamp.size, stamp.written);
        let event = if written {
            mask::first(asked, &[IN_MODIFY, IN_CLOSE_WRITE])
        } else if !stamp.directory
            && before.changed != stamp.changed
            && !arrived.contains_key(path.as_slice())
        {
            mask::first(asked, &[IN_ATTRIB])
        } else {
            None
        };
        changes.extend(event.map(|mask| Change { mask: mask | kind(stamp), path: path.clone(), from: None }));
    }
    changes
}

/// The directory of a path, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}
