//! What a relay does with the ends of streams: splice(2) where the kernel moves the bytes, read
//! and write where it does not, and the file descriptors that come with the bytes of a unix
//! socket (unix(7), SCM_RIGHTS).
//!
//! Nothing here waits; EAGAIN is passed on. Reads and writes of sockets say MSG_DONTWAIT, but
//! splice(2) has no such flag for a socket: there the flag of the open file description counts,
//! which a caller who holds a duplicate may clear. So it is looked at before each splice.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::OFlags,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
    pipe::{PipeFlags, SpliceFlags},
};

use crate::{
    Error, Fd, Kind, Result,
    error::Attempted,
    fd::retry,
    mechanism::{End, EndKind},
};

/// The most bytes that one splice moves, and the size to which pipes are grown (fs.pipe-max-size
/// of a stock kernel).
pub const CHUNK: usize = 1 << 20;

/// The most file descriptors that come with one message (SCM_MAX_FD).
pub const MAX_RIGHTS: usize = 253;

/// An end of a stream, and how far a relay has come in it.
#[derive(Debug)]
pub struct Cursor {
    pub fd: Fd,
    pub kind: EndKind,
    /// Where the next byte of a file is, and where it ends.
    at: u64,
    to: u64,
}

impl Cursor {
    pub fn new(end: End) -> Self {
        let (at, to) = match end.kind {
            EndKind::File { offset, length } => (offset, offset.saturating_add(length)),
            _ => (0, u64::MAX),
        };
        Self { fd: end.fd, kind: end.kind, at, to }
    }

    fn is_file(&self) -> bool {
        matches!(self.kind, EndKind::File { .. })
    }

    fn is_socket(&self) -> bool {
        matches!(self.kind, EndKind::UnixStream | EndKind::Tcp)
    }

    /// How many bytes can still be moved, as far as that is known: those of a file.
    pub fn room(&self) -> usize {
        if self.is_file() { usize::try_from(self.to - self.at).unwrap_or(usize::MAX) } else { usize::MAX }
    }

    fn moved(&mut self, length: usize) {
        if self.is_file() {
            self.at += length as u64;
        }
    }

    /// A pipe that has no writer *yet* reads as empty too, which is no end: then it is EAGAIN.
    fn end_of_stream(&self) -> rustix::io::Result<usize> {
        if self.kind != EndKind::Pipe || revents(&self.fd, PollFlags::IN)?.contains(PollFlags::HUP) {
            return Ok(0);
        }
        Err(Errno::AGAIN)
    }

    /// Reads; 0 is the end of the stream or file.
    pub fn read(&mut self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        let max = buffer.len().min(self.room());
        let buffer = &mut buffer[..max];
        let length = retry(|| match self.kind {
            EndKind::Pipe => rustix::io::read(&self.fd, &mut *buffer),
            EndKind::File { .. } => rustix::io::pread(&self.fd, &mut *buffer, self.at),
            EndKind::UnixStream | EndKind::Tcp => {
                rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT).map(|(length, _)| length)
            }
        })?;
        if length == 0 {
            return self.end_of_stream();
        }
        self.moved(length);
        Ok(length)
    }

    /// Writes what fits.
    pub fn write(&mut self, data: &[u8]) -> rustix::io::Result<usize> {
        let data = &data[..data.len().min(self.room())];
        let length = retry(|| match self.kind {
            EndKind::Pipe => rustix::io::write(&self.fd, data),
            EndKind::File { .. } => rustix::io::pwrite(&self.fd, data, self.at),
            EndKind::UnixStream | EndKind::Tcp => {
                rustix::net::send(&self.fd, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
        })?;
        self.moved(length);
        Ok(length)
    }

    fn keep_nonblocking(&self) -> rustix::io::Result<()> {
        if self.is_socket() {
            let flags = rustix::fs::fcntl_getfl(&self.fd)?;
            if !flags.contains(OFlags::NONBLOCK) {
                rustix::fs::fcntl_setfl(&self.fd, flags | OFlags::NONBLOCK)?;
            }
        }
        Ok(())
    }

    /// Grows a pipe to [`CHUNK`]; where the user has no more pipe memory it stays as it is.
    pub fn grow(&self) {
        if self.kind == EndKind::Pipe
            && rustix::pipe::fcntl_getpipe_size(&self.fd).is_ok_and(|size| size < CHUNK)
        {
            let _ = rustix::pipe::fcntl_setpipe_size(&self.fd, CHUNK);
        }
    }
}

/// Moves up to `max` bytes inside the kernel; one of the ends must be a pipe. 0 is the end of
/// the source, as for [`Cursor::read`].
pub fn splice(from: &mut Cursor, to: &mut Cursor, max: usize) -> rustix::io::Result<usize> {
    let max = max.min(CHUNK).min(from.room()).min(to.room());
    if max == 0 {
        return Ok(0);
    }
    from.keep_nonblocking()?;
    to.keep_nonblocking()?;
    let moved = retry(|| {
        let (mut from_at, mut to_at) = (from.at, to.at);
        rustix::pipe::splice(
            &from.fd,
            from.is_file().then_some(&mut from_at),
            &to.fd,
            to.is_file().then_some(&mut to_at),
            max,
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        )
    })?;
    if moved == 0 {
        return from.end_of_stream();
    }
    from.moved(moved);
    to.moved(moved);
    Ok(moved)
}

/// A pipe of the relay's own, as its two ends: reading, writing.
pub fn pipe() -> Result<(Cursor, Cursor)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .attempted(|| "create a pipe for the relay")?;
    let end = |fd: OwnedFd| Cursor::new(End { fd: fd.into(), kind: EndKind::Pipe });
    Ok((end(reader), end(writer)))
}

