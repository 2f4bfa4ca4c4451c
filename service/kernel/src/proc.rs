//! What /proc says: which processes hold which files, and who they are.

use std::{
    collections::HashMap,
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use crate::{Dict, dict};

/// One fd of one process, as far as /proc lets the caller see it.
#[derive(Debug, Clone)]
pub struct Held {
    pub pid: u32,
    pub fd: u32,
    /// What `/proc/PID/fd/N` links to.
    pub link: Vec<u8>,
}

/// Every fd of every process that the caller may look into, for which `wanted` says yes to the
/// link. The links of other users' processes are not shown by the kernel (proc(5), ptrace access
/// mode); those processes are left out.
pub fn held(mut wanted: impl FnMut(&[u8]) -> bool) -> Vec<Held> {
    let mut found = Vec::new();
    for pid in pids() {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(link) = fs::read_link(entry.path()) else {
                continue;
            };
            let link = link.as_os_str().as_bytes();
            if wanted(link) {
                found.push(Held { pid, fd, link: link.to_owned() });
            }
        }
    }
    found
}

/// All process ids, in order.
pub fn pids() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        })
        .unwrap_or_default();
    pids.sort_unstable();
    pids
}

/// The command name of a process (comm, at most 15 bytes); empty when it has gone.
pub fn command(pid: u32) -> String {
    fs::read(format!("/proc/{pid}/comm"))
        .map(|comm| String::from_utf8_lossy(comm.trim_ascii_end()).into_owned())
        .unwrap_or_default()
}

/// Holders as rows for `List()`: pid, command and fd of each, with the access flags.
pub fn holders(held: &[&Held]) -> Vec<Dict> {
    held.iter()
        .map(|held| {
            dict! {
                "pid" => held.pid,
                "command" => command(held.pid),
                "fd" => held.fd,
                "access" => access(held.pid, held.fd),
            }
        })
        .collect()
}

/// `read`, `write`, `read-write`, or `path` for O_PATH: how a process opened an fd
/// (`/proc/PID/fdinfo/N`).
pub fn access(pid: u32, fd: u32) -> &'static str {
    let flags =
        fdinfo(pid, fd).get("flags").and_then(|flags| u32::from_str_radix(flags, 8).ok()).unwrap_or(0);
    if flags as i32 & libc::O_PATH != 0 {
        return "path";
    }
    match flags as i32 & libc::O_ACCMODE {
        libc::O_WRONLY => "write",
        libc::O_RDWR => "read-write",
        _ => "read",
    }
}

/// The `key: value` lines of `/proc/PID/fdinfo/N`.
pub fn fdinfo(pid: u32, fd: u32) -> HashMap<String, String> {
    fdinfo_text(pid, fd)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// `/proc/PID/fdinfo/N` as it is; empty where the caller may not look.
pub fn fdinfo_text(pid: u32, fd: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default()
}

/// Groups fds by the object that they link to.
pub fn by_link(held: &[Held]) -> HashMap<&[u8], Vec<&Held>> {
    let mut groups: HashMap<&[u8], Vec<&Held>> = HashMap::new();
    for held in held {
        groups.entry(&held.link).or_default().push(held);
    }
    groups
}

/// `/proc/PID/fd/N`: also a way to open what another process holds.
pub fn fd_path(pid: u32, fd: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
}

/// A number out of a file of /proc/sys.
pub fn sysctl(path: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?.trim().parse().ok()
}

/// The type of the file system that an fd is on, as in /proc/self/mountinfo (`ext4`, `fuse.sshfs`);
/// `unknown` where the mount is not among the caller's.
pub fn filesystem(fd: impl AsFd) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let fdinfo =
        u32::try_from(fd.as_fd().as_raw_fd()).map(|fd| fdinfo(std::process::id(), fd)).unwrap_or_default();
    let kind = fdinfo.get("mnt_id").and_then(|id| {
        let line = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
        line.split_once(" - ")?.1.split(' ').next()
    });
    kind.unwrap_or("unknown").to_owned()
}
