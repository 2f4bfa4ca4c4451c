//! Several relays that write messages into one stream: they take turns, so that each message stays whole, and the last
//! of them passes the end of stream on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::endpoint::Endpoint;

/// What an endpoint knows of those that write into it.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Held by the one whose message is being written.
    turn: Arc<Mutex<()>>,
    relays: AtomicUsize,
}

impl Turns {
    /// Waits until no message is half written. It is the turn of the caller until the result is dropped.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }
}

/// A direction that writes into an endpoint.
pub(super) struct Writer<'a>(Option<&'a Endpoint>);

impl<'a> Writer<'a> {
    pub fn new(sink: &'a Arc<Endpoint>) -> Self {
        sink.turns.relays.fetch_add(1, Ordering::AcqRel);
        Self(Some(sink))
    }

    /// It writes no more. Whether it was the last one.
    pub fn leave(&mut self) -> bool {
        self.0.take().is_some_and(|sink| sink.turns.relays.fetch_sub(1, Ordering::AcqRel) == 1)
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
