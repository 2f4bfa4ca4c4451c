//! The task of a relay: it pumps, both ways where that was asked for, until the source ends,
//! something fails, or somebody stops it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::join};
use ipc_kernel::{Error, Kind, Result, shape::Direction};

use super::{
    Lane, Relay,
    checks::{Plan, Plans},
    control::Order,
    kinds::{Conversion, Origin, Target},
    messages::{Framed, Messages, Unframed},
    options::Framing,
    sinks::Sink,
    sources::{Largest, Source},
    streams::Streams,
    tee::Sinks,
    turns::Writer,
};
use crate::{Engine, endpoint::Endpoint, flag::Flag};

/// Why a direction ended, when nothing failed.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    EndOfStream,
    /// A sink of a fixed size has no room left.
    Full,
    /// As much as was wanted is in the sink.
    Enough(String),
    /// Nobody reads from the sink any more; nothing was lost.
    SinkGone(Error),
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// `end of stream`, `stopped`, `the memory is full`, `count=3 is reached`, or what went wrong.
    pub reason: String,
    /// Bytes and messages that arrived in the sink.
    pub bytes: u64,
    pub messages: u64,
    /// Whether it ended by an error.
    pub failed: bool,
}

/// What moves the data of one direction, once its ends are open.
#[derive(Debug)]
enum Work {
    Streams(Box<Streams>),
    Messages(Box<Messages>),
    Framed(Box<Framed>),
    Unframed(Box<Unframed>),
}

/// One direction.
struct Way<'a> {
    engine: &'a Arc<Engine>,
    source: &'a Arc<Endpoint>,
    sink: &'a Arc<Endpoint>,
    relay: &'a Relay,
    lane: &'a Lane,
    plan: Plan,
    /// The further sinks.
    tee: Vec<(&'a Arc<Endpoint>, Target)>,
    writer: Writer<'a>,
    work: Option<Work>,
    ended: Option<Result<Ended>>,
}

impl Way<'_> {
    /// Runs to its end. May be dropped and run again.
    async fn run(&mut self, failed: &Flag) {
        if self.ended.is_some() {
            return;
        }
        let ended = tokio::select! {
            biased;
            ended = self.pump() => ended,
            // The other direction has failed in a way that concerns this one.
            () = failed.wait() => return,
        };
        // Others that still write into the sink keep it open.
        let last = self.writer.leave();
        let passes_on = last && matches!(ended, Ok(Ended::EndOfStream)) && self.relay.options.shutdown;
        if passes_on {
            // What we hold of the sink's end goes first, so that its reader sees the end.
            self.work = None;
            if let Some(stream) = self.sink.kernel.stream() {
                // A peer that has gone meanwhile has all the data that it wanted.
                let _ = stream.shutdown(Direction::Write);
            }
        }
        // When the reader has gone, the other direction may still have something to deliver.
        let alone = matches!(&ended, Err(error) if error.kind != Kind::Closed);
        self.ended = Some(ended);
        if alone {
            failed.set();
        }
    }

    async fn pump(&mut self) -> Result<Ended> {
        if self.work.is_none() {
            self.work = Some(self.open().await?);
        }
        let Self { source, lane, .. } = *self;
        match &mut self.work {
            Some(Work::Streams(streams)) => streams.pump(source, lane).await,
            Some(Work::Messages(messages)) => messages.pump(lane).await,
            Some(Work::Framed(framed)) => framed.pump(source, lane).await,
            Some(Work::Unframed(unframed)) => unframed.pump(lane).await,
            None => Ok(Ended::EndOfStream),
        }
    }

    /// Opens the ends, and waits for them where they are not there yet.
    async fn open(&self) -> Result<Work> {
        let Self { engine, source, sink, lane, plan, .. } = *self;
        let options = &self.relay.options;
        let buffer = engine.limits.relay_buffer as usize;
        if plan.conversion != Conversion::Streams {
            lane.set_method(plan.from.method(plan.into));
        }
        let messages_from = |largest| Source::new(engine, source, plan, options, largest);
        let messages_into = |all| {
            let ends = std::iter::once((sink, plan.into)).chain(self.tee.iter().copied());
            let sinks = ends.map(|end| Sink::new(engine, (source, plan.from), end, options, all));
            Sinks::new(sinks.collect(), options.skip)
        };
        Ok(match plan.conversion {
            Conversion::Streams => {
                Work::Streams(Streams::open(source, sink, options, buffer, lane).await?.into())
            }
            Conversion::Messages => {
                let to = messages_into(false)?;
                Work::Messages(Messages::new(messages_from(to.largest()), to, options).into())
            }
            Conversion::Framed(framing) => {
                let to = messages_into(framing == Framing::Json)?;
                Work::Framed(Framed::open(source, to, framing, options, buffer, lane).await?.into())
            }
            Conversion::Unframed(framing) => {
                let largest =
                    Largest { bytes: buffer as u64, because: "that a relay may hold (relay-buffer)" };
                let from = messages_from(largest);
                Work::Unframed(Unframed::open(from, sink, framing, options, lane).await?.into())
            }
        })
    }

    /// What an endpoint has told before it was closed goes on, as far as the sink takes it at once.
    fn flush(&mut self) {
        if self.ended.is_some()
            || !matches!(self.plan.from, Origin::Events | Origin::Signals)
            || !self.source.closed.is_set()
        {
            return;
        }
        loop {
            let before = self.lane.meter.messages();
            if let Some(ended) = self.pump().now_or_never() {
                self.ended = Some(ended);
                return;
            }
            if self.lane.meter.messages() == before {
                return;
            }
        }
    }

    /// Returns what was taken and not delivered. Says what cannot be undone.
    async fn give_back(&mut self) -> Option<String> {
        self.flush();
        let sink_works = !matches!(self.ended, Some(Err(_) | Ok(Ended::SinkGone(_))));
        match self.work.take()? {
            Work::Streams(streams) => {
                streams.give_back(self.source, self.lane, sink_works);
                None
            }
            Work::Messages(messages) => messages.give_back(self.lane).await,
            Work::Framed(framed) => framed.give_back(self.source, self.lane).await,
            Work::Unframed(unframed) => unframed.give_back().await,
        }
    }
}

