//! Where messages go: queues, and everything else that messages do something to.
//!
//! Which attributes a message takes along: with framing=json all of them, and one that the sink does not know is an
//! error; otherwise those that mean the same at the sink, and the others are dropped. The option `attributes` is put
//! above both.

use std::{sync::Arc, time::Duration};

use ipc_kernel::{
    Attempt, Dict, Error, Fd, Kind, Readiness, Result, Value,
    blocked::Sent,
    futex_word::{ANY, FutexWord},
    shape::Outgoing,
    signal::names,
};

use super::{
    kinds::{Origin, Target},
    options::Options,
    sources::{Largest, check_snapshot, snapshot_limit},
};
use crate::{Engine, endpoint::Endpoint, wait::Hold};

/// When another attempt is made at what the kernel has no event for: a semaphore at its highest value, or a process
/// with as many signals as may wait.
const FULL: Duration = Duration::from_millis(50);

/// What every semaphore can hold (semctl(2)).
const SEMVMX: u32 = 32_767;

/// The attributes of what is no message of the kernel's.
const COUNT: &[&str] = &["count"];
const VALUE: &[&str] = &["value"];
const SIGNAL: &[&str] = &["number", "signal", "value"];

pub(super) struct Sink {
    engine: Arc<Engine>,
    endpoint: Arc<Endpoint>,
    into: Target,
    /// Which attributes go along; None: all.
    along: Option<&'static [&'static str]>,
    fixed: Dict,
    /// Whether payloads are for the sink.
    payload: bool,
    hold: Hold,
    /// Whether the message that is on its way has been sent by a wait that was given up.
    sent: Sent,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink")
            .field("endpoint", &self.endpoint)
            .field("into", &self.into)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Display for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.endpoint.address)
    }
}

impl Sink {
    /// `all`: messages bring their attributes from elsewhere, and all are meant.
    pub fn new(
        engine: &Arc<Engine>,
        (source, from): (&Endpoint, Origin),
        (sink, into): (&Arc<Endpoint>, Target),
        options: &Options,
        all: bool,
    ) -> Self {
        Self {
            engine: engine.clone(),
            endpoint: sink.clone(),
            into,
            along: (!all).then(|| along((source, from), (sink, into))),
            fixed: options.attributes.clone(),
            payload: from.has_payload(),
            hold: Hold::default(),
            sent: Sent::default(),
        }
    }

    /// The largest message that it takes.
    pub fn largest(&self) -> Result<Largest> {
        let buffer = self.engine.limits.relay_buffer;
        let size = match self.into {
            Target::Messages => self.endpoint.messages()?.max_message_size(),
            Target::Snapshots => self.endpoint.memory()?.size()?,
            _ => u64::from(buffer),
        };
        Ok(Largest { bytes: size, because: "that the sink takes" })
    }

    /// Sends a message; may be dropped, and called again with the same one.
    pub async fn send(&mut self, data: &[u8], attributes: &Dict, fds: &[Fd]) -> Result<()> {
        self.hold.settle().await;
        let mut given: Dict = match self.along {
            None => attributes.clone(),
            Some(keys) => keys
                .iter()
                .filter_map(|key| Some(((*key).to_owned(), attributes.get(*key)?.clone())))
                .collect(),
        };
        given.extend(self.fixed.iter().map(|(key, value)| (key.clone(), value.clone())));
        if self.into == Target::Messages {
            self.engine.may_address(&given)?;
        } else {
            no_fds(fds)?;
            if self.along.is_none() {
                check(&self.endpoint, self.into, &given)?;
            }
        }
        let payload = if self.payload { data } else { &[] };
        match self.into {
            Target::Bytes | Target::Messages => self.message(data, &given, fds).await?,
            Target::Units => {
                let count = count(&given)?;
                while full(self.endpoint.semaphore()?.post(count))? {
                    self.hold.until(Readiness::After(FULL)).await?;
                }
            }
            Target::Wakes => {
                let value = value(&given, payload, word)?;
                let set = move |word: &FutexWord| {
                    if let Some(value) = value {
                        word.store(value)?;
                    }
                    // Whoever waits for another value has it.
                    word.wake(u32::MAX >> 1, ANY).map(drop)
                };
                self.engine.on_futex(&self.endpoint, set).await?;
            }
            Target::Signals => {
                let (number, value) = signal(&given, payload)?;
                while full(self.endpoint.process()?.send(number, value))? {
                    self.hold.until(Readiness::After(FULL)).await?;
                }
            }
            Target::Snapshots => self.replace(data).await?,
        }
        self.sent.clear();
        Ok(())
    }

