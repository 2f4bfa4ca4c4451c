//! Waiting for events with a call, for clients that hear no signals: nothing is lost between two calls, and every wait
//! ends, with what has happened or with the reason why nothing will.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use futures_util::future::join_all;
use ipc_blackbox::{Client, Stage, Way, assert_error, error, everywhere};
use ipc_harness::system::BOB;
use ipc_harness::{
    Bus, CallError, NAME, Process, Service, busctl, need_tool, object_path, or_skip, patience, watchdog,
};
use zbus::OwnedVariant;

const NODE: &str = "/org/example/IPC/netlink";
const DEFAULT: u32 = u32::MAX;
const LONG: u32 = 300_000;

type Details = BTreeMap<String, OwnedVariant>;
/// Number, time, events, path, former path, details.
type Changed = (u64, u64, Vec<String>, String, String, Details);
/// Number, time, name of the signal, its arguments.
type Told = (u64, u64, String, OwnedVariant);
/// The number of the last event, and the interfaces.
type Links = (u64, Vec<(i32, String, String, Details)>);

async fn changes(
    client: &Client,
    watch: &str,
    seq: u64,
    timeout_ms: u32,
) -> Result<(Vec<Changed>, u64), CallError> {
    client.call(watch, "Watch", "WaitSince", &(seq, timeout_ms)).await
}

async fn told(client: &Client, seq: u64, timeout_ms: u32) -> Result<(Vec<Told>, u64), CallError> {
    client.call(NODE, "Netlink", "WaitSince", &(seq, timeout_ms)).await
}

async fn watched(client: &Client, dir: &ipc_harness::TempDir, options: &str) -> String {
    client.create(&format!("inotify:path={},events=create{options}", dir.path().display())).await
}

/// At once where there is something after the number; else when there is, and with the same words as Since.
async fn something_new(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = watched(&client, &dir, "").await;
    for number in 1..=3u64 {
        let path = dir.path().join(format!("file{number}")).display().to_string();
        let touch = async {
            client.used("waits", 1).await;
            stage.sh(&format!("touch '{path}'")).finish().success();
        };
        let (new, ()) = tokio::join!(changes(&client, &watch, number - 1, DEFAULT), touch);
        let (events, lost) = new.expect("what has happened");
        let [(seq, at, names, told, from, _)] = &events[..] else { panic!("one event: {events:?}") };
        assert_eq!(
            (*seq, &names[..], told.as_str(), from.as_str(), lost),
            (number, &["CREATE".to_owned()][..], &*path, "", 0)
        );
        assert!(*at > 0);
    }
    for seq in 0..3u64 {
        let since: (Vec<Changed>, u64) = client.call(&watch, "Watch", "Since", &(seq,)).await.expect("Since");
        let waited = changes(&client, &watch, seq, 0).await.expect("at once, whatever the timeout");
        assert_eq!(waited, since);
    }
    let phrases = [(0, "Busy", "cannot see an event of inotify:"), (50, "Timeout", "within 50 ms")];
    for (timeout, name, phrase) in phrases {
        assert_error(&error(changes(&client, &watch, 3, timeout).await), name, &[phrase]);
    }
    let phrases = ["300001", "max-wait-ms"];
    assert_error(&error(changes(&client, &watch, 3, LONG + 1).await), "InvalidArgument", &phrases);
    // A number that has not been reached is waited for, as Since says nothing of it.
    assert_error(&error(changes(&client, &watch, u64::MAX, 50).await), "Timeout", &[]);
}

/// One call after the other gives every event once, however they come in between.
async fn nothing_is_lost_between_two_calls(stage: Stage) {
    const FILES: u64 = 400;
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = watched(&client, &dir, "").await;
    let script =
        "import os, sys\nfor n in range(int(sys.argv[2])):\n  open(f'{sys.argv[1]}/{n}', 'w').close()";
    let writer = stage.python(script, &[&dir.path().display().to_string(), &FILES.to_string()]);
    let (mut seq, mut calls) = (0, 0);
    while seq < FILES {
        let (events, lost) = changes(&client, &watch, seq, DEFAULT).await.expect("the next ones");
        assert_eq!(lost, 0);
        for event in events {
            assert_eq!((event.0, event.3.rsplit('/').next()), (seq + 1, Some(&*seq.to_string())));
            seq += 1;
        }
        calls += 1;
    }
    assert!(calls <= FILES, "no answer was empty");
    writer.finish().success();
}

