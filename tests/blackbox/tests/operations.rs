//! Calls on endpoints that cannot do what is asked: refused with the right name, and nothing is lost by the refusal.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use ipc_blackbox::{Options, Stage, assert_error, error, everywhere, options};
use ipc_harness::unique;
use zbus::OwnedVariant;

const MIB: usize = 1 << 20;
const DEFAULT: u32 = u32::MAX;

async fn payloads(stage: Stage) {
    let client = stage.client().await;
    let memory = client.create("mmap:size=4M").await;
    let (most, more) = (vec![7u8; MIB], vec![7u8; MIB + 1]);
    let phrases = ["1048577 bytes", "1048576", "payload", "Open()"];
    let too_much = error(client.call::<(), _>(&memory, "Memory", "Write", &(0u64, &more[..])).await);
    assert_error(&too_much, "TooLarge", &phrases);
    client.call::<(), _>(&memory, "Memory", "Write", &(0u64, &most[..])).await.expect("1 MiB is allowed");
    let too_much = error(client.call::<Vec<u8>, _>(&memory, "Memory", "Read", &(0u64, MIB as u64 + 1)).await);
    assert_error(&too_much, "TooLarge", &phrases);
    let read: Vec<u8> =
        client.call(&memory, "Memory", "Read", &(0u64, MIB as u64)).await.expect("1 MiB is allowed");
    assert!(read == most);

    let pipe = client.create("pipe:").await;
    assert_error(&error(client.write(&pipe, &more, 0).await), "TooLarge", &phrases);
    let pair = client.create("unix:pair,type=seqpacket").await;
    assert_error(&error(client.send(&pair, &more, Options::new()).await), "TooLarge", &phrases);
    // Nothing of it has arrived.
    assert_error(&error(client.read(&pipe, 1, 0).await), "Busy", &[]);
}

async fn text_that_is_not_utf8_is_kept(stage: Stage) {
    let client = stage.client().await;
    let pipe = client.create("pipe:").await;
    let bytes = b"valid \xff\xfe end";
    client.write(&pipe, bytes, DEFAULT).await.expect("Write");
    for _ in 0..2 {
        let refused = error(client.read_text(&pipe, 100, DEFAULT).await);
        assert_error(&refused, "InvalidArgument", &["from byte 6", "kept", "use Read"]);
    }
    assert_eq!(client.read(&pipe, 100, 0).await.expect("what was kept"), bytes);

    // A character that is cut in two is no error: the next call completes it.
    client.write(&pipe, "aé".as_bytes(), DEFAULT).await.expect("Write");
    assert_eq!(client.read_text(&pipe, 2, DEFAULT).await.as_deref(), Ok("a"));
    assert_eq!(client.read_text(&pipe, 2, DEFAULT).await.as_deref(), Ok("é"));
    client.write(&pipe, "€é".as_bytes(), DEFAULT).await.expect("Write");
    assert_eq!(client.read_text(&pipe, 1, DEFAULT).await.as_deref(), Ok("€"), "a character comes whole");
    assert_eq!(client.read(&pipe, 1, DEFAULT).await.expect("half of one"), [0xc3]);
    client.read(&pipe, 1, DEFAULT).await.expect("the other half");
    client.write(&pipe, &[0xc3], DEFAULT).await.expect("Write");
    assert_error(&error(client.read_text(&pipe, 9, 50).await), "Timeout", &["read from"]);
    assert_eq!(client.read(&pipe, 9, 0).await.expect("kept"), [0xc3]);

    let packets = client.create("pipe:packet").await;
    client.send(&packets, bytes, Options::new()).await.expect("Send");
    client.send(&packets, b"second", Options::new()).await.expect("Send");
    let text = client
        .call::<(String, BTreeMap<String, OwnedVariant>), _>(
            &packets,
            "Messages",
            "ReceiveText",
            &(Options::new(), 1000u32),
        )
        .await;
    assert_error(&error(text), "InvalidArgument", &["from byte 6", "kept", "use Receive"]);
    assert_eq!(client.receive(&packets, 0).await.expect("the first, kept").0, bytes);
    assert_eq!(client.receive(&packets, 0).await.expect("the second").0, b"second");

    let pair = client.create("unix:pair,type=seqpacket").await;
    let peer = client.open(&pair, options([("end", "peer".into())])).await.expect("the peer's end");
    rustix::io::write(&peer, bytes).expect("writing");
    type Text = (String, BTreeMap<String, OwnedVariant>);
    let text = client.call::<Text, _>(&pair, "Messages", "PeekText", &(Options::new(), 1000u32)).await;
    assert_error(&error(text), "InvalidArgument", &["from byte 6", "kept", "use Peek"]);
    assert_eq!(client.receive(&pair, 0).await.expect("it was only looked at").0, bytes);

    let memory = client.create("mmap:size=4096").await;
    client.call::<(), _>(&memory, "Memory", "Write", &(0u64, &b"ab\xff"[..])).await.expect("Write");
    let text = client.call::<String, _>(&memory, "Memory", "ReadText", &(0u64, 3u64)).await;
    assert_error(&error(text), "InvalidArgument", &["from byte 2", "use Read"]);
}

