//! Messages over sockets that keep borders (datagrams, sequenced packets), whatever the family:
//! recvmsg(2) and sendmsg(2) with file descriptors, credentials and the sender's address.
//!
//! A message is taken whole or not at all: its length is asked for first (MSG_PEEK | MSG_TRUNC),
//! then it is received into a buffer of that size. Callers hold a lock of their own around
//! [`receive`], so that the message received is the one whose length was asked for; only another
//! process with a duplicate of the socket can come between, and that is reported, not hidden.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{
        RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrAny,
        addr::SocketAddrStorage,
    },
};

use crate::{
    Attempt, Error, Fd, Kind, Readiness, Result,
    fd::{poll_now, retry},
    shape, socket_io, socket_options,
};

/// How many fds the kernel lets one message carry (SCM_MAX_FD, unix(7)).
pub const MAX_FDS: usize = 253;

/// How long to wait before another attempt where the kernel has no event: an unconnected
/// socket polls writable although its addressee's queue is full.
const BACK_OFF: Duration = Duration::from_millis(5);

/// Room for 253 fds, credentials, a pidfd, a time and a security label.
const CONTROL_WORDS: usize = 1024;

/// What recvmsg(2) told about a message.
#[derive(Debug, Default)]
pub struct Received {
    pub data: Vec<u8>,
    /// The sender's address; absent where it has none.
    pub from: Option<SocketAddrAny>,
    /// Where the socket has SO_PASSCRED.
    pub credentials: Option<Credentials>,
    pub fds: Vec<OwnedFd>,
    /// The multicast group of a netlink message, where the socket has NETLINK_PKTINFO; 0 is none.
    pub group: Option<u32>,
    /// The network namespace of a netlink message, where the socket has NETLINK_LISTEN_ALL_NSID and
    /// it is not the socket's own.
    pub namespace: Option<i32>,
}

/// Who sent a message, as the kernel vouches for it (SCM_CREDENTIALS); root may forge it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Absent where the process is in a pid namespace that the service does not see, or where
    /// the message was sent before SO_PASSCRED was set.
    pub pid: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

/// Whether a message leaves the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    Take,
    /// It stays; its fds are not passed.
    Peek,
}

/// The next message. `connected` says that the socket is of a type that has an end of stream
/// (SOCK_SEQPACKET): then `Closed` tells it from an empty message.
pub fn receive(fd: &Fd, taking: Taking, connected: bool) -> Result<Attempt<Received>> {
    let attempt = "receive a message from the socket";
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let length = match retry(|| rustix::net::recv(fd, &mut [0_u8; 0][..], peek)) {
        Ok((_, length)) => length,
        Err(Errno::AGAIN) => return Ok(shape::readable(fd)),
        Err(errno) => return Err(socket_io::failed(errno, attempt)),
    };
    if length == 0 && connected && ended(fd)? {
        return Err(Error::new(
            Kind::Closed,
            "cannot receive a message from the socket: the peer has gone, or this end was shut down for reading",
        ));
    }
    let flags = match taking {
        Taking::Take => 0,
        Taking::Peek => libc::MSG_PEEK,
    };
    let mut data = vec![0; length];
    let (raw, mut received) = match retry(|| recvmsg(fd, &mut data, flags)) {
        Ok(both) => both,
        Err(Errno::AGAIN) => return Ok(shape::readable(fd)),
        Err(errno) => return Err(socket_io::failed(errno, attempt)),
    };
    if raw.length > data.len() {
        return Err(Error::new(
            Kind::Overflow,
            format!(
                "a message of {} bytes was cut to {}: another process that holds this socket took \
                 the message before it",
                raw.length,
                data.len()
            ),
        ));
    }
    data.truncate(raw.length);
    received.data = data;
    match taking {
        Taking::Peek => received.fds.clear(),
        // The fds that did fit are closed when `received` is dropped.
        Taking::Take if raw.flags & libc::MSG_CTRUNC != 0 => {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "a message of {} bytes was received, but not all of its file descriptors; they \
                     were closed; the process is at its limit of open files (RLIMIT_NOFILE)",
                    received.data.len()
                ),
            ));
        }
        Taking::Take => {}
    }
    Ok(Attempt::Done(received))
}

/// Sends a whole message or nothing, to the peer or `to` an address. The errnos mean different
/// things in different families; the caller gives them their names.
pub fn send(fd: &Fd, data: &[u8], fds: &[Fd], to: Option<&SocketAddrAny>) -> rustix::io::Result<Attempt<()>> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(borrowed.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let data = [IoSlice::new(data)];
    let sent = retry(|| match to {
        Some(address) => rustix::net::sendmsg_addr(fd, address, &data, &mut control, flags),
        None => rustix::net::sendmsg(fd, &data, &mut control, flags),
    });
    match sent {
        Ok(_) => Ok(Attempt::Done(())),
        Err(Errno::AGAIN) => Ok(Attempt::Wait(room(fd))),
        Err(errno) => Err(errno),
    }
}

/// What to wait for before the next attempt to send.
pub fn room(fd: &Fd) -> Readiness {
    match poll_now(fd, PollFlags::OUT) {
        Ok(ready) if ready.contains(PollFlags::OUT) => Readiness::After(BACK_OFF),
        _ => Readiness::Writable(fd.clone()),
    }
}

