//! The mounter: a child that makes one detached FUSE mount for a worker, in a user namespace of the worker's user, and
//! ends.
//!
//! A worker can mount nothing, and is not to be able to. Its user can, without any right: in a user namespace of his
//! own (`unshare -Ur`). So that is what the mounter does, as this user and after it has dropped all capabilities, with
//! one difference: it lets nobody look into it, and hands the mount to the worker. Where the machine forbids
//! user namespaces to users, the kernel says so here as it would say it to him.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::error::Attempting;
use crate::identity::{Files, become_user, set_file_user, shed};
use crate::protocol::Identity;
use crate::{Error, MounterStart};

const DEVICE: &str = "/dev/fuse";

/// Descriptors that it has at once: the standard streams, socket, device, file system, mount, and a file of /proc.
const FILES_MAX: u64 = 12;

/// The rest of the start of a mounter, in the child. What is the user's to hear is in what is returned.
pub fn become_mounter(worker: OwnedFd, identity: &Identity) -> Result<MounterStart, Error> {
    let worker = shed(c"ipcd-mounter", worker)?;
    let most = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Nofile, most(FILES_MAX)).attempting("setting RLIMIT_NOFILE")?;
    setrlimit(Resource::Cpu, most(1)).attempting("setting RLIMIT_CPU")?;
    become_user(identity, Files::Roots)?;
    let entered = enter_namespaces();
    let mapped = if entered.is_ok() { map(identity) } else { Ok(()) };
    // Whatever has failed: from here on it is the user who opens files.
    set_file_user(identity.uid)?;
    let device = entered.map_err(forbidden).and_then(|()| {
        mapped.map_err(|error| format!("cannot map the user into a namespace: {error}"))?;
        open_device()
    });
    // Of all that it may do in the namespace, it mounts.
    let sets = CapabilitySets {
        effective: CapabilitySet::SYS_ADMIN,
        permitted: CapabilitySet::SYS_ADMIN,
        inheritable: CapabilitySet::empty(),
    };
    if device.is_ok() {
        set_capabilities(None, sets).attempting("dropping the capabilities")?;
    }
    Ok(MounterStart { worker, device })
}

fn enter_namespaces() -> io::Result<()> {
    // SAFETY: gives this process, which has one thread, namespaces of its own; no memory and no descriptor changes.
    match unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The user is himself in it, and so is his group; nobody else is there (user_namespaces(7)).
fn map(identity: &Identity) -> io::Result<()> {
    let (uid, gid) = (identity.uid, identity.gid);
    let files = [
        // As long as groups could be dropped, nobody may map one.
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    for (name, text) in files {
        let mut file = OpenOptions::new().write(true).open(format!("/proc/self/{name}"))?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// It has to be opened in the namespace: the kernel mounts for those only who live where the device was opened.
fn open_device() -> Result<OwnedFd, String> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(DEVICE);
    device.map(OwnedFd::from).map_err(|error| {
        format!("the user may not open {DEVICE} ({error}); its mode is to be 0666, which udev(7) gives it")
    })
}

/// Why there is no user namespace for this user, and who has decided so.
fn forbidden(error: io::Error) -> String {
    let why = match Errno::from_io_error(&error) {
        Some(Errno::NOSPC) => {
            "the sysctl user.max_user_namespaces allows no more of them, or none; user.max_mnt_namespaces may be the one, too"
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "users are forbidden to make them: by the sysctl kernel.unprivileged_userns_clone, or \
             kernel.apparmor_restrict_unprivileged_userns, or the container, or a RestrictNamespaces= of the unit ipcd-spawner.service"
        }
        Some(Errno::INVAL) => "this kernel has none (CONFIG_USER_NS)",
        _ => "the kernel says no more",
    };
    format!("cannot make a user namespace, in which a user may mount: {error}; {why}")
}
