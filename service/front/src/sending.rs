//! What goes to the bus: what workers say, the front's own words, and what is kept for clients that do
//! not read.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};
use zbus::{fdo, message::Message};

use crate::{
    admission::User,
    budget::{Client, Signal, Standing},
    bus, lock, log,
    parcel::Parcel,
    refusals::Refusal,
    router::Router,
};

/// The first and the longest pause before the bus is asked again whether a client has read. (No bus
/// tells it by itself.)
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long a client may take to answer a ping before it counts as one that never does.
const PONG: Duration = Duration::from_secs(1);

/// How long a worker waits for the bus to say whether a client is behind, before it counts as behind.
const ANSWER: Duration = Duration::from_millis(100);

impl Router {
    /// Sends what a worker said to a client. False: the bus is gone.
    pub async fn deliver(self: &Arc<Self>, client: &Arc<Client>, parcel: Parcel) -> bool {
        self.charge(client, parcel.size());
        self.outbox.send(parcel).await
    }

    /// Sends a signal of a worker to a client, or keeps it. False: the bus is gone.
    pub async fn signal(self: &Arc<Self>, client: &Arc<Client>, parcel: Parcel) -> bool {
        loop {
            let verdict = client.account().signal(parcel.message());
            match verdict {
                Signal::Send => return self.deliver(client, parcel).await,
                Signal::Kept => return true,
                Signal::Wait => {
                    if timeout(ANSWER, client.answered.notified()).await.is_err() {
                        client.account().no_answer();
                    }
                }
            }
        }
    }

    /// Answers a call with an error, if it expects an answer and the caller reads any.
    pub fn answer(self: &Arc<Self>, client: &Arc<Client>, asks: Option<NonZeroU32>, refusal: &Refusal) {
        match asks {
            Some(serial) => self.refuse(client, serial, refusal),
            None => self.dropped(client.user(), &refusal.text),
        }
    }

    /// Answers a call that expects an answer.
    pub fn refuse(self: &Arc<Self>, client: &Arc<Client>, serial: NonZeroU32, refusal: &Refusal) {
        let standing = client.account().standing();
        if let Standing::Drop(refusal) = standing {
            self.dropped(client.user(), &refusal.text);
        } else if let Ok(message) = refusal.message(&client.name, serial) {
            self.charge(client, message.data().len());
            self.say(client.user(), message);
        }
    }

    /// Tells a client that what it owned is gone.
    pub fn lost(self: &Arc<Self>, client: &Arc<Client>, reason: &str) {
        let signal = Message::signal("/org/example/IPC", bus::NAME, "Lost").destination(&*client.name);
        let Ok(signal) = signal.build(&(reason,)) else { return };
        let verdict = client.account().signal(&signal);
        if verdict != Signal::Kept {
            self.charge(client, signal.data().len());
            self.say(client.user(), signal);
        }
    }

    fn say(&self, user: User, message: Message) {
        if !self.outbox.say(message) {
            self.dropped(user, "the message bus reads nothing");
        }
    }

    fn dropped(&self, user: User, why: &str) {
        if let Some(count) = lock(&self.drops).count(user, Instant::now()) {
            tracing::warn!(
                "{count} calls or answers of {} were dropped; the last because {why}",
                log::user(user)
            );
        }
    }

    fn charge(self: &Arc<Self>, client: &Arc<Client>, bytes: usize) {
        let ask = client.account().sent(bytes);
        if ask {
            self.spawn(self.clone().acknowledge(client.clone()));
        }
    }

    /// Asks the bus until the client has read, and then sends what was kept for it.
    async fn acknowledge(self: Arc<Self>, client: Arc<Client>) {
        let mut pause = PAUSES.0;
        loop {
            client.account().asked();
            let Some(unread) = self.unread(&client.name).await else { return };
            let caught_up = client.account().answered(unread);
            client.answered.notify_waiters();
            if caught_up {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        loop {
            let Some(signal) = client.account().next_kept() else { return };
            if !self.deliver(&client, Parcel::new(signal, client.user(), &self.closer)).await {
                return;
            }
        }
    }

    /// What the bus holds for a client. None: it has left.
    async fn unread(&self, name: &str) -> Option<u64> {
        if !self.no_stats.load(Ordering::Relaxed) {
            match self.bus.unread(name).await {
                Ok(unread) => return Some(unread),
                Err(zbus::Error::FDO(error)) if matches!(*error, fdo::Error::NameHasNoOwner(_)) => {
                    return None;
                }
                Err(error) => {
                    tracing::info!(
                        "the bus does not tell what clients have not read ({error}); they are pinged instead"
                    );
                    self.no_stats.store(true, Ordering::Relaxed);
                }
            }
        }
        // Some libraries never answer. The bus that has no statistics, dbus-broker, disconnects who does
        // not read; for the others this is a bound on the rate.
        let _answered = timeout(PONG, self.bus.ping(name)).await;
        Some(0)
    }
}
