//! Network sockets, ip(7), ipv6(7), tcp(7), udp(7): `tcp:` listens or connects, `udp:` receives
//! or sends datagrams, to hosts and to groups.
//!
//! This file is the row and the keys. What a socket does once it is there is in `inet/tcp.rs` and
//! `inet/udp.rs` beside `socket_io.rs`, its options are a table in `inet/options.rs`, connecting
//! is `inet/connect.rs`, and the list of the machine's sockets is `inet/diag.rs`.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::{
    Ability, Lack, Descriptor, Dict, Opening, Parameter, Parameters, Result, Type,
    dialed::Dialed,
    error::Attempted,
    inet::address::Family,
    inet::bind::{self, MPTCP},
    inet,
    inet::options::{self, OPTIONS, Protocol},
    mechanism::{Adoption, Column},
    proc,
    shape::Shape,
};
pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "inet",
    schemes: &["tcp", "udp"],
    summary: "Network sockets: TCP listeners and connections, UDP and multicast (ip(7), tcp(7), udp(7))",
    shapes: &[Shape::Stream, Shape::Listener, Shape::Messages],
    create_parameters: &CREATE,
    attach_parameters: &ATTACH,
    columns: &[
        Column { key: "protocol", kind: "s", summary: "tcp or udp" },
        Column { key: "family", kind: "s", summary: "ipv4 or ipv6" },
        Column { key: "state", kind: "s", summary: "State, named as in ss(8): listening, established, time-wait, …; unconnected for udp" },
        Column { key: "local-host", kind: "s", summary: "Address that it is bound to" },
        Column { key: "local-port", kind: "u", summary: "Port that it is bound to" },
        Column { key: "peer-host", kind: "s", summary: "Address that it is connected to" },
        Column { key: "peer-port", kind: "u", summary: "Port that it is connected to" },
        Column { key: "address", kind: "s", summary: "Address for Attach, where somebody listens or receives" },
        Column { key: "inode", kind: "t", summary: "Inode number of the socket; 0 where no process has it any more" },
        Column { key: "owner", kind: "u", summary: "User id of the process that made it" },
        Column { key: "receive-queue", kind: "u", summary: "Bytes to be read; for a listener, connections to be accepted" },
        Column { key: "send-queue", kind: "u", summary: "Bytes not yet acknowledged; for a listener, its backlog" },
        Column { key: "interface", kind: "s", summary: "Network interface that it is bound to" },
        Column { key: "v6only", kind: "b", summary: "Whether an IPv6 socket refuses IPv4" },
        Column { key: "holders", kind: "aa{sv}", summary: "Processes that hold it: pid, command, fd, access" },
    ],
    open_parameters: &[
        Parameter::new("end", Type::Word(&["own"]), "Always the socket itself, as a duplicate").default("own"),
    ],
    create,
    anonymous: |_| false,
    attach,
    adopt,
    list: || Ok(inet::diag::rows()?.into()),
    limits,
    available,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Permissions,
            "ports have none: whoever reaches the address may connect; a `unix` socket with a path has permissions",
        ),
        Lack::new(
            Ability::Remove,
            "a port is no name in a file system; `Close` gives it back",
        ),
    ],
    reference: REFERENCE,
};
const PORT: Type = Type::U32 { min: 0, max: 65_535 };
const FAMILY: Parameter =
    Parameter::new("family", Type::Word(Family::WORDS), "Which addresses of the host to use").default("any");
const GROUP: Parameter = Parameter::new("group", Type::Text, "udp: multicast group to join, or with Attach to send to");
const INTERFACE: Parameter =
    Parameter::new("interface", Type::Text, "udp: network interface of the group, its name or number; the routes choose unless given");
const PROTOCOL: Parameter =
    Parameter::new("protocol", Type::Word(&["tcp", "mptcp"]), "tcp: mptcp uses several paths at once (RFC 8684)");

#[rustfmt::skip]
static CREATE: [Parameter; 10 + OPTIONS.len()] = options::with_options([
    Parameter::new("host", Type::Text, "Name or address to bind to; loopback, or the group, unless given"),
    Parameter::new("port", PORT, "Port to bind to; 0: the kernel chooses").default("0"),
    FAMILY,
    Parameter::new("backlog", Type::U32 { min: 0, max: i32::MAX as u32 }, "tcp: connections that may wait to be accepted; at most net.core.somaxconn"),
    Parameter::new("v6only", Type::Bool, "Refuse IPv4 on an IPv6 socket (IPV6_V6ONLY)").default("false"),
    Parameter::new("range", Type::Text, "Networks whose connections or datagrams are taken, as 192.0.2.0/24+fe80::/10; others are dropped"),
    GROUP,
    Parameter::new("source", Type::Text, "udp: take only what this host sends to the group"),
    INTERFACE,
    PROTOCOL,
]);

