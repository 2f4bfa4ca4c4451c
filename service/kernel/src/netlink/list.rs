//! Every netlink socket of the network namespace, as `ss -A netlink -a` shows them: from sock_diag(7), or
//! from /proc/net/netlink where the kernel has no netlink_diag.

use std::{collections::HashSet, io::Cursor};

use neli::{FromBytes, FromBytesWithInput, err::DeError};

use crate::{
    Dict, Error, Result, dict,
    error::errno_of,
    netlink::family::Family,
    proc,
    sock_diag::{self, Attributes, Request, Scope},
};

/// NDIAG_PROTO_ALL.
const ALL_FAMILIES: u8 = u8::MAX;
/// NDIAG_SHOW_MEMINFO and NDIAG_SHOW_GROUPS.
const SHOW: u32 = 1 | 2;

/// What the kernel tells about a netlink socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkSocket {
    pub family: Family,
    /// NETLINK_CONNECTED.
    pub connected: bool,
    pub port: u32,
    pub peer: u32,
    pub inode: u32,
    /// A bitmap; the first group is the lowest bit.
    pub groups: Vec<u8>,
    /// Bytes of memory that messages take which wait for it.
    pub receive_queue: u32,
    pub send_queue: u32,
    pub dropped: u32,
}

// By hand, as the derived one logs.
impl FromBytesWithInput for NetlinkSocket {
    type Input = usize;

    fn from_bytes_with_input(
        bytes: &mut Cursor<impl AsRef<[u8]>>,
        length: usize,
    ) -> std::result::Result<Self, DeError> {
        const HEADER: usize = 28;
        let [_family, _type, protocol, state] = u32::from_bytes(bytes)?.to_ne_bytes();
        let port = u32::from_bytes(bytes)?;
        let peer = u32::from_bytes(bytes)?;
        let _group = u32::from_bytes(bytes)?;
        let inode = u32::from_bytes(bytes)?;
        let _cookie = u64::from_bytes(bytes)?;
        let rest = length.checked_sub(HEADER).ok_or(DeError::InvalidInput(length))?;
        let mut socket = Self {
            family: Family(protocol),
            connected: state == 1,
            port,
            peer,
            inode,
            groups: Vec::new(),
            receive_queue: 0,
            send_queue: 0,
            dropped: 0,
        };
        for attribute in Attributes::from_bytes_with_input(bytes, rest)?.iter() {
            let payload = attribute.rta_payload().as_ref();
            let word = |n| sock_diag::word(payload, n).unwrap_or(0);
            match attribute.rta_type() {
                0 => {
                    // NETLINK_DIAG_MEMINFO: the words of SO_MEMINFO.
                    socket.receive_queue = word(0);
                    socket.send_queue = word(2);
                    socket.dropped = word(8);
                }
                1 => socket.groups = payload.to_owned(), // NETLINK_DIAG_GROUPS
                _ => {}
            }
        }
        Ok(socket)
    }
}

/// All of them.
pub fn sockets() -> Result<Vec<NetlinkSocket>> {
    let request = Request::all(libc::AF_NETLINK, ALL_FAMILIES, SHOW);
    let Ok(mut sockets) = sock_diag::query::<_, NetlinkSocket>(Scope::All, request, "the netlink sockets")
    else {
        return from_proc();
    };
    // The kernel tells those that are in a group a second time (__netlink_diag_dump).
    let mut seen = HashSet::new();
    sockets.retain(|socket| seen.insert((socket.family, socket.port, socket.inode)));
    Ok(sockets)
}

/// Whether a socket has this port.
pub fn exists(family: Family, port: u32) -> Result<bool> {
    Ok(sockets()?.iter().any(|socket| (socket.family, socket.port) == (family, port)))
}

/// The rows of `List()`.
pub fn rows() -> Result<Vec<Dict>> {
    let sockets = sockets()?;
    let held = proc::held(|link| link.starts_with(b"socket:["));
    let holders = proc::by_link(&held);
    let row = |socket: &NetlinkSocket| {
        let link = format!("socket:[{}]", socket.inode);
        let holders = holders.get(link.as_bytes()).map(|held| proc::holders(held));
        socket.row(holders.unwrap_or_default())
    };
    Ok(sockets.iter().map(row).collect())
}

impl NetlinkSocket {
    fn row(&self, holders: Vec<Dict>) -> Dict {
        // A socket that was not bound is not listed.
        let kernel = self.port == 0;
        let mut row = dict! {
            "family" => self.family.to_string(),
            "port" => self.port,
            "kernel" => kernel,
            "groups" => self.family.group_names(&self.groups),
            "receive-queue" => self.receive_queue,
            "send-queue" => self.send_queue,
            "dropped" => u64::from(self.dropped),
            "inode" => u64::from(self.inode),
            "holders" => holders,
        };
        if self.connected {
            row.insert("peer-port".into(), self.peer.into());
        }
        if kernel {
            row.insert("address".into(), format!("netlink:family={}", self.family).into());
        } else if self.family == Family::USERSOCK && self.port != 0 {
            row.insert("address".into(), format!("netlink:family={},port={}", self.family, self.port).into());
        }
        row
    }
}

fn from_proc() -> Result<Vec<NetlinkSocket>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink")
        .map_err(|error| Error::from_errno(errno_of(&error), "read /proc/net/netlink"))?;
    Ok(table.lines().skip(1).filter_map(parse_line).collect())
}

/// `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode`, with the first 32 groups.
fn parse_line(line: &str) -> Option<NetlinkSocket> {
    let mut words = line.split_whitespace().skip(1);
    let family = Family(words.next()?.parse().ok()?);
    let port = words.next()?.parse().ok()?;
    let groups = u32::from_str_radix(words.next()?, 16).ok()?.to_ne_bytes().to_vec();
    let receive_queue = words.next()?.parse().ok()?;
    let send_queue = words.next()?.parse().ok()?;
    let dropped = words.nth(2)?.parse().ok()?;
    let inode = words.next()?.parse().ok()?;
    Some(NetlinkSocket {
        family,
        connected: false,
        port,
        peer: 0,
        inode,
        groups,
        receive_queue,
        send_queue,
        dropped,
    })
}
