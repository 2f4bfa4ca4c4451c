//! An endpoint of the mechanism `unix`: a listening, bound or connected unix socket, or both
//! ends of a pair, with the shapes that it has.
//!
//! Whatever a caller opens is a duplicate that shares our open file description, as sockets
//! cannot be re-opened. So nothing here relies on O_NONBLOCK: every send and receive says
//! MSG_DONTWAIT for itself, and the fd that is handed out blocks, as a caller expects. Only a
//! listening socket stays non-blocking, since accept(2) has no such flag.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use rustix::{
    event::PollFlags,
    fs::OFlags,
    io::Errno,
    net::{SocketAddrAny, SocketFlags, SocketType, sockopt},
};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Kind, Parameters, Result, Value,
    dialed::{self, Dialed},
    dict,
    error::Attempted,
    fd::{self, poll_now, retry},
    mechanism::{End, EndKind, Permissions},
    peer, shape,
    shape::{Direction, Listener, Message, Messages, Outgoing, Shape, Stream},
    sock_diag, socket_io,
    socket_messages::{self, Received, Taking},
    socket_options,
    unix::{
        name::{self, Entry, Name, Target},
        peers,
    },
};

/// asm-generic/socket.h; since Linux 6.16.
pub const SO_PASSRIGHTS: libc::c_int = 83;

/// What the socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Listening,
    Connected,
    /// A datagram socket that receives from everybody.
    Unconnected,
}

/// What accepted connections take over from their listener.
#[derive(Debug, Clone, Copy)]
pub struct Passing {
    pub credentials: bool,
    pub fds: bool,
}

impl Passing {
    /// Tells the kernel. Where it cannot refuse fds yet (before 6.16), they are closed when they
    /// come.
    pub fn apply(self, socket: &OwnedFd) -> Result<()> {
        if self.credentials {
            sockopt::set_socket_passcred(socket, true)
                .attempted(|| "ask for credentials with every message")?;
        }
        match socket_options::set_flag(socket, SO_PASSRIGHTS, self.fds) {
            Ok(()) | Err(Errno::NOPROTOOPT) => Ok(()),
            Err(errno) => Err(Error::from_errno(errno, "set whether file descriptors are accepted")),
        }
    }
}

pub struct UnixEndpoint {
    pub fd: Fd,
    pub kind: SocketType,
    pub role: Role,
    pub address: Address,
    /// The path that it was bound or connected to.
    pub entry: Option<Entry>,
    /// Whether the path is of our making.
    pub created: bool,
    pub passing: Passing,
    /// The other end of a pair.
    pub peer: PeerEnd,
    /// Held while a message is measured and taken.
    pub receiving: Mutex<()>,
}

/// The end of a pair that waits for somebody to open it.
pub enum PeerEnd {
    /// Not a pair.
    None,
    /// `None` once it was handed over.
    Pair(Mutex<Option<OwnedFd>>),
}

impl UnixEndpoint {
    /// An endpoint without a name; its address is the inode, which only `List` knows.
    pub fn unnamed(socket: OwnedFd, kind: SocketType, role: Role, passing: Passing) -> Result<Self> {
        let inode = fd::stat(&socket)?.st_ino;
        let address = with_type(Address::new("unix").with("inode", inode.to_string()), kind);
        Ok(Self {
            fd: socket.into(),
            kind,
            role,
            address,
            entry: None,
            created: false,
            passing,
            peer: PeerEnd::None,
            receiving: Mutex::new(()),
        })
    }

    fn entry(&self) -> Result<&Entry> {
        self.entry.as_ref().ok_or_else(|| {
            Error::not_supported(
                "only a unix socket with a path has permissions and a name to remove; an abstract name has \
                 no permissions and goes when its last file descriptor is closed",
            )
        })
    }

