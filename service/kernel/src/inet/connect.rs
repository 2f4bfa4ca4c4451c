//! Connecting to a host that may have many addresses: Happy Eyeballs (RFC 8305).
//!
//! The addresses are tried in the resolver's order with the families taking turns. Every quarter
//! of a second, or as soon as an attempt fails, the next one starts beside those that are still
//! under way; the first that succeeds wins and the others are given up. Nothing here waits:
//! [`Connecting::step`] does what can be done now and says what to wait for.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{event::PollFlags, fs::OFlags, io::Errno, net::sockopt};

use crate::{
    Attempt, Error, Fd, Kind, Parameters, Readiness, Result,
    error::{Attempted, describe},
    fd, inet,
    inet::bind::{self, Local},
    inet::options::Protocol,
};
/// RFC 8305, section 8: "Connection Attempt Delay".
const STAGGER: Duration = Duration::from_millis(250);
/// A connection that is being made.
pub struct Connecting {
    parameters: Parameters,
    /// The host as it was given, for errors.
    host: String,
    local: Local,
    waiting: VecDeque<SocketAddr>,
    running: Vec<(Fd, SocketAddr)>,
    failed: Vec<(SocketAddr, Error)>,
    next_start: Instant,
    deadline: Instant,
    timeout: Duration,
}
impl Connecting {
    /// `started` is when the caller asked: looking the host up counts, too.
    pub fn new(
        parameters: &Parameters,
        host: &str,
        addresses: Vec<SocketAddr>,
        local: Local,
        started: Instant,
        timeout: Duration,
    ) -> Self {
        Self {
            parameters: parameters.clone(),
            host: host.to_owned(),
            local,
            waiting: interleave(addresses),
            running: Vec::new(),
            failed: Vec::new(),
            next_start: started,
            deadline: started + timeout,
            timeout,
        }
    }

    /// The connected socket, once there is one.
    pub fn step(&mut self) -> Result<Attempt<OwnedFd>> {
        if let Some(winner) = self.look()? {
            return Ok(Attempt::Done(winner));
        }
        let now = Instant::now();
        if now >= self.deadline {
            return Err(self.timed_out());
        }
        while self.running.is_empty() || now >= self.next_start {
            let Some(address) = self.waiting.pop_front() else { break };
            self.next_start = now + STAGGER;
            match self.start(&address) {
                Ok(Started::Connected(fd)) => return Ok(Attempt::Done(fd)),
                Ok(Started::UnderWay(fd)) => self.running.push((fd, address)),
                Err(error) => {
                    // The next address need not wait for one that failed.
                    self.next_start = now;
                    self.failed.push((address, error));
                }
            }
        }
        if self.running.is_empty() {
            return Err(self.all_failed());
        }
        let next = if self.waiting.is_empty() { self.deadline } else { self.next_start.min(self.deadline) };
        let mut until: Vec<_> = self.running.iter().map(|(fd, _)| Readiness::Writable(fd.clone())).collect();
        until.push(Readiness::After(next.saturating_duration_since(now)));
        Ok(Attempt::Wait(Readiness::Any(until)))
    }

    /// Looks which attempts have come to an end.
    fn look(&mut self) -> Result<Option<OwnedFd>> {
        let mut n = 0;
        while let Some((fd, address)) = self.running.get(n) {
            if fd::poll_now(fd, PollFlags::OUT)?.is_empty() {
                n += 1;
                continue;
            }
            let address = *address;
            let outcome = sockopt::socket_error(fd).attempted(|| "read how connecting ended")?;
            let (fd, _) = self.running.swap_remove(n);
            match outcome.and_then(|()| connected(&fd)) {
                Ok(()) => {
                    // The losers are closed with what is left of this attempt.
                    self.running.clear();
                    self.waiting.clear();
                    return Ok(Some(finish(fd)?));
                }
                Err(errno) => {
                    self.next_start = Instant::now();
                    self.failed.push((address, connect_failed(errno, &address, Protocol::Tcp)));
                }
            }
        }
        Ok(None)
    }

    fn start(&self, address: &SocketAddr) -> Result<Started> {
        let socket = bind::socket(&self.parameters, inet::address::family(address))?;
        self.local.bind(&socket, address, &self.parameters)?;
        let fd = Fd::from(socket);
        rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK).attempted(|| "make a socket non-blocking")?;
        match fd::retry(|| rustix::net::connect(&fd, address)) {
            Ok(()) => match connected(&fd) {
                Ok(()) => Ok(Started::Connected(finish(fd)?)),
                Err(errno) => Err(connect_failed(errno, address, Protocol::Tcp)),
            },
            Err(Errno::INPROGRESS) => Ok(Started::UnderWay(fd)),
            // From a port that was given this is the same as bind(2)'s error.
            Err(Errno::ADDRNOTAVAIL) if self.local.has_port() => {
                Err(connect_failed(Errno::ADDRINUSE, address, Protocol::Tcp))
            }
            Err(errno) => Err(connect_failed(errno, address, Protocol::Tcp)),
        }
    }

    fn timed_out(&self) -> Error {
        let silent: Vec<_> = self.running.iter().map(|(_, address)| inet::address::show(address)).collect();
        let mut text =
            format!("cannot connect to {}: no answer within {} ms", self.host, self.timeout.as_millis());
        if !silent.is_empty() {
            text.push_str(&format!(" from {}", silent.join(", ")));
        }
        for (_, error) in &self.failed {
            text.push_str(&format!("; {error}"));
        }
        Error::new(Kind::Timeout, text).help("the key \"timeout\" sets how long to wait")
    }

    /// The most telling error, with the others behind it.
    fn all_failed(&mut self) -> Error {
        // Sorting is stable: of equals the first that was tried.
        self.failed.sort_by_key(|(_, error)| rank(error.kind));
        let mut errors = self.failed.iter().map(|(_, error)| error);
        let Some(first) = errors.next() else {
            return Error::invalid("no address of the host has the family of \"local-host\"");
        };
        let mut error = first.clone();
        for other in errors {
            error.text.push_str(&format!("; {other}"));
        }
        error
    }
}

