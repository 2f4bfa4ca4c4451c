//! System V shared memory, shmget(2).
//!
//! A segment has no file descriptor: it is attached by its id. That is done for each operation
//! ([`Segment`]), because what stays attached is never freed. What a segment shares with queues
//! and sets is in [`crate::sysv`]; this file is what the mechanism has of its own.

use std::os::fd::OwnedFd;

use libc::{c_int, shmid_ds};
use rustix::fs::MemfdFlags;

use crate::{
    Ability, Lack, Address, Descriptor, Dict, Endpoint, Error, Kind, Opening, Parameter, Parameters, Result, Type, dict,
    error::Attempted,
    guard::{MAX_MAPPINGS, Mapping},
    mechanism::{Adoption, Column, End, EndKind, Permissions},
    memory_file, memory_list, proc,
    shape::{Memory, Shape, Word},
    sysv::{
        self, Commands, ID, KEY, NEW_KEY, Object, PATH, PROJECT, columns, micros, permissions,
        segment::{self, SHM_DEST, SHM_LOCKED, Segment, Segments},
    },
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "sysvshm",
    schemes: &["sysvshm"],
    summary: "System V shared memory segments, shared with programs that call shmget(2)",
    shapes: &[Shape::Memory],
    create_parameters: &[
        NEW_KEY,
        PATH,
        PROJECT,
        Parameter::new("size", Type::Size { min: 1, max: i64::MAX as u64 }, "Bytes of memory; it never changes")
            .required(),
        MODE,
        Parameter::new("huge", Type::Word(memory_list::HUGE_NAMES), "Page size of a segment of huge pages (SHM_HUGETLB)"),
        Parameter::new("noreserve", Type::Bool, "Whether no swap or huge pages are set aside for it (SHM_NORESERVE)").default("false"),
    ],
    attach_parameters: &[KEY, PATH, PROJECT, ID, memory_file::ACCESS],
    columns: &COLUMNS,
    open_parameters: &[
        Parameter::new("access", memory_file::ACCESS_WORDS, "What the fd is opened for").default("read-only"),
    ],
    create,
    anonymous: |_| false,
    attach,
    // The kernel has no file descriptor for a segment; one by map_files is a file to all who hold it.
    adopt: |fd| Ok(Adoption::Refused(fd)),
    list: || Ok(list()?.into()),
    limits,
    available: sysv::available::<Segments>,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Wait,
            "the kernel tells nobody about stores into memory; `WatchRange` looks for changes, and a `futex` in it can be waited on",
        ),
    ],
    reference: REFERENCE,
};

const COLUMNS: [Column; 24] = columns([
    Column { key: "size", kind: "t", summary: "Size in bytes" },
    Column { key: "attached", kind: "t", summary: "How many times it is attached at this moment (nattch)" },
    Column { key: "creator", kind: "u", summary: "Process id of the creator; 0 where it is of another PID namespace" },
    Column { key: "creator-command", kind: "s", summary: "Command name of the creator; not there when it has ended" },
    Column { key: "last", kind: "u", summary: "Process id of the last that attached or detached it; 0: none" },
    Column { key: "last-command", kind: "s", summary: "Command name of that process; not there when it has ended" },
    Column { key: "attach-time", kind: "t", summary: "Time of the last shmat(2), in microseconds since the epoch; 0: never" },
    Column { key: "detach-time", kind: "t", summary: "Time of the last shmdt(2); 0: never" },
    Column { key: "changed", kind: "t", summary: "Time of creation or of the last IPC_SET" },
    Column { key: "marked", kind: "b", summary: "It was removed, and ends with its last detach (SHM_DEST)" },
    Column { key: "locked", kind: "b", summary: "It is kept from being swapped out (SHM_LOCKED)" },
    Column { key: "rss", kind: "t", summary: "Bytes of it that are in memory" },
    Column { key: "swap", kind: "t", summary: "Bytes of it that are in swap" },
    Column { key: "holders", kind: "aa{sv}", summary: "Processes that have it attached: pid, command, mapped, access" },
    Column { key: "stale", kind: "b", summary: "Nobody has it attached, and its creator has ended" },
]);

/// How much of a segment without fd is copied for a relay.
const MAX_SNAPSHOT: u64 = 64 << 20;

const REFERENCE: &str = include_str!("sysvshm.md");

fn create(parameters: &Parameters) -> Result<Opening> {
    // The table demands it.
    let size = usize::try_from(parameters.size("size").unwrap_or(0)).unwrap_or(usize::MAX);
    let mut flags = 0;
    if let Some(huge) = parameters.text("huge") {
        let bytes = memory_list::huge_page(huge)?;
        // shmget(2): the binary logarithm of the size in the six bits from 26.
        flags |= libc::SHM_HUGETLB | (bytes.trailing_zeros() << 26).cast_signed();
    }
    if parameters.bool("noreserve") {
        flags |= libc::SHM_NORESERVE;
    }
    let object = Object::<Segments>::create(parameters, |key, mode| segment::get(key, size, mode | flags))?;
    Ok(SysvMemory { segment: object.into(), writable: true }.into())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let object = Object::<Segments>::attach(parameters, |key, flags| segment::get(key, 0, flags))?;
    let memory = SysvMemory { segment: object.into(), writable: !memory_file::read_only(parameters) };
    // Whether the mode lets the caller, the kernel says.
    memory.map(memory.writable).map_err(|error| memory_file::may_help(error, parameters))?;
    Ok(memory.into())
}

