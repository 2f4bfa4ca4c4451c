//! D. Exhaustion, the quotas: what one user may have at once, of what the kernel counts and of what the service counts.
//! Each is taken until it is refused, given back, and taken again.

use std::os::fd::AsFd;

use ipc_adversary::wire::{self, Arg, dict, no_options};
use ipc_adversary::{Raw, Stage, assert_limit, descriptors, error, object, resident};
use ipc_harness::system::{ALICE, CAROL, ROOT};
use ipc_harness::{CallError, PATH, or_skip, unique};

/// Takes until it is refused; the refusal names the limit. Gives one back, and may take one again.
fn quota(
    key: &str,
    value: u32,
    mut take: impl FnMut(&mut Raw) -> Result<String, CallError>,
    give: fn(&mut Raw, &str),
) {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let mut taken = Vec::new();
    let refusal = loop {
        match take(&mut alice) {
            Ok(one) => taken.push(one),
            Err(refusal) => break refusal,
        }
        assert!(taken.len() <= value as usize, "{key}: more than {value}");
    };
    assert_limit(&refusal, key, value);
    assert_eq!(alice.usage(key), u64::from(value));
    give(&mut alice, &taken.pop().expect("something was taken"));
    stage.until("it can be taken again", || take(&mut alice).is_ok());
    assert_limit(&error(take(&mut alice)), key, value);
    // It is a quota of hers.
    bob.create("pipe:");
}

#[test]
fn d6_endpoints() {
    quota("endpoints", 256, |raw| raw.try_make("Create", "pipe:"), |raw, one| raw.close(one));
}

#[test]
fn d6_watches() {
    let config = "[limits]\nendpoints = 2000\n";
    let stage = or_skip!(Stage::with_config(config));
    let mut alice = stage.alice();
    let watch = "inotify:path=/tmp,events=delete-self";
    let mut taken = Vec::new();
    let refusal = loop {
        match alice.try_make("Create", watch) {
            Ok(one) => taken.push(one),
            Err(refusal) => break refusal,
        }
    };
    assert_limit(&refusal, "watches", 1024);
    alice.close(&taken[0]);
    alice.create(watch);
}

#[test]
fn d6_private_connections() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let mut taken = Vec::new();
    let refusal = loop {
        match alice.call(PATH, "", "Connect", &[]) {
            Ok(mut reply) => taken.push(reply.fds.pop().expect("a descriptor")),
            Err(refusal) => break refusal,
        }
    };
    assert_limit(&refusal, "connections", 16);
    assert_eq!(taken.len(), 16);
    taken.pop();
    stage.until("one is free again", || alice.call(PATH, "", "Connect", &[]).is_ok());
}

#[test]
fn d6_relays() {
    let make = |raw: &mut Raw| {
        let (source, sink) = (raw.create("pipe:"), raw.create("pipe:"));
        let args = [wire::path(&source), wire::path(&sink), no_options()];
        let made = raw.call(PATH, "", "Relay", &args).map(|reply| object(&reply.args()));
        if made.is_err() {
            raw.close(&source);
            raw.close(&sink);
        }
        made
    };
    quota("relays", 64, make, |raw, relay| {
        raw.call(relay, "Relay", "Stop", &[]).expect("Stop");
    });
}

#[test]
fn d6_subscriptions() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipes: Vec<String> = (0..129).map(|_| alice.create("pipe:")).collect();
    for pipe in &pipes[..128] {
        alice.call(pipe, "Endpoint", "Subscribe", &[]).expect("Subscribe");
    }
    assert_limit(&error(alice.call(&pipes[128], "Endpoint", "Subscribe", &[])), "subscriptions", 128);
    alice.call(&pipes[0], "Endpoint", "Unsubscribe", &[]).expect("Unsubscribe");
    alice.call(&pipes[128], "Endpoint", "Subscribe", &[]).expect("accepted again");
}

/// Descriptors in flight through sockets that nobody reads: the kernel counts them for the user, and so his alone
/// is the error.
#[test]
fn d8_descriptors_in_flight() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    alice.create("pipe:");
    let worker = stage.worker_of(ALICE);
    stage.limit(ALICE, worker, "--nofile=200");
    let file = std::fs::File::open("/dev/null").expect("a file");
    let send = |raw: &mut Raw, socket: &str| {
        let fds = dict(&[("fds", Arg::Array("h".into(), vec![Arg::Fd(0), Arg::Fd(1)]))]);
        let args = [wire::bytes(b"x"), fds, Arg::U32(0)];
        raw.ask(Raw::message(socket, "Messages", "Send", &args).with_fds(2), &[file.as_fd(), file.as_fd()])
    };
    let refusal = (0..20).find_map(|_| {
        let pair = alice.create("unix:pair,type=seqpacket");
        (0..64).find_map(|_| send(&mut alice, &pair).err()).filter(|refusal| !refusal.is("Busy"))
    });
    if let Some(refusal) = refusal {
        assert!(refusal.is("LimitExceeded"), "{refusal}");
    }
    let pair = bob.create("unix:pair,type=seqpacket");
    send(&mut bob, &pair).expect("bob's are his own");
    alice.ping().expect("an answer");
}

