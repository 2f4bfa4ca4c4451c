//! An endpoint of the mechanism `netlink`: a socket of one family, with its multicast groups.
//!
//! What the endpoint is for says [`Side`]: most families have the kernel at the other end; in `usersock`
//! processes talk to each other. Messages that claim to be the kernel's and are not are dropped and
//! counted (CVE-2009-1185 was a daemon that believed them).
//!
//! Losses are told as `Overflow`, once when the kernel says ENOBUFS, and again when the queue is empty
//! and the kernel's counter says that more were dropped since: whoever hears it last has missed nothing
//! after it.

use std::{
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::OFlags,
    io::Errno,
    net::{SocketAddrAny, netlink::SocketAddrNetlink, sockopt},
};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Kind, Parameters, Result, Value, dict,
    error::Attempted,
    fd,
    netlink::{
        answer,
        family::{Family, UDEV},
        wire,
    },
    proc, shape,
    shape::{Message, Messages, Outgoing, Shape},
    socket_io,
    socket_messages::{self, Received, Taking},
    socket_options,
};

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Kernel,
    /// The process that has this port.
    Port(u32),
    /// Whoever a message says, and whoever sends.
    Anybody,
}

pub struct NetlinkEndpoint {
    fd: Fd,
    family: Family,
    side: Side,
    address: Address,
    /// Held while a message is measured and taken.
    receiving: Mutex<()>,
    /// How many of the socket's dropped messages were told.
    told: AtomicU64,
    /// Messages that were not from the kernel.
    refused: AtomicU64,
}

/// linux/sock_diag.h: the words of SO_MEMINFO.
const SO_MEMINFO: libc::c_int = 55;
const RMEM_ALLOC: usize = 0;
const DROPS: usize = 8;

/// After so many messages that were refused, others have their turn.
const TURN: u32 = 64;

/// What the kernel sets aside of the send buffer (netlink_sendmsg).
const SEND_OVERHEAD: u64 = 32;

