//! The front's side: requests, and what becomes of workers and fronts that end.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use ipc_spawner::client;
use ipc_spawner::protocol::{Refusal, Reply, Request};
use rustix::net::{SendFlags, send as send_bytes};
use rustix::process::{Pid, Signal, kill_process};

use crate::forked::{become_user, exit, forked};
use crate::spawner::{Spawner, ask, await_readable, call, identity, is_closed, pidfd, reply, send, start};
use crate::worker::Status;

const UID: u32 = 54_321;

fn kill(name: &str) -> Request {
    Request::Kill { name: name.into() }
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub fn malformed_requests_are_refused() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let good = Request::Examine { uid: 0 }.encode();
    let mut version = good;
    version[0] ^= 0xff;
    let long = [good.as_slice(), &[0]].concat();
    for bad in [&good[1..], &version, &long, b"x"] {
        send_bytes(&front, bad, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(reply(&front).0, Reply::Refused(Refusal::Malformed));
    }
    // It goes on, and descriptors that came with nonsense are not kept.
    let before = fs::read_dir(format!("/proc/{}/fd", spawner.pid())).unwrap().count();
    send(&front, "nonsense", Some(front.as_fd()));
    assert_eq!(reply(&front).0, Reply::Refused(Refusal::Malformed));
    // When the next one is answered, it is done with the one before.
    assert_eq!(call(&front, &kill("w"), None).0, Reply::Refused(Refusal::NoSuchWorker));
    assert_eq!(fs::read_dir(format!("/proc/{}/fd", spawner.pid())).unwrap().count(), before);
}

pub fn another_user_is_refused() {
    let spawner = Spawner::serve();
    for uid in [UID, 0] {
        assert!(is_closed(&spawner.connect_as(uid)));
    }
    start(&spawner.connect(), "w", identity(UID, UID, &[]));
}

pub fn one_at_a_time() {
    let spawner = Spawner::serve();
    let first = spawner.connect();
    let second = spawner.connect();
    client::send(&second, &kill("w"), None).unwrap();
    // Were both read, the second would be answered before the first, which asks later.
    for _ in 0..100 {
        call(&first, &kill("w"), None);
    }
    assert!(client::receive(&second).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    drop(first);
    assert_eq!(reply(&second).0, Reply::Refused(Refusal::NoSuchWorker));
}

pub fn kill_ends_a_worker_by_name() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let (pid, control) = start(&front, "w-a", identity(UID, UID, &[]));
    let (_, other) = start(&front, "w-b", identity(UID, UID, &[]));
    let pidfd = pidfd(pid);
    // Stopped, as a stuck one: it ends all the same.
    signal(pid, Signal::STOP);
    assert_eq!(call(&front, &kill("w-a"), None).0, Reply::Killed);
    await_readable(&pidfd);
    assert!(is_closed(&control));
    // The spawner may see its end only after the next request, so this one comes first.
    call(&front, &kill("w-none"), None);
    assert_eq!(call(&front, &kill("w-a"), None).0, Reply::Refused(Refusal::NoSuchWorker));
    assert!(ask(&other, "facts").contains("variables 0"));
    // A process that is no worker of its own has no name, whoever it is.
    assert_eq!(call(&front, &kill("1"), None).0, Reply::Refused(Refusal::NoSuchWorker));
}

pub fn workers_outlive_the_spawner() {
    let mut spawner = Spawner::serve();
    let (pid, control) = start(&spawner.connect(), "w", identity(UID, UID, &[]));
    assert!(spawner.terminate().success());
    assert!(ask(&control, "facts").contains("variables 0"));
    let pidfd = pidfd(pid);
    drop(control);
    await_readable(pidfd);
}

pub fn is_restarted_with_the_workers() {
    let spawner = Spawner::supervise();
    let first = spawner.front();
    assert!(first.carried, "NOTIFY_SOCKET has not reached the front");
    assert_eq!(first.workers.len(), 0);
    let (worker, control) = start(&first.spawner, "w-a", identity(UID, UID, &[]));
    let (dead, dead_control) = start(&first.spawner, "w-b", identity(UID, UID, &[]));
    let (killed, _) = start(&first.spawner, "w-c", identity(UID, UID, &[]));
    let (dead, killed) = (pidfd(dead), pidfd(killed));
    signal_and_wait(&dead, &dead_control);
    assert_eq!(call(&first.spawner, &kill("w-c"), None).0, Reply::Killed);
    await_readable(killed);
    // The front has two sockets; the standard streams; and nothing of the spawner's.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", first.pid)).unwrap().count();
    assert_eq!(descriptors, 5);
    drop(control);
    let (Reply::Started { pid: herald }, _) = call(&first.spawner, &Request::Herald, None) else {
        panic!("the herald was not started");
    };
    let herald = pidfd(herald.cast_signed());

    signal(first.pid, Signal::KILL);
    let second = spawner.front();
    assert_ne!(second.pid, first.pid);
    // It is this front's alone.
    await_readable(herald);
    let names: Vec<_> = second.workers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["w-a"]);
    let control = &second.workers[0].1;
    assert!(ask(control, "facts").contains("variables 0"));
    assert!(is_closed(&first.spawner));
    assert_eq!(call(&second.spawner, &kill("w-b"), None).0, Reply::Refused(Refusal::NoSuchWorker));

    // To close the socket would not end the worker, for the spawner has a duplicate; this does.
    let worker = pidfd(worker);
    rustix::net::shutdown(control, rustix::net::Shutdown::Both).unwrap();
    await_readable(worker);
}

