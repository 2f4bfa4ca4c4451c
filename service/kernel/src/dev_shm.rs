//! `/dev/shm`, the tmpfs where glibc keeps POSIX shared memory and semaphores (shm_overview(7)):
//! the rules of names, what is there, who holds it, and how much room is left.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Stat};

use crate::{
    Dict, Error, Kind, Result, dict,
    error::{Attempted, describe},
    named_file::Identity,
    proc,
};

pub const DIRECTORY: &str = "/dev/shm";

/// How glibc begins the file name of a semaphore.
pub const SEMAPHORE: &[u8] = b"sem.";

/// A name as shm_open(3) and sem_open(3) take it, without its slash. (glibc also takes names with
/// several slashes in front or none, which POSIX leaves open; here each object has one name.)
pub fn name<'a>(given: &'a [u8], what: &str, max: usize) -> Result<&'a [u8]> {
    let invalid = |why: &str| {
        Err(Error::invalid(format!(
            "the {what} name {:?} {why}; it must be a slash and 1 to {max} bytes without further slashes \
             (shm_overview(7), sem_overview(7))",
            String::from_utf8_lossy(given)
        )))
    };
    match given.strip_prefix(b"/") {
        None => invalid("does not begin with '/'"),
        Some(b"") => invalid("is empty after the '/'"),
        Some(b"." | b"..") => invalid("is the name of a directory"),
        Some(name) if name.contains(&b'/') => invalid("has a second '/'"),
        Some(name) if name.len() > max => invalid("is too long"),
        Some(name) => Ok(name),
    }
}

pub fn path(file_name: &[u8]) -> PathBuf {
    Path::new(DIRECTORY).join(OsStr::from_bytes(file_name))
}

/// A file of the directory.
pub struct Entry {
    pub file_name: Vec<u8>,
    pub stat: Stat,
    /// The processes that have it open or mapped, as far as the caller may look into them.
    pub holders: Vec<Dict>,
}

/// The regular files whose names are `wanted`.
pub fn entries(wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Entry>> {
    let directory = fs::read_dir(DIRECTORY).attempted(|| format!("list {DIRECTORY}"))?;
    // By identity, not by name: sem_open(3) maps what it creates under a temporary name, and in
    // another mount namespace the same path is another directory.
    let within = |path: &[u8]| path.starts_with(DIRECTORY.as_bytes());
    let mapped = proc::mapped(|mapped| within(&mapped.path));
    let held: Vec<_> = proc::held(within)
        .into_iter()
        .filter_map(|held| {
            let stat = rustix::fs::stat(proc::fd_path(held.pid, held.fd)).ok()?;
            Some((Identity::from(&stat), held))
        })
        .collect();
    let mut entries = Vec::new();
    for entry in directory.flatten() {
        let file_name = entry.file_name().as_bytes().to_owned();
        if !wanted(&file_name) {
            continue;
        }
        let Ok(stat) = rustix::fs::lstat(path(&file_name)) else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let identity = Identity::from(&stat);
        let of_it: Vec<_> =
            held.iter().filter(|(other, _)| *other == identity).map(|(_, held)| held).collect();
        let mut holders = proc::holders(&of_it);
        holders.extend(proc::mapped_holders(mapped.iter().filter(|mapped| mapped.is(&stat))));
        entries.push(Entry { file_name, stat, holders });
    }
    Ok(entries)
}

/// Bytes and files that there are, and that are free.
pub fn limits() -> Dict {
    let Ok(shm) = rustix::fs::statvfs(DIRECTORY) else {
        return Dict::new();
    };
    dict! {
        "shm-size" => shm.f_blocks.saturating_mul(shm.f_frsize),
        "shm-free" => shm.f_bavail.saturating_mul(shm.f_frsize),
        "shm-files" => shm.f_files,
        "shm-files-free" => shm.f_favail,
    }
}

/// When the kernel takes huge pages for what is here: the mount option `huge=` (tmpfs(5)).
pub fn huge() -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let option = mounts.lines().rev().find_map(|line| {
        let (mount, options) = line.split_once(" - ")?;
        let of_shm = mount.split(' ').nth(4) == Some(DIRECTORY);
        of_shm.then(|| options.rsplit(' ').next()?.split(',').find_map(|option| option.strip_prefix("huge=")))
    });
    option.flatten().unwrap_or("never").to_owned()
}

pub fn available() -> Result<()> {
    let unavailable = |why: String| {
        Err(Error::new(
            Kind::Unavailable,
            format!("{why}; mount it with: mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs {DIRECTORY}"),
        ))
    };
    match rustix::fs::statfs(DIRECTORY) {
        Err(errno) => unavailable(format!("there is no {DIRECTORY}: {}", describe(errno))),
        Ok(system) if system.f_type as u64 != libc::TMPFS_MAGIC as u64 => {
            unavailable(format!("{DIRECTORY} is not a tmpfs (shm_overview(7))"))
        }
        Ok(_) => Ok(()),
    }
}