async fn timeouts(stage: Stage) {
    let client = stage.client().await;
    let pipe = client.create("pipe:").await;
    let packets = client.create("pipe:packet").await;
    let listener = client.create(&format!("unix:abstract={}", unique("blackbox"))).await;
    let semaphore =
        client.create(&format!("posixsem:name=/{},value=0,remove-on-close", unique("blackbox"))).await;
    for (timeout, name, phrases) in [
        (0u32, "Busy", ["without waiting", "timeout_ms other than 0"]),
        (50, "Timeout", ["could not", "within 50 ms"]),
        (300_001, "InvalidArgument", ["300001", "max-wait-ms"]),
    ] {
        let failed = [
            error(client.read(&pipe, 1, timeout).await),
            error(client.receive(&packets, timeout).await),
            error(
                client.call::<zbus::OwnedObjectPath, _>(&listener, "Listener", "Accept", &(timeout,)).await,
            ),
            error(client.call::<(), _>(&semaphore, "Semaphore", "Wait", &(timeout,)).await),
            error(
                client
                    .call::<zbus::OwnedFd, _>(&semaphore, "Semaphore", "Acquire", &(timeout, Options::new()))
                    .await,
            ),
        ];
        for error in failed {
            assert_error(&error, name, &phrases);
        }
    }
    assert_error(&error(client.read(&pipe, 0, 0).await), "InvalidArgument", &["at least 1"]);
    assert_eq!(client.usage("waits").await, 0);
    assert_eq!(client.usage("leases").await, 0);

    // What was written before the time ran out is said.
    let size = 200_000;
    let written = client.write(&pipe, &vec![1; size], 50).await.expect("part of it");
    assert!(written > 0 && written < size as u64, "{written}");
    assert_error(&error(client.write(&pipe, b"x", 0).await), "Busy", &["write to"]);
}

