//! The worker's sandbox: seccomp(2) with a list of what may be called.
//!
//! A worker has its user's rights already, and the kernel judges all it does. The list takes away
//! what no mechanism needs, above all the calls that kernels were attacked through: new namespaces,
//! bpf, io_uring, userfaultfd, keyrings, mounts, ptrace, execve. It is for the day when a user has
//! taken his worker over: then it is no better a place to attack from than his own shell. The herald, which is nobody's, has a shorter
//! one, and a mounter, which may mount, has hardly any.

// Lists of words are read as paragraphs.
#[rustfmt::skip]
mod calls;

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use calls::List;

use crate::Error;

/// What happens at a call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// It fails with EPERM: in production.
    Errno,
    /// The process ends with status 159 (128 + SIGSYS) after it named the call on standard error: in
    /// tests, so that a call missing in the list is found.
    Kill,
}

/// The status of a process that `Violation::Kill` ended, as a shell would show it.
const KILLED: libc::c_int = 128 + libc::SIGSYS;

/// Whose sandbox it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inmate {
    Worker,
    Herald,
    Mounter,
}

impl Inmate {
    fn list(self) -> &'static List {
        match self {
            Self::Worker => &calls::WORKER,
            Self::Herald => &calls::HERALD,
            Self::Mounter => &calls::MOUNTER,
        }
    }
}

/// For the calling process and all its threads, for good; call it before the first message.
pub fn enter(inmate: Inmate, violation: Violation) -> Result<(), Error> {
    let action = match violation {
        Violation::Errno => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        Violation::Kill => {
            name_violations()?;
            SeccompAction::Trap
        }
    };
    let (unsupported, allowed) =
        filters(inmate.list(), action).map_err(|error| Error::Sandbox(error.into()))?;
    // The list last: it does not allow to set another one.
    apply_filter_all_threads(&unsupported).map_err(Error::Sandbox)?;
    apply_filter_all_threads(&allowed).map_err(Error::Sandbox)
}

/// The stricter of two answers holds. The first filter says of clone3 that this kernel has none,
/// for its flags are in memory that a filter cannot read; the C library then uses clone.
fn filters(list: &List, violation: SeccompAction) -> Result<(BpfProgram, BpfProgram), BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let unsupported = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let unsupported = SeccompFilter::new(unsupported, SeccompAction::Allow, missing, arch)?;

    let mut allowed = BTreeMap::new();
    for call in list.groups.iter().copied().flatten().chain(&[libc::SYS_clone3]) {
        allowed.insert(*call, Vec::new());
    }
    for (call, alternatives) in list.with_arguments.iter().copied().flatten() {
        let rules = alternatives.iter().map(|conditions| rule(conditions)).collect::<Result<_, _>>()?;
        allowed.insert(*call, rules);
    }
    let allowed = SeccompFilter::new(allowed, violation, SeccompAction::Allow, arch)?;
    Ok((unsupported.try_into()?, allowed.try_into()?))
}

/// All of the conditions: argument, mask, value. Arguments are compared as the kernel reads them, 32
/// bits of an int; all that are looked at are ints or have nothing above.
type Condition = (u8, u32, u32);

fn rule(conditions: &[Condition]) -> Result<SeccompRule, BackendError> {
    let condition = |(argument, mask, value): &Condition| {
        let masked = SeccompCmpOp::MaskedEq((*mask).into());
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, masked, (*value).into())
    };
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

/// Installs the handler of SIGSYS, which the filter sends at a call that is not on the list.
fn name_violations() -> Result<(), Error> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeroes are a sigaction: no flags, an empty mask, no handler. The handler that is put
    // in has the signature of SA_SIGINFO and calls only what signal-safety(7) allows.
    let failed = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = violated as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, action, ptr::null_mut())
    };
    if failed != 0 {
        return Err(Error::System("handling SIGSYS", io::Error::last_os_error()));
    }
    Ok(())
}

