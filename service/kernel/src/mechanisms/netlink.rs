//! Netlink sockets, netlink(7): messages to and from the kernel, and between processes, as bytes.
//!
//! `Attach` is for what is there: the kernel's side of a family, with its multicast groups, or the port
//! of another process (`usersock`). `Create` makes what others can send to: a port. The names of families
//! and groups are in `netlink/family.rs`, the endpoint is in `netlink/endpoint.rs`, the list of the
//! machine's sockets in `netlink/list.rs`. Decoded events are not this file's business: they are the
//! interface `org.example.IPC.Netlink`.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{AddressFamily, Protocol, RawProtocol, SocketFlags, SocketType, netlink::SocketAddrNetlink, sockopt},
};

use crate::{
    Ability, Lack, Address, Descriptor, Dict, Error, Kind, Opening, Parameter, Parameters, Result, Type,
    error::Attempted,
    fd,
    mechanism::{Adoption, Column},
    netlink::{
        endpoint::{self, NEEDS_ADMIN, NetlinkEndpoint, Side},
        family::Family,
        list,
    },
    parameters, proc,
    shape::Shape,
    socket_options,
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "netlink",
    schemes: &["netlink"],
    summary: "Netlink sockets: requests to the kernel, its answers and events as bytes, and broadcast between processes (netlink(7))",
    shapes: &[Shape::Messages],
    create_parameters: &CREATE,
    attach_parameters: &ATTACH,
    columns: &[
        Column { key: "family", kind: "s", summary: "Family, by name where it has one" },
        Column { key: "port", kind: "u", summary: "Its port; 0 is the kernel" },
        Column { key: "kernel", kind: "b", summary: "Whether it is the kernel's side of the family" },
        Column { key: "groups", kind: "as", summary: "Multicast groups that it receives, by name where they have one" },
        Column { key: "peer-port", kind: "u", summary: "Port that it is connected to" },
        Column { key: "address", kind: "s", summary: "Address for Attach: the family's, or of a usersock port" },
        Column { key: "receive-queue", kind: "u", summary: "Bytes of memory that waiting messages take" },
        Column { key: "send-queue", kind: "u", summary: "Bytes of memory that messages take which it has sent" },
        Column { key: "dropped", kind: "t", summary: "Messages that found no room in its receive buffer" },
        Column { key: "inode", kind: "t", summary: "Inode number of the socket" },
        Column { key: "holders", kind: "aa{sv}", summary: "Processes that hold it: pid, command, fd, access" },
    ],
    open_parameters: &[
        Parameter::new("end", Type::Word(&["own"]), "Always the socket itself, as a duplicate").default("own"),
    ],
    create,
    anonymous: |_| false,
    attach,
    adopt,
    list: || Ok(list::rows()?.into()),
    limits,
    available,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Permissions,
            "netlink sockets have none: the kernel looks at the rights of who asks",
        ),
        Lack::new(
            Ability::Remove,
            "a netlink socket has a port and no name; `Close` gives it back",
        ),
    ],
    reference: include_str!("netlink.md"),
};

const FAMILY: Parameter =
    Parameter::new("family", Type::Text, "Family by name (route, usersock, kobject-uevent, …) or number").required();
const GROUPS: Parameter =
    Parameter::new("groups", Type::Names, "Multicast groups to receive, by name (link, ipv4-ifaddr, …) or number");
/// What SO_SNDBUF takes: the kernel doubles it in an int.
const BUFFER: Type = Type::Size { min: 1, max: (i32::MAX / 2) as u64 };
const PORT: Type = Type::U32 { min: 1, max: u32::MAX };

/// Of both tables, behind family and port.
#[rustfmt::skip]
const COMMON: [Parameter; 3] = [
    GROUPS,
    Parameter::new("rcvbuf", BUFFER, "Receive buffer in bytes; what finds no room in it is lost"),
    Parameter::new("sndbuf", BUFFER, "Send buffer in bytes; it bounds the size of a message"),
];

static CREATE: [Parameter; 5] = parameters::joined(
    [FAMILY, Parameter::new("port", PORT, "Port to bind; the kernel chooses unless given")],
    COMMON,
);

