//! Receiving datagrams with everything that the kernel says about them: recvmsg(2) with control
//! messages, and the queue of errors that IP_RECVERR keeps (ip(7), ipv6(7)).
//!
//! A UDP datagram carries at most 65,527 bytes, so one buffer takes any of them whole; the kernel
//! still tells the real length (MSG_TRUNC), and a datagram that was cut would be an error.

use std::{
    mem::MaybeUninit,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
};

use rustix::io::Errno;

use crate::{Error, Fd, Kind, fd::retry, inet};

/// No datagram of IPv4 or IPv6 without jumbograms (RFC 2675) is longer.
const BUFFER: usize = 65_536;

/// For the control messages: an extended error with two addresses and a time are some 100 bytes.
const CONTROL_WORDS: usize = 64;

/// A datagram, or an entry of the error queue.
#[derive(Debug, Default)]
pub struct Received {
    pub data: Vec<u8>,
    /// How long the datagram really was.
    pub length: usize,
    /// Where it came from; in the error queue: where it was to go.
    pub address: Option<SocketAddr>,
    /// Microseconds since the epoch at which the kernel received it.
    pub time: Option<u64>,
    pub report: Option<Report>,
}

/// What the network or the kernel says about a datagram that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub errno: Errno,
    /// Type and code of the ICMP message; `None` where the error is the machine's own.
    pub icmp: Option<(u8, u8)>,
    /// Who says so.
    pub offender: Option<SocketAddr>,
}

/// Takes the next datagram, or looks at it with MSG_PEEK. Does not wait.
pub fn receive(fd: &Fd, peek: bool) -> rustix::io::Result<Received> {
    let flags = if peek { libc::MSG_PEEK } else { 0 };
    retry(|| recvmsg(fd, flags))
}

/// Takes the next entry of the error queue as an error.
pub fn next_error(fd: &Fd) -> Option<Error> {
    let received = retry(|| recvmsg(fd, libc::MSG_ERRQUEUE)).ok()?;
    let report = received.report?;
    let destination = received.address.map_or_else(
        || "its destination".to_owned(),
        |address| inet::address::show(&inet::address::canonical(address)),
    );
    let mut text =
        format!("a datagram was not delivered to {destination}: {}", crate::error::describe(report.errno));
    if let Some((kind, code)) = report.icmp {
        text.push_str(&format!("; ICMP type {kind} code {code}"));
        if let Some(offender) = report.offender {
            text.push_str(&format!(" from {}", inet::address::host(&inet::address::canonical(offender))));
        }
    }
    Some(Error::new(delivery_kind(report.errno), text))
}

/// What an ICMP error means: nobody is there any more, or the errno says it best.
pub fn delivery_kind(errno: Errno) -> Kind {
    match errno {
        Errno::CONNREFUSED => Kind::Closed,
        other => Error::from_errno(other, "").kind,
    }
}

fn recvmsg(fd: &Fd, flags: i32) -> rustix::io::Result<Received> {
    let mut data: Vec<u8> = Vec::with_capacity(BUFFER);
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // Words, because the kernel's headers in it are aligned like them.
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.capacity() };
    // SAFETY: a msghdr of zeros is a valid one that points to nothing.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in the header is to memory of the length beside it, alive until the
    // end of this function.
    let result = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, flags) };
    let Ok(length) = usize::try_from(result) else {
        return Err(crate::error::errno_of(&std::io::Error::last_os_error()));
    };
    // SAFETY: the kernel wrote this many bytes, at most the capacity.
    unsafe { data.set_len(length.min(data.capacity())) };
    data.shrink_to_fit();
    // SAFETY: zeroed at the start, and any bytes are a valid sockaddr_storage.
    let address = socket_address(unsafe { name.assume_init_ref() }, header.msg_namelen as usize);
    let mut received = Received { data, length, address, ..Received::default() };
    // SAFETY: the header is as the kernel left it, its control buffer is alive.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&header) };
    // SAFETY: a non-null result of CMSG_FIRSTHDR or CMSG_NXTHDR points to a header in the buffer.
    while let Some(found) = unsafe { next.as_ref() } {
        #[allow(clippy::unnecessary_cast, reason = "its type differs between C libraries")]
        let whole = found.cmsg_len as usize;
        // SAFETY: CMSG_LEN(0) is the distance from a header to its data; the kernel counts both.
        let contents = unsafe {
            let length = whole.saturating_sub(libc::CMSG_LEN(0) as usize);
            std::slice::from_raw_parts(libc::CMSG_DATA(next), length)
        };
        note(&mut received, found.cmsg_level, found.cmsg_type, contents);
        // SAFETY: as for CMSG_FIRSTHDR.
        next = unsafe { libc::CMSG_NXTHDR(&header, next) };
    }
    Ok(received)
}

