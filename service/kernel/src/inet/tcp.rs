//! TCP's endpoints: a listening socket, and a connection.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{SocketFlags, sockopt},
};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Kind, Opening, Parameters, Result,
    dialed::{self, Dialed},
    fd, inet,
    inet::address::{self, Family, Ranges},
    inet::admission::{Admission, REFUSALS_AT_ONCE},
    inet::bind::{self, Local},
    inet::connect::{self, Connecting},
    inet::options::Protocol,
    mechanism::{End, EndKind},
    shape::{self, Direction, Listener, Shape, Stream},
    socket_io,
};

/// Listens at the first address of the host that lets us.
pub fn listen(parameters: &Parameters) -> Result<Opening> {
    let port = bind::port(parameters, "port");
    let ranges = Ranges::of(parameters)?;
    let family = Family::of(parameters);
    let hosts = match parameters.text("host") {
        Some(host) => address::resolve(host, port, family)?,
        None => vec![SocketAddr::new(family.loopback(), port)],
    };
    address::first(&hosts, |host| listen_at(parameters, host, &ranges)).map(Opening::from)
}

fn listen_at(parameters: &Parameters, local: &SocketAddr, ranges: &Ranges) -> Result<Acceptor> {
    let socket = bind::socket(parameters, address::family(local))?;
    if !parameters.has("reuseaddr") {
        let set = sockopt::set_socket_reuseaddr(&socket, true);
        set.map_err(|errno| Error::from_errno(errno, "set SO_REUSEADDR"))?;
    }
    bind::set_v6only(&socket, local, parameters)?;
    bind::bind(&socket, local, Protocol::Tcp)?;
    // The table bounds it to i32.
    let backlog = parameters.u32("backlog").and_then(|n| n.try_into().ok()).unwrap_or(libc::SOMAXCONN);
    // Two sockets with SO_REUSEADDR may be bound alike; the second one's listen(2) fails.
    rustix::net::listen(&socket, backlog).map_err(|errno| bind::bind_failed(errno, local, Protocol::Tcp))?;
    Acceptor::new(socket, ranges.clone())
}

/// Connects, as soon as the host is found; what takes time is done step by step.
pub fn connect(parameters: &Parameters) -> Result<Opening> {
    let started = Instant::now();
    let host = parameters.text("host").ok_or_else(bind::host_missing)?;
    let port = bind::port(parameters, "port");
    if port == 0 {
        return Err(Error::invalid("the key \"port\" must be 1 to 65535 to connect to it"));
    }
    let local = Local::of(parameters)?;
    let addresses = address::resolve(host, port, Family::of(parameters))?;
    let addresses = connect::suitable(addresses, &local)?;
    let timeout = Duration::from_millis(parameters.u32("timeout").unwrap_or(20_000).into());
    let mut connecting = Connecting::new(parameters, host, addresses, local, started, timeout);
    Ok(Opening::Pending(Box::new(move || {
        Ok(match connecting.step()? {
            Attempt::Wait(readiness) => Attempt::Wait(readiness),
            Attempt::Done(fd) => {
                let peer = connect::peer_of(&fd)?;
                let address = address::write("tcp", &address::canonical(peer));
                Attempt::Done(Box::new(Connection { fd: fd.into(), address }) as Box<dyn Endpoint>)
            }
        })
    })))
}

/// A listening or connected socket that was handed over.
pub fn adopt(socket: OwnedFd) -> Result<Box<dyn Endpoint>> {
    if sockopt::socket_acceptconn(&socket).unwrap_or(false) {
        return Ok(Box::new(Acceptor::new(socket, Ranges::default())?));
    }
    if inet::state::peer(&socket).is_none() {
        return Err(Error::invalid(
            "cannot adopt this TCP socket: it is neither connected nor listening; connect(2) or listen(2) first",
        ));
    }
    Ok(Box::new(Connection::of(socket)?))
}

/// A listening socket.
struct Acceptor {
    fd: Fd,
    local: SocketAddr,
    admission: Admission,
}

impl Acceptor {
    fn new(socket: OwnedFd, ranges: Ranges) -> Result<Self> {
        let local = inet::state::local(&socket)?;
        Ok(Self { fd: socket.into(), local, admission: Admission::new(ranges) })
    }
}

