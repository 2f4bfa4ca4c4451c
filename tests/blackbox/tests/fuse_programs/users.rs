//! An ordinary user, without any capability, on his own private bus: mounts are made and taken away by fusermount3(1).

use std::path::PathBuf;

use ipc_harness::system::{ALICE, BOB, Identity, ROOT, User};
use ipc_harness::{Finished, Process, Service, SystemBus, TempDir, Unavailable, need_tool, or_skip};

/// A service of somebody's own. Only the namespace of users is used of the system bus.
struct Own {
    service: Service,
    system: SystemBus,
    identity: Identity,
    directory: PathBuf,
    scratch: TempDir,
}

/// `by` runs the service; it is the user, perhaps in another environment.
fn own(user: User, by: Identity) -> Result<Own, Unavailable> {
    for tool in ["fusermount3", "gdbus"] {
        need_tool(tool)?;
    }
    let system = SystemBus::dbus_daemon()?;
    let scratch = system.dir_of(user);
    let (directory, identity) = (scratch.path().join("live"), user.into());
    let may = system.sh_as(&identity, &format!("mkdir {}; exec 3<> /dev/fuse", directory.display())).finish();
    if !may.status.success() {
        return Err(Unavailable(format!("users may not open /dev/fuse here: {}", may.stderr.trim())));
    }
    let service = start(&system, &by, &scratch)?;
    Ok(Own { service, system, identity, directory, scratch })
}

fn start(system: &SystemBus, identity: &Identity, home: &TempDir) -> Result<Service, Unavailable> {
    let launch = system.launch_private_as(identity).environment("HOME", home.path());
    launch.try_start().map_err(|failed| match failed.log.contains("setpriv: ") {
        true => Unavailable(format!("users may not run the built ipcd: {}", failed.log.trim())),
        false => panic!("{failed}"),
    })
}

impl Own {
    fn sh(&self, script: &str) -> Process {
        let directory = self.directory.display();
        self.system.sh_as(&self.identity, &format!("live={directory}; export LC_ALL=C; {script}"))
    }

    /// A call by gdbus(1), which says the names of errors.
    fn call(&self, path: &str, method: &str, arguments: &str) -> Finished {
        let address = self.service.address();
        let call = format!(
            "gdbus call --address '{address}' --dest org.example.IPC --object-path /org/example/IPC{path}"
        );
        self.sh(&format!("exec {call} --method org.example.IPC{method} {arguments}")).finish()
    }

    fn create(&self, settings: &str) -> Finished {
        self.call("", ".Create", &format!("'fuse:path={}{settings}' '{{}}'", self.directory.display()))
    }

    /// Where it is mounted, as the user sees it.
    fn mounts(&self) -> String {
        self.sh("grep \" $live \" /proc/self/mountinfo || true").finish().success()
    }
}

#[track_caller]
fn failed(finished: &Finished, name: &str, phrases: &[&str]) {
    assert!(!finished.status.success(), "must fail: {}", finished.text());
    for phrase in [&[name], phrases].concat() {
        assert!(finished.stderr.contains(phrase), "must say {phrase:?}: {}", finished.stderr);
    }
}

