//! A client that says what it wants to say: the SASL exchange by hand, then any bytes with any descriptors.
//!
//! It blocks, in one thread, and every wait is bounded. What comes is kept in order; replies are found by their
//! serial, and the signals that came before them stay for [`Raw::signal`].

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ipc_harness::{CallError, NAME, patience};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::incoming::Incoming;
use crate::wire::{self, Arg, Outgoing};

pub const DRIVER: &str = "org.freedesktop.DBus";
pub const DRIVER_PATH: &str = "/org/freedesktop/DBus";

/// The most descriptors that the kernel takes with one message (SCM_MAX_FD).
const FDS_MAX: usize = 253;

/// A connection, on which nothing needs to be right.
pub struct Raw {
    stream: UnixStream,
    /// The unique name, once the bus has given one.
    pub name: String,
    serial: u32,
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    came: VecDeque<Incoming>,
    ended: bool,
}

impl Raw {
    /// Authenticated as this user, with a name of its own: what libraries do.
    #[track_caller]
    pub fn new(stream: UnixStream, uid: u32) -> Raw {
        let mut raw =
            Raw::authenticated(stream, uid).unwrap_or_else(|error| panic!("authentication: {error}"));
        let name = raw.driver("Hello", &[]).expect("Hello");
        raw.name = match &name.args()[..] {
            [Arg::Str(name)] => name.clone(),
            other => panic!("{other:?} is no name"),
        };
        raw.signal("NameAcquired");
        raw
    }

    /// After the authentication only; no message was sent.
    pub fn authenticated(mut stream: UnixStream, uid: u32) -> io::Result<Raw> {
        stream.set_read_timeout(Some(patience()))?;
        let uid: String = uid.to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let answer = line(&mut stream)?;
        if !answer.starts_with("OK ") {
            return Err(io::Error::other(answer));
        }
        stream.write_all(b"NEGOTIATE_UNIX_FD\r\n")?;
        let answer = line(&mut stream)?;
        if answer != "AGREE_UNIX_FD" {
            return Err(io::Error::other(answer));
        }
        stream.write_all(b"BEGIN\r\n")?;
        Ok(Raw::of(stream))
    }

    /// On a stream on which messages are exchanged already.
    pub fn of(stream: UnixStream) -> Raw {
        let (bytes, fds, came) = Default::default();
        Raw { stream, name: String::new(), serial: 0, bytes, fds, came, ended: false }
    }

