//! Making network sockets and giving them their local address; joining groups.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, addr::SocketAddrArg, sockopt},
};

use crate::{
    Error, Kind, Parameters, Result,
    error::{Attempted, describe},
    inet,
    inet::address::{self, Family},
    inet::options::{self, Protocol},
    proc,
};

/// IPPROTO_MPTCP, which behaves like TCP to its user (RFC 8684).
pub const MPTCP: u32 = libc::IPPROTO_MPTCP as u32;

/// A socket with the options that were given. Its open file description is a blocking one: a
/// caller who gets a duplicate expects that, and every call of ours says MSG_DONTWAIT.
pub fn socket(parameters: &Parameters, family: AddressFamily) -> Result<OwnedFd> {
    let (kind, protocol) = match Protocol::of(parameters) {
        Protocol::Udp => (SocketType::DGRAM, rustix::net::ipproto::UDP),
        Protocol::Tcp => (SocketType::STREAM, rustix::net::ipproto::TCP),
    };
    let multipath = parameters.text("protocol") == Some("mptcp");
    let protocol =
        std::num::NonZero::new(MPTCP).filter(|_| multipath).map_or(protocol, rustix::net::Protocol::from_raw);
    let made = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol));
    let made = made.map_err(|errno| match errno {
        Errno::AFNOSUPPORT => Error::new(
            Kind::Unavailable,
            format!("this kernel has no {}", if family == AddressFamily::INET { "IPv4" } else { "IPv6" }),
        ),
        Errno::PROTONOSUPPORT | Errno::NOPROTOOPT if multipath => Error::new(
            Kind::Unavailable,
            format!("Multipath TCP is not available: {}; set net.mptcp.enabled=1", describe(errno)),
        ),
        other => Error::from_errno(other, "create a network socket"),
    })?;
    options::apply(&made, family, parameters)?;
    Ok(made)
}

/// IPv6 sockets speak IPv4 too unless `v6only` says otherwise, whatever net.ipv6.bindv6only says.
pub fn set_v6only(fd: impl AsFd, local: &SocketAddr, parameters: &Parameters) -> Result<()> {
    let only = parameters.bool("v6only");
    if local.is_ipv4() {
        let text = format!("the key \"v6only\" is for IPv6, and {} is IPv4", address::host(local));
        return if only { Err(Error::invalid(text)) } else { Ok(()) };
    }
    sockopt::set_ipv6_v6only(fd, only).attempted(|| "set IPV6_V6ONLY")
}

/// The error of Attach without `host`.
pub fn host_missing() -> Error {
    Error::invalid("the key \"host\" is missing: the name or address to connect to (D-Bus type s)")
}

/// bind(2).
pub fn bind(fd: impl AsFd, local: &SocketAddr, protocol: Protocol) -> Result<()> {
    rustix::net::bind(fd, local).map_err(|errno| bind_failed(errno, local, protocol))
}

/// What the errnos of bind(2) and listen(2) mean.
pub fn bind_failed(errno: Errno, local: &SocketAddr, protocol: Protocol) -> Error {
    let what = format!("cannot bind to {} {}", protocol.name(), address::show(local));
    let port = local.port();
    match errno {
        Errno::ADDRINUSE if port == 0 => no_free_port(&what),
        Errno::ADDRINUSE => {
            let who = inet::diag::who_has(protocol, port).map_or_else(String::new, |who| format!("; {who}"));
            Error::new(
                Kind::Exists,
                format!("{what}: the port is taken ({}){who}", crate::error::name(errno)),
            )
            .help("choose another port; with reuseport=true on both sides sockets share one")
        }
        Errno::ACCESS if port != 0 => Error::new(
            Kind::PermissionDenied,
            format!(
                "{what}: ports below {} need CAP_NET_BIND_SERVICE (EACCES); choose a higher one or lower \
                 net.ipv4.ip_unprivileged_port_start",
                proc::sysctl("net/ipv4/ip_unprivileged_port_start").unwrap_or(1024)
            ),
        ),
        Errno::ADDRNOTAVAIL => Error::new(
            Kind::NotFound,
            format!("{what}: no network interface has this address (EADDRNOTAVAIL)"),
        )
        .help("`ip address` lists them; freebind=true binds nevertheless"),
        Errno::INVAL if needs_scope(local) => scope_missing(&what),
        other => Error::from_errno(other, format!("bind to {} {}", protocol.name(), address::show(local))),
    }
}