/// Proves: fuse create, read, write
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_user_mounts_through_fusermount3() {
    let mut own = or_skip!(own(ALICE, ALICE.into()));
    own.create(",mode=0400,deadline=60000").success();
    let line = own.mounts();
    for word in ["nosuid,nodev", "fuse.ipcd ipcd-", &format!("user_id={}", ALICE.uid), "default_permissions"]
    {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(!line.contains("allow_"), "{line}");
    own.call("/fuse/1", ".Filesystem.PublishText", "d/a 'hello'").success();
    assert_eq!(
        own.sh("cat $live/d/a; stat -c ' %a %U' $live $live/d $live/d/a").finish().success(),
        "hello 500 alice\n 500 alice\n 400 alice\n"
    );
    // Nobody else may look, not even root.
    for other in [BOB, ROOT] {
        let script = format!("export LC_ALL=C; ls {}", own.directory.display());
        let finished = own.system.sh_as(&other.into(), &script).finish();
        assert!(finished.stderr.contains("Permission denied"), "{}: {}", other.name, finished.stderr);
    }
    // The bits count for who is not root.
    let denied = own.sh("echo x > $live/d/a").finish();
    assert!(denied.stderr.contains("Permission denied"), "{}", denied.stderr);
    own.sh("chmod u+w $live/d/a; printf more >> $live/d/a; chmod 0 $live/d/a").finish().success();
    let denied = own.sh("cat $live/d/a").finish();
    assert!(denied.stderr.contains("Permission denied"), "{}", denied.stderr);
    assert_eq!(own.sh("chmod 400 $live/d/a; cat $live/d/a").finish().success(), "hellomore");
    let denied = own.sh("chmod a-x $live/d; cat $live/d/a").finish();
    assert!(denied.stderr.contains("Permission denied"), "{}", denied.stderr);
    own.sh("chmod u+x $live/d").finish().success();
    // Closed while it is in use.
    own.call("", ".Create", "'pipe:packet=true' '{}'").success();
    own.call("/fuse/1", ".Filesystem.PublishEndpoint", "q /org/example/IPC/pipe/2").success();
    let user = own.sh("cd $live/d; exec 3< a; echo there; cat ../q || cat <&3");
    user.wait_for(|line| line == "there");
    own.call("/fuse/1", ".Endpoint.Close", "").success();
    assert_eq!(own.mounts(), "");
    assert_eq!(own.sh("ls -A $live; rmdir $live; mkdir $live").finish().success(), "");
    let said = user.finish();
    assert!(!said.status.success() && said.stdout == b"there\n", "{}", said.text());
    assert_eq!(said.stderr.matches("cat: ").count(), 2, "{}", said.stderr);
    // By its owner, with his own program.
    own.create("").success();
    own.sh("fusermount3 -u $live").finish().success();
    let inspect = || own.call("/fuse/3", ".Endpoint.Inspect", "").status.success();
    while inspect() {}
    // Killed: what is left is taken away by the next one, through fusermount3 -u -z.
    own.create("").success();
    let mut user = own.sh("cd $live; echo there; read line; ls");
    user.wait_for(|line| line == "there");
    own.service.kill();
    let left = own.sh("ls $live").finish();
    assert!(left.stderr.contains("Transport endpoint is not connected"), "{}", left.stderr);
    own.service = or_skip!(start(&own.system, &own.identity, &own.scratch));
    assert_eq!(own.mounts(), "");
    assert_eq!(own.sh("ls -A $live").finish().success(), "");
    user.write("\n");
    assert!(user.finish().stderr.contains("not connected"));
    own.create("").success();
    assert!(own.service.terminate().success());
    assert_eq!(own.mounts(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_lacks_is_named() {
    // fusermount3 refuses.
    let alice = or_skip!(own(ALICE, ALICE.into()));
    alice.sh("chmod 500 $live").finish().success();
    failed(&alice.create(""), "Error.PermissionDenied", &["fusermount3", "no write access"]);
    alice.sh("chmod 700 $live").finish().success();
    failed(&alice.create(",mode=4755"), "Error.InvalidArgument", &["set-id"]);
    alice.create("").success();
    failed(&alice.create(""), "Error.Exists", &["mounted there already", "fusermount3 -u"]);
    let theirs = alice.system.dir_of(BOB);
    let address = format!("'fuse:path={}' '{{}}'", theirs.path().display());
    failed(&alice.call("", ".Create", &address), "Error.PermissionDenied", &["must belong to the caller"]);
    drop(alice);
    // Nobody in passwd(5).
    let stranger = User { name: "stranger", uid: 471_050, gid: 471_050, groups: &[] };
    let stranger = or_skip!(own(stranger, stranger.into()));
    failed(&stranger.create(""), "Error.PermissionDenied", &["fusermount3", "username"]);
    drop(stranger);
    // The program is missing.
    let by = Identity::from(ALICE).inside(&["env", "PATH=/nonexistent"]);
    let nowhere = or_skip!(own(ALICE, by));
    failed(
        &nowhere.create(""),
        "Error.Unavailable",
        &["fusermount3 cannot be run", "install the package fuse3"],
    );
    drop(nowhere);
    // The device is missing, or for root only.
    let dev = |make: &str| {
        let nodes = "mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";
        let script = format!("mount -t tmpfs none /dev; {nodes}; {make}; exec \"$0\" \"$@\"");
        Identity::from(ALICE).within(&[
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-ec",
            &script,
        ])
    };
    let without = or_skip!(own(ALICE, dev(":")));
    failed(&without.create(""), "Error.Unavailable", &["/dev/fuse is missing", "modprobe fuse"]);
    drop(without);
    let closed = or_skip!(own(ALICE, dev("mknod -m 600 /dev/fuse c 10 229")));
    failed(&closed.create(""), "Error.PermissionDenied", &["failed to open /dev/fuse: Permission denied"]);
}
