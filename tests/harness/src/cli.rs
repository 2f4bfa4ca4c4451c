//! The command-line clients that users have, `busctl` and `gdbus`, run against a private bus.
//!
//! Both return what the tool printed, or the error with its D-Bus name. `gdbus` prints the name. `busctl` does
//! not; with `SYSTEMD_LOG_LEVEL=debug` its library logs every message, and the error's name is read from there.
//! (That log cuts lines at 2,048 bytes, and with it the text of an error.)

use std::fmt;
use std::process::Command;

use crate::process::Process;
use crate::{Address, NAME, PATH};

/// A call that failed, as the tool tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// The D-Bus error name; empty if the tool refused before it called (bad arguments, no such bus).
    pub name: String,
    /// The error's text.
    pub text: String,
}

impl CallError {
    /// Whether this is `org.example.IPC.Error.<short>`.
    pub fn is(&self, short: &str) -> bool {
        self.name.strip_prefix("org.example.IPC.Error.") == Some(short)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.text)
    }
}

impl std::error::Error for CallError {}

/// `busctl --address=ADDRESS`, talking to the service unless told otherwise.
#[derive(Clone, Debug)]
pub struct Busctl {
    address: String,
    destination: String,
}

/// `gdbus … --address ADDRESS`, talking to the service unless told otherwise.
#[derive(Clone, Debug)]
pub struct Gdbus {
    address: String,
    destination: String,
}

/// `busctl` on this bus.
pub fn busctl(bus: &(impl Address + ?Sized)) -> Busctl {
    Busctl { address: bus.address().to_owned(), destination: NAME.to_owned() }
}

/// `gdbus` on this bus.
pub fn gdbus(bus: &(impl Address + ?Sized)) -> Gdbus {
    Gdbus { address: bus.address().to_owned(), destination: NAME.to_owned() }
}

impl Busctl {
    /// The same for another name on the bus.
    pub fn to(mut self, destination: &str) -> Busctl {
        self.destination = destination.to_owned();
        self
    }

    /// `busctl call`: the arguments are words as busctl(1) describes them, the answer is `SIGNATURE VALUES`.
    pub fn call(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        signature: &str,
        arguments: &[&str],
    ) -> Result<String, CallError> {
        self.run(&call_words(&self.destination, path, interface, method, signature, arguments))
    }

    /// A method of the manager.
    pub fn manager(&self, method: &str, signature: &str, arguments: &[&str]) -> Result<String, CallError> {
        self.call(PATH, NAME, method, signature, arguments)
    }

    /// `busctl call --json=short`: the values of the answer, as busctl renders them.
    pub fn call_json(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        signature: &str,
        arguments: &[&str],
    ) -> Result<Vec<serde_json::Value>, CallError> {
        let mut words = vec!["--json=short"];
        words.extend(call_words(&self.destination, path, interface, method, signature, arguments));
        let printed = self.run(&words)?;
        if printed.is_empty() {
            return Ok(Vec::new());
        }
        let answer: Option<serde_json::Value> = serde_json::from_str(&printed).ok();
        let values = answer.as_ref().and_then(|answer| answer.get("data")?.as_array());
        Ok(values.unwrap_or_else(|| panic!("busctl printed no JSON answer: {printed}")).clone())
    }

    /// `busctl get-property`: `SIGNATURE VALUE`.
    pub fn property(&self, path: &str, interface: &str, property: &str) -> Result<String, CallError> {
        self.run(&["get-property", &self.destination, path, interface, property])
    }

    /// `busctl introspect`.
    pub fn introspect(&self, path: &str) -> Result<String, CallError> {
        self.run(&["--no-legend", "introspect", &self.destination, path])
    }

    /// `busctl tree`: every object path below `/`, one a line.
    pub fn tree(&self) -> Result<String, CallError> {
        self.run(&["--list", "tree", &self.destination])
    }

    /// Any verb, with all its words.
    pub fn run(&self, words: &[&str]) -> Result<String, CallError> {
        let mut command = self.command();
        command.env("SYSTEMD_LOG_LEVEL", "debug").env("SYSTEMD_LOG_TARGET", "console");
        let done = Process::spawn(command.args(words)).finish();
        if done.status.success() {
            Ok(done.text().trim_end().to_owned())
        } else {
            Err(busctl_error(&done.stderr))
        }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("busctl");
        command.arg(format!("--address={}", self.address)).arg("--no-pager");
        command.env("LC_ALL", "C.UTF-8").env("SYSTEMD_COLORS", "0");
        for variable in ["SYSTEMD_LOG_LEVEL", "SYSTEMD_LOG_TIME", "SYSTEMD_LOG_LOCATION", "SYSTEMD_LOG_TID"] {
            command.env_remove(variable);
        }
        command
    }

    /// The address of the bus that it talks to.
    pub fn bus(&self) -> &str {
        &self.address
    }
}

fn call_words<'a>(
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    method: &'a str,
    signature: &'a str,
    arguments: &[&'a str],
) -> Vec<&'a str> {
    // "--": an argument such as -1 is no option.
    let mut words = vec!["--", "call", destination, path, interface, method];
    if !signature.is_empty() {
        words.push(signature);
        words.extend(arguments);
    }
    words
}

impl Gdbus {
    /// The same for another name on the bus.
    pub fn to(mut self, destination: &str) -> Gdbus {
        self.destination = destination.to_owned();
        self
    }

