//! inotify over whole directory trees: races, renames, what is left out, and what is not watched.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod waiting;
mod watching;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ipc_kernel::{Endpoint, Value, shape::Notice};
use waiting::{Child, Directory, as_nobody, must_wait};
use watching::{
    address, event, is_end,
    model::{View, show},
    renamed, until, watch,
};

const NAMES: &str = "create+delete+move";

fn tree(path: &Path, events: &str) -> Box<dyn Endpoint> {
    watch(&address(path).with("recursive", "true").with("events", events))
}

fn sh(directory: &Path, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(directory).status().unwrap();
    assert!(status.success(), "{script}");
}

/// All that is told until a file of this name is created in the watched directory.
fn told(endpoint: &dyn Endpoint, directory: &Path, last: &str) -> Vec<Notice> {
    let path = directory.join(last);
    fs::write(&path, "").unwrap();
    // However the service came to know.
    let path = path.as_os_str().as_encoded_bytes();
    let last = |notice: &Notice| matches!(notice, Notice::Event(event) if event.path == path && event.names[0] == "CREATE");
    let mut told = until(endpoint, last);
    told.truncate(told.iter().position(last).unwrap());
    told
}

/// The names of an event without how the service came to know.
fn plain(notices: &[Notice]) -> Vec<String> {
    let text = |notice: &Notice| match notice {
        Notice::Event(event) => {
            let mut event = event.clone();
            event.names.retain(|name| *name != "FOUND");
            show(&event)
        }
        other => format!("{other:?}"),
    };
    notices.iter().map(text).collect()
}

#[test]
fn a_tree_that_comes_in_a_moment_is_told_whole_and_once() {
    let directory = Directory::new();
    let endpoint = tree(directory.path(), NAMES);
    for turn in 0..200 {
        let top = directory.path().join(format!("a{turn}"));
        fs::create_dir_all(top.join("b/c")).unwrap();
        fs::write(top.join("b/c/f"), "").unwrap();
        let told = plain(&told(&*endpoint, directory.path(), &format!("last{turn}")));
        let line = |names: &str, path: PathBuf| format!("{names} {}  ", path.display());
        let expected = [
            line("CREATE,ISDIR", top.clone()),
            line("CREATE,ISDIR", top.join("b")),
            line("CREATE,ISDIR", top.join("b/c")),
            line("CREATE", top.join("b/c/f")),
        ];
        assert_eq!(told, expected, "turn {turn}");
    }
    // Whoever asked for complete files only, gets each of them.
    let written = tree(directory.path(), "written");
    for turn in 0..100 {
        let file = directory.path().join(format!("w{turn}/b/c/f"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "text").unwrap();
        let path = std::os::unix::ffi::OsStrExt::as_bytes(file.as_os_str());
        until(
            &*written,
            |notice| matches!(notice, Notice::Event(event) if event.path == path && event.names[0] == "CLOSE_WRITE"),
        );
    }
}

#[test]
fn directories_are_renamed_and_leave_and_come() {
    let directory = Directory::new();
    let [watched, outside] = ["watched", "outside"].map(|name| directory.unique(name));
    fs::create_dir_all(watched.join("a/b")).unwrap();
    fs::create_dir_all(outside.join("x/y")).unwrap();
    fs::write(outside.join("x/y/z"), "").unwrap();
    let endpoint = tree(&watched, NAMES);
    let at = |path: &str| watched.join(path);
    fs::rename(at("a"), at("c")).unwrap();
    fs::write(at("c/b/f"), "").unwrap();
    fs::rename(at("c/b"), at("b")).unwrap();
    fs::write(at("b/g"), "").unwrap();
    assert_eq!(
        told(&*endpoint, &watched, "one"),
        [
            renamed(&["ISDIR"], at("a"), at("c")),
            event(&["CREATE"], at("c/b/f")),
            renamed(&["ISDIR"], at("c/b"), at("b")),
            event(&["CREATE"], at("b/g")),
        ]
    );
    // Out: what happens there is nobody's business; and in again, with what came meanwhile.
    fs::rename(at("b"), outside.join("b")).unwrap();
    fs::write(outside.join("b/h"), "").unwrap();
    fs::rename(outside.join("x"), at("x")).unwrap();
    let first = told(&*endpoint, &watched, "two");
    assert_eq!(
        plain(&first),
        [
            format!("MOVED_FROM,ISDIR {}  ", at("b").display()),
            format!("MOVED_TO,ISDIR {}  ", at("x").display()),
            format!("CREATE,ISDIR {}  ", at("x/y").display()),
            format!("CREATE {}  ", at("x/y/z").display()),
        ]
    );
    fs::write(outside.join("b/i"), "").unwrap();
    fs::write(at("x/y/j"), "").unwrap();
    assert_eq!(told(&*endpoint, &watched, "three"), [event(&["CREATE"], at("x/y/j"))]);
    // Two that change places.
    fs::create_dir_all(at("x2")).unwrap();
    fs::write(at("x2/only"), "").unwrap();
    told(&*endpoint, &watched, "four");
    let mut view = View::of(&watched);
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, at("x"), rustix::fs::CWD, at("x2"), exchange).unwrap();
    let there = View::of(&watched);
    while view != there {
        for notice in watching::next(&*endpoint) {
            let Notice::Event(event) = notice else { panic!("{notice:?}") };
            view.apply(&event).unwrap();
        }
    }
    // The watched directory itself goes.
    fs::rename(&watched, outside.join("gone")).unwrap();
    let all = until(&*endpoint, is_end);
    assert!(matches!(all.last(), Some(Notice::End(why)) if why.contains("was renamed")), "{all:?}");
}

