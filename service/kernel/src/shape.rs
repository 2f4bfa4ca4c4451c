//! The shapes: what can be done with an endpoint, whatever its mechanism.
//!
//! Every trait here has one conformance suite (`tests/conformance/`) that runs over every
//! mechanism in the register, and one D-Bus interface in the bus layer.

use std::{os::fd::OwnedFd, str::FromStr};

use crate::{
    Attempt, Dict, Endpoint, Error, Fd, Readiness, Result,
    blocked::Sent,
    datagrams::{DatagramSink, DatagramSource},
    futex_word::FutexWord,
    mechanism::End,
};
pub use crate::{fuse::shape::Filesystem, signal::status::Exit, word_value::Word};

/// The name of a shape, as in the property `Shapes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    Stream,
    Listener,
    Messages,
    Memory,
    Semaphore,
    Futex,
    Watch,
    Process,
    Mailbox,
    Filesystem,
}

impl Shape {
    pub const ALL: &[Shape] = &[
        Self::Stream,
        Self::Listener,
        Self::Messages,
        Self::Memory,
        Self::Semaphore,
        Self::Futex,
        Self::Watch,
        Self::Process,
        Self::Mailbox,
        Self::Filesystem,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Listener => "listener",
            Self::Messages => "messages",
            Self::Memory => "memory",
            Self::Semaphore => "semaphore",
            Self::Futex => "futex",
            Self::Watch => "watch",
            Self::Process => "process",
            Self::Mailbox => "mailbox",
            Self::Filesystem => "filesystem",
        }
    }
}

/// A direction of a stream, seen from the service: `Read` is what comes out of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
    Both,
}

impl FromStr for Direction {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "read" => Ok(Self::Read),
            "write" => Ok(Self::Write),
            "both" => Ok(Self::Both),
            other => Err(Error::invalid(format!("the direction must be read, write or both, not {other:?}"))),
        }
    }
}

/// Bytes without borders.
pub trait Stream: Send + Sync {
    /// Up to `max` bytes; empty means end of stream.
    fn read(&self, max: usize) -> Result<Attempt<Vec<u8>>>;

    /// Writes as much as fits at this moment and says how much that was (at least one byte).
    fn write(&self, data: &[u8]) -> Result<Attempt<usize>>;

    /// Whether bytes may come after an end of stream: a FIFO's next writer begins anew.
    fn continues(&self) -> bool {
        false
    }

    /// Ends a direction: after `Write` the peer sees end of stream.
    fn shutdown(&self, direction: Direction) -> Result<()>;

    /// The end that a relay reads from. Waits where there is none yet.
    fn source(&self) -> Result<Attempt<End>>;

    /// The end that a relay writes into. Waits where there is none yet (a FIFO without reader).
    fn sink(&self) -> Result<Attempt<End>>;

    /// How many bytes wait to be read (FIONREAD).
    fn depth(&self) -> Result<u64>;
}

/// A listening socket.
pub trait Listener: Send + Sync {
    /// The next connection, an endpoint of its own.
    fn accept(&self) -> Result<Attempt<Box<dyn Endpoint>>>;
}

/// A message: its bytes, what the kernel says about it, and the fds that came with it.
#[derive(Debug, Default)]
pub struct Message {
    pub data: Vec<u8>,
    /// `address`, `pid`, `uid`, `gid`, `priority`, `type`, …: whatever the mechanism has.
    pub attributes: Dict,
    pub fds: Vec<OwnedFd>,
}

/// A message to be sent. Fds are shared, so that an attempt that has to wait keeps them.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    pub data: &'a [u8],
    pub attributes: &'a Dict,
    pub fds: &'a [Fd],
    /// Of this message alone: the same at each attempt to send it.
    pub sent: &'a Sent,
}

/// Bytes with borders.
pub trait Messages: Send + Sync {
    /// Sends the whole message or nothing. Where the wait itself sends it ([`Sent`]), the attempt
    /// after it says so.
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>>;

    /// Takes a message. An empty `selector` takes the next one; what else it may hold is the
    /// mechanism's (`type` for System V queues).
    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>>;

