//! Signals: what they say, that none is missing or doubled, and in which order they and the replies come.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;

use ipc_blackbox::{Inbox, Options, Stage, Way, everywhere, is_signal, options};
use ipc_harness::{PATH, Signal, or_skip, skip, temp_dir, unique};
use rustix::process::{WaitId, WaitIdOptions};
use zbus::message::{Message, Type};
use zbus::{OwnedObjectPath, OwnedVariant};

const DEFAULT: u32 = u32::MAX;

type Dict = BTreeMap<String, OwnedVariant>;

/// The sequence numbers, which are the first argument of every event.
fn numbers(events: &[Message]) -> Vec<u64> {
    events.iter().map(|event| event.body().deserialize_ignore_signature::<u64>().expect("a number")).collect()
}

#[track_caller]
fn assert_without_holes(numbers: &[u64]) {
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "events are numbered from 1 without holes");
}

/// Proves: inotify create, read, event
async fn changes_of_files(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let watch = client
        .create(&format!("inotify:path={},events=create+close-write+move+delete", dir.path().display()))
        .await;
    fs::write(path("one"), "text").expect("writing");
    fs::rename(path("one"), path("two")).expect("renaming");
    fs::create_dir(path("dir")).expect("a directory");
    fs::remove_file(path("two")).expect("removing");
    type Changed = (u64, Vec<String>, String, String, Dict);
    let read = |message: &Message| -> (Vec<String>, String, String) {
        let (_, events, path, from, _): Changed = message.body().deserialize().expect("Changed");
        (events, path, from)
    };
    let seen = inbox.signals(&watch, "Changed", 5).await;
    let none = String::new;
    let expected = [
        (vec!["CREATE"], path("one"), none()),
        (vec!["CLOSE_WRITE"], path("one"), none()),
        (vec!["MOVED_FROM", "MOVED_TO"], path("two"), path("one")),
        (vec!["CREATE", "ISDIR"], path("dir"), none()),
        (vec!["DELETE"], path("two"), none()),
    ];
    let seen_texts: Vec<_> = seen.iter().map(read).collect();
    let expected: Vec<_> = expected
        .map(|(events, path, from)| (events.into_iter().map(str::to_owned).collect::<Vec<_>>(), path, from))
        .into();
    assert_eq!(seen_texts, expected);
    assert_without_holes(&numbers(&seen));

    // The same from memory; everything, and from the fourth on.
    type Kept = (u64, u64, Vec<String>, String, String, Dict);
    for since in [0u64, 3] {
        let (kept, lost): (Vec<Kept>, u64) =
            client.call(&watch, "Watch", "Since", &(since,)).await.expect("Since");
        assert_eq!(lost, 0);
        let kept: Vec<_> = kept.into_iter().map(|event| (event.2, event.3, event.4)).collect();
        assert_eq!(kept, expected[since as usize..]);
    }
    // The directory goes: the watch ends, and says why.
    drop(dir);
    let closed: String = inbox.signal(&watch, "Closed").await.body().deserialize().expect("a reason");
    assert!(!closed.is_empty());
}

/// Proves: pipe create, write, event
async fn bytes_and_messages_that_come(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let stream = client.create("pipe:deliver").await;
    let packets = client.create("pipe:packet,deliver").await;
    for part in ["one", "two", "three"] {
        client.write(&stream, part.as_bytes(), DEFAULT).await.expect("Write");
        client.send(&packets, part.as_bytes(), Options::new()).await.expect("Send");
    }
    let arrived = inbox
        .until(|all| {
            let events: Vec<_> =
                all.iter().filter(|message| is_signal(message, &stream, "Received")).cloned().collect();
            let bytes: Vec<u8> = events
                .iter()
                .flat_map(|event| event.body().deserialize::<(u64, Vec<u8>)>().expect("Received").1)
                .collect();
            (bytes == b"onetwothree").then_some(events)
        })
        .await;
    assert_without_holes(&numbers(&arrived));
    let arrived = inbox.signals(&packets, "Received", 3).await;
    assert_without_holes(&numbers(&arrived));
    let read = |event: &Message| event.body().deserialize::<(u64, Vec<u8>, Dict)>().expect("Received").1;
    assert_eq!(arrived.iter().map(read).collect::<Vec<_>>(), [&b"one"[..], b"two", b"three"]);
}

