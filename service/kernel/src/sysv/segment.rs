//! Segments of System V shared memory, shmop(2): attached for the length of one operation.
//!
//! As long as the service has a segment attached, the kernel counts it (`nattch`) and does not free
//! what was marked for removal. So nothing stays attached: each operation calls shmat(2), asks
//! once more whether the id still means the same segment, and detaches.
//!
//! Whoever got an fd of the segment by /proc/PID/map_files can shrink or grow it like any file.
//! Then shmat(2) maps as much as there is at that moment, whatever size shmctl(2) reports; behind a
//! shorter mapping lies memory of this process. So the kernel is asked how long the mapping is, and
//! what is cut off later is caught by the guard ([`Mapping`]).

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    ptr::{self, NonNull},
};

use libc::{c_int, key_t, shmid_ds};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{Family, Object, result};
use crate::{Error, Kind, Result, error::Attempted, guard::Mapping, proc};

/// shmctl(2); not in the libc crate for this target.
pub const SHM_STAT_ANY: c_int = 15;
pub const SHM_INFO: c_int = 14;
/// The bits of the mode that are state (shmctl(2)).
pub const SHM_DEST: u32 = 0o1000;
pub const SHM_LOCKED: u32 = 0o2000;

#[derive(Debug)]
pub struct Segments;

impl Family for Segments {
    type State = shmid_ds;
    const SCHEME: &str = "sysvshm";
    const OBJECT: &str = "shared memory segment";
    const STAT_ANY: c_int = SHM_STAT_ANY;
    const INFO: c_int = SHM_INFO;

    fn control(id: c_int, command: c_int, state: &mut Self::State) -> Result<c_int, Errno> {
        // SAFETY: the commands of a family read or write at most a shmid_ds, which is larger than
        // the shm_info that SHM_INFO writes.
        result(unsafe { libc::shmctl(id, command, state) })
    }

    fn blank() -> Self::State {
        // SAFETY: a structure of numbers only.
        unsafe { std::mem::zeroed() }
    }

    fn permissions(state: &Self::State) -> &libc::ipc_perm {
        &state.shm_perm
    }

    fn permissions_mut(state: &mut Self::State) -> &mut libc::ipc_perm {
        &mut state.shm_perm
    }

    fn constant(state: &Self::State) -> (u64, u64) {
        (state.shm_segsz as u64, state.shm_cpid.cast_unsigned().into())
    }

    fn get_error(errno: Errno, attempt: String) -> Error {
        let limit = |name: &str| match super::sysctl(name).first() {
            Some(value) => format!("kernel.{name} is {value}"),
            None => format!("see kernel.{name}"),
        };
        let error = Error::from_errno(errno, &attempt);
        match errno {
            Errno::EXIST => error.help("Attach opens it; or let Create choose with key=random"),
            // The smallest size is in the table of parameters.
            Errno::INVAL => Error::new(
                Kind::TooLarge,
                format!("cannot {attempt}: larger than a segment may be; {} (EINVAL)", limit("shmmax")),
            ),
            Errno::NOSPC => Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot {attempt}: there are as many segments, or as much memory in them, as there may be; {}, {} \
                     pages (ENOSPC)",
                    limit("shmmni"),
                    limit("shmall")
                ),
            ),
            Errno::PERM => error.help(
                "huge pages need CAP_IPC_LOCK, or membership in the group vm.hugetlb_shm_group (shmget(2))",
            ),
            _ => error,
        }
    }
}

/// shmget(2).
pub fn get(key: key_t, size: usize, flags: c_int) -> Result<c_int, Errno> {
    // SAFETY: a system call without pointers.
    result(unsafe { libc::shmget(key, size, flags) })
}

/// A segment that is known by its id.
#[derive(Debug)]
pub struct Segment {
    pub object: Object<Segments>,
}

impl From<Object<Segments>> for Segment {
    fn from(object: Object<Segments>) -> Self {
        Self { object }
    }
}

impl Segment {
    /// As it was made; a holder of an fd may have cut it off.
    pub fn size(&self) -> Result<u64> {
        Ok(self.object.state()?.shm_segsz as u64)
    }

