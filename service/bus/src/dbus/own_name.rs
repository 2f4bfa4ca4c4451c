//! A name that is owned for a script: calls to it are messages, and messages are their answers.
//!
//! A call has a number, by which it is answered; one that nobody answers in time is answered with an
//! error, so that its caller does not wait for ever. Only what the address asks for is shown to the
//! script: a call to another object, interface or method is refused at once.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use ipc_kernel::{
    Attempt, Dict, Error, Kind, Result, Value,
    shape::{Message, Outgoing},
};
use tokio::time::Instant;
use zbus::{Message as Wire, message::Flags, names::ErrorName};

use super::{
    body::{self, Form, Types},
    endpoint::{Refusal, Role, attributes, texts},
    link::{Core, failed},
    own::Own,
    waiting::Waiting,
};

/// `RequestName` (D-Bus specification): nobody is queued for the name, and nobody is replaced.
const DO_NOT_QUEUE: u32 = 4;
const PRIMARY_OWNER: u32 = 1;

pub struct OwnedName {
    pub name: String,
    /// What is served; None: all.
    pub path: Option<String>,
    pub interface: Option<String>,
    pub member: Option<String>,
    /// Of the answers, unless they say others.
    pub types: Types,
    pub form: Form,
    pub timeout: Duration,
    pub calls: Mutex<Calls>,
    /// The name is known to be ours at once, and not when the bus has told each connection.
    pub noted: OnceLock<Own>,
}

/// The calls that wait for their answer, by their numbers; each without its arguments and descriptors.
#[derive(Default)]
pub struct Calls {
    last: u64,
    waiting: Waiting<u64, Wire>,
}

impl OwnedName {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Err: it is not for the script.
    fn serves(&self, call: &Wire) -> std::result::Result<(), Refusal> {
        let header = call.header();
        let other = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_some_and(|wanted| found.is_some_and(|found| found != wanted))
        };
        let path = header.path().map(|path| path.as_str());
        let interface = header.interface().map(|name| name.as_str());
        let member = header.member().map(|name| name.as_str());
        let refuse = |error, what: &str, found: Option<&str>| {
            Err((error, format!("{} has no {what} {}", self.name, found.unwrap_or_default())))
        };
        if other(&self.path, path) {
            return refuse("org.freedesktop.DBus.Error.UnknownObject", "object", path);
        }
        if other(&self.interface, interface) {
            return refuse("org.freedesktop.DBus.Error.UnknownInterface", "interface", interface);
        }
        if other(&self.member, member) {
            return refuse("org.freedesktop.DBus.Error.UnknownMethod", "method", member);
        }
        Ok(())
    }
}

