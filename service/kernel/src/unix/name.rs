//! The names of unix sockets: paths and abstract names, and what can be done with them.
//!
//! A path is bound so that nobody ever sees the socket with more permissions than it is to have:
//! Linux gives the new inode the socket's own mode less the umask, so the mode is set on the
//! unbound socket (fchmod(2)), and only bits that the umask took away are added afterwards,
//! before the socket listens. The umask itself belongs to the whole process and stays as it is.
//!
//! What was bound or connected to is held as an O_PATH fd. Permissions are set through that fd
//! and not through the path, and the path is only removed while it still leads to that inode,
//! whose number cannot be given to another file as long as the fd is open.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat},
    io::Errno,
    net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::{
    Address, Error, Kind, Result,
    error::{Attempted, describe},
    fd,
    mechanism::Permissions,
    sock_diag,
};

/// `sun_path` has 108 bytes, the last of which is left for a NUL, as unix(7) advises.
pub const MAX_NAME: usize = 107;

/// What a socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    Path(PathBuf),
    Abstract(Vec<u8>),
}

impl Name {
    /// The name in an address of the kernel's; `None` is an unnamed socket, or another family.
    pub fn from_socket(address: &SocketAddrAny) -> Option<Self> {
        let address = SocketAddrUnix::try_from(address.clone()).ok()?;
        if let Some(path) = address.path() {
            return Some(Self::Path(PathBuf::from(OsStr::from_bytes(path.to_bytes()))));
        }
        address.abstract_name().filter(|name| !name.is_empty()).map(|name| Self::Abstract(name.to_owned()))
    }

    /// The name as `sun_path` holds it; `None` is an unnamed socket.
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        match name {
            [] => None,
            [0, name @ ..] => Some(Self::Abstract(name.to_owned())),
            // The kernel may count the NUL at the end.
            path => {
                let path = path.strip_suffix(&[0]).unwrap_or(path);
                Some(Self::Path(PathBuf::from(OsStr::from_bytes(path))))
            }
        }
    }

    /// The key in an address, and the bytes of the name.
    pub fn pair(&self) -> (&'static str, &[u8]) {
        match self {
            Self::Path(path) => ("path", path.as_os_str().as_bytes()),
            Self::Abstract(name) => ("abstract", name),
        }
    }

    pub fn address(&self) -> Address {
        let (key, bytes) = self.pair();
        Address::new("unix").with(key, bytes)
    }

    /// Reads `unix:path=/x` or `unix:abstract=y`; a `type` beside it is left alone.
    pub fn parse(text: &str) -> Result<Self> {
        let address = Address::parse(text)?;
        let wrong = || {
            Error::invalid(format!(
                "the address of a unix socket is written unix:path=/x or unix:abstract=x, not {text:?}"
            ))
        };
        if address.scheme != "unix" {
            return Err(wrong());
        }
        let mut name = None;
        for (key, value) in address.pairs {
            name = match (key.as_str(), value) {
                ("path", Some(path)) if name.is_none() && path.starts_with(b"/") && !path.contains(&0) => {
                    Some(Self::Path(PathBuf::from(OsStr::from_bytes(&path))))
                }
                ("abstract", Some(bytes)) if name.is_none() => Some(Self::Abstract(bytes)),
                ("type", Some(_)) => name,
                _ => return Err(wrong()),
            };
        }
        name.ok_or_else(wrong)
    }

    /// As `what` in the text of an error: "the unix socket /tmp/x".
    pub fn describe(&self) -> String {
        match self {
            Self::Path(path) => format!("the unix socket {}", path.display()),
            Self::Abstract(name) => format!("the abstract unix socket {:?}", String::from_utf8_lossy(name)),
        }
    }
}

/// The kernel's form of an abstract name.
pub fn abstract_address(name: &[u8]) -> Result<SocketAddrUnix> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Error::invalid(format!(
            "an abstract name has 1 to {MAX_NAME} bytes, not {}; leave the name to the kernel with autobind",
            name.len()
        )));
    }
    SocketAddrUnix::new_abstract_name(name).attempted(|| "write an abstract name")
}

/// Where to connect or send to.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddrUnix,
    /// The inode that a path led to; the address refers to it.
    pub file: Option<OwnedFd>,
}