/// The range of ports that the kernel chooses from is used up.
pub fn no_free_port(what: &str) -> Error {
    let (low, high) = port_range().unwrap_or((32_768, 60_999));
    Error::new(
        Kind::LimitExceeded,
        format!(
            "{what}: no port is free; widen net.ipv4.ip_local_port_range, now {low} to {high}, or close connections"
        ),
    )
}

/// net.ipv4.ip_local_port_range.
pub fn port_range() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let (low, high) = text.trim().split_once(char::is_whitespace)?;
    Some((low.parse().ok()?, high.trim().parse().ok()?))
}

/// Whether an address means nothing without the interface (ipv6(7), sin6_scope_id).
pub fn needs_scope(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0)
}

pub fn scope_missing(what: &str) -> Error {
    Error::invalid(format!("{what}: a link-local address needs its interface, as in fe80::1%eth0"))
}

/// A group of receivers that a socket sends to or has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The group and its port; for IPv6 with the interface as its scope.
    pub address: SocketAddr,
    /// Index of the interface; 0 leaves the choice to the routes.
    pub interface: u32,
    /// Only what this host sends (RFC 4607).
    pub source: Option<SocketAddr>,
}

impl Group {
    /// The keys `group`, `interface`, `source`; `None` where no group is given.
    pub fn of(parameters: &Parameters, port: u16) -> Result<Option<Self>> {
        let Some(text) = parameters.text("group") else {
            if parameters.has("source") {
                return Err(Error::invalid("the key \"source\" needs the key \"group\""));
            }
            return Ok(None);
        };
        let group = address::literal(text, port)?.filter(|group| group.ip().is_multicast());
        let mut address = group.ok_or_else(|| {
            Error::invalid(format!(
                "the key \"group\" must be a multicast address (224.0.0.0/4 or ff00::/8), not {text:?}"
            ))
        })?;
        if !Family::of(parameters).admits(&address) {
            return Err(Error::invalid(format!("the group {text} is not of the family that was asked for")));
        }
        let mut interface = 0;
        if let SocketAddr::V6(v6) = &address {
            interface = v6.scope_id();
        }
        if let Some(given) = interface_key(parameters)? {
            interface = given;
        }
        if let SocketAddr::V6(v6) = &mut address {
            v6.set_scope_id(interface);
        }
        let source = match parameters.text("source") {
            None => None,
            Some(text) => {
                let found = address::literal(text, 0)?
                    .filter(|found| found.is_ipv4() == address.is_ipv4() && !found.ip().is_multicast());
                Some(found.ok_or_else(|| {
                    Error::invalid(format!(
                        "the key \"source\" must be a host's literal address of the group's family, not {text:?}"
                    ))
                })?)
            }
        };
        Ok(Some(Self { address, interface, source }))
    }

    /// Receives what is sent to the group (ip(7), MCAST_JOIN_GROUP and MCAST_JOIN_SOURCE_GROUP).
    pub fn join(&self, fd: impl AsFd) -> Result<()> {
        let fd = fd.as_fd();
        let (level, all) = match self.address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL),
        };
        // Otherwise Linux hands over what any process of the machine has joined. Older kernels
        // have it for IPv4 only; binding to the group's address has the same effect.
        let _ = options::set(fd, level, all, &0i32);
        let group = storage(&self.address);
        let done = match &self.source {
            None => options::set(
                fd,
                level,
                libc::MCAST_JOIN_GROUP,
                &libc::group_req { gr_interface: self.interface, gr_group: group },
            ),
            Some(source) => options::set(
                fd,
                level,
                libc::MCAST_JOIN_SOURCE_GROUP,
                &libc::group_source_req {
                    gsr_interface: self.interface,
                    gsr_group: group,
                    gsr_source: storage(source),
                },
            ),
        };
        done.map_err(|errno| {
            let error = Error::from_errno(errno, format!("join the group {}", self.address.ip()));
            match errno {
                Errno::NODEV | Errno::ADDRNOTAVAIL if self.interface == 0 => {
                    error.help("no route leads to the group: name the interface with the key \"interface\"")
                }
                Errno::NOBUFS => Error { kind: Kind::LimitExceeded, ..error }
                    .help("raise net.ipv4.igmp_max_memberships or net.core.optmem_max"),
                _ => error,
            }
        })
    }
}

