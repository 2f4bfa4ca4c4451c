//! How signals leave: a bounded queue and a task for each face, so that a reader that does not
//! read costs only itself.
//!
//! The bus reads, and so does the front of the system bus: when its queue is full, the sender waits, events stay in their rings, and the
//! oldest of them go when those are full. A private connection may belong to somebody who never
//! reads: when its queue is full, signals for it are dropped. Either way the numbers of the
//! events show the gap, and Since() fills it.

use tokio::{sync::mpsc, task::AbortHandle};
use zbus::{Connection, Message};

#[derive(Clone)]
pub struct Outbox {
    queue: mpsc::Sender<Message>,
    waits: bool,
    task: AbortHandle,
}

/// Signals that may wait for one face.
const CAPACITY: usize = 256;

/// Signals that are sent at once.
const BATCH: usize = 64;

impl Outbox {
    /// For the bus: a full queue makes the sender wait.
    pub fn waiting(connection: &Connection) -> Self {
        Self::new(connection, true)
    }

    /// For a private connection: a full queue drops.
    pub fn dropping(connection: &Connection) -> Self {
        Self::new(connection, false)
    }

    fn new(connection: &Connection, waits: bool) -> Self {
        let (queue, mut waiting) = mpsc::channel(CAPACITY);
        let connection = connection.clone();
        let task = tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                // The connection's own end is seen elsewhere.
                if connection.send_all(&batch).await.is_err() {
                    return;
                }
                batch.clear();
            }
        });
        Self { queue, waits, task: task.abort_handle() }
    }

    pub async fn send(&self, message: Message) {
        if self.waits {
            // Fails only when the connection has ended.
            let _ = self.queue.send(message).await;
        } else {
            let _ = self.queue.try_send(message);
        }
    }

    /// Queues it if there is room.
    pub fn offer(&self, message: Message) {
        // What is offered is said again.
        let _ = self.queue.try_send(message);
    }

    /// Gives up what waits: the connection is to end. Whoever waits to send goes on.
    pub fn stop(&self) {
        self.task.abort();
    }

    /// Whether everything that was sent has been taken for sending.
    pub fn is_empty(&self) -> bool {
        self.queue.capacity() == self.queue.max_capacity()
    }
}
