//! What /proc says: which processes hold which files, and who they are.

use std::{
    collections::HashMap,
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::{Dict, Result, dict, fd};

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

/// Whether [`held`] has looked into every process that /proc has; an ordinary user never may.
pub fn sees_everybody() -> bool {
    let pids = pids();
    let hidden = |pid: &u32| match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(_) => false,
        // It has ended meanwhile.
        Err(error) => crate::error::errno_of(&error) == rustix::io::Errno::ACCESS,
    };
    // Without the first one, /proc is mounted so that it hides the others' (hidepid, proc(5)).
    pids.first() == Some(&1) && !pids.iter().any(hidden)
}

/// The command name of a process (comm, at most 15 bytes); empty when it has gone.
pub fn command(pid: u32) -> String {
    fs::read(format!("/proc/{pid}/comm"))
        .map(|comm| String::from_utf8_lossy(comm.trim_ascii_end()).into_owned())
        .unwrap_or_default()
}

/// Whether SIGKILL waits for a process: it does nothing any more, and cannot leave only because it waits in the kernel.
pub fn is_killed(pid: u32) -> bool {
    let status = crate::signal::status::directory(pid.cast_signed(), None);
    let kill = 1 << (libc::SIGKILL - 1);
    crate::signal::status::status(&status)
        .is_none_or(|status| (status.pending.0 | status.pending.1) & kill != 0)
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

/// What a descriptor stands for, if that is the pipe or FIFO still which `is` knows: since the links were read, the
/// number may have come to stand for another file, which is not opened.
pub fn pinned_fifo(holder: &Held, is: impl FnOnce(&Stat) -> bool) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let pinned = rustix::fs::open(fd_path(holder.pid, holder.fd), flags, Mode::empty()).ok()?;
    let stat = fd::stat(&pinned).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Fifo && is(&stat)).then_some(pinned)
}

/// Memory that a process has mapped from a file: all its mappings of that file together.
#[derive(Debug, Clone)]
pub struct Mapped {
    pub pid: u32,
    /// Major and minor number, and the inode; of a file on overlayfs or btrfs the device is not
    /// the one that stat(2) shows.
    pub device: (u32, u32),
    pub inode: u64,
    /// As in `/proc/PID/maps`: a newline is written `\012`.
    pub path: Vec<u8>,
    pub writable: bool,
}

/// The mapped files of every process that the caller may look into, for which `wanted` says yes. The
/// path is the one under which the file was opened: sem_open(3) opens it under a temporary name.
pub fn mapped(mut wanted: impl FnMut(&Mapped) -> bool) -> Vec<Mapped> {
    let mut found: Vec<Mapped> = Vec::new();
    for pid in pids() {
        let first = found.len();
        for Range { file: mapping, .. } in ranges(pid).unwrap_or_default() {
            if !wanted(&mapping) {
                continue;
            }
            let same = |other: &&mut Mapped| (other.device, other.inode) == (mapping.device, mapping.inode);
            match found[first..].iter_mut().find(same) {
                Some(other) => other.writable |= mapping.writable,
                None => found.push(mapping),
            }
        }
    }
    found
}

/// One mapping of a file.
#[derive(Debug, Clone)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// MAP_SHARED.
    pub shared: bool,
    pub file: Mapped,
}

/// The mappings of files that a process has; an error where the caller may not look.
pub fn ranges(pid: u32) -> std::io::Result<Vec<Range>> {
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    Ok(maps.split(|byte| *byte == b'\n').filter_map(|line| maps_line(pid, line)).collect())
}

/// `start-end perms offset major:minor inode path` (proc_pid_maps(5)); `None` for anonymous memory.
fn maps_line(pid: u32, line: &[u8]) -> Option<Range> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut next = || fields.next();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = std::str::from_utf8(next()?).ok()?.split_once('-')?;
    let permissions = next()?;
    let offset = std::str::from_utf8(next()?).ok()?;
    let (major, minor) = std::str::from_utf8(next()?).ok()?.split_once(':')?;
    let inode = std::str::from_utf8(next()?).ok()?.parse().ok()?;
    let path = next()?.trim_ascii_start();
    (inode != 0).then_some(Range {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        shared: permissions.get(3) == Some(&b's'),
        file: Mapped {
            pid,
            device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
            inode,
            path: path.to_owned(),
            writable: permissions.get(1) == Some(&b'w'),
        },
    })
}