/// Whether a message waits (or the end of the connection, or an error).
pub fn arrival(fd: &Fd) -> Result<Attempt<()>> {
    match poll_now(fd, PollFlags::IN)?.is_empty() {
        true => Ok(shape::readable(fd)),
        false => Ok(Attempt::Done(())),
    }
}

/// The length of the next message; None: there is none.
pub fn next_length(fd: &Fd) -> Option<u64> {
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    retry(|| rustix::net::recv(fd, &mut [0_u8; 0][..], peek)).ok().map(|(_, length)| length as u64)
}

/// Whether nothing at the head of the queue is the end of the connection, not an empty message:
/// both read as 0 bytes. A message has a time, the end has none.
fn ended(fd: &Fd) -> Result<bool> {
    if !poll_now(fd, PollFlags::RDHUP)?.contains(PollFlags::RDHUP) {
        return Ok(false);
    }
    let before = socket_options::get_int(fd, libc::SO_TIMESTAMP).unwrap_or(0) != 0;
    let failed = |errno| socket_io::failed(errno, "look at the end of the connection");
    socket_options::set_flag(fd, libc::SO_TIMESTAMP, true).map_err(failed)?;
    let peeked = retry(|| recvmsg(fd, &mut [], libc::MSG_PEEK));
    socket_options::set_flag(fd, libc::SO_TIMESTAMP, before).map_err(failed)?;
    match peeked {
        Ok((raw, _)) => Ok(!raw.has_time),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

/// What recvmsg(2) told about the call.
pub(crate) struct Raw {
    /// The message's own length, whatever the buffer holds.
    pub length: usize,
    flags: libc::c_int,
    has_time: bool,
}

/// recvmsg(2), never waiting; the bytes are in `data` then. Not rustix's: that one reads the sender's pid as one that cannot be
/// 0, and it is 0 for a sender in another pid namespace; and it does not know SCM_PIDFD.
pub(crate) fn recvmsg(fd: &Fd, data: &mut [u8], flags: libc::c_int) -> rustix::io::Result<(Raw, Received)> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut name = SocketAddrStorage::zeroed();
    let mut slice = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: a msghdr of zeroes is a valid value: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<SocketAddrStorage>() as libc::socklen_t;
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in the header is to a live buffer of the length beside it.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    let Ok(length) = usize::try_from(length) else {
        return Err(crate::error::errno_of(&std::io::Error::last_os_error()));
    };
    let mut raw = Raw { length, flags: header.msg_flags, has_time: false };
    let mut received = Received::default();
    // SAFETY: the kernel filled the header and its control buffer; both live and are aligned.
    unsafe { read_control(&header, &mut raw, &mut received) };
    let family = size_of::<libc::sa_family_t>() as libc::socklen_t;
    if (family..=size_of::<SocketAddrStorage>() as libc::socklen_t).contains(&header.msg_namelen) {
        // SAFETY: the kernel wrote an address of this length, which is at least that of a family.
        received.from = Some(unsafe { SocketAddrAny::read(&raw const name, header.msg_namelen) });
    }
    Ok((raw, received))
}

/// Reads the control messages, cmsg(3). Every fd in them becomes owned, so that none leaks.
///
/// # Safety
///
/// `header` must be as recvmsg(2) left it, with its control buffer alive and aligned; and it may
/// be read only once, as its fds change owner.
unsafe fn read_control(header: &libc::msghdr, raw: &mut Raw, received: &mut Received) {
    // SAFETY: by this function's contract the CMSG_ macros stay within the control buffer, and
    // what they point at was written by the kernel; payloads may be unaligned and are read so.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while !next.is_null() {
            let payload = libc::CMSG_DATA(next);
            let length = ((*next).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            match ((*next).cmsg_level, (*next).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for n in 0..length / size_of::<libc::c_int>() {
                        let number = payload.cast::<libc::c_int>().add(n).read_unaligned();
                        received.fds.push(OwnedFd::from_raw_fd(number));
                    }
                }
                // Set by whoever gave us the socket; nobody asked for it here.
                (libc::SOL_SOCKET, SCM_PIDFD) if length >= size_of::<libc::c_int>() => {
                    let number = payload.cast::<libc::c_int>().read_unaligned();
                    // A negative number says why there is no pidfd.
                    if number >= 0 {
                        drop(OwnedFd::from_raw_fd(number));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if length >= size_of::<libc::ucred>() => {
                    let who = payload.cast::<libc::ucred>().read_unaligned();
                    let pid = u32::try_from(who.pid).ok().filter(|pid| *pid != 0);
                    received.credentials = Some(Credentials { pid, uid: who.uid, gid: who.gid });
                }
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMP) => raw.has_time = true,
                (libc::SOL_NETLINK, libc::NETLINK_PKTINFO) if length >= size_of::<u32>() => {
                    received.group = Some(payload.cast::<u32>().read_unaligned());
                }
                (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) if length >= size_of::<i32>() => {
                    received.namespace = Some(payload.cast::<i32>().read_unaligned());
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
}

/// linux/socket.h, since Linux 6.5.
const SCM_PIDFD: libc::c_int = 4;
