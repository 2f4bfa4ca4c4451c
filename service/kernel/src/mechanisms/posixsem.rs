//! POSIX semaphores, sem_overview(7), as glibc makes them.
//!
//! A named semaphore is a file `/dev/shm/sem.NAME` with a `sem_t` in it. The kernel knows nothing
//! of it: programs that map the file change the word in it and sleep on it as a futex, and so do
//! we ([`SemaphoreWord`]). The service never sleeps in sem_wait(3); it waits for the words of all
//! semaphores together. Unnamed ones are in `semaphore_place.rs`.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
};

use rustix::fs::{FileType, OFlags};

use crate::{
    Ability, Lack, Address, Attempt, Descriptor, Dict, Endpoint, Error, Fd, Kind, Opening, Parameter, Parameters, Result,
    Type, Value,
    dev_shm::{self, Entry},
    dict,
    error::Attempted,
    fd::{self, retry},
    leases::{self, Lent},
    mechanism::{Adoption, Column, Permissions},
    named_file::{self, Identity},
    parameters::joined,
    proc,
    semaphore_lease::{self, as_int, state_dict},
    semaphore_place::{PlacedSemaphore, SHM},
    semaphore_word::{self, SemaphoreWord, State},
    shape::{Held, Semaphore, SemaphoreOperation, Shape},
    word_place,
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "posixsem",
    schemes: &["posixsem"],
    summary: "POSIX semaphores, shared with programs that call sem_open(3) or sem_init(3)",
    shapes: &[Shape::Semaphore],
    create_parameters: &CREATE,
    attach_parameters: &WHICH,
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
        Column { key: "stale", kind: "b", summary: "The value is 0 and nobody is known who could have it; see below" },
    ],
    open_parameters: &[],
    create,
    anonymous: |_| false,
    attach,
    adopt,
    list: || Ok(list()?.into()),
    limits,
    available,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Event,
            "who is woken takes from the semaphore, so nobody can only be told; a call of `Wait` ends when it may go on",
        ),
        Lack::new(
            Ability::Relay,
            "a semaphore holds a number, and nothing that could be moved",
        ),
    ],
    reference: include_str!("posixsem.md"),
};

static CREATE: [Parameter; 10] = joined(
    WHICH,
    [
        Parameter::new("value", Type::U32 { min: 0, max: semaphore_word::VALUE_MAX }, "Initial value").default("1"),
        MODE,
    ],
);

/// A name, or a place in memory.
const WHICH: [Parameter; 8] = joined([NAME], word_place::parameters(SHM));

const NAME: Parameter =
    Parameter::new("name", Type::Path, "A slash and 1 to 251 bytes without further slashes, as for sem_open(3)");

/// NAME_MAX without the "sem." that glibc puts before the name.
const NAME_MAX: usize = 251;

const PREFIX: &[u8] = b"/dev/shm/sem.";

fn create(parameters: &Parameters) -> Result<Opening> {
    if in_memory(parameters)? {
        return Ok(PlacedSemaphore::create(parameters)?.into());
    }
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
    if in_memory(parameters)? {
        return Ok(PlacedSemaphore::attach(parameters)?.into());
    }
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

/// Whether it is an unnamed one, at a place in shared memory.
fn in_memory(parameters: &Parameters) -> Result<bool> {
    match (parameters.has(NAME.key), word_place::is_given(parameters, SHM)) {
        (true, false) => Ok(false),
        (false, true) => Ok(true),
        (true, true) => Err(Error::invalid("give either the name of a semaphore, or the memory that one is in")),
        (false, false) => Err(Error::invalid(
            "the key \"name\" is missing: the name of a semaphore; or say which memory it is in, by shm, path, inode, \
             pid and fd, or shmid, and at which offset",
        )),
    }
}

/// The name without its slash, and the file's path.
fn name_and_path(parameters: &Parameters) -> Result<(Vec<u8>, PathBuf)> {
    let name = dev_shm::name(parameters.bytes("name").unwrap_or_default(), "semaphore", NAME_MAX)?;
    Ok((name.to_owned(), path(name)))
}

fn path(name: &[u8]) -> PathBuf {
    dev_shm::path(&[dev_shm::SEMAPHORE, name].concat())
}

fn address(name: &[u8]) -> Address {
    Address::new("posixsem").with("name", [b"/", name].concat())
}

fn list() -> Result<Vec<Dict>> {
    let mut rows = Vec::new();
    for Entry { file_name, stat, holders } in dev_shm::entries(|name| name.starts_with(dev_shm::SEMAPHORE))? {
        let name = &file_name[dev_shm::SEMAPHORE.len()..];
        if stat.st_size != semaphore_word::SIZE as i64 {
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
        if let Ok((file, _)) = named_file::open_regular(&path(name), OFlags::RDONLY, OFlags::NOFOLLOW) {
            // Not everything of 32 bytes is a semaphore.
            let Ok((_, Some(state))) = examine(&file) else { continue };
            row.extend(state_dict(state));
            let stale = semaphore_lease::is_stale(state, &holders, Lent::Word(Identity::from(&stat), 0));
            row.insert("stale".into(), stale.into());
        }
        row.insert("holders".into(), holders.into());
        rows.push(row);
    }
    Ok(rows)
}

fn limits() -> Dict {
    let mut limits = dev_shm::limits();
    limits.extend(dict! { "SEM_VALUE_MAX" => semaphore_word::VALUE_MAX, "NAME_MAX" => NAME_MAX as u64 });
    limits
}

fn available() -> Result<()> {
    if cfg!(not(target_pointer_width = "64")) {
        return Err(Error::new(
            Kind::Unavailable,
            "this program is a 32-bit one; the semaphores of 32-bit programs have another layout",
        ));
    }
    dev_shm::available()
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

    fn lent(&self) -> Lent {
        Lent::Word(self.identity, 0)
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
        let mut inspected = named_file::inspect(&fd::stat(&self.file)?);
        let state = self.word.state()?;
        inspected.extend(state_dict(state));
        let named = rustix::fs::lstat(path(&self.name)).map(|stat| Identity::from(&stat));
        let holders = proc::file_holders(&self.file)?;
        inspected.extend(dict! {
            "path" => Value::text_or_bytes(path(&self.name).as_os_str().as_bytes()),
            // Whether sem_open(3) of the name would find another semaphore, or none.
            "detached" => named != Ok(self.identity),
            "leases" => leases::count(self.lent()),
            "stale" => semaphore_lease::is_stale(state, &holders, self.lent()),
            "holders" => holders,
        });
        Ok(inspected)
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
        semaphore_lease::post(&self.word, count)
    }

    fn wait(&self) -> Result<Attempt<()>> {
        self.word.wait()
    }

    fn value(&self) -> Result<i32> {
        Ok(as_int(self.word.state()?.value))
    }

    fn acquire(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<Held>> {
        semaphore_lease::acquire(&self.word, self.lent(), operations)
    }
}
