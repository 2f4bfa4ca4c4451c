//! inotify over a tree against a model: random operations, as fast as they come; a listener who
//! believes every event ends up with what is there, and was told nothing twice.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod waiting;
mod watching;

use std::{
    cell::Cell,
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipc_kernel::{Attempt, Endpoint, Readiness, shape::Notice};
use proptest::{
    collection::vec,
    test_runner::{Config, TestCaseError, TestRunner},
};
use waiting::{Directory, create};
use watching::{
    address, drive,
    ground::{Ground, Operation, operation},
    model::{View, show},
    watch,
};

/// Listens until it is `over`, and then until the endpoint waits for nothing but the next event: it has
/// nothing left to look for then, and holds nothing back. No time comes into it.
fn listen(endpoint: &dyn Endpoint, mut over: impl FnMut() -> bool, mut hear: impl FnMut(&Notice)) {
    let deadline = Instant::now() + waiting::PATIENCE;
    loop {
        // Asked first: what it depends on may go on meanwhile.
        let over = over();
        match endpoint.events().unwrap().next().unwrap() {
            Attempt::Done(notices) => notices.iter().for_each(&mut hear),
            Attempt::Wait(readiness) => {
                let nothing_else = matches!(readiness, Readiness::Notified(_));
                let patience = if over && nothing_else { Duration::ZERO } else { deadline - Instant::now() };
                if !waiting::wait(readiness, patience) && over && nothing_else {
                    return;
                }
            }
        }
        assert!(Instant::now() < deadline, "it does not come to an end");
    }
}

/// Runs the operations; says what was wrong with what was told.
fn play(operations: &[Operation], overflow: bool) -> Result<usize, String> {
    let directory = Directory::new();
    let mut ground = Ground::new(directory.path());
    let watched = ground.watched.clone();
    let mut view = View::of(&watched);
    let wish = address(&watched).with("recursive", "true").with("events", "create+delete+move+modify");
    // The driver is called by hand where the kernel's queue is to overflow.
    let endpoint = if overflow {
        create(&ipc_kernel::mechanisms::inotify::DESCRIPTOR, &wish).unwrap()
    } else {
        watch(&wish)
    };
    for operation in operations {
        ground.run(operation);
    }
    let (mut told, mut wrong, mut all) = (0, Vec::new(), Vec::new());
    let mut hear = |notice: &Notice| {
        told += 1;
        match notice {
            Notice::Event(event) => {
                all.push(show(event));
                wrong.extend(view.apply(event).err());
            }
            other => {
                all.push(format!("{other:?}"));
                wrong.push(format!("{other:?}"));
            }
        }
    };
    if overflow {
        let drained = || {
            while !matches!(drive(), Attempt::Wait(Readiness::Readable(_))) {}
            true
        };
        listen(&*endpoint, drained, hear);
        // After lost events the listener may hear of a name again, not of a wrong one.
        wrong.clear();
    } else {
        // All that happened before is told by the time that this is.
        let last = watched.join("the last");
        fs::write(&last, "").unwrap();
        fs::remove_file(&last).unwrap();
        let last = last.as_os_str().as_encoded_bytes();
        let over = Cell::new(false);
        listen(
            &*endpoint,
            || over.get(),
            |notice| {
                let is_last = matches!(notice, Notice::Event(event) if event.path == last && event.names[0] == "DELETE");
                over.set(over.get() || is_last);
                hear(notice);
            },
        );
    }
    if !wrong.is_empty() {
        return Err(format!("{wrong:#?}\n{all:#?}"));
    }
    compare(&view, &watched, told, &all)
}

fn compare(view: &View, watched: &Path, told: usize, all: &[String]) -> Result<usize, String> {
    let there = View::of(watched);
    if *view != there {
        let text = |view: &View| {
            view.0.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>()
        };
        return Err(format!("believed {:#?}\nthere is {:#?}\n{all:#?}", text(view), text(&there)));
    }
    Ok(told)
}

fn seeds(count: u32, operations: usize, overflow: bool) {
    let config =
        Config { cases: count, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    let told = Cell::new(0);
    let result = TestRunner::new(config).run(&vec(operation(), 1..operations), |operations| {
        told.set(told.get() + play(&operations, overflow).map_err(TestCaseError::fail)?);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{count} seeds, {} notices", told.get());
}

/// An inotify instance has the queue that the sysctl says when it is made, and one of the tests changes that.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_listener_who_believes_every_event_knows_what_is_there() {
    let _alone = alone();
    seeds(100, 120, false);
}

/// The same with a queue of 16 events in the kernel, so that almost everything is lost and looked for
/// again. It is the length that an instance is made with, so that the sysctl is changed for a moment only.
#[test]
fn what_was_lost_is_told_after_all() {
    if std::env::var_os("INOTIFY_TEST_ALONE").is_some() {
        let path = "/proc/sys/fs/inotify/max_queued_events";
        let before = fs::read_to_string(path).unwrap();
        if fs::write(path, "16").is_err() {
            eprintln!("SKIPPED: {path} cannot be written");
            return;
        }
        let made = create(&ipc_kernel::mechanisms::inotify::DESCRIPTOR, &address(Path::new("/")));
        fs::write(path, before).unwrap();
        drop(made.unwrap());
        return seeds(60, 60, true);
    }
    let _alone = alone();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_was_lost_is_told_after_all", "--nocapture"])
        .env("INOTIFY_TEST_ALONE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    eprintln!("{text}");
}
