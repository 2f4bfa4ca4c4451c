//! The system calls on pidfds: pidfd_open(2), pidfd_send_signal(2), and PIDFD_GET_INFO of
//! ioctl_pidfs(2).
//!
//! rustix has them without threads, values, groups and the exit information.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::{error::last_errno, shape::Exit};

/// To whom a signal goes; 0 is what the pidfd stands for, a process or a thread (linux/pidfd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Own = 0,
    /// The process group that the process leads; since Linux 6.9.
    Group = 1 << 2,
}

/// O_EXCL; since Linux 6.9.
const PIDFD_THREAD: libc::c_int = libc::O_EXCL;

/// A file descriptor of a process, or of a thread.
pub fn open(id: i32, thread: bool) -> rustix::io::Result<OwnedFd> {
    let flags = if thread { PIDFD_THREAD } else { 0 };
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this fd for us; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_errno()),
    }
}

/// Sends a signal with a value, as sigqueue(3) does. Signal 0 only asks whether it might be sent.
pub fn send(fd: impl AsFd, signal: i32, value: i32, scope: Scope) -> rustix::io::Result<()> {
    // The kernel's siginfo: signo, errno, code, then, aligned to a pointer: pid, uid, value.
    const FIELDS: usize = if cfg!(target_pointer_width = "64") { 4 } else { 3 };
    let mut info = [0i32; 32];
    info[0] = signal;
    info[2] = libc::SI_QUEUE;
    info[FIELDS] = std::process::id().cast_signed();
    info[FIELDS + 1] = rustix::process::getuid().as_raw().cast_signed();
    // A union sigval is as wide as a pointer; its int is at its start.
    info[FIELDS + 2] = value;
    let flags = scope as libc::c_uint;
    // SAFETY: the kernel reads the 128 bytes of a siginfo, and writes nothing.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_fd().as_raw_fd(), signal, info.as_ptr(), flags)
    };
    if sent == 0 { Ok(()) } else { Err(last_errno()) }
}

/// What the kernel says about the end of a process that was reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Known(Exit),
    /// Not yet, or it was not kept.
    Unknown,
    /// The kernel has no PIDFD_GET_INFO: before Linux 6.13.
    Unsupported,
}

/// How the process ended, from the kernel's memory of it: since Linux 6.15, when it was reaped.
pub fn ending(fd: impl AsFd) -> Ending {
    // struct pidfd_info in its first version: mask, cgroupid, then eleven words of ids, exit_code.
    const SIZE: usize = 64;
    const EXIT_CODE: usize = 60;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const PIDFD_GET_INFO: libc::Ioctl = (3 << 30 | (SIZE as u32) << 16 | 0xff << 8 | 11) as libc::Ioctl;
    let mut info = [0u8; SIZE];
    info[..8].copy_from_slice(&PIDFD_INFO_EXIT.to_ne_bytes());
    // SAFETY: the request says how large the buffer is, and the kernel writes no more than that.
    let asked = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), PIDFD_GET_INFO, info.as_mut_ptr()) };
    if asked < 0 {
        return match last_errno() {
            Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::PERM => Ending::Unsupported,
            _ => Ending::Unknown,
        };
    }
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&info[at..at + 4]);
        u32::from_ne_bytes(word)
    };
    let (low, high) = if cfg!(target_endian = "little") { (0, 4) } else { (4, 0) };
    let mask = u64::from(word(low)) | u64::from(word(high)) << 32;
    if mask & PIDFD_INFO_EXIT == 0 {
        return Ending::Unknown;
    }
    Ending::Known(Exit::from_status(word(EXIT_CODE).cast_signed()))
}

/// The number that no other process has had or will have until the machine starts again; since
/// Linux 6.9, whose pidfds have a file system of their own.
pub fn inode(fd: impl AsFd) -> Option<u64> {
    const PIDFS_MAGIC: u64 = 0x5049_4446;
    let kind = rustix::fs::fstatfs(&fd).ok()?.f_type;
    (kind as u64 == PIDFS_MAGIC).then(|| rustix::fs::fstat(&fd).ok().map(|stat| stat.st_ino)).flatten()
}

/// The process or thread that a pidfd is of; None: the fd is of another kind.
pub fn owner(fd: impl AsFd) -> Option<Owner> {
    let link = crate::fd::link(&fd).ok()?;
    if !link.starts_with(b"anon_inode:[pidfd]") && !link.starts_with(b"pidfd:") {
        return None;
    }
    let raw = u32::try_from(fd.as_fd().as_raw_fd()).ok()?;
    let id = crate::proc::fdinfo(std::process::id(), raw).get("Pid")?.parse().ok()?;
    let thread = rustix::fs::fcntl_getfl(&fd).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::EXCL));
    Some(Owner { id, thread })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// -1: it has ended and was reaped; 0: it is in another pid namespace.
    pub id: i32,
    pub thread: bool,
}
