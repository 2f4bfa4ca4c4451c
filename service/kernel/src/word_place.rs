//! Where a word of shared memory lives: futexes and unnamed POSIX semaphores have no name of their
//! own, only a place in memory that has one.
//!
//! A place is an offset in a file (a POSIX shared memory object, a memfd, any regular file) or in a
//! System V segment. The few pages around it stay mapped, guarded ([`Mapping`]), for as long as the
//! place is in use. A file may be truncated under us: then the place is gone until it has grown
//! again, when it is mapped anew.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{MemfdFlags, OFlags},
    io::Errno,
};

use crate::{
    Address, Dict, Error, Fd, Kind, Parameter, Parameters, Result, Type, Value, dev_shm, dict,
    error::Attempted,
    fd::{self, retry},
    guard::Mapping,
    leases::Lent,
    named_file::{self, Identity},
    nameless, proc,
    sysv::{Object, segment::Segment},
};

/// The key for a POSIX shared memory object, which a mechanism calls as it likes.
const fn shm(key: &'static str) -> Parameter {
    Parameter::new(key, Type::Path, "POSIX shared memory object that it is in, as for shm_open(3)")
}

const PATH: Parameter = Parameter::new("path", Type::Path, "Absolute path of the file that it is in");

const INODE: Parameter = Parameter::new(
    "inode",
    Type::U64 { min: 1, max: u64::MAX },
    "Inode of the memfd that it is in, which some process holds",
);

const PID: Parameter = Parameter::new(
    "pid",
    Type::U32 { min: 1, max: i32::MAX as u32 },
    "Process that holds the memfd or file that it is in",
);

const FD: Parameter = Parameter::new(
    "fd",
    Type::U32 { min: 0, max: i32::MAX as u32 },
    "Number of the file descriptor in that process",
);

const SHMID: Parameter = Parameter::new(
    "shmid",
    Type::U32 { min: 0, max: i32::MAX as u32 },
    "Id of the System V segment that it is in (ipcs -m)",
);

const OFFSET: Parameter =
    Parameter::new("offset", Type::Size { min: 0, max: u64::MAX }, "Where it is in that memory, in bytes")
        .default("0");

/// All of these keys, for a table of parameters.
pub const fn parameters(shm_key: &'static str) -> [Parameter; 7] {
    [shm(shm_key), PATH, INODE, PID, FD, SHMID, OFFSET]
}

/// The rule of shm_open(3), NAME_MAX.
const SHM_NAME_MAX: usize = 255;

/// What needs a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// For errors: "futex".
    pub what: &'static str,
    pub bytes: usize,
    pub alignment: u64,
}

/// Whether the parameters say where it is; `shm` is the key for POSIX shared memory.
pub fn is_given(parameters: &Parameters, shm: &str) -> bool {
    [shm, "path", "inode", "pid", "fd", "shmid"].into_iter().any(|key| parameters.has(key))
}

/// A place that is mapped, or was before its file was truncated.
#[derive(Debug)]
pub struct WordPlace {
    memory: Memory,
    offset: u64,
    room: Room,
    mapped: Mutex<Option<Arc<Mapping>>>,
}

#[derive(Debug)]
enum Memory {
    /// `page` is the unit in which the kernel maps it.
    File {
        file: Fd,
        identity: Identity,
        name: Name,
        page: u64,
        in_memory: bool,
    },
    Segment {
        id: i32,
        size: u64,
    },
}

/// How a file is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// Without the slash.
    Shm(Vec<u8>),
    Path(PathBuf),
    Inode,
}

