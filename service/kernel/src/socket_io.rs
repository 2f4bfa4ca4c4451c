//! What every connected stream socket does in the same way, whatever its family: shared by
//! `mechanisms/unix.rs` and `mechanisms/inet.rs`.
//!
//! Every call says MSG_DONTWAIT for itself: a caller who holds a duplicate of the fd may clear
//! O_NONBLOCK on the description that we share.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType},
};

use crate::{
    Attempt, Error, Fd, Kind, Result,
    error::Attempted,
    fd::{self, retry},
    shape,
    shape::Direction,
};

/// Up to `max` bytes; empty is end of stream.
pub fn read(fd: &Fd, max: usize) -> Result<Attempt<Vec<u8>>> {
    let waiting = fd::waiting(fd).map_or(0, |bytes| bytes as usize);
    let mut data = vec![0; max.min(waiting.max(1))];
    match retry(|| rustix::net::recv(fd, &mut data[..], RecvFlags::DONTWAIT)) {
        Ok((length, _)) => {
            data.truncate(length);
            Ok(Attempt::Done(data))
        }
        Err(Errno::AGAIN) => Ok(shape::readable(fd)),
        Err(errno) => Err(failed(errno, "read from the socket")),
    }
}

/// Writes what fits into the socket's buffer.
pub fn write(fd: &Fd, data: &[u8]) -> Result<Attempt<usize>> {
    match retry(|| rustix::net::send(fd, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)) {
        Ok(written) => Ok(Attempt::Done(written)),
        Err(Errno::AGAIN) => Ok(shape::writable(fd)),
        Err(errno) => Err(failed(errno, "write to the socket")),
    }
}

/// Half-close: after `Write` the peer reads end of stream. What is down already, by this end or
/// because the peer has gone (tcp(7): ENOTCONN once both directions are closed), stays down.
pub fn shutdown(fd: &Fd, direction: Direction) -> Result<()> {
    let how = match direction {
        Direction::Read => Shutdown::Read,
        Direction::Write => Shutdown::Write,
        Direction::Both => Shutdown::Both,
    };
    match rustix::net::shutdown(fd, how) {
        Err(Errno::NOTCONN) => Ok(()),
        other => other.attempted(|| "shut the socket down"),
    }
}

/// The errnos of send(2) and recv(2) that mean the same for every family.
pub fn failed(errno: Errno, attempt: &str) -> Error {
    match errno {
        Errno::PIPE | Errno::CONNRESET | Errno::SHUTDOWN | Errno::NOTCONN => Error::new(
            Kind::Closed,
            format!(
                "cannot {attempt}: the peer has gone or this end was shut down ({})",
                crate::error::name(errno)
            ),
        ),
        errno => Error::from_errno(errno, attempt),
    }
}

/// A connected pair of unix stream sockets, non-blocking.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .attempted(|| "create a pair of sockets")
}
