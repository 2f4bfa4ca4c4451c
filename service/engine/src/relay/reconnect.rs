//! The option `reconnect`: a socket whose peer has left is connected again, and the relay goes on with the new one.
//!
//! What the relay holds stays where it is, in its lane, and goes into the next connection; what the former socket had
//! taken is gone with it. The socket is exchanged below the endpoint, so everybody who uses that has the new one. Several
//! relays may want this of one endpoint: whoever has its turn connects, and the others find another connection than the
//! one that they have lost.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use event_listener::Event;
use ipc_kernel::{Attempt, Dict, Error, Kind, Opening, Result, mechanism};

use super::{Relay, options::Reconnect};
use crate::{Engine, Object, endpoint::Endpoint, engine::blocking, events, wait::until};

/// An end of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Sink,
}

/// The connections of an endpoint, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// How many there were before this one.
    number: AtomicU64,
    replaced: Event,
    /// Held by the one who connects.
    turn: tokio::sync::Mutex<()>,
}

impl Connections {
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Completes when there is another one than this.
    pub async fn other_than(&self, number: u64) {
        loop {
            let replaced = self.replaced.listen();
            if self.number() != number {
                return;
            }
            replaced.await;
        }
    }

    fn next(&self) {
        self.number.fetch_add(1, Ordering::AcqRel);
        self.replaced.notify(usize::MAX);
    }
}

/// Err says why the endpoint's socket cannot be connected again.
pub(super) fn can_reconnect(endpoint: &Endpoint) -> Result<(), &'static str> {
    endpoint.kernel.dialed()?;
    match endpoint.deliver {
        true => Err("its option deliver closes it when its peer leaves"),
        false => Ok(()),
    }
}

/// What a relay tells of its connections.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Tale>);

#[derive(Debug, Default)]
struct Tale {
    /// Directions that have no connection.
    without: u32,
    reconnects: u64,
    /// Why the last connection was lost, or the last attempt failed.
    error: String,
    /// When the next attempt is due, in microseconds since the epoch; 0: none is.
    next: u64,
    /// Bytes of messages that ended with a connection before they were complete.
    cut: u64,
}

impl Told {
    fn tale(&self) -> MutexGuard<'_, Tale> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_reconnecting(&self) -> bool {
        self.tale().without > 0
    }

    pub fn lost(&self, why: String) {
        self.tale().error = why;
    }

    pub fn cut(&self, bytes: usize) {
        self.tale().cut += bytes as u64;
    }

    /// Adds to what `Inspect` tells.
    pub fn tell(&self, state: &mut Dict) {
        let tale = self.tale();
        state.insert("reconnects".into(), tale.reconnects.into());
        state.insert("reconnect-error".into(), tale.error.as_str().into());
        state.insert("reconnect-at".into(), tale.next.into());
        state.insert("cut".into(), tale.cut.into());
    }
}

/// The state of a relay is "reconnecting" while there is one of these.
struct Without<'a>(&'a Relay);

impl<'a> Without<'a> {
    fn new(relay: &'a Relay) -> Self {
        let mut tale = relay.told.tale();
        tale.without += 1;
        let first = tale.without == 1;
        drop(tale);
        if first {
            relay.announce();
        }
        Self(relay)
    }
}

impl Drop for Without<'_> {
    fn drop(&mut self) {
        let mut tale = self.0.told.tale();
        tale.without -= 1;
        tale.next = 0;
        let last = tale.without == 0;
        drop(tale);
        if last {
            self.0.announce();
        }
    }
}

/// One end of a direction: which connection it has, and how long to wait before the next one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// The number of the connection that it has.
    number: u64,
    since: Instant,
    /// What the relay had moved when it was made.
    moved: u64,
    /// The longest pause before the next attempt.
    pause: Duration,
    /// How many attempts in a row have failed.
    failed: u32,
}

impl Line {
    pub fn new(endpoint: &Endpoint, relay: &Relay) -> Self {
        Self {
            number: endpoint.connections.number(),
            since: Instant::now(),
            moved: moved(relay),
            pause: Duration::ZERO,
            failed: 0,
        }
    }

    /// Completes when the endpoint has another connection than this one.
    pub async fn replaced(&self, endpoint: &Endpoint) {
        match endpoint.kernel.dialed() {
            Ok(_) => endpoint.connections.other_than(self.number).await,
            Err(_) => std::future::pending().await,
        }
    }

