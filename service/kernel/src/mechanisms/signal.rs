//! Signals, signal(7): processes that they are sent to, and mailboxes that receive them.
//!
//! Attach makes an endpoint for a process that there is (`signal/process.rs`), Create makes a
//! process that receives (`signal/mailbox.rs`).

use crate::{
    Ability, Lack, Descriptor, Dict, Opening, Parameter, Parameters, Result, Type, dict,
    mechanism::{Adoption, Column},
    proc,
    shape::Shape,
    signal::{address, mailbox, names, process::Process, status},
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "signal",
    schemes: &["signal"],
    summary: "Signals to processes and from them, and how processes end (signal(7), pidfd_open(2))",
    shapes: &[Shape::Process, Shape::Mailbox],
    create_parameters: &[
        Parameter::new("number", Type::Signals, "Signals to receive; another spelling of numbers"),
        Parameter::new("numbers", Type::Signals, "Signals to receive: SIGUSR1/SIGRTMIN+3, or all that can be caught"),
    ],
    attach_parameters: &[
        Parameter::new("pid", Type::U32 { min: 2, max: PID_MAX }, "Number of the process"),
        Parameter::new("command", Type::Text, "Exact command name (comm, at most 15 bytes) of one of the caller's processes"),
        Parameter::new("tid", Type::U32 { min: 2, max: PID_MAX }, "Number of a thread of the process, to signal that one only"),
        Parameter::new("group", Type::Bool, "Signal the whole process group that the process leads").default("false"),
        Parameter::new("start", Type::U64 { min: 0, max: u64::MAX }, "When it was started, in clock ticks: it must be that very process"),
        Parameter::new("inode", Type::U64 { min: 0, max: u64::MAX }, "Inode number of its pidfd (Linux 6.9): it must be that very process"),
    ],
    columns: &[
        Column { key: "address", kind: "s", summary: "Address for Attach" },
        Column { key: "pid", kind: "u", summary: "Number of the process" },
        Column { key: "command", kind: "s", summary: "Its command name" },
        Column { key: "state", kind: "s", summary: "running, sleeping, stopped, zombie and so on" },
        Column { key: "uid", kind: "u", summary: "Real user id, which is the caller's" },
        Column { key: "ppid", kind: "u", summary: "Number of its parent" },
        Column { key: "threads", kind: "u", summary: "How many threads it has" },
        Column { key: "start", kind: "t", summary: "When it was started, in clock ticks since the machine's start" },
        Column { key: "started-at", kind: "t", summary: "The same in microseconds since the epoch" },
        Column { key: "caught", kind: "as", summary: "Signals that it has a handler for" },
        Column { key: "blocked", kind: "as", summary: "Signals that its first thread blocks" },
        Column { key: "ignored", kind: "as", summary: "Signals that it ignores" },
        Column { key: "pending", kind: "as", summary: "Signals that wait for it" },
    ],
    open_parameters: &[],
    create: mailbox::create,
    anonymous: |_| false,
    attach,
    adopt: |fd| {
        Ok(match Process::adopt(fd)? {
            Ok(process) => Adoption::Taken(Box::new(process)),
            Err(fd) => Adoption::Refused(fd),
        })
    },
    list: || Ok(list()?.into()),
    limits,
    available: || Ok(()),
    driver: Some(mailbox::drive),
    lacks: &[
        Lack::new(
            Ability::Relay,
            "signals are numbers, and no data",
        ),
        Lack::new(
            Ability::Permissions,
            "a process has none of its own: kill(2) compares user ids",
        ),
        Lack::new(
            Ability::Remove,
            "a process has no name to remove; `Terminate` ends it, and `Close` a mailbox",
        ),
    ],
    reference: REFERENCE,
};

/// PID_MAX_LIMIT of the kernel.
const PID_MAX: u32 = 4 * 1024 * 1024;

const REFERENCE: &str = "\
`Attach` makes an endpoint of shape *process* for a process that there is, `Create` one of shape *mailbox*:
a process of the service's own that receives signals. `Adopt` takes a pidfd.

Signals are written as in signal(7) (`SIGUSR1`, or `usr1`), real-time ones as `SIGRTMIN+3` or `SIGRTMAX-1`, any
by its number. Several are joined with `/`, because `+` is part of a name: `signal:numbers=SIGUSR1/SIGRTMIN+3`. In
options they are an array of strings. 32 and 33, which the C library keeps for itself, have only numbers.

#### Processes

`signal:pid=4711` is the process with that number at this moment; the endpoint holds it as a pidfd and never
means another one, however often the number is used again. The property `Address` has when it was started
(`start`, field 22 of proc_pid_stat(5)) and, since Linux 6.9, the inode number of its pidfd, which is unique until
the machine starts again: `Attach` refuses a process that is another one by now. `signal:command=NAME` is the one
process of the caller's with exactly that command name; if there are several, the error lists their addresses.
`tid` picks a thread and `group` the process group that the process leads (Linux 6.9): `Send` goes
there, and everything else is about the thread, or about the leader.

