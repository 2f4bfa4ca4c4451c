//! A method: each message that is sent becomes a call, and each reply is a message.
//!
//! Room for a reply is reserved with its call, so that no reply is lost: when as many calls wait for
//! their reply, and replies for somebody to receive them, as the endpoint is deep, a `Send` waits.

use std::{
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipc_kernel::{
    Attempt, Dict, Error, Kind, Result,
    shape::{Message, Outgoing},
};
use tokio::time::Instant;
use zbus::{Message as Wire, message};

use super::{
    body::{self, Form, Types},
    endpoint::{Role, attributes, texts},
    link::{Core, answered},
    target::Target,
    waiting::Waiting,
};

/// The longest `id` of a call.
const LONGEST_ID: usize = 255;

pub struct Method {
    pub target: Target,
    pub interface: Option<String>,
    pub member: String,
    pub types: Types,
    pub form: Form,
    pub flags: message::Flags,
    pub timeout: Duration,
    pub calls: Mutex<Calls>,
}

/// The calls that wait for their reply, and the ids that their callers gave them.
type Calls = Waiting<NonZeroU32, Option<String>>;

impl Method {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reply that this process gives itself.
    fn say(&self, core: &Core, id: Option<String>, name: &str, text: String) {
        let mut attributes = ipc_kernel::dict! { "error" => name, "signature" => "s" };
        identify(&mut attributes, id);
        let data = match self.form {
            Form::Plain => text.into_bytes(),
            Form::Json => serde_json::json!([text]).to_string().into_bytes(),
        };
        core.inbox.put(Message { data, attributes, fds: Vec::new() });
    }
}

fn identify(attributes: &mut Dict, id: Option<String>) {
    if let Some(id) = id {
        attributes.insert("id".into(), id.into());
    }
}

impl Role for Method {
    const SELECTORS: &'static [&'static str] = &["id", "error"];
    const SENT: &'static [&'static str] = &["id"];
    /// A reply is an answer to what was sent.
    const COMES_BACK: bool = true;

    async fn set_up(&self, core: &Core) -> Result<()> {
        self.target.find(core).await
    }

    fn send(&self, core: &Core, message: Outgoing<'_>) -> Result<Attempt<()>> {
        let [id] = texts(message.attributes, ["id"])?;
        if let Some(id) = id.as_ref().filter(|id| id.len() > LONGEST_ID) {
            let text = format!("the attribute \"id\" has {} bytes; it may have {LONGEST_ID}", id.len());
            return Err(Error::new(Kind::TooLarge, text));
        }
        self.target.check(core)?;
        let mut builder = Wire::method_call(self.target.path.as_str(), self.member.as_str())
            .destination(self.target.name.as_str())
            .with_flags(self.flags);
        if let Some(interface) = &self.interface {
            builder = builder.interface(interface.as_str());
        }
        let wire = body::build(builder, self.form, &self.types, message.data, message.fds)?;
        if self.flags.contains(message::Flags::NO_REPLY_EXPECTED) {
            return core.offer(wire);
        }
        // Held until the call is among them: its reply may come at once.
        let mut calls = self.calls();
        if let Attempt::Wait(readiness) = core.inbox.room_beside(calls.len()) {
            core.inbox.check_open()?;
            return Ok(Attempt::Wait(readiness));
        }
        let serial = wire.primary_header().serial_num();
        let attempt = core.offer(wire)?;
        if let Attempt::Done(()) = attempt {
            calls.push(serial, Instant::now() + self.timeout, id);
            core.due.notify_one();
        }
        Ok(attempt)
    }

    fn handle(&self, core: &Core, message: &Wire) {
        self.target.handle(core, message);
        let Some(serial) = answered(message) else { return };
        let call = self.calls().take(serial);
        let Some(id) = call else { return };
        let error = message.header().error_name().map(|name| name.to_string());
        match body::take(message, self.form) {
            Ok(body) => {
                let mut attributes = attributes(message, &body);
                identify(&mut attributes, id.clone());
                if let Some(error) = error {
                    attributes.insert("error".into(), error.into());
                }
                let reply = Message { data: body.data, attributes, fds: body.fds };
                if core.inbox.is_heavy(&reply) {
                    let text = "the replies that wait to be received have too many bytes or file descriptors for one more";
                    self.say(core, id, "org.freedesktop.DBus.Error.LimitsExceeded", text.to_owned());
                } else {
                    core.inbox.put(reply);
                }
            }
            Err(why) => self.say(
                core,
                id,
                "org.freedesktop.DBus.Error.LimitsExceeded",
                format!(
                    "the call was answered{}, but the reply is of no use: {why}",
                    error.map(|name| format!(" with the error {name}")).unwrap_or_default()
                ),
            ),
        }
    }

    fn due(&self) -> Option<Instant> {
        self.calls().due()
    }

    fn expire(&self, core: &Core, now: Option<Instant>) {
        let mut calls = self.calls();
        while let Some(id) = calls.pop_over(now) {
            let text = match now {
                Some(_) => format!(
                    "{} has not answered {} within {} ms (timeout-ms)",
                    self.target.name,
                    self.member,
                    self.timeout.as_millis()
                ),
                None => format!("the bus {} has gone before the reply", core.bus.label),
            };
            self.say(core, id, "org.freedesktop.DBus.Error.NoReply", text);
        }
    }

    fn inspect(&self, _core: &Core, into: &mut Dict) {
        self.target.inspect(into);
        into.insert("calls".into(), (self.calls().len() as u64).into());
    }
}
