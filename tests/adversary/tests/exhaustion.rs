//! D. Exhaustion: one user takes all he can get; the others are served as before (promise G4), he is told which limit
//! he has reached, and what he gives back he can have again.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipc_adversary::wire::{self, Arg, Outgoing, no_options, text};
use ipc_adversary::{Raw, Stage, assert_limit, descriptors, error, number, outcome, pings_during, resident};
use ipc_harness::system::{ALICE, BOB, EXTRA, Identity, SHARED};
use ipc_harness::{NAME, PATH, or_skip, patience, unique};
use rustix::fs::MemfdFlags;

/// The service is the same connection as before: the bus did not disconnect it.
#[track_caller]
fn attack(stage: &Stage, what: &str, attack: impl FnOnce()) {
    let mut witness = stage.raw(BOB);
    let (owner, front) = (witness.owner(), stage.front());
    let ((), latencies) = pings_during(stage, BOB, attack);
    assert_eq!(witness.owner(), owner, "{what}: the service has left the bus");
    assert_eq!(stage.front(), front, "{what}");
    latencies.assert_calm(what);
}

#[test]
fn d1_calls_without_a_reply() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    attack(&stage, "20,000 calls without a reply", || {
        let cheap = Raw::message(&pipe, "Endpoint", "Inspect", &[]).no_reply();
        let dear = Raw::message(&format!("{PATH}/pipe"), "Mechanism", "List", &[no_options()]).no_reply();
        for round in 0..20_000 {
            alice.send(if round % 20 == 0 { dear.clone() } else { cheap.clone() });
        }
    });
    stage.until("she is served again", || alice.call(&pipe, "Endpoint", "Inspect", &[]).is_ok());
}

#[test]
fn d1_calls_that_wait() {
    let stage = or_skip!(Stage::new());
    let mut connections: Vec<Raw> = (0..6).map(|_| stage.alice()).collect();
    let pipe = connections[0].create("pipe:");
    attack(&stage, "more waits than a user may have", || {
        let read = || Raw::message(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(20_000)]);
        for raw in &mut connections {
            for _ in 0..20 {
                raw.send(read());
            }
        }
        let mut limits = 0;
        for raw in &mut connections {
            // The last four are beyond calls-per-connection, whatever the others are.
            for _ in 0..4 {
                let refusal = raw.error_within(patience()).expect("a refusal");
                assert!(refusal.is("LimitExceeded"), "{refusal}");
                limits += 1;
            }
        }
        assert_eq!(limits, 24);
    });
    drop(connections);
    let mut again = stage.alice();
    stage.until("the waits of who has left are over", || again.usage("waits") == 0);
    assert!(
        error(again.call(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(0)])).is("Busy"),
        "accepted again"
    );
}

#[test]
fn d2_descriptors_by_the_thousand() {
    let stage = or_skip!(Stage::new());
    let file = std::fs::File::open("/dev/null").expect("a file");
    let before = descriptors(stage.front()).len();
    attack(&stage, "descriptors", || {
        // More than the policy lets through: the bus itself refuses, and the service never sees them.
        let mut alice = stage.alice();
        let adopt = |count: u32| Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(count);
        let sixteen: Vec<BorrowedFd<'_>> = vec![file.as_fd(); 16];
        for _ in 0..66 {
            let refusal = error(alice.ask(adopt(16), &sixteen));
            assert_eq!(refusal.name, "org.freedesktop.DBus.Error.AccessDenied", "{refusal}");
        }
        let inspect = Raw::message(PATH, "", "Create", &[text("pipe:"), no_options()]).with_fds(1);
        let refusal = error(alice.ask(inspect, &[file.as_fd()]));
        assert_eq!(refusal.name, "org.freedesktop.DBus.Error.AccessDenied", "{refusal}");
        let refusal = error(alice.ask(adopt(3), &sixteen[..3]));
        assert_limit(&refusal, "fds-per-call", 2);
        // As many as it does let through, as fast as they go.
        for _ in 0..3000 {
            if alice.try_send(adopt(2).no_reply(), &sixteen[..2]).is_err() {
                alice = stage.alice();
            }
        }
    });
    let front = stage.front();
    stage.until("the front has closed them", || descriptors(front).len() <= before + 8);
}

