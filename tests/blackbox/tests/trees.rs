//! Watches over whole trees, on every bus: what a client hears of them, in which form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ipc_blackbox::{Inbox, Options, Stage, assert_error, error, everywhere, is_signal};
use zbus::OwnedVariant;

type Dict = BTreeMap<String, OwnedVariant>;
type Changed = (u64, Vec<String>, String, String, Dict);
type Change = (Vec<String>, String, String, Dict);

/// Changes, once the last one wanted is among them: events and path, "from" behind it.
async fn told(inbox: &Inbox, watch: &str, last: &str) -> Vec<String> {
    inbox
        .until(|all| {
            let signals = all.iter().filter(|message| is_signal(message, watch, "Changed"));
            let mut lines = Vec::new();
            for signal in signals {
                let (seq, names, path, from, _): Changed = signal.body().deserialize().expect("Changed");
                lines.push(line(&names, &path, &from));
                assert_eq!(seq, lines.len() as u64, "events are numbered from 1 without holes");
            }
            lines.last().is_some_and(|line| line == last).then_some(lines)
        })
        .await
}

fn line(names: &[String], path: &str, from: &str) -> String {
    let names: Vec<_> = names.iter().filter(|name| *name != "FOUND").map(String::as_str).collect();
    format!("{} {path} {from}", names.join(","))
}

async fn a_tree_that_grows(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let at = |path: &str| dir.path().join(path).display().to_string();
    let watch = client.create(&format!("inotify:path={},recursive,events=create+delete+move", at(""))).await;
    stage.sh(&format!(
        "cd '{}' && mkdir -p a/b/c && touch a/b/c/f && mv a z && mv z/b/c/f z/g && rm -r z/b && touch end",
        at("")
    ))
    .finish()
    .success();
    let lines = told(&inbox, &watch, &format!("CREATE {} ", at("end"))).await;
    // Where the file was when the directory came to be watched, depends on who was faster; that it was told, and
    // what there is in the end, does not.
    let mut view = BTreeSet::new();
    for line in &lines {
        let [names, path, from] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let below = |top: &str| format!("{top}/");
        if names.starts_with("CREATE") {
            assert!(view.insert(path.to_owned()), "told twice: {line} in {lines:#?}");
        } else if names.starts_with("MOVED_FROM,MOVED_TO") {
            let moved: Vec<String> =
                view.iter().filter(|old| *old == from || old.starts_with(&below(from))).cloned().collect();
            for old in moved {
                view.remove(&old);
                view.insert(format!("{path}{}", &old[from.len()..]));
            }
        } else {
            view.retain(|old| old != path && !old.starts_with(&below(path)));
        }
    }
    assert_eq!(view, BTreeSet::from([at("z"), at("z/g"), at("end")]), "{lines:#?}");
    let inspected: Dict = client.call(&watch, "Endpoint", "Inspect", &()).await.expect("Inspect");
    assert_eq!(u64::try_from(inspected["directories"].clone()), Ok(2));
}

async fn many_changes_in_one_signal(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let watch = client.create(&format!("inotify:path={},events=create,batch", dir.path().display())).await;
    // More than are kept: all are told.
    let count = 3000;
    for number in 0..count {
        fs::write(dir.path().join(format!("{number}")), "").expect("a file");
    }
    let (signals, paths) = inbox
        .until(|all| {
            let (mut signals, mut paths, mut next) = (0, Vec::new(), 1);
            for signal in all.iter().filter(|message| is_signal(message, &watch, "ChangedMany")) {
                let (first, changes): (u64, Vec<Change>) = signal.body().deserialize().expect("ChangedMany");
                assert!(changes.len() <= 64 && !changes.is_empty());
                assert_eq!(first, next, "none is missing");
                next += changes.len() as u64;
                signals += 1;
                paths.extend(changes.into_iter().map(|(_, path, ..)| path));
            }
            (paths.len() == count).then_some((signals, paths))
        })
        .await;
    assert!(signals < count / 4, "{signals} signals");
    let expected: Vec<_> =
        (0..count).map(|number| dir.path().join(number.to_string()).display().to_string()).collect();
    assert_eq!(paths, expected);
    assert!(!inbox.all().iter().any(|message| is_signal(message, &watch, "Changed")));
    let misplaced = error(client.try_create("pipe:batch", Options::new()).await);
    assert_error(&misplaced, "InvalidArgument", &["\"batch\"", "watch"]);
}

