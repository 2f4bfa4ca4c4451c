//! The mechanism `unix` against real peers: sockets of the standard library, python3, socat, and
//! what `ss` says.

mod listing;
mod messages;
mod names;
mod stream;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ipc_kernel::{
    Address, Attempt, Dict, Endpoint, Error, Kind, Opening, Parameters, Readiness, Result,
    blocked::Sent,
    mechanisms,
    mechanisms::unix::DESCRIPTOR,
    shape::{Message, Outgoing},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Nothing in these tests takes that long; whatever does has failed.
const WATCHDOG: Duration = Duration::from_secs(10);

fn create(address: &str) -> Result<Box<dyn Endpoint>> {
    let parsed = Address::parse(address)?;
    let checked = Parameters::check(DESCRIPTOR.create_parameters, &[], &parsed, &Dict::new())?;
    opened((DESCRIPTOR.create)(&checked)?)
}

fn attach(address: &str) -> Result<Box<dyn Endpoint>> {
    let parsed = Address::parse(address)?;
    let checked = Parameters::check(DESCRIPTOR.attach_parameters, &[], &parsed, &Dict::new())?;
    opened((DESCRIPTOR.attach)(&checked)?)
}

fn opened(opening: Opening) -> Result<Box<dyn Endpoint>> {
    match opening {
        Opening::Done(endpoint) => Ok(endpoint),
        Opening::Pending(again) => wait(again),
    }
}

fn open(endpoint: &dyn Endpoint, end: &str) -> Result<std::os::fd::OwnedFd> {
    let address = Address::new("unix").with("end", end);
    endpoint.open(&Parameters::check(DESCRIPTOR.open_parameters, &[], &address, &Dict::new())?)
}

/// Attempts until it is done, waiting for what it says in between.
fn wait<T>(mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        match attempt()? {
            Attempt::Done(value) => return Ok(value),
            Attempt::Wait(readiness) => await_readiness(readiness),
        }
        assert!(Instant::now() < deadline, "still not done");
    }
}

fn await_readiness(readiness: Readiness) {
    let (fd, flags) = match readiness {
        Readiness::Readable(fd) => (fd, PollFlags::IN),
        Readiness::Writable(fd) => (fd, PollFlags::OUT),
        Readiness::After(pause) => return std::thread::park_timeout(pause),
        other => panic!("unix sockets do not wait for {other:?}"),
    };
    let timeout = Timespec { tv_sec: WATCHDOG.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&fd, flags)], Some(&timeout)).expect("poll");
    assert_ne!(ready, 0, "nothing became ready");
}

/// The error of what must fail, with this kind and this phrase in its text.
#[track_caller]
fn refused<T>(result: Result<T>, kind: Kind, phrase: &str) -> Error {
    let Err(error) = result else { panic!("did not fail with {kind:?}") };
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.text.contains(phrase), "{error:?} does not say {phrase:?}");
    error
}

fn receive(endpoint: &dyn Endpoint) -> Result<Message> {
    let messages = endpoint.messages().expect("shape messages");
    wait(|| messages.receive(&Dict::new()))
}

fn send(endpoint: &dyn Endpoint, data: &[u8]) -> Result<()> {
    let messages = endpoint.messages().expect("shape messages");
    wait(|| messages.send(Outgoing { data, attributes: &Dict::new(), fds: &[], sent: &Sent::default() }))
}

fn accept(endpoint: &dyn Endpoint) -> Box<dyn Endpoint> {
    let listener = endpoint.listener().expect("shape listener");
    wait(|| listener.accept()).expect("accept")
}

fn number(dict: &Dict, key: &str) -> i128 {
    dict.get(key).and_then(|value| value.integer()).unwrap_or_else(|| panic!("no {key} in {dict:?}"))
}

fn text<'a>(dict: &'a Dict, key: &str) -> &'a str {
    match dict.get(key) {
        Some(ipc_kernel::Value::Text(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

/// A name that no other test and no other run has.
fn unique() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("ipc-test-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// `unix:path=…` for a name in the directory, and what comes behind it.
fn at(directory: &Path, name: &str, more: &str) -> String {
    format!("{}{more}", Address::new("unix").with("path", directory.join(name).to_str().expect("UTF-8")))
}

/// A child that is killed when the test ends; `None` where the program is not installed.
struct Peer(Child);

impl Peer {
    fn start(program: &str, arguments: &[&str]) -> Option<Self> {
        let child =
            Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        match child {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                eprintln!("SKIPPED: {program} cannot be started: {error}");
                None
            }
        }
    }

    fn python(code: &str, arguments: &[&str]) -> Option<Self> {
        let mut all = vec!["-c", code];
        all.extend(arguments);
        Self::start("python3", &all)
    }

    #[track_caller]
    fn succeeds(mut self) {
        let status = self.0.wait().expect("the peer");
        assert!(status.success(), "the peer failed: {status}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_row_is_registered_and_its_defaults_parse() {
    assert!(std::ptr::eq(mechanisms::by_scheme("unix").expect("registered"), &DESCRIPTOR));
    for table in [DESCRIPTOR.create_parameters, DESCRIPTOR.attach_parameters, DESCRIPTOR.open_parameters] {
        let defaults = table.iter().filter(|parameter| !parameter.default.is_empty());
        for parameter in defaults {
            let address = Address::new("unix").with(parameter.key, parameter.default);
            Parameters::check(table, &[], &address, &Dict::new()).expect(parameter.key);
        }
    }
    let limits = (DESCRIPTOR.limits)();
    assert_eq!(number(&limits, "SCM_MAX_FD"), 253);
    assert!(number(&limits, "net.unix.max_dgram_qlen") > 0);
    (DESCRIPTOR.available)().expect("available");
}
