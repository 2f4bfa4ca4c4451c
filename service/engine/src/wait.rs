//! Waiting: turns a [`Readiness`] of the kernel layer into a future, and an operation that may
//! have to wait into a call that ends.
//!
//! Every wait ends in one of five ways: it completes, its time is up, its endpoint is closed, its
//! caller has left, or the service stops. Dropping the future gives the wait up; nothing has been
//! taken then, because an attempt either completes or takes nothing. The exception are blocking
//! calls, which take or send by themselves: whoever gives up a wait with one in it waits for its end
//! ([`Calls::settle`]), and if it did something, one more attempt finds that.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use ipc_kernel::{
    Attempt, Error, Fd, Kind, Readiness, Result,
    blocked::{self, Blocked, Ended, Running},
    error,
    fd::{self, poll_now},
};
use rustix::{event::PollFlags, io::Errno};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

use crate::{client::has_left, flag::Flag, words};

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
            () = self.gone.wait() => has_left(),
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
    let calls = Calls::default();
    let wait = async {
        let mut readiness = readiness;
        loop {
            until_noting(readiness, &calls).await?;
            match attempt()? {
                Attempt::Done(value) => return Ok(value),
                Attempt::Wait(next) => readiness = next,
            }
            // A source that is always ready but never completes must not starve the others.
            tokio::task::yield_now().await;
        }
    };
    let given_up = tokio::select! {
        biased;
        reason = cancel.reason() => reason,
        done = wait => return done,
        waited = expiry(patience) => {
            Error::new(Kind::Timeout, format!("could not {} within {} ms", what(), waited.as_millis()))
        }
    };
    if calls.settle().await
        && let Ok(Attempt::Done(value)) = attempt()
    {
        return Ok(value);
    }
    Err(given_up)
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

/// Completes when another attempt is worth it. For whoever loses nothing by giving up, whatever a
/// blocking call in it does.
pub fn until(readiness: Readiness) -> BoxFuture<'static, Result<()>> {
    until_noting(readiness, &Calls::default())
}

/// As [`until`], noting the blocking calls.
fn until_noting(readiness: Readiness, calls: &Calls) -> BoxFuture<'static, Result<()>> {
    match readiness {
        Readiness::Readable(fd) => ready(fd, PollFlags::IN).boxed(),
        Readiness::Writable(fd) => ready(fd, PollFlags::OUT).boxed(),
        Readiness::HungUp(fd) => ready(fd, PollFlags::ERR).boxed(),
        Readiness::Word(word) => words::changed(word).boxed(),
        Readiness::Blocked(call) => blocked(call, calls.clone()).boxed(),
        Readiness::Notified(listener) => listener.map(Ok).boxed(),
        Readiness::After(duration) => tokio::time::sleep(duration).map(Ok).boxed(),
        Readiness::Any(any) => {
            let waits: Vec<_> = any.into_iter().map(|one| until_noting(one, calls)).collect();
            if waits.is_empty() {
                return std::future::pending().boxed();
            }
            futures_util::future::select_all(waits).map(|(done, _, _)| done).boxed()
        }
    }
}

/// The blocking calls that waits have made and that have not been seen to end.
#[derive(Debug, Default, Clone)]
pub struct Calls(Arc<Mutex<Vec<UnderWay>>>);

/// A call, and the flag that is set when it has ended.
type UnderWay = (Running, Arc<Flag>);

impl Calls {
    fn under_way(&self) -> MutexGuard<'_, Vec<UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of all calls, which were interrupted; says whether one of them came to its
    /// own end before that.
    pub async fn settle(&self) -> bool {
        let mut done = false;
        let under_way = std::mem::take(&mut *self.under_way());
        for (running, ended) in under_way {
            ended.wait().await;
            done |= running.ended() == Some(Ended::Done);
        }
        done
    }
}

/// Makes a blocking call on a thread; dropped, the call is interrupted.
async fn blocked(call: Blocked, calls: Calls) -> Result<()> {
    let ended = Arc::new(Flag::new());
    let end = ended.clone();
    let running = blocked::start(call, move || _ = end.set())?;
    let interrupting = Interrupting(running.clone());
    calls.under_way().push((running, ended.clone()));
    ended.wait().await;
    interrupting.0.claim();
    drop(interrupting);
    calls.under_way().retain(|(_, other)| !Arc::ptr_eq(other, &ended));
    Ok(())
}

