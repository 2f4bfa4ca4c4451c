//! FIFOs, fifo(7): pipes with a name in the file system.
//!
//! An endpoint pins the inode with O_PATH, which makes it neither a reader nor a writer, and
//! opens the ends when they are used (`fifo_ends.rs`). Permissions, type and removal are
//! settled on the pinned inode, so that a path that somebody swaps never leads elsewhere.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, Stat, StatxFlags},
    io::Errno,
};

use crate::{
    Address, Attempt, Descriptor, Dict, Endpoint, Error, Fd, Kind, Opening, Parameter, Parameters, Result,
    Type, Value, dict,
    error::Attempted,
    fd,
    fifo_ends::Ends,
    mechanism::{Adoption, Column, End, Permissions},
    pipe_io, proc,
    shape::{Direction, Shape, Stream},
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "fifo",
    schemes: &["fifo"],
    summary: "Named pipes: a byte stream between processes that know a path (fifo(7))",
    shapes: &[Shape::Stream],
    create_parameters: &[PATH, super::MODE, CAPACITY, HOLD],
    attach_parameters: &[PATH, CAPACITY, HOLD],
    columns: &[
        Column { key: "path", kind: "s", summary: "Path, as the first holder sees it" },
        Column { key: "address", kind: "s", summary: "Address for Attach, where the path leads there" },
        Column { key: "mode", kind: "u", summary: "Permission bits" },
        Column { key: "owner", kind: "u", summary: "User id" },
        Column { key: "group", kind: "u", summary: "Group id" },
        Column { key: "inode", kind: "t", summary: "Inode number" },
        Column { key: "queued", kind: "t", summary: "Bytes that wait in it, where a process reads it" },
        Column { key: "capacity", kind: "t", summary: "Bytes that it can hold, where a process reads it" },
        Column {
            key: "holders",
            kind: "aa{sv}",
            summary: "Processes that have it open: pid, command, fd, access",
        },
    ],
    open_parameters: &[
        Parameter::new("end", Type::Word(&["read", "write"]), "Which end to open for the caller").required(),
    ],
    create,
    anonymous: |_| false,
    attach,
    adopt,
    list: || Ok(list()?.into()),
    limits,
    available: || Ok(()),
    driver: None,
    lacks: &[],
    reference: REFERENCE,
};

const PATH: Parameter = Parameter::new("path", Type::Path, "Absolute path of the FIFO").required();
const CAPACITY: Parameter = Parameter::new(
    "capacity",
    super::pipe::CAPACITY,
    "Bytes that it can hold while the service has it open; rounded up to a power of two pages",
);
const HOLD: Parameter =
    Parameter::new("hold", Type::Bool, "Keep both ends open: no end of stream between writers, no wait for readers")
        .default("false");

const REFERENCE: &str = "\
`Create` makes the FIFO with mkfifo(3) and gives it exactly `mode`, whatever the umask. It never
follows a symbolic link at the end of the path and never takes what exists. `Attach` follows links
as open(2) does and accepts nothing but a FIFO. From then on the endpoint means that inode: renaming
it or replacing the path changes nothing.

Neither verb opens the FIFO, so the endpoint is neither a reader nor a writer until it is used.

- `Read` opens the reading end and keeps it. As long as nobody has opened the FIFO for writing, it
  waits. When the last writer has gone, `Read` returns empty once; the next `Read` waits for the next
  writer. A writer that comes before the last one was noticed continues the same stream.
- `Write` opens the writing end. As long as nobody has the FIFO open for reading, it waits; `Timeout`
  then means that no reader came. (The kernel has no event for it: the service looks again after 1 to
  50 ms.) When the last reader has gone, `Write` fails with `Closed` once; the next `Write` waits for
  a new reader. Writes of up to 4096 bytes (PIPE_BUF) are atomic; larger ones may interleave with
  those of other writers. Several readers take bytes away from each other.
- `hold=true` opens the FIFO for both directions at once and keeps it (open(2) with O_RDWR, which
  Linux allows): readers see no end of stream between writers, writers need no reader, and what is
  written waits in the FIFO, up to its capacity. It needs the right to read and to write.
- `Shutdown` closes a direction for good.
- `Open` gives the caller an open file description of its own, in blocking mode. With `end=read`,
  read(2) returns 0 while there is no writer, as open(2) is where a blocking reader waits for one.
