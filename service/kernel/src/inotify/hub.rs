//! One inotify instance for all watches of the process, for `mechanisms/inotify.rs`.
//!
//! A user has few instances (fs.inotify.max_user_instances, 128), so the endpoints share one.
//! The kernel has one watch for an inode and instance, with one mask: the hub gives it the
//! union of what the endpoints on that inode ask for and gives each of them what it asked for.
//! An endpoint has one watch, or one for each directory of a tree (`inotify/tree.rs`).
//!
//! Two locks: `changes` is held by whoever changes masks, over system calls that may look at a
//! slow file system; `state` only for moments, so that the driver never waits. What arrives for
//! a watch that is just being added is kept until it has its endpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::MaybeUninit,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError},
    time::Duration,
};

use event_listener::Event as Bell;
use libc::{
    IN_DELETE_SELF, IN_EXCL_UNLINK, IN_IGNORED, IN_MASK_ADD, IN_MASK_CREATE, IN_Q_OVERFLOW, IN_UNMOUNT,
};
use rustix::{fs::inotify, io::Errno};

use crate::{
    Attempt, Error, Fd, Kind, Readiness, Result, fd,
    inotify::{
        mask,
        queue::{Item, MAX_QUEUED, Subscription},
        users,
    },
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
        drained: 0,
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
    early: Vec<Told>,
    /// Events were lost; the end of a watch may be among them.
    overflowed: bool,
    /// When the instance was empty, on the clock that files are stamped with.
    drained: i64,
}

/// An event as the kernel told it.
struct Told {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Box<[u8]>,
}

/// A watch of the kernel.
struct Watch {
    /// What the kernel was asked for: at least what the members want.
    mask: u32,
    excl_unlink: bool,
    members: Vec<Member>,
    /// Why it is about to end, from the event before IN_IGNORED.
    reason: &'static str,
}

/// An endpoint's part of a watch.
struct Member {
    subscription: Arc<Subscription>,
    want: Want,
}

/// What an endpoint wants of a watch.
#[derive(Debug, Clone)]
pub struct Want {
    /// Where the inode was found.
    pub path: PathBuf,
    pub mask: u32,
    pub excl_unlink: bool,
    /// Device and inode, where the path may be followed again without waiting.
    pub inode: Option<(u64, u64)>,
}

impl Want {
    fn attempt(&self) -> String {
        format!("watch {}", self.path.display())
    }
}

