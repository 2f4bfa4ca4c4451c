//! A client in Rust: calls by the names of the contract, answers as plain values, errors as the tools tell them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use ipc_harness::{CallError, NAME, PATH, patience, watchdog};
use serde::Serialize;
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, DBusError, DynamicType, Message, ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

use crate::Inbox;

/// A dictionary of options, attributes or permissions.
pub type Options<'a> = BTreeMap<&'a str, Variant<'a>>;

/// `options([("mode", 0o600u32.into())])`.
pub fn options<'a, const N: usize>(pairs: [(&'a str, Variant<'a>); N]) -> Options<'a> {
    pairs.into_iter().collect()
}

/// The error of a call that had to fail; panics with the answer when it did not.
#[track_caller]
pub fn error<T: std::fmt::Debug>(result: Result<T, CallError>) -> CallError {
    match result {
        Ok(answer) => panic!("the call must fail, but answered {answer:?}"),
        Err(error) => error,
    }
}

/// That an error has this name, and these phrases in its text.
#[track_caller]
pub fn assert_error(error: &CallError, name: &str, phrases: &[&str]) {
    assert!(error.is(name), "expected {name} with {phrases:?}, got {error}");
    for phrase in phrases {
        assert!(error.text.contains(phrase), "the text must say {phrase:?}: {error}");
    }
}

/// A connection to the service, over a bus or without.
#[derive(Clone)]
pub struct Client {
    pub connection: Connection,
    destination: Option<&'static str>,
    /// Signals come to those only who made the object or asked for them.
    unicast: bool,
}

impl Client {
    pub fn of_bus(connection: Connection) -> Client {
        Client { connection, destination: Some(NAME), unicast: false }
    }

    pub fn of_system_bus(connection: Connection) -> Client {
        Client { connection, destination: Some(NAME), unicast: true }
    }

    pub fn of_peer(connection: Connection) -> Client {
        Client { connection, destination: None, unicast: false }
    }

    pub fn is_peer(&self) -> bool {
        self.destination.is_none()
    }

    pub(crate) fn must_subscribe(&self) -> bool {
        self.unicast
    }

    /// Calls a method of `org.example.IPC.<interface>` (the manager's for `""`), or of the interface itself if it has
    /// a dot. Bounded: every call ends.
    pub async fn reply<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<Message, CallError>
    where
        B: Serialize + DynamicType,
    {
        let interface = full_name(interface);
        let call = self.connection.call_method(self.destination, path, Some(interface), method, body);
        match watchdog(patience(), call).await {
            Ok(reply) => Ok(reply),
            Err(zbus::Error::MethodError(name, text, _)) => {
                Err(CallError { name: name.to_string(), text: text.unwrap_or_default() })
            }
            Err(zbus::Error::FDO(error)) => Err(CallError {
                name: error.name().to_string(),
                text: error.description().unwrap_or_default().to_owned(),
            }),
            Err(error) => panic!("{method} on {path}: {error}"),
        }
    }

    /// The same with the answer read.
    pub async fn call<R, B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<R, CallError>
    where
        R: for<'d> DynamicDeserialize<'d>,
        B: Serialize + DynamicType,
    {
        let reply = self.reply(path, interface, method, body).await?;
        let read = reply.body().deserialize();
        Ok(read.unwrap_or_else(|error| panic!("{method} on {path} answered something else: {error}")))
    }

    /// A property's value.
    pub async fn property(&self, path: &str, interface: &str, name: &str) -> Result<OwnedVariant, CallError> {
        let interface = full_name(interface);
        self.call(path, "org.freedesktop.DBus.Properties", "Get", &(interface, name)).await
    }

    /// A property that is a number, whatever its width.
    pub async fn number(&self, path: &str, interface: &str, name: &str) -> i64 {
        let value = self.property(path, interface, name).await;
        let value = value.unwrap_or_else(|error| panic!("{interface}.{name} of {path}: {error}"));
        integer(&value)
    }

    pub async fn try_create(&self, address: &str, options: Options<'_>) -> Result<String, CallError> {
        self.call(PATH, "", "Create", &(address, options)).await.map(text)
    }

    pub async fn try_attach(&self, address: &str, options: Options<'_>) -> Result<String, CallError> {
        self.call(PATH, "", "Attach", &(address, options)).await.map(text)
    }

    pub async fn try_adopt(&self, fd: impl AsFd) -> Result<String, CallError> {
        let fd = zbus::Fd::from(fd.as_fd());
        self.call(PATH, "", "Adopt", &(fd, Options::new())).await.map(text)
    }

    pub async fn try_relay(
        &self,
        source: &str,
        sink: &str,
        options: Options<'_>,
    ) -> Result<String, CallError> {
        let path = |path: &str| ObjectPath::try_from(path.to_owned()).expect("an object path");
        self.call(PATH, "", "Relay", &(path(source), path(sink), options)).await.map(text)
    }

