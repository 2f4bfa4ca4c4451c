//! Every TCP, UDP and raw socket of the network namespace, as `ss -tuwan` shows them: asked for with
//! sock_diag(7), or read from `/proc/net` where a sandbox forbids netlink.
//!
//! The kernel shows all of them to every user, with the owner's user id. Which process holds a
//! socket is in /proc, as far as the caller may look.

use std::{
    io::Cursor,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use neli::{FromBytes, FromBytesWithInput, Size, ToBytes, err::DeError};

use crate::{
    Dict, Result, dict, inet,
    inet::options::Protocol,
    proc,
    sock_diag::{self, Attributes, Scope},
};

/// `struct inet_diag_req_v2` of <linux/inet_diag.h>.
#[derive(Debug, Size, ToBytes)]
struct Request {
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    states: u32,
    ports: u32,
    source: u128,
    destination: u128,
    interface: u32,
    cookie: u64,
}

/// `struct inet_diag_msg` and the attribute that is of use here.
#[derive(Debug)]
struct Answer {
    family: u8,
    state: u8,
    source_port: u16,
    destination_port: u16,
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
    ipv6_only: Option<bool>,
}

/// INET_DIAG_SKV6ONLY.
const SKV6ONLY: u16 = 11;

// By hand, as the address of a family fills its 16 bytes in its own way.
impl FromBytesWithInput for Answer {
    type Input = usize;

    fn from_bytes_with_input(
        bytes: &mut Cursor<impl AsRef<[u8]>>,
        length: usize,
    ) -> std::result::Result<Self, DeError> {
        const HEADER: usize = 72;
        let [family, state, _timer, _retransmissions] = u32::from_bytes(bytes)?.to_ne_bytes();
        let source_port = u16::from_be(u16::from_bytes(bytes)?);
        let destination_port = u16::from_be(u16::from_bytes(bytes)?);
        let source = u128::from_bytes(bytes)?.to_ne_bytes();
        let destination = u128::from_bytes(bytes)?.to_ne_bytes();
        let interface = u32::from_bytes(bytes)?;
        let _cookie = u64::from_bytes(bytes)?;
        let _expires = u32::from_bytes(bytes)?;
        let receive_queue = u32::from_bytes(bytes)?;
        let send_queue = u32::from_bytes(bytes)?;
        let uid = u32::from_bytes(bytes)?;
        let inode = u32::from_bytes(bytes)?;
        let rest = length.checked_sub(HEADER).ok_or(DeError::InvalidInput(length))?;
        let attributes = Attributes::from_bytes_with_input(bytes, rest)?;
        let ipv6_only = attributes
            .iter()
            .find(|attribute| *attribute.rta_type() == SKV6ONLY)
            .and_then(|attribute| attribute.rta_payload().as_ref().first().map(|flag| *flag != 0));
        Ok(Self {
            family,
            state,
            source_port,
            destination_port,
            source,
            destination,
            interface,
            receive_queue,
            send_queue,
            uid,
            inode,
            ipv6_only,
        })
    }
}

/// What the kernel tells about a network socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetSocket {
    /// `None` is a raw socket, whose port is the number of its protocol.
    pub protocol: Option<Protocol>,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// A state of TCP, for UDP too: 1 is connected, 7 is not.
    pub state: u8,
    /// 0 where no process holds it any more.
    pub inode: u32,
    pub uid: u32,
    /// Bytes to be read; for a listening socket, connections to be accepted.
    pub receive_queue: u32,
    /// Bytes sent but not acknowledged; for a listening socket, its backlog.
    pub send_queue: u32,
    /// The interface that it is bound to; 0: none.
    pub interface: u32,
    pub ipv6_only: Option<bool>,
}

/// All TCP and UDP sockets.
pub fn sockets() -> Result<Vec<InetSocket>> {
    let mut found = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        found.extend(sockets_of(Some(protocol))?);
    }
    Ok(found)
}

