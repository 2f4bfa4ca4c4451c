//! The life of a worker's process: started, served over a stream of its own, and buried.
//!
//! Its control socket tells it to serve and, by its end, that it has ended; the stream carries D-Bus
//! without a handshake. Calls are written to it as the bus delivered them, and what it says goes to
//! the bus as it said it, after it was judged.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use ipc_spawner::protocol::{Refusal as SpawnerRefusal, Reply, Request};
use ipc_stream::{Reader, Stream, Writer, pair, watched};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::watch,
    time::{sleep, sleep_until, timeout},
};
use zbus::{
    connection::socket::{Socket, Split},
    message::Message,
};

use crate::{
    admission::{Amounts, Permit},
    bus,
    herald::{Rate, Rest},
    identity::no_spawner,
    judge::{HEADER, Said, Speaker, judge},
    lock,
    parcel::Parcel,
    refusals::{Refusal, plain},
    router::{Learned, Router},
    worker::{UNDEAD, Worker},
};

/// How long a process that was told to end may take; and one that gave no sign of life.
const BURIAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(100));

/// Pause between attempts to send descriptors while too many of the front's are on their way (unix(7),
/// ETOOMANYREFS).
const CROWDED: Duration = Duration::from_millis(10);

/// Pause between attempts to look up a client when there is no spawner.
const AGAIN: Duration = Duration::from_secs(1);

/// How a life ended.
pub enum End {
    NotStarted(Refusal),
    /// It had nothing to do and was let go.
    Idle,
    /// A new one, before it served anybody.
    Unready(String),
    /// By itself; or its user ended it.
    Died(String),
    /// It broke the rules.
    Hostile(String),
    Stuck,
    /// With the service.
    Stopped,
    /// The bus is gone; the process lives on.
    NoBus,
}

impl Worker {
    /// Until nothing waits for it; the herald, until the service ends.
    pub async fn run(self: Arc<Self>, router: Arc<Router>, mut control: Option<OwnedFd>) {
        let mut told = router.stopping.subscribe();
        let mut rest = Rest::new();
        loop {
            let fresh = control.is_none();
            let (end, socket) = match self.start(&router, control.take()).await {
                Ok((socket, _counted)) => {
                    let end = tokio::select! {
                        end = self.serve(&router, &socket, fresh) => end,
                        never = dismiss(&mut told, &socket) => match never {},
                    };
                    let stopped = *told.borrow() && !matches!(end, End::NoBus);
                    (if stopped { End::Stopped } else { end }, Some(socket))
                }
                Err(refusal) => (End::NotStarted(refusal), None),
            };
            self.state().stream = None;
            if let End::NoBus = end {
                return;
            }
            self.give_up(&router, &end);
            if let Some(socket) = socket {
                self.bury(&router, &end, socket).await;
            }
            let is_over = match self.is_herald() {
                true => rest.is_over(&self, &end, &mut told).await,
                false => self.rest(),
            };
            if is_over {
                break;
            }
        }
        router.forget(&self);
    }

