//! What is open in a mount, and what the mount's thread shares with its endpoint.

use std::{
    collections::HashMap,
    ffi::OsStr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, OpenFlags};
use rustix::io;

use crate::fuse::{
    announce::{Deed, Gone, Place},
    file::{Body, File, Meta, Quota, lock},
    requests::{self, Answered, Asked, Patience, Queue, Upcall, What},
    tree::{Inode, Node, Tree},
};

/// More files are not opened at once.
const MOST_OPENED: usize = 4096;

/// What the mount's thread and its endpoint share.
pub struct Shared {
    pub tree: Mutex<Tree>,
    pub quota: Arc<Quota>,
    pub queue: Queue,
    /// Where the mount is, once it is there, if it is anywhere.
    pub place: OnceLock<Arc<Place>>,
    pub deadline: Duration,
    opened: Mutex<HashMap<u64, Arc<Opened>>>,
    next: AtomicU64,
    pub uid: u32,
    pub gid: u32,
}

impl Shared {
    pub fn new(tree: Tree, quota: Arc<Quota>, deadline: Duration) -> Self {
        Self {
            tree: Mutex::new(tree),
            quota,
            queue: Queue::default(),
            place: OnceLock::new(),
            deadline,
            opened: Mutex::default(),
            next: AtomicU64::new(1),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    /// How many files are open.
    pub fn opened(&self) -> usize {
        lock(&self.opened).len()
    }

    pub fn put(&self, upcall: Upcall) {
        self.queue.put(upcall, self.deadline);
    }

    pub fn ask(&self, opened: &Opened, pid: u32, what: What) {
        // Dropped where the file has none: that answers it.
        if let Some(source) = opened.file.source() {
            self.put(Upcall::Asked(Asked { source: source.clone(), pid, what }));
        }
    }

    /// A new open file description; ENFILE beyond a bound.
    pub fn open(&self, ino: INodeNo, file: &Arc<File>) -> Result<Arc<Opened>, Errno> {
        let opened = Arc::new(Opened {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            name: lock(&self.tree).name(ino.0),
            file: file.clone(),
            state: Mutex::default(),
            awaited: AtomicBool::new(false),
        });
        let mut table = lock(&self.opened);
        if table.len() >= MOST_OPENED {
            return Err(Errno::ENFILE);
        }
        table.insert(opened.number, opened.clone());
        Ok(opened)
    }

    pub fn close(&self, handle: FileHandle) {
        if let Some(opened) = lock(&self.opened).remove(&handle.0) {
            opened.file.forget(opened.number);
        }
    }

    /// Who has files open when the mount is gone gets errors.
    pub fn served(&self) -> Result<(), Errno> {
        if self.queue.ended() { Err(Errno::EIO) } else { Ok(()) }
    }

    pub fn opening(&self, handle: FileHandle) -> Result<Arc<Opened>, Errno> {
        self.served()?;
        lock(&self.opened).get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    pub fn file(&self, ino: INodeNo) -> Result<Arc<File>, Errno> {
        self.served()?;
        match lock(&self.tree).get(ino.0) {
            Some(Inode { node: Node::File(file), .. }) => Ok(file.clone()),
            Some(_) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    pub fn attributes(&self, tree: &Tree, ino: u64) -> Option<FileAttr> {
        let inode = tree.get(ino)?;
        let (kind, meta, size, links) = match &inode.node {
            Node::Directory { entries, meta } => {
                let below = entries.values().filter(|ino| tree.entries(**ino).is_some()).count();
                (FileType::Directory, *meta, 0, 2 + below as u32)
            }
            Node::File(file) => {
                let meta = *file.meta();
                (FileType::RegularFile, meta, file.size(), u32::from(inode.linked))
            }
        };
        Some(self.described(ino, kind, meta, size, links))
    }

    fn described(&self, ino: u64, kind: FileType, meta: Meta, size: u64, links: u32) -> FileAttr {
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: meta.accessed,
            mtime: meta.modified,
            ctime: meta.changed,
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm: meta.mode,
            nlink: links,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// What a thread of this process does to this name, for those who watch.
    pub fn deed(&self, thread: u32, name: &OsStr) -> Option<Deed> {
        self.place.get()?.showing.deed(thread, name)
    }

    /// What the kernel is told of a name that is gone, for it to be removed.
    pub fn gone(&self, gone: Gone) -> FileAttr {
        // The kernel knows it once more.
        lock(&self.tree).known_again(gone.ino);
        let kind = if gone.is_directory { FileType::Directory } else { FileType::RegularFile };
        self.described(gone.ino, kind, Meta::new(0o700), 0, 1)
    }

    /// What the kernel is told of a name.
    pub fn entry(&self, parent: INodeNo, name: &OsStr) -> Option<FileAttr> {
        let mut tree = lock(&self.tree);
        let ino = tree.look_up(parent.0, name.to_str()?)?;
        self.attributes(&tree, ino)
    }
}

/// An open file description.
pub struct Opened {
    pub number: u64,
    pub file: Arc<File>,
    pub name: String,
    pub state: Mutex<State>,
    /// Somebody is asked to tell when there is something, and has not done so.
    pub awaited: AtomicBool,
}

#[derive(Default)]
pub struct State {
    /// Its first read was told.
    pub told: bool,
    /// A message or bytes were taken.
    pub taken: bool,
    /// What was taken and did not fit into what was read, or the answer to what was written.
    pub left: Vec<u8>,
    /// The text as it was when it was last read from the start.
    pub text: Text,
    /// How much of a log was skipped, as it is no longer kept.
    pub skipped: u64,
    /// What it has seen to the end: a version of what the file holds, or the end of a log.
    pub seen: Option<u64>,
}

#[derive(Default)]
pub struct Text {
    pub data: Vec<u8>,
    /// How often it had changed when it was asked for, where that is told.
    version: Option<u64>,
}

impl Opened {
    /// How often what it stands for has changed, where that is told.
    pub fn version(&self) -> Option<u64> {
        match &self.file.body {
            Body::Told(_, version) => Some(version.load(Ordering::Acquire)),
            _ => None,
        }
    }

    /// A part of the text; one that begins at 0 is of a new one, which was asked for at that version.
    pub fn read_text(&self, offset: u64, size: usize, new: Option<(Vec<u8>, Option<u64>)>) -> Vec<u8> {
        let mut state = lock(&self.state);
        if let Some((data, version)) = new {
            state.text = Text { data, version };
        }
        let end = state.text.data.len();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(end);
        let to = from.saturating_add(size).min(end);
        if to == end {
            state.seen = state.text.version;
        }
        state.text.data[from..to].to_vec()
    }

    /// Whether there is something to read that it has not seen.
    pub fn is_ready(&self) -> bool {
        let now = match &self.file.body {
            Body::Held(held) => lock(held).version,
            Body::Log(log) => lock(log).end(),
            Body::Told(_, version) => version.load(Ordering::Acquire),
            Body::Call(_) => return !lock(&self.state).left.is_empty(),
            _ => return true,
        };
        let seen = lock(&self.state).seen;
        match self.file.body {
            // An empty log has nothing to read from the start.
            Body::Log(_) => seen.unwrap_or(0) != now,
            _ => seen != Some(now),
        }
    }

    /// What was written is answered: that is to be read now, in place of an older answer.
    pub fn answered(&self, answer: Result<Answered, io::Errno>) -> Result<(), io::Errno> {
        let Answered { text, failed } = answer?;
        lock(&self.state).left = text;
        self.file.ready();
        failed.map_or(Ok(()), |error| Err(requests::errno(&error)))
    }

    /// Takes what was left over from the last read, if anything.
    pub fn take_left(&self, size: usize) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        if state.left.is_empty() {
            return None;
        }
        let size = size.min(state.left.len());
        Some(state.left.drain(..size).collect())
    }

    /// Reads what is held here. None: it is somebody else's.
    pub fn read(&self, offset: u64, size: usize) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        match &self.file.body {
            Body::Held(held) => {
                let held = lock(held);
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(held.data.len());
                let to = from.saturating_add(size).min(held.data.len());
                if to == held.data.len() {
                    state.seen = Some(held.version);
                }
                Some(held.data[from..to].to_vec())
            }
            Body::Log(log) => {
                let log = lock(log);
                let wanted = offset.saturating_add(state.skipped);
                let (from, data) = log.read(wanted, size);
                state.skipped += from - wanted;
                state.seen = Some(from + data.len() as u64);
                Some(data)
            }
            Body::Call(_) => {
                let size = size.min(state.left.len());
                Some(state.left.drain(..size).collect())
            }
            _ => None,
        }
    }

    /// How long a request with these flags of the open file waits.
    pub fn patience(&self, flags: OpenFlags) -> Patience {
        let taken = matches!(self.file.body, Body::Flow(_)) && lock(&self.state).taken;
        match flags.0 & libc::O_NONBLOCK != 0 {
            true => Patience::None,
            // What waits is read to the end; only the first read waits for something.
            false if taken => Patience::End,
            false => Patience::Deadline,
        }
    }
}
