//! Semaphore sets against the C library's semget, semop and semctl.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    io::Read,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use ipc_kernel::{
    Attempt, Dict, Endpoint, Error, Kind, Opening, Readiness, Result, Value,
    blocked::{self, Running},
    mechanism::Permissions,
    mechanisms,
    shape::{Semaphore, SemaphoreOperation},
};

mod machine;
#[path = "../peer/mod.rs"]
mod peer;
#[path = "../waiting/mod.rs"]
mod waiting;
use peer::*;
use waiting::as_nobody;

const PROGRAM: &str = include_str!("../peer/sem.c");

const CREATE: i32 = 0o3000;
const UNDO: i32 = 4096;
const NOWAIT: i32 = 2048;

/// A key that nobody uses; its set is removed at the end.
struct Key(i32);

impl Key {
    fn new() -> Self {
        static NEXT: AtomicI32 = AtomicI32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) & 0xff;
        Self(0x4a00_0000 | (std::process::id().cast_signed() & 0xffff) << 8 | number)
    }

    fn address(&self) -> String {
        format!("sysvsem:key=0x{:x}", self.0)
    }

    fn make(&self, rest: &str) -> Set {
        Set(Arc::from(create(&format!("{}{rest}", self.address())).unwrap()))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: system calls without pointers.
        unsafe { libc::semctl(libc::semget(self.0, 0, 0), 0, libc::IPC_RMID) };
    }
}

#[derive(Clone)]
struct Set(Arc<dyn Endpoint>);

impl Set {
    fn semaphore(&self) -> &dyn Semaphore {
        self.0.semaphore().unwrap()
    }

    fn id(&self) -> i128 {
        self.state("id").integer().unwrap()
    }

    fn state(&self, key: &str) -> Value {
        self.0.inspect().unwrap().remove(key).unwrap_or_else(|| panic!("Inspect has no {key}"))
    }

    fn values(&self) -> Vec<i32> {
        self.semaphore().values().unwrap()
    }