fn list() -> Result<Vec<Dict>> {
    let mut commands = Commands::default();
    let holders = segment::holders();
    let residency = segment::residency();
    let rows = sysv::all::<Segments>()?.into_iter().map(|(id, state)| {
        let of_it = holders.iter().filter(|mapped| i128::from(mapped.inode) == i128::from(id));
        let mut row = row(id, &state, &mut commands);
        row.insert("holders".into(), proc::mapped_holders(of_it).into());
        if let Some((rss, swap)) = residency.get(&id) {
            row.extend(dict! { "rss" => *rss, "swap" => *swap });
        }
        row
    });
    Ok(rows.collect())
}

/// What shmctl(2) says of a segment.
#[allow(clippy::unnecessary_cast)] // The types of the fields differ between machines.
fn row(id: c_int, state: &shmid_ds, commands: &mut Commands) -> Dict {
    let mode = state.shm_perm.mode as u32;
    let attached = state.shm_nattch as u64;
    let mut row = permissions::<Segments>(id, state);
    commands.put(&mut row, "creator", state.shm_cpid);
    commands.put(&mut row, "last", state.shm_lpid);
    row.extend(dict! {
        "size" => state.shm_segsz as u64,
        "attached" => attached,
        "attach-time" => micros(state.shm_atime),
        "detach-time" => micros(state.shm_dtime),
        "changed" => micros(state.shm_ctime),
        "marked" => mode & SHM_DEST != 0,
        "locked" => mode & SHM_LOCKED != 0,
        "stale" => attached == 0 && !commands.lives(state.shm_cpid),
    });
    row
}

fn limits() -> Dict {
    let mut limits = memory_list::huge_limits();
    limits.insert("mappings".into(), (MAX_MAPPINGS as u64).into());
    for name in ["shmmax", "shmall", "shmmni", "shm_rmid_forced"] {
        if let Some(value) = sysv::sysctl(name).first() {
            limits.insert(format!("kernel.{name}"), (*value).into());
        }
    }
    if let Some(group) = proc::sysctl("vm/hugetlb_shm_group") {
        limits.insert("vm.hugetlb_shm_group".into(), group.into());
    }
    if let Ok(all) = sysv::all::<Segments>() {
        let bytes = all.iter().map(|(_, state)| state.shm_segsz as u64).fold(0, u64::saturating_add);
        limits.extend(dict! { "segments" => all.len() as u64, "segment-bytes" => bytes });
    }
    limits
}

struct SysvMemory {
    segment: Segment,
    writable: bool,
}

impl SysvMemory {
    fn map(&self, writable: bool) -> Result<Mapping> {
        self.segment.attach(writable)
    }

    fn must_be_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(
            Kind::PermissionDenied,
            "this memory is open for reading only; to write to it, attach it with access=read-write",
        ))
    }

    /// Attaches it and runs `with` on the range, if that lies within the segment.
    fn with<T>(
        &self,
        range: (u64, u64, &str),
        write: bool,
        with: impl FnOnce(&Mapping, usize) -> Result<T>,
    ) -> Result<T> {
        let (offset, length, verb) = range;
        if write {
            self.must_be_writable()?;
        }
        let size = self.segment.size()?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::invalid(format!(
                "cannot {verb} {length} bytes at offset {offset}: the memory has {size} bytes"
            )));
        }
        let mapping = self.map(write)?;
        if offset + length > mapping.len() as u64 {
            return Err(Error::new(
                Kind::Gone,
                format!(
                    "cannot {verb} {length} bytes at offset {offset}: another process truncated the segment; {} bytes \
                     are left",
                    mapping.len()
                ),
            ));
        }
        // It lies within what is mapped.
        with(&mapping, offset as usize).map_err(|error| match error.kind {
            Kind::Gone => error.help("or it is of huge pages, and none is free; see vm.nr_hugepages"),
            _ => error,
        })
    }

    fn word<T>(
        &self,
        offset: u64,
        word: Word,
        write: bool,
        with: impl FnOnce(&Mapping, usize) -> Result<T>,
    ) -> Result<T> {
        self.with((offset, word.width() as u64, "access a word of"), write, with)
    }

    /// A memfd with what the segment holds at this moment.
    fn snapshot(&self, size: u64) -> Result<OwnedFd> {
        if size > MAX_SNAPSHOT {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "cannot relay a segment of {size} bytes: without a file descriptor of it, at most {MAX_SNAPSHOT} \
                     bytes are copied; use Read, or give the service CAP_CHECKPOINT_RESTORE"
                ),
            ));
        }
        let copy = rustix::fs::memfd_create("org.example.IPC snapshot", MemfdFlags::CLOEXEC)
            .attempted(|| "create a memfd for a copy of the segment")?;
        let mapping = self.map(false)?;
        let mut chunk = vec![0; 1 << 20];
        let mut done = 0;
        while done < size {
            let part = (size - done).min(chunk.len() as u64) as usize;
            mapping.read_bytes(done as usize, &mut chunk[..part])?;
            let mut rest = &chunk[..part];
            while !rest.is_empty() {
                let written = rustix::io::write(&copy, rest).attempted(|| "copy the segment")?;
                rest = &rest[written..];
            }
            done += part as u64;
        }
        Ok(copy)
    }
}