    /// `gdbus call`: the arguments are GVariant texts (`"'pipe:'"`, `"{}"`), the answer is a GVariant tuple.
    pub fn call(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        arguments: &[&str],
    ) -> Result<String, CallError> {
        let method = format!("{interface}.{method}");
        let mut words = vec!["--object-path", path, "--method", &method, "--"];
        words.extend(arguments);
        self.run("call", &words)
    }

    /// A method of the manager.
    pub fn manager(&self, method: &str, arguments: &[&str]) -> Result<String, CallError> {
        self.call(PATH, NAME, method, arguments)
    }

    /// `gdbus introspect --xml`.
    pub fn introspect(&self, path: &str) -> Result<String, CallError> {
        self.run("introspect", &["--xml", "--object-path", path])
    }

    /// Any verb, with the words that follow the destination.
    pub fn run(&self, verb: &str, words: &[&str]) -> Result<String, CallError> {
        let done = Process::spawn(self.command(verb).args(words)).finish();
        if done.status.success() {
            Ok(done.text().trim_end().to_owned())
        } else {
            Err(gdbus_error(&done.stderr))
        }
    }

    pub(crate) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new("gdbus");
        command.args([verb, "--address", &self.address, "--dest", &self.destination]);
        command.env("LC_ALL", "C.UTF-8").env_remove("G_MESSAGES_DEBUG").env_remove("G_DBUS_DEBUG");
        command
    }

    pub(crate) fn destination(&self) -> &str {
        &self.destination
    }

    /// The address of the bus that it talks to.
    pub fn bus(&self) -> &str {
        &self.address
    }
}

/// The last error message that the library logged, and what busctl said after it.
fn busctl_error(stderr: &str) -> CallError {
    const NAME_FIELD: &str = " error-name=";
    const TEXT_FIELD: &str = " error-message=";
    let logged = stderr.rfind("Got message type=error ").map(|at| &stderr[at..]);
    let fields = logged.and_then(|logged| {
        let (_, rest) = logged.split_once(NAME_FIELD)?;
        rest.split_once(TEXT_FIELD)
    });
    match fields {
        Some((name, rest)) => CallError { name: name.to_owned(), text: before_verdict(rest).to_owned() },
        None => {
            let said: Vec<_> = stderr.lines().filter(|line| !is_library_log(line)).collect();
            CallError { name: String::new(), text: said.join("\n") }
        }
    }
}

/// A text of several lines ends where busctl's own sentence about the failure begins.
fn before_verdict(text: &str) -> &str {
    let verdicts = ["\nCall failed: ", "\nFailed to ", "\nBus busctl: "];
    let end = verdicts.iter().filter_map(|verdict| text.find(verdict)).min();
    text[..end.unwrap_or(text.len())].trim_end()
}

fn is_library_log(line: &str) -> bool {
    ["Bus busctl: ", "sd-bus: ", "Sent message type=", "Got message type="]
        .iter()
        .any(|start| line.starts_with(start))
}

/// `Error: GDBus.Error:NAME: TEXT`, with a remark about the introspection data after some.
fn gdbus_error(stderr: &str) -> CallError {
    const REMARK: &str = "\n\n(According to introspection data";
    let text = stderr.find("Error: ").map_or(stderr, |at| &stderr[at + "Error: ".len()..]);
    let text = text.find(REMARK).map_or(text, |at| &text[..at]).trim_end();
    match text.strip_prefix("GDBus.Error:").and_then(|error| error.split_once(": ")) {
        Some((name, text)) => CallError { name: name.to_owned(), text: text.to_owned() },
        None => CallError { name: String::new(), text: text.to_owned() },
    }
}

/// The object path in an answer of either tool (`o "/a/b"`, `(objectpath '/a/b',)`); panics if there is none.
#[track_caller]
pub fn object_path(answer: &str) -> String {
    let quoted = |quote| answer.split(quote).nth(1).filter(|path: &&str| path.starts_with('/'));
    match quoted('"').or_else(|| quoted('\'')) {
        Some(path) => path.to_owned(),
        None => panic!("no object path in {answer:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_busctl() {
        let stderr = "Bus busctl: changing state HELLO → RUNNING\n\
            Got message type=error sender=:1.1 destination=:1.0 path=n/a interface=n/a member=n/a cookie=3 \
            reply_cookie=2 signature=s error-name=org.x.Error.Y error-message=one: two\nthree\n\
            Call failed: one: two\nthree\nBus busctl: changing state RUNNING → CLOSED\n";
        assert_eq!(
            busctl_error(stderr),
            CallError { name: "org.x.Error.Y".into(), text: "one: two\nthree".into() }
        );
        let refused = busctl_error("Bus busctl: changing state\nFailed to parse 'zz'\n");
        assert_eq!(refused, CallError { name: String::new(), text: "Failed to parse 'zz'".into() });
    }

    #[test]
    fn errors_of_gdbus() {
        let error = gdbus_error(
            "Error: GDBus.Error:org.example.IPC.Error.Busy: a: b\n\n(According to introspection data, x)\n",
        );
        assert_eq!(error, CallError { name: "org.example.IPC.Error.Busy".into(), text: "a: b".into() });
        assert!(error.is("Busy") && !error.is("Gone"));
        assert_eq!(gdbus_error("Error connecting: no\n").name, "");
    }

    #[test]
    fn object_paths() {
        assert_eq!(object_path("o \"/org/x/1\""), "/org/x/1");
        assert_eq!(object_path("(objectpath '/org/x/1',)"), "/org/x/1");
    }
}
