//! What the kernel tells about one network socket that we hold: addresses, queues, buffers and
//! TCP_INFO, for `Inspect()`.

use std::{net::SocketAddr, os::fd::AsFd};

use rustix::net::AddressFamily;

use crate::{
    Dict, Fd, Result, Value, dict,
    error::Attempted,
    inet,
    inet::diag::state_name,
    inet::options::{self, Protocol},
};

/// The address that the socket is bound to.
pub fn local(fd: impl AsFd) -> Result<SocketAddr> {
    inet::address::from_any(rustix::net::getsockname(fd).attempted(|| "read the socket's own address")?)
}

/// The address that it is connected to; `None` where it is not.
pub fn peer(fd: impl AsFd) -> Option<SocketAddr> {
    inet::address::from_any(rustix::net::getpeername(fd).ok()??).ok()
}

/// What every network socket has.
pub fn inspect(fd: &Fd, family: AddressFamily, protocol: Protocol) -> Result<Dict> {
    let local = inet::address::canonical(local(fd)?);
    let mut state = dict! {
        "protocol" => protocol.name(),
        "family" => if family == AddressFamily::INET { "ipv4" } else { "ipv6" },
        "local-host" => inet::address::host(&local),
        "local-port" => u32::from(local.port()),
        "inode" => crate::fd::stat(fd)?.st_ino,
        "options" => options::read(fd, family, protocol),
    };
    if let Some(peer) = peer(fd).map(inet::address::canonical) {
        state.insert("peer-host".into(), inet::address::host(&peer).into());
        state.insert("peer-port".into(), u32::from(peer.port()).into());
    }
    if family == AddressFamily::INET6
        && let Ok(only) = rustix::net::sockopt::ipv6_v6only(fd)
    {
        state.insert("v6only".into(), only.into());
    }
    state.extend(memory(fd));
    Ok(state)
}

/// Bytes in the kernel's buffers and datagrams that found no room (SO_MEMINFO, since Linux 4.12).
fn memory(fd: &Fd) -> Dict {
    /// The words of `sk_meminfo` (<linux/sock_diag.h>).
    const WORDS: [(&str, usize); 3] = [("receive-memory", 0), ("send-memory", 2), ("dropped", 8)];
    let mut buffer = [0u8; 36];
    let length = options::bytes(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut buffer).unwrap_or(0);
    WORDS
        .iter()
        .filter_map(|(key, word)| {
            let bytes = buffer[..length].get(word * 4..)?.first_chunk::<4>()?;
            Some(((*key).to_owned(), u32::from_ne_bytes(*bytes).into()))
        })
        .collect()
}

/// What TCP adds: the state, the queues and the measurements.
pub fn inspect_tcp(fd: &Fd) -> Result<Dict> {
    let mut state = inspect(fd, domain(fd)?, Protocol::Tcp)?;
    let mut info = [0u8; 256];
    let length = options::bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .attempted(|| "read the state of a TCP connection")?;
    let info = &info[..length];
    let name = state_name(Some(Protocol::Tcp), info.first().copied().unwrap_or(0));
    state.insert("state".into(), name.into());
    if name == "listening" {
        // tcp_get_info() in the kernel: the two counters mean this in a listening socket.
        let word = |offset| u32_at(info, offset).unwrap_or(0);
        state.insert("waiting".into(), word(24).into());
        state.insert("backlog".into(), word(28).into());
        return Ok(state);
    }
    state.insert("queued-in".into(), rustix::io::ioctl_fionread(fd).unwrap_or(0).into());
    state.insert("queued-out".into(), u64::from(unsent(fd)).into());
    state.insert("tcp".into(), measurements(info).into());
    Ok(state)
}

/// `struct tcp_info` of <linux/tcp.h>: key, offset, whether it has eight bytes. An older kernel
/// has a shorter one.
const TCP_INFO: [(&str, usize, bool); 25] = [
    ("rto-us", 8, false),
    ("mss-sent", 16, false),
    ("mss-received", 20, false),
    ("unacknowledged", 24, false),
    ("lost", 32, false),
    ("retransmitting", 36, false),
    ("last-sent-ms", 44, false),
    ("last-received-ms", 52, false),
    ("path-mtu", 60, false),
    ("rtt-us", 68, false),
    ("rtt-variance-us", 72, false),
    ("congestion-window", 80, false),
    ("reordering", 88, false),
    ("receive-space", 96, false),
    ("retransmits", 100, false),
    ("pacing-rate", 104, true),
    ("bytes-acked", 120, true),
    ("bytes-received", 128, true),
    ("segments-sent", 136, false),
    ("segments-received", 140, false),
    ("not-sent", 144, false),
    ("min-rtt-us", 148, false),
    ("delivery-rate", 160, true),
    ("bytes-sent", 200, true),
    ("bytes-retransmitted", 208, true),
];

fn measurements(info: &[u8]) -> Dict {
    let value = |&(key, offset, wide): &(&str, usize, bool)| {
        let value: Value = if wide {
            u64::from_ne_bytes(*info.get(offset..)?.first_chunk()?).into()
        } else {
            u32_at(info, offset)?.into()
        };
        Some((key.to_owned(), value))
    };
    TCP_INFO.iter().filter_map(value).collect()
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// AF_INET or AF_INET6.
pub fn domain(fd: impl AsFd) -> Result<AddressFamily> {
    rustix::net::sockopt::socket_domain(fd).attempted(|| "read the family of a socket")
}

/// Bytes that the peer has not acknowledged (SIOCOUTQ, tcp(7)).
fn unsent(fd: &Fd) -> u32 {
    // The request's number has the type of an opcode on every target.
    const SIOCOUTQ: rustix::ioctl::Opcode = libc::TIOCOUTQ as rustix::ioctl::Opcode;
    // SAFETY: SIOCOUTQ writes one int, and is the same request as TIOCOUTQ.
    let bytes = unsafe { rustix::ioctl::ioctl(fd, rustix::ioctl::Getter::<SIOCOUTQ, libc::c_int>::new()) };
    bytes.ok().and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(0)
}
