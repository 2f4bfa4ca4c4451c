//! Which threads sleep in futex(2), on which word. The kernel keeps no list of futexes, but tells of
//! each thread which system call it is in (`/proc/PID/task/TID/syscall`, proc_pid_syscall(5)) to
//! those who may trace it. With the process's mappings that gives the place of the word: the same
//! for all who share it, wherever they have it mapped.
//!
//! Private futexes belong to one process and are left out, as is memory that has no file.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::{
    Address, Dict, Error, Kind, Result, Value, dev_shm, dict,
    futex_owner::command,
    proc::{self, Mapped, Range},
    word_place::SEGMENT,
};

/// A thread that sleeps, and where the word is.
#[derive(Debug, Clone)]
pub struct Sleeper {
    pub pid: u32,
    pub tid: u32,
    pub operation: &'static str,
    /// The value that it waits on; none for locks.
    pub expected: Option<u32>,
    pub file: Mapped,
    /// Of the word, in the file.
    pub offset: u64,
}

impl Sleeper {
    /// As it is shown in `waiters`.
    fn row(&self) -> Dict {
        let mut row = dict! {
            "pid" => self.pid,
            "tid" => self.tid,
            "command" => command(&format!("/proc/{}/task/{}", self.pid, self.tid)),
            "operation" => self.operation,
        };
        if let Some(expected) = self.expected {
            row.insert("expected".into(), expected.into());
        }
        row
    }
}

pub fn rows<'a>(sleepers: impl IntoIterator<Item = &'a Sleeper>) -> Vec<Dict> {
    sleepers.into_iter().map(Sleeper::row).collect()
}

/// The threads that sleep on words in files for which `wanted` says yes, and whether the kernel
/// refused to tell of some process.
pub fn sleepers(wanted: impl Fn(&Mapped) -> bool) -> (Vec<Sleeper>, Refused) {
    let (mut found, mut refused) = (Vec::new(), Refused::default());
    for pid in proc::pids() {
        // Kernel threads, and processes that the caller may not look into, have nothing to show.
        let Ok(ranges) = proc::ranges(pid) else { continue };
        let ranges: Vec<_> = ranges.into_iter().filter(|range| range.shared && wanted(&range.file)).collect();
        if ranges.is_empty() {
            continue;
        }
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for tid in tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok()) {
            match fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) {
                Ok(call) => found.extend(
                    words(pid, &call)
                        .iter()
                        .filter_map(|word| word.locate(&ranges).map(|(file, offset)| (word, file, offset)))
                        .map(|(word, file, offset)| Sleeper {
                            pid,
                            tid,
                            operation: word.operation,
                            expected: word.expected,
                            file,
                            offset,
                        }),
                ),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // What is said of itself, a worker cannot read: it is closed to its user, and so are these files.
                Err(_) if pid == std::process::id() => {}
                Err(_) => refused.0 = Some(pid),
            }
        }
    }
    (found, refused)
}

/// A process of whose threads the kernel does not tell in which system call they are.
#[derive(Debug, Default, Clone, Copy)]
pub struct Refused(Option<u32>);

/// A word in the memory of a process, and what is done with it.
struct Word {
    address: u64,
    operation: &'static str,
    expected: Option<u32>,
}

impl Word {
    /// Where it is, if that is in one of the mappings.
    fn locate(&self, ranges: &[Range]) -> Option<(Mapped, u64)> {
        let range = ranges.iter().find(|range| (range.start..range.end).contains(&self.address))?;
        Some((range.file.clone(), range.offset + (self.address - range.start)))
    }
}

const PRIVATE: u64 = 128;
const CLOCK_REALTIME: u64 = 256;

