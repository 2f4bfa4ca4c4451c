//! A property, mirrored: its value is kept, and each other value that it takes is a message.
//!
//! A message that is sent sets it. Only what differs from the value that is kept becomes a message: so
//! two properties can be relayed to each other, and come to rest.

use std::{
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipc_kernel::{
    Attempt, Dict, Error, Result, dict,
    shape::{Message, Outgoing},
};
use serde_json::Value as Json;
use tokio::{sync::Notify, time::Instant};
use zbus::{Message as Wire, message};

use super::{
    body,
    endpoint::{Role, texts},
    link::{Core, DBUS, answered, error_text, kind_of},
    target::Target,
    waiting::Waiting,
};

pub const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// When it is asked for again what could not be asked for.
const AGAIN: Duration = Duration::from_secs(1);

pub struct Property {
    pub target: Target,
    pub interface: String,
    pub name: String,
    /// The type, where the caller says it.
    pub signature: Option<String>,
    pub flags: message::Flags,
    pub timeout: Duration,
    pub state: Mutex<State>,
    /// Notified when the first answer has come.
    pub answered: Notify,
}

#[derive(Debug, Default)]
pub struct State {
    value: Option<Value>,
    /// The error that was the first answer.
    refused: Option<(String, String)>,
    asked: Waiting<NonZeroU32, What>,
    /// To be asked for once more: at this time, or when the answer that is on its way has come.
    again: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq)]
struct Value {
    /// JSON.
    data: Vec<u8>,
    signature: String,
}

/// What a call was for that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Get,
    Set,
}

impl Property {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, member: &str, flags: message::Flags) -> message::Builder<'_> {
        Wire::method_call(self.target.path.as_str(), member.to_owned())
            .destination(self.target.name.as_str())
            .interface(PROPERTIES)
            .with_flags(flags)
    }

    /// Asks for the value.
    fn get(&self, core: &Core) {
        let flags = self.flags - message::Flags::NO_REPLY_EXPECTED;
        let mut state = self.state();
        state.again = None;
        if state.asked.any(|what| *what == What::Get) {
            // Its answer may be older than what has changed.
            state.again = Some(Instant::now() + AGAIN);
            return;
        }
        // Names were checked, so that it can be built.
        let Ok(call) = self.call("Get", flags).build(&(self.interface.as_str(), self.name.as_str())) else {
            return;
        };
        let serial = call.primary_header().serial_num();
        match core.offer(call) {
            Ok(Attempt::Done(())) => {
                state.asked.push(serial, Instant::now() + self.timeout, What::Get);
            }
            Ok(Attempt::Wait(_)) => state.again = Some(Instant::now() + AGAIN),
            // The bus has gone, and the inbox says so.
            Err(_) => {}
        }
        core.due.notify_one();
    }

    /// Keeps a value, and says so if it is another one.
    fn is_now(&self, core: &Core, data: &Json, signature: &str) {
        let value = Value { data: data.to_string().into_bytes(), signature: signature.to_owned() };
        let mut state = self.state();
        if state.value.as_ref() == Some(&value) {
            return;
        }
        core.inbox.push(value.message());
        state.value = Some(value);
    }

    /// Whatever could not be read or set.
    fn failed(&self, core: &Core, what: What, name: &str, text: &str) {
        let mut state = self.state();
        if what == What::Get && state.value.is_none() && state.refused.is_none() {
            state.refused = Some((name.to_owned(), text.to_owned()));
            return;
        }
        drop(state);
        let attributes = dict! { "error" => name, "signature" => "s" };
        core.inbox.put(Message {
            data: Json::from(text).to_string().into_bytes(),
            attributes,
            fds: Vec::new(),
        });
    }

    fn answer(&self, core: &Core, message: &Wire, what: What) {
        let header = message.header();
        match header.error_name() {
            Some(name) => self.failed(core, what, name.as_str(), &error_text(message)),
            // What the service has made of it may be another value, and not every service tells.
            None if what == What::Set => self.get(core),
            None => {
                let values = body::values(message).map(|values| values.values);
                match values.as_deref().map(|values| values.first().and_then(variant)) {
                    Ok(Some((signature, data))) => self.is_now(core, data, signature),
                    Ok(None) => self.failed(core, what, INVALID, "the answer is no variant"),
                    Err(why) => self.failed(core, what, INVALID, why),
                }
            }
        }
        self.answered.notify_one();
        if what == What::Get && self.state().again.is_some() {
            self.get(core);
        }
    }

    /// `PropertiesChanged(interface, changed, invalidated)`.
    fn changed(&self, core: &Core, message: &Wire) {
        let Ok(values) = body::values(message) else { return self.get(core) };
        match change(&values.values, &self.interface, &self.name) {
            Some(Change::To(data, signature)) => self.is_now(core, data, signature),
            Some(Change::Unsaid) => self.get(core),
            None => {}
        }
    }
}

/// What `PropertiesChanged` says of a property.
pub enum Change<'a> {
    /// The value and its type.
    To(&'a Json, &'a str),
    /// It has to be asked for.
    Unsaid,
}

