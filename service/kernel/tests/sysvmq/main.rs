//! System V message queues against programs that use the C library.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod errors;
mod limits;
#[path = "../peer/mod.rs"]
mod peer;
mod support;
mod waits;

use std::{collections::BTreeSet, process::Command};

use ipc_kernel::{Attempt, Dict, Kind, Value, dict, mechanism::Permissions, mechanisms::sysvmq::DESCRIPTOR};
use support::*;

#[test]
fn what_was_made_there_is_used_here() {
    let Some(mut peer) = program() else { return };
    let id = peer.ask("get 0 1640");
    let id: i64 = id.strip_prefix("ok ").unwrap().parse().unwrap();
    let queue = Queue(attach(&format!("id={id}")).unwrap());
    assert_eq!(queue.address().to_string(), format!("sysvmq:id={id}"));
    assert_eq!(number(&queue, "mode"), 0o640);

    // Types, bytes that are zero, no bytes, and as many as there can be.
    send(&queue, 7, b"a\0b\0").unwrap();
    assert_eq!(peer.ask(&format!("rcv {id} 100 0 0")), "ok 7 61006200");
    send(&queue, i64::MAX, b"").unwrap();
    assert_eq!(peer.ask(&format!("rcv {id} 100 0 0")), format!("ok {} -", i64::MAX));
    let most = queue.messages().unwrap().max_message_size() as usize;
    send(&queue, 1, &vec![0xa5; most]).unwrap();
    assert_eq!(peer.ask(&format!("rcv {id} {most} 0 0")), format!("ok 1 {}", "a5".repeat(most)));
    assert_eq!(peer.ask(&format!("snd {id} 3 0 00ff00")), "ok 0");
    assert_eq!(receive(&queue, &Dict::new()).unwrap(), (3, vec![0, 0xff, 0]));
    assert_eq!(peer.ask(&format!("snd {id} 4 0 -")), "ok 0");
    assert_eq!(receive(&queue, &Dict::new()).unwrap(), (4, vec![]));
    assert_eq!(peer.ask(&format!("sndsize {id} 5 0 {most}")), "ok 0");
    assert_eq!(receive(&queue, &Dict::new()).unwrap(), (5, vec![b'x'; most]));

    assert_eq!(number(&queue, "lspid"), peer.pid().into());
    assert_eq!(number(&queue, "lrpid"), std::process::id().into());
    assert_eq!(peer.ask(&format!("rm {id}")), "ok 0");
    refused(try_send(&queue, b"x", &Dict::new()), Kind::Gone, "was removed");
    refused(queue.inspect(), Kind::Gone, "was removed");
    refused(queue.remove(), Kind::Gone, "was removed");
}

#[test]
fn what_was_made_here_is_used_there() {
    let Some(mut peer) = program() else { return };
    let queue = create("key=random,mode=0626,qbytes=4000");
    let key = number(&queue, "key");
    assert_eq!(queue.address().to_string(), format!("sysvmq:key=0x{key:x}"));
    let id = queue.id();
    assert_eq!(peer.ask(&format!("get {key} 0")), format!("ok {id}"));
    assert_eq!(peer.ask(&format!("get {key} 3600")), "EEXIST");

    peer.ask(&format!("snd {id} 2 0 41"));
    let said = peer.ask(&format!("stat {id}"));
    let numbers: Vec<i64> = said.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
    let ours: Vec<i64> = [
        "owner",
        "group",
        "creator-uid",
        "creator-gid",
        "mode",
        "cbytes",
        "qnum",
        "qbytes",
        "lspid",
        "lrpid",
    ]
    .map(|key| number(&queue, key))
    .into_iter()
    .chain(["stime", "rtime", "ctime"].map(|key| number(&queue, key) / 1_000_000))
    .collect();
    assert_eq!(ours, numbers);
    assert_eq!((ours[4], ours[5], ours[6], ours[7]), (0o626, 1, 1, 4000));
    let state = queue.inspect().unwrap();
    let name = std::fs::read_to_string(format!("/proc/{}/comm", peer.pid())).unwrap();
    assert!(
        matches!(&state["lspid-command"], Value::Text(command) if command == name.trim_end()),
        "{state:?}"
    );
    assert_eq!(queue.messages().unwrap().max_message_size(), 4000);

    let change = Permissions { mode: Some(0o600), uid: Some(1), gid: Some(2), qbytes: Some(500) };
    if rustix::process::geteuid().is_root() {
        queue.set_permissions(change).unwrap();
        assert_eq!(peer.ask(&format!("stat {id}")).split(' ').nth(1), Some("1"));
        assert_eq!(["owner", "group", "mode", "qbytes"].map(|key| number(&queue, key)), [1, 2, 0o600, 500]);
    }
    let id = queue.id();
    queue.remove().unwrap();
    assert_eq!(peer.ask(&format!("stat {id}")), "EINVAL");
    drop(queue);
}

