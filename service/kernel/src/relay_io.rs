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
    Error, Fd, Result,
    error::Attempted,
    fd::retry,
    mechanism::{End, EndKind},
    socket_options,
    unix::endpoint::SO_PASSRIGHTS,
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

/// Puts what is in a pipe into another one as well, up to `max` bytes from its beginning: tee(2). It stays in the first.
pub fn tee(from: &Cursor, to: &Cursor, max: usize) -> rustix::io::Result<usize> {
    retry(|| rustix::pipe::tee(&from.fd, &to.fd, max, SpliceFlags::NONBLOCK))
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

/// Enough to look at a whole message of a unix stream socket: the kernel cuts what is written
/// into messages of at most 64 KiB.
pub const WINDOW: usize = 256 * 1024;

/// Looks at what waits in a unix socket, and takes nothing: how many bytes of it are in `buffer`,
/// and the next file descriptors. The kernel shows no bytes behind the message that brought them,
/// but it shows them even if that message lies behind what is in `buffer`.
pub fn peek_rights(fd: &Fd, buffer: &mut [u8]) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
    // Room for credentials, a pidfd and a label besides, which a socket may be set to pass.
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_RIGHTS)) + 512];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | RecvFlags::PEEK;
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

/// Of `length` bytes that [`peek_rights`] has shown with descriptors, into a buffer of at least
/// [`WINDOW`]: how many are in front of the message that brought them. The descriptors must not
/// come earlier than they were sent: a receiver that expects none yet would lose them.
///
/// The kernel does not tell where a message begins. But it copies message by message, and counts
/// one only when all of it could be copied (unix_stream_read_generic): so it is given room for all
/// bytes but the last, and the message that does not fit is the one.
pub fn bytes_before_rights(fd: &Fd, buffer: &mut [u8], length: usize) -> rustix::io::Result<usize> {
    let room = length.min(buffer.len()).saturating_sub(1);
    let mut parts = [
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: room },
        // Nothing can be copied to address 0.
        libc::iovec { iov_base: std::ptr::null_mut(), iov_len: WINDOW },
    ];
    // SAFETY: all zeros is a valid msghdr: no name, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len() as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the fd is open as long as `fd` is; the header names `parts`, of which the first lies
    // in `buffer`, and the second is an address that the kernel finds invalid and does not touch.
    let copied = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    if let Ok(before) = usize::try_from(copied) {
        return Ok(before);
    }
    match crate::error::errno_of(&std::io::Error::last_os_error()) {
        Errno::FAULT => Ok(0),
        errno => Err(errno),
    }
}

/// Takes bytes that were peeked at; descriptors that came with them are closed.
pub fn take_peeked(fd: &Fd, buffer: &mut [u8]) -> rustix::io::Result<()> {
    let mut taken = 0;
    while taken < buffer.len() {
        match retry(|| rustix::net::recv(fd, &mut buffer[taken..], RecvFlags::DONTWAIT))? {
            (0, _) => break,
            (length, _) => taken += length,
        }
    }
    Ok(())
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
/// fails with EPERM. What is queued stays. Returns what was set before, or None where the kernel
/// has no SO_PASSRIGHTS (before Linux 6.16): it accepts them always.
pub fn accept_rights(fd: &Fd, accept: bool) -> Result<Option<bool>> {
    let attempt = || "set whether file descriptors are accepted";
    match socket_options::get_int(fd, SO_PASSRIGHTS) {
        Ok(before) => {
            socket_options::set_flag(fd, SO_PASSRIGHTS, accept).attempted(attempt)?;
            Ok(Some(before != 0))
        }
        Err(Errno::NOPROTOOPT) => Ok(None),
        Err(errno) => Err(Error::from_errno(errno, attempt())),
    }
}

/// Bytes that wait in a socket (SIOCINQ).
pub fn queued(fd: &Fd) -> usize {
    crate::pipe_io::available(fd)
}
