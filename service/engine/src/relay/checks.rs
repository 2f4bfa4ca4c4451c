//! What is checked before a relay starts, so that what cannot work fails at once and says what
//! would.

use std::sync::Arc;

use ipc_kernel::{
    Attempt, Error, Kind, Result,
    mechanism::{End, EndKind},
};

use super::{
    Relay,
    ends::{sink_end, source_end},
    kinds::{self, Conversion, Origin, Target},
    options::{Framing, Options},
    reconnect::can_reconnect,
    sinks,
    sources::{check_snapshot, snapshot_limit},
};
use crate::{Engine, endpoint::Endpoint};

/// What is to be done in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub from: Origin,
    pub into: Target,
    pub conversion: Conversion,
    /// A futex's value before the relay: what changes from then on goes along.
    pub value: Option<u32>,
}

/// What is to be done in all.
#[derive(Debug)]
pub(super) struct Plans {
    pub forth: Plan,
    pub back: Option<Plan>,
    /// What the further sinks are.
    pub tee: Vec<Target>,
}

/// Checks everything that does not depend on other relays.
pub(super) fn check(
    engine: &Engine,
    source: &Endpoint,
    sink: &Endpoint,
    tee: &[Arc<Endpoint>],
    options: &Options,
) -> Result<Plans> {
    apart(source, sink)?;
    let forth = direction(engine, source, sink, options)?;
    fitting(engine, source, sink, options, forth)?;
    reconnectable(source, sink, options)?;
    let mut plans = Plans { forth, back: None, tee: Vec::new() };
    for (index, further) in tee.iter().enumerate() {
        if further.id == sink.id || tee[..index].iter().any(|before| before.id == further.id) {
            return Err(of_tee(Error::invalid(format!(
                "{} is a sink of the relay already",
                further.address
            ))));
        }
        plans.tee.push(further_sink(engine, source, further, forth.into, options).map_err(of_tee)?);
    }
    if !options.both {
        return Ok(plans);
    }
    if let Some(one_way) = [source, sink].into_iter().find(|endpoint| !endpoint.kernel.is_socket()) {
        return Err(Error::invalid(format!(
            "both=true needs sockets at both ends: what goes into {} comes out of it again; start two relays \
             between two pairs instead",
            one_way.address
        )));
    }
    plans.back = Some(direction(engine, sink, source, options)?);
    Ok(plans)
}

/// Says that the error is about a further sink.
pub fn of_tee(error: Error) -> Error {
    Error { text: format!("the option \"tee\": {}", error.text), ..error }
}

fn further_sink(
    engine: &Engine,
    source: &Endpoint,
    sink: &Endpoint,
    first: Target,
    options: &Options,
) -> Result<Target> {
    apart(source, sink)?;
    let bytes = kinds::sink(&sink.shapes, options.snapshot) == Ok(Target::Bytes);
    if bytes != (first == Target::Bytes) {
        let (one, other) = match bytes {
            true => ("is a stream of bytes", "takes messages"),
            false => ("takes messages", "is a stream of bytes"),
        };
        return Err(Error::invalid(format!(
            "{} {one}, and the first sink {other}: all have to be of one kind; start another relay through a queue or a \
             packet pipe",
            sink.address
        )));
    }
    let plan = direction(engine, source, sink, options)?;
    fitting(engine, source, sink, options, plan)?;
    Ok(plan.into)
}

/// Whether the ends are two, and there.
fn apart(source: &Endpoint, sink: &Endpoint) -> Result<()> {
    if source.id == sink.id || (source.address == sink.address && goes_round(source) && goes_round(sink)) {
        return Err(Error::invalid(format!(
            "the source and the sink are the same, {}: what the relay writes would come back to it",
            source.address
        )));
    }
    if let (Some(mailbox), Some(process)) = (source.kernel.mailbox(), sink.kernel.process())
        && mailbox.pid() == process.pid()
    {
        return Err(Error::invalid(format!(
            "{} is the process of the mailbox {}: the signals that the relay sends would come back to it",
            sink.address, source.address
        )));
    }
    for (endpoint, what) in [(source, "source"), (sink, "sink")] {
        if let Some(reason) = endpoint.closed_reason() {
            return Err(Error::new(
                Kind::Closed,
                format!("the {what}, {}, was closed: {reason}", endpoint.address),
            ));
        }
    }
    Ok(())
}

