//! A small synchronous engine for tests: it repeats an attempt until it is done, and waits for
//! what the attempt says in between.

#![allow(dead_code, clippy::unwrap_used)] // Every test binary uses its own part; a test fails by panicking.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ipc_kernel::{
    Address, Attempt, Descriptor, Dict, Endpoint, Error, Fd, Opening, Parameters, Readiness, Result, blocked,
};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Long enough for a loaded machine; nothing in a passing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a readiness; false when `limit` has passed.
pub fn wait(readiness: Readiness, limit: Duration) -> bool {
    match readiness {
        Readiness::Readable(fd) => poll(&fd, PollFlags::IN, limit),
        Readiness::Writable(fd) => poll(&fd, PollFlags::OUT, limit),
        Readiness::HungUp(fd) => poll(&fd, PollFlags::empty(), limit),
        Readiness::Notified(listener) => {
            use event_listener::Listener;
            listener.wait_timeout(limit).is_some()
        }
        Readiness::After(pause) => {
            std::thread::sleep(pause.min(limit));
            pause <= limit
        }
        Readiness::Blocked(call) => {
            let (ended, end) = std::sync::mpsc::channel();
            blocked::start(call, move || _ = ended.send(())).unwrap();
            end.recv_timeout(limit).is_ok()
        }
        Readiness::Any(any) => wait_for_any(any, limit),
        other => panic!("no test waits for {other:?}"),
    }
}

/// What a watch waits for: its queue, or the time until something held back may be told.
fn wait_for_any(any: Vec<Readiness>, limit: Duration) -> bool {
    use event_listener::Listener;
    let (mut listener, mut shortest) = (None, limit);
    for readiness in any {
        match readiness {
            Readiness::Notified(one) => listener = Some(one),
            Readiness::After(pause) => shortest = shortest.min(pause),
            other => panic!("no test waits for {other:?} and others"),
        }
    }
    let came = listener.is_some_and(|listener| listener.wait_timeout(shortest).is_some());
    came || shortest < limit
}

fn poll(fd: &Fd, interest: PollFlags, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    rustix::event::poll(&mut [PollFd::new(fd, interest)], Some(&limit)).unwrap() > 0
}

/// Repeats the attempt until it is done.
pub fn finish<T>(mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt()? {
            Attempt::Done(value) => return Ok(value),
            Attempt::Wait(readiness) => {
                assert!(Instant::now() < deadline, "still waiting for {readiness:?}");
                wait(readiness, deadline - Instant::now());
            }
        }
    }
}

/// Repeats a look at something that has no event until it is so.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "not so in time: {what}");
        std::thread::yield_now();
    }
}

/// The attempt has to wait: returns for what.
pub fn must_wait<T: std::fmt::Debug>(attempt: Result<Attempt<T>>) -> Readiness {
    match attempt.unwrap() {
        Attempt::Wait(readiness) => readiness,
        Attempt::Done(value) => panic!("did not wait: {value:?}"),
    }
}

/// Checks the address against a table as the engine does, and runs Create or Attach.
pub fn create(descriptor: &Descriptor, address: &Address) -> Result<Box<dyn Endpoint>> {
    let parameters = Parameters::check(descriptor.create_parameters, &[], address, &Dict::new())?;
    opened((descriptor.create)(&parameters))
}

pub fn attach(descriptor: &Descriptor, address: &Address) -> Result<Box<dyn Endpoint>> {
    let parameters = Parameters::check(descriptor.attach_parameters, &[], address, &Dict::new())?;
    opened((descriptor.attach)(&parameters))
}

fn opened(opening: Result<Opening>) -> Result<Box<dyn Endpoint>> {
    match opening? {
        Opening::Done(endpoint) => Ok(endpoint),
        Opening::Pending(_) => panic!("nothing here is pending"),
    }
}

/// The options of `Open`, from the text after the colon of an address.
pub fn options(descriptor: &Descriptor, text: &str) -> Result<Parameters> {
    let address = Address::parse(&format!("open:{text}"))?;
    Parameters::check(descriptor.open_parameters, &[], &address, &Dict::new())
}

/// The error of what must fail.
pub fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error,
    }
}

/// A directory of this test's own, removed at the end.
pub struct Directory(tempfile::TempDir);

impl Directory {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("ipc-kernel-").tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it that no other call gives.
    pub fn unique(&self, name: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.path().join(format!("{name}-{}-{number}", std::process::id()))
    }
}

/// Kills and reaps its process when the test ends, whatever happens.
pub struct Child(pub std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `with` on a thread that is user 65534 to the kernel; None where that is not possible.
pub fn as_nobody<T: Send>(with: impl FnOnce() -> T + Send) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return None;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            with()
        });
        Some(thread.join().unwrap())
    })
}
