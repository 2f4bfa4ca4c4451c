//! What moves the data of one direction, once its ends are open: whatever the conversion, it is opened, pumps, has an end
//! renewed, and gives back what it holds.

use std::sync::Arc;

use ipc_kernel::{Error, Kind, Result};

use super::{
    Lane, Relay,
    checks::Plan,
    datagrams::Datagrams,
    fan::Fan,
    kinds::{Conversion, Target},
    messages::{Framed, Messages},
    options::Framing,
    reconnect::Side,
    sinks::Sink,
    sources::{Largest, Source},
    streams::Streams,
    task::Ended,
    tee::Sinks,
    unframed::Unframed,
};
use crate::{Engine, endpoint::Endpoint};

/// Where a direction goes from and to, and what is to be done on the way.
#[derive(Clone, Copy)]
pub(super) struct Route<'a> {
    pub engine: &'a Arc<Engine>,
    pub source: &'a Arc<Endpoint>,
    pub sink: &'a Arc<Endpoint>,
    pub relay: &'a Relay,
    pub lane: &'a Lane,
    pub plan: Plan,
}

#[derive(Debug)]
pub(super) enum Work {
    Streams(Box<Streams>),
    Fan(Box<Fan>),
    Messages(Box<Messages>),
    Datagrams(Box<Datagrams>),
    Framed(Box<Framed>),
    Unframed(Box<Unframed>),
}

impl Work {
    /// Opens the ends, `tee` being further sinks, and waits for them where they are not there yet.
    pub async fn open(route: Route<'_>, tee: &[(&Arc<Endpoint>, Target)]) -> Result<Self> {
        let Route { engine, source, sink, lane, plan, relay } = route;
        let options = &relay.options;
        let buffer = engine.limits.relay_buffer as usize;
        if plan.conversion != Conversion::Streams {
            lane.set_method(plan.from.method(plan.into));
        }
        let messages_from = |largest| Source::new(engine, source, plan, options, largest);
        let messages_into = |all| {
            let ends = std::iter::once((sink, plan.into)).chain(tee.iter().copied());
            let sinks = ends.map(|end| Sink::new(engine, (source, plan.from), end, options, all));
            Sinks::new(sinks.collect(), options.skip)
        };
        let between = || Datagrams::between(source, sink, options, buffer);
        let sinks = || std::iter::once(sink).chain(tee.iter().map(|(sink, _)| *sink));
        Ok(match plan.conversion {
            Conversion::Streams if !tee.is_empty() => {
                Self::Fan(Fan::open(source, sinks(), options, buffer, lane).await?.into())
            }
            Conversion::Streams => {
                Self::Streams(Streams::open(source, sink, options, buffer, lane).await?.into())
            }
            Conversion::Messages
                if tee.is_empty()
                    && let Some(datagrams) = between() =>
            {
                Self::Datagrams(datagrams.into())
            }
            Conversion::Messages => {
                let to = messages_into(false)?;
                Self::Messages(Messages::new(messages_from(to.largest()), to, options).into())
            }
            Conversion::Framed(framing) => {
                let to = messages_into(framing == Framing::Json)?;
                Self::Framed(Framed::open(source, to, framing, options, buffer, lane).await?.into())
            }
            Conversion::Unframed(framing) => {
                let largest =
                    Largest { bytes: buffer as u64, because: "that a relay may hold (relay-buffer)" };
                let from = messages_from(largest);
                Self::Unframed(Unframed::open(from, sinks(), framing, options, lane).await?.into())
            }
        })
    }

    /// Until an end of the source, of the sink, or of what is wanted. May be dropped, and called again.
    pub async fn pump(&mut self, route: Route<'_>) -> Result<Ended> {
        let Route { source, lane, .. } = route;
        match self {
            Self::Streams(streams) => streams.pump(source, lane).await,
            Self::Fan(fan) => fan.pump(source, lane).await,
            Self::Messages(messages) => messages.pump(lane).await,
            Self::Datagrams(datagrams) => datagrams.pump(lane).await,
            Self::Framed(framed) => framed.pump(source, lane).await,
            Self::Unframed(unframed) => unframed.pump(lane).await,
        }
    }

    /// Which end has lost its connection, where the pump has failed with this; None: the error is about something else.
    pub fn lost(&self, error: &Error) -> Option<Side> {
        // Sources of messages that are closed are at their end, which is no error.
        let closed = (error.kind == Kind::Closed).then_some(Side::Sink);
        match self {
            Self::Streams(streams) => streams.lost(),
            Self::Fan(fan) => fan.lost(),
            Self::Messages(_) | Self::Datagrams(_) => closed,
            Self::Framed(framed) => framed.source_is_lost().then_some(Side::Source).or(closed),
            Self::Unframed(unframed) => unframed.sink_is_lost().then_some(Side::Sink),
        }
    }

    /// An end has another connection: from now on that one is used, and what is held goes into it.
    pub async fn renew(&mut self, side: Side, route: Route<'_>) -> Result<()> {
        let Route { source, sink, relay, lane, .. } = route;
        match (self, side) {
            (Self::Streams(streams), Side::Source) => streams.renew_source(source, lane).await,
            (Self::Streams(streams), Side::Sink) => streams.renew_sink(sink, lane).await,
            (Self::Fan(fan), Side::Source) => fan.renew_source(source, lane).await,
            // Several sinks are not connected again.
            (Self::Fan(_), Side::Sink) => Ok(()),
            (Self::Framed(framed), Side::Source) => {
                let cut = framed.renew_source(source, lane).await?;
                relay.told.cut(cut);
                Ok(())
            }
            (Self::Unframed(unframed), Side::Sink) => unframed.renew_sink(sink, lane).await,
            // They ask their endpoint each time.
            (Self::Messages(messages), side) => {
                messages.renew(side);
                Ok(())
            }
            (Self::Datagrams(datagrams), side) => {
                datagrams.renew(side);
                Ok(())
            }
            (Self::Framed(framed), Side::Sink) => {
                framed.renew_sinks();
                Ok(())
            }
            (Self::Unframed(unframed), Side::Source) => {
                unframed.renew_source();
                Ok(())
            }
        }
    }

    /// Returns what was taken and not delivered, or delivers it where the sink works. Says what cannot be undone.
    pub async fn give_back(self, route: Route<'_>, sink_works: bool) -> Option<String> {
        let Route { source, lane, .. } = route;
        match self {
            Self::Streams(streams) => {
                streams.give_back(source, lane, sink_works);
                None
            }
            Self::Fan(fan) => fan.give_back(source, lane, sink_works),
            Self::Messages(messages) => messages.give_back(lane).await,
            Self::Datagrams(datagrams) => {
                datagrams.give_back();
                None
            }
            Self::Framed(framed) => framed.give_back(source, lane).await,
            Self::Unframed(unframed) => unframed.give_back().await,
        }
    }
}
