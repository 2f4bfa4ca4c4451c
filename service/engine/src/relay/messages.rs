//! Messages to messages, with their borders and file descriptors; and out of bytes, for which the caller has declared a
//! framing. The other way is in [`unframed`](super::unframed).
//!
//! What a message is, where it comes from and where it goes, is the matter of [`Source`] and [`Sink`].
//!
//! One message is on its way at a time. It is in the lane's struct until the sink has it whole,
//! and goes back to the front of the source when the relay ends before that.

use std::ops::Range;

use ipc_kernel::{Dict, Kind, Result};

use super::{
    Lane,
    ends::Intake,
    filter::Filter,
    flow::Flow,
    frames::{self, Discard},
    options::{Framing, Options},
    reconnect::Side,
    sources::{Source, Taken},
    task::Ended,
    tee::Sinks,
};
use crate::endpoint::Endpoint;

/// After so many messages the other tasks have their turn.
pub(super) const TURN: usize = 16;

/// The attributes of a frame that has none.
const NONE: &Dict = &Dict::new();

/// Messages to messages.
#[derive(Debug)]
pub(super) struct Messages {
    flow: Option<Flow>,
    taken: Option<Taken>,
    from: Source,
    to: Sinks,
}

impl Messages {
    pub fn new(from: Source, to: Sinks, options: &Options) -> Self {
        Self { flow: Flow::new(options), taken: None, from, to }
    }

    pub async fn pump(&mut self, lane: &Lane) -> Result<Ended> {
        loop {
            for _ in 0..TURN {
                if let Some(flow) = &mut self.flow
                    && let Some(ended) = flow.next(&lane.meter).await
                {
                    return Ok(ended);
                }
                if self.taken.is_none() {
                    self.taken = self.from.next(lane).await?;
                }
                let Some(taken) = &self.taken else {
                    return Ok(Ended::EndOfStream);
                };
                match self.to.send(&taken.data, &taken.attributes, &taken.fds, &lane.skips).await {
                    Ok(true) => {
                        lane.meter.add_messages(1, taken.data.len());
                    }
                    Ok(false) => {}
                    Err(error) => lane.skips.refuse(error)?,
                }
                self.taken = None;
            }
            tokio::task::yield_now().await;
        }
    }

    /// An end has another connection.
    pub fn renew(&mut self, side: Side) {
        match side {
            Side::Source => self.from.renew(),
            Side::Sink => self.to.renew(),
        }
    }

    /// A message that not all sinks have is kept, and its next reader has to be told.
    pub async fn give_back(mut self, lane: &Lane) -> Option<String> {
        if self.to.arrived().await
            && let Some(taken) = self.taken.take()
        {
            lane.meter.add_messages(1, taken.data.len());
        }
        let torn = self.taken.as_ref().and_then(|_| self.to.torn());
        self.from.finish(self.taken).await;
        torn
    }
}

/// Bytes to messages.
#[derive(Debug)]
pub(super) struct Framed {
    framing: Framing,
    intake: Intake,
    /// Bytes that were taken: those before `start` are sent.
    bytes: Vec<u8>,
    start: usize,
    flow: Option<Flow>,
    filter: Filter,
    /// The largest message, the largest frame, and what to say to what is larger.
    max: usize,
    frame: usize,
    bound: String,
    ended: bool,
    /// The end came within a message.
    cut: bool,
    /// The length of the frame that is on its way, and of the message in it.
    sending: Option<(usize, usize)>,
    /// What is still to come of a message that is dropped.
    discard: Option<Discard>,
    to: Sinks,
}

impl Framed {
    pub async fn open(
        source: &Endpoint,
        to: Sinks,
        framing: Framing,
        options: &Options,
        buffer: usize,
        lane: &Lane,
    ) -> Result<Self> {
        let max = usize::try_from(to.largest().bytes).unwrap_or(usize::MAX);
        let frame = framing.frame(max, buffer);
        let bound = if frame == buffer && buffer != max {
            format!("raise relay-buffer, now {buffer}, in the service's configuration file")
        } else {
            format!("a message into {to} has no more")
        };
        Ok(Self {
            framing,
            flow: Flow::new(options),
            filter: options.filter.clone(),
            intake: Intake::open(source, false, lane).await?,
            bytes: Vec::new(),
            start: 0,
            max: max.min(buffer),
            frame,
            bound,
            ended: false,
            cut: false,
            sending: None,
            discard: None,
            to,
        })
    }

