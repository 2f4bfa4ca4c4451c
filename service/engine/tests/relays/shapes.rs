//! What is neither bytes nor messages by nature, and what goes with a message. That each pair works at all is the matter
//! of the matrix (`ipc-bus`); here is what is lost, kept, counted and refused on the way.

use ipc_engine::{events::Happening, relay::State};
use ipc_kernel::{Dict, Kind, Value, dict, shape::Outgoing};

use super::*;

async fn send(world: &World, queue: &Endpoint, data: &[u8], attributes: Dict) {
    let sent = Default::default();
    let message = Outgoing { data, attributes: &attributes, fds: &[], sent: &sent };
    world.engine.send(&world.call, queue, message, 10_000).await.unwrap();
}

async fn receive(world: &World, queue: &Endpoint) -> (String, Dict) {
    let message = world.engine.receive(&world.call, queue, &Dict::new(), 10_000).await.unwrap();
    (String::from_utf8(message.data).unwrap(), message.attributes)
}

fn value(endpoint: &Endpoint) -> i32 {
    endpoint.semaphore().unwrap().value().unwrap()
}

/// Units are moved one by one; what the sink does not take goes back.
#[tokio::test]
async fn units_are_not_lost() {
    let world = World::new();
    let (from, to) =
        (world.create("sysvsem:key=private,values=5").await, world.create("sysvsem:key=private").await);
    let relay = world.relay(&from, &to, Dict::new()).await.unwrap();
    until("all are there", || value(&to) == 5 && relay.messages() == 5).await;
    assert_eq!((value(&from), relay.method()), (0, "units to units"));
    relay.stop("stopped");
    ended(&relay).await;

    // A packet pipe that nobody reads takes some, and one unit waits in the relay.
    let (sink, _output) = world.packet_sink().await;
    from.semaphore().unwrap().post(1000).unwrap();
    let relay = world.relay(&from, &sink, Dict::new()).await.unwrap();
    let witness = Witness::new(&world).await;
    let mut before = u64::MAX;
    while relay.messages() != before {
        before = relay.messages();
        witness.turn().await;
    }
    relay.stop("stopped");
    let finished = ended(&relay).await;
    assert!(finished.messages < 1000 && finished.messages > 0, "{finished:?}");
    assert_eq!(value(&from) as u64 + finished.messages, 1000);
    for endpoint in [&from, &to] {
        endpoint.kernel.remove().unwrap();
    }
}

/// Attributes stand in JSON and come back from it; the option has the last word.
#[tokio::test]
async fn attributes_go_through_json() {
    let world = World::new();
    let (from, to) = (world.create("sysvmq:key=private").await, world.create("sysvmq:key=private").await);
    let pipe = world.create("pipe:").await;
    let json = || dict! { "framing" => "json" };
    let there = world.relay(&from, &pipe, json()).await.unwrap();
    let back = world.relay(&pipe, &to, json()).await.unwrap();
    send(&world, &from, b"two\nlines", dict! { "type" => 7i64 }).await;
    let (text, attributes) = receive(&world, &to).await;
    assert_eq!(text, "two\nlines");
    assert!(attributes["type"].same(&Value::I64(7)));
    assert_eq!((there.method(), back.method()), ("messages to stream", "stream to messages"));
    back.stop("stopped");
    ended(&back).await;

    let fixed = dict! { "framing" => "json", "attributes" => dict! { "type" => 3i64 } };
    let back = world.relay(&pipe, &to, fixed).await.unwrap();
    send(&world, &from, b"x", dict! { "type" => 8i64 }).await;
    assert!(receive(&world, &to).await.1["type"].same(&Value::I64(3)));
    there.stop("stopped");
    ended(&there).await;

    // One that the sink does not know ends the relay, and the line is kept.
    world.engine.write(&world.call, &pipe, b"{\"data\":\"x\",\"colour\":1}\n", 1000).await.unwrap();
    let finished = ended(&back).await;
    assert!(finished.failed && finished.reason.contains("colour"), "{finished:?}");
    let kept = world.engine.read(&world.call, &pipe, 100, 1000).await.unwrap();
    assert_eq!(kept, b"{\"data\":\"x\",\"colour\":1}\n");
    for endpoint in [&from, &to] {
        endpoint.kernel.remove().unwrap();
    }
}

#[tokio::test]
async fn what_does_not_match_is_counted() {
    let world = World::new();
    let (from, to) = (world.create("sysvmq:key=private").await, world.create("sysvmq:key=private").await);
    let options = dict! { "filter" => dict! { "type" => "2..4" }, "attributes" => dict! { "type" => 9i64 } };
    let relay = world.relay(&from, &to, options).await.unwrap();
    for kind in 1..=5i64 {
        send(&world, &from, kind.to_string().as_bytes(), dict! { "type" => kind }).await;
    }
    for kind in 2..=4 {
        let (text, attributes) = receive(&world, &to).await;
        assert_eq!(text, kind.to_string());
        assert!(attributes["type"].same(&Value::I64(9)));
    }
    until("the others are counted", || relay.inspect()["filtered"].same(&Value::U64(2))).await;
    assert_eq!(relay.messages(), 3);
    for endpoint in [&from, &to] {
        endpoint.kernel.remove().unwrap();
    }
}

