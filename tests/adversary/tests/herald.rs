//! The herald: what the kernel tells everybody, told to everybody by a process that is nobody's. It is called by all,
//! and speaks to all; so nobody may speak in its place, and it about nothing else.

use ipc_adversary::wire::{Arg, Outgoing, no_options, text};
use ipc_adversary::{Raw, Stage, Streams, assert_error, error, number, outcome, status};
use ipc_harness::system::{ALICE, BOB, CAROL, IPCD};
use ipc_harness::{NAME, PATH, Signal, or_skip, patience, wait_gone};
use rustix::process::{Pid, kill_process};

const NODE: &str = "/org/example/IPC/netlink";
const NETLINK: &str = "org.example.IPC.Netlink";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const ENDPOINT: &str = "org.example.IPC.Endpoint";

const MANY_STARTS: &str = "[front]\nworker-starts = 16\nworker-crashes = 60\n";

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("root may");
}

trait Listening {
    fn listen(&mut self);
    fn seq(&mut self) -> u64;
    fn restarted_after(&mut self, last: u64) -> u64;
    fn forged(&mut self) -> usize;
}

impl Listening for Raw {
    /// Hears what the service says to everybody.
    fn listen(&mut self) {
        self.driver("AddMatch", &[text(format!("type='signal',sender='{NAME}'"))]).expect("AddMatch");
    }

    /// The number of the last event, which the herald says.
    fn seq(&mut self) -> u64 {
        number(&self.call(NODE, "Netlink", "Links", &[]).expect("Links").args()[0])
    }

    /// Waits until another herald says that it begins anew, with a number of its own; its first number.
    fn restarted_after(&mut self, last: u64) -> u64 {
        loop {
            let args = self.signal("Overflow").args();
            if args[1] == text("restart") && number(&args[0]) > last {
                return number(&args[0]);
            }
        }
    }

    /// What came that the test has put into somebody's mouth.
    fn forged(&mut self) -> usize {
        let others = self.others();
        others.iter().filter(|it| String::from_utf8_lossy(&it.body).contains("forged")).count()
    }
}

fn link(to: Option<&str>, path: &str, interface: &str) -> Outgoing {
    let arguments = [Arg::U64(1), Arg::I32(1), text("forged"), text("up")];
    let mut signal = Outgoing::signal(to, path, interface, "LinkChanged", &arguments);
    signal.serial = 77;
    signal
}

#[test]
fn a_worker_does_not_speak_to_everybody() {
    let stage = or_skip!(Stage::with_config(MANY_STARTS));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    bob.listen();
    let herald = stage.herald();
    alice.create("pipe:");
    let worker = stage.worker_of(ALICE);
    Streams::of(worker).say(&link(None, NODE, NETLINK));
    assert!(wait_gone(worker), "the worker lives");
    alice.signal("Lost");
    bob.seq();
    assert_eq!(bob.forged(), 0);
    assert_eq!(stage.herald(), herald);
}

type Words = fn(&str) -> Outgoing;

#[test]
fn the_herald_speaks_of_netlink_to_everybody_and_of_nothing_else() {
    let stage = or_skip!(Stage::with_config(MANY_STARTS));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let (pipe, mut last) = (alice.create("pipe:"), bob.seq());
    alice.listen();
    bob.listen();
    let lies: &[(&str, Words)] = &[
        ("to bob alone", |bob| link(Some(bob), NODE, NETLINK)),
        ("of another object", |_| link(None, PATH, NETLINK)),
        ("by another interface", |_| link(None, NODE, ENDPOINT)),
        ("of another service", |_| {
            let (path, interface) = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager");
            Outgoing::signal(None, path, interface, "PrepareForSleep", &[text("forged")])
        }),
        ("a reply to bob", |bob| Outgoing::reply(bob, 4_000_000, &[text("forged")])),
        ("a call", |_| Outgoing::call(NAME, PATH, NAME, "Create", &[text("forged"), no_options()])),
        ("its clients", |_| {
            let names = Arg::Array("s".into(), vec![text(":1.1")]);
            Outgoing::signal(None, PATH, "org.example.IPC.Worker", "Clients", &[names])
        }),
        ("too much", |_| {
            Outgoing::signal(None, NODE, NETLINK, "LinkChanged", &[text("forged".repeat(22_500))])
        }),
    ];
    for (what, words) in lies {
        let herald = stage.herald();
        let mut lie = words(&bob.name);
        lie.serial = lie.serial.max(77);
        Streams::of(herald).say(&lie);
        assert!(wait_gone(herald), "{what}: the herald lives");
        // Whose numbers are not those of the one before.
        assert_eq!(bob.restarted_after(last), alice.restarted_after(last), "{what}");
        last = bob.seq();
        assert_eq!(bob.forged() + alice.forged(), 0, "{what}");
    }
    // The others notice nothing, and nothing of theirs is lost.
    alice.write(&pipe, "x").expect("her own worker goes on");
    assert!(alice.signal_within("Lost", std::time::Duration::ZERO).is_none());
}

