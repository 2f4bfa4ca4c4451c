//! Whose lock a futex is. The words of robust and PI mutexes carry the thread id of their owner
//! (futex(2), get_robust_list(2)); nothing else in the kernel knows it. So it can be looked up
//! whether that thread lives, from the outside and by anybody, which no library offers.
//!
//! A thread id is a number of the owner's pid namespace, and numbers are used again. So a thread
//! counts as the owner only if its process maps the memory; where that cannot be seen, the answer
//! is that it is not known.

use std::{collections::HashMap, fs};

use crate::{
    Dict, Error, Kind, Result, dict,
    futex_word::{ANY, FutexWord},
    proc,
    word_place::WordPlace,
};

/// Somebody may wait in the kernel (linux/futex.h).
const WAITERS: u32 = 0x8000_0000;
/// The owner died with it; the next one who locks it is told so (EOWNERDEAD).
const OWNER_DIED: u32 = 0x4000_0000;
const TID_MASK: u32 = 0x3fff_ffff;

/// How often a word is looked at again that others change meanwhile.
const MAX_TRIES: usize = 1000;

/// A thread that owns the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    pub pid: u32,
    /// In the service's pid namespace.
    pub tid: u32,
    pub command: String,
    /// Microseconds since the epoch.
    pub started: u64,
}

/// What is known of the thread whose id is in a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The word names none.
    None,
    Alive(Thread),
    /// Why it is known to be dead.
    Dead(String),
    /// Why it is not known.
    Unknown(String),
}

/// What the value says if it is that of a robust or PI mutex.
pub fn inspect(value: u32, place: &WordPlace) -> Dict {
    let owner = find(value & TID_MASK, place);
    let mut state = dict! {
        "owner-tid" => value & TID_MASK,
        "owner-died" => value & OWNER_DIED != 0,
        "waiters-bit" => value & WAITERS != 0,
    };
    let name = match owner {
        Owner::None => "none",
        Owner::Alive(thread) => {
            state.extend(dict! {
                "pid" => thread.pid,
                "tid" => thread.tid,
                "command" => thread.command,
                "started" => thread.started,
            });
            "alive"
        }
        Owner::Dead(why) => {
            state.insert("why".into(), why.into());
            "dead"
        }
        Owner::Unknown(why) => {
            state.insert("why".into(), why.into());
            "unknown"
        }
    };
    state.insert("owner".into(), name.into());
    state
}

/// Does what the kernel does with a robust mutex at its owner's end: marks it, takes the owner out
/// and wakes one. Refused while the owner lives, or may live. Says how many were woken.
pub fn repair(word: &FutexWord, place: &WordPlace) -> Result<u32> {
    for _ in 0..MAX_TRIES {
        let value = word.load()?;
        match find(value & TID_MASK, place) {
            // The kernel has marked it already; who it woke may have died as well.
            Owner::None if value & OWNER_DIED != 0 => return word.wake(1, ANY),
            Owner::None => {
                return Err(Error::invalid(format!(
                    "there is nothing to repair: the value {value} names no owner, so the lock is free"
                )));
            }
            Owner::Alive(Thread { pid, tid, command, .. }) => {
                return Err(Error::new(
                    Kind::Busy,
                    format!(
                        "cannot repair the lock: its owner lives (thread {tid} of process {pid}, {command:?}); only \
                         the lock of a dead owner is repaired"
                    ),
                ));
            }
            Owner::Unknown(why) => {
                return Err(Error::new(
                    Kind::PermissionDenied,
                    format!("cannot repair the lock: it is not known whether its owner lives: {why}"),
                ));
            }
            Owner::Dead(_) => {}
        }
        // As the kernel does it (handle_futex_death); whoever was faster is seen in the next turn.
        if word.compare_exchange(value, value & WAITERS | OWNER_DIED)?.0 {
            return word.wake(1, ANY);
        }
    }
    Err(Error::new(
        Kind::Busy,
        format!("other processes changed the word {MAX_TRIES} times between reading and writing it"),
    ))
}

fn find(tid: u32, place: &WordPlace) -> Owner {
    if tid == 0 {
        return Owner::None;
    }
    let mut hidden = None;
    for pid in proc::pids() {
        let maps = match proc::ranges(pid) {
            Ok(ranges) => Some(ranges.iter().any(|range| place.is_in(&range.file))),
            Err(_) => None,
        };
        if maps == Some(false) {
            continue;
        }
        let Some(thread) = thread_of(pid, tid) else { continue };
        if maps.is_some() {
            return Owner::Alive(thread);
        }
        hidden = Some(thread);
    }
    if let Some(Thread { pid, tid, .. }) = hidden {
        return Owner::Unknown(format!(
            "thread {tid} of process {pid} has its number, and you may not look into that process to see whether \
             it maps the memory"
        ));
    }
    match status(&format!("/proc/{tid}/status")) {
        Some(_) => Owner::Dead(format!(
            "a thread has the number {tid}, but is about to end or does not map the memory: the number was used again"
        )),
        // It may be hidden (proc(5), hidepid).
        None if exists(tid) => {
            Owner::Unknown(format!("a process that you cannot see in /proc has the number {tid}"))
        }
        None => Owner::Dead(format!("no thread has the number {tid}")),
    }
}

/// The thread of a process that calls itself by this number: in its own pid namespace, the
/// innermost one.
fn thread_of(pid: u32, tid: u32) -> Option<Thread> {
    let process = status(&format!("/proc/{pid}/status"))?;
    let tid = if nested(&process).is_some() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        tasks.flatten().find_map(|task| {
            let own = task.file_name().to_str()?.parse::<u32>().ok()?;
            (nested(&status(&format!("/proc/{pid}/task/{own}/status"))?)? == tid).then_some(own)
        })?
    } else {
        tid
    };
    let task = format!("/proc/{pid}/task/{tid}");
    // A zombie holds nothing any more.
    let lives = !status(&format!("{task}/status"))?.get("State")?.starts_with(['Z', 'X']);
    lives.then(|| Thread { pid, tid, command: command(&task), started: started(&task) })
}

/// The number in the innermost namespace, where that is not the service's.
fn nested(status: &HashMap<String, String>) -> Option<u32> {
    let mut numbers = status.get("NSpid")?.split_ascii_whitespace();
    let (_outer, inner) = (numbers.next()?, numbers.next_back()?);
    inner.parse().ok()
}

fn status(path: &str) -> Option<HashMap<String, String>> {
    let text = fs::read_to_string(path).ok()?;
    Some(
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect(),
    )
}

fn exists(tid: u32) -> bool {
    // A number that was masked out of 30 bits is positive.
    let number = i32::try_from(tid).ok().and_then(rustix::process::Pid::from_raw);
    number.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// The name of a thread; `task` is its directory in /proc.
pub fn command(task: &str) -> String {
    fs::read(format!("{task}/comm"))
        .map(|comm| String::from_utf8_lossy(comm.trim_ascii_end()).into_owned())
        .unwrap_or_default()
}

/// When a thread started, in microseconds since the epoch; 0 where it has gone.
fn started(task: &str) -> u64 {
    let since_boot = || {
        let stat = fs::read_to_string(format!("{task}/stat")).ok()?;
        // The 22nd field; the second is the name, in parentheses, with anything in it.
        let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
        Some(ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second())
    };
    let boot = || {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let seconds: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
        Some(seconds.saturating_mul(1_000_000))
    };
    since_boot().zip(boot()).map_or(0, |(since, boot)| boot.saturating_add(since))
}
