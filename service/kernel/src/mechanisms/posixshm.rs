//! POSIX shared memory, shm_overview(7), as glibc makes it.
//!
//! An object is a file in `/dev/shm` and nothing else: what shm_open(3) opens by a name, we open
//! as the file of that name. What memory can do is done in [`SharedFile`]; this file makes, finds
//! and describes the objects.

use std::os::{fd::OwnedFd, unix::ffi::OsStrExt};

use rustix::{
    fs::{FileType, OFlags},
    process::{Resource, getrlimit},
};

use crate::{
    Ability, Lack, Address, Descriptor, Dict, Endpoint, Opening, Parameter, Parameters, Result, Type, Value,
    dev_shm::{self, Entry},
    dict, fd,
    guard::MAX_MAPPINGS,
    mechanism::{Adoption, Column, Permissions},
    memory_file,
    memory_io::{self, SharedFile, Window},
    named_file::{self, Identity},
    shape::{Memory, Shape},
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "posixshm",
    schemes: &["posixshm"],
    summary: "POSIX shared memory, shared with programs that call shm_open(3)",
    shapes: &[Shape::Memory],
    create_parameters: &[
        NAME,
        Parameter::new("size", Type::Size { min: 0, max: i64::MAX as u64 }, "Bytes of memory").required(),
        MODE,
    ],
    attach_parameters: &[NAME, memory_file::OFFSET, memory_file::LENGTH, memory_file::ACCESS],
    columns: &[
        Column { key: "name", kind: "s", summary: "Name for shm_open(3) (ay where it is not UTF-8)" },
        Column { key: "address", kind: "s", summary: "Address for Attach" },
        Column { key: "size", kind: "t", summary: "Size in bytes" },
        Column { key: "allocated", kind: "t", summary: "Bytes of memory in use" },
        Column { key: "owner", kind: "u", summary: "User id of the owner" },
        Column { key: "group", kind: "u", summary: "Group id of the owner" },
        Column { key: "mode", kind: "u", summary: "Permission bits" },
        Column { key: "inode", kind: "t", summary: "Inode number" },
        Column { key: "accessed", kind: "t", summary: "Time of the last read(2), in microseconds since the epoch; loads through a mapping do not change it" },
        Column { key: "modified", kind: "t", summary: "Time of the last write(2) or change of size; stores through a mapping do not change it" },
        Column { key: "changed", kind: "t", summary: "Time of the last change of mode, owner or links" },
        Column { key: "holders", kind: "aa{sv}", summary: "Processes that have it open (pid, command, fd, access) or map it (pid, command, mapped, access)" },
        Column { key: "stale", kind: "b", summary: "No process that the caller may look into has it open or maps it" },
    ],
    open_parameters: &[memory_file::OPEN_ACCESS],
    create,
    anonymous: |_| false,
    attach,
    adopt,
    list: || Ok(list()?.into()),
    limits,
    available: dev_shm::available,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Wait,
            "the kernel tells nobody about stores into memory; `WatchRange` looks for changes, and a `futex` in it can be waited on",
        ),
    ],
    reference: REFERENCE,
};

const NAME: Parameter =
    Parameter::new("name", Type::Path, "A slash and 1 to 255 bytes without further slashes, as for shm_open(3)")
        .required();

/// NAME_MAX of a file name (limits.h).
const NAME_MAX: usize = 255;

const REFERENCE: &str = "\
Shared memory with a name that every process of the machine can open: `posixshm:name=/frames` is what C
programs call `shm_open(\"/frames\")`, on glibc a file in /dev/shm. It stays until it is removed or the
machine goes down, whether or not anybody uses it.

`Create` appears under its name only when it has its size; `mode` is exact whatever the umask. Its bytes
are allocated at once (fallocate(2)), also when `Resize` makes it larger: without that, a store into a full
/dev/shm would end the program with SIGBUS. `Attach` opens what exists, a regular file and no symbolic link,
for reading and writing or with `access=read-only`. `offset` and `length` select a range: offsets of `Read`
and `Write` count from its start, and it cannot be resized. `length=0` means: to the end, also when that moves.
A name that begins with `sem.` is that of a semaphore (see `posixsem`): it can be attached, as by
shm_open(3), and is not in `List()`.

`Read` and `Write` use pread(2) and pwrite(2): a peer that truncates the memory causes an error, never
a crash. `Load`, `Store`, `CompareExchange` and `FetchAdd` act on the shared word itself, atomically and
sequentially consistent, also against programs that map it. `f32` and `f64` words are compared by their bits.

`Open` hands out a file descriptor of the *whole* object, also for a range. `access=read-only` re-opens it
O_RDONLY: the receiver cannot map it for writing. To keep the owner's other processes from opening it by name,
use its mode.

`Remove` unlinks the name if it still means this object; those who have it open or mapped keep it
(shm_unlink(3)). `named` in `Inspect()` says whether shm_open(3) of the name would find this object.
`stale` in `List()` means that no process that the caller may look into has it open or maps it; who made an
object, the kernel does not keep. Programs that only come back later to their memory look stale, too.

systemd-logind with `RemoveIPC=yes` removes a user's objects at the end of his last session. Huge pages are the
choice of whoever mounts /dev/shm (`huge=` in tmpfs(5), `shm-huge` in `Limits`).

| error | when |
| --- | --- |
| `InvalidArgument` | the name breaks the rules; it is no regular file; a range does not lie within the memory; a word is not aligned |
| `Exists` | `Create` finds the name taken |
| `NotFound` | `Attach` finds no object of that name |
| `PermissionDenied` | the object's mode; the memory was opened read-only; `Remove` of another user's object (/dev/shm is sticky) |
| `LimitExceeded` | /dev/shm is full; RLIMIT_FSIZE |
| `TooLarge` | a size that the file system cannot hold |
| `Gone` | another process truncated the memory while it was read, or the range away from under the endpoint; `Remove`: the name is gone or another object has it |
| `NotSupported` | `Seal`: the kernel seals only memfds |
| `Unavailable` | /dev/shm is not mounted |