async fn relays_that_cannot_be(stage: Stage) {
    let client = stage.client().await;
    let (pipe, other) = (client.create("pipe:").await, client.create("pipe:").await);
    let packets = client.create("pipe:packet").await;
    let watch = client.create("inotify:path=/tmp").await;
    let listener = client.create(&format!("unix:abstract={}", unique("blackbox"))).await;
    let semaphore = client.create(&format!("posixsem:name=/{},remove-on-close", unique("blackbox"))).await;
    let framing = |word: &'static str| options([("framing", word.into())]);
    let rows: Vec<(&str, &str, Options<'_>, &str, &[&str])> = vec![
        (&pipe, &pipe, Options::new(), "InvalidArgument", &["the same", "come back"]),
        (&pipe, &packets, Options::new(), "InvalidArgument", &["\"framing\"", "length"]),
        (&packets, &pipe, Options::new(), "InvalidArgument", &["\"framing\""]),
        (&pipe, &other, framing("line"), "InvalidArgument", &["no sense", "leave"]),
        (&pipe, &packets, framing("runes"), "InvalidArgument", &["\"framing\"", "one of"]),
        (&pipe, &packets, framing("fixed"), "InvalidArgument", &["\"record-size\""]),
        (&pipe, &other, options([("both", true.into())]), "InvalidArgument", &["both", "sockets"]),
        (&pipe, &other, options([("speed", 9u32.into())]), "InvalidArgument", &["\"speed\"", "shutdown"]),
        (&pipe, &watch, Options::new(), "NotSupported", &["only tells", "mmap:path="]),
        (&listener, &pipe, Options::new(), "NotSupported", &["Accept"]),
        (&pipe, &semaphore, Options::new(), "InvalidArgument", &["\"framing\"", "length"]),
    ];
    for (source, sink, given, name, phrases) in rows {
        assert_error(&error(client.try_relay(source, sink, given).await), name, phrases);
    }
    assert_eq!(client.usage("relays").await, 0);

    // Two relays of one stream would steal from each other; a circle would never end.
    let third = client.create("pipe:").await;
    let delivers = client.create("pipe:deliver").await;
    let taken = error(client.try_relay(&delivers, &third, Options::new()).await);
    assert_error(&taken, "Busy", &["option deliver", "steal"]);
    let relay = client.relay(&pipe, &other, Options::new()).await;
    let stolen = error(client.try_relay(&pipe, &third, Options::new()).await);
    assert_error(&stolen, "Busy", &["already read by a relay"]);
    let mixed = error(client.try_relay(&third, &other, Options::new()).await);
    assert_error(&mixed, "Busy", &["already written by a relay"]);
    let circle = error(client.try_relay(&other, &pipe, Options::new()).await);
    assert_error(&circle, "InvalidArgument", &["round for ever"]);
    let inbox = client.inbox().await;
    client.run(&relay, "Relay", "Stop").await;
    let finished = inbox.signal(&relay, "Finished").await;
    assert_eq!(finished.body().deserialize::<(String, u64, u64)>().expect("usual"), ("stopped".into(), 0, 0));
}

/// A reader that leaves in mid-relay: Finished says so, and what it did not get is still there.
async fn a_peer_that_leaves_a_relay(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("an own socket");
    let source = client.create("pipe:").await;
    let sink = client.attach(&format!("unix:path={}", socket.display())).await;
    let (mut reader, _) = listener.accept().expect("the service connects");
    let relay = client.relay(&source, &sink, Options::new()).await;
    client.write(&source, b"before", DEFAULT).await.expect("Write");
    let mut got = [0; 6];
    reader.read_exact(&mut got).expect("what was written");
    assert_eq!(&got, b"before");
    // Not only closed: a child that another test has just forked may hold a copy.
    reader.shutdown(Shutdown::Both).expect("the reader leaves");
    // The relay may have seen the end already, or it sees it with these bytes: they must not be lost.
    client.write(&source, b"after", DEFAULT).await.expect("Write");
    let finished = inbox.signal(&relay, "Finished").await;
    let (reason, bytes, _): (String, u64, u64) =
        finished.body().deserialize().expect("reason, bytes, messages");
    assert!(reason.contains("unix:") && bytes == 6, "{reason}, {bytes} bytes");
    assert_eq!(client.read(&source, 100, DEFAULT).await.expect("kept at the source"), b"after");
    let gone = error(client.property(&relay, "Relay", "State").await);
    assert_eq!(gone.name, "org.freedesktop.DBus.Error.UnknownObject");
}

async fn a_peer_that_leaves_an_endpoint(stage: Stage) {
    let client = stage.client().await;
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let endpoint = client.try_adopt(&theirs).await.expect("Adopt");
    drop(theirs);
    (&ours).write_all(b"last words").expect("writing");
    drop(ours);
    assert_eq!(client.read(&endpoint, 100, DEFAULT).await.expect("what came"), b"last words");
    assert_eq!(client.read(&endpoint, 100, DEFAULT).await.expect("the end"), b"");
    assert_error(&error(client.write(&endpoint, b"x", DEFAULT).await), "Closed", &["EPIPE"]);
    client.close(&endpoint).await;
}