/// A subscriber that never reads, while a thousand others come and go.
#[test]
fn d3_consumers_that_sleep() {
    let stage = or_skip!(Stage::new());
    let mut sleeper = stage.alice();
    let pipe = sleeper.create("pipe:deliver");
    sleeper.call(PATH, "", "Subscribe", &[]).expect("Subscribe");
    let mut writer = stage.alice();
    attack(&stage, "1,000 connections that come and go", || {
        for round in 0..1000 {
            let mut passing = stage.alice();
            passing.send(Raw::message(PATH, "", "Create", &[text("pipe:lifetime=client"), no_options()]));
            if round % 10 == 0 {
                writer.write(&pipe, "event").expect("Write");
            }
        }
    });
    stage.until("what was theirs has gone", || writer.usage("endpoints") == 1);
    // The sleeper wakes, and has missed nothing.
    for sequence in 1..=100 {
        let received = sleeper.signal("Received");
        assert_eq!(number(&received.args()[0]), sequence);
    }
}

/// A call that waits does not keep others from the same object.
#[test]
fn d4_a_slow_call_blocks_nobody() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut other) = (stage.alice(), stage.alice());
    let pipe = alice.create("pipe:");
    let waiting = alice.send(Raw::message(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(20_000)]));
    stage.until("it waits", || other.usage("waits") == 1);
    let started = Instant::now();
    for _ in 0..50 {
        other.call(&pipe, "Endpoint", "Inspect", &[]).expect("Inspect");
        alice.call(&pipe, "Endpoint", "Inspect", &[]).expect("on the same connection too");
    }
    assert!(started.elapsed() < Duration::from_secs(15), "the wait was waited for");
    other.write(&pipe, "x").expect("Write");
    let reply = alice.reply_within(waiting, patience()).expect("an answer");
    outcome(reply).expect("a byte");
}

/// Somebody asks and never reads, neither answers nor signals: nobody's memory grows, and others go on.
#[test]
fn d5_who_never_reads() {
    let stage = or_skip!(Stage::new());
    let (mut deaf, mut writer) = (stage.alice(), stage.alice());
    let pipe = deaf.create("pipe:deliver");
    let memory = deaf.create("mmap:size=1M");
    let front = stage.front();
    let worker = stage.worker_of(ALICE);
    let before = (resident(front), resident(worker), resident(stage.bus.pid()));
    let chunk = "x".repeat(60_000);
    attack(&stage, "a client that never reads", || {
        for round in 0..1500 {
            if round % 3 == 0 {
                let args = [Arg::U64(0), Arg::U64(1 << 20)];
                deaf.send(Raw::message(&memory, "Memory", "Read", &args));
            }
            // Written by another connection of hers: what is delivered goes to the deaf one.
            writer.write(&pipe, &chunk).expect("Write");
        }
    });
    let after = (resident(front), resident(worker), resident(stage.bus.pid()));
    println!("KiB of front, worker and bus: before {before:?}, after {after:?}");
    assert!(after.0 < before.0 + 48 * 1024, "the front grew: {before:?} {after:?}");
    assert!(after.1 < before.1 + 48 * 1024, "the worker grew: {before:?} {after:?}");
    assert!(after.2 < before.2 + 64 * 1024, "what waits in the bus grew: {before:?} {after:?}");
    // It wakes up. What it missed shows as a gap, and no more comes twice or out of order.
    // Before the first come the answers that waited, megabytes of them.
    let first = deaf.signal_within("Received", patience()).expect("nothing was delivered at all");
    let mut last = number(&first.args()[0]);
    while let Some(received) = deaf.signal_within("Received", Duration::from_secs(1)) {
        let sequence = number(&received.args()[0]);
        assert!(sequence > last, "{sequence} after {last}");
        last = sequence;
    }
    writer.write(&pipe, "the last word").expect("Write");
    let latest = deaf.signal("Received");
    assert!(number(&latest.args()[0]) > last);
}

