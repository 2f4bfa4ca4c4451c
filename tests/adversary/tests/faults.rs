//! The fault matrix: whatever fails, the caller gets one named error, nobody else notices, and what was acknowledged is
//! still there or is announced as gone.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use ipc_adversary::wire::{self, Arg, bytes, no_options, text};
use ipc_adversary::{Raw, Stage, assert_error, descriptors, error, number, object, outcome};
use ipc_harness::system::{ALICE, CAROL, ROOT};
use ipc_harness::{PATH, Process, Signal, or_skip, patience, skip, unique, wait_gone};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, kill_process, pidfd_getfd, pidfd_open};

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("root may");
}

fn limit_files(pid: i32, count: usize) {
    let words = [format!("--nofile={count}"), "--pid".into(), pid.to_string()];
    Process::spawn(Command::new("prlimit").args(words)).finish().success();
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
fn the_disk_is_full() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let directory = stage.directory((ALICE, ALICE.gid), 0o755, "small");
    let options = format!("size=64k,mode=755,uid={},gid={}", ALICE.uid, ALICE.gid);
    let mut mount = stage.bus.command_as(&ROOT.into(), "mount");
    Process::spawn(mount.args(["-t", "tmpfs", "-o", &options, "small", &directory])).finish().success();
    let file = alice.create(&format!("mmap:path={directory}/file,size=1M"));
    let write = |alice: &mut Raw, offset: u64| {
        alice.call(&file, "Memory", "Write", &[Arg::U64(offset), bytes(&[7; 32 * 1024])])
    };
    let refusal = (0..8).find_map(|n| write(&mut alice, n * 32 * 1024).err()).expect("it is full");
    assert_error(&refusal, "LimitExceeded", &["ENOSPC", "file system is full"]);
    write(&mut alice, 0).expect("what is there can be written over");
    // A word in a page that there is no room for.
    let store = [Arg::U64(900 * 1024), wire::variant(Arg::U32(1))];
    error(alice.call(&file, "Memory", "Store", &store));
    alice.ping().expect("an answer");
}

#[test]
fn a_worker_without_descriptors() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let first = alice.create("pipe:");
    let worker = stage.worker_of(ALICE);
    limit_files(worker, descriptors(worker).len() + 12);
    let mut made = Vec::new();
    let refusal = loop {
        match alice.try_make("Create", "pipe:") {
            Ok(pipe) => made.push(pipe),
            Err(refusal) => break refusal,
        }
        assert!(made.len() < 20);
    };
    assert_error(&refusal, "LimitExceeded", &["EMFILE", "RLIMIT_NOFILE"]);
    alice.write(&first, "x").expect("what there is goes on");
    for pipe in &made {
        alice.close(pipe);
    }
    alice.create("pipe:");
    stage.bob().create("pipe:");
}

/// The front has room for what the limits allow, and the rest never gets to it.
#[test]
fn a_front_with_few_descriptors() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let owner = alice.owner();
    alice.create("pipe:");
    let (front, worker) = (stage.front(), stage.worker_of(ALICE));
    limit_files(front, descriptors(front).len() + 128);
    kill(worker, Signal::STOP);
    let file = fs::File::open("/dev/null").expect("a file");
    let adopt = Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(2).no_reply();
    for _ in 0..500 {
        alice.try_send(adopt.clone(), &[file.as_fd(), file.as_fd()]).expect("the bus takes it");
    }
    let mut bob = stage.bob();
    bob.ping().expect("an answer");
    kill(worker, Signal::CONT);
    stage.until("she is served again", || alice.try_make("Create", "pipe:").is_ok());
    assert_eq!((alice.owner(), stage.front()), (owner, front), "the service stayed on the bus");
}

const INSTANCES: &str = "import ctypes,sys\nlibc=ctypes.CDLL(None,use_errno=True)\nimport resource\n\
    hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1]\nresource.setrlimit(resource.RLIMIT_NOFILE,(hard,hard))\n\
    n=0\n\
    while libc.inotify_init()>=0: n+=1\nprint(n,ctypes.get_errno())\nsys.stdin.read()";

/// What the kernel counts for the user's own programs too.
#[test]
fn no_inotify_instances_left() {
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").expect("a sysctl");
    if most.trim().parse::<u32>().expect("a number") > 4096 {
        skip!("fs.inotify.max_user_instances is {}: too many to use up", most.trim());
    }
    let stage = or_skip!(Stage::new());
    let mut carol = stage.raw(CAROL);
    let program = stage.bus.python_as(&CAROL.into(), INSTANCES, &[]);
    let said = program.wait_for(|line| line.contains(' '));
    assert!(said.ends_with(" 24"), "{said}: EMFILE is expected");
    let refusal = carol.refused("Create", "inotify:path=/tmp");
    assert_error(&refusal, "LimitExceeded", &["fs.inotify.max_user_instances"]);
    program.finish().success();
    carol.create("inotify:path=/tmp");
}

#[test]
fn waiting_and_not_waiting() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    let mut read = |timeout| error(alice.call(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(timeout)]));
    assert_error(&read(0), "Busy", &["timeout_ms"]);
    assert_error(&read(50), "Timeout", &["50 ms"]);
    assert_error(&read(300_001), "InvalidArgument", &["max-wait-ms"]);
}

