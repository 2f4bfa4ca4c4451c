//! A face: one connection on which the object tree is served, the bus or a private one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ipc_engine::{Call, Endpoint, Engine, client::Taken};
use ipc_kernel::Error;
use zbus::message::Header;

use crate::errors::Result;

/// What every interface instance knows: the engine, and on which connection it is served.
pub struct Face {
    pub engine: Arc<Engine>,
    /// `Some` for a private connection, whose messages have no sender: the name of its client.
    peer: Option<String>,
    subscriptions: Mutex<HashMap<(String, u64), Taken>>,
}

/// The object number under which a subscription to everything is kept; endpoints count from 1.
const EVERYTHING: u64 = 0;

impl Face {
    /// The face on a message bus.
    pub fn on_bus(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self { engine, peer: None, subscriptions: Mutex::default() })
    }

    /// The face on a private connection.
    pub fn private(engine: Arc<Engine>, client: String) -> Arc<Self> {
        Arc::new(Self { engine, peer: Some(client), subscriptions: Mutex::default() })
    }

    pub fn is_private(&self) -> bool {
        self.peer.is_some()
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
        Ok(self.engine.admit(client)?)
    }

    /// Notes that a client wants the signals of an endpoint, or of all its objects. On session and
    /// private buses signals go to everybody, so that nothing else follows from it here.
    pub fn subscribe(&self, client: &str, endpoint: Option<&Endpoint>) -> Result<()> {
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
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).retain(|(name, id), _| {
            client != Some(name.as_str()) && endpoint.is_none_or(|endpoint| endpoint.id != *id)
        });
    }
}
