//! One inotify instance for all watches of the process, for `mechanisms/inotify.rs`.
//!
//! A user has few instances (fs.inotify.max_user_instances, 128), so the endpoints share one.
//! The kernel has one watch for an inode and instance, with one mask: the hub gives it the
//! union of what the endpoints on that inode ask for and gives each of them what it asked for.
//!
//! Two locks: `changes` is held by whoever changes masks, over system calls that may look at a
//! slow file system; `state` only for moments, so that the driver never waits. What arrives for
//! a watch that is just being added is kept until it has its endpoint.

use std::{
    collections::BTreeMap,
    mem::MaybeUninit,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError},
    time::Duration,
};

use event_listener::Event as Bell;
use libc::{
    IN_ALL_EVENTS, IN_DELETE_SELF, IN_EXCL_UNLINK, IN_IGNORED, IN_MASK_ADD, IN_MASK_CREATE, IN_Q_OVERFLOW,
    IN_UNMOUNT,
};
use rustix::{
    fs::{Stat, inotify},
    io::Errno,
};

use crate::{
    Attempt, Error, Fd, Kind, Readiness, Result, fd,
    inotify::mask,
    inotify::queue::{Handle, Item, MAX_QUEUED, Subscription, Wish},
    proc,
};

/// The hub of this process.
pub static HUB: Hub = Hub {
    instance: OnceLock::new(),
    started: Bell::new(),
    changes: Mutex::new(()),
    state: Mutex::new(State {
        watches: BTreeMap::new(),
        adding: false,
        early: Vec::new(),
        overflowed: false,
    }),
};

pub struct Hub {
    instance: OnceLock<Fd>,
    /// Rings when the instance is there.
    started: Bell,
    changes: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    /// By watch descriptor. The kernel counts them up (idr_alloc_cyclic) and uses none again
    /// before 2^31 watches were made, so events that are left over from a removed one meet
    /// nothing here.
    watches: BTreeMap<i32, Watch>,
    adding: bool,
    /// Events of watches that are not known yet, while one is being added.
    early: Vec<(i32, u32, Box<[u8]>)>,
    /// Events were lost; the end of a watch may be among them.
    overflowed: bool,
}

/// A watch of the kernel.
struct Watch {
    /// What the kernel was asked for: at least what the subscribers want.
    mask: u32,
    excl_unlink: bool,
    subscribers: Vec<Arc<Subscription>>,
    /// Why it is about to end, from the event before IN_IGNORED.
    reason: &'static str,
}

