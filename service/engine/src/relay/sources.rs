//! Where messages come from: queues, and everything else of which messages are made.
//!
//! What is taken is in the relay until the sink has it; [`Source::give_back`] returns it to where it came from, so
//! that another reader gets it. Events are not taken: they stay among those that their endpoint keeps.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use ipc_kernel::{Attempt, Dict, Error, Fd, Kind, Readiness, Result, dict, futex_word::ANY, shape::Message};

use super::{Lane, checks::Plan, filter::Filter, json, kinds::Origin, options::Options};
use crate::{Engine, endpoint::Endpoint, events::Happening, futex::woken, wait::Hold};

/// A message that was taken from the source.
#[derive(Debug)]
pub(super) struct Taken {
    pub data: Vec<u8>,
    pub attributes: Dict,
    pub fds: Vec<Fd>,
}

/// The largest message that may go along, and who says so: "that the sink takes".
#[derive(Debug, Clone, Copy)]
pub(super) struct Largest {
    pub bytes: u64,
    pub because: &'static str,
}

pub(super) struct Source {
    engine: Arc<Engine>,
    endpoint: Arc<Endpoint>,
    pub from: Origin,
    filter: Filter,
    largest: Largest,
    hold: Hold,
    /// The number of the last event that was seen.
    seen: u64,
    /// A futex's value at the last look, and whether it was woken since.
    value: u32,
    woken: bool,
    /// Memory's content at the last look, and when the next one is due.
    content: Option<Vec<u8>>,
    interval: Duration,
    ended: bool,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("endpoint", &self.endpoint)
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

impl Source {
    pub fn new(
        engine: &Arc<Engine>,
        endpoint: &Arc<Endpoint>,
        plan: Plan,
        options: &Options,
        largest: Largest,
    ) -> Self {
        Self {
            engine: engine.clone(),
            endpoint: endpoint.clone(),
            from: plan.from,
            filter: options.filter.clone(),
            largest,
            hold: Hold::default(),
            seen: options.since,
            value: plan.value.unwrap_or_default(),
            woken: false,
            content: None,
            interval: options.interval,
            ended: false,
        }
    }

    /// The next message that the filter lets through. None: the source has come to its end. A message that is too
    /// large stays with the source. May be dropped, and called again.
    pub async fn next(&mut self, lane: &Lane) -> Result<Option<Taken>> {
        loop {
            let taken = match self.from {
                Origin::Bytes | Origin::Messages => self.message(lane).await?,
                Origin::Units => Some(self.unit().await?),
                Origin::Wakes => Some(self.wake().await?),
                Origin::Events | Origin::Signals => self.event().await?,
                Origin::Snapshots => Some(self.snapshot().await?),
            };
            let Some(taken) = taken else { return Ok(None) };
            if !self.filter.matches(&taken.attributes) {
                lane.filtered();
                tokio::task::yield_now().await;
                continue;
            }
            let length = taken.data.len() as u64;
            if length > self.largest.bytes {
                if let Err(error) = lane.skips.refuse(self.too_large(length)) {
                    self.give_back(taken);
                    return Err(error);
                }
                tokio::task::yield_now().await;
                continue;
            }
            return Ok(Some(taken));
        }
    }