    fn state(&self) -> Result<&'static str> {
        Ok(match self.role {
            Role::Listening => "listening",
            Role::Unconnected => "unconnected",
            Role::Connected if poll_now(&self.fd, PollFlags::IN)?.contains(PollFlags::HUP) => "peer-gone",
            Role::Connected => "connected",
        })
    }

    /// Takes or peeks a message and says what the kernel says about it.
    fn message(&self, selector: &Dict, taking: Taking) -> Result<Attempt<Message>> {
        if let Some(key) = selector.keys().next() {
            return Err(Error::invalid(format!(
                "unix sockets have no selector {key:?}; messages come in the order in which they were sent"
            )));
        }
        let received = {
            let _guard = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
            socket_messages::receive(&self.fd, taking, self.kind == SocketType::SEQPACKET)?
        };
        Ok(received.map(|received| self.with_attributes(received)))
    }

    fn with_attributes(&self, received: Received) -> Message {
        let mut attributes = Dict::new();
        if let Some(name) = received.from.as_ref().and_then(Name::from_socket) {
            attributes.insert("address".into(), name.address().to_string().into());
        }
        if let Some(who) = received.credentials {
            attributes.insert("uid".into(), who.uid.into());
            attributes.insert("gid".into(), who.gid.into());
            if let Some(pid) = who.pid {
                attributes.insert("pid".into(), pid.into());
            }
        }
        // A kernel before 6.16 passes fds although they are unwanted; dropping them closes them.
        let fds = if self.passing.fds { received.fds } else { Vec::new() };
        Message { data: received.data, attributes, fds }
    }

    /// The addressee in the attributes, if there is one.
    fn addressee(&self, attributes: &Dict) -> Result<Option<(Name, Target)>> {
        if let Some(key) = attributes.keys().find(|key| *key != "address") {
            return Err(Error::invalid(format!(
                "unix sockets have no attribute {key:?} for a message to be sent; they have address"
            )));
        }
        let name = match attributes.get("address") {
            None if self.role == Role::Unconnected => {
                return Err(Error::invalid(
                    "this datagram socket is not connected: say where to send with the attribute address, \
                     such as unix:path=/x or unix:abstract=x",
                ));
            }
            None => {
                // Whoever gave us the socket may have connected it to another one since.
                if self.kind == SocketType::DGRAM {
                    peers::check_connected(&self.fd)?;
                }
                return Ok(None);
            }
            Some(_) if self.kind == SocketType::SEQPACKET => {
                return Err(Error::invalid(
                    "a seqpacket connection sends to its peer only: leave the attribute address out",
                ));
            }
            Some(Value::Text(text)) => Name::parse(text)?,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "the attribute address must be a text (D-Bus type s), not {}",
                    other.signature()
                )));
            }
        };
        let target = Target::find(&name)?;
        peers::check_target(&name, &target)?;
        Ok(Some((name, target)))
    }

    /// The errnos of sendmsg(2) for unix sockets.
    fn cannot_send(&self, errno: Errno, message: &Outgoing<'_>, to: Option<&(Name, Target)>) -> Error {
        let attempt = match to {
            Some((name, _)) => format!("send a message to {}", name.describe()),
            None => "send a message".to_owned(),
        };
        match errno {
            Errno::MSGSIZE => Error::new(
                Kind::TooLarge,
                format!(
                    "cannot {attempt}: it has {} bytes, and at most {} fit (EMSGSIZE); give a larger sndbuf",
                    message.data.len(),
                    self.max_message_size()
                ),
            ),
            Errno::CONNREFUSED if to.is_some() => Error::new(
                Kind::NotFound,
                format!(
                    "cannot {attempt}: no {} socket is there any more (ECONNREFUSED)",
                    name::type_word(self.kind)
                ),
            ),
            Errno::CONNREFUSED | Errno::DESTADDRREQ => Error::new(
                Kind::Closed,
                format!("cannot {attempt}: the peer has gone ({})", crate::error::name(errno)),
            ),
            Errno::PERM if !message.fds.is_empty() => Error::from_errno(errno, attempt).help(
                "the receiver takes no file descriptors (SO_PASSRIGHTS), or is connected to another socket",
            ),
            Errno::PERM => {
                Error::from_errno(errno, attempt).help("the receiver is connected to another socket")
            }
            Errno::PROTOTYPE => Error::invalid(format!(
                "cannot {attempt}: the socket there is of another type{}",
                to.and_then(|(name, target)| target.live_type(name))
                    .map(|kind| format!(", {kind}"))
                    .unwrap_or_default()
            )),
            errno => socket_io::failed(errno, &attempt),
        }
    }
}

