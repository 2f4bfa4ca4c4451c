//! Everything that goes to the bus goes through here, from one task: a message that is cut off in the
//! middle would end the connection, so nothing that may be cancelled writes to it.
//!
//! Replies and signals of workers wait for room, and their worker with them; the front's own words are
//! small and never wait, because the router says them.

use tokio::sync::mpsc;
use zbus::{Connection, message::Message};

use crate::parcel::Parcel;

/// Each may have the size of a reply.
const PARCELS: usize = 16;

/// Errors and the news of lost workers.
const WORDS: usize = 1024;

/// As many messages go in one write.
const BATCH: usize = 16;

pub struct Outbox {
    parcels: mpsc::Sender<Parcel>,
    words: mpsc::Sender<Message>,
}

impl Outbox {
    /// The task ends when the connection does.
    pub fn new(connection: Connection) -> (Self, impl Future<Output = ()> + Send) {
        let (parcels, parcels_out) = mpsc::channel(PARCELS);
        let (words, words_out) = mpsc::channel(WORDS);
        (Self { parcels, words }, run(connection, parcels_out, words_out))
    }

    /// Waits for room. False: the bus is gone.
    pub async fn send(&self, parcel: Parcel) -> bool {
        self.parcels.send(parcel).await.is_ok()
    }

    /// Ends when the task has taken everything that was there before. What is sent after that on the
    /// same connection comes later.
    pub async fn flush(&self) {
        // A queue that has all its room is empty. Fails only when the bus is gone.
        let _words = self.words.reserve_many(WORDS).await;
        let _parcels = self.parcels.reserve_many(PARCELS).await;
    }

    /// False: there is no room, because the bus reads nothing.
    pub fn say(&self, message: Message) -> bool {
        self.words.try_send(message).is_ok()
    }
}

async fn run(
    connection: Connection,
    mut parcels: mpsc::Receiver<Parcel>,
    mut words: mpsc::Receiver<Message>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut out = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            count = words.recv_many(&mut out, BATCH) => if count == 0 { return },
            count = parcels.recv_many(&mut batch, BATCH) => if count == 0 { return },
        }
        out.extend(batch.iter().map(|parcel| parcel.message().clone()));
        if let Err(error) = connection.send_all(&out).await {
            tracing::error!("the message bus takes no more messages: {error}");
            // So that whoever waits for the end of the front sees it.
            let _closed = connection.close().await;
            return;
        }
        out.clear();
        batch.clear();
    }
}
