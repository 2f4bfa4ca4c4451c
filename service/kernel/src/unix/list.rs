//! Every unix socket of the network namespace, as `ss -xa` shows them: from sock_diag(7), or from
//! /proc/net/unix where a sandbox forbids netlink.

use std::collections::HashMap;

use rustix::{fs::FileType, net::SocketType};

use crate::{
    Dict, Error, Result, Value, dict,
    error::errno_of,
    proc::{self, Held},
    sock_diag::{self, UnixSocket},
    unix::endpoint::with_type,
    unix::name::{Name, type_word},
};

/// The states of unix sockets, which the kernel numbers like those of TCP.
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// All of them.
pub fn sockets() -> Result<Vec<UnixSocket>> {
    sock_diag::unix_sockets().or_else(|_| from_proc())
}

/// The rows of `List()`.
pub fn list() -> Result<Vec<Dict>> {
    let sockets = sockets()?;
    let held = proc::held(|link| link.starts_with(b"socket:["));
    let holders = proc::by_link(&held);
    Ok(sockets.iter().map(|socket| row(socket, &holders)).collect())
}

fn row(socket: &UnixSocket, holders: &HashMap<&[u8], Vec<&Held>>) -> Dict {
    let link = format!("socket:[{}]", socket.inode);
    let mut row = dict! {
        "inode" => u64::from(socket.inode),
        "type" => type_word(socket.kind),
        "state" => state(socket.state),
        "rqueue" => socket.receive_queue,
        "wqueue" => socket.send_queue,
        "holders" => holders.get(link.as_bytes()).map(|held| proc::holders(held)).unwrap_or_default(),
    };
    if let Some(uid) = socket.uid {
        row.insert("uid".into(), uid.into());
    }
    if let Some(peer) = socket.peer.filter(|peer| *peer != 0) {
        row.insert("peer".into(), u64::from(peer).into());
    }
    let Some(name) = Name::from_bytes(&socket.name) else {
        return row;
    };
    let (key, bytes) = name.pair();
    row.insert(key.to_owned(), Value::text_or_bytes(bytes));
    if let (Name::Path(path), Some(inode)) = (&name, socket.file_inode)
        && path.is_absolute()
        && let Ok(stat) = rustix::fs::lstat(path)
        && FileType::from_raw_mode(stat.st_mode) == FileType::Socket
        && stat.st_ino == u64::from(inode)
    {
        row.insert("mode".into(), (stat.st_mode & 0o7777).into());
        row.insert("owner".into(), stat.st_uid.into());
        row.insert("group".into(), stat.st_gid.into());
    }
    // An accepted connection has its listener's name, a relative path means nothing to us, and an
    // address cannot hold NUL bytes.
    let findable = match &name {
        Name::Path(path) => path.is_absolute(),
        Name::Abstract(name) => !name.contains(&0),
    };
    if findable && socket.state != ESTABLISHED {
        row.insert("address".into(), with_type(name.address(), socket.kind).to_string().into());
    }
    row
}

fn state(state: u8) -> &'static str {
    match state {
        LISTEN => "listening",
        ESTABLISHED => "connected",
        _ => "unconnected",
    }
}

fn from_proc() -> Result<Vec<UnixSocket>> {
    let text = std::fs::read("/proc/net/unix")
        .map_err(|error| Error::from_errno(errno_of(&error), "read /proc/net/unix"))?;
    Ok(text.split(|byte| *byte == b'\n').skip(1).filter_map(parse_line).collect())
}

/// A line of /proc/net/unix, proc_net(5): `Num: RefCount Protocol Flags Type St Inode Path`.
fn parse_line(line: &[u8]) -> Option<UnixSocket> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        // The path is all that comes after one space, with its own spaces.
        rest = after.strip_prefix(b" ").unwrap_or(after);
        std::str::from_utf8(field).ok().filter(|field| !field.is_empty())
    };
    let [_number, _references, _protocol] = [field()?, field()?, field()?];
    let flags = u32::from_str_radix(field()?, 16).ok()?;
    let kind = SocketType::from_raw(u32::from_str_radix(field()?, 16).ok()?);
    let connected = field()? == "03"; // SS_CONNECTED
    let inode = field()?.parse().ok()?;
    let state = match connected {
        // __SO_ACCEPTCON
        _ if flags & 0x1_0000 != 0 => LISTEN,
        true => ESTABLISHED,
        false => CLOSE,
    };
    let mut name = rest.to_owned();
    // '@' stands for a NUL, and a path of a program's own making may begin with '@' too; the
    // file does not tell.
    if let Some(first @ b'@') = name.first_mut() {
        *first = 0;
    }
    Some(UnixSocket { name, ..UnixSocket::new(inode, kind, state) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_lines_of_proc() {
        let line = b"0000000000000000: 00000002 00000000 00010000 0001 01  4711 /run/a b";
        let socket = parse_line(line).expect("a line of a listening socket");
        let listening = UnixSocket::new(4711, SocketType::STREAM, LISTEN);
        assert_eq!(socket, UnixSocket { name: b"/run/a b".into(), ..listening });
        let line = b"0000000000000000: 00000003 00000000 00000000 0005 03 12";
        let socket = parse_line(line).expect("a line of a connection");
        assert_eq!((socket.kind, socket.state, socket.name), (SocketType::SEQPACKET, ESTABLISHED, vec![]));
        let line = b"0000000000000000: 00000002 00000000 00000000 0002 01 13 @x";
        let socket = parse_line(line).expect("a line of an abstract name");
        assert_eq!((socket.state, socket.name), (CLOSE, b"\0x".into()));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"Num RefCount Protocol"), None);
    }
}
