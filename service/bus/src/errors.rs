//! The one file that names errors on the wire.
//!
//! `org.example.IPC.Error.<Name>` for each meaning; an errno without a better name is
//! `org.example.IPC.Error.Errno.<EXXXX>`. The text is the kernel layer's, with control characters escaped.

use ipc_kernel::{Error, Kind, error};
use zbus::{
    message::{Header, Message},
    names::ErrorName,
};

/// An error on its way to a caller.
#[derive(Debug)]
pub struct Failure {
    name: String,
    text: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

/// Every name but the `Errno` ones, with its meaning, for the reference.
pub const NAMES: &[(&str, &str)] = &[
    ("InvalidArgument", "a parameter is unknown, missing, given twice, of the wrong type or out of range"),
    ("InvalidAddress", "the address does not follow the grammar"),
    ("NoSuchMechanism", "no mechanism has this name or scheme"),
    ("NoSuchEndpoint", "no endpoint or relay has the object path that was given as an argument"),
    ("Exists", "Create found an object of this name; Create never opens what exists"),
    ("NotFound", "Attach found no object of this name; Attach never creates"),
    ("PermissionDenied", "the kernel refuses the caller, or the system bus does not say who he is"),
    (
        "Confined",
        "the caller runs in a sandbox of its own, so that a path, key, name, address or pid may mean something \
         else outside; the text says how it is confined and what works",
    ),
    ("NotSupported", "the mechanism or this kernel does not offer this operation"),
    ("Busy", "it would have to wait and timeout_ms was 0, or it is in use"),
    (
        "Timeout",
        "it did not happen within timeout_ms, or the caller's process on the system bus gave no sign of life",
    ),
    ("LimitExceeded", "a limit of the service or of the kernel is reached; the text names it and its value"),
    ("TooLarge", "the payload is larger than one call or one message may carry"),
    ("Closed", "this end was closed or shut down, or the peer has gone"),
    (
        "Gone",
        "the kernel object was removed under the endpoint, or the caller's process on the system bus has ended \
         with all of them",
    ),
    ("Overflow", "events were lost"),
    (
        "Unavailable",
        "this machine does not offer the mechanism now, or no process can be started for the caller on the \
         system bus; the text says what to do",
    ),
    ("Cancelled", "the wait was given up: the endpoint was closed or the service stops"),
];

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let name = match error.kind {
            Kind::InvalidArgument => "InvalidArgument",
            Kind::InvalidAddress => "InvalidAddress",
            Kind::NoSuchMechanism => "NoSuchMechanism",
            Kind::NoSuchEndpoint => "NoSuchEndpoint",
            Kind::Exists => "Exists",
            Kind::NotFound => "NotFound",
            Kind::PermissionDenied => "PermissionDenied",
            Kind::Confined => "Confined",
            Kind::NotSupported => "NotSupported",
            Kind::Busy => "Busy",
            Kind::Timeout => "Timeout",
            Kind::LimitExceeded => "LimitExceeded",
            Kind::TooLarge => "TooLarge",
            Kind::Closed => "Closed",
            Kind::Gone => "Gone",
            Kind::Overflow => "Overflow",
            Kind::Unavailable => "Unavailable",
            Kind::Cancelled => "Cancelled",
            Kind::Errno(errno) => {
                let name = format!("org.example.IPC.Error.Errno.{}", error::name(errno));
                return Self { name, text: printable(error.text) };
            }
        };
        Self { name: format!("org.example.IPC.Error.{name}"), text: printable(error.text) }
    }
}

/// Names of files and keys stand in the texts, and texts end on terminals and in logs: what would move a cursor or begin
/// a line of its own is escaped.
fn printable(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// A failure of the bus itself, while serving a call.
impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Self { name: "org.freedesktop.DBus.Error.Failed".to_owned(), text: printable(error.to_string()) }
    }
}

impl zbus::DBusError for Failure {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(&self.text,))
    }

    fn name(&self) -> ErrorName<'_> {
        // Made of our own names and those of errno(3) only, all of which are valid.
        ErrorName::from_str_unchecked(&self.name)
    }

    fn description(&self) -> Option<&str> {
        Some(&self.text)
    }
}
