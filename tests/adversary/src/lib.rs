//! The adversary suite: users of the system bus who want what is not theirs, and everything that can fail.
//!
//! Alice, bob and others are real users on a private bus of type system with the *shipped* policy (the harness's
//! [`SystemBus`](ipc_harness::SystemBus)); what they send is made by hand (`wire`, [`Raw`]), for libraries refuse to
//! send what an attacker would. Each row of the design's tables is a test that bears its name: `who.rs` has the
//! rows A (who is calling), `whose.rs` B (whose object), `paths.rs` C (paths, descriptors, memory),
//! `exhaustion.rs` and `quotas.rs` D, `faults.rs` and `resources.rs` the fault matrix. `bytes.rs` has what programs that
//! read the same bytes disagree on, `dead_files.rs` row C5, `mounts.rs` rows C6, C14 and D13 for mounts, `pids.rs` row A4. `differential.rs` proves the promise
//! behind all of them: what a caller achieves through the service, he could have done himself, with the same outcome
//! and the same errno; `memory.rs` the same of shared memory with names. `dbus.rs` is about buses
//! that callers have the service connect to. The front's and the spawner's system calls are
//! looked at in `who.rs`.
//!
//! # Rows without a test
//!
//! | row | why |
//! | --- | --- |
//! | A5, A6, A7, D11 | not applicable yet: nothing asks polkit |
//! | A15 | documented: confinement is judged on the process that connected |
//! | B10, B11, B12 for signals | not applicable yet: no mechanism sends signals; their rules for pids are tested with `lifetime=pid:N` and `pipe:pid=N` |
//! | B15 | tested with root as the liar in the black-box suite: `only_the_kernel_is_believed` |
//! | D13 for SysV | not applicable yet: no mechanism makes them |
//! | netlink ENOBUFS | tested in the black-box suite, in a network namespace: `losses_are_told` |
//! | signalfd, SysV removal | not applicable yet: no such mechanism |
//! | ENFILE, ENOMEM, suspend | they would hit the whole machine |
//! | clock jumps | no wall clock decides anything; the clock of the machine is not ours to set |
//! | FDSTORE, upgrade of the package | need systemd: tested with the package |
//! | the rescan after an inotify overflow | tested against a model of a tree in `service/kernel/tests/inotify_model.rs` |
//! | oracle 2, every check taken out once | needs a build for each; `b7` and `fake_bus` inject what can be injected from outside |

#![forbid(unsafe_code)]

mod calm;
mod dead_file;
mod fake_bus;
mod incoming;
pub mod liar;
mod raw;
mod stage;
mod streams;
pub mod wire;
pub mod xml;

pub use calm::{Latencies, pings_during};
pub use dead_file::{DeadFile, alone};
pub use fake_bus::{Credentials, FakeBus};
pub use incoming::Incoming;
pub use liar::{Liar, Lie};
pub use raw::{DRIVER, DRIVER_PATH, Raw, outcome};
pub use stage::{Stage, Worker, descriptors, entry, number, object, status};
pub use streams::Streams;

use ipc_harness::CallError;

/// Panics unless this is `org.example.IPC.Error.<name>` and its text has these phrases.
#[track_caller]
pub fn assert_error(error: &CallError, name: &str, phrases: &[&str]) {
    assert!(error.is(name), "expected {name} with {phrases:?}, got {error}");
    for phrase in phrases {
        assert!(error.text.contains(phrase), "the text must say {phrase:?}: {error}");
    }
}

/// Panics unless this says that a limit is reached, and which.
#[track_caller]
pub fn assert_limit(error: &CallError, key: &str, value: u32) {
    assert_error(error, "LimitExceeded", &[key, &value.to_string()]);
}

/// Memory of a process, in KiB.
pub fn resident(pid: i32) -> u64 {
    let resident = status(pid, "VmRSS").expect("a living process");
    resident.split_whitespace().next().expect("a number").parse().expect("a number")
}

/// The error of a call that had to fail.
#[track_caller]
pub fn error<T: std::fmt::Debug>(result: Result<T, CallError>) -> CallError {
    match result {
        Ok(answer) => panic!("the call must fail, but answered {answer:?}"),
        Err(error) => error,
    }
}

/// The errno that an error's text names: "Permission denied (EACCES)".
pub fn errno(error: &CallError) -> String {
    let words = error.text.split(|c: char| !c.is_ascii_alphanumeric());
    let named = words.filter(|word| word.len() > 3 && word.starts_with('E'));
    let mut named =
        named.filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()));
    match named.next_back() {
        Some(name) => name.to_owned(),
        None => format!("no errno in {error}"),
    }
}
