//! Waits that only a blocking system call can do: the kernel has no event for System V queues and
//! sets, and none for a futex with a bit set.
//!
//! A [`Blocked`] is such a call, not yet made. [`start`] makes it on a thread with a small stack;
//! there are at most [`MAX_THREADS`], and one that is done waits a moment for the next call.
//!
//! The call really takes or sends, so that waiters stand in the kernel's own queue. What it has
//! taken waits in [`Taken`] for the attempt that it was made for, and that it has sent is noted in
//! [`Sent`]. A wait is given up by a signal ([`Running::interrupt`]); when the call has ended, it is
//! known whether it did something ([`Running::ended`]). What may not be kept for others goes back at
//! once ([`Blocked::or_give_back`]).

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError},
    time::{Duration, Instant},
};

use crate::{Error, Kind, Result};

mod taken;

use taken::Over;
pub use taken::{Sent, Taken};

/// How many calls can block at once.
pub const MAX_THREADS: usize = 256;

/// How long a thread waits for another call before it ends.
const LINGER: Duration = Duration::from_secs(1);

/// How long a signal has to end a call before the next one is sent.
const SIGNAL_AGAIN: Duration = Duration::from_millis(1);

/// How a blocking call came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Whatever it was: the next attempt is worth it.
    Done,
    /// By a signal (EINTR); it is made again unless the wait was given up.
    Interrupted,
}

/// A blocking system call.
pub struct Blocked {
    call: Box<dyn FnMut() -> Ended + Send>,
    over: Over,
    give_back: Option<Then>,
    stay: Option<Then>,
}

/// What is done once when a call has ended.
type Then = Box<dyn FnOnce() + Send>;

impl Blocked {
    /// `call` makes one system call that a signal interrupts.
    pub fn new(call: impl FnMut() -> Ended + Send + 'static) -> Self {
        Self { call: Box::new(call), over: Over::default(), give_back: None, stay: None }
    }

    /// `call` takes something; that is kept for the attempt that this call is made for.
    pub fn taking<T: Send + 'static>(
        taken: &Arc<Taken<T>>,
        mut call: impl FnMut() -> (Ended, Option<T>) + Send + 'static,
    ) -> Self {
        let (over, taken) = (Over::default(), taken.clone());
        let put = over.clone();
        let call = move || {
            let (ended, value) = call();
            if let Some(value) = value {
                taken.entries().push_back((put.clone(), value));
            }
            ended
        };
        Self { over, ..Self::new(call) }
    }

    /// What to do when the call is done and nobody waits for it any more.
    pub fn or_give_back(mut self, with: impl FnOnce() + Send + 'static) -> Self {
        self.give_back = Some(Box::new(with));
        self
    }

    /// What the thread does after the call, before it ends: for what the kernel keeps for a thread.
    pub fn then_stay(mut self, with: impl FnOnce() + Send + 'static) -> Self {
        self.stay = Some(Box::new(with));
        self
    }
}

impl std::fmt::Debug for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Blocked")
    }
}

/// A call that was started.
#[derive(Debug, Clone)]
pub struct Running {
    progress: Arc<Mutex<Progress>>,
    over: Over,
}

#[derive(Default)]
struct Progress {
    /// The thread that may be in the call at this moment.
    thread: Option<libc::pid_t>,
    given_up: bool,
    /// When the thread was last sent a signal.
    signalled: Option<Instant>,
    ended: Option<Ended>,
    give_back: Option<Then>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress")
            .field("given_up", &self.given_up)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// What is to be done now, if the wait is over on both sides and nobody has claimed the outcome.
    fn take_give_back(&mut self) -> Option<Then> {
        if self.given_up && self.ended.is_some() { self.give_back.take() } else { None }
    }
}

impl Running {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the call ended; None: it goes on.
    pub fn ended(&self) -> Option<Ended> {
        self.progress().ended
    }

