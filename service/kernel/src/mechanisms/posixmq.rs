//! POSIX message queues, mq_overview(7).
//!
//! A queue is an inode of the mqueue file system, which has neither link(2) nor rename(2): what has
//! its name has it for life, and its link count says whether it was removed. The service works
//! with an open description of its own, waits for it by poll(2), and never asks for the one
//! notification that a queue has (mq_notify(3)). The calls are in `mqueue/calls.rs`, the endpoint is
//! in `mqueue/queue.rs`, the list in `mqueue/list.rs`.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{
    Descriptor, Error, Kind, Opening, Parameter, Parameters, Result, Type,
    error::Attempted,
    fd,
    mechanism::{Adoption, Column},
    mqueue::{
        calls::{self, Access, DEPTH_MAX, Name, SIZE_MAX},
        list::{self, footprint, sysctl, user_limit},
        queue::{Description, Found, Queue},
    },
    shape::Shape,
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "posixmq",
    schemes: &["posixmq"],
    summary: "POSIX message queues, shared with programs that call mq_open(3)",
    shapes: &[Shape::Messages],
    create_parameters: &[
        NAME,
        Parameter::new(
            "depth",
            Type::U32 { min: 1, max: DEPTH_MAX },
            "Most messages that it holds (fs.mqueue.msg_default where not given)",
        ),
        Parameter::new(
            "size",
            Type::Size { min: 1, max: SIZE_MAX },
            "Largest message (fs.mqueue.msgsize_default where not given)",
        ),
        MODE,
        ACCESS,
    ],
    attach_parameters: &[NAME, ACCESS],
    columns: &[
        Column { key: "name", kind: "s", summary: "Name for mq_open(3) (ay where it is not UTF-8)" },
        Column { key: "address", kind: "s", summary: "Address for Attach" },
        Column { key: "depth", kind: "t", summary: "Most messages that it holds, where the caller may open it" },
        Column { key: "size", kind: "t", summary: "Largest message, where the caller may open it" },
        Column { key: "messages", kind: "t", summary: "Messages that wait, where the caller may open it" },
        Column { key: "bytes", kind: "t", summary: "Bytes that wait (QSIZE), where the caller may read it" },
        Column { key: "owner", kind: "u", summary: "User id of the owner" },
        Column { key: "group", kind: "u", summary: "Group id of the owner" },
        Column { key: "mode", kind: "u", summary: "Permission bits; receiving needs read, sending needs write" },
        Column { key: "inode", kind: "t", summary: "Inode number" },
        Column { key: "accessed", kind: "t", summary: "Time of the last use or look (Inspect and List are looks), in microseconds since the epoch" },
        Column { key: "modified", kind: "t", summary: "Time of creation or of the last message sent" },
        Column { key: "changed", kind: "t", summary: "Time of the last use, look, or change of mode or owner" },
        Column { key: "notify", kind: "s", summary: "signal, thread or none: how a process has asked for mq_notify(3), where one has and the caller may read the queue" },
        Column { key: "notify-pid", kind: "u", summary: "The process that has asked" },
        Column { key: "notify-command", kind: "s", summary: "Its command name" },
        Column { key: "notify-signal", kind: "u", summary: "The signal that it gets" },
        Column { key: "holders", kind: "aa{sv}", summary: "Processes that have it open: pid, command, fd, access" },
        Column { key: "stale", kind: "b", summary: "Whether no process has it open; only there where that is known: one was found, or the caller may look into all" },
    ],
    open_parameters: &[Parameter::new(
        "access",
        Type::Word(Access::WORDS),
        "What the descriptor is opened for; as the endpoint where not given",
    )],
    create,
    anonymous: |_| false,
    attach,
    adopt,
    list: || Ok(list::list()?.into()),
    limits: list::limits,
    available,
    driver: None,
    lacks: &[],
    reference: include_str!("posixmq.md"),
};

const NAME: Parameter = Parameter::new(
    "name",
    Type::Path,
    "A slash and 1 to 255 bytes without further slashes, as for mq_open(3)",
)
.required();

const ACCESS: Parameter =
    Parameter::new("access", Type::Word(Access::WORDS), "What the queue is opened for").default("read-write");

fn name(parameters: &Parameters) -> Result<Name> {
    Name::check(parameters.bytes("name").unwrap_or_default())
}

fn access(parameters: &Parameters) -> Result<Access> {
    // The tables have a default.
    parameters.text("access").unwrap_or("read-write").parse()
}

fn create(parameters: &Parameters) -> Result<Opening> {
    let (name, access, mode) = (name(parameters)?, access(parameters)?, parameters.mode());
    let attributes = wanted(parameters);
    // The umask takes bits away, and nothing adds any: until it is complete the queue is open to
    // nobody whom the mode leaves out. Depth and size are there with the name.
    let fd = calls::create(&name, access, mode & 0o777, attributes)
        .map_err(|errno| cannot_create(errno, &name, attributes))?;
    let complete = || {
        if fd::stat(&fd)?.st_mode & 0o7777 != mode {
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))
                .attempted(|| format!("set the mode of the queue {name} to {mode:04o}"))?;
        }
        calls::attributes(&fd).attempted(|| format!("examine the new queue {name}"))
    };
    let attributes = complete().inspect_err(|_| {
        // It is our own, made a moment ago; what is worth reporting is why it is not complete.
        let _ = calls::unlink(&name);
    })?;
    let found = Found::Named(name);
    Ok(Queue::new(fd, found, access, attributes.size, Description::Own)?.into())
}

