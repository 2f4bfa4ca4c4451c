//! The two ends of a byte stream as a relay uses them: where bytes come from ([`Intake`]) and
//! where they go ([`Outlet`]), each with what it takes to wait for it.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::{FutureExt, future::select_all};
use ipc_kernel::{
    Attempt, Error, Fd, Kind, Result, error,
    mechanism::{End, EndKind},
    relay_io::{self, Cursor, WINDOW},
};
use rustix::{event::PollFlags, io::Errno};

use super::{Lane, buffers, task::Ended};
use crate::{
    endpoint::Endpoint,
    wait::{Watched, until},
};

/// What happens to the file descriptors that come with the bytes of a unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// None can come.
    None,
    /// The kernel refuses them (SO_PASSRIGHTS). Those that were sent before that are found when
    /// this many bytes are read with recvmsg(2).
    Refused { unvetted: usize },
    /// The kernel cannot refuse them: every byte is read with recvmsg(2).
    Checked,
    /// They go along.
    Forwarded,
}

/// A place in epoll that is kept only while it is of use. As long as it is there, the kernel calls
/// back for each write or read of the other side, at that side's expense.
#[derive(Debug)]
pub(super) struct Watch {
    interest: PollFlags,
    watched: Option<Watched>,
}

impl Watch {
    fn new(interest: PollFlags) -> Self {
        Self { interest, watched: None }
    }

    /// Attempts something that EAGAIN means of that it is not ready. None: it is not.
    pub fn attempt<T>(
        &self,
        attempt: impl FnOnce() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<Option<T>> {
        match &self.watched {
            Some(watched) => watched.attempt(attempt),
            None => match attempt() {
                Err(Errno::AGAIN) => Ok(None),
                done => done.map(Some),
            },
        }
    }

    /// Completes when another attempt is worth it. A new place tells at once what is ready now.
    pub async fn ready(&mut self, fd: &Fd) -> Result<()> {
        let watched = match self.watched.take() {
            Some(watched) => watched,
            None => Watched::new(fd, self.interest)?,
        };
        self.watched.insert(watched).ready().await
    }

    fn is_kept(&self) -> bool {
        self.watched.is_some()
    }

    pub fn release(&mut self) {
        self.watched = None;
    }
}

/// Where the bytes come from.
#[derive(Debug)]
pub(super) struct Intake {
    pub cursor: Cursor,
    pub watch: Watch,
    rights: Rights,
    /// What SO_PASSRIGHTS was, where the kernel has it.
    accepted_before: Option<bool>,
    lost: AtomicBool,
    address: String,
}

impl Intake {
    /// Opens the source's end, and waits for it where there is none yet.
    pub async fn open(source: &Endpoint, forward_fds: bool, lane: &Lane) -> Result<Self> {
        let end = opened(source_end, source, lane).await?;
        let mut accepted_before = None;
        let mut rights = Rights::None;
        if end.kind == EndKind::UnixStream {
            accepted_before = relay_io::accept_rights(&end.fd, forward_fds)?;
            rights = match accepted_before {
                _ if forward_fds => Rights::Forwarded,
                // In this order: what is not queued by now comes without descriptors.
                Some(_) => Rights::Refused { unvetted: relay_io::queued(&end.fd) },
                None => Rights::Checked,
            };
        }
        Ok(Self {
            cursor: Cursor::new(end),
            watch: Watch::new(PollFlags::IN),
            rights,
            accepted_before,
            lost: AtomicBool::new(false),
            address: source.address.clone(),
        })
    }

    /// Waits until there is something to read, after an attempt that found nothing.
    pub async fn ready(&mut self) -> Result<()> {
        self.watch.ready(&self.cursor.fd).await
    }

    /// Whether file descriptors may come, so that the kernel must not move the bytes by itself.
    pub fn must_be_read(&self) -> bool {
        match self.rights {
            Rights::None => false,
            Rights::Refused { unvetted } => unvetted > 0,
            Rights::Checked | Rights::Forwarded => true,
        }
    }

