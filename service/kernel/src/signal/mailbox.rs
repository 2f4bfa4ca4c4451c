//! A mailbox: a process that receives signals for the caller, as an endpoint.
//!
//! Its process ([`child`]) is a child of the service's, so somebody has to reap it: the endpoint,
//! as long as there is one, then the mechanism's driver.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use event_listener::Event as Bell;
use rustix::{
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Kind, Opening, Parameters, Readiness, Result,
    error::errno_in,
    fd::{duplicate, retry},
    shape::{self, Exit, Received, Shape, readable},
    signal::{
        child::{self, Born, CATCHABLE, RECORD, Record},
        names,
        pidfd::{self, Scope},
        status,
    },
};

pub struct Mailbox {
    pid: i32,
    process: Arc<OwnedFd>,
    records: Fd,
    asked: u64,
    start: u64,
    inode: Option<u64>,
    ended: OnceLock<String>,
}

/// Create: done when the process says that it is ready.
pub fn create(parameters: &Parameters) -> Result<Opening> {
    let asked = asked(parameters)?;
    let Born { pid, process, records } = child::start(asked).map_err(|errno| {
        let error = Error::from_errno(errno, "start the process of a mailbox");
        match errno {
            Errno::AGAIN => Error::new(
                Kind::LimitExceeded,
                format!("{error}; the user has as many processes as allowed (RLIMIT_NPROC), or the unit (pids.max)"),
            ),
            _ => error,
        }
    })?;
    let start = status::stat(&status::directory(pid, None)).map_or(0, |stat| stat.start);
    let mut new = Some(Mailbox {
        pid,
        inode: pidfd::inode(&process),
        process: Arc::new(process),
        records: Fd::new(records),
        asked,
        start,
        ended: OnceLock::new(),
    });
    Ok(Opening::Pending(Box::new(move || {
        let Some(mailbox) = &new else {
            return Err(Error::new(Kind::Closed, "the mailbox was made already"));
        };
        let word = match mailbox.take(1)? {
            Attempt::Done(words) => words.first().copied(),
            Attempt::Wait(readiness) => return Ok(Attempt::Wait(readiness)),
        };
        match word {
            Some([0, 0, ..]) => {}
            word => {
                let errno = word.map_or(Errno::IO, |word| errno_in(word[1].saturating_neg()));
                return Err(Error::from_errno(errno, "prepare the process of a mailbox"));
            }
        }
        match new.take() {
            Some(mailbox) => Ok(Attempt::Done(Box::new(mailbox) as Box<dyn Endpoint>)),
            None => Err(Error::new(Kind::Closed, "the mailbox was made already")),
        }
    })))
}

/// The mask of the signals that are asked for.
fn asked(parameters: &Parameters) -> Result<u64> {
    let mut asked = 0;
    for key in ["number", "numbers"] {
        for text in parameters.texts(key).unwrap_or_default() {
            if text == "all" {
                asked |= CATCHABLE;
                continue;
            }
            let number = names::parse(text)?;
            if names::bit(number) & CATCHABLE == 0 {
                return Err(Error::invalid(format!(
                    "the key {key:?} names {}, which no process can catch (signal(7))",
                    names::name(number)
                )));
            }
            asked |= names::bit(number);
        }
    }
    match asked {
        0 => Err(Error::invalid(format!("give the signals to receive: numbers={}", names::EXPECTED))),
        asked => Ok(asked),
    }
}

impl Mailbox {
    /// Takes records from the pipe.
    fn take(&self, max: usize) -> Result<Attempt<Vec<Record>>> {
        if let Some(reason) = self.ended.get() {
            return Err(Error::new(Kind::Gone, reason.clone()));
        }
        // A whole number of records: the pipe never holds a part of one.
        let mut buffer = vec![0; max * RECORD];
        match retry(|| rustix::io::read(&self.records, &mut buffer)) {
            Ok(0) => self.end(),
            Ok(length) => Ok(Attempt::Done(buffer[..length].chunks_exact(RECORD).map(record).collect())),
            Err(Errno::AGAIN) => Ok(readable(&self.records)),
            Err(errno) => Err(Error::from_errno(errno, format!("read what mailbox {} received", self.pid))),
        }
    }

    /// The process has closed the pipe: says how it ended.
    fn end<T>(&self) -> Result<Attempt<T>> {
        let how = match reap(&self.process) {
            Reaped::NotYet => return Ok(readable(&self.process)),
            Reaped::Known(Exit { signal: 0, code, .. }) => format!("ended with code {code}"),
            Reaped::Known(Exit { signal, .. }) => format!("was ended by {}", names::name(signal)),
            Reaped::Elsewhere => "has ended".to_owned(),
        };
        let reason = self.ended.get_or_init(|| format!("the process of the mailbox, {}, {how}", self.pid));
        Err(Error::new(Kind::Gone, reason.clone()))
    }
}

