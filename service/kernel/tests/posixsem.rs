//! Named semaphores against glibc's own sem_open, sem_wait, sem_post and sem_getvalue, called
//! from Python by ctypes.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
};

use ipc_kernel::{
    Attempt, Dict, Endpoint, Kind, Readiness, Value, dict,
    mechanism::{Adoption, Permissions},
    mechanisms,
    word::{self, Watched},
};

mod peer;
#[path = "waiting/mod.rs"]
mod users;
use peer::*;

/// Says what sem_getvalue says, or "ok" or an errno, for each command; `wait N` starts N threads
/// that each say "woken".
const PROGRAM: &str = r#"
import ctypes, sys, threading, os
libc = ctypes.CDLL(None, use_errno=True)
if not hasattr(libc, "sem_open"):
    libc = ctypes.CDLL("libpthread.so.0", use_errno=True)
libc.sem_open.restype = ctypes.c_void_p
name = sys.argv[1].encode()
if len(sys.argv) > 2:
    os.umask(0)
    sem = libc.sem_open(name, os.O_CREAT | os.O_EXCL, 0o640, int(sys.argv[2]))
else:
    sem = libc.sem_open(name, 0)
if not sem:
    print("sem_open:", os.strerror(ctypes.get_errno())); sys.exit()
sem = ctypes.c_void_p(sem)
lock = threading.Lock()
def say(text):
    with lock:
        print(text, flush=True)
def wait():
    while libc.sem_wait(sem) != 0: pass
    say("woken")
say("ready")
for line in sys.stdin:
    words = line.split()
    if words[0] == "value":
        n = ctypes.c_int(); libc.sem_getvalue(sem, ctypes.byref(n)); say(n.value)
    elif words[0] == "post":
        say("ok" if libc.sem_post(sem) == 0 else ctypes.get_errno())
    elif words[0] == "trywait":
        say("ok" if libc.sem_trywait(sem) == 0 else ctypes.get_errno())
    elif words[0] == "wait":
        for _ in range(int(words[1])): threading.Thread(target=wait, daemon=True).start()
"#;

/// A semaphore's name, unlinked at the end.
struct Name(String);

impl Name {
    fn new() -> Self {
        Self(format!("/{}", unique()))
    }

    fn address(&self) -> String {
        format!("posixsem:name={}", self.0)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/shm/sem.{}", &self.0[1..]))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
    }
}

fn made(name: &Name, value: u32) -> Arc<dyn Endpoint> {
    Arc::from(create(&format!("{},value={value}", name.address())).unwrap())
}

fn value(endpoint: &dyn Endpoint) -> i32 {
    endpoint.semaphore().unwrap().value().unwrap()
}

/// As the word says; `Inspect()` would look into every process each time.
fn waiters(name: &Name) -> u32 {
    let bytes = std::fs::read(name.path()).unwrap();
    u32::from_le_bytes(bytes[4..8].try_into().unwrap())
}

/// Waits on a thread, as the engine does.
fn waiting(endpoint: &Arc<dyn Endpoint>) -> JoinHandle<ipc_kernel::Result<()>> {
    let endpoint = endpoint.clone();
    thread::spawn(move || {
        loop {
            match endpoint.semaphore().unwrap().wait()? {
                Attempt::Done(()) => return Ok(()),
                Attempt::Wait(Readiness::Word(wait)) => {
                    let watched = Watched::Shared {
                        mapping: wait.mapping.clone(),
                        offset: wait.offset,
                        expected: wait.expected,
                    };
                    word::wait_any(&[watched])?;
                }
                Attempt::Wait(other) => panic!("a semaphore waits for its word, not {other:?}"),
            }
        }
    })
}

