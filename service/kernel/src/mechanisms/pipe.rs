//! Anonymous pipes, pipe(7).
//!
//! The endpoint starts with both ends. `Open(end=…)` hands an end over: the caller gets an open
//! file description of its own, and the service lets go of its copy, so that end of stream and
//! EPIPE mean what they mean between two processes. As long as one end is held, the other can be
//! opened again through `/proc/self/fd`.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{FileType, OFlags},
    pipe::PipeFlags,
};

use crate::{
    Ability, Lack, Address, Attempt, Descriptor, Dict, Endpoint, Error, Fd, Kind, Opening, Parameter, Parameters,
    Result, Type,
    error::Attempted,
    fd,
    mechanism::{Adoption, Column, End, EndKind},
    pipe_io, proc,
    shape::{Direction, Message, Messages, Outgoing, Shape, Stream},
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "pipe",
    schemes: &["pipe"],
    summary: "Anonymous pipes: a byte stream in one direction, or packets (pipe(7))",
    shapes: &[Shape::Stream, Shape::Messages],
    create_parameters: &[
        Parameter::new("capacity", CAPACITY, "Bytes that the pipe can hold; rounded up to a power of two pages"),
        Parameter::new("packet", Type::Bool, "Packet mode (O_DIRECT): each write of up to 4096 bytes is read as one message")
            .default("false"),
    ],
    attach_parameters: &[
        Parameter::new("inode", Type::U64 { min: 1, max: u64::MAX }, "Inode of a pipe that some process holds, as in /proc/PID/fd"),
        Parameter::new("pid", Type::U32 { min: 1, max: i32::MAX as u32 }, "Process that holds the pipe"),
        Parameter::new("fd", Type::U32 { min: 0, max: i32::MAX as u32 }, "Number of the file descriptor in that process"),
        Parameter::new("end", Type::Word(&["read", "write", "both"]), "Which end to open").default("both"),
    ],
    columns: &[
        Column { key: "inode", kind: "t", summary: "Inode number of the pipe" },
        Column { key: "address", kind: "s", summary: "Address for Attach" },
        Column { key: "capacity", kind: "t", summary: "Bytes that it can hold" },
        Column { key: "queued", kind: "t", summary: "Bytes that wait in it" },
        Column { key: "owner", kind: "u", summary: "User id of the inode" },
        Column { key: "holders", kind: "aa{sv}", summary: "Processes that hold an end: pid, command, fd, access" },
    ],
    open_parameters: &[
        Parameter::new("end", Type::Word(&["read", "write"]), "Which end to hand over").required(),
        Parameter::new("keep", Type::Bool, "Keep a copy of that end in the service").default("false"),
    ],
    create,
    anonymous: |_| true,
    attach,
    adopt,
    list: || Ok(list()?.into()),
    limits: pipe_io::limits,
    available: || Ok(()),
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Permissions,
            "a pipe has no name, so nobody comes to it who was not given an end; a `fifo` has permissions",
        ),
        Lack::new(
            Ability::Remove,
            "a pipe has no name to remove; it goes when its last end is closed (`Close`)",
        ),
    ],
    reference: REFERENCE,
};

pub(super) const CAPACITY: Type = Type::Size { min: 4096, max: 1 << 31 };

const REFERENCE: &str = "\
`Create` makes a pipe with pipe2(2) and holds both ends. Writes of up to 4096 bytes (PIPE_BUF) are
atomic; larger ones may interleave with those of other writers. `Read` returns empty when the last
writer has gone; `Write` fails with `Closed` when the last reader has gone.

`Open` with `end=read` or `end=write` hands that end over; the caller's fd is an open file
description of its own, so its flags and ours are independent. The service lets go of its copy of
that end (unless `keep=true`), so that the other side sees end of stream when the caller closes.
`Write` and `Read` open an end again that was handed over, but not one that was shut down.

With `packet=true` the pipe has the shape messages instead of stream: every message of up to 4096
bytes keeps its borders. An empty message cannot be sent (the kernel drops it).

