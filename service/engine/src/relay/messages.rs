//! Messages to messages, with their borders and file descriptors; and the adapters between
//! messages and bytes, for which the caller has declared a framing.
//!
//! One message is on its way at a time. It is in the lane's struct until the sink has it whole,
//! and goes back to the front of the source when the relay ends before that.

use std::{os::fd::OwnedFd, sync::Arc};

use ipc_kernel::{
    Attempt, Dict, Error, Fd, Kind, Result,
    blocked::Sent,
    shape::{Message, Outgoing},
};

use super::{
    Lane,
    ends::{Intake, Outlet},
    options::Framing,
    task::Ended,
};
use crate::{endpoint::Endpoint, wait::Hold};

/// After so many messages the other tasks have their turn.
const TURN: usize = 16;

/// A message that was taken from the source.
#[derive(Debug)]
struct Taken {
    data: Vec<u8>,
    attributes: Dict,
    fds: Vec<Fd>,
}

impl Taken {
    fn give_back(self, source: &Endpoint) {
        // A descriptor that somebody else still holds is duplicated; that only fails when the
        // table of open files is full.
        let own = |fd: Fd| Arc::try_unwrap(fd).or_else(|shared| ipc_kernel::fd::duplicate(&shared));
        let fds: Vec<OwnedFd> = self.fds.into_iter().filter_map(|fd| own(fd).ok()).collect();
        source.keep(Message { data: self.data, attributes: self.attributes, fds });
    }
}

/// The largest message that may go along, and who says so: "that the sink takes".
#[derive(Debug, Clone, Copy)]
struct Largest {
    bytes: u64,
    because: &'static str,
}

/// Takes the next message. None: the source has come to its end. A message that is too large
/// stays with the source.
async fn take(source: &Endpoint, hold: &mut Hold, largest: Largest) -> Result<Option<Taken>> {
    loop {
        let message = match source.attempt_receive(&Dict::new()) {
            Ok(Attempt::Done(message)) => message,
            Ok(Attempt::Wait(readiness)) => {
                hold.until(readiness).await?;
                continue;
            }
            // The last writer has gone, or the peer: for a source that is the end.
            Err(error) if error.kind == Kind::Closed => return Ok(None),
            Err(error) => return Err(error),
        };
        let Largest { bytes, because } = largest;
        if message.data.len() as u64 > bytes {
            let text = format!(
                "the next message from {} has {} bytes, more than the {bytes} {because}; it was kept at the source",
                source.address,
                message.data.len()
            );
            source.keep(message);
            return Err(Error::new(Kind::TooLarge, text));
        }
        let fds = message.fds.into_iter().map(Fd::from).collect();
        return Ok(Some(Taken { data: message.data, attributes: message.attributes, fds }));
    }
}

/// The way into a sink of messages.
#[derive(Debug, Default)]
struct Way {
    hold: Hold,
    /// Whether the message that is on its way has been sent by a wait that was given up.
    sent: Sent,
}

impl Way {
    /// Sends a message; may be dropped, and called again with the same one.
    async fn send(&mut self, sink: &Endpoint, data: &[u8], attributes: &Dict, fds: &[Fd]) -> Result<()> {
        self.hold.settle().await;
        let messages = sink.messages()?;
        loop {
            match messages.send(Outgoing { data, attributes, fds, sent: &self.sent })? {
                Attempt::Done(()) => break,
                Attempt::Wait(readiness) => self.hold.until(readiness).await?,
            }
        }
        self.sent.clear();
        Ok(())
    }

    /// Whether the message that was on its way has arrived, when the sending was given up.
    async fn arrived(&self) -> bool {
        self.hold.settle().await;
        self.sent.is_set()
    }
}

/// Messages to messages.
#[derive(Debug, Default)]
pub(super) struct Messages {
    taken: Option<Taken>,
    from: Hold,
    to: Way,
}

