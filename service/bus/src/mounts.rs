//! FUSE mounts for a worker, which can make none: the front is asked to have one made.
//!
//! The kernel layer wants a mount on a thread that may wait; the worker's loop tells the front, and takes what comes
//! back on the control socket: the socket of a helper process, on which that sends the mount. One at a time.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError, mpsc::SyncSender, mpsc::sync_channel},
    time::Duration,
};

use ipc_kernel::{Error, Kind, Result, fuse::detached::Helper};
use tokio::sync::mpsc;

/// The front may take as long as it waits for the spawner.
const PATIENCE: Duration = Duration::from_secs(7);

/// Whoever waits for the socket of a helper.
type Waiting = SyncSender<Result<OwnedFd>>;

/// What the worker's loop is asked for.
pub struct Wanted {
    wanted: mpsc::Receiver<Waiting>,
    waiting: Option<Waiting>,
}

/// How mounts are made in this process, for the kernel layer, and the other end of that for the worker.
pub fn through_the_front() -> (Helper, Wanted) {
    let (ask, wanted): (mpsc::Sender<Waiting>, _) = mpsc::channel(1);
    let one = Mutex::new(());
    let helper = move || {
        let turn = one.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, answered) = sync_channel(1);
        let lost = |why: &str| Error::new(Kind::Unavailable, format!("no mount can be made: {why}"));
        ask.blocking_send(answer).map_err(|_| lost("the service is stopping"))?;
        let answer = answered.recv_timeout(PATIENCE);
        drop(turn);
        answer.map_err(|_| lost("the front of the service did not answer; try again"))?
    };
    (Box::new(helper), Wanted { wanted, waiting: None })
}

impl Wanted {
    /// Nobody wants any.
    pub fn none() -> Self {
        Self { wanted: mpsc::channel(1).1, waiting: None }
    }

    /// Completes when one is wanted; never, if nobody can want one.
    pub async fn next(&mut self) {
        match self.wanted.recv().await {
            // Whoever waited before has given up, as there is one at a time.
            Some(waiting) => self.waiting = Some(waiting),
            None => std::future::pending().await,
        }
    }

    /// Answers whoever waits, if somebody still does.
    pub fn answer(&mut self, answer: Result<OwnedFd>) {
        if let Some(waiting) = self.waiting.take() {
            // Else the mount goes again: nobody holds it.
            let _ = waiting.try_send(answer);
        }
    }
}
