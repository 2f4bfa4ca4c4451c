//! Asking the kernel for its sockets: sock_diag(7), what `ss` shows.
//!
//! One request goes into a NETLINK_SOCK_DIAG socket; the answers come back as a dump, or as one
//! message where a single socket was asked for. [`query`] does that for every family: a family
//! brings its request and its answer as two structures with neli's traits, and reads the
//! attributes that follow the answer. The kernel shows the sockets of the caller's network
//! namespace, to every user.

use std::io::Cursor;

use neli::{
    FromBytes, FromBytesWithInput, Size, ToBytes,
    consts::{
        nl::{NlmF, Nlmsg},
        socket::NlFamily,
    },
    err::{DeError, SocketError},
    nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder},
    socket::synchronous::NlSocketHandle,
    types::{Buffer, RtBuffer},
    utils::Groups,
};
use rustix::{io::Errno, net::SocketType};

use crate::{
    Error, Kind, Result,
    error::{errno_in, errno_of},
};

/// The message type of every request and answer, sock_diag(7).
pub const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// Attributes as they follow an answer: type and payload.
pub type Attributes = RtBuffer<u16, Buffer>;

/// How often a dump is repeated when the kernel says that the sockets changed under it.
const DUMP_ATTEMPTS: u32 = 8;

/// Which answers a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every socket that matches (NLM_F_DUMP).
    All,
    /// The one socket that the request names.
    One,
}

/// What families without states are asked with: `struct netlink_diag_req`, `struct packet_diag_req`.
#[derive(Debug, Size, ToBytes)]
pub struct Request {
    family: u8,
    protocol: u8,
    padding: u16,
    inode: u32,
    show: u32,
    cookie: u64,
}

impl Request {
    /// All sockets of the family. `show` says which attributes the answers are to have.
    pub fn all(family: libc::c_int, protocol: u8, show: u32) -> Self {
        // The families are below 256.
        Self { family: family as u8, protocol, padding: 0, inode: 0, show, cookie: u64::MAX }
    }
}

/// The n-th word of an attribute's payload.
pub fn word(payload: &[u8], n: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*payload.get(n * 4..)?.first_chunk()?))
}

/// Sends `request` and returns every answer. `what` reads "the unix sockets".
///
/// Errors: `NotFound` for a single socket that is not there, `NotSupported` where the kernel has
/// no such module, `PermissionDenied` where a sandbox forbids netlink.
pub fn query<Q, A>(scope: Scope, request: Q, what: &str) -> Result<Vec<A>>
where
    Q: Size + ToBytes,
    A: FromBytesWithInput<Input = usize>,
{
    let socket = NlSocketHandle::connect(NlFamily::SockOrInetDiag, None, Groups::empty())
        .map_err(|error| failed(error, what))?;
    let mut bytes = Cursor::new(Vec::with_capacity(request.padded_size()));
    request.to_bytes(&mut bytes).map_err(|error| failed(error.into(), what))?;
    let request = bytes.into_inner();
    for sequence in 1..DUMP_ATTEMPTS {
        if let (answers, false) = ask(&socket, scope, &request, sequence, what)? {
            return Ok(answers);
        }
    }
    // Sockets come and go faster than the kernel can walk its table: take what the last walk saw.
    Ok(ask(&socket, scope, &request, DUMP_ATTEMPTS, what)?.0)
}

/// One round: the answers, and whether the table changed meanwhile (NLM_F_DUMP_INTR).
fn ask<A>(
    socket: &NlSocketHandle,
    scope: Scope,
    request: &[u8],
    sequence: u32,
    what: &str,
) -> Result<(Vec<A>, bool)>
where
    A: FromBytesWithInput<Input = usize>,
{
    let flags = match scope {
        Scope::All => NlmF::REQUEST | NlmF::DUMP,
        Scope::One => NlmF::REQUEST,
    };
    let message = NlmsghdrBuilder::default()
        .nl_type(SOCK_DIAG_BY_FAMILY)
        .nl_flags(flags)
        .nl_seq(sequence)
        .nl_payload(NlPayload::Payload(Buffer::from(request)))
        .build()
        .map_err(|error| malformed(what, error))?;
    socket.send(&message).map_err(|error| failed(error, what))?;
    let mut answers = Vec::new();
    let mut interrupted = false;
    loop {
        let received = match socket.recv::<u16, Buffer>() {
            Err(SocketError::Io(error)) if errno_of(&error) == Errno::INTR => continue,
            received => received.map_err(|error| failed(error, what))?.0,
        };
        for message in received {
            let message: Nlmsghdr<u16, Buffer> = message.map_err(|error| failed(error, what))?;
            if *message.nl_seq() != sequence {
                continue;
            }
            interrupted |= message.nl_flags().contains(NlmF::DUMP_INTR);
            match message.nl_payload() {
                NlPayload::Err(error) => return Err(refused(*error.error(), what)),
                // A dump that failed half-way says so in its last message.
                NlPayload::DumpExtAck(end) if *end.error() < 0 => {
                    return Err(refused(*end.error(), what));
                }
                NlPayload::Payload(payload) => {
                    let mut bytes = Cursor::new(payload.as_ref());
                    let answer = A::from_bytes_with_input(&mut bytes, payload.len())
                        .map_err(|error| malformed(what, error))?;
                    answers.push(answer);
                }
                _ => {}
            }
            if scope == Scope::One || *message.nl_type() == u16::from(Nlmsg::Done) {
                return Ok((answers, interrupted));
            }
        }
    }
}

