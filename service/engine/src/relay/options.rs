//! The options of a relay, checked by the same table that documents them.

use std::time::Duration;

use ipc_kernel::{Address, Dict, Error, Parameter, Parameters, Result, Type};

use super::filter::Filter;

/// The words of `framing`.
const FRAMINGS: &[&str] = &["none", "line", "length", "fixed", "json", "base64"];

/// The largest record: what one relay may hold at most (the hard maximum of `relay-buffer`).
const MAX_RECORD: u32 = 1 << 20;

/// A day.
const MAX_PAUSE: u32 = 86_400_000;

/// More than any memory moves.
const MAX_RATE: u64 = 1 << 40;

/// The table, shown with the method Relay.
pub static RELAY_OPTIONS: &[Parameter] = &[
    Parameter::new("both", Type::Bool, "Move data both ways; for sockets").default("false"),
    Parameter::new(
        "framing",
        Type::Word(FRAMINGS),
        "How messages stand in a stream. line: each ends with a newline; length: each follows its length \
         (4 bytes, big-endian); fixed: each has record-size bytes; json: each is a line with a JSON object, its \
         bytes as data (or data-base64) and its attributes under their names; base64: each is a line of base64; \
         none: no conversion",
    )
    .default("none"),
    Parameter::new(
        "record-size",
        Type::U32 { min: 1, max: MAX_RECORD },
        "Bytes of each message, for framing=fixed",
    ),
    Parameter::new(
        "memory",
        Type::Word(&["stream", "snapshot"]),
        "What memory is. stream: bytes from its start; snapshot: its whole content is one message, from a source \
         at the start and whenever it has changed, and a sink has it replaced by each message, with zeros behind it",
    )
    .default("stream"),
    Parameter::new(
        "interval-ms",
        Type::U32 { min: 10, max: 86_400_000 },
        "For a source with memory=snapshot: milliseconds between two looks",
    )
    .default("100"),
    Parameter::new(
        "since",
        Type::U64 { min: 0, max: u64::MAX },
        "For a source of events: begin after the one with this number; 0: with the oldest that is kept",
    )
    .default("0"),
    Parameter::new(
        "attributes",
        Type::Dict,
        "Attributes for every message into the sink (type, priority, address, signal, value, count, …), whatever it \
         had before",
    ),
    Parameter::new(
        "filter",
        Type::Dict,
        "Only messages whose attributes are these: equal, one of a list, or a range of numbers as text, 1..5, 1.., \
         ..5. Others are taken from the source, dropped and counted",
    ),
    Parameter::new(
        "count",
        Type::U64 { min: 1, max: u64::MAX },
        "End when so many messages are in the sink; not one more is taken. For messages at one end or both",
    ),
    Parameter::new(
        "bytes",
        Type::Size { min: 1, max: u64::MAX },
        "End when so many bytes are in the sink; not one more is taken. For bytes at both ends",
    ),
    Parameter::new(
        "idle-ms",
        Type::U32 { min: 1, max: 86_400_000 },
        "End when nothing has arrived in the sink for so many milliseconds, whatever the cause; a pause does not count",
    ),
    Parameter::new(
        "rate-bytes",
        Type::Size { min: 1, max: MAX_RATE },
        "Bytes a second, at most, each way for itself; after a pause what it gives in 100 ms goes at once. What is too \
         fast stays at the source",
    ),
    Parameter::new(
        "rate-messages",
        Type::U32 { min: 1, max: 1_000_000 },
        "Messages a second, at most; after a pause what it gives in 100 ms, and at least one, goes at once",
    ),
    Parameter::new(
        "on-error",
        Type::Word(&["stop", "skip"]),
        "What becomes of a message that the sink can never take: too large, not convertible, or with an attribute that is \
         refused. stop: it is kept at the source, and the relay ends; skip: it is dropped, and counted in Inspect",
    )
    .default("stop"),
    Parameter::new(
        "tee",
        Type::Objects,
        "Further sinks: each message, or all bytes, go to all, so that the slowest sets the pace, and leave the source \
         when all have taken them. When one fails or is closed, the relay ends and says which; with on-error=skip what \
         one can never take is skipped for that one. All sinks take bytes, or all messages",
    ),
    Parameter::new(
        "reconnect",
        Type::Bool,
        "Connect again when the peer has left, instead of ending, and go on with what was not taken. For a socket at \
         one end or both that was connected by Attach: unix or tcp",
    )
    .default("false"),
    Parameter::new(
        "retry-ms",
        Type::U32 { min: 1, max: MAX_PAUSE },
        "Milliseconds before the first attempt to connect again; the next pauses are twice as long each, and each is \
         shortened by chance, by a half at most. Data that moves, or a connection that lasts, makes it the first again",
    )
    .default("100"),
    Parameter::new("retry-max-ms", Type::U32 { min: 1, max: MAX_PAUSE }, "The longest of these pauses")
        .default("30000"),
    Parameter::new(
        "retries",
        Type::U32 { min: 1, max: u32::MAX },
        "End when so many attempts in a row have failed; without it, never",
    ),
    Parameter::new(
        "lifetime",
        Type::Word(&["service", "client"]),
        "service: until Stop or an end; client: also until the creating connection ends",
    )
    .default("service"),
    Parameter::new(
        "fds",
        Type::Bool,
        "Between two unix stream sockets: forward file descriptors too; otherwise they are refused",
    )
    .default("false"),
    Parameter::new(
        "shutdown",
        Type::Bool,
        "Pass the source's end of stream on: the writing end of the sink is shut down",
    )
    .default("true"),
];

