//! Futexes against programs in C: futex(2), and the robust and PI mutexes of glibc, which keep
//! their word at the start of a pthread_mutex_t.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    num::NonZeroU32,
    os::fd::AsRawFd,
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
};

use ipc_kernel::{
    Attempt, Dict, Endpoint, Kind, Parameters, Readiness, Value,
    futex_word::{ANY, FutexWord, Outcome},
    mechanisms,
    word::{self, Watched},
};

mod peer;
use peer::*;

const PROGRAM: &str = include_str!("peer/futex.c");

/// A file of two pages, and a program that has it mapped; the word is at 4092.
fn shared(path: &TemporaryPath) -> Option<Peer> {
    std::fs::write(&path.0, [0; 8192]).unwrap();
    mapping(path)
}

fn mapping(path: &TemporaryPath) -> Option<Peer> {
    let mut peer = Peer::compiled(PROGRAM)?;
    assert!(peer.ask(&format!("map {} 4032", path.text())).starts_with("map "));
    Some(peer)
}

fn attached(path: &TemporaryPath) -> Arc<dyn Endpoint> {
    Arc::from(attach(&format!("futex:path={},offset=4032", path.text())).unwrap())
}

fn word(endpoint: &dyn Endpoint) -> FutexWord {
    endpoint.futex().unwrap().word().unwrap()
}

/// Waits on a thread, as the engine does.
fn waiting(word: &FutexWord, expected: u32) -> JoinHandle<ipc_kernel::Result<Outcome>> {
    let wait = word.wait(expected, ANY);
    thread::spawn(move || {
        loop {
            match wait.attempt()? {
                Attempt::Done(outcome) => {
                    wait.accept();
                    return Ok(outcome);
                }
                Attempt::Wait(Readiness::Word(on)) => {
                    let (mapping, offset, expected) = (on.mapping.clone(), on.offset, on.expected);
                    if word::wait_any(&[Watched::Shared { mapping, offset, expected }])?.is_some() {
                        assert!(on.exact.unwrap().settle(Outcome::Woken));
                    }
                }
                Attempt::Wait(other) => panic!("a futex waits for its word, not {other:?}"),
            }
        }
    })
}

fn wake_one(word: &FutexWord) {
    eventually("somebody waits", || word.wake(1, ANY).unwrap() == 1);
}

fn text<'a>(dict: &'a Dict, key: &str) -> &'a str {
    match dict.get(key) {
        Some(Value::Text(text)) => text,
        other => panic!("{key} is {other:?} in {dict:?}"),
    }
}

fn number(dict: &Dict, key: &str) -> i128 {
    dict.get(key).and_then(Value::integer).unwrap_or_else(|| panic!("no number {key} in {dict:?}"))
}

fn has(dict: &Dict, key: &str) -> bool {
    matches!(dict.get(key), Some(Value::Bool(true)))
}

fn dicts(value: Option<&Value>) -> &[Dict] {
    match value {
        Some(Value::Dicts(dicts)) => dicts,
        other => panic!("{other:?} is no list"),
    }
}

fn as_lock(endpoint: &dyn Endpoint) -> Dict {
    match endpoint.inspect().unwrap().remove("as-lock") {
        Some(Value::Dict(dict)) => dict,
        other => panic!("as-lock is {other:?}"),
    }
}

#[test]
fn a_program_is_woken_and_wakes() {
    let path = TemporaryPath::new();
    let Some(mut peer) = shared(&path) else { return };
    let endpoint = attached(&path);
    let word = word(&*endpoint);
    word.store(7).unwrap();
    assert_eq!(peer.ask("load"), "load 7");
    assert_eq!(peer.ask("wait 8 ffffffff"), "wait EAGAIN");
    peer.tell("wait 7 ffffffff");
    wake_one(&word);
    assert_eq!(peer.line(), "wait 0");
    peer.tell("wait 7 4");
    assert_eq!(word.wake(1, NonZeroU32::new(3).unwrap()).unwrap(), 0, "its bit is another one");
    eventually("it waits", || word.wake(1, NonZeroU32::new(12).unwrap()).unwrap() == 1);
    assert_eq!(peer.line(), "wait 0");

    let waiter = waiting(&word, 7);
    eventually("we wait", || peer.ask("wake 1") == "wake 1");
    assert_eq!(waiter.join().unwrap().unwrap(), Outcome::Woken);
    let bits = NonZeroU32::new(1).unwrap();
    let blocked = endpoint.futex().unwrap().word().unwrap().wait(6, bits).attempt().unwrap();
    assert!(matches!(blocked, Attempt::Done(Outcome::Changed)));
}

