//! FUSE mounts for workers: a worker can make none, so it asks for one, and the spawner has a helper make it as the
//! worker's user (ipc_spawner::Role::Mounter).
//!
//! What the helper makes goes to the worker on a socket of their own. The front hands that over on the control socket,
//! and never holds a descriptor of the mount; the spawner has made the socket, so that nothing of a worker's reaches it.

use std::{
    convert::Infallible,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use ipc_spawner::protocol::{Refusal as SpawnerRefusal, Reply, Request};
use rustix::io::Errno;
use tokio::{io::Interest, net::UnixStream};

use crate::{identity::no_spawner, life::tell, lock, refusals::Refusal, router::Router, worker::Worker};

/// The word that brings the socket of a helper; and the one that says why there is none: an error's name, a blank and
/// its text.
pub const SOCKET: &[u8] = b"mnt1";
pub const REFUSED: &[u8] = b"mnt0";

/// How often the spawner is asked again while the mounter before this one has not ended, and with which pauses.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);

impl Worker {
    /// Has mounts made as long as the worker lives, one at a time.
    pub async fn mounts(&self, router: &Arc<Router>, control: &UnixStream) -> Infallible {
        loop {
            self.mounting.notified().await;
            let (word, socket) = match self.mounter(router).await {
                Ok(socket) => (SOCKET.to_vec(), Some(socket)),
                Err(Refusal { name, text }) => {
                    ([REFUSED, name.as_bytes(), b" ", text.as_bytes()].concat(), None)
                }
            };
            let send = || tell(control, &word, socket.as_ref());
            if let Err(error) = control.async_io(Interest::WRITABLE, send).await {
                // It waits no longer than a while.
                tracing::info!("worker {} does not hear of its mount: {error}", self.name);
            }
        }
    }

    /// The socket of a helper that was started.
    async fn mounter(&self, router: &Arc<Router>) -> Result<std::os::fd::OwnedFd, Refusal> {
        let Some(identity) = self.identity().cloned() else {
            return Err(Refusal::unavailable("it is not known whose worker this is; call again"));
        };
        lock(&router.mounts).start(self.user(), &router.limits, Instant::now())?;
        let mut left = ATTEMPTS;
        let answer = loop {
            let request = Request::Mount { name: self.name.clone(), identity: identity.clone() };
            match router.spawner.ask(request, None).await {
                // The one before has sent its mount, and needs a moment to end.
                Ok((Reply::Refused(SpawnerRefusal::Errno(errno)), _))
                    if errno == Errno::BUSY.raw_os_error() && left > 0 =>
                {
                    left -= 1;
                    tokio::time::sleep(PAUSE).await;
                }
                answer => break answer,
            }
        };
        match answer {
            Ok((Reply::Started { .. }, Some(socket))) => Ok(socket),
            Ok((Reply::Refused(SpawnerRefusal::Identity), _)) => {
                Err(Refusal::permission(format!("no mount is made for uid {}", self.uid)))
            }
            Ok((Reply::Refused(SpawnerRefusal::Errno(errno)), _)) if errno == Errno::BUSY.raw_os_error() => {
                Err(Refusal::unavailable(
                    "the process that makes the mount before this one has not ended (it may have been stopped); try again in five seconds",
                ))
            }
            Ok((Reply::Refused(SpawnerRefusal::Errno(errno)), _)) => {
                let error = io::Error::from_raw_os_error(errno);
                Err(Refusal::unavailable(format!("no process can be started to make the mount: {error}")))
            }
            Ok((answer, _)) => Err(Refusal::unavailable(format!("the spawner answered {answer:?}"))),
            Err(_) => Err(no_spawner()),
        }
    }
}