/// The sockets of one protocol, or the raw ones.
pub fn sockets_of(protocol: Option<Protocol>) -> Result<Vec<InetSocket>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let what = format!("the {} sockets", name(protocol));
        match sock_diag::query::<_, Answer>(Scope::All, request(protocol, family), &what) {
            Ok(answers) => found.extend(answers.into_iter().map(|answer| InetSocket::new(protocol, answer))),
            // No module for it, or no netlink for us: the old way says the same, more slowly.
            Err(error) => found.extend(from_proc(protocol, family).ok_or(error)?),
        }
    }
    Ok(found)
}

pub fn name(protocol: Option<Protocol>) -> &'static str {
    protocol.map_or("raw", Protocol::name)
}

fn request(protocol: Option<Protocol>, family: i32) -> Request {
    let number = match protocol {
        Some(Protocol::Tcp) => libc::IPPROTO_TCP,
        Some(Protocol::Udp) => libc::IPPROTO_UDP,
        None => libc::IPPROTO_RAW,
    };
    Request {
        // The families and protocols of this file are below 256.
        family: family as u8,
        protocol: number as u8,
        extensions: 0,
        padding: 0,
        states: u32::MAX,
        ports: 0,
        source: 0,
        destination: 0,
        interface: 0,
        cookie: u64::MAX,
    }
}

impl InetSocket {
    fn new(protocol: Option<Protocol>, answer: Answer) -> Self {
        let address = |bytes: [u8; 16], port| address(answer.family, bytes, port, answer.interface);
        Self {
            protocol,
            local: address(answer.source, answer.source_port),
            peer: address(answer.destination, answer.destination_port),
            state: answer.state,
            inode: answer.inode,
            uid: answer.uid,
            receive_queue: answer.receive_queue,
            send_queue: answer.send_queue,
            interface: answer.interface,
            ipv6_only: answer.ipv6_only,
        }
    }

    /// Whether Attach finds somebody there: a listening socket, or a UDP socket without a peer.
    fn attachable(&self) -> bool {
        self.local.port() != 0
            && match self.protocol {
                Some(Protocol::Tcp) => self.state == LISTENING,
                Some(Protocol::Udp) => self.state == CLOSED,
                None => false,
            }
    }

    fn row(&self, holders: Vec<Dict>) -> Dict {
        let mut row = dict! {
            "protocol" => name(self.protocol),
            "family" => inet::address::family_name(&self.local),
            "state" => state_name(self.protocol, self.state),
            "local-host" => inet::address::host(&self.local),
            "local-port" => u32::from(self.local.port()),
            "inode" => u64::from(self.inode),
            "owner" => self.uid,
            "receive-queue" => self.receive_queue,
            "send-queue" => self.send_queue,
            "holders" => holders,
        };
        if self.peer.port() != 0 {
            row.insert("peer-host".into(), inet::address::host(&self.peer).into());
            row.insert("peer-port".into(), u32::from(self.peer.port()).into());
        }
        if self.interface != 0 {
            row.insert("interface".into(), inet::address::interface_name(self.interface).into());
        }
        if let Some(only) = self.ipv6_only {
            row.insert("v6only".into(), only.into());
        }
        if self.attachable() {
            let address = inet::address::write(name(self.protocol), &self.local);
            row.insert("address".into(), address.to_string().into());
        }
        row
    }
}

fn address(family: u8, bytes: [u8; 16], port: u16, interface: u32) -> SocketAddr {
    if i32::from(family) == libc::AF_INET {
        let [a, b, c, d, ..] = bytes;
        return SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port);
    }
    let ip = Ipv6Addr::from(bytes);
    let scope = if ip.is_unicast_link_local() { interface } else { 0 };
    SocketAddrV6::new(ip, port, 0, scope).into()
}

/// The rows of `List()`.
pub fn rows() -> Result<Vec<Dict>> {
    let sockets = sockets()?;
    let held = proc::held(|link| link.starts_with(b"socket:["));
    let holders = proc::by_link(&held);
    Ok(sockets
        .iter()
        .map(|socket| {
            let link = format!("socket:[{}]", socket.inode);
            let holders = holders.get(link.as_bytes()).map(|held| proc::holders(held));
            socket.row(holders.unwrap_or_default())
        })
        .collect())
}

