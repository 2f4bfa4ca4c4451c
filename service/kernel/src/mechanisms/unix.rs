//! Unix domain sockets, unix(7).
//!
//! `Create` binds a name and listens on it (or receives datagrams), or makes a pair; `Attach`
//! connects. What a connection, a listening socket or a datagram socket can do is in
//! `unix/endpoint.rs`; how names are bound, found and removed in `unix/name.rs`. This file has
//! the mechanism's row, and the ways to come by an endpoint.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use crate::{
    Attempt, Descriptor, Dict, Endpoint, Error, Kind, Opening, Parameter, Parameters, Readiness, Result, Type,
    dialed::Dialed,
    error::Attempted,
    fd,
    mechanism::{Adoption, Column},
    proc,
    shape::Shape,
    socket_messages, socket_options,
    unix,
    unix::{
        endpoint::{Passing, PeerEnd, Role, SO_PASSRIGHTS, UnixEndpoint, with_type},
        name::{self, Entry, Name, Target, type_word},
        peers,
    },
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "unix",
    schemes: &["unix"],
    summary: "Unix domain sockets: streams, datagrams and sequenced packets that carry file descriptors (unix(7))",
    shapes: &[Shape::Stream, Shape::Listener, Shape::Messages],
    create_parameters: &[
        Parameter::new("path", Type::Path, "Path to bind; must not exist yet"),
        Parameter::new("abstract", Type::Path, "Abstract name to bind, 1 to 107 bytes; it has no permissions"),
        Parameter::new("autobind", Type::Bool, "Let the kernel choose an abstract name").default("false"),
        Parameter::new("pair", Type::Bool, "Make two sockets that are connected to each other").default("false"),
        TYPE,
        Parameter::new("backlog", BACKLOG, "Connections that may wait to be accepted; net.core.somaxconn cuts it")
            .default("4096"),
        // No default in the table: only a path has a mode, and to ask for one elsewhere is an error.
        Parameter {
            summary: "Permission bits of the path, exact whatever the umask; 0600 where none are given",
            default: "",
            ..super::MODE
        },
        Parameter::new("replace-stale", Type::Bool, "Replace a socket at the path that nobody serves any more")
            .default("false"),
        PASSCRED,
        PASS_FDS,
        SNDBUF,
        RCVBUF,
    ],
    attach_parameters: &[
        Parameter::new("path", Type::Path, "Path of the socket to connect to"),
        Parameter::new("abstract", Type::Path, "Abstract name of the socket to connect to"),
        TYPE,
        Parameter::new("autobind", Type::Bool, "Let the kernel give this end a name; default for dgram, so that the peer can answer"),
        Parameter::new("timeout", Type::U32 { min: 0, max: 300_000 }, "Milliseconds to wait while the listener's backlog is full")
            .default("20000"),
        PASSCRED,
        PASS_FDS,
        SNDBUF,
        RCVBUF,
    ],
    columns: &[
        Column { key: "inode", kind: "t", summary: "Inode number of the socket" },
        Column { key: "type", kind: "s", summary: "stream, dgram or seqpacket" },
        Column { key: "state", kind: "s", summary: "listening, connected or unconnected" },
        Column { key: "address", kind: "s", summary: "Address for Attach, where it has a name and is not a connection" },
        Column { key: "path", kind: "s", summary: "Path that it is bound to (ay where it is not UTF-8)" },
        Column { key: "abstract", kind: "s", summary: "Abstract name that it is bound to (ay where it is not UTF-8)" },
        Column { key: "peer", kind: "t", summary: "Inode number of the socket that it is connected to" },
        Column { key: "rqueue", kind: "u", summary: "Bytes to be read; for a listening socket, connections to be accepted" },
        Column { key: "wqueue", kind: "u", summary: "Bytes that the peer has not read; for a listening socket, its backlog" },
        Column { key: "uid", kind: "u", summary: "User id of the process that made the socket (Linux 5.3)" },
        Column { key: "mode", kind: "u", summary: "Permission bits of the path" },
        Column { key: "owner", kind: "u", summary: "User id of the path" },
        Column { key: "group", kind: "u", summary: "Group id of the path" },
        Column { key: "holders", kind: "aa{sv}", summary: "Processes that hold it: pid, command, fd, access" },
    ],
    open_parameters: &[
        Parameter::new("end", Type::Word(&["own", "peer"]), "Which end: this one, or the other end of a pair, once")
            .default("own"),
    ],
    create,
    anonymous: |parameters| parameters.bool("pair"),
    attach: |parameters| Dialed::open(parameters, connect),
    adopt,
    list: || Ok(unix::list::list()?.into()),
    limits,
    available: || Ok(()),
    driver: None,
    lacks: &[],
    reference: REFERENCE,
};

