//! UDP's endpoint: a bound socket, a member of a group, or a socket that is connected to a peer.
//!
//! A datagram comes whole or not at all, an empty one is a message like any other, and what the
//! network says about datagrams that were not delivered is an error of the next operation.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, sockopt},
};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Kind, Opening, Parameters, Result, Value,
    dialed::Dialed,
    dict,
    error::describe,
    fd::{self, retry},
    inet,
    inet::address::{self, Family, Ranges},
    inet::admission::{Admission, REFUSALS_AT_ONCE},
    inet::bind::{self, Group, Local},
    inet::messages::{self, Received},
    inet::options::Protocol,
    shape::{self, Message, Messages, Outgoing, Shape},
};
/// 65,535 less the headers: IPv4's length counts its own header of 20 bytes, IPv6's does not, and
/// UDP's has 8.
const MAX_IPV4: usize = 65_507;
const MAX_IPV6: usize = 65_527;
/// A socket that receives: bound to an address, or a member of a group.
pub fn bind(parameters: &Parameters) -> Result<Opening> {
    let port = bind::port(parameters, "port");
    let ranges = Ranges::of(parameters)?;
    let group = Group::of(parameters, port)?;
    let family = Family::of(parameters);
    let hosts = match (parameters.text("host"), &group) {
        (Some(host), _) => address::resolve(host, port, family)?,
        // Bound to the group, the socket gets nothing that is for the machine itself.
        (None, Some(group)) => vec![group.address],
        (None, None) => vec![SocketAddr::new(family.loopback(), port)],
    };
    address::first(&hosts, |host| bind_to(parameters, host, group.as_ref(), &ranges)).map(Opening::from)
}
fn bind_to(
    parameters: &Parameters,
    local: &SocketAddr,
    group: Option<&Group>,
    ranges: &Ranges,
) -> Result<Udp> {
    if group.is_some_and(|group| group.address.is_ipv4() != local.is_ipv4()) {
        return Err(Error::invalid("the keys \"host\" and \"group\" must be of the same family"));
    }
    let family = address::family(local);
    let socket = bind::socket(parameters, family)?;
    if group.is_some() && !parameters.has("reuseaddr") {
        // Every member on this machine binds to the same port.
        let set = sockopt::set_socket_reuseaddr(&socket, true);
        set.map_err(|errno| Error::from_errno(errno, "set SO_REUSEADDR"))?;
    }
    bind::set_v6only(&socket, local, parameters)?;
    bind::set_group_interface(&socket, parameters, family)?;
    bind::bind(&socket, local, Protocol::Udp)?;
    if let Some(group) = group {
        group.join(&socket)?;
    }
    let local = inet::state::local(&socket)?;
    let mut group = group.cloned();
    let address = match &mut group {
        None => address::write("udp", &local),
        Some(group) => {
            // The kernel may have chosen the port.
            group.address.set_port(local.port());
            group_address(group)
        }
    };
    Ok(Udp { admission: Admission::new(ranges.clone()), group, ..Udp::new(socket, address)? })
}

/// A socket that sends to one peer or group, and receives from that peer only.
pub fn connect(parameters: &Parameters) -> Result<Opening> {
    let port = bind::port(parameters, "port");
    if port == 0 {
        return Err(Error::invalid("the key \"port\" must be 1 to 65535 to send to it"));
    }
    let local = Local::of(parameters)?;
    let group = Group::of(parameters, port)?;
    let peers = match (parameters.text("host"), &group) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("give either the key \"host\" or the key \"group\", not both"));
        }
        (Some(host), None) => address::resolve(host, port, Family::of(parameters))?,
        (None, Some(group)) => vec![group.address],
        (None, None) => return Err(bind::host_missing()),
    };
    let peers = inet::connect::suitable(peers, &local)?;
    address::first(&peers, |peer| connect_to(parameters, peer, &local, group.as_ref())).map(Opening::from)
}

fn connect_to(
    parameters: &Parameters,
    peer: &SocketAddr,
    local: &Local,
    group: Option<&Group>,
) -> Result<Udp> {
    let family = address::family(peer);
    let socket = bind::socket(parameters, family)?;
    bind::set_group_interface(&socket, parameters, family)?;
    local.bind(&socket, peer, parameters)?;
    rustix::net::connect(&socket, peer)
        .map_err(|errno| inet::connect::connect_failed(errno, peer, Protocol::Udp))?;
    let address = match group {
        Some(group) => group_address(group),
        None => address::write("udp", &address::canonical(*peer)),
    };
    Udp::new(socket, address)
}

/// A bound or connected socket that was handed over.
pub fn adopt(socket: OwnedFd) -> Result<Box<dyn Endpoint>> {
    let other_side = match inet::state::peer(&socket) {
        Some(peer) => peer,
        None => inet::state::local(&socket)?,
    };
    let address = address::write("udp", &address::canonical(other_side));
    Ok(Box::new(Udp::new(socket, address)?))
}