fn record(bytes: &[u8]) -> Record {
    let mut record = [0; 6];
    let (words, _) = bytes.as_chunks::<4>();
    for (field, word) in record.iter_mut().zip(words) {
        *field = i32::from_ne_bytes(*word);
    }
    record
}

impl Endpoint for Mailbox {
    /// That of its process, to which signals are sent.
    fn address(&self) -> Address {
        let address =
            Address::new("signal").with("pid", self.pid.to_string()).with("start", self.start.to_string());
        match self.inode {
            Some(inode) => address.with("inode", inode.to_string()),
            None => address,
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Mailbox]
    }

    fn inspect(&self) -> Result<Dict> {
        let mut state = Dict::new();
        let directory = status::directory(self.pid, None);
        if let (None, Some(stat), Some(status)) =
            (self.ended.get(), status::stat(&directory), status::status(&directory))
        {
            state = status.describe(&stat);
            state.insert("queued-signals".into(), status.queued.0.into());
            state.insert("max-queued-signals".into(), status.queued.1.into());
        }
        state.insert("pid".into(), self.pid.cast_unsigned().into());
        state.insert("numbers".into(), names::names_in(self.asked).into());
        if let Some(reason) = self.ended.get() {
            state.insert("ended".into(), reason.as_str().into());
        }
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        duplicate(&self.process)
    }

    fn set_permissions(&self, _permissions: crate::mechanism::Permissions) -> Result<()> {
        Err(Error::not_supported("a process has no permissions of its own: kill(2) compares user ids"))
    }

    fn remove(&self) -> Result<()> {
        Err(Error::not_supported("a mailbox has no name to remove; Close ends its process"))
    }

    fn mailbox(&self) -> Option<&dyn shape::Mailbox> {
        Some(self)
    }
}

impl shape::Mailbox for Mailbox {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn numbers(&self) -> Vec<i32> {
        names::numbers_in(self.asked).collect()
    }

    fn next(&self) -> Result<Attempt<Vec<Received>>> {
        /// As many as the child writes at once.
        const BATCH: usize = 64;
        let received = |[number, code, pid, uid, value, _]: Record| Received {
            number,
            pid,
            uid: uid.cast_unsigned(),
            value,
            code,
        };
        Ok(self.take(BATCH)?.map(|records| records.into_iter().map(received).collect()))
    }
}

impl Drop for Mailbox {
    /// Killed, as a stopped process would not see that the pipe has gone.
    fn drop(&mut self) {
        if self.ended.get().is_none() {
            let _ = pidfd::send(&self.process, libc::SIGKILL, 0, Scope::Own);
            bury(self.process.clone());
        }
    }
}

enum Reaped {
    Known(Exit),
    NotYet,
    /// Not by us: the service was started with SIGCHLD ignored.
    Elsewhere,
}

fn reap(process: &OwnedFd) -> Reaped {
    use std::os::fd::AsFd;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match retry(|| waitid(WaitId::PidFd(process.as_fd()), options)) {
        Ok(None) => Reaped::NotYet,
        Ok(Some(status)) => Reaped::Known(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit { code, signal: 0, core: false },
            (None, signal) => Exit { code: -1, signal: signal.unwrap_or(0), core: status.dumped() },
        }),
        Err(_) => Reaped::Elsewhere,
    }
}

/// Processes that were killed, and are to be reaped when they have ended.
static GRAVES: Mutex<Vec<Fd>> = Mutex::new(Vec::new());
static DUG: Bell = Bell::new();

fn graves() -> MutexGuard<'static, Vec<Fd>> {
    GRAVES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those that have ended are reaped here already, where the driver is not running.
fn bury(process: Fd) {
    let mut graves = graves();
    graves.push(process);
    graves.retain(|process| matches!(reap(process), Reaped::NotYet));
    drop(graves);
    DUG.notify(usize::MAX);
}

/// Reaps what has ended; for the mechanism's driver.
pub fn drive() -> Result<Attempt<()>> {
    let dug = DUG.listen();
    let mut graves = graves();
    graves.retain(|process| matches!(reap(process), Reaped::NotYet));
    let mut any = vec![Readiness::Notified(dug)];
    any.extend(graves.iter().cloned().map(Readiness::Readable));
    Ok(Attempt::Wait(Readiness::Any(any)))
}
