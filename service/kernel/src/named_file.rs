//! Files that have a name, as shared memory and semaphores use them: complete before anybody can
//! see them, opened only when they are what they should be, removed only while the name still
//! means the same file.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid},
    io::Errno,
};

use crate::{Dict, Error, Kind, Result, dict, error::Attempted, fd, mechanism::Permissions};

/// What stays the same however a file is renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// Makes a regular file, open for reading and writing, with exactly these permission bits; `fill`
/// gives it its size and content. The name appears when all that is done, and never in the place
/// of something else: `Exists`.
pub fn create(path: &Path, mode: u32, fill: impl Fn(BorrowedFd<'_>) -> Result<()>) -> Result<OwnedFd> {
    let attempt = || format!("create the file {}", path.display());
    let (Some(directory), Some(_), false) =
        (path.parent(), path.file_name(), path.as_os_str().as_encoded_bytes().ends_with(b"/"))
    else {
        return Err(Error::invalid(format!("cannot {}: this is the name of a directory", attempt())));
    };
    let complete = |file: &OwnedFd| {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).attempted(|| "set the mode of the new file")?;
        fill(file.as_fd())
    };
    // Without O_EXCL, so that the nameless file may be given a name (open(2), O_TMPFILE).
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
        Ok(file) => {
            complete(&file)?;
            let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
            match rustix::fs::linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => return Ok(by_name(path, file)),
                // The file system has no hard links.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => {}
                Err(errno) => return Err(Error::from_errno(errno, attempt())),
            }
        }
        // The file system has no nameless files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(errno) => return Err(Error::from_errno(errno, attempt())),
    }
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).attempted(attempt)?;
    complete(&file).inspect_err(|_| {
        // It is our own, made a moment ago; what is worth reporting is why it is not complete.
        let _ = rustix::fs::unlink(path);
    })?;
    Ok(file)
}

/// The file opened again by the name that it has now: to the kernel, what was opened without one
/// stays "deleted" wherever /proc names it.
fn by_name(path: &Path, file: OwnedFd) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let identity = |file: &OwnedFd| rustix::fs::fstat(file).map(|stat| Identity::from(&stat));
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(named) if identity(&named) == identity(&file) => named,
        // Its mode forbids it, or somebody was faster: the one that we have is as good.
        _ => file,
    }
}

/// Opens what exists if it is a regular file. It is examined through O_PATH first: opening a
/// device or a FIFO may do something or wait.
pub fn open_regular(path: &Path, flags: OFlags, resolve: OFlags) -> Result<(OwnedFd, Stat)> {
    let attempt = || format!("open the file {}", path.display());
    let found =
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | resolve, Mode::empty()).attempted(attempt)?;
    let stat = fd::stat(&found)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(Error::invalid(format!(
            "cannot {}: it must be a regular file, but it is {}",
            attempt(),
            describe(kind)
        )));
    }
    let file = fd::reopen(&found, flags | OFlags::NONBLOCK | OFlags::NOCTTY).attempted(attempt)?;
    Ok((file, stat))
}

/// A kind of file in words.
pub fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe or FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "an object of the kernel without a file",
    }
}

/// Unlinks the name if it still means this file. (Between the look and the unlink there is a gap
/// that no system call closes; whoever may replace the name in it may also unlink it.)
pub fn remove_same(path: &Path, identity: Identity) -> Result<()> {
    let attempt = || format!("remove {}", path.display());
    let gone = |why: &str| Error::new(Kind::Gone, format!("cannot {}: {why}", attempt()));
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if Identity::from(&stat) == identity => {}
        Ok(_) => return Err(gone("another object has taken this name, and it is left alone")),
        Err(Errno::NOENT) => return Err(gone("the name was removed already")),
        Err(errno) => return Err(Error::from_errno(errno, attempt())),
    }
    match rustix::fs::unlink(path) {
        Err(Errno::NOENT) => Err(gone("the name was removed already")),
        other => other.attempted(attempt),
    }
}

/// fchown(2), then fchmod(2): a change of owner clears set-id bits.
pub fn set_permissions(file: impl AsFd, permissions: Permissions) -> Result<()> {
    let Permissions { mode, uid, gid, qbytes } = permissions;
    if qbytes.is_some() {
        return Err(Error::invalid("only System V message queues have qbytes"));
    }
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Error::invalid(
            "4294967295 is no user or group: chown(2) takes it as \"leave as it is\"",
        ));
    }
    if uid.is_some() || gid.is_some() {
        rustix::fs::fchown(&file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
            .attempted(|| "change the owner of the file")
            .map_err(|error| error.help("only a privileged process may give files away (chown(2))"))?;
    }
    if let Some(mode) = mode {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
            .attempted(|| format!("change the mode of the file to {mode:04o}"))?;
    }
    Ok(())
}

/// What stat(2) says that every file has. Times are microseconds since the epoch.
// The types of the fields differ between machines.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
pub fn inspect(stat: &Stat) -> Dict {
    let micros = |seconds: i64, nanos: u64| {
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000).saturating_add(nanos / 1000)
    };
    dict! {
        "mode" => stat.st_mode & 0o7777,
        "uid" => stat.st_uid,
        "gid" => stat.st_gid,
        "inode" => stat.st_ino,
        "device" => format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)),
        "links" => u64::from(stat.st_nlink),
        "accessed" => micros(stat.st_atime as i64, stat.st_atime_nsec as u64),
        "modified" => micros(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
        "changed" => micros(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
    }
}