/// Whether the source can be read and the sink written at this moment (or have hung up).
pub fn poll_both(from: &Cursor, to: &Cursor) -> rustix::io::Result<(bool, bool)> {
    let mut fds = [PollFd::new(&from.fd, PollFlags::IN), PollFd::new(&to.fd, PollFlags::OUT)];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    retry(|| rustix::event::poll(&mut fds, Some(&zero)))?;
    Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty()))
}

fn revents(fd: &Fd, interest: PollFlags) -> rustix::io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd, interest)];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    retry(|| rustix::event::poll(&mut fds, Some(&zero)))?;
    Ok(fds[0].revents())
}

/// Whether a sink takes something at this moment (or has hung up).
pub fn poll_writable(to: &Cursor) -> rustix::io::Result<bool> {
    Ok(!revents(&to.fd, PollFlags::OUT)?.is_empty())
}

/// Whether nobody is left on the other side of a sink: a pipe without readers, a socket whose
/// peer has closed.
pub fn gone(to: &Cursor) -> bool {
    revents(&to.fd, PollFlags::empty()).is_ok_and(|found| found.intersects(PollFlags::ERR | PollFlags::HUP))
}

/// Reads from a unix socket with the file descriptors that came with the bytes. The kernel does
/// not merge bytes across descriptors.
pub fn receive_rights(fd: &Fd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    // Room for credentials, a pidfd and a label besides, which a socket may be set to pass.
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_RIGHTS)) + 512];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received =
        retry(|| rustix::net::recvmsg(fd, &mut [IoSliceMut::new(&mut *buffer)], &mut control, flags))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // The space is enough for all; only a full table of open files cuts them off.
        return Err(Errno::MFILE);
    }
    Ok((received.bytes, fds))
}

/// Writes into a unix socket; the file descriptors go with the first byte.
pub fn send_rights(fd: &Fd, data: &[u8], fds: &[OwnedFd]) -> rustix::io::Result<usize> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_RIGHTS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::TOOMANYREFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    retry(|| rustix::net::sendmsg(fd, &[IoSlice::new(data)], &mut control, flags))
}

/// Lets peers send file descriptors into this unix socket, or refuses them: then their sendmsg(2)
/// fails with EPERM. What is queued stays. False where the kernel has no SO_PASSRIGHTS (before
/// Linux 6.16).
pub fn accept_rights(fd: &Fd, accept: bool) -> Result<bool> {
    /// asm-generic/socket.h; not in libc yet.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let value = libc::c_int::from(accept);
    // SAFETY: the fd is open as long as `fd` is; the pointer and the length are those of `value`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(true);
    }
    match crate::error::errno_of(&std::io::Error::last_os_error()) {
        Errno::NOPROTOOPT | Errno::OPNOTSUPP => Ok(false),
        errno => Err(Error::new(
            Kind::Errno(errno),
            format!("cannot set SO_PASSRIGHTS: {}", crate::error::describe(errno)),
        )),
    }
}

/// Bytes that wait in a socket (SIOCINQ).
pub fn queued(fd: &Fd) -> usize {
    crate::pipe_io::available(fd)
}
