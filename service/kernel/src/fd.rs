//! File descriptors: shared ownership, re-opening, facts about them.
//!
//! The one rule that everything here serves: an fd that is handed to a client shares its *open
//! file description* (status flags, offset) with every duplicate. Where the kernel lets us, the
//! client gets a description of its own, by re-opening `/proc/self/fd/N`.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{FileType, Mode, OFlags, Stat},
    io::Errno,
};

use crate::{Error, Kind, Result, error::Attempted};

/// An fd that an endpoint and the waits on it own together.
pub type Fd = Arc<OwnedFd>;

/// A path that leads to the very inode, for the calls that take a path but no O_PATH fd.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// A new open file description of the same file. Works for whatever has an inode that can be
/// opened: files, memfds, pipes, FIFOs; not for sockets.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(proc_path(fd), flags | OFlags::CLOEXEC, Mode::empty())
}

/// A duplicate with close-on-exec set.
pub fn duplicate(fd: impl AsFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).attempted(|| "duplicate a file descriptor")
}

pub fn stat(fd: impl AsFd) -> Result<Stat> {
    rustix::fs::fstat(fd).attempted(|| "examine a file descriptor")
}

pub fn file_type(fd: impl AsFd) -> Result<FileType> {
    Ok(FileType::from_raw_mode(stat(fd)?.st_mode))
}

/// Which directions the fd was opened for: (read, write).
pub fn access(fd: impl AsFd) -> Result<(bool, bool)> {
    let flags = rustix::fs::fcntl_getfl(fd).attempted(|| "read the flags of a file descriptor")?;
    if flags.contains(OFlags::PATH) {
        return Ok((false, false));
    }
    Ok(match flags & OFlags::RWMODE {
        OFlags::RDWR => (true, true),
        OFlags::WRONLY => (false, true),
        _ => (true, false),
    })
}

/// What `/proc/self/fd/N` says the fd is: a path, or "pipe:[123]", "socket:[123]", "/memfd:x (deleted)".
pub fn link(fd: impl AsFd) -> Result<Vec<u8>> {
    rustix::fs::readlink(proc_path(fd), Vec::new())
        .map(|link| link.into_bytes())
        .attempted(|| "name a file descriptor")
}

/// Runs a system call again when a signal interrupted it.
pub fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => continue,
            other => return other,
        }
    }
}

/// Sets or clears O_NONBLOCK on the open file description.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).attempted(|| "read the flags of a file descriptor")?;
    if !flags.contains(OFlags::NONBLOCK) {
        rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
            .attempted(|| "make a file descriptor non-blocking")?;
    }
    Ok(())
}

/// What is ready at this moment, without waiting.
pub fn poll_now(fd: impl AsFd, interest: rustix::event::PollFlags) -> Result<rustix::event::PollFlags> {
    let mut fds = [rustix::event::PollFd::new(&fd, interest)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    retry(|| rustix::event::poll(&mut fds, Some(&zero))).attempted(|| "poll a file descriptor")?;
    Ok(fds[0].revents())
}

/// How many bytes can be read now (FIONREAD; ioctl_pipe(2), unix(7), tcp(7)).
pub fn waiting(fd: impl AsFd) -> Result<u64> {
    rustix::io::ioctl_fionread(fd).attempted(|| "ask how many bytes wait to be read")
}

/// The error for an fd of a kind that no mechanism serves.
pub fn unsupported_kind(fd: impl AsFd) -> Error {
    let what = link(fd).unwrap_or_default();
    Error::new(
        Kind::NotSupported,
        format!(
            "cannot adopt a file descriptor of this kind ({}); pipes, FIFOs, sockets, memfds, \
             regular files, POSIX semaphores and POSIX message queues are served",
            String::from_utf8_lossy(&what)
        ),
    )
}