/// What the arguments of `PropertiesChanged(interface, changed, invalidated)` say of a property. None: nothing.
pub fn change<'a>(values: &'a [Json], interface: &str, name: &str) -> Option<Change<'a>> {
    let [Json::String(of), Json::Object(changed), Json::Array(invalidated)] = values else { return None };
    if of != interface {
        return None;
    }
    if let Some((signature, data)) = changed.get(name).and_then(variant) {
        return Some(Change::To(data, signature));
    }
    invalidated.iter().any(|invalid| invalid.as_str() == Some(name)).then_some(Change::Unsaid)
}

/// The rule for the signals that tell of an object's changes.
pub fn rule(target: &Target, interface: &str) -> String {
    let Target { name, path, .. } = target;
    format!(
        "type='signal',sender='{name}',path='{path}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{interface}'"
    )
}

const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";

impl Value {
    fn message(&self) -> Message {
        let attributes = dict! { "signature" => self.signature.as_str() };
        Message { data: self.data.clone(), attributes, fds: Vec::new() }
    }
}

fn variant(value: &Json) -> Option<(&str, &Json)> {
    Some((value.get("type")?.as_str()?, value.get("data")?))
}

impl Role for Property {
    const SELECTORS: &'static [&'static str] = &[];
    /// A value that is there already is no news.
    const COMES_BACK: bool = false;

    async fn set_up(&self, core: &Core) -> Result<()> {
        let Target { name, path, .. } = &self.target;
        core.add_match(&rule(&self.target, &self.interface)).await?;
        self.target.find(core).await?;
        if self.target.owner().is_none() && self.flags.contains(message::Flags::NO_AUTO_START) {
            return Ok(());
        }
        self.get(core);
        self.answered.notified().await;
        match self.state().refused.take() {
            None => Ok(()),
            Some((error, text)) => Err(Error::new(
                kind_of(&error),
                format!("cannot read the property {} of {path} at {name}: {error}: {text}", self.name),
            )),
        }
    }

    fn send(&self, core: &Core, message: Outgoing<'_>) -> Result<Attempt<()>> {
        let [] = texts(message.attributes, [])?;
        self.target.check(core)?;
        if !message.fds.is_empty() {
            return Err(Error::not_supported(
                "a property is set without file descriptors; call its setter as a method",
            ));
        }
        let mut state = self.state();
        let known = self.signature.as_deref().or(state.value.as_ref().map(|value| value.signature.as_str()));
        let Some(signature) = known else {
            return Err(Error::invalid(
                "the type of the property is not known, as nobody has told its value yet; give the key \"signature\"",
            ));
        };
        let builder = self.call("Set", self.flags);
        let call = body::set_property(builder, &self.interface, &self.name, signature, message.data)?;
        if self.flags.contains(message::Flags::NO_REPLY_EXPECTED) {
            return core.offer(call);
        }
        if let Attempt::Wait(readiness) = core.inbox.room_beside(state.asked.len()) {
            core.inbox.check_open()?;
            return Ok(Attempt::Wait(readiness));
        }
        let serial = call.primary_header().serial_num();
        let attempt = core.offer(call)?;
        if let Attempt::Done(()) = attempt {
            state.asked.push(serial, Instant::now() + self.timeout, What::Set);
            core.due.notify_one();
        }
        Ok(attempt)
    }

    fn handle(&self, core: &Core, message: &Wire) {
        if self.target.handle(core, message) == Some(true) {
            return self.get(core);
        }
        let header = message.header();
        match answered(message) {
            Some(serial) => {
                let asked = self.state().asked.take(serial);
                if let Some(what) = asked {
                    self.answer(core, message, what);
                }
            }
            None if message.message_type() == message::Type::Signal
                && header.destination().is_none()
                && header.sender().is_some_and(|sender| sender.as_str() != DBUS) =>
            {
                self.changed(core, message);
            }
            None => {}
        }
    }

    fn due(&self) -> Option<Instant> {
        let state = self.state();
        state.asked.due().into_iter().chain(state.again).min()
    }

    fn expire(&self, core: &Core, now: Option<Instant>) {
        loop {
            let over = self.state().asked.pop_over(now);
            let Some(what) = over else { break };
            let text = match now {
                Some(_) => format!("no answer within {} ms (timeout-ms)", self.timeout.as_millis()),
                None => format!("the bus {} has gone before the answer", core.bus.label),
            };
            self.failed(core, what, "org.freedesktop.DBus.Error.NoReply", &text);
            self.answered.notify_one();
        }
        let again = self.state().again;
        if now.is_some_and(|now| again.is_some_and(|again| again <= now)) {
            self.get(core);
        }
    }

    fn last(&self) -> Option<Message> {
        self.state().value.as_ref().map(Value::message)
    }

    fn inspect(&self, _core: &Core, into: &mut Dict) {
        self.target.inspect(into);
        if let Some(value) = &self.state().value {
            into.insert("value".into(), ipc_kernel::Value::text_or_bytes(&value.data));
            into.insert("signature".into(), value.signature.as_str().into());
        }
    }
}
