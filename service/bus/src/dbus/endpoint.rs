//! An endpoint of this mechanism: messages to a bus and from it, whatever they are to it ([`Role`]).

use std::{os::fd::OwnedFd, sync::Arc};

use ipc_kernel::{
    Address, Attempt, Dict, Endpoint, Error, Parameters, Result, Value,
    mechanism::Permissions,
    shape::{Message, Messages, Outgoing, Shape},
};
use tokio::time::Instant;
use zbus::Message as Wire;

use super::{
    body::{self, Body, Form, MOST_BYTES},
    link::{Core, Task},
};

/// Why a call that came is refused: the name of the error, and its text.
pub type Refusal = (&'static str, String);

/// What an endpoint does on its bus.
pub trait Role: Send + Sync + 'static {
    /// The attributes by which a message can be chosen.
    const SELECTORS: &'static [&'static str];

    /// The attributes that a message which is sent may have.
    const SENT: &'static [&'static str] = &[];

    /// The attributes that a relay from another endpoint of a bus hands on.
    const RELAYED: &'static [&'static str] = &[];

    /// Whether what is sent may come back as something that came.
    const COMES_BACK: bool;

    /// Asks the bus for what is needed. Whatever comes from then on is handled already.
    fn set_up(&self, core: &Core) -> impl Future<Output = Result<()>> + Send;

    /// Sends a message, whole or not at all.
    fn send(&self, core: &Core, message: Outgoing<'_>) -> Result<Attempt<()>>;

    /// A signal or a reply that came.
    fn handle(&self, core: &Core, message: &Wire);

    /// A call that came; one that is refused is answered by the caller.
    fn called(&self, _core: &Core, call: &Wire) -> std::result::Result<(), Refusal> {
        let header = call.header();
        let member = header.member().map(|member| member.to_string()).unwrap_or_default();
        Err((
            "org.freedesktop.DBus.Error.UnknownMethod",
            format!("no methods are served on this connection, {member:?} neither"),
        ))
    }

    /// When something has waited too long.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// What has waited too long at this time is over; None: the bus has gone, and all is.
    fn expire(&self, _core: &Core, _now: Option<Instant>) {}

    /// The last value, where it is kept.
    fn last(&self) -> Option<Message> {
        None
    }

    fn inspect(&self, _core: &Core, _into: &mut Dict) {}
}

pub struct DbusEndpoint<R: Role> {
    pub address: Address,
    pub core: Arc<Core>,
    pub role: Arc<R>,
    /// Reads as long as the endpoint is there; what is to be written is written after that, too.
    pub _reader: Task,
}

impl<R: Role> Endpoint for DbusEndpoint<R> {
    fn address(&self) -> Address {
        self.address.clone()
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Messages]
    }

    fn inspect(&self) -> Result<Dict> {
        let mut state = ipc_kernel::dict! {
            "bus" => self.core.bus.label.as_str(),
            "bus-id" => self.core.own.bus.as_str(),
            "unique" => self.core.own.unique.as_str(),
        };
        self.core.inbox.inspect(&mut state);
        self.role.inspect(&self.core, &mut state);
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        Err(Error::not_supported(
            "a connection to a bus is authenticated for this endpoint and not handed out; connect to the bus yourself",
        ))
    }

    fn set_permissions(&self, _permissions: Permissions) -> Result<()> {
        Err(Error::not_supported("who may call whom on a bus, the policy of the bus says"))
    }

    fn remove(&self) -> Result<()> {
        Err(Error::not_supported(
            "nothing is removed from a bus; a name is given back when its endpoint is closed",
        ))
    }

    fn messages(&self) -> Option<&dyn Messages> {
        Some(self)
    }
}