#[test]
fn a_program_finds_what_we_made_and_we_find_what_it_made() {
    let (ours, theirs) = (Name::new(), Name::new());
    let endpoint = made(&ours, 3);
    let Some(mut program) = Peer::start(PROGRAM, &[&ours.0]) else { return };
    assert_eq!(program.ask("value"), "3");
    assert_eq!(program.ask("trywait"), "ok");
    assert_eq!(value(&*endpoint), 2);
    endpoint.semaphore().unwrap().post(5).unwrap();
    assert_eq!(program.ask("value"), "7");

    let Some(mut program) = Peer::start(PROGRAM, &[&theirs.0, "7"]) else { return };
    assert_eq!(std::fs::read(theirs.path()).unwrap(), std::fs::read(ours.path()).unwrap());
    let endpoint = attach(&theirs.address()).unwrap();
    assert_eq!(endpoint.address().to_string(), theirs.address());
    assert!(matches!(endpoint.semaphore().unwrap().wait(), Ok(Attempt::Done(()))));
    assert_eq!(program.ask("value"), "6");
    let state = endpoint.inspect().unwrap();
    assert_eq!(state["mode"].integer(), Some(0o640));
    let Value::Dicts(holders) = &state["holders"] else { panic!("holders are dictionaries") };
    let holds = |pid| holders.iter().any(|row| row["pid"].integer() == Some(i128::from(pid)));
    assert!(holds(program.pid()) && holds(std::process::id()), "{holders:?}");
}

#[test]
fn our_post_wakes_a_program_in_sem_wait() {
    let name = Name::new();
    let endpoint = made(&name, 0);
    let Some(mut program) = Peer::start(PROGRAM, &[&name.0]) else { return };
    program.tell("wait 1");
    eventually("the program waits", || waiters(&name) == 1);
    endpoint.semaphore().unwrap().post(1).unwrap();
    assert_eq!(program.line(), "woken");
    assert_eq!((value(&*endpoint), waiters(&name)), (0, 0));
}

#[test]
fn sem_post_of_a_program_wakes_our_wait() {
    let name = Name::new();
    let endpoint = made(&name, 0);
    let Some(mut program) = Peer::start(PROGRAM, &[&name.0]) else { return };
    let thread = waiting(&endpoint);
    eventually("we wait", || waiters(&name) == 1);
    assert_eq!(endpoint.inspect().unwrap()["waiters"].integer(), Some(1));
    assert_eq!(program.ask("post"), "ok");
    thread.join().unwrap().unwrap();
    assert_eq!((value(&*endpoint), waiters(&name)), (0, 0));
}

#[test]
fn many_waiters_of_both_kinds_get_one_each() {
    let name = Name::new();
    let endpoint = made(&name, 0);
    let Some(mut program) = Peer::start(PROGRAM, &[&name.0]) else { return };
    program.tell("wait 8");
    let threads: Vec<_> = (0..8).map(|_| waiting(&endpoint)).collect();
    eventually("all wait", || waiters(&name) == 16);
    // "ok" for each post and "woken" for each thread, in any order.
    for _ in 0..3 {
        program.tell("post");
    }
    endpoint.semaphore().unwrap().post(13).unwrap();
    let mut said: Vec<_> = (0..11).map(|_| program.line()).collect();
    said.sort();
    assert_eq!(said, [["ok"; 3].as_slice(), &["woken"; 8]].concat());
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    assert_eq!((value(&*endpoint), waiters(&name)), (0, 0));
}

#[test]
fn a_wait_that_is_given_up_passes_its_wake_up_on() {
    let name = Name::new();
    let endpoint = made(&name, 0);
    let Some(mut program) = Peer::start(PROGRAM, &[&name.0]) else { return };
    let attempt = endpoint.semaphore().unwrap().wait().unwrap();
    program.tell("wait 1");
    eventually("both wait", || waiters(&name) == 2);
    // One is there to take, and the wake-up for it came to us.
    let file = std::fs::File::options().write(true).open(name.path()).unwrap();
    rustix::io::pwrite(&file, &1u32.to_le_bytes(), 0).unwrap();
    drop(attempt);
    assert_eq!(program.line(), "woken");
    assert_eq!((value(&*endpoint), waiters(&name)), (0, 0));
}

#[test]
fn a_truncated_semaphore_is_gone_and_harmless() {
    let name = Name::new();
    let endpoint = made(&name, 0);
    let attempt = endpoint.semaphore().unwrap().wait().unwrap();
    let Attempt::Wait(Readiness::Word(wait)) = &attempt else { panic!("it has to wait") };
    std::fs::File::options().write(true).open(name.path()).unwrap().set_len(0).unwrap();
    let watched =
        Watched::Shared { mapping: wait.mapping.clone(), offset: wait.offset, expected: wait.expected };
    assert_eq!(word::wait_any(&[watched]).unwrap(), None, "one of many words does not stop the others");
    drop(attempt);
    let semaphore = endpoint.semaphore().unwrap();
    refused(semaphore.wait(), Kind::Gone, "truncated");
    refused(semaphore.post(1), Kind::Gone, "truncated");
    refused(semaphore.value(), Kind::Gone, "truncated");
    refused(attach(&name.address()), Kind::InvalidArgument, "it has 0 bytes");
}