#[test]
fn waiters_of_programs_are_moved() {
    let path = TemporaryPath::new();
    let Some(mut peer) = shared(&path) else { return };
    let (from, to) =
        (word(&*attached(&path)), word(&*attach(&format!("futex:path={}", path.text())).unwrap()));
    (0..3).for_each(|_| peer.tell("wait 0 ffffffff"));
    let mut moved = (0, 0);
    eventually("all three are woken or moved", || {
        let (woken, requeued) = from.requeue(u32::from(moved.0 == 0), u32::MAX, &to, 0).unwrap();
        moved = (moved.0 + woken, moved.1 + requeued);
        moved.0 + moved.1 == 3
    });
    assert_eq!(moved, (1, 2));
    assert_eq!((from.wake(9, ANY).unwrap(), to.wake(9, ANY).unwrap()), (0, 2));
    (0..3).for_each(|_| assert_eq!(peer.line(), "wait 0"));
    refused(from.requeue(1, 1, &to, 5), Kind::Busy, "its value is 0, not 5");
}

#[test]
fn a_word_is_found_in_every_kind_of_memory() {
    // POSIX shared memory.
    let name = unique();
    let object = TemporaryPath(std::path::Path::new("/dev/shm").join(&name));
    let Some(mut peer) = shared(&object) else { return };
    let by_name = attach(&format!("futex:name=/{name},offset=4032")).unwrap();
    word(&*by_name).store(1).unwrap();
    assert_eq!(peer.ask("load"), "load 1");
    assert_eq!(by_name.address().to_string(), format!("futex:name=/{name},offset=4032"));

    // What another process holds.
    let fd: i32 =
        peer.ask(&format!("map {} 4032", object.text())).strip_prefix("map ").unwrap().parse().unwrap();
    let held = attach(&format!("futex:pid={},fd={fd},offset=4032", peer.pid())).unwrap();
    assert_eq!(held.address().to_string(), by_name.address().to_string());
    assert_eq!(word(&*held).load().unwrap(), 1);

    // A memfd, made here and mapped there.
    let made = create("futex:value=5").unwrap();
    let opened = made.open(&Parameters::default()).unwrap();
    let found = attach(&made.address().to_string()).unwrap();
    word(&*found).fetch_add(1).unwrap();
    let fd = format!("/proc/{}/fd/{}", std::process::id(), opened.as_raw_fd());
    peer.ask(&format!("map {fd} 0"));
    assert_eq!(peer.ask("load"), "load 6");

    // A System V segment.
    // SAFETY: system calls without pointers, or with one that is not used.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) };
    let segment = attach(&format!("futex:shmid={id},offset=4092")).unwrap();
    assert_eq!(peer.ask(&format!("attach {id} 4092")), "attach 0");
    // SAFETY: as above.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    word(&*segment).store(9).unwrap();
    peer.tell("wait 9 ffffffff");
    wake_one(&word(&*segment));
    assert_eq!(peer.line(), "wait 0");
    refused(segment.open(&Parameters::default()), Kind::NotSupported, "shmat(");
    let waiters = |endpoint: &dyn Endpoint| dicts(endpoint.inspect().unwrap().get("waiters")).len();
    peer.tell("wait 9 ffffffff");
    eventually("it is seen to wait", || waiters(&*segment) == 1);
}

#[test]
fn who_waits_is_listed() {
    let path = TemporaryPath::new();
    let Some(mut peer) = shared(&path) else { return };
    let endpoint = attached(&path);
    peer.tell("wait 0 ffffffff");
    peer.tell("wait 0 6");
    let address = endpoint.address().to_string();
    let list = || {
        let rows = mechanisms::by_name("futex").unwrap().objects().unwrap();
        rows.into_iter().find(|row| matches!(row.get("address"), Some(Value::Text(text)) if *text == address))
    };
    eventually("both are listed", || list().is_some_and(|row| number(&row, "waiting") == 2));
    let row = list().unwrap();
    assert_eq!(text(&row, "memory"), path.text());
    assert_eq!(number(&row, "offset"), 4032);
    let of_endpoint = endpoint.inspect().unwrap();
    for waiters in [dicts(row.get("waiters")), dicts(of_endpoint.get("waiters"))] {
        assert_eq!(waiters.len(), 2);
        for waiter in waiters {
            assert_eq!(number(waiter, "pid"), peer.pid().into());
            assert_ne!(number(waiter, "tid"), peer.pid().into(), "it is a thread");
            assert_eq!(text(waiter, "operation"), "FUTEX_WAIT_BITSET");
            assert_eq!(number(waiter, "expected"), 0);
        }
    }
    let waiter = waiting(&word(&*endpoint), 0);
    let ours = |row: &Dict| {
        let own = |waiter: &&Dict| number(waiter, "pid") == std::process::id().into();
        dicts(row.get("waiters")).iter().find(own).map(|waiter| text(waiter, "operation").to_owned())
    };
    eventually("ours is listed", || list().and_then(|row| ours(&row)) == Some("futex_waitv".into()));
    assert_eq!(word(&*endpoint).wake(u32::MAX, ANY).unwrap(), 3);
    assert_eq!(waiter.join().unwrap().unwrap(), Outcome::Woken);
    eventually("nobody is listed", || list().is_none());
}

