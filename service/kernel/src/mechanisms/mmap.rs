//! Shared memory by mmap(2): memfds and files.
//!
//! An endpoint is a file and a window into it. What memory can do is done in [`SharedFile`]; this
//! file makes, finds and describes the objects. A memfd has no name that could be opened: it is
//! found by its inode ([`nameless`]).

use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags};

use crate::{
    Ability, Lack, Address, Descriptor, Dict, Endpoint, Error, Opening, Parameter, Parameters, Result, Type,
    error::Attempted,
    fd,
    mechanism::{Adoption, Permissions},
    memory_file,
    memory_io::{self, SEAL_NAMES, SharedFile, Window},
    memory_list,
    named_file::{self, Identity},
    nameless,
    shape::{Memory, Shape},
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "mmap",
    schemes: &["mmap"],
    summary: "Shared memory: memfds, and files mapped by mmap(2)",
    shapes: &[Shape::Memory],
    create_parameters: &[
        Parameter::new("size", BYTES, "Bytes of memory").required(),
        Parameter::new("path", Type::Path, "Absolute path of a new file; without it, a memfd is made"),
        MODE,
        Parameter::new("name", Type::Path, "Name of the memfd in /proc, at most 249 bytes, not unique; org.example.IPC if absent"),
        Parameter::new("seals", Type::Words(SEAL_NAMES), "Seals to put on the memfd (fcntl(2), F_ADD_SEALS)"),
        Parameter::new("huge", Type::Word(memory_list::HUGE_NAMES), "Page size of a memfd of huge pages (MFD_HUGETLB)"),
    ],
    attach_parameters: &[
        Parameter::new("path", Type::Path, "Absolute path of a regular file"),
        Parameter::new("inode", Type::U64 { min: 1, max: u64::MAX }, "Inode of a memfd that some process holds"),
        Parameter::new("pid", Type::U32 { min: 1, max: i32::MAX as u32 }, "Process that holds a memfd or file"),
        Parameter::new("fd", Type::U32 { min: 0, max: i32::MAX as u32 }, "Number of the file descriptor in that process"),
        Parameter::new("address", Type::U64 { min: 0, max: u64::MAX }, "Instead of fd: an address at which that process shares memory (MAP_SHARED)"),
        memory_file::OFFSET,
        memory_file::LENGTH,
        memory_file::ACCESS,
    ],
    columns: memory_list::COLUMNS,
    open_parameters: &[memory_file::OPEN_ACCESS],
    create,
    anonymous: |parameters| !parameters.has("path"),
    attach,
    adopt,
    list: || Ok(memory_list::memfds()?.into()),
    limits: memory_list::limits,
    available: || Ok(()),
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Wait,
            "the kernel tells nobody about stores into memory; `WatchRange` looks for changes, and a `futex` in it can be waited on",
        ),
    ],
    reference: REFERENCE,
};

const BYTES: Type = Type::Size { min: 1, max: i64::MAX as u64 };
const REFERENCE: &str = "\
`Create` with `size` makes a memfd (memfd_create(2)): memory without a name, freed when its last
file descriptor and mapping are gone. It is made with MFD_ALLOW_SEALING and, where the kernel has it,
MFD_NOEXEC_SEAL: it cannot become executable. `Create` with `path` makes a file of that size; its
bytes are allocated where the file system can (fallocate(2)), so that a later store does not run out
of space (SIGBUS). The file appears under its name only when it is complete.

`Attach` opens a regular file by `path`, or a memfd by `inode` or by `pid` and `fd`, through
`/proc/PID/fd`; the kernel demands the same rights as for tracing that process (ptrace(2)). With `pid` and
`address` it opens what that process shares at an address, also memory that nobody has a file descriptor of
(MAP_ANONYMOUS), through `/proc/PID/map_files`, which takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
`offset` and `length` select a range: offsets of `Read` and `Write` count from its start, and it cannot
be resized. `length=0` means: to the end of the file, also when that moves.