#[test]
fn a_peer_has_gone() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let adopt = Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(1);
    let endpoint = object(&alice.ask(adopt, &[theirs.as_fd()]).expect("Adopt").args());
    drop(theirs);
    (&ours).write_all(b"last words").expect("writing");
    drop(ours);
    assert_error(&error(alice.write(&endpoint, "x")), "Closed", &["EPIPE"]);
    assert_eq!(alice.read_text(&endpoint).as_deref(), Ok("last words"));
}

/// A full queue: Busy or a wait with a deadline, and everything that was accepted arrives.
#[test]
fn a_queue_is_full() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let name = unique("queue");
    let receiver = alice.create(&format!("unix:abstract={name},type=dgram"));
    let sender = alice.attach(&format!("unix:abstract={name},type=dgram"));
    let send = |alice: &mut Raw, timeout| {
        alice.call(&sender, "Messages", "Send", &[bytes(b"message"), no_options(), Arg::U32(timeout)])
    };
    let mut sent = 0;
    let refusal = loop {
        match send(&mut alice, 0) {
            Ok(_) => sent += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(refusal.is("Busy") && sent > 0, "{refusal}");
    assert!(error(send(&mut alice, 50)).is("Timeout"));
    for _ in 0..sent {
        let args = [no_options(), Arg::U32(0)];
        alice.call(&receiver, "Messages", "Receive", &args).expect("what was accepted");
    }
    assert!(error(alice.call(&receiver, "Messages", "Receive", &[no_options(), Arg::U32(0)])).is("Busy"));
}

#[test]
fn the_client_of_a_semaphores_waiter_leaves() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let semaphore = alice.create(&format!("posixsem:name=/{},value=0,remove-on-close", unique("faults")));
    for round in 1..=20 {
        let mut leaving = stage.alice();
        leaving.send(Raw::message(&semaphore, "Semaphore", "Wait", &[Arg::U32(20_000)]));
        leaving.send(Raw::message(&semaphore, "Semaphore", "Acquire", &[Arg::U32(20_000), no_options()]));
        stage.until("they wait", || alice.usage("waits") == 2);
        drop(leaving);
        if round % 2 == 0 {
            stage.until("the waits are over", || alice.usage("waits") == 0);
        }
        alice.call(&semaphore, "Semaphore", "Post", &[Arg::U32(1)]).expect("Post");
        stage.until("the waits are over", || alice.usage("waits") == 0 && alice.usage("leases") == 0);
        // Whether the take or the leaving came first: nothing is lost.
        let take = alice.call(&semaphore, "Semaphore", "Wait", &[Arg::U32(0)]);
        match take {
            Ok(_) => {}
            // A Wait that was answered before its client left did take it.
            Err(refusal) if round % 2 == 1 => assert!(refusal.is("Busy"), "{refusal}"),
            Err(refusal) => panic!("round {round}: {refusal}"),
        }
    }
}

#[test]
fn events_overflow() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let directory = stage.directory((ALICE, ALICE.gid), 0o755, "watched");
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a sysctl");
    let most: usize = most.trim().parse().expect("a number");
    let watch = alice.create(&format!("inotify:path={directory},events=create+delete"));
    let worker = stage.worker_of(ALICE);
    kill(worker, Signal::STOP);
    for n in 0..most / 2 + 100 {
        let file = format!("{directory}/{}", n % 100);
        fs::write(&file, "").expect("a file");
        fs::remove_file(&file).expect("removing it");
    }
    fs::write(format!("{directory}/after"), "").expect("a file");
    kill(worker, Signal::CONT);
    let overflow = alice.signal("Overflow");
    assert_eq!(overflow.field(wire::PATH), watch);
    fs::write(format!("{directory}/later"), "").expect("a file");
    // The rescan tells what is there, and what comes later is told as before.
    for name in ["after", "later"] {
        let path = format!("{directory}/{name}");
        while format!("{:?}", alice.signal("Changed").args()).find(&path).is_none() {}
    }
}

/// What a client did not read shows as a gap in the numbers, and Since() says how many are lost for good.
#[test]
fn a_client_does_not_read_its_signals() {
    let stage = or_skip!(Stage::new());
    let (mut deaf, mut writer) = (stage.alice(), stage.alice());
    let pipe = deaf.create("pipe:deliver");
    let events = 200u64;
    for _ in 0..events {
        writer.write(&pipe, &"x".repeat(16_000)).expect("Write");
    }
    let since = writer.call(&pipe, "Stream", "Since", &[Arg::U64(0)]).expect("Since").args();
    let [Arg::Array(_, kept), lost] = &since[..] else { panic!("{since:?}") };
    let newest = kept.iter().filter_map(|event| match event {
        Arg::Struct(fields) => Some(number(&fields[0])),
        _ => None,
    });
    assert_eq!(newest.max().expect("some are kept"), number(lost) + kept.len() as u64);
    let mut last = 0;
    while let Some(received) = deaf.signal_within("Received", Duration::from_secs(1)) {
        let sequence = number(&received.args()[0]);
        assert!(sequence > last);
        last = sequence;
    }
    assert!(last > 0, "something was delivered");
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
