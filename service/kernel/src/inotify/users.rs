//! Who uses up the limits of inotify: they are a user's, and his other programs share them.

use std::os::unix::fs::MetadataExt;

use crate::{Error, Kind, inotify::mask, proc};

/// The inotify instances of the caller's own processes that the caller may look into. One that a child
/// process inherited is there for both.
pub fn instances() -> Vec<proc::Held> {
    let caller = rustix::process::geteuid().as_raw();
    let mut instances = proc::held(is_instance);
    instances.retain(|held| {
        std::fs::metadata(format!("/proc/{}", held.pid)).is_ok_and(|process| process.uid() == caller)
    });
    instances
}

/// Whether a link of /proc/PID/fd is that of an inotify instance.
pub fn is_instance(link: &[u8]) -> bool {
    matches!(link, b"anon_inode:inotify" | b"anon_inode:[inotify]")
}

/// How many watches an instance has.
pub fn watches(held: &proc::Held) -> u64 {
    mask::watches(&proc::fdinfo_text(held.pid, held.fd)).len() as u64
}

/// The error for a limit of the machine, and the one of the user namespace where that is another.
pub fn limit(attempt: &str, what: &str) -> Error {
    let of = |path: String| proc::sysctl(&path).unwrap_or(0);
    let (machine, namespace) =
        (of(format!("fs/inotify/max_user_{what}")), of(format!("user/max_inotify_{what}")));
    let mut error = Error::new(
        Kind::LimitExceeded,
        format!(
            "cannot {attempt}: the user has no inotify {what} left; raise fs.inotify.max_user_{what}, now {machine}"
        ),
    );
    if namespace != machine {
        error = error.help(format!("and user.max_inotify_{what} of this user namespace, now {namespace}"));
    }
    match summary() {
        Some(summary) => error.help(summary),
        None => error,
    }
}

/// The processes with the most watches, as "in use: code (pid 99) 7000 watches in 2 instances, …".
fn summary() -> Option<String> {
    const NAMED: usize = 5;
    let mut users: Vec<(u64, u64, u32)> = Vec::new();
    for held in instances() {
        let count = watches(&held);
        match users.iter_mut().find(|user| user.2 == held.pid) {
            Some(user) => (user.0, user.1) = (user.0 + count, user.1 + 1),
            None => users.push((count, 1, held.pid)),
        }
    }
    users.sort_unstable_by(|a, b| b.cmp(a));
    let more = users.len().saturating_sub(NAMED);
    let named: Vec<_> = users
        .iter()
        .take(NAMED)
        .map(|(watches, instances, pid)| {
            format!("{} (pid {pid}) {watches} watches in {instances} instances", proc::command(*pid))
        })
        .collect();
    let rest = if more > 0 { format!(", {more} other processes") } else { String::new() };
    (!named.is_empty()).then(|| format!("in use: {}{rest}", named.join(", ")))
}
