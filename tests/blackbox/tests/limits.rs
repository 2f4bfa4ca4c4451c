//! Every limit: calls are accepted up to it, then refused with the limit's key and value, and accepted again once
//! something was given back.

use std::collections::BTreeMap;

use ipc_blackbox::{Client, Options, Stage, Way, error, everywhere};
use ipc_harness::{Bus, CallError, Launch, PATH, connect, or_skip, peer, unique};
use zbus::OwnedVariant;

const SMALL: &str = "[limits]
calls-per-connection = 8
waits = 4
endpoints = 6
relays = 2
watches = 3
subscriptions = 3
leases = 2
connections = 2
payload = 1000
signal-payload = 100
events-kept = 4
default-wait-ms = 300
max-wait-ms = 30000
";

#[track_caller]
fn assert_limit(error: &CallError, key: &str, value: u32) {
    let told = format!("the limit {key} is {value}");
    assert!(error.is("LimitExceeded") && error.text.contains(&told), "expected {told:?}, got {error}");
    assert!(error.text.contains("configuration file"), "what would help: {error}");
}

async fn endpoints_and_relays(stage: Stage) {
    let client = stage.client().await;
    let mut pipes = Vec::new();
    for _ in 0..6 {
        pipes.push(client.create("pipe:").await);
    }
    let full = || async { error(client.try_create("pipe:", Options::new()).await) };
    assert_limit(&full().await, "endpoints", 6);
    let (fd, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
    assert_limit(&error(client.try_adopt(&fd).await), "endpoints", 6);
    assert_eq!(client.usage("endpoints").await, 6);

    let first = client.relay(&pipes[0], &pipes[1], Options::new()).await;
    client.relay(&pipes[2], &pipes[3], Options::new()).await;
    let third = error(client.try_relay(&pipes[4], &pipes[5], Options::new()).await);
    assert_limit(&third, "relays", 2);
    let inbox = client.inbox().await;
    client.run(&first, "Relay", "Stop").await;
    inbox.signal(&first, "Finished").await;
    client.relay(&pipes[4], &pipes[5], Options::new()).await;

    client.close(&pipes[0]).await;
    client.create("pipe:").await;
    assert_limit(&full().await, "endpoints", 6);
}

async fn watches(stage: Stage) {
    let client = stage.client().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(client.create("inotify:path=/tmp,events=delete-self").await);
    }
    let full = error(client.try_create("inotify:path=/tmp,events=delete-self", Options::new()).await);
    assert_limit(&full, "watches", 3);
    client.close(&watches[1]).await;
    client.create("inotify:path=/tmp,events=delete-self").await;
    assert_eq!(client.usage("watches").await, 3);
}

async fn waits(stage: Stage) {
    let client = stage.client().await;
    let pipe = client.create("pipe:").await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let (client, pipe) = (client.clone(), pipe.clone());
        waiting.push(tokio::spawn(async move { client.read(&pipe, 1, 30_000).await }));
    }
    client.used("waits", 4).await;
    assert_limit(&error(client.read(&pipe, 1, 1000).await), "waits", 4);
    // Who does not want to wait needs no place.
    assert!(error(client.read(&pipe, 1, 0).await).is("Busy"));
    client.write(&pipe, b"x", 1000).await.expect("Write");
    client.used("waits", 3).await;
    let timed_out = error(client.read(&pipe, 1, 20).await);
    assert!(timed_out.is("Timeout"), "{timed_out}");
    client.write(&pipe, b"yyy", 1000).await.expect("Write");
    for wait in waiting {
        assert_eq!(wait.await.expect("a task").expect("a byte").len(), 1);
    }
}

async fn subscriptions(stage: Stage) {
    let client = stage.client().await;
    let mut pipes = Vec::new();
    for _ in 0..3 {
        pipes.push(client.create("pipe:").await);
    }
    for pipe in &pipes {
        client.run(pipe, "Endpoint", "Subscribe").await;
        client.run(pipe, "Endpoint", "Subscribe").await;
    }
    assert_eq!(client.usage("subscriptions").await, 3, "twice is once");
    assert_limit(&error(client.call::<(), _>(PATH, "", "Subscribe", &()).await), "subscriptions", 3);
    client.run(&pipes[0], "Endpoint", "Unsubscribe").await;
    client.run(PATH, "", "Subscribe").await;
    // A closed endpoint's subscriptions go with it, and those of a client that leaves.
    client.close(&pipes[1]).await;
    client.used("subscriptions", 2).await;
    let other = stage.client().await;
    other.run(PATH, "", "Subscribe").await;
    assert_eq!(client.usage("subscriptions").await, 3);
    other.connection.close().await.expect("closing");
    client.used("subscriptions", 2).await;
}