/// What the ring no longer has is counted, also for who waits.
async fn what_is_no_longer_kept(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = watched(&client, &dir, "").await;
    for number in 0..20 {
        fs::write(dir.path().join(number.to_string()), "").expect("writing");
    }
    watchdog(patience(), async {
        while changes(&client, &watch, 19, DEFAULT).await.expect("the last one").0[0].0 != 20 {}
    })
    .await;
    let (events, lost) = changes(&client, &watch, 0, 0).await.expect("the rest");
    assert_eq!((events[0].0, events.len() as u64 + lost, events.len()), (17, 20, 4));
}

/// The end of what is watched: its last words first, then why there are no more; and so for who closes the endpoint.
async fn the_end_of_a_watch(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = watched(&client, &dir, "+delete-self").await;
    let goes = async {
        client.used("waits", 1).await;
        drop(dir);
    };
    let (last, ()) = tokio::join!(changes(&client, &watch, 0, DEFAULT), goes);
    let (last, _) = last.expect("the last words");
    assert!(last.iter().any(|event| event.2.contains(&"DELETE_SELF".to_owned())), "{last:?}");

    let (dir, closer) = (stage.temp_dir(), stage.client().await);
    let watch = watched(&client, &dir, "").await;
    let close = async {
        client.used("waits", 1).await;
        closer.close(&watch).await;
    };
    let (closed, ()) = tokio::join!(changes(&client, &watch, 0, DEFAULT), close);
    assert_error(&error(closed), "Closed", &["no more events of inotify:", "closed"]);
    client.used("waits", 0).await;
}

/// The wait of a client that leaves ends, and costs nobody anything.
async fn a_client_leaves(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = watched(&client, &dir, "").await;
    let leaving = stage.client().await;
    let connection = leaving.connection.clone();
    let path = watch.clone();
    let waiting = tokio::spawn(async move { changes(&leaving, &path, 0, LONG).await });
    client.used("waits", 1).await;
    connection.close().await.expect("leaving");
    client.used("waits", 0).await;
    waiting.abort();
    fs::write(dir.path().join("later"), "").expect("writing");
    assert_eq!(changes(&client, &watch, 0, DEFAULT).await.expect("others go on").0.len(), 1);
}

everywhere!(something_new, nothing_is_lost_between_two_calls, the_end_of_a_watch, a_client_leaves);

mod small {
    use super::*;
    everywhere!(config = "[limits]\nevents-kept = 4\n"; what_is_no_longer_kept);
}

/// Clients that the service knows already.
async fn some(stage: &Stage, count: i64) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = stage.client().await;
        client.usage("waits").await;
        clients.push(client);
    }
    clients
}

/// As many as the limits allow, on one watch: all are answered by one event, and others are served meanwhile.
async fn very_many_wait(stage: Stage) {
    // On the system bus one user has 64 calls in flight, and 16 of each connection.
    let (connections, each) = if stage.way == Way::System { (3, 16) } else { (4, 250) };
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = watched(&client, &dir, "").await;
    let clients = some(&stage, connections).await;
    let calls = clients.iter().flat_map(|client| (0..each).map(|_| changes(client, &watch, 0, LONG)));
    let event = async {
        client.used("waits", connections * each).await;
        // None of them is in the way of anybody.
        assert_error(&error(changes(&client, &watch, 0, 0).await), "Busy", &[]);
        let pipe = client.create("pipe:").await;
        client.write(&pipe, b"x", 0).await.expect("Write");
        assert_eq!(client.read(&pipe, 1, 0).await.expect("Read"), b"x");
        fs::write(dir.path().join("bell"), "").expect("writing");
    };
    let (all, ()) = tokio::join!(join_all(calls), event);
    for new in all {
        assert_eq!(new.expect("the event").0.len(), 1);
    }
    client.used("waits", 0).await;
}

/// One more than the limit of waits is refused, by its name.
async fn too_many_wait(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = watched(&client, &dir, "").await;
    let one_more = async {
        client.used("waits", 2).await;
        let refused = error(changes(&client, &watch, 0, DEFAULT).await);
        assert_error(&refused, "LimitExceeded", &["waits is 2"]);
        fs::write(dir.path().join("bell"), "").expect("writing");
    };
    let (one, other, ()) =
        tokio::join!(changes(&client, &watch, 0, LONG), changes(&client, &watch, 0, LONG), one_more);
    assert!(one.is_ok() && other.is_ok());
}

mod many {
    use super::*;
    everywhere!(config = "[limits]\ncalls = 2000\ncalls-per-connection = 2000\nwaits = 1000\n"; very_many_wait);
}

mod few {
    use super::*;
    everywhere!(config = "[limits]\nwaits = 2\n"; too_many_wait);
}