async fn notice_without_taking(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let packets = client.create("pipe:packet,notify").await;
    client.send(&packets, b"first", Options::new()).await.expect("Send");
    inbox.signal(&packets, "Ready").await;
    assert_eq!(client.receive(&packets, 0).await.expect("it is still there").0, b"first");
    client.send(&packets, b"second", Options::new()).await.expect("Send");
    let ready = inbox.signals(&packets, "Ready", 2).await;
    assert_without_holes(&numbers(&ready));
    assert_eq!(client.receive(&packets, 0).await.expect("it is still there").0, b"second");
}

/// What still waits after a Receive is announced again; what a Receive could not take is not.
async fn notice_of_the_rest(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let packets = client.create("pipe:packet,notify").await;
    for data in [&b"first"[..], b"second", b"\xff"] {
        client.send(&packets, data, Options::new()).await.expect("Send");
    }
    inbox.signals(&packets, "Ready", 1).await;
    for (count, data) in [(2, &b"first"[..]), (3, b"second")] {
        assert_eq!(client.receive(&packets, 0).await.expect("Receive").0, data);
        inbox.signals(&packets, "Ready", count).await;
    }
    let body = (Options::new(), 0u32);
    let text = client.call::<(String, Dict), _>(&packets, "Messages", "ReceiveText", &body).await;
    assert!(text.is_err_and(|error| error.is("InvalidArgument")), "it is no text");
    assert_eq!(client.receive(&packets, 0).await.expect("it was kept").0, b"\xff");
    client.send(&packets, b"last", Options::new()).await.expect("Send");
    let ready = inbox.signals(&packets, "Ready", 4).await;
    assert_without_holes(&numbers(&ready));
    assert_eq!(client.receive(&packets, 0).await.expect("Receive").0, b"last");
    assert_eq!(inbox.signals(&packets, "Ready", 4).await.len(), 4);
}

/// Proves: unix create, event
async fn connections_that_come(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let socket = dir.path().join("socket");
    let listener = client.create(&format!("unix:path={},accept", socket.display())).await;
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(UnixStream::connect(&socket).expect("connecting"));
    }
    let accepted = inbox.signals(&listener, "Accepted", 3).await;
    assert_without_holes(&numbers(&accepted));
    for (peer, event) in peers.iter_mut().zip(&accepted) {
        let (_, endpoint): (u64, OwnedObjectPath) = event.body().deserialize().expect("Accepted");
        // It was announced before it is named.
        let added = position(&inbox, |message| is_added(message, endpoint.as_str()));
        let named = position(&inbox, |message| message.recv_position() == event.recv_position());
        assert!(added < named, "InterfacesAdded comes before Accepted");
        peer.write_all(b"hello").expect("writing");
        assert_eq!(client.read(endpoint.as_str(), 5, DEFAULT).await.expect("Read"), b"hello");
    }
    let (kept, lost): (Vec<(u64, u64, OwnedObjectPath)>, u64) =
        client.call(&listener, "Listener", "Since", &(1u64,)).await.expect("Since");
    assert_eq!((kept.len(), kept[0].0, lost), (2, 2, 0));
    // What was accepted is told, whatever has become of it.
    client.close(kept[0].2.as_str()).await;
    let again: (Vec<(u64, u64, OwnedObjectPath)>, u64) =
        client.call(&listener, "Listener", "Since", &(1u64,)).await.expect("Since");
    assert_eq!(again, (kept, 0));
}

fn position(inbox: &Inbox, wanted: impl FnMut(&Message) -> bool) -> usize {
    inbox.all().iter().position(wanted).expect("it has arrived")
}

/// InterfacesAdded or InterfacesRemoved, and of which object.
fn about(message: &Message, member: &str) -> Option<String> {
    if !is_signal(message, PATH, member) {
        return None;
    }
    let body = message.body();
    Some(match member {
        "InterfacesAdded" => {
            let (path, _): (OwnedObjectPath, BTreeMap<String, Dict>) = body.deserialize().expect(member);
            path.to_string()
        }
        _ => body.deserialize::<(OwnedObjectPath, Vec<String>)>().expect(member).0.to_string(),
    })
}

