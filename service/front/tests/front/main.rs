//! The front on a private bus, with a spawner and workers that the tests hold in their hands.
//!
//! No root is needed: a fake spawner (`fake.rs`) answers at the other end of the socket, and its
//! workers do what the member of each call says, good or bad. All clients have the same uid here; the
//! fake's answers to `Examine` tell them apart.

mod calls;
mod ends;
mod fake;
mod herald;
mod hostile;
mod load;

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use fake::Fake;
use futures_util::StreamExt;
use ipc_front::{FdStore, Front, Limits, NoStore, Start, StartError};
use ipc_harness::{Bus, NAME, PATH, connect, patience, watchdog};
use zbus::{Connection, Message, MessageStream, names::ErrorName};

/// A bus, a front on it, and a spawner.
pub struct Fixture {
    pub bus: Bus,
    pub fake: Fake,
    pub front: Front,
}

/// Limits under which many workers may be started and die in one test.
pub fn lenient() -> Limits {
    Limits { worker_starts: 16, worker_crashes: 60, ..Limits::default() }
}

impl Fixture {
    pub async fn new(bus: Bus, limits: Limits) -> Self {
        let (fake, spawner) = Fake::new();
        let front =
            start(&bus, spawner, limits, Vec::new(), Box::new(NoStore)).await.expect("the front starts");
        Self { bus, fake, front }
    }

    /// A client whose process is confined so.
    pub async fn client(&self, confinement: u32) -> Client {
        self.fake.examine_says(confinement);
        let client = Client { connection: connect(&self.bus).await };
        client.call("WhoAmI", &()).await.expect("a client that is served");
        client
    }
}

pub async fn start(
    bus: &Bus,
    spawner: OwnedFd,
    limits: Limits,
    workers: Vec<(String, OwnedFd)>,
    fd_store: Box<dyn FdStore>,
) -> Result<Front, StartError> {
    let address = Some(ipc_harness::Address::address(bus).to_owned());
    let start = Start { spawner, reconnect: None, workers, limits, address, fd_store };
    watchdog(patience(), Front::start(start)).await
}

pub struct Client {
    pub connection: Connection,
}

/// An error's name, without the prefix of the service, and its text.
pub type Failure = (String, String);

impl Client {
    pub async fn call<B>(&self, member: &str, body: &B) -> Result<Message, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let call = self.connection.call_method(Some(NAME), PATH, Some(NAME), member, body);
        watchdog(patience(), call).await.map_err(failure)
    }

    /// The name of the worker that serves this client, and which one in turn it is.
    pub async fn worker(&self) -> (String, u32) {
        let reply = self.call("WhoAmI", &()).await.expect("WhoAmI");
        reply.body().deserialize().expect("(su)")
    }

    pub fn name(&self) -> String {
        self.connection.unique_name().expect("on a bus").to_string()
    }

    /// A call that is sent, and whose reply is waited for elsewhere.
    pub fn begin(&self, member: &'static str) -> tokio::task::JoinHandle<Result<(), Failure>> {
        let client = Client { connection: self.connection.clone() };
        tokio::spawn(async move { client.call(member, &()).await.map(drop) })
    }

    /// The same, once the worker has it.
    pub async fn under_way(&self, member: &'static str) -> tokio::task::JoinHandle<Result<(), Failure>> {
        let call = self.begin(member);
        // It is sent while this waits, or before, and calls of a connection keep their order.
        self.worker().await;
        self.worker().await;
        call
    }

    /// Signals of the service.
    pub fn signals(&self) -> MessageStream {
        MessageStream::from(&self.connection)
    }
}

pub fn failure(error: zbus::Error) -> Failure {
    match error {
        zbus::Error::MethodError(name, text, _) => (short(&name), text.unwrap_or_default()),
        other => panic!("not an error of the service: {other}"),
    }
}

fn short(name: &ErrorName<'_>) -> String {
    name.strip_prefix("org.example.IPC.Error.").unwrap_or(name).to_owned()
}

/// The next signal with this member.
pub async fn signal(messages: &mut MessageStream, member: &str) -> Message {
    let found = async {
        loop {
            let message = messages.next().await.expect("the bus is there").expect("a message");
            let header = message.header();
            let is_it = message.message_type() == zbus::message::Type::Signal
                && header.member().is_some_and(|it| it == member);
            if is_it {
                return message.clone();
            }
        }
    };
    watchdog(patience(), found).await
}

/// Keeps duplicates, as systemd does.
#[derive(Clone, Default)]
pub struct Store(pub Arc<Mutex<HashMap<String, OwnedFd>>>);

impl FdStore for Store {
    fn keep(&self, name: &str, control: BorrowedFd<'_>) {
        let duplicate = control.as_fd().try_clone_to_owned().expect("a duplicate");
        self.0.lock().expect("not poisoned").insert(name.to_owned(), duplicate);
    }

    fn forget(&self, name: &str) {
        self.0.lock().expect("not poisoned").remove(name);
    }

    fn outlives_front(&self) -> bool {
        true
    }
}