async fn leases(stage: Stage) {
    let client = stage.client().await;
    let semaphore =
        client.create(&format!("posixsem:name=/{},value=5,remove-on-close", unique("leases"))).await;
    let acquire = || async {
        let body = (1000u32, Options::new());
        client.call::<zbus::OwnedFd, _>(&semaphore, "Semaphore", "Acquire", &body).await
    };
    let (first, _second) = (acquire().await.expect("one"), acquire().await.expect("two"));
    assert_limit(&error(acquire().await), "leases", 2);
    assert_eq!(client.number(&semaphore, "Semaphore", "Value").await, 3, "a refusal takes nothing");
    drop(first);
    client.used("leases", 1).await;
    assert_eq!(client.number(&semaphore, "Semaphore", "Value").await, 4);
    acquire().await.expect("again");
}

async fn payloads(stage: Stage) {
    let client = stage.client().await;
    let pipe = client.create("pipe:").await;
    let large = error(client.write(&pipe, &[0; 1001], 0).await);
    assert!(large.is("TooLarge") && large.text.contains("1000 (payload)"), "{large}");
    assert_eq!(client.write(&pipe, &[0; 1000], 0).await, Ok(1000));
    assert_eq!(client.write(&pipe, &[0; 1000], 0).await, Ok(1000));
    assert_eq!(client.read(&pipe, 5000, 0).await.expect("as much as a reply may carry").len(), 1000);
    let long = error(client.read(&pipe, 1, 30_001).await);
    assert!(long.is("InvalidArgument") && long.text.contains("at most 30000 (max-wait-ms)"), "{long}");
    client.read(&pipe, 5000, 0).await.expect("the rest");
    let waited = error(client.read(&pipe, 1, u32::MAX).await);
    assert!(waited.is("Timeout") && waited.text.contains("within 300 ms"), "{waited}");
}

async fn they_are_shown(stage: Stage) {
    let client = stage.client().await;
    let shown = client.property(PATH, "", "Limits").await.expect("the property Limits");
    let shown: BTreeMap<String, OwnedVariant> = shown.try_into().expect("a dictionary");
    let number = |key: &str| u32::try_from(shown[key].try_clone().expect("a number")).expect("a number");
    for line in SMALL.lines().filter(|line| line.contains('=')) {
        let (key, value) = line.split_once(" = ").expect("key = value");
        assert_eq!(number(key).to_string(), value, "{key}");
    }
    assert_eq!((number("calls"), number("relay-buffer")), (64, 262_144), "the defaults of the others");
}

everywhere!(config = super::SMALL; endpoints_and_relays, watches, waits, subscriptions, leases, payloads, they_are_shown,);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_connections() {
    let bus = or_skip!(Bus::dbus_daemon());
    let service = Launch::on(&bus).config(SMALL).start();
    let client = Client::of_bus(connect(&service).await);
    let (first, _second) = (peer(&client.connection).await, peer(&client.connection).await);
    let third = error(client.call::<zbus::OwnedFd, _>(PATH, "", "Connect", &()).await);
    assert_limit(&third, "connections", 2);
    first.close().await.expect("closing");
    client.used("connections", 1).await;
    let third = Client::of_peer(peer(&client.connection).await);
    third.create("pipe:").await;
}

/// A call that follows the authentication at once is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_connections_answer_from_the_first_call_on() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let client = stage.client().await;
    let pipe = client.create("pipe:").await;
    for _ in 0..50 {
        let private = Client::of_peer(peer(&client.connection).await);
        private.property(&pipe, "Endpoint", "Address").await.expect("an answer");
        private.connection.close().await.expect("closing");
        client.used("connections", 0).await;
    }
}

/// calls-per-connection: with all its calls waiting, a connection's next call is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight() {
    for way in [Way::DbusDaemon, Way::Peer] {
        let stage = or_skip!(Stage::with_config(way, "[limits]\ncalls-per-connection = 3\n"));
        let (client, other) = (stage.client().await, stage.client().await);
        let pipe = client.create("pipe:").await;
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let (client, pipe) = (client.clone(), pipe.clone());
            waiting.push(tokio::spawn(async move { client.read(&pipe, 1, 30_000).await }));
        }
        other.used("waits", 3).await;
        assert_limit(&error(client.read(&pipe, 1, 0).await), "calls-per-connection", 3);
        other.write(&pipe, b"abc", 1000).await.expect("another connection may");
        for wait in waiting {
            wait.await.expect("a task").expect("a byte");
        }
        assert!(error(client.read(&pipe, 1, 0).await).is("Busy"), "accepted again");
    }
}
