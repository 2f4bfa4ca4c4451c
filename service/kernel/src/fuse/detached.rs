//! A mount that is mounted nowhere: for the workers of the system bus, which may not mount.
//!
//! A helper process makes it, in a user namespace of the caller's, and sends the device and the mount over a socket.
//! Who holds a descriptor of the mount reaches its files (openat(2)), or moves it into his own namespaces
//! (move_mount(2)). Like every other it is for its owner only, whoever gets hold of a descriptor.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use crate::{
    Attempt, Error, Fd, Kind, Result,
    error::Attempted,
    fuse::{file::lock, mount},
    socket_messages::{self, Taking},
};

/// Has a helper started, and gives the socket on which it answers. It may wait.
pub type Helper = Box<dyn Fn() -> Result<OwnedFd> + Send + Sync>;

static HELPER: OnceLock<Helper> = OnceLock::new();

/// From now on this process makes no mount itself, and each through such a helper. Only the first time.
pub fn through(helper: Helper) {
    // Who sets it is the process's main program, once.
    let _ = HELPER.set(helper);
}

/// How long a helper may take: it asks nobody but the kernel.
const PATIENCE: Duration = Duration::from_secs(5);

/// Device numbers of those of this process that are there. No list of the kernel's has them.
static OWN: Mutex<Vec<(u32, u32)>> = Mutex::new(Vec::new());

/// The device numbers of those that are there.
pub fn own() -> Vec<(u32, u32)> {
    lock(&OWN).clone()
}

pub fn entered(device: (u32, u32)) {
    lock(&OWN).push(device);
}

pub fn left(device: (u32, u32)) {
    lock(&OWN).retain(|other| *other != device);
}

/// The device and the mount; None: this process mounts itself.
pub fn made() -> Option<Result<(OwnedFd, OwnedFd)>> {
    HELPER.get().map(|helper| receive(helper()?))
}

/// Whether this process makes mounts of this kind, and no other.
pub fn only() -> bool {
    HELPER.get().is_some()
}

fn receive(socket: OwnedFd) -> Result<(OwnedFd, OwnedFd)> {
    let socket = Fd::from(socket);
    let lost = |why: &str| {
        Error::new(Kind::Unavailable, format!("the process that was to make the mount {why}; try again"))
    };
    let until = Instant::now() + PATIENCE;
    let received = loop {
        match socket_messages::receive(&socket, Taking::Take, true) {
            Ok(Attempt::Done(received)) => break received,
            Ok(Attempt::Wait(_)) if !readable(&socket, until)? => return Err(lost("did not answer")),
            Ok(Attempt::Wait(_)) => {}
            Err(error) if error.kind == Kind::Closed => return Err(lost("ended before it answered")),
            Err(error) => return Err(error),
        }
    };
    let mut fds = received.fds.into_iter();
    match (fds.next(), fds.next(), fds.next()) {
        (Some(device), Some(mount), None) => Ok((device, mount)),
        _ => Err(Error::new(Kind::Unavailable, String::from_utf8_lossy(&received.data).into_owned())),
    }
}

/// Whether there is something to read before this moment.
fn readable(socket: &Fd, until: Instant) -> Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(Error::from_errno(errno, "wait for a mount")),
    }
}

/// The helper's part: makes a mount for the device, and answers.
pub fn answer(socket: OwnedFd, device: std::result::Result<OwnedFd, String>) -> Result<()> {
    let made = device.and_then(|device| match mount::make(&device, mount::SUBTYPE) {
        Ok(mount) => Ok([device, mount].map(Fd::from)),
        Err(errno) => {
            Err(Error::from_errno(errno, "make a FUSE file system in a user namespace").text + hint(errno))
        }
    });
    let attempt = || "send the mount";
    match made {
        Ok(fds) => socket_messages::send(&Fd::from(socket), b"mount", &fds, None).attempted(attempt)?,
        Err(why) => socket_messages::send(&Fd::from(socket), why.as_bytes(), &[], None).attempted(attempt)?,
    };
    Ok(())
}

/// What would help.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            "; the sysctl kernel.apparmor_restrict_unprivileged_userns, or another security module, lets users make \
             namespaces but not mount in them"
        }
        Errno::NODEV => "; load the module fuse (modprobe fuse)",
        _ => "",
    }
}
