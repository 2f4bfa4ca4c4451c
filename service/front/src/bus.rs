//! What the front asks the message bus for, with calls of its own.
//!
//! zbus pairs a reply with its call by the serial alone. A bus lets only the callee reply, but the
//! front does not lean on that: an answer of the bus must come from the bus.

use std::{io, os::fd::OwnedFd, pin::Pin, sync::Arc};

use ipc_stream::{BusSocket, Take};
use tokio::sync::oneshot;
use zbus::{
    Address, Connection, Error, OwnedVariant, Result,
    connection::Builder,
    fdo::{ConnectionCredentials, RequestNameFlags, RequestNameReply},
    message::Message,
    names::UniqueName,
};

use crate::{
    closer::Closer,
    outbox::{Outbox, SharedSocket},
};

pub const NAME: &str = "org.example.IPC";
pub const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// Connections that leave the bus, and names that are given up.
const DEPARTURES: &str = "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''";

#[derive(Debug, Clone)]
pub struct Bus {
    pub connection: Connection,
}

/// The task of the outbox.
pub type Sending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection to the bus.
pub struct Connected {
    pub bus: Bus,
    pub outbox: Arc<Outbox>,
    pub sending: Sending,
    /// Who is sent here gets the calls and signals that come, all of them.
    pub messages: oneshot::Sender<Take>,
}

impl Bus {
    /// Connects (None: the system bus).
    pub async fn connect(address: Option<&str>, closer: Arc<Closer>) -> Result<Connected> {
        let address = address.map_or_else(Address::system, str::parse)?;
        let doomed = closer.clone();
        // Whose they are is not known.
        let discard = Arc::new(move |fds: Vec<OwnedFd>| doomed.close(None, Box::new(fds)));
        let socket = BusSocket::connect(&address, discard)
            .map_err(|error| Error::Connection(Arc::new(error), Box::new(address.clone())))?;
        let Some(socket) = socket else {
            return Err(Error::Address(format!("{address}: a system bus has the address of a Unix socket")));
        };
        let (mut socket, outbox, sending) = SharedSocket::new(socket, closer);
        let messages = socket.reader().hand_over();
        let mut sending: Sending = Box::pin(sending);
        // The connection asks for its name.
        let connection = tokio::select! {
            connection = Builder::socket(socket).build() => connection?,
            () = &mut sending => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
        };
        Ok(Connected { bus: Self { connection }, outbox, sending, messages })
    }

    pub async fn watch_departures(&self) -> Result<()> {
        self.ask(BUS, "AddMatch", &(DEPARTURES,)).await.map(drop)
    }

    /// The name, at once or not at all. Whether it is ours.
    pub async fn take_name(&self) -> Result<bool> {
        let reply = self.ask(BUS, "RequestName", &(NAME, RequestNameFlags::DO_NOT_QUEUE)).await?;
        let reply: RequestNameReply = reply.body().deserialize()?;
        Ok(matches!(reply, RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner))
    }

    pub async fn release_name(&self) -> Result<()> {
        self.ask(BUS, "ReleaseName", &(NAME,)).await.map(drop)
    }

    /// Who owns the name, in words.
    pub async fn owner(&self) -> String {
        let owner = async {
            let reply = self.ask(BUS, "GetNameOwner", &(NAME,)).await?;
            let name: String = reply.body().deserialize()?;
            let reply = self.ask(BUS, "GetConnectionUnixProcessID", &(&name,)).await?;
            let pid: u32 = reply.body().deserialize()?;
            Ok::<_, Error>(format!("process {pid}, connection {name}"))
        };
        owner.await.unwrap_or_else(|_| "somebody".to_owned())
    }

    pub async fn credentials(&self, name: &str) -> Result<ConnectionCredentials> {
        self.ask(BUS, "GetConnectionCredentials", &(name,)).await?.body().deserialize()
    }

    pub async fn has_owner(&self, name: &str) -> Result<bool> {
        self.ask(BUS, "NameHasOwner", &(name,)).await?.body().deserialize()
    }

    /// How many bytes the bus holds for this connection because it has not read them.
    pub async fn unread(&self, name: &str) -> Result<u64> {
        let reply = self.ask("org.freedesktop.DBus.Debug.Stats", "GetConnectionStats", &(name,)).await?;
        let body = reply.body();
        let stats: std::collections::HashMap<&str, OwnedVariant> = body.deserialize()?;
        let bytes = stats.get("OutgoingBytes").and_then(|bytes| u32::try_from(bytes.clone()).ok());
        bytes.map(u64::from).ok_or(Error::MissingParameter("OutgoingBytes"))
    }

    /// Ends when this connection has read what was sent to it, or has left, or will not answer.
    pub async fn ping(&self, name: &str) -> Result<()> {
        let peer = Some("org.freedesktop.DBus.Peer");
        self.connection.call_method(Some(name), "/", peer, "Ping", &()).await.map(drop)
    }

    async fn ask<B>(&self, interface: &str, member: &str, body: &B) -> Result<Message>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let reply = self.connection.call_method(Some(BUS), BUS_PATH, Some(interface), member, body).await?;
        match reply.header().sender() {
            Some(sender) if is_bus(sender) => Ok(reply),
            _ => Err(Error::Failure(format!("the answer to {member} does not come from the bus"))),
        }
    }
}

pub fn is_bus(sender: &UniqueName<'_>) -> bool {
    sender.as_str() == BUS
}

/// The connection that has left, if this is the news of one.
pub fn departed(message: &Message) -> Option<String> {
    let header = message.header();
    let news = header.sender().is_some_and(is_bus)
        && header.member().is_some_and(|member| member == "NameOwnerChanged")
        && header.interface().is_some_and(|interface| interface == BUS);
    if !news {
        return None;
    }
    let body = message.body();
    let (name, _, new): (&str, &str, &str) = body.deserialize().ok()?;
    (name.starts_with(':') && new.is_empty()).then(|| name.to_owned())
}

/// The news that a connection has left, for a worker that heard of it from a former front.
pub fn departure(name: &str) -> Result<Message> {
    Message::signal(BUS_PATH, BUS, "NameOwnerChanged").sender(BUS).build(&(name, name, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn departures_come_from_the_bus_only() {
        let message = departure(":1.7").expect("valid");
        assert_eq!(departed(&message).as_deref(), Some(":1.7"));
        let signal = |sender: &str, body: (&str, &str, &str)| {
            Message::signal(BUS_PATH, BUS, "NameOwnerChanged").sender(sender).build(&body).expect("valid")
        };
        assert_eq!(departed(&signal(":1.9", (":1.7", ":1.7", ""))), None);
        assert_eq!(departed(&signal(BUS, (":1.7", "", ":1.7"))), None);
        assert_eq!(departed(&signal(BUS, ("org.example.X", ":1.7", ""))), None);
    }
}
