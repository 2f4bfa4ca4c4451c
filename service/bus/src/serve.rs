//! Serving: on a bus under the service's name, and on private connections.

use std::{num::NonZeroUsize, os::fd::OwnedFd, sync::Arc, time::Duration};

use futures_util::StreamExt;
use ipc_engine::Engine;
use ipc_kernel::{Error, Kind, socket_io};
use ipc_stream::BusSocket;
use zbus::{
    Address, Connection, Guid, MatchRule, MessageStream,
    connection::Builder,
    fdo::{DBusProxy, RequestNameFlags},
    message,
};

use crate::{
    announcer, dbus,
    errors::Result,
    face::Face,
    herald,
    interfaces::manager::Manager,
    paths,
    tree::{FAREWELL, Tree},
};

pub const NAME: &str = "org.example.IPC";

/// How long a client of Connect() may take to authenticate.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The service on a bus.
pub struct Service {
    pub tree: Arc<Tree>,
    pub connection: Connection,
    /// Nothing is bridged back into it.
    _own: dbus::own::Own,
}

/// Why the service could not start.
#[derive(Debug)]
pub enum StartError {
    /// Another process has the name; who, in words.
    NameTaken(String),
    Bus(zbus::Error),
    Other(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NameTaken(owner) => {
                write!(f, "the name {NAME} is owned already, by {owner}; stop that one first")
            }
            Self::Bus(error) => write!(f, "the bus: {error}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StartError {}

impl From<zbus::Error> for StartError {
    fn from(error: zbus::Error) -> Self {
        Self::Bus(error)
    }
}

impl Service {
    /// Connects to a bus (None: the session bus), serves the tree and takes the name.
    pub async fn start(engine: Arc<Engine>, address: Option<&str>) -> std::result::Result<Self, StartError> {
        let connection = connect(address).await?;
        ipc_engine::filesystem::detach_stale().await;
        let own = dbus::link::own(&connection).await?;
        if let Some(address) = address {
            dbus::list::set_served(address);
        }
        let tree = Tree::new(engine.clone());
        let face = Face::on_bus(engine.clone());
        tree.serve(face.clone(), &connection)
            .await
            .map_err(|failure| StartError::Other(format!("{failure:?}")))?;
        let departures = departures(&connection).await?;
        tokio::spawn(watch_departures(tree.clone(), face, departures));
        tokio::spawn(announcer::run(tree.clone()));
        take_name(&connection).await?;
        // Not before: who waits for signals of this name would not get the first.
        engine.herald();
        tokio::spawn(herald::run(tree.clone()));
        Ok(Self { tree, connection, _own: own })
    }

    /// Ends everything, and says so.
    pub async fn stop(self) {
        self.tree.stop().await;
        // The bus takes one message after the other: when it answers this one, it has passed on the
        // last words. (An embedded one ends with this process.)
        let asked = dbus::link::ask::<String, _>(&self.connection, "GetId", &());
        if !matches!(tokio::time::timeout(FAREWELL, asked).await, Ok(Ok(_))) {
            tracing::debug!("the bus did not say whether it has passed on the last words");
        }
        if let Err(error) = self.connection.close().await {
            tracing::debug!("the connection could not be closed: {error}");
        }
    }
}

/// By a socket of our own, if the bus has one: anybody could end zbus's with one odd message.
async fn connect(address: Option<&str>) -> zbus::Result<Connection> {
    let address = address.map_or_else(Address::session, str::parse)?;
    let socket = BusSocket::connect(&address, Arc::new(drop))
        .map_err(|error| zbus::Error::Connection(Arc::new(error), Box::new(address.clone())))?;
    socket.map_or_else(|| Builder::address(address), Builder::socket).build().await
}

async fn take_name(connection: &Connection) -> std::result::Result<(), StartError> {
    match connection.request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE).await {
        Ok(_) => Ok(()),
        Err(zbus::Error::NameTaken) => Err(StartError::NameTaken(owner(connection).await)),
        Err(error) => Err(error.into()),
    }
}

/// Who owns the name, in words.
async fn owner(connection: &Connection) -> String {
    let Ok(bus) = DBusProxy::new(connection).await else { return "somebody".to_owned() };
    let Ok(name) = NAME.try_into() else { return "somebody".to_owned() };
    let Ok(owner) = bus.get_name_owner(name).await else { return "somebody".to_owned() };
    let unique = owner.to_string();
    match bus.get_connection_unix_process_id(owner.into_inner().into()).await {
        Ok(pid) => format!("process {pid} ({}), connection {unique}", ipc_kernel::proc::command(pid)),
        Err(_) => format!("connection {unique}"),
    }
}

/// The news of connections that leave the bus.
pub(crate) async fn departures(connection: &Connection) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg(2, "")
        .build()?;
    MessageStream::for_match_rule(rule, connection, NonZeroUsize::new(1024)).await
}

/// Always polled: an unread stream would stall its whole connection.
pub(crate) async fn watch_departures(tree: Arc<Tree>, face: Arc<Face>, mut departures: MessageStream) {
    while let Some(Ok(message)) = departures.next().await {
        let body = message.body();
        let Ok((name, _, _)) = body.deserialize::<(&str, &str, &str)>() else { continue };
        if name.starts_with(':') {
            tree.client_left(&face, name);
        }
    }
}

impl Tree {
    /// One end of a socket on whose other end the tree is served peer-to-peer.
    pub fn connect(self: &Arc<Self>) -> Result<OwnedFd> {
        let engine = &self.engine;
        let limit = engine.limits.connections;
        let counted = engine.counters.connections.take(
            limit,
            "there are too many private connections",
            "connections",
        )?;
        let (ours, theirs) = socket_io::pair()?;
        let tree = self.clone();
        tokio::spawn(async move {
            let _counted = counted;
            if let Err(error) = tree.serve_private(ours).await {
                tracing::info!("a private connection ended: {error:?}");
            }
        });
        Ok(theirs)
    }

    async fn serve_private(self: &Arc<Self>, socket: OwnedFd) -> Result<()> {
        let client = self.next_peer();
        let face = Face::private(self.engine.clone(), client.clone());
        // The manager from the start: without any object zbus would drop the calls that come right behind the
        // authentication. Everything else follows before the first of them is looked at.
        let builder = Builder::unix_stream(socket.into())
            .server(Guid::generate())
            .p2p()
            .serve_at(paths::MANAGER, Manager::new(&face, self));
        let connection = match tokio::time::timeout(HANDSHAKE, builder.build()).await {
            Ok(built) => built?,
            Err(_) => {
                return Err(Error::new(Kind::Timeout, "the client did not authenticate within 10 s").into());
            }
        };
        let served = self.serve(face.clone(), &connection).await;
        if served.is_ok() {
            connection.closed().await;
        }
        self.unserve(&face).await;
        self.client_left(&face, &client);
        served
    }
}
