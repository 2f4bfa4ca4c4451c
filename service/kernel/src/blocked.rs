//! Waits that only a blocking system call can do: the kernel has no event for System V queues and
//! sets, and none for a futex with a bit set.
//!
//! A [`Blocked`] is such a call, not yet made. [`start`] makes it on a thread with a small stack;
//! there are at most [`MAX_THREADS`], and one that is done waits a moment for the next call.
//!
//! The call really takes or sends, so that waiters stand in the kernel's own queue. What it has
//! taken waits in [`Taken`] for the attempt that it was made for, and that it has sent is noted in
//! [`Sent`]. A wait is given up by a signal ([`Running::interrupt`]); when the call has ended, it is
//! known whether it did something ([`Running::ended`]).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{Error, Kind, Result};

/// How many calls can block at once.
pub const MAX_THREADS: usize = 256;

/// How long a thread waits for another call before it ends.
const LINGER: Duration = Duration::from_secs(1);

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
}

impl Blocked {
    /// `call` makes one system call that a signal interrupts.
    pub fn new(call: impl FnMut() -> Ended + Send + 'static) -> Self {
        Self { call: Box::new(call), over: Over::default() }
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
        Self { call: Box::new(call), over }
    }
}

impl std::fmt::Debug for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Blocked")
    }
}

/// Whether the wait for a call is over: the attempt that it was made for comes at once, or never.
#[derive(Debug, Clone, Default)]
struct Over(Arc<AtomicBool>);

/// What blocking calls of an endpoint have taken and no attempt has fetched.
#[derive(Debug)]
pub struct Taken<T>(Mutex<VecDeque<(Over, T)>>);

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Taken<T> {
    fn entries(&self) -> MutexGuard<'_, VecDeque<(Over, T)>> {
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

/// A call that was started.
#[derive(Debug, Clone)]
pub struct Running {
    progress: Arc<Mutex<Progress>>,
    over: Over,
}

#[derive(Debug, Default)]
struct Progress {
    /// The thread that may be in the call at this moment.
    thread: Option<libc::pid_t>,
    given_up: bool,
    ended: Option<Ended>,
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
        self.over.0.store(true, Ordering::Release);
        let mut progress = self.progress();
        progress.given_up = true;
        if let Some(thread) = progress.thread {
            // SAFETY: a system call without pointers. The thread lives: it takes its number out of
            // here, behind the same lock, before it ends.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
        progress.ended.is_some()
    }

    fn run(&self, mut call: Blocked) {
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
            ended = (call.call)();
        }
        let mut progress = self.progress();
        progress.thread = None;
        progress.ended = Some(ended);
    }
}

/// What is called when a call has ended.
type Then = Box<dyn FnOnce() + Send>;

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
pub fn start(call: Blocked, then: impl FnOnce() + Send + 'static) -> Result<Running> {
    prepare_signal();
    let running = Running { progress: Arc::default(), over: call.over.clone() };
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
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| told.0.run(call)));
        drop(told);
        if outcome.is_err() {
            pool().threads -= 1;
            return;
        }
        next = another();
    }
}

struct Told(Running, Option<Then>);

impl Drop for Told {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        progress.thread = None;
        progress.ended.get_or_insert(Ended::Done);
        drop(progress);
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
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn pause() -> Ended {
        // SAFETY: a system call without pointers.
        unsafe { libc::pause() };
        Ended::Interrupted
    }

    fn give_up(running: &Running) {
        while !running.interrupt() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_call_that_was_given_up_ends() {
        let (ended, end) = mpsc::sync_channel(1);
        let running = start(Blocked::new(pause), move || _ = ended.send(())).expect("a thread");
        give_up(&running);
        end.recv_timeout(PATIENCE).expect("the end");
        assert_eq!(running.ended(), Some(Ended::Interrupted));
    }

    #[test]
    fn a_call_that_is_done_says_so() {
        let (ended, end) = mpsc::sync_channel(1);
        let running = start(Blocked::new(|| Ended::Done), move || _ = ended.send(())).expect("a thread");
        end.recv_timeout(PATIENCE).expect("the end");
        assert_eq!(running.ended(), Some(Ended::Done));
    }

    #[test]
    fn a_call_is_interrupted_although_the_signal_was_blocked_where_it_was_started() {
        // SAFETY: as in receive_signal.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        }
        a_call_that_was_given_up_ends();
    }

    #[test]
    fn whoever_waits_hears_of_a_panic() {
        let (ended, end) = mpsc::sync_channel(1);
        let call = Blocked::new(|| panic!("a mechanism with a bug"));
        let running = start(call, move || _ = ended.send(())).expect("a thread");
        end.recv_timeout(PATIENCE).expect("the end");
        assert!(running.interrupt());
    }

    #[test]
    fn what_was_taken_belongs_to_the_waiter_until_its_wait_is_over() {
        let taken = Arc::new(Taken::default());
        let (ended, end) = mpsc::sync_channel(1);
        let call = Blocked::taking(&taken, || (Ended::Done, Some(7)));
        let running = start(call, move || _ = ended.send(())).expect("a thread");
        end.recv_timeout(PATIENCE).expect("the end");
        let any = |_: &i32| Some(0);
        assert_eq!((taken.take(any), taken.free()), (None, 0), "somebody else took it");
        assert!(running.interrupt());
        assert_eq!(taken.free(), 1);
        assert_eq!(taken.take(any), Some(7));
    }

    #[test]
    fn the_lowest_rank_is_taken_and_the_earliest_of_these() {
        let taken = Taken::default();
        for value in [(1, 'd'), (2, 'c'), (1, 'b'), (3, 'a')] {
            taken.put_back(value);
        }
        let next = || taken.take(|(rank, _)| (*rank < 3).then_some(*rank));
        assert_eq!([next(), next(), next(), next()], [Some((1, 'b')), Some((1, 'd')), Some((2, 'c')), None]);
        assert_eq!(taken.drain(), [(3, 'a')]);
    }

    /// Calls that end at once, from many threads, again and again: each must be run.
    #[test]
    fn no_call_is_forgotten() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let (ended, end) = mpsc::sync_channel(1);
                        let started = start(Blocked::new(|| Ended::Done), move || _ = ended.send(()));
                        started.expect("a thread");
                        end.recv_timeout(PATIENCE).expect("a call was forgotten");
                    }
                });
            }
        });
    }

    /// Interrupted at any moment, before, in or after the call: each must end.
    #[test]
    fn a_signal_at_any_moment_ends_the_wait() {
        for spin in 0..2_000 {
            let (ended, end) = mpsc::sync_channel(1);
            let running = start(Blocked::new(pause), move || _ = ended.send(())).expect("a thread");
            (0..spin % 200).for_each(|_| std::hint::spin_loop());
            give_up(&running);
            end.recv_timeout(PATIENCE).expect("the end");
        }
    }
}
