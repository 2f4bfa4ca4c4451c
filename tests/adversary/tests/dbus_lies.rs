//! Buses that a caller has his worker connect to. He chooses them, so they may be anything: a program that lies, or one
//! that says nothing. Whatever they are, the worker stays and works, other users notice nothing, and what cannot be had
//! ends with an error that says why.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use ipc_adversary::liar::{SERVICE, receive, send};
use ipc_adversary::wire::{self, Arg, Outgoing, bytes, no_options, text};
use ipc_adversary::{
    DRIVER, Incoming, Liar, Lie, Raw, Stage, assert_error, descriptors, entry, error, number, outcome,
    pings_during, resident,
};
use ipc_harness::system::{ALICE, BOB, CAROL};
use ipc_harness::{PATH, or_skip, patience};

const NO_REPLY: &str = "org.freedesktop.DBus.Error.NoReply";
const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
/// What the worker has open, when it has come to rest.
fn settles(stage: &Stage, worker: i32, count: usize) {
    stage.until("the worker has closed what it was sent", || descriptors(worker).len() <= count);
}

/// What is no bus at all, or says something odd before anything is asked of it.
#[test]
fn what_is_no_bus_is_said_to_be_none() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let worker = {
        alice.create("pipe:");
        stage.worker_of(ALICE)
    };
    let before = descriptors(worker).len();
    let garbage: Vec<u8> =
        (0..4096u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (name, words, times) in [
        ("nothing", Vec::new(), 0),
        ("empty", b"\n".to_vec(), 1),
        ("empty-later", b"OK 0123456789abcdef0123456789abcdef\r\n\n".to_vec(), 1),
        ("endless", vec![b'x'; 1 << 16], 1 << 20),
        ("rejects", b"REJECTED EXTERNAL\r\n".to_vec(), 1),
        ("guid", b"OK \xff\r\n".to_vec(), 1),
        ("short", b"OK 01\r\n".to_vec(), 1),
        ("garbage", garbage.clone(), 1),
        (
            "garbage-later",
            {
                let mut words = b"OK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n".to_vec();
                words.extend(&garbage);
                words
            },
            1,
        ),
        ("http", b"HTTP/1.0 400 Bad Request\r\n\r\n".to_vec(), 1),
    ] {
        let path = stage.path(name);
        let address = match words.is_empty() {
            // Nobody listens there.
            true => {
                drop(std::os::unix::net::UnixListener::bind(&path).expect("an own directory"));
                fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("an own socket");
                format!("unix:path={path}")
            }
            false => Liar::saying(&path, words, times).address().to_owned(),
        };
        let refusal = alice.refused("Attach", &format!("dbus:bus={address},watch-name=org.x.Y"));
        let expected = if times == 0 { "NotFound" } else { "Unavailable" };
        assert!(refusal.is(expected), "{name}: {refusal}");
    }
    for (name, lie) in [
        ("hello-error", Lie::Says(DRIVER, Outgoing::error(SERVICE, 1, "org.x.Error", "no"))),
        ("hello-type", Lie::Says(DRIVER, Outgoing::reply(SERVICE, 1, &[Arg::U32(5)]))),
        ("hello-name", Lie::Says(DRIVER, Outgoing::reply(SERVICE, 1, &[text("org.x.Y")]))),
        ("hello-end", Lie::End),
        ("hello-long", Lie::Bytes(header(u32::MAX, 16), 0)),
        ("hello-header", Lie::Bytes(header(16, u32::MAX), 0)),
    ] {
        let liar = Liar::start(&stage.path(name), move |_| Some(vec![lie.clone()]));
        let refusal = alice.refused("Attach", &format!("dbus:bus={},watch-name=org.x.Y", liar.address()));
        assert!(["Unavailable", "Closed"].iter().any(|kind| refusal.is(kind)), "{name}: {refusal}");
    }
    assert_eq!(stage.worker_of(ALICE), worker, "it is still there");
    settles(&stage, worker, before);
}

