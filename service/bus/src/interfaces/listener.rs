//! `org.example.IPC.Listener`: a listening socket.

use ipc_engine::{Object, events::Happening};
use zbus::{ObjectPath, OwnedObjectPath, interface, message::Header, object_server::SignalEmitter};

use crate::{errors::Result, face::Face, paths, tree::Tree};

use std::sync::Arc;

/// A connection that was accepted: number, time in microseconds since the epoch, endpoint.
type Kept = (u64, u64, OwnedObjectPath);

pub struct Listener {
    face: Arc<Face>,
    tree: Arc<Tree>,
    endpoint: Arc<ipc_engine::Endpoint>,
}

impl Listener {
    pub fn new(face: &Arc<Face>, tree: &Arc<Tree>, endpoint: &Arc<ipc_engine::Endpoint>) -> Self {
        Self { face: face.clone(), tree: tree.clone(), endpoint: endpoint.clone() }
    }
}

#[interface(name = "org.example.IPC.Listener")]
impl Listener {
    /// Takes the next connection, waiting until there is one.
    #[zbus(out_args("endpoint"))]
    async fn accept(&self, timeout_ms: u32, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let call = self.face.call(&header)?;
        let accepted = self.face.engine.accept(&call, &self.endpoint, timeout_ms).await?;
        let path = paths::endpoint(&accepted);
        self.tree.enter(&Object::Endpoint(accepted)).await?;
        Ok(path)
    }

    /// The connections that Accepted signals have told of since number seq: number, time in
    /// microseconds since the epoch, endpoint (which may have been closed since); and how many are
    /// no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let kept = events.into_iter().filter_map(|event| match event.happening {
            // It has its listener's mechanism, and may have been closed meanwhile.
            Happening::Accepted(id) => {
                Some((event.seq, event.at, paths::numbered(self.endpoint.mechanism.name, id)))
            }
            _ => None,
        });
        Ok((kept.collect(), lost))
    }

    /// A connection was accepted (option accept).
    #[zbus(signal)]
    pub async fn accepted(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        endpoint: ObjectPath<'_>,
    ) -> zbus::Result<()>;
}
