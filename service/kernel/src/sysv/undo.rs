//! What a lease of a set holds: the kernel's own undo list, of a thread.
//!
//! semop(2) with SEM_UNDO writes down what to undo when the process ends; the kernel then never
//! waits, keeps each value within 0 and SEMVMX, and forgets what SETVAL and SETALL have overwritten.
//! The list belongs to a process because its threads share it (CLONE_SYSVSEM), and
//! unshare(CLONE_SYSVSEM) gives a thread one of its own. So a lease is a thread that has done its
//! operations on its own list, and sleeps. When the lease ends, the thread unshares once more, which
//! is the end of a list as much as an exit (unshare(2)). When the service is killed, the kernel undoes
//! the lists of all threads. Nobody has to remember anything.

use std::sync::mpsc::{self, Receiver, SyncSender, sync_channel};

use libc::c_int;
use rustix::{io::Errno, thread::UnshareFlags};

use super::set::{self, UNDO};
use crate::{Error, Kind, Result, leases, shape::SemaphoreOperation};

/// The end of a lease that its holder has. Dropped, the operations are undone, soon.
#[derive(Debug)]
pub struct Lease {
    release: SyncSender<()>,
    undone: Receiver<()>,
}

/// The end that the lease's thread has.
#[derive(Debug)]
pub struct Thread {
    released: Receiver<()>,
    undone: SyncSender<()>,
}

pub fn lease() -> (Lease, Thread) {
    let (release, released) = mpsc::sync_channel(1);
    let (end, undone) = mpsc::sync_channel(1);
    (Lease { release, undone }, Thread { released, undone: end })
}

/// A lease that somebody holds. Once it is dropped, the operations have been undone.
#[derive(Debug)]
pub struct Held {
    lease: Option<Lease>,
    _counted: leases::Counted,
}

impl Held {
    pub fn new(lease: Lease, of: leases::Lent) -> Self {
        Self { lease: Some(lease), _counted: leases::Counted::new(of) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(Lease { release, undone }) = self.lease.take() else { return };
        drop(release);
        // Nothing is ever sent: this ends when the thread has let go of the other end.
        let _ = undone.recv();
    }
}

impl Thread {
    /// Sleeps until the lease is dropped, then undoes what this thread has done.
    pub fn stay(self) {
        // Nothing is ever sent here either.
        let _ = self.released.recv();
        // If it could not, the end of the thread would do it.
        let _ = own_list();
        drop(self.undone);
    }
}

/// Gives this thread an undo list of its own, empty; what was on its own list before is undone.
pub fn own_list() -> rustix::io::Result<()> {
    // SAFETY: the undo list concerns System V semaphores only, and no memory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::SYSVSEM) }
}

/// The stack of a thread that makes a few system calls and sleeps.
const STACK: usize = 64 * 1024;

/// Does the operations, without waiting, on a thread of their own. The outer error: it cannot be
/// tried; the inner one is semop(2)'s.
pub fn take(id: c_int, operations: &[SemaphoreOperation]) -> Result<Result<Lease, Errno>> {
    let operations = operations.to_owned();
    let (say, said) = sync_channel(1);
    let (lease, thread) = lease();
    let work = move || {
        let done = own_list()
            .map_err(Tried::Unshare)
            .and_then(|()| set::operate(id, &operations, UNDO | set::NOWAIT).map_err(Tried::Operate));
        let taken = done.is_ok();
        // The other end waits for it.
        let _ = say.send(done);
        if taken {
            thread.stay();
        }
    };
    std::thread::Builder::new().name("lease".into()).stack_size(STACK).spawn(work).map_err(|error| {
        Error::new(
            Kind::LimitExceeded,
            format!("cannot start a thread to hold the lease: {error}; raise RLIMIT_NPROC"),
        )
    })?;
    match said.recv() {
        Ok(Ok(())) => Ok(Ok(lease)),
        Ok(Err(Tried::Operate(errno))) => Ok(Err(errno)),
        Ok(Err(Tried::Unshare(errno))) => Err(unavailable(errno)),
        Err(_) => Err(unavailable(Errno::CHILD)),
    }
}

enum Tried {
    Unshare(Errno),
    Operate(Errno),
}

/// A seccomp filter around the service is the one thing that refuses unshare(CLONE_SYSVSEM).
pub fn unavailable(errno: Errno) -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "cannot hold semaphores of a set on a lease: {}; the seccomp filter that the service runs under must \
             allow unshare(CLONE_SYSVSEM). Operate works without",
            crate::error::describe(errno)
        ),
    )
}
