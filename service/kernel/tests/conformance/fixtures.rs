//! How the objects of every mechanism are made, and which rules they have by nature.
//!
//! One table a shape, one row a mechanism and way to make it. A new mechanism adds a row to the
//! table of every shape that it declares, and one to [`NAMES`]; the suites do the rest.

use std::path::{Path, PathBuf};

use ipc_kernel::{
    Endpoint,
    shape::{Direction, Shape},
};

use crate::making::{
    Ends, Scratch, Shared, attached, connection, created, fifo, name, pair, receiver_and_sender, unix,
};

/// One way to make an object of a mechanism.
pub struct Row<Rules: 'static, Object> {
    pub mechanism: &'static str,
    /// What distinguishes it from the mechanism's other rows.
    pub variant: &'static str,
    pub make: fn(&mut Scratch) -> Object,
    pub rules: Rules,
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
    /// Attach finds the same object by the endpoint's address.
    pub found: bool,
    /// Options of `Open` besides, so that the endpoint keeps what it hands out.
    pub keep: &'static str,
}

const SOCKET: StreamRules =
    StreamRules { duplex: true, ends: true, open_reader: "", open_writer: "", found: false, keep: "" };

const PIPE: StreamRules = StreamRules {
    duplex: false,
    ends: true,
    open_reader: "end=read",
    open_writer: "end=write",
    found: true,
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
            stream.shutdown(Direction::Read).expect("letting go of the reading end");
            Ends::two(reader, writer)
        },
        rules: PIPE,
    },
    Row {
        mechanism: "fifo",
        variant: "created and attached",
        make: |scratch| fifo(scratch, ""),
        rules: StreamRules { keep: "", ..PIPE },
    },
    Row {
        mechanism: "fifo",
        variant: "with a reader that holds it",
        make: |scratch| fifo(scratch, ",hold=true"),
        rules: StreamRules { keep: "", ends: false, ..PIPE },
    },
    Row {
        mechanism: "unix",
        variant: "connection to a path",
        make: |s| connection(&unix(s, "")),
        rules: SOCKET,
    },
    Row { mechanism: "unix", variant: "pair", make: |_| pair("unix:pair"), rules: SOCKET },
    Row {
        mechanism: "inet",
        variant: "TCP over IPv4",
        make: |_| connection("tcp:host=127.0.0.1"),
        rules: SOCKET,
    },
    Row { mechanism: "inet", variant: "TCP over IPv6", make: |_| connection("tcp:host=::1"), rules: SOCKET },
];

#[derive(Debug, Clone, Copy)]
pub struct ListenerRules {
    /// The shape of what is accepted.
    pub accepted: Shape,
}

pub static LISTENERS: &[Row<ListenerRules, Shared>] = &[
    Row {
        mechanism: "unix",
        variant: "path",
        make: |scratch| created(&unix(scratch, "")).into(),
        rules: ListenerRules { accepted: Shape::Stream },
    },
    Row {
        mechanism: "unix",
        variant: "abstract name",
        make: |_| created(&format!("unix:abstract={}", name())).into(),
        rules: ListenerRules { accepted: Shape::Stream },
    },
    Row {
        mechanism: "unix",
        variant: "sequenced packets",
        make: |scratch| created(&unix(scratch, ",type=seqpacket")).into(),
        rules: ListenerRules { accepted: Shape::Messages },
    },
    Row {
        mechanism: "inet",
        variant: "TCP over IPv4",
        make: |_| created("tcp:host=127.0.0.1").into(),
        rules: ListenerRules { accepted: Shape::Stream },
    },
    Row {
        mechanism: "inet",
        variant: "TCP over IPv6",
        make: |_| created("tcp:host=::1").into(),
        rules: ListenerRules { accepted: Shape::Stream },
    },
];

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
    /// Attach finds the reader by its address.
    pub found: bool,
    /// Options of `Open` for an fd of the reader that shows that it carries messages.
    pub open_reader: Option<&'static str>,
    /// The same of the writer.
    pub open_writer: Option<&'static str>,
}