async fn what_is_there_comes_first_and_what_settles_once(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let at = |path: &str| dir.path().join(path).display().to_string();
    fs::create_dir(at("d")).expect("a directory");
    fs::write(at("d/old"), "").expect("a file");
    fs::create_dir(at("skipped")).expect("a directory");
    let keys = "recursive,initial,debounce-ms=30,exclude=skipped,events=create+written";
    let watch = client.create(&format!("inotify:path={},{keys}", at(""))).await;
    for turn in 0..10 {
        fs::write(at("d/new"), format!("{turn}")).expect("a file");
        fs::write(at("skipped/new"), "").expect("a file");
    }
    let lines = told(&inbox, &watch, &format!("CREATE,CLOSE_WRITE {} ", at("d/new"))).await;
    assert_eq!(
        lines[..2],
        [format!("CREATE,ISDIR,INITIAL {} ", at("d")), format!("CREATE,INITIAL {} ", at("d/old"))]
    );
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

/// A file system that does not tell is refused, and looked at on request.
async fn a_silent_file_system(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let refused = error(client.try_create("inotify:path=/proc/self", Options::new()).await);
    assert_error(&refused, "NotSupported", &["proc", "poll-ms"]);
    client.create("inotify:path=/proc,partial").await;
    let dir = stage.temp_dir();
    let at = |path: &str| dir.path().join(path).display().to_string();
    fs::create_dir(at("d")).expect("a directory");
    let watch = client
        .create(&format!("inotify:path={},poll-ms=100,recursive,events=create+move+modify+delete", at("")))
        .await;
    let polled = |names: &str, path: &str| format!("{names},POLLED {} ", at(path));
    fs::write(at("d/f"), "one").expect("a file");
    let lines = told(&inbox, &watch, &polled("CREATE", "d/f")).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    fs::rename(at("d"), at("e")).expect("renaming");
    let renamed = format!("MOVED_FROM,MOVED_TO,ISDIR,POLLED {} {}", at("e"), at("d"));
    told(&inbox, &watch, &renamed).await;
    fs::write(at("e/f"), "longer").expect("a file");
    told(&inbox, &watch, &polled("MODIFY", "e/f")).await;
    fs::remove_file(at("e/f")).expect("removing");
    assert_eq!(told(&inbox, &watch, &polled("DELETE", "e/f")).await.len(), 4);
    drop(dir);
    let reason: String = inbox.signal(&watch, "Closed").await.body().deserialize().expect("a reason");
    assert!(reason.contains("removed"), "{reason}");
}

/// Each directory counts in the limit; what is beyond it is said, with its key.
async fn watches_are_counted(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let at = |path: &str| dir.path().join(path).display().to_string();
    let make = |path: &str| fs::create_dir_all(Path::new(&at(path))).expect("directories");
    (0..3).for_each(|n| make(&format!("d{n}")));
    let address = format!("inotify:path={},recursive,events=create", at(""));
    let before = client.usage("watches").await;
    let watch = client.create(&address).await;
    assert_eq!(client.usage("watches").await - before, 4);
    (0..2000).for_each(|n| make(&format!("d0/{n}")));
    let (path, reason) = inbox
        .until(|all| {
            let signals = all.iter().filter(|message| is_signal(message, &watch, "Changed"));
            let mut read = signals.map(|signal| signal.body().deserialize::<Changed>().expect("Changed"));
            let left_out = read.find(|(_, names, ..)| names == &["UNWATCHED", "ISDIR"])?;
            Some((left_out.2, String::try_from(left_out.4["reason"].clone()).expect("a text")))
        })
        .await;
    assert!(path.starts_with(&at("d0")) && reason.contains("watches is 1024"), "{path}: {reason}");
    assert_eq!(client.usage("watches").await, 1024);
    let refused =
        error(client.try_create(&format!("inotify:path={},recursive", at("d0")), Options::new()).await);
    assert_error(&refused, "LimitExceeded", &["watches", "1024"]);
    client.close(&watch).await;
    client.used("watches", before).await;
}

everywhere!(
    a_tree_that_grows,
    many_changes_in_one_signal,
    what_is_there_comes_first_and_what_settles_once,
    a_silent_file_system,
    watches_are_counted,
);