fn signal_and_wait(pidfd: impl AsFd, control: &std::os::fd::OwnedFd) {
    rustix::process::pidfd_send_signal(&pidfd, Signal::TERM).unwrap();
    await_readable(pidfd);
    assert!(is_closed(control));
}

pub fn is_its_user_and_nothing_else() {
    let spawner = Spawner::supervise();
    let front = spawner.front();
    let status = Status::of(front.pid);
    assert_eq!(status.field("Uid"), ["1"; 4]);
    assert_eq!(status.field("Gid"), ["1"; 4]);
    assert_eq!(status.field("Groups"), ["1"]);
    status.assert_powerless();
    assert_eq!(status.field("Name"), ["ipcd-front"]);
    assert_eq!(fs::read(format!("/proc/{}/environ", front.pid)).unwrap(), b"");
    assert_eq!(fs::metadata(format!("/proc/{}/mem", front.pid)).unwrap().uid(), 0, "it is dumpable");
}

/// The spawner says what is wrong before it does anything.
pub fn only_root_and_before_all_threads() {
    let wrong = |prepare: fn(), expected: &str| {
        let attempt = forked(|| {
            prepare();
            let error = ipc_spawner::supervise("daemon").unwrap_err().to_string();
            exit(i32::from(!error.contains(expected)));
        });
        assert_eq!(attempt.status(), 0, "{expected}");
    };
    wrong(|| become_user(UID), "start ipcd as root");
    wrong(|| {}, "the environment must be empty");
    // SAFETY: a fork has one thread.
    let clear = || std::env::vars_os().for_each(|(name, _)| unsafe { std::env::remove_var(name) });
    let attempt = forked(|| {
        clear();
        // It runs until the process ends.
        let _thread = std::thread::spawn(std::thread::park);
        let error = ipc_spawner::supervise("daemon").unwrap_err().to_string();
        assert!(ipc_spawner::supervise("no such user").is_err());
        exit(i32::from(!error.contains("before any thread")));
    });
    assert_eq!(attempt.status(), 0, "with a thread");
}

pub fn sigterm_ends_all() {
    let mut spawner = Spawner::supervise();
    let front = spawner.front();
    let (worker, _control) = start(&front.spawner, "w-a", identity(UID, UID, &[]));
    let (stopped, _other) = start(&front.spawner, "w-b", identity(UID, UID, &[]));
    // It heeds neither SIGTERM nor its socket.
    signal(stopped, Signal::STOP);
    let ended = [pidfd(front.pid), pidfd(worker), pidfd(stopped)];
    assert!(spawner.terminate().success());
    for pidfd in &ended {
        await_readable(pidfd);
    }
}

pub fn exit_status_decides() {
    for (status, success) in [("0", true), ("78", false)] {
        let mut spawner = Spawner::supervise();
        let front = spawner.front();
        send(&front.test, status, None);
        assert_eq!(spawner.wait().success(), success, "front ended with {status}");
    }
    let spawner = Spawner::supervise();
    for _ in 0..3 {
        send(&spawner.front().test, "1", None);
    }
    spawner.front();
}