impl<R: Role> DbusEndpoint<R> {
    fn check(&self, selector: &Dict) -> Result<()> {
        match selector.keys().find(|key| !R::SELECTORS.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) if R::SELECTORS.is_empty() => Err(Error::invalid(format!(
                "there is no selector {key:?} here; messages come in their order"
            ))),
            Some(key) => Err(Error::invalid(format!(
                "there is no selector {key:?} here; there are {}",
                R::SELECTORS.join(", ")
            ))),
        }
    }
}

fn fits(selector: &Dict, message: &Message) -> bool {
    selector.iter().all(|(key, wanted)| message.attributes.get(key).is_some_and(|value| value.same(wanted)))
}

impl<R: Role> Messages for DbusEndpoint<R> {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        body::check_length(message.data.len())?;
        self.role.send(&self.core, message)
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.check(selector)?;
        self.core.inbox.take(|message| fits(selector, message))
    }

    fn selects(&self, selector: &Dict, message: &Message) -> Result<bool> {
        self.check(selector)?;
        Ok(fits(selector, message))
    }

    fn peek(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.check(selector)?;
        match self.role.last() {
            Some(last) => Ok(Attempt::Done(last)),
            None => self.core.inbox.peek(|message| fits(selector, message)),
        }
    }

    /// What is right, the role and the body it sends say together.
    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        match attributes.keys().find(|key| !R::SENT.contains(&key.as_str())) {
            Some(key) => Err(Error::invalid(format!(
                "a message that is sent here has no attribute {key:?}; it may have {}",
                R::SENT.join(", ")
            ))),
            None => Ok(()),
        }
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        self.core.inbox.arrival()
    }

    fn max_message_size(&self) -> u64 {
        MOST_BYTES as u64
    }

    fn depth(&self) -> Option<u64> {
        Some(self.core.inbox.len())
    }

    fn relayed(&self) -> &'static [&'static str] {
        R::RELAYED
    }

    fn comes_back(&self) -> bool {
        R::COMES_BACK
    }
}

/// What a message that came says of itself: sender, path, interface, member, signature.
pub fn attributes(message: &Wire, body: &Body) -> Dict {
    let header = message.header();
    let mut attributes = ipc_kernel::dict! { "signature" => body.signature.as_str() };
    let mut add = |key: &str, text: Option<String>| {
        if let Some(text) = text {
            attributes.insert(key.to_owned(), Value::Text(text));
        }
    };
    add("sender", header.sender().map(|name| name.to_string()));
    add("path", header.path().map(|path| path.to_string()));
    add("interface", header.interface().map(|name| name.to_string()));
    add("member", header.member().map(|name| name.to_string()));
    attributes
}

/// A message that came, as one of ours; what cannot be had is counted as lost, and logged.
pub fn received(core: &Core, message: &Wire, form: Form, add: impl FnOnce(&mut Dict)) -> Option<Message> {
    match body::take(message, form) {
        Ok(body) => {
            let mut attributes = attributes(message, &body);
            add(&mut attributes);
            Some(Message { data: body.data, attributes, fds: body.fds })
        }
        Err(why) => {
            tracing::debug!("a message from the bus {} is left out: {why}", core.bus.label);
            core.inbox.lose_one();
            None
        }
    }
}

/// The attributes of a message to be sent, each a text; others than these are refused.
pub fn texts<const N: usize>(attributes: &Dict, known: [&str; N]) -> Result<[Option<String>; N]> {
    if let Some(key) = attributes.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(Error::invalid(match N {
            0 => format!("a message to be sent has no attribute {key:?} here"),
            _ => format!("a message to be sent has no attribute {key:?} here; it has {}", known.join(", ")),
        }));
    }
    let mut texts = [const { None }; N];
    for (text, key) in texts.iter_mut().zip(known) {
        *text = match attributes.get(key) {
            None => None,
            Some(Value::Text(value)) => Some(value.clone()),
            Some(other) => {
                return Err(Error::invalid(format!(
                    "the attribute {key:?} must be a text (D-Bus type s), not {}",
                    other.signature()
                )));
            }
        };
    }
    Ok(texts)
}