/// Calls that are large, and many: what waits for a worker is bounded for each user.
#[test]
fn d1_large_calls_to_a_worker_that_stands_still() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let memory = alice.create("mmap:size=1M");
    let (front, worker) = (stage.front(), stage.worker_of(ALICE));
    let before = resident(front);
    let data = wire::bytes(&vec![7; 1 << 20]);
    let call = Raw::message(&memory, "Memory", "Write", &[Arg::U64(0), data]);
    let pid = rustix::process::Pid::from_raw(worker).expect("a pid");
    attack(&stage, "60 MiB to a worker that stands still", || {
        rustix::process::kill_process(pid, ipc_harness::Signal::STOP).expect("root may");
        for _ in 0..60 {
            alice.send(call.clone().no_reply());
        }
    });
    let grown = resident(front).saturating_sub(before);
    assert!(grown < 40 * 1024, "the front holds {grown} KiB more");
    // It may have been found stuck meanwhile, and been ended.
    let _ended = rustix::process::kill_process(pid, ipc_harness::Signal::CONT);
    stage.until("she is served again", || alice.try_make("Create", "pipe:").is_ok());
}

/// A message of half its length, and nothing more: the bus waits for the rest, and nobody else does.
#[test]
fn half_messages_stop_nobody() {
    let stage = or_skip!(Stage::new());
    let mut halves = Vec::new();
    attack(&stage, "50 halves of messages", || {
        for _ in 0..50 {
            let mut alice = stage.alice();
            let mut message = Outgoing::call(NAME, PATH, NAME, "Create", &[text("pipe:"), no_options()]);
            message.serial = 7;
            let encoded = message.encode();
            alice.send_bytes(&encoded[..encoded.len() / 2], &[]).expect("sent");
            halves.push(alice);
        }
    });
    let fd = rustix::fs::memfd_create(unique("half").as_str(), MemfdFlags::CLOEXEC).expect("a memfd");
    assert!(halves[0].send_bytes(&[0], &[fd.as_fd()]).is_ok());
    stage.bob().ping().expect("an answer");
}

/// Quotas are a user's, not a connection's.
#[test]
fn d7_two_hundred_connections() {
    let stage = or_skip!(Stage::new());
    let mut connections: Vec<Raw> = Vec::new();
    attack(&stage, "200 connections of one user", || {
        let (mut made, mut refused) = (0, 0);
        for _ in 0..200 {
            let mut raw = stage.alice();
            for _ in 0..2 {
                match raw.try_make("Create", "pipe:") {
                    Ok(_) => made += 1,
                    Err(refusal) => {
                        assert_limit(&refusal, "endpoints", 256);
                        refused += 1;
                    }
                }
            }
            connections.push(raw);
        }
        assert_eq!((made, refused), (256, 144));
    });
    assert_eq!(stage.workers_of(ALICE).len(), 1);
    let mut bob = stage.bob();
    for _ in 0..200 {
        bob.create("pipe:");
    }
}

/// Five hundred connections a second are one worker; other groups are other workers, two a second.
#[test]
fn d12_connections_that_come_and_go() {
    let stage = or_skip!(Stage::new());
    stage.alice().create("pipe:");
    let worker = stage.worker_of(ALICE);
    attack(&stage, "500 connections with a call each", || {
        for _ in 0..500 {
            stage.alice().send(Raw::message(
                PATH,
                "",
                "Create",
                &[text("pipe:lifetime=client"), no_options()],
            ));
        }
    });
    assert_eq!(stage.worker_of(ALICE), worker, "they are served by one worker, which is kept");
    let mut refused = 0;
    let mut sets = vec![vec![SHARED, EXTRA], vec![EXTRA], vec![]];
    sets.extend((4701..=4715).map(|group| vec![group]));
    // Connected first: that takes longer than starting a worker.
    let mut identities: Vec<_> =
        sets.iter().map(|groups| stage.raw(Identity::from(ALICE).with_groups(groups))).collect();
    for raw in &mut identities {
        if let Err(refusal) = raw.try_make("Create", "pipe:") {
            assert_limit(&refusal, "worker-starts", 2);
            refused += 1;
        }
    }
    assert!(refused > 0, "eighteen workers were started at once");
    stage.bob().create("pipe:");
    let mut again = stage.raw(Identity::from(ALICE).with_groups(&[4715]));
    stage.until("a second later it starts", || again.try_make("Create", "pipe:").is_ok());
}
