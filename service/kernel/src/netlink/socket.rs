//! A netlink socket that never waits: what the kernel sends to its groups, and the answers to dumps.
//!
//! Everybody may send to a netlink socket (CVE-2009-1185 was such a message, taken for the
//! kernel's): what has another sender than the kernel, port 0, is dropped.

use std::os::fd::{AsFd, OwnedFd};

use neli::consts::nl::NlmF;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType,
        netlink::SocketAddrNetlink, sockopt,
    },
};

use super::{
    answer::Answer,
    wire::{self, Damaged, Frame},
};
use crate::{Error, Fd, Kind, Result, error::Attempted, fd::retry, socket_options};

/// The receive buffer of a socket that listens to groups, in bytes, where net.core.rmem_max allows it; an
/// ordinary user gets less where it does not, and is told of losses earlier.
pub const RECEIVE_BUFFER: usize = 1 << 20;

/// No message of the kernel is longer; what would be is taken for lost.
const DATAGRAM: usize = 1 << 17;

/// How often a dump is repeated when the table changed meanwhile (NLM_F_DUMP_INTR).
const DUMP_ATTEMPTS: u32 = 8;

pub struct Socket {
    pub fd: Fd,
    buffer: Vec<u8>,
    sequence: u32,
}

/// What [`Socket::receive`] found.
pub enum Received<'a> {
    Datagram(&'a [u8]),
    /// There is nothing (more) at this moment.
    Empty,
    /// The kernel had more to say than the buffer takes (ENOBUFS), and says nothing more until the
    /// buffer was found empty.
    Lost,
}

/// A socket of a netlink family (None: NETLINK_ROUTE) in the network namespace of this thread, with a port
/// of its own.
pub fn bound(family: Option<Protocol>) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, family)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
    Ok(fd)
}

/// Makes the receive buffer as large as the kernel allows, up to `size` bytes.
pub fn set_receive_buffer(fd: impl AsFd, size: usize) -> Result<()> {
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN.
    sockopt::set_socket_recv_buffer_size_force(&fd, size)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&fd, size))
        .attempted(|| format!("set the receive buffer of a netlink socket to {size} bytes"))
}

/// The port that a datagram came from: the kernel's is 0.
pub fn port(sender: Option<&SocketAddrAny>) -> Option<u32> {
    SocketAddrNetlink::try_from(sender?.clone()).ok().map(|sender| sender.pid())
}

/// Joins a multicast group.
pub fn join(fd: impl AsFd, group: u32) -> rustix::io::Result<()> {
    // Group numbers are small; one that is none fails in the kernel.
    let group = libc::c_int::try_from(group).map_err(|_| Errno::INVAL)?;
    socket_options::set_int(fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
}

impl Socket {
    /// A socket of this family, with extended acknowledgements and strict checks, in the groups. `what`
    /// reads "the kernel's routes".
    pub fn open(family: Option<Protocol>, groups: &[u32], what: &str) -> Result<Self> {
        let attempt = || format!("open a netlink socket for {what}");
        let fd = bound(family).attempted(attempt)?;
        // Linux before 4.20 and 4.12 has no such options, and does without.
        for option in [libc::NETLINK_GET_STRICT_CHK, libc::NETLINK_EXT_ACK] {
            _ = socket_options::set_int(&fd, libc::SOL_NETLINK, option, 1);
        }
        for group in groups {
            join(&fd, *group).attempted(attempt)?;
        }
        Ok(Self { fd: Fd::new(fd), buffer: vec![0; DATAGRAM], sequence: 0 })
    }

    /// The next datagram of the kernel.
    pub fn receive(&mut self) -> Result<Received<'_>> {
        let length = loop {
            let received = retry(|| rustix::net::recvfrom(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC));
            match received {
                Ok((_, length, sender)) if port(sender.as_ref()) == Some(0) => break length,
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(Received::Empty),
                Err(Errno::NOBUFS) => return Ok(Received::Lost),
                Err(errno) => return Err(Error::from_errno(errno, "receive from the kernel over netlink")),
            }
        };
        Ok(self.buffer.get(..length).map_or(Received::Lost, Received::Datagram))
    }

    /// Asks for a whole table and decodes each row. `header` is the fixed header of the request,
    /// `what` reads "the network interfaces". Whether the rows are one consistent state says the bool:
    /// false where the table changed under every attempt.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        what: &str,
        decode: impl Fn(&Frame<'_>) -> std::result::Result<Option<T>, Damaged>,
    ) -> Result<(Vec<T>, bool)> {
        for _ in 1..DUMP_ATTEMPTS {
            if let (rows, true) = self.dump_once(kind, header, what, &decode)? {
                return Ok((rows, true));
            }
        }
        self.dump_once(kind, header, what, &decode)
    }

    fn dump_once<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        what: &str,
        decode: &impl Fn(&Frame<'_>) -> std::result::Result<Option<T>, Damaged>,
    ) -> Result<(Vec<T>, bool)> {
        let attempt = || format!("ask the kernel for {what}");
        // What a dump that failed half-way left: the kernel makes one at a time.
        while !matches!(self.receive()?, Received::Empty) {}
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let request = wire::request(kind, NlmF::REQUEST | NlmF::DUMP, sequence, header)
            .map_err(|error| malformed(what, error))?;
        // Not connected, but a netlink socket's default destination is the kernel.
        retry(|| rustix::net::send(&self.fd, &request, SendFlags::empty())).attempted(attempt)?;
        let mut rows = Vec::new();
        let mut consistent = true;
        loop {
            let datagram = match self.receive()? {
                Received::Datagram(datagram) => datagram,
                Received::Lost => return Ok((rows, false)),
                // The kernel goes on with a dump while it is read, so there always is more.
                Received::Empty => return Err(Error::from_errno(Errno::AGAIN, attempt())),
            };
            for frame in wire::frames(datagram) {
                let frame = frame.map_err(|error| malformed(what, error))?;
                if frame.sequence != sequence {
                    continue;
                }
                consistent &= frame.flags & NlmF::DUMP_INTR.bits() == 0;
                match i32::from(frame.kind) {
                    libc::NLMSG_DONE if frame.payload.len() < 4 => return Ok((rows, consistent)),
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        let answer =
                            Answer::read(&frame).ok_or_else(|| malformed(what, "the answer is cut"))?;
                        return refused(answer, what).map(|()| (rows, consistent));
                    }
                    _ => rows.extend(decode(&frame).map_err(|error| malformed(what, error))?),
                }
            }
        }
    }
}

fn refused(answer: Answer, what: &str) -> Result<()> {
    if answer.errno <= 0 {
        return Ok(());
    }
    let error =
        Error::from_errno(Errno::from_raw_os_error(answer.errno), format_args!("ask the kernel for {what}"));
    Err(match answer.text {
        Some(text) => error.help(format_args!("the kernel says: {text}")),
        None => error,
    })
}

fn malformed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Errno(Errno::BADMSG),
        format!("cannot ask the kernel for {what}: a netlink message is not as expected ({error})"),
    )
}
