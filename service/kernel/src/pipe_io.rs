//! Reading and writing the ends of pipes and FIFOs, which are the same thing to the kernel
//! (pipe(7)): shared by `mechanisms/pipe.rs` and `mechanisms/fifo.rs`.

use rustix::{event::PollFlags, io::Errno};

use crate::{
    Attempt, Dict, Error, Fd, Kind, Result, dict,
    error::Attempted,
    fd::{self, poll_now, retry},
    shape,
};

/// Reads up to `max` bytes. No bytes and no writer that has been and gone means "wait": a FIFO
/// that no writer has opened yet reads as empty, but is not hung up.
pub fn read(fd: &Fd, max: usize) -> Result<Attempt<Vec<u8>>> {
    let mut data = vec![0; max.min(available(fd).max(1))];
    match retry(|| rustix::io::read(fd, &mut data[..])) {
        Ok(0) if !hung_up(fd)? => Ok(shape::readable(fd)),
        Ok(length) => {
            data.truncate(length);
            Ok(Attempt::Done(data))
        }
        Err(Errno::AGAIN) => Ok(shape::readable(fd)),
        Err(errno) => Err(Error::from_errno(errno, "read from the pipe")),
    }
}

/// Reads one packet of a pipe in packet mode, at most PIPE_BUF bytes.
pub fn read_packet(fd: &Fd) -> Result<Attempt<Vec<u8>>> {
    let mut data = vec![0; libc::PIPE_BUF];
    match retry(|| rustix::io::read(fd, &mut data[..])) {
        Ok(length) => {
            data.truncate(length);
            Ok(Attempt::Done(data))
        }
        Err(Errno::AGAIN) => Ok(shape::readable(fd)),
        Err(errno) => Err(Error::from_errno(errno, "read from the pipe")),
    }
}

/// Writes what fits; up to PIPE_BUF (4096) bytes are written whole or not at all.
pub fn write(fd: &Fd, data: &[u8]) -> Result<Attempt<usize>> {
    match retry(|| rustix::io::write(fd, data)) {
        Ok(written) => Ok(Attempt::Done(written)),
        Err(Errno::AGAIN) => Ok(shape::writable(fd)),
        Err(Errno::PIPE) => Err(Error::new(
            Kind::Closed,
            "cannot write to the pipe: no process has it open for reading any more (EPIPE)",
        )),
        Err(errno) => Err(Error::from_errno(errno, "write to the pipe")),
    }
}

/// Whether the last writer has gone and everything was read or not: POLLHUP.
pub fn hung_up(fd: &Fd) -> Result<bool> {
    Ok(poll_now(fd, PollFlags::IN)?.contains(PollFlags::HUP))
}

/// Bytes that wait in the pipe (FIONREAD), as a size for a buffer.
pub fn available(fd: &Fd) -> usize {
    fd::waiting(fd).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
}

/// Sets the capacity (F_SETPIPE_SZ); the kernel rounds up to a power of two pages.
pub fn set_capacity(fd: &Fd, capacity: u64) -> Result<()> {
    let size = usize::try_from(capacity).unwrap_or(usize::MAX);
    match rustix::pipe::fcntl_setpipe_size(fd, size) {
        Ok(_) => Ok(()),
        Err(Errno::PERM) => Err(Error::new(
            Kind::LimitExceeded,
            format!(
                "cannot set the capacity to {capacity} bytes: beyond the limit for users; raise \
                 fs.pipe-max-size, now {}, or fs.pipe-user-pages-soft, now {} pages",
                crate::proc::sysctl("fs/pipe-max-size").unwrap_or(0),
                crate::proc::sysctl("fs/pipe-user-pages-soft").unwrap_or(0),
            ),
        )),
        Err(Errno::BUSY) => Err(Error::new(
            Kind::Busy,
            "cannot make the pipe that small: more bytes than that are waiting in it",
        )),
        other => other.map(drop).attempted(|| format!("set the capacity to {capacity} bytes")),
    }
}

/// What `Inspect()` says of a pipe or FIFO, seen through any of its ends.
pub fn inspect(fd: &Fd) -> Result<Dict> {
    let capacity = rustix::pipe::fcntl_getpipe_size(fd).attempted(|| "read the pipe's capacity")?;
    Ok(dict! {
        "capacity" => capacity as u64,
        "queued" => available(fd) as u64,
        "inode" => crate::fd::stat(fd)?.st_ino,
    })
}

/// The kernel's limits on pipes and FIFOs (pipe(7)).
pub fn limits() -> Dict {
    let mut limits = dict! { "PIPE_BUF" => libc::PIPE_BUF as u64 };
    for (key, file) in [
        ("fs.pipe-max-size", "fs/pipe-max-size"),
        ("fs.pipe-user-pages-soft", "fs/pipe-user-pages-soft"),
        ("fs.pipe-user-pages-hard", "fs/pipe-user-pages-hard"),
    ] {
        if let Some(value) = crate::proc::sysctl(file) {
            limits.insert(key.to_owned(), value.into());
        }
    }
    limits
}
