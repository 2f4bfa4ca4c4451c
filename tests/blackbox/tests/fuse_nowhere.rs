//! The mounts of the system bus, which are mounted nowhere: whom they are for, where they may go, how they end.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use ipc_blackbox::{
    Client, Mount, Options, Stage, Way, assert_error, can_mount_on, error, mounted, mountinfo, options,
};
use ipc_harness::system::{ALICE, BOB, CAROL, ROOT, SystemBus, User};
use ipc_harness::{Signal, or_skip};
use rustix::io::Errno;
use rustix::process::{Pid, kill_process};

fn system(stage: &Stage) -> &SystemBus {
    stage.system.as_ref().expect("a stage on the system bus")
}

async fn client_of(stage: &Stage, user: User) -> Client {
    Client::of_system_bus(system(stage).connect_as(&user.into()).await)
}

async fn opened(mount: &Mount) -> OwnedFd {
    mount.client.open(&mount.path, Options::new()).await.expect("Open")
}

/// The only process of the service that is this user's.
fn worker_of(stage: &Stage, user: User) -> i32 {
    let spawner = stage.service.pid();
    let children =
        fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")).expect("the spawner");
    let is_his = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
            text.contains(&format!("Uid:\t{}\t", user.uid)) && text.starts_with("Name:\tipcd-worker\n")
        })
    };
    let found: Vec<i32> =
        children.split_whitespace().map(|pid| pid.parse().expect("a pid")).filter(is_his).collect();
    match found[..] {
        [one] => one,
        _ => panic!("{} workers of {}", found.len(), user.name),
    }
}

/// What reading this file through the descriptor brings, for the test, which is root.
fn read_as_root(mount: &OwnedFd, name: &str) -> Result<String, Option<i32>> {
    fs::read_to_string(format!("/proc/self/fd/{}/{name}", mount.as_raw_fd()))
        .map_err(|error| error.raw_os_error())
}

/// Whoever has the descriptor: neither another user nor root looks in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_for_its_owner_only() {
    let stage = or_skip!(Stage::new(Way::System));
    let mount = or_skip!(mounted(&stage, ",mode=0666").await);
    mount.publish_text("a", "hers").await;
    assert_eq!(mount.sh("cat a"), "hers");
    assert_eq!(read_as_root(&opened(&mount).await, "a"), Err(Some(Errno::ACCESS.raw_os_error())));
    for user in [BOB, ROOT] {
        let holder = system(&stage).holder(&user.into(), opened(&mount).await);
        let look = format!("LC_ALL=C cat /proc/{}/fd/0/a", holder.pid());
        let refused = system(&stage).sh_as(&user.into(), &look).finish();
        assert!(
            !refused.status.success() && refused.stderr.contains("Permission denied"),
            "{}",
            refused.stderr
        );
    }
}

/// Where she may mount it, she does, and it is as every mount of the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_owner_mounts_it_in_namespaces_of_hers() {
    let stage = or_skip!(Stage::new(Way::System));
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish_text("a", "hers").await;
    let script = r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
at = os.environ['SCRATCH'] + '/live'
os.mkdir(at)
CLONE_NEWUSER, CLONE_NEWNS, SYS_move_mount, F_EMPTY_PATH = 0x10000000, 0x20000, 429, 4
here = os.open('.', os.O_PATH)
assert libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
moved = libc.syscall(SYS_move_mount, here, b'', -100, at.encode(), F_EMPTY_PATH)
assert moved == 0, os.strerror(ctypes.get_errno())
os.chdir('/')
print(open(at + '/a').read())
for line in open('/proc/self/mountinfo'):
    if at in line: print(line.rstrip())
open(at + '/a', 'w').write('written')
"#;
    let said = mount.python(script, &[]).finish().success();
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("hers"));
    let line = lines.next().expect("it is mounted");
    assert!(line.contains("nosuid,nodev") && line.contains(" fuse.ipcd ipcd "), "{line}");
    assert!(line.contains("default_permissions") && !line.contains("allow_other"), "{line}");
    assert!(line.contains(&format!("user_id={}", ALICE.uid)), "{line}");
    assert_eq!(lines.next(), None);
    assert_eq!(mount.sh("cat a"), "written");
}

/// What tells of mounts tells of it, although the kernel lists it nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_listed_and_has_no_mount_point() {
    let stage = or_skip!(Stage::new(Way::System));
    let mount = or_skip!(mounted(&stage, "").await);
    let client = &mount.client;
    let point = client.property(&mount.path, "Filesystem", "MountPoint").await.expect("MountPoint");
    assert_eq!(String::try_from(point).expect("a text"), "");
    let address = client.property(&mount.path, "Endpoint", "Address").await.expect("Address");
    assert_eq!(String::try_from(address).expect("a text"), "fuse:");
    let inspected = client.reply(&mount.path, "Endpoint", "Inspect", &()).await.expect("Inspect");
    let inspected = format!("{:?}", inspected.body().deserialize::<Options<'_>>().expect("a dictionary"));
    assert!(inspected.contains("served"), "{inspected}");
    let own = |rows: &[std::collections::BTreeMap<String, zbus::OwnedVariant>]| {
        rows.iter().filter(|row| !row.contains_key("path")).map(|row| format!("{row:?}")).collect::<Vec<_>>()
    };
    let listed = own(&client.list("fuse").await);
    let [row] = &listed[..] else { panic!("{listed:?}") };
    for part in ["fuse.ipcd", "served", &ALICE.uid.to_string(), "nosuid", "nodev"] {
        assert!(row.contains(part), "{part} is not in {row}");
    }
    assert_eq!(own(&client_of(&stage, BOB).await.list("fuse").await), [""; 0], "it is nobody else's to see");
    assert!(mountinfo(&mount.directory).is_empty());
    client.close(&mount.path).await;
    assert_eq!(own(&client.list("fuse").await), [""; 0]);
}

