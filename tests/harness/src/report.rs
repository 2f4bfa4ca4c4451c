//! Skips that are seen and counted.
//!
//! What a machine cannot run is skipped, never silently: [`skip!`](crate::skip) prints `SKIPPED <test>: <reason>`
//! and appends a line to `target/skipped-tests` (or the file that `IPC_SKIPPED_TESTS` names), which outlives the
//! many test programs of one run. Whoever runs them all calls [`forget`] first and prints [`skips`] last. With
//! `IPC_NO_SKIPS=1`, for machines that are meant to have everything, a skip is a failure.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use crate::tools::target_directory;

/// Leaves the test, visibly: prints and records the reason, then returns from the function.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::report::skipped(module_path!(), &format!($($reason)+));
        return Default::default();
    }};
}

/// The value of a `Result`, or a [`skip!`](crate::skip) with its error as the reason.
#[macro_export]
macro_rules! or_skip {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(reason) => $crate::skip!("{reason}"),
        }
    };
}

/// One test for each [`Kind`](crate::Kind) of bus: `on_each_bus!(a, b)` makes `dbus_daemon::a`, `dbus_broker::a`, …
/// of functions `fn a(bus: Bus)`; `on_each_bus!(async a, b)` does so for `async fn a(bus: Bus)` (needs `tokio`).
#[macro_export]
macro_rules! on_each_bus {
    (async $($test:ident),+ $(,)?) => {
        mod dbus_daemon_async { $(#[tokio::test] async fn $test() {
            super::$test($crate::or_skip!($crate::Bus::dbus_daemon())).await
        })+ }
        mod dbus_broker_async { $(#[tokio::test] async fn $test() {
            super::$test($crate::or_skip!($crate::Bus::dbus_broker())).await
        })+ }
    };
    ($($test:ident),+ $(,)?) => {
        mod dbus_daemon { $(#[test] fn $test() {
            super::$test($crate::or_skip!($crate::Bus::dbus_daemon()))
        })+ }
        mod dbus_broker { $(#[test] fn $test() {
            super::$test($crate::or_skip!($crate::Bus::dbus_broker()))
        })+ }
    };
}

/// One skipped test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    pub test: String,
    pub reason: String,
}

/// Prints and records a skip; [`skip!`](crate::skip) is the usual way here.
pub fn skipped(module: &str, reason: &str) {
    // The test runner names the thread of each test after it.
    let thread = std::thread::current();
    let test = match thread.name() {
        Some(name) if name != "main" => format!("{}::{name}", module.split("::").next().unwrap_or(module)),
        _ => module.to_owned(),
    };
    let reason = reason.replace(['\n', '\t'], " ");
    // Past the test runner, which keeps what a passing test prints by other ways to itself; in one write, so that
    // the lines of tests side by side stay whole. Nobody to read it is no reason to fail: it is recorded too.
    let _unread = std::io::stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes());
    assert!(env::var_os("IPC_NO_SKIPS").is_none(), "IPC_NO_SKIPS is set, and this machine lacks: {reason}");
    // One write of one line to a file opened for appending: test programs side by side do not mix theirs.
    let line = format!("{test}\t{reason}\n");
    let file = OpenOptions::new().create(true).append(true).open(path());
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("the skip could not be recorded in {}: {error}", path().display());
    }
}

/// Where skips are recorded.
pub fn path() -> PathBuf {
    if let Some(path) = env::var_os("IPC_SKIPPED_TESTS") {
        return path.into();
    }
    target_directory().unwrap_or_else(env::temp_dir).join("skipped-tests")
}

/// Every skip that was recorded since [`forget`].
pub fn skips() -> Vec<Skip> {
    parse(&fs::read_to_string(path()).unwrap_or_default())
}

/// Begins a new count.
pub fn forget() {
    match fs::remove_file(path()) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", path().display()),
        _ => {}
    }
}

fn parse(recorded: &str) -> Vec<Skip> {
    let fields = recorded.lines().filter_map(|line| line.split_once('\t'));
    fields.map(|(test, reason)| Skip { test: test.to_owned(), reason: reason.to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_skips_are_read_back() {
        let skip = |test: &str, reason: &str| Skip { test: test.into(), reason: reason.into() };
        assert_eq!(parse("a::b\tno x\nc\tno y: z\n"), [skip("a::b", "no x"), skip("c", "no y: z")]);
    }
}