    fn operate(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<()>> {
        self.semaphore().operate(operations)
    }

    /// Waits on a thread, as the engine does; what is sent says that it is over.
    fn start(&self, operations: &[SemaphoreOperation]) -> (Running, mpsc::Receiver<()>) {
        let Attempt::Wait(Readiness::Blocked(call)) = self.operate(operations).unwrap() else {
            panic!("it does not have to wait")
        };
        let (ended, end) = mpsc::channel();
        (blocked::start(call, move || _ = ended.send(())).unwrap(), end)
    }
}

fn peer() -> Option<Peer> {
    Peer::compiled(PROGRAM)
}

fn numbers(value: &Value) -> Vec<i128> {
    match value {
        Value::U32s(numbers) => numbers.iter().copied().map(i128::from).collect(),
        Value::I32s(numbers) => numbers.iter().copied().map(i128::from).collect(),
        other => panic!("{other:?}"),
    }
}

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn a_program_finds_what_we_made_and_we_find_what_it_made() {
    let (ours, theirs) = (Key::new(), Key::new());
    let Some(mut program) = peer() else { return };
    let set = ours.make(",count=3,values=1+0+5,mode=0640");
    let id = program.ask(&format!("get {} 0 0", ours.0));
    assert_eq!(id, set.id().to_string());
    assert_eq!(program.ask(&format!("values {id}")), "1 0 5");
    assert_eq!(program.ask(&format!("when {id}")), "1", "it says that its values are set");
    assert_eq!(program.ask(&format!("op {id} 0,-1,0 1,2,0 2,-5,0")), "ok");
    assert_eq!(set.values(), [0, 2, 0]);
    assert_eq!(numbers(&set.state("pids")), [i128::from(program.pid()); 3]);
    let Value::Texts(commands) = set.state("commands") else { panic!("names") };
    assert!(commands.iter().all(|name| name.starts_with("ipc-test")), "{commands:?}");

    let id = program.ask(&format!("get {} 2 0{:o}", theirs.0, CREATE | 0o600));
    assert_eq!(program.ask(&format!("set-all {id} 7 9")), "ok");
    assert_eq!(program.ask(&format!("op {id} 1,-1,0")), "ok");
    let attached = Set(Arc::from(attach(&format!("{},number=1", theirs.address())).unwrap()));
    assert_eq!(attached.0.address().to_string(), format!("{},number=1", theirs.address()));
    assert_eq!((attached.semaphore().value().unwrap(), attached.values()), (8, vec![7, 8]));
    attached.semaphore().post(4).unwrap();
    assert!(matches!(attached.operate(&[(0, -7, 0)]), Ok(Attempt::Done(()))));
    assert_eq!(program.ask(&format!("values {id}")), "0 12");
    let by_id = attach(&format!("sysvsem:id={id}")).unwrap();
    assert_eq!(by_id.address().to_string(), theirs.address(), "the canonical address has the key");
    let pid = std::process::id().to_string();
    assert_eq!(program.ask(&format!("pid {id} 0")), pid, "the service is the process that did it");
}

#[test]
fn both_kinds_of_waiters_are_in_one_queue() {
    let key = Key::new();
    let Some(mut program) = peer() else { return };
    let set = key.make(",values=0+0");
    let id = set.id();
    // Ours first, then theirs, then ours.
    let (first, first_end) = set.start(&[(0, -1, 0)]);
    eventually("we wait", || program.ask(&format!("waiters {id} 0")) == "1");
    program.tell(&format!("background op {id} 0,-1,0"));
    eventually("both wait", || numbers(&set.state("waiters")) == [2, 0]);
    let (second, second_end) = set.start(&[(0, -1, 0)]);
    eventually("all wait", || numbers(&set.state("waiters")) == [3, 0]);
    assert_eq!(program.ask(&format!("op {id} 0,1,0")), "ok");
    first_end.recv_timeout(PATIENCE).unwrap();
    first.claim();
    set.semaphore().post(1).unwrap();
    assert_eq!(program.line(), "woken");
    set.semaphore().post(1).unwrap();
    second_end.recv_timeout(PATIENCE).unwrap();
    second.claim();
    assert_eq!((set.values(), numbers(&set.state("waiters"))), (vec![0, 0], vec![0, 0]));
    // A program that waits for zero sees our operation.
    set.semaphore().post(1).unwrap();
    program.tell(&format!("background op {id} 0,0,0 1,5,0"));
    eventually("it waits for zero", || numbers(&set.state("zero-waiters")) == [1, 0]);
    // What the waits above have taken is there for two attempts; then it is our own.
    for _ in 0..3 {
        assert!(matches!(set.semaphore().wait(), Ok(Attempt::Done(()))));
    }
    assert_eq!(program.line(), "woken");
    assert_eq!(set.values(), [0, 5]);
}

/// What the C library says, and what we say: the same errno, and its kind.
#[track_caller]
fn same<T>(program: &mut Peer, line: &str, kind: Kind, ours: Result<T>) {
    let theirs = program.ask(line);
    let error = ours.err().unwrap_or_else(|| panic!("we do what {line:?} says {theirs} to"));
    assert_eq!((errno(&error), error.kind), (theirs, kind), "{line:?}: {error}");
}

#[test]
fn every_errno_of_semget_semop_and_semctl() {
    let (key, other) = (Key::new(), Key::new());
    let Some(mut program) = peer() else { return };
    let set = key.make(",values=1+0+32767");
    let (id, address) = (set.id(), key.address());
    let done = |attempt: Result<Attempt<()>>| match attempt {
        Ok(Attempt::Wait(_)) => panic!("it does not wait"),
        other => other,
    };

    // semget(2). Its EACCES and ENOSPC have tests of their own; ENOMEM cannot be provoked.
    let flags = CREATE | 0o600;
    same(&mut program, &format!("get {} 3 {flags}", key.0), Kind::Exists, create(&address));
    same(&mut program, &format!("get {} 3 0", other.0), Kind::NotFound, attach(&other.address()));
    same(
        &mut program,
        &format!("get {} 4 0", key.0),
        Kind::InvalidArgument,
        attach(&format!("{address},count=4")),
    );
    let too_many = format!("{},count=100000000", other.address());
    same(&mut program, &format!("get {} 100000000 {flags}", other.0), Kind::LimitExceeded, create(&too_many));
    refused(create(&too_many), Kind::LimitExceeded, "SEMMSL");

    // semop(2). EINTR and ENOMEM say nothing to a caller.
    for (operations, line, kind) in [
        (vec![(1, -1, 2048)], "1,-1,2048".to_owned(), Kind::Busy),
        (vec![(2, 1, 0)], "2,1,0".into(), Kind::LimitExceeded),
        (vec![(0, -1, 0), (1, 1, 0), (2, 1, 0)], "0,-1,0 1,1,0 2,1,0".into(), Kind::LimitExceeded),
        (vec![(3, 1, 0)], "3,1,0".into(), Kind::InvalidArgument),
        (vec![(1, 0, 0); 501], "1,0,0 *501".into(), Kind::TooLarge),
    ] {
        same(&mut program, &format!("op {id} {line}"), kind, done(set.operate(&operations)));
    }
    assert!(matches!(set.operate(&vec![(1, 0, 0); 500]), Ok(Attempt::Done(()))), "SEMOPM is allowed");
    refused(set.operate(&[(1, 0, 0); 501]), Kind::TooLarge, "500 (SEMOPM");
    refused(set.semaphore().post(1).and_then(|()| set.operate(&[(2, 1, 0)])), Kind::LimitExceeded, "SEMVMX");
    assert_eq!(set.values(), [2, 0, 32767]);
    refused(set.semaphore().post(0), Kind::InvalidArgument, "at least 1");

    // semctl(2).
    same(&mut program, &format!("set {id} 0 32768"), Kind::LimitExceeded, set.semaphore().set_value(32768));
    same(&mut program, &format!("set {id} 0 -1"), Kind::LimitExceeded, set.semaphore().set_value(-1));
    same(
        &mut program,
        &format!("set-all {id} 1 2 40000"),
        Kind::LimitExceeded,
        set.semaphore().set_values(&[1, 2, 40000]),
    );
    refused(create(&format!("{},count=2,number=2", other.address())), Kind::InvalidArgument, "from 0");
    refused(attach(&format!("{address},number=3")), Kind::InvalidArgument, "3 semaphores");
    refused(create(&format!("{},count=3,values=1+2", other.address())), Kind::InvalidArgument, "2 values");
    refused(create(&format!("{},values=1+32768", other.address())), Kind::InvalidArgument, "32767");
    refused(attach(&other.address()), Kind::NotFound, "ENOENT");
    refused(set.0.open(&options("sysvsem", "")), Kind::NotSupported, "no file");

    // A waiter of each kind, when the set is removed.
    program.tell(&format!("background op {id} 1,-1,0"));
    let (waiting, end) = set.start(&[(1, -1, 0)]);
    eventually("both wait", || numbers(&set.state("waiters")) == [0, 2, 0]);
    set.0.remove().unwrap();
    assert_eq!(program.line(), "EIDRM");
    end.recv_timeout(PATIENCE).unwrap();
    waiting.claim();
    same(&mut program, &format!("op {id} 0,1,0"), Kind::Gone, done(set.operate(&[(1, -1, 0)])));
    same(&mut program, &format!("values {id}"), Kind::Gone, set.semaphore().values().map_err(named_in_help));
    same(&mut program, &format!("set {id} 0 1"), Kind::Gone, set.semaphore().set_value(1));
    same(&mut program, &format!("value {id} 0"), Kind::Gone, set.semaphore().value());
    refused(set.0.remove(), Kind::Gone, "removed");
}

/// Values are read after a look at the set, which says that it has gone without semctl's EINVAL.
fn named_in_help(error: Error) -> Error {
    error.help("EINVAL")
}

#[test]
fn what_another_user_may_not() {
    let (closed, readable) = (Key::new(), Key::new());
    let Some(mut program) = peer() else { return };
    let sets = [closed.make(",values=1,mode=0600"), readable.make(",values=0,mode=0644")];
    if program.ask("become 65534") != "ok" {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let [first, second] = [0, 1].map(|n: usize| sets[n].id());
    as_nobody(|| {
        let [first_set, second_set] = [&closed, &readable].map(|key| {
            Set(Arc::from(attach(&key.address()).expect("semget(key, 0, 0) asks for no permission")))
        });
        assert_eq!(program.ask(&format!("get {} 0 0", closed.0)), first.to_string());
        let denied = Kind::PermissionDenied;
        same(&mut program, &format!("op {first} 0,-1,0"), denied, first_set.operate(&[(0, -1, 0)]));
        same(&mut program, &format!("op {first} 0,0,0"), denied, first_set.operate(&[(0, 0, 0)]));
        same(&mut program, &format!("value {first} 0"), denied, first_set.semaphore().value());
        same(&mut program, &format!("set {first} 0 1"), denied, first_set.semaphore().set_value(1));
        same(&mut program, &format!("values {first}"), denied, first_set.semaphore().values());
        same(&mut program, &format!("set-all {first} 1"), denied, first_set.semaphore().set_values(&[1]));
        same(&mut program, &format!("op {second} 0,1,0"), denied, second_set.semaphore().post(1));
        let lease = second_set.semaphore().acquire(&[(0, 1, 0)]).map(|attempt| attempt.map(drop));
        same(&mut program, &format!("op {second} 0,1,0"), denied, lease);
        // Reading is enough to wait for zero.
        assert_eq!(program.ask(&format!("op {second} 0,0,0")), "ok");
        assert!(matches!(second_set.operate(&[(0, 0, 0)]), Ok(Attempt::Done(()))));
        same(&mut program, &format!("mode {second} 0666"), denied, {
            second_set.0.set_permissions(Permissions { mode: Some(0o666), ..Permissions::default() })
        });
        same(&mut program, &format!("remove {second}"), denied, second_set.0.remove());
        // Listed all the same, without what may not be read.
        let row = listed(first).expect("everybody may see that it is there");
        assert!(!row.contains_key("values") && row["mode"].same(&0o600u32.into()), "{row:?}");
        assert!(listed(second).unwrap()["values"].same(&vec![0i32].into()));
    });
}

fn listed(id: i128) -> Option<Dict> {
    let row = mechanisms::by_name("sysvsem").unwrap();
    row.objects().unwrap().into_iter().find(|row| row["id"].integer() == Some(id))
}

#[test]
fn attach_waits_for_the_creator_of_a_new_set() {
    let key = Key::new();
    let Some(mut program) = peer() else { return };
    let id = program.ask(&format!("get {} 1 0{:o}", key.0, CREATE | 0o600));
    let Ok(Opening::Pending(mut pending)) = attaching(&key.address()) else { panic!("it does not wait") };
    // Its creator takes its time.
    for _ in 0..2 {
        assert!(matches!(pending(), Ok(Attempt::Wait(_))), "its values are not set");
    }
    assert_eq!(program.ask(&format!("set {id} 0 4")), "ok");
    assert_eq!(program.ask(&format!("op {id} 0,1,0")), "ok");
    let endpoint = done(Opening::Pending(pending)).unwrap();
    assert_eq!(endpoint.semaphore().unwrap().value().unwrap(), 5);
    assert!(endpoint.inspect().unwrap()["initialised"].same(&true.into()));

    // One that never says so is waited for a second.
    let silent = Key::new();
    program.ask(&format!("get {} 1 0{:o}", silent.0, CREATE | 0o600));
    let start = Instant::now();
    let endpoint = attach(&silent.address()).unwrap();
    assert!(endpoint.inspect().unwrap()["initialised"].same(&false.into()));
    assert!(start.elapsed() < PATIENCE);
}

/// A set that is removed at the end.
struct Removed(Set);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = self.0.0.remove();
    }
}

