//! A netlink socket that listens, netlink(7): opened, joined to multicast groups, and emptied.
//!
//! Everybody on the machine may send to a netlink socket as far as its family lets him, so what
//! comes says nothing about who sent it (CVE-2009-1185). The kernel's own messages come from port
//! 0, which no process can have; [`Listener`] drops everything else before anybody decodes it, unless
//! it is told to expect udev's messages, which come from a process of root.
//!
//! When a socket's buffer is full the kernel drops what comes, until the socket was read empty, and
//! says so once (ENOBUFS). [`Listener::drain`] passes that on when the socket is empty: then what is
//! told before it is older than the loss, and what is asked for after it is newer.

use rustix::{
    io::Errno,
    net::{Protocol, netlink::SocketAddrNetlink},
};

use crate::{
    Attempt, Fd, Readiness, Result,
    error::Attempted,
    fd::retry,
    netlink::{
        Event,
        socket::{RECEIVE_BUFFER, bound, join, port, set_receive_buffer},
    },
    socket_messages::{Received, recvmsg},
    socket_options,
};

/// The largest datagram: the kernel makes none of more than 32 KiB.
const LARGEST: usize = 32 << 10;

/// How many datagrams are taken at a time.
pub const BATCH: usize = 128;

/// Whose messages are heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    Kernel,
    /// A process of root, as the kernel vouches for it (SCM_CREDENTIALS).
    Root,
}

/// A message of the sender that is listened to.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    pub data: &'a [u8],
    /// The multicast group; 0 for an answer to this socket alone.
    pub group: u32,
}

#[derive(Debug)]
pub struct Listener {
    fd: Fd,
    trust: Trust,
    buffer: Vec<u8>,
    /// Something was lost that nobody was told of yet.
    lost: bool,
}

impl Listener {
    /// A socket of a netlink family, in the network namespace of this thread. `what` reads "the
    /// kernel's device events".
    pub fn open(family: Protocol, trust: Trust, what: &str) -> Result<Self> {
        let attempt = || format!("listen to {what}");
        let fd = bound(Some(family)).attempted(attempt)?;
        set_receive_buffer(&fd, RECEIVE_BUFFER)?;
        socket_options::set_int(&fd, libc::SOL_NETLINK, libc::NETLINK_PKTINFO, 1).attempted(attempt)?;
        if trust == Trust::Root {
            socket_options::set_flag(&fd, libc::SO_PASSCRED, true).attempted(attempt)?;
        }
        Ok(Self { fd: fd.into(), trust, buffer: vec![0; LARGEST], lost: false })
    }

    /// Joins a multicast group.
    pub fn join(&self, group: u32) -> rustix::io::Result<()> {
        join(&self.fd, group)
    }

    /// Sends a message to the kernel, which answers before this returns where it answers at all.
    pub fn ask(&self, message: &[u8]) -> rustix::io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        retry(|| rustix::net::sendto(&self.fd, message, rustix::net::SendFlags::DONTWAIT, &kernel)).map(drop)
    }

    /// Hands over the messages that have come, at most [`BATCH`]. True when messages were lost
    /// before this moment and after those that were handed over.
    pub fn drain(&mut self, mut take: impl FnMut(Datagram<'_>)) -> Result<bool> {
        for _ in 0..BATCH {
            match retry(|| recvmsg(&self.fd, &mut self.buffer, 0)) {
                Ok((raw, received)) if self.trusts(&received) => match self.buffer.get(..raw.length) {
                    Some(data) => take(Datagram { data, group: received.group.unwrap_or(0) }),
                    None => self.lost = true,
                },
                Ok(_forged) => {}
                Err(Errno::AGAIN) => return Ok(std::mem::take(&mut self.lost)),
                // Again, and the loss before it is still to be told.
                Err(Errno::NOBUFS) if self.lost => return Ok(true),
                Err(Errno::NOBUFS) => self.lost = true,
                Err(errno) => return Err(errno).attempted(|| "receive from a netlink socket"),
            }
        }
        Ok(false)
    }

    /// What `next` of a source returns: the events, or what to wait for where there are none.
    pub fn told(&self, events: Vec<Event>) -> Attempt<Vec<Event>> {
        if events.is_empty() { Attempt::Wait(self.readable()) } else { Attempt::Done(events) }
    }

    pub fn readable(&self) -> Readiness {
        Readiness::Readable(self.fd.clone())
    }

    fn trusts(&self, received: &Received) -> bool {
        let Some(port) = port(received.from.as_ref()) else { return false };
        match self.trust {
            Trust::Kernel => port == 0,
            Trust::Root => port != 0 && received.credentials.is_some_and(|who| who.uid == 0),
        }
    }
}
