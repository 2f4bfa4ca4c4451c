//! Several datagrams with one system call, recvmmsg(2) and sendmmsg(2), for whoever wants nothing but their bytes.
//!
//! Of a datagram that is longer than its buffer the rest is lost. So several are received only where the protocol
//! bounds them, as UDP does: each has a slot of [`SLOT`] bytes, and as many come at once as the buffer has slots.

use std::{net::SocketAddr, os::fd::AsRawFd};

use crate::{
    Attempt, Fd, Result,
    error::errno_of,
    fd::retry,
    inet::{messages::socket_address, udp::message},
    shape::Message,
};

/// More than any datagram of UDP has: its length is a number of 16 bits.
pub const SLOT: usize = 1 << 16;

/// More at once gain nothing.
pub const MOST: usize = 16;

/// Messages that come as datagrams of a bounded length, with nothing to be told of each but its sender.
pub trait DatagramSource: Send + Sync {
    /// Takes what is there into the empty batch, as far as it has room.
    fn receive(&self, batch: &mut Batch) -> Result<Attempt<()>>;
}

/// Messages that go to a peer as datagrams.
pub trait DatagramSink: Send + Sync {
    /// Sends them in their order, as many as the peer takes at once, each whole; says how many. An error is that of
    /// the first.
    fn send(&self, datagrams: &[&[u8]]) -> Result<Attempt<usize>>;
}

/// Datagrams on their way, in the order in which they came.
#[derive(Debug)]
pub struct Batch {
    buffer: Vec<u8>,
    /// The length and the sender of each, slot by slot.
    filled: Vec<(usize, SocketAddr)>,
    /// So many of them have gone.
    gone: usize,
}

impl Batch {
    /// With room for one datagram per [`SLOT`] bytes of the buffer.
    pub fn new(buffer: Vec<u8>) -> Self {
        Self { buffer, filled: Vec::new(), gone: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.gone == self.filled.len()
    }

    /// How many have not gone yet.
    pub fn len(&self) -> usize {
        self.filled.len() - self.gone
    }

    /// Those that have not gone yet.
    pub fn rest(&self) -> Vec<&[u8]> {
        let slots = self.buffer.chunks_exact(SLOT).zip(&self.filled);
        // A length is never more than a slot.
        slots.map(|(slot, (length, _))| &slot[..*length]).skip(self.gone).collect()
    }

    /// So many more have gone.
    pub fn went(&mut self, count: usize) {
        self.gone = (self.gone + count).min(self.filled.len());
    }

    /// Holds one that was taken by itself, in place of those that have gone. False: it has no room.
    pub fn hold(&mut self, data: &[u8], from: SocketAddr) -> bool {
        let room = self.buffer.get_mut(..SLOT).and_then(|slot| slot.get_mut(..data.len()));
        let Some(start) = room else { return false };
        start.copy_from_slice(data);
        (self.filled, self.gone) = (vec![(data.len(), from)], 0);
        true
    }

    /// What has not gone, as messages with their senders.
    pub fn messages(&self) -> Vec<Message> {
        let senders = self.filled.iter().skip(self.gone).map(|(_, from)| from);
        self.rest().into_iter().zip(senders).map(|(data, from)| message(data.to_vec(), *from)).collect()
    }

    /// The buffer, for the next batch.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

/// Receives into the empty batch. EAGAIN: nothing is there; no error and nothing in it: the socket was shut down.
pub fn receive(fd: &Fd, batch: &mut Batch) -> rustix::io::Result<()> {
    batch.filled.clear();
    batch.gone = 0;
    // SAFETY: addresses of zeros are valid ones, of no family.
    let mut names: [libc::sockaddr_storage; MOST] = unsafe { std::mem::zeroed() };
    let mut parts: Vec<_> = batch.buffer.chunks_exact_mut(SLOT).take(MOST).map(part).collect();
    let mut headers: Vec<_> = parts.iter_mut().map(header).collect();
    for (header, name) in headers.iter_mut().zip(&mut names) {
        header.msg_hdr.msg_name = (&raw mut *name).cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    }
    let count = libc::c_uint::try_from(headers.len()).unwrap_or_default();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let received = retry(|| {
        // SAFETY: `count` headers, each with a name and one part of memory of the lengths beside them, all of which
        // live until the end of this function.
        counted(unsafe {
            libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count, flags as _, std::ptr::null_mut())
        })
    })?;
    for (header, name) in headers.iter().zip(&names).take(received) {
        // Without a sender it is no datagram: the socket was shut down.
        let Some(from) = socket_address(name, header.msg_hdr.msg_namelen as usize) else { break };
        batch.filled.push(((header.msg_len as usize).min(SLOT), from));
    }
    Ok(())
}

/// Sends to the peer; says how many went, at least one.
pub fn send(fd: &Fd, datagrams: &[&[u8]]) -> rustix::io::Result<usize> {
    let constant =
        |data: &&[u8]| libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut parts: Vec<_> = datagrams.iter().take(MOST).map(constant).collect();
    let mut headers: Vec<_> = parts.iter_mut().map(header).collect();
    let count = libc::c_uint::try_from(headers.len()).unwrap_or_default();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    retry(|| {
        // SAFETY: `count` headers without names, each with one part of memory, which sendmmsg(2) only reads.
        counted(unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count, flags as _) })
    })
}

fn part(slot: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() }
}

/// With this part and nothing else.
fn header(part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: an mmsghdr of zeros is a valid one that points to nothing.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = part;
    header.msg_hdr.msg_iovlen = 1;
    header
}

fn counted(result: libc::c_int) -> rustix::io::Result<usize> {
    usize::try_from(result).map_err(|_| errno_of(&std::io::Error::last_os_error()))
}
