//! A relay for every pair of what the mechanisms have, with real objects and real data: what `pair` says works is made
//! and something goes through it, and what it says is refused is refused in its words.
//!
//! What there is, the register says: a mechanism that is added is in the matrix, and the walk fails until there is a
//! fixture for it ([`fixtures`]).

#![expect(clippy::unwrap_used, reason = "a test may fail")]
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "the far ends are other programs'")]

mod bus;
mod fixtures;

use std::time::Duration;

use ipc_bus::MECHANISMS;
use ipc_engine::relay::kinds::{Origin, Pair, Target, pair};
use ipc_kernel::{Dict, dict, shape::Shape};

use fixtures::{Kind, Sink, Source, World};

/// Nothing in a passing test waits for it.
const WATCHDOG: Duration = Duration::from_secs(20);

/// What goes through: a text, a value, a signal.
fn payload(into: Target) -> &'static str {
    match into {
        Target::Wakes => "7",
        Target::Signals => "SIGUSR1 5",
        _ => "hello",
    }
}

/// What of it is to be found in the bytes that come out.
fn token(kind: Kind, from: Origin, into: Target) -> &'static str {
    match (from, kind.shape) {
        (Origin::Units, _) => "1",
        (Origin::Wakes, _) => "7",
        (Origin::Signals, _) => r#""event":"Received","name":"SIGUSR1""#,
        (Origin::Events, Shape::Watch) => r#""event":"Changed""#,
        (Origin::Events, Shape::Process) => r#""event":"Exited""#,
        (Origin::Events, _) => r#""event":"Written""#,
        _ => payload(into),
    }
}

async fn walk(world: &World, snapshot: bool, wanted: impl Fn(Shape, Shape) -> bool) -> (usize, usize) {
    let kinds: Vec<Kind> = MECHANISMS
        .iter()
        .flat_map(|mechanism| {
            mechanism.shapes.iter().map(move |shape| Kind { mechanism: mechanism.name, shape: *shape })
        })
        .filter(|kind| match world.available(kind.mechanism) {
            Ok(()) => true,
            Err(reason) => {
                eprintln!("SKIPPED: all pairs with {}: {reason}", kind.mechanism);
                false
            }
        })
        .collect();
    let (mut works, mut refused) = (0, 0);
    for &from in &kinds {
        for &into in kinds.iter().filter(|into| wanted(from.shape, into.shape)) {
            let cell = async {
                match pair(from.shape, into.shape, snapshot) {
                    Pair::Works { .. } => through(world, from, into, snapshot).await,
                    Pair::Refused(instead) => refuses(world, from, into, snapshot, instead).await,
                }
            };
            match tokio::time::timeout(WATCHDOG, cell).await {
                Ok(true) => works += 1,
                Ok(false) => refused += 1,
                Err(_) => panic!("nothing came through from {from} to {into}"),
            }
        }
    }
    eprintln!("{works} pairs work, {refused} are refused");
    (works, refused)
}

fn options(snapshot: bool) -> Dict {
    if snapshot {
        dict! { "memory" => "snapshot" }
    } else {
        Dict::new()
    }
}

async fn refuses(world: &World, from: Kind, into: Kind, snapshot: bool, instead: &str) -> bool {
    let (source, sink) = (Source::new(world, from, "anything").await, Sink::new(world, into).await);
    let error = world.relay(&source.endpoint, &sink.endpoint, options(snapshot)).await.unwrap_err();
    assert!(error.text.contains(instead), "from {from} to {into}: {error}");
    world.close(source.endpoint.clone());
    world.close(sink.endpoint);
    false
}

async fn through(world: &World, kind: Kind, to: Kind, snapshot: bool) -> bool {
    let Pair::Works { from, into, framing, signal } = pair(kind.shape, to.shape, snapshot) else {
        unreachable!()
    };
    let what = format!("from {kind} to {to}");
    // What is in memory before the relay is there.
    let held = if snapshot { payload(into).to_owned() } else { format!("{}\n", payload(into)) };
    let source = Source::new(world, kind, &held).await;
    let mut sink = Sink::new(world, to).await;
    let mut options = options(snapshot);
    for (needed, key, value) in
        [(framing, "framing", "line".into()), (signal, "attributes", dict! { "signal" => "SIGUSR1" }.into())]
    {
        if needed {
            let error = world.relay(&source.endpoint, &sink.endpoint, options.clone()).await.unwrap_err();
            assert!(error.text.contains(key), "{what}: {error}");
            options.insert(key.into(), value);
        }
    }
    if matches!(from, Origin::Events | Origin::Signals) {
        options.insert("since".into(), source.endpoint.events.last().into());
    }
    sink.wait_for_data().await;
    let relay = world
        .relay(&source.endpoint, &sink.endpoint, options)
        .await
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    source.feed(world, payload(into)).await;
    let came = sink.take(world, snapshot).await;
    match into {
        Target::Bytes | Target::Messages | Target::Snapshots => {
            let text = String::from_utf8_lossy(&came);
            assert!(text.contains(token(kind, from, into)), "{what}: {text:?}");
            assert!(!framing || into != Target::Bytes || text.ends_with('\n'), "{what}: {text:?}");
        }
        // That it was posted or woken is what has come.
        Target::Units => {}
        Target::Wakes => {
            let value =
                if matches!(from, Origin::Units | Origin::Events | Origin::Signals) { "0" } else { "7" };
            assert_eq!(String::from_utf8_lossy(&came), value, "{what}");
        }
        Target::Signals => {
            let value = match from {
                Origin::Wakes => 7,
                Origin::Units | Origin::Events | Origin::Signals => 0,
                _ => 5,
            };
            assert_eq!(String::from_utf8_lossy(&came), format!("SIGUSR1 {value}"), "{what}");
        }
    }
    // It is counted a moment after it has arrived.
    let streams = (from, into) == (Origin::Bytes, Target::Bytes);
    while !streams && relay.messages() == 0 {
        tokio::task::yield_now().await;
    }
    relay.stop("stopped");
    relay.ended.wait().await;
    let finished = relay.finished().unwrap();
    assert!(!finished.failed, "{what}: {finished:?}");
    if !streams {
        assert_eq!(finished.messages, 1, "{what}: {finished:?}");
        // Datagrams of UDP may go several at once.
        let batches = from == Origin::Messages && into == Target::Messages && what.contains("from inet");
        let methods = [from.method(into), "recvmmsg and sendmmsg"];
        assert!(methods[..=usize::from(batches)].contains(&relay.method()), "{what}: {}", relay.method());
    }
    world.close(source.endpoint.clone());
    world.close(sink.endpoint);
    true
}

/// One test: what all watches share is of one process, and each test would have a runtime of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_works_or_says_what_would() {
    let world = World::new().await;
    let (works, refused) = walk(&world, false, |_, _| true).await;
    assert!(works > 300 && refused > 100, "{works} {refused}");
    // Pairs with memory once more, as a whole.
    let memory = |from, into| (from == Shape::Memory) || (into == Shape::Memory);
    let (works, _) = walk(&world, true, memory).await;
    assert!(works > 100, "{works}");
}
