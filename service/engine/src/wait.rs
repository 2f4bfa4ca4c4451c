//! Waiting: turns a [`Readiness`] of the kernel layer into a future, and an operation that may
//! have to wait into a call that ends.
//!
//! Every wait ends in one of five ways: it completes, its time is up, its endpoint is closed, its
//! caller has left, or the service stops. Dropping the future gives the wait up; nothing has been
//! taken then, because an attempt either completes or takes nothing.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use ipc_kernel::{Attempt, Error, Fd, Kind, Readiness, Result, error, fd::poll_now};
use rustix::{event::PollFlags, io::Errno};
use tokio::{io::unix::AsyncFd, time::Instant};

use crate::{flag::Flag, words};

/// How long a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Not at all: an operation that would have to wait is `Busy`.
    None,
    Until(Instant, Duration),
    /// As long as it takes: for relays and other things that somebody can stop.
    Forever,
}

impl Patience {
    /// From the `timeout_ms` of a method: 0 does not wait, 4294967295 is the default.
    pub fn from_ms(timeout_ms: u32, default_ms: u32, max_ms: u32) -> Result<Self> {
        let ms = match timeout_ms {
            0 => return Ok(Self::None),
            u32::MAX => default_ms,
            ms if ms > max_ms => {
                return Err(Error::invalid(format!(
                    "timeout_ms is {ms}; it must be 0 (do not wait), at most {max_ms} (max-wait-ms), or 4294967295 \
                     (the default, {default_ms})"
                )));
            }
            ms => ms,
        };
        let duration = Duration::from_millis(ms.into());
        Ok(Self::Until(Instant::now() + duration, duration))
    }
}

/// What may end a wait early.
#[derive(Debug, Clone, Copy)]
pub struct Cancel<'a> {
    /// The endpoint's.
    pub closed: &'a Flag,
    /// The caller's.
    pub gone: &'a Flag,
    /// The service's.
    pub stopping: &'a Flag,
}

impl Cancel<'_> {
    /// The reason why a wait may not go on, as soon as there is one.
    async fn reason(&self) -> Error {
        tokio::select! {
            () = self.closed.wait() => Error::new(Kind::Cancelled, "the endpoint was closed during the wait"),
            () = self.gone.wait() => Error::new(Kind::Cancelled, "the caller has left the bus"),
            () = self.stopping.wait() => Error::new(Kind::Cancelled, "the service is stopping"),
        }
    }
}

/// Attempts an operation until it completes or the wait ends. `what` reads "read from fifo:path=/x".
pub async fn complete<T>(
    patience: Patience,
    cancel: Cancel<'_>,
    what: impl Fn() -> String,
    mut attempt: impl FnMut() -> Result<Attempt<T>>,
) -> Result<T> {
    let readiness = match attempt()? {
        Attempt::Done(value) => return Ok(value),
        Attempt::Wait(readiness) => readiness,
    };
    if patience == Patience::None {
        return Err(Error::new(
            Kind::Busy,
            format!("cannot {} without waiting; give a timeout_ms other than 0", what()),
        ));
    }
    let wait = async {
        let mut readiness = readiness;
        loop {
            until(readiness).await?;
            match attempt()? {
                Attempt::Done(value) => return Ok(value),
                Attempt::Wait(next) => readiness = next,
            }
            // A source that is always ready but never completes must not starve the others.
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        reason = cancel.reason() => Err(reason),
        done = wait => done,
        waited = expiry(patience) => Err(Error::new(
            Kind::Timeout,
            format!("could not {} within {} ms", what(), waited.as_millis()),
        )),
    }
}

async fn expiry(patience: Patience) -> Duration {
    match patience {
        Patience::Until(deadline, duration) => {
            tokio::time::sleep_until(deadline).await;
            duration
        }
        Patience::None | Patience::Forever => std::future::pending().await,
    }
}

/// Completes when another attempt is worth it.
pub fn until(readiness: Readiness) -> BoxFuture<'static, Result<()>> {
    match readiness {
        Readiness::Readable(fd) => ready(fd, PollFlags::IN).boxed(),
        Readiness::Writable(fd) => ready(fd, PollFlags::OUT).boxed(),
        Readiness::Word(word) => words::changed(word).boxed(),
        Readiness::Notified(listener) => listener.map(Ok).boxed(),
        Readiness::After(duration) => tokio::time::sleep(duration).map(Ok).boxed(),
        Readiness::Any(any) => {
            let waits: Vec<_> = any.into_iter().map(until).collect();
            if waits.is_empty() {
                return std::future::pending().boxed();
            }
            futures_util::future::select_all(waits).map(|(done, _, _)| done).boxed()
        }
    }
}

/// Waits for an fd to become readable or writable (or hung up).
pub async fn ready(fd: Fd, interest: PollFlags) -> Result<()> {
    let Some(registered) = register(&fd)? else {
        // Files are always ready, and epoll refuses them.
        return Ok(());
    };
    loop {
        let guard =
            if interest == PollFlags::IN { registered.readable().await } else { registered.writable().await };
        let mut guard =
            guard.map_err(|e| Error::from_errno(error::errno_of(&e), "wait for a file descriptor"))?;
        // The cached readiness may be stale, as attempts do not clear it: ask the kernel.
        if !poll_now(&fd, interest)?.is_empty() {
            return Ok(());
        }
        guard.clear_ready();
    }
}

/// The fd's place in epoll, shared by everyone who waits for the same fd.
fn register(fd: &Fd) -> Result<Option<Arc<AsyncFd<Fd>>>> {
    static REGISTERED: Mutex<Option<HashMap<RawFd, Weak<AsyncFd<Fd>>>>> = Mutex::new(None);
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let registered = registered.get_or_insert_default();
    if let Some(known) = registered.get(&fd.as_raw_fd()).and_then(Weak::upgrade) {
        return Ok(Some(known));
    }
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an Arc<OwnedFd> names the same open fd for its whole life"
    )]
    let new = match AsyncFd::new(fd.clone()) {
        Ok(new) => Arc::new(new),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => return Ok(None),
        Err(error) => return Err(Error::from_errno(error::errno_of(&error), "wait for a file descriptor")),
    };
    if registered.len() > 2 * registered.values().filter(|weak| weak.strong_count() > 0).count() + 16 {
        registered.retain(|_, weak| weak.strong_count() > 0);
    }
    registered.insert(fd.as_raw_fd(), Arc::downgrade(&new));
    Ok(Some(new))
}