    /// Attaches what there is of it, until the mapping is dropped.
    pub fn attach(&self, writable: bool) -> Result<Mapping> {
        let flags = if writable { 0 } else { libc::SHM_RDONLY };
        // SAFETY: attached at an address of the kernel's choice, where nothing else is.
        let start = unsafe { libc::shmat(self.object.id, ptr::null(), flags) };
        let attempt = || format!("attach {}", self.object.name());
        if start.addr() == usize::MAX {
            let errno = crate::error::errno_of(&std::io::Error::last_os_error());
            let error = self.object.error(errno, attempt());
            return Err(match (errno, error.kind) {
                // It is there, but empty: the other reasons in shmop(2) are wrong addresses.
                (Errno::INVAL, Kind::InvalidArgument) => Error::new(
                    Kind::Gone,
                    format!("cannot {}: another process truncated it to nothing (EINVAL)", attempt()),
                ),
                _ => error,
            });
        }
        // Never null: the kernel maps nothing there.
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| Error::new(Kind::Errno(Errno::NOMEM), "attached at null"))?;
        let guarded = || {
            // While it is attached its id cannot become another segment's.
            self.object.state()?;
            let length = mapped_length(start)?;
            // SAFETY: all that shmat(2) has mapped, which nobody else knows of; unmapping it detaches
            // it, as shmdt(2) would, and also what the guard has put in its place.
            unsafe { Mapping::guard(start, length, writable) }
        };
        guarded().inspect_err(|_| {
            // SAFETY: attached just above, and nothing refers to it.
            unsafe { libc::shmdt(start.as_ptr().cast()) };
        })
    }

    /// A file descriptor of the segment's memory, by /proc/self/map_files.
    pub fn open(&self, writable: bool) -> Result<OwnedFd> {
        let mapping = self.attach(writable)?;
        let start = mapping.range(0, 0)?.addr();
        let path = format!("/proc/self/map_files/{start:x}-{:x}", start + mapping.len());
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        rustix::fs::open(path, access | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map_err(|errno| {
            let attempt = format!("open a file descriptor of {}", self.object.name());
            let help = "System V memory has none of its own; by /proc/self/map_files the kernel gives one only to \
                        processes with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN (proc(5)). Use Read and Write, or a \
                        relay";
            match errno {
                Errno::NOENT => Error::new(Kind::Unavailable, format!("cannot {attempt}")).help(help),
                errno => Error::from_errno(errno, attempt).help(help),
            }
        })
    }
}

/// How long the mapping of this process is that begins here.
fn mapped_length(start: NonNull<u8>) -> Result<usize> {
    let attempt = || "find out how much of the segment there is";
    let maps = rustix::fs::open("/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .attempted(attempt)?;
    let end = match query_end(&maps, start) {
        // Before Linux 6.11.
        Err(Errno::NOTTY | Errno::PERM) => end_in_maps(start),
        end => Some(end.attempted(attempt)?),
    };
    end.and_then(|end| end.checked_sub(start.addr().get()))
        .filter(|length| *length > 0)
        .ok_or_else(|| Error::new(Kind::Gone, format!("cannot {}: it is not mapped any more", attempt())))
}

/// `struct procmap_query` (linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// Where the mapping ends that covers this address, by PROCMAP_QUERY.
fn query_end(maps: impl AsFd, start: NonNull<u8>) -> Result<usize, Errno> {
    const PROCMAP_QUERY: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<ProcmapQuery>(b'f', 17);
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_addr: start.addr().get() as u64,
        ..ProcmapQuery::default()
    };
    // SAFETY: the request takes this structure, and writes no more than the size that it holds; no
    // name and no build id are asked for.
    unsafe { rustix::ioctl::ioctl(maps, rustix::ioctl::Updater::<PROCMAP_QUERY, _>::new(&mut query)) }?;
    usize::try_from(query.vma_end).map_err(|_| Errno::OVERFLOW)
}

/// The same out of the text: `start-end perms …` (proc_pid_maps(5)).
fn end_in_maps(start: NonNull<u8>) -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let first = format!("{:x}-", start.addr());
    let range = maps.lines().find_map(|line| line.strip_prefix(&first))?;
    usize::from_str_radix(range.split(' ').next()?, 16).ok()
}

/// How many bytes of each segment are in memory and how many in swap, by its id: what
/// /proc/sysvipc/shm says beyond shmctl(2).
pub fn residency() -> HashMap<c_int, (u64, u64)> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let mut lines = table.lines();
    let names: Vec<_> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let place = |name: &str| names.iter().position(|other| *other == name);
    let (Some(id), Some(rss), Some(swap)) = (place("shmid"), place("rss"), place("swap")) else {
        return HashMap::new();
    };
    lines
        .filter_map(|line| {
            let numbers: Vec<_> = line.split_ascii_whitespace().collect();
            let number = |at: usize| numbers.get(at)?.parse().ok();
            Some((numbers.get(id)?.parse().ok()?, (number(rss)?, number(swap)?)))
        })
        .collect()
}

/// Who has segments attached, as far as the caller may look into processes: rows by id.
pub fn holders() -> Vec<proc::Mapped> {
    let own = namespace("self");
    proc::mapped(|mapped| mapped.path.starts_with(b"/SYSV"))
        .into_iter()
        // Another IPC namespace has other segments with the same ids.
        .filter(|mapped| namespace(&mapped.pid.to_string()) == own)
        .collect()
}

fn namespace(process: &str) -> Option<Vec<u8>> {
    rustix::fs::readlink(format!("/proc/{process}/ns/ipc"), Vec::new()).ok().map(|link| link.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_end_of_a_mapping() {
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&memory, 5 * 4096).expect("its size");
        let mapping = Mapping::new(memory.as_fd(), 0, 5 * 4096, false).expect("a mapping");
        let start = NonNull::new(mapping.range(0, 0).expect("its start")).expect("not null");
        assert_eq!(mapped_length(start), Ok(5 * 4096));
        assert_eq!(end_in_maps(start), Some(start.addr().get() + 5 * 4096));
    }
}
