//! The herald speaks to everybody, and of one thing only.

use futures_util::StreamExt;
use ipc_front::{Limits, NoStore};
use ipc_harness::{Bus, NAME, or_skip, patience, watchdog};
use zbus::{Message, MessageStream};

use crate::{
    Client, Failure, Fixture, failure,
    fake::{self, Fake},
    lenient, signal, start,
};

const NODE: &str = "/org/example/IPC/netlink";
const NETLINK: &str = "org.example.IPC.Netlink";

impl Client {
    async fn ask<B>(&self, interface: &str, member: &str, body: &B) -> Result<Message, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let call = self.connection.call_method(Some(NAME), NODE, Some(interface), member, body);
        watchdog(patience(), call).await.map_err(failure)
    }

    async fn tell(&self, count: u32) {
        self.ask(NETLINK, "Tell", &count).await.expect("a herald");
    }

    /// Who answers calls of this interface on the node.
    async fn who_answers(&self, interface: &str) -> (String, u32) {
        let reply = self.ask(interface, "WhoAmI", &()).await.expect("an answer");
        reply.body().deserialize().expect("(su)")
    }

    async fn listen(&self) -> MessageStream {
        let rule = (format!("type='signal',interface='{NETLINK}'"),);
        let bus = Some("org.freedesktop.DBus");
        let added = self.connection.call_method(bus, "/org/freedesktop/DBus", bus, "AddMatch", &rule);
        added.await.expect("a match rule");
        self.signals()
    }
}

async fn number(signals: &mut MessageStream) -> u32 {
    signal(signals, "LinkChanged").await.body().deserialize().expect("u")
}

#[tokio::test]
async fn its_interface_on_its_node_is_its_own_whoever_calls() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (client, other) = (fixture.client(0).await, fixture.client(1).await);
    assert_eq!(client.who_answers(NETLINK).await, ("herald".to_owned(), 1));
    assert_eq!(other.who_answers(NETLINK).await, ("herald".to_owned(), 1));
    // Everything else is their own workers', and they are two.
    for interface in ["org.example.IPC.Mechanism", "org.freedesktop.DBus.Properties"] {
        let (mine, others) = (client.who_answers(interface).await, other.who_answers(interface).await);
        assert!(mine.0.starts_with("w-") && mine == client.worker().await, "{mine:?}");
        assert!(others.0.starts_with("w-") && others != mine, "{others:?}");
    }
    // Who is not known yet asks the herald first.
    let new = Client { connection: ipc_harness::connect(&fixture.bus).await };
    assert_eq!(new.who_answers(NETLINK).await, ("herald".to_owned(), 1));
    assert_eq!(fixture.fake.started(), 2, "and has no worker for that");
}

#[tokio::test]
async fn everybody_hears_it() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (client, other) = (fixture.client(0).await, fixture.client(1).await);
    let (mut mine, mut others) = (client.listen().await, other.listen().await);
    client.tell(3).await;
    for wanted in 1..=3 {
        assert_eq!(number(&mut mine).await, wanted);
        assert_eq!(number(&mut others).await, wanted);
    }
}

#[tokio::test]
async fn a_hostile_herald_is_replaced() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (client, other) = (fixture.client(0).await, fixture.client(1).await);
    let worker = client.worker().await;
    let mut signals = client.signals();
    let offences = [
        "Broadcast",
        "TellMuch",
        "TellOne",
        "Clients",
        "Idle",
        "WrongSerial",
        "CallBack",
        "Oversize",
        "Fds",
        "Garbage",
        "Broken",
    ];
    let mut instance = 1;
    for member in offences {
        let error = client.ask(NETLINK, member, &()).await.expect_err(member);
        assert_eq!(error.0, "Gone", "{member}: {error:?}");
        instance += 1;
        assert_eq!(other.who_answers(NETLINK).await, ("herald".to_owned(), instance), "{member}");
    }
    client.ask(NETLINK, "SignalTo", &other.name()).await.expect_err("to one");
    assert_eq!(client.worker().await, worker, "its own worker goes on");
    // Nobody has lost anything, and nobody is told so.
    let mut forged = Vec::new();
    use futures_util::FutureExt;
    while let Some(Some(Ok(message))) = signals.next().now_or_never() {
        if message.message_type() == zbus::message::Type::Signal {
            forged.push(message);
        }
    }
    assert!(
        forged.iter().all(|it| it.header().member().is_some_and(|name| name == "NameAcquired")),
        "{forged:?}"
    );
}

#[tokio::test]
async fn what_is_too_much_for_the_bus_is_dropped() {
    let limits = Limits { broadcasts: 5, ..lenient() };
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), limits).await;
    let client = fixture.client(0).await;
    let mut signals = client.listen().await;
    client.tell(1000).await;
    for wanted in 1..=5 {
        assert_eq!(number(&mut signals).await, wanted);
    }
    // What comes after that, in a second, has a gap before it.
    let next = loop {
        client.tell(1).await;
        use futures_util::FutureExt;
        if let Some(number) = number(&mut signals).now_or_never() {
            break number;
        }
    };
    assert!(next == 1 || next > 5, "{next}");
}

/// It is there without anybody's call, and hears who leaves.
#[tokio::test]
async fn it_is_kept_running_and_hears_who_leaves() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (client, leaving) = (fixture.client(0).await, fixture.client(0).await);
    let heard = fixture.fake.herald_hears();
    // The one that has never asked the herald anything is nobody to it.
    let silent = fixture.client(0).await;
    silent.connection.close().await.expect("closed");
    leaving.who_answers(NETLINK).await;
    let left = leaving.name();
    leaving.connection.close().await.expect("closed");
    assert_eq!(fake::next(heard).await.0, left);
    client.ask(NETLINK, "Die", &()).await.expect_err("it is gone");
    assert_eq!(client.who_answers(NETLINK).await, ("herald".to_owned(), 2));
}

#[tokio::test]
async fn the_next_front_has_another_one() {
    let bus = or_skip!(Bus::dbus_daemon());
    let (fake, spawner) = Fake::new();
    let again = spawner.try_clone().expect("a duplicate");
    let front = start(&bus, again, lenient(), Vec::new(), Box::new(NoStore)).await.expect("the first");
    let fixture = Fixture { front, bus, fake };
    let client = fixture.client(0).await;
    assert_eq!(client.who_answers(NETLINK).await.1, 1);
    let Fixture { bus, fake, front } = fixture;
    front.leave().await;
    let front = start(&bus, spawner, lenient(), Vec::new(), Box::new(NoStore)).await.expect("the second");
    assert_eq!(client.who_answers(NETLINK).await, ("herald".to_owned(), 2));
    assert_eq!(fake.heralds(), 2);
    drop(front);
}
