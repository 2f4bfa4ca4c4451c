//! Where three programs read the same bytes and need not agree: what a bus lets through and the front's library
//! refuses would end the front's connection, and what the front lets through and the bus refuses ends it too. So a
//! user could stop the service for all with one odd message, from either side.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use ipc_adversary::wire::{self, Arg, Outgoing, no_options, path, text};
use ipc_adversary::{DRIVER, DRIVER_PATH, Raw, Stage, Streams, outcome};
use ipc_harness::system::{ALICE, BOB};
use ipc_harness::{Bus, Kind, PATH, Service, SystemBus, or_skip, patience, wait_gone};

/// Messages that a bus may take and pass on, and that hardly anybody sends.
fn odd() -> Vec<(&'static str, Vec<u8>)> {
    let call = || Raw::message(PATH, "", "Create", &[text("pipe:"), no_options()]);
    let encoded = |message: Outgoing| Outgoing { serial: 7, ..message }.encode();
    let with_kind = |kind: u8| encoded(Outgoing { kind, ..call() });
    let nested = |depth: usize| {
        let innermost = (Arg::Byte(1), "y".to_owned());
        let value = (0..depth).fold(innermost, |(value, signature), _| {
            (Arg::Array(signature.clone(), vec![value]), format!("a{signature}"))
        });
        encoded(call().with_body(&[value.0]))
    };
    let variants = (0..62).fold(Arg::Byte(1), |value, _| wire::variant(value));
    vec![
        ("a field that is not known", encoded(call().with(100, text("x")))),
        ("the last field there is", encoded(call().with(255, Arg::U32(0)))),
        ("an unknown field of an odd type", encoded(call().with(77, no_options()))),
        ("a type that is not known", with_kind(77)),
        ("the last type there is", with_kind(255)),
        ("flags that are not known", encoded(Outgoing { flags: 0xf0, ..call() })),
        ("a forged sender", encoded(call().with(wire::SENDER, text("org.freedesktop.DBus")))),
        ("an error's name", encoded(call().with(wire::ERROR_NAME, text("a.b")))),
        ("a reply's serial", encoded(call().with(wire::REPLY_SERIAL, Arg::U32(2)))),
        ("a reply's serial of 0", encoded(call().with(wire::REPLY_SERIAL, Arg::U32(0)))),
        ("no descriptors", encoded(call().with_fds(0))),
        (
            "an empty signature",
            encoded(call().without(wire::SIGNATURE).with(wire::SIGNATURE, Arg::Sig("".into()))),
        ),
        ("32 arrays", nested(32)),
        ("62 variants", encoded(call().with_body(&[variants]))),
        ("a signature of 255 bytes", {
            let bytes = vec![Arg::Byte(0); 255];
            encoded(call().with_body(&bytes))
        }),
        (
            "a name with a noncharacter",
            encoded(call().with_body(&[text("pipe:\u{ffff}\u{10ffff}"), no_options()])),
        ),
        ("the last serial", Outgoing { serial: u32::MAX, ..call() }.encode()),
        ("big-endian", big_endian()),
    ]
}