#[test]
fn a_directory_above_is_renamed_and_the_removed_one_ends() {
    let directory = Directory::new();
    let above = directory.unique("above");
    let watched = above.join("watched");
    fs::create_dir_all(&watched).unwrap();
    let endpoint = tree(&watched, NAMES);
    fs::rename(&above, directory.path().join("elsewhere")).unwrap();
    fs::create_dir(directory.path().join("elsewhere/watched/new")).unwrap();
    let all = until(&*endpoint, is_end);
    assert!(matches!(all.last(), Some(Notice::End(why)) if why.contains("no longer at its path")), "{all:?}");

    fs::create_dir_all(watched.join("a/b/c")).unwrap();
    let endpoint = tree(&watched, NAMES);
    fs::create_dir_all(watched.join("new/one")).unwrap();
    fs::remove_dir_all(&watched).unwrap();
    let all = until(&*endpoint, is_end);
    assert!(matches!(all.last(), Some(Notice::End(why)) if why == "the watched file was removed"), "{all:?}");
}

#[test]
fn what_is_left_out_is_not_watched() {
    let directory = Directory::new();
    let path = directory.path();
    fs::create_dir_all(path.join("src/deep")).unwrap();
    fs::create_dir_all(path.join("target/debug")).unwrap();
    symlink("/etc", path.join("link")).unwrap();
    let filtered = address(path)
        .with("recursive", "true")
        .with("events", "create")
        .with("include", "*.rs")
        .with("exclude", "{target,.*}");
    let endpoint = watch(&filtered);
    assert_eq!(endpoint.address().to_string().matches("include").count(), 1);
    let count = |key: &str| endpoint.inspect().unwrap()[key].integer().unwrap();
    assert_eq!((count("directories"), count("unwatched")), (3, 0), "{:?}", endpoint.inspect());
    for file in ["src/deep/a.rs", "src/b.c", "target/debug/c.rs", ".hidden.rs", "src/deep/d.rs"] {
        fs::write(path.join(file), "").unwrap();
    }
    fs::create_dir_all(path.join("target/new")).unwrap();
    fs::create_dir_all(path.join("other/target")).unwrap();
    let last = event(&["CREATE"], path.join("last.rs"));
    fs::write(path.join("last.rs"), "").unwrap();
    let expected = ["src/deep/a.rs", "src/deep/d.rs"].map(|file| event(&["CREATE"], path.join(file)));
    assert_eq!(until(&*endpoint, |notice| *notice == last)[..2], expected);
    assert_eq!(count("directories"), 4);
    // The same for a directory alone.
    let one = watch(&address(path).with("events", "create+move").with("include", "*.txt"));
    for name in ["a.txt", "b.md"] {
        fs::write(path.join(name), "").unwrap();
    }
    fs::rename(path.join("b.md"), path.join("b.txt")).unwrap();
    fs::rename(path.join("a.txt"), path.join("a.md")).unwrap();
    let expected = [
        event(&["CREATE"], path.join("a.txt")),
        event(&["MOVED_TO"], path.join("b.txt")),
        event(&["MOVED_FROM"], path.join("a.txt")),
    ];
    assert_eq!(until(&*one, |notice| *notice == expected[2]), expected);
}

