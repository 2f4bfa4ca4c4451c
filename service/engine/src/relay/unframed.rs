//! Messages to bytes, each as the framing has it: into one stream, and with the option `tee` into several.
//!
//! A message goes into one stream after the other, each of which it has to itself until it is whole there. What is
//! written is remembered with the message in hand, so that a pause writes nothing twice.

use std::{fmt::Write, sync::Arc};

use ipc_kernel::{Error, Result};
use tokio::sync::OwnedMutexGuard;

use super::{
    Lane,
    ends::{Outlet, first_gone},
    flow::Flow,
    kinds::Origin,
    messages::TURN,
    options::{Framing, Options},
    sources::{Source, Taken},
    task::Ended,
};
use crate::endpoint::Endpoint;

#[derive(Debug)]
pub(super) struct Unframed {
    framing: Framing,
    flow: Option<Flow>,
    /// At least one.
    streams: Vec<Stream>,
    /// So many of them have the message in hand.
    done: usize,
    taken: Option<Taken>,
    /// The message as it stands in a stream.
    bytes: Vec<u8>,
    from: Source,
}

/// A sink, and how much of the message in hand is in it.
#[derive(Debug)]
struct Stream {
    sink: Arc<Endpoint>,
    outlet: Outlet,
    written: usize,
    /// While a message is being written: nobody else's is.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Unframed {
    pub async fn open(
        from: Source,
        sinks: impl Iterator<Item = &Arc<Endpoint>>,
        framing: Framing,
        options: &Options,
        lane: &Lane,
    ) -> Result<Self> {
        let mut streams = Vec::new();
        for sink in sinks {
            let outlet = Outlet::open(sink, lane).await?;
            streams.push(Stream { sink: sink.clone(), outlet, written: 0, turn: None });
        }
        Ok(Self {
            // An event is a JSON object already.
            framing: match (from.from, framing) {
                (Origin::Events | Origin::Signals, Framing::Json) => Framing::Line,
                (_, framing) => framing,
            },
            flow: Flow::new(options),
            streams,
            done: 0,
            taken: None,
            bytes: Vec::new(),
            from,
        })
    }

    pub async fn pump(&mut self, lane: &Lane) -> Result<Ended> {
        loop {
            for _ in 0..TURN {
                if let Some(flow) = &mut self.flow {
                    let ended = tokio::select! {
                        biased;
                        ended = flow.next(&lane.meter) => ended,
                        gone = first_gone(self.streams.iter_mut().map(|stream| &mut stream.outlet)) => return gone,
                    };
                    if let Some(ended) = ended {
                        return Ok(ended);
                    }
                }
                if self.taken.is_none() {
                    let taken = tokio::select! {
                        biased;
                        taken = self.from.next(lane) => taken?,
                        gone = first_gone(self.streams.iter_mut().map(|stream| &mut stream.outlet)) => return gone,
                    };
                    let Some(taken) = taken else {
                        return Ok(Ended::EndOfStream);
                    };
                    let taken = self.taken.insert(taken);
                    match wrapped(self.framing, taken) {
                        Ok(bytes) => self.bytes = bytes,
                        Err(error) => {
                            lane.skips.refuse(error)?;
                            self.taken = None;
                            continue;
                        }
                    }
                }
                let full = |stream: &Stream| stream.outlet.cursor.room() < self.bytes.len() - stream.written;
                if self.streams.iter().any(full) {
                    return Ok(Ended::Full);
                }
                self.write(lane).await?;
                lane.meter.add_message();
                self.taken = None;
                self.bytes = Vec::new();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Writes the message into the streams that do not have it whole.
    async fn write(&mut self, lane: &Lane) -> Result<()> {
        let last = self.streams.len() - 1;
        while let Some(stream) = self.streams.get_mut(self.done) {
            if stream.turn.is_none() {
                stream.turn = Some(stream.sink.turns.turn().await);
            }
            // A message of no bytes at all, for which there is nothing to write, cannot be:
            // a record has at least one, and the other framings add theirs.
            while stream.written < self.bytes.len() {
                match stream.outlet.write(&self.bytes[stream.written..], &[])? {
                    Some(length) => {
                        stream.written += length;
                        // What the last one has, all have.
                        if self.done == last {
                            lane.meter.add_bytes(length);
                        }
                    }
                    None => stream.outlet.ready().await?,
                }
            }
            stream.turn = None;
            self.done += 1;
        }
        self.done = 0;
        self.streams.iter_mut().for_each(|stream| stream.written = 0);
        Ok(())
    }

    /// The reader of another connection has no part of the message that is being written: it begins anew. With several
    /// sinks none is connected again.
    pub async fn renew_sink(&mut self, sink: &Endpoint, lane: &Lane) -> Result<()> {
        let outlet = Outlet::open(sink, lane).await?;
        if let Some(stream) = self.streams.first_mut() {
            (stream.outlet, stream.written) = (outlet, 0);
        }
        Ok(())
    }

    pub fn renew_source(&mut self) {
        self.from.renew();
    }

    pub fn sink_is_lost(&self) -> bool {
        self.streams.first().is_some_and(|stream| stream.outlet.lost())
    }

    /// A message of which a part is written is kept whole, and the sinks' readers have to be told.
    pub async fn give_back(self) -> Option<String> {
        let torn = self.taken.as_ref().and_then(|_| self.torn());
        self.from.finish(self.taken).await;
        torn
    }

    fn torn(&self) -> Option<String> {
        let several = self.streams.len() > 1;
        let mut torn = String::new();
        for Stream { sink, written, .. } in self.streams.iter().filter(|stream| stream.written > 0) {
            let and = if torn.is_empty() { "" } else { " and " };
            let place = if several { &sink.address } else { "the sink" };
            // Writing to a String cannot fail.
            let _infallible =
                write!(torn, "{and}{written} of {} bytes of a message are in {place}", self.bytes.len());
        }
        (!torn.is_empty()).then(|| format!("{torn}; it was kept whole at the source"))
    }
}

/// The message as it stands in the stream.
fn wrapped(framing: Framing, taken: &Taken) -> Result<Vec<u8>> {
    match taken.fds.len() {
        0 => framing.wrap(&taken.data, &taken.attributes),
        count => Err(Error::not_supported(format!(
            "a message with {count} file descriptors cannot go into a stream of bytes"
        ))),
    }
}