#[test]
fn names_and_values_are_checked() {
    for (name, phrase) in [
        ("jobs", "does not begin with '/'"),
        ("/", "is empty"),
        ("/a/b", "second '/'"),
        (&format!("/{}", "x".repeat(252)), "is too long"),
    ] {
        refused(create(&format!("posixsem:name={name}")), Kind::InvalidArgument, phrase);
        refused(attach(&format!("posixsem:name={name}")), Kind::InvalidArgument, phrase);
    }
    refused(create("posixsem:value=1"), Kind::InvalidArgument, "\"name\" is missing");
    let name = Name::new();
    let longest = Name(format!("{}{}", name.0, "x".repeat(252 - name.0.len())));
    made(&longest, 0);
    refused(create(&format!("{},value=2147483648", name.address())), Kind::InvalidArgument, "2147483647");
    refused(attach(&name.address()), Kind::NotFound, "No such file");

    let endpoint = create(&name.address()).unwrap();
    assert_eq!(value(&*endpoint), 1, "the default");
    refused(create(&name.address()), Kind::Exists, "File exists");
    let semaphore = endpoint.semaphore().unwrap();
    refused(semaphore.post(0), Kind::InvalidArgument, "at least 1");
    refused(semaphore.post(2_147_483_647), Kind::LimitExceeded, "SEM_VALUE_MAX");
    assert_eq!(value(&*endpoint), 1, "all or nothing");
    semaphore.post(2_147_483_646).unwrap();
    assert_eq!(value(&*endpoint), i32::MAX);
    refused(semaphore.set_values(&[1]), Kind::NotSupported, "no operation that sets the value");
}

#[test]
fn attach_takes_only_semaphores() {
    let name = Name::new();
    let path = name.path();
    let address = name.address();
    std::fs::write(&path, [0; 16]).unwrap();
    refused(attach(&address), Kind::InvalidArgument, "it has 16 bytes and not 32");
    std::fs::write(&path, [0; 32]).unwrap();
    refused(attach(&address), Kind::InvalidArgument, "not the mark");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    refused(attach(&address), Kind::InvalidArgument, "a pipe or FIFO");
    std::fs::remove_file(&path).unwrap();
    let target = Name::new();
    made(&target, 1);
    std::os::unix::fs::symlink(target.path(), &path).unwrap();
    refused(attach(&address), Kind::InvalidArgument, "a symbolic link");
}

#[test]
fn permissions_and_removal() {
    let name = Name::new();
    let endpoint = create(&format!("{},mode=0622", name.address())).unwrap();
    let mode = || endpoint.inspect().unwrap()["mode"].integer().unwrap();
    assert_eq!(mode(), 0o622, "exact whatever the umask");
    endpoint.set_permissions(Permissions { mode: Some(0o660), ..Permissions::default() }).unwrap();
    assert_eq!(mode(), 0o660);
    assert!(endpoint.inspect().unwrap()["detached"].same(&Value::Bool(false)));

    let other = attach(&name.address()).unwrap();
    endpoint.remove().unwrap();
    assert!(!name.path().exists());
    refused(other.remove(), Kind::Gone, "removed already");
    other.semaphore().unwrap().post(1).unwrap();
    assert_eq!(value(&*endpoint), 2, "those who have it open keep it");
    assert!(other.inspect().unwrap()["detached"].same(&Value::Bool(true)));

    let successor = made(&name, 9);
    refused(other.remove(), Kind::Gone, "another object has taken this name");
    assert_eq!(value(&*successor), 9);
}

#[test]
fn the_list_is_what_is_in_dev_shm() {
    let (name, noise) = (Name::new(), Name::new());
    let _endpoint = made(&name, 4);
    std::fs::write(noise.path(), "no semaphore").unwrap();
    let Some(program) = Peer::start(PROGRAM, &[&name.0]) else { return };
    let rows = (mechanisms::by_name("posixsem").unwrap().list)().unwrap();
    let find = |name: &Name| rows.iter().find(|row| row["name"].same(&name.0.as_str().into()));
    assert!(find(&noise).is_none());
    let row = find(&name).unwrap();
    let listed = dict! { "value" => 4, "waiters" => 0u32, "mode" => 0o600u32, "address" => name.address() };
    for (key, value) in &listed {
        assert!(row[key].same(value), "{key}: {:?}", row[key]);
    }
    let Value::Dicts(holders) = &row["holders"] else { panic!("holders are dictionaries") };
    assert!(holders.iter().any(|row| row["pid"].integer() == Some(i128::from(program.pid()))));
    let columns = mechanisms::by_name("posixsem").unwrap().columns;
    assert!(row.keys().all(|key| columns.iter().any(|column| column.key == key)), "{row:?}");
}

