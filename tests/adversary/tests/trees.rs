//! Watches over trees that belong to more than one user: each sees what the kernel lets him see himself.

use std::fs;

use ipc_adversary::wire::Arg;
use ipc_adversary::{Stage, assert_error, entry};
use ipc_harness::or_skip;
use ipc_harness::system::{ALICE, BOB};

/// Events, path and reason of the next change.
fn change(alice: &mut ipc_adversary::Raw) -> (String, String, String) {
    let args = alice.signal("Changed").args();
    let [_, Arg::Array(_, names), Arg::Str(path), _, details] = &args[..] else { panic!("{args:?}") };
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    (names.join(" "), path.clone(), format!("{:?}", entry(details, "reason")))
}

#[test]
fn alice_does_not_see_into_bobs_directory() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let shared = stage.directory((ALICE, ALICE.gid), 0o777, "shared");
    let bobs = stage.directory((BOB, BOB.gid), 0o700, "shared/bobs");
    fs::create_dir(format!("{bobs}/below")).expect("a directory");
    let refused = alice.refused("Create", &format!("inotify:path={bobs},recursive"));
    assert_error(&refused, "PermissionDenied", &["EACCES"]);
    alice.create(&format!("inotify:path={shared},recursive,events=create"));
    let (names, path, reason) = change(&mut alice);
    assert!(
        names.contains("UNWATCHED") && path == bobs && reason.contains("EACCES"),
        "{names} {path} {reason}"
    );
    // What bob does in there, she does not hear.
    fs::write(format!("{bobs}/secret"), "").expect("a file");
    fs::write(format!("{bobs}/below/secret"), "").expect("a file");
    fs::write(format!("{shared}/open"), "").expect("a file");
    let (names, path, _) = change(&mut alice);
    assert!(names.contains("CREATE") && path == format!("{shared}/open"), "{names} {path}");
}