/// Whether there is something to connect again.
fn reconnectable(source: &Endpoint, sink: &Endpoint, options: &Options) -> Result<()> {
    match [source, sink].map(can_reconnect) {
        [Err(of_source), Err(of_sink)] if options.reconnect.is_some() => Err(Error::invalid(format!(
            "reconnect=true needs a socket that was connected by Attach, unix or tcp, at one end or both; of the \
             source, {}: {of_source}; of the sink, {}: {of_sink}",
            source.address, sink.address
        ))),
        _ => Ok(()),
    }
}

/// Whether the options fit what the ends are.
fn fitting(engine: &Engine, source: &Endpoint, sink: &Endpoint, options: &Options, plan: Plan) -> Result<()> {
    let Plan { from, into, conversion, .. } = plan;
    let events = matches!(from, Origin::Events | Origin::Signals);
    let attributes = from != Origin::Bytes || conversion == Conversion::Framed(Framing::Json);
    let misfit = [
        ("memory", from == Origin::Bytes && into == Target::Bytes && options.snapshot, "memory at one end"),
        ("interval-ms", from != Origin::Snapshots, "memory as the source, with memory=snapshot"),
        ("since", !events, "a source of events: a watch, a process, a mailbox or a file system"),
        ("filter", !attributes, "a source whose messages have attributes: no bytes, but with framing=json"),
        ("attributes", into == Target::Bytes, "a sink of messages"),
        (
            "count",
            conversion == Conversion::Streams,
            "messages at one end or both; between two streams the option \"bytes\" counts",
        ),
        (
            "bytes",
            conversion != Conversion::Streams,
            "bytes at both ends; messages are counted by the option \"count\"",
        ),
        (
            "rate-messages",
            conversion == Conversion::Streams,
            "messages at one end or both; between two streams there is the option \"rate-bytes\"",
        ),
        ("count", options.both, "one direction: start two relays instead of both=true"),
        ("on-error", options.skip && conversion == Conversion::Streams, "messages at one end or both"),
        ("bytes", options.both, "one direction: start two relays instead of both=true"),
        ("attributes", options.both, "one direction: start two relays instead of both=true"),
        ("filter", options.both, "one direction: start two relays instead of both=true"),
        ("tee", options.both, "one direction: start two relays instead of both=true"),
        (
            "tee",
            options.reconnect.is_some() && can_reconnect(sink).is_ok(),
            "sinks that are not connected again; lead the socket's messages through a relay of its own, with reconnect=true",
        ),
        (
            "tee",
            options.fds && conversion == Conversion::Streams,
            "fds=false: file descriptors that come with bytes go to one reader",
        ),
    ];
    if let Some((key, _, needs)) = misfit.into_iter().find(|(key, wrong, _)| *wrong && options.has(key)) {
        return Err(Error::invalid(format!("the option {key:?} needs {needs}")));
    }
    if !options.attributes.is_empty() {
        engine.may_address(&options.attributes)?;
        sinks::check(sink, into, &options.attributes)?;
    }
    let says = |key| options.attributes.contains_key(key);
    if kinds::needs_signal(from, into) && !says("signal") && !says("number") {
        return Err(Error::invalid(format!(
            "what comes from {} does not say which signal to send: give the option \"attributes\", such as \
             {{\"signal\": \"SIGUSR1\"}}",
            source.address
        )));
    }
    Ok(())
}

