//! Every limit: calls are accepted up to it, then refused with the limit's key and value, and accepted again once
//! something was given back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::{Bus, CallError, Launch, PATH, connect, or_skip, peer, temp_dir, unique};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use rustix::process::{Resource, Rlimit};
use zbus::{Message, OwnedVariant, Variant};

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
relay-buffer = 500
fds-per-call = 1
fds-per-reply = 2
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
    // They leave room for as many endpoints as without them.
    for _ in 0..6 {
        client.create("pipe:").await;
    }
    assert_limit(&error(client.try_create("pipe:", Options::new()).await), "endpoints", 6);
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

/// What one signal cannot carry is announced and kept; what comes after it is delivered.
async fn payloads_of_signals(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let packets = client.create("pipe:packet,deliver").await;
    type Received = (u64, Vec<u8>, BTreeMap<String, OwnedVariant>);
    let received = async |count: usize| {
        let events = inbox.signals(&packets, "Received", count).await;
        let (seq, data, _): Received = events[count - 1].body().deserialize().expect("Received");
        (seq, data.len())
    };
    client.send(&packets, &[1; 100], Options::new()).await.expect("Send");
    assert_eq!(received(1).await, (1, 100));
    client.send(&packets, &[2; 101], Options::new()).await.expect("Send");
    client.send(&packets, &[3; 99], Options::new()).await.expect("Send");
    let ready: u64 = inbox.signal(&packets, "Ready").await.body().deserialize().expect("Ready");
    assert_eq!(ready, 2);
    assert_eq!(client.receive(&packets, 0).await.expect("it was kept").0, [2; 101]);
    assert_eq!(received(2).await, (3, 99));

    let stream = client.create("pipe:deliver").await;
    client.write(&stream, &[4; 250], 1000).await.expect("Write");
    let parts = inbox.signals(&stream, "Received", 3).await;
    let length = |event: &Message| event.body().deserialize::<(u64, Vec<u8>)>().expect("Received").1.len();
    assert_eq!(parts.iter().map(length).collect::<Vec<_>>(), [100, 100, 50]);
}

/// A message that a relay may not hold ends it and stays at the source; the next relay takes what fits.
async fn relay_buffers(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let (stream, packets) = (client.create("pipe:").await, client.create("pipe:packet").await);
    let record = |size: u32| options([("framing", "fixed".into()), ("record-size", size.into())]);
    for (source, sink) in [(&stream, &packets), (&packets, &stream)] {
        let refused = error(client.try_relay(source, sink, record(501)).await);
        assert_error(&refused, "InvalidArgument", &["record-size is 501", "500 bytes (relay-buffer)"]);
    }
    let finished = async |relay: &str| {
        let (reason, ..): (String, u64, u64) =
            inbox.signal(relay, "Finished").await.body().deserialize().expect("Finished");
        reason
    };
    let framed = |size: u32| [&size.to_be_bytes()[..], &vec![b'x'; size as usize]].concat();
    let length = || options([("framing", "length".into())]);
    let relay = client.relay(&stream, &packets, length()).await;
    client.write(&stream, &framed(500), 1000).await.expect("Write");
    assert_eq!(client.receive(&packets, 10_000).await.expect("the largest that fits").0.len(), 500);
    client.write(&stream, &framed(501), 1000).await.expect("Write");
    let reason = finished(&relay).await;
    assert!(reason.contains("501 bytes") && reason.contains("relay-buffer, now 500"), "{reason}");
    assert!(read_exactly(&client, &stream, 505).await == framed(501), "it was kept");

    let relay = client.relay(&packets, &stream, length()).await;
    client.send(&packets, &[b'x'; 501], Options::new()).await.expect("Send");
    let reason = finished(&relay).await;
    assert!(
        reason.contains("501 bytes") && reason.contains("500 that a relay may hold (relay-buffer)"),
        "{reason}"
    );
    assert_eq!(client.receive(&packets, 0).await.expect("it was kept").0.len(), 501);
    client.relay(&packets, &stream, record(500)).await;
    client.send(&packets, &[b'y'; 500], Options::new()).await.expect("Send");
    assert!(read_exactly(&client, &stream, 500).await == [b'y'; 500], "what fits is relayed");
}

/// A stream may come in pieces.
async fn read_exactly(client: &Client, path: &str, length: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < length {
        let rest = (length - got.len()) as u32;
        got.extend(client.read(path, rest, 10_000).await.expect("more of it"));
    }
    got
}