    pub fn forwards(&self) -> bool {
        self.rights == Rights::Forwarded
    }

    /// Reads what is there. None: nothing at this moment; 0: the end. Where descriptors came that
    /// may not go along, it fails and takes nothing.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        if !self.must_be_read() {
            let cursor = &mut self.cursor;
            return self.watch.attempt(|| cursor.read(buffer)).map_err(|errno| self.failed(errno));
        }
        let mut window = buffers::take(WINDOW);
        let peeked = self.peek(&mut window);
        buffers::put(window);
        let Some((length, fds)) = peeked? else {
            return Ok(None);
        };
        if !fds.is_empty() {
            return Err(Error::not_supported(format!(
                "{} file descriptors came with the next bytes from {}, and stay there with them: relay it with \
                 fds=true to another unix stream socket, or receive them",
                fds.len(),
                self.address
            )));
        }
        let length = length.min(buffer.len());
        self.take(&mut buffer[..length])?;
        if let Rights::Refused { unvetted } = &mut self.rights {
            // At the end of the stream there is nothing left to look at.
            *unvetted = if length == 0 { 0 } else { unvetted.saturating_sub(length) };
        }
        Ok(Some(length))
    }

    /// Looks at what is there, into a buffer of at least [`WINDOW`]. What is shown either has no
    /// descriptors, or begins with the message that brought them.
    pub fn peek(&mut self, buffer: &mut [u8]) -> Result<Option<(usize, Vec<OwnedFd>)>> {
        let fd = &self.cursor.fd;
        let peeked = self.watch.attempt(|| {
            let (length, fds) = relay_io::peek_rights(fd, buffer)?;
            if fds.is_empty() {
                return Ok((length, fds));
            }
            Ok(match relay_io::bytes_before_rights(fd, buffer, length)? {
                0 => (length, fds),
                before => (before, Vec::new()),
            })
        });
        peeked.map_err(|errno| self.failed(errno))
    }

    /// Takes bytes that were peeked at.
    pub fn take(&self, buffer: &mut [u8]) -> Result<()> {
        relay_io::take_peeked(&self.cursor.fd, buffer).map_err(|errno| self.failed(errno))
    }

    pub fn failed(&self, errno: Errno) -> Error {
        self.lost.fetch_or(ends_connection(errno), Ordering::Relaxed);
        Error::from_errno(errno, format_args!("read from {}", self.address))
    }

    /// Whether an error was the end of the connection.
    pub fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if let Some(before) = self.accepted_before {
            // The endpoint is as it was; on a socket that is gone it does not matter.
            let _ = relay_io::accept_rights(&self.cursor.fd, before);
        }
    }
}

/// Where the bytes go.
#[derive(Debug)]
pub(super) struct Outlet {
    pub cursor: Cursor,
    watch: Watch,
    gone: Option<Watched>,
    lost: AtomicBool,
    pub address: String,
}

impl Outlet {
    /// Opens the sink's end, and waits for it where there is none yet.
    pub async fn open(sink: &Endpoint, lane: &Lane) -> Result<Self> {
        let end = opened(sink_end, sink, lane).await?;
        let comes_and_goes = sink.kernel.stream().is_some_and(|stream| stream.continues());
        let gone = match end.kind {
            EndKind::File { .. } => None,
            // A FIFO's next reader may be on its way.
            EndKind::Pipe if comes_and_goes => None,
            _ => Some(Watched::new(&end.fd, PollFlags::ERR)?),
        };
        Ok(Self {
            cursor: Cursor::new(end),
            watch: Watch::new(PollFlags::OUT),
            gone,
            lost: AtomicBool::new(false),
            address: sink.address.clone(),
        })
    }