#[test]
fn an_fd_of_a_semaphore_is_adopted_as_one() {
    let name = Name::new();
    let endpoint = made(&name, 2);
    let mut fd = endpoint.open(&options("posixsem", "")).unwrap();
    assert_eq!(rustix::fs::fstat(fd.as_fd()).unwrap().st_size, 32);
    for row in mechanisms::ALL {
        match (row.adopt)(fd).unwrap() {
            Adoption::Taken(adopted) => {
                assert_eq!(adopted.address().to_string(), name.address());
                assert!(matches!(adopted.semaphore().unwrap().wait(), Ok(Attempt::Done(()))));
                assert_eq!(value(&*endpoint), 1);
                return;
            }
            Adoption::Refused(back) => fd = back,
        }
    }
    panic!("nobody took it");
}

#[test]
fn limits_and_availability() {
    let row = mechanisms::by_name("posixsem").unwrap();
    (row.available)().unwrap();
    let limits: Dict = (row.limits)();
    assert_eq!(limits["SEM_VALUE_MAX"].integer(), Some(2_147_483_647));
    assert!(limits["shm-free"].integer() <= limits["shm-size"].integer());
}

const C: &str = include_str!("peer/sem.c");

/// Shared memory of two pages, unlinked at the end.
struct Pool(String);

impl Pool {
    fn new() -> Self {
        let name = unique();
        std::fs::write(format!("/dev/shm/{name}"), [0; 8192]).unwrap();
        Self(format!("/{name}"))
    }

    fn path(&self) -> String {
        format!("/dev/shm{}", self.0)
    }

    fn address(&self, offset: u64) -> String {
        format!("posixsem:shm={},offset={offset}", self.0)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
    }
}

#[test]
fn an_unnamed_semaphore_is_shared_both_ways() {
    let pool = Pool::new();
    let Some(mut program) = Peer::compiled(C) else { return };
    // Across the border of a page there is none: the alignment keeps it within 8 bytes, not 32.
    let ours: Arc<dyn Endpoint> = Arc::from(create(&format!("{},value=2", pool.address(4080))).unwrap());
    assert_eq!(ours.address().to_string(), pool.address(4080));
    assert_eq!(program.ask(&format!("memory {} 4080", pool.0)), "ok");
    assert_eq!((program.ask("getvalue"), program.ask("trywait")), ("2".into(), "ok".into()));
    assert_eq!(value(&*ours), 1);
    take(&*ours);
    program.tell("background wait");
    eventually("it waits", || ours.inspect().unwrap()["waiters"].integer() == Some(1));
    ours.semaphore().unwrap().post(1).unwrap();
    assert_eq!(program.line(), "woken");
    let thread = waiting(&ours);
    eventually("we wait", || ours.inspect().unwrap()["waiters"].integer() == Some(1));
    assert_eq!(program.ask("post"), "ok");
    thread.join().unwrap().unwrap();

    refused(attach(&pool.address(64)), Kind::NotFound, "no semaphore");
    assert_eq!(program.ask(&format!("memory {} 64", pool.0)), "ok");
    assert_eq!(program.ask("init 0 3"), "ok");
    refused(attach(&pool.address(64)), Kind::NotFound, "that processes share");
    assert_eq!(program.ask("init 1 3"), "ok");
    let theirs = attach(&pool.address(64)).unwrap();
    assert_eq!(value(&*theirs), 3);
    refused(create(&pool.address(64)), Kind::Exists, "Attach uses it");
    let by_path = attach(&format!("posixsem:path={},offset=64", pool.path())).unwrap();
    by_path.semaphore().unwrap().post(1).unwrap();
    assert_eq!(program.ask("getvalue"), "4");
    theirs.remove().unwrap();
    refused(by_path.semaphore().unwrap().post(1), Kind::Gone, "overwritten");
    refused(theirs.remove(), Kind::Gone, "none any more");
    refused(attach(&pool.address(64)), Kind::NotFound, "no semaphore");
    create(&pool.address(64)).unwrap();
    assert_eq!(program.ask("getvalue"), "1", "the default");
}

