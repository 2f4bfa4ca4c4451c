//! Memory without a name that could be opened: memfds, and files that were deleted. It is found by
//! its inode through `/proc/PID/fd` of a process that holds it, with the rights that the kernel
//! demands for that.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
};

use rustix::{
    fs::{MemfdFlags, OFlags, Stat},
    io::Errno,
};

use crate::{
    Error, Kind, Result,
    error::Attempted,
    fd,
    memory_list::MEMFD,
    named_file::{self, Identity},
    proc,
};

/// Makes a memfd that is not inherited and, where the kernel has MFD_NOEXEC_SEAL, cannot become
/// executable.
pub fn memfd(name: &[u8], flags: MemfdFlags) -> Result<OwnedFd> {
    let attempt = || "create a memfd";
    let flags = flags | MemfdFlags::CLOEXEC;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
    .map_err(|errno| match errno {
        Errno::ACCESS => Error::from_errno(errno, attempt()).help("see vm.memfd_noexec"),
        errno => Error::from_errno(errno, attempt()),
    })
}

/// A process and the number of an fd of this memfd in it; or of a file that was deleted, which has
/// no other name either.
pub fn find_held(inode: u64) -> Result<(u32, u32)> {
    let of_kind = |wanted: fn(&[u8]) -> bool| {
        let mut found = proc::held(wanted).into_iter().filter_map(|held| {
            let stat = rustix::fs::stat(proc::fd_path(held.pid, held.fd)).ok()?;
            (stat.st_ino == inode).then_some((stat.st_dev, (held.pid, held.fd)))
        });
        let (device, first) = found.next()?;
        Some(match found.find(|(other, _)| *other != device) {
            None => Ok(first),
            Some(_) => Err(Error::invalid(format!(
                "more than one object without a name has inode {inode} (memfds of huge pages are numbered apart); \
                 use \"pid\" and \"fd\""
            ))),
        })
    };
    of_kind(|link| link.starts_with(MEMFD))
        .or_else(|| of_kind(|link| link.ends_with(proc::DELETED)))
        .unwrap_or_else(|| {
            Err(Error::new(
                Kind::NotFound,
                format!(
                    "cannot attach to the memfd with inode {inode}: no process that you may look into holds \
                     a file descriptor of it"
                ),
            ))
        })
}

pub fn open_held((pid, fd): (u32, u32), flags: OFlags) -> Result<(OwnedFd, Stat)> {
    let path = proc::fd_path(pid, fd);
    if let Ok(link) = rustix::fs::readlink(&path, Vec::new()) {
        refuse_secret(link.as_bytes())?;
    }
    named_file::open_regular(&path, flags, OFlags::empty())
}

/// Opens what a process has mapped at an address and shares: also memory that no fd of any process
/// refers to (mmap(2), MAP_SHARED | MAP_ANONYMOUS), by /proc/PID/map_files.
pub fn open_mapped(pid: u32, address: u64, flags: OFlags) -> Result<(OwnedFd, Stat)> {
    let attempt = || format!("open what process {pid} has mapped at address {address:#x}");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).attempted(attempt)?;
    let found = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (start..end).contains(&address).then_some((range, rest))
    });
    let not = |why: &str| Err(Error::invalid(format!("cannot {}: {why}", attempt())));
    let Some((range, rest)) = found else {
        return Err(Error::new(Kind::NotFound, format!("cannot {}: nothing is mapped there", attempt())));
    };
    // "rw-s": shared, or private to the process.
    if rest.as_bytes().get(3) != Some(&b's') {
        return not("that memory is private to the process (MAP_PRIVATE)");
    }
    refuse_secret(rest.split_ascii_whitespace().nth(4).unwrap_or_default().as_bytes())?;
    let path = PathBuf::from(format!("/proc/{pid}/map_files/{range}"));
    named_file::open_regular(&path, flags, OFlags::empty()).map_err(|error| match error.kind {
        Kind::PermissionDenied => error.help(
            "the kernel gives out memory by /proc/PID/map_files to processes with CAP_CHECKPOINT_RESTORE or \
             CAP_SYS_ADMIN only (proc(5))",
        ),
        _ => error,
    })
}

pub fn refuse_secret(link: &[u8]) -> Result<()> {
    if link.starts_with(b"/secretmem") {
        return Err(Error::not_supported(
            "this is secret memory (memfd_secret(2)): only the processes that map it can see it, not the service",
        ));
    }
    Ok(())
}

/// The path by which a file can be attached again; none for a memfd or what was deleted.
pub fn path_of(file: impl AsFd) -> Result<Option<PathBuf>> {
    let path = PathBuf::from(OsStr::from_bytes(&fd::link(&file)?));
    let identity = Identity::from(&fd::stat(&file)?);
    let same = rustix::fs::stat(&path).is_ok_and(|stat| Identity::from(&stat) == identity);
    Ok(same.then_some(path))
}
