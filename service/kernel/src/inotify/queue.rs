//! What waits for each endpoint of the inotify hub (`inotify/hub.rs`): its share of a watch and
//! its own bounded queue.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use event_listener::{Event as Bell, EventListener};
use rustix::fs::{Mode, OFlags, Stat};

use crate::{Fd, inotify::hub::HUB};

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
    pub oneshot: bool,
}

impl Wish {
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

/// An endpoint's part of a watch; dropping it ends the part.
pub struct Subscription {
    pub wish: Wish,
    /// Watch descriptor; none (-1) before there is a watch.
    pub wd: i32,
    pub stat: Stat,
    /// Name of the file system's type.
    pub filesystem: String,
    /// Whether all that happens there is seen.
    pub complete: bool,
    queue: Mutex<Queue>,
    arrived: Bell,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Some were dropped since the queue was emptied.
    overflowed: bool,
    ended: Option<&'static str>,
}

/// What waits for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Happened { mask: u32, name: Box<[u8]> },
    Overflow,
    End(&'static str),
}

impl Subscription {
    pub fn new(wish: Wish, stat: Stat, filesystem: String, complete: bool) -> Self {
        Self { wish, wd: -1, stat, filesystem, complete, queue: Mutex::default(), arrived: Bell::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item and rings.
    pub fn push(&self, item: Item) {
        let mut queue = self.queue();
        // Identical successive events are one, as in the kernel's queue.
        if queue.ended.is_some() || queue.items.back() == Some(&item) {
            return;
        }
        match item {
            Item::End(reason) => queue.ended = Some(reason),
            _ if queue.items.len() < MAX_QUEUED => {}
            _ if queue.overflowed => return,
            _ => {
                queue.overflowed = true;
                queue.items.push_back(Item::Overflow);
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

    pub fn ended(&self) -> Option<&'static str> {
        self.queue().ended
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

/// An endpoint's hold on its subscription.
pub struct Handle(pub Arc<Subscription>);

impl std::ops::Deref for Handle {
    type Target = Subscription;

    fn deref(&self) -> &Subscription {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        HUB.unsubscribe(&self.0);
    }
}
