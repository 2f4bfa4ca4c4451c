//! What arrives at a connection, in the order in which it arrives: replies and signals.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use ipc_harness::{NAME, patience};
use tokio::sync::Notify;
use zbus::message::{Message, Type};
use zbus::{Connection, MessageStream};

use crate::Client;

/// Collects from when it is made. A task always reads: a stream that nobody reads would stall its connection.
#[derive(Clone)]
pub struct Inbox {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    messages: Mutex<Vec<Message>>,
    arrived: Notify,
}

impl Inbox {
    pub(crate) async fn of(client: &Client) -> Inbox {
        let inbox = Inbox::collecting(client);
        if client.must_subscribe() {
            client.run(ipc_harness::PATH, "", "Subscribe").await;
        } else if !client.is_peer() {
            add_match(&client.connection).await;
        }
        inbox
    }

    /// With a match rule, and nothing else.
    pub(crate) async fn of_broadcasts(client: &Client) -> Inbox {
        let inbox = Inbox::collecting(client);
        if !client.is_peer() {
            add_match(&client.connection).await;
        }
        inbox
    }

    fn collecting(client: &Client) -> Inbox {
        let stream = MessageStream::from(&client.connection);
        let inbox = Inbox { shared: Arc::default() };
        tokio::spawn(collect(stream, inbox.shared.clone()));
        inbox
    }

    /// All that has arrived.
    pub fn all(&self) -> Vec<Message> {
        self.shared.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks about all messages whenever one came, until there is an answer; panics when patience ends.
    #[track_caller]
    pub fn until<T>(&self, mut judge: impl FnMut(&[Message]) -> Option<T>) -> impl Future<Output = T> {
        let caller = std::panic::Location::caller();
        async move {
            let wait = async {
                loop {
                    let arrived = self.shared.arrived.notified();
                    tokio::pin!(arrived);
                    arrived.as_mut().enable();
                    if let Some(answer) = judge(&self.all()) {
                        return answer;
                    }
                    arrived.await;
                }
            };
            match tokio::time::timeout(patience(), wait).await {
                Ok(answer) => answer,
                Err(_) => panic!("{caller}: the wanted message did not come; these did: {:#?}", self.all()),
            }
        }
    }

    /// The first signal of this name from this object, past or to come.
    #[track_caller]
    pub fn signal(&self, path: &str, member: &str) -> impl Future<Output = Message> {
        self.until(move |all| all.iter().find(|message| is_signal(message, path, member)).cloned())
    }

    /// At least so many signals of this name from this object.
    #[track_caller]
    pub fn signals(&self, path: &str, member: &str, count: usize) -> impl Future<Output = Vec<Message>> {
        self.until(move |all| {
            let found: Vec<_> =
                all.iter().filter(|message| is_signal(message, path, member)).cloned().collect();
            (found.len() >= count).then_some(found)
        })
    }
}

async fn collect(mut stream: MessageStream, shared: Arc<Shared>) {
    while let Some(Ok(message)) = stream.next().await {
        shared.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        shared.arrived.notify_waiters();
    }
}

async fn add_match(connection: &Connection) {
    const BUS: &str = "org.freedesktop.DBus";
    let rule = format!("type='signal',sender='{NAME}'");
    let added =
        connection.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "AddMatch", &(rule,)).await;
    added.expect("a match rule for the service's signals");
}

/// The object that a message is from or to.
pub fn path_of(message: &Message) -> String {
    message.header().path().map(|path| path.as_str().to_owned()).unwrap_or_default()
}

/// Whether this is the signal of this name from this object.
pub fn is_signal(message: &Message, path: &str, member: &str) -> bool {
    let header = message.header();
    message.message_type() == Type::Signal
        && header.path().is_some_and(|it| it.as_str() == path)
        && header.member().is_some_and(|it| it.as_str() == member)
}