fn direction(engine: &Engine, source: &Endpoint, sink: &Endpoint, options: &Options) -> Result<Plan> {
    let buffer = engine.limits.relay_buffer;
    let refused = |endpoint: &Endpoint, what, instead| {
        Error::not_supported(format!("{} cannot be the {what} of a relay; {instead}", endpoint.address))
    };
    let from = kinds::source(&source.shapes, options.snapshot)
        .map_err(|instead| refused(source, "source", instead))?;
    let into =
        kinds::sink(&sink.shapes, options.snapshot).map_err(|instead| refused(sink, "sink", instead))?;
    let conversion = kinds::conversion(from, into, options.framing)?;
    if source.deliver {
        return Err(Error::new(
            Kind::Busy,
            format!(
                "{} is already read by its option deliver, and a relay would steal from it; make the source without \
                 deliver",
                source.address
            ),
        ));
    }
    if let Conversion::Framed(Framing::Fixed(size)) | Conversion::Unframed(Framing::Fixed(size)) = conversion
        && size > buffer as usize
    {
        return Err(Error::invalid(format!(
            "record-size is {size}, but a relay may hold at most {buffer} bytes (relay-buffer); raise relay-buffer in \
             the service's configuration file"
        )));
    }
    if let (Conversion::Framed(Framing::Fixed(size)), Target::Messages) = (conversion, into) {
        let max = sink.messages()?.max_message_size();
        if size as u64 > max {
            return Err(Error::invalid(format!(
                "record-size is {size}, but a message into {} has at most {max} bytes",
                sink.address
            )));
        }
    }
    let snapshots = [(source, from == Origin::Snapshots), (sink, into == Target::Snapshots)];
    for (endpoint, _) in snapshots.into_iter().filter(|(_, is)| *is) {
        check_snapshot(&endpoint.address, endpoint.memory()?.size()?, snapshot_limit(buffer))?;
    }
    if sink.kernel.stream().is_none() && sink.kernel.memory().is_some_and(|memory| memory.read_only()) {
        return Err(Error::new(
            Kind::PermissionDenied,
            format!("the sink, {}, is read-only memory; attach to it with write access", sink.address),
        ));
    }
    // An end that can never be had is an error of the call, not of the relay.
    let end = (from == Origin::Bytes).then(|| source_end(source)).transpose()?;
    let other = (into == Target::Bytes).then(|| sink_end(sink)).transpose()?;
    if options.fds {
        let unix = |end: &Option<Attempt<End>>| {
            matches!(end, Some(Attempt::Done(End { kind: EndKind::UnixStream, .. })))
        };
        if !(unix(&end) && unix(&other)) && (from, into) != (Origin::Messages, Target::Messages) {
            return Err(Error::invalid(
                "fds=true needs a unix stream socket at both ends: nothing else carries file descriptors with bytes",
            ));
        }
    }
    Ok(Plan { from, into, conversion, value: None })
}

/// Whether what is written into the endpoint can be read from it again, without end.
fn goes_round(endpoint: &Endpoint) -> bool {
    let comes_back = endpoint.kernel.messages().is_none_or(|messages| messages.comes_back());
    // What a process tells is its end, whatever signals it was sent.
    let tells = endpoint.kernel.process().is_some();
    !endpoint.kernel.is_socket() && endpoint.kernel.memory().is_none() && !tells && comes_back
}

/// Checks a relay against those that run: two readers of one stream would steal from each other,
/// two writers of bytes would mix them, and data must not go in a circle.
pub(super) fn conflict<'a>(new: &Relay, running: impl Iterator<Item = &'a Relay> + Clone) -> Option<Error> {
    let streams = |endpoint: &Endpoint| endpoint.kernel.stream().is_some();
    let mut ways: Vec<(&Endpoint, &Endpoint, bool)> = Vec::new();
    for relay in running.clone() {
        ways.extend(relay.ways().map(|(source, sink)| (source, sink, relay.options.framing.is_some())));
    }
    for (source, sink) in new.ways() {
        for (other_source, other_sink, framed) in &ways {
            if other_source.id == source.id && streams(source) {
                return Some(busy(source, "read", "steal from"));
            }
            // Those that write messages take turns.
            let turns = *framed && new.options.framing.is_some();
            if other_sink.id == sink.id && streams(sink) && !turns {
                return Some(busy(sink, "written", "write in between"));
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut next: Vec<&Endpoint> = new.ends().skip(1).map(|sink| &**sink).collect();
    while let Some(endpoint) = next.pop() {
        if !goes_round(endpoint) || seen.contains(&endpoint.address.as_str()) {
            continue;
        }
        if endpoint.address == new.source.address {
            return Some(Error::invalid(format!(
                "with the relays that run, data from {} would come back to it and go round for ever",
                new.source.address
            )));
        }
        seen.push(&endpoint.address);
        next.extend(
            ways.iter().filter(|(source, ..)| source.address == endpoint.address).map(|(_, sink, _)| *sink),
        );
    }
    None
}

fn busy(endpoint: &Endpoint, verb: &str, harm: &str) -> Error {
    Error::new(
        Kind::Busy,
        format!(
            "{} is already {verb} by a relay, and two would {harm} each other; stop that one first",
            endpoint.address
        ),
    )
}
