//! Who is at the other end of a connected unix socket, as the kernel noted it when the
//! connection was made (SO_PEERCRED and its relatives, unix(7)).

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::event::PollFlags;

use crate::{Dict, Value, dict, fd::poll_now, proc, socket_options};

/// asm-generic/socket.h; since Linux 4.13 and 6.5.
const SO_PEERGROUPS: libc::c_int = 59;
const SO_PEERPIDFD: libc::c_int = 77;

/// `pid`, `uid`, `gid`, `groups`, `label` (where a security module has one), and, where the kernel
/// still knows the very process, `alive` and its `command`. Empty for a socket that has no peer.
///
/// They are those of connect(2), listen(2) or socketpair(2), whoever holds the socket by now. A
/// pid may have been reused since; `command` is only told while a pidfd vouches for it.
pub fn describe(fd: impl AsFd) -> Dict {
    let fd = fd.as_fd();
    let Some((pid, uid, gid)) = credentials(fd) else {
        return Dict::new();
    };
    let mut peer = dict! { "uid" => uid, "gid" => gid };
    if let Ok(groups) = socket_options::get(fd, SO_PEERGROUPS, 64 * size_of::<u32>()) {
        let (words, _) = groups.as_chunks::<4>();
        peer.insert(
            "groups".into(),
            Value::U32s(words.iter().map(|word| u32::from_ne_bytes(*word)).collect()),
        );
    }
    if let Ok(label) = socket_options::get(fd, libc::SO_PEERSEC, 256) {
        let label = label.strip_suffix(&[0]).unwrap_or(&label);
        if !label.is_empty() {
            peer.insert("label".into(), Value::text_or_bytes(label));
        }
    }
    if pid == 0 {
        // In a pid namespace that this process does not see.
        return peer;
    }
    peer.insert("pid".into(), pid.into());
    if let Ok(number) = socket_options::get_int(fd, SO_PEERPIDFD)
        && number >= 0
    {
        // SAFETY: the kernel has just made this fd for us; nobody else owns it.
        let process = unsafe { OwnedFd::from_raw_fd(number) };
        let alive = poll_now(&process, PollFlags::IN).is_ok_and(|ready| ready.is_empty());
        let command = proc::command(pid);
        // Asked again after the name was read: the pid was its own all the while.
        let alive = alive && poll_now(&process, PollFlags::IN).is_ok_and(|ready| ready.is_empty());
        peer.insert("alive".into(), alive.into());
        if alive {
            peer.insert("command".into(), command.into());
        }
    }
    peer
}

/// Pid (0 where it cannot be seen), uid and gid of the peer.
fn credentials(fd: impl AsFd) -> Option<(u32, u32, u32)> {
    // Not rustix's: it reads the pid as one that cannot be 0.
    let bytes = socket_options::get(fd, libc::SO_PEERCRED, size_of::<libc::ucred>()).ok()?;
    let (words, _) = bytes.as_chunks::<4>();
    let &[pid, uid, gid] = words else { return None };
    let [pid, uid, gid] = [pid, uid, gid].map(u32::from_ne_bytes);
    // Without a peer the kernel says pid 0, uid -1 and gid -1.
    (uid != u32::MAX).then_some((pid, uid, gid))
}