const REMOVED: &str = "the watched file was removed";
const UNMOUNTED: &str = "the file system was unmounted";
const ONESHOT: &str = "the watch was for one event (oneshot)";
const ENDED: &str = "the kernel ended the watch";

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the instance's fd, where there is one.
    pub fn fd(&self) -> Option<u32> {
        u32::try_from(self.instance.get()?.as_raw_fd()).ok()
    }

    /// The kernel's own list of our watches.
    pub fn kernel_watches(&self) -> Vec<mask::Line> {
        let fdinfo = |fd| proc::fdinfo_text(std::process::id(), fd);
        self.fd().map(|fd| mask::watches(&fdinfo(fd))).unwrap_or_default()
    }

    /// The paths that the endpoints on a watch gave.
    pub fn paths(&self, wd: i32) -> Vec<PathBuf> {
        let state = self.state();
        let subscribers = state.watches.get(&wd).map(|watch| &watch.subscribers);
        subscribers.into_iter().flatten().map(|subscription| subscription.wish.path.clone()).collect()
    }

    /// Adds a watch, or a part of the one that there is for the inode.
    pub fn subscribe(&self, wish: Wish) -> Result<Handle> {
        let pinned = wish.pin().map_err(|errno| match errno {
            Errno::NOTDIR if wish.only_directory => {
                Error::from_errno(errno, wish.attempt()).help("onlydir demands a directory")
            }
            errno => Error::from_errno(errno, wish.attempt()),
        })?;
        let stat = fd::stat(&pinned)?;
        let filesystem = proc::filesystem(&pinned);
        let complete = !is_incomplete(&filesystem);
        let _changing = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = self.start()?;
        // What happened before is for those who watch already.
        self.read(instance, 64)?;
        self.state().adding = true;
        let added = self.add(instance, &pinned, Subscription::new(wish, stat, filesystem, complete));
        let mut state = self.state();
        state.adding = false;
        state.early.clear();
        added
    }

    /// Makes a watch, or adds our events to the one that there is for the inode. Under `changes`,
    /// so that only the end of a watch can come in between.
    fn add(&self, instance: &Fd, pinned: &Fd, mut subscription: Subscription) -> Result<Handle> {
        // Without DELETE_SELF nobody could say why a watch ended.
        let mask = subscription.wish.mask | IN_DELETE_SELF;
        let excl_unlink = subscription.wish.excl_unlink;
        let failed = |errno| match errno {
            Errno::NOSPC => limit(&subscription.wish.attempt(), "watches"),
            Errno::ACCESS => {
                Error::from_errno(errno, subscription.wish.attempt()).help("a watch needs the right to read")
            }
            errno => Error::from_errno(errno, subscription.wish.attempt()),
        };
        loop {
            let new = match set(instance, pinned, mask | flag(excl_unlink) | IN_MASK_CREATE) {
                Ok(wd) => Some(wd),
                Err(Errno::EXIST) => None,
                Err(errno) => return Err(failed(errno)),
            };
            let wd = match new {
                Some(wd) => wd,
                None => set(instance, pinned, mask | IN_MASK_ADD).map_err(failed)?,
            };
            let mut state = self.state();
            if new.is_some() {
                let watch = Watch { mask, excl_unlink, subscribers: Vec::new(), reason: ENDED };
                state.watches.insert(wd, watch);
            }
            let Some(watch) = state.watches.get_mut(&wd) else {
                // It ended at this moment, so what there is now is nobody's, or nothing (EINVAL).
                let _ = inotify::remove_watch(instance, wd);
                continue;
            };
            if watch.excl_unlink != excl_unlink {
                let old = watch.mask | flag(watch.excl_unlink);
                drop(state);
                set(instance, pinned, old).map_err(failed)?;
                return Err(Error::new(
                    Kind::Busy,
                    format!(
                        "cannot {} with excl-unlink={excl_unlink}: another endpoint watches the same inode \
                         with excl-unlink={}, and the kernel has one flag for both; close it first",
                        subscription.wish.attempt(),
                        !excl_unlink
                    ),
                ));
            }
            subscription.wd = wd;
            let subscription = Arc::new(subscription);
            watch.mask |= mask;
            watch.subscribers.push(subscription.clone());
            for (early, mask, name) in std::mem::take(&mut state.early) {
                if early == wd {
                    self.happened(&mut state, wd, mask, name);
                }
            }
            return Ok(Handle(subscription));
        }
    }

    fn start(&self) -> Result<&Fd> {
        if let Some(instance) = self.instance.get() {
            return Ok(instance);
        }
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let instance = inotify::init(flags).map_err(|errno| match errno {
            Errno::MFILE => limit("make an inotify instance", "instances")
                .help("or the process is at its limit of open files (RLIMIT_NOFILE)"),
            errno => Error::from_errno(errno, "make an inotify instance"),
        })?;
        let instance = self.instance.get_or_init(|| instance.into());
        self.started.notify(usize::MAX);
        Ok(instance)
    }

    /// Ends an endpoint's share.
    pub fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        let Some(instance) = self.instance.get() else { return };
        let mut state = self.state();
        let Some(watch) = state.watches.get_mut(&subscription.wd) else { return };
        watch.subscribers.retain(|other| !Arc::ptr_eq(other, subscription));
        if watch.subscribers.is_empty() {
            state.watches.remove(&subscription.wd);
            // EINVAL: the kernel removed it first.
            let _ = inotify::remove_watch(instance, subscription.wd);
            return;
        }
        drop(state);
        self.narrow(instance, subscription.wd);
    }

    /// Takes back the events that nobody asks for any more. Only an economy, as each endpoint gets
    /// its own events anyway: left alone where it might wait, or where the path leads elsewhere.
    fn narrow(&self, instance: &Fd, wd: i32) {
        let _changing = match self.changes.try_lock() {
            Ok(changing) => changing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let (subscription, mask) = {
            let state = self.state();
            let Some(watch) = state.watches.get(&wd) else { return };
            let wanted = watch.subscribers.iter().fold(IN_DELETE_SELF, |mask, other| mask | other.wish.mask);
            match watch.subscribers.first() {
                Some(first) if wanted != watch.mask && first.complete => (first.clone(), wanted),
                _ => return,
            }
        };
        let Ok(pinned) = subscription.wish.pin() else { return };
        let same =
            |stat: Stat| (stat.st_dev, stat.st_ino) == (subscription.stat.st_dev, subscription.stat.st_ino);
        if !fd::stat(&pinned).is_ok_and(same) {
            return;
        }
        match set(instance, &pinned, mask | flag(subscription.wish.excl_unlink)) {
            Ok(same) if same == wd => {
                if let Some(watch) = self.state().watches.get_mut(&wd) {
                    watch.mask = mask;
                }
            }
            // It ended meanwhile, and this is a new one.
            Ok(new) => {
                let _ = inotify::remove_watch(instance, new);
            }
            Err(_) => {}
        }
    }

    /// Hands out what the kernel has, and says when there will be more.
    pub fn drive(&self) -> Result<Attempt<()>> {
        let Some(instance) = self.instance.get() else {
            let listener = self.started.listen();
            // It may have come before the listener.
            let readiness = match self.instance.get() {
                Some(instance) => Readiness::Readable(instance.clone()),
                None => Readiness::Notified(listener),
            };
            return Ok(Attempt::Wait(readiness));
        };
        // Other work gets its turn between two loads.
        if self.read(instance, 64)? {
            return Ok(crate::shape::readable(instance));
        }
        Ok(Attempt::Wait(Readiness::After(Duration::ZERO)))
    }

    /// Reads up to so many buffers; says whether the instance is empty now.
    fn read(&self, instance: &Fd, rounds: usize) -> Result<bool> {
        for _ in 0..rounds {
            let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
            // Read and handed out in one go, as two readers would mix up the order.
            let mut state = self.state();
            let mut reader = inotify::Reader::new(instance, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let name = event.file_name().map_or(&b""[..], |name| name.to_bytes());
                        self.happened(&mut state, event.wd(), event.events().bits(), name.into());
                    }
                    Err(Errno::AGAIN) => {
                        self.end_what_was_lost(&mut state);
                        return Ok(true);
                    }
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(Error::from_errno(errno, "read inotify events")),
                }
                if reader.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(false)
    }

    fn happened(&self, state: &mut State, wd: i32, mask: u32, name: Box<[u8]>) {
        if mask & IN_Q_OVERFLOW != 0 {
            state.overflowed = true;
            for subscription in state.watches.values().flat_map(|watch| &watch.subscribers) {
                subscription.push(Item::Overflow);
            }
            return;
        }
        let Some(watch) = state.watches.get_mut(&wd) else {
            if state.adding && state.early.len() < MAX_QUEUED {
                state.early.push((wd, mask, name));
            }
            return;
        };
        if mask & IN_DELETE_SELF != 0 {
            watch.reason = REMOVED;
        } else if mask & IN_UNMOUNT != 0 {
            watch.reason = UNMOUNTED;
        }
        watch.subscribers.retain(|subscription| {
            let wish = &subscription.wish;
            if mask & (wish.mask | IN_UNMOUNT | IN_IGNORED) != 0 {
                subscription.push(Item::Happened { mask, name: name.clone() });
            }
            let last = wish.oneshot && mask & wish.mask & IN_ALL_EVENTS != 0;
            if last {
                // The kernel would say so too, if the watch were this endpoint's alone.
                subscription.push(Item::Happened { mask: IN_IGNORED, name: Box::default() });
                subscription.push(Item::End(ONESHOT));
            }
            !last
        });
        if mask & IN_IGNORED != 0 {
            self.end(state, wd);
        } else if watch.subscribers.is_empty() {
            state.watches.remove(&wd);
            if let Some(instance) = self.instance.get() {
                let _ = inotify::remove_watch(instance, wd);
            }
        }
    }

    fn end(&self, state: &mut State, wd: i32) {
        if let Some(watch) = state.watches.remove(&wd) {
            watch.subscribers.iter().for_each(|subscription| subscription.push(Item::End(watch.reason)));
        }
    }

    /// After lost events: ends the watches that the kernel no longer has.
    fn end_what_was_lost(&self, state: &mut State) {
        if !std::mem::take(&mut state.overflowed) {
            return;
        }
        let alive = self.kernel_watches();
        let dead: Vec<i32> =
            state.watches.keys().copied().filter(|wd| alive.iter().all(|line| line.wd != *wd)).collect();
        dead.into_iter().for_each(|wd| self.end(state, wd));
    }
}

