//! inotify, where a test changes a limit, loses events or unmounts something: each runs in a
//! process of its own, by starting this test program again.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod waiting;
mod watching;

use std::{fs, path::Path, process::Command};

use ipc_kernel::{Attempt, Kind, Readiness, Value, mechanisms::inotify::DESCRIPTOR, shape::Notice};
use waiting::{Directory, create, must_wait, refused};
use watching::{address, drive, end, event, is_end, next, until, watch};

/// Runs this very test in a process of its own, `before` being the shell's; true in that process.
fn alone(test: &str, unshare: &[&str], before: &str) -> bool {
    if std::env::var_os("INOTIFY_TEST_ALONE").is_some() {
        return true;
    }
    if !unshare.is_empty() && !Command::new("unshare").args(unshare).arg("true").status().unwrap().success() {
        eprintln!("SKIPPED: unshare {unshare:?} is not possible here");
        return false;
    }
    let mut command = Command::new(if unshare.is_empty() { "env" } else { "unshare" });
    command.args(unshare).args(["sh", "-ec", &format!("{before}\nexec \"$@\""), "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let output = command.env("INOTIFY_TEST_ALONE", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn what_the_kernel_loses_is_told_to_everybody() {
    if !alone("what_the_kernel_loses_is_told_to_everybody", &[], "") {
        return;
    }
    // The driver is called by hand, so that the kernel's queue fills up.
    assert!(matches!(drive(), Attempt::Wait(Readiness::Notified(_))));
    let directory = Directory::new();
    let [busy, quiet, removed] = ["busy", "quiet", "removed"].map(|name| directory.unique(name));
    for path in [&busy, &quiet, &removed] {
        fs::create_dir(path).unwrap();
    }
    let endpoints = [&busy, &quiet, &removed].map(|path| create(&DESCRIPTOR, &address(path)).unwrap());
    assert!(matches!(drive(), Attempt::Wait(Readiness::Readable(_))));
    let limit = (DESCRIPTOR.limits)()["fs.inotify.max_queued_events"].integer().unwrap();
    for name in ["one", "two"] {
        fs::write(busy.join(name), "").unwrap();
    }
    // Opened and closed, in turn so that nothing merges: two events each.
    for number in 0..limit / 2 + 1 {
        let name = if number % 2 == 0 { "one" } else { "two" };
        fs::File::open(busy.join(name)).unwrap();
    }
    fs::remove_dir(&removed).unwrap();
    while !matches!(drive(), Attempt::Wait(Readiness::Readable(_))) {}
    let notices = until(&*endpoints[0], |notice| *notice == Notice::Overflow);
    assert_eq!((notices.len() as i128, notices.last()), (limit.min(16384) + 1, Some(&Notice::Overflow)));
    assert_eq!(next(&*endpoints[1]), [Notice::Overflow]);
    // Its end was among the lost events.
    assert_eq!(next(&*endpoints[2]), [Notice::Overflow, end("the kernel ended the watch")]);
    must_wait(endpoints[1].events().unwrap().next());
}

#[test]
fn an_unmounted_file_system_ends_its_watches() {
    if !alone("an_unmounted_file_system_ends_its_watches", &["--user", "--map-root-user", "--mount"], "") {
        return;
    }
    let directory = Directory::new();
    let run = |command: &str, arguments: &[&str]| {
        assert!(Command::new(command).args(arguments).arg(directory.path()).status().unwrap().success());
    };
    run("mount", &["-t", "tmpfs", "none"]);
    let endpoint = watch(&address(directory.path()));
    assert!(endpoint.inspect().unwrap()["filesystem"].same(&Value::Text("tmpfs".into())));
    run("umount", &[]);
    assert_eq!(
        until(&*endpoint, is_end)[..],
        [
            event(&["UNMOUNT", "ISDIR"], directory.path()),
            event(&["IGNORED"], directory.path()),
            end("the file system was unmounted")
        ]
    );
}

#[test]
fn the_limit_on_watches_is_named_with_its_value() {
    let before = "echo 1 > /proc/sys/user/max_inotify_watches";
    let unshare = ["--user", "--map-root-user"];
    if !alone("the_limit_on_watches_is_named_with_its_value", &unshare, before) {
        return;
    }
    let first = watch(&address(Path::new("/")));
    let error = refused(create(&DESCRIPTOR, &address(Path::new("/usr"))));
    assert_eq!(error.kind, Kind::LimitExceeded);
    let machine = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    assert!(error.text.contains(&format!("fs.inotify.max_user_watches, now {}", machine.trim())), "{error}");
    assert!(error.text.contains("user.max_inotify_watches of this user namespace, now 1"), "{error}");
    // The same inode needs no other watch, and one that goes makes room.
    let _same = watch(&address(Path::new("/")).with("events", "modify"));
    drop((first, _same));
    watch(&address(Path::new("/usr")));
}

#[test]
fn the_limit_on_instances_is_named_with_its_value() {
    let before = "echo 0 > /proc/sys/user/max_inotify_instances";
    let unshare = ["--user", "--map-root-user"];
    if !alone("the_limit_on_instances_is_named_with_its_value", &unshare, before) {
        return;
    }
    let error = refused(create(&DESCRIPTOR, &address(Path::new("/"))));
    assert_eq!(error.kind, Kind::LimitExceeded);
    assert!(error.text.contains("raise fs.inotify.max_user_instances, now"), "{error}");
    assert!(error.text.contains("RLIMIT_NOFILE"), "{error}");
}
