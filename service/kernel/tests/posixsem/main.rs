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

#[path = "../peer/mod.rs"]
mod peer;
mod program;
#[path = "../waiting/mod.rs"]
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
    let rows = mechanisms::by_name("posixsem").unwrap().objects().unwrap();
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