impl Role for OwnedName {
    const SELECTORS: &'static [&'static str] = &["sender", "path", "interface", "member"];
    const SENT: &'static [&'static str] = &["call", "error", "signature"];
    const COMES_BACK: bool = false;

    async fn set_up(&self, core: &Core) -> Result<()> {
        let name = self.name.as_str();
        let attempt = format!("own the name {name}");
        let reply: u32 =
            core.ask("RequestName", &(name, DO_NOT_QUEUE)).await.map_err(|error| failed(&attempt, error))?;
        if reply == PRIMARY_OWNER {
            self.noted.get_or_init(|| Own::new(core.own.bus.clone(), self.name.clone()));
            return Ok(());
        }
        let owner = core.owner(name).await?.unwrap_or_else(|| "somebody who has just left".to_owned());
        let who = match core.ask::<u32, _>("GetConnectionUnixProcessID", &(owner.as_str(),)).await {
            Ok(pid) => format!("{owner}, process {pid} ({})", ipc_kernel::proc::command(pid)),
            Err(_) => owner,
        };
        Err(Error::new(
            Kind::Exists,
            format!("cannot {attempt} on the bus {}: it is owned by {who}", core.bus.label),
        ))
    }

    /// Answers a call.
    fn send(&self, core: &Core, message: Outgoing<'_>) -> Result<Attempt<()>> {
        let mut given = message.attributes.clone();
        let number = given.remove("call");
        let [error, signature] = texts(&given, ["error", "signature"]).map_err(|error| match number {
            Some(_) => error,
            None => error.help("and call (t), the number of the call that is answered"),
        })?;
        let number = match number.as_ref().map(Value::integer) {
            Some(Some(number)) => u64::try_from(number).unwrap_or_default(),
            _ => {
                return Err(Error::invalid(
                    "an answer needs the attribute \"call\" (t), the number that the message of the call has",
                ));
            }
        };
        let types = match (&signature, &error) {
            (Some(signature), _) => &signature.parse()?,
            // As errors are.
            (None, Some(_)) => &"s".parse()?,
            (None, None) => &self.types,
        };
        if let Some(error) = &error
            && ErrorName::try_from(error.as_str()).is_err()
        {
            return Err(Error::invalid(format!(
                "the attribute \"error\" must be an error name of D-Bus, such as org.example.Error.Name, not {error:?}"
            )));
        }
        let mut calls = self.calls();
        let Some(call) = calls.waiting.get(number) else {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "no call {number} waits for an answer: it was answered, or its {} ms (timeout-ms) are over",
                    self.timeout.as_millis()
                ),
            ));
        };
        let header = call.header();
        let builder = match &error {
            Some(error) => Wire::error(&header, error.as_str()),
            None => Wire::method_return(&header),
        };
        let answer = body::build(builder, self.form, types, message.data, message.fds)?;
        let attempt = core.offer(answer)?;
        if let Attempt::Done(()) = attempt {
            calls.waiting.take(number);
        }
        Ok(attempt)
    }

    fn handle(&self, _core: &Core, _message: &Wire) {}

    fn called(&self, core: &Core, call: &Wire) -> std::result::Result<(), Refusal> {
        const FULL: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
        self.serves(call)?;
        let body =
            body::take(call, self.form).map_err(|why| (FULL, format!("the call is not passed on: {why}")))?;
        let attributes = attributes(call, &body);
        let mut message = Message { data: body.data, attributes, fds: body.fds };
        let mut calls = self.calls();
        let answered = !call.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED);
        if answered {
            let full = matches!(core.inbox.room_beside(0), Attempt::Wait(_));
            if full || calls.waiting.len() >= core.inbox.depth || core.inbox.is_heavy(&message) {
                return Err((
                    FULL,
                    format!("{} calls wait to be answered, and no more may (depth)", calls.waiting.len()),
                ));
            }
            calls.last += 1;
            let number = calls.last;
            message.attributes.insert("call".into(), number.into());
            let kept = answerable(call).map_err(|error| (FULL, error.to_string()))?;
            calls.waiting.push(number, Instant::now() + self.timeout, kept);
        }
        core.inbox.push(message);
        drop(calls);
        core.due.notify_one();
        Ok(())
    }

    fn due(&self) -> Option<Instant> {
        self.calls().waiting.due()
    }

    fn expire(&self, core: &Core, now: Option<Instant>) {
        let mut calls = self.calls();
        while let Some(call) = calls.waiting.pop_over(now) {
            let text =
                format!("nobody has answered for {} within {} ms", self.name, self.timeout.as_millis());
            let late = Wire::error(&call.header(), "org.freedesktop.DBus.Error.NoReply").build(&(text,));
            match late {
                Ok(late) => core.answer(late),
                Err(error) => tracing::debug!("a call that is over cannot be answered: {error}"),
            }
        }
    }

    fn inspect(&self, _core: &Core, into: &mut Dict) {
        into.insert("name".into(), self.name.as_str().into());
        into.insert("calls".into(), (self.calls().waiting.len() as u64).into());
    }
}

/// What of a call is needed to answer it: who called, and its serial. The rest may be megabytes.
fn answerable(call: &Wire) -> zbus::Result<Wire> {
    let header = call.header();
    let kept = Wire::method_call("/", "Answered").serial(call.primary_header().serial_num());
    match header.sender() {
        Some(sender) => kept.sender(sender).build(&()),
        None => kept.build(&()),
    }
}