#[test]
fn an_unnamed_semaphore_in_a_segment() {
    // SAFETY: system calls without pointers.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) };
    struct Removed(i32);
    impl Drop for Removed {
        fn drop(&mut self) {
            // SAFETY: the command ignores its pointer.
            unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
        }
    }
    let _removed = Removed(id);
    let Some(mut program) = Peer::compiled(C) else { return };
    let endpoint = create(&format!("posixsem:shmid={id},offset=8,value=0")).unwrap();
    assert_eq!(program.ask(&format!("segment {id} 8")), "ok");
    program.tell("background wait");
    eventually("it waits", || endpoint.inspect().unwrap()["waiters"].integer() == Some(1));
    endpoint.semaphore().unwrap().post(1).unwrap();
    assert_eq!(program.line(), "woken");
    refused(endpoint.open(&options("posixsem", "")), Kind::NotSupported, "no file descriptor");
}

#[test]
fn places_are_checked() {
    let pool = Pool::new();
    let name = Name::new();
    let both = format!("{},shm={}", name.address(), pool.0);
    refused(create(&both), Kind::InvalidArgument, "either the name");
    refused(create("posixsem:offset=8"), Kind::InvalidArgument, "\"name\" is missing");
    refused(create(&pool.address(4)), Kind::InvalidArgument, "multiple of 8");
    refused(create(&pool.address(8168)), Kind::InvalidArgument, "8192 bytes");
    refused(create(&pool.address(u64::MAX - 7)), Kind::InvalidArgument, "8192 bytes");
    refused(create("posixsem:shm=/no-such-pool"), Kind::NotFound, "ENOENT");
    let on_disk = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique());
    std::fs::write(&on_disk, [0; 4096]).unwrap();
    let system = rustix::fs::statfs(&on_disk).unwrap().f_type;
    let refusal = create(&format!("posixsem:path={}", on_disk.display()));
    std::fs::remove_file(&on_disk).unwrap();
    if system as u64 == libc::TMPFS_MAGIC as u64 {
        eprintln!("SKIPPED: the directory of the tests is on a tmpfs");
    } else {
        refused(refusal, Kind::NotSupported, "tmpfs");
    }
    let endpoint = create(&pool.address(8160)).unwrap();
    // Truncated away while we wait, and grown again.
    take(&*endpoint);
    let attempt = endpoint.semaphore().unwrap().wait().unwrap();
    let file = std::fs::File::options().write(true).open(pool.path()).unwrap();
    file.set_len(0).unwrap();
    drop(attempt);
    refused(endpoint.semaphore().unwrap().wait(), Kind::Gone, "truncated");
    refused(endpoint.semaphore().unwrap().post(1), Kind::Gone, "truncated");
    file.set_len(8192).unwrap();
    refused(endpoint.semaphore().unwrap().post(1), Kind::Gone, "overwritten");
    create(&pool.address(8160)).unwrap();
    endpoint.semaphore().unwrap().post(1).unwrap();
}

fn take(endpoint: &dyn Endpoint) {
    assert!(matches!(endpoint.semaphore().unwrap().wait(), Ok(Attempt::Done(()))));
}

/// Whether `Inspect()` calls it stale, and `List()` as well where that shows it.
fn stale(endpoint: &dyn Endpoint, name: &str) -> bool {
    let says = |row: &Dict| row["stale"].same(&true.into());
    let inspected = says(&endpoint.inspect().unwrap());
    let rows = (mechanisms::by_name("posixsem").unwrap().list)().unwrap();
    if let Some(row) = rows.iter().find(|row| row["name"].same(&name.into())) {
        assert_eq!(says(row), inspected, "{row:?}");
    }
    inspected
}

