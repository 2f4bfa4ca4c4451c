//! Watches: what happens in a directory is told in order, to each as it asked, until the end.

use std::{fs, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use ipc_kernel::{
    Attempt, Endpoint,
    shape::{Event, Events, Notice, Shape},
};

use crate::{
    driver::{PATIENCE, finish, must_wait, wait},
    fixtures::WATCHES,
    suite::each,
};

fn events(endpoint: &dyn Endpoint) -> &dyn Events {
    endpoint.events().expect("the fixture makes a watch")
}

fn is(event: &Event, name: &str, path: &Path) -> bool {
    event.names.contains(&name) && event.path == path.as_os_str().as_bytes()
}

/// Collects notices up to and with the first one for which `last` says yes.
fn until(endpoint: &dyn Endpoint, last: impl Fn(&Notice) -> bool) -> Vec<Notice> {
    let mut all = Vec::new();
    while !all.iter().any(&last) {
        let more = finish(&format!("more notices after {all:?}"), || events(endpoint).next()).expect("next");
        assert!(!more.is_empty(), "next() is done with nothing");
        all.extend(more);
    }
    all
}

fn only_events(notices: Vec<Notice>) -> Vec<Event> {
    notices
        .into_iter()
        .map(|notice| match notice {
            Notice::Event(event) => event,
            other => panic!("{other:?} although nothing was lost and nothing ended"),
        })
        .collect()
}

#[track_caller]
fn position(events: &[Event], name: &str, path: &Path) -> usize {
    events
        .iter()
        .position(|event| is(event, name, path))
        .unwrap_or_else(|| panic!("no {name} of {}: {events:?}", path.display()))
}

#[test]
fn nothing_happens_nothing_is_told() {
    each(Shape::Watch, WATCHES, |row, scratch| {
        let directory = (row.make)(scratch);
        let watch = (row.rules.watch)(&directory, &["CREATE"]);
        let readiness = must_wait("a directory in which nothing happens", events(&*watch).next());
        fs::write(directory.join("a"), b"").expect("a file");
        assert!(wait(readiness, PATIENCE), "the readiness must come with an event");
        let told = only_events(until(&*watch, |notice| matches!(notice, Notice::Event(_))));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(is(&told[0], "CREATE", &directory.join("a")), "{told:?}");
        must_wait("all was told", events(&*watch).next());
    });
}

#[test]
fn what_happens_is_told_in_order() {
    each(Shape::Watch, WATCHES, |row, scratch| {
        let directory = (row.make)(scratch);
        let watch = (row.rules.watch)(&directory, &[]);
        let [a, b, sub] = ["a", "b", "sub"].map(|name| directory.join(name));
        fs::write(&a, b"data").expect("writing a file");
        fs::rename(&a, &b).expect("renaming it");
        fs::create_dir(&sub).expect("making a directory");
        fs::remove_file(&b).expect("removing the file");
        let last = b.clone();
        let told =
            until(&*watch, |notice| matches!(notice, Notice::Event(event) if is(event, "DELETE", &last)));
        let told = only_events(told);
        let renamed = if row.rules.pairs_renames {
            let from_a = |event: &Event| event.from == a.as_os_str().as_bytes();
            let found = told.iter().position(|event| event.path == b.as_os_str().as_bytes() && from_a(event));
            found.unwrap_or_else(|| panic!("no rename from a to b: {told:?}"))
        } else {
            let (from, to) = (position(&told, "MOVED_FROM", &a), position(&told, "MOVED_TO", &b));
            assert!(from < to, "renamed to b before it was renamed from a: {told:?}");
            from
        };
        let order = [
            position(&told, "CREATE", &a),
            position(&told, "MODIFY", &a),
            position(&told, "CLOSE_WRITE", &a),
            renamed,
            position(&told, "CREATE", &sub),
            position(&told, "DELETE", &b),
        ];
        assert!(order.is_sorted(), "not in the order in which it happened: {told:?}");
        assert!(told[order[4]].names.contains(&"ISDIR"), "a directory is told apart: {told:?}");
    });
}

#[test]
fn each_gets_what_it_asked_for() {
    each(Shape::Watch, WATCHES, |row, scratch| {
        let directory = (row.make)(scratch);
        let created = (row.rules.watch)(&directory, &["CREATE"]);
        let deleted = (row.rules.watch)(&directory, &["DELETE"]);
        let [a, b] = ["a", "b"].map(|name| directory.join(name));
        fs::write(&a, b"x").expect("a file");
        fs::remove_file(&a).expect("removing it");
        fs::write(&b, b"x").expect("another file");
        fs::remove_file(&b).expect("removing it");
        for (watch, name) in [(created, "CREATE"), (deleted, "DELETE")] {
            let told = until(&*watch, |notice| matches!(notice, Notice::Event(event) if is(event, name, &b)));
            let told = only_events(told);
            assert_eq!(told.len(), 2, "{name}: {told:?}");
            assert!(is(&told[0], name, &a) && is(&told[1], name, &b), "{name}: {told:?}");
            must_wait("all was told", events(&*watch).next());
        }
    });
}

#[test]
fn a_closed_watch_leaves_the_other_alone() {
    each(Shape::Watch, WATCHES, |row, scratch| {
        let directory = (row.make)(scratch);
        let one = (row.rules.watch)(&directory, &["CREATE"]);
        let two = (row.rules.watch)(&directory, &["CREATE"]);
        drop(one);
        let a = directory.join("a");
        fs::write(&a, b"x").expect("a file");
        let told = until(&*two, |notice| matches!(notice, Notice::Event(_)));
        assert!(is(&only_events(told)[0], "CREATE", &a));
    });
}

#[test]
fn a_removed_directory_is_the_end() {
    each(Shape::Watch, WATCHES, |row, scratch| {
        let directory = (row.make)(scratch);
        let watch = (row.rules.watch)(&directory, &[]);
        fs::remove_dir(&directory).expect("removing the directory");
        let told = until(&*watch, |notice| matches!(notice, Notice::End(_)));
        let Some(Notice::End(why)) = told.last() else { panic!("something after the end: {told:?}") };
        assert!(why.len() > 10, "the end must say why: {why:?}");
    });
}

/// More than the queue of the kernel holds happens at once: either all is told, or that some is
/// missing.
#[test]
fn an_overflow_is_told() {
    each(Shape::Watch, WATCHES, |row, scratch| {
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok())
            .unwrap_or(usize::MAX);
        if limit > 50_000 {
            eprintln!("SKIPPED: fs.inotify.max_queued_events is {limit}: too many events to make");
            return;
        }
        let directory = (row.make)(scratch);
        let watch = (row.rules.watch)(&directory, &["CREATE", "DELETE"]);
        let (a, total) = (directory.join("a"), limit + 2000);
        for n in 0..total {
            if n % 2 == 0 {
                drop(fs::File::create(&a).expect("a file"));
            } else {
                fs::remove_file(&a).expect("removing it");
            }
        }
        let (mut count, mut overflow) = (0, false);
        while !overflow && count < total {
            match events(&*watch).next().expect("next") {
                Attempt::Done(notices) => {
                    for notice in notices {
                        match notice {
                            Notice::Event(_) => count += 1,
                            Notice::Overflow => overflow = true,
                            Notice::End(why) => panic!("it ended: {why}"),
                        }
                    }
                }
                Attempt::Wait(readiness) => {
                    assert!(
                        wait(readiness, Duration::from_secs(5)),
                        "{count} of {total} events, and no word about the others"
                    );
                }
            }
        }
    });
}
