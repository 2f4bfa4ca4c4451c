//! A [`Tree`] against a model, with every interleaving: what the service does goes on one unit at a time
//! (a directory that is looked at, an event that is taken in), and operations come in between wherever the
//! seed says. There is no other thread and no time in it, so what fails once fails again, and shrinks.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "../../tests/watching/ground.rs"]
mod ground;
#[path = "../../tests/watching/model.rs"]
mod model;

use std::{collections::VecDeque, fs, path::Path, time::Instant};

use ground::{Ground, Operation, operation};
use libc::{IN_CREATE, IN_DELETE, IN_MODIFY, IN_MOVE};
use model::{View, show};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    Address, Attempt, Dict, Parameters, Readiness, fd,
    inotify::{
        budget::Budget,
        filter::Filter,
        hub::{HUB, stamp},
        pairs::{HOLD, Pairs},
        queue::{Handle, Item, Wish},
        tree::{Mark, Tree},
    },
    mechanisms::inotify::DESCRIPTOR,
    shape::Notice,
};

#[derive(Debug, Clone)]
enum Turn {
    Do(Operation),
    /// So many units of what the service does.
    Work(u8),
    /// All events but so many are lost that the service has not read yet.
    Lose(u8),
}

fn turn(lossy: bool) -> impl Strategy<Value = Turn> {
    prop_oneof![
        30 => operation().prop_map(Turn::Do),
        20 => (1..8u8).prop_map(Turn::Work),
        3 * u32::from(lossy) => (0..8u8).prop_map(Turn::Lose),
    ]
}

/// What the engine does for an endpoint, in units.
struct Service {
    tree: Tree,
    pairs: Pairs,
    /// When everything was read last.
    drained: i64,
}

impl Service {
    fn new(ground: &Ground) -> Self {
        let wish = Wish {
            path: ground.watched.clone(),
            mask: IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY,
            only_directory: false,
            dont_follow: false,
            excl_unlink: false,
        };
        let pinned = wish.pin().unwrap();
        let stat = fd::stat(&pinned).unwrap();
        let inode = (stat.st_dev, stat.st_ino);
        let address = Address::new("inotify").with("path", "/");
        let parameters = Parameters::check(DESCRIPTOR.create_parameters, &[], &address, &Dict::new());
        let filter = Filter::new(&parameters.unwrap()).unwrap();
        let mut tree = Tree::new(Handle::new(wish), filter, true, Budget::default(), inode);
        tree.start(&pinned, Mark::Initial { told: false }).unwrap();
        Self { tree, pairs: Pairs::default(), drained: stamp() }
    }

    fn read(&mut self) -> VecDeque<Item> {
        while !matches!(HUB.drive().unwrap(), Attempt::Wait(Readiness::Readable(_))) {}
        self.tree.handle.take().unwrap_or_default()
    }

    /// The next unit; says whether there was one.
    fn work(&mut self) -> bool {
        let (now, drained) = (Instant::now(), stamp());
        let items = self.read();
        self.drained = drained;
        self.pairs.extend(items, now);
        if !self.tree.jobs.is_empty() {
            self.tree.look(1);
            return true;
        }
        // Both halves of a rename were there at once, so that none is waited for.
        let Some(step) = self.pairs.next(now + HOLD) else { return false };
        self.tree.step(step, stamp());
        true
    }

    /// As it is when the queue of the kernel is full; the end of a watch is seen all the same.
    fn lose(&mut self, kept: u8) {
        let mut items = self.read();
        let lost = items.split_off(items.len().min(kept.into()));
        items.push_back(Item::Overflow { since: self.drained });
        items.extend(lost.into_iter().filter(|item| matches!(item, Item::Ended { .. })));
        self.pairs.extend(items, Instant::now());
    }
}

/// The listener, and all that was done and told.
struct Listener {
    view: View,
    wrong: Vec<String>,
    trail: Vec<String>,
}

impl Listener {
    fn hear(&mut self, tree: &mut Tree) {
        for notice in tree.told.drain(..) {
            match notice {
                Notice::Event(event) => {
                    self.trail.push(show(&event));
                    self.wrong.extend(self.view.apply(&event).err());
                }
                other => self.trail.push(format!("{other:?}")),
            }
        }
    }

    /// Notes what an operation has done: what is gone, and what has come.
    fn see(&mut self, operation: &Operation, before: &View, after: &View) {
        let less = |one: &View, other: &View| {
            let paths = one.0.keys().filter(|path| !other.0.contains_key(*path));
            paths.map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>().join(" ")
        };
        self.trail.push(format!(
            "-- {operation:?}: gone {} come {}",
            less(before, after),
            less(after, before)
        ));
    }
}