/// `Ping` in network byte order.
fn big_endian() -> Vec<u8> {
    let mut message = vec![b'B', wire::CALL, 0, 1];
    message.extend([0, 0, 0, 0, 0, 0, 0, 7]);
    let mut fields = Vec::new();
    for (code, kind, value) in [
        (wire::PATH, b'o', PATH),
        (wire::INTERFACE, b's', "org.freedesktop.DBus.Peer"),
        (wire::MEMBER, b's', "Ping"),
        (wire::DESTINATION, b's', ipc_harness::NAME),
    ] {
        fields.resize(fields.len().next_multiple_of(8), 0);
        fields.extend([code, 1, kind, 0]);
        fields.extend((value.len() as u32).to_be_bytes());
        fields.extend(value.bytes().chain([0]));
    }
    message.extend((fields.len() as u32).to_be_bytes());
    message.extend(fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message
}

/// Numbers that look random and are the same in every run (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// The same messages with a byte or two changed in their headers.
fn changed(count: usize) -> Vec<Vec<u8>> {
    let odd = odd();
    let mut numbers = Numbers(1);
    let mut change = || {
        let mut bytes = odd[numbers.below(odd.len())].1.clone();
        for _ in 0..1 + numbers.below(2) {
            let at = numbers.below(bytes.len().min(200));
            bytes[at] = if numbers.below(2) == 0 {
                numbers.below(256) as u8
            } else {
                bytes[at] ^ 1 << numbers.below(8)
            };
        }
        bytes
    };
    (0..count).map(|_| change()).collect()
}

/// Whether the message has as many bytes as it says, at least.
fn is_whole(bytes: &[u8]) -> bool {
    let big = bytes[0] == b'B';
    let number = |at: usize| {
        let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let number = if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        number as usize
    };
    (16 + number(12)).next_multiple_of(8) + number(4) <= bytes.len()
}

/// Alice, again when the bus has thrown her out.
fn alice(bus: &SystemBus) -> Raw {
    Raw::new(bus.socket_of(&ALICE.into()), ALICE.uid)
}

#[test]
fn what_a_bus_lets_through_does_not_end_the_front() {
    for kind in Kind::ALL {
        let bus = or_skip!(SystemBus::start(kind));
        let service = bus.launch().start();
        let mut bob = Raw::new(bus.socket_of(&BOB.into()), BOB.uid);
        nobody_minds(&format!("system bus, {kind}"), &|| alice(&bus), &mut bob, &service);
    }
}

/// Nor the service on a session bus, where there is one user only.
#[test]
fn what_a_session_bus_lets_through_does_not_end_the_service() {
    for kind in Kind::ALL {
        let bus = or_skip!(Bus::start(kind));
        let service = Service::on(&bus);
        let path = bus.address().strip_prefix("unix:path=").expect("it has a path").to_owned();
        let uid = rustix::process::geteuid().as_raw();
        let connect = || Raw::new(UnixStream::connect(&path).expect("the bus listens"), uid);
        nobody_minds(&format!("session bus, {kind}"), &connect, &mut connect(), &service);
    }
}

/// One says all of it, and the other does not notice.
fn nobody_minds(bus: &str, connect: &dyn Fn() -> Raw, other: &mut Raw, service: &Service) {
    other.ping().expect("the service answers");
    let owner = other.owner();
    let mut sender = connect();
    let mut passed = 0;
    let odd = odd().into_iter().map(|(what, bytes)| (what.to_owned(), bytes));
    let changed = changed(400).into_iter().map(|bytes| (format!("{bytes:02x?}"), bytes));
    for (what, bytes) in odd.chain(changed) {
        // The other half of half a message would be the question.
        let said = sender.send_bytes(&bytes, &[]).is_ok() && is_whole(&bytes);
        let asked = Outgoing::call(DRIVER, DRIVER_PATH, DRIVER, "GetId", &[]);
        let serial = if said { sender.try_send(asked, &[]).ok() } else { None };
        let known = serial.and_then(|serial| sender.reply_within(serial, patience())).is_some();
        passed += u32::from(known);
        if !known {
            sender = connect();
        }
        let ping = other.ping();
        assert!(ping.is_ok(), "{bus}, {what}: {ping:?}\n{}", service.log());
        assert_eq!(other.owner(), owner, "{bus}, {what}: the service was started anew\n{}", service.log());
    }
    assert!(passed > 20, "{bus}: only {passed} of them were no reason to close the connection");
    descriptors_stay_with_their_message(&mut sender);
}

/// What is left out takes its descriptors along, and no others.
fn descriptors_stay_with_their_message(alice: &mut Raw) {
    let adopt = || Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(1);
    let (pipe, _other_end) = rustix::pipe::pipe().expect("a pipe");
    let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&memory, 64).expect("its size");
    alice.try_send(adopt().with(100, text("x")), &[pipe.as_fd()]).expect("the bus takes it");
    let adopted = alice.ask(adopt(), &[memory.as_fd()]).expect("Adopt");
    let path = ipc_adversary::object(&adopted.args());
    assert!(path.contains("/mmap/"), "another descriptor was adopted: {path}");
}

/// What alice's worker answers instead of what she waits for, given her name and the serial of her call.
type Answer = fn(&str, u32) -> Outgoing;