#[rustfmt::skip]
static ATTACH: [Parameter; 9 + OPTIONS.len()] = options::with_options([
    Parameter::new("host", Type::Text, "Name or address to connect to"),
    Parameter::new("port", PORT, "Port to connect to").required(),
    FAMILY,
    GROUP,
    INTERFACE,
    Parameter::new("local-host", Type::Text, "Address of this machine to connect from"),
    Parameter::new("local-port", PORT, "Port to connect from; 0: the kernel chooses").default("0"),
    Parameter::new("timeout", Type::U32 { min: 1, max: 300_000 }, "tcp: milliseconds until connecting is given up, the search for the host included").default("20000"),
    PROTOCOL,
]);

const REFERENCE: &str = "\
`Create` with `tcp:` listens: every connection that is accepted is an endpoint of its own, a stream.
`Create` with `udp:` receives datagrams. Without `host` both bind to loopback, so that nothing is open to
the network by accident; `host=0.0.0.0` means every IPv4 address, `host=::` every address of both families
(`v6only=true`: only IPv6, whatever net.ipv6.bindv6only says). `port=0` lets the kernel choose; the
endpoint's `Address` tells. A host may be a name, and of its addresses the first that can be bound is taken.
IPv6 addresses may carry their interface: `fe80::1%eth0`, in an address written `fe80::1%25eth0`.

`Attach` with `tcp:` connects. The host's addresses are tried with the families taking turns, the next one
a quarter of a second later or as soon as one fails, and the first that answers wins (RFC 8305). When
none does, the error names every address with its reason. `Attach` with `udp:` makes a socket that is
connected: it sends to its peer and receives from nobody else. Connecting a datagram socket sends nothing,
so it succeeds whether somebody receives there or not.

A **stream** carries bytes; `Shutdown(write)` shows the peer the end of the stream. **Datagrams** are
messages of at most 65,507 bytes (IPv4) or 65,527 bytes (IPv6); they come whole, empty ones too, and may be
lost, doubled or change their order on the way. Every received one has the attribute `address`, the
sender's, written `udp:host=192.0.2.1,port=5000`; with `timestamps=true` also `time`, in microseconds since
the epoch. `Send` takes the attribute `address` in that form or as `192.0.2.1:5000` and `[fe80::1%eth0]:5000`;
literals only, as a search for a name may take long. A socket that has a peer or a group needs none.

`group` joins a multicast group, from any sender or from `source` only. The socket is bound to the group
unless `host` is given, so it receives what is sent to the group and nothing else, and several members on
one machine share the port. `Send` goes to the group. `Attach` with `group` sends to the group without joining.

What the network says about a datagram that was not delivered (ICMP) is the error of the next operation on
the socket, for a connected socket at once, for others with `recverr=true`, which also names the
destination and who said so (ip(7), IP_RECVERR).

`range` filters by the sender: connections from elsewhere are closed and datagrams are dropped, both
counted in `Inspect()` under `refused`. That is a filter and no proof: a UDP sender may forge its address.

`Open` hands over a duplicate of the socket. A socket has one open file description, so the
caller shares its flags with the service: sockets are blocking ones, and the service says MSG_DONTWAIT
in every call. Only a listener is switched to O_NONBLOCK, as accept(2) has no such flag. A caller who reads
takes the data away from the service. `Adopt` takes listening and connected TCP sockets and any UDP socket.

`Inspect()` has both addresses, `options` as they are set, the buffers' use and what found no room
(`dropped`), and for TCP the state, the queues and under `tcp` the kernel's measurements (TCP_INFO): times in
microseconds, sizes in bytes, windows in segments. Connections inherit the options of their listener.

`List()` shows every TCP and UDP socket of the service's network namespace, through sock_diag(7) or from
/proc/net. The kernel shows sockets of all users to everybody, but the processes that hold them only to those
who may look into the process.

| error | when |
| --- | --- |
| `InvalidArgument` | a key of the other protocol; a group that is none; a range that is no network; a link-local address without its interface; `Send` without destination |
| `Exists` | the port is taken; the text names who has it (EADDRINUSE) |
| `NotFound` | nobody listens at the address (ECONNREFUSED); the host is unknown, in the resolver's words; no interface has the address or name (EADDRNOTAVAIL, ENODEV) |
| `PermissionDenied` | a port below net.ipv4.ip_unprivileged_port_start (EACCES); a broadcast address without `broadcast`; a packet filter's rule (EPERM); `mark` without CAP_NET_ADMIN |
| `Timeout` | no answer within `timeout`; the text names the milliseconds |
| `LimitExceeded` | `sndbuf` or `rcvbuf` beyond net.core.wmem_max or rmem_max, which the kernel would cut silently; no free port in net.ipv4.ip_local_port_range; too many groups |
| `TooLarge` | a message that no datagram can carry (EMSGSIZE) |
| `Closed` | the peer has gone or does not answer any more; a datagram was refused (ECONNREFUSED) |
| `Unavailable` | the kernel has no IPv6, or no Multipath TCP |
| `Errno.ENETUNREACH`, `Errno.EHOSTUNREACH` | there is no route, or the network says that there is no such host |

