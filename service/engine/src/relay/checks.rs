//! What is checked before a relay starts, so that what cannot work fails at once and says what
//! would.

use ipc_kernel::{
    Attempt, Error, Kind, Result,
    mechanism::{End, EndKind},
    shape::Shape,
};

use super::{
    Relay,
    ends::{sink_end, source_end},
    options::{Framing, Options},
};
use crate::endpoint::Endpoint;

/// How the data of one direction has to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conversion {
    Streams,
    Messages,
    Framed(Framing),
    Unframed(Framing),
}

/// What an endpoint is to a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Bytes,
    Messages,
}

/// Checks everything that does not depend on other relays.
pub(super) fn check(
    source: &Endpoint,
    sink: &Endpoint,
    options: &Options,
    buffer: u32,
) -> Result<(Conversion, Option<Conversion>)> {
    if source.id == sink.id || (source.address == sink.address && goes_round(source) && goes_round(sink)) {
        return Err(Error::invalid(format!(
            "the source and the sink are the same, {}: what the relay writes would come back to it",
            source.address
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
    let forth = direction(source, sink, options, buffer)?;
    if !options.both {
        return Ok((forth, None));
    }
    if let Some(one_way) = [source, sink].into_iter().find(|endpoint| !endpoint.kernel.is_socket()) {
        return Err(Error::invalid(format!(
            "both=true needs sockets at both ends: what goes into {} comes out of it again; start two relays \
             between two pairs instead",
            one_way.address
        )));
    }
    Ok((forth, Some(direction(sink, source, options, buffer)?)))
}

fn direction(source: &Endpoint, sink: &Endpoint, options: &Options, buffer: u32) -> Result<Conversion> {
    let conversion = match (data(source, "source")?, data(sink, "sink")?, options.framing) {
        (Data::Bytes, Data::Bytes, None) => Conversion::Streams,
        (Data::Messages, Data::Messages, None) => Conversion::Messages,
        (Data::Bytes, Data::Messages, Some(framing)) => Conversion::Framed(framing),
        (Data::Messages, Data::Bytes, Some(framing)) => Conversion::Unframed(framing),
        (Data::Bytes, Data::Bytes, Some(framing)) => {
            return Err(Error::invalid(format!(
                "framing={} makes no sense between two streams of bytes: leave the option \"framing\" out",
                framing.name()
            )));
        }
        (Data::Messages, Data::Messages, Some(framing)) => {
            return Err(Error::invalid(format!(
                "framing={} makes no sense between two endpoints with messages, which keep their borders: leave the \
                 option \"framing\" out",
                framing.name()
            )));
        }
        (from, ..) => {
            let (from, to) = match from {
                Data::Bytes => ("a stream of bytes", "messages"),
                Data::Messages => ("messages", "a stream of bytes"),
            };
            return Err(Error::invalid(format!(
                "from {from} to {to} a relay must know where messages end: give the option \"framing\", one of line, \
                 length, fixed (with \"record-size\")"
            )));
        }
    };
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
    if let Conversion::Framed(Framing::Fixed(size)) = conversion {
        let max = sink.messages()?.max_message_size();
        if size as u64 > max {
            return Err(Error::invalid(format!(
                "record-size is {size}, but a message into {} has at most {max} bytes",
                sink.address
            )));
        }
    }
    if sink.kernel.stream().is_none() && sink.kernel.memory().is_some_and(|memory| memory.read_only()) {
        return Err(Error::new(
            Kind::PermissionDenied,
            format!("the sink, {}, is read-only memory; attach to it with write access", sink.address),
        ));
    }
    // An end that can never be had is an error of the call, not of the relay.
    let from = matches!(conversion, Conversion::Streams | Conversion::Framed(_))
        .then(|| source_end(source))
        .transpose()?;
    let to = matches!(conversion, Conversion::Streams | Conversion::Unframed(_))
        .then(|| sink_end(sink))
        .transpose()?;
    if options.fds {
        let unix = |end: &Option<Attempt<End>>| {
            matches!(end, Some(Attempt::Done(End { kind: EndKind::UnixStream, .. })))
        };
        if !(unix(&from) && unix(&to)) && conversion != Conversion::Messages {
            return Err(Error::invalid(
                "fds=true needs a unix stream socket at both ends: nothing else carries file descriptors with bytes",
            ));
        }
    }
    Ok(conversion)
}

fn data(endpoint: &Endpoint, what: &str) -> Result<Data> {
    let has = |shape| endpoint.shapes.contains(&shape);
    if has(Shape::Stream) || has(Shape::Memory) {
        return Ok(Data::Bytes);
    }
    if has(Shape::Messages) {
        return Ok(Data::Messages);
    }
    let instead = if has(Shape::Listener) {
        "it only listens: relay the endpoints that its Accept returns"
    } else if has(Shape::Semaphore) {
        "a semaphore carries no data: use Wait and Post"
    } else if has(Shape::Futex) {
        "a futex carries no data: use Wait and Wake"
    } else if has(Shape::Watch) {
        "its events come as signals: subscribe to it"
    } else if has(Shape::Mailbox) {
        "what it receives comes as signals: subscribe to it"
    } else if has(Shape::Filesystem) {
        "its files are read and written in its directory"
    } else if has(Shape::Process) {
        "a process carries no data: use Send and WaitExit"
    } else {
        "a relay needs a stream, messages or memory"
    };
    Err(Error::not_supported(format!("{} cannot be the {what} of a relay; {instead}", endpoint.address)))
}

/// Whether what is written into the endpoint can be read from it again, without end.
fn goes_round(endpoint: &Endpoint) -> bool {
    let comes_back = endpoint.kernel.messages().is_none_or(|messages| messages.comes_back());
    !endpoint.kernel.is_socket() && endpoint.kernel.memory().is_none() && comes_back
}

/// Checks a relay against those that run: two readers of one stream would steal from each other,
/// two writers would mix their bytes, and data must not go in a circle.
pub(super) fn conflict<'a>(new: &Relay, running: impl Iterator<Item = &'a Relay> + Clone) -> Option<Error> {
    let streams = |endpoint: &Endpoint| endpoint.kernel.stream().is_some();
    let mut ways: Vec<(&Endpoint, &Endpoint)> = Vec::new();
    for relay in running.clone() {
        ways.extend(relay.ways());
    }
    for (source, sink) in new.ways() {
        for (other_source, other_sink) in &ways {
            if other_source.id == source.id && streams(source) {
                return Some(busy(source, "read", "steal from"));
            }
            if other_sink.id == sink.id && streams(sink) {
                return Some(busy(sink, "written", "write in between"));
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut next: Vec<&Endpoint> = vec![&new.sink];
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
            ways.iter().filter(|(source, _)| source.address == endpoint.address).map(|(_, sink)| *sink),
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
