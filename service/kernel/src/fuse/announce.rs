//! What is published, for those who watch by inotify(7): it tells only of what is done through the kernel. So what the
//! service itself does is done there once more: a name is made by mknod(2) or mkdir(2), and removed by unlink(2) or rmdir(2); where a file has changed
//! its time is set by utimensat(2), which is IN_MODIFY.
//!
//! One thread of the process does it for all mounts, and nobody waits for it; what has changed several times meanwhile
//! is told once. A process that uses its own mount must not be left waiting for itself when it is killed: its threads
//! end one by one, and a request that was read and not answered is waited for without regard to signals, until the
//! device is closed. So that thread has a table of descriptors of its own, in which the device is not.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
    thread,
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::fuse::{file::lock, mount};

/// A mount, for that thread. It holds no descriptor, as those of other threads mean nothing in its table.
#[derive(Debug)]
pub struct Place {
    pub point: PathBuf,
    pub device: (u32, u32),
    pub showing: Showing,
}

/// What is being done to a name. Only for the thread that does it, it is not there yet, or still there.
#[derive(Debug, Default)]
pub struct Showing(Mutex<Option<(u32, String, Deed)>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Making,
    Removing(Gone),
}

/// What was unpublished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    pub ino: u64,
    pub is_directory: bool,
}

impl Showing {
    pub fn deed(&self, thread: u32, name: &OsStr) -> Option<Deed> {
        let showing = lock(&self.0);
        let (its, of, deed) = showing.as_ref()?;
        (*its == thread && name == of.as_str()).then_some(*deed)
    }
}

/// What is to be shown of a file.
#[derive(Debug, Default)]
struct News {
    /// What had the name before.
    gone: Option<Gone>,
    /// It is new, and so are the directories in its name but the first ones, so many.
    new: Option<usize>,
    changed: bool,
}

/// More names do not wait: what is beyond is not shown.
const MOST_WAITING: usize = 4096;

/// What waits, by the mount and the name.
type Waiting = BTreeMap<((u32, u32), String), (Arc<Place>, News)>;

#[derive(Default)]
struct Teller {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

/// A file was published; `known`: so many of the directories in its name were there.
pub fn new(place: &Arc<Place>, name: &str, known: usize) {
    tell(place, name, |news| news.new = Some(known));
}

/// What a file has, or stands for, has changed.
pub fn changed(place: &Arc<Place>, name: &str) {
    tell(place, name, |news| news.changed = true);
}

/// A name was unpublished.
pub fn gone(place: &Arc<Place>, name: &str, gone: Gone) {
    tell(place, name, |news| {
        *news = match news {
            // Nobody has seen it come.
            News { new: Some(_), gone, .. } => News { gone: gone.take(), ..News::default() },
            _ => News { gone: Some(gone), ..News::default() },
        }
    });
}

fn tell(place: &Arc<Place>, name: &str, note: impl FnOnce(&mut News)) {
    static TELLER: OnceLock<Option<Arc<Teller>>> = OnceLock::new();
    let Some(teller) = TELLER.get_or_init(start) else { return };
    let mut waiting = lock(&teller.waiting);
    if waiting.len() >= MOST_WAITING {
        return;
    }
    let entry = waiting.entry((place.device, name.to_owned()));
    note(&mut entry.or_insert_with(|| (place.clone(), News::default())).1);
    drop(waiting);
    teller.filled.notify_one();
}

/// None: there is no thread for it, and inotify sees nothing.
fn start() -> Option<Arc<Teller>> {
    let teller = Arc::<Teller>::default();
    let its = teller.clone();
    let run = move || {
        if own_descriptors() {
            its.run();
        }
    };
    thread::Builder::new().name("fuse-shows".to_owned()).spawn(run).ok().map(|_| teller)
}

/// Gives the thread a table of its own, with nothing but the standard streams.
fn own_descriptors() -> bool {
    // SAFETY: it takes no memory. The descriptors of all others stay open in their table; this thread has been started
    // with none, and from here on uses only those that it opens itself.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    done == 0
}

impl Teller {
    fn run(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            let ((_, name), (place, news)) = loop {
                match waiting.pop_first() {
                    Some(next) => break next,
                    None => waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(waiting);
            // Who has no mount any more, or no file of this name, has nobody who watches it.
            _ = show(&place, &name, &news);
        }
    }
}

fn show(place: &Place, name: &str, news: &News) -> Option<()> {
    let mut directory: OwnedFd = mount::root_of(&place.point, place.device)?;
    let (above, last) = match name.rsplit_once('/') {
        Some((above, last)) => (above.split('/').collect(), last),
        None => (Vec::new(), name),
    };
    for (index, part) in above.into_iter().enumerate() {
        if news.new.is_some_and(|known| index >= known) {
            // Somebody may have been faster, with a file that is new, too.
            _ = place.does(part, Deed::Making, || rustix::fs::mkdirat(&directory, part, Mode::RWXU));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, part, flags, Mode::empty()).ok()?;
    }
    if let Some(gone) = news.gone {
        let flags = if gone.is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        place.does(last, Deed::Removing(gone), || rustix::fs::unlinkat(&directory, last, flags)).ok()?;
    }
    if news.new.is_some() {
        let make = || rustix::fs::mknodat(&directory, last, FileType::RegularFile, Mode::RUSR, 0);
        place.does(last, Deed::Making, make).ok()?;
    }
    if news.changed {
        let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
        rustix::fs::utimensat(&directory, last, &times, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    }
    Some(())
}

impl Place {
    fn does<T>(&self, name: &str, deed: Deed, act: impl FnOnce() -> T) -> T {
        let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        *lock(&self.showing.0) = Some((thread, name.to_owned(), deed));
        let done = act();
        *lock(&self.showing.0) = None;
        done
    }
}
