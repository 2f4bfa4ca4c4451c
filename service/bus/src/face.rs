//! A face: one connection on which the object tree is served: the bus, a private connection, or
//! the stream to the front of the system bus.
//!
//! On a session or private bus every signal goes to everybody. Behind the front every signal has an
//! addressee: the connection that created the object, and those that subscribed to it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use ipc_engine::{
    Call, Endpoint, Engine, Object,
    client::{Taken, has_left},
    herald::Herald,
};
use ipc_kernel::Error;
use zbus::message::Header;

use crate::errors::Result;

/// What every interface instance knows: the engine, and on which connection it is served.
pub struct Face {
    pub engine: Arc<Engine>,
    /// `Some` for a private connection, whose messages have no sender: the name of its client.
    peer: Option<String>,
    /// `Some` behind the front: the connections that have called and have not left.
    present: Option<Mutex<HashSet<String>>>,
    subscriptions: Mutex<HashMap<(String, u64), Taken>>,
    /// Behind the front: whether this process is the herald, and nobody's worker.
    is_herald: bool,
}

/// The object number under which a subscription to everything is kept; endpoints count from 1.
const EVERYTHING: u64 = 0;

impl Face {
    /// The face on a message bus.
    pub fn on_bus(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self::new(engine, None, None, false))
    }

    /// The face behind the front of the system bus; it outlives the stream that it is served on.
    pub fn behind_front(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self::new(engine, None, Some(Mutex::default()), false))
    }

    /// The face on a private connection.
    pub fn private(engine: Arc<Engine>, client: String) -> Arc<Self> {
        Arc::new(Self::new(engine, Some(client), None, false))
    }

    /// The herald's face behind the front: callers are anybody, and signals go to everybody.
    pub fn of_herald(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self::new(engine, None, Some(Mutex::default()), true))
    }

    fn new(
        engine: Arc<Engine>,
        peer: Option<String>,
        present: Option<Mutex<HashSet<String>>>,
        is_herald: bool,
    ) -> Self {
        Self { engine, peer, present, subscriptions: Mutex::default(), is_herald }
    }

    pub fn is_herald(&self) -> bool {
        self.is_herald
    }

    /// Whether signals of the herald go here: everywhere but to the front, of whose bus the herald is another
    /// process.
    pub fn hears_the_herald(&self) -> bool {
        self.present.is_none() || self.is_herald
    }

    /// Who tells what the kernel tells everybody.
    pub fn herald(&self) -> Result<Arc<Herald>> {
        if self.hears_the_herald() {
            return Ok(self.engine.herald());
        }
        // The front looks at the interface to find out whose call it is.
        Err(Error::invalid("the call names no interface; name org.example.IPC.Netlink").into())
    }

    pub fn is_private(&self) -> bool {
        self.peer.is_some()
    }

    /// The most bytes that a list may have, and the limit that says so: behind the front, the front's.
    pub fn longest_list(&self) -> (u32, &'static str) {
        let limits = &self.engine.limits;
        match self.present {
            Some(_) => (limits.list.min(limits.payload), "payload"),
            None => (limits.list, "list"),
        }
    }

    /// Who sent the message: the unique name that the bus vouches for, or the private connection.
    pub fn client_name<'a>(&'a self, header: &'a Header<'_>) -> Result<&'a str> {
        match (&self.peer, header.sender()) {
            (Some(peer), _) => Ok(peer),
            (None, Some(sender)) => Ok(sender.as_str()),
            (None, None) => Err(Error::invalid(
                "the message has no sender; connect through a message bus, or by Connect()",
            )
            .into()),
        }
    }

    /// Admits a call.
    pub fn call(&self, header: &Header<'_>) -> Result<Call> {
        let client = self.engine.clients.get(self.client_name(header)?);
        if let Some(present) = &self.present {
            let mut present = present.lock().unwrap_or_else(PoisonError::into_inner);
            // Asked under the lock that `forget` takes: the news that it has left come before or after.
            if !client.gone.is_set() && !present.contains(&client.name) {
                present.insert(client.name.clone());
            }
        }
        Ok(self.engine.admit(client)?)
    }

    /// The connections that have called and have not left, behind the front.
    pub fn present(&self) -> Vec<String> {
        let Some(present) = &self.present else { return Vec::new() };
        present.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Who gets the signals of an object. None: everybody.
    pub fn recipients(&self, object: &Object) -> Option<Vec<String>> {
        let present = self.present.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, creator) = match object {
            Object::Endpoint(endpoint) => (endpoint.id, &endpoint.creator),
            Object::Relay(relay) => (relay.id, &relay.creator),
        };
        let subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = subscriptions
            .keys()
            .filter(|(name, of)| (*of == id || *of == EVERYTHING) && name != creator)
            .map(|(name, _)| name.clone())
            .collect();
        names.sort_unstable();
        names.dedup();
        names.extend(present.get(creator).cloned());
        Some(names)
    }

    /// Notes that a client wants the signals of an endpoint, or of all objects. On session and
    /// private buses signals go to everybody, so that nothing else follows from it there.
    pub fn subscribe(&self, client: &str, endpoint: Option<&Endpoint>) -> Result<()> {
        if let Some(present) = &self.present {
            let mut present = present.lock().unwrap_or_else(PoisonError::into_inner);
            if self.engine.clients.has_left(client) {
                return Err(has_left().into());
            }
            present.insert(client.to_owned());
        }
        let key = (client.to_owned(), endpoint.map_or(EVERYTHING, |endpoint| endpoint.id));
        let mut subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        if subscriptions.contains_key(&key) {
            return Ok(());
        }
        let taken = self.engine.counters.subscriptions.take(
            self.engine.limits.subscriptions,
            "there are too many subscriptions",
            "subscriptions",
        )?;
        subscriptions.insert(key, taken);
        Ok(())
    }

    pub fn unsubscribe(&self, client: &str, endpoint: Option<&Endpoint>) {
        let key = (client.to_owned(), endpoint.map_or(EVERYTHING, |endpoint| endpoint.id));
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Forgets a client that has left, or an endpoint that was closed.
    pub fn forget(&self, client: Option<&str>, endpoint: Option<&Endpoint>) {
        if let (Some(present), Some(client)) = (&self.present, client) {
            present.lock().unwrap_or_else(PoisonError::into_inner).remove(client);
        }
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).retain(|(name, id), _| {
            client != Some(name.as_str()) && endpoint.is_none_or(|endpoint| endpoint.id != *id)
        });
    }
}
