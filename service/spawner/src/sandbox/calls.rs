//! The list: what the service was seen to call, what other versions of the C library call instead,
//! and what the mechanisms of docs/ARCHITECTURE.md need.
//!
//! A mechanism that needs a call which is missing here ends the worker in tests, with its number.

use libc::*;

use super::Condition;

/// What a process may call.
pub struct List {
    /// Calls with any arguments.
    pub groups: &'static [&'static [c_long]],
    /// Calls that one of their alternatives must hold for.
    pub with_arguments: &'static [&'static [Limited]],
}

pub type Limited = (c_long, &'static [&'static [Condition]]);

/// A worker: what its user may do, the kernel judges.
pub const WORKER: List = List {
    groups: &[
        MEMORY, THREADS, TIME, EVENTS, DESCRIPTORS, LOOKING, FILES, SOCKETS, CONNECTIONS, PROCESSES,
        SYSTEM_V, QUEUES, HANDLING, SIGNALS, OLD_LOOKING, OLD,
    ],
    with_arguments: &[WITH_ARGUMENTS, OF_WORKERS],
};

/// The herald: it is of the front's user, as whom it could signal the front, or connect to the spawner
/// or the bus in its place. So it signals and connects to nobody, writes no file, and makes no socket but
/// those of netlink.
pub const HERALD: List = List {
    groups: &[
        MEMORY, THREADS, TIME, EVENTS, DESCRIPTORS, LOOKING, SOCKETS, PROCESSES, HANDLING, OLD_LOOKING,
    ],
    with_arguments: &[WITH_ARGUMENTS, OF_HERALD],
};

/// A mounter: makes the mount from what it has open, sends it, and ends.
pub const MOUNTER: List = List {
    groups: &[MOUNTING, ENDING],
    with_arguments: &[OF_MOUNTER],
};

/// Neither move_mount(2) nor open_tree(2): what it makes is mounted nowhere.
const MOUNTING: &[c_long] = &[SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_geteuid, SYS_getegid, SYS_sendmsg];

const ENDING: &[c_long] = &[
    // Not to open anything, and to free memory.
    SYS_close, SYS_brk, SYS_munmap, SYS_madvise, SYS_sigaltstack, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_futex,
    // To say what went wrong.
    SYS_write, SYS_exit, SYS_exit_group,
];

const MEMORY: &[c_long] = &[
    SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise, SYS_msync, SYS_mincore, SYS_mlock, SYS_mlock2, SYS_munlock,
    SYS_memfd_create,
    // Barriers of allocators and runtimes.
    SYS_membarrier,
];

const THREADS: &[c_long] = &[
    SYS_futex, SYS_futex_waitv, FUTEX_WAKE, FUTEX_WAIT, FUTEX_REQUEUE, SYS_set_robust_list,
    SYS_get_robust_list, SYS_set_tid_address, SYS_rseq, SYS_gettid, SYS_sched_yield, SYS_sched_getaffinity,
    SYS_getcpu, SYS_restart_syscall, SYS_exit, SYS_exit_group,
];

const TIME: &[c_long] = &[
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday,
    SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime,
];

const EVENTS: &[c_long] = &[
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_ppoll, SYS_pselect6, SYS_eventfd2,
    SYS_inotify_init1, SYS_inotify_add_watch, SYS_inotify_rm_watch, SYS_signalfd4,
];

const DESCRIPTORS: &[c_long] = &[
    SYS_read, SYS_readv, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_write, SYS_writev, SYS_pwrite64,
    SYS_pwritev, SYS_pwritev2, SYS_lseek, SYS_close, SYS_close_range, SYS_dup, SYS_dup3, SYS_fcntl, SYS_flock,
    SYS_pipe2, SYS_splice, SYS_tee, SYS_sendfile, SYS_copy_file_range, SYS_fsync, SYS_fdatasync,
    SYS_ftruncate, SYS_fallocate, SYS_fadvise64,
];

const LOOKING: &[c_long] = &[
    SYS_fstat, SYS_newfstatat, SYS_statx, SYS_fstatfs, SYS_statfs, SYS_faccessat, SYS_faccessat2,
    SYS_readlinkat, SYS_getdents64, SYS_getcwd,
];