/// The words that a thread sleeps on, from `number arguments… stack instruction`, or `running`.
fn words(pid: u32, call: &str) -> Vec<Word> {
    let mut fields = call.split_ascii_whitespace();
    let number = fields.next().and_then(|number| number.parse::<libc::c_long>().ok());
    let arguments: Vec<u64> =
        fields.filter_map(|field| u64::from_str_radix(field.trim_start_matches("0x"), 16).ok()).collect();
    match (number, &arguments[..]) {
        (Some(libc::SYS_futex), [address, operation, value, ..]) if operation & PRIVATE == 0 => {
            let (operation, expects) = match operation & !CLOCK_REALTIME {
                0 => ("FUTEX_WAIT", true),
                6 => ("FUTEX_LOCK_PI", false),
                9 => ("FUTEX_WAIT_BITSET", true),
                11 => ("FUTEX_WAIT_REQUEUE_PI", true),
                13 => ("FUTEX_LOCK_PI2", false),
                // Not one that sleeps.
                _ => return Vec::new(),
            };
            // The kernel takes the low 32 bits.
            vec![Word { address: *address, operation, expected: expects.then_some(*value as u32) }]
        }
        (Some(libc::SYS_futex_waitv), [list, count, ..]) => of_list(pid, *list, *count).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The list of futex_waitv(2), out of the memory of the process: value, address, flags, zero.
fn of_list(pid: u32, list: u64, count: u64) -> Option<Vec<Word>> {
    let mut bytes = vec![0; usize::try_from(count).ok()?.min(crate::word::MAX_WORDS) * 24];
    File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut bytes, list).ok()?;
    let number = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    let (fields, _) = bytes.as_chunks::<8>();
    let (entries, _) = fields.as_chunks::<3>();
    let shared = entries.iter().filter(|[.., rest]| {
        let (flags, _) = rest.split_at(4);
        flags.try_into().is_ok_and(|flags| u64::from(u32::from_ne_bytes(flags)) & PRIVATE == 0)
    });
    Some(
        shared
            .map(|[value, address, _]| Word {
                address: number(address),
                operation: "futex_waitv",
                expected: Some(number(value) as u32),
            })
            .collect(),
    )
}

/// The words on the machine that threads sleep on, for `List()`.
pub fn list() -> Result<Vec<Dict>> {
    let (sleepers, refused) = sleepers(|_| true);
    let own = std::process::id();
    if let Some(pid) = refused.0.filter(|_| sleepers.iter().all(|sleeper| sleeper.pid == own)) {
        return Err(Error::new(
            Kind::Unavailable,
            format!(
                "the kernel does not tell in which system call a process is (/proc/{pid}/syscall; it takes the right \
                 to trace, ptrace(2)): kernel.yama.ptrace_scope is {}, and must be 0 for that",
                proc::sysctl("kernel/yama/ptrace_scope")
                    .map_or("absent".to_owned(), |scope| scope.to_string())
            ),
        ));
    }
    type Place = ((u32, u32), u64, bool, u64);
    let mut words: BTreeMap<Place, Vec<Sleeper>> = BTreeMap::new();
    for sleeper in sleepers {
        let file = &sleeper.file;
        // Segments are numbered by their ids, beside the inodes of memfds.
        let place = (file.device, file.inode, file.path.starts_with(SEGMENT), sleeper.offset);
        words.entry(place).or_default().push(sleeper);
    }
    let held = proc::held(|link| link.ends_with(proc::DELETED));
    let held: Vec<_> =
        held.iter().filter_map(|held| rustix::fs::stat(proc::fd_path(held.pid, held.fd)).ok()).collect();
    Ok(words
        .into_values()
        .filter_map(|sleepers| {
            let Sleeper { file, offset, .. } = sleepers.first()?;
            let mut row = dict! {
                "offset" => *offset,
                "inode" => file.inode,
                // A machine has fewer threads than that.
                "waiting" => sleepers.len() as u32,
                "waiters" => rows(&sleepers),
            };
            row.insert("memory".into(), Value::text_or_bytes(&file.path));
            if let Some(address) = address(file, held.iter().any(|stat| file.is(stat))) {
                let address = if *offset > 0 { address.with("offset", offset.to_string()) } else { address };
                row.insert("address".into(), address.to_string().into());
            }
            Some(row)
        })
        .collect())
}

/// How the memory can be attached to; `held`: some process holds a file descriptor of it.
fn address(file: &Mapped, held: bool) -> Option<Address> {
    use std::os::unix::ffi::OsStrExt;
    let address = Address::new("futex");
    if file.path.starts_with(SEGMENT) {
        return Some(address.with("shmid", file.inode.to_string()));
    }
    if file.path.ends_with(proc::DELETED) {
        return held.then(|| address.with("inode", file.inode.to_string()));
    }
    let path = Path::new(std::ffi::OsStr::from_bytes(&file.path));
    if !rustix::fs::stat(path).is_ok_and(|stat| file.is(&stat)) {
        return None;
    }
    match path.strip_prefix(dev_shm::DIRECTORY) {
        Ok(name) if !name.as_os_str().as_bytes().contains(&b'/') => {
            Some(address.with("name", [b"/", name.as_os_str().as_bytes()].concat()))
        }
        _ => Some(address.with("path", file.path.clone())),
    }
}