struct Interrupting(Running);

impl Drop for Interrupting {
    fn drop(&mut self) {
        if self.0.interrupt() {
            return;
        }
        // The signal may have come a moment before the call began.
        let (running, Ok(runtime)) = (self.0.clone(), tokio::runtime::Handle::try_current()) else { return };
        runtime.spawn(async move {
            let mut pause = Duration::from_millis(1);
            loop {
                tokio::time::sleep(pause).await;
                if running.interrupt() {
                    return;
                }
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        });
    }
}

/// Waits for an fd to become readable or writable (or hung up).
pub async fn ready(fd: Fd, interest: PollFlags) -> Result<()> {
    let mut watched = Watched::new(&fd, interest)?;
    // The cached readiness may be stale, as attempts do not clear it: ask the kernel.
    let polled = || match poll_now(&fd, interest) {
        Ok(found) if found.is_empty() => Err(Errno::AGAIN),
        Ok(_) => Ok(Ok(())),
        Err(error) => Ok(Err(error)),
    };
    loop {
        watched.ready().await?;
        match watched.attempt(polled) {
            Ok(None) => {}
            Ok(Some(done)) => return done,
            Err(errno) => return Err(Error::from_errno(errno, "wait for a file descriptor")),
        }
    }
}

/// An fd's place in epoll for one kind of readiness, shared by everyone who waits for the same.
///
/// What is reported is the *edge*: [`ready`](Self::ready) completes when something has happened
/// since the last attempt that found nothing. So a loop of attempts needs no poll(2) in between.
#[derive(Debug)]
pub struct Watched {
    fd: Fd,
    interest: Interest,
    /// None: a file, which is always ready, and which epoll refuses.
    place: Option<Arc<AsyncFd<Fd>>>,
    /// The last event was a hang-up, and no attempt has succeeded since.
    hung_up: AtomicBool,
}

impl Watched {
    /// `interest` is IN, OUT, or ERR: whether the other side has gone.
    pub fn new(fd: &Fd, interest: PollFlags) -> Result<Self> {
        let interest = match interest {
            PollFlags::IN => Interest::READABLE,
            PollFlags::ERR => Interest::ERROR.add(Interest::PRIORITY),
            _ => Interest::WRITABLE,
        };
        Ok(Self { fd: fd.clone(), interest, place: register(fd, interest)?, hung_up: AtomicBool::new(false) })
    }

    fn is_for(&self, interest: PollFlags) -> bool {
        self.interest.is_readable() == (interest == PollFlags::IN)
    }

    /// Attempts what the readiness is for, unless it is known to be in vain. EAGAIN makes it so
    /// until the next event, and is None.
    pub fn attempt<T>(
        &self,
        attempt: impl FnOnce() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<Option<T>> {
        // Of a hang-up nothing is cached: tokio's try_io knows no interest that is made of two.
        let Some(place) = self.place.as_ref().filter(|_| !self.interest.is_error()) else {
            return match attempt() {
                Err(Errno::AGAIN) => Ok(None),
                done => done.map(Some),
            };
        };
        match place.try_io(self.interest, |_| Ok(attempt()?)) {
            Ok(value) => {
                self.hung_up.store(false, Ordering::Relaxed);
                Ok(Some(value))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error::errno_of(&error)),
        }
    }

    /// Completes when another attempt is worth it.
    pub async fn ready(&mut self) -> Result<()> {
        loop {
            let Some(place) = &self.place else {
                return Ok(());
            };
            let ready = match place.ready(self.interest).await {
                Ok(mut guard) => {
                    let ready = guard.ready();
                    // No attempt uses up the news that the other side has gone.
                    if self.interest.is_error() {
                        guard.clear_ready()
                    } else {
                        guard.retain_ready()
                    }
                    ready
                }
                Err(error) => {
                    return Err(Error::from_errno(error::errno_of(&error), "wait for a file descriptor"));
                }
            };
            let hung_up = ready.is_read_closed() || ready.is_write_closed();
            if !hung_up || !self.hung_up.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            // A hang-up is never cleared, but a FIFO's next writer undoes it: begin anew.
            self.place = place_for(Fd::from(fd::duplicate(&self.fd)?), self.interest)?;
            self.hung_up.store(false, Ordering::Relaxed);
        }
    }
}

/// Keeps the places in epoll of those who wait again and again for the same few fds, and what
/// blocking calls they have made.
#[derive(Debug, Default)]
pub struct Hold {
    watched: Vec<Watched>,
    calls: Calls,
}

/// More fds than this are not the same few.
const HELD: usize = 4;

impl Hold {
    /// Waits for the end of the blocking calls of waits that were given up; says whether one of them has done
    /// something.
    pub async fn settle(&self) -> bool {
        self.calls.settle().await
    }