/// The herald's events: after the number of a list, and after the last one that was told.
async fn of_the_network(stage: Stage) {
    let (client, service) = (stage.client().await, &stage.service);
    let (mut seq, _): Links = client.call(NODE, "Netlink", "Links", &()).await.expect("Links");
    for (command, name) in
        [("link set lo up", "LinkChanged"), ("address add 10.77.0.1/24 dev lo", "AddressAdded")]
    {
        let mut names = Vec::new();
        let until = async {
            while !names.contains(&name.to_owned()) {
                let (events, lost) = told(&client, seq, DEFAULT).await.expect("what happens");
                assert!(lost == 0 && !events.is_empty());
                for event in events {
                    assert_eq!(event.0, seq + 1, "no gap");
                    seq = event.0;
                    names.push(event.2);
                }
            }
        };
        tokio::join!(until, async { service.ip(command) });
    }
    // All that there is at once, and what is from another herald's time.
    assert!(!told(&client, 0, 0).await.expect("all").0.is_empty());
    assert!(told(&client, 7, 0).await.expect("all, and something is missing").1 > 0);
    watchdog(patience(), async {
        loop {
            match told(&client, seq, 50).await {
                Ok((events, _)) => seq = events.last().expect("one").0,
                Err(quiet) => {
                    break assert_error(&quiet, "Timeout", &["see an event of netlink within 50 ms"]);
                }
            }
        }
    })
    .await;
    assert_error(&error(told(&client, seq, 0).await), "Busy", &["without waiting"]);
    assert_error(&error(told(&client, seq, LONG + 1).await), "InvalidArgument", &["max-wait-ms"]);
}

/// One who waits with all the calls that he may have does not keep others from the herald.
async fn a_crowd_at_the_herald(stage: Stage) {
    let Some(system) = &stage.system else { return };
    let (client, service) = (stage.client().await, &stage.service);
    let bob = Client::of_system_bus(system.connect_as(&BOB.into()).await);
    let (seq, _): Links = bob.call(NODE, "Netlink", "Links", &()).await.expect("Links");
    let crowd = some(&stage, 4).await;
    let waits = crowd.iter().flat_map(|client| (0..16).map(|_| told(client, seq, LONG)));
    let others = async {
        let full = async || client.property("/org/example/IPC", "", "Version").await.err();
        watchdog(patience(), async {
            while full().await.is_none_or(|error| !error.text.contains("calls-per-user")) {}
        })
        .await;
        let _: Links = bob.call(NODE, "Netlink", "Links", &()).await.expect("the herald answers others");
        let (heard, _) = tokio::join!(told(&bob, seq, LONG), async { service.ip("link set lo up") });
        assert!(!heard.expect("and tells them").0.is_empty());
    };
    let (all, ()) = tokio::join!(join_all(waits), others);
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

mod network {
    use super::*;
    everywhere!(in_own_network; of_the_network, a_crowd_at_the_herald);
}

/// The front asks who has not answered for a while whether it still runs: the herald says so while calls wait there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_not_taken_for_dead() {
    let stage = or_skip!(Stage::in_own_network(Way::System, "[front]\nstuck-after-ms = 1000\n"));
    let client = stage.client().await;
    let (seq, _): Links = client.call(NODE, "Netlink", "Links", &()).await.expect("Links");
    assert_error(&error(told(&client, seq, 4000).await), "Timeout", &["within 4000 ms"]);
}

/// What a shell does: a call that prints when something happens.
#[test]
fn by_busctl() {
    or_skip!(need_tool("busctl"));
    let bus = or_skip!(Bus::dbus_daemon());
    let service = Service::on(&bus);
    let shell = busctl(&service);
    let dir = ipc_harness::temp_dir();
    let address = format!("inotify:path={},events=close-write", dir.path().display());
    let watch = object_path(&shell.manager("Create", "sa{sv}", &[&address, "0"]).expect("Create"));
    let mut command = Command::new("busctl");
    command.arg(format!("--address={}", bus.address())).args(["call", NAME, &watch]);
    command.args(["org.example.IPC.Watch", "WaitSince", "tu", "0", "20000"]);
    let waiting = Process::spawn(&mut command);
    fs::write(dir.path().join("report"), "text").expect("writing");
    let said = waiting.finish().success();
    assert!(said.starts_with("a(ttasssa{sv})t 1 1 ") && said.contains("1 \"CLOSE_WRITE\""), "{said}");
    let late = shell.call(&watch, "org.example.IPC.Watch", "WaitSince", "tu", &["1", "20"]);
    assert!(late.is_err_and(|error| error.is("Timeout")));
}
