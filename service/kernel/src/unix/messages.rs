//! The messages of unix sockets that keep borders: what the kernel says of one that came, where one goes, and what the
//! errnos mean.

use std::sync::PoisonError;

use rustix::{
    io::Errno,
    net::{SocketAddrAny, SocketType, sockopt},
};

use crate::{
    Attempt, Dict, Error, Kind, Result, Value,
    blocked::Sent,
    datagrams::{self, DatagramSink},
    shape::{Message, Messages, Outgoing},
    socket_io,
    socket_messages::{self, Received, Taking},
    unix::{
        endpoint::{Role, UnixEndpoint},
        name::{self, Name, Target},
        peers,
    },
};

impl Messages for UnixEndpoint {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        if message.fds.len() > socket_messages::MAX_FDS {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot send {} file descriptors with a message: the kernel allows {} (SCM_MAX_FD)",
                    message.fds.len(),
                    socket_messages::MAX_FDS
                ),
            ));
        }
        let to = self.addressee(message.attributes)?;
        let address = to.as_ref().map(|(_, target)| SocketAddrAny::from(target.address.clone()));
        socket_messages::send(&self.fd, message.data, message.fds, address.as_ref())
            .map_err(|errno| self.cannot_send(errno, &message, to.as_ref()))
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.message(selector, Taking::Take)
    }

    fn peek(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.message(selector, Taking::Peek)
    }

    fn next_length(&self) -> Option<u64> {
        socket_messages::next_length(&self.fd)
    }

    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        self.addressee(attributes).map(drop)
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        socket_messages::arrival(&self.fd)
    }

    /// The kernel takes what the send buffer holds less 32 bytes (unix_dgram_sendmsg).
    fn max_message_size(&self) -> u64 {
        sockopt::socket_send_buffer_size(&self.fd).map_or(0, |size| (size as u64).saturating_sub(32))
    }

    fn datagram_sink(&self) -> Option<&dyn DatagramSink> {
        (self.role != Role::Unconnected).then_some(self)
    }
}

/// Several at once only go: how long one is that comes its sender decides (SO_SNDBUF), and descriptors may be with it.
impl DatagramSink for UnixEndpoint {
    fn send(&self, datagrams: &[&[u8]]) -> Result<Attempt<usize>> {
        self.addressee(&Dict::new())?;
        match datagrams::send(&self.fd, datagrams) {
            Ok(count) => Ok(Attempt::Done(count)),
            Err(Errno::AGAIN) => Ok(Attempt::Wait(socket_messages::room(&self.fd))),
            Err(errno) => {
                let data = datagrams.first().copied().unwrap_or_default();
                let (attributes, sent) = (&Dict::new(), &Sent::default());
                Err(self.cannot_send(errno, &Outgoing { data, attributes, fds: &[], sent }, None))
            }
        }
    }
}

impl UnixEndpoint {
    /// Takes or peeks a message and says what the kernel says about it.
    fn message(&self, selector: &Dict, taking: Taking) -> Result<Attempt<Message>> {
        if let Some(key) = selector.keys().next() {
            return Err(Error::invalid(format!(
                "unix sockets have no selector {key:?}; messages come in the order in which they were sent"
            )));
        }
        let received = {
            let _guard = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
            socket_messages::receive(&self.fd, taking, self.kind == SocketType::SEQPACKET)?
        };
        Ok(received.map(|received| self.with_attributes(received)))
    }

    fn with_attributes(&self, received: Received) -> Message {
        let mut attributes = Dict::new();
        if let Some(name) = received.from.as_ref().and_then(Name::from_socket) {
            attributes.insert("address".into(), name.address().to_string().into());
        }
        if let Some(who) = received.credentials {
            attributes.insert("uid".into(), who.uid.into());
            attributes.insert("gid".into(), who.gid.into());
            if let Some(pid) = who.pid {
                attributes.insert("pid".into(), pid.into());
            }
        }
        // A kernel before 6.16 passes fds although they are unwanted; dropping them closes them.
        let fds = if self.passing.fds { received.fds } else { Vec::new() };
        Message { data: received.data, attributes, fds }
    }

    /// The addressee in the attributes, if there is one.
    fn addressee(&self, attributes: &Dict) -> Result<Option<(Name, Target)>> {
        if let Some(key) = attributes.keys().find(|key| *key != "address") {
            return Err(Error::invalid(format!(
                "unix sockets have no attribute {key:?} for a message to be sent; they have address"
            )));
        }
        let name = match attributes.get("address") {
            None if self.role == Role::Unconnected => {
                return Err(Error::invalid(
                    "this datagram socket is not connected: say where to send with the attribute address, \
                     such as unix:path=/x or unix:abstract=x",
                ));
            }
            None => {
                // Whoever gave us the socket may have connected it to another one since.
                if self.kind == SocketType::DGRAM {
                    peers::check_connected(&self.fd)?;
                }
                return Ok(None);
            }
            Some(_) if self.kind == SocketType::SEQPACKET => {
                return Err(Error::invalid(
                    "a seqpacket connection sends to its peer only: leave the attribute address out",
                ));
            }
            Some(Value::Text(text)) => Name::parse(text)?,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "the attribute address must be a text (D-Bus type s), not {}",
                    other.signature()
                )));
            }
        };
        let target = Target::find(&name)?;
        peers::check_target(&name, &target)?;
        Ok(Some((name, target)))
    }

    /// The errnos of sendmsg(2) for unix sockets.
    fn cannot_send(&self, errno: Errno, message: &Outgoing<'_>, to: Option<&(Name, Target)>) -> Error {
        let attempt = match to {
            Some((name, _)) => format!("send a message to {}", name.describe()),
            None => "send a message".to_owned(),
        };
        match errno {
            Errno::MSGSIZE => Error::new(
                Kind::TooLarge,
                format!(
                    "cannot {attempt}: it has {} bytes, and at most {} fit (EMSGSIZE); give a larger sndbuf",
                    message.data.len(),
                    self.max_message_size()
                ),
            ),
            Errno::CONNREFUSED if to.is_some() => Error::new(
                Kind::NotFound,
                format!(
                    "cannot {attempt}: no {} socket is there any more (ECONNREFUSED)",
                    name::type_word(self.kind)
                ),
            ),
            Errno::CONNREFUSED | Errno::DESTADDRREQ => Error::new(
                Kind::Closed,
                format!("cannot {attempt}: the peer has gone ({})", crate::error::name(errno)),
            ),
            Errno::PERM if !message.fds.is_empty() => Error::from_errno(errno, attempt).help(
                "the receiver takes no file descriptors (SO_PASSRIGHTS), or is connected to another socket",
            ),
            Errno::PERM => {
                Error::from_errno(errno, attempt).help("the receiver is connected to another socket")
            }
            Errno::PROTOTYPE => Error::invalid(format!(
                "cannot {attempt}: the socket there is of another type{}",
                to.and_then(|(name, target)| target.live_type(name))
                    .map(|kind| format!(", {kind}"))
                    .unwrap_or_default()
            )),
            errno => socket_io::failed(errno, &attempt),
        }
    }
}
