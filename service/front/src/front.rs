//! Starting and stopping the front.

use std::{
    fmt, io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Resource, getrlimit};
use tokio::time::timeout;

use crate::{
    bus::{Bus, Connected, NAME},
    closer::Closer,
    identity,
    limits::Limits,
    router::Router,
    spawner::{Reconnect, Spawner},
};

/// How long the workers' last replies and signals may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where control sockets are kept that shall outlive the front, by the name of their worker: the file
/// descriptor store of systemd (`FDSTORE=1` with `FDNAME=`, `FDSTOREREMOVE=1`). Must not block.
pub trait FdStore: Send + Sync {
    fn keep(&self, name: &str, control: BorrowedFd<'_>);
    fn forget(&self, name: &str);

    /// Whether the workers go on when the front is told to end.
    fn outlives_front(&self) -> bool;
}

/// For when somebody else keeps them: without systemd the spawner has duplicates, for the case that the
/// front dies. When the service ends, everybody does.
pub struct NoStore;

impl FdStore for NoStore {
    fn keep(&self, _name: &str, _control: BorrowedFd<'_>) {}
    fn forget(&self, _name: &str) {}

    fn outlives_front(&self) -> bool {
        false
    }
}

/// What the front starts with.
pub struct Start {
    /// The socket to the spawner.
    pub spawner: OwnedFd,
    /// How to open it again when the spawner was started anew.
    pub reconnect: Option<Reconnect>,
    /// The front's ends of the control sockets of workers that a former front had, by their names.
    pub workers: Vec<(String, OwnedFd)>,
    pub limits: Limits,
    /// The address of the bus; None: the system bus.
    pub address: Option<String>,
    pub fd_store: Box<dyn FdStore>,
}

/// Why the front could not start.
#[derive(Debug)]
pub enum StartError {
    /// Another process has the name; who, in words.
    NameTaken(String),
    Bus(zbus::Error),
    Spawner(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken(owner) => {
                write!(f, "the name {NAME} is owned already, by {owner}; stop that one first")
            }
            Self::Bus(error) => write!(f, "the bus: {error}"),
            Self::Spawner(error) => write!(f, "the socket to the spawner: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<zbus::Error> for StartError {
    fn from(error: zbus::Error) -> Self {
        Self::Bus(error)
    }
}

/// The front, while it runs. Belongs into a runtime of one thread, with I/O and time.
pub struct Front {
    router: Arc<Router>,
}

impl Front {
    /// Connects, takes over the workers of a former front, and takes the name.
    pub async fn start(start: Start) -> Result<Self, StartError> {
        let Start { spawner, reconnect, workers, mut limits, address, fd_store } = start;
        // A full table of descriptors would end the connection to the bus.
        let table = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        limits.fds = limits.fds.min(u32::try_from(table / 2).unwrap_or(u32::MAX));
        let closer = Closer::new();
        let Connected { bus, outbox, sending, messages } =
            Bus::connect(address.as_deref(), closer.clone()).await?;
        let (spawner, asking) = Spawner::new(spawner, reconnect).map_err(StartError::Spawner)?;
        let router = Router::new(bus, limits, spawner, closer, fd_store, outbox);
        router.spawn(asking);
        router.spawn(sending);
        let reading = Arc::downgrade(&router);
        let take = move |message, more| {
            if let Some(router) = reading.upgrade() {
                router.take(message, more);
            }
        };
        // Fails only when the bus is gone already.
        let _reads = messages.send(Box::new(take));
        let front = Self { router };
        match front.open(workers).await {
            Ok(()) => Ok(front),
            Err(error) => {
                front.router.end_tasks().await;
                Err(error)
            }
        }
    }

    async fn open(&self, workers: Vec<(String, OwnedFd)>) -> Result<(), StartError> {
        let router = &self.router;
        router.bus.watch_departures().await?;
        // Two fronts would tear at the same workers: first the name, then the workers.
        if !router.bus.take_name().await? {
            return Err(StartError::NameTaken(router.bus.owner().await));
        }
        for (name, control) in workers {
            match identity::user_of(&name) {
                Some(uid) => router.resume(name, uid, control),
                None => tracing::warn!("a kept file descriptor is named {name:?}, which is no worker's name"),
            }
        }
        router.start_herald();
        Ok(())
    }

    /// Ends when the connection to the bus does.
    pub async fn closed(&self) {
        self.router.bus.connection.closed().await;
    }

    /// Ends the service, or under systemd the front alone: then the next one goes on with the workers.
    pub async fn stop(self) {
        let everybody = !self.router.store.outlives_front();
        if everybody && timeout(FAREWELL, self.router.dismiss_workers()).await.is_err() {
            tracing::warn!("some workers did not end in {} s", FAREWELL.as_secs());
        }
        self.leave().await;
    }

    /// Gives the name back and leaves the bus. Workers live on as long as somebody has their control
    /// sockets.
    pub async fn leave(self) {
        if let Err(error) = self.router.bus.release_name().await {
            tracing::debug!("the name could not be given back: {error}");
        }
        if timeout(FAREWELL, self.router.flush()).await.is_err() {
            tracing::warn!("the message bus did not read the last answers");
        }
        self.router.end_tasks().await;
        if let Err(error) = self.router.bus.connection.clone().close().await {
            tracing::debug!("the connection could not be closed: {error}");
        }
    }
}
