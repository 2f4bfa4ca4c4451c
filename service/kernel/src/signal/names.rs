//! Signals by name and by number, signal(7).
//!
//! A name is that of the manual page; `SIG` may be left out, and case does not matter, as in
//! kill(1). Real-time signals are counted from the C library's SIGRTMIN, which keeps the first
//! two or three of the kernel's (32, 33, …) for itself; they can be given by number.

use crate::{Error, Result};

/// The kernel's last signal, `_NSIG`.
pub const LAST: i32 = 64;

/// What a word list or an error shows as an example.
pub const EXPECTED: &str =
    "a signal as in signal(7): SIGUSR1, SIGRTMIN, SIGRTMIN+3, SIGRTMAX-1, or a number from 1 to 64";

const STANDARD: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
    // Second names; the first is the one that is shown.
    ("IOT", libc::SIGABRT),
    ("CLD", libc::SIGCHLD),
    ("POLL", libc::SIGIO),
];

/// The name of a signal: `SIGUSR1`, `SIGRTMIN+3`; `SIG33` for those that the C library keeps.
pub fn name(number: i32) -> String {
    if let Some((name, _)) = STANDARD.iter().find(|(_, known)| *known == number) {
        return format!("SIG{name}");
    }
    match number - libc::SIGRTMIN() {
        0 => "SIGRTMIN".to_owned(),
        _ if number == libc::SIGRTMAX() => "SIGRTMAX".to_owned(),
        above if above > 0 => format!("SIGRTMIN+{above}"),
        _ => format!("SIG{number}"),
    }
}

/// The number of a signal that is written as a name or a number.
pub fn number(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let is = |number: &i32| (1..=LAST).contains(number);
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.parse().ok().filter(is);
    }
    if let Some((_, number)) = STANDARD.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse::<i32>().ok().filter(|offset| *offset <= LAST),
        false => None,
    };
    let found = if let Some(rest) = name.strip_prefix("RTMIN") {
        let above = if rest.is_empty() { 0 } else { offset(rest.strip_prefix('+')?)? };
        libc::SIGRTMIN() + above
    } else {
        let rest = name.strip_prefix("RTMAX")?;
        let below = if rest.is_empty() { 0 } else { offset(rest.strip_prefix('-')?)? };
        libc::SIGRTMAX() - below
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&found).then_some(found)
}

/// The same for a caller, who is told what a signal looks like.
pub fn parse(text: &str) -> Result<i32> {
    number(text).ok_or_else(|| Error::invalid(format!("{text:?} is no signal; give {EXPECTED}")))
}

/// The bit of a signal in a mask of the kernel's.
pub fn bit(number: i32) -> u64 {
    // Numbers are from 1 to 64.
    1 << ((number - 1) & 63)
}

/// The signals whose bits are set, as in the masks of proc_pid_status(5).
pub fn numbers_in(mask: u64) -> impl Iterator<Item = i32> {
    (1..=LAST).filter(move |number| mask & bit(*number) != 0)
}

pub fn names_in(mask: u64) -> Vec<String> {
    numbers_in(mask).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_name_that_reads_back() {
        for wanted in 1..=LAST {
            assert_eq!(number(&name(wanted)), Some(wanted), "{}", name(wanted));
            assert_eq!(number(&wanted.to_string()), Some(wanted));
        }
        assert_eq!(names_in(u64::MAX).len(), 64);
    }

    #[test]
    fn names_are_read_as_kill_reads_them() {
        for (text, wanted) in [
            ("SIGUSR1", libc::SIGUSR1),
            ("usr1", libc::SIGUSR1),
            ("sigPoll", libc::SIGIO),
            ("IOT", libc::SIGABRT),
            ("SIGRTMIN", libc::SIGRTMIN()),
            ("RTMIN+3", libc::SIGRTMIN() + 3),
            ("SIGRTMAX-1", libc::SIGRTMAX() - 1),
            ("SIGRTMIN+30", libc::SIGRTMIN() + 30),
            ("33", 33),
            ("SIG33", 33),
        ] {
            assert_eq!(number(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "",
            "SIG",
            "0",
            "65",
            "-1",
            "SIGNOTHING",
            "SIGRTMIN-1",
            "SIGRTMAX+1",
            "SIGRTMIN+31",
            "SIGRTMIN+",
            "SIGRTMIN++3",
            "SIGRTMAX-99",
            "SIGUSR1+1",
            "99999999999999999999",
            "SIGRTMIN+ 3",
            "ſIGHUP",
        ] {
            assert_eq!(number(text), None, "{text:?}");
        }
        assert!(parse("SIGFOO").unwrap_err().text.contains("SIGRTMIN+3"));
    }
}
