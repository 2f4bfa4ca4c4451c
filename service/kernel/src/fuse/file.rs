//! A published file: what it holds or stands for, its times and permissions, and who polls it.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use event_listener::{Event, EventListener};
use rustix::io::Errno;

use crate::fuse::{
    announce,
    requests::{Later, Source},
};

/// What is published.
pub enum Published {
    /// Bytes that are held here, to be read and written.
    Held(Vec<u8>),
    /// Lines that are appended as things happen, to be read and followed. `shown`: inotify sees that; not of what tells of
    /// files itself, as it would tell of that, too.
    Log { shown: bool },
    /// Messages or bytes that are taken by reading and sent by writing.
    Flow(Source),
    /// A value as text: a fresh one whenever it is read from the start.
    Text(Source),
    /// The same, of which whoever publishes it tells the changes ([`File::change`]).
    Told(Source),
    /// Bytes that somebody else holds, at their offsets.
    Bytes(Source),
    /// What is written is answered, and the answer read.
    Call(Source),
}

impl Published {
    /// What `Inspect` calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Held(_) => "content",
            Self::Log { .. } => "log",
            Self::Flow(_) => "flow",
            Self::Text(_) | Self::Told(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Call(_) => "call",
        }
    }
}

/// Where the bytes come from.
pub enum Body {
    Held(Mutex<Held>),
    Log(Mutex<Log>),
    Flow(Source),
    Text(Source),
    /// With a count of its changes.
    Told(Source, AtomicU64),
    Bytes(Source, AtomicU64),
    Call(Source),
}

#[derive(Debug, Default)]
pub struct Held {
    pub data: Vec<u8>,
    /// Counts the changes.
    pub version: u64,
}

/// Bytes of which only the last ones are kept; what they were preceded by still counts.
#[derive(Debug, Default)]
pub struct Log {
    /// The offset of the first byte that is kept.
    base: u64,
    data: Vec<u8>,
}

/// Bytes of a log that are kept, which its publication takes from the mount's `size`.
pub const LOG_BYTES: u64 = 64 * 1024;

impl Log {
    pub fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }

    fn append(&mut self, lines: &[u8]) {
        self.data.extend_from_slice(lines);
        let kept = LOG_BYTES as usize;
        if self.data.len() <= kept {
            return;
        }
        // Half of it goes at once, up to the end of a line.
        let from = self.data.len() - kept / 2;
        let from =
            self.data[from..].iter().position(|byte| *byte == b'\n').map_or(from, |end| from + end + 1);
        self.data.drain(..from);
        self.base += from as u64;
    }

    /// Bytes from an offset on. One before what is kept is moved to there: the reader has missed something.
    pub fn read(&self, offset: u64, size: usize) -> (u64, Vec<u8>) {
        let offset = offset.max(self.base);
        let from = usize::try_from(offset - self.base).unwrap_or(usize::MAX).min(self.data.len());
        let to = from.saturating_add(size).min(self.data.len());
        (offset, self.data[from..to].to_vec())
    }
}

/// Times and permission bits.
#[derive(Debug, Clone, Copy)]
pub struct Meta {
    pub mode: u16,
    pub accessed: SystemTime,
    pub modified: SystemTime,
    pub changed: SystemTime,
}

impl Meta {
    pub fn new(mode: u32) -> Self {
        let now = SystemTime::now();
        Self { mode: (mode & 0o777) as u16, accessed: now, modified: now, changed: now }
    }

    pub fn touch(&mut self) {
        self.modified = SystemTime::now();
        self.changed = self.modified;
    }
}