#[test]
fn the_owner_of_a_robust_mutex_is_known_and_what_he_leaves_is_repaired() {
    let path = TemporaryPath::new();
    let Some(mut holder) = shared(&path) else { return };
    let Some(mut next) = mapping(&path) else { return };
    let endpoint = attached(&path);
    let futex = endpoint.futex().unwrap();
    assert_eq!(holder.ask("initialise robust"), "initialise 0");
    assert_eq!(text(&as_lock(&*endpoint), "owner"), "none");
    refused(futex.repair(), Kind::InvalidArgument, "names no owner");

    assert_eq!(holder.ask("forget"), "forget 0");
    let lock = as_lock(&*endpoint);
    assert_eq!(text(&lock, "owner"), "alive");
    assert_eq!([number(&lock, "pid"), number(&lock, "owner-tid")], [holder.pid().into(); 2]);
    assert!(number(&lock, "started") > 1_600_000_000_000_000, "{lock:?}");
    refused(futex.repair(), Kind::Busy, "its owner lives");
    next.tell("lock");
    eventually("the next one waits", || has(&as_lock(&*endpoint), "waiters-bit"));

    // The kernel does not know that it held the lock, and marks nothing.
    let holder = holder.kill();
    let lock = as_lock(&*endpoint);
    assert_eq!((text(&lock, "owner"), number(&lock, "owner-tid")), ("dead", holder.into()));
    eventually("the next one sleeps", || dicts(endpoint.inspect().unwrap().get("waiters")).len() == 1);
    assert_eq!(futex.repair().unwrap(), 1);
    assert_eq!(next.line(), "lock EOWNERDEAD");
    assert_eq!(text(&as_lock(&*endpoint), "owner"), "alive");
    refused(futex.repair(), Kind::Busy, &format!("process {}", next.pid()));

    // This one it knows, and marks it itself.
    next.kill();
    let lock = as_lock(&*endpoint);
    assert_eq!((text(&lock, "owner"), number(&lock, "owner-tid")), ("none", 0));
    assert!(has(&lock, "owner-died"));
    assert_eq!(futex.repair().unwrap(), 0, "nobody waits");
}

#[test]
fn the_owner_of_a_pi_mutex_is_known() {
    let path = TemporaryPath::new();
    let Some(mut holder) = shared(&path) else { return };
    let Some(mut next) = mapping(&path) else { return };
    let endpoint = attached(&path);
    assert_eq!(holder.ask("initialise robust-pi"), "initialise 0");
    assert_eq!(holder.ask("lock"), "lock 0");
    let lock = as_lock(&*endpoint);
    assert_eq!((text(&lock, "owner"), number(&lock, "pid")), ("alive", holder.pid().into()));
    assert_ne!(number(&lock, "tid"), holder.pid().into(), "a thread of it");
    next.tell("lock");
    let waiters = || dicts(endpoint.inspect().unwrap().get("waiters")).to_vec();
    eventually("the next one waits", || waiters().len() == 1);
    assert!(text(&waiters()[0], "operation").starts_with("FUTEX_LOCK_PI"));
    refused(word(&*endpoint).wake(1, ANY), Kind::InvalidArgument, "FUTEX_LOCK_PI");
    holder.kill();
    assert_eq!(next.line(), "lock EOWNERDEAD");
    let lock = as_lock(&*endpoint);
    assert_eq!((text(&lock, "owner"), number(&lock, "pid")), ("alive", next.pid().into()));
}