/// `udp:group=…,port=…`, with the interface where one was named.
fn group_address(group: &Group) -> Address {
    let address = Address::new("udp")
        .with("group", group.address.ip().to_string())
        .with("port", group.address.port().to_string());
    match group.interface {
        0 => address,
        index => address.with("interface", address::interface_name(index)),
    }
}

/// The group as it was joined; the sender that was asked for is no matter of Attach.
fn membership(group: &Group) -> String {
    let address = group_address(group);
    match &group.source {
        Some(source) => address.with("source", address::host(source)),
        None => address,
    }
    .to_string()
}

struct Udp {
    fd: Fd,
    family: AddressFamily,
    peer: Option<SocketAddr>,
    group: Option<Group>,
    admission: Admission,
    address: Address,
    /// Held while a message is taken, as looking at it and dropping it are two calls; the message
    /// that came between them, where another process receives from this socket too.
    next: Mutex<Option<Received>>,
}

impl Udp {
    fn new(socket: OwnedFd, address: Address) -> Result<Self> {
        Ok(Self {
            family: inet::state::domain(&socket)?,
            peer: inet::state::peer(&socket).map(address::canonical),
            fd: socket.into(),
            group: None,
            admission: Admission::default(),
            address,
            next: Mutex::new(None),
        })
    }

    fn next(&self) -> MutexGuard<'_, Option<Received>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admits(&self, received: &Received) -> bool {
        received.address.is_none_or(|from| self.admission.admits(&from))
    }

    fn take(&self) -> Result<Attempt<Message>> {
        let mut next = self.next();
        if let Some(received) = next.take() {
            return message(received).map(Attempt::Done);
        }
        for _ in 0..REFUSALS_AT_ONCE {
            match messages::receive(&self.fd, false) {
                Ok(received) if self.admits(&received) => return message(received).map(Attempt::Done),
                Ok(_) => self.admission.refused(),
                Err(errno) => return self.nothing(errno),
            }
        }
        Ok(shape::readable(&self.fd))
    }

    /// Looks at the next message, having dropped those in front of it that are out of range.
    fn look(&self) -> Result<Attempt<Message>> {
        let mut next = self.next();
        for _ in 0..REFUSALS_AT_ONCE {
            if let Some(received) = &*next {
                let Received { data, length, address, time, .. } = received;
                let copy = Received {
                    data: data.clone(),
                    length: *length,
                    address: *address,
                    time: *time,
                    report: None,
                };
                return message(copy).map(Attempt::Done);
            }
            match messages::receive(&self.fd, true) {
                Ok(received) if self.admits(&received) => return message(received).map(Attempt::Done),
                Ok(_) => {}
                Err(errno) => return self.nothing(errno),
            }
            match messages::receive(&self.fd, false) {
                Ok(received) if self.admits(&received) => *next = Some(received),
                Ok(_) => self.admission.refused(),
                Err(errno) => return self.nothing(errno),
            }
        }
        Ok(shape::readable(&self.fd))
    }

    /// There is no message: wait for one, or say what became of one that was sent.
    fn nothing<T>(&self, errno: Errno) -> Result<Attempt<T>> {
        // An entry of the error queue makes the socket readable for as long as nobody takes it.
        if let Some(error) = messages::next_error(&self.fd) {
            return Err(error);
        }
        if errno == Errno::AGAIN {
            return Ok(shape::readable(&self.fd));
        }
        Err(self.undelivered(errno))
    }

    /// An ICMP error, which the kernel keeps for the next call on the socket.
    fn undelivered(&self, errno: Errno) -> Error {
        let peer = self.peer.as_ref().map_or_else(|| "its destination".to_owned(), address::show);
        let why = match errno {
            Errno::CONNREFUSED => "nobody receives there, says ICMP: ",
            _ => "",
        };
        Error::new(
            messages::delivery_kind(errno),
            format!("an earlier datagram was not delivered to udp {peer}: {why}{}", describe(errno)),
        )
    }

    fn send_failed(&self, errno: Errno, to: Option<&SocketAddr>, length: usize) -> Error {
        let target = to.map(|to| address::canonical(*to)).or(self.peer);
        let show = target.as_ref().map_or_else(String::new, address::show);
        let what = format!("cannot send {length} bytes to udp {show}");
        match errno {
            Errno::CONNREFUSED => messages::next_error(&self.fd).unwrap_or_else(|| self.undelivered(errno)),
            Errno::MSGSIZE => Error::new(
                Kind::TooLarge,
                format!(
                    "{what}: a datagram has at most {MAX_IPV4} bytes over IPv4 and {MAX_IPV6} over IPv6, \
                     and no more than the path allows where fragments are forbidden (EMSGSIZE)"
                ),
            ),
            Errno::ACCESS => Error::new(Kind::PermissionDenied, format!("{what}: {}", describe(errno)))
                .help("broadcast addresses need broadcast=true"),
            Errno::PERM => Error::new(
                Kind::PermissionDenied,
                format!("{what}: a rule of the machine's packet filter forbids it (EPERM)"),
            ),
            other => Error::from_errno(other, format!("send {length} bytes to udp {show}")),
        }
    }

    /// Where a message goes: its attribute `address`, else the peer or the group.
    fn destination(&self, attributes: &Dict) -> Result<Option<SocketAddr>> {
        if let Some(key) = attributes.keys().find(|key| *key != "address") {
            return Err(Error::invalid(format!("udp has no attribute {key:?}; it has address")));
        }
        let to = match attributes.get("address") {
            Some(Value::Text(text)) => address::destination(text)?,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "the attribute \"address\" must be a text such as udp:host=127.0.0.1,port=5000 \
                     (D-Bus type s), not {}",
                    other.signature()
                )));
            }
            None if self.peer.is_some() => return Ok(None),
            None => match &self.group {
                Some(group) => group.address,
                None => {
                    return Err(Error::invalid(
                        "the attribute \"address\" is missing: this socket has no peer; write \
                         udp:host=…,port=… or attach to the peer",
                    ));
                }
            },
        };
        address::for_family(to, self.family).map(Some)
    }
}