pub static MESSAGES: &[Row<MessageRules, Ends>] = &[
    Row {
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
            found: true,
            // Packet mode is a flag of the writing end alone.
            open_reader: None,
            open_writer: Some("end=write"),
        },
    },
    Row {
        mechanism: "unix",
        variant: "connection of sequenced packets",
        make: |scratch| connection(&unix(scratch, ",type=seqpacket")),
        rules: PACKETS,
    },
    Row {
        mechanism: "unix",
        variant: "pair of sequenced packets",
        make: |_| pair("unix:pair,type=seqpacket"),
        rules: PACKETS,
    },
    Row {
        mechanism: "unix",
        variant: "datagrams to a path",
        make: |scratch| receiver_and_sender(&unix(scratch, ",type=dgram")),
        rules: MessageRules { ends: false, duplex: false, found: true, ..PACKETS },
    },
    Row {
        mechanism: "unix",
        variant: "pair of datagram sockets",
        make: |_| pair("unix:pair,type=dgram"),
        rules: MessageRules { ends: false, ..PACKETS },
    },
    Row {
        mechanism: "inet",
        variant: "UDP over IPv4",
        make: |_| receiver_and_sender("udp:host=127.0.0.1"),
        rules: DATAGRAMS,
    },
    Row {
        mechanism: "inet",
        variant: "UDP over IPv6",
        make: |_| receiver_and_sender("udp:host=::1"),
        rules: DATAGRAMS,
    },
];

const PACKETS: MessageRules = MessageRules {
    empty: true,
    peek: true,
    fds: true,
    waits_when_full: true,
    ends: true,
    duplex: true,
    found: false,
    open_reader: Some(""),
    open_writer: Some(""),
};

const DATAGRAMS: MessageRules =
    MessageRules { fds: false, waits_when_full: false, ends: false, duplex: false, found: true, ..PACKETS };

#[derive(Debug, Clone, Copy)]
pub struct MemoryRules {
    /// `resize` works, also against peers.
    pub resizes: bool,
    /// Where the memory begins in what `Open` hands out.
    pub offset: u64,
    /// Another endpoint of the same object.
    pub other: fn(&dyn Endpoint) -> Shared,
    /// Another endpoint that may only read.
    pub read_only: fn(&dyn Endpoint) -> Shared,
    /// Options of `Open` for an fd that can be mapped for reading.
    pub open: &'static str,
}

/// Memory of [`MEMORY_SIZE`] bytes, all zero.
pub static MEMORIES: &[Row<MemoryRules, Shared>] = &[
    Row {
        mechanism: "mmap",
        variant: "memfd",
        make: |_| created(&format!("mmap:size={MEMORY_SIZE}")).into(),
        rules: MAPPED,
    },
    Row {
        mechanism: "mmap",
        variant: "file",
        make: |scratch| created(&format!("mmap:path={},size={MEMORY_SIZE}", scratch.path().display())).into(),
        rules: MAPPED,
    },
    Row {
        mechanism: "mmap",
        variant: "range of a file",
        make: |scratch| {
            let path = scratch.path();
            let file = std::fs::File::create(&path).expect("a file");
            file.set_len(4096 + MEMORY_SIZE + 5).expect("a larger file");
            attached(&format!("mmap:path={},offset=4096,length={MEMORY_SIZE}", path.display())).into()
        },
        rules: MemoryRules { resizes: false, offset: 4096, ..MAPPED },
    },
];

const MAPPED: MemoryRules = MemoryRules {
    resizes: true,
    offset: 0,
    other: |one| attached(&one.address().to_string()).into(),
    read_only: |one| attached(&format!("{},access=read-only", one.address())).into(),
    open: "access=read-only",
};

pub const MEMORY_SIZE: u64 = 16384;

#[derive(Debug, Clone, Copy)]
pub struct SemaphoreRules {
    /// The largest value.
    pub max: i32,
}

/// Semaphores with the value [`SEMAPHORE_VALUE`].
pub static SEMAPHORES: &[Row<SemaphoreRules, Shared>] = &[Row {
    mechanism: "posixsem",
    variant: "created",
    make: |scratch| {
        let address = format!("posixsem:name=/{}", name());
        scratch.remove_later(address.clone());
        created(&format!("{address},value={SEMAPHORE_VALUE}")).into()
    },
    rules: SemaphoreRules { max: i32::MAX },
}];

pub const SEMAPHORE_VALUE: i32 = 2;

#[derive(Debug, Clone, Copy)]
pub struct WatchRules {
    /// Watches a directory for these event names only; none means all.
    pub watch: fn(&Path, &[&str]) -> Shared,
    /// A rename within the directory is one event, with its former path in `from`.
    pub pairs_renames: bool,
}

/// An empty directory to be watched.
pub static WATCHES: &[Row<WatchRules, PathBuf>] = &[Row {
    mechanism: "inotify",
    variant: "directory",
    make: |scratch| {
        let path = scratch.path();
        std::fs::create_dir(&path).expect("a directory");
        path
    },
    rules: WatchRules {
        watch: |path, events| {
            let events: Vec<_> = events.iter().map(|name| name.to_lowercase().replace('_', "-")).collect();
            let events = if events.is_empty() { "all".to_owned() } else { events.join("+") };
            created(&format!("inotify:path={},events={events}", path.display())).into()
        },
        pairs_renames: false,
    },
}];