impl Messages {
    pub async fn pump(&mut self, source: &Endpoint, sink: &Endpoint, lane: &Lane) -> Result<Ended> {
        lane.set_method("messages");
        let largest = Largest { bytes: sink.messages()?.max_message_size(), because: "that the sink takes" };
        loop {
            for _ in 0..TURN {
                if self.taken.is_none() {
                    self.taken = take(source, &mut self.from, largest).await?;
                }
                let Some(taken) = &self.taken else {
                    return Ok(Ended::EndOfStream);
                };
                let attributes = forwarded(source, sink, &taken.attributes);
                self.to.send(sink, &taken.data, &attributes, &taken.fds).await?;
                lane.meter.add_bytes(taken.data.len());
                lane.meter.add_message();
                self.taken = None;
            }
            tokio::task::yield_now().await;
        }
    }

    pub async fn give_back(self, source: &Endpoint, lane: &Lane) {
        let Some(taken) = self.taken else { return };
        if self.to.arrived().await {
            lane.meter.add_bytes(taken.data.len());
            lane.meter.add_message();
        } else {
            taken.give_back(source);
        }
    }
}

/// The attributes that mean the same at the sink: the priority or type of a message stays with it
/// between two queues of one kind, and where a signal came from between two buses. An address or a sender's identity never goes along.
fn forwarded(source: &Endpoint, sink: &Endpoint, attributes: &Dict) -> Dict {
    if source.mechanism.name != sink.mechanism.name {
        return Dict::new();
    }
    let along = |key: &str| attributes.get(key).map(|value| (key.to_owned(), value.clone()));
    let taken = sink.kernel.messages().map(|messages| messages.relayed()).unwrap_or_default();
    taken.iter().copied().filter_map(along).collect()
}

/// Bytes to messages.
#[derive(Debug)]
pub(super) struct Framed {
    framing: Framing,
    intake: Intake,
    /// Bytes that were taken: those before `start` are sent.
    bytes: Vec<u8>,
    start: usize,
    /// The largest message, and what to say to one that is larger.
    max: usize,
    bound: String,
    ended: bool,
    /// The length of the frame that is on its way, and of the message in it.
    sending: Option<(usize, usize)>,
    to: Way,
}

impl Framed {
    pub async fn open(
        source: &Endpoint,
        sink: &Endpoint,
        framing: Framing,
        buffer: usize,
        lane: &Lane,
    ) -> Result<Self> {
        let max = usize::try_from(sink.messages()?.max_message_size()).unwrap_or(usize::MAX);
        let bound = if buffer < max {
            format!("raise relay-buffer, now {buffer}, in the service's configuration file")
        } else {
            format!("a message into {} has no more", sink.address)
        };
        Ok(Self {
            framing,
            intake: Intake::open(source, false, lane).await?,
            bytes: Vec::new(),
            start: 0,
            max: max.min(buffer),
            bound,
            ended: false,
            sending: None,
            to: Way::default(),
        })
    }

