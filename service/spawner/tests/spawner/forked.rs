//! Forks of the test program, which has one thread: processes that are in some state, or that try
//! something.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::{fs, io};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::spawner::pidfd;

/// A child; killed and reaped on drop.
pub struct Forked {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Returns when the child has done this; it then waits to be killed, unless it ended itself.
pub fn forked(act: impl FnOnce()) -> Forked {
    let (mut ready, done) = io::pipe().unwrap();
    // SAFETY: this program has one thread.
    match unsafe { libc::fork() } {
        0 => {
            act();
            drop(done);
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        pid => {
            drop(done);
            ready.read_to_end(&mut Vec::new()).unwrap();
            Forked { pid, pidfd: pidfd(pid) }
        }
    }
}

/// Ends a child, and nothing of this program's with it.
pub fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// With a group of the same number.
pub fn become_user(uid: u32) {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[]).unwrap();
    set_thread_res_gid(gid, gid, gid).unwrap();
    set_thread_res_uid(uid, uid, uid).unwrap();
}

impl Forked {
    /// Its exit status, when it has ended by itself.
    pub fn status(&self) -> i32 {
        let pid = Pid::from_raw(self.pid).unwrap();
        let status =
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap().unwrap();
        status.exit_status().unwrap()
    }
}

/// Its only child.
pub fn child_of(pid: i32) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().trim().parse().unwrap()
}

impl Drop for Forked {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.pid).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED).unwrap();
    }
}