    /// Gives the wait up; says whether the call has ended. A signal that arrives just before the
    /// call begins does not interrupt it: ask again until it has.
    pub fn interrupt(&self) -> bool {
        self.over.set();
        let mut progress = self.progress();
        progress.given_up = true;
        // Signals that come faster than they are handled would keep the thread from ever going on.
        let again = progress.signalled.is_none_or(|last| last.elapsed() >= SIGNAL_AGAIN);
        if let Some(thread) = progress.thread.filter(|_| again) {
            progress.signalled = Some(Instant::now());
            // SAFETY: a system call without pointers. The thread lives: it takes its number out of
            // here, behind the same lock, before it ends.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
        let (ended, give_back) = (progress.ended.is_some(), progress.take_give_back());
        drop(progress);
        if let Some(give_back) = give_back {
            give_back();
        }
        ended
    }

    /// The call has ended and its waiter attempts again: whatever it took is the waiter's.
    pub fn claim(&self) {
        let mut progress = self.progress();
        if progress.ended.is_some() {
            progress.give_back = None;
            self.over.set();
        }
    }

    fn run(&self, mut call: impl FnMut() -> Ended) {
        let mut ended = Ended::Interrupted;
        while ended == Ended::Interrupted {
            let mut progress = self.progress();
            progress.thread = None;
            if progress.given_up {
                break;
            }
            // SAFETY: a system call without pointers.
            progress.thread = Some(unsafe { libc::gettid() });
            drop(progress);
            ended = call();
        }
        self.end(ended);
    }

    fn end(&self, ended: Ended) {
        let mut progress = self.progress();
        progress.thread = None;
        progress.ended.get_or_insert(ended);
        let give_back = progress.take_give_back();
        drop(progress);
        if let Some(give_back) = give_back {
            give_back();
        }
    }
}

struct Task {
    running: Running,
    call: Blocked,
    then: Then,
}

struct Pool {
    threads: usize,
    /// Threads that wait for a task; never fewer than there are tasks.
    idle: usize,
    tasks: VecDeque<Task>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { threads: 0, idle: 0, tasks: VecDeque::new() });
static MORE: Condvar = Condvar::new();

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the call on a thread; `then` runs there when it has ended.
pub fn start(mut call: Blocked, then: impl FnOnce() + Send + 'static) -> Result<Running> {
    prepare_signal();
    let running = Running { progress: Arc::default(), over: call.over.clone() };
    running.progress().give_back = call.give_back.take();
    let task = Task { running: running.clone(), call, then: Box::new(then) };
    let mut pool = pool();
    if pool.idle > pool.tasks.len() {
        pool.tasks.push_back(task);
        MORE.notify_one();
        return Ok(running);
    }
    if pool.threads >= MAX_THREADS {
        return Err(Error::new(
            Kind::LimitExceeded,
            format!(
                "{MAX_THREADS} calls wait for System V queues, sets and the like, the limit of this process; end \
                 some of them"
            ),
        ));
    }
    std::thread::Builder::new()
        .name("blocked".into())
        .stack_size(64 * 1024)
        .spawn(move || work(task))
        .map_err(|error| {
            let text = format!(
                "cannot start a thread to wait on: {error}; the user is at the limit of processes (RLIMIT_NPROC), \
                 or the cgroup is (pids.max)"
            );
            Error::new(Kind::LimitExceeded, text)
        })?;
    pool.threads += 1;
    Ok(running)
}

fn work(first: Task) {
    receive_signal();
    let mut next = Some(first);
    while let Some(Task { running, call, then }) = next {
        // Whoever waits hears of it even if the call panics.
        let told = Told(running, Some(then));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| told.0.run(call.call)));
        drop(told);
        if outcome.is_err() {
            pool().threads -= 1;
            return;
        }
        if let Some(stay) = call.stay {
            // What it waits for now is not counted here.
            pool().threads -= 1;
            return stay();
        }
        next = another();
    }
}

struct Told(Running, Option<Then>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.end(Ended::Done);
        if let Some(then) = self.1.take() {
            then();
        }
    }
}

/// The next task for this thread; none: it ends.
fn another() -> Option<Task> {
    let mut pool = pool();
    pool.idle += 1;
    let (mut pool, _) = MORE
        .wait_timeout_while(pool, LINGER, |pool| pool.tasks.is_empty())
        .unwrap_or_else(PoisonError::into_inner);
    pool.idle -= 1;
    let task = pool.tasks.pop_front();
    if task.is_none() {
        pool.threads -= 1;
    }
    task
}

/// Whoever starts us may have blocked or ignored signals, but hardly the last of the real-time ones.
fn signal() -> libc::c_int {
    libc::SIGRTMAX()
}

/// A handler that does nothing: without one the signal would end the process, and with
/// SA_RESTART some calls would go on.
fn prepare_signal() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // SAFETY: the handler does nothing; the action is fully initialised: zeroed, then its handler set.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(signal(), &action, std::ptr::null_mut());
        }
    });
}

/// A thread inherits blocked signals, in the end from whoever started the process.
fn receive_signal() {
    // SAFETY: the set is initialised by sigemptyset before it is read; it changes this thread alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests;
