//! The targets without the fuzzer: every seed, and thousands of inputs that are nearly seeds. `cargo xtask fuzz`
//! looks for better ones. `IPC_BLESS=1` writes the seeds, which are made here, anew.

use std::{collections::BTreeMap, fs, path::PathBuf};

use ipc_fuzz::TARGETS;
use ipc_spawner::protocol::{Confinement, Identity, Refusal, Reply, Request};
use proptest::{prelude::*, test_runner::Config};
use zbus::message::{Builder, Message};

const PATH: &str = "/org/example/IPC";
const NAME: &str = "org.example.IPC";

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The seeds of a target, by their names: one of each kind of what it reads.
fn seeds(target: &str) -> BTreeMap<&'static str, Vec<u8>> {
    match target {
        "spawner" => protocol(),
        "worker" => {
            words().into_iter().map(|(name, how, bytes)| (name, [&[how], &bytes[..]].concat())).collect()
        }
        "front" => conversations(),
        other => panic!("no target is named {other}"),
    }
}

fn protocol() -> BTreeMap<&'static str, Vec<u8>> {
    let identity =
        Identity { uid: 1000, gid: 100, groups: vec![4, 100, 1000], confinement: Confinement(0x81) };
    let name = || "w-1000-0123456789abcdef0123456789abcdef".to_owned();
    BTreeMap::from([
        ("examine", Request::Examine { uid: 1000 }.encode().to_vec()),
        ("start", Request::Start { name: name(), identity }.encode().to_vec()),
        ("kill", Request::Kill { name: name() }.encode().to_vec()),
        ("examined", Reply::Examined { confinement: Confinement(0x21), gid: Some(1000) }.encode().to_vec()),
        ("started", Reply::Started { pid: 4711 }.encode().to_vec()),
        ("killed", Reply::Killed.encode().to_vec()),
        ("malformed", Reply::Refused(Refusal::Malformed).encode().to_vec()),
        ("errno", Reply::Refused(Refusal::Errno(11)).encode().to_vec()),
    ])
}

/// With a serial of its own, so that the seeds are the same in every run.
fn numbered(builder: Builder<'_>, serial: u32) -> Builder<'_> {
    builder.serial(serial.try_into().expect("not 0"))
}

fn call(sender: &'static str, serial: u32, member: &'static str) -> Message {
    let builder = Message::method_call(PATH, member).interface(NAME).sender(sender).destination(NAME);
    numbered(builder, serial).build(&("pipe:", 7u32)).expect("valid")
}

fn reply(sender: &'static str, serial: u32) -> Builder<'static> {
    numbered(Message::method_return(&call(sender, serial, "X").header()), 90)
}

fn signal<'a>(interface: &'a str, member: &'a str) -> Builder<'a> {
    numbered(Message::signal(PATH, interface, member), 91)
}

fn bytes<B: serde::Serialize + zbus::DynamicType>(builder: Builder<'_>, body: &B) -> Vec<u8> {
    builder.build(body).expect("valid").data().to_vec()
}

/// What a worker says, and how: see the target.
fn words() -> Vec<(&'static str, u8, Vec<u8>)> {
    let event = || signal("org.example.IPC.Endpoint", "Closed").destination(":1.1");
    let error = numbered(Message::error(&call(":1.2", 7, "X").header(), "org.example.IPC.Error.Busy"), 92);
    let variants = vec![("a", zbus::Variant::from(1u8)), ("b", zbus::Variant::from("x"))];
    let variants: std::collections::BTreeMap<_, _> = variants.into_iter().collect();
    let two = [bytes(reply(":1.1", 7), &("x",)), bytes(reply(":1.1", 8), &(vec![1u64, 2], true))].concat();
    vec![
        ("reply", 1, bytes(reply(":1.1", 7), &("text", 7u32, variants))),
        ("two-replies", 1, two),
        ("error", 1, bytes(error, &("busy",))),
        ("event", 0, bytes(event(), &("closed", 3u64))),
        ("idle", 0, bytes(signal("org.example.IPC.Worker", "Idle"), &())),
        ("clients", 0, bytes(signal("org.example.IPC.Worker", "Clients"), &vec![":1.1", ":1.2"])),
        ("not-asked", 0, bytes(reply(":1.1", 9), &())),
        ("local-path", 1, bytes(reply(":1.1", 7).path("/org/freedesktop/DBus/Local"), &())),
        ("descriptor", 3, bytes(reply(":1.1", 7).path(PATH), &("x",))),
    ]
}

/// What the bus and a worker say to the front.
fn conversations() -> BTreeMap<&'static str, Vec<u8>> {
    let record = |kind: u8, bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("a short message").to_le_bytes();
        [&[kind][..], &length, bytes].concat()
    };
    let asks = |sender, serial| record(0, call(sender, serial, "Create").data());
    let left = {
        let signal = Message::signal("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged");
        let signal = numbered(signal.sender("org.freedesktop.DBus"), 93);
        record(0, &bytes(signal, &(":1.1", ":1.1", "")))
    };
    let forged = record(0, &bytes(reply(":1.0", 5).sender(":1.1"), &(true,)));
    let says = |bytes: &[u8]| record(1, bytes);
    BTreeMap::from([
        ("a-call", asks(":1.1", 7)),
        ("two-users", [asks(":1.1", 7), asks(":1.2", 7), asks(":1.11", 7)].concat()),
        ("the-same-serial", [asks(":1.1", 7), asks(":1.1", 7)].concat()),
        ("nobody", [asks(":1.3", 1), asks(":1.4", 2), asks(":1.5", 3)].concat()),
        ("leaves", [asks(":1.1", 7), left].concat()),
        ("forged-reply", [asks(":1.1", 7), forged].concat()),
        ("honest-worker", [asks(":1.1", 7), says(&bytes(reply(":1.1", 7), &("x",)))].concat()),
        ("lying-worker", [asks(":1.1", 7), asks(":1.2", 8), says(&bytes(reply(":1.2", 8), &()))].concat()),
        ("garbage", [asks(":1.1", 7), says(b"garbage")].concat()),
    ])
}