impl Endpoint for UnixEndpoint {
    fn address(&self) -> Address {
        self.address.clone()
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![match (self.role, self.kind) {
            (Role::Listening, _) => Shape::Listener,
            (_, SocketType::STREAM) => Shape::Stream,
            _ => Shape::Messages,
        }]
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn dialed(&self) -> std::result::Result<&Dialed, &'static str> {
        Err(match (&self.peer, self.role) {
            (_, Role::Listening) => dialed::NO_CONNECTION,
            (_, Role::Unconnected) => "it receives from everybody and is connected to nobody",
            (PeerEnd::Pair(_), _) => "it is one of a pair, whose other end has no address",
            (PeerEnd::None, _) => dialed::ACCEPTED,
        })
    }

    fn inspect(&self) -> Result<Dict> {
        let inode = fd::stat(&self.fd)?.st_ino;
        let attempt = || "read the options of the socket";
        let mut state = dict! {
            "type" => name::type_word(self.kind),
            "state" => self.state()?,
            "inode" => inode,
            "sndbuf" => sockopt::socket_send_buffer_size(&self.fd).attempted(attempt)? as u64,
            "rcvbuf" => sockopt::socket_recv_buffer_size(&self.fd).attempted(attempt)? as u64,
            "passcred" => sockopt::socket_passcred(&self.fd).attempted(attempt)?,
            "pass-fds" => socket_options::get_int(&self.fd, SO_PASSRIGHTS).map_or(self.passing.fds, |on| on != 0),
        };
        if let Some(name) = name::local(&self.fd) {
            let (key, bytes) = name.pair();
            state.insert(key.to_owned(), Value::text_or_bytes(bytes));
        }
        // The path that it was asked for: what the kernel has may be /proc/self/fd/N/name.
        if let (Some(entry), true) = (&self.entry, self.created) {
            let path = std::os::unix::ffi::OsStrExt::as_bytes(entry.path.as_os_str());
            let file = fd::stat(&entry.file)?;
            state.insert("path".into(), Value::text_or_bytes(path));
            state.insert("mode".into(), (file.st_mode & 0o7777).into());
            state.insert("owner".into(), file.st_uid.into());
            state.insert("group".into(), file.st_gid.into());
        }
        if self.role != Role::Listening {
            let waiting = rustix::io::ioctl_fionread(&self.fd).attempted(attempt)?;
            state.insert("queued-in".into(), waiting.into());
            state.insert("queued-out".into(), queued_out(&self.fd)?.into());
        }
        if self.role == Role::Connected {
            state.extend(peer::describe(&self.fd));
            if let Ok(Some(name)) = name::remote(&self.fd) {
                state.insert("peer".into(), name.address().to_string().into());
            }
        }
        // What only sock_diag tells; a sandbox may forbid it.
        if let Some(Ok(told)) = u32::try_from(inode).ok().map(sock_diag::unix_socket) {
            if self.role == Role::Listening {
                state.insert("pending".into(), told.receive_queue.into());
                state.insert("backlog".into(), told.send_queue.into());
            }
            if let Some(peer) = told.peer {
                state.insert("peer-inode".into(), u64::from(peer).into());
            }
        }
        if let PeerEnd::Pair(peer) = &self.peer {
            let held = peer.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            state.insert("peer-end".into(), if held { "held" } else { "handed-over" }.into());
        }
        Ok(state)
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        if options.text("end") == Some("peer") {
            let PeerEnd::Pair(peer) = &self.peer else {
                return Err(Error::not_supported(
                    "only a pair (unix:pair) has its peer's end to hand over; open end=own",
                ));
            };
            return peer.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(|| {
                Error::new(
                    Kind::Closed,
                    "the peer's end of this pair was handed over already; it can be once",
                )
            });
        }
        let own = fd::duplicate(&self.fd)?;
        if self.role != Role::Listening {
            let attempt = || "make the socket blocking for its caller";
            let flags = rustix::fs::fcntl_getfl(&own).attempted(attempt)?;
            rustix::fs::fcntl_setfl(&own, flags - OFlags::NONBLOCK).attempted(attempt)?;
        }
        Ok(own)
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        self.entry()?.set_permissions(permissions)
    }

