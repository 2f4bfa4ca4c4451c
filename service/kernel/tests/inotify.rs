//! inotify: against inotifywait, and the hub's own promises.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod waiting;
mod watching;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ipc_kernel::{
    Address, Endpoint, Kind, Value,
    mechanism::Adoption,
    mechanisms::inotify::DESCRIPTOR,
    shape::{Event, Notice},
};
use waiting::{Child, Directory, as_nobody, attach, create, must_wait, options, refused};
use watching::{address, end, event, is_end, next, until, watch};

#[test]
fn the_same_events_as_inotifywait_in_the_same_order() {
    let directory = Directory::new();
    let [watched, outside] = ["watched", "outside"].map(|name| directory.unique(name));
    fs::create_dir_all(outside.join("tree/sub")).unwrap();
    fs::write(outside.join("tree/sub/file"), "text").unwrap();
    fs::create_dir(&watched).unwrap();
    let mut peer = Child(
        Command::new("inotifywait")
            .args(["-m", "--format", "%e|%w%f"])
            .arg(&watched)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut messages = BufReader::new(peer.0.stderr.take().unwrap()).lines();
    assert!(messages.any(|line| line.unwrap().contains("Watches established")));
    let endpoint = watch(&address(&watched));
    let work = "
        cd \"$1\"; out=\"$2\"
        cp -r \"$out/tree\" copied
        mkdir -p new/deep; ls new > /dev/null
        echo one > file; cat file > /dev/null; echo two >> file; chmod 600 file; ln file link
        mv file renamed; mv renamed \"$out/away\"; mv \"$out/away\" back; mv copied \"$out\"; mv new newer
        printf x > 'with space'; rm 'with space' back link; rm -r newer
        touch last; rm last";
    assert!(
        Command::new("sh").args(["-ec", work, "sh"]).args([&watched, &outside]).status().unwrap().success()
    );
    let lines = |notice: &Notice| match notice {
        Notice::Event(event) => lines(event),
        other => panic!("{other:?}"),
    };
    let line = |notice: &Notice| lines(notice).remove(0);
    let last = event(&["DELETE"], watched.join("last"));
    let mut ours: Vec<String> = until(&*endpoint, |notice| *notice == last).iter().flat_map(lines).collect();
    let mut theirs = Vec::new();
    for text in BufReader::new(peer.0.stdout.take().unwrap()).lines() {
        // inotifywait adds the name of the group; the kernel has no such bit. An event of the
        // directory itself has its path with '/'.
        let text = text
            .unwrap()
            .replace("CLOSE_WRITE,CLOSE", "CLOSE_WRITE")
            .replace("CLOSE_NOWRITE,CLOSE", "CLOSE_NOWRITE");
        let done = text == line(&last);
        theirs.push(text.trim_end_matches('/').to_owned());
        if done {
            break;
        }
    }
    // The kernel merges identical successive events where they meet in a queue.
    ours.dedup();
    theirs.dedup();
    assert!(ours.len() > 40, "{ours:#?}");
    assert_eq!(ours, theirs);
}

/// An event as inotifywait shows it: a rename is two.
fn lines(event: &Event) -> Vec<String> {
    let line = |names: &[&str], path: &[u8]| format!("{}|{}", names.join(","), String::from_utf8_lossy(path));
    if event.from.is_empty() {
        return vec![line(&event.names, &event.path)];
    }
    assert_eq!(event.names[..2], ["MOVED_FROM", "MOVED_TO"]);
    let half = |name| [&[name], &event.names[2..]].concat();
    vec![line(&half("MOVED_FROM"), &event.from), line(&half("MOVED_TO"), &event.path)]
}

#[test]
fn endpoints_on_one_inode_share_a_watch_and_get_what_each_asked_for() {
    let directory = Directory::new();
    let [path, link] = ["shared", "link"].map(|name| directory.unique(name));
    fs::create_dir(&path).unwrap();
    symlink(&path, &link).unwrap();
    let creates = watch(&address(&path).with("events", "create"));
    fs::write(path.join("before"), "").unwrap();
    let deletes = watch(&address(&link).with("events", "delete+close"));
    let wd = |endpoint: &dyn Endpoint| endpoint.inspect().unwrap()["wd"].integer().unwrap();
    assert_eq!(wd(&*creates), wd(&*deletes));
    let state = creates.inspect().unwrap();
    assert!(state["endpoints"].same(&Value::U64(2)), "{state:?}");
    let kernel = |words: &[&str]| Value::Texts(words.iter().map(|word| (*word).to_owned()).collect());
    let union = ["close-write", "close-nowrite", "create", "delete", "delete-self"];
    assert!(state["kernel-events"].same(&kernel(&union)), "{state:?}");

    fs::write(path.join("file"), "x").unwrap();
    fs::remove_file(path.join("file")).unwrap();
    fs::create_dir(path.join("last")).unwrap();
    let last = event(&["CREATE", "ISDIR"], path.join("last"));
    assert_eq!(
        until(&*creates, |notice| *notice == last),
        [event(&["CREATE"], path.join("before")), event(&["CREATE"], path.join("file")), last.clone()]
    );
    // Each with the path that it gave, and nothing from before it was there.
    let last = event(&["DELETE"], link.join("file"));
    assert_eq!(
        until(&*deletes, |notice| *notice == last),
        [event(&["CLOSE_WRITE"], link.join("file")), last.clone()]
    );
    drop(deletes);
    // What nobody asks for any more goes with the endpoint that goes last; not beside a change that another test makes
    // at this moment, but then with the next one.
    let narrow = kernel(&["create", "delete-self"]);
    let narrowed = || creates.inspect().unwrap()["kernel-events"].same(&narrow);
    let again = || drop(watch(&address(&link).with("events", "delete+close")));
    assert!(
        (0..1000).any(|_| narrowed() || {
            again();
            false
        }),
        "{:?}",
        creates.inspect().unwrap()
    );
    let state = creates.inspect().unwrap();
    assert!(state["endpoints"].same(&Value::U64(1)));
    fs::write(path.join("again"), "").unwrap();
    assert_eq!(next(&*creates), [event(&["CREATE"], path.join("again"))]);
    let gone = wd(&*creates);
    drop(creates);
    let rows = DESCRIPTOR.objects().unwrap();
    let ours = Value::U32(std::process::id());
    assert!(!rows.iter().any(|row| row["pid"].same(&ours) && row["wd"].integer() == Some(gone)));
}

#[test]
fn a_removed_file_ends_its_watch() {
    let directory = Directory::new();
    let path = directory.unique("removed");
    fs::write(&path, "").unwrap();
    let all = watch(&address(&path));
    let modify = watch(&address(&path).with("events", "modify"));
    fs::remove_file(&path).unwrap();
    let removed = "the watched file was removed";
    assert_eq!(
        until(&*all, is_end),
        [event(&["ATTRIB"], &path), event(&["DELETE_SELF"], &path), event(&["IGNORED"], &path), end(removed)]
    );
    assert_eq!(until(&*modify, is_end), [event(&["IGNORED"], &path), end(removed)]);
    let error = refused(modify.events().unwrap().next());
    assert_eq!((error.kind, error.text.contains(removed)), (Kind::Closed, true));
    assert!(modify.inspect().unwrap()["ended"].same(&Value::Text(removed.into())));
    // A new file of the same name is a new inode, with a watch of its own.
    fs::write(&path, "").unwrap();
    let again = watch(&address(&path).with("events", "attrib"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(next(&*again), [event(&["ATTRIB"], &path)]);
}

#[test]
fn oneshot_ends_for_its_endpoint_only() {
    let directory = Directory::new();
    let path = directory.unique("oneshot");
    fs::create_dir(&path).unwrap();
    let once = watch(&address(&path).with("events", "create").with("oneshot", "true"));
    let always = watch(&address(&path).with("events", "create"));
    for name in ["one", "two"] {
        fs::write(path.join(name), "").unwrap();
    }
    let (one, two) = (event(&["CREATE"], path.join("one")), event(&["CREATE"], path.join("two")));
    assert_eq!(until(&*always, |notice| *notice == two), [one.clone(), two]);
    assert_eq!(
        until(&*once, is_end),
        [one, event(&["IGNORED"], &path), end("the watch was for one event (oneshot)")]
    );
    assert_eq!(
        once.address().to_string(),
        Address::parse(&format!("inotify:path={},events=create,oneshot=true", path.display()))
            .unwrap()
            .to_string()
    );
}

#[test]
fn the_flags_mean_what_the_manual_says() {
    let directory = Directory::new();
    let [path, link] = ["flags", "link"].map(|name| directory.unique(name));
    fs::create_dir(&path).unwrap();
    symlink(&path, &link).unwrap();
    // The link itself: it has no entries, but it can be removed.
    let itself = watch(&address(&link).with("dont-follow", "true"));
    fs::write(path.join("unseen"), "").unwrap();
    fs::remove_file(&link).unwrap();
    assert!(!until(&*itself, is_end).contains(&event(&["CREATE"], link.join("unseen"))));

    let excluding = watch(&address(&path).with("events", "modify+delete").with("excl-unlink", "true"));
    let error = refused(create(&DESCRIPTOR, &address(&path)));
    assert_eq!(error.kind, Kind::Busy);
    assert!(error.text.contains("excl-unlink=true") && error.text.contains("close it first"), "{error}");
    let state = excluding.inspect().unwrap();
    let Value::Texts(words) = &state["kernel-events"] else { panic!("{state:?}") };
    assert_eq!(*words, ["delete", "delete-self", "modify"], "the refused one left nothing behind");
    let mut open = fs::File::create(path.join("open")).unwrap();
    fs::remove_file(path.join("open")).unwrap();
    std::io::Write::write_all(&mut open, b"nobody's business").unwrap();
    drop(open);
    fs::write(path.join("last"), "").unwrap();
    fs::remove_file(path.join("last")).unwrap();
    let last = event(&["DELETE"], path.join("last"));
    assert_eq!(
        until(&*excluding, |notice| *notice == last),
        [event(&["DELETE"], path.join("open")), last.clone()]
    );
}

#[test]
fn every_bad_input_is_refused_with_a_reason() {
    use rustix::io::Errno;
    let directory = Directory::new();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "").unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    let errno = |errno| Kind::Errno(errno);
    for (address, kind, phrase) in [
        (address(&at("missing")), Kind::NotFound, "ENOENT"),
        (address(Path::new("relative")), Kind::InvalidArgument, "absolute path"),
        (address(Path::new("")), Kind::InvalidArgument, "absolute path"),
        (address(&at("file/below")), errno(Errno::NOTDIR), "ENOTDIR"),
        (address(&at("file")).with("onlydir", "true"), errno(Errno::NOTDIR), "onlydir demands a directory"),
        (address(&at("loop")), errno(Errno::LOOP), "ELOOP"),
        (address(&at(&"x".repeat(256))), errno(Errno::NAMETOOLONG), "ENAMETOOLONG"),
        (address(&at("file")).with("events", "creation"), Kind::InvalidArgument, "words out of access"),
        (address(&at("file")).with("events", ""), Kind::InvalidArgument, "words out of access"),
        (address(&at("file")).with("recursive", "true"), errno(Errno::NOTDIR), "demands a directory"),
        (address(&at("file")).with("recursion", "true"), Kind::InvalidArgument, "no key \"recursion\""),
        (address(&at("file")).with("include", "{a"), Kind::InvalidArgument, "\"include\" must be a glob"),
        (address(&at("file")).with("debounce-ms", "0"), Kind::InvalidArgument, "from 1 to 60000"),
        (address(&at("file")).with("poll-ms", "10"), Kind::InvalidArgument, "from 100 to 3600000"),
        (address(Path::new("/proc/self")), Kind::NotSupported, "give poll-ms=1000"),
        (Address::new("inotify"), Kind::InvalidArgument, "\"path\" is missing"),
    ] {
        let error = refused(create(&DESCRIPTOR, &address));
        assert_eq!(error.kind, kind, "{address}: {error}");
        assert!(error.text.contains(phrase), "{address}: {error}");
    }
    let error = refused(attach(&DESCRIPTOR, &address(&at("file"))));
    assert_eq!((error.kind, error.text.contains("use Create")), (Kind::NotSupported, true));
    let endpoint = watch(&address(&at("file")));
    let error = refused(endpoint.open(&options(&DESCRIPTOR, "").unwrap()));
    assert_eq!((error.kind, error.text.contains("share one inotify instance")), (Kind::NotSupported, true));
    assert_eq!(refused(endpoint.remove()).kind, Kind::NotSupported);
    let null = fs::File::open("/dev/null").unwrap().into();
    assert!(matches!((DESCRIPTOR.adopt)(null).unwrap(), Adoption::Refused(_)));
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o200)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if let Some(error) = as_nobody(|| refused(create(&DESCRIPTOR, &address(&at("file"))))) {
        assert_eq!(error.kind, Kind::PermissionDenied);
        assert!(error.text.contains("the right to read"), "{error}");
    }
}

#[test]
fn names_are_bytes_and_the_root_has_one_slash() {
    let directory = Directory::new();
    let name = PathBuf::from(std::ffi::OsString::from_vec(b"\xff\xfe,=%".to_vec()));
    let path = directory.path().join(&name);
    fs::create_dir(&path).unwrap();
    let endpoint = watch(&address(&path).with("events", "create"));
    assert_eq!(Address::parse(&endpoint.address().to_string()).unwrap(), endpoint.address());
    fs::write(path.join(&name), "").unwrap();
    assert_eq!(next(&*endpoint), [event(&["CREATE"], path.join(&name))]);
    let root = watch(&address(Path::new("/")).with("events", "open"));
    fs::read_dir("/tmp").unwrap();
    assert!(
        until(&*root, |notice| *notice == event(&["OPEN", "ISDIR"], "/tmp"))
            .iter()
            .all(|notice| { !matches!(notice, Notice::Event(event) if event.path.starts_with(b"//")) })
    );
}

#[test]
fn a_file_system_that_inotify_does_not_see_is_named() {
    let of = |path: &str| {
        let state = watch(&address(Path::new(path)).with("partial", "true")).inspect().unwrap();
        let Value::Text(filesystem) = &state["filesystem"] else { panic!("{state:?}") };
        (filesystem.clone(), state["complete"].same(&Value::Bool(true)))
    };
    assert_eq!(of("/proc/self"), ("proc".into(), false));
    assert_eq!(of("/sys"), ("sysfs".into(), false));
    assert_eq!(of("/dev/shm"), ("tmpfs".into(), true));
}

#[test]
fn the_list_shows_every_visible_watch() {
    let directory = Directory::new();
    let mut peer = Child(
        Command::new("inotifywait")
            .args(["-m", "-e", "create,moved_to"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut messages = BufReader::new(peer.0.stderr.take().unwrap()).lines();
    assert!(messages.any(|line| line.unwrap().contains("Watches established")));
    let _endpoint = watch(&address(directory.path()).with("events", "modify").with("excl-unlink", "true"));
    let rows = DESCRIPTOR.objects().unwrap();
    let inode = Value::U64(std::os::unix::fs::MetadataExt::ino(&fs::metadata(directory.path()).unwrap()));
    let of = |pid: u32| {
        rows.iter().find(|row| row["pid"].same(&Value::U32(pid)) && row["inode"].same(&inode)).unwrap()
    };
    let theirs = of(peer.0.id());
    assert!(theirs["command"].same(&Value::Text("inotifywait".into())));
    assert!(theirs["events"].same(&Value::Texts(vec!["create".into(), "moved-to".into()])), "{theirs:?}");
    assert!(!theirs.contains_key("path"));
    let ours = of(std::process::id());
    let path = directory.path().as_os_str().as_bytes();
    assert!(ours["path"].same(&Value::text_or_bytes(path)));
    assert!(ours["flags"].same(&Value::Texts(vec!["excl-unlink".into()])), "{ours:?}");
    assert!(ours["device"].same(&theirs["device"]));
    for key in ours.keys() {
        assert!(DESCRIPTOR.columns.iter().any(|column| column.key == key), "{key} is not described");
    }
    let limits = (DESCRIPTOR.limits)();
    for key in ["watches", "instances"] {
        assert!(limits[key].integer() >= Some(2), "{limits:?}");
    }
    assert!(limits["fs.inotify.max_user_watches"].integer() > Some(0));
}

#[test]
fn an_endpoint_that_is_not_read_overflows_once() {
    let directory = Directory::new();
    let path = directory.unique("slow");
    fs::create_dir(&path).unwrap();
    let [one, two] = ["one", "two"].map(|name| path.join(name));
    for file in [&one, &two] {
        fs::write(file, "").unwrap();
    }
    let slow = watch(&address(&path).with("events", "open"));
    let quick = watch(&address(&path).with("events", "open+delete"));
    for _ in 0..16384 / 2 + 10 {
        for file in [&one, &two] {
            fs::File::open(file).unwrap();
        }
        // So that the kernel's own queue does not overflow first.
        next(&*quick);
    }
    fs::remove_file(&one).unwrap();
    let last = event(&["DELETE"], &one);
    until(&*quick, |notice| *notice == last);
    let notices = until(&*slow, |notice| *notice == Notice::Overflow);
    assert_eq!(notices.len(), 16385);
    assert_eq!(notices.iter().filter(|notice| **notice == Notice::Overflow).count(), 1);
    assert_eq!(notices.last(), Some(&Notice::Overflow));
    fs::File::open(&two).unwrap();
    assert_eq!(next(&*slow), [event(&["OPEN"], &two)]);
}

#[test]
fn watches_come_and_go_while_everything_moves() {
    let directory = Directory::new();
    let path = directory.unique("race");
    fs::create_dir(&path).unwrap();
    let steady = watch(&address(&path).with("events", "create"));
    std::thread::scope(|scope| {
        for events in ["open", "delete", "all"] {
            let path = &path;
            scope.spawn(move || {
                for _ in 0..200 {
                    drop(watch(&address(path).with("events", events)));
                }
            });
        }
        for number in 0..500 {
            fs::write(path.join(number.to_string()), "").unwrap();
        }
    });
    let last = event(&["CREATE"], path.join("499"));
    let notices = until(&*steady, |notice| *notice == last);
    assert_eq!(notices.len(), 500, "no other endpoint took an event away or added one");
    must_wait(steady.events().unwrap().next());
}