extern "C" fn violated(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // signo, errno, code, padding, address of the call, then its number: <asm-generic/siginfo.h>.
    const NUMBER: usize = 6;
    // SAFETY: the kernel gives a siginfo_t of 128 bytes, in which SIGSYS has its number there.
    let number = unsafe { info.cast::<libc::c_int>().add(NUMBER).read() };
    let mut text = *b"ipcd-worker: the sandbox does not allow system call 0000\n";
    let (last, mut rest) = (text.len() - 2, number.unsigned_abs());
    for digit in text[last - 3..=last].iter_mut().rev() {
        // One digit.
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: the text is valid for its length; both calls are async-signal-safe.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(KILLED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: [&List; 3] = [&calls::WORKER, &calls::HERALD, &calls::MOUNTER];

    fn limited(list: &List) -> Vec<calls::Limited> {
        list.with_arguments.concat()
    }

    #[test]
    fn the_lists_compile_and_fit_into_a_filter() {
        for list in LISTS {
            let (_, allowed) = filters(list, SeccompAction::Trap).unwrap();
            // BPF_MAXINSNS
            assert!(allowed.len() <= 4096, "{}", allowed.len());
        }
    }

    #[test]
    fn nothing_is_listed_twice() {
        for list in LISTS {
            let with_arguments = limited(list).into_iter().map(|(call, _)| call);
            let mut calls: Vec<_> = list.groups.concat().into_iter().chain(with_arguments).collect();
            let listed = calls.len();
            calls.sort_unstable();
            calls.dedup();
            assert_eq!(calls.len(), listed);
        }
    }

    /// As the front's user it could speak for the front, or end it.
    #[test]
    fn the_herald_signals_and_connects_to_nobody_and_writes_no_file() {
        let (allowed, limited) = (calls::HERALD.groups.concat(), limited(&calls::HERALD));
        for call in [
            libc::SYS_connect,
            libc::SYS_accept4,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_pidfd_send_signal,
            libc::SYS_openat2,
            libc::SYS_unlinkat,
            libc::SYS_mknodat,
            libc::SYS_socketpair,
            libc::SYS_msgget,
            libc::SYS_mq_open,
        ] {
            assert!(!allowed.contains(&call) && !limited.iter().any(|(other, _)| *other == call), "{call}");
        }
        let rules = |wanted| limited.iter().find(|(call, _)| *call == wanted).map(|(_, rules)| *rules);
        let netlink = libc::AF_NETLINK as u32;
        assert_eq!(rules(libc::SYS_socket), Some(&[&[(0, u32::MAX, netlink)][..]][..]));
        assert!(!allowed.contains(&libc::SYS_socket) && !allowed.contains(&libc::SYS_openat));
    }

    #[test]
    fn the_dangerous_is_not_on_the_list() {
        let dangerous = [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_fsopen,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_by_handle_at,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setgid,
            libc::SYS_setresgid,
            libc::SYS_setgroups,
            libc::SYS_setfsuid,
            libc::SYS_capset,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_seccomp,
            libc::SYS_personality,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_mq_notify,
            libc::SYS_fanotify_init,
            libc::SYS_vmsplice,
        ];
        let workers = limited(&calls::WORKER);
        let unshare = workers.iter().find(|(call, _)| *call == libc::SYS_unshare).map(|(_, rules)| *rules);
        assert_eq!(unshare, Some(&[&[(0, u32::MAX, libc::CLONE_SYSVSEM as u32)][..]][..]), "no namespaces");
        let listed = |list: &List, call| {
            list.groups.concat().contains(&call) || limited(list).iter().any(|(other, _)| *other == call)
        };
        for call in dangerous {
            assert!(!listed(&calls::WORKER, call) && !listed(&calls::HERALD, call), "{call}");
            // It is there to make a mount. It opens nothing, so it has nowhere to put it.
            assert_eq!(listed(&calls::MOUNTER, call), call == libc::SYS_fsopen, "{call}");
        }
        for call in
            [libc::SYS_unshare, libc::SYS_openat, libc::SYS_openat2, libc::SYS_socket, libc::SYS_clone]
        {
            assert!(!listed(&calls::MOUNTER, call), "{call}");
        }
    }
}