    /// The control socket of a process; a new one unless there is one.
    async fn start(
        &self,
        router: &Arc<Router>,
        control: Option<OwnedFd>,
    ) -> Result<(UnixStream, Option<Permit>), Refusal> {
        // The herald takes no place of anybody's.
        let count = Amounts { workers: (!self.is_herald()).into(), ..Amounts::default() };
        let counted = router.admission.admit(Some(self.uid), None, count);
        let watch = |control| {
            watched(control).map_err(|error| Refusal::unavailable(format!("the worker's socket: {error}")))
        };
        if let Some(control) = control {
            // It is there, whether there is room for it or not.
            return Ok((watch(control)?, counted.ok()));
        }
        if *router.stopping.borrow() {
            return Err(Refusal::stopping());
        }
        let counted = counted?;
        let request = match self.identity().cloned() {
            _ if self.is_herald() => Request::Herald,
            Some(identity) => Request::Start { name: self.name.clone(), identity },
            None => return Err(Refusal::unavailable("it is not known whose worker this is; call again")),
        };
        if self.state().undead >= UNDEAD || router.closer.hangs(Some(self.uid)) {
            return Err(Refusal::unavailable(format!(
                "{UNDEAD} processes of uid {} hang in the kernel and cannot be ended; look for a file system that does not answer",
                self.uid
            )));
        }
        lock(&router.starts).start(self.user(), &router.limits, Instant::now())?;
        match router.spawner.ask(request, None).await {
            Ok((Reply::Started { pid }, Some(control))) => {
                tracing::info!("worker {} is process {pid}", self.name);
                if !self.is_herald() {
                    router.store.keep(&self.name, control.as_fd());
                }
                Ok((watch(control)?, Some(counted)))
            }
            Ok((Reply::Refused(SpawnerRefusal::Identity), _)) => {
                Err(Refusal::permission(format!("no worker is started for uid {}", self.uid)))
            }
            Ok((Reply::Refused(SpawnerRefusal::Errno(errno)), _)) => {
                let error = io::Error::from_raw_os_error(errno);
                Err(Refusal::unavailable(format!("a worker for uid {} cannot be started: {error}", self.uid)))
            }
            Ok((answer, _)) => Err(Refusal::unavailable(format!("the spawner answered {answer:?}"))),
            Err(_) => Err(no_spawner()),
        }
    }

    /// Until it ends, one way or another.
    async fn serve(&self, router: &Arc<Router>, control: &UnixStream, fresh: bool) -> End {
        let patience = router.patience();
        let (mut reader, writer) = match timeout(patience, self.connect(router, control)).await {
            Ok(Ok(stream)) => stream.take(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return End::Hostile(error.to_string());
            }
            Ok(Err(error)) if fresh => return End::Unready(error.to_string()),
            Ok(Err(error)) => return End::Died(error.to_string()),
            Err(_) => return End::Stuck,
        };
        self.state().stream = Some(writer.clone());
        tokio::select! {
            end = self.read(router, &mut reader) => end,
            end = self.watch(router) => end,
            never = self.mounts(router, control) => match never {},
            never = self.write(&writer) => match never {},
        }
    }

    /// Makes a stream and lets the process serve its tree on it.
    async fn connect(&self, router: &Arc<Router>, control: &UnixStream) -> io::Result<Split<Reader, Writer>> {
        let (ours, theirs) = pair()?;
        let guid = router.bus.connection.server_guid();
        let request = format!("ipc1{}", guid.as_str());
        let send = || tell(control, request.as_bytes(), Some(&theirs));
        control.async_io(Interest::WRITABLE, send).await?;
        drop(theirs);
        let limit = router.limits.payload as usize + HEADER;
        let (closer, uid) = (router.closer.clone(), self.uid);
        let discard = Arc::new(move |fds: Vec<OwnedFd>| closer.close(Some(uid), Box::new(fds)));
        let stream = Stream::new(ours, limit, discard)?;
        let mut answer = [0; 8];
        let length = control.async_io(Interest::READABLE, || receive(control, &mut answer)).await?;
        match &answer[..length] {
            b"ok" => Ok(stream.split()),
            b"" => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it answered what is not in the protocol")),
        }
    }

    /// Writes what is queued.
    async fn write(&self, writer: &Writer) -> Infallible {
        loop {
            let next = self.state().next();
            let Some(mut parcel) = next else {
                self.news.notified().await;
                continue;
            };
            while let Err(error) = parcel.send_rest(writer).await {
                if is_too_many_refs(&error) {
                    // Its descriptors wait for others that are on their way to be read, and nothing of it was
                    // sent; the kernel has no event for that.
                    sleep(CROWDED).await;
                    continue;
                }
                // What it said before it closed its end is still to be read; the reader finds the end.
                return std::future::pending().await;
            }
        }
    }