/// Runs the relay to its end.
pub(super) async fn run(engine: Arc<Engine>, relay: Arc<Relay>, plans: Plans) {
    let way = |source, sink, lane, plan, tee| Way {
        engine: &engine,
        source,
        sink,
        relay: &relay,
        lane,
        plan,
        tee,
        writer: Writer::new(sink),
        work: None,
        ended: None,
    };
    let (source, sink) = (&relay.source, &relay.sink);
    let tee = relay.tee.iter().zip(plans.tee).collect();
    let mut forth = way(source, sink, &relay.forth, plans.forth, tee);
    let mut back = match (&relay.back, plans.back) {
        (Some(lane), Some(plan)) => Some(way(sink, source, lane, plan, Vec::new())),
        _ => None,
    };
    let failed = Flag::new();
    let stopped = loop {
        relay.control.running().await;
        let both = async {
            match &mut back {
                None => forth.run(&failed).await,
                Some(back) => drop(join(forth.run(&failed), back.run(&failed)).await),
            }
        };
        tokio::select! {
            biased;
            order = relay.control.order() => match order {
                Order::Pause => {}
                Order::Stop(reason) => break Some(reason),
            },
            () = both => break None,
            reason = idle(&relay) => break Some(reason),
        }
    };
    let mut torn = forth.give_back().await;
    if let Some(back) = &mut back {
        torn = back.give_back().await.or(torn);
    }
    let back_ended = back.and_then(|back| back.ended);
    let (mut reason, failed) = match stopped {
        Some(reason) => (reason, false),
        None => outcome(forth.ended, back_ended),
    };
    if let Some(torn) = torn {
        reason = format!("{reason}; {torn}");
    }
    relay.finish(&engine, reason, failed);
}

/// Completes when nothing has moved for as long as `idle-ms` says, beginning now.
async fn idle(relay: &Relay) -> String {
    let Some(limit) = relay.options.idle else {
        return std::future::pending().await;
    };
    let began = Instant::now();
    loop {
        let lanes = std::iter::once(&relay.forth).chain(&relay.back);
        let still = lanes.map(|lane| lane.meter.still()).fold(began.elapsed(), Duration::min);
        match limit.saturating_sub(still) {
            Duration::ZERO => return format!("nothing moved for {} ms (idle-ms)", limit.as_millis()),
            rest => tokio::time::sleep(rest).await,
        }
    }
}

/// What to say of a relay that came to its end by itself.
fn outcome(forth: Option<Result<Ended>>, back: Option<Result<Ended>>) -> (String, bool) {
    let two_ways = back.is_some();
    let mut ends: Vec<_> = forth.into_iter().chain(back).collect();
    // What went wrong is what matters most.
    ends.sort_by_key(|end| end.is_ok());
    match ends.into_iter().next() {
        Some(Err(error)) => (error.text, true),
        // With two ways, a peer that closes ends both, and nothing is wrong.
        Some(Ok(Ended::SinkGone(error))) if !two_ways => (error.text, true),
        Some(Ok(Ended::Enough(reason))) => (reason, false),
        Some(Ok(Ended::Full)) => ("the memory is full".to_owned(), false),
        _ => ("end of stream".to_owned(), false),
    }
}