const REMOVED: &str = "the watched file was removed";
const UNMOUNTED: &str = "the file system was unmounted";
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

    /// The paths at which the endpoints on a watch found it.
    pub fn paths(&self, wd: i32) -> Vec<PathBuf> {
        let state = self.state();
        let members = state.watches.get(&wd).map(|watch| &watch.members);
        members.into_iter().flatten().map(|member| member.want.path.clone()).collect()
    }

    /// Those of an endpoint's watches that are still there.
    pub fn alive(&self, subscription: &Arc<Subscription>) -> BTreeSet<i32> {
        let state = self.state();
        let has = |watch: &Watch| watch.members.iter().any(|member| member.is(subscription));
        state.watches.iter().filter(|(_, watch)| has(watch)).map(|(wd, _)| *wd).collect()
    }

    /// Adds a watch for an endpoint, or a part of the one that there is for the inode; says its
    /// descriptor.
    pub fn watch(&self, subscription: &Arc<Subscription>, pinned: &Fd, want: Want) -> Result<i32> {
        let _changing = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = self.start()?;
        // What happened before is for those who watch already.
        self.read(instance, 64)?;
        self.state().adding = true;
        let added = self.add(instance, pinned, subscription, want);
        let mut state = self.state();
        state.adding = false;
        state.early.clear();
        added
    }

    /// Makes a watch, or adds our events to the one that there is for the inode. Under `changes`,
    /// so that only the end of a watch can come in between.
    fn add(&self, instance: &Fd, pinned: &Fd, subscription: &Arc<Subscription>, want: Want) -> Result<i32> {
        // Without DELETE_SELF nobody could say why a watch ended.
        let mask = want.mask | IN_DELETE_SELF;
        let excl_unlink = want.excl_unlink;
        let failed = |errno| match errno {
            Errno::NOSPC => users::limit(&want.attempt(), "watches"),
            Errno::ACCESS => Error::from_errno(errno, want.attempt()).help("a watch needs the right to read"),
            errno => Error::from_errno(errno, want.attempt()),
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
                let watch = Watch { mask, excl_unlink, members: Vec::new(), reason: ENDED };
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
                        want.attempt(),
                        !excl_unlink
                    ),
                ));
            }
            watch.mask |= mask;
            match watch.members.iter_mut().find(|member| member.is(subscription)) {
                Some(member) => member.want = want,
                None => watch.members.push(Member { subscription: subscription.clone(), want }),
            }
            for told in std::mem::take(&mut state.early) {
                if told.wd == wd {
                    self.happened(&mut state, told);
                }
            }
            return Ok(wd);
        }
    }

    fn start(&self) -> Result<&Fd> {
        if let Some(instance) = self.instance.get() {
            return Ok(instance);
        }
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let instance = inotify::init(flags).map_err(|errno| match errno {
            Errno::MFILE => users::limit("make an inotify instance", "instances")
                .help("or the process is at its limit of open files (RLIMIT_NOFILE)"),
            errno => Error::from_errno(errno, "make an inotify instance"),
        })?;
        let instance = self.instance.get_or_init(|| instance.into());
        self.started.notify(usize::MAX);
        Ok(instance)
    }

    /// Ends an endpoint's part of one watch.
    pub fn unwatch(&self, subscription: &Arc<Subscription>, wd: i32) {
        let Some(instance) = self.instance.get() else { return };
        if self.state().leave(instance, wd, subscription) {
            self.narrow(instance, wd);
        }
    }

    /// Ends an endpoint's part of every watch.
    pub fn leave(&self, subscription: &Arc<Subscription>) {
        for wd in self.alive(subscription) {
            self.unwatch(subscription, wd);
        }
    }

    /// Takes back the events that nobody asks for any more. Only an economy, as each endpoint gets
    /// its own events anyway: left alone where it might wait, or where the path leads elsewhere.
    fn narrow(&self, instance: &Fd, wd: i32) {
        let _changing = match self.changes.try_lock() {
            Ok(changing) => changing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let (subscription, inode, mask, excl_unlink) = {
            let state = self.state();
            let Some(watch) = state.watches.get(&wd) else { return };
            let wanted = watch.members.iter().fold(IN_DELETE_SELF, |mask, other| mask | other.want.mask);
            let first = watch.members.iter().find_map(|it| Some((it.subscription.clone(), it.want.inode?)));
            match first {
                Some((first, inode)) if wanted != watch.mask => (first, inode, wanted, watch.excl_unlink),
                _ => return,
            }
        };
        let Ok(pinned) = subscription.wish.pin() else { return };
        if !fd::stat(&pinned).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == inode) {
            return;
        }
        match set(instance, &pinned, mask | flag(excl_unlink)) {
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
            let now = stamp();
            let mut reader = inotify::Reader::new(instance, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let name = event.file_name().map_or(&b""[..], |name| name.to_bytes()).into();
                        let (wd, mask, cookie) = (event.wd(), event.events().bits(), event.cookie());
                        self.happened(&mut state, Told { wd, mask, cookie, name });
                    }
                    Err(Errno::AGAIN) => {
                        state.drained = now;
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

    fn happened(&self, state: &mut State, told: Told) {
        let Told { wd, mask, cookie, .. } = told;
        if mask & IN_Q_OVERFLOW != 0 {
            state.overflowed = true;
            for member in state.watches.values().flat_map(|watch| &watch.members) {
                member.subscription.push(Item::Overflow { since: state.drained }, state.drained);
            }
            return;
        }
        let Some(watch) = state.watches.get_mut(&wd) else {
            if state.adding && state.early.len() < MAX_QUEUED {
                state.early.push(told);
            }
            return;
        };
        if mask & IN_DELETE_SELF != 0 {
            watch.reason = REMOVED;
        } else if mask & IN_UNMOUNT != 0 {
            watch.reason = UNMOUNTED;
        }
        for Member { subscription, want } in &watch.members {
            if mask & (want.mask | IN_UNMOUNT | IN_IGNORED) != 0 {
                let item = Item::Happened { wd, mask, cookie, name: told.name.clone() };
                subscription.push(item, state.drained);
            }
        }
        if mask & IN_IGNORED != 0 {
            self.end(state, wd);
        }
    }

    fn end(&self, state: &mut State, wd: i32) {
        if let Some(watch) = state.watches.remove(&wd) {
            let ended = Item::Ended { wd, reason: watch.reason };
            for member in watch.members {
                member.subscription.push(ended.clone(), state.drained);
            }
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

/// The time that the kernel stamps files with, in nanoseconds since the epoch: clock_gettime(2),
/// CLOCK_REALTIME_COARSE.
pub fn stamp() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

impl Member {
    fn is(&self, subscription: &Arc<Subscription>) -> bool {
        Arc::ptr_eq(&self.subscription, subscription)
    }
}

impl State {
    /// Takes a member out of a watch, and the watch with the last of them; says whether there are
    /// others.
    fn leave(&mut self, instance: &Fd, wd: i32, subscription: &Arc<Subscription>) -> bool {
        let Some(watch) = self.watches.get_mut(&wd) else { return false };
        watch.members.retain(|member| !member.is(subscription));
        if !watch.members.is_empty() {
            return true;
        }
        self.watches.remove(&wd);
        // EINVAL: the kernel removed it first.
        let _ = inotify::remove_watch(instance, wd);
        false
    }
}

/// Sets the mask of the pinned inode's watch, which may be a new one.
fn set(instance: &Fd, pinned: &Fd, mask: u32) -> rustix::io::Result<i32> {
    inotify::add_watch(instance, fd::proc_path(pinned), inotify::WatchFlags::from_bits_retain(mask))
}

fn flag(excl_unlink: bool) -> u32 {
    if excl_unlink { IN_EXCL_UNLINK } else { 0 }
}