#[test]
fn a_herald_that_dies_is_replaced_and_so_is_its_front() {
    let stage = or_skip!(Stage::with_config(MANY_STARTS));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    alice.listen();
    bob.listen();
    let mut last = alice.seq();
    for _ in 0..3 {
        let herald = stage.herald();
        signal(herald, Signal::KILL);
        let first = alice.restarted_after(last);
        assert_eq!(bob.restarted_after(last), first);
        last = alice.seq();
        assert_ne!(stage.herald(), herald);
    }
    let (front, herald) = (stage.front(), stage.herald());
    signal(front, Signal::KILL);
    let first = alice.restarted_after(last);
    assert_eq!(bob.restarted_after(last), first);
    assert!(wait_gone(herald), "it ends with its front");
    assert!(alice.seq() >= first);
    assert_ne!(stage.herald(), herald);
}

/// One that stands still is ended, and its callers are told.
#[test]
fn a_herald_that_hangs_is_replaced() {
    let stage = or_skip!(Stage::with_config("[front]\nstuck-after-ms = 300\n"));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    alice.listen();
    let last = alice.seq();
    let herald = stage.herald();
    signal(herald, Signal::STOP);
    let waiting = alice.send(Raw::message(NODE, "Netlink", "Links", &[]));
    bob.create("pipe:");
    let reply = alice.reply_within(waiting, patience()).expect("an answer");
    assert_error(&error(outcome(reply)), "Timeout", &["300"]);
    assert!(wait_gone(herald));
    alice.restarted_after(last);
    bob.seq();
}

/// Everything but that one interface is answered by who is the caller.
#[test]
fn other_calls_on_the_node_are_the_callers_own() {
    let stage = or_skip!(Stage::new());
    let mut bob = stage.bob();
    bob.seq();
    assert!(stage.workers_of(BOB).is_empty(), "the herald answers for everybody");
    let all = bob.call(NODE, PROPERTIES, "GetAll", &[text(NETLINK)]).expect("GetAll").args();
    assert_eq!(all, [Arg::Array("{sv}".into(), vec![])]);
    let worker = stage.worker_of(BOB);
    bob.call(NODE, "Mechanism", "Describe", &[]).expect("Describe");
    // Without an interface the front cannot know whose the call is; the shipped policy lets none through.
    let mut call = Raw::message(NODE, "Netlink", "Links", &[]);
    call.fields.retain(|(code, _)| *code != ipc_adversary::wire::INTERFACE);
    assert_eq!(error(bob.ask(call, &[])).name, "org.freedesktop.DBus.Error.AccessDenied");
    // Nor is there anything else in the herald to be reached.
    for (path, interface, member) in [
        (PATH, "Netlink", "Links"),
        ("/org/example/IPC/pipe", "Netlink", "Links"),
        (NODE, "Netlink", "Create"),
        (NODE, "", "Connect"),
    ] {
        let error = error(bob.call(path, interface, member, &[]));
        assert!(error.name.starts_with("org.freedesktop.DBus.Error."), "{path} {member}: {error}");
    }
    assert_eq!(stage.worker_of(BOB), worker);
}

/// It is of the front's user and has less than that one: no way to signal it, to connect or to write.
#[test]
fn the_herald_has_nothing() {
    let stage = or_skip!(Stage::new());
    stage.alice().seq();
    let herald = stage.herald();
    let is = |key: &str, wanted: &str| assert_eq!(status(herald, key).as_deref(), Some(wanted), "{key}");
    let (uid, gid) = (IPCD.uid, IPCD.gid);
    is("Uid", &format!("{uid}\t{uid}\t{uid}\t{uid}"));
    is("Gid", &format!("{gid}\t{gid}\t{gid}\t{gid}"));
    is("Groups", "");
    is("CapPrm", "0000000000000000");
    is("CapBnd", "0000000000000000");
    is("NoNewPrivs", "1");
    is("Seccomp", "2");
    for path in ipc_adversary::descriptors(herald) {
        let path = path.to_string_lossy().into_owned();
        let fine = ["socket:", "anon_inode:", "/dev/null"].iter().any(|start| path.starts_with(start));
        assert!(fine || path.ends_with("/log"), "it has {path}");
    }
    // Its user's other process is the front, and nobody's who calls.
    let killed = stage.bus.sh_as(&ALICE.into(), &format!("kill -KILL {herald}")).finish();
    assert!(!killed.status.success());
    assert_eq!(stage.herald(), herald);
}

/// Who asks without end takes no place of others.
#[test]
fn a_flood_of_questions_costs_only_its_sender() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    alice.seq();
    let mut carols: Vec<_> = (0..8).map(|_| stage.raw(CAROL)).collect();
    for carol in &mut carols {
        carol.ping().expect("an answer");
    }
    for _ in 0..20 {
        for carol in &mut carols {
            for _ in 0..10 {
                carol.send(Raw::message(NODE, "Netlink", "Sockets", &[no_options()]));
            }
        }
        alice.seq();
    }
}