impl WordPlace {
    /// Opens what the parameters name. What it is for must fit in at the offset.
    pub fn open(parameters: &Parameters, shm: &str, room: Room) -> Result<Self> {
        let offset = parameters.size("offset").unwrap_or(0);
        if !offset.is_multiple_of(room.alignment) {
            return Err(Error::invalid(format!(
                "the key \"offset\" is {offset}; a {} needs a multiple of {}",
                room.what, room.alignment
            )));
        }
        let by = (
            parameters.bytes(shm),
            parameters.path("path")?,
            parameters.size("inode"),
            (parameters.u32("pid"), parameters.u32("fd")),
            parameters.u32("shmid"),
        );
        let opened = match by {
            (Some(name), None, None, (None, None), None) => {
                let name = dev_shm::name(name, "shared memory", SHM_NAME_MAX)?;
                let opened = named_file::open_regular(&dev_shm::path(name), OFlags::RDWR, OFlags::NOFOLLOW);
                opened.map(|(file, _)| (file, Some(Name::Shm(name.to_owned()))))
            }
            (None, Some(path), None, (None, None), None) => {
                let opened = named_file::open_regular(&path, OFlags::RDWR, OFlags::empty());
                opened.map(|(file, _)| (file, Some(Name::Path(path))))
            }
            (None, None, Some(inode), (None, None), None) => {
                nameless::open_held(nameless::find_held(inode)?, OFlags::RDWR).map(|(file, _)| (file, None))
            }
            (None, None, None, (Some(pid), Some(fd)), None) => {
                nameless::open_held((pid, fd), OFlags::RDWR).map(|(file, _)| (file, None))
            }
            (None, None, None, (None, None), Some(id)) => {
                // The table keeps it within the bounds of an int.
                return Self::segment(i32::try_from(id).unwrap_or(i32::MAX), offset, room);
            }
            _ => {
                return Err(Error::invalid(format!(
                    "where is the {}? Give one of: {shm:?}, \"path\", \"inode\", both \"pid\" and \"fd\", or \
                     \"shmid\"; and its \"offset\"",
                    room.what
                )));
            }
        };
        let (file, name) = opened.map_err(|error| match error.kind {
            Kind::PermissionDenied => error.help(format!("a {} needs reading and writing", room.what)),
            _ => error,
        })?;
        let name = match name {
            Some(name) => name,
            None => name_of(&file)?,
        };
        Self::file(file, name, offset, room)
    }