impl Target {
    /// Finds the socket. A path is opened first (O_PATH), which takes a path of any length and
    /// tells what is there; the address then leads to that inode, not to the path.
    pub fn find(name: &Name) -> Result<Self> {
        let path = match name {
            Name::Abstract(name) => return Ok(Self { address: abstract_address(name)?, file: None }),
            Name::Path(path) => path,
        };
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .attempted(|| format!("find {}", name.describe()))?;
        let stat = fd::stat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(Error::invalid(format!("{} is not a socket but {}", path.display(), what_is(&stat))));
        }
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let address = SocketAddrUnix::new(link).attempted(|| format!("refer to {}", name.describe()))?;
        Ok(Self { address, file: Some(file) })
    }

    /// What the live socket there is, as far as the kernel tells: "seqpacket".
    pub fn live_type(&self, name: &Name) -> Option<&'static str> {
        let file_inode = self.file.as_ref().and_then(|file| Some(fd::stat(file).ok()?.st_ino));
        sock_diag::unix_sockets().ok()?.into_iter().find_map(|socket| {
            let same = match (name, file_inode) {
                (Name::Path(_), Some(inode)) => socket.file_inode.map(u64::from) == Some(inode),
                _ => Name::from_bytes(&socket.name).as_ref() == Some(name),
            };
            // An accepted connection has its listener's name.
            (same && socket.state != 1).then(|| type_word(socket.kind))
        })
    }
}

/// The word for a type of socket, as in the key `type`.
pub fn type_word(kind: SocketType) -> &'static str {
    match kind {
        SocketType::STREAM => "stream",
        SocketType::DGRAM => "dgram",
        SocketType::SEQPACKET => "seqpacket",
        _ => "unknown",
    }
}

/// A path and the socket's inode behind it.
#[derive(Debug)]
pub struct Entry {
    pub path: PathBuf,
    pub file: OwnedFd,
}

impl Entry {
    /// Binds the socket to a path that is not there yet. With `replace_stale` a socket that
    /// nobody serves any more is removed first; between the look and the removal another process
    /// may come, so services that compete for a path need a lock file beside it.
    pub fn bind(socket: &OwnedFd, path: &Path, mode: u32, replace_stale: bool) -> Result<Self> {
        let attempt = || format!("bind a unix socket to {}", path.display());
        let bits = Mode::from_raw_mode(mode);
        rustix::fs::fchmod(socket, bits).attempted(attempt)?;
        let result = match bind_path(socket, path) {
            Err(Errno::ADDRINUSE | Errno::EXIST) if replace_stale => {
                remove_stale(path)?;
                bind_path(socket, path)
            }
            other => other,
        };
        match result {
            Ok(()) => {}
            Err(Errno::ADDRINUSE | Errno::EXIST) => return Err(exists(path)),
            Err(errno @ (Errno::NAMETOOLONG | Errno::NOTDIR | Errno::LOOP)) => {
                return Err(Error::invalid(format!("cannot {}: {}", attempt(), describe(errno))));
            }
            Err(Errno::NOENT) => {
                return Err(Error::from_errno(Errno::NOENT, attempt())
                    .help("the directory must exist; make it first"));
            }
            Err(errno) => return Err(Error::from_errno(errno, attempt())),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).attempted(attempt)?;
        let entry = Self { path: path.to_owned(), file };
        let stat = fd::stat(&entry.file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket
            || stat.st_uid != rustix::process::geteuid().as_raw()
        {
            return Err(Error::new(
                Kind::Gone,
                format!("another process put something else at {} meanwhile", path.display()),
            ));
        }
        if stat.st_mode & 0o7777 != mode {
            let exact = Permissions { mode: Some(mode), ..Permissions::default() };
            entry.set_permissions(exact).inspect_err(|_| {
                // The first error is the one to report.
                let _ = entry.remove();
            })?;
        }
        Ok(entry)
    }

    /// Sets mode and owner of the inode, wherever the path leads by now.
    pub fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        let attempt = || format!("set the permissions of {}", self.path.display());
        if fd::stat(&self.file)?.st_nlink == 0 {
            return Err(Error::new(Kind::Gone, format!("cannot {}: the path was removed", attempt())));
        }
        // The owner first: a change of it takes the set-id bits away.
        if permissions.uid.is_some() || permissions.gid.is_some() {
            let uid = permissions.uid.map(rustix::fs::Uid::from_raw);
            let gid = permissions.gid.map(rustix::fs::Gid::from_raw);
            rustix::fs::chownat(&self.file, "", uid, gid, AtFlags::EMPTY_PATH).attempted(attempt)?;
        }
        if let Some(mode) = permissions.mode {
            let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::chmod(link, Mode::from_raw_mode(mode)).attempted(attempt)?;
        }
        Ok(())
    }