/// Closed, it answers errors to who holds it; and its place is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_it_after_its_end_gets_errors() {
    let stage = or_skip!(Stage::with_config(Way::System, "[limits]\nmounts = 1\n"));
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish_text("a", "x").await;
    let queue = mount.client.create("pipe:packet=true").await;
    mount.publish_endpoint("wait", &queue).await;
    let inbox = mount.client.inbox().await;
    let waiter = mount.script("cat wait");
    inbox.signal(&mount.path, "Read").await;
    let full = error(mount.client.try_create("fuse:", Options::new()).await);
    assert_error(&full, "LimitExceeded", &["mounts is 1"]);
    mount.client.close(&mount.path).await;
    assert!(!waiter.finish().status.success(), "who waits is answered");
    assert!(!mount.script("cat a").finish().status.success());
    let again = mount.client.create("fuse:lifetime=client").await;
    let fd = mount.client.open(&again, Options::new()).await.expect("Open");
    assert_eq!(read_as_root(&fd, "a"), Err(Some(Errno::ACCESS.raw_os_error())));
}

/// A worker that is killed takes the files with it: ENOTCONN, at once, whoever waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_leaves_no_one_waiting() {
    let stage = or_skip!(Stage::new(Way::System));
    let mount = or_skip!(mounted(&stage, ",deadline=60000").await);
    mount.publish_text("a", "x").await;
    let queue = mount.client.create("pipe:packet=true").await;
    mount.publish_endpoint("wait", &queue).await;
    let inbox = mount.client.inbox().await;
    let waiter = mount.script("cat wait");
    inbox.signal(&mount.path, "Read").await;
    kill_process(Pid::from_raw(worker_of(&stage, ALICE)).expect("a pid"), Signal::KILL).expect("root may");
    assert!(!waiter.finish().status.success());
    inbox.signal(ipc_harness::PATH, "Lost").await;
    let look = format!("LC_ALL=C cat {}/a", mount.directory.display());
    let left = system(&stage).sh_as(&ALICE.into(), &look).finish();
    assert!(left.stderr.contains("Transport endpoint is not connected"), "{}", left.stderr);
    // The next worker begins anew.
    mount.client.create("fuse:").await;
}

/// What lives as long as its client goes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_its_client() {
    let stage = or_skip!(Stage::new(Way::System));
    or_skip!(can_mount_on(&stage));
    let observer = stage.client().await;
    let passing = stage.client().await;
    let mount = passing.create("fuse:lifetime=client").await;
    let published = passing.reply(&mount, "Filesystem", "PublishText", &("a", "x")).await;
    published.expect("PublishText");
    let holder =
        system(&stage).holder(&ALICE.into(), passing.open(&mount, Options::new()).await.expect("Open"));
    let look = format!("cat /proc/{}/fd/0/a", holder.pid());
    assert_eq!(system(&stage).sh_as(&ALICE.into(), &look).finish().success(), "x");
    let inbox = observer.inbox().await;
    passing.connection.close().await.expect("leaving the bus");
    inbox.signal(&mount, "Closed").await;
    assert!(!system(&stage).sh_as(&ALICE.into(), &look).finish().status.success());
}

/// Whatever would let others trust what is in it is no key, and a path is refused with a reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_that_she_could_not_make() {
    let stage = or_skip!(Stage::new(Way::System));
    or_skip!(can_mount_on(&stage));
    let client = stage.client().await;
    for option in ["allow_other", "allow-other", "suid", "dev", "user_id", "fd", "rootmode", "source"] {
        let why = error(client.try_create("fuse:", options([(option, true.into())])).await);
        assert_error(&why, "InvalidArgument", &[option, "no key"]);
    }
    assert_error(
        &error(client.try_create("fuse:mode=4755", Options::new()).await),
        "InvalidArgument",
        &["set-id"],
    );
    for path in ["/", "/proc", "/nonexistent"] {
        let why = error(client.try_create(&format!("fuse:path={path}"), Options::new()).await);
        assert_error(&why, "NotSupported", &["mount namespace of yours"]);
    }
}

/// As many at once as there may be, and then at a rate: each takes the spawner a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_are_made_at_a_rate() {
    let stage = or_skip!(Stage::with_config(Way::System, "[front]\nworker-starts = 1\n"));
    or_skip!(can_mount_on(&stage));
    let (alice, bob) = (client_of(&stage, ALICE).await, client_of(&stage, BOB).await);
    let mut made = 0;
    let refusal = loop {
        match alice.try_create("fuse:", Options::new()).await {
            Ok(mount) => alice.close(&mount).await,
            Err(refusal) => break refusal,
        }
        made += 1;
        assert!(made < 100, "nothing stops her");
    };
    assert!(made >= 4, "{made}");
    assert_error(&refusal, "LimitExceeded", &["worker-starts is 1"]);
    bob.create("fuse:").await;
}

/// Where she may not open the device she could not mount either, and is told what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_closed_to_users_is_named() {
    let stage = or_skip!(Stage::new(Way::System));
    or_skip!(can_mount_on(&stage));
    let scratch = ipc_harness::temp_dir();
    let script = format!(
        "cp -a /dev/fuse {0}/fuse; chmod 600 {0}/fuse; mount --bind {0}/fuse /dev/fuse",
        scratch.path().display()
    );
    system(&stage).sh_as(&ROOT.into(), &script).finish().success();
    let client = client_of(&stage, CAROL).await;
    let why = error(client.try_create("fuse:", Options::new()).await);
    assert_error(&why, "Unavailable", &["/dev/fuse", "Permission denied", "0666"]);
}
