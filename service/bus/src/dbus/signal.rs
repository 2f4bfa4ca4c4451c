//! Signals: those that match a rule become messages, and each message that is sent becomes a signal.
//!
//! What a connection of this process has said is left out. So two endpoints on two buses, relayed to
//! each other, carry each signal over once.

use std::sync::atomic::{AtomicU64, Ordering};

use ipc_kernel::{Attempt, Dict, Error, Result, shape::Outgoing};
use zbus::{Message as Wire, message};

use super::{
    body::{self, Form, Types},
    endpoint::{Role, received, texts},
    link::Core,
    wish,
};

pub struct Signals {
    pub rule: String,
    /// What is sent says these, unless the message says others.
    pub path: Option<String>,
    pub interface: Option<String>,
    pub member: Option<String>,
    pub types: Types,
    pub form: Form,
    /// Signals of this process that were left out.
    pub left_out: AtomicU64,
}

impl Role for Signals {
    const SELECTORS: &'static [&'static str] = &["sender", "path", "interface", "member"];
    const SENT: &'static [&'static str] = &["path", "interface", "member", "signature"];
    const COMES_BACK: bool = false;
    const RELAYED: &'static [&'static str] = &["path", "interface", "member", "signature"];

    async fn set_up(&self, core: &Core) -> Result<()> {
        core.add_match(&self.rule).await
    }

    fn send(&self, core: &Core, message: Outgoing<'_>) -> Result<Attempt<()>> {
        let [path, interface, member, signature] =
            texts(message.attributes, ["path", "interface", "member", "signature"])?;
        let needed = |key: &str, given: Option<String>, own: &Option<String>| {
            given.or_else(|| own.clone()).ok_or_else(|| {
                Error::invalid(format!(
                    "a signal needs a {key}: in the address, or as attribute {key:?} of the message"
                ))
            })
        };
        let path = wish::path(needed("path", path, &self.path)?)?;
        let interface = wish::interface(needed("interface", interface, &self.interface)?)?;
        let member = wish::member(needed("member", member, &self.member)?)?;
        let types = match signature {
            Some(signature) => &signature.parse()?,
            None => &self.types,
        };
        let builder = Wire::signal(path, interface, member);
        core.offer(body::build(builder, self.form, types, message.data, message.fds)?)
    }

    fn handle(&self, core: &Core, message: &Wire) {
        let header = message.header();
        // Anybody can send a signal to one connection alone, whatever that has asked for.
        if message.message_type() != message::Type::Signal || header.destination().is_some() {
            return;
        }
        if header.sender().is_some_and(|sender| core.own.has(sender.as_str())) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Some(message) = received(core, message, self.form, |_| ()) {
            core.inbox.push(message);
        }
    }

    fn inspect(&self, _core: &Core, into: &mut Dict) {
        into.insert("own-left-out".into(), self.left_out.load(Ordering::Relaxed).into());
    }
}
