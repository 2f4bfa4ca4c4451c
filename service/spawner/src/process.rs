//! Forks: what the parent keeps of a child, and how it sees that the child has ended.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};

use crate::Error;
use crate::error::Attempting;

/// A child that was not reaped yet, so that its pid is nobody else's.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

/// fork(2): the child in the parent, None in the child. Call it with one thread only.
pub fn fork() -> io::Result<Option<Child>> {
    // SAFETY: the spawner has one thread (see single_threaded), so no lock is held by another one,
    // and the child may go on as a whole program.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        pid => pid,
    };
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(Child { pid, pidfd })),
        Err(error) => {
            // A child that cannot be watched is worth nothing.
            rustix::process::kill_process(pid, Signal::KILL)?;
            retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED))?;
            Err(error.into())
        }
    }
}

impl Child {
    /// None: it has ended already.
    pub fn signal(&self, signal: Signal) -> Option<()> {
        pidfd_send_signal(&self.pidfd, signal).ok()
    }

    /// None: it has not ended yet.
    pub fn reap(&self) -> Option<WaitIdStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options)).ok().flatten()
    }

    /// Waits for its end, but not longer; what `reap` says then.
    pub fn reap_within(&self, time: Duration) -> Option<WaitIdStatus> {
        readable(&self.pidfd, Some(time));
        self.reap()
    }
}

/// Whether there is something to read, now or in this time. An interrupted wait is started again:
/// nothing but the blocked signals comes to the spawner.
pub fn readable(fd: impl AsFd, time: Option<Duration>) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    wait(&mut fds, time).is_ok_and(|count| count > 0)
}

/// poll(2) with a Duration.
pub fn wait(fds: &mut [PollFd<'_>], time: Option<Duration>) -> Result<usize, Errno> {
    let time = time.map(|time| Timespec {
        // The longest that is waited here is ten seconds.
        tv_sec: time.as_secs().cast_signed(),
        tv_nsec: time.subsec_nanos().into(),
    });
    retry_on_intr(|| poll(fds, time.as_ref()))
}

/// fork(2) copies the calling thread only: what others hold stays locked for ever.
pub fn single_threaded() -> Result<(), Error> {
    let status = fs::read_to_string("/proc/self/status").attempting("reading /proc/self/status")?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    if threads.is_some_and(|count| count.trim() == "1") { Ok(()) } else { Err(Error::Threads) }
}

/// Ends a child that could not become what it was forked for, and nothing of its parent's with it.
pub fn exit_at_once(error: &Error) -> ! {
    log(&format!("{error}"));
    // SAFETY: ends the process; what the parent registered for its own end does not run.
    unsafe { libc::_exit(1) }
}

/// To standard error, which may be closed: there is nobody else to tell.
pub fn log(text: &str) {
    let _ = writeln!(io::stderr(), "ipcd-spawner: {text}");
}
