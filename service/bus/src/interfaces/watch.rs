//! `org.example.IPC.Watch`: changes of files, as they happen.

use ipc_engine::events::{Happening, Numbered};
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

/// A change in ChangedMany: as in Changed, without its number.
pub type Change = (Vec<String>, String, String, Vardict);

/// A change as it is told.
pub fn change(event: &Event) -> Result<Change> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let names = event.names.iter().map(|name| (*name).to_owned()).collect();
    Ok((names, text(&event.path), text(&event.from), details(event)?))
}

/// What the names do not say, and the bytes of the paths that are not UTF-8.
pub fn details(change: &Event) -> Result<Vardict> {
    let mut details = Dict::new();
    for (key, path) in [("path-bytes", &change.path), ("from-bytes", &change.from)] {
        if std::str::from_utf8(path).is_err() {
            details.insert(key.to_owned(), path.clone().into());
        }
    }
    if !change.note.is_empty() {
        details.insert("reason".to_owned(), change.note.clone().into());
    }
    vardict(details)
}

/// Events as Since tells them.
fn past(events: Vec<Numbered>, lost: u64) -> Result<(Vec<Kept>, u64)> {
    let mut kept = Vec::with_capacity(events.len());
    for event in events {
        kept.push(match event.happening {
            Happening::Changed(changed) => {
                let (names, path, from, details) = change(&changed)?;
                (event.seq, event.at, names, path, from, details)
            }
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

#[interface(name = "org.example.IPC.Watch")]
impl Watch {
    /// What Changed signals have said since number seq, as far as it is kept (1,024 events and
    /// 1 MiB): number, time in microseconds since the epoch, events, path, former path,
    /// details as in Changed; and how many are no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        past(events, lost)
    }

    /// The same as soon as there is something after seq: for clients that hear no signals. Each call goes on with
    /// the last number of the one before, and 0 is the first. timeout_ms: 0 does not wait (Busy), 4294967295 is
    /// the default of 20 s, at most 300 s. Errors: Busy, Timeout (nothing has happened), Closed (the watch has
    /// ended; the text says why), Cancelled, LimitExceeded (waits).
    #[zbus(out_args("events", "lost"))]
    async fn wait_since(
        &self,
        seq: u64,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Vec<Kept>, u64)> {
        let call = self.face.call(&header)?;
        let (events, lost) = self.face.engine.wait_since(&call, &self.endpoint, seq, timeout_ms).await?;
        past(events, lost)
    }

    /// A file changed. The events are those of inotify(7) without IN_: CREATE, ISDIR, … A rename
    /// has both MOVED_FROM and MOVED_TO, and its former path in from; one of them alone was moved out of
    /// what is watched, or in. UNWATCHED: that directory is not watched, details say why in reason (s). How
    /// the service came to know, where no event said so: INITIAL, FOUND, RESCANNED, POLLED. A path that is
    /// not UTF-8 has U+FFFD in the text, and its bytes in details as path-bytes (ay) or from-bytes (ay).
    #[zbus(signal)]
    pub async fn changed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        events: &[&str],
        path: &str,
        from: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// With the option batch, instead of Changed: up to 64 changes, of which the first has this number and
    /// the others the next ones; each with its events, path, from and details as in Changed.
    #[zbus(signal)]
    pub async fn changed_many(
        emitter: &SignalEmitter<'_>,
        first: u64,
        changes: Vec<Change>,
    ) -> zbus::Result<()>;

    /// The kernel dropped events (IN_Q_OVERFLOW). How many, it does not say: lost is 0 then. With
    /// recursive or rescan, what has changed meanwhile follows, marked RESCANNED.
    #[zbus(signal)]
    pub async fn overflow(emitter: &SignalEmitter<'_>, seq: u64, lost: u64) -> zbus::Result<()>;
}
