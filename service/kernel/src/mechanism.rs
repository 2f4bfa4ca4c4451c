//! What a mechanism is: its row in the register, and its endpoints.
//!
//! Adding a mechanism takes one file that exports a [`Descriptor`] and one line in
//! `mechanisms/mod.rs`. The parser, `Describe()`, `List()`, the reference page and the
//! conformance suites work from the row.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use event_listener::EventListener;

use crate::{
    Address, Dict, Error, Fd, Lack, Parameter, Parameters, Result,
    blocked::Blocked,
    dialed::{self, Dialed},
    listing::Listing,
    shape::{
        Events, Filesystem, Futex, Listener, Mailbox, Memory, Messages, Process, Semaphore, Shape, Stream,
    },
    word::WordWait,
};

/// One attempt at an operation that may have to wait.
#[derive(Debug)]
pub enum Attempt<T> {
    Done(T),
    /// Nothing happened and nothing was taken; try again when this is so.
    Wait(Readiness),
}

impl<T> Attempt<T> {
    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> Attempt<U> {
        match self {
            Self::Done(value) => Attempt::Done(with(value)),
            Self::Wait(readiness) => Attempt::Wait(readiness),
        }
    }
}

/// What has to happen before another attempt is worth it. Spurious wake-ups are fine.
#[derive(Debug)]
pub enum Readiness {
    /// The fd polls readable, or was hung up.
    Readable(Fd),
    /// The fd polls writable, or was hung up.
    Writable(Fd),
    /// The fd was hung up, whether or not it can be read: a process that was reaped.
    HungUp(Fd),
    /// A 32-bit word in shared memory no longer has the expected value.
    Word(WordWait),
    /// A blocking system call has ended.
    Blocked(Blocked),
    /// Another part of this process says so.
    Notified(EventListener),
    /// The kernel has no event for it: look again after this long.
    After(Duration),
    /// Any of these.
    Any(Vec<Readiness>),
}

/// The result of Create or Attach.
pub enum Opening {
    Done(Box<dyn Endpoint>),
    /// It takes time (a connection being made): call again when `Wait` says so.
    Pending(Pending),
}

/// An open that goes on: one more attempt at it.
pub type Pending = Box<dyn FnMut() -> Result<Attempt<Box<dyn Endpoint>>> + Send>;

impl<E: Endpoint + 'static> From<E> for Opening {
    fn from(endpoint: E) -> Self {
        Self::Done(Box::new(endpoint))
    }
}

/// A column of `List()`: what a key of a row means. Also the keys that a filter may have.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub key: &'static str,
    /// D-Bus signature.
    pub kind: &'static str,
    pub summary: &'static str,
}

/// One row of the register.
pub struct Descriptor {
    /// Short name from the manual pages; used in object paths.
    pub name: &'static str,
    /// The schemes that addresses of this mechanism are written with.
    pub schemes: &'static [&'static str],
    /// One line.
    pub summary: &'static str,
    pub shapes: &'static [Shape],
    /// The keys of Create.
    pub create_parameters: &'static [Parameter],
    /// The keys of Attach.
    pub attach_parameters: &'static [Parameter],
    /// The keys of a row of `List()`.
    pub columns: &'static [Column],
    /// What an endpoint's `Open()` accepts besides the caller's rights.
    pub open_parameters: &'static [Parameter],
    pub create: fn(&Parameters) -> Result<Opening>,
    /// Whether what Create makes with these parameters has no name outside of this process: no
    /// path, key, address or pid. Only that is made for a confined caller.
    pub anonymous: fn(&Parameters) -> bool,
    pub attach: fn(&Parameters) -> Result<Opening>,
    /// Takes over an fd if it is of this mechanism's kind, else gives it back.
    pub adopt: fn(OwnedFd) -> Result<Adoption>,
    /// Every object on the machine that the caller may see.
    pub list: fn() -> Result<Listing>,
    /// The kernel's limits, with the current use where the kernel tells.
    pub limits: fn() -> Dict,
    /// Err says why it cannot be used on this machine, and what to do.
    pub available: fn() -> Result<()>,
    /// Runs what all endpoints of the mechanism share (one inotify instance); called whenever
    /// the readiness that it returned has come.
    pub driver: Option<fn() -> Result<Attempt<()>>>,
    /// What its objects cannot do, of all abilities, and why.
    pub lacks: &'static [Lack],
    /// Prose for the reference page, in Markdown: semantics, sources, errors, "Not offered".
    pub reference: &'static str,
}