- `capacity` is set whenever the service opens an end: the kernel forgets it, and all bytes, when
  nobody has the FIFO open. `hold=true` keeps both.

`Inspect` gives `queued` and `capacity` only while the service has an end open: opening one for the
question would let waiting writers in. `List` shows the FIFOs for which some process that the caller
may look into has a file descriptor (/proc/PID/fd), the endpoints of the service included, which pin
theirs with O_PATH (access `path`, neither reader nor writer); a FIFO that nobody has open is in no
table of the kernel, only in its directory. `Remove` removes the path only where it still leads to the same inode; the check and
the removal are two steps, as the kernel has no single one.

fs.protected_fifos (proc_sys_fs(5)) concerns open(2) with O_CREAT in sticky directories such as /tmp,
for instance a shell's `>`; the service never uses O_CREAT on a FIFO.

Sources: fifo(7), pipe(7), mkfifo(3), open(2), symlink(7).

| error | when |
| --- | --- |
| `InvalidArgument` | `path` is not absolute, or what is there is no FIFO (the text says what it is) |
| `Exists` | `Create`: something has this path, a dangling symbolic link included |
| `NotFound` | `Attach`: nothing has this path; `Create`: its directory is missing |
| `PermissionDenied` | the kernel does not let the caller search the path, make, read or write the FIFO |
| `LimitExceeded` | `capacity` beyond fs.pipe-max-size or the user's share of pipe memory; disk quota |
| `Closed` | the direction was shut down; `Write`: the last reader has gone |
| `Busy` | `Open` with `end=write` while no process has the FIFO open for reading |
| `Gone` | `Remove`: the path no longer leads to this FIFO |
| `Errno.ELOOP`, `Errno.ENOTDIR`, `Errno.ENAMETOOLONG`, `Errno.EROFS` | as path_resolution(7) says |

Not offered: message borders, because a FIFO has none (packet mode, O_DIRECT, is for one writer and
one reader that agree on it: use a pipe with `packet=true` or a unix socket of type seqpacket); news of
data by inotify, because the kernel reports none for FIFOs.";

fn create(parameters: &Parameters) -> Result<Opening> {
    let path = path_of(parameters)?;
    let mode = parameters.mode();
    let attempt = || format!("create the FIFO {}", path.display());
    let (directory, name) = split(&path)?;
    // The directory is pinned too: what is made and what is opened are in the same one.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty()).attempted(attempt)?;
    match rustix::fs::mkfifoat(&directory, name, Mode::from_raw_mode(mode & 0o777)) {
        Err(Errno::EXIST) => {
            return Err(Error::from_errno(Errno::EXIST, attempt()).help("Attach opens what exists"));
        }
        other => other.attempted(attempt)?,
    }
    // What was made is taken away again when something goes wrong, and that error is the one to tell.
    let undo = |_: &Error| {
        let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pinned = rustix::fs::openat(&directory, name, flags, Mode::empty()).attempted(attempt);
    let pinned = Fd::from(pinned.inspect_err(undo)?);
    let stat = must_be_fifo(&pinned, &path)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Error::new(
            Kind::Gone,
            format!("{} was replaced by another user's FIFO while it was created", path.display()),
        ));
    }
    let capacity = parameters.size("capacity");
    prepare(&pinned, &path, &stat, mode, capacity)
        .and_then(|()| Fifo::new(path.clone(), pinned, capacity, parameters.bool("hold")))
        .map(Opening::from)
        .inspect_err(undo)
}

/// Gives a FIFO that was just made its mode, and makes sure that the capacity is possible.
fn prepare(pinned: &Fd, path: &Path, stat: &Stat, mode: u32, capacity: Option<u64>) -> Result<()> {
    if let Some(capacity) = capacity {
        // Nobody can know of it yet, so a reader for a moment disturbs nobody; a mode without the
        // right to read is no mistake.
        if let Ok(end) = fd::reopen(pinned, OFlags::RDONLY | OFlags::NONBLOCK) {
            pipe_io::set_capacity(&end.into(), capacity)?;
        }
    }
    if stat.st_mode & 0o7777 != mode {
        rustix::fs::chmod(fd::proc_path(pinned), Mode::from_raw_mode(mode))
            .attempted(|| format!("set the mode of {} to {mode:04o}", path.display()))?;
    }
    Ok(())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let path = path_of(parameters)?;
    let attempt = || format!("attach to the FIFO {}", path.display());
    let pinned =
        rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).attempted(attempt)?;
    let pinned = Fd::from(pinned);
    must_be_fifo(&pinned, &path)?;
    let may = |access| rustix::fs::accessat(CWD, fd::proc_path(&pinned), access, AtFlags::EACCESS);
    if may(Access::READ_OK).is_err() {
        may(Access::WRITE_OK).attempted(|| format!("read or write the FIFO {}", path.display()))?;
    }
    // The address shall lead there without the links that led here.
    let path = real_path(&pinned).unwrap_or(path);
    Ok(Fifo::new(path, pinned, parameters.size("capacity"), parameters.bool("hold"))?.into())
}

fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    let link = fd::link(&adopted)?;
    if fd::file_type(&adopted)? != FileType::Fifo || !link.starts_with(b"/") {
        return Ok(Adoption::Refused(adopted));
    }
    let access = fd::access(&adopted)?;
    let pinned = Fd::from(fd::reopen(&adopted, OFlags::PATH).attempted(|| "pin the FIFO")?);
    let path = PathBuf::from(OsStr::from_bytes(&link));
    let fifo = Fifo::new(path, pinned, None, false)?;
    // An O_PATH fd has no direction of its own and stands for the path.
    if access != (false, false) {
        fifo.ends.take_over(access)?;
    }
    Ok(Adoption::Taken(Box::new(fifo)))
}

fn path_of(parameters: &Parameters) -> Result<PathBuf> {
    parameters.path("path")?.ok_or_else(|| Error::invalid("the key \"path\" is missing"))
}

/// Directory and name, as mkfifo(3) would split them.
fn split(path: &Path) -> Result<(&OsStr, &OsStr)> {
    let bytes = path.as_os_str().as_bytes();
    match bytes.iter().rposition(|&byte| byte == b'/').map(|slash| bytes.split_at(slash + 1)) {
        Some((directory, name)) if !name.is_empty() => {
            Ok((OsStr::from_bytes(directory), OsStr::from_bytes(name)))
        }
        _ => Err(Error::invalid(format!("the path {} must end in the FIFO's name, not in '/'", path.display()))),
    }
}

fn must_be_fifo(pinned: &Fd, path: &Path) -> Result<Stat> {
    let stat = fd::stat(pinned)?;
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => return Ok(stat),
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "something else",
    };
    Err(Error::invalid(format!("{} is not a FIFO but {what}", path.display())))
}

/// The path of a pinned inode that the kernel knows, where it leads there.
fn real_path(pinned: &Fd) -> Option<PathBuf> {
    let path = PathBuf::from(OsStr::from_bytes(&fd::link(pinned).ok()?));
    same_inode(&rustix::fs::lstat(&path).ok()?, &fd::stat(pinned).ok()?).then_some(path)
}

