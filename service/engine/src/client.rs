//! Who is calling: one [`Client`] for each connection that has something in flight or owns
//! something, and the admission of its calls.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use ipc_kernel::{Error, Kind, Result};

use crate::{flag::Flag, limits::exceeded};

/// A connection: a unique name on the bus (`:1.42`), or a private connection (`peer:3`).
#[derive(Debug)]
pub struct Client {
    pub name: String,
    /// Set when the connection has ended.
    pub gone: Flag,
    in_flight: AtomicU32,
}

/// All clients, and the names that have lately gone: a call may be looked at after the news that
/// its sender has left, as the two come by different ways. Unique names are never used again.
#[derive(Debug, Default)]
pub struct Clients {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    present: HashMap<String, Arc<Client>>,
    departed: VecDeque<String>,
}

const DEPARTED_KEPT: usize = 1024;

impl Clients {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, name: &str) -> Arc<Client> {
        let mut table = self.table();
        if let Some(client) = table.present.get(name) {
            return client.clone();
        }
        let client =
            Arc::new(Client { name: name.to_owned(), gone: Flag::new(), in_flight: AtomicU32::new(0) });
        if table.departed.iter().any(|departed| departed == name) {
            client.gone.set();
            return client;
        }
        table.present.insert(name.to_owned(), client.clone());
        // Clients with nothing in flight are forgotten; whoever owns something holds an Arc.
        if table.present.len() > 64 {
            table.present.retain(|_, client| Arc::strong_count(client) > 1);
        }
        client
    }

    /// Whether the connection has ended lately.
    pub fn has_left(&self, name: &str) -> bool {
        self.table().departed.iter().any(|departed| departed == name)
    }

    /// The bus is another one: its names begin anew.
    pub fn forget_departed(&self) {
        self.table().departed.clear();
    }

    /// The connection has ended: its waits end.
    pub fn left(&self, name: &str) {
        let mut table = self.table();
        if let Some(client) = table.present.remove(name) {
            client.gone.set();
        }
        table.departed.push_back(name.to_owned());
        if table.departed.len() > DEPARTED_KEPT {
            table.departed.pop_front();
        }
    }
}

/// Why a call ends whose caller has gone.
pub fn has_left() -> Error {
    Error::new(Kind::Cancelled, "the caller has left the bus")
}

/// A counter with a limit.
#[derive(Debug, Default)]
pub struct Counter(AtomicU32);

impl Counter {
    /// Counts one more, unless there are `limit` already.
    pub fn take(self: &Arc<Self>, limit: u32, what: &str, key: &str) -> Result<Taken> {
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        let taken = Taken(self.clone());
        if before >= limit {
            return Err(exceeded(what, key, limit));
        }
        Ok(taken)
    }

    pub fn value(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

/// One of a [`Counter`], given back on drop.
#[derive(Debug)]
pub struct Taken(Arc<Counter>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A call in flight, admitted; counted until it is dropped.
#[derive(Debug)]
pub struct Call {
    pub client: Arc<Client>,
    _in_all: Taken,
}

impl Call {
    /// Err if the caller has left: nobody would hear of what is done now.
    pub fn still_there(&self) -> Result<()> {
        if self.client.gone.is_set() { Err(has_left()) } else { Ok(()) }
    }

    pub fn admit(client: Arc<Client>, per_connection: u32, in_all: Taken) -> Result<Self> {
        let before = client.in_flight.fetch_add(1, Ordering::AcqRel);
        let call = Self { client, _in_all: in_all };
        if before >= per_connection {
            return Err(exceeded(
                "this connection has too many calls in flight",
                "calls-per-connection",
                per_connection,
            ));
        }
        Ok(call)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.client.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
