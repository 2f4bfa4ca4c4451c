//! The spawner: the one process of the service that is root on the system bus.
//!
//! It starts workers, each with exactly the identity of a caller, tells whether a caller is
//! confined, and ends workers that are stuck. It has one thread, knows no bus, and reads requests
//! of one fixed size from the front only: small enough to be read in one sitting.
//!
//! Workers (and without systemd the front) are forks of the spawner that run no other program:
//! [`supervise`] and [`serve`] return in each of them, and the [`Role`] says what the calling
//! process has become. docs/decisions has the reasons.

use std::os::fd::OwnedFd;

pub mod client;
mod confinement;
mod datagram;
mod environment;
mod error;
mod front;
mod identity;
mod mounter;
mod process;
pub mod protocol;
pub mod sandbox;
mod signals;
mod spawner;

pub use environment::{Carried, with_empty_environment};
use error::Attempting;
pub use error::Error;
use protocol::Identity;

/// What the calling process has become.
#[derive(Debug)]
pub enum Role {
    Front(FrontStart),
    Worker(WorkerStart),
    /// Of the front's user; otherwise as a worker.
    Herald(WorkerStart),
    /// In a user namespace of its caller's own, where it has one mount to make.
    Mounter(MounterStart),
    /// Still the spawner, which was told to end: nothing is left to do.
    Ended,
}

/// The front, as its user, without a capability.
#[derive(Debug)]
pub struct FrontStart {
    /// The socket that [`client`] talks over, non-blocking.
    pub spawner: OwnedFd,
    /// The workers of the front before: name, and the front's end of its control socket.
    pub workers: Vec<(String, OwnedFd)>,
}

/// A worker, with the identity of a caller and nothing else.
#[derive(Debug)]
pub struct WorkerStart {
    /// The worker's end of its control socket (SOCK_SEQPACKET, non-blocking), descriptor 3.
    pub control: OwnedFd,
    pub identity: Identity,
}

/// A process that makes one mount for a worker, and ends.
#[derive(Debug)]
pub struct MounterStart {
    /// The other end is the worker's, which waits for the mount or why there is none.
    pub worker: OwnedFd,
    /// /dev/fuse, opened in the namespace; or what is missing, and what would help.
    pub device: Result<OwnedFd, String>,
}

/// The exit status of a front that need not be started again: nothing would be different.
/// EX_CONFIG of sysexits.h, which systemd calls CONFIG (RestartPreventExitStatus=).
pub const GIVE_UP: u8 = 78;

/// The spawner without systemd: starts the front as `user` and starts it again when it dies, until
/// SIGTERM or SIGINT, or until the front ends with status 0 (it was told to) or [`GIVE_UP`].
/// Returns in each process that it forks, too.
///
/// To be called before any thread is started, with an empty environment, and with no descriptor
/// open but the standard ones: in its children all others are closed.
pub fn supervise(user: &str) -> Result<Role, Error> {
    start(user, None)
}

/// The spawner under systemd, for one front at a time that runs as `user` and connects to
/// `listener` (SOCK_SEQPACKET). On SIGTERM it ends, and the workers go on.
pub fn serve(listener: OwnedFd, user: &str) -> Result<Role, Error> {
    start(user, Some(listener))
}

fn start(user: &str, listener: Option<OwnedFd>) -> Result<Role, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if std::env::vars_os().next().is_some() {
        return Err(Error::Environment);
    }
    process::single_threaded()?;
    // rustix keeps what it reads of the auxiliary vector. A worker could not read it on kernels
    // without PR_GET_AUXV (before 6.4), for its /proc/self/auxv is root's.
    let _page = rustix::param::page_size();
    rustix::thread::set_name(c"ipcd-spawner").attempting("naming the spawner")?;
    spawner::Spawner::new(front::identity_of(user)?, listener)?.run()
}