/// With no process left for the user there is an error, and no crash loop.
#[test]
fn d9_no_processes_left() {
    let stage = or_skip!(Stage::new());
    // The kernel counts threads.
    let threads = "import sys,threading\nend=threading.Event()\n\
        for _ in range(150): threading.Thread(target=end.wait).start()\nprint('up')\nsys.stdin.read()\nend.set()";
    let sleepers = stage.bus.python_as(&CAROL.into(), threads, &[]);
    sleepers.wait_for(|line| line == "up");
    let mut carol = stage.raw(CAROL);
    stage.limit(ROOT, stage.spawner(), "--nproc=150");
    match carol.try_make("Create", "pipe:") {
        Ok(_) => {}
        Err(refusal) => assert!(refusal.is("LimitExceeded") || refusal.is("Unavailable"), "{refusal}"),
    }
    assert!(stage.workers_of(CAROL).len() <= 1);
    stage.bob().create("pipe:");
}

/// What the kernel counts of a user's message queues, whoever of his processes made them.
#[test]
fn d9_no_memory_left_for_message_queues() {
    let stage = or_skip!(Stage::new());
    let (mut carol, mut bob) = (stage.raw(CAROL), stage.bob());
    let mark = unique("queues");
    let mut next = 0;
    let mut make = |raw: &mut Raw| {
        next += 1;
        raw.try_make("Create", &format!("posixmq:name=/{mark}-{next},remove-on-close"))
    };
    let mut made = Vec::new();
    let refusal = loop {
        match make(&mut carol) {
            Ok(queue) => made.push(queue),
            Err(refusal) => break refusal,
        }
        assert!(made.len() <= 256, "the kernel does not count them");
    };
    assert!(refusal.is("LimitExceeded") && refusal.text.contains("RLIMIT_MSGQUEUE"), "{refusal}");
    carol.close(&made.pop().expect("something was made"));
    stage.until("she may have one again", || make(&mut carol).is_ok());
    assert!(error(make(&mut carol)).is("LimitExceeded"));
    assert!(make(&mut bob).is_ok(), "it is a limit of hers");
    // They would go with the service in any case; the names would not.
    let endpoints = carol.usage("endpoints");
    assert_eq!(endpoints as usize, made.len() + 1);
    made.iter().for_each(|queue| carol.close(queue));
}

/// What is refused is not written down call by call.
#[test]
fn d10_the_log_does_not_grow_with_calls() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    let before = stage.service.log().len();
    for _ in 0..200 {
        alice.refused("Create", "nonsense:");
        alice.refused("Attach", "fifo:path=/etc/shadow");
    }
    let nonsense = Raw::message("/nowhere", "", "Create", &[Arg::U32(7)]).no_reply();
    for _ in 0..5000 {
        alice.send(nonsense.clone());
    }
    stage.until("she is served again", || alice.ping().is_ok());
    let grown = stage.service.log().len() - before;
    assert!(grown < 16 * 1024, "{grown} bytes of log:\n{}", stage.service.log());
    // Nor did the errors that nobody asked for cost her anything.
    alice.close(&pipe);
}

#[test]
fn d13_nothing_is_left_after_a_thousand_cycles() {
    let stage = or_skip!(Stage::new());
    let mut steady = stage.alice();
    steady.create("pipe:");
    let (front, worker) = (stage.front(), stage.worker_of(ALICE));
    let cycle = |count: u32| {
        for _ in 0..count {
            let mut passing = stage.alice();
            for address in
                ["pipe:lifetime=client", "unix:pair,lifetime=client", "mmap:size=4096,lifetime=client"]
            {
                passing.create(address);
            }
        }
    };
    cycle(50);
    let mut watching = stage.alice();
    stage.until("what was theirs has gone", || watching.usage("endpoints") == 1);
    let count = |pid: i32| descriptors(pid).len();
    let before = (count(front), count(worker), resident(front), resident(worker));
    cycle(1000);
    stage.until("what was theirs has gone", || watching.usage("endpoints") == 1);
    stage.until("their descriptors are closed", || {
        count(front) <= before.0 + 2 && count(worker) <= before.1 + 2
    });
    let after = (count(front), count(worker), resident(front), resident(worker));
    println!("descriptors and KiB of front and worker: before {before:?}, after {after:?}");
    assert!(after.2 < before.2 + 8 * 1024 && after.3 < before.3 + 8 * 1024, "{before:?} {after:?}");
    assert_eq!(stage.worker_of(ALICE), worker);
}