    /// As [`until`], for what one and the same caller waits for, after an attempt that failed.
    pub async fn until(&mut self, readiness: Readiness) -> Result<()> {
        let (fd, interest) = match readiness {
            Readiness::Readable(fd) => (fd, PollFlags::IN),
            Readiness::Writable(fd) => (fd, PollFlags::OUT),
            other => return until_noting(other, &self.calls).await,
        };
        let same = |held: &Watched| Arc::ptr_eq(&held.fd, &fd) && held.is_for(interest);
        let index = match self.watched.iter().position(same) {
            Some(index) => index,
            None => {
                if self.watched.len() >= HELD {
                    self.watched.clear();
                }
                self.watched.push(Watched::new(&fd, interest)?);
                self.watched.len() - 1
            }
        };
        // The index is that of the position, or of the last one pushed.
        let watched = &mut self.watched[index];
        match watched.attempt(|| match poll_now(&fd, interest) {
            Ok(found) if found.is_empty() => Err(Errno::AGAIN),
            _ => Ok(()),
        }) {
            Ok(None) => watched.ready().await,
            // Whatever is wrong with it, the next attempt says so.
            _ => Ok(()),
        }
    }
}

/// The places that there are, by fd and interest.
#[derive(Default)]
struct Places {
    registered: HashMap<(RawFd, bool, bool), Weak<AsyncFd<Fd>>>,
    /// With so many, those that are no more are forgotten: with twice as many as there were after the last time, so
    /// that one of many costs no more than one of few.
    forget_at: usize,
}

/// Finds or makes the place of an fd.
fn register(fd: &Fd, interest: Interest) -> Result<Option<Arc<AsyncFd<Fd>>>> {
    static REGISTERED: Mutex<Option<Places>> = Mutex::new(None);
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let Places { registered, forget_at } = registered.get_or_insert_default();
    let key = (fd.as_raw_fd(), interest.is_readable(), interest.is_writable());
    if let Some(known) = registered.get(&key).and_then(Weak::upgrade) {
        return Ok(Some(known));
    }
    let Some(new) = place_for(fd.clone(), interest)? else {
        return Ok(None);
    };
    if registered.len() >= *forget_at {
        registered.retain(|_, weak| weak.strong_count() > 0);
        *forget_at = 2 * registered.len() + 16;
    }
    // A place made of a duplicate is found under the number that it was asked for by; it must not
    // outlive that fd, whose number may be used again: only places of the fd itself are shared.
    if Arc::ptr_eq(new.get_ref(), fd) {
        registered.insert(key, Arc::downgrade(&new));
    }
    Ok(Some(new))
}

fn place_for(fd: Fd, interest: Interest) -> Result<Option<Arc<AsyncFd<Fd>>>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an Arc<OwnedFd> names the same open fd for its whole life"
    )]
    let new = |fd| AsyncFd::with_interest(fd, interest);
    let made = match new(fd.clone()) {
        // epoll takes an fd only once: it is there with another interest.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {
            new(Fd::from(fd::duplicate(&fd)?))
        }
        made => made,
    };
    match made {
        Ok(place) => Ok(Some(Arc::new(place))),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => Ok(None),
        Err(error) => Err(Error::from_errno(error::errno_of(&error), "wait for a file descriptor")),
    }
}