pub struct File {
    pub ino: u64,
    pub kind: &'static str,
    pub body: Body,
    meta: Mutex<Meta>,
    /// By open file: whoever waits for it to become ready.
    waiting: Mutex<HashMap<u64, Later>>,
    removed: AtomicBool,
    bell: Event,
    /// Bytes of the mount's `size` that it takes up, and the whole that it takes them from.
    quota: Arc<Quota>,
    taken: AtomicU64,
    /// Where changes are shown to inotify, and under which name.
    shown: OnceLock<(Arc<announce::Place>, String)>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("ino", &self.ino).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The bytes that the files of one mount may hold.
#[derive(Debug)]
pub struct Quota {
    pub size: u64,
    used: AtomicU64,
}

impl Quota {
    pub fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, used: AtomicU64::new(0) })
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Takes more, or gives back, going from `before` to `after`; Err if there is no room.
    fn change(&self, before: u64, after: u64) -> Result<(), Errno> {
        let changed = |used: u64| {
            let used = used.saturating_sub(before).checked_add(after)?;
            (after <= before || used <= self.size).then_some(used)
        };
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, changed)
            .map(drop)
            .map_err(|_| Errno::NOSPC)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Giving back always succeeds.
        let _ = self.quota.change(*self.taken.get_mut(), 0);
    }
}

impl File {
    /// NOSPC: what it holds is more than there is room for.
    pub fn new(ino: u64, mode: u32, published: Published, quota: Arc<Quota>) -> Result<Self, Errno> {
        let kind = published.name();
        let (body, bytes, mode) = match published {
            Published::Held(data) => {
                let bytes = data.len() as u64;
                (Body::Held(Mutex::new(Held { data, version: 0 })), bytes, mode)
            }
            Published::Log { .. } => (Body::Log(Mutex::default()), LOG_BYTES, mode & !0o222),
            Published::Flow(source) => (Body::Flow(source), 0, mode),
            Published::Text(source) => (Body::Text(source), 0, mode),
            Published::Told(source) => (Body::Told(source, AtomicU64::new(0)), 0, mode),
            Published::Bytes(source) => (Body::Bytes(source, AtomicU64::new(0)), 0, mode),
            Published::Call(source) => (Body::Call(source), 0, mode),
        };
        quota.change(0, bytes)?;
        let (meta, waiting) = (Mutex::new(Meta::new(mode)), Mutex::default());
        let (removed, bell, taken) = (AtomicBool::new(false), Event::new(), AtomicU64::new(bytes));
        let shown = OnceLock::new();
        Ok(Self { ino, kind, body, meta, waiting, removed, bell, quota, taken, shown })
    }

