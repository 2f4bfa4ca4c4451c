//! The task of a relay: it pumps, both ways where that was asked for, until the source ends,
//! something fails, or somebody stops it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::join};
use ipc_kernel::{Error, Kind, Result, shape::Direction};

use super::{
    Relay,
    checks::Plans,
    control::Order,
    kinds::{Origin, Target},
    reconnect::{Line, Side, can_reconnect, left},
    turns::Writer,
    work::{Route, Work},
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

/// One direction.
struct Way<'a> {
    route: Route<'a>,
    /// The further sinks.
    tee: Vec<(&'a Arc<Endpoint>, Target)>,
    /// To its sinks.
    writers: Vec<(&'a Endpoint, Writer<'a>)>,
    work: Option<Work>,
    /// The connections of source and sink, where they are connections.
    lines: [Line; 2],
    /// The end that has lost its connection.
    lost: Option<Side>,
    ended: Option<Result<Ended>>,
}

/// What the two directions know of each other.
#[derive(Default)]
struct Both {
    /// One has failed in a way that concerns the other.
    failed: Flag,
    /// One has ended.
    ended: Flag,
}

impl<'a> Way<'a> {
    fn new(route: Route<'a>, tee: Vec<(&'a Arc<Endpoint>, Target)>) -> Self {
        let Route { source, sink, relay, .. } = route;
        Self {
            route,
            writers: std::iter::once(sink)
                .chain(tee.iter().map(|(sink, _)| *sink))
                .map(|sink| (&**sink, Writer::new(sink)))
                .collect(),
            tee,
            work: None,
            lines: [source, sink].map(|end| Line::new(end, relay)),
            lost: None,
            ended: None,
        }
    }

    /// Runs to its end. May be dropped and run again.
    async fn run(&mut self, both: &Both) {
        if self.ended.is_some() {
            return;
        }
        let ended = tokio::select! {
            biased;
            ended = self.go_on(both) => ended,
            () = both.failed.wait() => return,
        };
        let passes_on = matches!(ended, Ok(Ended::EndOfStream)) && self.route.relay.options.shutdown;
        if passes_on {
            // What we hold of the sinks' ends goes first, so that their readers see the end.
            self.work = None;
        }
        for (sink, writer) in &mut self.writers {
            // Others that still write into the sink keep it open.
            if writer.leave()
                && passes_on
                && let Some(stream) = sink.kernel.stream()
            {
                // A peer that has gone meanwhile has all the data that it wanted.
                let _ = stream.shutdown(Direction::Write);
            }
        }
        // When the reader has gone, the other direction may still have something to deliver.
        let alone = matches!(&ended, Err(error) if error.kind != Kind::Closed);
        self.ended = Some(ended);
        both.ended.set();
        if alone {
            both.failed.set();
        }
    }

    /// Pumps, and has what loses its connection connected again, until there is nothing more to do.
    async fn go_on(&mut self, both: &Both) -> Result<Ended> {
        loop {
            if let Some(side) = self.lost {
                let over = async {
                    match side {
                        // A peer that has answered to the end of the other direction is not asked again.
                        Side::Source => both.ended.wait().await,
                        Side::Sink => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    renewed = self.renew(side) => renewed?,
                    () = over => return Ok(Ended::EndOfStream),
                }
                self.lost = None;
            }
            let Route { source, sink, plan, .. } = self.route;
            let [from, into] = self.lines;
            // Bytes are read to the end of the former connection first.
            let replaced_source = async {
                match plan.from {
                    Origin::Bytes => std::future::pending().await,
                    _ => from.replaced(source).await,
                }
            };
            let ended = tokio::select! {
                biased;
                ended = self.pump() => ended,
                () = replaced_source => {
                    self.lost = Some(Side::Source);
                    continue;
                }
                () = into.replaced(sink) => {
                    self.lost = Some(Side::Sink);
                    continue;
                }
            };
            self.lost = self.loses(&ended, both);
            if self.lost.is_none() {
                return ended;
            }
        }
    }

    /// The end that has lost its connection and is to be connected again, now that the pump has come to this.
    fn loses(&self, ended: &Result<Ended>, both: &Both) -> Option<Side> {
        let Route { source, sink, relay, .. } = self.route;
        let side = match ended {
            Ok(Ended::EndOfStream) => Side::Source,
            Ok(Ended::SinkGone(_)) => Side::Sink,
            Ok(_) => return None,
            Err(error) => self.work.as_ref()?.lost(error)?,
        };
        let end = match side {
            Side::Source => source,
            Side::Sink => sink,
        };
        let over = side == Side::Source && both.ended.is_set();
        if relay.options.reconnect.is_none() || can_reconnect(end).is_err() || over {
            return None;
        }
        relay.told.lost(match ended {
            Ok(Ended::SinkGone(error)) | Err(error) => error.text.clone(),
            Ok(_) => left(end),
        });
        Some(side)
    }

    /// Gets another connection for that end.
    async fn renew(&mut self, side: Side) -> Result<()> {
        let Route { engine, source, sink, relay, .. } = self.route;
        let [from, into] = &mut self.lines;
        match side {
            Side::Source => from.renew(engine, source, relay).await?,
            Side::Sink => into.renew(engine, sink, relay).await?,
        }
        match &mut self.work {
            Some(work) => work.renew(side, self.route).await,
            None => Ok(()),
        }
    }

    async fn pump(&mut self) -> Result<Ended> {
        let work = match &mut self.work {
            Some(work) => work,
            none => none.insert(Work::open(self.route, &self.tee).await?),
        };
        work.pump(self.route).await
    }

    /// What an endpoint has told before it was closed goes on, as far as the sink takes it at once.
    fn flush(&mut self) {
        let Route { source, lane, plan, .. } = self.route;
        if self.ended.is_some()
            || !matches!(plan.from, Origin::Events | Origin::Signals)
            || !source.closed.is_set()
        {
            return;
        }
        loop {
            let before = lane.meter.messages();
            if let Some(ended) = self.pump().now_or_never() {
                self.ended = Some(ended);
                return;
            }
            if lane.meter.messages() == before {
                return;
            }
        }
    }

    /// Returns what was taken and not delivered. Says what cannot be undone.
    async fn give_back(&mut self) -> Option<String> {
        if self.lost.is_none() {
            self.flush();
        }
        let gone = matches!(self.ended, Some(Err(_) | Ok(Ended::SinkGone(_))));
        let sink_works = !gone && self.lost != Some(Side::Sink);
        self.work.take()?.give_back(self.route, sink_works).await
    }
}

/// Runs the relay to its end.
pub(super) async fn run(engine: Arc<Engine>, relay: Arc<Relay>, plans: Plans) {
    let (source, sink) = (&relay.source, &relay.sink);
    let forth = Route { engine: &engine, source, sink, relay: &relay, lane: &relay.forth, plan: plans.forth };
    let back = match (&relay.back, plans.back) {
        (Some(lane), Some(plan)) => Some(Route { source: sink, sink: source, lane, plan, ..forth }),
        _ => None,
    };
    let mut forth = Way::new(forth, relay.tee.iter().zip(plans.tee).collect());
    let mut back = back.map(|route| Way::new(route, Vec::new()));
    let shared = Both::default();
    let stopped = loop {
        relay.control.running().await;
        let both = async {
            match &mut back {
                None => forth.run(&shared).await,
                Some(back) => drop(join(forth.run(&shared), back.run(&shared)).await),
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