    /// Attempts something that EAGAIN means of that the sink is full. None: it is.
    pub fn attempt<T>(
        &mut self,
        attempt: impl FnOnce(&mut Cursor) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<Option<T>> {
        let cursor = &mut self.cursor;
        self.watch.attempt(|| attempt(cursor))
    }

    /// Writes what fits; file descriptors go with the first byte. None: nothing fits.
    pub fn write(&mut self, data: &[u8], fds: &[OwnedFd]) -> Result<Option<usize>> {
        let written = self.attempt(|cursor| {
            if fds.is_empty() { cursor.write(data) } else { relay_io::send_rights(&cursor.fd, data, fds) }
        });
        written.map_err(|errno| self.failed(errno))
    }

    /// Waits until the sink takes something, after an attempt that failed or none.
    pub async fn ready(&mut self) -> Result<()> {
        let watched = self.watch.is_kept();
        if watched
            && self.attempt(|cursor| match relay_io::poll_writable(cursor)? {
                true => Ok(()),
                false => Err(Errno::AGAIN),
            }) == Ok(Some(()))
        {
            return Ok(());
        }
        self.watch.ready(&self.cursor.fd).await
    }

    /// The source is what is waited for: a socket's events are of no interest.
    pub fn rest(&mut self) {
        if self.cursor.kind != EndKind::Pipe {
            self.watch.release();
        }
    }

    /// Completes when nobody is left on the other side.
    pub async fn gone(&mut self) -> Result<Ended> {
        let Some(gone) = &mut self.gone else {
            return std::future::pending().await;
        };
        loop {
            gone.ready().await?;
            if relay_io::gone(&self.cursor) {
                return Ok(Ended::SinkGone(self.closed(None)));
            }
        }
    }

    pub fn failed(&self, errno: Errno) -> Error {
        self.lost.fetch_or(ends_connection(errno), Ordering::Relaxed);
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::SHUTDOWN | Errno::NOTCONN => self.closed(Some(errno)),
            errno => Error::from_errno(errno, format_args!("write to {}", self.address)),
        }
    }

    /// Whether an error was the end of the connection.
    pub fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    pub fn closed(&self, errno: Option<Errno>) -> Error {
        let name = errno.map(|errno| format!(" ({})", error::name(errno))).unwrap_or_default();
        Error::new(
            Kind::Closed,
            format!("the sink was closed: nobody reads from {} any more{name}", self.address),
        )
    }
}

/// Completes when one of these sinks, of which there is at least one, has nobody left on the other side.
pub(super) async fn first_gone<'a>(mut outlets: impl Iterator<Item = &'a mut Outlet>) -> Result<Ended> {
    match (outlets.next(), outlets.next()) {
        (Some(only), None) => only.gone().await,
        (one, other) => {
            let several = one.into_iter().chain(other).chain(outlets);
            select_all(several.map(|outlet| outlet.gone().boxed())).await.0
        }
    }
}

/// What read(2) and write(2) say of a connection that is over (tcp(7), unix(7)).
fn ends_connection(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::PIPE
            | Errno::CONNRESET
            | Errno::CONNABORTED
            | Errno::CONNREFUSED
            | Errno::SHUTDOWN
            | Errno::NOTCONN
            | Errno::TIMEDOUT
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::NETRESET
    )
}

/// The end that a relay reads from.
pub(super) fn source_end(source: &Endpoint) -> Result<Attempt<End>> {
    match source.kernel.stream() {
        Some(stream) => stream.source(),
        None => source.memory()?.source().map(Attempt::Done),
    }
}

/// The end that a relay writes into.
pub(super) fn sink_end(sink: &Endpoint) -> Result<Attempt<End>> {
    match sink.kernel.stream() {
        Some(stream) => stream.sink(),
        None => sink.memory()?.sink().map(Attempt::Done),
    }
}

async fn opened(
    open: fn(&Endpoint) -> Result<Attempt<End>>,
    endpoint: &Endpoint,
    lane: &Lane,
) -> Result<End> {
    loop {
        match open(endpoint)? {
            Attempt::Done(end) => return Ok(end),
            Attempt::Wait(readiness) => {
                let _waiting = lane.wait();
                until(readiness).await?;
            }
        }
    }
}
