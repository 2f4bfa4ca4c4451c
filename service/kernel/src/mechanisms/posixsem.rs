//! Named POSIX semaphores, sem_overview(7), as glibc makes them.
//!
//! A named semaphore is a file `/dev/shm/sem.NAME` with a `sem_t` in it. The kernel knows nothing
//! of it: programs that map the file change the word in it and sleep on it as a futex, and so do
//! we ([`SemaphoreWord`]). The service never sleeps in sem_wait(3); it waits for the words of all
//! semaphores together.

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, OFlags};

use crate::{
    Address, Attempt, Descriptor, Dict, Endpoint, Error, Fd, Kind, Opening, Parameter, Parameters, Result,
    Type, Value, dict,
    error::Attempted,
    fd::{self, retry},
    mechanism::{Adoption, Column, Permissions},
    named_file::{self, Identity},
    proc,
    semaphore_word::{self, SemaphoreWord, State},
    shape::{Semaphore, Shape},
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "posixsem",
    schemes: &["posixsem"],
    summary: "Named POSIX semaphores, shared with programs that call sem_open(3)",
    shapes: &[Shape::Semaphore],
    create_parameters: &[
        NAME,
        Parameter::new("value", Type::U32 { min: 0, max: semaphore_word::VALUE_MAX }, "Initial value").default("1"),
        MODE,
    ],
    attach_parameters: &[NAME],
    columns: &[
        Column { key: "name", kind: "s", summary: "Name for sem_open(3) (ay where it is not UTF-8)" },
        Column { key: "address", kind: "s", summary: "Address for Attach" },
        Column { key: "value", kind: "i", summary: "Value, where the caller may read it" },
        Column { key: "waiters", kind: "u", summary: "Threads that wait, this service's included; those that were killed stay counted" },
        Column { key: "owner", kind: "u", summary: "User id of the owner" },
        Column { key: "group", kind: "u", summary: "Group id of the owner" },
        Column { key: "mode", kind: "u", summary: "Permission bits; using it needs read and write" },
        Column { key: "inode", kind: "t", summary: "Inode number" },
        Column { key: "accessed", kind: "t", summary: "Time of the last read(2), in microseconds since the epoch" },
        Column { key: "modified", kind: "t", summary: "Time of creation or of the last write(2); Post and Wait do not change it" },
        Column { key: "changed", kind: "t", summary: "Time of the last change of mode, owner or links" },
        Column { key: "holders", kind: "aa{sv}", summary: "Processes that have it open: pid, command, mapped or fd, access" },
    ],
    open_parameters: &[],
    create,
    anonymous: |_| false,
    attach,
    adopt,
    list,
    listing: None,
    limits,
    available,
    driver: None,
    reference: REFERENCE,
};

const NAME: Parameter =
    Parameter::new("name", Type::Path, "A slash and 1 to 251 bytes without further slashes, as for sem_open(3)")
        .required();

/// NAME_MAX without the "sem." that glibc puts before the name.
const NAME_MAX: usize = 251;

const DIRECTORY: &str = "/dev/shm";
const PREFIX: &[u8] = b"/dev/shm/sem.";

const REFERENCE: &str = "\
A named semaphore is a counter that processes share by its name: `posixsem:name=/jobs` is what C
programs call `sem_open(\"/jobs\")`. The service follows glibc's protocol on 64-bit machines exactly: a
`Post` wakes a program in sem_wait(3), and sem_post(3) wakes a `Wait`. Programs with another layout (32-bit
ones, and those of other C libraries) do not share semaphores with glibc, nor with this service.

`Create` appears under its name only when it is complete, as in sem_open(3); `mode` is exact whatever the
umask. `Attach` needs read and write permission. `Post` adds all of its count or nothing. `Open` hands out
the file for mmap(2) (32 bytes, a `sem_t`). `Remove` unlinks the name; those who have the semaphore open
keep it (sem_unlink(3)).

A semaphore has no owner: a process that dies while it holds one leaves the value low for ever. `Acquire`
gives a lease that does not; `Post` repairs. `waiters` in `Inspect()` counts what the word says; a waiter
that was killed stays counted, which costs a wasted wake-up for each post and nothing else.

systemd-logind with `RemoveIPC=yes` removes a user's semaphores at the end of his last session.

| error | when |
| --- | --- |
| `InvalidArgument` | the name breaks the rules; the file of that name is no semaphore of 32 bytes; `Post` with count 0 |
| `Exists` | `Create` finds the name taken |
| `NotFound` | `Attach` finds no semaphore of that name |
| `PermissionDenied` | the mode lets the caller not read and write it |
| `LimitExceeded` | the value would exceed 2147483647 (SEM_VALUE_MAX); /dev/shm is full |
| `Gone` | another process truncated the file; `Remove`: the name was removed or taken by another object |
| `Busy` | `Wait` that may not wait, while the value is 0 |
| `Unavailable` | /dev/shm is not mounted |

