//! The fault matrix: whatever fails, the caller gets one named error, nobody else notices, and what was acknowledged is
//! still there or is announced as gone.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use ipc_adversary::wire::{self, Arg, no_options, text};
use ipc_adversary::{Raw, Stage, assert_error, error, number, object, outcome};
use ipc_harness::system::ALICE;
use ipc_harness::{PATH, Signal, or_skip, patience, wait_gone};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, kill_process, pidfd_getfd, pidfd_open};

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("root may");
}

/// The Read of a byte that does not come.
fn wait_for_a_byte(raw: &mut Raw, pipe: &str) -> u32 {
    raw.send(Raw::message(pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(20_000)]))
}

#[test]
fn a_client_leaves() {
    let stage = or_skip!(Stage::new());
    let (mut leaving, mut alice) = (stage.alice(), stage.alice());
    let stays = leaving.create("pipe:");
    let goes = leaving.create("pipe:lifetime=client");
    let memory = leaving.create("mmap:size=64,lifetime=client");
    let mut opened = leaving.call(&memory, "Endpoint", "Open", &[no_options()]).expect("Open");
    alice.call(PATH, "", "Subscribe", &[]).expect("Subscribe");
    let left = Instant::now();
    drop(leaving);
    let closed = alice.signal("Closed");
    println!("what was bound to the client went {:?} after it", left.elapsed());
    assert!([&goes, &memory].contains(&&closed.field(wire::PATH).to_owned()), "{closed:?}");
    alice.signal("Closed");
    alice.write(&stays, "still here").expect("lifetime=service stays");
    for path in [&goes, &memory] {
        let unknown = error(alice.call(path, "Endpoint", "Inspect", &[]));
        assert_eq!(unknown.name, "org.freedesktop.DBus.Error.UnknownObject", "{unknown}");
    }
    let fd = opened.fds.pop().expect("a descriptor");
    assert_eq!(rustix::fs::fstat(&fd).expect("it lives on").st_size, 64);
}

#[test]
fn a_client_leaves_in_mid_call() {
    let stage = or_skip!(Stage::new());
    let (mut leaving, mut alice) = (stage.alice(), stage.alice());
    let pipe = alice.create("pipe:");
    wait_for_a_byte(&mut leaving, &pipe);
    stage.until("it waits", || alice.usage("waits") == 1);
    drop(leaving);
    stage.until("the wait is over", || alice.usage("waits") == 0);
    alice.write(&pipe, "x").expect("Write");
    assert_eq!(alice.read_text(&pipe).as_deref(), Ok("x"), "nothing was taken for who had left");
}

/// Back-pressure reaches the writer, and everything that was accepted arrives.
#[test]
fn a_relay_whose_reader_does_not_read() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let (source, sink) = (alice.create("pipe:"), alice.create("pipe:"));
    let args = [wire::path(&source), wire::path(&sink), no_options()];
    let relay = object(&alice.call(PATH, "", "Relay", &args).expect("Relay").args());
    let data = "x".repeat(60_000);
    let mut written = 0;
    let refusal = loop {
        match alice.call(&source, "Stream", "WriteText", &[text(&data), Arg::U32(300)]) {
            Ok(reply) => written += number(&reply.args()[0]),
            Err(refusal) => break refusal,
        }
        assert!(written < 4 << 20, "nothing holds the writer back");
    };
    assert!(refusal.is("Timeout"), "{refusal}");
    let mut read = 0;
    while read < written {
        read += alice.read_text(&sink).expect("what was accepted").len() as u64;
    }
    assert_eq!(read, written);
    alice.call(&relay, "Relay", "Stop", &[]).expect("Stop");
}

#[test]
fn a_worker_crashes() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut second, mut bob) = (stage.alice(), stage.alice(), stage.bob());
    let (pipe, bobs) = (alice.create("pipe:"), bob.create("pipe:"));
    let waiting = wait_for_a_byte(&mut alice, &pipe);
    stage.until("it waits", || second.usage("waits") == 1);
    kill(stage.worker_of(ALICE), Signal::KILL);
    let reply = alice.reply_within(waiting, patience()).expect("an answer");
    assert_error(&error(outcome(reply)), "Gone", &[]);
    for raw in [&mut alice, &mut second] {
        let lost = raw.signal("Lost");
        assert_eq!((lost.field(wire::PATH), lost.field(wire::DESTINATION)), (PATH, raw.name.as_str()));
        assert_eq!(lost.field(wire::INTERFACE), "org.example.IPC");
    }
    bob.write(&bobs, "x").expect("bob's is another worker");
    assert!(bob.others().iter().all(|message| !message.is_signal("Lost")), "bob lost nothing");
    alice.create("pipe:");
}