    async fn message(&mut self, data: &[u8], attributes: &Dict, fds: &[Fd]) -> Result<()> {
        let messages = self.endpoint.messages()?;
        loop {
            match messages.send(Outgoing { data, attributes, fds, sent: &self.sent })? {
                Attempt::Done(()) => return Ok(()),
                Attempt::Wait(readiness) => self.hold.until(readiness).await?,
            }
        }
    }

    /// The message, and zeros behind it, in one piece. Whoever reads meanwhile may see a part of each.
    async fn replace(&self, data: &[u8]) -> Result<()> {
        let most = snapshot_limit(self.engine.limits.relay_buffer);
        let (mut content, address) = (data.to_vec(), self.endpoint.address.clone());
        let write = move |memory: &dyn ipc_kernel::shape::Memory| {
            let size = memory.size()?;
            // It has grown: that concerns all messages.
            check_snapshot(&address, size, most)
                .map_err(|error| Error { kind: Kind::LimitExceeded, ..error })?;
            if content.len() as u64 > size {
                return Err(Error::new(
                    Kind::TooLarge,
                    format!("the next message has {} bytes, and {address} now {size}", content.len()),
                ));
            }
            content.resize(size as usize, 0);
            memory.write(0, &content)
        };
        self.engine.on_memory(&self.endpoint, write).await
    }

    /// It may have another connection: the place in epoll of the former one is of no use.
    pub fn renew(&mut self) {
        self.hold = Hold::default();
    }

    /// Whether the message that was on its way has arrived, when the sending was given up.
    pub async fn arrived(&self) -> bool {
        self.hold.settle().await;
        self.sent.is_set()
    }
}

/// The attributes that mean the same at the sink: the priority or type of a message stays with it between two queues
/// of one kind, where a signal came from between two buses, and what a signal, a word or a semaphore says among
/// those. An address or a sender's identity never goes along.
fn along((source, from): (&Endpoint, Origin), (sink, into): (&Endpoint, Target)) -> &'static [&'static str] {
    match (from, into) {
        (Origin::Messages, Target::Messages) if source.mechanism.name == sink.mechanism.name => {
            sink.kernel.messages().map(|messages| messages.relayed()).unwrap_or_default()
        }
        (Origin::Units, Target::Units) => COUNT,
        (Origin::Wakes | Origin::Signals, Target::Wakes) | (Origin::Wakes, Target::Signals) => VALUE,
        (Origin::Signals, Target::Signals) => SIGNAL,
        _ => &[],
    }
}

/// Whether the sink knows these attributes and takes their values.
pub(super) fn check(sink: &Endpoint, into: Target, attributes: &Dict) -> Result<()> {
    let known = match into {
        Target::Messages => return sink.messages()?.check_attributes(attributes),
        Target::Units => COUNT,
        Target::Wakes => VALUE,
        Target::Signals => SIGNAL,
        Target::Bytes | Target::Snapshots => &[],
    };
    if let Some(key) = attributes.keys().find(|key| !known.contains(&key.as_str())) {
        let has = match known {
            [] => "a message into it has none".to_owned(),
            known => format!("it has {}", known.join(", ")),
        };
        return Err(Error::invalid(format!(
            "{} has no attribute {key:?} for a message; {has}",
            sink.address
        )));
    }
    match into {
        Target::Units => count(attributes).map(drop),
        Target::Wakes => value(attributes, &[], word).map(drop),
        Target::Signals if attributes.contains_key("signal") || attributes.contains_key("number") => {
            signal(attributes, &[]).map(drop)
        }
        Target::Signals => value(attributes, &[], number).map(drop),
        _ => Ok(()),
    }
}

fn no_fds(fds: &[Fd]) -> Result<()> {
    match fds.len() {
        0 => Ok(()),
        count => Err(Error::not_supported(format!(
            "a message with {count} file descriptors can only go into unix sockets and buses"
        ))),
    }
}

/// Whether it has to be tried again.
fn full(done: Result<()>) -> Result<bool> {
    match done {
        Ok(()) => Ok(false),
        Err(error) if error.kind == Kind::LimitExceeded => Ok(true),
        Err(error) => Err(error),
    }
}

