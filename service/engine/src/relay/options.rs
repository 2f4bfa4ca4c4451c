//! The options of a relay, checked by the same table that documents them.

use ipc_kernel::{Address, Dict, Error, Parameter, Parameters, Result, Type};

/// The words of `framing`.
const FRAMINGS: &[&str] = &["none", "line", "length", "fixed"];

/// The largest record: what one relay may hold at most (the hard maximum of `relay-buffer`).
const MAX_RECORD: u32 = 1 << 20;

/// The table, shown with the method Relay.
pub static RELAY_OPTIONS: &[Parameter] = &[
    Parameter::new("both", Type::Bool, "Move data both ways; for sockets").default("false"),
    Parameter::new(
        "framing",
        Type::Word(FRAMINGS),
        "How messages stand in a stream. line: each ends with a newline; length: each follows its length \
         (4 bytes, big-endian); fixed: each has record-size bytes; none: no conversion",
    )
    .default("none"),
    Parameter::new(
        "record-size",
        Type::U32 { min: 1, max: MAX_RECORD },
        "Bytes of each message, for framing=fixed",
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
}

impl Framing {
    pub fn name(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Length => "length",
            Self::Fixed(_) => "fixed",
        }
    }
}

/// The options, checked.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub both: bool,
    pub framing: Option<Framing>,
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
        Ok(Self {
            both: checked.bool("both"),
            framing,
            client_lifetime: checked.text("lifetime") == Some("client"),
            fds: checked.bool("fds"),
            shutdown: checked.bool("shutdown"),
        })
    }
}