    /// Whether a message that was taken earlier and kept is one that the selector asks for.
    fn selects(&self, _selector: &Dict, _message: &Message) -> Result<bool> {
        Ok(true)
    }

    /// The next message, which stays where it is. Fds are not passed.
    fn peek(&self, _selector: &Dict) -> Result<Attempt<Message>> {
        Err(Error::not_supported("the kernel cannot peek at this queue"))
    }

    /// Gives back a message that was taken and that nobody will be given here any more, for whoever
    /// else receives from the queue. False where the kernel cannot have it back.
    fn put_back(&self, _message: &Message) -> bool {
        false
    }

    /// The length of the next message, where the kernel tells it without giving the message out.
    fn next_length(&self) -> Option<u64> {
        None
    }

    /// Whether a message with these attributes could be sent, as far as that can be said before it is.
    fn check_attributes(&self, attributes: &Dict) -> Result<()>;

    /// What to wait for before a message can be received, without receiving it.
    fn arrival(&self) -> Result<Attempt<()>>;

    /// The largest message that `send` takes, in bytes.
    fn max_message_size(&self) -> u64;

    /// The attributes that a relay from an endpoint of the same mechanism hands on.
    fn relayed(&self) -> &'static [&'static str] {
        &["priority", "type"]
    }

    /// Whether what is sent may come out of an endpoint of the same address again.
    fn comes_back(&self) -> bool {
        true
    }

    /// How many messages wait, where the kernel tells.
    fn depth(&self) -> Option<u64> {
        None
    }

    /// Several at once, where they come as datagrams.
    fn datagram_source(&self) -> Option<&dyn DatagramSource> {
        None
    }

    /// Several at once, where they go as datagrams to a peer.
    fn datagram_sink(&self) -> Option<&dyn DatagramSink> {
        None
    }
}

/// Memory that processes share.
pub trait Memory: Send + Sync {
    /// Whether reading and writing may wait for a disk or a file system of somebody's making.
    fn may_block(&self) -> bool;

    /// Exactly `length` bytes from `offset`; a range beyond the end is an error.
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>>;

    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// An aligned word, read atomically; `kind` says the type.
    fn load(&self, offset: u64, kind: Word) -> Result<Word>;

    fn store(&self, offset: u64, value: Word) -> Result<()>;

    /// Stores `desired` if the word is `expected`; says whether it did, and what was there.
    fn compare_exchange(&self, offset: u64, expected: Word, desired: Word) -> Result<(bool, Word)>;

    /// Adds and returns what was there before.
    fn fetch_add(&self, offset: u64, value: Word) -> Result<Word>;

    fn resize(&self, size: u64) -> Result<()>;

    /// Sets memory or disk space aside for a range, so that stores into it find some.
    fn allocate(&self, offset: u64, length: u64) -> Result<()>;

    /// Gives back what a range takes up; it reads as zeros then.
    fn punch_hole(&self, offset: u64, length: u64) -> Result<()>;

    /// Adds seals (`shrink`, `grow`, `write`, `future-write`, `exec`, `seal`); they cannot be taken back.
    fn seal(&self, seals: &[String]) -> Result<()>;

    /// Flushes to the file behind it; nothing to do for anonymous memory.
    fn sync(&self) -> Result<()>;

    fn size(&self) -> Result<u64>;

    fn seals(&self) -> Vec<String>;

    fn read_only(&self) -> bool;

    /// The bytes as a relay reads them: all that is there, then end of stream.
    fn source(&self) -> Result<End>;

    /// The bytes as a relay writes them: from the start, as many as there is room for.
    fn sink(&self) -> Result<End>;
}

/// An operation of a System V set: semaphore number, operation, flags.
pub type SemaphoreOperation = (u16, i16, u16);

/// What was taken on a lease; it goes back when this is dropped.
pub type Held = Box<dyn Send>;

/// A counter to wait on, or a set of them.
pub trait Semaphore: Send + Sync {
    /// The semaphore of a set that is meant where no number is given.
    fn number(&self) -> u16 {
        0
    }

    /// Adds to the value and wakes waiters.
    fn post(&self, count: u32) -> Result<()>;