/// Sets the mask of the pinned inode's watch, which may be a new one.
fn set(instance: &Fd, pinned: &Fd, mask: u32) -> rustix::io::Result<i32> {
    inotify::add_watch(instance, fd::proc_path(pinned), inotify::WatchFlags::from_bits_retain(mask))
}

fn flag(excl_unlink: bool) -> u32 {
    if excl_unlink { IN_EXCL_UNLINK } else { 0 }
}

/// The limit of the machine, and the one of the user namespace where that is another.
fn limit(attempt: &str, what: &str) -> Error {
    let of = |path: String| proc::sysctl(&path).unwrap_or(0);
    let (machine, namespace) =
        (of(format!("fs/inotify/max_user_{what}")), of(format!("user/max_inotify_{what}")));
    let error = Error::new(
        Kind::LimitExceeded,
        format!(
            "cannot {attempt}: the user has no inotify {what} left; raise fs.inotify.max_user_{what}, now {machine}"
        ),
    );
    if namespace == machine {
        return error;
    }
    error.help(format!("and user.max_inotify_{what} of this user namespace, now {namespace}"))
}

/// Whether inotify misses what other machines, a server or the kernel itself change there.
fn is_incomplete(kind: &str) -> bool {
    const KINDS: &str = "9p afs autofs bpf ceph cgroup cgroup2 cifs coda configfs debugfs devpts fuse gfs2 \
                         lustre nfs nfs4 ocfs2 proc securityfs smb3 sysfs tracefs unknown virtiofs";
    KINDS.split(' ').any(|incomplete| incomplete == kind) || kind.starts_with("fuse.")
}
