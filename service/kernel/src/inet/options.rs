//! The options of network sockets: one table with the key of each, what it stands for in
//! setsockopt(2) and which protocol has it. Create and Attach set from it, `Inspect()` reads from
//! it, and `Describe()` shows it.
//!
//! Options of the IP layer have one number for each family. An IPv6 socket that also speaks IPv4
//! gets both.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::{io::Errno, net::AddressFamily};

use crate::{Dict, Error, Kind, Parameter, Parameters, Result, Type, error::last_errno, socket_options};

/// What the scheme of an address says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn of(parameters: &Parameters) -> Self {
        if parameters.scheme == "udp" { Self::Udp } else { Self::Tcp }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where setsockopt(2) finds an option.
#[derive(Clone, Copy)]
enum Place {
    /// SOL_SOCKET.
    Socket(i32),
    /// IPPROTO_TCP.
    Tcp(i32),
    /// IPPROTO_IP and IPPROTO_IPV6.
    Ip { v4: i32, v6: i32 },
}

/// How the kernel wants the value.
#[derive(Clone, Copy)]
enum Form {
    Flag,
    Number,
    /// The buffer for what is sent, or for what is received.
    Buffer {
        sends: bool,
    },
    /// SO_LINGER.
    Linger,
    /// An interface's name.
    Name,
}

/// A row of the table.
#[derive(Clone, Copy)]
pub struct SocketOption {
    pub parameter: Parameter,
    /// The only protocol that has it; `None`: both.
    protocol: Option<Protocol>,
    place: Place,
    form: Form,
}

const fn row(
    key: &'static str,
    kind: Type,
    protocol: Option<Protocol>,
    place: Place,
    form: Form,
    summary: &'static str,
) -> SocketOption {
    SocketOption { parameter: Parameter::new(key, kind, summary), protocol, place, form }
}

const TCP: Option<Protocol> = Some(Protocol::Tcp);
const UDP: Option<Protocol> = Some(Protocol::Udp);
const SECONDS: Type = Type::U32 { min: 1, max: 32_767 };
const BYTE: Type = Type::U32 { min: 0, max: 255 };
const BUFFER: Type = Type::Size { min: 1, max: (i32::MAX / 2) as u64 };