Sources: shm_overview(7), shm_open(3), ftruncate(2), fallocate(2), tmpfs(5), pread(2).

Not offered: seals, because the kernel refuses them on files with a name (fcntl(2), EPERM): use `mmap` for
memory that is sealed; O_TRUNC at opening, because `Resize` does it without a moment in which the wrong object
is emptied.";

fn create(parameters: &Parameters) -> Result<Opening> {
    let name = name(parameters)?;
    // The table demands it.
    let size = parameters.size("size").unwrap_or(0);
    let path = dev_shm::path(&name);
    let file = named_file::create(&path, parameters.mode(), |file| memory_io::resize(file, size, true, None))?;
    PosixMemory::opening(file, name, Window::default())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let name = name(parameters)?;
    let flags = memory_file::flags(parameters);
    let (file, _) = named_file::open_regular(&dev_shm::path(&name), flags, OFlags::NOFOLLOW)
        .map_err(|error| memory_file::may_help(error, parameters))?;
    PosixMemory::opening(file, name, memory_file::window(parameters))
}

fn name(parameters: &Parameters) -> Result<Vec<u8>> {
    let given = parameters.bytes("name").unwrap_or_default();
    Ok(dev_shm::name(given, "shared memory", NAME_MAX)?.to_owned())
}

/// Takes what has a name in /dev/shm and is no semaphore's; must be asked before `mmap`, which takes
/// every file.
fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    let link = fd::link(&adopted)?;
    let name = link.strip_prefix(dev_shm::DIRECTORY.as_bytes()).and_then(|rest| rest.strip_prefix(b"/"));
    let Some(name) = name.filter(|name| !name.starts_with(dev_shm::SEMAPHORE)) else {
        return Ok(Adoption::Refused(adopted));
    };
    let stat = fd::stat(&adopted)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    // A name that has gone, or one of another /dev/shm, would lead Attach elsewhere.
    if !regular || name.contains(&b'/') || named(name) != Some(Identity::from(&stat)) {
        return Ok(Adoption::Refused(adopted));
    }
    let own = memory_file::own_description(adopted)?;
    Ok(Adoption::Taken(Box::new(PosixMemory::new(own, name.to_owned(), Window::default())?)))
}

/// What the name means at this moment.
fn named(name: &[u8]) -> Option<Identity> {
    rustix::fs::lstat(dev_shm::path(name)).ok().map(|stat| Identity::from(&stat))
}

fn address(name: &[u8]) -> Address {
    Address::new("posixshm").with("name", [b"/", name].concat())
}

fn list() -> Result<Vec<Dict>> {
    let entries = dev_shm::entries(|name| !name.starts_with(dev_shm::SEMAPHORE))?;
    Ok(entries.into_iter().map(row).collect())
}

fn row(Entry { file_name, stat, holders }: Entry) -> Dict {
    let mut row = dict! {
        "address" => address(&file_name).to_string(),
        "size" => u64::try_from(stat.st_size).unwrap_or(0),
        // stat(2) counts in units of 512 bytes.
        "allocated" => u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
        "owner" => stat.st_uid,
        "group" => stat.st_gid,
        "stale" => holders.is_empty(),
        "holders" => holders,
    };
    row.insert("name".into(), Value::text_or_bytes(&[b"/", &file_name[..]].concat()));
    row.extend(named_file::inspect(&stat).into_iter().filter(|(key, _)| {
        matches!(key.as_str(), "mode" | "inode" | "accessed" | "modified" | "changed")
    }));
    row
}

fn limits() -> Dict {
    let mut limits = dev_shm::limits();
    limits.extend(dict! {
        "NAME_MAX" => NAME_MAX as u64,
        "mappings" => MAX_MAPPINGS as u64,
        "shm-huge" => dev_shm::huge(),
    });
    // Absent: no limit.
    if let Some(value) = getrlimit(Resource::Fsize).current {
        limits.insert("RLIMIT_FSIZE".to_owned(), value.into());
    }
    limits
}

struct PosixMemory {
    memory: SharedFile,
    /// Without the slash.
    name: Vec<u8>,
    identity: Identity,
}

impl PosixMemory {
    fn new(file: OwnedFd, name: Vec<u8>, window: Window) -> Result<Self> {
        let identity = Identity::from(&fd::stat(&file)?);
        Ok(Self { memory: SharedFile::new(file, window, true)?, name, identity })
    }

    fn opening(file: OwnedFd, name: Vec<u8>, window: Window) -> Result<Opening> {
        Ok(Self::new(file, name, window)?.into())
    }
}

impl Endpoint for PosixMemory {
    fn address(&self) -> Address {
        memory_file::address(address(&self.name), &self.memory)
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Memory]
    }

    fn inspect(&self) -> Result<Dict> {
        let mut state = self.memory.inspect()?;
        let path = dev_shm::path(&self.name);
        state.extend(dict! {
            "path" => Value::text_or_bytes(path.as_os_str().as_bytes()),
            "named" => named(&self.name) == Some(self.identity),
        });
        Ok(state)
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        memory_file::open(&self.memory, options)
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        named_file::set_permissions(self.memory.fd(), permissions)
    }

    fn remove(&self) -> Result<()> {
        named_file::remove_same(&dev_shm::path(&self.name), self.identity)
    }

    fn memory(&self) -> Option<&dyn Memory> {
        Some(&self.memory)
    }
}