#[test]
fn a_number_that_was_used_again_is_no_owner() {
    let path = TemporaryPath::new();
    let Some(mut stranger) = shared(&path) else { return };
    let endpoint = attached(&path);
    // It has the number, and does not map the memory any more.
    stranger.ask(&format!("map {} 0", std::env::current_exe().unwrap().display()));
    let other = TemporaryPath::new();
    std::fs::write(&other.0, [0; 8192]).unwrap();
    let Some(peer) = mapping(&other) else { return };
    word(&*endpoint).store(peer.pid() | 0x8000_0000).unwrap();
    let lock = as_lock(&*endpoint);
    assert_eq!(text(&lock, "owner"), "dead");
    assert!(text(&lock, "why").contains("used again"), "{lock:?}");
    word(&*endpoint).store(0x3fff_ffff).unwrap();
    assert!(text(&as_lock(&*endpoint), "why").contains("no thread has the number"));
    assert_eq!(endpoint.futex().unwrap().repair().unwrap(), 0);
    assert_eq!(word(&*endpoint).load().unwrap(), 0x4000_0000);
}

#[test]
fn an_owner_in_a_pid_namespace_is_found() {
    let path = TemporaryPath::new();
    std::fs::write(&path.0, [0; 8192]).unwrap();
    if !Command::new("unshare")
        .args(["--pid", "--fork", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("SKIPPED: cannot make a pid namespace");
        return;
    }
    let Some(mut inside) = Peer::compiled_in(PROGRAM, &["unshare", "--pid", "--fork", "--kill-child"]) else {
        return;
    };
    inside.ask(&format!("map {} 4032", path.text()));
    inside.ask("initialise robust");
    assert_eq!(inside.ask("lock"), "lock 0");
    let endpoint = attached(&path);
    let lock = as_lock(&*endpoint);
    assert_eq!((text(&lock, "owner"), number(&lock, "owner-tid")), ("alive", 2));
    assert!(number(&lock, "tid") > 2, "{lock:?}");
    refused(endpoint.futex().unwrap().repair(), Kind::Busy, "its owner lives");
}

#[test]
fn truncation_makes_it_gone_until_it_has_grown() {
    let path = TemporaryPath::new();
    std::fs::write(&path.0, [1; 8192]).unwrap();
    let (kept, endpoint) = (attached(&path), attached(&path));
    let file = std::fs::OpenOptions::new().write(true).open(&path.0).unwrap();
    let before = word(&*kept);
    for size in [4032, 0] {
        file.set_len(size).unwrap();
        refused(
            endpoint.futex().unwrap().word(),
            Kind::Gone,
            &format!("truncated the memory of the futex to {size}"),
        );
    }
    refused(before.load(), Kind::Gone, "truncated");
    refused(before.wait(0x0101_0101, ANY).attempt(), Kind::Gone, "truncated");
    file.set_len(4036).unwrap();
    assert_eq!(word(&*endpoint).load().unwrap(), 0);
    assert_eq!(word(&*kept).fetch_add(3).unwrap(), 0, "mapped anew");
    assert_eq!(word(&*endpoint).load().unwrap(), 3);
    file.set_len(0).unwrap();
    refused(endpoint.inspect(), Kind::Gone, "truncated");
    refused(endpoint.futex().unwrap().repair(), Kind::Gone, "truncated");
}

#[test]
fn what_is_no_place_is_refused() {
    let path = TemporaryPath::new();
    std::fs::write(&path.0, [0; 4096]).unwrap();
    let at = |offset: &str| attach(&format!("futex:path={},offset={offset}", path.text()));
    for offset in ["1", "2", "4095"] {
        refused(at(offset), Kind::InvalidArgument, "a multiple of 4");
    }
    for offset in ["4096", "4096G", "9223372036854775804", "18446744073709551612"] {
        refused(at(offset), Kind::InvalidArgument, "does not lie within the memory of 4096 bytes");
    }
    at("4092").unwrap();
    for nowhere in ["futex:", "futex:offset=4", "futex:pid=1", "futex:fd=1", "futex:inode=5,shmid=1"] {
        refused(attach(nowhere), Kind::InvalidArgument, "where is the futex?");
    }
    refused(attach(&format!("futex:path={},name=/x", path.text())), Kind::InvalidArgument, "Give one of");
    refused(attach("futex:name=/no-such-object"), Kind::NotFound, "no-such-object");
    refused(attach("futex:name=/a/b"), Kind::InvalidArgument, "a second '/'");
    refused(attach("futex:path=/dev/null"), Kind::InvalidArgument, "a character device");
    refused(attach("futex:path=relative"), Kind::InvalidArgument, "absolute");
    refused(attach("futex:shmid=2147483647"), Kind::NotFound, "2147483647");
    refused(attach("futex:inode=18446744073709551615"), Kind::NotFound, "no process");
    let sealed = create("mmap:size=4096,seals=write").unwrap().open(&options("mmap", "")).unwrap();
    let held = format!("futex:pid={},fd={}", std::process::id(), sealed.as_raw_fd());
    refused(attach(&held), Kind::PermissionDenied, "map");
}
