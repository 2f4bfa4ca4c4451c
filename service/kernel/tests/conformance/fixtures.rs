//! How the objects of every mechanism are made, and which rules they have by nature.
//!
//! One table a shape, one row a mechanism and way to make it. A new mechanism adds a row to the
//! table of every shape that it declares, and one to [`NAMES`]; the suites do the rest.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ipc_kernel::{Endpoint, shape::Shape};

use crate::{driver, suite};

/// One way to make an object of a mechanism.
pub struct Row<Rules: 'static, Object> {
    pub mechanism: &'static str,
    /// What distinguishes it from the mechanism's other rows.
    pub variant: &'static str,
    pub make: fn(&mut Scratch) -> Object,
    pub rules: Rules,
}

pub type Shared = Arc<dyn Endpoint>;

/// Two ends: what goes into `writer` comes out of `reader`. They may be one endpoint.
pub struct Ends {
    pub reader: Shared,
    pub writer: Shared,
}

impl Ends {
    fn one(endpoint: Box<dyn Endpoint>) -> Self {
        let reader = Shared::from(endpoint);
        Self { writer: reader.clone(), reader }
    }

    fn two(reader: Box<dyn Endpoint>, writer: Box<dyn Endpoint>) -> Self {
        Self { reader: reader.into(), writer: writer.into() }
    }

    pub fn are_one(&self) -> bool {
        Arc::ptr_eq(&self.reader, &self.writer)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct StreamRules {
    /// Bytes also flow from `reader` to `writer`.
    pub duplex: bool,
    /// The reader sees an end of stream when the writer has gone.
    pub ends: bool,
    /// Options of `Open` for an fd that reads what the reader would read.
    pub open_reader: &'static str,
    /// Options of `Open` for an fd that writes what the writer would write.
    pub open_writer: &'static str,
    /// Options of `Open` besides, so that the endpoint keeps what it hands out.
    pub keep: &'static str,
}

const PIPE: StreamRules = StreamRules {
    duplex: false,
    ends: true,
    open_reader: "end=read",
    open_writer: "end=write",
    keep: ",keep=true",
};

pub static STREAMS: &[Row<StreamRules, Ends>] = &[
    Row {
        mechanism: "pipe",
        variant: "both ends in one",
        make: |_| Ends::one(created("pipe:")),
        rules: PIPE,
    },
    Row {
        mechanism: "pipe",
        variant: "attached by inode",
        make: |_| {
            let writer = created("pipe:");
            let reader = attached(&format!("{},end=read", writer.address()));
            let stream = writer.stream().expect("a pipe is a stream");
            stream.shutdown(ipc_kernel::shape::Direction::Read).expect("letting go of the reading end");
            Ends::two(reader, writer)
        },
        rules: PIPE,
    },
];

#[derive(Debug, Clone, Copy)]
pub struct ListenerRules {
    /// The shape of what is accepted.
    pub accepted: Shape,
}

pub static LISTENERS: &[Row<ListenerRules, Shared>] = &[];

#[derive(Debug, Clone, Copy)]
pub struct MessageRules {
    /// Messages of no bytes are legal.
    pub empty: bool,
    /// `peek` works.
    pub peek: bool,
    /// File descriptors pass.
    pub fds: bool,
    /// A sender waits for room (else the kernel drops what does not fit).
    pub waits_when_full: bool,
    /// `receive` says `Closed` when the sender has gone.
    pub ends: bool,
    /// Messages also flow from `reader` to `writer`.
    pub duplex: bool,
}

pub static MESSAGES: &[Row<MessageRules, Ends>] = &[Row {
    mechanism: "pipe",
    variant: "packet mode",
    make: |_| Ends::one(created("pipe:packet=true")),
    rules: MessageRules {
        empty: false,
        peek: false,
        fds: false,
        waits_when_full: true,
        ends: true,
        duplex: false,
    },
}];

#[derive(Debug, Clone, Copy)]
pub struct MemoryRules {
    /// `resize` works, also against peers.
    pub resizes: bool,
    /// The size is always a multiple of this.
    pub granularity: u64,
    /// Another endpoint of the same object.
    pub other: fn(&dyn Endpoint) -> Shared,
    /// Another endpoint that may only read.
    pub read_only: fn(&dyn Endpoint) -> Shared,
    /// Options of `Open` for an fd that can be mapped for reading.
    pub open: &'static str,
}

/// Memory of [`MEMORY_SIZE`] bytes, all zero.
pub static MEMORIES: &[Row<MemoryRules, Shared>] = &[];

pub const MEMORY_SIZE: u64 = 16384;

#[derive(Debug, Clone, Copy)]
pub struct SemaphoreRules {
    /// The largest value.
    pub max: i32,
}

/// Semaphores with the value [`SEMAPHORE_VALUE`].
pub static SEMAPHORES: &[Row<SemaphoreRules, Shared>] = &[];

pub const SEMAPHORE_VALUE: i32 = 2;

#[derive(Debug, Clone, Copy)]
pub struct WatchRules {
    /// Watches a directory for these event names only; none means all.
    pub watch: fn(&Path, &[&str]) -> Shared,
}

/// An empty directory to be watched.
pub static WATCHES: &[Row<WatchRules, PathBuf>] = &[];

/// A mechanism's names: an address that nothing has yet, or why there are none.
pub enum Names {
    Named {
        /// An address for Create that nothing has, and the address for Attach of the same object.
        fresh: fn(&mut Scratch) -> (String, String),
        /// Mode bits can be given, and `inspect` shows them under `mode`.
        mode: bool,
    },
    /// Create takes no name.
    Anonymous,
}

/// One row a mechanism.
pub static NAMES: &[(&str, Names)] = &[("pipe", Names::Anonymous)];

/// What to do about a mechanism without fixture.
pub fn missing(mechanism: &str, shape: Shape) -> String {
    format!(
        "{mechanism} declares the shape {}, but has no fixture: add a row for it to {} in \
         tests/conformance/fixtures.rs",
        shape.name(),
        match shape {
            Shape::Stream => "STREAMS",
            Shape::Listener => "LISTENERS",
            Shape::Messages => "MESSAGES",
            Shape::Memory => "MEMORIES",
            Shape::Semaphore => "SEMAPHORES",
            Shape::Watch => "WATCHES",
        }
    )
}

/// Every endpoint that the fixtures of a mechanism make, with the shape it is made for.
pub fn endpoints(mechanism: &str, scratch: &mut Scratch) -> Vec<(Shape, &'static str, Shared)> {
    fn of<R, O>(
        mechanism: &str,
        rows: &'static [Row<R, O>],
        mut with: impl FnMut(&'static str, &'static Row<R, O>),
    ) {
        rows.iter().filter(|row| row.mechanism == mechanism).for_each(|row| with(row.variant, row));
    }
    let mut all: Vec<(Shape, &str, Shared)> = Vec::new();
    for (shape, table) in [(Shape::Stream, 0), (Shape::Messages, 1)] {
        let mut add = |variant, ends: Ends| {
            all.push((shape, variant, ends.reader));
            all.push((shape, variant, ends.writer));
        };
        match table {
            0 => of(mechanism, STREAMS, |variant, row| add(variant, (row.make)(scratch))),
            _ => of(mechanism, MESSAGES, |variant, row| add(variant, (row.make)(scratch))),
        }
    }
    of(mechanism, LISTENERS, |variant, row| all.push((Shape::Listener, variant, (row.make)(scratch))));
    of(mechanism, MEMORIES, |variant, row| {
        let memory = (row.make)(scratch);
        all.push((Shape::Memory, variant, (row.rules.other)(&*memory)));
        all.push((Shape::Memory, variant, (row.rules.read_only)(&*memory)));
        all.push((Shape::Memory, variant, memory));
    });
    of(mechanism, SEMAPHORES, |variant, row| all.push((Shape::Semaphore, variant, (row.make)(scratch))));
    of(mechanism, WATCHES, |variant, row| {
        let directory = (row.make)(scratch);
        all.push((Shape::Watch, variant, (row.rules.watch)(&directory, &[])));
    });
    all
}

/// What a check leaves behind, removed when it ends.
pub struct Scratch {
    directory: tempfile::TempDir,
    cleanups: Vec<Box<dyn FnOnce()>>,
}

impl Scratch {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ipc-conformance-").tempdir();
        Self { directory: directory.expect("a directory for temporary files"), cleanups: Vec::new() }
    }

    /// A path that nothing has.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join(name())
    }

