//! The front's end of the socket to the spawner: one request at a time, each with its reply.
//!
//! A spawner that has gone, or that does not answer, takes nothing with it but new workers: what asks
//! is told so, and the socket is opened anew if there is a way to.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use ipc_spawner::{
    client,
    protocol::{Reply, Request},
};
use rustix::io::Errno;
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot},
    time::timeout,
};

use ipc_stream::watched;

/// Requests that wait for the one before.
const QUEUE: usize = 256;

/// It only forks and reads /proc.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the socket to a spawner that was started again.
pub type Reconnect = Box<dyn Fn() -> io::Result<OwnedFd> + Send>;

/// There is no spawner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSpawner;

#[derive(Clone)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    request: Request,
    pidfd: Option<OwnedFd>,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<(Reply, Option<OwnedFd>), NoSpawner>;

impl Spawner {
    /// The task does the asking, as long as there is somebody who may ask.
    pub fn new(
        socket: OwnedFd,
        reconnect: Option<Reconnect>,
    ) -> io::Result<(Self, impl Future<Output = ()> + Send)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let socket = watched(socket)?;
        Ok((Self { jobs }, serve(Some(socket), reconnect, queue)))
    }

    pub async fn ask(&self, request: Request, pidfd: Option<OwnedFd>) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { request, pidfd, answer }).await.map_err(|_| NoSpawner)?;
        answered.await.unwrap_or(Err(NoSpawner))
    }
}

async fn serve(mut socket: Option<UnixStream>, reconnect: Option<Reconnect>, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.recv().await {
        let mut answer = ask(&mut socket, &job).await;
        if answer.is_err()
            && let Some(reconnect) = &reconnect
        {
            // Each request may be repeated: a worker whose socket got lost ends.
            socket = reconnect().and_then(watched).ok();
            answer = ask(&mut socket, &job).await;
        }
        // Who asked may have left.
        let _unheard = job.answer.send(answer);
    }
}

async fn ask(socket: &mut Option<UnixStream>, job: &Job) -> Answer {
    let Some(open) = &socket else { return Err(NoSpawner) };
    let answer = timeout(PATIENCE, exchange(open, job)).await;
    answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
        tracing::warn!("the spawner does not answer: {error}");
        if !is_scarcity(&error) {
            // An answer that comes too late would be taken for that of the next request.
            *socket = None;
        }
        NoSpawner
    })
}

/// Whether a datagram was not sent, or its descriptor not received, for want of something that may be
/// there again in a moment: the connection is as it was.
fn is_scarcity(error: &io::Error) -> bool {
    let scarce = [Errno::TOOMANYREFS, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| scarce.contains(&errno))
}

async fn exchange(socket: &UnixStream, job: &Job) -> io::Result<(Reply, Option<OwnedFd>)> {
    let pidfd = job.pidfd.as_ref().map(AsFd::as_fd);
    socket.async_io(Interest::WRITABLE, || client::send(socket, &job.request, pidfd)).await?;
    socket.async_io(Interest::READABLE, || client::receive(socket)).await
}
