//! Datagrams to datagrams, several with one system call, where nothing has to be said or asked of each by itself.
//!
//! A batch is on its way at a time, in a buffer that is only held meanwhile. What of it has not gone when the relay ends
//! goes back to the front of the source, in its order.

use std::sync::Arc;

use ipc_kernel::{
    Attempt, Dict, Error, Kind, Result,
    datagrams::{Batch, MOST, SLOT},
    shape::Message,
};

use super::{Lane, buffers, options::Options, reconnect::Side, task::Ended};
use crate::{endpoint::Endpoint, wait::Hold};

/// After so many batches the other tasks have their turn.
const TURN: usize = 4;

#[derive(Debug)]
pub(super) struct Datagrams {
    source: Arc<Endpoint>,
    sink: Arc<Endpoint>,
    /// The size of a batch's buffer.
    size: usize,
    batch: Option<Batch>,
    /// One that was given back to the source before, and goes by itself.
    kept: Option<Message>,
    incoming: Hold,
    outgoing: Hold,
}

impl Datagrams {
    /// None: between these, one message goes after the other. `buffer` is what a relay may hold.
    pub fn between(
        source: &Arc<Endpoint>,
        sink: &Arc<Endpoint>,
        options: &Options,
        buffer: usize,
    ) -> Option<Self> {
        let (from, into) = (source.kernel.messages()?, sink.kernel.messages()?);
        from.datagram_source()?;
        into.datagram_sink()?;
        let count = (buffer / SLOT).min(MOST);
        // Looked at before any is taken: none is too large for the sink.
        let fit = from.max_message_size() <= into.max_message_size();
        (count > 1 && fit && options.leaves_messages_alone()).then(|| Self {
            source: source.clone(),
            sink: sink.clone(),
            size: count * SLOT,
            batch: None,
            kept: None,
            incoming: Hold::default(),
            outgoing: Hold::default(),
        })
    }

    /// May be dropped, and called again.
    pub async fn pump(&mut self, lane: &Lane) -> Result<Ended> {
        lane.set_method("recvmmsg and sendmmsg");
        loop {
            for _ in 0..TURN {
                if self.is_empty() && !self.take().await? {
                    return Ok(Ended::EndOfStream);
                }
                self.send(lane).await?;
            }
            tokio::task::yield_now().await;
        }
    }

    fn is_empty(&self) -> bool {
        self.kept.is_none() && self.batch.as_ref().is_none_or(Batch::is_empty)
    }

    /// Takes what there is, and waits where there is nothing. False: the source has come to its end.
    async fn take(&mut self) -> Result<bool> {
        loop {
            let readiness = match self.attempt() {
                Ok(Attempt::Done(())) => return Ok(true),
                Ok(Attempt::Wait(readiness)) => readiness,
                Err(error) if error.kind == Kind::Closed => return Ok(false),
                Err(error) => return Err(error),
            };
            self.put_buffer();
            self.incoming.until(readiness).await?;
        }
    }

    /// What was given back comes first and by itself, and so does all where somebody else who has the socket has asked
    /// for the times of datagrams meanwhile.
    fn attempt(&mut self) -> Result<Attempt<()>> {
        if self.source.kept_count().0 == 0 {
            let size = self.size;
            let batch = self.batch.get_or_insert_with(|| Batch::new(buffers::take(size)));
            if let Some(attempt) = self.source.attempt_batch(batch)? {
                return Ok(attempt);
            }
        }
        let attempt = self.source.attempt_receive(&Dict::new())?;
        Ok(attempt.map(|message| self.kept = Some(message)))
    }

    /// Sends until all that was taken has gone.
    async fn send(&mut self, lane: &Lane) -> Result<()> {
        while !self.is_empty() {
            let rest = match (&self.kept, &self.batch) {
                (Some(message), _) => vec![&message.data[..]],
                (None, Some(batch)) => batch.rest(),
                (None, None) => Vec::new(),
            };
            let sink = self.sink.messages()?.datagram_sink().ok_or_else(|| no_peer(&self.sink))?;
            let gone = match sink.send(&rest)? {
                Attempt::Done(gone) => gone,
                Attempt::Wait(readiness) => {
                    self.outgoing.until(readiness).await?;
                    continue;
                }
            };
            let bytes = rest.iter().take(gone).map(|datagram| datagram.len()).sum();
            lane.meter.add_messages(gone as u64, bytes);
            match &mut self.batch {
                Some(batch) if self.kept.is_none() => batch.went(gone),
                _ => self.kept = self.kept.take().filter(|_| gone == 0),
            }
        }
        Ok(())
    }

    fn put_buffer(&mut self) {
        if let Some(batch) = self.batch.take() {
            buffers::put(batch.into_buffer());
        }
    }

    /// An end has another connection: the place in epoll of the former one is of no use.
    pub fn renew(&mut self, side: Side) {
        match side {
            Side::Source => self.incoming = Hold::default(),
            Side::Sink => self.outgoing = Hold::default(),
        }
    }

    /// What was taken and has not gone is for the source's next reader.
    pub fn give_back(mut self) {
        // The last one first: each goes to the front.
        let left = self.batch.iter().flat_map(|batch| batch.messages().into_iter().rev());
        left.for_each(|message| self.source.keep(message));
        if let Some(message) = self.kept.take() {
            self.source.keep(message);
        }
        self.put_buffer();
    }
}

/// Whoever gave us the sink's socket has taken its peer away.
fn no_peer(sink: &Endpoint) -> Error {
    Error::new(Kind::Closed, format!("{} has no peer any more", sink.address))
}
