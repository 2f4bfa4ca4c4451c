//! What an address asks for: its keys, checked against each other and against the rules that D-Bus has
//! for names.

use std::time::Duration;

use ipc_kernel::{Address, Error, Parameter, Parameters, Result, Type};
use zbus::{
    ObjectPath,
    message::Flags,
    names::{BusName, InterfaceName, MemberName, WellKnownName},
};

use super::{
    body::{Form, Types},
    template,
};

/// The flags of a call, by their names in the specification.
const FLAGS: &[(&str, Flags)] = &[
    ("no-reply-expected", Flags::NO_REPLY_EXPECTED),
    ("no-auto-start", Flags::NO_AUTO_START),
    ("allow-interactive-authorization", Flags::ALLOW_INTERACTIVE_AUTH),
];

pub const BUS: Parameter = Parameter::new(
    "bus",
    Type::Text,
    "session, system, or the address of a bus: unix:path=… or unix:abstract=…",
)
.default("session");
pub const PATH: Parameter = Parameter::new("path", Type::Text, "Path of the object");
pub const INTERFACE: Parameter = Parameter::new("interface", Type::Text, "Name of the interface");
pub const MEMBER: Parameter = Parameter::new("member", Type::Text, "Name of the method or signal");
pub const SIGNATURE: Parameter =
    Parameter::new("signature", Type::Text, "Types of what is sent, such as ay, s or sa{sv}");
pub const BODY: Parameter = Parameter::new(
    "body",
    Type::Word(&["plain", "json"]),
    "plain: one ay or s is the bytes or text itself, all else a JSON array of the arguments (methods, own-name); json: \
     always the array (signals)",
);
pub const TEMPLATE: Parameter = Parameter::new(
    "template",
    Type::Text,
    "JSON array of the arguments of each call, in whose strings {message} stands for the text of the message",
);
pub const TIMEOUT: Parameter = Parameter::new(
    "timeout-ms",
    Type::U32 { min: 1, max: 300_000 },
    "Milliseconds that a call has to be answered",
)
.default("25000");
pub const DEPTH: Parameter = Parameter::new(
    "depth",
    Type::U32 { min: 1, max: 4096 },
    "Most messages that wait to be received; calls that wait for a reply count",
)
.default("64");

pub static ATTACH: &[Parameter] = &[
    BUS,
    Parameter::new("name", Type::Text, "Name of the service, well-known or unique; of signals, their sender"),
    PATH,
    INTERFACE,
    MEMBER,
    SIGNATURE,
    BODY,
    TEMPLATE,
    Parameter::new(
        "flags",
        Type::Words(&["no-reply-expected", "no-auto-start", "allow-interactive-authorization"]),
        "Flags of the calls",
    ),
    Parameter::new("signal", Type::Bool, "Signals, of the name, path, interface and member that are given"),
    Parameter::new("match", Type::Text, "Signals, by a match rule of D-Bus"),
    Parameter::new("property", Type::Text, "A property, of the name, path and interface that are given"),
    Parameter::new("watch-name", Type::Text, "Who has this name, well-known or unique"),
    TIMEOUT,
    DEPTH,
];

pub static CREATE: &[Parameter] = &[
    BUS,
    Parameter::new("own-name", Type::Text, "Well-known name that is owned, so that calls to it are messages")
        .required(),
    Parameter::new("path", Type::Text, "The only object that is served; all where not given"),
    Parameter::new("interface", Type::Text, "The only interface that is served; all where not given"),
    Parameter::new("member", Type::Text, "The only method that is served; all where not given"),
    Parameter::new("signature", Type::Text, "Types of the answers, such as ay, s or sa{sv}"),
    BODY,
    TIMEOUT,
    DEPTH,
];

/// A checked view of the parameters.
pub struct Wish<'a>(pub &'a Parameters);

impl Wish<'_> {
    /// Whether the key stands in the address or the options.
    pub fn given(&self, key: &str) -> bool {
        self.0.written(key).is_some() || self.0.texts(key).is_some()
    }

    /// Err if a key was given that means nothing for this kind of endpoint.
    pub fn only(&self, kind: &str, known: &[&str]) -> Result<()> {
        let foreign =
            ATTACH.iter().map(|parameter| parameter.key).find(|key| self.given(key) && !known.contains(key));
        match foreign {
            None => Ok(()),
            Some(key) => Err(Error::invalid(format!(
                "the key {key:?} means nothing for {kind}; there are {}",
                known.join(", ")
            ))),
        }
    }

    pub fn text(&self, key: &str) -> Option<String> {
        self.0.text(key).map(str::to_owned)
    }

    pub fn needed(&self, kind: &str, key: &str) -> Result<String> {
        self.text(key).ok_or_else(|| Error::invalid(format!("{kind} needs the key {key:?}")))
    }

    pub fn types(&self) -> Result<Types> {
        let types = self.0.text("signature").unwrap_or_default().parse();
        types.map_err(|error: Error| Error::invalid(format!("the key \"signature\": {}", error.text)))
    }

    /// What calls have for arguments, where there may be a template for them.
    pub fn types_of_calls(&self) -> Result<Types> {
        let types = self.types()?;
        match self.0.text(TEMPLATE.key) {
            Some(text) => template::with(types, text),
            None => Ok(types),
        }
    }

    pub fn form(&self, default: Form) -> Form {
        match self.0.text("body") {
            Some("plain") => Form::Plain,
            Some("json") => Form::Json,
            _ => default,
        }
    }

    pub fn flags(&self) -> Flags {
        let given = self.0.texts("flags").unwrap_or_default();
        let set = FLAGS.iter().filter(|(name, _)| given.iter().any(|text| text == name));
        set.fold(Flags::empty(), |flags, (_, flag)| flags | *flag)
    }

    // The table has defaults.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.0.u32("timeout-ms").unwrap_or(25_000).into())
    }

    pub fn depth(&self) -> usize {
        self.0.u32("depth").unwrap_or(64) as usize
    }

    /// The address that says the same, its keys in the order of the table.
    pub fn address(&self, table: &[Parameter]) -> Address {
        let mut address = Address::new("dbus");
        for parameter in table {
            let texts = self.0.texts(parameter.key).map(|texts| texts.join("+"));
            if let Some(value) = self.0.written(parameter.key).or(texts) {
                address = address.with(parameter.key, value);
            }
        }
        address
    }
}

/// Whoever sends anything with this path or interface is disconnected.
const LOCAL: [&str; 2] = ["/org/freedesktop/DBus/Local", "org.freedesktop.DBus.Local"];

macro_rules! checked {
    ($(#[$doc:meta])* $name:ident, $type:ident, $what:expr) => {
        $(#[$doc])*
        pub fn $name(text: String) -> Result<String> {
            if LOCAL.contains(&text.as_str()) {
                return Err(Error::invalid(format!("{text} is reserved: a bus disconnects who sends it")));
            }
            match $type::try_from(text.as_str()) {
                Ok(_) => Ok(text),
                Err(_) => Err(Error::invalid(format!("{text:?} is no {} of D-Bus", $what))),
            }
        }
    };
}

checked!(path, ObjectPath, "object path");
checked!(interface, InterfaceName, "interface name");
checked!(member, MemberName, "member name");
checked!(well_known, WellKnownName, "name that can be owned (such as org.example.Name)");
checked!(bus_name, BusName, "name on a bus (such as org.example.Name or :1.5)");
