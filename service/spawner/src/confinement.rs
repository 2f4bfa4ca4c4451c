//! Which group a caller makes things for, and whether he lives in a sandbox, container or other world than the service's: what it names
//! by a path, a key or a number there is something else here.
//!
//! The answer is that of the moment, and of the process's first thread; Landlock rules show nowhere.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};

use crate::Error;
use crate::error::Attempting;
use crate::process::readable;
use crate::protocol::{Confinement, Reply};

/// The places of a process, as /proc/PID has them, and the reason that each is to be confined.
const PLACES: [(u32, &str); 6] = [
    (Confinement::MOUNT, "ns/mnt"),
    (Confinement::PID, "ns/pid"),
    (Confinement::IPC, "ns/ipc"),
    (Confinement::NETWORK, "ns/net"),
    (Confinement::USER, "ns/user"),
    // chroot(2) without a mount namespace.
    (Confinement::MOUNT, ROOT),
];

const ROOT: &str = "root";

/// Where the service lives, and who is not confined lives too.
pub struct Surroundings {
    places: [(u64, u64); PLACES.len()],
    /// None: there is no security module with labels.
    label: Option<Vec<u8>>,
}

impl Surroundings {
    pub fn own() -> Result<Self, Error> {
        let own = openat(CWD, "/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let own = own.attempting("opening /proc/self")?;
        let mut places = [(0, 0); PLACES.len()];
        for (place, (_, name)) in places.iter_mut().zip(PLACES) {
            *place = inode(&own, name).attempting("looking at the own namespaces in /proc/self")?;
        }
        Ok(Self { places, label: read(&own, "attr/current").filter(|label| !label.is_empty()) })
    }

    /// The effective group of this process, and the reasons to confine it; one that cannot be looked
    /// at, or is not this user's and so not the caller's, has its own.
    pub fn examine(&self, pidfd: Option<&OwnedFd>, uid: u32) -> Reply {
        match pidfd.and_then(|pidfd| self.look_at(pidfd, uid)) {
            Some((reasons, gid)) => Reply::Examined { confinement: Confinement(reasons), gid },
            None => Reply::Examined { confinement: Confinement(Confinement::UNKNOWN), gid: None },
        }
    }

    fn look_at(&self, pidfd: &OwnedFd, uid: u32) -> Option<(u32, Option<u32>)> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
        // 0: a process of another pid namespace; -1: it has been reaped.
        let pid: u32 = field(&info, "Pid:")?.parse().ok().filter(|pid| *pid > 0)?;
        let process = format!("/proc/{pid}");
        let process = openat(CWD, process, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut reasons = 0;
        for (own, (reason, name)) in self.places.iter().zip(PLACES) {
            // In namespaces of its own, a user may have a root on a FUSE mount that never answers.
            let hangs = name == ROOT && reasons != 0;
            if !hangs && inode(&process, name).ok()? != *own {
                reasons |= reason;
            }
        }
        let status = String::from_utf8_lossy(&read(&process, "status")?).into_owned();
        if !is_of(&status, uid) {
            return None;
        }
        // A kernel without seccomp has no such line.
        if field(&status, "Seccomp:").is_some_and(|mode| mode != "0") {
            reasons |= Confinement::SECCOMP;
        }
        if let Some(own) = &self.label
            && confines(own, &read(&process, "attr/current")?)
        {
            reasons |= Confinement::LABEL;
        }
        // It lives, so the pid was its own all the time, and /proc/PID was it.
        (!readable(pidfd, Some(Duration::ZERO))).then_some((reasons, effective_gid(&status)))
    }
}

/// The real, the effective, the saved and the file system's group are on one line, proc_pid_status(5).
fn effective_gid(status: &str) -> Option<u32> {
    field(status, "Gid:")?.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a process may have connected as this user, who is its real, effective or saved one.
fn is_of(status: &str, uid: u32) -> bool {
    let ids = field(status, "Uid:").into_iter().flat_map(str::split_whitespace).take(3);
    ids.filter_map(|id| id.parse().ok()).any(|id: u32| id == uid)
}

/// What identifies the file that a link in /proc/PID leads to.
fn inode(process: &OwnedFd, name: &str) -> rustix::io::Result<(u64, u64)> {
    let stat = statat(process, name, AtFlags::empty())?;
    Ok((stat.st_dev, stat.st_ino))
}

fn read(process: impl AsFd, name: &str) -> Option<Vec<u8>> {
    let file = openat(process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).ok()?;
    bytes.truncate(bytes.trim_ascii_end().strip_suffix(b"\0").unwrap_or(bytes.trim_ascii_end()).len());
    Some(bytes)
}

/// The value of a line `name value` in a file of /proc.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Whether a label is other than the service's own and other than those of processes without rules:
/// `unconfined` and `PROFILE (unconfined)` of AppArmor, types `unconfined_…` of SELinux.
fn confines(own: &[u8], label: &[u8]) -> bool {
    let free = label == b"unconfined" || label.ends_with(b" (unconfined)");
    let selinux_type = label.split(|byte| *byte == b':').nth(2).unwrap_or_default();
    label != own && !free && !selinux_type.starts_with(b"unconfined_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_group_is_the_second() {
        assert_eq!(effective_gid("Name:\tGid:\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9\n"), Some(6));
        assert_eq!(effective_gid("Gid:\t5\n"), None);
        assert_eq!(effective_gid(""), None);
    }

    #[test]
    fn the_user_is_one_of_the_first_three() {
        let status = "Name:\tUid:\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!([1, 2, 3, 4, 5].map(|uid| is_of(status, uid)), [true, true, true, false, false]);
        assert!(!is_of("Gid:\t1\n", 1));
    }

    #[test]
    fn labels_of_the_own_kind_do_not_confine() {
        let confined = |own: &str, label: &str| confines(own.as_bytes(), label.as_bytes());
        assert!(!confined("unconfined", "unconfined"));
        assert!(!confined("ipcd (enforce)", "unconfined"));
        assert!(!confined("unconfined", "firefox (unconfined)"));
        assert!(confined("unconfined", "firefox (enforce)"));
        assert!(confined("unconfined", "snap.x (complain)"));
        let service = "system_u:system_r:unconfined_service_t:s0";
        assert!(!confined(service, "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023"));
        assert!(confined(service, "system_u:system_r:container_t:s0:c1,c2"));
        assert!(confined("_", "User::App"));
    }
}
