//! What a forked child does to become a caller, or the front, for good.
//!
//! Every step is checked, and in the end the kernel is asked what the process is: a child that has
//! anything left of root ends before it reads a byte of anybody's.

use std::ffi::CStr;
use std::io::{self, IsTerminal};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, chdir, dumpable_behavior, getgroups, getrlimit,
    set_dumpable_behavior, setrlimit, setsid, umask,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, no_new_privs, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_name, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::error::Attempting;
use crate::protocol::Identity;
use crate::signals;
use crate::{Error, FrontStart, WorkerStart};

/// "Overflow" ids stand for everybody who has none here; -1 is no id but "leave it as it is".
pub const NOBODY: u32 = 65534;

/// Whether the kernel can tell this identity from all others.
pub fn is_fit(identity: &Identity) -> bool {
    let mut ids = identity.groups.iter().chain([&identity.uid, &identity.gid]);
    ids.all(|id| ![NOBODY, u32::MAX].contains(id))
}

/// The rest of the start of a worker, or the herald, in the child. Whatever the spawner had open is
/// dropped before.
pub fn become_worker(name: &CStr, control: OwnedFd, identity: Identity) -> Result<WorkerStart, Error> {
    let control = shed(name, control)?;
    limit_files()?;
    become_user(&identity, Files::Own)?;
    Ok(WorkerStart { control, identity })
}

/// Names the process and leaves it nothing open but the standard streams, redirected, and this socket.
pub fn shed(name: &CStr, control: OwnedFd) -> Result<OwnedFd, Error> {
    set_name(name).attempting("naming the worker")?;
    signals::ignore_harmless();
    redirect_standard_streams()?;
    close_all_but(&[control.as_raw_fd()])?;
    // The lowest free descriptor from 3 on is 3, unless the control socket has it already.
    match control.as_raw_fd() {
        3 => Ok(control),
        _ => fcntl_dupfd_cloexec(&control, 3).attempting("duplicating the control socket"),
    }
}

/// The same for the front, which keeps the standard streams and the workers' control sockets.
pub fn become_front(start: FrontStart, identity: &Identity) -> Result<FrontStart, Error> {
    set_name(c"ipcd-front").attempting("naming the front")?;
    let mut kept = vec![start.spawner.as_raw_fd()];
    kept.extend(start.workers.iter().map(|(_, control)| control.as_raw_fd()));
    close_all_but(&kept)?;
    become_user(identity, Files::Own)?;
    Ok(start)
}

/// Who opens files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// The user.
    Own,
    /// Root, until the caller changes that (setfsuid(2)), for the files in /proc/self: they are root's, as the process is
    /// not dumpable.
    Roots,
}

/// No way back from here.
pub fn become_user(identity: &Identity, files: Files) -> Result<(), Error> {
    signals::unblock()?;
    setsid().attempting("making a session")?;
    chdir("/").attempting("changing to /")?;
    umask(Mode::RWXG | Mode::RWXO);
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, no_core).attempting("setting RLIMIT_CORE")?;
    leave_session_keyring()?;

    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<_> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups).attempting("setting the supplementary groups")?;
    set_thread_res_gid(gid, gid, gid).attempting("setting the group ids")?;
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(capability(number)) {
            Ok(()) => {}
            // Beyond the last one that this kernel has.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(Error::System("dropping the bounding set", error.into())),
        }
    }
    clear_ambient_capability_set().attempting("clearing the ambient set")?;
    // Before the ids change, or their new owner could look in for a moment; and after, for the
    // change itself sets it to fs.suid_dumpable.
    not_dumpable()?;
    let keeps = files == Files::Roots;
    set_keep_capabilities(keeps).attempting("setting PR_SET_KEEPCAPS")?;
    set_thread_res_uid(uid, uid, uid).attempting("setting the user ids")?;
    not_dumpable()?;
    if keeps {
        let sets = CapabilitySets {
            effective: CapabilitySet::SETUID,
            permitted: CapabilitySet::SETUID,
            ..NO_CAPABILITY
        };
        set_capabilities(None, sets).attempting("keeping CAP_SETUID")?;
        set_file_user(0)?;
        set_keep_capabilities(false).attempting("clearing PR_SET_KEEPCAPS")?;
    }
    set_capabilities(None, NO_CAPABILITY).attempting("dropping the capabilities")?;
    set_no_new_privs(true).attempting("setting no_new_privs")?;
    verify(identity)
}

/// Each change of a user id sets it anew.
fn not_dumpable() -> Result<(), Error> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).attempting("setting PR_SET_DUMPABLE")
}

