//! inotify over a tree against a model: random operations, as fast as they come; a listener who
//! believes every event ends up with what is there, and was told nothing twice.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod waiting;
mod watching;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ipc_kernel::{Attempt, Endpoint, shape::Notice};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use waiting::{Directory, create};
use watching::{
    address, drive,
    model::{View, show},
    watch,
};

/// What is done; the numbers choose among the paths that there are, or name new ones.
#[derive(Debug, Clone)]
enum Operation {
    Create(u8, u8),
    Write(u8),
    Append(u8),
    Rename(u8, u8, u8),
    Exchange(u8, u8),
    MoveOut(u8),
    MoveIn(u8, u8),
    MakeDirectories(u8, u8),
    Link(u8, u8, u8),
    RemoveFile(u8),
    RemoveTree(u8),
    Symlink(u8, u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let (a, b, c) = (any::<u8>(), any::<u8>(), any::<u8>());
    prop_oneof![
        3 => (a, b).prop_map(|(a, b)| Create(a, b)),
        2 => a.prop_map(Write),
        1 => a.prop_map(Append),
        5 => (a, b, c).prop_map(|(a, b, c)| Rename(a, b, c)),
        1 => (a, b).prop_map(|(a, b)| Exchange(a, b)),
        2 => a.prop_map(MoveOut),
        2 => (a, b).prop_map(|(a, b)| MoveIn(a, b)),
        4 => (a, b).prop_map(|(a, b)| MakeDirectories(a, b)),
        1 => (a, b, c).prop_map(|(a, b, c)| Link(a, b, c)),
        2 => a.prop_map(RemoveFile),
        1 => a.prop_map(RemoveTree),
        1 => (a, b).prop_map(|(a, b)| Symlink(a, b)),
    ]
}

struct Ground {
    watched: PathBuf,
    outside: PathBuf,
    made: u32,
}

impl Ground {
    fn paths(&self, of: &Path, directories: bool) -> Vec<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let view = View::of(of).0.into_iter().filter(|(_, is_directory)| *is_directory == directories);
        view.map(|(path, _)| std::ffi::OsString::from_vec(path).into()).collect()
    }

    fn pick(&self, directories: bool, number: u8) -> Option<PathBuf> {
        let paths = self.paths(&self.watched, directories);
        (!paths.is_empty()).then(|| paths[number as usize % paths.len()].clone())
    }

    fn directory(&self, number: u8) -> PathBuf {
        let mut paths = self.paths(&self.watched, true);
        paths.push(self.watched.clone());
        paths[number as usize % paths.len()].clone()
    }

    /// Few names, so that they meet.
    fn name(number: u8) -> String {
        format!("n{}", number % 6)
    }