#[test]
fn a_worker_that_crashes_again_and_again() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    for _ in 0..5 {
        // At most two starts a second.
        stage.until("a worker starts", || alice.try_make("Create", "pipe:").is_ok());
        let worker = stage.worker_of(ALICE);
        kill(worker, Signal::KILL);
        alice.signal("Lost");
        // The front hears of its end when its stream is closed, which is a moment before.
        assert!(wait_gone(worker), "it was killed");
    }
    let refusal = alice.refused("Create", "pipe:");
    assert_error(&refusal, "Unavailable", &["worker-crashes", "5"]);
    assert!(stage.workers_of(ALICE).is_empty());
    bob.create("pipe:");
}

#[test]
fn a_worker_is_stuck() {
    let stage = or_skip!(Stage::with_config("[front]\nstuck-after-ms = 1000\n"));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let pipe = alice.create("pipe:");
    let worker = stage.worker_of(ALICE);
    kill(worker, Signal::STOP);
    let pending = alice.send(Raw::message(&pipe, "Endpoint", "Inspect", &[]));
    bob.create("pipe:");
    let reply = alice.reply_within(pending, patience()).expect("an answer");
    assert_error(&error(outcome(reply)), "Timeout", &["stuck-after-ms"]);
    assert!(wait_gone(worker), "it was ended");
    bob.create("pipe:");
    alice.create("pipe:");
}

/// A call that waits for long is no worker that is stuck.
#[test]
fn a_wait_is_not_stuck() {
    let stage = or_skip!(Stage::with_config("[front]\nstuck-after-ms = 300\n"));
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    let args = [Arg::U32(1), Arg::U32(2500)];
    let timed_out = error(alice.call(&pipe, "Stream", "Read", &args));
    assert_error(&timed_out, "Timeout", &["2500"]);
    alice.write(&pipe, "x").expect("the same endpoint is there");
}

/// Without the spawner nothing new starts, and what runs goes on.
#[test]
fn the_spawner_dies() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let pipe = alice.create("pipe:");
    let (front, worker) = (stage.front(), stage.worker_of(ALICE));
    kill(stage.spawner(), Signal::KILL);
    assert!(wait_gone(stage.spawner()));
    alice.write(&pipe, "goes on").expect("the worker runs");
    assert_error(&bob.refused("Create", "pipe:"), "Unavailable", &[]);
    alice.write(&pipe, "goes on").expect("the worker runs");
    // Nobody is left to start a front again: with it, everything ends.
    kill(front, Signal::TERM);
    assert!(wait_gone(front) && wait_gone(worker));
}

#[test]
fn the_front_crashes() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut leaving, mut bob) = (stage.alice(), stage.alice(), stage.bob());
    let pipe = alice.create("pipe:");
    alice.write(&pipe, "kept").expect("Write");
    let bound = leaving.create("pipe:lifetime=client");
    let own = alice.create("pipe:lifetime=client");
    let bobs = bob.create("pipe:");
    let (front, worker) = (stage.front(), stage.worker_of(ALICE));
    let waiting = wait_for_a_byte(&mut alice, &own);
    stage.until("it waits", || bob.ping().is_ok() && leaving.usage("waits") == 1);
    kill(front, Signal::KILL);
    let reply = alice.reply_within(waiting, patience()).expect("the bus answers");
    assert_eq!(error(outcome(reply)).name, "org.freedesktop.DBus.Error.NoReply");
    // While nobody looks.
    drop(leaving);
    stage.until("the front is back", || alice.call(&pipe, "Endpoint", "Inspect", &[]).is_ok());
    assert_ne!(stage.front(), front);
    assert_eq!(stage.worker_of(ALICE), worker, "the worker went on");
    assert_eq!(alice.read_text(&pipe).as_deref(), Ok("kept"));
    alice.call(&own, "Endpoint", "Inspect", &[]).expect("its client is still there");
    stage.until("what was bound to who has left is gone", || {
        alice
            .call(&bound, "Endpoint", "Inspect", &[])
            .is_err_and(|error| error.name.ends_with("UnknownObject"))
    });
    bob.write(&bobs, "x").expect("bob's are there too");
    // Signals go to the same clients as before.
    let delivering = alice.create("pipe:deliver");
    alice.write(&delivering, "event").expect("Write");
    alice.signal("Received");
}

#[test]
fn the_front_crashes_again_and_again() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    for _ in 0..3 {
        kill(stage.front(), Signal::KILL);
        stage.until("the front is back", || alice.call(&pipe, "Endpoint", "Inspect", &[]).is_ok());
    }
}