    async fn read(&self, router: &Arc<Router>, reader: &mut Reader) -> End {
        let mut first = true;
        let speaker = if self.is_herald() { Speaker::Herald } else { Speaker::Worker };
        let mut rate = Rate::new(router.limits.broadcasts);
        loop {
            let mut parcel = match reader.next().await {
                Ok(message) => Parcel::new(message, Some(self.uid), &router.closer),
                Err(error) => return ending(&error),
            };
            parcel.may_wait(reader.has_next());
            if let Err(error) = parcel.message().body().validate() {
                return ending(&error);
            }
            let said = {
                let state = &mut *self.state();
                judge(speaker, parcel.message(), &mut state.members, state.ping, &router.limits)
            };
            if parcel.fds() > 0 && router.closer.hangs(Some(self.uid)) {
                return End::Hostile("its file descriptors cannot be closed".to_owned());
            }
            match said {
                Err(offence) => return End::Hostile(offence),
                Ok(Said::Reply(client)) => {
                    if !router.deliver(&client, parcel).await {
                        return End::NoBus;
                    }
                }
                Ok(Said::Signal(client)) => {
                    if !router.signal(&client, parcel).await {
                        return End::NoBus;
                    }
                }
                // What is dropped, the gap in the numbers shows.
                Ok(Said::Broadcast) if rate.admits(Instant::now()) => router.outbox.broadcast(parcel),
                Ok(Said::Broadcast | Said::Nothing) => {}
                Ok(Said::Pong) => {
                    self.state().ping = None;
                    self.pong.notify_one();
                }
                // One at a time, however often it says so.
                Ok(Said::Mount) => self.mounting.notify_one(),
                Ok(Said::Idle) => {
                    let mut state = self.state();
                    if state.is_quiet() {
                        // Nothing is sent any more to one that is let go.
                        state.stream = None;
                        return End::Idle;
                    }
                }
                Ok(Said::Clients(_)) if !first => {
                    return End::Hostile("it named its clients again".to_owned());
                }
                Ok(Said::Clients(names)) => {
                    if let Err(offence) = self.adopt(router, names).await {
                        return End::Hostile(offence);
                    }
                }
            }
            first = false;
        }
    }

    /// Looks up those whom it serves: they have to be of its identity, and some may have left while
    /// there was no front.
    async fn adopt(&self, router: &Arc<Router>, names: Vec<String>) -> Result<(), String> {
        self.state().adopting = !names.is_empty();
        for name in names {
            loop {
                match router.learn(&name).await {
                    Learned::Worker(worker) if worker == self.name => {}
                    Learned::Worker(_) => return Err(format!("it claims {name}, which is another's")),
                    Learned::Gone => {
                        if let Ok(news) = bus::departure(&name) {
                            self.state().tell(Parcel::new(news, Some(self.uid), &router.closer));
                            self.news.notify_one();
                        }
                    }
                    Learned::NotNow => {
                        sleep(AGAIN).await;
                        continue;
                    }
                }
                break;
            }
        }
        self.state().adopting = false;
        self.outstanding.notify_one();
        Ok(())
    }

    /// Ends when it has had something to do for long and does not say that it runs.
    async fn watch(&self, router: &Arc<Router>) -> End {
        let patience = router.patience();
        loop {
            let (since, overrun) = {
                let state = self.state();
                (state.waits_since(), state.overrun)
            };
            if overrun {
                return End::Stuck;
            }
            let Some(since) = since else {
                self.outstanding.notified().await;
                continue;
            };
            if since.elapsed() < patience {
                sleep_until((since + patience).into()).await;
                continue;
            }
            let ping =
                Message::method_call("/org/example/IPC", "Ping").interface("org.freedesktop.DBus.Peer");
            let Ok(ping) = ping.build(&()) else { return End::Stuck };
            let parcel = Parcel::new(ping.clone(), Some(self.uid), &router.closer);
            self.ask(&ping, parcel);
            if timeout(patience, self.pong.notified()).await.is_err() && !self.state().adopting {
                return End::Stuck;
            }
            // It runs, and may need longer: asked again after a while.
            sleep(patience).await;
        }
    }