/// Whether a mechanism's objects have names that Create takes and Attach finds.
pub enum Names {
    Named {
        /// An address for Create that nothing has, and the address for Attach of the same object.
        fresh: fn(&mut Scratch) -> (String, String),
        /// Mode bits can be given, and `inspect` shows them under `mode`.
        mode: bool,
    },
    /// The kernel chooses the name, a port: an address for Create, and one for Attach that nobody has.
    Chosen { create: &'static str, missing: &'static str },
    /// Create takes no name.
    Anonymous,
}

/// One row a mechanism.
pub static NAMES: &[(&str, Names)] = &[
    ("pipe", Names::Anonymous),
    (
        "fifo",
        Names::Named {
            fresh: |scratch| twice(format!("fifo:path={}", scratch.path().display())),
            mode: true,
        },
    ),
    ("unix", Names::Named { fresh: |scratch| twice(unix(scratch, "")), mode: true }),
    // Port 1 (tcpmux) is below those that ordinary programs may have.
    ("inet", Names::Chosen { create: "tcp:host=127.0.0.1", missing: "tcp:host=127.0.0.1,port=1" }),
    (
        "posixsem",
        Names::Named {
            fresh: |scratch| {
                let address = format!("posixsem:name=/{}", name());
                scratch.remove_later(address.clone());
                twice(address)
            },
            mode: true,
        },
    ),
    (
        "mmap",
        Names::Named {
            fresh: |scratch| {
                let address = format!("mmap:path={}", scratch.path().display());
                (format!("{address},size=100"), address)
            },
            mode: true,
        },
    ),
    ("inotify", Names::Anonymous),
];

fn twice(address: String) -> (String, String) {
    (address.clone(), address)
}

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

/// Why a row cannot be made on this machine.
pub fn unavailable(variant: &str) -> Option<&'static str> {
    let needs_ipv6 = variant.ends_with("over IPv6");
    (needs_ipv6 && std::net::TcpListener::bind("[::1]:0").is_err())
        .then_some("the machine has no IPv6 loopback")
}

/// An endpoint that a fixture made, and the shape that it was made for.
pub struct Made {
    pub shape: Shape,
    pub variant: &'static str,
    pub endpoint: Shared,
    /// Attach finds the object by the endpoint's address.
    pub found: bool,
    /// Options of `Open` for an fd that shows what it is, where there is one.
    pub open: Option<&'static str>,
}

/// Every endpoint that the fixtures of a mechanism make.
pub fn endpoints(mechanism: &str, scratch: &mut Scratch) -> Vec<Made> {
    fn of<R, O>(mechanism: &str, rows: &'static [Row<R, O>]) -> impl Iterator<Item = &'static Row<R, O>> {
        rows.iter().filter(move |row| row.mechanism == mechanism && unavailable(row.variant).is_none())
    }
    let mut all = Vec::new();
    let mut add = |shape, variant, endpoint, found, open| {
        all.push(Made { shape, variant, endpoint, found, open });
    };
    for Row { variant, make, rules, .. } in of(mechanism, STREAMS) {
        let Ends { reader, writer } = make(scratch);
        add(Shape::Stream, variant, reader, rules.found, Some(rules.open_reader));
        add(Shape::Stream, variant, writer, rules.found, Some(rules.open_writer));
    }
    for Row { variant, make, .. } in of(mechanism, LISTENERS) {
        add(Shape::Listener, variant, make(scratch), true, Some(""));
    }
    for Row { variant, make, rules, .. } in of(mechanism, MESSAGES) {
        let Ends { reader, writer } = make(scratch);
        add(Shape::Messages, variant, reader, rules.found, rules.open_reader);
        add(Shape::Messages, variant, writer, false, rules.open_writer);
    }
    for Row { variant, make, rules, .. } in of(mechanism, MEMORIES) {
        let memory = make(scratch);
        let others = [(rules.other)(&*memory), (rules.read_only)(&*memory)];
        for endpoint in others.into_iter().chain([memory]) {
            add(Shape::Memory, variant, endpoint, true, Some(rules.open));
        }
    }
    for Row { variant, make, .. } in of(mechanism, SEMAPHORES) {
        add(Shape::Semaphore, variant, make(scratch), true, Some(""));
    }
    for Row { variant, make, rules, .. } in of(mechanism, WATCHES) {
        add(Shape::Watch, variant, (rules.watch)(&make(scratch), &[]), false, None);
    }
    all
}