/// What the caller gets of a datagram.
fn message(received: Received) -> Result<Message> {
    let Received { data, length, address, time, .. } = received;
    if data.len() < length {
        return Err(Error::new(
            Kind::TooLarge,
            format!("a datagram of {length} bytes was cut to {}: it is larger than UDP allows", data.len()),
        ));
    }
    let Some(from) = address else {
        // A datagram has a sender; without one recv(2) says that the socket was shut down.
        return Err(Error::new(
            Kind::Closed,
            "cannot receive: another process that holds this socket has shut it down",
        ));
    };
    let from = address::write("udp", &address::canonical(from));
    let mut attributes = dict! { "address" => from.to_string() };
    if let Some(time) = time {
        attributes.insert("time".into(), time.into());
    }
    Ok(Message { data, attributes, fds: Vec::new() })
}

fn no_selector(selector: &Dict) -> Result<()> {
    selector.keys().next().map_or(Ok(()), |key| {
        Err(Error::invalid(format!("udp has no selector {key:?}: datagrams are received in order")))
    })
}

impl Endpoint for Udp {
    fn dialed(&self) -> std::result::Result<&Dialed, &'static str> {
        Err("udp has no connection that could be lost: the socket goes on when its peer is back")
    }

    fn address(&self) -> Address {
        self.address.clone()
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Messages]
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn inspect(&self) -> Result<Dict> {
        let mut state = inet::state::inspect(&self.fd, self.family, Protocol::Udp)?;
        state.insert("state".into(), if self.peer.is_some() { "established" } else { "unconnected" }.into());
        // udp(7), SIOCINQ: the size of the next datagram, not of all.
        state.insert("next-size".into(), rustix::io::ioctl_fionread(&self.fd).unwrap_or(0).into());
        if let Some(group) = &self.group {
            state.insert("groups".into(), vec![membership(group)].into());
        }
        self.admission.inspect(&mut state);
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        fd::duplicate(&self.fd)
    }

    fn messages(&self) -> Option<&dyn Messages> {
        Some(self)
    }
}

impl Messages for Udp {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        if !message.fds.is_empty() {
            return Err(Error::not_supported("udp carries no file descriptors; use a unix socket"));
        }
        let to = self.destination(message.attributes)?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = retry(|| match &to {
            Some(to) => rustix::net::sendto(&self.fd, message.data, flags, to),
            None => rustix::net::send(&self.fd, message.data, flags),
        });
        match sent {
            Ok(_) => Ok(Attempt::Done(())),
            Err(Errno::AGAIN) => Ok(shape::writable(&self.fd)),
            Err(errno) => Err(self.send_failed(errno, to.as_ref(), message.data.len())),
        }
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        no_selector(selector)?;
        self.take()
    }

    fn peek(&self, selector: &Dict) -> Result<Attempt<Message>> {
        no_selector(selector)?;
        self.look()
    }

    fn next_length(&self) -> Option<u64> {
        crate::socket_messages::next_length(&self.fd)
    }

    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        self.destination(attributes).map(drop)
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        Ok(self.look()?.map(drop))
    }

    fn max_message_size(&self) -> u64 {
        if self.family == AddressFamily::INET { MAX_IPV4 as u64 } else { MAX_IPV6 as u64 }
    }
}