    pub async fn pump(&mut self, source: &Endpoint, sink: &Endpoint, lane: &Lane) -> Result<Ended> {
        lane.set_method("stream to messages");
        loop {
            for _ in 0..TURN {
                // The buffer only grows by whole reads and loses whole frames.
                let rest = &self.bytes[self.start..];
                let frame =
                    self.framing.next(rest, self.ended, self.max).map_err(|error| match error.kind {
                        Kind::TooLarge => error.help(&self.bound),
                        _ => error,
                    })?;
                if let Some(frame) = frame {
                    let payload = &rest[frame.payload];
                    self.sending = Some((frame.total, payload.len()));
                    self.to.send(sink, payload, &Dict::new(), &[]).await?;
                    self.arrived(lane);
                } else if self.ended {
                    return Ok(Ended::EndOfStream);
                } else {
                    self.read(source).await?;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// What is on its way is in the sink.
    fn arrived(&mut self, lane: &Lane) {
        if let Some((total, length)) = self.sending.take() {
            lane.meter.add_bytes(length);
            lane.meter.add_message();
            self.start += total;
        }
    }

    /// Reads more, but never holds more than the longest frame.
    async fn read(&mut self, source: &Endpoint) -> Result<()> {
        self.bytes.drain(..self.start);
        self.start = 0;
        // At least one byte more than an incomplete frame has.
        let longest = self.framing.longest(self.max);
        let room = longest.saturating_sub(self.bytes.len()).max(1);
        if let Some(kept) = source.take_kept_bytes(room) {
            self.bytes.extend_from_slice(&kept);
            return Ok(());
        }
        let before = self.bytes.len();
        loop {
            self.bytes.resize(before + room, 0);
            let read = self.intake.read(&mut self.bytes[before..]);
            let length = read.as_ref().map_or(0, |read| read.unwrap_or(0));
            self.bytes.truncate(before + length);
            match read? {
                Some(length) => {
                    self.ended = length == 0;
                    return Ok(());
                }
                None => {
                    // An idle relay holds no buffer.
                    self.bytes.shrink_to_fit();
                    self.intake.ready().await?;
                }
            }
        }
    }

    pub async fn give_back(mut self, source: &Endpoint, lane: &Lane) {
        if self.to.arrived().await {
            self.arrived(lane);
        }
        if source.kernel.stream().is_some() {
            source.keep_bytes(&self.bytes[self.start..]);
        }
    }
}

/// Messages to bytes.
#[derive(Debug)]
pub(super) struct Unframed {
    framing: Framing,
    outlet: Outlet,
    taken: Option<Taken>,
    /// The message as it stands in the stream, and how much of that is written.
    bytes: Vec<u8>,
    written: usize,
    largest: Largest,
    from: Hold,
}

impl Unframed {
    pub async fn open(sink: &Endpoint, framing: Framing, buffer: usize, lane: &Lane) -> Result<Self> {
        Ok(Self {
            framing,
            outlet: Outlet::open(sink, lane).await?,
            taken: None,
            bytes: Vec::new(),
            written: 0,
            largest: Largest { bytes: buffer as u64, because: "that a relay may hold (relay-buffer)" },
            from: Hold::default(),
        })
    }

    pub async fn pump(&mut self, source: &Endpoint, lane: &Lane) -> Result<Ended> {
        lane.set_method("messages to stream");
        loop {
            for _ in 0..TURN {
                if self.taken.is_none() {
                    let taken = tokio::select! {
                        biased;
                        taken = take(source, &mut self.from, self.largest) => taken?,
                        gone = self.outlet.gone() => {
                            gone?;
                            return Ok(Ended::SinkGone(self.outlet.closed(None)));
                        }
                    };
                    let Some(taken) = taken else {
                        return Ok(Ended::EndOfStream);
                    };
                    let taken = self.taken.insert(taken);
                    if !taken.fds.is_empty() {
                        return Err(Error::not_supported(format!(
                            "a message with {} file descriptors cannot go into a stream of bytes; it was kept at the \
                             source",
                            taken.fds.len()
                        )));
                    }
                    self.bytes = self.framing.wrap(&taken.data)?;
                    self.written = 0;
                }
                if self.outlet.cursor.room() < self.bytes.len() - self.written {
                    return Ok(Ended::Full);
                }
                // A message of no bytes at all, for which there is nothing to write, cannot be:
                // a record has at least one, and the other framings add theirs.
                while self.written < self.bytes.len() {
                    match self.outlet.write(&self.bytes[self.written..], &[])? {
                        Some(length) => {
                            self.written += length;
                            lane.meter.add_bytes(length);
                        }
                        None => self.outlet.ready().await?,
                    }
                }
                lane.meter.add_message();
                self.taken = None;
                self.bytes = Vec::new();
            }
            tokio::task::yield_now().await;
        }
    }

    /// A message of which a part is written is kept whole, and the sink's reader has to be told.
    pub fn give_back(self, source: &Endpoint) -> Option<String> {
        let torn = (self.taken.is_some() && self.written > 0).then(|| {
            format!(
                "{} of {} bytes of a message are in the sink; it was kept whole at the source",
                self.written,
                self.bytes.len()
            )
        });
        if let Some(taken) = self.taken {
            taken.give_back(source);
        }
        torn
    }
}
