//! The object tree, served on every face: one on the bus, one for each private connection.
//!
//! An object enters all faces before the call that made it is answered, so that its path works as
//! soon as the caller has it. Entering and leaving are serialised; a new private connection gets
//! all that is there.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use ipc_engine::{Engine, Object};
use ipc_kernel::{Error, Kind, shape::Shape};
use tokio::sync::Mutex;
use zbus::{Connection, Message, ObjectServer, names::InterfaceName, object_server::Interface};

use crate::{
    errors::Result,
    face::Face,
    interfaces::{
        Served, endpoint::Endpoint, filesystem::Filesystem, futex::Futex, introspectable::Introspectable,
        listener::Listener, mailbox::Mailbox, manager::Manager, mechanism::Mechanism, memory::Memory,
        messages::Messages, netlink::Netlink, object_manager, object_manager::ObjectManager,
        process::Process, relay::Relay, semaphore::Semaphore, stream::Stream, watch::Watch,
    },
    outbox::Outbox,
    paths,
};

/// How long the last signals may take at the end.
pub const FAREWELL: Duration = Duration::from_secs(2);

/// How often is looked whether they are said.
const PAUSE: Duration = Duration::from_millis(1);

pub struct Tree {
    pub engine: Arc<Engine>,
    faces: Mutex<Faces>,
    next_peer: AtomicU64,
}

#[derive(Default)]
struct Faces {
    served: Vec<Serving>,
    entered: HashSet<u64>,
}

/// One face, and how its signals leave.
#[derive(Clone)]
pub struct Serving {
    pub face: Arc<Face>,
    pub connection: Connection,
    pub outbox: Outbox,
}

impl Serving {
    /// Sends a signal of an object to whoever is to get it here. `build` makes it for an addressee,
    /// or for everybody: that one is the same on all faces, and made once.
    pub async fn signal(
        &self,
        object: &Object,
        for_all: &mut Option<Message>,
        build: &(impl Fn(Option<&str>) -> zbus::Result<Message> + Sync),
    ) {
        let made = match self.face.recipients(object) {
            None if for_all.is_some() => Ok(for_all.clone().into_iter().collect()),
            None => build(None).map(|message| vec![for_all.insert(message).clone()]),
            Some(names) => names.iter().map(|name| build(Some(name))).collect::<zbus::Result<Vec<_>>>(),
        };
        match made {
            Ok(messages) => {
                for message in messages {
                    self.outbox.send(message).await;
                }
            }
            Err(error) => tracing::error!("a signal could not be built: {error}"),
        }
    }
}