enum Started {
    Connected(OwnedFd),
    UnderWay(Fd),
}

/// Hosts that answer tell more than networks that do not.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::InvalidArgument | Kind::LimitExceeded | Kind::Exists => 0,
        Kind::NotFound => 1,
        Kind::PermissionDenied => 2,
        Kind::Timeout => 3,
        _ => 4,
    }
}

/// The families take turns, beginning with the resolver's first choice.
fn interleave(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let mut mixed = VecDeque::new();
    while let Some(address) = first.pop_front() {
        mixed.push_back(address);
        mixed.extend(second.pop_front());
    }
    mixed.extend(second);
    mixed
}

/// Connecting to a port of the dynamic range on this machine can end in a connection of the
/// socket with itself (RFC 9293, simultaneous open), where nobody listens.
fn connected(fd: &Fd) -> std::result::Result<(), Errno> {
    let peer = rustix::net::getpeername(fd)?;
    let local = rustix::net::getsockname(fd)?;
    if peer == Some(local) { Err(Errno::CONNREFUSED) } else { Ok(()) }
}

/// Back to a blocking description, as a caller who gets a duplicate expects; no one else has
/// the socket yet.
fn finish(fd: Fd) -> Result<OwnedFd> {
    rustix::fs::fcntl_setfl(&fd, OFlags::empty()).attempted(|| "make a socket blocking")?;
    match Fd::try_unwrap(fd) {
        Ok(fd) => Ok(fd),
        // A wait that is being cancelled may hold the last attempt's readiness a moment longer.
        Err(shared) => fd::duplicate(&shared),
    }
}

/// What the errnos of connect(2) mean.
pub fn connect_failed(errno: Errno, peer: &SocketAddr, protocol: Protocol) -> Error {
    let target = format!("{} {}", protocol.name(), inet::address::show(peer));
    let what = format!("cannot connect to {target}");
    match errno {
        Errno::CONNREFUSED => {
            Error::new(Kind::NotFound, format!("{what}: nobody listens there (ECONNREFUSED)"))
        }
        Errno::ADDRNOTAVAIL => bind::no_free_port(&what),
        Errno::ADDRINUSE => Error::new(
            Kind::Exists,
            format!("{what}: the local port is taken or has a connection to it already (EADDRINUSE)"),
        )
        .help("choose another local-port"),
        Errno::ACCESS if protocol == Protocol::Udp => Error::new(
            Kind::PermissionDenied,
            format!("{what}: it is a broadcast address (EACCES); set broadcast=true"),
        ),
        Errno::ACCESS | Errno::PERM => Error::new(
            Kind::PermissionDenied,
            format!(
                "{what}: a rule of the machine's packet filter forbids it ({})",
                crate::error::name(errno)
            ),
        ),
        Errno::NETUNREACH | Errno::HOSTUNREACH => {
            Error::new(Kind::Errno(errno), format!("{what}: {}", describe(errno)))
                .help("`ip route get` shows why")
        }
        Errno::INVAL if bind::needs_scope(peer) => bind::scope_missing(&what),
        other => Error::from_errno(other, format!("connect to {target}")),
    }
}

/// The addresses that can be reached from the local side that was asked for.
pub fn suitable(addresses: Vec<SocketAddr>, local: &Local) -> Result<Vec<SocketAddr>> {
    let suitable: Vec<_> = addresses.into_iter().filter(|address| local.suits(address)).collect();
    if suitable.is_empty() {
        return Err(Error::invalid(
            "the key \"local-host\" is of another family than every address of the host",
        ));
    }
    Ok(suitable)
}

/// The address of a connected socket, for the endpoint.
pub fn peer_of(fd: &OwnedFd) -> Result<SocketAddr> {
    inet::state::peer(fd).ok_or_else(|| {
        Error::new(Kind::Closed, "the peer closed the connection before it was of any use (ENOTCONN)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |text: &str| -> Vec<SocketAddr> {
            text.split(' ').filter(|t| !t.is_empty()).map(|t| t.parse().unwrap()).collect()
        };
        for (given, expected) in [
            ("[::1]:1 [::2]:1 1.1.1.1:1", "[::1]:1 1.1.1.1:1 [::2]:1"),
            ("1.1.1.1:1 [::1]:1 [::2]:1 [::3]:1", "1.1.1.1:1 [::1]:1 [::2]:1 [::3]:1"),
            ("1.1.1.1:1", "1.1.1.1:1"),
            ("", ""),
        ] {
            assert_eq!(Vec::from(interleave(parse(given))), parse(expected), "{given}");
        }
    }
}