    async fn message(&mut self, lane: &Lane) -> Result<Option<Taken>> {
        let messages = self.endpoint.messages()?;
        loop {
            // Looked at first, where the kernel tells, so that a message which cannot go along is not even taken.
            if self.filter.is_empty()
                && !lane.skips.wanted
                && self.endpoint.kept_count().0 == 0
                && let Some(length) = messages.next_length().filter(|length| *length > self.largest.bytes)
            {
                lane.skips.refuse(self.too_large(length))?;
            }
            match self.endpoint.attempt_receive(&Dict::new()) {
                Ok(Attempt::Done(message)) => {
                    let fds = message.fds.into_iter().map(Fd::from).collect();
                    return Ok(Some(Taken { data: message.data, attributes: message.attributes, fds }));
                }
                Ok(Attempt::Wait(readiness)) => self.hold.until(readiness).await?,
                // The last writer has gone, or the peer: for a source that is the end.
                Err(error) if error.kind == Kind::Closed => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    async fn unit(&mut self) -> Result<Taken> {
        let semaphore = self.endpoint.semaphore()?;
        loop {
            match semaphore.wait()? {
                Attempt::Done(()) => return Ok(sign("1", dict! { "count" => 1u32 })),
                Attempt::Wait(readiness) => self.hold.until(readiness).await?,
            }
        }
    }

    async fn wake(&mut self) -> Result<Taken> {
        if !self.woken {
            woken(self.endpoint.futex()?, self.value).await?;
            self.woken = true;
        }
        let value = self.engine.on_futex(&self.endpoint, |word| word.load()).await?;
        (self.value, self.woken) = (value, false);
        Ok(sign(&value.to_string(), dict! { "value" => value }))
    }

    async fn event(&mut self) -> Result<Option<Taken>> {
        loop {
            let pushed = self.endpoint.events.pushed();
            let (events, lost) = self.endpoint.events.since_at_most(self.seen, 1);
            if lost > 0 {
                self.seen = self.seen.saturating_add(lost);
                return Ok(Some(described(json::lost(lost, self.seen))));
            }
            if let Some(event) = events.into_iter().next() {
                self.seen = event.seq;
                self.ended = matches!(event.happening, Happening::Exited(_));
                return Ok(Some(described(json::event(&event))));
            }
            // After the end of a process nothing comes.
            if self.ended {
                return Ok(None);
            }
            pushed.await;
        }
    }

    async fn snapshot(&mut self) -> Result<Taken> {
        let most = snapshot_limit(self.engine.limits.relay_buffer);
        loop {
            if self.content.is_some() {
                self.hold.until(Readiness::After(self.interval)).await?;
            }
            let address = self.endpoint.address.clone();
            let look = self.engine.on_memory(&self.endpoint, move |memory| {
                let size = memory.size()?;
                check_snapshot(&address, size, most)?;
                // No more than `most`, which is a u32.
                memory.read(0, size as usize)
            });
            let content = look.await?;
            if self.content.as_ref() != Some(&content) {
                self.content = Some(content.clone());
                return Ok(Taken { data: content, attributes: Dict::new(), fds: Vec::new() });
            }
        }
    }

    /// It has another connection: the place in epoll of the former one is of no use.
    pub fn renew(&mut self) {
        self.hold = Hold::default();
    }

    fn too_large(&self, length: u64) -> Error {
        let Largest { bytes, because } = self.largest;
        Error::new(
            Kind::TooLarge,
            format!(
                "the next message from {} has {length} bytes, more than the {bytes} {because}",
                self.endpoint.address
            ),
        )
    }

    /// Returns what was taken and not delivered.
    pub fn give_back(&self, taken: Taken) {
        match self.from {
            Origin::Bytes | Origin::Messages => {
                // A descriptor that somebody else still holds is duplicated; that only fails when the
                // table of open files is full.
                let own = |fd: Fd| Arc::try_unwrap(fd).or_else(|shared| ipc_kernel::fd::duplicate(&shared));
                let fds: Vec<OwnedFd> = taken.fds.into_iter().filter_map(|fd| own(fd).ok()).collect();
                self.endpoint.keep(Message { data: taken.data, attributes: taken.attributes, fds });
            }
            // A semaphore that is gone has nobody who waits for the unit, and a futex nobody to wake.
            Origin::Units => _ = self.endpoint.semaphore().and_then(|semaphore| semaphore.post(1)),
            Origin::Wakes => {
                let word = self.endpoint.futex().and_then(|futex| futex.word());
                _ = word.and_then(|word| word.wake(1, ANY));
            }
            Origin::Events | Origin::Signals | Origin::Snapshots => {}
        }
    }

    /// At the end: a wait that was given up may have taken something after all.
    pub async fn finish(self, taken: Option<Taken>) {
        if let Some(taken) = taken {
            self.give_back(taken);
        }
        if self.from == Origin::Units
            && self.hold.settle().await
            && let Ok(semaphore) = self.endpoint.semaphore()
            && matches!(semaphore.wait(), Ok(Attempt::Done(())))
        {
            self.give_back(sign("1", Dict::new()));
        }
        if self.from == Origin::Wakes && self.woken {
            self.give_back(sign("", Dict::new()));
        }
    }
}

fn sign(text: &str, attributes: Dict) -> Taken {
    Taken { data: text.as_bytes().to_vec(), attributes, fds: Vec::new() }
}

/// An event: its payload says the same as its attributes.
fn described(attributes: Dict) -> Taken {
    Taken { data: json::object(&attributes), attributes, fds: Vec::new() }
}

/// The most bytes of memory that a relay takes as one message: it holds them and what they were before.
pub(super) fn snapshot_limit(relay_buffer: u32) -> u64 {
    u64::from(relay_buffer / 2)
}

pub(super) fn check_snapshot(address: &str, size: u64, most: u64) -> Result<()> {
    if size <= most {
        return Ok(());
    }
    Err(Error::new(
        Kind::TooLarge,
        format!(
            "{address} has {size} bytes; with memory=snapshot at most {most} go (half of relay-buffer): attach to a \
             part of it with offset and length, or raise relay-buffer in the service's configuration file"
        ),
    ))
}