impl Tree {
    pub fn new(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self { engine, faces: Mutex::default(), next_peer: AtomicU64::new(1) })
    }

    /// A name for the client of a private connection.
    pub fn next_peer(&self) -> String {
        format!("peer:{}", self.next_peer.fetch_add(1, Ordering::Relaxed))
    }

    /// Serves the whole tree on a connection.
    pub async fn serve(self: &Arc<Self>, face: Arc<Face>, connection: &Connection) -> Result<()> {
        let server = connection.object_server();
        server.at(paths::NETLINK, Netlink::new(&face)).await?;
        if !face.is_herald() {
            self.serve_nodes(&face, server).await?;
        }
        let mut faces = self.faces.lock().await;
        for object in self.engine.objects() {
            if faces.entered.contains(&id(&object)) {
                self.register(server, &face, &object).await?;
            }
        }
        let outbox =
            if face.is_private() { Outbox::dropping(connection) } else { Outbox::waiting(connection) };
        // The private ones are told first: who asked for one wants to be quick, and a bus may be full.
        let place = if face.is_private() { 0 } else { faces.served.len() };
        faces.served.insert(place, Serving { face, connection: connection.clone(), outbox });
        Ok(())
    }

    async fn serve_nodes(self: &Arc<Self>, face: &Arc<Face>, server: &ObjectServer) -> Result<()> {
        server.at(paths::MANAGER, Manager::new(face, self)).await?;
        server.at(paths::MANAGER, ObjectManager::new(face, self)).await?;
        for mechanism in self.engine.mechanisms.iter() {
            server.at(paths::node(mechanism.name), Mechanism::new(face, mechanism)).await?;
        }
        for path in self.nodes() {
            // zbus's own is there from the start, except where the node itself is not.
            match server.remove_named(path.as_str(), Introspectable::name()).await {
                Ok(_) | Err(zbus::Error::InterfaceNotFound) => {}
                Err(error) => return Err(error.into()),
            }
            server.at(path, Introspectable::new(self)).await?;
        }
        Ok(())
    }

    /// Ends a face: its connection has ended.
    pub async fn unserve(&self, face: &Arc<Face>) {
        self.faces.lock().await.served.retain(|served| {
            let other = !Arc::ptr_eq(&served.face, face);
            if !other {
                served.outbox.stop();
            }
            other
        });
    }

    /// The nodes above the endpoints. The one above the relays has no interface of its own; it is
    /// there as long as there are relays.
    fn nodes(&self) -> Vec<String> {
        let mut nodes: Vec<String> = ["/", "/org", "/org/example", paths::MANAGER].map(str::to_owned).into();
        nodes.extend(self.engine.mechanisms.iter().map(|mechanism| paths::node(mechanism.name)));
        nodes
    }

    /// Puts an object into the tree of every face. The call that made it may be answered then.
    pub async fn enter(self: &Arc<Self>, object: &Object) -> Result<()> {
        let mut faces = self.faces.lock().await;
        if closed(object) {
            return Err(Error::new(Kind::Cancelled, "it was closed at once: its lifetime has ended").into());
        }
        if faces.entered.insert(id(object)) {
            for served in &faces.served {
                self.register(served.connection.object_server(), &served.face, object).await?;
            }
        }
        drop(faces);
        self.engine.announce(object.clone());
        Ok(())
    }

    /// Takes an object out of the tree of every face; says whether it was in it.
    pub async fn leave(&self, object: &Object) -> bool {
        let mut faces = self.faces.lock().await;
        if !faces.entered.remove(&id(object)) {
            return false;
        }
        let path = paths::of(object);
        for served in &faces.served {
            let server = served.connection.object_server();
            for name in object_manager::interface_names(object) {
                let Ok(name) = InterfaceName::try_from(name) else { continue };
                // A connection that has just ended has nothing to take out.
                let _ = server.remove_named(path.as_str(), name).await;
            }
        }
        true
    }

    /// Ends the subscriptions to an object that has left; its last signals went to them.
    pub async fn forget(&self, object: &Object) {
        if let Object::Endpoint(endpoint) = object {
            for served in self.served().await {
                served.face.forget(None, Some(endpoint));
            }
        }
    }

    /// Whether the object is in the tree.
    pub async fn has(&self, object: &Object) -> bool {
        self.faces.lock().await.entered.contains(&id(object))
    }

    async fn register(
        self: &Arc<Self>,
        server: &ObjectServer,
        face: &Arc<Face>,
        object: &Object,
    ) -> Result<()> {
        let path = paths::of(object);
        let path = path.as_str();
        match object {
            Object::Relay(relay) => {
                server.at(path, Relay::new(face, relay)).await?;
            }
            Object::Endpoint(endpoint) => {
                server.at(path, Endpoint::new(face, endpoint)).await?;
                for shape in &endpoint.shapes {
                    match shape {
                        Shape::Stream => drop(server.at(path, Stream::new(face, endpoint)).await?),
                        Shape::Listener => drop(server.at(path, Listener::new(face, self, endpoint)).await?),
                        Shape::Messages => drop(server.at(path, Messages::new(face, endpoint)).await?),
                        Shape::Memory => drop(server.at(path, Memory::new(face, endpoint)).await?),
                        Shape::Semaphore => drop(server.at(path, Semaphore::new(face, endpoint)).await?),
                        Shape::Futex => drop(server.at(path, Futex::new(face, endpoint)).await?),
                        Shape::Watch => drop(server.at(path, Watch::new(face, endpoint)).await?),
                        Shape::Process => drop(server.at(path, Process::new(face, endpoint)).await?),
                        Shape::Mailbox => drop(server.at(path, Mailbox::new(face, endpoint)).await?),
                        Shape::Filesystem => {
                            drop(server.at(path, Filesystem::new(face, endpoint)).await?);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The faces as they are now.
    pub async fn served(&self) -> Vec<Serving> {
        self.faces.lock().await.served.clone()
    }

    /// Sends a signal of an object on every face.
    pub async fn signal(
        &self,
        object: &Object,
        build: impl Fn(Option<&str>) -> zbus::Result<Message> + Sync,
    ) {
        let mut for_all = None;
        for served in self.served().await {
            served.signal(object, &mut for_all, &build).await;
        }
    }

    /// A client of this face has left. The engine first: then no call of its that is still on the
    /// way can be counted as one of somebody who is there.
    pub fn client_left(&self, face: &Face, name: &str) {
        self.engine.client_left(name);
        face.forget(Some(name), None);
    }

    /// Ends everything: waits are cancelled, relays stop, endpoints close and say so, and what was
    /// to be said has left.
    pub async fn stop(&self) {
        let closed = self.engine.stop();
        join_all(closed.iter().map(|endpoint| endpoint.removed())).await;
        let farewell = async {
            // Calls are answered and the announcer runs beside us: let them, and the outboxes.
            loop {
                let outboxes = self.served().await;
                if self.engine.is_silent() && outboxes.iter().all(|serving| serving.outbox.is_empty()) {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::warn!("some signals could not be sent before the end");
        }
    }
}

pub fn id(object: &Object) -> u64 {
    match object {
        Object::Endpoint(endpoint) => endpoint.id,
        Object::Relay(relay) => relay.id,
    }
}

fn closed(object: &Object) -> bool {
    match object {
        Object::Endpoint(endpoint) => endpoint.closed.is_set(),
        Object::Relay(_) => false,
    }
}