/// Depth and size as the kernel wants them: both or none. What is missing is its default.
fn wanted(parameters: &Parameters) -> Option<(u32, u64)> {
    let (depth, size) = (parameters.u32("depth"), parameters.size("size"));
    let default = |key: &str, most: &str, fallback: u64| {
        let most = sysctl(most).unwrap_or(fallback);
        sysctl(key).unwrap_or(fallback).min(most)
    };
    let depth_or_default = || default("msg_default", "msg_max", 10).try_into().unwrap_or(u32::MAX);
    let size_or_default = || default("msgsize_default", "msgsize_max", 8192);
    (depth.is_some() || size.is_some())
        .then(|| (depth.unwrap_or_else(depth_or_default), size.unwrap_or_else(size_or_default)))
}

/// The errnos of mq_open(3) with O_CREAT.
fn cannot_create(errno: Errno, name: &Name, attributes: Option<(u32, u64)>) -> Error {
    let attempt = format!("create the queue {name}");
    let limit = |key: &str| format!("fs.mqueue.{key}, now {}", sysctl(key).map_or("unknown".into(), |n| n.to_string()));
    let refused = |kind, text: String| Error::new(kind, format!("cannot {attempt}: {text}"));
    let (depth, size) = attributes.unwrap_or_default();
    match errno {
        Errno::EXIST => Error::from_errno(errno, attempt).help("Attach opens what exists"),
        Errno::INVAL => refused(
            Kind::InvalidArgument,
            format!(
                "depth {depth} or size {size} is more than this machine allows (EINVAL); take less, or raise {} and {}",
                limit("msg_max"),
                limit("msgsize_max")
            ),
        ),
        Errno::OVERFLOW => refused(
            Kind::LimitExceeded,
            format!("depth {depth} times size {size} is more than the kernel can count (EOVERFLOW)"),
        ),
        // Of the two meanings, the man page has only the other one.
        Errno::MFILE if calls::may_open_another() => {
            let needs = match attributes {
                Some((depth, size)) => format!("its {} bytes are", footprint(depth.into(), size)),
                None => "it is".to_owned(),
            };
            refused(
                Kind::LimitExceeded,
                format!(
                    "{needs} more than is left for the queues of its user (EMFILE); remove queues, take a smaller \
                     depth or size, or raise RLIMIT_MSGQUEUE of the service, now {}",
                    user_limit().map_or("unlimited".into(), |limit| limit.to_string())
                ),
            )
        }
        Errno::NOSPC => refused(
            Kind::LimitExceeded,
            format!("the machine has as many queues as it may (ENOSPC); remove some, or raise {}", limit("queues_max")),
        ),
        errno => Error::from_errno(errno, attempt),
    }
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let (name, access) = (name(parameters)?, access(parameters)?);
    let attempt = || format!("open the queue {name}");
    let fd = calls::open(&name, access).attempted(attempt).map_err(|error| match error.kind {
        Kind::PermissionDenied if access == Access::ReadWrite => {
            error.help("access=read or access=write may be allowed")
        }
        _ => error,
    })?;
    let size = calls::attributes(&fd).attempted(attempt)?.size;
    let found = Found::Named(name);
    Ok(Queue::new(fd, found, access, size, Description::Own)?.into())
}

/// Takes a message queue descriptor; must be asked before `mmap`, which takes every file.
fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    if !calls::is_queue(&adopted).attempted(|| "examine a file descriptor")? {
        return Ok(Adoption::Refused(adopted));
    }
    let reopen = |access: Access| fd::reopen(&adopted, access.flags() | OFlags::NONBLOCK);
    let (reads, writes) = fd::access(&adopted)?;
    let (fd, access, description) = match Access::from_directions(reads, writes) {
        Some(access) => match reopen(access) {
            Ok(own) => (own, access, Description::Own),
            // Its mode does not let the caller open it, but whoever has it open may use it. The
            // flags of the description stay as they are: nothing here relies on them.
            Err(Errno::ACCESS) => (fd::duplicate(&adopted)?, access, Description::Shared),
            Err(errno) => return Err(Error::from_errno(errno, "open the queue again")),
        },
        // An O_PATH fd stands for the name.
        None => {
            let opened = Access::ALL.iter().find_map(|access| Some((reopen(*access).ok()?, *access)));
            let (own, access) = opened.ok_or_else(|| {
                Error::from_errno(Errno::ACCESS, "open the queue that the O_PATH descriptor stands for")
            })?;
            (own, access, Description::Own)
        }
    };
    let found = Found::by_descriptor(&fd)?;
    let size = calls::attributes(&fd).attempted(|| "examine the queue")?.size;
    Ok(Adoption::Taken(Box::new(Queue::new(fd, found, access, size, description)?)))
}

fn available() -> Result<()> {
    if calls::exist() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unavailable,
        "this kernel has no POSIX message queues; it needs CONFIG_POSIX_MQUEUE=y (mq_overview(7))",
    ))
}