fn same_inode(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Every FIFO that a visible process has open, grouped by device and inode.
fn list() -> Result<Vec<Dict>> {
    let held = proc::held(|link| link.starts_with(b"/"));
    let mut fifos: BTreeMap<(u32, u32, u64), Vec<&proc::Held>> = BTreeMap::new();
    for holder in &held {
        // Not synchronised with a server: a dead network file system must not stop the list.
        let path = proc::fd_path(holder.pid, holder.fd);
        let wanted = StatxFlags::TYPE | StatxFlags::INO;
        let Ok(stat) = rustix::fs::statx(CWD, &path, AtFlags::STATX_DONT_SYNC, wanted) else { continue };
        if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Fifo {
            let key = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            fifos.entry(key).or_default().push(holder);
        }
    }
    Ok(fifos.values().filter_map(|holders| row(holders)).collect())
}

fn row(holders: &[&proc::Held]) -> Option<Dict> {
    let first = holders.first()?;
    let stat = rustix::fs::stat(proc::fd_path(first.pid, first.fd)).ok()?;
    let mut row = dict! {
        "path" => Value::text_or_bytes(&first.link),
        "mode" => stat.st_mode & 0o7777,
        "owner" => stat.st_uid,
        "group" => stat.st_gid,
        "inode" => stat.st_ino,
        "holders" => proc::holders(holders),
    };
    // Not for a path of another mount namespace, nor for one that was removed.
    let path = OsStr::from_bytes(&first.link);
    if rustix::fs::lstat(path).is_ok_and(|found| same_inode(&found, &stat)) {
        row.insert("address".into(), address(Path::new(path)).to_string().into());
    }
    // One more reader disturbs nobody where there is one; else it would let waiting writers in.
    let reads = |held: &&&proc::Held| matches!(proc::access(held.pid, held.fd), "read" | "read-write");
    let reader = holders.iter().find(reads);
    if let Some(reader) = reader
        && let Some(pinned) = proc::pinned_fifo(reader, |found| same_inode(found, &stat))
        && let Ok(end) = fd::reopen(&pinned, OFlags::RDONLY | OFlags::NONBLOCK)
        && let Ok(state) = pipe_io::inspect(&end.into())
    {
        row.extend(state);
    }
    Some(row)
}

fn limits() -> Dict {
    let mut limits = pipe_io::limits();
    if let Some(value) = proc::sysctl("fs/protected_fifos") {
        limits.insert("fs.protected_fifos".into(), value.into());
    }
    limits
}

fn address(path: &Path) -> Address {
    Address::new("fifo").with("path", path.as_os_str().as_bytes())
}

struct Fifo {
    path: PathBuf,
    hold: bool,
    ends: Ends,
}

impl Fifo {
    fn new(path: PathBuf, pinned: Fd, capacity: Option<u64>, hold: bool) -> Result<Self> {
        let ends = Ends::new(pinned, capacity);
        if hold {
            ends.hold()?;
        }
        Ok(Self { path, hold, ends })
    }
}

impl Endpoint for Fifo {
    fn address(&self) -> Address {
        address(&self.path)
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Stream]
    }

    fn inspect(&self) -> Result<Dict> {
        let stat = fd::stat(self.ends.pinned())?;
        let mut state = dict! {
            "path" => Value::text_or_bytes(self.path.as_os_str().as_bytes()),
            "mode" => stat.st_mode & 0o7777,
            "uid" => stat.st_uid,
            "gid" => stat.st_gid,
            "inode" => stat.st_ino,
            "hold" => self.hold,
            "removed" => stat.st_nlink == 0,
        };
        state.extend(self.ends.inspect()?);
        Ok(state)
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        self.ends.open(options.text("end").unwrap_or("read").parse()?)
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        let pinned = self.ends.pinned();
        let attempt = |what: &str| format!("change the {what} of {}", self.path.display());
        // The owner first: chown(2) clears set-id bits of the mode.
        if permissions.uid.is_some() || permissions.gid.is_some() {
            let uid = permissions.uid.map(rustix::fs::Uid::from_raw);
            let gid = permissions.gid.map(rustix::fs::Gid::from_raw);
            rustix::fs::chownat(pinned, "", uid, gid, AtFlags::EMPTY_PATH).attempted(|| attempt("owner"))?;
        }
        if let Some(mode) = permissions.mode {
            rustix::fs::chmod(fd::proc_path(pinned), Mode::from_raw_mode(mode)).attempted(|| attempt("mode"))?;
        }
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let path = self.path.display();
        let gone = |why: &str| Error::new(Kind::Gone, format!("cannot remove {path}: {why}"));
        let found = match rustix::fs::lstat(&self.path) {
            Err(Errno::NOENT) => return Err(gone("nothing has this path any more")),
            other => other.attempted(|| format!("remove {path}"))?,
        };
        if !same_inode(&found, &fd::stat(self.ends.pinned())?) {
            return Err(gone("the path leads to something else now"));
        }
        match rustix::fs::unlink(&self.path) {
            Err(Errno::NOENT) => Err(gone("nothing has this path any more")),
            other => other.attempted(|| format!("remove {path}")),
        }
    }

    fn stream(&self) -> Option<&dyn Stream> {
        Some(self)
    }
}

impl Stream for Fifo {
    fn read(&self, max: usize) -> Result<Attempt<Vec<u8>>> {
        self.ends.read(max)
    }

    fn write(&self, data: &[u8]) -> Result<Attempt<usize>> {
        self.ends.write(data)
    }

    fn continues(&self) -> bool {
        true
    }

    fn shutdown(&self, direction: Direction) -> Result<()> {
        self.ends.shutdown(direction)
    }

    fn source(&self) -> Result<Attempt<End>> {
        self.ends.source()
    }

    fn sink(&self) -> Result<Attempt<End>> {
        self.ends.sink()
    }

    fn depth(&self) -> Result<u64> {
        self.ends.depth()
    }
}
