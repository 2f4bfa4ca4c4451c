//! `org.example.IPC.Relay`: what moves from one endpoint to another.

use std::sync::Arc;

use zbus::{OwnedObjectPath, interface, message::Header, object_server::SignalEmitter};

use crate::{
    errors::Result,
    face::Face,
    paths,
    variants::{Vardict, vardict},
};

pub struct Relay {
    face: Arc<Face>,
    relay: Arc<ipc_engine::Relay>,
}

impl Relay {
    pub fn new(face: &Arc<Face>, relay: &Arc<ipc_engine::Relay>) -> Self {
        Self { face: face.clone(), relay: relay.clone() }
    }
}

#[interface(name = "org.example.IPC.Relay")]
impl Relay {
    /// Stops moving, until Resume. Nothing is lost: what comes stays in the kernel.
    fn pause(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.relay.pause()?)
    }

    /// Goes on after Pause.
    fn resume(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.relay.resume()?)
    }

    /// Ends the relay; Finished tells when it has. What was taken and not yet moved is kept at
    /// the source.
    fn stop(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        self.relay.stop(ipc_engine::relay::STOPPED);
        Ok(())
    }

    /// How it moves the data (method: splice, read and write, …), and the counters of both ways; what was
    /// dropped as skipped (on-error=skip) and filtered; the paths of the further sinks (tee, as). With reconnect=true, how
    /// often it has connected again (reconnects, t), why it had to or could not yet (reconnect-error, s), when it will try
    /// again (reconnect-at, t, microseconds since the epoch; 0: it need not), and how many bytes of incomplete messages
    /// were lost with a connection (cut, t).
    #[zbus(out_args("state"))]
    fn inspect(&self, #[zbus(header)] header: Header<'_>) -> Result<Vardict> {
        let _call = self.face.call(&header)?;
        let mut state = self.relay.inspect();
        if !self.relay.tee.is_empty() {
            let paths: Vec<_> = self.relay.tee.iter().map(|sink| paths::endpoint(sink).to_string()).collect();
            state.insert("tee".into(), paths.into());
        }
        vardict(state)
    }

    /// It has ended: at the end of the stream, by Stop, or by an error. Then the object is gone.
    #[zbus(signal)]
    pub async fn finished(
        emitter: &SignalEmitter<'_>,
        reason: &str,
        bytes: u64,
        messages: u64,
    ) -> zbus::Result<()>;

    /// The endpoint that it reads from.
    #[zbus(property(emits_changed_signal = "const"))]
    fn source(&self) -> OwnedObjectPath {
        paths::endpoint(&self.relay.source)
    }

    /// The endpoint that it writes into.
    #[zbus(property(emits_changed_signal = "const"))]
    fn sink(&self) -> OwnedObjectPath {
        paths::endpoint(&self.relay.sink)
    }

    /// waiting (for a peer), reconnecting (to one that has left), running, paused, finished or failed.
    #[zbus(property)]
    pub fn state(&self) -> &str {
        self.relay.state().name()
    }

    /// Bytes moved from source to sink.
    #[zbus(property(emits_changed_signal = "false"))]
    fn bytes(&self) -> u64 {
        self.relay.bytes()
    }

    /// Messages moved from source to sink.
    #[zbus(property(emits_changed_signal = "false"))]
    fn messages(&self) -> u64 {
        self.relay.messages()
    }

    /// Bytes a second, over the last seconds.
    #[zbus(property(emits_changed_signal = "false"))]
    fn rate(&self) -> u64 {
        self.relay.rate()
    }

    /// What went wrong; empty if nothing did.
    #[zbus(property(emits_changed_signal = "false"))]
    fn error(&self) -> String {
        self.relay.error().to_owned()
    }
}
