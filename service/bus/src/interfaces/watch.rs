//! `org.example.IPC.Watch`: changes of files, as they happen.

use ipc_engine::events::Happening;
use ipc_kernel::{Dict, shape::Event};
use zbus::{interface, message::Header, object_server::SignalEmitter};

use crate::{
    errors::Result,
    interfaces::served,
    variants::{Vardict, vardict},
};

served!(Watch);

/// An event that was kept: number, time in microseconds since the epoch, events, path, former
/// path, details.
type Kept = (u64, u64, Vec<String>, String, String, Vardict);

/// The bytes of the paths that are not UTF-8.
pub fn details(change: &Event) -> Result<Vardict> {
    let mut details = Dict::new();
    for (key, path) in [("path-bytes", &change.path), ("from-bytes", &change.from)] {
        if std::str::from_utf8(path).is_err() {
            details.insert(key.to_owned(), path.clone().into());
        }
    }
    vardict(details)
}

#[interface(name = "org.example.IPC.Watch")]
impl Watch {
    /// What Changed signals have said since number seq, as far as it is kept (1,024 events and
    /// 1 MiB): number, time in microseconds since the epoch, events, path, former path,
    /// details as in Changed; and how many are no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let mut kept = Vec::with_capacity(events.len());
        for event in events {
            kept.push(match event.happening {
                Happening::Changed(change) => (
                    event.seq,
                    event.at,
                    change.names.iter().map(|name| (*name).to_owned()).collect(),
                    String::from_utf8_lossy(&change.path).into_owned(),
                    String::from_utf8_lossy(&change.from).into_owned(),
                    details(&change)?,
                ),
                _ => (
                    event.seq,
                    event.at,
                    vec!["Q_OVERFLOW".to_owned()],
                    String::new(),
                    String::new(),
                    Vardict::new(),
                ),
            });
        }
        Ok((kept, lost))
    }

    /// A file changed. The events are those of inotify(7) without IN_: CREATE, ISDIR, … A path
    /// that is not UTF-8 has U+FFFD in the text, and its bytes in details as path-bytes (ay) or
    /// from-bytes (ay); otherwise details are empty.
    #[zbus(signal)]
    pub async fn changed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        events: &[&str],
        path: &str,
        from: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// The kernel dropped events (IN_Q_OVERFLOW). How many, it does not say: lost is 0 then.
    #[zbus(signal)]
    pub async fn overflow(emitter: &SignalEmitter<'_>, seq: u64, lost: u64) -> zbus::Result<()>;
}
