//! What blocking calls have taken or sent, and for which attempt.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Whether the wait for a call is over: the attempt that it was made for comes at once, or never.
#[derive(Debug, Clone, Default)]
pub struct Over(Arc<AtomicBool>);

impl Over {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What blocking calls of an endpoint have taken and no attempt has fetched.
#[derive(Debug)]
pub struct Taken<T>(Mutex<VecDeque<(Over, T)>>);

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Taken<T> {
    /// In the order in which they were taken.
    pub(super) fn entries(&self) -> MutexGuard<'_, VecDeque<(Over, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something in front that whoever comes next may take.
    pub fn put_back(&self, value: T) {
        let over = Over(Arc::new(true.into()));
        self.entries().push_front((over, value));
    }

    /// Fetches what has the lowest rank, the earliest of these. What a call has taken whose wait is
    /// not over belongs to that one.
    pub fn take<R: Ord>(&self, rank: impl Fn(&T) -> Option<R>) -> Option<T> {
        let mut entries = self.entries();
        let index = first(&entries, rank)?;
        entries.remove(index).map(|(_, value)| value)
    }

    /// The same, which stays.
    pub fn look<R: Ord>(&self, rank: impl Fn(&T) -> Option<R>) -> Option<T>
    where
        T: Clone,
    {
        let entries = self.entries();
        let index = first(&entries, rank)?;
        entries.get(index).map(|(_, value)| value.clone())
    }

    /// How many whoever comes next may take.
    pub fn free(&self) -> usize {
        self.entries().iter().filter(|(over, _)| over.0.load(Ordering::Acquire)).count()
    }

    /// Everything, when no attempt will come any more.
    pub fn drain(&self) -> Vec<T> {
        self.entries().drain(..).map(|(_, value)| value).collect()
    }
}

fn first<T, R: Ord>(entries: &VecDeque<(Over, T)>, rank: impl Fn(&T) -> Option<R>) -> Option<usize> {
    let free = entries.iter().enumerate().filter(|(_, (over, _))| over.0.load(Ordering::Acquire));
    free.filter_map(|(index, (_, value))| Some((rank(value)?, index))).min().map(|(_, index)| index)
}

/// Of one message: whether a blocking call has sent it between two attempts.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<AtomicBool>);

impl Sent {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// For the next message, when no call of the last one is under way.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }
}