impl Descriptor {
    /// Every object, each as a dictionary.
    pub fn objects(&self) -> Result<Vec<Dict>> {
        (self.list)().map(Listing::dicts)
    }
}

impl std::fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Descriptor").field(&self.name).finish()
    }
}

/// Whether an fd was of the mechanism's kind.
pub enum Adoption {
    Taken(Box<dyn Endpoint>),
    Refused(OwnedFd),
}

/// New permissions for a kernel object; `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Permissions {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Bytes that a System V queue may hold.
    pub qbytes: Option<u64>,
}

/// An object that was created, attached or adopted. Dropping it closes it.
///
/// Everything takes `&self`: calls come concurrently, and none may wait for another.
pub trait Endpoint: Send + Sync {
    /// The canonical address, accepted by Attach where Attach can find the object again.
    fn address(&self) -> Address;

    /// The shapes this very endpoint has; a listening socket has others than a connected one.
    fn shapes(&self) -> Vec<Shape>;

    /// Whether it is a socket: what goes in comes out elsewhere.
    fn is_socket(&self) -> bool {
        false
    }

    /// The connection, if it was made by address and can be made again; Err says why it cannot.
    fn dialed(&self) -> std::result::Result<&Dialed, &'static str> {
        Err(dialed::NO_CONNECTION)
    }

    /// Live state from the kernel.
    fn inspect(&self) -> Result<Dict>;

    /// An fd for the caller, checked against the mechanism's `open_parameters`.
    fn open(&self, options: &Parameters) -> Result<OwnedFd>;

    fn set_permissions(&self, _permissions: Permissions) -> Result<()> {
        Err(Error::not_supported(
            "this kernel object has no permissions of its own; whoever holds a file descriptor of it may use it",
        ))
    }

    /// Removes the kernel object's name.
    fn remove(&self) -> Result<()> {
        Err(Error::not_supported(
            "this kernel object has no name to remove; it goes when its last file descriptor is closed",
        ))
    }

    /// Whether the name is of no use once this endpoint is closed (the path of a listening
    /// socket): the default of `remove-on-close`.
    fn remove_by_default(&self) -> bool {
        false
    }

    /// Whether `remove` may wait for another process.
    fn removal_may_wait(&self) -> bool {
        false
    }

    fn stream(&self) -> Option<&dyn Stream> {
        None
    }

    fn listener(&self) -> Option<&dyn Listener> {
        None
    }

    fn messages(&self) -> Option<&dyn Messages> {
        None
    }

    fn memory(&self) -> Option<&dyn Memory> {
        None
    }

    fn semaphore(&self) -> Option<&dyn Semaphore> {
        None
    }

    fn futex(&self) -> Option<&dyn Futex> {
        None
    }

    fn events(&self) -> Option<&dyn Events> {
        None
    }

    fn process(&self) -> Option<&dyn Process> {
        None
    }

    fn mailbox(&self) -> Option<&dyn Mailbox> {
        None
    }

    fn filesystem(&self) -> Option<&dyn Filesystem> {
        None
    }
}

/// One end of a stream, as a relay uses it: read from it or write into it with the kernel's own
/// calls, in whatever way is fastest for its kind.
#[derive(Debug, Clone)]
pub struct End {
    pub fd: Fd,
    pub kind: EndKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// A pipe or FIFO, with an open file description of the service's own.
    Pipe,
    /// A connected stream socket; fds may come with the bytes.
    UnixStream,
    /// A connected TCP socket.
    Tcp,
    /// A file or memfd of this many bytes, read or written from `offset`.
    File { offset: u64, length: u64 },
}

impl End {
    pub fn borrow(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.fd.as_fd()
    }
}
