//! Threads with namespaces of their own: queues and limits that nobody else sees, as root or not.

use std::process::Command;

use rustix::process::{Gid, Uid};

/// Whom nobody expects to own anything.
pub const NOBODY: u32 = 65534;

/// Runs `with` on a thread with a mount namespace and an IPC namespace of its own, in which no mqueue
/// file system is mounted; None, visibly, where that is not possible.
pub fn alone<T: Send>(with: impl FnOnce() -> T + Send) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make namespaces");
        return None;
    }
    let body = || {
        // SAFETY: it changes the namespaces of this thread, which is about to end, and no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC) } != 0 {
            eprintln!("SKIPPED: cannot make namespaces: {}", std::io::Error::last_os_error());
            return None;
        }
        run("mount --make-rprivate / && umount -a -t mqueue");
        Some(with())
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

/// Another IPC namespace for this thread.
pub fn another_ipc_namespace() {
    // SAFETY: as above.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWIPC) }, 0);
}

/// Runs a script, with this thread's namespaces.
pub fn run(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

/// This thread is an ordinary user from here on.
pub fn become_nobody() {
    become_user(NOBODY);
}

/// The same, with an id and a group of this number.
pub fn become_user(id: u32) {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
}

/// Runs `with` on a thread that is an ordinary user; None, visibly, where that is not possible.
pub fn as_nobody<T: Send>(with: impl FnOnce() -> T + Send) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return None;
    }
    let body = || {
        become_nobody();
        with()
    };
    Some(std::thread::scope(|scope| scope.spawn(body).join().unwrap()))
}