#[test]
fn path_and_project_mean_the_same_queue_to_both() {
    let Some(mut peer) = program() else { return };
    let directory = tempfile::Builder::new().prefix("ipc-sysvmq-").tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("one"), "").unwrap();
    let queue = create(&format!("path={},project=65", path("one")));
    let key = peer.ask(&format!("ftok {} 65", path("one")));
    assert_eq!(key, format!("ok {}", number(&queue, "key")));
    let number = key.strip_prefix("ok ").unwrap();
    assert_eq!(peer.ask(&format!("get {number} 0")), format!("ok {}", queue.id()));

    // Another name of the same file has the same key: a collision, and no new queue.
    std::fs::hard_link(path("one"), path("two")).unwrap();
    refused(try_create(&format!("path={},project=65", path("two"))), Kind::Exists, "key=random");
    assert_eq!(self::number(&attach(&format!("path={},project=65", path("two"))).unwrap(), "id"), queue.id());
    refused(attach(&format!("path={},project=66", path("one"))), Kind::NotFound, "ENOENT");
    refused(attach(&format!("path={},project=65", path("none"))), Kind::NotFound, "make a key of");
}

#[test]
fn messages_are_chosen_as_by_the_kernel() {
    let Some(mut peer) = program() else { return };
    // What comes next by each selector, asked of the kernel by the C program and by us.
    let cases: [(Dict, &str); 7] = [
        (Dict::new(), "0 0"),
        (dict! { "type" => 2u32 }, "2 0"),
        (dict! { "type" => 9i64 }, "9 0"),
        (dict! { "type" => -2i64 }, "-2 0"),
        (dict! { "type" => i64::MIN }, "-9223372036854775808 0"),
        (dict! { "type" => 3i64, "except" => true }, "3 20000"),
        (dict! { "type" => 9i64, "except" => true }, "9 20000"),
    ];
    for (selector, arguments) in cases {
        let queue = create("key=private");
        let id = queue.id();
        let fill = || {
            for (n, kind) in [3, 2, 4, 1, 2, 3].into_iter().enumerate() {
                send(&queue, kind, &[n as u8]).unwrap();
            }
        };
        fill();
        let mut theirs = Vec::new();
        let (kind, flags) = arguments.split_once(' ').unwrap();
        let flags = u32::from_str_radix(flags, 8).unwrap() | 0o4000;
        loop {
            let said = peer.ask(&format!("rcv {id} 100 {kind} {flags:o}"));
            match said.strip_prefix("ok ") {
                Some(message) => theirs.push(message.to_owned()),
                None => break assert_eq!(said, "ENOMSG"),
            }
        }
        while now(&queue, &Dict::new()).is_some() {}
        fill();
        let mut ours = Vec::new();
        while let Some((kind, data)) = now(&queue, &selector) {
            ours.push(format!("{kind} {:02x}", data[0]));
        }
        assert_eq!(ours, theirs, "{selector:?}");
    }
}

#[test]
fn messages_larger_than_wanted_stay_or_are_cut() {
    let queue = create("key=private");
    send(&queue, 1, b"0123456789").unwrap();
    let receive = |selector: &Dict| try_receive(&queue, selector);
    refused(receive(&dict! { "max-size" => 9u32 }), Kind::TooLarge, "E2BIG");
    refused(receive(&dict! { "max-size" => 0u32 }), Kind::TooLarge, "max-size");
    assert_eq!(number(&queue, "qnum"), 1);
    let cut = dict! { "max-size" => 4u64, "truncate" => true };
    assert_eq!(now(&queue, &cut), Some((1, b"0123".to_vec())));
    assert_eq!(number(&queue, "qnum"), 0);
    send(&queue, 1, b"01").unwrap();
    assert_eq!(now(&queue, &dict! { "max-size" => u64::MAX }), Some((1, b"01".to_vec())));
}