    /// Its name was removed.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.bell.notify(usize::MAX);
    }

    /// What to wait for until its name is removed; None: it is.
    pub fn removal(&self) -> Option<EventListener> {
        let listener = self.bell.listen();
        (!self.removed.load(Ordering::Acquire)).then_some(listener)
    }

    pub fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn size(&self) -> u64 {
        match &self.body {
            Body::Held(held) => lock(held).data.len() as u64,
            Body::Log(log) => lock(log).end(),
            Body::Bytes(_, size) => size.load(Ordering::Acquire),
            Body::Flow(_) | Body::Text(_) | Body::Told(..) | Body::Call(_) => 0,
        }
    }

    /// What it stands for, where the bytes are not held here.
    pub fn source(&self) -> Option<&Source> {
        match &self.body {
            Body::Flow(source)
            | Body::Text(source)
            | Body::Told(source, _)
            | Body::Bytes(source, _)
            | Body::Call(source) => Some(source),
            Body::Held(_) | Body::Log(_) => None,
        }
    }

    /// Changes what it holds to a length of `length`, by `change`.
    fn resize(&self, held: &mut Held, length: usize, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Errno> {
        let length = length as u64;
        self.quota.change(self.taken.load(Ordering::Acquire), length)?;
        self.taken.store(length, Ordering::Release);
        change(&mut held.data);
        held.version += 1;
        self.meta().touch();
        Ok(())
    }

    /// Replaces what it holds; says whether it holds anything at all.
    pub fn replace(&self, data: &[u8]) -> Result<bool, Errno> {
        let Body::Held(held) = &self.body else { return Ok(false) };
        self.resize(&mut lock(held), data.len(), |bytes| {
            bytes.clear();
            bytes.extend_from_slice(data);
        })?;
        self.ready();
        Ok(true)
    }

    pub fn truncate(&self, size: u64) -> Result<(), Errno> {
        match &self.body {
            Body::Held(held) => {
                let size = usize::try_from(size).map_err(|_| Errno::FBIG)?;
                self.resize(&mut lock(held), size, |bytes| bytes.resize(size, 0))?;
                self.ready();
                Ok(())
            }
            // What open(2) with O_TRUNC does: there is nothing to cut off.
            _ if size == 0 => Ok(()),
            _ => Err(Errno::PERM),
        }
    }

    /// Writes into what it holds; `append` at its end. None: it holds nothing.
    pub fn write(&self, offset: u64, data: &[u8], append: bool) -> Option<Result<(), Errno>> {
        let Body::Held(held) = &self.body else { return None };
        let mut held = lock(held);
        let offset = if append { held.data.len() } else { usize::try_from(offset).unwrap_or(usize::MAX) };
        let Some(end) = offset.checked_add(data.len()) else { return Some(Err(Errno::FBIG)) };
        let length = held.data.len().max(end);
        let written = self.resize(&mut held, length, |bytes| {
            bytes.resize(length, 0);
            bytes[offset..end].copy_from_slice(data);
        });
        drop(held);
        self.ready();
        Some(written)
    }

    pub fn append(&self, lines: &[u8]) {
        if let Body::Log(log) = &self.body {
            lock(log).append(lines);
            self.meta().touch();
            self.ready();
            self.show();
        }
    }

    /// What it stands for has changed.
    pub fn change(&self) {
        if let Body::Told(_, version) = &self.body {
            version.fetch_add(1, Ordering::AcqRel);
            self.meta().touch();
            self.ready();
            self.show();
        }
    }

    /// From now on inotify sees what changes otherwise than by writing the file.
    pub fn shown_at(&self, place: Arc<announce::Place>, name: &str) {
        // It is published once.
        _ = self.shown.set((place, name.to_owned()));
    }

    pub fn show(&self) {
        if let Some((place, name)) = self.shown.get() {
            announce::changed(place, name);
        }
    }

    /// Tells all who wait.
    pub fn ready(&self) {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        waiting.into_values().for_each(Later::tell);
    }

    /// Has an open file told when there may be something.
    pub fn tell(&self, open: u64, later: Later) {
        lock(&self.waiting).insert(open, later);
    }

    pub fn forget(&self, open: u64) {
        lock(&self.waiting).remove(&open);
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_the_last_lines_and_its_offsets() {
        let mut log = Log::default();
        let line = format!("{}\n", "x".repeat(99));
        for _ in 0..1000 {
            log.append(line.as_bytes());
        }
        assert_eq!(log.end(), 100_000);
        assert_eq!(log.read(99_900, 1000), (99_900, line.as_bytes().to_vec()));
        assert_eq!(log.read(100_000, 10), (100_000, Vec::new()));
        let (offset, data) = log.read(0, 50);
        assert!(offset > 0 && offset % 100 == 0, "the beginning of a line: {offset}");
        assert_eq!(data, line.as_bytes()[..50]);
        assert!(log.data.len() <= LOG_BYTES as usize);
    }

    #[test]
    fn what_files_hold_is_bounded_together() {
        let quota = Quota::new(100);
        let file = |bytes| File::new(2, 0o600, Published::Held(vec![0; bytes]), quota.clone());
        let first = file(60).expect("there is room");
        assert_eq!(file(41).err(), Some(Errno::NOSPC));
        assert_eq!(first.truncate(101), Err(Errno::NOSPC));
        assert_eq!(first.write(50, &[0; 51], false), Some(Err(Errno::NOSPC)));
        assert_eq!(first.write(90, &[1; 10], false), Some(Ok(())));
        assert_eq!((first.size(), quota.used()), (100, 100));
        assert_eq!(first.truncate(10), Ok(()));
        let second = file(90).expect("there is room again");
        assert_eq!(first.write(0, &[1], true), Some(Err(Errno::NOSPC)));
        drop((first, second));
        assert_eq!(quota.used(), 0);
    }
}