/// Who opens files (setfsuid(2)); the kernel says nothing when it refuses, so it is asked.
pub fn set_file_user(uid: u32) -> Result<(), Error> {
    // SAFETY: changes or asks for a number; -1 asks.
    let now = unsafe {
        libc::setfsuid(uid);
        libc::setfsuid(u32::MAX)
    };
    not_dumpable()?;
    match now.cast_unsigned() == uid {
        true => Ok(()),
        false => Err(Error::System("setting the user who opens files", Errno::PERM.into())),
    }
}

const NO_CAPABILITY: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

fn capability(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

/// Asks the kernel whether the process is what it should have become.
fn verify(identity: &Identity) -> Result<(), Error> {
    const ASKING: &str = "asking the kernel what the process has become";
    let mut uids: [libc::uid_t; 3] = [0; 3];
    let mut gids: [libc::gid_t; 3] = [0; 3];
    let ([ruid, euid, suid], [rgid, egid, sgid]) = (&mut uids, &mut gids);
    // SAFETY: six valid pointers to numbers that nobody else uses.
    let failed = unsafe { libc::getresuid(ruid, euid, suid) | libc::getresgid(rgid, egid, sgid) };
    if failed != 0 {
        return Err(Error::System(ASKING, io::Error::last_os_error()));
    }
    let mut groups: Vec<_> =
        getgroups().attempting(ASKING)?.into_iter().map(rustix::process::Gid::as_raw).collect();
    let mut wanted = identity.groups.clone();
    for list in [&mut groups, &mut wanted] {
        list.sort_unstable();
        list.dedup();
    }
    let bounded = |number| capability_is_in_bounding_set(capability(number)).unwrap_or(false);
    let facts = [
        (uids == [identity.uid; 3], "the user ids"),
        (gids == [identity.gid; 3], "the group ids"),
        (groups == wanted, "the supplementary groups"),
        (capabilities(None).attempting(ASKING)? == NO_CAPABILITY, "the capabilities"),
        (!(0..u64::BITS).any(bounded), "the bounding set"),
        (no_new_privs().attempting(ASKING)?, "no_new_privs"),
        (dumpable_behavior().attempting(ASKING)? == DumpableBehavior::NotDumpable, "PR_GET_DUMPABLE"),
    ];
    match facts.iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, what)) => Err(Error::System(what, io::Error::other("not what was set"))),
    }
}

/// Root's session keyring would come along, and with it the keys of root's network file systems.
fn leave_session_keyring() -> Result<(), Error> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let anonymous: *const libc::c_char = std::ptr::null();
    // SAFETY: the only pointer is null, which asks for a keyring without a name.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    match io::Error::last_os_error() {
        _ if serial >= 0 => Ok(()),
        // A kernel without keyrings; a container whose filter keeps them from everybody in it.
        error if [Some(libc::ENOSYS), Some(libc::EPERM)].contains(&error.raw_os_error()) => Ok(()),
        error => Err(Error::System("joining a session keyring", error)),
    }
}

/// Nothing to read, nowhere to write but the log: if that is root's terminal, it is opened anew, for
/// writing only.
fn redirect_standard_streams() -> Result<(), Error> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.attempting("opening /dev/null")?;
    dup2_stdin(&null).attempting("redirecting standard input")?;
    dup2_stdout(&null).attempting("redirecting standard output")?;
    if io::stderr().is_terminal() {
        let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let write_only = open("/proc/self/fd/2", flags, Mode::empty()).unwrap_or(null);
        dup2_stderr(&write_only).attempting("redirecting standard error")?;
    }
    Ok(())
}

/// Closes all descriptors from 3 on but these: those that the caller of the spawner forgot, too.
fn close_all_but(kept: &[RawFd]) -> Result<(), Error> {
    let mut kept: Vec<_> = kept.iter().map(|fd| fd.cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().chain([u32::MAX]) {
        // An empty gap has no last descriptor.
        // SAFETY: closes what no value in this process owns: the spawner dropped what it had, and
        // whoever called it promised to have nothing else open.
        if first < end && unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) } != 0 {
            return Err(Error::System("closing descriptors (needs Linux 5.9)", io::Error::last_os_error()));
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

/// What a user can fill, and not so much that the sum of all workers hurts.
fn limit_files() -> Result<(), Error> {
    let now = getrlimit(Resource::Nofile);
    let at_most = |limit: Option<u64>, most: u64| Some(limit.unwrap_or(most).min(most));
    let new = Rlimit { current: at_most(now.maximum, 1024), maximum: at_most(now.maximum, 4096) };
    setrlimit(Resource::Nofile, new).attempting("setting RLIMIT_NOFILE")
}