impl NetlinkEndpoint {
    pub fn new(socket: OwnedFd, family: Family, side: Side, address: Address) -> Self {
        let told = dropped(&socket).into();
        let (receiving, refused) = (Mutex::new(()), AtomicU64::new(0));
        Self { fd: socket.into(), family, side, address, receiving, told, refused }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes or peeks the next message that may be shown.
    fn message(&self, selector: &Dict, taking: Taking) -> Result<Attempt<Message>> {
        if let Some(key) = selector.keys().next() {
            return Err(Error::invalid(format!(
                "netlink sockets have no selector {key:?}; messages come in the order in which they were sent"
            )));
        }
        let _guard = self.lock();
        for _ in 0..TURN {
            let received = match socket_messages::receive(&self.fd, taking, false) {
                Ok(Attempt::Done(received)) => received,
                Ok(Attempt::Wait(_)) if dropped(&self.fd) > self.told.load(Ordering::Relaxed) => {
                    return Err(self.overflow());
                }
                Ok(Attempt::Wait(readiness)) => return Ok(Attempt::Wait(readiness)),
                Err(error) if error.kind == Kind::Errno(Errno::NOBUFS) => return Err(self.overflow()),
                Err(error) => return Err(error),
            };
            let sender = Sender::of(&received);
            if self.believes(&sender) {
                return Ok(Attempt::Done(self.with_attributes(received, &sender)));
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
            if taking == Taking::Peek {
                // It was looked at only, and would be there for ever.
                let _ = socket_messages::receive(&self.fd, Taking::Take, false)?;
            }
        }
        Ok(shape::readable(&self.fd))
    }

    /// Whether the sender is who may send here.
    fn believes(&self, sender: &Sender) -> bool {
        match self.family {
            Family::USERSOCK => true,
            // udevd(8) is a process, and root's.
            Family::KOBJECT_UEVENT if sender.port != 0 => sender.group == UDEV && sender.uid == Some(0),
            _ => sender.port == 0,
        }
    }

    fn with_attributes(&self, received: Received, sender: &Sender) -> Message {
        let mut attributes = match self.family {
            // What they send begins with no header, or with one of their own.
            Family::USERSOCK | Family::KOBJECT_UEVENT | Family::CONNECTOR => Dict::new(),
            _ => answer::attributes(&received.data),
        };
        attributes.insert("sender-port".into(), sender.port.into());
        if sender.port != 0 {
            attributes.extend(sender.uid.map(|uid| ("sender-uid".to_owned(), uid.into())));
            attributes.extend(sender.pid.map(|pid| ("sender-pid".to_owned(), pid.into())));
        }
        if sender.group != 0 {
            attributes.insert("group".into(), self.family.group_name(sender.group).into());
        }
        if let Some(namespace) = received.namespace {
            attributes.insert("nsid".into(), namespace.into());
        }
        Message { data: received.data, attributes, fds: Vec::new() }
    }

    fn overflow(&self) -> Error {
        let dropped = dropped(&self.fd);
        let lost = dropped.saturating_sub(self.told.swap(dropped, Ordering::Relaxed));
        let lost = if lost == 0 { "messages".to_owned() } else { format!("{lost} messages") };
        let size = sockopt::socket_recv_buffer_size(&self.fd).unwrap_or(0);
        Error::new(
            Kind::Overflow,
            format!(
                "{lost} to this socket were lost: its receive buffer of {size} bytes was full (ENOBUFS). What comes now \
                 goes on behind a gap: ask for a fresh dump; receive faster, or give a larger rcvbuf, at most \
                 net.core.rmem_max, now {}",
                proc::sysctl("net/core/rmem_max").map_or("unknown".to_owned(), |most| most.to_string())
            ),
        )
    }

    /// Where a message goes that does not go to the other end.
    fn addressee(&self, attributes: &Dict) -> Result<Option<(u32, u32)>> {
        let (mut port, mut group) = (None, None);
        for (key, value) in attributes {
            match (key.as_str(), value) {
                ("port", value) => port = Some(u32_of("port", value)?),
                ("group", Value::Text(name)) => group = Some(self.family.group(name)?),
                ("group", value) => group = Some(self.family.group(&u32_of("group", value)?.to_string())?),
                _ => {
                    return Err(Error::invalid(format!(
                        "netlink sockets have no attribute {key:?} for a message to be sent; they have port and group"
                    )));
                }
            }
        }
        match (port, group, self.side) {
            (None, None, Side::Anybody) => Err(Error::invalid(
                "this netlink socket has no peer: say where to send with the attribute port, the port of another \
                 socket, or group, a multicast group",
            )),
            (None, None, _) => Ok(None),
            (_, Some(group), _) if group > u32::BITS => Err(Error::invalid(format!(
                "the group {group} cannot be sent to: an address has room for the groups 1 to {}",
                u32::BITS
            ))),
            (port, group, _) => Ok(Some((port.unwrap_or(0), group.unwrap_or(0)))),
        }
    }

    /// The kernel ignores without a word what does not begin with a whole header.
    fn check(&self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Err(Error::invalid("the kernel takes no empty netlink message (ENODATA)"));
        }
        if self.side == Side::Kernel && !matches!(wire::frames(data).next(), Some(Ok(_))) {
            return Err(Error::invalid(format!(
                "the {} bytes do not begin with a netlink message: struct nlmsghdr of 16 bytes, whose length covers \
                 no more than there is (netlink(7)); the kernel would ignore them",
                data.len()
            )));
        }
        Ok(())
    }

    /// The errnos of sendmsg(2) for netlink sockets.
    fn cannot_send(&self, errno: Errno, length: usize, to: Option<(u32, u32)>) -> Error {
        let port = match (to, self.side) {
            (Some((port, _)), _) | (None, Side::Port(port)) if port != 0 => Some(port),
            _ => None,
        };
        let attempt = match port {
            Some(port) => format!("send a message to port {port} of netlink family {}", self.family),
            None => format!("send a message to netlink family {}", self.family),
        };
        let gone = |kind, what: &str| Error::new(kind, format!("cannot {attempt}: {what} (ECONNREFUSED)"));
        match errno {
            Errno::MSGSIZE => Error::new(
                Kind::TooLarge,
                format!(
                    "cannot {attempt}: it has {length} bytes, and at most {} fit (EMSGSIZE); give a larger sndbuf",
                    self.max_message_size()
                ),
            ),
            Errno::CONNREFUSED if port.is_none() => {
                gone(Kind::NotFound, "the kernel does not serve the family")
            }
            Errno::CONNREFUSED if to.is_none() => gone(Kind::Closed, "the peer has gone"),
            Errno::CONNREFUSED => gone(
                Kind::NotFound,
                "no socket of this network namespace has it, or it is connected to another",
            ),
            Errno::PERM => Error::from_errno(errno, attempt).help(NEEDS_ADMIN),
            errno => socket_io::failed(errno, &attempt),
        }
    }
}

pub const NEEDS_ADMIN: &str = "in this family that takes CAP_NET_ADMIN in the network namespace";

fn u32_of(key: &str, value: &Value) -> Result<u32> {
    value.integer().and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
        Error::invalid(format!(
            "the attribute {key} must be a whole number (D-Bus type u), not one of type {}",
            value.signature()
        ))
    })
}

/// What the kernel says about the sender.
struct Sender {
    /// 0 is the kernel.
    port: u32,
    /// 0 is none: the message came to this socket alone.
    group: u32,
    pid: Option<u32>,
    uid: Option<u32>,
}