/// Processes that have memory mapped, as rows for `List()`.
pub fn mapped_holders<'a>(mapped: impl IntoIterator<Item = &'a Mapped>) -> Vec<Dict> {
    mapped
        .into_iter()
        .map(|mapped| {
            dict! {
                "pid" => mapped.pid,
                "command" => command(mapped.pid),
                "mapped" => true,
                "access" => if mapped.writable { "read-write" } else { "read" },
            }
        })
        .collect()
}

impl Mapped {
    /// Whether it is the file with these numbers.
    pub fn is(&self, stat: &Stat) -> bool {
        self.inode == stat.st_ino
            && self.device == (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev))
    }
}

/// The processes that hold an fd of the same file, and those that have it mapped.
pub fn file_holders(file: impl AsFd) -> Result<Vec<Dict>> {
    let link = fd::link(&file)?;
    let stat = fd::stat(&file)?;
    let same = |held: &Held| {
        rustix::fs::stat(fd_path(held.pid, held.fd))
            .is_ok_and(|other| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino))
    };
    // A file that got its name by link(2) is known as deleted to those who opened it before.
    let held = held(|other| other == link || other.ends_with(DELETED));
    let mut rows = holders(&held.iter().filter(|held| same(held)).collect::<Vec<_>>());
    let path = maps_path(&link);
    let mapped = mapped(|mapped| mapped.inode == stat.st_ino && (mapped.is(&stat) || mapped.path == path));
    rows.extend(mapped_holders(&mapped));
    Ok(rows)
}

/// How the kernel ends the name of a file that has lost it, or never had one.
pub const DELETED: &[u8] = b" (deleted)";

/// A link of `/proc/PID/fd` as `/proc/PID/maps` writes it.
fn maps_path(link: &[u8]) -> Vec<u8> {
    link.iter()
        .flat_map(|byte| if *byte == b'\n' { &b"\\012"[..] } else { std::slice::from_ref(byte) })
        .copied()
        .collect()
}

/// A number out of a file of /proc/sys.
pub fn sysctl(path: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?.trim().parse().ok()
}

/// Where a file system of this type is mounted whole, as far as this thread's mount namespace goes
/// (proc_pid_mountinfo(5)). A later mount may hide one of them.
pub fn mount_points(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    mounts.split(|byte| *byte == b'\n').filter_map(|line| mount_point(line, kind.as_bytes())).collect()
}

/// `id parent major:minor root point options … - type source options`.
fn mount_point(line: &[u8], kind: &[u8]) -> Option<PathBuf> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let whole = *fields.get(3)? == b"/" && *fields.get(dash + 1)? == kind;
    let point = std::ffi::OsString::from_vec(unescaped(fields.get(4)?));
    whole.then(|| PathBuf::from(point))
}

/// A path in which blanks and backslashes are written as `\040`.
pub fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let octal = (*first == b'\\').then(|| rest.get(..3)).flatten();
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                text = &rest[3..];
            }
            None => {
                plain.push(*first);
                text = rest;
            }
        }
    }
    plain
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_lines_of_mountinfo() {
        let line = br"36 35 0:20 / /dev/a\040b\134 rw,nosuid shared:7 master:1 - mqueue none rw";
        assert_eq!(mount_point(line, b"mqueue"), Some(PathBuf::from(r"/dev/a b\")));
        assert_eq!(mount_point(line, b"tmpfs"), None);
        assert_eq!(mount_point(b"36 35 0:20 /x /dev/x rw - mqueue none rw", b"mqueue"), None, "a part");
        assert_eq!(mount_point(b"", b"mqueue"), None);
    }
}