#[test]
fn it_begins_with_what_is_there() {
    let directory = Directory::new();
    let path = directory.path();
    fs::create_dir(path.join("d")).unwrap();
    fs::write(path.join("d/f"), "").unwrap();
    fs::write(path.join("g"), "").unwrap();
    let marked = |names: &[&'static str], name: &str| event(&[names, &["INITIAL"]].concat(), path.join(name));
    let all =
        watch(&address(path).with("events", "delete").with("recursive", "true").with("initial", "true"));
    fs::remove_file(path.join("d/f")).unwrap();
    let last = event(&["DELETE"], path.join("d/f"));
    assert_eq!(
        until(&*all, |notice| *notice == last),
        [marked(&["CREATE", "ISDIR"], "d"), marked(&["CREATE"], "g"), marked(&["CREATE"], "d/f"), last]
    );
    let one = watch(&address(path).with("initial", "true").with("oneshot", "true").with("events", "create"));
    fs::write(path.join("h"), "").unwrap();
    let told = until(&*one, is_end);
    assert_eq!(
        told[..3],
        [marked(&["CREATE", "ISDIR"], "d"), marked(&["CREATE"], "g"), event(&["CREATE"], path.join("h"))]
    );
}

#[test]
fn many_events_of_a_path_become_one() {
    let directory = Directory::new();
    let path = directory.path();
    fs::create_dir(path.join("d")).unwrap();
    let endpoint = watch(&address(path).with("debounce-ms", "50").with("recursive", "true"));
    for turn in 0..20 {
        fs::write(path.join("d/f"), format!("{turn}")).unwrap();
    }
    let is_of = |notice: &Notice, file: &Path| matches!(notice, Notice::Event(event) if event.path == file.as_os_str().as_encoded_bytes());
    let told = until(&*endpoint, |notice| is_of(notice, &path.join("d/f")));
    let of_file: Vec<_> = told.iter().filter(|notice| is_of(notice, &path.join("d/f"))).collect();
    assert_eq!(of_file.len(), 1, "{told:?}");
    let Notice::Event(event) = of_file[0] else { unreachable!() };
    assert_eq!(*event.names.last().unwrap(), "CLOSE_WRITE");
    must_wait(endpoint.events().unwrap().next());
}

#[test]
fn what_may_not_be_read_is_told() {
    let directory = Directory::new();
    let path = directory.path().to_owned();
    let mode =
        |name: &str, mode| fs::set_permissions(path.join(name), fs::Permissions::from_mode(mode)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["open", "shut"] {
        fs::create_dir_all(path.join(name).join("below")).unwrap();
    }
    mode("shut", 0o700);
    let mut root = Command::new("sh");
    root.args(["-c", "while read mode path; do chmod $mode $path; done"]).stdin(Stdio::piped());
    let mut root = Child(root.spawn().unwrap());
    let orders = std::sync::Mutex::new(root.0.stdin.take().unwrap());
    as_nobody(|| {
        let endpoint = tree(&path, NAMES);
        let unwatched = |notice: &Notice, name: &str| {
            matches!(notice, Notice::Event(event) if event.names == ["UNWATCHED", "ISDIR"]
                && event.path == path.join(name).as_os_str().as_encoded_bytes() && event.note.contains("EACCES"))
        };
        assert!(unwatched(&until(&*endpoint, |_| true)[0], "shut"));
        assert!(endpoint.inspect().unwrap()["unwatched"].same(&Value::U64(1)));
        // The thread that adds watches is this one; the files are root's, so that root changes them.
        let chmod = |mode: &str, name: &str| {
            let line = format!("{mode} {}\n", path.join(name).display());
            orders.lock().unwrap().write_all(line.as_bytes()).unwrap();
        };
        chmod("000", "open");
        let first = until(&*endpoint, |notice| unwatched(notice, "open"));
        assert_eq!(first.len(), 1, "{first:?}");
        assert!(endpoint.inspect().unwrap()["unwatched"].same(&Value::U64(2)));
        chmod("755", "shut");
        let below = path.join("shut/below");
        let found = until(
            &*endpoint,
            |notice| matches!(notice, Notice::Event(event) if event.path == below.as_os_str().as_encoded_bytes()),
        );
        assert_eq!(found, [event(&["CREATE", "ISDIR", "FOUND"], &below)]);
        chmod("755", "open");
        until(&*endpoint, |notice| *notice == event(&["CREATE", "ISDIR", "FOUND"], path.join("open/below")));
    });
}

#[test]
fn the_same_files_as_inotifywait_during_a_copy() {
    let directory = Directory::new();
    let [watched, source] = ["watched", "source"].map(|name| directory.unique(name));
    fs::create_dir(&watched).unwrap();
    sh(
        directory.path(),
        &format!(
            "mkdir -p {0}; for d in $(seq 40); do mkdir -p {0}/$d/a/b; for f in $(seq 20); do echo $f > {0}/$d/a/b/$f; done; done",
            source.display()
        ),
    );
    let mut peer = Child(
        Command::new("inotifywait")
            .args(["-mrq", "-e", "create,delete,move", "--format", "%e|%w%f"])
            .arg(&watched)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let endpoint = tree(&watched, NAMES);
    // inotifywait is ready when it shows this one.
    let mut lines = BufReader::new(peer.0.stdout.take().unwrap()).lines();
    sh(
        &watched,
        "until [ -e stop ]; do touch ready; rm ready; [ -s ../seen ] && touch stop; sleep 0.05; done & echo > ../seen; wait",
    );
    assert!(lines.any(|line| line.unwrap().contains("stop")));
    told(&*endpoint, &watched, "begin");
    sh(&watched, &format!("cp -r {} copy; mv copy/1 copy/moved; rm -r copy/2; touch end", source.display()));
    let mut view = View::of(&watched);
    let there = view.clone();
    view.0.retain(|path, _| !String::from_utf8_lossy(path).contains("/copy") && !path.ends_with(b"/end"));
    let last = event(&["CREATE"], watched.join("end"));
    let mut ours = 0;
    for notice in until(&*endpoint, |notice| *notice == last) {
        let Notice::Event(event) = notice else { panic!("{notice:?}") };
        view.apply(&event).unwrap();
        ours += 1;
    }
    assert_eq!(view, there);
    let theirs = lines.map(|line| line.unwrap()).take_while(|line| !line.ends_with("/end")).count();
    eprintln!("{ours} events, of which inotifywait -mr shows {theirs} (a rename is two there)");
}
