//! C5. A descriptor whose close(2) never returns: it stops whoever closes it, and nobody whom its sender could not
//! have stopped anyway.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use ipc_adversary::wire::{Arg, Outgoing, bytes, dict, no_options, text};
use ipc_adversary::{Credentials, DeadFile, FakeBus, Raw, Stage, alone, assert_error, error, object, status};
use ipc_harness::system::{ALICE, BOB, User};
use ipc_harness::{CallError, PATH, SystemBus, or_skip, patience, wait_gone};

/// Alice's workers hang one after the other, which is not what is counted here.
const CONFIG: &str = "[front]\nstuck-after-ms = 500\nworker-starts = 16\nworker-crashes = 60\n";

/// What brings the descriptor: to a method that takes one, in an attribute, and to one that takes none.
fn bringing(socket: &str) -> [(&'static str, Outgoing); 3] {
    let fds = Arg::Array("h".into(), vec![Arg::Fd(0)]);
    [
        ("Adopt", Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()])),
        (
            "Send",
            Raw::message(socket, "Messages", "Send", &[bytes(b"x"), dict(&[("fds", fds)]), Arg::U32(1000)]),
        ),
        ("Ping", ping()),
    ]
    .map(|(what, message)| (what, message.with_fds(1)))
}

/// A method that takes no descriptor.
fn ping() -> Outgoing {
    Raw::message(PATH, "org.freedesktop.DBus.Peer", "Ping", &[])
}

/// A private connection, which alice's worker serves without a bus in between.
fn private(alice: &mut Raw) -> Raw {
    let mut reply = alice.call(PATH, "", "Connect", &[]).expect("Connect");
    let socket = UnixStream::from(reply.fds.pop().expect("a socket"));
    socket.set_nonblocking(false).expect("a socket");
    Raw::authenticated(socket, ALICE.uid).expect("a private connection")
}

/// The process that a thread belongs to.
fn process_of(thread: i32) -> i32 {
    status(thread, "Tgid").and_then(|pid| pid.parse().ok()).unwrap_or(0)
}

#[test]
fn c5_through_a_private_connection() {
    let _alone = alone();
    let stage = or_skip!(Stage::with_config(CONFIG));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    bob.ping().expect("an answer");
    let bobs = stage.worker_of(BOB);
    for round in 0..3 {
        let socket = alice.create("unix:pair=true,type=dgram");
        let mut private = private(&mut alice);
        let worker = stage.worker_of(ALICE);
        let dead = or_skip!(DeadFile::open(&stage.bus, &mount(&stage, round)));
        let (what, message) = &bringing(&socket)[round];
        private.try_send(message.clone(), &[dead.file.as_fd()]).expect("sent");
        // Nobody else has had it in his hands.
        dead.hangs(|thread| process_of(thread) == worker);
        bob.ping().unwrap_or_else(|error| panic!("{what}: bob is disturbed: {error}"));
        // She is told, and the next of her calls starts another worker.
        let timeout = error(alice.ping());
        assert!(timeout.is("Timeout") || timeout.is("Gone"), "{what}: {timeout}");
        stage.until("she is served again", || alice.ping().is_ok());
        assert!(stage.workers_of(ALICE).iter().any(|other| *other != worker), "{what}");
        // Killed it is, but it cannot end before the file does.
        assert!(status(worker, "State").is_some_and(|state| !state.starts_with('Z')), "{what}: it has ended");
        bob.ping().unwrap_or_else(|error| panic!("{what}: bob is disturbed: {error}"));
        drop(dead);
        assert!(wait_gone(worker), "{what}: the worker does not end");
    }
    assert_eq!(stage.workers_of(BOB), [bobs]);
}

/// An empty directory for a mount.
fn mount(stage: &Stage, round: usize) -> String {
    let at = stage.path(&format!("mount-{round}"));
    std::fs::create_dir(&at).expect("an own directory");
    at
}

fn credentials(bus: &SystemBus, user: User) -> Credentials {
    Credentials::Are(dict(&[
        ("UnixUserID", Arg::U32(user.uid)),
        ("UnixGroupIDs", Arg::Array("u".into(), vec![Arg::U32(user.gid)])),
        ("ProcessID", Arg::U32(bus.connector_pid(&user.into()).cast_unsigned())),
    ]))
}