fn count(attributes: &Dict) -> Result<u32> {
    let Some(count) = attributes.get("count") else { return Ok(1) };
    let count = count
        .integer()
        .and_then(|count| u32::try_from(count).ok())
        .filter(|count| (1..=SEMVMX).contains(count));
    count.ok_or_else(|| {
        Error::invalid(format!(
            "the attribute \"count\" must be a whole number from 1 to {SEMVMX}: so many units are posted"
        ))
    })
}

/// The attribute `value`, or the number in the text; None: neither.
fn value<T>(attributes: &Dict, text: &[u8], narrow: fn(i128) -> Option<T>) -> Result<Option<T>> {
    let given = match attributes.get("value") {
        Some(value) => value.integer(),
        None => match std::str::from_utf8(text).map(str::trim) {
            Ok("") => return Ok(None),
            Ok(text) => text.parse().ok(),
            Err(_) => None,
        },
    };
    given.and_then(narrow).map(Some).ok_or_else(|| {
        let shown = String::from_utf8_lossy(&text[..text.len().min(64)]);
        Error::invalid(format!(
            "{shown:?} is no value: a message is a whole number of 32 bits or empty, or has it as its attribute value"
        ))
    })
}

fn word(number: i128) -> Option<u32> {
    u32::try_from(number).ok()
}

fn number(number: i128) -> Option<i32> {
    i32::try_from(number).ok()
}

/// The signal and its value: from the attributes, or from a text "SIGUSR1", "SIGUSR1 5", and just "5" where the
/// attributes say the signal.
fn signal(attributes: &Dict, text: &[u8]) -> Result<(i32, i32)> {
    let named = |value: &Value| match value {
        Value::Text(text) => names::number(text),
        other => other.integer().and_then(number).filter(|number| (1..=names::LAST).contains(number)),
    };
    if let Some(given) = attributes.get("signal").or_else(|| attributes.get("number")) {
        let signal = named(given)
            .ok_or_else(|| Error::invalid(format!("the attribute \"signal\" must be {}", names::EXPECTED)))?;
        return Ok((signal, value(attributes, text, number)?.unwrap_or(0)));
    }
    let words = String::from_utf8_lossy(text);
    let (name, rest) = words.trim().split_once(' ').unwrap_or((words.trim(), ""));
    let signal = names::number(name).ok_or_else(|| {
        Error::invalid(format!(
            "{:?} is no signal: a message is {}, and behind it its value, or the option attributes says the signal",
            name.chars().take(64).collect::<String>(),
            names::EXPECTED
        ))
    })?;
    Ok((signal, value(attributes, rest.as_bytes(), number)?.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_kernel::dict;

    #[test]
    fn a_message_is_a_signal() {
        let usr1 = names::number("SIGUSR1").unwrap();
        assert_eq!(signal(&Dict::new(), b"SIGUSR1").unwrap(), (usr1, 0));
        assert_eq!(signal(&Dict::new(), b"usr1 -5\n").unwrap(), (usr1, -5));
        assert_eq!(signal(&dict! { "signal" => "USR1" }, b" 7 ").unwrap(), (usr1, 7));
        assert_eq!(signal(&dict! { "number" => usr1, "value" => 9i32 }, b"ignored").unwrap(), (usr1, 9));
        for (attributes, text) in
            [(Dict::new(), "NOSUCH"), (Dict::new(), "SIGUSR1 x"), (dict! { "signal" => 65u32 }, "")]
        {
            assert_eq!(
                signal(&attributes, text.as_bytes()).unwrap_err().kind,
                Kind::InvalidArgument,
                "{text}"
            );
        }
    }

    #[test]
    fn a_message_is_a_value() {
        assert_eq!(value(&Dict::new(), b"", word).unwrap(), None);
        assert_eq!(value(&Dict::new(), b"4294967295", word).unwrap(), Some(u32::MAX));
        assert_eq!(value(&dict! { "value" => 3i32 }, b"x", word).unwrap(), Some(3));
        assert!(value(&Dict::new(), b"-1", word).is_err());
        assert!(count(&dict! { "count" => 0u32 }).is_err());
        assert_eq!(count(&Dict::new()).unwrap(), 1);
    }
}
