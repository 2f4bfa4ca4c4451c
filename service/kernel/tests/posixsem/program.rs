//! Against a C program: unnamed semaphores at an offset in memory, holders that die, and every errno.

use std::sync::Arc;

use ipc_kernel::{Attempt, Dict, Endpoint, Kind, mechanisms};

use crate::{Name, peer::*, users, value, waiting};

const C: &str = include_str!("../peer/sem.c");

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
    let rows = mechanisms::by_name("posixsem").unwrap().objects().unwrap();
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
