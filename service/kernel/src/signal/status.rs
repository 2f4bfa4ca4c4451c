//! What /proc says about a process: proc_pid_stat(5), proc_pid_status(5), proc_pid_cmdline(5).

use std::{fs, time::Duration};

use crate::{Dict, dict, signal::names::names_in};

/// A process or a thread as it is at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// comm, at most 15 bytes.
    pub command: Vec<u8>,
    pub state: u8,
    pub ppid: i32,
    pub pgrp: i32,
    /// Clock ticks after the machine's start; with the number, it tells processes apart.
    pub start: u64,
    /// As waitpid(2) would give it. 0 where the caller may not know it.
    pub exit_status: i32,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; -1 where a signal ended it, or where the kernel does not say.
    pub code: i32,
    /// The signal that ended it; 0 where none did, or where the kernel does not say.
    pub signal: i32,
    /// Whether it left a core dump.
    pub core: bool,
}

impl Exit {
    /// It has ended, and the kernel tells nobody but its parent how.
    pub const UNKNOWN: Self = Self { code: -1, signal: 0, core: false };

    /// From a status as waitpid(2) gives it, of a process that has ended.
    pub fn from_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self { code: status >> 8 & 0xff, signal: 0, core: false },
            signal => Self { code: -1, signal, core: status & 0x80 != 0 },
        }
    }
}

/// `/proc/PID`, or `/proc/PID/task/TID`.
pub fn directory(pid: i32, tid: Option<i32>) -> String {
    match tid {
        Some(tid) => format!("/proc/{pid}/task/{tid}"),
        None => format!("/proc/{pid}"),
    }
}

/// None: there is no such process.
pub fn stat(directory: &str) -> Option<Stat> {
    let text = fs::read(format!("{directory}/stat")).ok()?;
    // The name may hold anything, parentheses too; behind the last one there are only numbers.
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(close + 2..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of them is the third of the manual page.
    let field = |number: usize| fields.get(number - 3);
    Some(Stat {
        command: text.get(open + 1..close)?.to_owned(),
        state: *field(3)?.as_bytes().first()?,
        ppid: field(4)?.parse().ok()?,
        pgrp: field(5)?.parse().ok()?,
        start: field(22)?.parse().ok()?,
        exit_status: field(52).and_then(|status| status.parse().ok()).unwrap_or(0),
    })
}

impl Stat {
    pub fn is_zombie(&self) -> bool {
        self.state == b'Z'
    }

    pub fn state_name(&self) -> &'static str {
        match self.state {
            b'R' => "running",
            b'S' => "sleeping",
            b'D' => "disk-sleep",
            b'T' => "stopped",
            b't' => "tracing-stop",
            b'Z' => "zombie",
            b'X' | b'x' => "dead",
            b'I' => "idle",
            _ => "unknown",
        }
    }

    /// When it was started, in microseconds since the epoch, to a clock tick.
    pub fn started_at(&self) -> u64 {
        use rustix::time::{ClockId, clock_gettime};
        let now = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        let boot = now(ClockId::Realtime).saturating_sub(now(ClockId::Boottime));
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let since_boot = u128::from(self.start) * 1_000_000 / u128::from(ticks);
        u64::try_from(boot.as_micros() + since_boot).unwrap_or(u64::MAX)
    }
}

/// The rest of what is known of a process: who it is, and its signals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub tgid: i32,
    /// Real, effective, saved and of the file system.
    pub uids: [u32; 4],
    pub threads: u32,
    /// Signals that wait for all processes of its user, and how many may (RLIMIT_SIGPENDING).
    pub queued: (u64, u64),
    /// For the thread, for the process.
    pub pending: (u64, u64),
    pub blocked: u64,
    pub ignored: u64,
    pub caught: u64,
}

pub fn status(directory: &str) -> Option<Status> {
    let text = fs::read(format!("{directory}/status")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut status = Status::default();
    let mask = |value: &str| u64::from_str_radix(value, 16).unwrap_or(0);
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match key {
            "Tgid" => status.tgid = value.parse().ok()?,
            "Uid" => {
                for (uid, word) in status.uids.iter_mut().zip(value.split_ascii_whitespace()) {
                    *uid = word.parse().ok()?;
                }
            }
            "Threads" => status.threads = value.parse().unwrap_or(0),
            "SigQ" => {
                let (used, limit) = value.split_once('/').unwrap_or((value, ""));
                status.queued = (used.parse().unwrap_or(0), limit.parse().unwrap_or(u64::MAX));
            }
            "SigPnd" => status.pending.0 = mask(value),
            "ShdPnd" => status.pending.1 = mask(value),
            "SigBlk" => status.blocked = mask(value),
            "SigIgn" => status.ignored = mask(value),
            "SigCgt" => status.caught = mask(value),
            _ => {}
        }
    }
    Some(status)
}

impl Status {
    /// What a row of `List()` and `Inspect()` say of a process alike.
    pub fn describe(&self, stat: &Stat) -> Dict {
        dict! {
            "command" => String::from_utf8_lossy(&stat.command).into_owned(),
            "state" => stat.state_name(),
            "uid" => self.uids[0],
            "ppid" => stat.ppid.cast_unsigned(),
            "threads" => self.threads,
            "start" => stat.start,
            "started-at" => stat.started_at(),
            "caught" => names_in(self.caught),
            "blocked" => names_in(self.blocked),
            "ignored" => names_in(self.ignored),
            "pending" => names_in(self.pending.0 | self.pending.1),
        }
    }
}

/// The arguments it was started with, as far as it has not written over them.
pub fn arguments(pid: i32) -> Vec<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = text.strip_suffix(&[0]).unwrap_or(&text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_described() {
        let own = directory(std::process::id().cast_signed(), None);
        let (stat, status) = (stat(&own).unwrap(), status(&own).unwrap());
        assert!(matches!(stat.state, b'R' | b'S'), "{stat:?}");
        assert_eq!(status.uids[0], rustix::process::getuid().as_raw());
        assert_eq!(status.tgid, std::process::id().cast_signed());
        assert!(status.threads >= 1 && status.queued.1 > 0, "{status:?}");
        // The Rust runtime ignores SIGPIPE, and catches SIGSEGV.
        let row = status.describe(&stat);
        assert!(matches!(&row["ignored"], crate::Value::Texts(names) if names.contains(&"SIGPIPE".into())));
        let age = crate::signal::status::tests::now().saturating_sub(stat.started_at());
        assert!(age < 3_600_000_000, "started {age} µs ago");
    }

    fn now() -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(since.as_micros()).unwrap()
    }

    #[test]
    fn what_is_not_there_is_not_described() {
        assert_eq!(stat("/proc/0"), None);
        assert_eq!(status("/proc/0"), None);
        assert!(arguments(0).is_empty());
    }
}