/// The first bytes of a message that says it has so many of a body, and of fields.
fn header(body: u32, fields: u32) -> Vec<u8> {
    [&[b'l', wire::RETURN, 0, 1][..], &body.to_le_bytes(), &1u32.to_le_bytes(), &fields.to_le_bytes()]
        .concat()
}

/// Each step of the beginning has a time.
#[test]
fn what_never_answers_is_given_up() {
    let stage = or_skip!(Stage::new());
    let silent = Liar::saying(&stage.path("silent"), Vec::new(), 1);
    let no = |member: &'static str, lie: fn(&Incoming) -> Lie| {
        Liar::start(&stage.path(member), move |message| {
            (message.field(wire::MEMBER) == member).then(|| vec![lie(message)])
        })
    };
    let no_name = no("Hello", |_| Lie::Silence);
    let no_id = no("GetId", |_| Lie::Silence);
    let no_rule = no("AddMatch", |_| Lie::Silence);
    let wrong = no("GetNameOwner", |call| {
        Lie::Says(DRIVER, Outgoing::reply(SERVICE, call.serial + 77, &[text(":1.9")]))
    });
    let mut alice = stage.alice();
    let ((), calm) = pings_during(&stage, BOB, || {
        // All at once, as each takes its time.
        let all = [&silent, &no_name, &no_id, &no_rule, &wrong].map(|liar| {
            let address = text(format!("dbus:bus={},watch-name=org.x.Y", liar.address()));
            alice.send(Raw::message(PATH, "", "Attach", &[address, no_options()]))
        });
        for serial in all {
            let answer = alice.reply_within(serial, patience()).expect("an answer");
            assert_error(&error(outcome(answer)), "Timeout", &["10 s"]);
        }
    });
    calm.assert_calm("five buses that hang");
    assert_eq!(alice.usage("endpoints"), 0);
}

/// Replies that are none, and more than a bus passes on: none is taken for the answer, and each call has one.
#[test]
fn replies_that_lie_answer_nothing() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let reply = |serial: u32| Outgoing::reply(SERVICE, serial, &[text("false")]);
    type Make = Box<dyn Fn(&Incoming) -> Vec<Lie> + Send + Sync>;
    let says = |make: fn(u32) -> Outgoing| -> Make {
        Box::new(move |call| vec![Lie::Says(":1.66", make(call.serial))])
    };
    let with_fds = |count: usize, body: Arg| -> Make {
        Box::new(move |call| {
            let reply = Outgoing::reply(SERVICE, call.serial, std::slice::from_ref(&body));
            let reply = Outgoing { serial: 5, ..reply }.with(wire::SENDER, text(":1.9"));
            vec![Lie::Bytes(reply.with_fds(count as u32).encode(), count)]
        })
    };
    let handles = |count: u32| Arg::Array("h".into(), (0..count).map(Arg::Fd).collect());
    let worker = {
        alice.create("pipe:");
        stage.worker_of(ALICE)
    };
    for (name, lie, expected) in [
        ("another-serial", says(|serial| Outgoing::reply(SERVICE, serial + 1, &[text("false")])), NO_REPLY),
        (
            "a-signal",
            says(|serial| {
                Outgoing::signal(Some(SERVICE), "/x", "org.test.X", "S", &[text("false")])
                    .with(wire::REPLY_SERIAL, Arg::U32(serial))
            }),
            NO_REPLY,
        ),
        (
            "a-call",
            says(|serial| {
                Outgoing::call(SERVICE, "/x", "org.test.X", "M", &[text("false")])
                    .with(wire::REPLY_SERIAL, Arg::U32(serial))
            }),
            NO_REPLY,
        ),
        ("20-fds", with_fds(20, handles(20)), LIMITS_EXCEEDED),
        ("253-fds", with_fds(253, text("false")), "passed"),
        (
            "deep",
            says(|serial| {
                let nested = (0..500).fold(Arg::Byte(1), |value, _| wire::variant(value));
                Outgoing::reply(SERVICE, serial, &[nested])
            }),
            "unread",
        ),
        (
            "long",
            says(|serial| Outgoing::reply(SERVICE, serial, &[bytes(&vec![7; 100 << 20])])),
            LIMITS_EXCEEDED,
        ),
        ("end", Box::new(|_: &Incoming| vec![Lie::End]) as Make, NO_REPLY),
        (
            "garbage",
            Box::new(move |call: &Incoming| {
                let mut bytes = Outgoing { serial: 9, ..reply(call.serial + 1) }.encode();
                bytes.extend([0xff; 4096]);
                vec![Lie::Bytes(bytes, 0)]
            }) as Make,
            NO_REPLY,
        ),
    ] {
        let liar = Liar::answering(&stage.path(name), lie);
        // What is long takes its time; where no answer comes, that is waited for.
        let timeout = if expected == NO_REPLY { 700 } else { 20_000 };
        let endpoint = alice.attach(&liar.method(&format!(",timeout-ms={timeout}")));
        let open = descriptors(worker).len();
        send(&mut alice, &endpoint, b"").expect("Send");
        let (data, error) = receive(&mut alice, &endpoint);
        match expected {
            // What nobody named is closed, and the text is the reply.
            "passed" => assert_eq!((data.as_str(), error.as_str()), ("false", ""), "{name}"),
            // Left out by who reads, or told by who writes: there is an answer.
            "unread" => {
                assert!([NO_REPLY, LIMITS_EXCEEDED].contains(&error.as_str()), "{name}: {data} {error}")
            }
            expected => assert_eq!(error, expected, "{name}: {data}"),
        }
        settles(&stage, worker, open);
        alice.close(&endpoint);
    }
    stage.until("memory is given back", || resident(worker) < 80 << 10);
    assert_eq!(stage.worker_of(ALICE), worker, "it is still there");
}