impl Endpoint for SysvMemory {
    fn address(&self) -> Address {
        let address = self.segment.object.address();
        if self.writable { address } else { address.with("access", "read-only") }
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Memory]
    }

    fn inspect(&self) -> Result<Dict> {
        let id = self.segment.object.id;
        let mut state = row(id, &self.segment.object.state()?, &mut Commands::default());
        let holders = segment::holders();
        let of_it = holders.iter().filter(|mapped| i128::from(mapped.inode) == i128::from(id));
        state.extend(dict! {
            "holders" => proc::mapped_holders(of_it),
            "read-only" => !self.writable,
        });
        if let Some((rss, swap)) = segment::residency().get(&id) {
            state.extend(dict! { "rss" => *rss, "swap" => *swap });
        }
        Ok(state)
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        let read_only = memory_file::read_only(options);
        if !read_only {
            self.must_be_writable()?;
        }
        self.segment.open(!read_only)
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        self.segment.object.set_permissions(permissions)
    }

    fn remove(&self) -> Result<()> {
        self.segment.object.remove()
    }

    fn memory(&self) -> Option<&dyn Memory> {
        Some(self)
    }
}

impl Memory for SysvMemory {
    fn may_block(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.with((offset, length as u64, "read"), false, |mapping, at| {
            let mut data = Vec::new();
            data.try_reserve_exact(length).map_err(|_| {
                Error::new(
                    Kind::TooLarge,
                    format!("{length} bytes are more than the service has memory for"),
                )
            })?;
            data.resize(length, 0);
            mapping.read_bytes(at, &mut data)?;
            Ok(data)
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.with((offset, data.len() as u64, "write"), true, |mapping, at| mapping.write_bytes(at, data))
    }

    fn load(&self, offset: u64, kind: Word) -> Result<Word> {
        self.word(offset, kind, false, |mapping, at| mapping.load_word(at, kind))
    }

    fn store(&self, offset: u64, value: Word) -> Result<()> {
        self.word(offset, value, true, |mapping, at| mapping.store_word(at, value))
    }

    fn compare_exchange(&self, offset: u64, expected: Word, desired: Word) -> Result<(bool, Word)> {
        self.word(offset, expected, true, |mapping, at| {
            mapping.compare_exchange_word(at, expected, desired)
        })
    }

    fn fetch_add(&self, offset: u64, value: Word) -> Result<Word> {
        self.word(offset, value, true, |mapping, at| mapping.fetch_add_word(at, value))
    }

    fn resize(&self, _size: u64) -> Result<()> {
        self.must_be_writable()?;
        Err(Error::not_supported(
            "a System V segment has the size that it was created with (shmget(2)); create another one, or use posixshm",
        ))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        // It lies within what is mapped.
        self.with((offset, length, "allocate"), true, |mapping, at| mapping.populate(at, length as usize))
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        self.with((offset, length, "punch a hole of"), true, |mapping, at| mapping.remove(at, length as usize))
    }

    fn seal(&self, _seals: &[String]) -> Result<()> {
        self.must_be_writable()?;
        Err(Error::not_supported("a System V segment cannot be sealed, only memfds can (fcntl(2)); use mmap"))
    }

    /// There is no file behind it.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        self.segment.size()
    }

    fn seals(&self) -> Vec<String> {
        Vec::new()
    }

    fn read_only(&self) -> bool {
        !self.writable
    }

    fn source(&self) -> Result<End> {
        let size = self.size()?;
        let fd = match self.segment.open(false) {
            Err(error) if matches!(error.kind, Kind::PermissionDenied | Kind::Unavailable) => {
                self.snapshot(size)?
            }
            opened => opened?,
        };
        Ok(End { fd: fd.into(), kind: EndKind::File { offset: 0, length: size } })
    }

    fn sink(&self) -> Result<End> {
        self.must_be_writable()?;
        let length = self.size()?;
        let fd = self.segment.open(true).map_err(|error| match error.kind {
            Kind::PermissionDenied | Kind::Unavailable => Error::not_supported(format!(
                "a relay writes into a file descriptor, and the kernel gives none for this segment ({}); use Write, or \
                 give the service CAP_CHECKPOINT_RESTORE",
                error.text
            )),
            _ => error,
        })?;
        Ok(End { fd: fd.into(), kind: EndKind::File { offset: 0, length } })
    }
}