/// A relay is the worker's, and moves what comes while nobody is on the bus; nothing is lost or said twice.
#[test]
fn a_relay_outlives_the_front() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let (source, sink) = (alice.create("pipe:"), alice.create("pipe:"));
    let args = [wire::path(&source), wire::path(&sink), wire::dict(&[("lifetime", text("service"))])];
    let relay = object(&alice.call(PATH, "", "Relay", &args).expect("Relay").args());
    let mut open = |path: &str, end: &str| {
        let options = wire::dict(&[("end", text(end))]);
        let mut reply = alice.call(path, "Endpoint", "Open", &[options]).expect("Open");
        fs::File::from(reply.fds.pop().expect("a descriptor"))
    };
    let (mut write, mut read) = (open(&source, "write"), open(&sink, "read"));
    let data: Vec<u8> =
        (0..3 << 20).map(|number: u32| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (front, worker) = (stage.front(), stage.worker_of(ALICE));
    let all = data.clone();
    let writer = std::thread::spawn(move || write.write_all(&all).map(|()| write));
    let mut got = vec![0; data.len()];
    let (before, after) = got.split_at_mut(1 << 20);
    read.read_exact(before).expect("what is relayed before");
    kill(front, Signal::KILL);
    // More than both pipes hold: it is moved now.
    read.read_exact(after).expect("what is relayed meanwhile");
    // Open until the end: a writer that goes ends the stream, and the relay with it.
    let write = writer.join().expect("the writer").expect("writing");
    assert!(got == data, "the data is another");
    stage.until("the front is back", || alice.call(&relay, "Relay", "Inspect", &[]).is_ok());
    assert_eq!(stage.worker_of(ALICE), worker);
    let state = alice.call(&relay, "Relay", "Inspect", &[]).expect("Inspect");
    assert!(format!("{:?}", state.args()).contains("running"), "{state:?}");
    drop(write);
}

/// The front's connection is cut, the bus is the same: it comes back and goes on.
#[test]
fn the_bus_connection_is_lost() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:lifetime=client");
    let front = stage.front();
    let pidfd = pidfd_open(Pid::from_raw(front).expect("a pid"), PidfdFlags::empty()).expect("pidfd_open");
    let to_the_bus = (3..64).find_map(|fd| {
        let fd: OwnedFd = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).ok()?;
        let peer = UnixStream::from(fd);
        let at_the_bus = peer.peer_addr().ok()?.as_pathname()?.to_str() == Some(stage.bus.socket());
        at_the_bus.then_some(peer)
    });
    let to_the_bus = to_the_bus.expect("the front is connected to the bus");
    to_the_bus.shutdown(std::net::Shutdown::Both).expect("cutting it");
    drop(to_the_bus);
    assert!(wait_gone(front), "it ends, and is started anew");
    stage.until("the front is back", || alice.call(&pipe, "Endpoint", "Inspect", &[]).is_ok());
}

/// Another bus: every name of the old one is void, and so is what was bound to it.
#[test]
fn the_bus_restarts() {
    let mut stage = or_skip!(Stage::new());
    let mut before = stage.alice();
    let stays = before.create("pipe:");
    let bound = before.create("pipe:lifetime=client");
    let front = stage.front();
    stage.bus.restart();
    assert!(before.is_closed(patience()));
    assert!(wait_gone(front), "a bus that has gone is an end");
    let mut alice = stage.alice();
    stage.until("the service is back", || alice.ping().is_ok());
    let unknown = error(alice.call(&bound, "Endpoint", "Inspect", &[]));
    assert_eq!(unknown.name, "org.freedesktop.DBus.Error.UnknownObject", "{unknown}");
    // Kept or not, the answer is a clear one.
    if let Err(refusal) = alice.call(&stays, "Endpoint", "Inspect", &[]) {
        assert_eq!(refusal.name, "org.freedesktop.DBus.Error.UnknownObject", "{refusal}");
    }
    alice.create("pipe:");
}

#[test]
fn the_service_is_shut_down() {
    let mut stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let path = stage.path("socket");
    let pipe = alice.create("pipe:");
    let socket = alice.create(&format!("unix:path={path}"));
    alice.call(PATH, "", "Subscribe", &[]).expect("Subscribe");
    let bobs = bob.create("pipe:");
    let waiting = wait_for_a_byte(&mut alice, &pipe);
    let mut other = stage.alice();
    stage.until("it waits", || other.usage("waits") == 1);
    let (front, workers) = (stage.front(), stage.workers());
    assert_eq!(workers.len(), 2);
    let status_code = stage.service.terminate();
    assert_eq!(status_code.code(), Some(0), "{}", stage.service.log());
    let reply = alice.reply_within(waiting, patience()).expect("an answer");
    assert_error(&error(outcome(reply)), "Cancelled", &[]);
    for (raw, endpoint) in [(&mut alice, &pipe), (&mut bob, &bobs)] {
        let closed = raw.signal("Closed");
        assert_eq!(closed.args(), [text("shutdown")], "{endpoint}");
    }
    assert!(wait_gone(front) && workers.iter().all(|worker| wait_gone(worker.pid)), "nobody is left");
    assert!(fs::symlink_metadata(&path).is_err(), "{socket} removes its name");
    let owned = alice.driver("NameHasOwner", &[text("org.example.IPC")]).expect("an answer").args();
    assert_eq!(owned, [Arg::Bool(false)]);
}