fn note(received: &mut Received, level: i32, kind: i32, contents: &[u8]) {
    match (level, kind) {
        (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => received.time = time(contents),
        (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
            received.report = report(contents);
        }
        _ => {}
    }
}

/// A `struct timespec` in microseconds.
fn time(contents: &[u8]) -> Option<u64> {
    let (seconds, rest) = contents.split_first_chunk::<8>()?;
    let (nanoseconds, _) = rest.split_first_chunk::<8>()?;
    let seconds = u64::try_from(i64::from_ne_bytes(*seconds)).ok()?;
    let nanoseconds = u64::try_from(i64::from_ne_bytes(*nanoseconds)).ok()?;
    seconds.checked_mul(1_000_000)?.checked_add(nanoseconds / 1_000)
}

/// A `struct sock_extended_err` and the offender's address behind it.
fn report(contents: &[u8]) -> Option<Report> {
    let (fixed, offender) = contents.split_first_chunk::<16>()?;
    let [e0, e1, e2, e3, origin, kind, code, ..] = *fixed;
    let errno = Errno::from_raw_os_error(i32::from_ne_bytes([e0, e1, e2, e3]));
    let icmp = matches!(origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6).then_some((kind, code));
    Some(Report { errno, icmp, offender: address_in(offender) })
}

/// An address in bytes, as in a control message.
fn address_in(contents: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = contents.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => Some((*rest.first_chunk::<4>()?, port).into()),
        libc::AF_INET6 => {
            // Between port and address stands the flow label, behind the address the scope.
            let (_, rest) = rest.split_first_chunk::<4>()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let scope = u32::from_ne_bytes(*rest.first_chunk::<4>()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, 0, scope).into())
        }
        _ => None,
    }
}

pub(crate) fn socket_address(storage: &libc::sockaddr_storage, length: usize) -> Option<SocketAddr> {
    // SAFETY: the storage is initialised memory of this size, and `length` is cut to it.
    let bytes = unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(storage).cast::<u8>(),
            length.min(size_of::<libc::sockaddr_storage>()),
        )
    };
    address_in(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_decoded() {
        let mut bytes = libc::ECONNREFUSED.to_ne_bytes().to_vec();
        bytes.extend([libc::SO_EE_ORIGIN_ICMP, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend((libc::AF_INET as u16).to_ne_bytes());
        bytes.extend([0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let report = report(&bytes).unwrap();
        assert_eq!(report.errno, Errno::CONNREFUSED);
        assert_eq!(report.icmp, Some((3, 3)));
        assert_eq!(report.offender, Some("127.0.0.1:0".parse().unwrap()));
        for length in 0..16 {
            assert_eq!(super::report(&bytes[..length]), None);
        }
    }

    #[test]
    fn times_are_decoded() {
        let mut bytes = 5i64.to_ne_bytes().to_vec();
        bytes.extend(7_000i64.to_ne_bytes());
        assert_eq!(time(&bytes), Some(5_000_007));
        assert_eq!(time(&bytes[..15]), None);
    }
}