/// Says what was wrong with what was told.
fn play(turns: &[Turn]) -> Result<(), String> {
    let directory = tempfile::Builder::new().prefix("ipc-kernel-").tempdir().unwrap();
    let mut ground = Ground::new(directory.path());
    let mut service = Service::new(&ground);
    let mut there = View::of(&ground.watched);
    let mut listener = Listener { view: there.clone(), wrong: Vec::new(), trail: Vec::new() };
    for turn in turns {
        match turn {
            Turn::Do(operation) => {
                ground.run(operation);
                let before = std::mem::replace(&mut there, View::of(&ground.watched));
                listener.see(operation, &before, &there);
            }
            Turn::Work(units) => {
                for _ in 0..*units {
                    service.work();
                    listener.hear(&mut service.tree);
                }
            }
            Turn::Lose(kept) => service.lose(*kept),
        }
    }
    while service.work() {}
    listener.hear(&mut service.tree);
    let Listener { view, mut wrong, trail } = listener;
    if turns.iter().any(|turn| matches!(turn, Turn::Lose(_))) {
        // After lost events the listener may hear of a name again, not of a wrong one.
        wrong.clear();
    }
    if wrong.is_empty() && view == there {
        return Ok(());
    }
    let paths = |view: &View| view.0.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    let [believed, there]: [Vec<_>; 2] = [paths(&view), paths(&there)];
    Err(format!("{wrong:#?}\nbelieved {believed:#?}\nthere is {there:#?}\n{trail:#?}"))
}

fn seeds(count: u32, lossy: bool) {
    let config =
        Config { cases: count, failure_persistence: None, max_shrink_iters: 2048, ..Config::default() };
    let result = TestRunner::new(config)
        .run(&vec(turn(lossy), 1..150), |turns| play(&turns).map_err(TestCaseError::fail));
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn whatever_comes_in_between_is_told() {
    seeds(100, false);
}

#[test]
fn whatever_is_lost_in_between_is_told_after_all() {
    seeds(100, true);
}

/// What is done at first, how many units of work follow, and what is done then.
fn two_acts(first: impl FnOnce(&Path, &mut Service), units: usize, then: impl FnOnce(&Path)) {
    let directory = tempfile::Builder::new().prefix("ipc-kernel-").tempdir().unwrap();
    let ground = Ground::new(directory.path());
    let mut service = Service::new(&ground);
    let mut listener = Listener { view: View::of(&ground.watched), wrong: Vec::new(), trail: Vec::new() };
    first(directory.path(), &mut service);
    for _ in 0..units {
        service.work();
    }
    then(directory.path());
    while service.work() {}
    listener.hear(&mut service.tree);
    assert_eq!(listener.wrong, [""; 0], "{:#?}", listener.trail);
    assert_eq!(listener.view, View::of(&ground.watched), "{:#?}", listener.trail);
}

fn exchange(one: &Path, two: &Path) {
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, two, flags).unwrap();
}

#[test]
fn two_arrivals_that_the_kernel_tells_as_one_are_not_taken_for_one() {
    let arrivals = |at: &Path| {
        fs::write(at.join("outside/one"), "").unwrap();
        fs::write(at.join("outside/two"), "").unwrap();
        fs::rename(at.join("outside/one"), at.join("watched/n")).unwrap();
        // MOVED_TO n like the one before, and MOVED_FROM n: inotify(7) makes one event of identical ones.
        exchange(&at.join("outside/two"), &at.join("watched/n"));
    };
    two_acts(|at, _| arrivals(at), 0, |_| {});
}

#[test]
fn what_changed_places_with_a_directory_that_was_seen_ahead_is_told() {
    for units in 0..12 {
        two_acts(
            |at, _| fs::create_dir_all(at.join("watched/a/b/c")).unwrap(),
            units,
            |at| {
                exchange(&at.join("watched/a/b"), &at.join("watched/n0/n1"));
                fs::rename(at.join("watched/a"), at.join("watched/n0/a")).unwrap();
            },
        );
    }
}

#[test]
fn what_was_lost_below_a_directory_that_is_renamed_while_it_is_looked_for_is_told() {
    for units in 0..8 {
        two_acts(
            |at, service| {
                fs::write(at.join("watched/n0/n1/lost"), "").unwrap();
                service.lose(0);
            },
            units,
            |at| fs::rename(at.join("watched/n0"), at.join("watched/n3")).unwrap(),
        );
    }
}
