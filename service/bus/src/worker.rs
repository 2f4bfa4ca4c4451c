//! A worker of the system bus: the tree of one identity, served to the front.
//!
//! The front holds a control socket (SOCK_SEQPACKET) for as long as the worker is to live. On it
//! comes a stream, a fresh one from each front that is started anew; on the stream the front
//! forwards the messages of the bus as they are, so that their sender is one that the bus vouches
//! for. What objects there are, who made them and who subscribed stays here, whatever happens to
//! the front: a stream is only where answers and signals go at the moment.
//!
//! | on the control socket | |
//! | --- | --- |
//! | `ipc1` and the bus's GUID, with the stream | serve on it, and not on the one before |
//! | `ok` | the answer: the tree is there |
//! | `mnt1`, with a socket | the answer to `Mount`: on it a helper sends a mount |
//! | `mnt0`, an error's name and a text | there is none, and this is why |
//! | end | end |
//!
//! Three signals without addressee are for the front itself: `Clients`, the first on each stream,
//! names the connections that are known here, so that the front can say which of them have left
//! meanwhile; `Idle` offers to end; `Mount` asks for a FUSE mount ([`mounts`](crate::mounts)). The news of departures come as the bus sends them.
//!
//! The herald is started and served in the same way, by a front of its own time only. It is nobody's: it
//! serves the interface `org.example.IPC.Netlink` and nothing else, to everybody, and its signals without
//! addressee are for everybody. It has no word for the front, and never offers to end.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use ipc_engine::{Engine, wait};
use ipc_kernel::{
    Attempt, Error, Fd, Kind, Result,
    socket_messages::{self, Taking},
};
use ipc_stream::Handle;
use tokio::task::JoinHandle;
use zbus::{Connection, Guid, Message, connection::Builder};

use crate::{
    announcer,
    face::Face,
    herald,
    interfaces::{manager::Manager, netlink::Netlink},
    mounts::Wanted,
    paths,
    serve::{departures, watch_departures},
    tree::{FAREWELL, Tree},
};

/// The interface of the signals to the front.
pub const INTERFACE: &str = "org.example.IPC.Worker";

/// In front of the bus's GUID in a datagram that brings a stream; changes when what follows does.
pub const SERVE: &[u8; 4] = b"ipc1";

/// In front of the socket of a helper that makes a mount, or of why there is none.
pub const MOUNT: &[u8; 4] = b"mnt1";
pub const NO_MOUNT: &[u8; 4] = b"mnt0";

/// The most bytes of a message (D-Bus specification, message protocol).
const LONGEST_MESSAGE: usize = 128 << 20;

/// The answer when the tree is served on the stream.
pub const SERVED: &[u8; 2] = b"ok";

/// Serves the tree of a caller until the control socket ends, or `stop` says so; then everything ends, and
/// says so on the stream if that is still there.
pub async fn serve(
    control: OwnedFd,
    engine: Arc<Engine>,
    mounts: Wanted,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    serve_face(control, Face::behind_front(engine), mounts, stop).await
}

/// Serves as the herald, likewise.
pub async fn serve_herald(
    control: OwnedFd,
    engine: Arc<Engine>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    // Listens from the start: what happens before the first call is told, too.
    engine.herald();
    serve_face(control, Face::of_herald(engine), Wanted::none(), stop).await
}