/// From a bus that passes it on: the front has it in its hands, and so has the worker.
#[test]
fn c5_through_a_bus() {
    let _alone = alone();
    let bus = or_skip!(SystemBus::dbus_daemon());
    let fake = FakeBus::start();
    let service = bus.launch_at(fake.address()).config(CONFIG).start();
    let ask = |sender: &str, call: Outgoing, fds: &[BorrowedFd<'_>]| {
        let serial = fake.send(sender, call, fds);
        fake.answer(sender, serial, patience()).unwrap_or_else(|| panic!("no answer; {}", service.log()))
    };
    fake.set_credentials(credentials(&bus, BOB));
    ask(":1.20", ping(), &[]).expect("bob is served");
    fake.set_credentials(credentials(&bus, ALICE));
    let made = ask(
        ":1.10",
        Raw::message(PATH, "", "Create", &[text("unix:pair=true,type=dgram"), no_options()]),
        &[],
    );
    let socket = object(&made.expect("alice is served").args());
    let dir = bus.dir_of(ALICE);
    let at = dir.path().to_str().expect("text").to_owned();
    let dead = or_skip!(DeadFile::open(&bus, &at));
    let [adopt, send, ping_with] = bringing(&socket);
    let serial = fake.send(":1.10", adopt.1, &[dead.file.as_fd()]);
    // The worker closes it, and so does a thread of the front that has nothing else to do.
    let worker =
        process_of(dead.hangs(|thread| status(thread, "Name").is_some_and(|name| name == "ipcd-worker")));
    let closing = dead.hangs(|thread| process_of(thread) != worker);
    let front = process_of(closing);
    assert_eq!(
        (status(closing, "Name").as_deref(), status(front, "Name").as_deref()),
        (Some("close"), Some("ipcd-front"))
    );
    ask(":1.20", ping(), &[]).expect("bob is served");
    let refusal = error(fake.answer(":1.10", serial, patience()).expect("an answer"));
    assert!(refusal.is("Timeout") || refusal.is("Gone"), "{refusal}");
    // When it has hung for a while none of her descriptors is taken any more, while another user's are.
    let memory = rustix::fs::memfd_create("c5", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let started = Instant::now();
    let hangs = |error: CallError| error.text.contains("closing");
    while !ask(":1.10", ping().with_fds(1), &[memory.as_fd()]).is_err_and(hangs) {
        assert!(started.elapsed() < patience(), "descriptors are still taken; {}", service.log());
    }
    for (what, call) in [send, ping_with] {
        let refusal = error(ask(":1.10", call, &[dead.file.as_fd()]));
        assert_error(&refusal, "LimitExceeded", &["fds-per-user", "closing", "hangs"]);
        ask(":1.20", ping(), &[]).unwrap_or_else(|error| panic!("{what}: bob is disturbed: {error}"));
    }
    let adopt = Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(1);
    ask(":1.20", adopt, &[memory.as_fd()]).expect("bob's are taken");
    drop(dead);
    assert!(wait_gone(worker), "the worker does not end");
}

/// dbus-daemon closes what it has passed on, and stands still: nothing of the service's can help that. When the file
/// system has gone, all is as before.
#[test]
fn c5_stops_a_bus_that_closes_it() {
    let _alone = alone();
    let stage = or_skip!(Stage::with_config(CONFIG));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let socket = alice.create("unix:pair=true,type=dgram");
    bob.ping().expect("an answer");
    let owner = bob.owner();
    let dead = or_skip!(DeadFile::open(&stage.bus, &mount(&stage, 0)));
    let [adopt, ..] = bringing(&socket);
    alice.try_send(adopt.1, &[dead.file.as_fd()]).expect("sent");
    dead.hangs(|thread| process_of(thread) == stage.bus.pid());
    drop(dead);
    bob.ping().expect("an answer");
    assert_eq!(bob.owner(), owner, "the front was started anew");
    stage.until("alice is served", || alice.ping().is_ok());
}