    /// Takes one.
    fn wait(&self) -> Result<Attempt<()>>;

    fn value(&self) -> Result<i32>;

    /// Does the operations, all or nothing, and undoes them when what is returned is dropped, or
    /// this process ends in any way that the kernel undoes them after.
    fn acquire(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<Held>>;

    /// All or nothing over a set.
    fn operate(&self, _operations: &[SemaphoreOperation]) -> Result<Attempt<()>> {
        Err(Error::not_supported("only System V semaphore sets have Operate; use Post and Wait"))
    }

    fn values(&self) -> Result<Vec<i32>> {
        Ok(vec![self.value()?])
    }

    fn set_value(&self, _value: i32) -> Result<()> {
        Err(no_setting())
    }

    fn set_values(&self, _values: &[i32]) -> Result<()> {
        Err(no_setting())
    }
}

fn no_setting() -> Error {
    Error::not_supported(
        "POSIX semaphores have no operation that sets the value (sem_overview(7)); use Post and TryWait",
    )
}

/// A word of 32 bits to wait on, futex(2).
pub trait Futex: Send + Sync {
    /// The word as it is mapped at this moment; `Gone` while its memory is too short.
    fn word(&self) -> Result<FutexWord>;

    /// Whether touching it may wait for a disk or a file system of somebody's making.
    fn may_block(&self) -> bool;

    /// Does for the word of a robust mutex whose owner is dead what the kernel would have done at
    /// his end; says how many waiters were woken.
    fn repair(&self) -> Result<u32>;
}

/// Something that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Names from the manual page: `CREATE`, `ISDIR`, …
    pub names: Vec<&'static str>,
    pub path: Vec<u8>,
    /// The former path of what was renamed.
    pub from: Vec<u8>,
    /// What the names do not say: why a directory is not watched.
    pub note: String,
}

/// What a source of events has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Event(Event),
    /// The kernel dropped events, and does not say how many.
    Overflow,
    /// No more will come; the text says why.
    End(String),
}

/// A source of events.
pub trait Events: Send + Sync {
    /// What has happened since the last call, at least one; else what to wait for.
    fn next(&self) -> Result<Attempt<Vec<Notice>>>;
}

/// A process that signals can be sent to.
pub trait Process: Send + Sync {
    fn pid(&self) -> i32;

    /// Its command name (comm), the last known one when it has ended.
    fn command(&self) -> String;

    fn alive(&self) -> bool;

    /// Sends a signal with a value; signal 0 only asks whether it might be sent.
    fn send(&self, signal: i32, value: i32) -> Result<()>;

    /// Whether it has a handler for the signal, or blocks it, so that the default action does not
    /// happen. A thread in sigwaitinfo(2) does not block what it waits for, for all that /proc shows.
    fn handles(&self, signal: i32) -> Result<bool>;

    /// How it ended, as often as it is asked.
    fn exit(&self) -> Result<Attempt<Exit>>;
}

/// A signal that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub number: i32,
    /// The sender, as si_pid and si_uid of sigaction(2) say.
    pub pid: i32,
    pub uid: u32,
    /// What sigqueue(3) sent along.
    pub value: i32,
    /// si_code: 0 (SI_USER) is kill(2), -1 (SI_QUEUE) sigqueue(3), -6 (SI_TKILL) tgkill(2), …
    pub code: i32,
}

/// A process that receives signals for the caller.
pub trait Mailbox: Send + Sync {
    fn pid(&self) -> i32;

    /// The signals that it receives.
    fn numbers(&self) -> Vec<i32>;

    /// What has come since the last call, at least one; else what to wait for. An error says why
    /// no more will come.
    fn next(&self) -> Result<Attempt<Vec<Received>>>;
}

/// The readiness of an fd that is about to be read.
pub fn readable<T>(fd: &Fd) -> Attempt<T> {
    Attempt::Wait(Readiness::Readable(fd.clone()))
}

/// The readiness of an fd that is about to be written.
pub fn writable<T>(fd: &Fd) -> Attempt<T> {
    Attempt::Wait(Readiness::Writable(fd.clone()))
}