#[test]
fn a_semaphore_whose_holder_died_is_stale_until_it_is_posted() {
    let (name, pool) = (Name::new(), Pool::new());
    let Some(mut program) = Peer::compiled(C) else { return };
    for (address, opening, listed) in [
        (name.address(), format!("sem_open {} 0 0 0", name.0), name.0.as_str()),
        (pool.address(0), format!("memory {} 0", pool.0), ""),
    ] {
        let endpoint = create(&address).unwrap();
        assert!(!stale(&*endpoint, listed), "nobody has it");
        assert_eq!(program.ask(&opening), "ok");
        assert_eq!(program.ask("trywait"), "ok");
        assert!(!stale(&*endpoint, listed), "its holder lives");
        program = Peer::compiled(C).unwrap();
        assert_eq!(value(&*endpoint), 0, "a holder that dies gives nothing back");
        assert!(stale(&*endpoint, listed));
        endpoint.semaphore().unwrap().post(1).unwrap();
        assert!(!stale(&*endpoint, listed), "Post repairs");
        let Ok(Attempt::Done(lease)) = endpoint.semaphore().unwrap().acquire(&[(0, -1, 0)]) else {
            panic!("it is there to take")
        };
        assert!(!stale(&*endpoint, listed), "a lease is a holder that is known");
        assert!(endpoint.inspect().unwrap()["leases"].same(&1u32.into()));
        drop(lease);
        assert_eq!(value(&*endpoint), 1);
        refused(
            endpoint.semaphore().unwrap().acquire(&[(0, -2, 0)]).map(|_| ()),
            Kind::NotSupported,
            "at a time",
        );
        refused(
            endpoint.semaphore().unwrap().acquire(&[(1, -1, 0)]).map(|_| ()),
            Kind::NotSupported,
            "number 0",
        );
        take(&*endpoint);
        refused(
            endpoint.semaphore().unwrap().acquire(&[(0, -1, 2048)]).map(|_| ()),
            Kind::Busy,
            "IPC_NOWAIT",
        );
    }
}

fn errno_of<T>(result: ipc_kernel::Result<T>) -> String {
    errno(&result.err().unwrap())
}

#[test]
fn every_errno_of_sem_open_sem_post_and_sem_wait() {
    let Some(mut program) = Peer::compiled(C) else { return };
    let (name, missing, largest) = (Name::new(), Name::new(), Name::new());
    let flags = libc::O_CREAT | libc::O_EXCL;
    assert_eq!(program.ask(&format!("sem_open {} {flags} 0600 0", name.0)), "ok");
    let endpoint = attach(&name.address()).unwrap();
    let theirs = [
        program.ask(&format!("sem_open {} {flags} 0600 0", name.0)),
        program.ask(&format!("sem_open {} 0 0 0", missing.0)),
        program.ask("trywait"),
    ];
    let busy = match endpoint.semaphore().unwrap().wait().unwrap() {
        Attempt::Wait(_) => "EAGAIN",
        Attempt::Done(()) => "ok",
    };
    let ours = [errno_of(create(&name.address())), errno_of(attach(&missing.address())), busy.to_owned()];
    assert_eq!(ours, theirs);
    // The engine's Timeout, and what the table of parameters refuses.
    assert_eq!(program.ask("timedwait"), "ETIMEDOUT");
    assert_eq!(
        program.ask(&format!("sem_open {} {flags} 0600 -1", missing.0)),
        "EINVAL",
        "above SEM_VALUE_MAX"
    );
    refused(create(&format!("{},value=4294967295", missing.address())), Kind::InvalidArgument, "2147483647");
    let long = format!("/{}", "x".repeat(252));
    assert_eq!(program.ask(&format!("sem_open {long} {flags} 0600 0")), "ENAMETOOLONG");
    refused(create(&format!("posixsem:name={long}")), Kind::InvalidArgument, "too long");
    assert_eq!(program.ask(&format!("unlink {}", missing.0)), "ENOENT");

    assert_eq!(program.ask(&format!("sem_open {} {flags} 0600 2147483647", largest.0)), "ok");
    let full = attach(&largest.address()).unwrap();
    assert_eq!(program.ask("post"), errno_of(full.semaphore().unwrap().post(1)));
    assert_eq!(errno_of(full.semaphore().unwrap().post(1)), "EOVERFLOW");
    assert_eq!(program.ask("getvalue"), "2147483647");

    let fake = Name::new();
    std::fs::write(fake.path(), [128; 31]).unwrap();
    refused(attach(&fake.address()), Kind::InvalidArgument, "31 bytes and not 32");

    let closed = Name::new();
    create(&format!("{},mode=0600", closed.address())).unwrap();
    if program.ask("become 65534") == "ok" {
        assert_eq!(program.ask(&format!("sem_open {} 0 0 0", closed.0)), "EACCES");
        assert_eq!(users::as_nobody(|| errno_of(attach(&closed.address()))), Some("EACCES".into()));
    }
}