async fn serve_face(
    control: OwnedFd,
    face: Arc<Face>,
    mut mounts: Wanted,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    tokio::pin!(stop);
    let engine = face.engine.clone();
    let control = Fd::from(control);
    let period = Duration::from_secs(engine.limits.idle_s.into());
    let tree = Tree::new(engine.clone());
    let announcer = tokio::spawn(announcer::run(tree.clone()));
    let mut worker = Worker { face, tree, control: control.clone(), bus: None, stream: None, telling: None };
    let ended = loop {
        tokio::select! {
            brought = next_word(&control) => match brought {
                Ok(Some(Word::Serve(bus, stream))) => worker.take(bus, stream).await,
                Ok(Some(Word::Mount(made))) => mounts.answer(made),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
            () = &mut stop => break Ok(()),
            () = mounts.next() => {
                if !worker.offer("Mount").await {
                    mounts.answer(Err(Error::new(Kind::Unavailable, "the front of the service is not there; try again")));
                }
            }
            () = worker.stream_ended() => worker.leave_stream().await,
            () = idle(&engine, period), if !worker.face.is_herald() => drop(worker.offer("Idle").await),
        }
    };
    worker.stop().await;
    announcer.abort();
    worker.telling.iter().for_each(JoinHandle::abort);
    ended
}

struct Worker {
    tree: Arc<Tree>,
    face: Arc<Face>,
    control: Fd,
    /// The GUID of the bus whose connections are known here.
    bus: Option<String>,
    stream: Option<Stream>,
    /// Tells what the herald has to tell, from the first stream on: nobody would hear it before.
    telling: Option<JoinHandle<()>>,
}

struct Stream {
    connection: Connection,
    handle: Handle,
}

impl Worker {
    /// Serves on a new stream.
    async fn take(&mut self, bus: String, socket: OwnedFd) {
        self.leave_stream().await;
        if self.bus.as_ref().is_some_and(|before| *before != bus) {
            // Another bus: nobody of the one before is there, and its names begin anew.
            for name in self.face.present() {
                self.tree.client_left(&self.face, &name);
            }
            self.tree.engine.clients.forget_departed();
        }
        let served = self.serve_on(&bus, socket).await;
        self.bus = Some(bus);
        match served {
            Ok(stream) => {
                self.stream = Some(stream);
                self.telling.get_or_insert_with(|| tokio::spawn(herald::run(self.tree.clone())));
                match socket_messages::send(&self.control, SERVED, &[], None) {
                    Ok(Attempt::Done(())) => {}
                    // It waits for this answer, and for nothing else: there is room.
                    Ok(Attempt::Wait(_)) => tracing::error!("the front does not read the control socket"),
                    Err(errno) => tracing::info!("the front has gone: {errno}"),
                }
            }
            Err(error) => tracing::error!("the tree could not be served to the front: {error}"),
        }
    }

    async fn serve_on(&self, bus: &str, socket: OwnedFd) -> zbus::Result<Stream> {
        // The front has judged what it sends.
        let (socket, mut handle) = ipc_stream::Stream::new(socket, LONGEST_MESSAGE, Arc::new(drop))?.gated();
        let builder = Builder::authenticated_socket(socket, Guid::try_from(bus)?).p2p();
        // With an object from the start, zbus looks for calls at all.
        let builder = match self.face.is_herald() {
            true => builder.serve_at(paths::NETLINK, Netlink::new(&self.face)),
            false => builder.serve_at(paths::MANAGER, Manager::new(&self.face, &self.tree)),
        };
        let connection = builder.build().await?;
        let departures = departures(&connection).await?;
        if !self.face.is_herald() {
            connection.send(&to_front("Clients", &(self.face.present(),))?).await?;
        }
        let served = self.tree.serve(self.face.clone(), &connection).await;
        served.map_err(|failure| zbus::Error::Failure(format!("{failure:?}")))?;
        tokio::spawn(watch_departures(self.tree.clone(), self.face.clone(), departures));
        handle.open();
        Ok(Stream { connection, handle })
    }

    async fn stream_ended(&self) {
        match &self.stream {
            Some(stream) => stream.connection.closed().await,
            None => std::future::pending().await,
        }
    }

    /// Signals are not sent any more; they are in the rings of their objects.
    async fn leave_stream(&mut self) {
        if let Some(stream) = self.stream.take() {
            // First: then nobody waits for a front that does not read.
            stream.handle.hang_up();
            self.tree.unserve(&self.face).await;
        }
    }

    /// Ends everything, and says so if somebody listens.
    async fn stop(&mut self) {
        self.tree.stop().await;
        if let Some(stream) = &self.stream {
            // What is being written is written to its end.
            let closing = stream.connection.clone().close();
            if tokio::time::timeout(FAREWELL, closing).await.is_err() {
                tracing::info!("the front did not read the last signals");
            }
        }
        self.leave_stream().await;
    }

    /// Says a word to the front, if it is there.
    async fn offer(&self, member: &str) -> bool {
        let Ok(word) = to_front(member, &()) else { return false };
        let serving = self.tree.served().await;
        let front = serving.iter().find(|serving| Arc::ptr_eq(&serving.face, &self.face));
        front.inspect(|front| front.outbox.offer(word)).is_some()
    }
}

/// A signal without addressee: the worker's word to the front.
fn to_front<B: serde::Serialize + zbus::DynamicType>(member: &str, body: &B) -> zbus::Result<Message> {
    Message::signal(paths::MANAGER, INTERFACE, member).build(body)
}

/// Completes when nobody has had anything here for as long as this. Asked at the end of each such
/// time only: it may take twice as long, but an idle worker sleeps.
async fn idle(engine: &Engine, period: Duration) {
    loop {
        let before = engine.admitted();
        tokio::time::sleep(period).await;
        if engine.is_idle() && engine.admitted() == before {
            return;
        }
    }
}

/// What the front says on the control socket.
enum Word {
    /// Serve on this stream; with the GUID of the bus.
    Serve(String, OwnedFd),
    /// The socket of a helper that makes a mount, or why there is none.
    Mount(Result<OwnedFd>),
}

/// Why there is no mount, as the front says it.
fn no_mount(why: &str) -> Error {
    match why.split_once(' ') {
        Some(("LimitExceeded", text)) => Error::new(Kind::LimitExceeded, text),
        Some(("PermissionDenied", text)) => Error::new(Kind::PermissionDenied, text),
        Some((_, text)) => Error::new(Kind::Unavailable, text),
        None => Error::new(Kind::Unavailable, "the front of the service says no more"),
    }
}

/// The next word of the front. None: the end.
async fn next_word(control: &Fd) -> Result<Option<Word>> {
    loop {
        let datagram = match socket_messages::receive(control, Taking::Take, true) {
            Ok(Attempt::Done(datagram)) => datagram,
            Ok(Attempt::Wait(readiness)) => {
                wait::until(readiness).await?;
                continue;
            }
            Err(error) if error.kind == Kind::Closed => return Ok(None),
            Err(error) => return Err(error),
        };
        let bus = datagram.data.strip_prefix(SERVE).and_then(|guid| std::str::from_utf8(guid).ok());
        let mut fds = datagram.fds;
        let refused = datagram.data.strip_prefix(NO_MOUNT).map(String::from_utf8_lossy);
        match (bus, fds.pop(), refused) {
            (Some(bus), Some(stream), _) if fds.is_empty() && Guid::try_from(bus).is_ok() => {
                return Ok(Some(Word::Serve(bus.to_owned(), stream)));
            }
            (_, Some(socket), _) if fds.is_empty() && datagram.data == MOUNT => {
                return Ok(Some(Word::Mount(Ok(socket))));
            }
            (_, None, Some(why)) => {
                return Ok(Some(Word::Mount(Err(no_mount(&why)))));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "the front sent {} bytes on the control socket that are not understood; it is of another version",
                    datagram.data.len()
                )));
            }
        }
    }
}