`Read` and `Write` use pread(2) and pwrite(2): a peer that truncates the memory causes an error, never
a crash. `Load`, `Store`, `CompareExchange` and `FetchAdd` act on the shared word itself, atomically and
sequentially consistent, also against programs that map it. `f32` and `f64` words are compared by their bits.
`Allocate` sets space aside (fallocate(2)), `PunchHole` gives it back and leaves zeros, for everybody. The kernel tells
nobody of stores through a mapping: `WatchRange` looks for changes.

`Open` hands out a file descriptor of the *whole* file, also for a range. `access=read-only` opens it
O_RDONLY; but a process of the same user can re-open a memfd for writing through its own `/proc/self/fd`
where the mode lets it. To keep readers from writing, seal the memory (`write`, or `future-write` for
those who map it later).

`Seal` fails with `Busy` as long as any process has a writable mapping (for `write`); the service
itself keeps none. Files and shm_open(3) objects cannot be sealed, only memfds (fcntl(2)).

| error | when |
| --- | --- |
| `InvalidArgument` | the path is not a regular file; a range does not lie within the memory; a word is not aligned |
| `Exists` | `Create` finds the path taken |
| `NotFound` | no such file; no process that the caller may look into holds the memfd |
| `PermissionDenied` | the file's mode; a seal, which is named; the memory was opened read-only |
| `LimitExceeded` | the file system or the huge pages are used up; RLIMIT_FSIZE |
| `TooLarge` | a size that the file system cannot hold |
| `Gone` | another process truncated the memory while it was read, or the range away from under the endpoint; `Remove`: the name is gone or another file has it |
| `Busy` | `Seal` with `write` while it is mapped for writing |
| `NotSupported` | `Seal` on a file; `Remove` of a memfd, which has no name |

Sources: memfd_create(2), mmap(2), fcntl(2) \"File Sealing\", fallocate(2), pread(2).

Not offered: executable memfds (MFD_EXEC), because shared memory has no need to be code;
memfd_secret(2), because the kernel keeps it from every system call, also the service's; madvise(2), msync(2) and
MAP_SYNC (DAX), because they act on a mapping of the process that asks, and the service's own lasts for one
operation: `Open`, and map it; copy_file_range(2) and sendfile(2), because `Relay` copies between memory, files and
streams; unique names for memfds, because the kernel has none: `Adopt` with `lifetime=service` keeps a memfd, and
others find it by `List({\"name\": …})` and its `address`; where a name must be unique, use `posixshm`.";

fn create(parameters: &Parameters) -> Result<Opening> {
    // The table demands it.
    let size = parameters.size("size").unwrap_or(0);
    match parameters.path("path")? {
        Some(path) => create_file(path, size, parameters),
        None => create_memfd(size, parameters),
    }
}

fn create_file(path: PathBuf, size: u64, parameters: &Parameters) -> Result<Opening> {
    for key in ["name", "seals", "huge"] {
        if parameters.has(key) {
            return Err(Error::invalid(format!("the key {key:?} is for memfds; leave out \"path\"")));
        }
    }
    let file = named_file::create(&path, parameters.mode(), |file| memory_io::resize(file, size, true, None))?;
    let identity = Identity::from(&fd::stat(&file)?);
    let memory = SharedFile::new(file, Window::default(), true)?;
    Ok(Mmap { memory, identity, path: Some(path) }.into())
}

