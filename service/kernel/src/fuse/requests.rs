//! What a mount's thread cannot answer itself, and what it has to tell.
//!
//! The queue is bounded: whoever does not take from it makes the mount slower, and after a while its users get
//! EIO; nothing is dropped and nothing waits for ever.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use event_listener::Event;
use rustix::io::Errno;

use crate::{Attempt, Error, Kind, Readiness, Result};

/// What a file stands for, known to whoever published it.
pub type Source = Arc<dyn Any + Send + Sync>;

/// Something for whoever published the files.
#[derive(Debug)]
pub enum Upcall {
    /// A file was read for the first time since it was opened.
    Read { name: String, pid: u32 },
    /// Bytes were written to a file.
    Written { name: String, data: Vec<u8> },
    /// Somebody waits for an answer.
    Asked(Asked),
}

/// A request for a file that is not held here.
pub struct Asked {
    pub source: Source,
    /// The thread that waits, as this one's pid namespace numbers it; 0 where it does not.
    pub pid: u32,
    pub what: What,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("pid", &self.pid).field("what", &self.what).finish_non_exhaustive()
    }
}

impl Asked {
    /// Answers it with an error.
    pub fn refuse(self, error: Error) {
        match self.what {
            What::Size(answer) => answer.give(Err(error)),
            What::Read { answer, .. } => answer.give(Err(error)),
            What::Write { answer, .. } => answer.give(Err(error)),
            What::Poll { answer, .. } => answer.give(Err(error)),
            What::Call { answer, .. } => answer.give(Err(error)),
        }
    }
}

#[derive(Debug)]
pub enum What {
    /// How many bytes there are, asked when the file is opened.
    Size(Answer<u64>),
    Read {
        offset: u64,
        size: usize,
        patience: Patience,
        answer: Answer<Vec<u8>>,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
        patience: Patience,
        answer: Answer<()>,
    },
    /// What was written is to be answered.
    Call {
        data: Vec<u8>,
        answer: Answer<Answered>,
    },
    /// What is ready now; `later` is to be called when something is that was not.
    Poll {
        later: Option<Later>,
        answer: Answer<Ready>,
    },
}

/// The answer to what was written: what is to be read, and whether it went wrong.
#[derive(Debug)]
pub struct Answered {
    pub text: Vec<u8>,
    pub failed: Option<Error>,
}

/// How long a request may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Until the deadline.
    Deadline,
    /// Not at all: EAGAIN (O_NONBLOCK).
    None,
    /// Not at all: nothing is the end of the file.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub read: bool,
    pub write: bool,
}

/// Says that a file that was polled is worth another look.
pub struct Later(pub(super) Box<dyn FnOnce() + Send>);

impl Later {
    pub fn tell(self) {
        (self.0)();
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

type Give<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

/// An answer that somebody waits for. Dropped without one, it is EIO.
pub struct Answer<T>(Option<Give<T>>);

impl<T> Answer<T> {
    pub(super) fn new(give: impl FnOnce(Result<T, Errno>) + Send + 'static) -> Self {
        Self(Some(Box::new(give)))
    }

    pub fn give(mut self, answer: Result<T>) {
        if let Some(give) = self.0.take() {
            give(answer.map_err(|error| errno(&error)));
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(give) = self.0.take() {
            give(Err(Errno::IO));
        }
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

/// The errno that says what an error means to a program that reads and writes files.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind {
        Kind::InvalidArgument | Kind::InvalidAddress => Errno::INVAL,
        Kind::PermissionDenied | Kind::Confined => Errno::ACCESS,
        Kind::NotFound => Errno::NOENT,
        Kind::NotSupported => Errno::OPNOTSUPP,
        Kind::Busy => Errno::AGAIN,
        Kind::LimitExceeded => Errno::NOSPC,
        Kind::TooLarge => Errno::MSGSIZE,
        Kind::Closed => Errno::PIPE,
        Kind::Errno(errno) => errno,
        _ => Errno::IO,
    }
}

/// What waits for whoever published the files.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    /// Something was taken out, or the queue has ended.
    room: Condvar,
    /// Something was put in, or the queue has ended.
    filled: Event,
}

#[derive(Debug, Default)]
struct State {
    upcalls: VecDeque<Upcall>,
    /// Why no more will come.
    ended: Option<String>,
}

/// More do not wait.
const LONGEST: usize = 256;

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one in, waiting for room as long as `patience`. One that finds none is dropped, which answers it.
    pub fn put(&self, upcall: Upcall, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.state();
        while state.upcalls.len() >= LONGEST && state.ended.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.ended.is_none() {
            state.upcalls.push_back(upcall);
            drop(state);
            self.filled.notify(usize::MAX);
        }
    }

    /// Everything that waits; else what to wait for. An error says why nothing will come any more.
    pub fn take(&self) -> Result<Attempt<Vec<Upcall>>> {
        let filled = self.filled.listen();
        let mut state = self.state();
        if !state.upcalls.is_empty() {
            let taken = state.upcalls.drain(..).collect();
            self.room.notify_all();
            return Ok(Attempt::Done(taken));
        }
        match &state.ended {
            Some(reason) => Err(Error::new(Kind::Gone, reason.clone())),
            None => Ok(Attempt::Wait(Readiness::Notified(filled))),
        }
    }

    /// No more comes, and what waits is answered with EIO.
    pub fn end(&self, reason: &str) {
        let mut state = self.state();
        state.ended.get_or_insert_with(|| reason.to_owned());
        let unanswered = std::mem::take(&mut state.upcalls);
        drop(state);
        drop(unanswered);
        self.room.notify_all();
        self.filled.notify(usize::MAX);
    }

    pub fn ended(&self) -> bool {
        self.state().ended.is_some()
    }
}