#[test]
fn a_queue_is_browsed_by_index_and_by_type() {
    let queue = create("key=private");
    let peek = |selector: Dict| match queue.messages().unwrap().peek(&selector).unwrap() {
        Attempt::Done(message) => {
            let index = message.attributes["index"].integer().unwrap();
            Some((index, parts(message)))
        }
        Attempt::Wait(_) => None,
    };
    assert_eq!(peek(dict! { "index" => 0u32 }), None);
    for (n, kind) in [5, 3, 5, 4].into_iter().enumerate() {
        send(&queue, kind, &[n as u8]).unwrap();
    }
    let before = number(&queue, "rtime");
    let all: Vec<_> = (0u64..).map_while(|index| peek(dict! { "index" => index })).collect();
    let expected = [(5, 0), (3, 1), (5, 2), (4, 3)];
    let expected: Vec<_> =
        expected.iter().map(|(kind, n)| (i128::from(*n), (i64::from(*kind), vec![*n as u8]))).collect();
    assert_eq!(all, expected);
    assert_eq!(peek(dict! { "type" => 5i64 }), Some(expected[0].clone()));
    assert_eq!(peek(dict! { "type" => 5i64, "index" => 1u32 }), Some(expected[2].clone()));
    assert_eq!(peek(dict! { "type" => 5i64, "except" => true }), Some(expected[1].clone()));
    assert_eq!(peek(dict! { "type" => -4i64 }), Some(expected[1].clone()));
    assert_eq!(peek(dict! { "type" => 9i64 }), None);
    assert_eq!((number(&queue, "qnum"), number(&queue, "rtime"), number(&queue, "lrpid")), (4, before, 0));

    // A Peek is bounded, and goes on where it was told to.
    while now(&queue, &Dict::new()).is_some() {}
    for _ in 0..1100 {
        send(&queue, 1, b"").unwrap();
    }
    send(&queue, 2, b"last").unwrap();
    refused(queue.messages().unwrap().peek(&dict! { "type" => 2i64 }), Kind::LimitExceeded, "index=1024");
    let found = peek(dict! { "type" => 2i64, "index" => 1024u32 });
    assert_eq!(found, Some((1100, (2, b"last".to_vec()))));
}

/// The ids that a listing program shows: the second word of each line, or the first.
fn ids(text: &str, column: usize) -> BTreeSet<i64> {
    text.lines().filter_map(|line| line.split_whitespace().nth(column)?.parse().ok()).collect()
}

#[test]
fn the_list_is_that_of_the_tools() {
    let queues: Vec<Queue> = (0..20).map(|_| create("key=random,mode=0604")).collect();
    send(&queues[3], 1, b"12345").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let proc = || ids(&std::fs::read_to_string("/proc/sysvipc/msg").unwrap(), 1);
    let listed = || -> BTreeSet<i64> {
        let rows = DESCRIPTOR.objects().unwrap();
        rows.iter().map(|row| row["id"].integer().unwrap() as i64).collect()
    };
    type Listing<'a> = &'a dyn Fn() -> Option<BTreeSet<i64>>;
    let tools: [(&str, Listing<'_>); 3] = [
        ("/proc/sysvipc/msg", &|| Some(proc())),
        ("ipcs", &|| Some(ids(&run("ipcs", &["-q"])?, 1))),
        ("lsipc", &|| Some(ids(&run("lsipc", &["-q", "-r", "-o", "ID"])?, 0))),
    ];
    for (name, theirs) in tools {
        // Other tests make and remove queues: what was there before and after counts.
        let Some(before) = theirs() else {
            eprintln!("SKIPPED: {name} is not there");
            continue;
        };
        let (ours, after, again) = (listed(), theirs().unwrap(), listed());
        let missing: Vec<_> = before.intersection(&after).filter(|id| !ours.contains(id)).collect();
        let invented: Vec<_> = ours.intersection(&again).filter(|id| !after.contains(id)).collect();
        assert_eq!((missing.len(), invented.len()), (0, 0), "{name}: {missing:?} {invented:?}");
        assert!(queues.iter().all(|queue| ours.contains(&queue.id())), "{name}");
    }
    // A row says what Inspect says, and what stands in /proc.
    let row = DESCRIPTOR
        .objects()
        .unwrap()
        .into_iter()
        .find(|row| row["id"].same(&Value::I64(queues[3].id())))
        .unwrap();
    let state = queues[3].inspect().unwrap();
    assert!(row.iter().all(|(key, value)| value.same(&state[key])), "{row:?} {state:?}");
    let text = std::fs::read_to_string("/proc/sysvipc/msg").unwrap();
    let line = text.lines().find(|line| ids(line, 1).contains(&queues[3].id())).unwrap();
    let numbers: Vec<i64> = line
        .split_whitespace()
        .enumerate()
        .map(|(n, word)| if n == 2 { i64::from_str_radix(word, 8).unwrap() } else { word.parse().unwrap() })
        .collect();
    let keys = [
        "key",
        "id",
        "mode",
        "cbytes",
        "qnum",
        "lspid",
        "lrpid",
        "owner",
        "group",
        "creator-uid",
        "creator-gid",
    ];
    for (key, number) in keys.iter().zip(&numbers) {
        let ours = row[*key].integer().unwrap() as i64;
        let ours = if *key == "key" { i64::from(ours as u32 as i32) } else { ours };
        assert_eq!(ours, *number, "{key}: {line}");
    }
}

#[test]
fn a_queue_whose_users_have_ended_is_stale() {
    let queue = create("key=private");
    let stale = || matches!(queue.inspect().unwrap()["stale"], Value::Bool(true));
    assert!(!stale(), "nobody has used it");
    let Some(mut peer) = program() else { return };
    peer.ask(&format!("snd {} 1 0 41", queue.id()));
    assert!(!stale(), "the sender lives");
    drop(peer);
    assert!(stale(), "the sender has ended");
    receive(&queue, &Dict::new()).unwrap();
    assert!(!stale(), "the receiver lives");
}
