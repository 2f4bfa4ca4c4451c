//! The errors that the front itself answers with: the only file that names them.
//!
//! They are among those of the service (`org.example.IPC.Error.*`), so a caller need not know that
//! there is a front. A refusal names its rule, and a limit its key and value.

use std::num::NonZeroU32;

use zbus::{Result, message::Message};

/// The names that the front uses, without their prefix.
pub const NAMES: &[&str] = &[
    "Cancelled",
    "Gone",
    "InvalidArgument",
    "LimitExceeded",
    "PermissionDenied",
    "Timeout",
    "TooLarge",
    "Unavailable",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub name: &'static str,
    pub text: String,
}

impl Refusal {
    /// The worker ended while the call was with it.
    pub fn gone(why: &str) -> Self {
        let text = format!(
            "the process that held this user's endpoints has ended ({why}), and they with it; the call may or may not have been carried out"
        );
        Self { name: "Gone", text }
    }

    /// The worker did not answer and was ended.
    pub fn timeout(milliseconds: u32) -> Self {
        let text = format!(
            "the process that holds this user's endpoints gave no sign of life for {milliseconds} ms (stuck-after-ms) and was ended; a new one starts with the next call"
        );
        Self { name: "Timeout", text }
    }

    /// The service ends, and the worker did not answer any more.
    pub fn stopping() -> Self {
        let text = "the service is stopping; the call may or may not have been carried out".to_owned();
        Self { name: "Cancelled", text }
    }

    pub fn limit(what: &str, key: &str, value: u64, help: &str) -> Self {
        Self { name: "LimitExceeded", text: format!("{what}: the limit {key} is {value}; {help}") }
    }

    pub fn too_large(size: usize, limit: u32) -> Self {
        let text =
            format!("the message has {size} bytes: the limit payload is {limit} bytes; send it in parts");
        Self { name: "TooLarge", text }
    }

    pub fn permission(text: impl Into<String>) -> Self {
        Self { name: "PermissionDenied", text: text.into() }
    }

    pub fn unavailable(text: impl Into<String>) -> Self {
        Self { name: "Unavailable", text: text.into() }
    }

    /// The same serial twice, while the first call is not answered.
    pub fn serial(serial: NonZeroU32) -> Self {
        let text =
            format!("the serial {serial} is that of a call of this connection that is not answered yet");
        Self { name: "InvalidArgument", text }
    }

    /// The error message for the call of this sender with this serial.
    pub fn message(&self, sender: &str, serial: NonZeroU32) -> Result<Message> {
        // The reply takes sender and serial from the header of a call.
        let call = Message::method_call("/", "Call").sender(sender).serial(serial).build(&())?;
        let name = format!("org.example.IPC.Error.{}", self.name);
        Message::error(&call.header(), name.as_str()).build(&(plain(&self.text),))
    }
}

/// A text without control characters, escaped: parts of it may be others' words, and with a NUL in it
/// a bus would end the connection, with a line feed the log would tell what did not happen.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_escaped() {
        let refusal = Refusal::gone("it said \0\n\u{1b}[31m and ü");
        let message = refusal.message(":1.7", NonZeroU32::MIN).expect("valid");
        message.body().validate().expect("valid");
        let text: String = message.body().deserialize().expect("a string");
        assert!(text.contains("it said \\u{0}\\n\\u{1b}[31m and ü"), "{text}");
    }

    #[test]
    fn every_refusal_has_a_listed_name_and_a_valid_message() {
        let serial = NonZeroU32::new(7).expect("not 0");
        let all = [
            Refusal::gone("killed"),
            Refusal::timeout(5000),
            Refusal::stopping(),
            Refusal::limit("too many calls", "calls", 64, "wait"),
            Refusal::too_large(7, 6),
            Refusal::permission("no"),
            Refusal::unavailable("no"),
            Refusal::serial(serial),
        ];
        for refusal in all {
            assert!(NAMES.contains(&refusal.name), "{refusal:?}");
            let message = refusal.message(":1.7", serial).expect("valid");
            let header = message.header();
            assert_eq!(header.reply_serial(), Some(serial));
            assert_eq!(header.destination().expect("set").as_str(), ":1.7");
            assert_eq!(
                header.error_name().expect("set").as_str(),
                format!("org.example.IPC.Error.{}", refusal.name)
            );
        }
    }
}
