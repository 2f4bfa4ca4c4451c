//! `List()` compared with `ss -xaH` and with /proc.

use std::{
    collections::BTreeMap,
    os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};

use ipc_kernel::Value;

use super::*;

/// Inode to what `ss` says: type, state, both queues, name, inode of the peer.
type Shown = BTreeMap<i128, [String; 6]>;

fn ss() -> Option<Shown> {
    let output = match Command::new("ss").arg("-xaH").output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: ss cannot be started: {error}");
            return None;
        }
    };
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = lines.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        // Names with spaces in them would not be told apart; there are none here.
        let &[kind, state, receive, send, name, inode, _, peer] = words.as_slice() else { return None };
        let row = [kind, state, receive, send, name, peer].map(str::to_owned);
        Some((inode.parse().ok()?, row))
    });
    Some(shown.collect())
}

/// A row of ours as `ss` would print it.
fn as_ss(row: &Dict) -> [String; 6] {
    let kind = match text(row, "type") {
        "stream" => "u_str",
        "dgram" => "u_dgr",
        _ => "u_seq",
    };
    let state = match text(row, "state") {
        "listening" => "LISTEN",
        "connected" => "ESTAB",
        _ => "UNCONN",
    };
    let name = match (row.get("path"), row.get("abstract")) {
        (Some(Value::Text(path)), _) => path.clone(),
        (_, Some(Value::Text(name))) => format!("@{name}"),
        _ => "*".to_owned(),
    };
    let peer = row.get("peer").and_then(Value::integer).unwrap_or(0).to_string();
    let queues = [number(row, "rqueue").to_string(), number(row, "wqueue").to_string()];
    let [receive, send] = queues;
    [kind.to_owned(), state.to_owned(), receive, send, name, peer]
}

fn inode(fd: impl AsFd) -> i128 {
    rustix::fs::fstat(fd).expect("fstat").st_ino.into()
}

#[test]
fn every_socket_is_listed_as_ss_lists_it() {
    let directory = directory();
    let path = directory.path().join("listener");
    let listener = UnixListener::bind(&path).expect("bind");
    let client = UnixStream::connect(&path).expect("connect");
    let (accepted, _) = listener.accept().expect("accept");
    let waiting = UnixStream::connect(&path).expect("connect");
    rustix::net::send(&client, b"12345", rustix::net::SendFlags::empty()).expect("send");
    let datagrams = UnixDatagram::bind(directory.path().join("datagrams")).expect("bind");
    let packets = create(&format!("unix:abstract={},type=seqpacket", unique())).expect("create");
    let ours = [
        inode(&listener),
        inode(&client),
        inode(&accepted),
        inode(&waiting),
        inode(&datagrams),
        number(&packets.inspect().expect("inspect"), "inode"),
    ];

    let Some(before) = ss() else { return };
    let rows = DESCRIPTOR.objects().expect("list");
    let Some(after) = ss() else { return };
    let rows: BTreeMap<i128, &Dict> = rows.iter().map(|row| (number(row, "inode"), row)).collect();
    for inode in ours {
        assert_eq!(as_ss(rows[&inode]), after[&inode], "socket {inode}");
    }
    // Whatever else there was before and after was there in between.
    for inode in before.keys().filter(|inode| after.contains_key(inode)) {
        assert!(rows.contains_key(inode), "ss shows socket {inode}, List does not");
    }

    let row = rows[&inode(&listener)];
    assert_eq!(text(row, "address"), at(directory.path(), "listener", ""));
    assert_eq!(number(row, "uid"), rustix::process::geteuid().as_raw().into());
    assert_eq!(number(row, "rqueue"), 1, "a connection waits to be accepted");
    assert!(row.contains_key("mode") && row.contains_key("owner"), "{row:?}");
    let Some(Value::Dicts(holders)) = row.get("holders") else { panic!("{row:?}") };
    assert!(holders.iter().any(|holder| number(holder, "pid") == std::process::id().into()));
    assert!(!rows[&inode(&accepted)].contains_key("address"), "it has its listener's name");
    assert_eq!(number(rows[&inode(&client)], "peer"), inode(&accepted));
    assert!(text(rows[&inode(&datagrams)], "address").ends_with(",type=dgram"));
    for row in rows.values() {
        for key in row.keys() {
            assert!(DESCRIPTOR.columns.iter().any(|column| column.key == key), "no column {key}");
        }
    }
}

#[test]
fn one_socket_is_found_by_its_inode() {
    let endpoint = create(&format!("unix:abstract={}", unique())).expect("create");
    let inode = number(&endpoint.inspect().expect("inspect"), "inode");
    let found = ipc_kernel::sock_diag::unix_socket(inode.try_into().expect("32 bits")).expect("found");
    assert_eq!(
        (i128::from(found.inode), found.kind, found.state),
        (inode, rustix::net::SocketType::STREAM, 10)
    );
    refused(ipc_kernel::sock_diag::unix_socket(u32::MAX - 1), Kind::NotFound, "no such socket");
}