impl Endpoint for Acceptor {
    fn address(&self) -> Address {
        address::write("tcp", &self.local)
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Listener]
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn inspect(&self) -> Result<Dict> {
        let mut state = inet::state::inspect_tcp(&self.fd)?;
        self.admission.inspect(&mut state);
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        fd::duplicate(&self.fd)
    }

    fn listener(&self) -> Option<&dyn Listener> {
        Some(self)
    }
}

impl Listener for Acceptor {
    fn accept(&self) -> Result<Attempt<Box<dyn Endpoint>>> {
        // accept(2) has no MSG_DONTWAIT: whoever has a duplicate may have cleared O_NONBLOCK.
        fd::set_nonblocking(self.fd.as_fd())?;
        for _ in 0..REFUSALS_AT_ONCE {
            match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    // A peer that has reset the connection meanwhile has no address any more.
                    let Some(peer) = inet::state::peer(&socket) else { continue };
                    if self.admission.admits(&peer) {
                        return Ok(Attempt::Done(Box::new(Connection::of(socket)?)));
                    }
                    self.admission.refused();
                }
                Err(Errno::AGAIN) => return Ok(shape::readable(&self.fd)),
                // accept(2): errors of the new connection, to be treated like "try again".
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH
                    | Errno::OPNOTSUPP
                    | Errno::PERM,
                ) => {}
                Err(Errno::INVAL) => {
                    return Err(Error::new(
                        Kind::Closed,
                        "cannot accept: another process that holds this socket has shut it down (EINVAL)",
                    ));
                }
                Err(errno) => return Err(Error::from_errno(errno, "accept a connection")),
            }
        }
        Ok(shape::readable(&self.fd))
    }
}

/// A connected socket.
struct Connection {
    fd: Fd,
    address: Address,
}

impl Connection {
    /// One that the peer made, or somebody else: its own side belongs to its address.
    fn of(socket: OwnedFd) -> Result<Self> {
        let peer = address::canonical(connect::peer_of(&socket)?);
        let local = address::canonical(inet::state::local(&socket)?);
        let address = address::write("tcp", &peer)
            .with("local-host", address::host(&local))
            .with("local-port", local.port().to_string());
        Ok(Self { fd: socket.into(), address })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closing a socket with a positive SO_LINGER waits that long, which an endpoint never
        // does; only an adopted socket or one that a caller has a duplicate of can have it.
        if matches!(sockopt::socket_linger(&self.fd), Ok(Some(time)) if !time.is_zero()) {
            let _ = sockopt::set_socket_linger(&self.fd, None);
        }
    }
}

impl Endpoint for Connection {
    fn address(&self) -> Address {
        self.address.clone()
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Stream]
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn dialed(&self) -> std::result::Result<&Dialed, &'static str> {
        Err(dialed::ACCEPTED)
    }

    fn inspect(&self) -> Result<Dict> {
        inet::state::inspect_tcp(&self.fd)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        fd::duplicate(&self.fd)
    }

    fn stream(&self) -> Option<&dyn Stream> {
        Some(self)
    }
}

impl Stream for Connection {
    fn read(&self, max: usize) -> Result<Attempt<Vec<u8>>> {
        socket_io::read(&self.fd, max).map_err(lost)
    }

    fn write(&self, data: &[u8]) -> Result<Attempt<usize>> {
        socket_io::write(&self.fd, data).map_err(lost)
    }

    fn shutdown(&self, direction: Direction) -> Result<()> {
        socket_io::shutdown(&self.fd, direction).map_err(lost)
    }

    fn source(&self) -> Result<Attempt<End>> {
        Ok(Attempt::Done(End { fd: self.fd.clone(), kind: EndKind::Tcp }))
    }

    fn sink(&self) -> Result<Attempt<End>> {
        Ok(Attempt::Done(End { fd: self.fd.clone(), kind: EndKind::Tcp }))
    }

    fn depth(&self) -> Result<u64> {
        fd::waiting(&self.fd)
    }
}

/// These end a connection for good, whatever they mean elsewhere (tcp(7), "Error Handling").
fn lost(error: Error) -> Error {
    match error.kind {
        Kind::Timeout => Error { kind: Kind::Closed, ..error }.help("the peer does not answer any more"),
        Kind::Errno(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NOTCONN) => {
            Error { kind: Kind::Closed, ..error }
        }
        _ => error,
    }
}
