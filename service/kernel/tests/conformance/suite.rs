//! Runs a check over all fixtures of a shape, each under a watchdog, and reports all failures.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

use ipc_kernel::{
    Address, Attempt, Descriptor, Dict, Endpoint, Error, Opening, Parameters, Result, shape::Shape,
};

use crate::{
    driver,
    fixtures::{self, Row},
    making::Scratch,
};

/// No check takes this long; an operation that blocks does.
const WATCHDOG: Duration = Duration::from_secs(20);

/// Runs a check over every fixture of a shape, of every mechanism that declares the shape.
pub fn each<R: Sync, O>(
    shape: Shape,
    rows: &'static [Row<R, O>],
    check: fn(&'static Row<R, O>, &mut Scratch),
) {
    let mut failures = Vec::new();
    for descriptor in crate::rows().filter(|descriptor| descriptor.shapes.contains(&shape)) {
        if let Err(why) = (descriptor.available)() {
            eprintln!("SKIPPED: {}: {why}", descriptor.name);
            continue;
        }
        let mut found = false;
        for row in rows.iter().filter(|row| row.mechanism == descriptor.name) {
            found = true;
            let label = format!("{} ({})", row.mechanism, row.variant);
            if let Some(why) = fixtures::unavailable(row.variant) {
                eprintln!("SKIPPED: {label}: {why}");
                continue;
            }
            if let Err(why) = guarded(move || check(row, &mut Scratch::new())) {
                failures.push(format!("{label}: {why}"));
            }
        }
        if !found {
            failures.push(fixtures::missing(descriptor.name, shape));
        }
    }
    report(failures);
}

/// Runs a check over every mechanism in the register.
pub fn each_mechanism(check: fn(&'static Descriptor)) {
    let failures = crate::rows().filter_map(|descriptor| {
        let why = guarded(move || check(descriptor)).err()?;
        Some(format!("{}: {why}", descriptor.name))
    });
    report(failures.collect());
}

#[track_caller]
fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} failed:\n  {}", failures.len(), failures.join("\n  "));
}

/// Runs a check on a thread of its own; a panic, or no end in time, is an error.
fn guarded(check: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| crate::within(check))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "it panicked".to_owned())
        });
        let _ = sender.send(outcome);
    });
    receiver.recv_timeout(WATCHDOG).unwrap_or_else(|_| {
        Err(format!("no end after {WATCHDOG:?}: an operation blocks, or what it waits for never comes"))
    })
}

/// What the engine does with an address.
pub fn create(address: &str) -> Result<Box<dyn Endpoint>> {
    make(address, |descriptor| (descriptor.create_parameters, descriptor.create))
}

pub fn attach(address: &str) -> Result<Box<dyn Endpoint>> {
    make(address, |descriptor| (descriptor.attach_parameters, descriptor.attach))
}

type Verb = (&'static [ipc_kernel::Parameter], fn(&Parameters) -> Result<Opening>);

fn make(address: &str, verb: impl Fn(&Descriptor) -> Verb) -> Result<Box<dyn Endpoint>> {
    let address = Address::parse(address)?;
    let descriptor = crate::REGISTER.by_scheme(&address.scheme)?;
    run_driver(descriptor);
    let (table, open) = verb(descriptor);
    let parameters = Parameters::check(table, &[], &address, &Dict::new())?;
    match open(&parameters)? {
        Opening::Done(endpoint) => Ok(endpoint),
        Opening::Pending(mut attempt) => driver::finish("opening", &mut attempt),
    }
}

/// `Open` with options written as in an address: `end=read`.
pub fn open(mechanism: &str, endpoint: &dyn Endpoint, options: &str) -> Result<std::os::fd::OwnedFd> {
    let address = Address::parse(&format!("{mechanism}:{options}"))?;
    let table = crate::REGISTER.by_name(mechanism)?.open_parameters;
    endpoint.open(&Parameters::check(table, &[], &address, &Dict::new())?)
}

/// What a mechanism's endpoints share runs as long as the tests do.
fn run_driver(descriptor: &'static Descriptor) {
    static RUNNING: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let Some(run) = descriptor.driver else { return };
    if !RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(descriptor.name) {
        return;
    }
    std::thread::spawn(move || {
        loop {
            match run() {
                Ok(Attempt::Done(())) => {}
                Ok(Attempt::Wait(readiness)) => {
                    driver::wait(readiness, Duration::from_secs(3600));
                }
                Err(error) => panic!("the driver of {} failed: {error}", descriptor.name),
            }
        }
    });
}

/// The text of an error that must be of this kind.
#[track_caller]
pub fn must_fail<T>(what: &str, kind: ipc_kernel::Kind, result: Result<T>) -> String {
    let Error { kind: found, text } = match result {
        Ok(_) => panic!("{what}: must fail with {kind:?}, but did not fail"),
        Err(error) => error,
    };
    assert_eq!(found, kind, "{what}: wrong kind of error: {text}");
    assert!(text.len() > 10, "{what}: the error says too little: {text:?}");
    text
}