#[test]
fn the_seeds_are_checked_in() {
    let bless = std::env::var_os("IPC_BLESS").is_some();
    for (target, _) in TARGETS {
        for (name, bytes) in seeds(target) {
            let file = corpus(target).join(name);
            if bless {
                fs::write(&file, bytes).expect("the corpus is writable");
            } else {
                let stored = fs::read(&file).unwrap_or_default();
                assert_eq!(stored, bytes, "{}: IPC_BLESS=1 cargo test -p ipc-fuzz", file.display());
            }
        }
    }
}

/// Every file of the corpus, seeds and what the fuzzer once found.
fn stored(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(corpus(target)).expect("a corpus").flatten();
    files.map(|file| fs::read(file.path()).expect("a file")).collect()
}

#[derive(Debug, Clone)]
enum Change {
    Put(usize, u8),
    Flip(usize, u8),
    Cut(usize, usize),
    Double(usize, usize),
    Number(usize, u32),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let size = bytes.len().max(1);
        let range = |at: usize, length: usize| at % size..(at % size + length).min(bytes.len());
        match *self {
            Change::Put(at, byte) => bytes.iter_mut().skip(at % size).take(1).for_each(|old| *old = byte),
            Change::Flip(at, bit) => {
                bytes.iter_mut().skip(at % size).take(1).for_each(|old| *old ^= 1 << (bit % 8))
            }
            Change::Cut(at, length) => drop(bytes.drain(range(at, length))),
            Change::Double(at, length) => {
                let copy = bytes[range(at, length)].to_vec();
                bytes.splice(at % size..at % size, copy);
            }
            Change::Number(at, number) => {
                bytes
                    .iter_mut()
                    .skip(at % size / 4 * 4)
                    .zip(number.to_le_bytes())
                    .for_each(|(old, new)| *old = new);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let near_the_start = prop_oneof![0..160usize, any::<usize>()];
    let number = prop_oneof![0..300u32, any::<u32>(), Just(u32::MAX), Just(1 << 20), Just(1 << 27)];
    let length = 1..40usize;
    prop_oneof![
        (near_the_start.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Put(at, byte)),
        (near_the_start.clone(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (near_the_start.clone(), length.clone()).prop_map(|(at, length)| Change::Cut(at, length)),
        (near_the_start.clone(), length).prop_map(|(at, length)| Change::Double(at, length)),
        (near_the_start, number).prop_map(|(at, number)| Change::Number(at, number)),
    ]
}

/// Seeds, each with a few changes; as many as cost a second or two.
fn nearly(target: &str, cases: u32) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let stored = stored(target);
    stored.iter().for_each(|input| run(input));
    let input = (any::<prop::sample::Index>(), prop::collection::vec(change(), 1..4));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    proptest!(config, |((index, changes) in input)| {
        let mut bytes = index.get(&stored).clone();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        run(&bytes);
    });
}

#[test]
fn nearly_seeds_of_the_spawner() {
    nearly("spawner", 20_000);
}

#[test]
fn nearly_seeds_of_the_worker() {
    nearly("worker", 5_000);
}

#[test]
fn nearly_seeds_of_the_front() {
    nearly("front", 1_000);
}