/// How messages stand in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Line,
    Length,
    Fixed(usize),
    Json,
    Base64,
}

impl Framing {
    pub fn name(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Length => "length",
            Self::Fixed(_) => "fixed",
            Self::Json => "json",
            Self::Base64 => "base64",
        }
    }
}

/// How to connect again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reconnect {
    /// The pauses before it: the first, doubled up to the longest.
    pub first: Duration,
    pub longest: Duration,
    /// How many may fail in a row.
    pub attempts: Option<u32>,
}

impl Reconnect {
    fn of(checked: &Parameters, given: &Dict) -> Result<Option<Self>> {
        if !checked.bool("reconnect") {
            return match ["retry-ms", "retry-max-ms", "retries"].iter().find(|key| given.contains_key(**key))
            {
                Some(key) => Err(Error::invalid(format!("the option {key:?} belongs to reconnect=true"))),
                None => Ok(None),
            };
        }
        // The table has defaults.
        let first = checked.u32("retry-ms").unwrap_or(100);
        let longest = checked.u32("retry-max-ms").unwrap_or(30_000);
        if first > longest {
            return Err(Error::invalid(format!(
                "the option \"retry-ms\" is {first}, but the longest pause, \"retry-max-ms\", is {longest}"
            )));
        }
        let [first, longest] = [first, longest].map(|pause| Duration::from_millis(pause.into()));
        Ok(Some(Self { first, longest, attempts: checked.u32("retries") }))
    }
}

/// The options, checked.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub both: bool,
    pub framing: Option<Framing>,
    /// Memory is one message, and not a stream.
    pub snapshot: bool,
    /// Between two looks at it.
    pub interval: Duration,
    /// The number of the event after which to begin.
    pub since: u64,
    /// What every message into the sink has.
    pub attributes: Dict,
    pub filter: Filter,
    /// It ends after so many messages, so many bytes, or so much time without any.
    pub count: Option<u64>,
    pub bytes: Option<u64>,
    pub idle: Option<Duration>,
    /// At most so much a second.
    pub rate_bytes: Option<u64>,
    pub rate_messages: Option<u64>,
    /// Messages that the sink can never take are dropped.
    pub skip: bool,
    /// What has lost its peer is connected again.
    pub reconnect: Option<Reconnect>,
    /// The keys that were given, for what fits only some ends.
    given: Vec<&'static str>,
    pub client_lifetime: bool,
    pub fds: bool,
    pub shutdown: bool,
}

impl Options {
    pub fn parse(options: &Dict) -> Result<Self> {
        let checked = Parameters::check(RELAY_OPTIONS, &[], &Address::new("Relay"), options)?;
        let size = checked.u32("record-size");
        let framing = match checked.text("framing") {
            Some("line") => Some(Framing::Line),
            Some("length") => Some(Framing::Length),
            Some("json") => Some(Framing::Json),
            Some("base64") => Some(Framing::Base64),
            Some("fixed") => Some(Framing::Fixed(size.ok_or_else(|| {
                Error::invalid(format!(
                    "framing=fixed needs the option \"record-size\": the bytes of each message, from 1 to {MAX_RECORD}"
                ))
            })? as usize)),
            _ => None,
        };
        if size.is_some() && !matches!(framing, Some(Framing::Fixed(_))) {
            return Err(Error::invalid("the option \"record-size\" belongs to framing=fixed"));
        }
        let given = RELAY_OPTIONS.iter().map(|it| it.key).filter(|key| options.contains_key(*key));
        Ok(Self {
            both: checked.bool("both"),
            framing,
            snapshot: checked.text("memory") == Some("snapshot"),
            // The table has a default.
            interval: Duration::from_millis(checked.u32("interval-ms").unwrap_or(100).into()),
            since: checked.size("since").unwrap_or(0),
            attributes: checked.dict("attributes").cloned().unwrap_or_default(),
            filter: Filter::parse(checked.dict("filter"))?,
            count: checked.size("count"),
            bytes: checked.size("bytes"),
            idle: checked.u32("idle-ms").map(|idle| Duration::from_millis(idle.into())),
            rate_bytes: checked.size("rate-bytes"),
            rate_messages: checked.u32("rate-messages").map(u64::from),
            skip: checked.text("on-error") == Some("skip"),
            reconnect: Reconnect::of(&checked, options)?,
            given: given.collect(),
            client_lifetime: checked.text("lifetime") == Some("client"),
            fds: checked.bool("fds"),
            shutdown: checked.bool("shutdown"),
        })
    }

    /// Whether messages go as they are and as they come: none is dropped, changed, counted or slowed down.
    pub fn leaves_messages_alone(&self) -> bool {
        let bounded = self.count.is_some() || self.rate_bytes.is_some() || self.rate_messages.is_some();
        !bounded && !self.skip && self.filter.is_empty() && self.attributes.is_empty()
    }

    /// Whether there are further sinks is known by themselves: a file names them in another way.
    pub fn with_tee(mut self, tee: bool) -> Self {
        self.given.retain(|key| *key != "tee");
        self.given.extend(tee.then_some("tee"));
        self
    }

    pub fn has(&self, key: &str) -> bool {
        self.given.contains(&key)
    }
}
