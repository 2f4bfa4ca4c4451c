//! What one client does too much of costs that client.

use futures_util::StreamExt;
use ipc_front::Limits;
use ipc_harness::{Bus, Kind, NAME, PATH, connect, or_skip, patience, watchdog};
use zbus::message::{Flags, Message, Type};

use crate::{Client, Fixture, fake, lenient};

#[tokio::test]
async fn a_flood_of_calls_without_reply_costs_only_its_sender() {
    for kind in Kind::ALL {
        let fixture = Fixture::new(or_skip!(Bus::start(kind)), lenient()).await;
        let (flooder, other) = (fixture.client(0).await, fixture.client(1).await);
        let call = Message::method_call(PATH, "Echo").interface(NAME).destination(NAME);
        let call = call.with_flags(Flags::NO_REPLY_EXPECTED).build(&"flood").expect("valid");
        let connection = flooder.connection.clone();
        let flood = tokio::spawn(async move {
            for _ in 0..1000 {
                let calls = vec![call.clone(); 20];
                connection.send_all(&calls).await.expect("sent");
            }
        });
        let mut rounds = 0;
        while !flood.is_finished() {
            let peer = Some("org.freedesktop.DBus.Peer");
            let ping = other.connection.call_method(Some(NAME), PATH, peer, "Ping", &());
            watchdog(patience(), ping).await.expect("Ping");
            rounds += 1;
        }
        watchdog(patience(), flood).await.expect("a task");
        assert!(rounds > 0);
        // Afterwards the sender is served again: a refusal means that its calls are still on their way.
        let served = async { while flooder.call("Echo", &"again").await.is_err() {} };
        watchdog(patience(), served).await;
        assert_eq!(fixture.fake.started(), 2);
    }
}

/// Bytes that the bus holds for this connection.
async fn held(client: &Client, name: &str) -> Option<u32> {
    let (bus, stats) = ("org.freedesktop.DBus", "org.freedesktop.DBus.Debug.Stats");
    let call = client.connection.call_method(
        Some(bus),
        "/org/freedesktop/DBus",
        Some(stats),
        "GetConnectionStats",
        &name,
    );
    let reply = call.await.ok()?;
    let body = reply.body();
    let stats: std::collections::HashMap<&str, zbus::OwnedVariant> = body.deserialize().ok()?;
    stats.get("OutgoingBytes").and_then(|bytes| u32::try_from(bytes.clone()).ok())
}

#[tokio::test]
async fn who_does_not_read_is_sent_little_and_the_latest() {
    const COUNT: u32 = 1000;
    const SIZE: u32 = 32 * 1024;
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), Limits::default()).await;
    let (slow, watcher) = (fixture.client(0).await, fixture.client(0).await);
    // Its queue is full after 64 messages, and then it reads nothing from the bus.
    let mut messages = slow.signals();
    let call = Message::method_call(PATH, "Signals").interface(NAME).destination(NAME);
    slow.connection.send(&call.build(&(COUNT, SIZE)).expect("valid")).await.expect("sent");
    // The worker answers calls in turn: when it answers this, it has sent all of them.
    watcher.call("Echo", &"behind").await.expect("the worker is not held up");
    let most = held(&watcher, &slow.name()).await.expect("dbus-daemon has statistics");
    assert!(most < 1 << 20, "{most} bytes of {} wait for a client that does not read", COUNT * SIZE);
    let mut numbers = Vec::new();
    let latest = async {
        while numbers.last() != Some(&COUNT) {
            let message = messages.next().await.expect("the bus").expect("a message");
            if message.message_type() == Type::Signal
                && message.header().member().is_some_and(|it| it == "Event")
            {
                let (number, _): (u32, Vec<u8>) = message.body().deserialize().expect("(uay)");
                numbers.push(number);
            }
        }
    };
    watchdog(patience(), latest).await;
    assert!(numbers.is_sorted() && numbers.len() < COUNT as usize, "{} signals", numbers.len());
}

#[tokio::test]
async fn who_reads_loses_nothing() {
    const COUNT: u32 = 500;
    for kind in Kind::ALL {
        let fixture = Fixture::new(or_skip!(Bus::start(kind)), Limits::default()).await;
        let client = fixture.client(0).await;
        // With it, zbus answers the pings that take the place of statistics on dbus-broker.
        client.connection.object_server();
        let mut messages = client.signals();
        let call = Message::method_call(PATH, "Signals").interface(NAME).destination(NAME);
        client.connection.send(&call.build(&(COUNT, 1000u32)).expect("valid")).await.expect("sent");
        let mut next = 1;
        let all = async {
            while next <= COUNT {
                let message = messages.next().await.expect("the bus").expect("a message");
                if message.header().member().is_some_and(|it| it == "Event") {
                    let (number, _): (u32, Vec<u8>) = message.body().deserialize().expect("(uay)");
                    assert_eq!(number, next, "{kind}");
                    next += 1;
                }
            }
        };
        watchdog(patience(), all).await;
    }
}

#[tokio::test]
async fn clients_come_and_go() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let mut departures = fixture.fake.departures();
    let staying = fixture.client(0).await;
    for _ in 0..300 {
        let client = Client { connection: connect(&fixture.bus).await };
        client.call("Echo", &"x").await.expect("Echo");
        client.connection.close().await.expect("closed");
    }
    assert_eq!(staying.worker().await.1, 1);
    // The worker hears of each; then a call still finds everything in place.
    for _ in 0..300 {
        departures = fake::next(departures).await.1;
    }
    staying.call("Echo", &"x").await.expect("Echo");
    assert_eq!(staying.worker().await.1, 1);
}