    /// The socket itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(&mut self.stream, bytes, fds)
    }

    /// Sends a message, with the next serial if it has none; its serial.
    pub fn try_send(&mut self, mut message: Outgoing, fds: &[BorrowedFd<'_>]) -> io::Result<u32> {
        self.serial += 1;
        if message.serial == 0 {
            message.serial = self.serial;
        }
        self.send_bytes(&message.encode(), fds)?;
        Ok(message.serial)
    }

    /// The same where it must succeed.
    #[track_caller]
    pub fn send(&mut self, message: Outgoing) -> u32 {
        self.try_send(message, &[]).expect("the bus takes messages")
    }

    /// The next message, whatever it is; None at the end of the connection or of the bound.
    pub fn next(&mut self, bound: Duration) -> Option<Incoming> {
        if let Some(message) = self.came.pop_front() {
            return Some(message);
        }
        self.read(Instant::now() + bound)
    }

    /// Whether the other side has closed the connection; waits for it, and keeps what comes before.
    pub fn is_closed(&mut self, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        while let Some(message) = self.read(deadline) {
            self.came.push_back(message);
        }
        self.ended
    }

    /// The reply to the message of this serial; None at the end of the connection or of the bound.
    pub fn reply_within(&mut self, serial: u32, bound: Duration) -> Option<Incoming> {
        let is_it = |message: &Incoming| message.number(wire::REPLY_SERIAL) == serial;
        self.find(bound, is_it)
    }

    /// The first error, past or to come, to whatever call; it is taken.
    pub fn error_within(&mut self, bound: Duration) -> Option<CallError> {
        let error = self.find(bound, |message| message.kind == wire::ERROR)?;
        outcome(error).err()
    }

    /// The first signal of this name, past or to come; it is taken.
    pub fn signal_within(&mut self, member: &str, bound: Duration) -> Option<Incoming> {
        self.find(bound, |message| message.is_signal(member))
    }

    /// The same; panics when none comes.
    #[track_caller]
    pub fn signal(&mut self, member: &str) -> Incoming {
        match self.signal_within(member, patience()) {
            Some(signal) => signal,
            None => panic!("no signal {member} came to {}; what came: {:#?}", self.name, self.came),
        }
    }

    fn find(&mut self, bound: Duration, is_it: impl Fn(&Incoming) -> bool) -> Option<Incoming> {
        if let Some(at) = self.came.iter().position(&is_it) {
            return self.came.remove(at);
        }
        let deadline = Instant::now() + bound;
        loop {
            let message = self.read(deadline)?;
            if is_it(&message) {
                return Some(message);
            }
            self.came.push_back(message);
        }
    }

    /// All that has come and was not asked for. A call's answer is a fence: what was sent before it is in here then.
    pub fn others(&mut self) -> Vec<Incoming> {
        self.came.drain(..).collect()
    }

    /// Sends a call and waits for its answer; an error as the tools tell it.
    #[track_caller]
    pub fn ask(&mut self, message: Outgoing, fds: &[BorrowedFd<'_>]) -> Result<Incoming, CallError> {
        let what = message.clone();
        let serial = self.try_send(message, fds).unwrap_or_else(|error| panic!("{what:?}: {error}"));
        match self.reply_within(serial, patience()) {
            Some(reply) => outcome(reply),
            None if self.ended => Err(CallError { name: "disconnected".into(), text: format!("{what:?}") }),
            None => panic!("no answer to {what:?}"),
        }
    }

    /// Calls a method of the service: of `org.example.IPC.<interface>`, of the manager's for `""`, or of the
    /// interface itself if it has a dot.
    #[track_caller]
    pub fn call(
        &mut self,
        path: &str,
        interface: &str,
        member: &str,
        args: &[Arg],
    ) -> Result<Incoming, CallError> {
        self.ask(Raw::message(path, interface, member, args), &[])
    }

    /// The message of such a call.
    pub fn message(path: &str, interface: &str, member: &str, args: &[Arg]) -> Outgoing {
        let interface = match interface {
            "" => NAME.to_owned(),
            full if full.contains('.') => full.to_owned(),
            short => format!("{NAME}.{short}"),
        };
        Outgoing::call(NAME, path, &interface, member, args)
    }

    /// Calls a method of the bus itself.
    #[track_caller]
    pub fn driver(&mut self, member: &str, args: &[Arg]) -> Result<Incoming, CallError> {
        self.ask(Outgoing::call(DRIVER, DRIVER_PATH, DRIVER, member, args), &[])
    }

    /// Reads until there is a whole message.
    fn read(&mut self, deadline: Instant) -> Option<Incoming> {
        loop {
            if let Some(size) = Incoming::size(&self.bytes)
                && self.bytes.len() >= size
            {
                let bytes: Vec<u8> = self.bytes.drain(..size).collect();
                let mut message = Incoming::parse(&bytes, Vec::new());
                let count = (message.number(wire::UNIX_FDS) as usize).min(self.fds.len());
                message.fds = self.fds.drain(..count).collect();
                return Some(message);
            }
            if self.ended || !readable(&self.stream, deadline) {
                return None;
            }
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 65536];
        let received = rustix::net::recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        match received {
            Ok(received) if received.bytes > 0 => self.bytes.extend_from_slice(&buffer[..received.bytes]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            _ => self.ended = true,
        }
    }
}

/// All of these bytes, with the descriptors at the first.
pub fn send(stream: &mut UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(fds.len() <= FDS_MAX, "the kernel takes no more");
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "there is room for them");
    }
    let sent = rustix::net::sendmsg(&*stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    stream.write_all(&bytes[sent..])
}

/// A reply's values, or its error.
pub fn outcome(reply: Incoming) -> Result<Incoming, CallError> {
    if reply.kind != wire::ERROR {
        return Ok(reply);
    }
    let text = match reply.args().into_iter().next() {
        Some(Arg::Str(text)) => text,
        _ => String::new(),
    };
    Err(CallError { name: reply.field(wire::ERROR_NAME).to_owned(), text })
}

fn readable(stream: &UnixStream, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// A line of the authentication, without its end. One byte at a time: messages may follow.
fn line(stream: &mut UnixStream) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8_lossy(&line).into_owned())
}