/// One that does not read: what may wait for it has a bound, and so has the time.
#[test]
fn a_bus_that_never_reads_keeps_little_waiting() {
    let stage = or_skip!(Stage::new());
    let deaf = Liar::answering(&stage.path("deaf"), |_| vec![Lie::Deaf]);
    let mut alice = stage.alice();
    let endpoint = alice.attach(&deaf.method(",signature=ay,flags=no-reply-expected"));
    let large = bytes(&vec![7; 1 << 20]);
    let ((), calm) = pings_during(&stage, BOB, || {
        let refusal = loop {
            let args = [large.clone(), no_options(), Arg::U32(200)];
            match alice.call(&endpoint, "Messages", "Send", &args) {
                Ok(_) => {}
                Err(refusal) => break refusal,
            }
        };
        assert_error(&refusal, "Timeout", &["200 ms"]);
    });
    calm.assert_calm("a bus that does not read");
    let waiting = resident(stage.worker_of(ALICE));
    assert!(waiting < 100 << 10, "{waiting} KiB");
    alice.close(&endpoint);
}

/// However many calls come at once, or are over at once: each has an answer.
#[test]
fn every_call_to_an_owned_name_is_answered() {
    let stage = or_skip!(Stage::new());
    const MANY: u32 = 300;
    let (counted, counting) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(counted);
    let flood = |member: &'static str| {
        move |serial: u32| {
            let call = Outgoing::call(SERVICE, "/x", "org.test.X", member, &[bytes(&[7; 100])]);
            Outgoing { serial, ..call }.with(wire::SENDER, text(":1.9")).encode()
        }
    };
    let liar = Liar::start(&stage.path("flood"), move |message| {
        let at_once = |first: u32, make: &dyn Fn(u32) -> Vec<u8>| {
            Lie::Bytes((first..first + MANY).flat_map(make).collect(), 0)
        };
        match message.field(wire::MEMBER) {
            "RequestName" => Some(vec![
                Lie::Says(DRIVER, Outgoing::reply(SERVICE, message.serial, &[Arg::U32(1)])),
                at_once(5000, &flood("Served")),
                at_once(9000, &flood("Refused")),
            ]),
            _ if message.kind == wire::ERROR => {
                let answer = (message.number(wire::REPLY_SERIAL), message.field(wire::ERROR_NAME).to_owned());
                sender.lock().expect("no test has failed").send(answer).expect("somebody counts");
                Some(Vec::new())
            }
            _ => None,
        }
    });
    let mut alice = stage.alice();
    alice.create(&format!(
        "dbus:bus={},own-name=org.test.X,member=Served,depth={MANY},timeout-ms=1000",
        liar.address()
    ));
    let mut answers: Vec<_> =
        (0..2 * MANY).map(|_| counting.recv_timeout(patience()).expect("an answer")).collect();
    answers.sort();
    let (served, refused) = answers.split_at(MANY as usize);
    let serials = |answers: &[(u32, String)]| answers.iter().map(|(serial, _)| *serial).collect::<Vec<_>>();
    assert_eq!(serials(served), (5000..5000 + MANY).collect::<Vec<_>>());
    assert_eq!(serials(refused), (9000..9000 + MANY).collect::<Vec<_>>());
    assert!(served.iter().all(|(_, error)| error == NO_REPLY), "{served:?}");
    assert!(
        refused.iter().all(|(_, error)| error == "org.freedesktop.DBus.Error.UnknownMethod"),
        "{refused:?}"
    );
}