    /// Completes when it has. Connects, unless somebody else did. May be dropped, and called again.
    pub async fn renew(&mut self, engine: &Engine, endpoint: &Endpoint, relay: &Relay) -> Result<()> {
        if endpoint.connections.number() == self.number {
            let _without = Without::new(relay);
            let _turn = endpoint.connections.turn.lock().await;
            while endpoint.connections.number() == self.number {
                // Without the option it ends where it loses its connection, and does not come here.
                let Some(how) = &relay.options.reconnect else { break };
                self.attempt(engine, endpoint, relay, how).await?;
            }
        }
        self.number = endpoint.connections.number();
        (self.since, self.moved) = (Instant::now(), moved(relay));
        Ok(())
    }

    async fn attempt(
        &mut self,
        engine: &Engine,
        endpoint: &Endpoint,
        relay: &Relay,
        how: &Reconnect,
    ) -> Result<()> {
        // Whoever accepts and leaves at once is not to be called again and again without a pause.
        let good = moved(relay) != self.moved || self.since.elapsed() > how.longest;
        if good && self.failed == 0 {
            self.pause = Duration::ZERO;
        }
        let pause = jitter(self.pause.max(how.first));
        relay.told.tale().next = events::now().saturating_add(pause.as_micros() as u64);
        tokio::time::sleep(pause).await;
        relay.told.tale().next = 0;
        let connected = engine.connect_again(endpoint).await;
        self.pause = (self.pause.max(how.first) * 2).min(how.longest);
        match connected {
            Ok(()) => {
                self.failed = 0;
                relay.told.tale().reconnects += 1;
                Ok(())
            }
            Err(error) => {
                self.failed = self.failed.saturating_add(1);
                relay.told.lost(error.text.clone());
                match how.attempts {
                    Some(attempts) if self.failed >= attempts => Err(Error::new(
                        Kind::Unavailable,
                        format!(
                            "{} could not be connected again in {attempts} attempts (retries): {}",
                            endpoint.address, error.text
                        ),
                    )),
                    _ => Ok(()),
                }
            }
        }
    }
}

fn moved(relay: &Relay) -> u64 {
    [relay.bytes(), relay.messages(), relay.bytes_back(), relay.messages_back()].iter().sum()
}

/// Between a half and all of it, so that those who lost the same peer do not come back all at once.
fn jitter(pause: Duration) -> Duration {
    // The keys of the hash are random.
    let random = RandomState::new().hash_one(0) as u32;
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// The most messages, or pieces of a stream, that are saved from a former socket: more than one holds.
const SAVED: usize = 1024;

impl Engine {
    /// One attempt to connect the endpoint's socket again.
    async fn connect_again(&self, endpoint: &Endpoint) -> Result<()> {
        let dialed = endpoint.kernel.dialed().map_err(Error::not_supported)?;
        let socket = match blocking(dialed.again()).await? {
            Opening::Done(socket) => socket,
            Opening::Pending(mut attempt) => loop {
                match attempt()? {
                    Attempt::Done(socket) => break socket,
                    Attempt::Wait(readiness) => until(readiness).await?,
                }
                tokio::task::yield_now().await;
            },
        };
        self.save_unread(endpoint, &*dialed.replace(socket));
        endpoint.connections.next();
        Ok(())
    }

    /// What the former socket has received and nobody has read is kept for the next reader. A relay that reads bytes
    /// has the former socket still, and goes on to its end.
    fn save_unread(&self, endpoint: &Endpoint, former: &dyn mechanism::Endpoint) {
        if let Some(messages) = former.messages() {
            for _ in 0..SAVED {
                let Ok(Attempt::Done(message)) = messages.receive(&Dict::new()) else { break };
                endpoint.keep_last(message);
            }
        }
        let reads = |object: &Object| match object {
            Object::Relay(relay) => relay.ways().any(|(source, _)| source.id == endpoint.id),
            Object::Endpoint(_) => false,
        };
        if let Some(stream) = former.stream()
            && !self.objects().iter().any(reads)
        {
            for _ in 0..SAVED {
                match stream.read(usize::MAX) {
                    Ok(Attempt::Done(bytes)) if !bytes.is_empty() => endpoint.keep_bytes_last(&bytes),
                    _ => break,
                }
            }
        }
    }
}

/// Why an end was lost, where it was not an error.
pub(super) fn left(endpoint: &Arc<Endpoint>) -> String {
    format!("{} has ended the connection", endpoint.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_never_longer_than_it_is_said_to_be() {
        let pause = Duration::from_millis(100);
        let some: Vec<_> = (0..100).map(|_| jitter(pause)).collect();
        assert!(some.iter().all(|one| (pause / 2..=pause).contains(one)), "{some:?}");
        assert!(some.iter().any(|one| *one != some[0]), "all are {:?}", some[0]);
    }
}