    /// Removes the path if it still leads to this socket.
    pub fn remove(&self) -> Result<()> {
        let attempt = || format!("remove {}", self.path.display());
        let (directory, name) = split(&self.path)?;
        let directory = open_directory(directory).attempted(attempt)?;
        let there = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                return Err(Error::new(
                    Kind::Gone,
                    format!("cannot {}: it is not there any more", attempt()),
                ));
            }
            other => other.attempted(attempt)?,
        };
        let ours = fd::stat(&self.file)?;
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino) {
            return Err(Error::new(
                Kind::Gone,
                format!("cannot {}: it is {} by now, not this socket", attempt(), what_is(&there)),
            ));
        }
        rustix::fs::unlinkat(&directory, name, AtFlags::empty()).attempted(attempt)
    }
}

/// bind(2), with a path of any length. Never follows a symbolic link at its end.
fn bind_path(socket: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    if path.as_os_str().len() <= MAX_NAME {
        return rustix::net::bind(socket, &SocketAddrUnix::new(path)?);
    }
    let (directory, name) = split(path).map_err(|_| Errno::INVAL)?;
    let directory = open_directory(directory)?;
    let through =
        |name: &OsStr| Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    if name.len() > libc::NAME_MAX as usize {
        return Err(Errno::NAMETOOLONG);
    }
    if through(name).as_os_str().len() <= MAX_NAME {
        return rustix::net::bind(socket, &SocketAddrUnix::new(through(name))?);
    }
    // Even the last part is too long: bind a short name beside it, then rename, which never
    // replaces anything.
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let short = format!(".ipc-{}-{number}", std::process::id());
    rustix::net::bind(socket, &SocketAddrUnix::new(through(OsStr::new(&short)))?)?;
    rustix::fs::renameat_with(&directory, &*short, &directory, name, RenameFlags::NOREPLACE).inspect_err(
        |_| {
            // Nobody knows the short name; if it cannot be removed, the error of the rename says more.
            let _ = rustix::fs::unlinkat(&directory, &*short, AtFlags::empty());
        },
    )
}

/// Directory and last part of a path that is to become, or is, a socket's.
fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) if !path.as_os_str().as_bytes().ends_with(b"/") => {
            Ok((directory, name))
        }
        _ => Err(Error::invalid(format!("{} is the path of a directory, not of a socket", path.display()))),
    }
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Removes the socket at a path if nobody serves it: connecting to it is refused.
fn remove_stale(path: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let attempt = || format!("replace {}", path.display());
    let file = rustix::fs::open(path, flags, Mode::empty()).attempted(attempt)?;
    if FileType::from_raw_mode(fd::stat(&file)?.st_mode) != FileType::Socket {
        return Err(exists(path));
    }
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let address = SocketAddrUnix::new(link).attempted(attempt)?;
    // The type makes no difference: a socket of another type that lives says EPROTOTYPE.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).attempted(attempt)?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => Entry { path: path.to_owned(), file }.remove(),
        Err(Errno::ACCESS) => Err(Error::from_errno(Errno::ACCESS, attempt())),
        // Also EPERM: a live datagram socket that is connected to another one.
        _ => Err(exists(path)),
    }
}

fn exists(path: &Path) -> Error {
    let what = match rustix::fs::lstat(path) {
        Ok(stat) => what_is(&stat),
        Err(_) => "something",
    };
    Error::new(
        Kind::Exists,
        format!(
            "cannot bind a unix socket to {}: {what} is there already; Attach connects to a socket, \
             replace-stale=true replaces one that nobody serves any more",
            path.display()
        ),
    )
}

fn what_is(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something unknown",
    }
}

/// The name that a socket is bound to.
pub fn local(socket: impl AsFd) -> Option<Name> {
    Name::from_socket(&rustix::net::getsockname(socket).ok()?)
}

/// The name of the socket that it is connected to; `Err(NOTCONN)` where it is not.
pub fn remote(socket: impl AsFd) -> rustix::io::Result<Option<Name>> {
    Ok(rustix::net::getpeername(socket)?.as_ref().and_then(Name::from_socket))
}
