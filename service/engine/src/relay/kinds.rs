//! What an endpoint is to a relay: bytes, or something of which messages are made, and into which messages go.
//!
//! It follows from the shapes alone. So the checks at the start of a relay, the reference page of all pairs and the
//! test that walks through them ask the same two functions, [`source`] and [`sink`], and the same [`conversion`].

use ipc_kernel::{Error, Result, shape::Shape};

use super::options::Framing;

/// What comes out of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Bytes,
    /// Messages of a queue or a socket.
    Messages,
    /// Units of a semaphore, each of which is taken.
    Units,
    /// Wake-ups of a futex, and changes of its value.
    Wakes,
    /// What happened, as JSON; a watch, a process, a file system.
    Events,
    /// Signals that a mailbox received, as JSON.
    Signals,
    /// The whole content of memory, whenever it has changed.
    Snapshots,
}

/// What goes into a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Bytes,
    Messages,
    /// Each message posts a semaphore.
    Units,
    /// Each message sets the word and wakes all who wait for it.
    Wakes,
    /// Each message is a signal to a process.
    Signals,
    /// Each message is the new content of memory.
    Snapshots,
}

/// How the data of one direction has to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    Streams,
    Messages,
    Framed(Framing),
    Unframed(Framing),
}

/// Names each way from one to another.
macro_rules! named {
    ($($from:ident $name:literal),*; $into:tt) => {
        impl Origin {
            /// How `Inspect` calls the way into a sink.
            pub fn method(self, into: Target) -> &'static str {
                match (self, into) {
                    (Self::Messages, Target::Messages) => "messages",
                    $((Self::$from, into) => named!(@ $name, into, $into)),*
                }
            }
        }
    };
    (@ $name:literal, $value:ident, {$($variant:ident $to:literal),*}) => {
        match $value { $(Target::$variant => concat!($name, " to ", $to)),* }
    };
}

named! {
    Bytes "stream", Messages "messages", Units "units", Wakes "wake-ups", Events "events", Signals "signals",
    Snapshots "snapshots";
    {Bytes "stream", Messages "messages", Units "units", Wakes "wake-ups", Signals "signals", Snapshots "snapshots"}
}

impl Origin {
    /// Whether each message has a payload for the sink, and not just for a reader of JSON.
    pub(super) fn has_payload(self) -> bool {
        !matches!(self, Self::Units | Self::Events | Self::Signals)
    }
}

/// What an endpoint of these shapes is as a source; Err says what would work instead.
pub fn source(shapes: &[Shape], snapshot: bool) -> Result<Origin, &'static str> {
    let has = |shape| shapes.contains(&shape);
    Ok(match () {
        () if has(Shape::Stream) => Origin::Bytes,
        () if has(Shape::Memory) && snapshot => Origin::Snapshots,
        () if has(Shape::Memory) => Origin::Bytes,
        () if has(Shape::Messages) => Origin::Messages,
        () if has(Shape::Semaphore) => Origin::Units,
        () if has(Shape::Futex) => Origin::Wakes,
        () if has(Shape::Mailbox) => Origin::Signals,
        () if has(Shape::Watch) || has(Shape::Process) || has(Shape::Filesystem) => Origin::Events,
        () => return Err(LISTENS),
    })
}

/// What an endpoint of these shapes is as a sink; Err says what would work instead.
pub fn sink(shapes: &[Shape], snapshot: bool) -> Result<Target, &'static str> {
    let has = |shape| shapes.contains(&shape);
    Ok(match () {
        () if has(Shape::Stream) => Target::Bytes,
        () if has(Shape::Memory) && snapshot => Target::Snapshots,
        () if has(Shape::Memory) => Target::Bytes,
        () if has(Shape::Messages) => Target::Messages,
        () if has(Shape::Semaphore) => Target::Units,
        () if has(Shape::Futex) => Target::Wakes,
        () if has(Shape::Process) => Target::Signals,
        () if has(Shape::Mailbox) => {
            return Err(
                "a mailbox only receives: attach to its process, signal:pid= with its Pid, and relay into that",
            );
        }
        () if has(Shape::Watch) => {
            return Err(
                "a watch only tells what others do: attach to the file itself, mmap:path=, and relay into that",
            );
        }
        () if has(Shape::Filesystem) => {
            return Err(
                "a mount shows endpoints as files: relay into another endpoint, and publish that one with PublishEndpoint",
            );
        }
        () => return Err(LISTENS),
    })
}

const LISTENS: &str = "it only listens: relay the endpoints that its Accept returns";

/// What has to be done with the data on the way.
pub fn conversion(from: Origin, into: Target, framing: Option<Framing>) -> Result<Conversion> {
    let bytes = (from == Origin::Bytes, into == Target::Bytes);
    match (bytes, framing) {
        ((true, true), None) => Ok(Conversion::Streams),
        ((false, false), None) => Ok(Conversion::Messages),
        ((true, false), Some(framing)) => Ok(Conversion::Framed(framing)),
        ((false, true), Some(framing)) => Ok(Conversion::Unframed(framing)),
        ((true, true), Some(framing)) => Err(Error::invalid(format!(
            "framing={} makes no sense between two streams of bytes: leave the option \"framing\" out",
            framing.name()
        ))),
        ((false, false), Some(framing)) => Err(Error::invalid(format!(
            "framing={} makes no sense between two endpoints with messages, which keep their borders: leave the \
             option \"framing\" out",
            framing.name()
        ))),
        ((one_is_bytes, _), None) => {
            let (one, other) = match one_is_bytes {
                true => ("a stream of bytes", "messages"),
                false => ("messages", "a stream of bytes"),
            };
            Err(Error::invalid(format!(
                "from {one} to {other} a relay must know where messages end: give the option \"framing\", one of \
                 {NEEDED}"
            )))
        }
    }
}

const NEEDED: &str = "line, length, json, base64, fixed (with \"record-size\")";

/// Whether the messages do not say which signal they are to be, so that the option `attributes` has to.
pub fn needs_signal(from: Origin, into: Target) -> bool {
    into == Target::Signals && from != Origin::Signals && (!from.has_payload() || from == Origin::Wakes)
}

/// What becomes of a relay between two shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    Works {
        from: Origin,
        into: Target,
        /// Whether the option `framing` has to be given.
        framing: bool,
        /// Whether the option `attributes` has to say the signal.
        signal: bool,
    },
    /// What would work instead: of the source, or else of the sink.
    Refused(&'static str),
}

/// The same for every pair of endpoints that has these shapes.
pub fn pair(from: Shape, into: Shape, snapshot: bool) -> Pair {
    match (source(&[from], snapshot), sink(&[into], snapshot)) {
        (Ok(from), Ok(into)) => Pair::Works {
            from,
            into,
            framing: conversion(from, into, None).is_err(),
            signal: needs_signal(from, into),
        },
        (Err(instead), _) | (_, Err(instead)) => Pair::Refused(instead),
    }
}