/// A message that a socket says is too large is not even taken from it.
#[tokio::test]
async fn a_length_is_asked_for_first() {
    let world = World::new();
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let own = ours.try_clone().unwrap();
    let source = world.adopt(ours).await;
    let (sink, _output) = world.packet_sink().await;
    theirs.send(&noise(5000, 1)).unwrap();
    let finished = ended(&world.relay(&source, &sink, Dict::new()).await.unwrap()).await;
    assert!(finished.reason.contains("5000") && finished.reason.contains("4096"), "{finished:?}");
    assert_eq!(source.kept_count().0, 0);
    let mut buffer = vec![0; 6000];
    assert_eq!(own.recv(&mut buffer).unwrap(), 5000, "it is in the socket");
}

/// All events that are kept go along, and those that are not are told of; also when the endpoint is closed behind them.
#[tokio::test]
async fn a_gap_in_the_events_is_told() {
    let world = World::with(Limits { events_kept: 4, ..Limits::default() });
    let directory = tempfile::tempdir().unwrap();
    let address = format!("inotify:path={},events=create", directory.path().display());
    let watch = world.create(&address).await;
    for _ in 0..10 {
        watch.events.push(Happening::Overflow);
    }
    let (sink, output) = world.pipe_sink().await;
    let relay = world.relay(&watch, &sink, dict! { "framing" => "json" }).await.unwrap();
    until("all have come", || relay.messages() == 5).await;
    watch.events.push(Happening::Ready);
    world.engine.close(&watch, "test");
    let finished = ended(&relay).await;
    assert_eq!((finished.messages, finished.failed), (6, false), "{finished:?}");
    world.engine.close(&sink, "test");
    drop((sink, relay));
    world.take_news().await;
    let text = String::from_utf8(drain(output).await.unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], r#"{"event":"Overflow","lost":6,"seq":6}"#);
    assert!(lines[1].ends_with(r#""event":"Overflow","lost":0,"seq":7}"#), "{text}");
    assert!(lines[5].ends_with(r#""event":"Ready","seq":11}"#), "{text}");
}

/// Memory as a whole: each content that a look finds, and nothing behind it.
#[tokio::test]
async fn memory_is_mirrored() {
    let world = World::new();
    let (from, to) = (world.create("mmap:size=8").await, world.create("mmap:size=16").await);
    let read = |endpoint: &Endpoint, length| endpoint.memory().unwrap().read(0, length).unwrap();
    to.memory().unwrap().write(0, &[0xff; 16]).unwrap();
    from.memory().unwrap().write(0, b"first").unwrap();
    let options = dict! { "memory" => "snapshot", "interval-ms" => 10u32 };
    let relay = world.relay(&from, &to, options).await.unwrap();
    until("the first is there", || read(&to, 16) == b"first\0\0\0\0\0\0\0\0\0\0\0").await;
    from.memory().unwrap().write(0, b"next\0").unwrap();
    until("the next is there", || read(&to, 16).starts_with(b"next\0\0\0\0")).await;
    assert_eq!((relay.state(), relay.method()), (State::Running, "snapshots to snapshots"));
    let large = world.create("mmap:size=1M").await;
    let error = world.relay(&large, &to, dict! { "memory" => "snapshot" }).await.unwrap_err();
    assert_eq!(error.kind, Kind::TooLarge);
    assert!(error.text.contains("relay-buffer"), "{error}");
}

#[tokio::test]
async fn options_must_fit_the_ends() {
    let world = World::new();
    let (pipe, other) = (world.create("pipe:").await, world.create("pipe:").await);
    let (semaphore, futex) = (world.create("sysvsem:key=private").await, world.create("futex:").await);
    let queue = world.create("sysvmq:key=private").await;
    let signal = world.create("signal:numbers=SIGUSR1").await;
    let own = format!("signal:pid={}", signal.mailbox().unwrap().pid());
    let process = world.engine.attach(&world.call, &own, Dict::new()).await.unwrap();
    for (from, to, options, says) in [
        (&pipe, &other, dict! { "memory" => "snapshot" }, "needs memory"),
        (&pipe, &other, dict! { "filter" => dict! { "type" => 1u32 } }, "whose messages have attributes"),
        (&queue, &futex, dict! { "since" => 1u64 }, "a source of events"),
        (&queue, &futex, dict! { "attributes" => dict! { "type" => 1u32 } }, "it has value"),
        (&queue, &semaphore, dict! { "attributes" => dict! { "count" => 0u32 } }, "from 1"),
        (&semaphore, &queue, dict! { "attributes" => dict! { "priority" => 1u32 } }, "it has type"),
        (&semaphore, &process, Dict::new(), "which signal to send"),
        (&signal, &process, Dict::new(), "would come back to it"),
        (&queue, &signal, Dict::new(), "signal:pid="),
        (&queue, &queue, Dict::new(), "the same"),
    ] {
        let error = world.relay(from, to, options).await.unwrap_err();
        assert!(error.text.contains(says), "{error}");
    }
    for endpoint in [&queue, &semaphore] {
        endpoint.kernel.remove().unwrap();
    }
}