    /// Removes what has this address for Attach, if it is still there.
    pub fn remove_later(&mut self, address: String) {
        self.cleanups.push(Box::new(move || {
            if let Ok(endpoint) = suite::attach(&address) {
                let _ = endpoint.remove();
            }
        }));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.cleanups.drain(..).for_each(|cleanup| cleanup());
    }
}

/// A name that no other test and no other run has.
pub fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ipc-conformance-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn created(address: &str) -> Box<dyn Endpoint> {
    suite::create(address).unwrap_or_else(|error| panic!("cannot create {address}: {error}"))
}

pub fn attached(address: &str) -> Box<dyn Endpoint> {
    suite::attach(address).unwrap_or_else(|error| panic!("cannot attach {address}: {error}"))
}

/// The two ends of a connection: listens, connects and accepts.
#[allow(dead_code)] // until the first listener is registered
fn connection(listen: &str) -> Ends {
    let listener = created(listen);
    let client = attached(&listener.address().to_string());
    let accept = || listener.listener().expect("it listens").accept();
    let server = driver::finish("accepting the fixture's connection", accept).expect("accept");
    Ends::two(server, client)
}

#[allow(dead_code)]
fn adopted(mechanism: &str, fd: OwnedFd) -> Shared {
    let descriptor = ipc_kernel::mechanisms::by_name(mechanism).expect("the mechanism is registered");
    match (descriptor.adopt)(fd).expect("adopting") {
        ipc_kernel::mechanism::Adoption::Taken(endpoint) => endpoint.into(),
        ipc_kernel::mechanism::Adoption::Refused(_) => panic!("{mechanism} does not take its own fd"),
    }
}