    fn remove(&self) -> Result<()> {
        self.entry()?.remove()
    }

    fn remove_by_default(&self) -> bool {
        self.created
    }

    fn stream(&self) -> Option<&dyn Stream> {
        (self.role == Role::Connected && self.kind == SocketType::STREAM).then_some(self)
    }

    fn listener(&self) -> Option<&dyn Listener> {
        (self.role == Role::Listening).then_some(self)
    }

    fn messages(&self) -> Option<&dyn Messages> {
        (self.role != Role::Listening && self.kind != SocketType::STREAM).then_some(self)
    }
}

impl Stream for UnixEndpoint {
    // recv(2) has no room for control messages: the kernel drops fds that come with the bytes,
    // which closes them.
    fn read(&self, max: usize) -> Result<Attempt<Vec<u8>>> {
        socket_io::read(&self.fd, max)
    }

    fn write(&self, data: &[u8]) -> Result<Attempt<usize>> {
        socket_io::write(&self.fd, data)
    }

    fn shutdown(&self, direction: Direction) -> Result<()> {
        socket_io::shutdown(&self.fd, direction)
    }

    fn source(&self) -> Result<Attempt<End>> {
        Ok(Attempt::Done(End { fd: self.fd.clone(), kind: EndKind::UnixStream }))
    }

    fn sink(&self) -> Result<Attempt<End>> {
        self.source()
    }
}

impl Listener for UnixEndpoint {
    fn accept(&self) -> Result<Attempt<Box<dyn Endpoint>>> {
        // Whoever holds a duplicate may have cleared it.
        fd::set_nonblocking(std::os::fd::AsFd::as_fd(&self.fd))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match retry(|| rustix::net::accept_with(&self.fd, flags)) {
            Ok(socket) => {
                self.passing.apply(&socket)?;
                let connection = Self::unnamed(socket, self.kind, Role::Connected, self.passing)?;
                Ok(Attempt::Done(Box::new(connection)))
            }
            Err(Errno::AGAIN) => Ok(shape::readable(&self.fd)),
            Err(Errno::INVAL) => Err(Error::new(
                Kind::Closed,
                "cannot accept a connection: the socket was shut down and listens no more (EINVAL)",
            )),
            Err(errno) => Err(Error::from_errno(errno, "accept a connection")),
        }
    }
}

impl Messages for UnixEndpoint {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        if message.fds.len() > socket_messages::MAX_FDS {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot send {} file descriptors with a message: the kernel allows {} (SCM_MAX_FD)",
                    message.fds.len(),
                    socket_messages::MAX_FDS
                ),
            ));
        }
        let to = self.addressee(message.attributes)?;
        let address = to.as_ref().map(|(_, target)| SocketAddrAny::from(target.address.clone()));
        socket_messages::send(&self.fd, message.data, message.fds, address.as_ref())
            .map_err(|errno| self.cannot_send(errno, &message, to.as_ref()))
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.message(selector, Taking::Take)
    }

    fn peek(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.message(selector, Taking::Peek)
    }

    fn next_length(&self) -> Option<u64> {
        socket_messages::next_length(&self.fd)
    }

    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        self.addressee(attributes).map(drop)
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        socket_messages::arrival(&self.fd)
    }

    /// The kernel takes what the send buffer holds less 32 bytes (unix_dgram_sendmsg).
    fn max_message_size(&self) -> u64 {
        sockopt::socket_send_buffer_size(&self.fd).map_or(0, |size| (size as u64).saturating_sub(32))
    }
}

/// Appends the type to an address, unless it is the default.
pub fn with_type(address: Address, kind: SocketType) -> Address {
    match kind {
        SocketType::STREAM => address,
        kind => address.with("type", name::type_word(kind)),
    }
}

/// Bytes that the peer has not read yet (SIOCOUTQ, unix(7)); with the kernel's bookkeeping.
fn queued_out(socket: &Fd) -> Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the fd is open for the call, and SIOCOUTQ (TIOCOUTQ) writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result != 0 {
        let errno = crate::error::errno_of(&std::io::Error::last_os_error());
        return Err(Error::from_errno(errno, "ask how much is queued for the peer"));
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}
