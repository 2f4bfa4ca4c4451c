//! The front's side of the conversation: one request, then its one reply.
//!
//! Neither function waits: `WouldBlock` means "when poll(2) says so", which is what
//! `tokio::io::unix::AsyncFd` expects of them. Both ends of the socket are non-blocking already.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::datagram;
use crate::protocol::{REPLY_SIZE, Reply, Request};

/// Sends a request; `Examine` goes with the pidfd of the process.
pub fn send(spawner: impl AsFd, request: &Request, pidfd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    datagram::send(spawner, &request.encode(), pidfd)
}

/// The reply to the request before; `Started` comes with the front's end of the worker's control
/// socket. `UnexpectedEof`: the spawner has gone. `InvalidData`: it is another version. EMFILE: there
/// was no room for the descriptor, and the reply is lost with it.
///
/// To let a worker end, call `shutdown(2)` on its control socket: to close it is not enough, for
/// the spawner or systemd keeps a duplicate of it for the next front.
pub fn receive(spawner: impl AsFd) -> io::Result<(Reply, Option<OwnedFd>)> {
    let mut bytes = [0; REPLY_SIZE];
    let (length, fd) = datagram::receive(spawner, &mut bytes)?;
    if length > bytes.len() && fd.is_none() {
        return Err(rustix::io::Errno::MFILE.into());
    }
    let reply = bytes.get(..length).and_then(Reply::decode);
    let reply = reply.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, VERSIONS))?;
    Ok((reply, fd))
}

const VERSIONS: &str = "the spawner speaks another version of the protocol: restart ipcd-spawner.service";