async fn what_an_endpoint_does_not_offer(stage: Stage) {
    let client = stage.client().await;
    let pipe = client.create("pipe:").await;
    let open = |given| client.open(&pipe, given);
    assert_error(&error(open(Options::new()).await), "InvalidArgument", &["\"end\" is missing"]);
    let sideways = open(options([("end", "sideways".into())])).await;
    assert_error(&error(sideways), "InvalidArgument", &["\"end\"", "read, write"]);
    assert_error(&error(open(options([("end", 1u32.into())])).await), "InvalidArgument", &["\"end\""]);

    let permit = |path: String, given: Options<'static>| {
        let client = client.clone();
        async move { error(client.call::<(), _>(&path, "Endpoint", "SetPermissions", &(given,)).await) }
    };
    let dir = stage.temp_dir();
    let fifo = client.create(&format!("fifo:path={}/fifo", dir.path().display())).await;
    let nothing = permit(fifo.clone(), Options::new()).await;
    assert_error(&nothing, "InvalidArgument", &["mode, uid or gid"]);
    let unknown = permit(fifo.clone(), options([("user", 0u32.into())])).await;
    assert_error(&unknown, "InvalidArgument", &["\"user\"", "mode, uid, gid"]);
    let beyond = permit(fifo.clone(), options([("mode", 0o10000u32.into())])).await;
    assert_error(&beyond, "InvalidArgument", &["\"mode\""]);
    let watch = client.create("inotify:path=/tmp").await;
    let mode = || options([("mode", 0o600u32.into())]);
    assert_error(&permit(watch.clone(), mode()).await, "NotSupported", &["no permissions of its own"]);
    assert_error(&error(client.open(&watch, Options::new()).await), "NotSupported", &["inotify"]);
    for (path, what) in [(&watch, "Close ends it"), (&pipe, "name")] {
        let removed = error(client.call::<(), _>(path, "Endpoint", "Remove", &()).await);
        assert_error(&removed, "NotSupported", &[what]);
    }

    let direction = error(client.call::<(), _>(&pipe, "Stream", "Shutdown", &("down",)).await);
    assert_error(&direction, "InvalidArgument", &["read, write", "down"]);

    let semaphore = client.create(&format!("posixsem:name=/{},remove-on-close", unique("blackbox"))).await;
    let operate = |body: (Vec<(u16, i16, u16)>, u32)| {
        let (client, path) = (client.clone(), semaphore.clone());
        async move { error(client.call::<(), _>(&path, "Semaphore", "Operate", &body).await) }
    };
    assert_error(&operate((vec![(0, 1, 0)], 0)).await, "NotSupported", &["System V"]);
    let set = error(client.call::<(), _>(&semaphore, "Semaphore", "SetValue", &(3i32,)).await);
    assert_error(&set, "NotSupported", &["no operation that sets the value"]);
    let none = error(client.call::<(), _>(&semaphore, "Semaphore", "Post", &(0u32,)).await);
    assert_error(&none, "InvalidArgument", &["count"]);
    let over = error(client.call::<(), _>(&semaphore, "Semaphore", "Post", &(2_147_483_647u32,)).await);
    assert_error(&over, "LimitExceeded", &["2147483647"]);
    assert_eq!(client.number(&semaphore, "Semaphore", "Value").await, 1);

    let memory = client.create("mmap:size=4096").await;
    let outside = error(client.call::<Vec<u8>, _>(&memory, "Memory", "Read", &(4000u64, 100u64)).await);
    assert_error(&outside, "InvalidArgument", &["4096"]);
    let odd = error(client.call::<OwnedVariant, _>(&memory, "Memory", "Load", &(1u64, "u32")).await);
    assert_error(&odd, "InvalidArgument", &["aligned"]);
    let word = error(client.call::<OwnedVariant, _>(&memory, "Memory", "Load", &(0u64, "u7")).await);
    assert_error(&word, "InvalidArgument", &["u7", "u32"]);

    let rows = client
        .call::<Vec<BTreeMap<String, OwnedVariant>>, _>(
            "/org/example/IPC/pipe",
            "Mechanism",
            "List",
            &(options([("flavour", 1u32.into())]),),
        )
        .await;
    assert_error(&error(rows), "InvalidArgument", &["\"flavour\"", "inode"]);
}

everywhere!(
    payloads,
    text_that_is_not_utf8_is_kept,
    timeouts,
    relays_that_cannot_be,
    a_peer_that_leaves_a_relay,
    a_peer_that_leaves_an_endpoint,
    what_an_endpoint_does_not_offer,
);
