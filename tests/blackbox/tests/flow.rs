//! What bounds a relay, as a client has it, with independent programs at its ends.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use ipc_blackbox::{Stage, assert_error, error, everywhere, options};
use ipc_harness::{need_tool, or_skip, socat, unique};
use zbus::{ObjectPath, OwnedVariant, Variant};

const DEFAULT: u32 = u32::MAX;

/// A reader that is killed in the middle: what it has is the beginning of what was written, and what the relay has not
/// moved is at the source, to the byte.
async fn a_reader_that_is_killed(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("an own directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let listen = format!("UNIX-LISTEN:{},mode=0666", path("socket"));
    let mut reader = socat(&["-d", "-d", "-u", &listen, &format!("CREATE:{}", path("out"))]);
    reader.stderr().wait_for(|line| line.contains("listening on")).expect("socat listens");
    let (source, sink) =
        (client.create("pipe:").await, client.attach(&format!("unix:path={}", path("socket"))).await);
    let data: Vec<u8> = (0..60_000u32).flat_map(|number| (number as u16).to_be_bytes()).collect();
    let relay = client.relay(&source, &sink, options([("rate-bytes", 100_000u64.into())])).await;
    let killed = async {
        while fs::metadata(path("out")).map_or(0, |out| out.len()) < 20_000 {
            client.property(&relay, "Relay", "Bytes").await.expect("it runs");
        }
        reader.kill();
    };
    // The pipe holds half of it, so the writer has to wait for the relay.
    let write = client.write(&source, &data[..80_000], DEFAULT);
    let (written, ()) = futures_util::future::join(write, killed).await;
    assert_eq!(written.expect("Write"), 80_000);
    let finished = inbox.signal(&relay, "Finished").await;
    let (reason, bytes, _): (String, u64, u64) = finished.body().deserialize().expect("as usual");
    assert!(reason.contains("unix:"), "{reason}");
    let out = fs::read(path("out")).expect("what the reader had");
    assert!(out.len() as u64 <= bytes && data.starts_with(&out), "{} of {bytes}", out.len());
    let mut rest = Vec::new();
    while bytes as usize + rest.len() < 80_000 {
        rest.extend(client.read(&source, 65_536, DEFAULT).await.expect("kept at the source"));
    }
    assert!(rest == data[bytes as usize..80_000], "{bytes} and {}", rest.len());
}

/// Finished says why it ended, and Inspect what was dropped.
async fn what_ends_it_and_what_is_dropped_is_told(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let source = client.create("pipe:").await;
    let queue = format!("posixmq:name=/{},depth=4,size=8,remove-on-close=true", unique("flow"));
    let sink = client.create(&queue).await;
    let given = |count: u64, word: &'static str| {
        options([("framing", "line".into()), ("count", count.into()), ("on-error", word.into())])
    };
    let refused = error(client.try_relay(&source, &sink, given(2, "ignore")).await);
    assert_error(&refused, "InvalidArgument", &["\"on-error\"", "stop, skip"]);
    let refused = error(client.try_relay(&source, &sink, given(0, "skip")).await);
    assert_error(&refused, "InvalidArgument", &["\"count\"", "from 1 to"]);
    let relay = client.relay(&source, &sink, given(2, "skip")).await;
    client.write(&source, b"more than eight\none\n", DEFAULT).await.expect("Write");
    assert_eq!(client.receive(&sink, DEFAULT).await.expect("Receive").0, b"one");
    let state: BTreeMap<String, OwnedVariant> =
        client.call(&relay, "Relay", "Inspect", &()).await.expect("Inspect");
    assert_eq!(*state["skipped"], Variant::U64(1));
    let why = String::try_from(state["skipped-reason"].try_clone().expect("no descriptor")).expect("a text");
    assert!(why.contains('8') && !why.contains("kept"), "{why}");
    client.write(&source, b"two\nthree\n", DEFAULT).await.expect("Write");
    let finished = inbox.signal(&relay, "Finished").await;
    let told: (String, u64, u64) = finished.body().deserialize().expect("reason, bytes, messages");
    assert_eq!(told, ("count=2 is reached".to_owned(), 6, 2));
    // What was read ahead is kept at the endpoint, and the rest is in the kernel.
    let mut rest = Vec::new();
    while rest.len() < 6 {
        rest.extend(client.read(&source, 100, DEFAULT).await.expect("not moved"));
    }
    assert_eq!(rest, b"three\n");
}

/// One line for two queues; closing the further one ends the relay and says which it was.
async fn each_message_for_several(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let source = client.create("pipe:").await;
    let queue = || format!("posixmq:name=/{},depth=4,size=8,remove-on-close=true", unique("tee"));
    let (sink, further) = (client.create(&queue()).await, client.create(&queue()).await);
    let given = |path: &str| {
        let path = ObjectPath::try_from(path.to_owned()).expect("an object path");
        options([("framing", "line".into()), ("tee", vec![path].into())])
    };
    let refused = error(client.try_relay(&source, &sink, given("/org/example/IPC/posixmq/0")).await);
    assert_error(&refused, "NoSuchEndpoint", &["\"tee\"", "posixmq/0"]);
    let refused = error(client.try_relay(&source, &sink, options([("tee", true.into())])).await);
    assert_error(&refused, "InvalidArgument", &["\"tee\"", "ao"]);
    let relay = client.relay(&source, &sink, given(&further)).await;
    client.write(&source, b"one\n", DEFAULT).await.expect("Write");
    for queue in [&sink, &further] {
        assert_eq!(client.receive(queue, DEFAULT).await.expect("Receive").0, b"one");
    }
    let state: BTreeMap<String, OwnedVariant> =
        client.call(&relay, "Relay", "Inspect", &()).await.expect("Inspect");
    let paths = Vec::<String>::try_from(state["tee"].try_clone().expect("no descriptor")).expect("texts");
    assert_eq!(paths, [further.as_str()]);
    client.close(&further).await;
    let finished = inbox.signal(&relay, "Finished").await;
    let (reason, _, messages): (String, u64, u64) = finished.body().deserialize().expect("as usual");
    assert!(reason.contains("sink endpoint posixmq:") && messages == 1, "{reason}, {messages}");
}

everywhere!(a_reader_that_is_killed, what_ends_it_and_what_is_dropped_is_told, each_message_for_several);