/// The table.
#[rustfmt::skip]
pub const OPTIONS: [SocketOption; 21] = [
    row("reuseaddr", Type::Bool, None, Place::Socket(libc::SO_REUSEADDR), Form::Flag,
        "Bind although connections of the port's last user linger (SO_REUSEADDR); listeners and group members: true unless given"),
    row("reuseport", Type::Bool, None, Place::Socket(libc::SO_REUSEPORT), Form::Flag,
        "Share the port with other sockets of the same user that say so too (SO_REUSEPORT)"),
    row("nodelay", Type::Bool, TCP, Place::Tcp(libc::TCP_NODELAY), Form::Flag,
        "tcp: send small segments at once (TCP_NODELAY)"),
    row("keepalive", Type::Bool, TCP, Place::Socket(libc::SO_KEEPALIVE), Form::Flag,
        "tcp: ask a silent peer whether it is still there (SO_KEEPALIVE)"),
    row("keepalive-idle", SECONDS, TCP, Place::Tcp(libc::TCP_KEEPIDLE), Form::Number,
        "tcp: seconds of silence before the first question (TCP_KEEPIDLE)"),
    row("keepalive-interval", SECONDS, TCP, Place::Tcp(libc::TCP_KEEPINTVL), Form::Number,
        "tcp: seconds between questions (TCP_KEEPINTVL)"),
    row("keepalive-count", Type::U32 { min: 1, max: 127 }, TCP, Place::Tcp(libc::TCP_KEEPCNT), Form::Number,
        "tcp: questions without answer before the connection is given up (TCP_KEEPCNT)"),
    row("user-timeout", Type::U32 { min: 0, max: i32::MAX as u32 }, TCP, Place::Tcp(libc::TCP_USER_TIMEOUT), Form::Number,
        "tcp: milliseconds that sent data may stay unacknowledged (TCP_USER_TIMEOUT)"),
    row("linger", Type::U32 { min: 0, max: 0 }, TCP, Place::Socket(libc::SO_LINGER), Form::Linger,
        "tcp: 0 makes Close reset the connection instead of sending the rest in the background (SO_LINGER)"),
    row("sndbuf", BUFFER, None, Place::Socket(libc::SO_SNDBUF), Form::Buffer { sends: true },
        "Bytes of the send buffer (SO_SNDBUF); the kernel doubles it for its bookkeeping"),
    row("rcvbuf", BUFFER, None, Place::Socket(libc::SO_RCVBUF), Form::Buffer { sends: false },
        "Bytes of the receive buffer (SO_RCVBUF); the kernel doubles it for its bookkeeping"),
    row("tos", BYTE, None, Place::Ip { v4: libc::IP_TOS, v6: libc::IPV6_TCLASS }, Form::Number,
        "Type of service or traffic class of what is sent: DSCP times 4 (IP_TOS, IPV6_TCLASS)"),
    row("ttl", Type::U32 { min: 1, max: 255 }, None, Place::Ip { v4: libc::IP_TTL, v6: libc::IPV6_UNICAST_HOPS }, Form::Number,
        "Hops that a packet may take (IP_TTL, IPV6_UNICAST_HOPS)"),
    row("mark", Type::U32 { min: 0, max: u32::MAX }, None, Place::Socket(libc::SO_MARK), Form::Number,
        "Mark for routing and filters (SO_MARK); needs CAP_NET_ADMIN"),
    row("device", Type::Text, None, Place::Socket(libc::SO_BINDTODEVICE), Form::Name,
        "Use only this network interface (SO_BINDTODEVICE)"),
    row("freebind", Type::Bool, None, Place::Ip { v4: libc::IP_FREEBIND, v6: libc::IPV6_FREEBIND }, Form::Flag,
        "Bind to an address that no interface has yet (IP_FREEBIND)"),
    row("broadcast", Type::Bool, UDP, Place::Socket(libc::SO_BROADCAST), Form::Flag,
        "udp: allow sending to broadcast addresses (SO_BROADCAST)"),
    row("recverr", Type::Bool, UDP, Place::Ip { v4: libc::IP_RECVERR, v6: libc::IPV6_RECVERR }, Form::Flag,
        "udp: report every ICMP error with the destination it is about, also without connection (IP_RECVERR)"),
    row("timestamps", Type::Bool, UDP, Place::Socket(libc::SO_TIMESTAMPNS), Form::Flag,
        "udp: received messages say when the kernel got them, in the attribute \"time\" (SO_TIMESTAMPNS)"),
    row("loop", Type::Bool, UDP, Place::Ip { v4: libc::IP_MULTICAST_LOOP, v6: libc::IPV6_MULTICAST_LOOP }, Form::Flag,
        "udp: this machine's group members receive what is sent too (IP_MULTICAST_LOOP)"),
    row("multicast-ttl", BYTE, UDP, Place::Ip { v4: libc::IP_MULTICAST_TTL, v6: libc::IPV6_MULTICAST_HOPS }, Form::Number,
        "udp: hops that a packet to a group may take (IP_MULTICAST_TTL); 1 stays on the local network"),
];

/// The keys of the table behind those that a mechanism's verb has for itself.
pub const fn with_options<const N: usize, const M: usize>(own: [Parameter; N]) -> [Parameter; M] {
    assert!(M == N + OPTIONS.len());
    let mut all = [OPTIONS[0].parameter; M];
    let mut n = 0;
    while n < M {
        all[n] = if n < N { own[n] } else { OPTIONS[n - N].parameter };
        n += 1;
    }
    all
}

impl SocketOption {
    fn belongs_to(&self, protocol: Protocol) -> bool {
        self.protocol.is_none_or(|only| only == protocol)
    }

    /// Level and number for a socket of this family; an IPv6 socket may have a second pair.
    fn place(&self, family: AddressFamily) -> ((i32, i32), Option<(i32, i32)>) {
        match self.place {
            Place::Socket(name) => ((libc::SOL_SOCKET, name), None),
            Place::Tcp(name) => ((libc::IPPROTO_TCP, name), None),
            Place::Ip { v4, .. } if family == AddressFamily::INET => ((libc::IPPROTO_IP, v4), None),
            Place::Ip { v4, v6 } => ((libc::IPPROTO_IPV6, v6), Some((libc::IPPROTO_IP, v4))),
        }
    }

    fn set(&self, fd: BorrowedFd<'_>, family: AddressFamily, parameters: &Parameters) -> Result<()> {
        let key = self.parameter.key;
        let ((level, name), second) = self.place(family);
        let done = match self.form {
            Form::Flag | Form::Number => {
                // A mark may use all 32 bits; the kernel reads it as it was written.
                let number = parameters.u32(key).map_or(parameters.bool(key).into(), |n| n.cast_signed());
                if let Some((level, name)) = second {
                    // Only for the IPv4 that passes through; the kernel refuses some on IPv6-only sockets.
                    let _ = set(fd, level, name, &number);
                }
                set(fd, level, name, &number)
            }
            Form::Buffer { sends } => {
                let size = parameters.size(key);
                let (send, receive) = if sends { (size, None) } else { (None, size) };
                return socket_options::set_buffers(fd, send, receive);
            }
            Form::Linger => set(fd, level, name, &libc::linger { l_onoff: 1, l_linger: 0 }),
            Form::Name => {
                let device = parameters.text(key).unwrap_or_default();
                if device.is_empty() || device.len() >= libc::IFNAMSIZ {
                    return Err(Error::invalid(format!(
                        "the key {key:?} must be an interface's name of 1 to {} bytes, not {device:?}",
                        libc::IFNAMSIZ - 1
                    )));
                }
                let mut bytes = [0u8; libc::IFNAMSIZ];
                bytes[..device.len()].copy_from_slice(device.as_bytes());
                set(fd, level, name, &bytes)
            }
        };
        done.map_err(|errno| self.refused(errno))
    }

