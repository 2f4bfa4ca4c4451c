//! Network sockets against peers that are not ours: the standard library, socat, Python, ss.
//! Everything stays on loopback.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "inet/connect.rs"]
mod connect;
#[path = "inet/list.rs"]
mod list;
#[path = "inet/support.rs"]
mod support;
#[path = "inet/tcp.rs"]
mod tcp;
#[path = "inet/udp.rs"]
mod udp;
