//! The table of all sockets beside what ss(8) shows, in a network namespace where nobody else makes any.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    collections::HashSet,
    io::Write,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
    },
    process::Command,
};

use ipc_kernel::{Dict, Value, dict, netlink::sockets};

/// Whether this thread is in a network namespace of its own now.
fn isolated() -> bool {
    // SAFETY: a system call without pointers; it concerns this thread, which is a test's own.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    done && Command::new("ip").args(["link", "set", "lo", "up"]).status().is_ok_and(|status| status.success())
}

fn socket(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
    // SAFETY: it was made just now; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn text(row: &Dict, key: &str) -> String {
    match row.get(key) {
        Some(Value::Text(text)) => text.clone(),
        None => "*".to_owned(),
        other => panic!("{key}: {other:?}"),
    }
}

fn number(row: &Dict, key: &str) -> i128 {
    row.get(key).and_then(Value::integer).unwrap_or_else(|| panic!("no {key} in {row:?}"))
}

/// A row in the words of ss: `netid state receive-queue send-queue`, and the address where both write it alike.
fn as_ss(row: &Dict) -> String {
    let (family, protocol) = (text(row, "family"), text(row, "protocol"));
    let netid = match (family.as_str(), protocol.as_str()) {
        ("unix", "stream") => "u_str",
        ("unix", "dgram") => "u_dgr",
        ("unix", "seqpacket") => "u_seq",
        ("packet", "raw") => "p_raw",
        ("packet", "dgram") => "p_dgr",
        ("netlink", _) => "nl",
        (_, other) => other,
    };
    let state = match text(row, "state").as_str() {
        "listening" => "LISTEN",
        "established" => "ESTAB",
        "unconnected" => "UNCONN",
        other => panic!("state {other}"),
    };
    let local = match netid {
        "tcp" | "udp" | "raw" | "u_str" | "u_dgr" | "u_seq" => text(row, "local"),
        _ => String::new(),
    };
    format!("{netid} {state} {} {} {local}", number(row, "receive-queue"), number(row, "send-queue"))
}

fn of_ss(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let local = if words[0].starts_with("p_") || words[0] == "nl" { "" } else { words[4] };
    format!("{} {} {} {} {local}", words[0], words[1], words[2], words[3])
}

fn sorted(rows: impl Iterator<Item = String>) -> Vec<String> {
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

#[test]
fn the_table_is_that_of_ss() {
    if Command::new("ss").arg("-V").output().is_err() || !isolated() {
        eprintln!("SKIPPED: no network namespace can be made here (needs root, ip and ss)");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    connection.write_all(b"12345").unwrap();
    let (_accepted, _) = listener.accept().unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(listener.local_addr().unwrap()).unwrap();
    let _six = UdpSocket::bind("[::1]:0").ok();
    let _icmp = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    let _packets = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0);
    let route = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    rustix::net::bind(&route, &rustix::net::netlink::SocketAddrNetlink::new(0, 1)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let _named = UnixListener::bind(&path).unwrap();
    let name = SocketAddr::from_abstract_name("ipc-kernel-sockets").unwrap();
    let _abstract = UnixDatagram::bind_addr(&name).unwrap();
    let (mut one, _other) = UnixStream::pair().unwrap();
    one.write_all(b"abc").unwrap();

    let rows = sockets::list(&Dict::new()).unwrap();
    let said = Command::new("ss").arg("-aHn").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    // Who asks has a socket of this family for it, in the midst of its answer.
    let ours = rows.iter().filter(|row| text(row, "protocol") != "sock-diag").map(as_ss);
    // The kernel tells netlink sockets that are in a group twice, and ss passes that on.
    let mut seen = HashSet::new();
    let theirs = said
        .lines()
        .filter(|line| !line.contains(" 4:") && (!line.starts_with("nl ") || seen.insert(*line)))
        .map(of_ss);
    assert_eq!(sorted(ours), sorted(theirs), "{said}");

    let only = |filter: Dict| sockets::list(&filter).unwrap();
    let [listening] = &only(dict! { "state" => "listening", "family" => "inet" })[..] else { panic!() };
    assert_eq!(text(listening, "local"), listener.local_addr().unwrap().to_string());
    assert!(!listening.contains_key("peer"));
    // SAFETY: a system call without pointers.
    assert_eq!(number(listening, "uid"), unsafe { libc::getuid() }.into());
    let [connected] = &only(dict! { "protocol" => "tcp", "receive-queue" => 5_u32 })[..] else { panic!() };
    assert_eq!(text(connected, "peer"), connection.local_addr().unwrap().to_string());
    let names = [path.to_str().unwrap(), "@ipc-kernel-sockets"];
    for name in names {
        assert_eq!(only(dict! { "family" => "unix", "local" => name }).len(), 1, "{name}");
    }
    let [packets] = &only(dict! { "family" => "packet" })[..] else { panic!() };
    assert_eq!(text(packets, "local"), "none:*");
}