#[test]
fn keys_of_all_kinds() {
    let program = peer();
    let private = Removed(Set(Arc::from(create("sysvsem:key=private,count=2").unwrap())));
    let random = Removed(Set(Arc::from(create("sysvsem:key=random").unwrap())));
    let file = TemporaryPath::new();
    std::fs::write(&file.0, "").unwrap();
    let of_path = format!("sysvsem:path={},project=65", file.text());
    let by_path = Removed(Set(Arc::from(create(&of_path).unwrap())));
    let (private, random, by_path) = (&private.0, &random.0, &by_path.0);
    assert_eq!(private.0.address().to_string(), format!("sysvsem:id={}", private.id()));
    assert_eq!(private.values(), [0, 0]);
    let key = random.state("key").integer().unwrap();
    assert!(key != 0 && random.0.address().to_string() == format!("sysvsem:key=0x{key:x}"));
    if let Some(mut program) = program {
        let key = by_path.state("key").integer().unwrap() as u32 as i32;
        assert_eq!(program.ask(&format!("get {key} 0 0")), by_path.id().to_string(), "ftok(3)");
    }
    assert_eq!(attach(&of_path).unwrap().inspect().unwrap()["id"].integer(), Some(by_path.id()));
    refused(create(&of_path), Kind::Exists, "EEXIST");
    for set in [private, random, by_path] {
        let id = format!("sysvsem:id={}", set.id());
        set.0.remove().unwrap();
        refused(attach(&id), Kind::NotFound, "no semaphore set with id");
    }
    refused(attach(&of_path), Kind::NotFound, "ENOENT");
}