fn is_added(message: &Message, path: &str) -> bool {
    about(message, "InterfacesAdded").as_deref() == Some(path)
}

fn is_removed(message: &Message, path: &str) -> bool {
    about(message, "InterfacesRemoved").as_deref() == Some(path)
}

/// Each object is announced once, as a whole, after the reply to the call that made it; and its end after everything
/// else that it said.
async fn objects_come_and_go(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let (source, sink) = (client.create("pipe:").await, client.create("pipe:packet").await);
    let relay = client.relay(&source, &sink, options([("framing", "line".into())])).await;
    client.run(&relay, "Relay", "Stop").await;
    inbox.signal(&relay, "Finished").await;
    client.close(&source).await;
    client.close(&sink).await;
    let objects = [&source, &sink, &relay];
    inbox
        .until(|all| objects.iter().all(|path| all.iter().any(|it| is_removed(it, path))).then_some(()))
        .await;
    // A call to be sure that nothing comes behind.
    client.property(PATH, "", "Version").await.expect("an answer");
    let all = inbox.all();
    for path in objects {
        let count = |wanted: fn(&Message, &str) -> bool| all.iter().filter(|it| wanted(it, path)).count();
        assert_eq!((count(is_added), count(is_removed)), (1, 1), "once each: {path}");
        let replied = all
            .iter()
            .position(|it| {
                it.message_type() == Type::MethodReturn
                    && it.body().deserialize::<OwnedObjectPath>().is_ok_and(|made| made.as_str() == path)
            })
            .expect("the reply");
        let added = position(&inbox, |it| is_added(it, path));
        let removed = position(&inbox, |it| is_removed(it, path));
        let last_word = if path == &relay { "Finished" } else { "Closed" };
        let ended = position(&inbox, |it| is_signal(it, path, last_word));
        assert!(replied < added && added < ended && ended < removed, "{replied} {added} {ended} {removed}");
    }
    // What is announced is what introspection and GetManagedObjects would tell.
    let (_, interfaces): (OwnedObjectPath, BTreeMap<String, Dict>) =
        all.iter().find(|it| is_added(it, &sink)).expect("found above").body().deserialize().expect("usual");
    let names: Vec<_> = interfaces.keys().map(String::as_str).collect();
    assert_eq!(names, ["org.example.IPC.Endpoint", "org.example.IPC.Messages"]);
    let endpoint = &interfaces["org.example.IPC.Endpoint"];
    assert_eq!(String::try_from(endpoint["Mechanism"].clone()).as_deref(), Ok("pipe"));
    type Managed = HashMap<OwnedObjectPath, BTreeMap<String, Dict>>;
    let managed: Managed = client
        .call(PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &())
        .await
        .expect("GetManagedObjects");
    assert!(managed.is_empty());
}

/// An object's properties change once for each step, also when nobody asked.
///
/// Proves: pipe relay
async fn states_of_a_relay(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let (source, sink) = (client.create("pipe:").await, client.create("pipe:").await);
    let relay = client.relay(&source, &sink, Options::new()).await;
    let changed = async |wanted: &str| {
        inbox
            .until(|all| {
                all.iter()
                    .any(|it| {
                        is_signal(it, &relay, "PropertiesChanged") && {
                            let (_, values, _): (String, Dict, Vec<String>) =
                                it.body().deserialize().expect("PropertiesChanged");
                            values.get("State").is_some_and(|state| {
                                String::try_from(state.clone()).is_ok_and(|state| state == wanted)
                            })
                        }
                    })
                    .then_some(())
            })
            .await;
    };
    client.run(&relay, "Relay", "Pause").await;
    changed("paused").await;
    client.write(&source, b"waits", DEFAULT).await.expect("Write");
    assert_eq!(client.number(&relay, "Relay", "Bytes").await, 0);
    client.run(&relay, "Relay", "Resume").await;
    changed("running").await;
    assert_eq!(client.read(&sink, 100, DEFAULT).await.expect("moved"), b"waits");
    client.run(&relay, "Relay", "Stop").await;
    changed("finished").await;
}