    /// A place of its own: a memfd with these bytes.
    pub fn fresh(content: &[u8], room: Room) -> Result<Self> {
        let file = nameless::memfd(b"org.example.IPC", MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600))
            .attempted(|| "set the mode of the memfd")?;
        let written = retry(|| rustix::io::pwrite(&file, content, 0)).attempted(|| "fill the new memory")?;
        if written < content.len() {
            return Err(Error::from_errno(Errno::NOSPC, "fill the new memory"));
        }
        Self::file(file, Name::Inode, 0, room)
    }

    fn file(file: OwnedFd, name: Name, offset: u64, room: Room) -> Result<Self> {
        let identity = Identity::from(&fd::stat(&file)?);
        let system = rustix::fs::fstatfs(&file).attempted(|| "examine the file system of the memory")?;
        let huge = system.f_type as u64 == libc::HUGETLBFS_MAGIC as u64;
        let page = if huge { system.f_bsize as u64 } else { rustix::param::page_size() as u64 };
        let in_memory = huge || system.f_type as u64 == libc::TMPFS_MAGIC as u64;
        let memory = Memory::File { file: file.into(), identity, name, page, in_memory };
        let place = Self { memory, offset, room, mapped: Mutex::default() };
        if !place.fits(place.size()?) {
            return Err(place.outside());
        }
        place.mapped()?;
        Ok(place)
    }

    fn segment(id: i32, offset: u64, room: Room) -> Result<Self> {
        let segment = Segment::from(Object::with_id(id)?);
        let mapping = segment.attach(true)?;
        // As much as there is of it: whole pages, unless somebody has cut it off.
        let size = segment.size()?.min(mapping.len() as u64);
        let place = Self {
            memory: Memory::Segment { id, size },
            offset,
            room,
            mapped: Mutex::new(Some(Arc::new(mapping))),
        };
        if place.fits(place.size()?) { Ok(place) } else { Err(place.outside()) }
    }

    /// Bytes of the whole memory at this moment.
    pub fn size(&self) -> Result<u64> {
        match &self.memory {
            Memory::File { file, .. } => Ok(u64::try_from(fd::stat(file)?.st_size).unwrap_or(0)),
            Memory::Segment { size, .. } => Ok(*size),
        }
    }

    fn fits(&self, size: u64) -> bool {
        self.offset.checked_add(self.room.bytes as u64).is_some_and(|end| end <= size)
    }

    fn outside(&self) -> Error {
        Error::invalid(format!(
            "the key \"offset\" is {}, where a {} of {} bytes does not lie within the memory of {} bytes",
            self.offset,
            self.room.what,
            self.room.bytes,
            self.size().unwrap_or(0)
        ))
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, Option<Arc<Mapping>>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory, and where the word is in the mapping. `Gone` while the file is too short.
    pub fn mapped(&self) -> Result<(Arc<Mapping>, usize)> {
        let (file, page) = match &self.memory {
            Memory::File { file, page, .. } => (file, *page),
            Memory::Segment { .. } => {
                let mapping = self.cached().clone().filter(|mapping| !mapping.lost());
                let mapping = mapping.ok_or_else(|| Error::new(Kind::Gone, "the segment was truncated"))?;
                // It fits in: that was checked in `segment`.
                return Ok((mapping, self.offset as usize));
            }
        };
        let size = self.size()?;
        if !self.fits(size) {
            return Err(Error::new(
                Kind::Gone,
                format!(
                    "another process truncated the memory of the {} to {size} bytes; it was at offset {}",
                    self.room.what, self.offset
                ),
            ));
        }
        let within = self.offset % page;
        let mut cached = self.cached();
        if let Some(mapping) = cached.as_ref().filter(|mapping| !mapping.lost()) {
            return Ok((mapping.clone(), within as usize));
        }
        let length = (within + self.room.bytes as u64).next_multiple_of(page);
        let mapping = Arc::new(Mapping::new(file.as_fd(), self.offset - within, length as usize, true)?);
        *cached = Some(mapping.clone());
        Ok((mapping, within as usize))
    }

    /// Whether touching it may wait for a disk or a file system of somebody's making.
    pub fn may_block(&self) -> bool {
        matches!(self.memory, Memory::File { in_memory: false, .. })
    }

    /// The address by which the place is found again.
    pub fn address(&self, scheme: &str, shm: &str) -> Address {
        let address = Address::new(scheme);
        let address = match &self.memory {
            Memory::Segment { id, .. } => address.with("shmid", id.to_string()),
            Memory::File { name: Name::Shm(name), .. } => address.with(shm, [b"/", &name[..]].concat()),
            Memory::File { name: Name::Path(path), .. } => address.with("path", path.as_os_str().as_bytes()),
            Memory::File { identity, .. } => address.with("inode", identity.inode.to_string()),
        };
        if self.offset > 0 { address.with("offset", self.offset.to_string()) } else { address }
    }

    /// What `Inspect()` says about the place.
    pub fn inspect(&self) -> Result<Dict> {
        let mut state = dict! { "offset" => self.offset, "memory-size" => self.size()? };
        match &self.memory {
            Memory::File { file, .. } => {
                state.extend(named_file::inspect(&fd::stat(file)?));
                state.insert("file".into(), Value::text_or_bytes(&fd::link(file)?));
                state.insert("holders".into(), proc::file_holders(file)?.into());
            }
            Memory::Segment { id, .. } => {
                let mapped = proc::mapped(|mapped| is_segment(mapped, *id));
                // A number of the kernel's own that is never negative.
                state.insert("shmid".into(), id.unsigned_abs().into());
                state.insert("holders".into(), proc::mapped_holders(&mapped).into());
            }
        }
        Ok(state)
    }

    /// Whether a process's mapping of a file is one of this place's memory.
    pub fn is_in(&self, mapped: &proc::Mapped) -> bool {
        match &self.memory {
            Memory::Segment { id, .. } => is_segment(mapped, *id),
            Memory::File { file, identity, .. } => {
                mapped.inode == identity.inode && fd::stat(file).is_ok_and(|stat| mapped.is(&stat))
            }
        }
    }

    /// The same place has the same name among the leases, however it was found.
    pub fn lent(&self) -> Lent {
        match &self.memory {
            Memory::Segment { id, .. } => Lent::Segment(*id, self.offset),
            Memory::File { identity, .. } => Lent::Word(*identity, self.offset),
        }
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A description of the caller's own, for mmap(2).
    pub fn hand_out(&self) -> Result<OwnedFd> {
        match &self.memory {
            Memory::File { file, .. } => {
                fd::reopen(file, OFlags::RDWR | OFlags::NOCTTY).attempted(|| "open the memory for the caller")
            }
            Memory::Segment { id, .. } => Err(Error::not_supported(format!(
                "a System V segment has no file descriptor to hand out: attach to it with shmat({id}, …)"
            ))),
        }
    }
}

/// The kernel shows a segment as `/SYSV<key> (deleted)` with its id as the inode.
pub fn is_segment(mapped: &proc::Mapped, id: i32) -> bool {
    mapped.path.starts_with(SEGMENT) && i64::try_from(mapped.inode).is_ok_and(|inode| inode == i64::from(id))
}

/// How `/proc/PID/maps` begins the name of a System V segment.
pub const SEGMENT: &[u8] = b"/SYSV";

/// The name of a file that was found through a process.
fn name_of(file: &OwnedFd) -> Result<Name> {
    let Some(path) = nameless::path_of(file)? else { return Ok(Name::Inode) };
    let within =
        path.strip_prefix(dev_shm::DIRECTORY).ok().map(|name| name.as_os_str().as_bytes().to_owned());
    Ok(match within {
        Some(name) if !name.contains(&b'/') => Name::Shm(name),
        _ => Name::Path(path),
    })
}