Sources: sem_overview(7), sem_open(3), sem_post(3), sem_wait(3), futex(2), shm_overview(7).

Not offered: unnamed semaphores at an offset in shared memory, because the memory mechanisms' words and
`CompareExchange` serve them, and a `sem_t` cannot be told from other bytes there; setting the value,
because POSIX has no such operation.";

fn create(parameters: &Parameters) -> Result<Opening> {
    let (name, path) = name_and_path(parameters)?;
    // The table has a default.
    let bytes = semaphore_word::initial(parameters.u32("value").unwrap_or(1));
    let file = named_file::create(&path, parameters.mode(), |file| {
        let written = retry(|| rustix::io::pwrite(file, &bytes, 0)).attempted(|| "write the new semaphore")?;
        if written < bytes.len() {
            return Err(Error::new(Kind::LimitExceeded, "cannot write the new semaphore: /dev/shm is full"));
        }
        Ok(())
    })?;
    Ok(PosixSemaphore::new(file, name)?.into())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let (name, path) = name_and_path(parameters)?;
    let (file, _) = named_file::open_regular(&path, OFlags::RDWR, OFlags::NOFOLLOW).map_err(|error| {
        if error.kind == Kind::PermissionDenied {
            return error.help("a semaphore's mode must allow reading and writing");
        }
        error
    })?;
    let (size, state) = examine(&file)?;
    if state.is_none() {
        return Err(Error::invalid(format!(
            "{} is no semaphore of a 64-bit program: it has {size} bytes{}",
            path.display(),
            if size == semaphore_word::SIZE as u64 {
                ", but not the mark of a semaphore that processes share"
            } else {
                " and not 32"
            },
        )));
    }
    Ok(PosixSemaphore::new(file, name)?.into())
}

/// Takes the file of a named semaphore; must be asked before `mmap`, which takes every file.
fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    let link = fd::link(&adopted)?;
    let Some(name) = link.strip_prefix(PREFIX) else {
        return Ok(Adoption::Refused(adopted));
    };
    let regular = fd::file_type(&adopted)? == FileType::RegularFile;
    if !regular || fd::access(&adopted)? != (true, true) || examine(&adopted)?.1.is_none() {
        return Ok(Adoption::Refused(adopted));
    }
    let name = name.strip_suffix(proc::DELETED).unwrap_or(name).to_owned();
    Ok(Adoption::Taken(Box::new(PosixSemaphore::new(adopted, name)?)))
}

/// The size of a file, and the state of the semaphore in it if it is one.
fn examine(file: impl AsFd) -> Result<(u64, Option<State>)> {
    let size = u64::try_from(fd::stat(&file)?.st_size).unwrap_or(0);
    let mut bytes = [0; semaphore_word::SIZE];
    let read =
        retry(|| rustix::io::pread(&file, &mut bytes[..], 0)).attempted(|| "read the semaphore's file")?;
    let whole = size == bytes.len() as u64 && read == bytes.len();
    Ok((size, whole.then_some(bytes).and_then(|bytes| semaphore_word::parse(&bytes))))
}

/// The name without its slash, and the file's path.
fn name_and_path(parameters: &Parameters) -> Result<(Vec<u8>, PathBuf)> {
    let given = parameters.bytes("name").unwrap_or_default();
    let invalid = |why: &str| {
        Err(Error::invalid(format!(
            "the semaphore name {:?} {why}; it must be a slash and 1 to {NAME_MAX} bytes without further \
             slashes (sem_overview(7))",
            String::from_utf8_lossy(given)
        )))
    };
    match given.strip_prefix(b"/") {
        None => invalid("does not begin with '/'"),
        Some(b"") => invalid("is empty after the '/'"),
        Some(name) if name.contains(&b'/') => invalid("has a second '/'"),
        Some(name) if name.len() > NAME_MAX => invalid("is too long"),
        Some(name) => Ok((name.to_owned(), path(name))),
    }
}

fn path(name: &[u8]) -> PathBuf {
    Path::new(DIRECTORY).join(OsStr::from_bytes(&[b"sem.", name].concat()))
}

fn address(name: &[u8]) -> Address {
    Address::new("posixsem").with("name", [b"/", name].concat())
}