async fn file_descriptors(stage: Stage) {
    let client = stage.client().await;
    let pair = async || {
        let ours = client.create("unix:pair,type=seqpacket,pass-fds").await;
        let theirs = client.open(&ours, options([("end", "peer".into())])).await.expect("the peer's end");
        (ours, theirs)
    };
    let (endpoint, peer) = pair().await;
    let some =
        |count: usize| (0..count).map(|_| File::open("/dev/null").expect("a file")).collect::<Vec<_>>();
    let send = async |files: &[File]| {
        let fds: Vec<_> = files.iter().map(|file| zbus::Fd::from(file.as_fd())).collect();
        client.send(&endpoint, b"take", options([("fds", fds.into())])).await
    };
    let two = error(send(&some(2)).await);
    assert_error(&two, "TooLarge", &["2 file descriptors", "one call", "1 (fds-per-call)"]);
    send(&some(1)).await.expect("one is allowed");
    assert_eq!(received_fds(&peer), 1, "and nothing has come before it");

    send_fds(&peer, &some(3));
    send_fds(&peer, &some(2));
    for _ in 0..2 {
        let three = error(client.receive(&endpoint, 10_000).await);
        assert_error(&three, "TooLarge", &["3 file descriptors", "2 (fds-per-reply)", "kept"]);
    }
    // As the text says, it can be relayed; what comes after it is received again.
    let (other, far) = pair().await;
    let relay = client.relay(&endpoint, &other, Options::new()).await;
    assert_eq!((received_fds(&far), received_fds(&far)), (3, 2));
    let inbox = client.inbox().await;
    client.run(&relay, "Relay", "Stop").await;
    inbox.signal(&relay, "Finished").await;
    send_fds(&peer, &some(2));
    let (data, attributes) = client.receive(&endpoint, 10_000).await.expect("two are allowed");
    let Variant::Array(fds) = &*attributes["fds"] else { panic!("{attributes:?}") };
    assert_eq!((data.as_slice(), fds.len()), (&b"these"[..], 2));
}

fn send_fds(socket: &OwnedFd, files: &[File]) {
    let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let data = [IoSlice::new(b"these")];
    rustix::net::sendmsg(socket, &data, &mut control, SendFlags::empty()).expect("sendmsg");
}

/// How many descriptors the next message brings.
fn received_fds(socket: &OwnedFd) -> usize {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 16];
    let mut data = [IoSliceMut::new(&mut buffer)];
    rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
    let rights = control.drain().map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.count(),
        _ => 0,
    });
    rights.sum()
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
    assert_eq!(number("calls"), 64, "the default of the other");
}

everywhere!(config = super::SMALL;
    endpoints_and_relays,
    watches,
    waits,
    subscriptions,
    leases,
    payloads,
    payloads_of_signals,
    relay_buffers,
    file_descriptors,
    they_are_shown,
);

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

/// calls: the calls of all connections together. What releases them here comes by the kernel's own descriptor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_of_all_connections() {
    for way in [Way::DbusDaemon, Way::Peer] {
        let stage = or_skip!(Stage::with_config(way, "[limits]\ncalls = 3\n"));
        let (first, second, other) = (stage.client().await, stage.client().await, stage.client().await);
        let pipe = first.create("pipe:").await;
        let writer = first.open(&pipe, options([("end", "write".into())])).await.expect("Open");
        let mut waiting = Vec::new();
        for client in [&first, &first, &second] {
            let (client, pipe) = (client.clone(), pipe.clone());
            waiting.push(tokio::spawn(async move { client.read(&pipe, 1, 30_000).await }));
        }
        other.used("waits", 3).await;
        for client in [&first, &other] {
            assert_limit(&error(client.read(&pipe, 1, 0).await), "calls", 3);
        }
        rustix::io::write(&writer, b"abc").expect("writing");
        for wait in waiting {
            wait.await.expect("a task").expect("a byte");
        }
        other.used("calls", 0).await;
        assert!(error(other.read(&pipe, 1, 0).await).is("Busy"), "accepted again");
    }
}

/// Connections that come while the service has no file descriptor left wait in the kernel until it has one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_files() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = temp_dir();
    let socket = dir.path().join("socket");
    let listener = client.create(&format!("unix:path={},accept", socket.display())).await;
    let pid = stage.service.pid();
    // The service has raised its limit to the maximum, which it has from us.
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = |current| {
        let process = rustix::process::Pid::from_raw(pid);
        rustix::process::prlimit(process, Resource::Nofile, Rlimit { current, maximum }).expect("prlimit");
    };
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the open files");
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    let open: std::collections::BTreeSet<u64> = numbers.collect();
    // The lowest number that is free is the first one that is not allowed.
    limit(Some((0..).find(|number| !open.contains(number)).expect("there are more numbers than files")));
    let mut peer = UnixStream::connect(&socket).expect("connecting");
    let full = error(client.try_create("pipe:", Options::new()).await);
    assert_error(&full, "LimitExceeded", &["RLIMIT_NOFILE"]);
    limit(maximum);
    let accepted = inbox.signal(&listener, "Accepted").await;
    let (_, endpoint): (u64, zbus::OwnedObjectPath) = accepted.body().deserialize().expect("Accepted");
    peer.write_all(b"hello").expect("writing");
    assert_eq!(client.read(endpoint.as_str(), 5, 10_000).await.expect("Read"), b"hello");
}