#[test]
fn the_kernel_undoes_leases_of_a_process_that_is_killed() {
    const ADDRESS: &str = "SEMAPHORE_LEASES_OF";
    if let Some(address) = std::env::var_os(ADDRESS) {
        return hold_leases(address.to_str().unwrap());
    }
    let key = Key::new();
    let set = key.make(",values=5+0");
    // This test again, as the process that holds them.
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_kernel_undoes_leases_of_a_process_that_is_killed"])
        .env(ADDRESS, key.address())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .map(waiting::Child)
        .unwrap();
    eventually("it holds them", || set.values() == [2, 4]);
    assert!(set.state("stale").same(&false.into()));
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    assert_eq!(set.values(), [5, 0]);
}

/// Until it is killed, or who started it has gone.
fn hold_leases(address: &str) {
    let set = attach(address).unwrap();
    let semaphore = set.semaphore().unwrap();
    let take = |operations: &[SemaphoreOperation]| match semaphore.acquire(operations).unwrap() {
        Attempt::Done(held) => held,
        Attempt::Wait(other) => panic!("{other:?}"),
    };
    let _held = [take(&[(0, -1, 0), (1, 4, 0)]), take(&[(0, -2, 0)])];
    _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_set_whose_holder_died_is_stale() {
    let key = Key::new();
    let Some(mut program) = peer() else { return };
    let set = key.make(",values=1+1");
    let id = set.id();
    assert_eq!(program.ask(&format!("op {id} 0,-1,{UNDO}")), "ok");
    assert!(set.state("stale").same(&false.into()), "it lives");
    drop(program);
    assert_eq!(set.values(), [1, 1], "SEM_UNDO");
    assert!(set.state("stale").same(&false.into()));

    let mut program = peer().unwrap();
    assert_eq!(program.ask(&format!("op {id} 0,-1,{NOWAIT}")), "ok");
    drop(program);
    assert_eq!(set.values(), [0, 1]);
    assert!(set.state("stale").same(&true.into()));
    assert!(listed(id).unwrap()["stale"].same(&true.into()));
    set.semaphore().post(1).unwrap();
    assert!(set.state("stale").same(&false.into()), "repaired");
    assert!(matches!(set.semaphore().wait(), Ok(Attempt::Done(()))));
    assert!(set.state("stale").same(&false.into()), "we live");
}