fn list() -> Result<Vec<Dict>> {
    let entries = fs::read_dir(DIRECTORY).attempted(|| format!("list {DIRECTORY}"))?;
    // sem_open(3) maps what it creates under a temporary name.
    let mapped = proc::mapped(|mapped| mapped.path.starts_with(DIRECTORY.as_bytes()));
    let held = proc::held(|link| link.starts_with(PREFIX));
    let mut rows = Vec::new();
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(name) = file_name.as_bytes().strip_prefix(b"sem.") else { continue };
        let path = path(name);
        let Ok(stat) = rustix::fs::lstat(&path) else { continue };
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !regular || stat.st_size != semaphore_word::SIZE as i64 {
            continue;
        }
        let mut row = dict! {
            "address" => address(name).to_string(),
            "owner" => stat.st_uid,
            "group" => stat.st_gid,
        };
        row.insert("name".into(), Value::text_or_bytes(&[b"/", name].concat()));
        row.extend(named_file::inspect(&stat).into_iter().filter(|(key, _)| {
            matches!(key.as_str(), "mode" | "inode" | "accessed" | "modified" | "changed")
        }));
        if let Ok((file, _)) = named_file::open_regular(&path, OFlags::RDONLY, OFlags::NOFOLLOW) {
            // Not everything of 32 bytes is a semaphore.
            let Ok((_, Some(state))) = examine(&file) else { continue };
            row.extend(state_dict(state));
        }
        let link = path.as_os_str().as_bytes();
        let mut holders = proc::holders(&held.iter().filter(|held| held.link == link).collect::<Vec<_>>());
        holders.extend(proc::mapped_holders(mapped.iter().filter(|mapped| mapped.is(&stat))));
        row.insert("holders".into(), holders.into());
        rows.push(row);
    }
    Ok(rows)
}

/// The value is a C int for every caller; a larger one can only come from a program that broke it.
fn state_dict(state: State) -> Dict {
    dict! { "value" => as_int(state.value), "waiters" => state.waiters }
}

fn as_int(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn limits() -> Dict {
    let mut limits = dict! { "SEM_VALUE_MAX" => semaphore_word::VALUE_MAX, "NAME_MAX" => NAME_MAX as u64 };
    if let Ok(shm) = rustix::fs::statvfs(DIRECTORY) {
        limits.extend(dict! {
            "shm-size" => shm.f_blocks.saturating_mul(shm.f_frsize),
            "shm-free" => shm.f_bavail.saturating_mul(shm.f_frsize),
            "shm-files" => shm.f_files,
            "shm-files-free" => shm.f_favail,
        });
    }
    limits
}

fn available() -> Result<()> {
    if cfg!(not(target_pointer_width = "64")) {
        return Err(Error::new(
            Kind::Unavailable,
            "this program is a 32-bit one; the semaphores of 32-bit programs have another layout",
        ));
    }
    let unavailable = |why: String| {
        Err(Error::new(
            Kind::Unavailable,
            format!("{why}; mount it with: mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs {DIRECTORY}"),
        ))
    };
    match rustix::fs::statfs(DIRECTORY) {
        Err(errno) => unavailable(format!("there is no {DIRECTORY}: {}", crate::error::describe(errno))),
        Ok(system) if system.f_type as u64 != libc::TMPFS_MAGIC as u64 => {
            unavailable(format!("{DIRECTORY} is not a tmpfs (shm_overview(7))"))
        }
        Ok(_) => Ok(()),
    }
}

struct PosixSemaphore {
    word: SemaphoreWord,
    file: Fd,
    /// Without the slash.
    name: Vec<u8>,
    identity: Identity,
}

impl PosixSemaphore {
    /// Takes a file of the right size, open for reading and writing.
    fn new(file: OwnedFd, name: Vec<u8>) -> Result<Self> {
        let identity = Identity::from(&fd::stat(&file)?);
        Ok(Self { word: SemaphoreWord::map(file.as_fd())?, file: file.into(), name, identity })
    }
}

impl Endpoint for PosixSemaphore {
    fn address(&self) -> Address {
        address(&self.name)
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Semaphore]
    }

    fn inspect(&self) -> Result<Dict> {
        let mut state = named_file::inspect(&fd::stat(&self.file)?);
        state.extend(state_dict(self.word.state()?));
        let named = rustix::fs::lstat(path(&self.name)).map(|stat| Identity::from(&stat));
        state.extend(dict! {
            "path" => Value::text_or_bytes(path(&self.name).as_os_str().as_bytes()),
            // Whether sem_open(3) of the name would find another semaphore, or none.
            "stale" => named != Ok(self.identity),
            "holders" => proc::file_holders(&self.file)?,
        });
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        fd::reopen(&self.file, OFlags::RDWR).attempted(|| "open the semaphore's file for the caller")
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        named_file::set_permissions(&self.file, permissions)
    }

    fn remove(&self) -> Result<()> {
        named_file::remove_same(&path(&self.name), self.identity)
    }

    fn semaphore(&self) -> Option<&dyn Semaphore> {
        Some(self)
    }
}

impl Semaphore for PosixSemaphore {
    fn post(&self, count: u32) -> Result<()> {
        if count == 0 {
            return Err(Error::invalid("the count of a post must be at least 1"));
        }
        self.word.post(count)
    }

    fn wait(&self) -> Result<Attempt<()>> {
        self.word.wait()
    }

    fn value(&self) -> Result<i32> {
        Ok(as_int(self.word.state()?.value))
    }
}