/// Who has a port, in words for an error; `None` where the kernel does not tell.
pub fn who_has(protocol: Protocol, port: u16) -> Option<String> {
    let sockets = sockets_of(Some(protocol)).ok()?;
    let has = |socket: &&InetSocket| socket.local.port() == port;
    let socket = sockets.iter().filter(has).find(|socket| socket.attachable());
    let socket = socket.or_else(|| sockets.iter().find(has))?;
    let link = format!("socket:[{}]", socket.inode);
    let held = proc::held(|candidate| candidate == link.as_bytes());
    let who = held.first().map_or_else(
        || format!("a process of user {}", socket.uid),
        |holder| format!("process {} ({}) of user {}", holder.pid, proc::command(holder.pid), socket.uid),
    );
    let state = state_name(socket.protocol, socket.state);
    Some(format!("{who} has {} {}, {state}", protocol.name(), inet::address::show(&socket.local)))
}

const CLOSED: u8 = 7;
const LISTENING: u8 = 10;

/// The states under the names that ss(8) filters by.
pub fn state_name(protocol: Option<Protocol>, state: u8) -> &'static str {
    match (protocol, state) {
        (Some(Protocol::Udp) | None, CLOSED) => "unconnected",
        (_, 1) => "established",
        (_, 2) => "syn-sent",
        // 12 is what the kernel calls a request that is not yet a socket.
        (_, 3 | 12) => "syn-recv",
        (_, 4) => "fin-wait-1",
        (_, 5) => "fin-wait-2",
        (_, 6) => "time-wait",
        (_, CLOSED) => "closed",
        (_, 8) => "close-wait",
        (_, 9) => "last-ack",
        (_, LISTENING) => "listening",
        (_, 11) => "closing",
        _ => "unknown",
    }
}

/// `/proc/net/tcp` and its sisters (proc_net_tcp.txt in the kernel's documentation).
fn from_proc(protocol: Option<Protocol>, family: i32) -> Option<Vec<InetSocket>> {
    let suffix = if family == libc::AF_INET6 { "6" } else { "" };
    let table = std::fs::read_to_string(format!("/proc/thread-self/net/{}{suffix}", name(protocol))).ok()?;
    Some(table.lines().skip(1).filter_map(|line| from_line(protocol, line)).collect())
}

fn from_line(protocol: Option<Protocol>, line: &str) -> Option<InetSocket> {
    let mut words = line.split_whitespace().skip(1);
    let local = hex_address(words.next()?)?;
    let peer = hex_address(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let (send_queue, receive_queue) = words.next()?.split_once(':')?;
    let mut words = words.skip(2);
    let uid = words.next()?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    Some(InetSocket {
        protocol,
        local,
        peer,
        state,
        inode,
        uid,
        receive_queue: u32::from_str_radix(receive_queue, 16).ok()?,
        send_queue: u32::from_str_radix(send_queue, 16).ok()?,
        interface: 0,
        ipv6_only: None,
    })
}

/// Addresses are printed as words of the machine's byte order, ports as numbers.
fn hex_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for start in (0..host.len()).step_by(8) {
        let word = u32::from_str_radix(host.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_see_the_same_socket() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(host) else {
                eprintln!("SKIPPED: this machine has no {host}");
                continue;
            };
            let local = listener.local_addr().unwrap();
            let mine =
                |found: Vec<InetSocket>| found.into_iter().find(|socket| socket.local == local).unwrap();
            let asked = mine(sockets_of(Some(Protocol::Tcp)).unwrap());
            let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let read = mine(from_proc(Some(Protocol::Tcp), family).unwrap());
            // /proc/net does not tell the backlog.
            let read = InetSocket { send_queue: asked.send_queue, ipv6_only: asked.ipv6_only, ..read };
            assert_eq!(asked, read);
            assert_eq!(state_name(Some(Protocol::Tcp), asked.state), "listening");
            assert!(asked.attachable());
            let who = who_has(Protocol::Tcp, local.port()).unwrap();
            assert!(who.contains(&format!("process {}", std::process::id())), "{who}");
        }
    }
}
