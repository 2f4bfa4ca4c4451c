//! From an address to one very process: by number, by exact command name, by number and start.
//!
//! A number can come to mean another process between two looks. So the pidfd is opened first;
//! what is then read under the number in /proc is of that process if the pidfd's process is not
//! reaped when it has been read.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use rustix::io::Errno;

use crate::{
    Error, Kind, Parameters, Result, proc,
    signal::{
        pidfd::{self, Scope},
        process::{Process, Target},
        status::{self, Stat},
    },
};

/// Processes of the service besides this one, which no signal of a caller's is to hit: a worker's
/// spawner.
static PROTECTED: OnceLock<Vec<i32>> = OnceLock::new();

/// Once, before the first call.
pub fn protect(pids: impl IntoIterator<Item = i32>) {
    let _ = PROTECTED.set(pids.into_iter().collect());
}

/// Attach, from the checked parameters.
pub fn find(parameters: &Parameters) -> Result<Process> {
    let command = parameters.text("command");
    let pid = match (number(parameters, "pid"), command) {
        (Some(pid), _) => pid,
        (None, Some(command)) => by_command(command)?,
        (None, None) => {
            return Err(Error::invalid("give the process: pid=NUMBER, or command=NAME"));
        }
    };
    let target = target(pid, parameters)?;
    let (process, stat) = open(pid, target)?;
    let wrong = |what: String| {
        Err(Error::new(
            Kind::NotFound,
            format!("cannot attach to process {pid}: {what}; the one that is meant has ended"),
        ))
    };
    if let Some(start) = parameters.size("start")
        && start != stat.start
    {
        return wrong(format!("it was started at tick {}, not {start}", stat.start));
    }
    if let Some(inode) = parameters.size("inode")
        && pidfd::inode(&process).is_some_and(|found| found != inode)
    {
        return wrong(format!("its pidfd has another inode than {inode}"));
    }
    if let Some(command) = command
        && stat.command != command.as_bytes()
    {
        return wrong(format!("it is called {:?}", String::from_utf8_lossy(&stat.command)));
    }
    Ok(Process::new(process, pid, target, &stat))
}

fn number(parameters: &Parameters, key: &str) -> Option<i32> {
    // The table allows no more than an i32 holds.
    parameters.u32(key).and_then(|number| i32::try_from(number).ok())
}

/// Which part of the process, or how much around it; checked against what must not be hit.
fn target(pid: i32, parameters: &Parameters) -> Result<Target> {
    refuse_own(pid)?;
    match (number(parameters, "tid"), parameters.bool("group")) {
        (Some(_), true) => Err(Error::invalid("tid and group exclude each other: a thread leads no group")),
        (Some(tid), false) => Ok(Target::Thread(tid)),
        (None, true) => {
            refuse_own_group(pid)?;
            Ok(Target::Group)
        }
        (None, false) => Ok(Target::Process),
    }
}

/// The service is no one's target, nor is what all processes hang on.
pub fn refuse_own(pid: i32) -> Result<()> {
    let own = std::process::id().cast_signed();
    let protected = PROTECTED.get().is_some_and(|pids| pids.contains(&pid));
    if pid <= 1 {
        return Err(Error::invalid(format!(
            "process {pid} is no target: give the number of one process, from 2 on"
        )));
    }
    if pid == own || protected {
        return Err(Error::invalid(format!("process {pid} is the service itself, which is no target")));
    }
    Ok(())
}

fn refuse_own_group(pid: i32) -> Result<()> {
    let own = rustix::process::getpgrp().as_raw_pid();
    if pid == own {
        return Err(Error::invalid(format!(
            "the service itself is in the process group {pid}, which is no target"
        )));
    }
    Ok(())
}

