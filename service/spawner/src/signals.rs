//! Signals: which the spawner waits for, and which a worker does not mind.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use crate::Error;

/// Blocks the signals that end the spawner; the descriptor is readable when one has come.
pub fn watch() -> Result<OwnedFd, Error> {
    // SAFETY: SIG_DFL is no function. A child of a process that ignores SIGCHLD would be reaped by
    // the kernel, and its pid used again; who ignores SIGHUP was started by nohup(1).
    let hangup = unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::signal(libc::SIGHUP, libc::SIG_DFL)
    };
    let mask = match hangup {
        libc::SIG_IGN => set(&[libc::SIGTERM, libc::SIGINT]),
        _ => set(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]),
    };
    // SAFETY: an initialised set; nothing is asked back, and SIG_DFL and SIG_IGN are no functions;
    // -1 asks for a new descriptor.
    let (blocked, fd) = unsafe {
        libc::signal(libc::SIGHUP, hangup);
        let blocked = libc::sigprocmask(libc::SIG_BLOCK, &mask, ptr::null_mut());
        (blocked, libc::signalfd(-1, &mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    };
    if blocked != 0 || fd < 0 {
        return Err(Error::System("watching for SIGTERM", io::Error::last_os_error()));
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// In a child, which is to handle signals as any program does.
pub fn unblock() -> Result<(), Error> {
    // SAFETY: an initialised set, and nothing is asked back.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set(&[]), ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Error::System("unblocking signals", io::Error::last_os_error())),
    }
}

/// In a worker: signals that come from a descriptor shared with its user (F_SETOWN), from a limit,
/// or from a user who means something else, and that would end or stop it. SIGTERM, SIGINT, SIGQUIT
/// and SIGKILL are meant.
pub fn ignore_harmless() {
    const HARMLESS: &[libc::c_int] = &[
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGSTKFLT,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGVTALRM,
        libc::SIGPROF,
        // SIGPOLL is another name of SIGIO.
        libc::SIGIO,
        libc::SIGPWR,
    ];
    // The two real-time signals below SIGRTMIN are the C library's own.
    for signal in HARMLESS.iter().copied().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: SIG_IGN is no function, and all are signals that may be ignored.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn set(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, and the numbers are those of signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}