#[rustfmt::skip]
static ATTACH: [Parameter; 7] = parameters::joined(
    [
        FAMILY,
        Parameter::new("port", PORT, "usersock: port of the process to send to and receive from"),
        Parameter::new("strict", Type::Bool, "Have the kernel check requests strictly and filter dumps (NETLINK_GET_STRICT_CHK)").default("false"),
        Parameter::new("all-nsids", Type::Bool, "Also events of the network namespaces that have an id here (NETLINK_LISTEN_ALL_NSID); takes CAP_NET_BROADCAST").default("false"),
    ],
    COMMON,
);

fn family(parameters: &Parameters) -> Result<Family> {
    Family::parse(parameters.text("family").unwrap_or_default())
}

fn create(parameters: &Parameters) -> Result<Opening> {
    let family = family(parameters)?;
    if family != Family::USERSOCK {
        return Err(Error::invalid(format!(
            "Create makes a port for other processes to send to, in family usersock; the other end of {family} is the \
             kernel, which is there: use Attach"
        )));
    }
    let socket = new_socket(family, parameters)?;
    let wanted = parameters.u32("port").unwrap_or(0);
    bind(&socket, wanted).map_err(|errno| match errno {
        Errno::ADDRINUSE => Error::new(
            Kind::Exists,
            format!(
                "cannot bind port {wanted} of netlink family {family}: another socket of this network namespace has it \
                 (EADDRINUSE); Attach sends to it"
            ),
        ),
        errno => Error::from_errno(errno, format_args!("bind port {wanted} of netlink family {family}")),
    })?;
    join(&socket, family, parameters)?;
    let address = port_address(family, endpoint::port(&socket)?);
    Ok(NetlinkEndpoint::new(socket, family, Side::Anybody, address).into())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let family = family(parameters)?;
    let port = parameters.u32("port");
    let side = match port {
        Some(_) if family != Family::USERSOCK => {
            return Err(Error::invalid(format!(
                "the key \"port\" is for family usersock; the other end of {family} is the kernel"
            )));
        }
        None if family == Family::USERSOCK => {
            return Err(Error::invalid(
                "the key \"port\" is missing: family usersock has no kernel side; to receive, use Create",
            ));
        }
        Some(port) => {
            if !list::exists(family, port)? {
                return Err(Error::new(
                    Kind::NotFound,
                    format!("no socket of this network namespace has port {port} of netlink family {family}"),
                ));
            }
            Side::Port(port)
        }
        None => Side::Kernel,
    };
    let socket = new_socket(family, parameters)?;
    let attempt = || format!("connect to netlink family {family}");
    bind(&socket, 0).attempted(attempt)?;
    // From then on the kernel refuses what others send to this port.
    fd::retry(|| rustix::net::connect(&socket, &SocketAddrNetlink::new(port.unwrap_or(0), 0))).attempted(attempt)?;
    let options: Vec<_> = SETTABLE.iter().filter(|(key, _)| parameters.bool(key)).collect();
    for (key, option) in &options {
        socket_options::set_int(&socket, libc::SOL_NETLINK, *option, 1)
            .attempted(|| format!("set {key} for netlink family {family}"))?;
    }
    join(&socket, family, parameters)?;
    let address = match side {
        Side::Port(port) => port_address(family, port),
        _ => kernel_address(family, &endpoint::memberships(&socket, family)?),
    };
    let address = options.iter().fold(address, |address, (key, _)| address.with(key, "true"));
    Ok(NetlinkEndpoint::new(socket, family, side, address).into())
}

/// The keys of Attach that are options of netlink(7).
const SETTABLE: [(&str, libc::c_int); 2] =
    [("strict", libc::NETLINK_GET_STRICT_CHK), ("all-nsids", libc::NETLINK_LISTEN_ALL_NSID)];

fn port_address(family: Family, port: u32) -> Address {
    Address::new("netlink").with("family", family.to_string()).with("port", port.to_string())
}

fn kernel_address(family: Family, groups: &[String]) -> Address {
    let address = Address::new("netlink").with("family", family.to_string());
    if groups.is_empty() { address } else { address.with("groups", groups.join("+")) }
}