const FILES: &[c_long] = &[
    SYS_openat, SYS_openat2, SYS_chdir, SYS_fchdir, SYS_umask, SYS_mknodat,
    SYS_mkdirat, SYS_unlinkat, SYS_renameat2, SYS_linkat, SYS_symlinkat, SYS_truncate,
    SYS_fchmod, SYS_fchmodat, FCHMODAT2, SYS_fchown, SYS_fchownat, SYS_utimensat, SYS_getxattr, SYS_lgetxattr,
    SYS_fgetxattr, SYS_listxattr, SYS_llistxattr, SYS_flistxattr,
];

const SOCKETS: &[c_long] = &[
    SYS_bind, SYS_shutdown, SYS_getsockname, SYS_getpeername, SYS_getsockopt, SYS_setsockopt, SYS_sendto,
    SYS_sendmsg, SYS_sendmmsg, SYS_recvfrom, SYS_recvmsg, SYS_recvmmsg,
];

const CONNECTIONS: &[c_long] = &[SYS_connect, SYS_listen, SYS_accept, SYS_accept4];

/// About processes; to do something to one is under signals.
const PROCESSES: &[c_long] = &[
    SYS_getpid, SYS_getppid, SYS_getpgid, SYS_getsid, SYS_getuid, SYS_geteuid, SYS_getresuid, SYS_getgid,
    SYS_getegid, SYS_getresgid, SYS_getgroups, SYS_capget, SYS_uname, SYS_sysinfo, SYS_getrandom,
    SYS_getrusage, SYS_getpriority, SYS_pidfd_open, SYS_wait4, SYS_waitid,
];

const SYSTEM_V: &[c_long] = &[
    SYS_msgget, SYS_msgctl, SYS_msgsnd, SYS_msgrcv, SYS_semget, SYS_semctl, SYS_semop, SYS_semtimedop,
    SYS_shmget, SYS_shmctl, SYS_shmdt,
];

/// POSIX queues; not mq_notify, which takes the one notification that a queue has.
const QUEUES: &[c_long] =
    &[SYS_mq_open, SYS_mq_unlink, SYS_mq_timedsend, SYS_mq_timedreceive, SYS_mq_getsetattr];

const HANDLING: &[c_long] = &[
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend, SYS_sigaltstack,
];

const SIGNALS: &[c_long] = &[
    SYS_kill, SYS_tkill, SYS_tgkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_pidfd_send_signal,
];

/// What newer architectures have other calls for.
#[cfg(target_arch = "x86_64")]
const OLD_LOOKING: &[c_long] = &[
    SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_getdents, SYS_poll, SYS_select, SYS_epoll_wait, SYS_time,
];
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    SYS_open, SYS_creat, SYS_mknod, SYS_mkdir, SYS_rmdir, SYS_unlink, SYS_rename, SYS_link, SYS_symlink,
    SYS_chmod, SYS_chown, SYS_lchown, SYS_pipe, SYS_dup2, SYS_epoll_create, SYS_eventfd, SYS_inotify_init,
    SYS_signalfd, SYS_getpgrp, SYS_getrlimit, SYS_setrlimit, SYS_renameat,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_LOOKING: &[c_long] = &[];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

// The crate libc does not have these yet; from 424 on, all architectures have the same numbers.
const FCHMODAT2: c_long = 452;
const FUTEX_WAKE: c_long = 454;
const FUTEX_WAIT: c_long = 455;
const FUTEX_REQUEUE: c_long = 456;
const PR_GET_AUXV: u32 = 0x4155_5856;