const ANSWERS: &[(&str, Answer)] = &[
    ("the answer to a call that is none", |to, serial| Outgoing::reply(to, serial + 1000, &[])),
    ("a sender", |to, serial| Outgoing::reply(to, serial, &[]).with(wire::SENDER, text(to))),
    ("a signal of another service", |to, _| {
        let (path, interface) = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager");
        Outgoing::signal(Some(to), path, interface, "PrepareForSleep", &[Arg::Bool(true)])
    }),
    ("a reserved path", |to, serial| {
        Outgoing::reply(to, serial, &[]).with(wire::PATH, path("/org/freedesktop/DBus/Local"))
    }),
    ("a reserved interface", |to, serial| {
        Outgoing::reply(to, serial, &[]).with(wire::INTERFACE, text("org.freedesktop.DBus.Local"))
    }),
    ("a field that is not known", |to, serial| Outgoing::reply(to, serial, &[]).with(100, text("x"))),
    ("a path that is none", |to, serial| Outgoing::reply(to, serial, &[]).with(wire::PATH, path("x//"))),
    ("a name that is none", |to, serial| Outgoing::error(to, serial, "nodots", "x")),
    ("an error without a name", |to, serial| Outgoing {
        kind: wire::ERROR,
        ..Outgoing::reply(to, serial, &[])
    }),
    ("a boolean of 2", |to, serial| {
        let reply = Outgoing::reply(to, serial, &[Arg::Bool(true)]);
        Outgoing { body: vec![2, 0, 0, 0], ..reply }
    }),
    ("text that is no UTF-8", |to, serial| {
        let reply = Outgoing::reply(to, serial, &[text("xx")]);
        Outgoing { body: vec![2, 0, 0, 0, 0xff, 0xfe, 0], ..reply }
    }),
    ("text with a NUL, which the error names", |to, serial| {
        let reply = Outgoing::reply(to, serial, &[text("xx")]);
        Outgoing { body: vec![2, 0, 0, 0, b'x', 0, 0], ..reply }
    }),
    ("a path with a line feed", |to, serial| Outgoing::reply(to, serial, &[path("/a\nb")])),
    ("a body that is too short", |to, serial| {
        let reply = Outgoing::reply(to, serial, &[Arg::U64(1)]);
        Outgoing { body: vec![1, 2, 3], ..reply }
    }),
    ("a body without a signature", |to, serial| {
        Outgoing::reply(to, serial, &[text("xx")]).without(wire::SIGNATURE)
    }),
    ("an index without a descriptor", |to, serial| Outgoing::reply(to, serial, &[Arg::Fd(3)])),
    ("more descriptors than came", |to, serial| Outgoing::reply(to, serial, &[]).with_fds(4)),
    ("65 variants", |to, serial| {
        let variants = (0..65).fold(Arg::Byte(1), |value, _| wire::variant(value));
        Outgoing::reply(to, serial, &[variants])
    }),
    ("an entry of no dictionary", |to, serial| {
        Outgoing::reply(to, serial, &[]).with(wire::SIGNATURE, Arg::Sig("{sv}".into()))
    }),
    ("33 arrays of nothing", |to, serial| {
        let value = Arg::Array(format!("{}y", "a".repeat(32)), vec![]);
        Outgoing::reply(to, serial, &[value])
    }),
];

/// Whatever alice's worker says, either she gets it or the worker ends; the bus hears of nothing else.
#[test]
fn what_a_worker_says_does_not_end_the_front() {
    // More of her workers end than a user's usually do.
    let stage = or_skip!(Stage::with_config("[front]\nworker-crashes = 60\nworker-starts = 16\n"));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let pipe = bob.create("pipe:");
    let owner = bob.owner();
    for (what, answer) in ANSWERS {
        let mut other = String::new();
        // There is a limit of workers in a second.
        stage.until("alice has a worker", || {
            alice.try_make("Create", "pipe:").map(|path| other = path).is_ok()
        });
        let worker = stage.worker_of(ALICE);
        let read = Raw::message(&other, "Stream", "Read", &[Arg::U32(1), Arg::U32(60_000)]);
        let serial = alice.send(read);
        // What comes first is answered first: then the worker has the call.
        alice.ping().expect("an answer");
        let said = Outgoing { serial: 4711, ..answer(&alice.name, serial) };
        Streams::of(worker).say(&said);
        let reply = alice.reply_within(serial, patience()).unwrap_or_else(|| panic!("{what}: no answer"));
        let gone = matches!(outcome(reply), Err(error) if error.is("Gone"));
        assert!(gone && wait_gone(worker), "{what}: the worker lives");
        alice.signal("Lost");
        bob.write(&pipe, "x").unwrap_or_else(|error| panic!("{what}: bob is disturbed: {error}"));
        assert_eq!(bob.owner(), owner, "{what}: the front was started anew\n{}", stage.service.log());
    }
}