Not offered: raw, packet and ping sockets, because the service does no more than an ordinary program of the
caller could; a positive `linger`, because closing would then wait, which the service never does; SCTP
and DCCP, because kernels are commonly built without them; vsock(7), because it is an address family of its own
with its own addresses: it belongs into a mechanism beside this one, on the same helpers; TLS, because keys and
certificates need a policy that is not the kernel's: put a TLS proxy on a unix socket in front; urgent
data (MSG_OOB), because RFC 6093 advises against it.";

fn create(parameters: &Parameters) -> Result<Opening> {
    match check(parameters)? {
        Protocol::Tcp => inet::tcp::listen(parameters),
        Protocol::Udp => inet::udp::bind(parameters),
    }
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    match check(parameters)? {
        Protocol::Tcp => Dialed::open(parameters, inet::tcp::connect),
        Protocol::Udp => inet::udp::connect(parameters),
    }
}

/// Refuses keys that the scheme does not have.
fn check(parameters: &Parameters) -> Result<Protocol> {
    let protocol = Protocol::of(parameters);
    let foreign: &[&str] = match protocol {
        Protocol::Tcp => &["group", "source", "interface"],
        Protocol::Udp => &["backlog", "protocol"],
    };
    if let Some(key) = foreign.iter().find(|key| parameters.has(key)) {
        return Err(options::wrong_protocol(key, protocol));
    }
    options::check(parameters, protocol)?;
    Ok(protocol)
}

fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    let of = |fd: &OwnedFd| -> rustix::io::Result<Option<Protocol>> {
        let family = sockopt::socket_domain(fd)?;
        if family != AddressFamily::INET && family != AddressFamily::INET6 {
            return Ok(None);
        }
        let kind = sockopt::socket_type(fd)?;
        let protocol = sockopt::socket_protocol(fd)?.map_or(0, |protocol| protocol.as_raw().get());
        Ok(match (kind, protocol) {
            (SocketType::STREAM, TCP | MPTCP) => Some(Protocol::Tcp),
            // Not ICMP's, which have the same type.
            (SocketType::DGRAM, UDP) => Some(Protocol::Udp),
            _ => None,
        })
    };
    // Whatever is no socket answers with an error.
    match of(&adopted) {
        Ok(Some(Protocol::Tcp)) => inet::tcp::adopt(adopted).map(Adoption::Taken),
        Ok(Some(Protocol::Udp)) => inet::udp::adopt(adopted).map(Adoption::Taken),
        Ok(None) | Err(_) => Ok(Adoption::Refused(adopted)),
    }
}

const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;

fn limits() -> Dict {
    let mut limits = Dict::new();
    for (key, file) in [
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net.core.rmem_max", "net/core/rmem_max"),
        ("net.core.wmem_max", "net/core/wmem_max"),
        ("net.ipv4.ip_unprivileged_port_start", "net/ipv4/ip_unprivileged_port_start"),
        ("net.ipv4.tcp_max_syn_backlog", "net/ipv4/tcp_max_syn_backlog"),
        ("net.ipv4.igmp_max_memberships", "net/ipv4/igmp_max_memberships"),
    ] {
        if let Some(value) = proc::sysctl(file) {
            limits.insert(key.to_owned(), value.into());
        }
    }
    if let Some((low, high)) = bind::port_range() {
        limits.insert("net.ipv4.ip_local_port_range".into(), vec![low, high].into());
    }
    limits.extend(in_use());
    limits
}

/// How many sockets there are: the lines `TCP: inuse 5 …` of /proc/net/sockstat and sockstat6.
fn in_use() -> Dict {
    let mut found = Dict::new();
    for file in ["sockstat", "sockstat6"] {
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        for line in table.lines() {
            let Some((name, rest)) = line.split_once(": inuse ") else { continue };
            let count = rest.split_whitespace().next().and_then(|count| count.parse::<u64>().ok());
            if let (Some(count), "TCP" | "UDP" | "TCP6" | "UDP6") = (count, name) {
                found.insert(format!("{}-sockets", name.to_lowercase()), count.into());
            }
        }
    }
    found
}

fn available() -> Result<()> {
    rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map(drop)
        .attempted(|| "create a network socket")
}