/// A socket that tells everything about its messages.
fn new_socket(family: Family, parameters: &Parameters) -> Result<OwnedFd> {
    let attempt = || format!("create a socket of netlink family {family}");
    let protocol = RawProtocol::new(family.0.into()).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol);
    let socket = socket.map_err(|errno| match errno {
        Errno::PROTONOSUPPORT => Error::new(
            Kind::NotFound,
            format!("cannot {}: this kernel does not have the family, or its module (EPROTONOSUPPORT)", attempt()),
        ),
        errno => Error::from_errno(errno, attempt()),
    })?;
    socket_options::set_buffers(&socket, parameters.size("sndbuf"), parameters.size("rcvbuf"))?;
    sockopt::set_socket_passcred(&socket, true).attempted(attempt)?;
    for option in [libc::NETLINK_PKTINFO, libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        socket_options::set_int(&socket, libc::SOL_NETLINK, option, 1).attempted(attempt)?;
    }
    Ok(socket)
}

fn bind(socket: &OwnedFd, port: u32) -> rustix::io::Result<()> {
    rustix::net::bind(socket, &SocketAddrNetlink::new(port, 0))
}

/// Joins the multicast groups. The errnos of NETLINK_ADD_MEMBERSHIP.
fn join(socket: &OwnedFd, family: Family, parameters: &Parameters) -> Result<()> {
    for name in parameters.texts("groups").unwrap_or_default() {
        let group = family.group(name)?;
        let attempt = || format!("receive the group {name} of netlink family {family}");
        let number = i32::try_from(group).unwrap_or(i32::MAX);
        let joined =
            socket_options::set_int(socket, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, number);
        joined.map_err(|errno| match errno {
            Errno::INVAL | Errno::NOENT => Error::new(
                Kind::NotFound,
                format!("cannot {}: this kernel has no such group ({})", attempt(), crate::error::name(errno)),
            ),
            Errno::PERM | Errno::ACCESS => Error::from_errno(errno, attempt()).help(NEEDS_ADMIN),
            errno => Error::from_errno(errno, attempt()),
        })?;
    }
    Ok(())
}

/// Takes any netlink socket as it is: its options stay, as its giver may use it, too.
fn adopt(adopted: OwnedFd) -> Result<Adoption> {
    // ENOTSOCK, or a kind of fd that knows no such call.
    if !sockopt::socket_domain(&adopted).is_ok_and(|domain| domain == AddressFamily::NETLINK) {
        return Ok(Adoption::Refused(adopted));
    }
    let attempt = || "examine a netlink socket";
    let protocol = sockopt::socket_protocol(&adopted).attempted(attempt)?;
    let number = protocol.map_or(0, |protocol| protocol.as_raw().get());
    let family = Family(u8::try_from(number).map_err(|_| Error::not_supported("it is of no netlink family"))?);
    let peer = rustix::net::getpeername(&adopted).ok().flatten();
    let peer = peer.and_then(|peer| SocketAddrNetlink::try_from(peer).ok()).map_or(0, |peer| peer.pid());
    let side = match peer {
        0 if family == Family::USERSOCK => Side::Anybody,
        0 => Side::Kernel,
        port => Side::Port(port),
    };
    let address = match side {
        Side::Kernel => kernel_address(family, &endpoint::memberships(&adopted, family)?),
        Side::Port(port) => port_address(family, port),
        Side::Anybody => port_address(family, endpoint::port(&adopted)?),
    };
    Ok(Adoption::Taken(Box::new(NetlinkEndpoint::new(adopted, family, side, address))))
}

fn limits() -> Dict {
    let mut limits = Dict::new();
    for name in ["rmem_default", "rmem_max", "wmem_default", "wmem_max"] {
        if let Some(value) = proc::sysctl(&format!("net/core/{name}")) {
            limits.insert(format!("net.core.{name}"), value.into());
        }
    }
    if let Ok(sockets) = list::sockets() {
        limits.insert("netlink-sockets".into(), (sockets.len() as u64).into());
    }
    limits
}

fn available() -> Result<()> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .map(drop)
        .attempted(|| "create a netlink socket")
}
