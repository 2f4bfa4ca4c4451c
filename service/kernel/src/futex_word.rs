//! A futex(2) in shared memory: the word, what can be done with it, and one wait for it.
//!
//! A wake-up that no change of the value goes with can only be seen by being in the kernel's queue
//! when it comes. So a wait is *exact*: what the kernel woke is not waited for again, and a
//! wake-up that came to a wait whose caller has gone is passed on to another waiter.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU32},
};

use rustix::{
    io::Errno,
    thread::futex::{self, Flags},
};

use crate::{
    Attempt, Error, Kind, Readiness, Result,
    blocked::{Blocked, Ended},
    guard::Mapping,
    word::WordWait,
};

/// The bits of FUTEX_WAIT and FUTEX_WAKE, which meet every other set (FUTEX_BITSET_MATCH_ANY).
pub const ANY: NonZeroU32 = NonZeroU32::MAX;

/// A word of 32 bits in mapped memory.
#[derive(Debug, Clone)]
pub struct FutexWord {
    pub mapping: Arc<Mapping>,
    /// In the mapping.
    pub offset: usize,
}

impl FutexWord {
    pub fn load(&self) -> Result<u32> {
        self.mapping.load(self.offset, 4).map(narrow)
    }

    pub fn store(&self, value: u32) -> Result<()> {
        self.mapping.swap(self.offset, 4, value.into()).map(drop)
    }

    /// Whether it was exchanged, and what was there.
    pub fn compare_exchange(&self, expected: u32, desired: u32) -> Result<(bool, u32)> {
        let (done, found) = self.mapping.compare_exchange(self.offset, 4, expected.into(), desired.into())?;
        Ok((done, narrow(found)))
    }

    /// Adds, wrapping around, and returns what was there.
    pub fn fetch_add(&self, value: u32) -> Result<u32> {
        self.mapping.fetch_add(self.offset, 4, value.into()).map(narrow)
    }

    fn atomic(&self) -> Result<&AtomicU32> {
        let address = self.mapping.address(self.offset, 4)?;
        // SAFETY: valid and aligned for as long as the mapping, which this word keeps; the memory is only
        // touched atomically.
        Ok(unsafe { AtomicU32::from_ptr(address.cast()) })
    }

    /// Wakes up to `count` waiters whose bits meet; says how many that were.
    pub fn wake(&self, count: u32, bits: NonZeroU32) -> Result<u32> {
        if count == 0 {
            return Err(Error::invalid("the count of a wake must be at least 1; 4294967295 wakes all"));
        }
        let woken = futex::wake_bitset(self.atomic()?, Flags::empty(), int(count), bits)
            .map_err(|errno| meaning(errno, "wake the waiters of the futex"))?;
        Ok(u32::try_from(woken).unwrap_or(u32::MAX))
    }

    /// Wakes up to `wake` waiters and lets up to `requeue` others wait for `target` instead, if the
    /// value is `expected` (FUTEX_CMP_REQUEUE). Says how many of each.
    pub fn requeue(&self, wake: u32, requeue: u32, target: &Self, expected: u32) -> Result<(u32, u32)> {
        let (one, other) = (self.atomic()?, target.atomic()?);
        let all = futex::cmp_requeue(one, Flags::empty(), int(wake), int(requeue), other, expected).map_err(
            |errno| match (errno, self.load()) {
                (Errno::AGAIN, Ok(found)) => Error::new(
                    Kind::Busy,
                    format!(
                        "cannot requeue the waiters of the futex: its value is {found}, not {expected} as expected \
                         (EAGAIN); nobody was woken or moved"
                    ),
                ),
                (errno, _) => meaning(errno, "requeue the waiters of the futex"),
            },
        )?;
        // It wakes first, and counts both together.
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let woken = all.min(int(wake));
        Ok((woken, all - woken))
    }

    /// Begins to wait, as long as the value is `expected`, for a wake-up whose bits meet.
    pub fn wait(&self, expected: u32, bits: NonZeroU32) -> FutexWait {
        let state = Mutex::new(State::Waiting);
        FutexWait(Arc::new(Shared { word: self.clone(), expected, bits, state }))
    }
}