/// Calls that one of these alternatives must hold for.
const WITH_ARGUMENTS: &[Limited] = &[
    (SYS_prctl, &[
        &[(0, ALL, flags(PR_SET_NAME))],
        &[(0, ALL, flags(PR_GET_NAME))],
        &[(0, ALL, flags(PR_GET_DUMPABLE))],
        // A module of nss(5) finds out the last capability with it.
        &[(0, ALL, flags(PR_CAPBSET_READ))],
        // rustix looks for the size of a page there.
        &[(0, ALL, PR_GET_AUXV)],
        // The allocator of the C library names its memory.
        &[(0, ALL, flags(PR_SET_VMA))],
    ]),
    // The own limits.
    (SYS_prlimit64, &[&[(0, ALL, 0)]]),
    // Nothing writable is executed. Libraries are: name resolution loads modules (nss(5)).
    (SYS_mmap, &[
        &[(2, flags(PROT_EXEC), 0)],
        &[(2, flags(PROT_EXEC | PROT_WRITE), flags(PROT_EXEC)), (3, flags(MAP_ANONYMOUS), 0)],
    ]),
    (SYS_mprotect, &[&[(2, flags(PROT_EXEC), 0)]]),
    // What is in queues, non-blocking, "is it a terminal?", interface names and numbers. Not TIOCSTI,
    // which types on a terminal.
    (SYS_ioctl, &[
        &[(1, ALL, FIONREAD as u32)],
        &[(1, ALL, FIONBIO as u32)],
        &[(1, ALL, TIOCOUTQ as u32)],
        &[(1, ALL, TCGETS as u32)],
        &[(1, ALL, SIOCGIFNAME as u32)],
        &[(1, ALL, SIOCGIFINDEX as u32)],
        // PIDFD_GET_INFO, whatever the size of its answer.
        &[(1, 0xffff, 0xff0b)],
        // PROCMAP_QUERY: how much of a System V segment is there.
        &[(1, ALL, 0xc068_6611)],
    ]),
];

const OF_WORKERS: &[Limited] = &[
    // Threads, and the processes of mailboxes, which inherit the filter; no namespaces with either.
    (SYS_clone, &[
        &[(0, flags(CLONE_THREAD | NAMESPACES), flags(CLONE_THREAD))],
        &[(0, ALL, flags(CLONE_PIDFD | SIGCHLD))],
    ]),
    // An undo list for a thread (leases of semaphore sets), and no namespaces.
    (SYS_unshare, &[&[(0, ALL, flags(CLONE_SYSVSEM))]]),
    (SYS_shmat, &[&[(2, flags(SHM_EXEC), 0)]]),
    (SYS_socket, &[
        &[(0, ALL, flags(AF_UNIX))],
        &[(0, ALL, flags(AF_NETLINK))],
        &[(0, ALL, flags(AF_VSOCK))],
        // No raw sockets, even where everybody may make one.
        &[(0, ALL, flags(AF_INET)), (1, SOCK_TYPE, flags(SOCK_STREAM))],
        &[(0, ALL, flags(AF_INET)), (1, SOCK_TYPE, flags(SOCK_DGRAM))],
        &[(0, ALL, flags(AF_INET)), (1, SOCK_TYPE, flags(SOCK_SEQPACKET))],
        &[(0, ALL, flags(AF_INET6)), (1, SOCK_TYPE, flags(SOCK_STREAM))],
        &[(0, ALL, flags(AF_INET6)), (1, SOCK_TYPE, flags(SOCK_DGRAM))],
        &[(0, ALL, flags(AF_INET6)), (1, SOCK_TYPE, flags(SOCK_SEQPACKET))],
    ]),
    (SYS_socketpair, &[&[(0, ALL, flags(AF_UNIX))]]),
];

const OF_HERALD: &[Limited] = &[
    (SYS_clone, &[&[(0, flags(CLONE_THREAD | NAMESPACES), flags(CLONE_THREAD))]]),
    (SYS_openat, &[&[(2, flags(O_ACCMODE | O_CREAT | O_TRUNC), flags(O_RDONLY))]]),
    (SYS_socket, &[&[(0, ALL, flags(AF_NETLINK))]]),
];

const OF_MOUNTER: &[Limited] = &[
    (SYS_mmap, &[&[(2, flags(PROT_EXEC), 0), (3, flags(MAP_ANONYMOUS), flags(MAP_ANONYMOUS))]]),
];

const ALL: u32 = u32::MAX;
/// Without SOCK_CLOEXEC and SOCK_NONBLOCK: SOCK_TYPE_MASK of the kernel.
const SOCK_TYPE: u32 = 0xf;
const NAMESPACES: c_int = CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET;

const fn flags(flags: c_int) -> u32 {
    flags.cast_unsigned()
}