    /// Create, which succeeds.
    pub async fn create(&self, address: &str) -> String {
        self.create_with(address, Options::new()).await
    }

    pub async fn create_with(&self, address: &str, options: Options<'_>) -> String {
        let made = self.try_create(address, options).await;
        made.unwrap_or_else(|error| panic!("Create({address}): {error}"))
    }

    /// Attach, which succeeds.
    pub async fn attach(&self, address: &str) -> String {
        let made = self.try_attach(address, Options::new()).await;
        made.unwrap_or_else(|error| panic!("Attach({address}): {error}"))
    }

    /// Relay, which succeeds.
    pub async fn relay(&self, source: &str, sink: &str, options: Options<'_>) -> String {
        let made = self.try_relay(source, sink, options).await;
        made.unwrap_or_else(|error| panic!("Relay({source}, {sink}): {error}"))
    }

    /// A method without arguments and answer, which succeeds.
    pub async fn run(&self, path: &str, interface: &str, method: &str) {
        let done = self.reply(path, interface, method, &()).await;
        done.unwrap_or_else(|error| panic!("{method} on {path}: {error}"));
    }

    pub async fn close(&self, path: &str) {
        self.run(path, "Endpoint", "Close").await;
    }

    /// The canonical address of an endpoint.
    pub async fn address(&self, path: &str) -> String {
        let address = self.property(path, "Endpoint", "Address").await.expect("the address of an endpoint");
        String::try_from(address).expect("an address is a text")
    }

    pub async fn open(&self, path: &str, options: Options<'_>) -> Result<OwnedFd, CallError> {
        let fd: Result<zbus::OwnedFd, _> = self.call(path, "Endpoint", "Open", &(options,)).await;
        fd.map(OwnedFd::from)
    }

    pub async fn read(&self, path: &str, max: u32, timeout_ms: u32) -> Result<Vec<u8>, CallError> {
        self.call(path, "Stream", "Read", &(max, timeout_ms)).await
    }

    pub async fn read_text(&self, path: &str, max: u32, timeout_ms: u32) -> Result<String, CallError> {
        self.call(path, "Stream", "ReadText", &(max, timeout_ms)).await
    }

    pub async fn write(&self, path: &str, data: &[u8], timeout_ms: u32) -> Result<u64, CallError> {
        self.call(path, "Stream", "Write", &(data, timeout_ms)).await
    }

    pub async fn send(&self, path: &str, data: &[u8], attributes: Options<'_>) -> Result<(), CallError> {
        self.call(path, "Messages", "Send", &(data, attributes, 10_000u32)).await
    }

    pub async fn receive(
        &self,
        path: &str,
        timeout_ms: u32,
    ) -> Result<(Vec<u8>, BTreeMap<String, OwnedVariant>), CallError> {
        self.call(path, "Messages", "Receive", &(Options::new(), timeout_ms)).await
    }

    /// The rows of a mechanism's List().
    pub async fn list(&self, mechanism: &str) -> Vec<BTreeMap<String, OwnedVariant>> {
        let node = format!("{PATH}/{mechanism}");
        let rows = self.call(&node, "Mechanism", "List", &(Options::new(),)).await;
        rows.unwrap_or_else(|error| panic!("List() of {mechanism}: {error}"))
    }

    /// What is in use of a limit.
    pub async fn usage(&self, key: &str) -> i64 {
        let usage = self.property(PATH, "", "Usage").await.expect("the property Usage");
        let usage: BTreeMap<String, OwnedVariant> = usage.try_into().expect("a dictionary");
        integer(&usage[key])
    }

    /// Until so much of a limit is in use: who takes something gives it back a moment after the reply or the event
    /// that the test has seen. Each question is a call, so there is nothing to sleep for.
    pub async fn used(&self, key: &str, count: i64) {
        watchdog(patience(), async { while self.usage(key).await != count {} }).await;
    }

    /// Everything that arrives at this connection from now on, the service's signals included.
    pub async fn inbox(&self) -> Inbox {
        Inbox::of(self).await
    }

    /// The same, but of signals only those that are for everybody.
    pub async fn broadcasts(&self) -> Inbox {
        Inbox::of_broadcasts(self).await
    }
}

/// `Endpoint` → `org.example.IPC.Endpoint`, `""` → the manager's.
pub(crate) fn full_name(interface: &str) -> String {
    match interface {
        "" => NAME.to_owned(),
        full if full.contains('.') => full.to_owned(),
        short => format!("{NAME}.{short}"),
    }
}

fn text(path: OwnedObjectPath) -> String {
    path.as_str().to_owned()
}

/// A number of any width.
#[track_caller]
pub fn integer(value: &Variant<'_>) -> i64 {
    match value {
        Variant::U32(n) => (*n).into(),
        Variant::I32(n) => (*n).into(),
        Variant::I64(n) => *n,
        Variant::U64(n) => i64::try_from(*n).expect("a number of a sane size"),
        other => panic!("{other:?} is no number"),
    }
}