impl Sender {
    fn of(received: &Received) -> Self {
        let address = received.from.clone().and_then(|from| SocketAddrNetlink::try_from(from).ok());
        // Never without an address; if so, not the kernel.
        let port = address.map_or(u32::MAX, |address| address.pid());
        // An address has room for 32 groups; NETLINK_PKTINFO tells the others.
        let masked = address.map_or(0, |address| address.groups().checked_ilog2().map_or(0, |bit| bit + 1));
        let who = received.credentials;
        Self {
            port,
            group: received.group.unwrap_or(masked),
            pid: who.and_then(|who| who.pid),
            uid: who.map(|who| who.uid),
        }
    }
}

/// The words of SO_MEMINFO; zeros where the kernel is older than 4.12.
fn memory(fd: impl std::os::fd::AsFd) -> Vec<u32> {
    let bytes = socket_options::get(fd, SO_MEMINFO, 16 * size_of::<u32>()).unwrap_or_default();
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

/// How many messages the kernel had no room for.
fn dropped(fd: impl std::os::fd::AsFd) -> u64 {
    memory(fd).get(DROPS).copied().unwrap_or(0).into()
}

/// The groups that a socket receives, by name.
pub fn memberships(fd: impl std::os::fd::AsFd, family: Family) -> Result<Vec<String>> {
    // 1,024 groups; the kernel says when there are more.
    let bitmap = socket_options::get_of(fd, libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, 128)
        .attempted(|| "list the groups of a netlink socket")?;
    Ok(family.group_names(&bitmap))
}

/// The socket's own port; 0 where it has none yet.
pub fn port(socket: impl std::os::fd::AsFd) -> Result<u32> {
    let attempt = || "ask for the port of a netlink socket";
    let address = rustix::net::getsockname(socket).attempted(attempt)?;
    Ok(SocketAddrNetlink::try_from(address).attempted(attempt)?.pid())
}

impl Endpoint for NetlinkEndpoint {
    fn address(&self) -> Address {
        self.address.clone()
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Messages]
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn inspect(&self) -> Result<Dict> {
        let attempt = || "read the options of the socket";
        let memory = memory(&self.fd);
        let word = |n: usize| memory.get(n).copied().unwrap_or(0);
        let mut state = dict! {
            "family" => self.family.to_string(),
            "groups" => memberships(&self.fd, self.family)?,
            "port" => port(&self.fd)?,
            "inode" => fd::stat(&self.fd)?.st_ino,
            "sndbuf" => sockopt::socket_send_buffer_size(&self.fd).attempted(attempt)? as u64,
            "rcvbuf" => sockopt::socket_recv_buffer_size(&self.fd).attempted(attempt)? as u64,
            "queued" => u64::from(word(RMEM_ALLOC)),
            "dropped" => u64::from(word(DROPS)),
            "refused" => self.refused.load(Ordering::Relaxed),
        };
        match self.side {
            Side::Kernel => state.insert("peer".into(), "kernel".into()),
            Side::Port(port) => state.insert("peer".into(), port.to_string().into()),
            Side::Anybody => None,
        };
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        let own = fd::duplicate(&self.fd)?;
        let attempt = || "make the socket blocking for its caller";
        let flags = rustix::fs::fcntl_getfl(&own).attempted(attempt)?;
        rustix::fs::fcntl_setfl(&own, flags - OFlags::NONBLOCK).attempted(attempt)?;
        Ok(own)
    }

    fn messages(&self) -> Option<&dyn Messages> {
        Some(self)
    }
}

impl Messages for NetlinkEndpoint {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        if !message.fds.is_empty() {
            return Err(Error::not_supported("netlink messages carry no file descriptors; unix sockets do"));
        }
        let to = self.addressee(message.attributes)?;
        self.check(message.data)?;
        let address = to.map(|(port, group)| {
            let mask = if group == 0 { 0 } else { 1 << (group - 1) };
            SocketAddrAny::from(SocketAddrNetlink::new(port, mask))
        });
        match socket_messages::send(&self.fd, message.data, &[], address.as_ref()) {
            // It was sent to the group; nobody has port 0 of a family without a kernel side.
            Err(Errno::CONNREFUSED) if matches!(to, Some((0, 1..))) => Ok(Attempt::Done(())),
            sent => sent.map_err(|errno| self.cannot_send(errno, message.data.len(), to)),
        }
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

    fn max_message_size(&self) -> u64 {
        let size = sockopt::socket_send_buffer_size(&self.fd).unwrap_or(0) as u64;
        size.saturating_sub(SEND_OVERHEAD)
    }
}