`Attach` opens a pipe of another process through `/proc/PID/fd`; the kernel demands the same rights
as for tracing that process (ptrace(2), \"Ptrace access mode checking\").

| error | when |
| --- | --- |
| `InvalidArgument` | `Attach` without `inode` and without `pid` and `fd` |
| `NotFound` | no process that the caller may look into holds the pipe |
| `PermissionDenied` | the kernel does not let the caller look into that process |
| `LimitExceeded` | `capacity` beyond fs.pipe-max-size or the user's share of pipe memory |
| `Closed` | the end was shut down, or the last reader has gone |
| `TooLarge` | a message of more than 4096 bytes in packet mode |

Not offered: notification pipes (O_NOTIFICATION_PIPE), because keyctl(2) and watch_queue need the
kernel's keyrings, which the service's sandbox excludes; vmsplice(2), because it shares the caller's
memory, which a bus call cannot.";

fn create(parameters: &Parameters) -> Result<Opening> {
    let packet = parameters.bool("packet");
    let mut flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    if packet {
        flags |= PipeFlags::DIRECT;
    }
    let (reader, writer) = rustix::pipe::pipe_with(flags).attempted(|| "create a pipe")?;
    let reader = Fd::from(reader);
    if let Some(capacity) = parameters.size("capacity") {
        pipe_io::set_capacity(&reader, capacity)?;
    }
    Ok(Pipe::new(Side::Held(reader), Side::Held(writer.into()), packet)?.into())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let (pid, fd) = match (parameters.size("inode"), parameters.u32("pid"), parameters.u32("fd")) {
        (Some(inode), None, None) => {
            let link = format!("pipe:[{inode}]");
            let held = proc::held(|candidate| candidate == link.as_bytes());
            let holder = held.first().ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("cannot attach to {link}: no process that you may look into holds it"),
                )
            })?;
            (holder.pid, holder.fd)
        }
        (None, Some(pid), Some(fd)) => (pid, fd),
        _ => {
            return Err(Error::invalid(
                "pipe needs either the key \"inode\" or both \"pid\" and \"fd\"",
            ));
        }
    };
    let path = proc::fd_path(pid, fd);
    let attempt = || format!("open file descriptor {fd} of process {pid}");
    let stat = rustix::fs::stat(&path).attempted(attempt)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(Error::invalid(format!(
            "file descriptor {fd} of process {pid} is not a pipe but {}",
            std::fs::read_link(&path).map(|link| link.display().to_string()).unwrap_or_default()
        )));
    }
    let open = |flags| {
        rustix::fs::open(&path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY, rustix::fs::Mode::empty())
            .map(|fd| Side::Held(fd.into()))
            .attempted(attempt)
    };
    let end = parameters.text("end").unwrap_or("both");
    // The reading end first: a writer without any reader cannot be opened.
    let reader = if end == "write" { Side::Shut } else { open(OFlags::RDONLY)? };
    let writer = if end == "read" { Side::Shut } else { open(OFlags::WRONLY)? };
    Ok(Pipe::new(reader, writer, false)?.into())
}

fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    if fd::file_type(&adopted)? != FileType::Fifo || !fd::link(&adopted)?.starts_with(b"pipe:") {
        return Ok(Adoption::Refused(adopted));
    }
    let (reads, _) = fd::access(&adopted)?;
    let flags = rustix::fs::fcntl_getfl(&adopted).attempted(|| "read the pipe's flags")?;
    let packet = flags.contains(OFlags::DIRECT);
    let flags = if reads { OFlags::RDONLY } else { OFlags::WRONLY };
    // A description of our own: the giver may change the flags of his as he likes.
    let own = fd::reopen(&adopted, flags | OFlags::NONBLOCK).attempted(|| "re-open the pipe")?;
    if packet && !reads {
        // open(2) refuses O_DIRECT here, fcntl(2) does not.
        rustix::fs::fcntl_setfl(&own, OFlags::NONBLOCK | OFlags::DIRECT).attempted(|| "set packet mode")?;
    }
    let (reader, writer) = if reads {
        (Side::Held(own.into()), Side::Shut)
    } else {
        (Side::Shut, Side::Held(own.into()))
    };
    Ok(Adoption::Taken(Box::new(Pipe::new(reader, writer, packet)?)))
}

