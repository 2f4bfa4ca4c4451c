//! Every socket of the network namespace in one table, as `ss -a` shows them, by sock_diag(7): network
//! sockets, unix, netlink, packet(7), and vsock(7) where the kernel has vsock_diag.
//!
//! The lists of the mechanisms say more about their own sockets; this one has the columns that all
//! families share, and the families that no mechanism serves.

use std::{collections::HashMap, io::Cursor};

use neli::{FromBytes, FromBytesWithInput, Size, ToBytes, err::DeError};
use rustix::net::SocketType;

use crate::{
    Dict, Kind, Result, Value, inet,
    inet::diag::{InetSocket, state_name},
    inet::options::Protocol,
    listing::{Listing, check_filter},
    mechanism::Column,
    netlink::list::{self, NetlinkSocket},
    sock_diag::{self, Attributes, Request, Scope, UnixSocket, word},
    unix,
    unix::name::{Name, type_word},
};

/// The keys of a row, and of a filter.
pub const COLUMNS: &[Column] = &[
    Column { key: "family", kind: "s", summary: "inet, inet6, unix, netlink, packet or vsock" },
    Column {
        key: "protocol",
        kind: "s",
        summary: "tcp, udp or raw; the type of a unix, packet or vsock socket; the netlink family",
    },
    Column {
        key: "state",
        kind: "s",
        summary: "listening, established, unconnected, time-wait, …, as ss(8) filters by them",
    },
    Column {
        key: "local",
        kind: "s",
        summary: "Its own address: host and port, path or @name, netlink port or kernel, packet protocol and interface, cid and port",
    },
    Column { key: "peer", kind: "s", summary: "The address of what it is connected to, where that has one" },
    Column { key: "uid", kind: "u", summary: "User id of the process that made it, where the kernel tells" },
    Column { key: "inode", kind: "t", summary: "Inode number; 0 where no process holds it any more" },
    Column {
        key: "receive-queue",
        kind: "u",
        summary: "Bytes to be read; for a listener, connections to be accepted",
    },
    Column {
        key: "send-queue",
        kind: "u",
        summary: "Bytes not yet received by the peer; for a listener, its backlog",
    },
    Column { key: "interface", kind: "s", summary: "Network interface that it is bound to" },
];

/// The sockets that have all values of the filter; an empty one lists everything.
///
/// Errors: `InvalidArgument` for a key that is no column, `PermissionDenied` where a sandbox forbids
/// netlink.
pub fn list(filter: &Dict) -> Result<Vec<Dict>> {
    check_filter("the list of sockets", COLUMNS, filter)?;
    let wanted = |families: &[&str]| match filter.get("family") {
        Some(Value::Text(family)) => families.contains(&family.as_str()),
        _ => true,
    };
    let mut rows = Listing::default();
    if wanted(&["inet", "inet6"]) {
        for protocol in [Some(Protocol::Tcp), Some(Protocol::Udp), None] {
            inet::diag::sockets_of(protocol)?.iter().for_each(|socket| rows.push(inet_row(socket)));
        }
    }
    if wanted(&["unix"]) {
        unix_rows(&unix::list::sockets()?, &mut rows);
    }
    if wanted(&["netlink"]) {
        list::sockets()?.iter().for_each(|socket| rows.push(netlink_row(socket)));
    }
    if wanted(&["packet"]) {
        let request = Request::all(libc::AF_PACKET, 0, PACKET_SHOW);
        let answers: Vec<PacketAnswer> =
            where_served(sock_diag::query(Scope::All, request, "the packet sockets"))?;
        answers.iter().for_each(|socket| rows.push(socket.row()));
    }
    if wanted(&["vsock"]) {
        let answers: Vec<VsockAnswer> =
            where_served(sock_diag::query(Scope::All, VsockRequest::all(), "the vsock sockets"))?;
        answers.iter().for_each(|socket| rows.push(socket.row()));
    }
    rows.filter(filter);
    Ok(rows.dicts())
}

/// Nothing of a family that the kernel has no module for.
fn where_served<A>(answers: Result<Vec<A>>) -> Result<Vec<A>> {
    match answers {
        Err(error) if error.kind == Kind::NotFound => Ok(Vec::new()),
        answers => answers,
    }
}