    fn refused(&self, errno: Errno) -> Error {
        let key = self.parameter.key;
        let error = Error::from_errno(errno, format!("set the socket option {key:?}"));
        match (key, errno) {
            ("device", Errno::NODEV) => {
                Error { kind: Kind::NotFound, ..error }.help("`ip link` lists the interfaces")
            }
            ("mark", Errno::PERM) => error.help("SO_MARK needs CAP_NET_ADMIN or CAP_NET_RAW"),
            ("device", Errno::PERM) => error.help("changing SO_BINDTODEVICE needs CAP_NET_RAW"),
            _ => error,
        }
    }
}

/// Refuses keys of the other protocol.
pub fn check(parameters: &Parameters, protocol: Protocol) -> Result<()> {
    let foreign =
        OPTIONS.iter().find(|option| parameters.has(option.parameter.key) && !option.belongs_to(protocol));
    foreign.map_or(Ok(()), |option| Err(wrong_protocol(option.parameter.key, protocol)))
}

/// The error for a key that only the other protocol has.
pub fn wrong_protocol(key: &str, protocol: Protocol) -> Error {
    let other = match protocol {
        Protocol::Tcp => Protocol::Udp,
        Protocol::Udp => Protocol::Tcp,
    };
    Error::invalid(format!("the key {key:?} belongs to {}, not to {}", other.name(), protocol.name()))
}

/// Sets what was given; whatever was not keeps the kernel's default.
pub fn apply(fd: impl AsFd, family: AddressFamily, parameters: &Parameters) -> Result<()> {
    let given = OPTIONS.iter().filter(|option| parameters.has(option.parameter.key));
    given.into_iter().try_for_each(|option| option.set(fd.as_fd(), family, parameters))
}

/// The options as the kernel has them now, under their keys.
pub fn read(fd: impl AsFd, family: AddressFamily, protocol: Protocol) -> Dict {
    let fd = fd.as_fd();
    let mut found = Dict::new();
    for option in OPTIONS.iter().filter(|option| option.belongs_to(protocol)) {
        let ((level, name), _) = option.place(family);
        let value = match option.form {
            Form::Flag => number(fd, level, name).ok().map(|n| (n != 0).into()),
            Form::Number => number(fd, level, name).ok().map(|n| n.cast_unsigned().into()),
            Form::Buffer { .. } => number(fd, level, name).ok().map(|n| u64::try_from(n).unwrap_or(0).into()),
            Form::Linger => match rustix::net::sockopt::socket_linger(fd) {
                Ok(Some(time)) => Some(u32::try_from(time.as_secs()).unwrap_or(u32::MAX).into()),
                _ => None,
            },
            Form::Name => {
                let mut name_bytes = [0u8; libc::IFNAMSIZ];
                let length = bytes(fd, level, name, &mut name_bytes).unwrap_or(0);
                let text = String::from_utf8_lossy(&name_bytes[..length]).trim_end_matches('\0').to_owned();
                (!text.is_empty()).then(|| text.into())
            }
        };
        if let Some(value) = value {
            found.insert(option.parameter.key.to_owned(), value);
        }
    }
    found
}

/// setsockopt(2) with a value that is plain data, for the options that rustix does not have.
pub fn set<T: Copy>(fd: impl AsFd, level: i32, name: i32, value: &T) -> rustix::io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// getsockopt(2) for a whole number.
pub fn number(fd: impl AsFd, level: i32, name: i32) -> rustix::io::Result<i32> {
    let mut value = [0u8; 4];
    // Some options of the IP layer answer with one byte.
    match bytes(fd, level, name, &mut value)? {
        1 => Ok(value[0].into()),
        _ => Ok(i32::from_ne_bytes(value)),
    }
}

/// getsockopt(2) into a buffer; says how many bytes the kernel wrote.
pub fn bytes(fd: impl AsFd, level: i32, name: i32, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    // A buffer of this crate is a few hundred bytes.
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `buffer`; the kernel writes at most `length`.
    let result = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &mut length)
    };
    if result == 0 { Ok((length as usize).min(buffer.len())) } else { Err(last_errno()) }
}
