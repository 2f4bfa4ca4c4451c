//! The fault matrix, what runs out and what runs full: disks, descriptors, queues, and readers that do not read.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipc_adversary::wire::{self, Arg, bytes, no_options};
use ipc_adversary::{Raw, Stage, assert_error, descriptors, error, number, object};
use ipc_harness::system::{ALICE, CAROL, IPCD, ROOT};
use ipc_harness::{PATH, Process, Signal, or_skip, skip, unique};
use rustix::process::{Pid, kill_process};

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("root may");
}

#[test]
fn the_disk_is_full() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let directory = stage.directory((ALICE, ALICE.gid), 0o755, "small");
    let options = format!("size=64k,mode=755,uid={},gid={}", ALICE.uid, ALICE.gid);
    let mut mount = stage.bus.command_as(&ROOT.into(), "mount");
    Process::spawn(mount.args(["-t", "tmpfs", "-o", &options, "small", &directory])).finish().success();
    let refusal = alice.refused("Create", &format!("mmap:path={directory}/large,size=1M"));
    assert_error(&refusal, "LimitExceeded", &["ENOSPC", "file system is full"]);
    let sparse = "truncate -s 1M '%/sparse'; ls '%'".replace('%', &directory);
    let there = stage.bus.sh_as(&ALICE.into(), &sparse).finish().success();
    assert_eq!(there, "sparse\n", "what was refused leaves nothing");
    let file = alice.attach(&format!("mmap:path={directory}/sparse"));
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
    stage.limit(ALICE, worker, &format!("--nofile={}", descriptors(worker).len() + 12));
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
    stage.limit(IPCD, front, &format!("--nofile={}", descriptors(front).len() + 512));
    kill(worker, Signal::STOP);
    let file = fs::File::open("/dev/null").expect("a file");
    let adopt = Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(2).no_reply();
    for _ in 0..500 {
        alice.try_send(adopt.clone(), &[file.as_fd(), file.as_fd()]).expect("the bus takes it");
    }
    let mut bob = stage.bob();
    // While there is no room for his process's descriptor he may be refused, but he is answered.
    let refused = ["LimitExceeded", "Unavailable"];
    if let Err(error) = bob.ping() {
        assert!(refused.iter().any(|name| error.is(name)), "{error}");
    }
    kill(worker, Signal::CONT);
    stage.until("she is served again", || alice.try_make("Create", "pipe:").is_ok());
    stage.until("so is he", || bob.ping().is_ok());
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
    let datagrams = format!("unix:abstract={},type=dgram", unique("queue"));
    let queue = format!("posixmq:name=/{}", unique("queue"));
    for (made, attached) in [(&datagrams, &datagrams), (&format!("{queue},remove-on-close"), &queue)] {
        let receiver = alice.create(made);
        let sender = alice.attach(attached);
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
        let nothing = alice.call(&receiver, "Messages", "Receive", &[no_options(), Arg::U32(0)]);
        assert!(error(nothing).is("Busy"));
        alice.close(&receiver);
    }
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
    // So many signals are more than the client has read, so some of them are dropped; what is kept has the last ones.
    let later = format!("{directory}/later");
    stage.until("what comes later is told as before", || {
        let since = alice.call(&watch, "Watch", "Since", &[Arg::U64(0)]).expect("Since");
        format!("{:?}", since.args()).contains(&later)
    });
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
