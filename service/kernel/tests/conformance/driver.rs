//! Waits for what an [`Attempt`] says, on one thread and without an async runtime.
//!
//! File descriptors go into one poll(2); words in shared memory are watched by a helper thread
//! and notifications by a waker, both of which write to an eventfd in the same poll(2).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use event_listener::EventListener;
use ipc_kernel::{
    Attempt, Fd, Readiness, Result,
    blocked::{self, Blocked, Running},
    word::{self, Watched, WordWait},
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

/// Longer than any check takes; the watchdog of the suite is for attempts that block.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Repeats an attempt until it is done.
pub fn finish<T>(what: &str, mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt()? {
            Attempt::Done(value) => return Ok(value),
            Attempt::Wait(readiness) => {
                let left = end.saturating_duration_since(Instant::now());
                assert!(
                    wait(readiness, left),
                    "{what}: not done after {PATIENCE:?}; the readiness never came"
                );
            }
        }
    }
}

/// The readiness of an attempt that must not be done.
#[track_caller]
pub fn must_wait<T>(what: &str, attempt: Result<Attempt<T>>) -> Readiness {
    match attempt {
        Ok(Attempt::Wait(readiness)) => readiness,
        Ok(Attempt::Done(_)) => panic!("{what}: must wait, but was done at once"),
        Err(error) => panic!("{what}: must wait, but failed with {:?}: {error}", error.kind),
    }
}

/// Waits for a readiness; says whether it came in time.
pub fn wait(readiness: Readiness, timeout: Duration) -> bool {
    let mut wanted = Wanted {
        after: None,
        fds: Vec::new(),
        words: Vec::new(),
        listeners: Vec::new(),
        blocked: Vec::new(),
    };
    wanted.add(readiness);
    let doorbell = Doorbell::new();
    let waker = Waker::from(doorbell.clone());
    for listener in &mut wanted.listeners {
        let listener = std::pin::Pin::new(listener);
        if let Poll::Ready(()) = std::future::Future::poll(listener, &mut Context::from_waker(&waker)) {
            return true;
        }
    }
    let helper = (!wanted.words.is_empty()).then(|| Helper::start(&wanted.words, doorbell.clone()));
    let blocked: Vec<_> =
        wanted.blocked.into_iter().map(|call| Interrupting::start(call, doorbell.clone())).collect();
    let timeout_or_after = wanted.after.map_or(timeout, |after| after.min(timeout));
    let came = poll(&wanted.fds, &doorbell.0, timeout_or_after);
    if came {
        blocked.iter().for_each(|blocked| blocked.0.claim());
    }
    drop((helper, blocked));
    came || wanted.after.is_some_and(|after| after <= timeout)
}

struct Wanted {
    after: Option<Duration>,
    fds: Vec<(Fd, PollFlags)>,
    words: Vec<WordWait>,
    listeners: Vec<EventListener>,
    blocked: Vec<Blocked>,
}

impl Wanted {
    fn add(&mut self, readiness: Readiness) {
        match readiness {
            Readiness::Readable(fd) => self.fds.push((fd, PollFlags::IN)),
            Readiness::Writable(fd) => self.fds.push((fd, PollFlags::OUT)),
            // What is polled for nothing tells of a hang-up all the same.
            Readiness::HungUp(fd) => self.fds.push((fd, PollFlags::empty())),
            Readiness::Word(word) => self.words.push(word),
            Readiness::Blocked(call) => self.blocked.push(call),
            Readiness::Notified(listener) => self.listeners.push(listener),
            Readiness::After(time) => {
                self.after = Some(self.after.map_or(time, |earlier| earlier.min(time)));
            }
            Readiness::Any(all) => all.into_iter().for_each(|one| self.add(one)),
        }
    }
}

fn poll(fds: &[(Fd, PollFlags)], doorbell: &Fd, timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::new(fd, *flags)).collect();
        polled.push(PollFd::new(doorbell, PollFlags::IN));
        match rustix::event::poll(&mut polled, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
    }
}

/// An eventfd that ends the poll(2).
struct Doorbell(Fd);

impl Doorbell {
    fn new() -> Arc<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Arc::new(Self(Fd::new(fd.expect("an eventfd"))))
    }
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        // Cannot fill up: it is rung a few times at most.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Waits for words on a thread of its own, for as long as it lives.
struct Helper {
    stop: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    fn start(words: &[WordWait], doorbell: Arc<Doorbell>) -> Self {
        let stop = Arc::new(AtomicU32::new(0));
        let mut watched = vec![Watched::Private { word: stop.clone(), expected: 0 }];
        watched.extend(words.iter().map(|word| Watched::Shared {
            mapping: word.mapping.clone(),
            offset: word.offset,
            expected: word.expected,
        }));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let woken = word::wait_any(&watched);
            if stopped.load(Ordering::SeqCst) == 0 {
                woken.expect("waiting for words");
                doorbell.wake();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        word::interrupt(&self.stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A blocking call on its thread, given up when this goes.
struct Interrupting(Running);

impl Interrupting {
    fn start(call: Blocked, doorbell: Arc<Doorbell>) -> Self {
        Self(blocked::start(call, move || doorbell.wake()).expect("a thread"))
    }
}

impl Drop for Interrupting {
    fn drop(&mut self) {
        while !self.0.interrupt() {
            std::thread::yield_now();
        }
    }
}