/// Answers that are odd and that a bus takes: they are the worker's to give.
#[test]
fn what_is_odd_and_valid_reaches_the_caller() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    let streams = Streams::of(stage.worker_of(ALICE));
    let variants = (0..63).fold(Arg::Byte(1), |value, _| wire::variant(value));
    for body in [vec![variants], vec![Arg::Byte(7); 255], vec![text("\u{ffff}")], vec![]] {
        let serial = alice.send(Raw::message(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(60_000)]));
        alice.ping().expect("an answer");
        streams.say(&Outgoing { serial: 4711, ..Outgoing::reply(&alice.name, serial, &body) });
        let reply = alice.reply_within(serial, patience()).expect("an answer");
        assert_eq!(reply.kind, wire::RETURN, "{reply:?}");
    }
}

/// What comes from other users may hold a NUL, which no string of D-Bus does: the worker must not say it.
#[test]
fn what_others_wrote_does_not_end_a_worker() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let fifo = stage.path("fifo");
    bob.create(&format!("fifo:path={fifo},mode=0666"));
    let (reader, writer) =
        (alice.attach(&format!("fifo:path={fifo}")), bob.attach(&format!("fifo:path={fifo}")));
    // Both ends are open all the time, so nobody waits for the other to come.
    let _open = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("root may");
    let worker = stage.worker_of(ALICE);
    let name = ipc_harness::unique("nul");
    let bind = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\n\
        s.bind(b'\\0'+sys.argv[1].encode()+b'\\0\\n\\xff')\ns.listen()\nprint('bound')\nsys.stdin.read()";
    let socket = stage.bus.python_as(&BOB.into(), bind, &[&name]);
    socket.wait_for(|line| line == "bound");
    alice.call(&format!("{PATH}/unix"), "Mechanism", "List", &[no_options()]).expect("List");
    assert_eq!(stage.workers_of(ALICE), [worker], "a name ended alice's worker");
    for bytes in [&b"a\0b"[..], b"\0", b"a\n\x1b[1m", b"\xff\xfe\0"] {
        bob.call(&writer, "Stream", "Write", &[wire::bytes(bytes), Arg::U32(5000)]).expect("Write");
        let reply = alice.call(&reader, "Stream", "ReadText", &[Arg::U32(100), Arg::U32(5000)]);
        let refused = reply.is_err_and(|error| error.is("InvalidArgument"));
        assert_eq!(refused, bytes.contains(&0), "{bytes:?}");
        if refused {
            alice.call(&reader, "Stream", "Read", &[Arg::U32(100), Arg::U32(0)]).expect("it was kept");
        }
        assert_eq!(
            stage.workers_of(ALICE),
            [worker],
            "{bytes:?} ended alice's worker\n{}",
            stage.service.log()
        );
    }
    let (to, from) = (stage.path("to"), stage.path("from"));
    let receiver = alice.create(&format!("unix:path={to},type=dgram,mode=0666"));
    let send = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\n\
        s.bind(sys.argv[2])\ns.sendto(b'a\\0b',sys.argv[1])";
    stage.bus.python_as(&BOB.into(), send, &[&to, &from]).finish().success();
    let received = alice.call(&receiver, "Messages", "ReceiveText", &[no_options(), Arg::U32(5000)]);
    assert!(received.is_err_and(|error| error.is("InvalidArgument")));
    assert_eq!(stage.workers_of(ALICE), [worker], "a datagram ended alice's worker");
    for address in ["fifo:path=/a%00b", "unix:abstract=%00", "nothing%00:", "fifo:path=/a%0ab", "pipe:x%00=1"]
    {
        alice.refused("Attach", address);
        assert_eq!(
            stage.workers_of(ALICE),
            [worker],
            "{address} ended alice's worker\n{}",
            stage.service.log()
        );
    }
}