type Row = Vec<(&'static str, Value)>;

fn inet_row(socket: &InetSocket) -> Row {
    let mut row = vec![
        ("family", if socket.local.is_ipv4() { "inet" } else { "inet6" }.into()),
        ("protocol", inet::diag::name(socket.protocol).into()),
        ("state", state_name(socket.protocol, socket.state).into()),
        ("local", inet::address::show(&socket.local).into()),
        ("uid", socket.uid.into()),
        ("inode", u64::from(socket.inode).into()),
        ("receive-queue", socket.receive_queue.into()),
        ("send-queue", socket.send_queue.into()),
    ];
    if socket.peer.port() != 0 || !socket.peer.ip().is_unspecified() {
        row.push(("peer", inet::address::show(&socket.peer).into()));
    }
    if socket.interface != 0 {
        row.push(("interface", inet::address::interface_name(socket.interface).into()));
    }
    row
}

fn unix_rows(sockets: &[UnixSocket], rows: &mut Listing) {
    let named = sockets.iter().filter_map(|socket| Some((socket.inode, unix_name(&socket.name)?)));
    let names: HashMap<u32, Value> = named.collect();
    for socket in sockets {
        let mut row = vec![
            ("family", "unix".into()),
            ("protocol", type_word(socket.kind).into()),
            ("state", state_name(None, socket.state).into()),
            ("inode", u64::from(socket.inode).into()),
            ("receive-queue", socket.receive_queue.into()),
            ("send-queue", socket.send_queue.into()),
        ];
        row.extend(names.get(&socket.inode).map(|name| ("local", name.clone())));
        row.extend(socket.peer.and_then(|peer| names.get(&peer)).map(|name| ("peer", name.clone())));
        row.extend(socket.uid.map(|uid| ("uid", uid.into())));
        rows.push(row);
    }
}

/// The path, or the abstract name behind an `@`.
fn unix_name(name: &[u8]) -> Option<Value> {
    let name = Name::from_bytes(name)?;
    let at: &[u8] = if matches!(name, Name::Abstract(_)) { b"@" } else { b"" };
    Some(Value::text_or_bytes(&[at, name.pair().1].concat()))
}

fn netlink_row(socket: &NetlinkSocket) -> Row {
    let shown = |port: u32| if port == 0 { "kernel".to_owned() } else { port.to_string() };
    let mut row = vec![
        ("family", "netlink".into()),
        ("protocol", socket.family.to_string().into()),
        ("state", if socket.connected { "established" } else { "unconnected" }.into()),
        ("local", shown(socket.port).into()),
        ("inode", u64::from(socket.inode).into()),
        ("receive-queue", socket.receive_queue.into()),
        ("send-queue", socket.send_queue.into()),
    ];
    if socket.connected {
        row.push(("peer", shown(socket.peer).into()));
    }
    row
}

/// PACKET_SHOW_INFO and PACKET_SHOW_MEMINFO.
const PACKET_SHOW: u32 = 0x1 | 0x10;

/// `struct packet_diag_msg` of <linux/packet_diag.h>, and the attributes that are of use here.
#[derive(Debug)]
struct PacketAnswer {
    kind: u8,
    protocol: u16,
    inode: u32,
    interface: u32,
    uid: Option<u32>,
    receive_queue: u32,
    send_queue: u32,
}

// By hand, as the derived one logs.
impl FromBytesWithInput for PacketAnswer {
    type Input = usize;

    fn from_bytes_with_input(
        bytes: &mut Cursor<impl AsRef<[u8]>>,
        length: usize,
    ) -> std::result::Result<Self, DeError> {
        const HEADER: usize = 16;
        let [_family, kind] = u16::from_bytes(bytes)?.to_ne_bytes();
        let protocol = u16::from_bytes(bytes)?;
        let inode = u32::from_bytes(bytes)?;
        let _cookie = u64::from_bytes(bytes)?;
        let rest = length.checked_sub(HEADER).ok_or(DeError::InvalidInput(length))?;
        let mut socket =
            Self { kind, protocol, inode, interface: 0, uid: None, receive_queue: 0, send_queue: 0 };
        for attribute in Attributes::from_bytes_with_input(bytes, rest)?.iter() {
            let payload = attribute.rta_payload().as_ref();
            match attribute.rta_type() {
                0 => socket.interface = word(payload, 0).unwrap_or(0), // PACKET_DIAG_INFO
                5 => socket.uid = word(payload, 0),                    // PACKET_DIAG_UID
                6 => {
                    // PACKET_DIAG_MEMINFO: the words of SO_MEMINFO.
                    socket.receive_queue = word(payload, 0).unwrap_or(0);
                    socket.send_queue = word(payload, 2).unwrap_or(0);
                }
                _ => {}
            }
        }
        Ok(socket)
    }
}

impl PacketAnswer {
    fn row(&self) -> Row {
        // ETH_P_ALL; 0 receives nothing.
        let protocol = match self.protocol {
            0 => "none".to_owned(),
            3 => "all".to_owned(),
            number => format!("{number:#06x}"),
        };
        let interface = (self.interface != 0).then(|| inet::address::interface_name(self.interface));
        let kind = match SocketType::from_raw(self.kind.into()) {
            SocketType::RAW => "raw",
            kind => type_word(kind),
        };
        let mut row = vec![
            ("family", "packet".into()),
            ("protocol", kind.into()),
            ("state", "unconnected".into()),
            ("local", format!("{protocol}:{}", interface.as_deref().unwrap_or("*")).into()),
            ("inode", u64::from(self.inode).into()),
            ("receive-queue", self.receive_queue.into()),
            ("send-queue", self.send_queue.into()),
        ];
        row.extend(self.uid.map(|uid| ("uid", uid.into())));
        row.extend(interface.map(|interface| ("interface", interface.into())));
        row
    }
}

/// `struct vsock_diag_req` of <linux/vm_sockets_diag.h>.
#[derive(Debug, Size, ToBytes)]
struct VsockRequest {
    family: u8,
    protocol: u8,
    padding: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: u64,
}

impl VsockRequest {
    fn all() -> Self {
        let family = libc::AF_VSOCK as u8;
        Self { family, protocol: 0, padding: 0, states: u32::MAX, inode: 0, show: 0, cookie: 0 }
    }
}

/// `struct vsock_diag_msg`.
#[derive(Debug)]
struct VsockAnswer {
    kind: u8,
    state: u8,
    local: (u32, u32),
    peer: (u32, u32),
    inode: u32,
}

impl FromBytesWithInput for VsockAnswer {
    type Input = usize;

    fn from_bytes_with_input(
        bytes: &mut Cursor<impl AsRef<[u8]>>,
        _length: usize,
    ) -> std::result::Result<Self, DeError> {
        let [_family, kind, state, _shutdown] = u32::from_bytes(bytes)?.to_ne_bytes();
        let local = (u32::from_bytes(bytes)?, u32::from_bytes(bytes)?);
        let peer = (u32::from_bytes(bytes)?, u32::from_bytes(bytes)?);
        let inode = u32::from_bytes(bytes)?;
        Ok(Self { kind, state, local, peer, inode })
    }
}

impl VsockAnswer {
    fn row(&self) -> Row {
        // VMADDR_CID_ANY, VMADDR_PORT_ANY
        let part = |number: u32| if number == u32::MAX { "*".to_owned() } else { number.to_string() };
        let shown = |(cid, port)| format!("{}:{}", part(cid), part(port));
        let kind = SocketType::from_raw(self.kind.into());
        let mut row = vec![
            ("family", "vsock".into()),
            ("protocol", type_word(kind).into()),
            ("state", state_name(None, self.state).into()),
            ("local", shown(self.local).into()),
            ("inode", u64::from(self.inode).into()),
            ("receive-queue", 0_u32.into()),
            ("send-queue", 0_u32.into()),
        ];
        if self.peer.1 != u32::MAX {
            row.push(("peer", shown(self.peer).into()));
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dict;

    #[test]
    fn filters_are_by_columns() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = socket.local_addr().unwrap().to_string();
        let found = list(&dict! { "local" => local.as_str(), "protocol" => "udp" }).unwrap();
        let [row] = &found[..] else { panic!("{found:?}") };
        assert!(matches!(row.get("state"), Some(Value::Text(state)) if state == "unconnected"), "{row:?}");
        assert!(list(&dict! { "family" => "unix", "protocol" => "udp" }).unwrap().is_empty());
        let error = list(&dict! { "colour" => "red" }).unwrap_err();
        assert!(error.text.contains("colour") && error.text.contains("receive-queue"), "{error}");
    }

    #[test]
    fn rows_have_the_columns() {
        for row in list(&Dict::new()).unwrap() {
            for (key, value) in &row {
                let column = COLUMNS.iter().find(|column| column.key == key).unwrap();
                let as_bytes = column.kind == "s" && value.signature() == "ay";
                assert!(as_bytes || column.kind == value.signature(), "{row:?}");
            }
            assert!(row.contains_key("family") && row.contains_key("inode"), "{row:?}");
        }
    }

    #[test]
    fn names_of_vsock_are_numbers() {
        let mut bytes = vec![40, 1, 10, 0];
        for word in [u32::MAX, 1024, 0, u32::MAX, 77, 0, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        let answer = VsockAnswer::from_bytes_with_input(&mut Cursor::new(&bytes), bytes.len()).unwrap();
        let row: HashMap<_, _> = answer.row().into_iter().collect();
        assert_eq!(
            format!("{:?} {:?} {:?}", row["local"], row["state"], row.get("peer")),
            r#"Text("*:1024") Text("listening") None"#
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..120), length in 0..200_usize) {
            let _ = PacketAnswer::from_bytes_with_input(&mut Cursor::new(&data), length).map(|answer| answer.row());
            let _ = VsockAnswer::from_bytes_with_input(&mut Cursor::new(&data), length).map(|answer| answer.row());
            let _ = NetlinkSocket::from_bytes_with_input(&mut Cursor::new(&data), length);
        }
    }
}