const TYPE: Parameter = Parameter::new(
    "type",
    Type::Word(&["stream", "dgram", "seqpacket"]),
    "Bytes, datagrams, or a connection that keeps the borders of messages",
)
.default("stream");
const BACKLOG: Type = Type::U32 { min: 0, max: i32::MAX as u32 };
const PASSCRED: Parameter =
    Parameter::new("passcred", Type::Bool, "Received messages tell pid, uid and gid of their sender")
        .default("false");
const PASS_FDS: Parameter =
    Parameter::new("pass-fds", Type::Bool, "Accept file descriptors that come with messages").default("true");
/// What SO_SNDBUF takes: the kernel doubles it in an int.
const BUFFER: Type = Type::Size { min: 1, max: (i32::MAX / 2) as u64 };
const SNDBUF: Parameter = Parameter::new("sndbuf", BUFFER, "Send buffer in bytes; it bounds the size of a message");
const RCVBUF: Parameter = Parameter::new("rcvbuf", BUFFER, "Receive buffer in bytes; unix(7): it has no effect on unix sockets");

const REFERENCE: &str = include_str!("unix.md");

fn create(parameters: &Parameters) -> Result<Opening> {
    let kind = socket_type(parameters);
    let path = parameters.path("path")?;
    let name = parameters.bytes("abstract");
    let (autobind, pair) = (parameters.bool("autobind"), parameters.bool("pair"));
    let wanted = [path.is_some(), name.is_some(), autobind, pair];
    if wanted.into_iter().filter(|wanted| *wanted).count() != 1 {
        return Err(Error::invalid(
            "unix needs exactly one of the keys \"path\", \"abstract\", \"autobind\" and \"pair\"",
        ));
    }
    if path.is_none() && (parameters.has("mode") || parameters.bool("replace-stale")) {
        return Err(Error::invalid(
            "the keys \"mode\" and \"replace-stale\" are for a \"path\": whoever can name an abstract socket may connect to it",
        ));
    }
    if pair {
        return Ok(create_pair(kind, parameters)?.into());
    }
    let socket = new_socket(kind, parameters)?;
    let mut entry = None;
    if let Some(path) = path {
        let replace = parameters.bool("replace-stale");
        entry = Some(Entry::bind(&socket, &path, parameters.mode(), replace)?);
    } else {
        let address = match name {
            Some(name) => name::abstract_address(name)?,
            None => SocketAddrUnix::new_unnamed(),
        };
        bind_abstract(&socket, &address, name)?;
    }
    match finish(socket, kind, &mut entry, parameters) {
        Ok(endpoint) => Ok(endpoint.into()),
        Err(error) => {
            if let Some(entry) = entry {
                // The first error is the one to report.
                let _ = entry.remove();
            }
            Err(error)
        }
    }
}

/// Listens, and makes an endpoint of a bound socket. Takes `entry` only if all went well.
fn finish(
    socket: OwnedFd,
    kind: SocketType,
    entry: &mut Option<Entry>,
    parameters: &Parameters,
) -> Result<UnixEndpoint> {
    let mut role = Role::Unconnected;
    if kind != SocketType::DGRAM {
        role = Role::Listening;
        let backlog = parameters.u32("backlog").and_then(|backlog| i32::try_from(backlog).ok());
        rustix::net::listen(&socket, backlog.unwrap_or(i32::MAX)).attempted(|| "listen on the socket")?;
    }
    let name = match &entry {
        Some(entry) => Some(Name::Path(entry.path.clone())),
        None => name::local(&socket),
    };
    let mut endpoint = UnixEndpoint::unnamed(socket, kind, role, passing(parameters))?;
    if let Some(name) = name {
        endpoint.address = with_type(name.address(), kind);
    }
    endpoint.entry = entry.take();
    endpoint.created = endpoint.entry.is_some();
    Ok(endpoint)
}

