//! What waits for each endpoint of the inotify hub (`inotify/hub.rs`): what it asked for, and its own
//! bounded queue.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use event_listener::{Event as Bell, EventListener};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{Error, Fd, Result, inotify::hub::HUB};

/// How many events wait for one endpoint, as many as the kernel keeps for an instance by default
/// (fs.inotify.max_queued_events).
pub const MAX_QUEUED: usize = 16384;

/// What an endpoint asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    pub path: PathBuf,
    pub mask: u32,
    pub only_directory: bool,
    pub dont_follow: bool,
    pub excl_unlink: bool,
}

impl Wish {
    /// As [`pin`](Self::pin), with the errno's meaning.
    pub fn find(&self) -> Result<Fd> {
        self.pin().map_err(|errno| match errno {
            Errno::NOTDIR if self.only_directory => {
                Error::from_errno(errno, self.attempt()).help("onlydir demands a directory")
            }
            errno => Error::from_errno(errno, self.attempt()),
        })
    }

    /// The inode that the path leads to. Pinned only for a moment: a file that somebody has open
    /// is not deleted, and its file system is not unmounted.
    pub fn pin(&self) -> rustix::io::Result<Fd> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, self.dont_follow);
        flags.set(OFlags::DIRECTORY, self.only_directory);
        rustix::fs::open(&self.path, flags, Mode::empty()).map(Fd::from)
    }

    pub fn attempt(&self) -> String {
        format!("watch {}", self.path.display())
    }
}

/// What an endpoint of the hub is to the hub: what it asked for, and what waits for it.
pub struct Subscription {
    pub wish: Wish,
    queue: Mutex<Queue>,
    arrived: Bell,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Some were dropped since the queue was emptied.
    overflowed: bool,
}

/// What waits for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Happened {
        wd: i32,
        mask: u32,
        cookie: u32,
        name: Box<[u8]>,
    },
    /// Events were lost, none that happened before that time ([`Hub::drained`](super::hub::Hub)).
    Overflow {
        since: i64,
    },
    /// A watch has ended.
    Ended {
        wd: i32,
        reason: &'static str,
    },
}

impl Subscription {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item and rings. All that happened before `drained` was added earlier.
    pub fn push(&self, item: Item, drained: i64) {
        let mut queue = self.queue();
        // Identical successive events are one, as in the kernel's queue.
        if queue.items.back() == Some(&item) {
            return;
        }
        match item {
            Item::Overflow { .. } if matches!(queue.items.back(), Some(Item::Overflow { .. })) => return,
            // One for each watch at most.
            Item::Ended { .. } => {}
            _ if queue.items.len() < MAX_QUEUED => {}
            _ if queue.overflowed => return,
            _ => {
                queue.overflowed = true;
                queue.items.push_back(Item::Overflow { since: drained });
                return;
            }
        }
        queue.items.push_back(item);
        drop(queue);
        self.arrived.notify(usize::MAX);
    }

    pub fn queued(&self) -> usize {
        self.queue().items.len()
    }

    /// Everything that waits, or what to listen to until something does.
    pub fn take(&self) -> std::result::Result<VecDeque<Item>, EventListener> {
        let mut queue = self.queue();
        if queue.items.is_empty() {
            return Err(self.arrived.listen());
        }
        queue.overflowed = false;
        Ok(std::mem::take(&mut queue.items))
    }
}

/// An endpoint's hold on its subscription; dropping it ends all its watches.
pub struct Handle(pub Arc<Subscription>);

impl Handle {
    pub fn new(wish: Wish) -> Self {
        Self(Arc::new(Subscription { wish, queue: Mutex::default(), arrived: Bell::new() }))
    }
}

impl std::ops::Deref for Handle {
    type Target = Arc<Subscription>;

    fn deref(&self) -> &Arc<Subscription> {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        HUB.leave(&self.0);
    }
}