/// The kernel counts in an int.
fn int(count: u32) -> u32 {
    count.min(i32::MAX.unsigned_abs())
}

fn narrow(bits: u64) -> u32 {
    // A word of four bytes, in the low end.
    bits as u32
}

/// The errnos of futex(2) that mean something of their own.
fn meaning(errno: Errno, attempt: &str) -> Error {
    match errno {
        Errno::FAULT => Error::new(
            Kind::Gone,
            format!("cannot {attempt}: the memory was truncated by another process (EFAULT)"),
        ),
        Errno::INVAL => Error::from_errno(errno, attempt).help(
            "a thread waits for it by FUTEX_LOCK_PI: only futex(2) calls for PI futexes can wake that one",
        ),
        errno => Error::from_errno(errno, attempt),
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Woken,
    /// The value was not the expected one before the kernel began to wait.
    Changed,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Woken => "woken",
            Self::Changed => "changed",
        }
    }
}

/// One wait. Dropped before its outcome was accepted, it passes on the wake-up that it got.
#[derive(Debug)]
pub struct FutexWait(Arc<Shared>);

/// What a wait has in common with the thread that waits.
#[derive(Debug)]
pub struct Shared {
    word: FutexWord,
    expected: u32,
    bits: NonZeroU32,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Ended(Outcome),
    Accepted,
    GivenUp,
}

impl FutexWait {
    /// One attempt: the outcome, or what to wait for.
    pub fn attempt(&self) -> Result<Attempt<Outcome>> {
        if let Some(outcome) = self.outcome() {
            return Ok(Attempt::Done(outcome));
        }
        if self.0.word.load()? != self.0.expected {
            // A change is nothing that could be passed on.
            let _ = self.0.settle(Outcome::Changed);
            return Ok(Attempt::Done(Outcome::Changed));
        }
        let shared = self.0.clone();
        Ok(Attempt::Wait(if shared.bits == ANY {
            let (mapping, offset) = (shared.word.mapping.clone(), shared.word.offset);
            let (expected, exact) = (shared.expected, Some(shared));
            Readiness::Word(WordWait { mapping, offset, expected, token: None, exact })
        } else {
            // futex_waitv(2) has no bits.
            Readiness::Blocked(Blocked::new(move || shared.block()))
        }))
    }

    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        match *self.0.state() {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Its caller knows the outcome: nothing is passed on.
    pub fn accept(self) {
        *self.0.state() = State::Accepted;
    }
}

impl Drop for FutexWait {
    fn drop(&mut self) {
        let mut state = self.0.state();
        match *state {
            State::Ended(Outcome::Woken) => self.0.pass_on(),
            State::Waiting => *state = State::GivenUp,
            _ => {}
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how the wait ended; for the thread that waited. False: its caller has gone, and a wake-up has
    /// to be passed on.
    #[must_use]
    pub fn settle(&self, outcome: Outcome) -> bool {
        let mut state = self.state();
        if *state == State::Waiting {
            *state = State::Ended(outcome);
        }
        *state != State::GivenUp || outcome != Outcome::Woken
    }

    /// Wakes another waiter instead. Memory that is gone has none.
    pub fn pass_on(&self) {
        let _ = self.word.wake(1, self.bits);
    }

    fn block(&self) -> Ended {
        let wait = |word| futex::wait_bitset(word, Flags::empty(), self.expected, None, self.bits);
        match self.word.atomic().map(wait) {
            Ok(Ok(())) if !self.settle(Outcome::Woken) => self.pass_on(),
            Ok(Err(Errno::AGAIN)) => _ = self.settle(Outcome::Changed),
            Ok(Err(Errno::INTR)) => return Ended::Interrupted,
            // Whatever it is, the next attempt finds out by loading the value.
            Ok(_) | Err(_) => {}
        }
        Ended::Done
    }
}