fn bind_abstract(socket: &OwnedFd, address: &SocketAddrUnix, name: Option<&[u8]>) -> Result<()> {
    let shown = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
    match rustix::net::bind(socket, address) {
        Ok(()) => Ok(()),
        Err(Errno::ADDRINUSE) => Err(Error::new(
            Kind::Exists,
            format!("cannot bind the abstract name {shown:?}: a socket of this network namespace has it (EADDRINUSE)"),
        )),
        // autobind(2): no name of five hexadecimal digits is left.
        Err(Errno::NOSPC) => Err(Error::new(
            Kind::LimitExceeded,
            "cannot bind an abstract name: the kernel has no automatic name left (ENOSPC)",
        )),
        Err(errno) => Err(Error::from_errno(errno, format_args!("bind the abstract name {shown:?}"))),
    }
}

fn create_pair(kind: SocketType, parameters: &Parameters) -> Result<UnixEndpoint> {
    let (own, peer) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .attempted(|| "create a pair of unix sockets")?;
    for end in [&own, &peer] {
        socket_options::set_buffers(end, parameters.size("sndbuf"), parameters.size("rcvbuf"))?;
    }
    let passing = passing(parameters);
    passing.apply(&own)?;
    let mut endpoint = UnixEndpoint::unnamed(own, kind, Role::Connected, passing)?;
    endpoint.peer = PeerEnd::Pair(Mutex::new(Some(peer)));
    Ok(endpoint)
}

fn connect(parameters: &Parameters) -> Result<Opening> {
    let kind = socket_type(parameters);
    let name = match (parameters.path("path")?, parameters.bytes("abstract")) {
        (Some(path), None) => Name::Path(path),
        (None, Some(name)) => Name::Abstract(name.to_owned()),
        _ => {
            return Err(Error::invalid("unix needs exactly one of the keys \"path\" and \"abstract\""));
        }
    };
    let target = Target::find(&name)?;
    peers::check_found(&target)?;
    let socket = new_socket(kind, parameters)?;
    if parameters.bool("autobind") || (kind == SocketType::DGRAM && !parameters.has("autobind")) {
        bind_abstract(&socket, &SocketAddrUnix::new_unnamed(), None)?;
    }
    let timeout = Duration::from_millis(parameters.u32("timeout").unwrap_or(20_000).into());
    let mut connection = Connection {
        socket: Some(socket),
        kind,
        name,
        target,
        passing: passing(parameters),
        deadline: Instant::now() + timeout,
        pause: Duration::from_millis(1),
    };
    Ok(match connection.attempt()? {
        Attempt::Done(endpoint) => Opening::Done(endpoint),
        Attempt::Wait(_) => Opening::Pending(Box::new(move || connection.attempt())),
    })
}

/// A connection being made. The kernel has no event for room in a listener's backlog, so it is
/// tried again after a pause that doubles, up to 50 ms.
struct Connection {
    /// Taken when it is connected.
    socket: Option<OwnedFd>,
    kind: SocketType,
    name: Name,
    target: Target,
    passing: Passing,
    deadline: Instant,
    pause: Duration,
}

impl Connection {
    fn attempt(&mut self) -> Result<Attempt<Box<dyn Endpoint>>> {
        let Some(socket) = &self.socket else {
            return Err(Error::new(Kind::Closed, "the connection was made already"));
        };
        match fd::retry(|| rustix::net::connect(socket, &self.target.address)) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return self.wait(),
            Err(errno) => return Err(self.cannot(errno)),
        }
        let Some(socket) = self.socket.take() else {
            return Err(Error::new(Kind::Closed, "the connection was made already"));
        };
        peers::check_connected(&socket)?;
        let mut endpoint = UnixEndpoint::unnamed(socket, self.kind, Role::Connected, self.passing)?;
        endpoint.address = with_type(self.name.address(), self.kind);
        if let (Name::Path(path), Some(file)) = (&self.name, self.target.file.take()) {
            endpoint.entry = Some(Entry { path: PathBuf::from(path), file });
        }
        Ok(Attempt::Done(Box::new(endpoint)))
    }

    fn wait(&mut self) -> Result<Attempt<Box<dyn Endpoint>>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "cannot connect to {} in time: its backlog is full, nobody accepts (EAGAIN)",
                    self.name.describe()
                ),
            ));
        }
        let pause = self.pause.min(left);
        self.pause = (self.pause * 2).min(Duration::from_millis(50));
        Ok(Attempt::Wait(Readiness::After(pause)))
    }

    /// The errnos of connect(2) for unix sockets.
    fn cannot(&self, errno: Errno) -> Error {
        let attempt = format!("connect to {}", self.name.describe());
        match errno {
            Errno::CONNREFUSED => Error::new(
                Kind::NotFound,
                match self.name {
                    Name::Path(_) => format!(
                        "cannot {attempt}: nobody listens there (ECONNREFUSED); the path was left behind, Create \
                         with replace-stale=true replaces it"
                    ),
                    // Each type has abstract names of its own; the kernel does not look at the others.
                    Name::Abstract(_) => format!(
                        "cannot {attempt}: nobody listens there (ECONNREFUSED){}",
                        self.target
                            .live_type(&self.name)
                            .filter(|kind| *kind != type_word(self.kind))
                            .map(|kind| format!("; a socket of another type has the name, say type={kind}"))
                            .unwrap_or_default()
                    ),
                },
            ),
            Errno::PROTOTYPE => Error::invalid(match self.target.live_type(&self.name) {
                Some(kind) => format!("cannot {attempt}: it is of another type; say type={kind} (EPROTOTYPE)"),
                None => format!("cannot {attempt}: it is of another type; try another type (EPROTOTYPE)"),
            }),
            Errno::ACCESS => Error::from_errno(errno, attempt).help("connecting takes write permission"),
            Errno::PERM => Error::from_errno(errno, attempt).help("it is connected to another socket"),
            errno => Error::from_errno(errno, attempt),
        }
    }
}

fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    // ENOTSOCK, or a kind of fd that knows no such call.
    if !sockopt::socket_domain(&adopted).is_ok_and(|family| family == AddressFamily::UNIX) {
        return Ok(Adoption::Refused(adopted));
    }
    let attempt = || "examine a unix socket";
    let kind = sockopt::socket_type(&adopted).attempted(attempt)?;
    let listening = sockopt::socket_acceptconn(&adopted).attempted(attempt)?;
    let role = match name::remote(&adopted) {
        _ if listening => Role::Listening,
        Ok(_) => Role::Connected,
        Err(Errno::NOTCONN) if kind == SocketType::DGRAM => Role::Unconnected,
        Err(Errno::NOTCONN) => {
            return Err(Error::invalid(
                "cannot adopt this unix socket: it neither listens nor is it connected; call listen(2) or connect(2) first",
            ));
        }
        Err(errno) => return Err(Error::from_errno(errno, attempt())),
    };
    peers::check_connected(&adopted)?;
    let passing = Passing {
        credentials: sockopt::socket_passcred(&adopted).attempted(attempt)?,
        // Only a kernel that can refuse fds (6.16) says so.
        fds: !socket_options::get_int(&adopted, SO_PASSRIGHTS).is_ok_and(|on| on == 0),
    };
    let name = if role == Role::Connected { None } else { name::local(&adopted) };
    let mut endpoint = UnixEndpoint::unnamed(adopted, kind, role, passing)?;
    if let Some(name) = name {
        endpoint.address = with_type(name.address(), kind);
    }
    Ok(Adoption::Taken(Box::new(endpoint)))
}

fn new_socket(kind: SocketType, parameters: &Parameters) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)
        .attempted(|| "create a unix socket")?;
    socket_options::set_buffers(&socket, parameters.size("sndbuf"), parameters.size("rcvbuf"))?;
    passing(parameters).apply(&socket)?;
    Ok(socket)
}

fn passing(parameters: &Parameters) -> Passing {
    Passing { credentials: parameters.bool("passcred"), fds: parameters.bool("pass-fds") }
}

fn socket_type(parameters: &Parameters) -> SocketType {
    match parameters.text("type") {
        Some("dgram") => SocketType::DGRAM,
        Some("seqpacket") => SocketType::SEQPACKET,
        _ => SocketType::STREAM,
    }
}

fn limits() -> Dict {
    let mut limits = crate::dict! {
        "path-bytes" => libc::PATH_MAX as u64 - 1,
        "abstract-bytes" => name::MAX_NAME as u64,
        "SCM_MAX_FD" => socket_messages::MAX_FDS as u64,
    };
    for (key, file) in [
        ("net.unix.max_dgram_qlen", "net/unix/max_dgram_qlen"),
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net.core.wmem_default", "net/core/wmem_default"),
        ("net.core.wmem_max", "net/core/wmem_max"),
        ("net.core.rmem_default", "net/core/rmem_default"),
        ("net.core.rmem_max", "net/core/rmem_max"),
    ] {
        if let Some(value) = proc::sysctl(file) {
            limits.insert(key.to_owned(), value.into());
        }
    }
    limits
}
