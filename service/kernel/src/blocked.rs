//! Waits that only a blocking system call can do: the kernel has no event for System V queues and
//! sets, and none for a futex with a bit set.
//!
//! A [`Blocked`] is such a call, not yet made. [`start`] makes it on a thread with a small stack;
//! there are at most [`MAX_THREADS`], and one that is done waits a moment for the next call. What
//! the call takes, it puts where the mechanism's next attempt finds it: a wait that is given up
//! ([`Running::interrupt`]) loses nothing, and what may not be kept for others goes back at once
//! ([`Blocked::or_give_back`]).

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError},
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
    give_back: Option<Then>,
    stay: Option<Then>,
}

type Then = Box<dyn FnOnce() + Send>;

impl Blocked {
    /// `call` makes one system call that a signal interrupts, and keeps what it takes.
    pub fn new(call: impl FnMut() -> Ended + Send + 'static) -> Self {
        Self { call: Box::new(call), give_back: None, stay: None }
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
pub struct Running(Arc<Mutex<Progress>>);

#[derive(Default)]
struct Progress {
    /// The thread that may be in the call at this moment.
    thread: Option<libc::pid_t>,
    given_up: bool,
    ended: bool,
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

impl Running {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the wait up; says whether the call has ended. A signal that arrives just before the
    /// call begins does not interrupt it: ask again until it has.
    pub fn interrupt(&self) -> bool {
        let mut progress = self.progress();
        progress.given_up = true;
        if let Some(thread) = progress.thread {
            // SAFETY: a system call without pointers. The thread lives: it takes its number out of
            // here, behind the same lock, before it ends.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
        let ended = progress.ended;
        let give_back = if ended { progress.give_back.take() } else { None };
        drop(progress);
        if let Some(give_back) = give_back {
            give_back();
        }
        ended
    }

    /// The call has ended and its waiter attempts again: whatever it took is the waiter's.
    pub fn claim(&self) {
        let mut progress = self.progress();
        if progress.ended {
            progress.give_back = None;
        }
    }

    fn run(&self, mut call: impl FnMut() -> Ended) {
        loop {
            let mut progress = self.progress();
            progress.thread = None;
            if progress.given_up {
                break;
            }
            // SAFETY: a system call without pointers.
            progress.thread = Some(unsafe { libc::gettid() });
            drop(progress);
            if call() == Ended::Done {
                break;
            }
        }
        let mut progress = self.progress();
        progress.thread = None;
        progress.ended = true;
        let give_back = if progress.given_up { progress.give_back.take() } else { None };
        drop(progress);
        if let Some(give_back) = give_back {
            give_back();
        }
    }
}

type Task = (Running, Blocked, Then);

struct Pool {
    threads: usize,
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
    let running = Running(Arc::default());
    running.progress().give_back = call.give_back.take();
    let task: Task = (running.clone(), call, Box::new(then));
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
            let text = format!("cannot start a thread to wait on: {error}; raise RLIMIT_NPROC");
            Error::new(Kind::LimitExceeded, text)
        })?;
    pool.threads += 1;
    Ok(running)
}

fn work(first: Task) {
    let mut next = Some(first);
    while let Some((running, call, then)) = next {
        running.run(call.call);
        then();
        if let Some(stay) = call.stay {
            // What it waits for now is not counted here.
            pool().threads -= 1;
            return stay();
        }
        next = another();
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn pause() -> Ended {
        // SAFETY: a system call without pointers.
        unsafe { libc::pause() };
        Ended::Interrupted
    }

    #[test]
    fn a_call_that_was_given_up_ends() {
        let (ended, end) = mpsc::channel();
        let running = start(Blocked::new(pause), move || _ = ended.send(())).expect("a thread");
        while !running.interrupt() {
            std::thread::yield_now();
        }
        end.recv_timeout(Duration::from_secs(15)).expect("the end");
    }

    #[test]
    fn a_call_that_is_done_says_so() {
        let (ended, end) = mpsc::channel();
        let _running = start(Blocked::new(|| Ended::Done), move || _ = ended.send(())).expect("a thread");
        end.recv_timeout(Duration::from_secs(15)).expect("the end");
    }

    #[test]
    fn what_a_call_took_goes_back_unless_it_is_claimed() {
        let run = |end: fn(&Running)| {
            let (given, back) = mpsc::channel();
            let (ended, end_of_call) = mpsc::channel();
            let call = Blocked::new(|| Ended::Done).or_give_back(move || _ = given.send(()));
            let running = start(call, move || _ = ended.send(())).expect("a thread");
            end_of_call.recv_timeout(Duration::from_secs(15)).expect("the end");
            end(&running);
            assert!(running.interrupt(), "it has ended");
            back.try_recv().is_ok()
        };
        assert!(run(|_| {}), "nobody waited for it");
        assert!(!run(Running::claim), "its waiter has it");
    }
}