fn refused(code: i32, what: &str) -> Error {
    match errno_in(code) {
        // netlink has no handler for this family: its *_diag module is not there.
        Errno::NOENT => Error::new(
            Kind::NotFound,
            format!("cannot ask the kernel for {what}: there is no such socket, or no sock_diag for it"),
        ),
        errno => Error::from_errno(errno, format_args!("ask the kernel for {what}")),
    }
}

fn failed(error: SocketError, what: &str) -> Error {
    match error {
        SocketError::Io(error) => {
            Error::from_errno(errno_of(&error), format_args!("ask the kernel for {what}"))
        }
        other => malformed(what, other),
    }
}

fn malformed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Errno(Errno::BADMSG),
        format!("cannot ask the kernel for {what}: a netlink message is not as expected ({error})"),
    )
}

/// `struct unix_diag_req`, linux/unix_diag.h.
#[derive(Debug, Size, ToBytes)]
struct UnixRequest {
    family: u8,
    protocol: u8,
    padding: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie_low: u32,
    cookie_high: u32,
}

/// `struct unix_diag_msg`, without its cookie, and the attributes behind it.
#[derive(Debug)]
struct UnixAnswer {
    kind: u8,
    state: u8,
    inode: u32,
    attributes: Attributes,
}

impl UnixAnswer {
    /// Family, type, state, a byte of padding, inode, cookie.
    const HEADER: usize = 16;
}

// By hand, as the derived one logs.
impl FromBytesWithInput for UnixAnswer {
    type Input = usize;

    fn from_bytes_with_input(
        bytes: &mut Cursor<impl AsRef<[u8]>>,
        length: usize,
    ) -> std::result::Result<Self, DeError> {
        let [_family, kind, state, _padding] = u32::from_bytes(bytes)?.to_ne_bytes();
        let inode = u32::from_bytes(bytes)?;
        u64::from_bytes(bytes)?;
        let rest = length.checked_sub(Self::HEADER).ok_or(DeError::InvalidInput(length))?;
        Ok(Self { kind, state, inode, attributes: Attributes::from_bytes_with_input(bytes, rest)? })
    }
}

/// UDIAG_SHOW_NAME, _VFS, _PEER, _RQLEN and _UID.
const SHOW: u32 = 0x1 | 0x2 | 0x4 | 0x10 | 0x40;

/// What the kernel tells about a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSocket {
    pub inode: u32,
    pub kind: SocketType,
    /// A state of TCP: 1 is connected, 7 unconnected, 10 listening.
    pub state: u8,
    /// `sun_path`: a leading NUL marks an abstract name; empty is unnamed.
    pub name: Vec<u8>,
    /// The inode of the file that a path names.
    pub file_inode: Option<u32>,
    /// The inode of the socket that it is connected to.
    pub peer: Option<u32>,
    /// Bytes to be read; for a listening socket, connections to be accepted.
    pub receive_queue: u32,
    /// Bytes that the peer has not read yet; for a listening socket, its backlog.
    pub send_queue: u32,
    /// Since Linux 5.3.
    pub uid: Option<u32>,
}

impl UnixSocket {
    /// A socket of which nothing else is known.
    pub fn new(inode: u32, kind: SocketType, state: u8) -> Self {
        Self {
            inode,
            kind,
            state,
            name: Vec::new(),
            file_inode: None,
            peer: None,
            receive_queue: 0,
            send_queue: 0,
            uid: None,
        }
    }
}

/// Every unix socket of the network namespace.
pub fn unix_sockets() -> Result<Vec<UnixSocket>> {
    let answers: Vec<UnixAnswer> = query(Scope::All, unix_request(0), "the unix sockets")?;
    Ok(answers.into_iter().map(UnixSocket::from).collect())
}

/// The unix socket of this inode.
pub fn unix_socket(inode: u32) -> Result<UnixSocket> {
    let what = format!("the unix socket with inode {inode}");
    let answers: Vec<UnixAnswer> = query(Scope::One, unix_request(inode), &what)?;
    answers.into_iter().next().map(UnixSocket::from).ok_or_else(|| refused(-libc::ENOENT, &what))
}

fn unix_request(inode: u32) -> UnixRequest {
    UnixRequest {
        family: libc::AF_UNIX as u8,
        protocol: 0,
        padding: 0,
        states: u32::MAX,
        inode,
        show: SHOW,
        // INET_DIAG_NOCOOKIE: whichever socket has the inode now.
        cookie_low: u32::MAX,
        cookie_high: u32::MAX,
    }
}

impl From<UnixAnswer> for UnixSocket {
    fn from(answer: UnixAnswer) -> Self {
        let mut socket = Self::new(answer.inode, SocketType::from_raw(answer.kind.into()), answer.state);
        for attribute in answer.attributes.iter() {
            let payload = attribute.rta_payload().as_ref();
            let word = |n| word(payload, n);
            match attribute.rta_type() {
                0 => socket.name = payload.to_owned(), // UNIX_DIAG_NAME
                1 => socket.file_inode = word(0),      // UNIX_DIAG_VFS
                2 => socket.peer = word(0),            // UNIX_DIAG_PEER
                4 => {
                    // UNIX_DIAG_RQLEN
                    socket.receive_queue = word(0).unwrap_or(0);
                    socket.send_queue = word(1).unwrap_or(0);
                }
                7 => socket.uid = word(0), // UNIX_DIAG_UID
                _ => {}
            }
        }
        socket
    }
}
