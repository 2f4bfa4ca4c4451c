//! Calls go through, unchanged, to the worker that is their caller.

use std::os::fd::OwnedFd;

use futures_util::StreamExt;
use ipc_front::Limits;
use ipc_harness::{Bus, NAME, PATH, connect, or_skip, patience, watchdog};
use zbus::{
    MessageStream,
    message::{Flags, Message, Type},
};

use crate::{Client, Fixture, fake::Fake, lenient, start};

#[tokio::test]
async fn a_call_goes_through_and_comes_back() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), Limits::default()).await;
    let client = fixture.client(0).await;
    let reply = client.call("Echo", &"grüß").await.expect("Echo");
    assert_eq!(reply.body().deserialize::<&str>().expect("a string"), "grüß");
    // From the front, not from whatever the worker might say.
    assert_eq!(reply.header().sender().map(|it| it.to_string()), owner(&client).await);
    let error = client.call("Fail", &()).await.expect_err("Fail");
    assert_eq!(error, ("NotFound".to_owned(), "there is no such thing; make it first".to_owned()));
    // Whatever the interface: the front has no tree of its own.
    let peer = Some("org.freedesktop.DBus.Peer");
    client.connection.call_method(Some(NAME), "/", peer, "Ping", &()).await.expect("Ping");
    let large = "x".repeat(1 << 20);
    let reply = client.call("Echo", &large).await.expect("a MiB");
    assert_eq!(reply.body().deserialize::<&str>().expect("a string"), large);
    assert_eq!((fixture.fake.started(), fixture.fake.examined()), (1, 1));
}

async fn owner(client: &Client) -> Option<String> {
    let bus = Some("org.freedesktop.DBus");
    let reply = client.connection.call_method(bus, "/org/freedesktop/DBus", bus, "GetNameOwner", &NAME).await;
    reply.expect("an owner").body().deserialize().ok()
}

#[tokio::test]
async fn each_identity_has_a_worker_of_its_own() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (one, same, other) = (fixture.client(0).await, fixture.client(0).await, fixture.client(3).await);
    let (worker, uid) = (one.worker().await, rustix::process::geteuid().as_raw());
    assert!(worker.0.starts_with(&format!("w-{uid}-")), "{worker:?}");
    assert_eq!(same.worker().await, worker);
    let others = other.worker().await;
    assert!(others.0 != worker.0 && others.1 == 2, "{others:?}");
}

#[tokio::test]
async fn file_descriptors_go_both_ways() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), Limits::default()).await;
    let client = fixture.client(0).await;
    let directory = ipc_harness::temp_dir();
    let path = directory.path().join("file");
    for round in 0..100 {
        let file = std::fs::File::create(&path).expect("an own directory");
        let reply = client.call("Fd", &zbus::OwnedFd::from(OwnedFd::from(file))).await.expect("Fd");
        let (name, back): (String, zbus::OwnedFd) = reply.body().deserialize().expect("(sh)");
        assert_eq!(name, path.to_string_lossy());
        std::io::Write::write_all(&mut std::fs::File::from(OwnedFd::from(back)), b"written").expect("a file");
        assert_eq!(std::fs::read(&path).expect("a file"), b"written", "round {round}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), Limits::default()).await;
    let client = fixture.client(0).await;
    let (name, text) = client.call("Echo", &"x".repeat(2 << 20)).await.expect_err("2 MiB");
    assert!(name == "TooLarge" && text.contains("payload is 1048576"), "{name}: {text}");
    let fds: Vec<_> = (0..3)
        .map(|_| zbus::OwnedFd::from(OwnedFd::from(std::fs::File::open("/dev/null").expect("exists"))))
        .collect();
    let (name, text) = client.call("Fd", &fds).await.expect_err("3 fds");
    assert!(name == "LimitExceeded" && text.contains("fds-per-call is 2"), "{name}: {text}");
    client.call("Echo", &"small").await.expect("Echo");
}

/// As many as a connection may have, all of which come before it is known whose it is.
#[tokio::test]
async fn the_first_calls_may_come_all_at_once() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), Limits::default()).await;
    // It has said nothing before.
    fixture.fake.examine_says(0);
    let connection = connect(&fixture.bus).await;
    let call = || Message::method_call(PATH, "Echo").interface(NAME).destination(NAME).build(&"at once");
    let calls: Vec<_> = (0..Limits::default().calls_per_connection).map(|_| call().expect("valid")).collect();
    let mut replies = MessageStream::from(&connection);
    connection.send_all(&calls).await.expect("sent");
    for _ in &calls {
        let is_reply = |message: &Message| matches!(message.message_type(), Type::MethodReturn | Type::Error);
        let reply = loop {
            let message = watchdog(patience(), replies.next()).await.expect("connected").expect("a message");
            if is_reply(&message) {
                break message;
            }
        };
        assert_eq!(reply.message_type(), Type::MethodReturn, "{reply:?}");
    }
}

#[tokio::test]
async fn until_refused_then_released_then_accepted_again() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (client, idle) = (fixture.client(0).await, fixture.client(0).await);
    let mut waiting: Vec<_> = (0..17).map(|_| client.begin("Never")).collect();
    // One of them is one too many; the others are in flight.
    let refused = watchdog(patience(), futures_util::future::select_all(&mut waiting)).await;
    let (refused, index, _) = refused;
    let refused = refused.expect("a task").expect_err("the limit");
    drop(waiting.remove(index));
    assert_eq!(refused.0, "LimitExceeded");
    assert!(refused.1.contains("calls-per-connection is 16"), "{}", refused.1);
    idle.call("Echo", &"x").await.expect("another connection has its own");
    // The worker's end releases all of them.
    idle.call("Die", &()).await.expect_err("Die");
    for call in waiting {
        assert_eq!(watchdog(patience(), call).await.expect("a task").expect_err("Never").0, "Gone");
    }
    client.call("Echo", &"x").await.expect("released");
}

#[tokio::test]
async fn a_second_front_says_who_has_the_name() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), Limits::default()).await;
    let (_fake, spawner) = Fake::new();
    let store = Box::new(ipc_front::NoStore);
    let error =
        start(&fixture.bus, spawner, Limits::default(), Vec::new(), store).await.err().expect("a second");
    let (text, pid) = (error.to_string(), std::process::id());
    assert!(text.contains(&format!("owned already, by process {pid}")), "{text}");
    fixture.client(0).await;
}

#[tokio::test]
async fn who_leaves_before_he_is_known_starts_nothing() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), Limits::default()).await;
    for _ in 0..200 {
        let connection = connect(&fixture.bus).await;
        let call = Message::method_call(PATH, "Echo").interface(NAME).destination(NAME);
        let call = call.with_flags(Flags::NO_REPLY_EXPECTED).build(&"x").expect("valid");
        connection.send(&call).await.expect("sent");
        connection.close().await.expect("closed");
    }
    // Some were identified in time; all of them are one identity, and none of them is served twice.
    let client = fixture.client(0).await;
    client.call("Echo", &"x").await.expect("Echo");
    assert!(fixture.fake.started() <= 2, "{}", fixture.fake.started());
}