/// What others send and nobody receives: of messages, bytes and descriptors only so many wait, and the rest is
/// counted. A call whose arguments were received takes no memory until it is answered.
#[test]
fn what_nobody_receives_has_bounds() {
    let stage = or_skip!(Stage::new());
    const MANY: usize = 100;
    let path = || Arg::Path(format!("/{}", "x".repeat(1 << 20)));
    let with_fd = |serial: u32| {
        let signal = Outgoing::signal(
            None,
            "/x",
            "org.test.X",
            "S",
            &[Arg::Array("h".into(), (0..16).map(Arg::Fd).collect())],
        );
        Outgoing { serial, ..signal }.with(wire::SENDER, text(":1.9")).with_fds(16).encode()
    };
    let liar = Liar::start(&stage.path("loud"), move |message| {
        if message.field(wire::MEMBER) != "AddMatch" {
            return None;
        }
        let mut said = vec![Lie::Says(DRIVER, Outgoing::reply(SERVICE, message.serial, &[]))];
        let rule = match message.args().first() {
            Some(Arg::Str(rule)) => rule.clone(),
            _ => String::new(),
        };
        said.extend((0..MANY).map(|number| match rule.contains("'Long'") {
            true => {
                let signal = Outgoing::signal(None, "/x", "org.test.X", "Long", &[]);
                Lie::Says(":1.9", signal.without(wire::PATH).with(wire::PATH, path()))
            }
            false => Lie::Bytes(with_fd(3000 + number as u32), 16),
        }));
        Some(said)
    });
    let mut alice = stage.alice();
    let lost = |alice: &mut Raw, endpoint: &str| {
        let state = alice.call(endpoint, "Endpoint", "Inspect", &[]).expect("Inspect").args();
        entry(&state[0], "lost").map_or(0, |lost| number(&lost))
    };
    for (member, most) in [("Long", 4), ("S", 4)] {
        let signals = format!(
            "dbus:bus={},signal=true,interface=org.test.X,member={member},depth=4096",
            liar.address()
        );
        let endpoint = alice.attach(&signals);
        let mut pacing = stage.raw(CAROL);
        let started = std::time::Instant::now();
        while lost(&mut alice, &endpoint) < (MANY - most) as u64 {
            assert!(started.elapsed() < patience(), "{member}: {} are lost", lost(&mut alice, &endpoint));
            pacing.driver("GetId", &[]).expect("the bus answers");
        }
        let worker = stage.worker_of(ALICE);
        assert!(descriptors(worker).len() < 150, "{} descriptors", descriptors(worker).len());
        assert!(resident(worker) < 80 << 10, "{} KiB", resident(worker));
    }
}