    /// What fails, as a name is taken or a directory would go into itself, does nothing.
    fn run(&mut self, operation: &Operation) {
        use Operation::*;
        match *operation {
            Create(directory, name) => {
                _ = fs::File::create_new(self.directory(directory).join(Self::name(name)));
            }
            Write(file) => _ = self.pick(false, file).map(|path| fs::write(path, "text")),
            Append(file) => {
                _ = self.pick(false, file).map(|path| {
                    fs::OpenOptions::new()
                        .append(true)
                        .open(path)
                        .and_then(|mut file| std::io::Write::write_all(&mut file, b"more"))
                });
            }
            Rename(from, directory, name) => {
                let from = self.pick(from % 2 == 0, from / 2);
                _ = from.map(|from| fs::rename(from, self.directory(directory).join(Self::name(name))));
            }
            Exchange(one, two) => {
                let picked = (self.pick(one % 2 == 0, one / 2), self.pick(two % 2 == 0, two / 2));
                if let (Some(one), Some(two)) = picked {
                    let (here, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
                    _ = rustix::fs::renameat_with(here, one, here, two, flags);
                }
            }
            MoveOut(path) => {
                self.made += 1;
                let to = self.outside.join(format!("o{}", self.made));
                _ = self.pick(path % 2 == 0, path / 2).map(|path| fs::rename(path, to));
            }
            MoveIn(path, directory) => {
                let paths: Vec<_> =
                    fs::read_dir(&self.outside).unwrap().map(|entry| entry.unwrap().path()).collect();
                if !paths.is_empty() {
                    let to = self.directory(directory).join(Self::name(path / 7));
                    _ = fs::rename(&paths[path as usize % paths.len()], to);
                }
            }
            MakeDirectories(directory, name) => {
                let names: PathBuf = (0..1 + name % 3).map(|n| Self::name(name.wrapping_add(n))).collect();
                let path = self.directory(directory).join(names);
                if fs::create_dir_all(&path).is_ok() && name % 2 == 0 {
                    _ = fs::write(path.join("f"), "at once");
                }
            }
            Link(file, directory, name) => {
                let to = self.directory(directory).join(Self::name(name));
                _ = self.pick(false, file).map(|file| fs::hard_link(file, to));
            }
            RemoveFile(file) => _ = self.pick(false, file).map(fs::remove_file),
            RemoveTree(directory) => _ = self.pick(true, directory).map(fs::remove_dir_all),
            Symlink(directory, name) => {
                _ = std::os::unix::fs::symlink("/etc", self.directory(directory).join(Self::name(name)));
            }
        }
    }
}

/// Everything up to the event of a file that is made last, when all is told.
fn listen(endpoint: &dyn Endpoint, last: &Path, mut hear: impl FnMut(&Notice)) {
    let last = last.as_os_str().as_encoded_bytes();
    let mut over = false;
    while !over {
        for notice in watching::next(endpoint) {
            over |=
                matches!(&notice, Notice::Event(event) if event.path == last && event.names[0] == "DELETE");
            hear(&notice);
        }
    }
    // What was still looked for then.
    loop {
        match endpoint.events().unwrap().next().unwrap() {
            Attempt::Done(notices) => notices.iter().for_each(&mut hear),
            Attempt::Wait(readiness) => {
                if !waiting::wait(readiness, std::time::Duration::from_millis(30)) {
                    break;
                }
            }
        }
    }
}

/// Runs the operations; says what was wrong with what was told.
fn play(operations: &[Operation], overflow: bool) -> Result<usize, String> {
    let directory = Directory::new();
    let [watched, outside] = ["watched", "outside"].map(|name| directory.unique(name));
    fs::create_dir_all(watched.join("n0/n1")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(watched.join("n0/n2"), "").unwrap();
    let mut view = View::of(&watched);
    let wish = address(&watched).with("recursive", "true").with("events", "create+delete+move+modify");
    // The driver is called by hand where the kernel's queue is to overflow.
    let endpoint = if overflow {
        create(&ipc_kernel::mechanisms::inotify::DESCRIPTOR, &wish).unwrap()
    } else {
        watch(&wish)
    };
    let mut ground = Ground { watched: watched.clone(), outside, made: 0 };
    for operation in operations {
        ground.run(operation);
    }
    if overflow {
        let pump = |endpoint: &dyn Endpoint| {
            while !matches!(drive(), Attempt::Wait(ipc_kernel::Readiness::Readable(_))) {}
            endpoint.events().unwrap().next().unwrap()
        };
        let (mut told, mut quiet, mut all) = (0, 0, Vec::new());
        while quiet < 3 {
            match pump(&*endpoint) {
                Attempt::Done(notices) => {
                    quiet = 0;
                    for notice in &notices {
                        told += 1;
                        // After lost events the listener may hear of a name again, not of a wrong one.
                        match notice {
                            Notice::Event(event) => {
                                all.push(show(event));
                                _ = view.apply(event);
                            }
                            other => all.push(format!("{other:?}")),
                        }
                    }
                }
                Attempt::Wait(readiness) => {
                    quiet += 1;
                    waiting::wait(readiness, std::time::Duration::from_millis(25));
                }
            }
        }
        return compare(&view, &watched, told, &all);
    }
    let last = watched.join("the last");
    fs::write(&last, "").unwrap();
    fs::remove_file(&last).unwrap();
    let (mut told, mut wrong, mut all) = (0, Vec::new(), Vec::new());
    listen(&*endpoint, &last, |notice| {
        told += 1;
        match notice {
            Notice::Event(event) => {
                all.push(show(event));
                wrong.extend(view.apply(event).err());
            }
            other => wrong.push(format!("{other:?}")),
        }
    });
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
    let told = std::cell::Cell::new(0);
    let result = TestRunner::new(config).run(&vec(operation(), 1..operations), |operations| {
        told.set(told.get() + play(&operations, overflow).map_err(TestCaseError::fail)?);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{count} seeds, {} notices", told.get());
}

#[test]
fn a_listener_who_believes_every_event_knows_what_is_there() {
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
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_was_lost_is_told_after_all", "--nocapture"])
        .env("INOTIFY_TEST_ALONE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    eprintln!("{text}");
}