/// Opens the process, or its thread, and reads who it is, both at one time.
fn open(pid: i32, target: Target) -> Result<(OwnedFd, Stat)> {
    let attempt = || target.describe(pid);
    let tid = target.tid();
    let opened = pidfd::open(tid.unwrap_or(pid), tid.is_some());
    let fd = opened.map_err(|errno| match errno {
        Errno::SRCH => none(&attempt()),
        // A thread that is not the first of its process, or what has just ended.
        Errno::INVAL | Errno::NOENT => not_opened(pid, tid, errno),
        Errno::NOSYS => {
            Error::from_errno(errno, format!("attach to {}", attempt())).help("it needs Linux 5.3")
        }
        errno => Error::from_errno(errno, format!("attach to {}", attempt())),
    })?;
    let stat = status::stat(&status::directory(pid, tid));
    let (Some(stat), false) = (stat, is_reaped(&fd)) else {
        return Err(none(&attempt()));
    };
    if target == Target::Group && stat.pgrp != pid {
        return Err(Error::invalid(format!(
            "process {pid} is in the process group {}, which it does not lead; give pid={}",
            stat.pgrp, stat.pgrp
        )));
    }
    Ok((fd, stat))
}

fn none(what: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is no {what} (ESRCH)"))
}

fn not_opened(pid: i32, tid: Option<i32>, errno: Errno) -> Error {
    let is = status::status(&status::directory(pid, None));
    match (tid, is) {
        (_, None) => none(&format!("process {pid}")),
        (None, Some(is)) if is.tgid != pid => Error::invalid(format!(
            "{pid} is a thread of process {}; give pid={},tid={pid}",
            is.tgid, is.tgid
        )),
        (Some(tid), Some(_)) if status::stat(&status::directory(pid, Some(tid))).is_none() => {
            none(&format!("thread {tid} in process {pid}"))
        }
        (Some(tid), Some(_)) => Error::not_supported(format!(
            "cannot attach to thread {tid}: {}; file descriptors of threads need Linux 6.9",
            crate::error::describe(errno)
        )),
        (None, Some(_)) => none(&format!("process {pid}")),
    }
}

/// Whether the number may mean another process by now.
pub fn is_reaped(process: impl AsFd) -> bool {
    matches!(pidfd::send(process, 0, 0, Scope::Own), Err(Errno::SRCH))
}

/// The one process of the caller's with exactly this command name.
fn by_command(name: &str) -> Result<i32> {
    // TASK_COMM_LEN, without its NUL.
    const LONGEST: usize = 15;
    if name.is_empty() || name.len() > LONGEST {
        return Err(Error::invalid(format!(
            "the key \"command\" must be a command name as in /proc/PID/comm, of 1 to {LONGEST} bytes, not {name:?} \
             of {}; the kernel cuts longer names off",
            name.len()
        )));
    }
    let uid = rustix::process::getuid().as_raw();
    let own = std::process::id();
    let is = |pid: &u32| {
        if *pid == own || proc::command(*pid) != name {
            return None;
        }
        let pid = pid.cast_signed();
        let directory = status::directory(pid, None);
        let stat = status::stat(&directory)?;
        let theirs = status::status(&directory)?.uids[0] != uid;
        (!theirs && !stat.is_zombie() && stat.command == name.as_bytes()).then_some((pid, stat))
    };
    let found: Vec<(i32, Stat)> = proc::pids().iter().filter_map(is).collect();
    match found.as_slice() {
        [] => Err(Error::new(
            Kind::NotFound,
            format!("no process of uid {uid} has the command name {name:?}; List() shows what there is"),
        )),
        [(pid, _)] => Ok(*pid),
        several => {
            const SHOWN: usize = 16;
            let listed = several.iter().take(SHOWN);
            let listed: Vec<_> =
                listed.map(|(pid, stat)| format!("signal:pid={pid},start={}", stat.start)).collect();
            let more = several.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Err(Error::invalid(format!(
                "{} processes have the command name {name:?}; give one of {}{more}",
                several.len(),
                listed.join(" ")
            )))
        }
    }
}
