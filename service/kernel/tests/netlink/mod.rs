//! What the tests of netlink share: a network namespace of their own, `ip` in it, and a listener.

#![allow(dead_code, clippy::unwrap_used)] // Every test binary uses its own part; a test fails by panicking.

pub mod facts;
pub mod world;

use std::{
    io::{Seek, Write},
    process::{Child, Command, Stdio},
    thread,
};

use ipc_kernel::{
    Attempt, Result,
    netlink::{Event, Source, route::Routes},
};
use serde_json::Value;

use crate::waiting::{PATIENCE, wait};

/// Runs a test on a thread in a network namespace of its own, which ends with it. What the thread
/// starts is in there, too.
pub fn in_a_namespace(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a system call without pointers; it changes this thread alone.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                eprintln!("SKIPPED: no network namespace: {}", std::io::Error::last_os_error());
                return;
            }
            if Command::new("ip").arg("-V").output().is_err() {
                eprintln!("SKIPPED: ip (Debian package iproute2) is not installed");
                return;
            }
            // Addresses are there at once, and nothing is sent that the test did not send.
            for (setting, value) in
                [("accept_dad", "0"), ("dad_transmits", "0"), ("router_solicitations", "0")]
            {
                for which in ["all", "default"] {
                    _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/{setting}"), value);
                }
            }
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs `ip` with these words.
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs many commands of `ip`, of which some may fail.
pub fn ip_batch(commands: &[String]) {
    start_batch(commands).wait().unwrap();
}

/// Starts many commands of `ip`, of which some may fail.
pub fn start_batch(commands: &[String]) -> Child {
    // In a file, as nobody would be there to fill a pipe.
    let mut file = tempfile::tempfile().unwrap();
    for command in commands {
        writeln!(file, "{command}").unwrap();
    }
    file.rewind().unwrap();
    let mut ip = Command::new("ip");
    ip.args(["-force", "-batch", "-"]).stdin(file).stdout(Stdio::null()).stderr(Stdio::null());
    ip.spawn().unwrap()
}

/// What `ip -j` says: a list of objects.
pub fn ip_json(words: &str) -> Vec<Value> {
    let output = Command::new("ip").args(["-j", "-d"]).args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    if output.stdout.trim_ascii().is_empty() {
        return Vec::new();
    }
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    // An object without members stands for what a filter of `ip` left out.
    rows.into_iter().filter(|row| row.as_object().is_some_and(|row| !row.is_empty())).collect()
}

/// All that has happened so far.
pub fn told(routes: &mut Routes) -> Vec<Event> {
    let mut events = Vec::new();
    while let Attempt::Done(some) = routes.next().unwrap() {
        assert!(!some.is_empty());
        events.extend(some);
    }
    events
}

/// The next events that there are, waited for.
pub fn wait_for(source: &mut dyn Source) -> Vec<Event> {
    loop {
        match source.next().unwrap() {
            Attempt::Done(events) => return events,
            Attempt::Wait(readiness) => assert!(wait(readiness, PATIENCE), "nothing was told"),
        }
    }
}

/// The one event that there is.
pub fn one(routes: &mut Routes) -> Event {
    let mut events = told(routes);
    assert_eq!(events.len(), 1, "{events:#?}");
    events.remove(0)
}

/// Opens the source, with everything there already.
pub fn open() -> Routes {
    let mut routes = Routes::open().unwrap();
    assert!(told(&mut routes).is_empty(), "what was there before is no event");
    routes
}

/// The rows of a snapshot that was asked for.
pub fn snapshot<T>(rows: Result<Vec<T>>) -> Vec<T> {
    rows.unwrap()
}

/// What the service says beside what `ip` says.
pub type Compared = Vec<(&'static str, facts::All, facts::All)>;

/// Compares until both are the same: what the kernel does on its own settles a little later, and that
/// is told. `compare` gets what was told since the last time.
pub fn until_same(routes: &mut Routes, mut compare: impl FnMut(&mut Routes, Vec<Event>) -> Compared) {
    let mut events = told(routes);
    loop {
        let compared = compare(routes, events);
        if compared.iter().all(|(_, ours, theirs)| ours == theirs) {
            return;
        }
        events = match routes.next().unwrap() {
            Attempt::Done(events) => events,
            Attempt::Wait(readiness) => {
                if !wait(readiness, PATIENCE) {
                    compared
                        .into_iter()
                        .for_each(|(what, ours, theirs)| facts::assert_same(what, ours, theirs));
                }
                told(routes)
            }
        };
    }
}