fn create_memfd(size: u64, parameters: &Parameters) -> Result<Opening> {
    let name = parameters.bytes("name").unwrap_or(b"org.example.IPC");
    if name.len() > 249 {
        return Err(Error::invalid(format!(
            "the key \"name\" has {} bytes; the name of a memfd has at most 249 (memfd_create(2))",
            name.len()
        )));
    }
    let mut flags = MemfdFlags::ALLOW_SEALING;
    let mut page = None;
    if let Some(huge) = parameters.text("huge") {
        let bytes = memory_list::huge_page(huge)?;
        if !size.is_multiple_of(bytes) {
            return Err(Error::invalid(format!("with huge={huge}, \"size\" must be a multiple of {bytes}")));
        }
        // memfd_create(2): the binary logarithm of the size in the six bits from 26.
        flags |= MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(bytes.trailing_zeros() << 26);
        page = Some(bytes);
    }
    let file = nameless::memfd(name, flags)?;
    // Not the execute bits, which are sealed away.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(parameters.mode() & 0o666))
        .attempted(|| "set the mode of the memfd")?;
    memory_io::resize(&file, size, false, page)?;
    if let Some(seals) = parameters.texts("seals") {
        memory_io::add_seals(&file, seals)?;
    }
    let identity = Identity::from(&fd::stat(&file)?);
    let memory = SharedFile::new(file, Window::default(), false)?;
    Ok(Mmap { memory, identity, path: None }.into())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let flags = memory_file::flags(parameters);
    let within = (parameters.u32("pid"), parameters.u32("fd"), parameters.size("address"));
    let (opened, path) = match (parameters.path("path")?, parameters.size("inode"), within) {
        (Some(path), None, (None, None, None)) => {
            (named_file::open_regular(&path, flags, OFlags::empty()), Some(path))
        }
        (None, Some(inode), (None, None, None)) => {
            (nameless::open_held(nameless::find_held(inode)?, flags), None)
        }
        (None, None, (Some(pid), Some(fd), None)) => (nameless::open_held((pid, fd), flags), None),
        (None, None, (Some(pid), None, Some(address))) => (nameless::open_mapped(pid, address, flags), None),
        _ => {
            return Err(Error::invalid(
                "mmap needs one of: the key \"path\", the key \"inode\", both \"pid\" and \"fd\", or both \"pid\" \
                 and \"address\"",
            ));
        }
    };
    let (file, stat) = opened.map_err(|error| memory_file::may_help(error, parameters))?;
    let path = match path {
        Some(path) => Some(path),
        None => nameless::path_of(&file)?,
    };
    let memory = SharedFile::new(file, memory_file::window(parameters), path.is_some())?;
    Ok(Mmap { memory, identity: Identity::from(&stat), path }.into())
}

/// Takes memfds and regular files. Mechanisms for files of a certain kind (POSIX semaphores) stand
/// before this one in the register and are asked first.
fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    let stat = fd::stat(&adopted)?;
    nameless::refuse_secret(&fd::link(&adopted)?)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Adoption::Refused(adopted));
    }
    let own = memory_file::own_description(adopted)?;
    let path = nameless::path_of(&own)?;
    let memory = SharedFile::new(own, Window::default(), path.is_some())?;
    Ok(Adoption::Taken(Box::new(Mmap { memory, identity: Identity::from(&stat), path })))
}

struct Mmap {
    memory: SharedFile,
    identity: Identity,
    /// None for memfds.
    path: Option<PathBuf>,
}

impl Endpoint for Mmap {
    fn address(&self) -> Address {
        let file = match &self.path {
            Some(path) => Address::new("mmap").with("path", path.as_os_str().as_bytes()),
            None => Address::new("mmap").with("inode", self.identity.inode.to_string()),
        };
        memory_file::address(file, &self.memory)
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Memory]
    }

    fn inspect(&self) -> Result<Dict> {
        let mut state = self.memory.inspect()?;
        let key = if self.path.is_some() { "path" } else { "name" };
        let link = fd::link(self.memory.fd())?;
        let name = if self.path.is_some() { &link[..] } else { memory_list::memfd_name(&link) };
        state.insert(key.into(), crate::Value::text_or_bytes(name));
        Ok(state)
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        memory_file::open(&self.memory, options)
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        named_file::set_permissions(self.memory.fd(), permissions)
    }

    fn remove(&self) -> Result<()> {
        match &self.path {
            Some(path) => named_file::remove_same(path, self.identity),
            None => Err(Error::not_supported(
                "a memfd has no name to remove; it goes when its last file descriptor and mapping are gone",
            )),
        }
    }

    fn memory(&self) -> Option<&dyn Memory> {
        Some(&self.memory)
    }
}