fn list() -> Result<Vec<Dict>> {
    let held = proc::held(|link| link.starts_with(b"pipe:["));
    let mut rows = Vec::new();
    for (link, holders) in proc::by_link(&held) {
        let inode = std::str::from_utf8(&link[6..link.len() - 1]).ok().and_then(|n| n.parse().ok());
        let Some(inode) = inode else { continue };
        let inode: u64 = inode;
        let mut row = crate::dict! {
            "inode" => inode,
            "address" => Address::new("pipe").with("inode", inode.to_string()).to_string(),
            "holders" => proc::holders(&holders),
        };
        // Any end tells the rest; opening one to read disturbs nobody.
        if let Some(end) = holders.iter().find_map(|holder| proc::pinned_fifo(holder, |stat| stat.st_ino == inode)) {
            row.insert("owner".into(), fd::stat(&end)?.st_uid.into());
            if let Ok(end) = fd::reopen(&end, OFlags::RDONLY | OFlags::NONBLOCK) {
                row.extend(pipe_io::inspect(&end.into())?);
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// What the service has of one end.
#[derive(Debug, Clone)]
enum Side {
    Held(Fd),
    /// Given to a caller; opened again when it is needed.
    HandedOver,
    /// Closed for good, or never had.
    Shut,
}

struct Pipe {
    inode: u64,
    packet: bool,
    sides: Mutex<Sides>,
}

struct Sides {
    reader: Side,
    writer: Side,
}

impl Pipe {
    fn new(reader: Side, writer: Side, packet: bool) -> Result<Self> {
        let sides = Sides { reader, writer };
        let inode = fd::stat(sides.any()?)?.st_ino;
        Ok(Self { inode, packet, sides: Mutex::new(sides) })
    }

    fn sides(&self) -> MutexGuard<'_, Sides> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fd of one direction, opened again if it was handed over.
    fn end(&self, direction: Direction) -> Result<Fd> {
        let mut sides = self.sides();
        let side = match direction {
            Direction::Write => &sides.writer,
            _ => &sides.reader,
        };
        match side {
            Side::Held(fd) => return Ok(fd.clone()),
            Side::Shut => {
                return Err(Error::new(
                    Kind::Closed,
                    match direction {
                        Direction::Write => "the service does not hold the writing end of this pipe, or it was shut down",
                        _ => "the service does not hold the reading end of this pipe, or it was shut down",
                    },
                ));
            }
            Side::HandedOver => {}
        }
        let opened = Fd::from(self.open_end(sides.any()?, direction)?);
        match direction {
            Direction::Write => sides.writer = Side::Held(opened.clone()),
            _ => sides.reader = Side::Held(opened.clone()),
        }
        Ok(opened)
    }

    fn open_end(&self, through: &Fd, direction: Direction) -> Result<OwnedFd> {
        let flags = match direction {
            Direction::Write => OFlags::WRONLY,
            _ => OFlags::RDONLY,
        };
        let opened = fd::reopen(through, flags | OFlags::NONBLOCK).attempted(|| "open the pipe's other end")?;
        if self.packet && direction == Direction::Write {
            // open(2) refuses O_DIRECT here, fcntl(2) does not.
            rustix::fs::fcntl_setfl(&opened, OFlags::NONBLOCK | OFlags::DIRECT)
                .attempted(|| "set packet mode")?;
        }
        Ok(opened)
    }
}

impl Sides {
    fn any(&self) -> Result<&Fd> {
        match (&self.reader, &self.writer) {
            (Side::Held(fd), _) | (_, Side::Held(fd)) => Ok(fd),
            _ => Err(Error::new(
                Kind::Closed,
                "the service holds no end of this pipe any more: both were handed over or shut down",
            )),
        }
    }
}

impl Endpoint for Pipe {
    fn address(&self) -> Address {
        Address::new("pipe").with("inode", self.inode.to_string())
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![if self.packet { Shape::Messages } else { Shape::Stream }]
    }

    fn inspect(&self) -> Result<Dict> {
        let sides = self.sides();
        let mut state = pipe_io::inspect(sides.any()?)?;
        let word = |side: &Side| match side {
            Side::Held(_) => "held",
            Side::HandedOver => "handed-over",
            Side::Shut => "shut",
        };
        state.insert("read-end".into(), word(&sides.reader).into());
        state.insert("write-end".into(), word(&sides.writer).into());
        state.insert("packet".into(), self.packet.into());
        Ok(state)
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        let direction: Direction = options.text("end").unwrap_or("read").parse()?;
        let end = self.end(direction)?;
        let sides = &mut *self.sides();
        // Not a duplicate: the caller's status flags must not be ours.
        let opened = self.open_end(&end, direction)?;
        rustix::fs::fcntl_setfl(&opened, if self.packet && direction == Direction::Write { OFlags::DIRECT } else { OFlags::empty() })
            .attempted(|| "make the caller's end blocking")?;
        if !options.bool("keep") {
            match direction {
                Direction::Write => sides.writer = Side::HandedOver,
                _ => sides.reader = Side::HandedOver,
            }
        }
        Ok(opened)
    }

    fn stream(&self) -> Option<&dyn Stream> {
        (!self.packet).then_some(self)
    }

    fn messages(&self) -> Option<&dyn Messages> {
        self.packet.then_some(self)
    }
}

impl Stream for Pipe {
    fn read(&self, max: usize) -> Result<Attempt<Vec<u8>>> {
        pipe_io::read(&self.end(Direction::Read)?, max)
    }

    fn write(&self, data: &[u8]) -> Result<Attempt<usize>> {
        pipe_io::write(&self.end(Direction::Write)?, data)
    }

    fn shutdown(&self, direction: Direction) -> Result<()> {
        let mut sides = self.sides();
        if direction != Direction::Write {
            sides.reader = Side::Shut;
        }
        if direction != Direction::Read {
            sides.writer = Side::Shut;
        }
        Ok(())
    }

    fn source(&self) -> Result<Attempt<End>> {
        let fd = self.end(Direction::Read)?;
        Ok(Attempt::Done(End { fd, kind: EndKind::Pipe }))
    }

    fn sink(&self) -> Result<Attempt<End>> {
        let fd = self.end(Direction::Write)?;
        Ok(Attempt::Done(End { fd, kind: EndKind::Pipe }))
    }

    /// The kernel tells it through either end.
    fn depth(&self) -> Result<u64> {
        fd::waiting(self.sides().any()?)
    }
}

impl Messages for Pipe {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        if !message.fds.is_empty() {
            return Err(Error::not_supported("pipes carry no file descriptors; use a unix socket"));
        }
        self.check_attributes(message.attributes)?;
        if message.data.is_empty() {
            return Err(Error::not_supported("the kernel drops empty packets; send at least one byte"));
        }
        if message.data.len() > libc::PIPE_BUF {
            return Err(Error::new(
                Kind::TooLarge,
                format!("a packet of {} bytes is larger than a pipe carries, {} (PIPE_BUF)", message.data.len(), libc::PIPE_BUF),
            ));
        }
        Ok(pipe_io::write(&self.end(Direction::Write)?, message.data)?.map(drop))
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        if let Some(key) = selector.keys().next() {
            return Err(Error::invalid(format!("packets of a pipe come in order: there is no selector {key:?}")));
        }
        let fd = self.end(Direction::Read)?;
        match pipe_io::read_packet(&fd)? {
            Attempt::Done(data) if data.is_empty() => {
                Err(Error::new(Kind::Closed, "the last writer of the pipe has gone"))
            }
            attempt => Ok(attempt.map(|data| Message { data, ..Message::default() })),
        }
    }

    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        match attributes.keys().next() {
            Some(key) => Err(Error::invalid(format!("packets of a pipe have no attributes, and so no {key:?}"))),
            None => Ok(()),
        }
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        let fd = self.end(Direction::Read)?;
        if pipe_io::available(&fd) > 0 || pipe_io::hung_up(&fd)? {
            return Ok(Attempt::Done(()));
        }
        Ok(crate::shape::readable(&fd))
    }

    fn max_message_size(&self) -> u64 {
        libc::PIPE_BUF as u64
    }
}