    /// Answers everybody who waits for it, and tells all its clients.
    fn give_up(&self, router: &Arc<Router>, end: &End) {
        let why = match end {
            End::Idle | End::NoBus => return,
            End::NotStarted(refusal) => refusal.text.clone(),
            End::Unready(why) => format!("it ended before it served: {why}"),
            End::Died(why) => format!("it ended unexpectedly: {why}"),
            End::Hostile(why) => format!("it was ended, because {why}"),
            End::Stuck => "it was ended, because it gave no sign of life".to_owned(),
            End::Stopped => "the service is stopping".to_owned(),
        };
        let why = plain(&why);
        let (calls, clients, queue) = {
            let state = &mut *self.state();
            state.writing = None;
            state.ping = None;
            state.adopting = false;
            state.overrun = false;
            (state.members.give_up(), state.members.clients(), std::mem::take(&mut state.queue))
        };
        drop(queue);
        let refusal = match end {
            End::NotStarted(refusal) => refusal.clone(),
            End::Stuck => Refusal::timeout(router.limits.stuck_after_ms),
            End::Stopped => Refusal::stopping(),
            // Nothing was lost, for there was nothing yet.
            End::Unready(why) => Refusal::unavailable(format!(
                "the process that was to hold this user's endpoints ended before it served ({why}); the log of the service says why, for instance that RLIMIT_NPROC is reached"
            )),
            _ => Refusal::gone(&why),
        };
        for (client, serial) in calls {
            router.refuse(&client, serial, &refusal);
        }
        if let End::NotStarted(_) | End::Stopped = end {
            return;
        }
        tracing::warn!("worker {}: {why}", self.name);
        lock(&router.starts).crashed(self.user(), &router.limits, Instant::now());
        // Nobody has anything in the herald; the next one says itself that it begins anew.
        for client in clients.iter().filter(|_| !self.is_herald()) {
            router.lost(client, &why);
        }
    }

    /// Sees to it that the process ends before another one of this identity starts; but one that
    /// cannot be ended does not keep the next from starting.
    async fn bury(self: &Arc<Self>, router: &Arc<Router>, end: &End, control: UnixStream) {
        router.store.forget(&self.name);
        // To the process, this is the end of the socket, whoever else holds a duplicate of ours.
        let _told = rustix::net::shutdown(&control, Shutdown::Write);
        let patience = if let End::Stuck = end { BURIAL.1 } else { BURIAL.0 };
        // One that was let go needs a moment; one that died has ended already.
        let by_itself = if let End::Idle | End::Stopped = end { patience } else { Duration::ZERO };
        if timeout(by_itself, closed(&control)).await.is_ok() {
            return;
        }
        let killed = router.spawner.ask(Request::Kill { name: self.name.clone() }, None).await;
        if timeout(patience, closed(&control)).await.is_ok() {
            return;
        }
        tracing::warn!("worker {} was told to end and has not yet; the spawner said {killed:?}", self.name);
        self.state().undead += 1;
        let (worker, mourner) = (self.clone(), router.clone());
        router.spawn(async move {
            closed(&control).await;
            worker.state().undead -= 1;
            mourner.forget(&worker);
        });
    }
}

/// Tells the process to end when the service does. It says its last words on the stream, and then it
/// closes that.
async fn dismiss(told: &mut watch::Receiver<bool>, control: &UnixStream) -> Infallible {
    // Fails only without a router.
    drop(told.wait_for(|stopping| *stopping).await);
    // It may have ended already.
    let _told = rustix::net::shutdown(control, Shutdown::Write);
    std::future::pending().await
}

fn is_too_many_refs(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::TOOMANYREFS)
}

/// What the end of the stream means.
fn ending(error: &zbus::Error) -> End {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error {
        zbus::Error::InputOutput(io) if matches!(io.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
            End::Died("it is gone".to_owned())
        }
        error => End::Hostile(format!("it sent what is not D-Bus: {error}")),
    }
}

/// Ends when the process has closed its end of the control socket.
async fn closed(control: &UnixStream) {
    let mut byte = [0; 8];
    loop {
        match control.async_io(Interest::READABLE, || receive(control, &mut byte)).await {
            Ok(0) | Err(_) => return,
            // An answer that nobody waits for any more.
            Ok(_) => {}
        }
    }
}

fn receive(control: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let received = rustix::net::recv(control, buffer, RecvFlags::DONTWAIT)?;
    Ok(received.1.min(8))
}

/// A datagram on the control socket, with at most one descriptor.
pub fn tell(control: &UnixStream, word: &[u8], fd: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        // There is room for one.
        let _fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(control, &[IoSlice::new(word)], &mut ancillary, flags)?)
}