    pub async fn pump(&mut self, source: &Endpoint, lane: &Lane) -> Result<Ended> {
        loop {
            for _ in 0..TURN {
                if let Some(flow) = &mut self.flow
                    && let Some(ended) = flow.next(&lane.meter).await
                {
                    return Ok(ended);
                }
                // The buffer only grows by whole reads and loses whole frames.
                let rest = &self.bytes[self.start..];
                if let Some(discard) = self.discard {
                    let (gone, left) = discard.of(rest);
                    self.start += gone;
                    self.discard = left;
                    if left.is_some() && !self.ended {
                        self.read(source).await?;
                    } else if left.is_some() {
                        return Ok(Ended::EndOfStream);
                    }
                    continue;
                }
                let frame = match self.framing.next(rest, self.ended, self.frame) {
                    Err(error) if error.kind == Kind::TooLarge => {
                        lane.skips.refuse(error.help(&self.bound))?;
                        self.discard = Some(self.framing.discard(rest));
                        continue;
                    }
                    frame => frame.inspect_err(|_| self.cut = self.ended)?,
                };
                if let Some(frame) = frame {
                    match self.send(frame.payload, frame.total, lane).await {
                        Ok(true) => self.arrived(lane),
                        Ok(false) => self.drop_frame(frame.total),
                        Err(error) => {
                            lane.skips.refuse(error)?;
                            self.drop_frame(frame.total);
                        }
                    }
                } else if self.ended {
                    return Ok(Ended::EndOfStream);
                } else {
                    self.read(source).await?;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Sends the message that lies there in what has come, in a frame of `total` bytes. False: it is to be dropped.
    async fn send(&mut self, payload: Range<usize>, total: usize, lane: &Lane) -> Result<bool> {
        let payload = &self.bytes[self.start..][payload];
        let decoded = self.framing.decode(payload)?;
        let (data, attributes) = match &decoded {
            Some((data, attributes)) => (data.as_slice(), attributes),
            None => (payload, NONE),
        };
        if data.len() > self.max {
            return Err(frames::too_long("message", Some(data.len()), self.max).help(&self.bound));
        }
        if !self.filter.matches(attributes) {
            lane.filtered();
            return Ok(false);
        }
        self.sending = Some((total, data.len()));
        self.to.send(data, attributes, &[], &lane.skips).await
    }

    fn drop_frame(&mut self, total: usize) {
        self.sending = None;
        self.start += total;
    }

    /// What is on its way is in the sink.
    fn arrived(&mut self, lane: &Lane) {
        if let Some((total, length)) = self.sending.take() {
            lane.meter.add_messages(1, length);
            self.start += total;
        }
    }

    /// Reads more, but never holds more than the longest frame.
    async fn read(&mut self, source: &Endpoint) -> Result<()> {
        self.bytes.drain(..self.start);
        self.start = 0;
        // At least one byte more than an incomplete frame has.
        let longest = self.framing.longest(self.frame);
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

    /// Whether the error is about the source's connection, and not about a message.
    pub fn source_is_lost(&self) -> bool {
        self.cut || self.intake.lost()
    }

    /// The source has another connection, where messages begin anew. Says how many bytes there are of one that was not
    /// complete.
    pub async fn renew_source(&mut self, source: &Endpoint, lane: &Lane) -> Result<usize> {
        self.intake = Intake::open(source, false, lane).await?;
        (self.ended, self.cut, self.discard) = (false, false, None);
        let cut = self.bytes.len() - self.start;
        (self.bytes, self.start) = (Vec::new(), 0);
        Ok(cut)
    }

    pub fn renew_sinks(&mut self) {
        self.to.renew();
    }

    /// A message of which a part is dropped has its rest at the source, and the next reader has to be told.
    pub async fn give_back(mut self, source: &Endpoint, lane: &Lane) -> Option<String> {
        if self.to.arrived().await {
            self.arrived(lane);
        }
        if source.kernel.stream().is_some() {
            source.keep_bytes(&self.bytes[self.start..]);
        }
        let rest = "the source goes on with the rest of a message that was dropped";
        let discarded = self.discard.filter(|_| !self.ended).map(|_| rest.to_owned());
        discarded.or_else(|| self.sending.and_then(|_| self.to.torn()))
    }
}
