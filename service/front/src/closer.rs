//! Closing the file descriptors of others, which can hang for ever.
//!
//! close(2) of a file on a FUSE mount waits for the answer of the mount's server, unkillably. So the
//! front never closes a caller's or a worker's descriptor itself: whatever carries one is handed to a
//! thread of its user, which may hang without anybody but that user noticing. A user whose thread
//! hangs may send no more descriptors. What cannot be handed over is leaked: a leak, bounded by the
//! fds that are admitted, is better than a front that hangs.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{admission::User, log::Drops};

/// What is closed by being dropped.
pub type Doomed = Box<dyn Send>;

/// How many things may wait for one thread. Many: on a busy machine it runs a while after the reader,
/// and what finds the queue full stays open for good.
const QUEUE: usize = 1024;

/// Threads in all: one a user who sends descriptors.
const THREADS: usize = 256;

/// An idle thread ends after this.
const IDLE: Duration = Duration::from_secs(10);

/// A close(2) that takes longer hangs.
const HANGS: Duration = Duration::from_secs(2);

pub struct Closer {
    threads: Mutex<HashMap<User, Worker>>,
    leaks: Mutex<Drops>,
}

struct Worker {
    queue: SyncSender<Doomed>,
    /// When the thread began to close what it closes now.
    since: Arc<Mutex<Option<Instant>>>,
}

impl Closer {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { threads: Mutex::new(HashMap::new()), leaks: Mutex::default() })
    }

    /// Closes it elsewhere; returns at once.
    pub fn close(self: &Arc<Self>, user: User, mut doomed: Doomed) {
        let mut threads = self.threads();
        if let Some(worker) = threads.get(&user) {
            match worker.queue.try_send(doomed) {
                Ok(()) => return,
                Err(TrySendError::Full(back)) => {
                    self.leak(user, back);
                    return;
                }
                // Its thread has panicked: a new one.
                Err(TrySendError::Disconnected(back)) => doomed = back,
            }
            threads.remove(&user);
        }
        if threads.len() >= THREADS {
            self.leak(user, doomed);
            return;
        }
        let (queue, receiver) = sync_channel(QUEUE);
        let since = Arc::new(Mutex::new(None));
        let (closer, thread_since) = (self.clone(), since.clone());
        let thread = thread::Builder::new()
            .name("close".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || closer.run(user, &receiver, &thread_since));
        match thread {
            Ok(_) => match queue.try_send(doomed) {
                Ok(()) => drop(threads.insert(user, Worker { queue, since })),
                Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => self.leak(user, back),
            },
            Err(error) => {
                tracing::warn!("no thread can be started to close file descriptors on: {error}");
                self.leak(user, doomed);
            }
        }
    }

    /// Whether this user's descriptors do not get closed.
    pub fn hangs(&self, user: User) -> bool {
        let threads = self.threads();
        let Some(worker) = threads.get(&user) else { return false };
        let since = *worker.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() > HANGS)
    }

    fn run(&self, user: User, queue: &Receiver<Doomed>, since: &Mutex<Option<Instant>>) {
        let set = |value| *since.lock().unwrap_or_else(PoisonError::into_inner) = value;
        loop {
            let doomed = match queue.recv_timeout(IDLE) {
                Ok(doomed) => doomed,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    // Whoever hands something over holds the same lock.
                    let mut threads = self.threads();
                    match queue.try_recv() {
                        Ok(doomed) => doomed,
                        Err(_) => {
                            threads.remove(&user);
                            return;
                        }
                    }
                }
            };
            set(Some(Instant::now()));
            drop(doomed);
            set(None);
        }
    }

    fn leak(&self, user: User, doomed: Doomed) {
        mem::forget(doomed);
        let mut leaks = self.leaks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = leaks.count(user, Instant::now()) {
            let user = crate::log::user(user);
            tracing::warn!("what {user} sent {count} times stays open: closing file descriptors hangs");
        }
    }

    fn threads(&self) -> MutexGuard<'_, HashMap<User, Worker>> {
        // Nothing panics while it is locked.
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Its drop waits, as close(2) on a dead FUSE mount does.
    struct Hanging(mpsc::Receiver<()>);

    impl Drop for Hanging {
        fn drop(&mut self) {
            // Ends with the test.
            let _ended = self.0.recv();
        }
    }

    struct Telling(mpsc::SyncSender<thread::ThreadId>);

    impl Drop for Telling {
        fn drop(&mut self) {
            let _gone = self.0.send(thread::current().id());
        }
    }

    #[test]
    fn one_user_hangs_and_others_do_not_notice() {
        let closer = Closer::new();
        let (_hold, hanging) = mpsc::sync_channel(1);
        closer.close(Some(1), Box::new(Hanging(hanging)));
        let (sender, told) = mpsc::sync_channel(QUEUE * 2);
        // Behind the one that hangs: returns at once, and is leaked when the queue is full.
        for _ in 0..QUEUE + 2 {
            closer.close(Some(1), Box::new(Telling(sender.clone())));
        }
        closer.close(Some(2), Box::new(Telling(sender.clone())));
        let thread = told.recv_timeout(Duration::from_secs(30)).expect("closed");
        assert_ne!(thread, thread::current().id());
        assert!(told.try_recv().is_err());
        assert!(!closer.hangs(Some(2)));
        let worker_since = closer.threads().get(&Some(1)).expect("runs").since.clone();
        // As if it had begun long ago.
        *worker_since.lock().expect("not poisoned") = Instant::now().checked_sub(HANGS * 2);
        assert!(closer.hangs(Some(1)));
    }
}