everywhere!(
    changes_of_files,
    bytes_and_messages_that_come,
    notice_without_taking,
    notice_of_the_rest,
    connections_that_come,
    objects_come_and_go,
    states_of_a_relay,
);

/// More than the kernel keeps comes while the service does not look: Overflow says so, and the watch goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_the_kernel_drops() {
    let kept =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("fs.inotify.max_queued_events");
    let kept: u32 = kept.trim().parse().expect("a number");
    if kept > 1 << 18 {
        skip!("fs.inotify.max_queued_events is {kept}: too many to fill");
    }
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = temp_dir();
    let path = |name: &str| dir.path().join(name);
    let watch = client.create(&format!("inotify:path={},events=create+moved-to", dir.path().display())).await;
    stage.service.signal(Signal::STOP);
    let pid = rustix::process::Pid::from_raw(stage.service.pid()).expect("a process");
    let (stopped, look_only) = (WaitIdOptions::STOPPED, WaitIdOptions::NOWAIT);
    rustix::process::waitid(WaitId::Pid(pid), stopped | look_only).expect("the service stops");
    // Two names in turn, as successive events that are the same become one.
    fs::write(path("a"), "").expect("a file");
    for turn in 0..kept {
        let (from, to) = if turn % 2 == 0 { ("a", "b") } else { ("b", "a") };
        fs::rename(path(from), path(to)).expect("renaming");
    }
    stage.service.signal(Signal::CONT);
    let overflow = inbox.signal(&watch, "Overflow").await;
    let (seq, lost): (u64, u64) = overflow.body().deserialize().expect("Overflow");
    assert_eq!(lost, 0, "how many, the kernel does not say");
    fs::write(path("later"), "").expect("a file");
    type Changed = (u64, Vec<String>, String, String, Dict);
    let (next, names) = inbox
        .until(|all| {
            let changes = all.iter().filter(|message| is_signal(message, &watch, "Changed"));
            let mut read = changes.map(|message| message.body().deserialize::<Changed>().expect("Changed"));
            read.find(|(_, _, path, ..)| path.ends_with("/later")).map(|(seq, names, ..)| (seq, names))
        })
        .await;
    assert_eq!((next, names), (seq + 1, vec!["CREATE".to_owned()]));
    assert_eq!(inbox.signals(&watch, "Overflow", 1).await.len(), 1, "it is told once");
    type Kept = (u64, u64, Vec<String>, String, String, Dict);
    let (kept, _): (Vec<Kept>, u64) =
        client.call(&watch, "Watch", "Since", &(seq - 1,)).await.expect("Since");
    assert_eq!((kept[0].0, &kept[0].2[..]), (seq, &["Q_OVERFLOW".to_owned()][..]));
}

/// Since() tells how many events are no longer kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gaps_are_counted() {
    let stage = or_skip!(Stage::with_config(Way::DbusDaemon, "[limits]\nevents-kept = 4\n"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let name = unique("events");
    let receiver = client.create(&format!("unix:abstract={name},type=dgram,deliver")).await;
    let sender = client.attach(&format!("unix:abstract={name},type=dgram")).await;
    for number in 0..10u8 {
        client.send(&sender, &[number], Options::new()).await.expect("Send");
    }
    let received = inbox.signals(&receiver, "Received", 10).await;
    assert_without_holes(&numbers(&received));
    type Kept = Vec<(u64, u64, Vec<u8>, Dict)>;
    for (since, expected, missing) in
        [(0u64, vec![7, 8, 9, 10], 6), (5, vec![7, 8, 9, 10], 1), (8, vec![9, 10], 0), (10, vec![], 0)]
    {
        let (kept, lost): (Kept, u64) =
            client.call(&receiver, "Messages", "Since", &(since,)).await.expect("Since");
        assert_eq!(kept.iter().map(|event| event.0).collect::<Vec<u64>>(), expected, "since {since}");
        assert_eq!(lost, missing, "since {since}");
        assert!(
            kept.iter()
                .all(|(number, at, data, _)| *data == [*number as u8 - 1] && *at > 1_600_000_000_000_000)
        );
    }
}