/// Not in ip(7)'s sister page: <linux/in6.h>, since Linux 4.20.
const IPV6_MULTICAST_ALL: i32 = 29;

/// The key `interface` as an index.
fn interface_key(parameters: &Parameters) -> Result<Option<u32>> {
    parameters.text("interface").map(address::interface_index).transpose()
}

/// Sends to groups through the interface that was given.
pub fn set_group_interface(fd: impl AsFd, parameters: &Parameters, family: AddressFamily) -> Result<()> {
    let Some(index) = interface_key(parameters)? else {
        return Ok(());
    };
    let done = if family == AddressFamily::INET {
        let any = std::net::Ipv4Addr::UNSPECIFIED;
        sockopt::set_ip_multicast_if_with_ifindex(fd, &any, &any, index)
    } else {
        sockopt::set_ipv6_multicast_if(fd, index)
    };
    done.attempted(|| format!("send to groups through the interface {}", address::interface_name(index)))
}

/// The local side of Attach: `local-host` (a literal) and `local-port`.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    host: Option<SocketAddr>,
    port: u16,
}

impl Local {
    pub fn of(parameters: &Parameters) -> Result<Self> {
        let port = port(parameters, "local-port");
        let host = match parameters.text("local-host") {
            None => None,
            Some(text) => Some(address::literal(text, port)?.ok_or_else(|| {
                Error::invalid(format!("the key \"local-host\" must be a literal address, not {text:?}"))
            })?),
        };
        Ok(Self { host, port })
    }

    /// Whether a port was asked for.
    pub fn has_port(&self) -> bool {
        self.port != 0
    }

    pub fn suits(&self, peer: &SocketAddr) -> bool {
        self.host.is_none_or(|host| host.is_ipv4() == peer.is_ipv4())
    }

    /// Binds if a local side was asked for.
    pub fn bind(&self, fd: impl AsFd, peer: &SocketAddr, parameters: &Parameters) -> Result<()> {
        let protocol = Protocol::of(parameters);
        if self.host.is_none() && self.port == 0 {
            return Ok(());
        }
        let fd = fd.as_fd();
        if self.port == 0 {
            // The port is chosen by connect(2), which knows that the same one serves many peers;
            // an older kernel chooses it now.
            let _ = options::set(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32);
        } else if protocol == Protocol::Tcp && !parameters.has("reuseaddr") {
            // Attempts to several addresses of the host run side by side from the same port.
            sockopt::set_socket_reuseaddr(fd, true).attempted(|| "set SO_REUSEADDR")?;
        }
        let any: IpAddr = if peer.is_ipv4() { Family::Ipv4.wildcard() } else { Family::Ipv6.wildcard() };
        bind(fd, &self.host.unwrap_or(SocketAddr::new(any, self.port)), protocol)
    }
}

/// A port's key; the table bounds it to 65535.
pub fn port(parameters: &Parameters, key: &str) -> u16 {
    parameters.u32(key).and_then(|port| port.try_into().ok()).unwrap_or(0)
}

/// The address as the kernel's structures hold it.
fn storage(address: &SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: a sockaddr_storage of zeros is valid.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    // SAFETY: the callback gets a pointer to `length` bytes, an address of IPv4 or IPv6, which
    // fits into a sockaddr_storage.
    unsafe {
        address.with_sockaddr(|pointer, length| {
            std::ptr::copy_nonoverlapping(
                pointer.cast::<u8>(),
                (&raw mut storage).cast::<u8>(),
                (length as usize).min(size_of::<libc::sockaddr_storage>()),
            );
        });
    }
    storage
}