`Send` is sigqueue(3): the receiver sees the code SI_QUEUE, the service's process as sender, the caller's uid and
the value. The signal `0` only asks whether it might be sent. On the system bus whoever calls is judged by the kernel
as that user without capabilities. Standard signals that wait are merged; real-time ones queue up to
RLIMIT_SIGPENDING. Process 1, the service itself and its process group are refused.

`WaitExit` and `Exited` work for processes that are nobody's child here. A code is known when the kernel tells
it: since Linux 6.15 to everybody who had attached before the process was reaped, else to its own user while it is a
zombie. Else code is -1 and signal 0, and `Inspect` has `exit-unknown`. A process that was reaped before `Attach` is
`NotFound`. One that has ended and waits for its parent to ask counts as ended; another user's is
reported when its parent has asked. After the end the endpoint stays, until `Close`.

#### Mailboxes

The mailbox's process, `ipcd-mailbox`, is the caller to the kernel: who may send to a process of the caller's may send
to it, and nobody else. Its number is the property `Pid`, and `Open` gives its pidfd. Each signal that was asked for
arrives as `Received` with its sender; pid and uid of the sender are the kernel's word where code is
0 (SI_USER: kill(2)) or -6 (SI_TKILL); with -1 (SI_QUEUE: sigqueue(3)) they are the sender's own. A standard signal that
is sent again before it was received comes once, and SIGCONT and the signals that stop a process undo each other while
they wait. Real-time signals come all, in the order of their numbers and then of their sending; when
RLIMIT_SIGPENDING of them wait for the user's processes, senders get EAGAIN.

Of signals that were not asked for, SIGTERM ends the mailbox, SIGKILL and SIGSTOP do what they do to every process,
and all others are ignored. When the process is ended, the endpoint closes and says by which signal. It ends with its
endpoint, and when the service dies, however that happens. While it is stopped (SIGSTOP), signals wait.

Each is a fork of the service that gives up all descriptors, handlers and memory, in the sandbox of the caller's worker
on the system bus. The limit is `mailboxes`.

`List()` has the caller's processes and what each does with which signal. `Limits` has `sigpending`
(RLIMIT_SIGPENDING) with what waits for the caller's processes at this moment.

Sources: signal(7), kill(2), rt_sigqueueinfo(2), pidfd_open(2), pidfd_send_signal(2), ioctl_pidfs(2), signalfd(2),
proc_pid_stat(5), proc_pid_status(5).

| error | when |
| --- | --- |
| `InvalidArgument` | `pid` is below 2, the service itself or a thread; a name that is no signal; SIGKILL or SIGSTOP in `numbers`; several processes have the command name (the text lists them); the process does not lead its group |
| `NotFound` | there is no such process, or it is another one than `start`, `inode` or `command` say |
| `PermissionDenied` | the process is another user's (EPERM) |
| `Gone` | the process has ended; the mailbox's process was ended |
| `LimitExceeded` | the receiver's queue is full (RLIMIT_SIGPENDING, EAGAIN); no more processes (RLIMIT_NPROC); `mailboxes` |
| `Timeout` | it did not end in time |
| `NotSupported` | `SetPermissions`, `Remove`; a thread or a group before Linux 6.9; a pidfd of another pid namespace |

Not offered: process 0, -1 and negative numbers, because they mean whole groups or everybody (kill(2)); a control group or
unit, because its file `cgroup.kill` is its owner's to write, and systemd has KillUnit for it; a process group whose leader
has ended, because no pidfd stands for it; other codes than SI_QUEUE, because the kernel keeps them for itself; SIGCHLD of
processes that are not children, because the kernel sends none: attach to them; the exit of all processes of the machine,
because the mechanism netlink has it.";

fn attach(parameters: &Parameters) -> Result<Opening> {
    Ok(address::find(parameters)?.into())
}

fn list() -> Result<Vec<Dict>> {
    let uid = rustix::process::getuid().as_raw();
    let row = |pid: u32| {
        let directory = status::directory(pid.cast_signed(), None);
        let (status, stat) = (status::status(&directory)?, status::stat(&directory)?);
        if status.uids[0] != uid {
            return None;
        }
        let mut row = status.describe(&stat);
        row.insert("pid".into(), pid.into());
        if address::refuse_own(pid.cast_signed()).is_ok() {
            row.insert("address".into(), format!("signal:pid={pid},start={}", stat.start).into());
        }
        Some(row)
    };
    Ok(proc::pids().into_iter().filter_map(row).collect())
}

fn limits() -> Dict {
    let own = status::directory(std::process::id().cast_signed(), None);
    let queued = status::status(&own).unwrap_or_default().queued;
    let mut limits = dict! {
        "sigpending" => queued.1,
        "sigpending-used" => queued.0,
        "sigrtmin" => libc::SIGRTMIN().cast_unsigned(),
        "sigrtmax" => libc::SIGRTMAX().cast_unsigned(),
        "signals" => names::LAST.cast_unsigned(),
    };
    if let Some(pid_max) = proc::sysctl("kernel/pid_max") {
        limits.insert("kernel.pid_max".into(), pid_max.into());
    }
    limits
}
