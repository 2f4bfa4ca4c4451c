//! C14 and C6. Mounts: of whom they are, what may be in them, and files that do not answer.
//!
//! What a service on a session bus mounts is judged as one of root's, next to an ordinary user; what one on the system
//! bus makes is alice's, next to bob and root.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use ipc_adversary::wire::{self, Outgoing, no_options, text};
use ipc_adversary::{
    Raw, Stage, Streams, assert_error, assert_limit, descriptors, error, pings_during, status,
};
use ipc_harness::system::{ALICE, BOB, Identity};
use ipc_harness::{Bus, Launch, Process, Service, TempDir, Unavailable, or_skip, temp_dir};

/// A service of root's on a session bus. Field order is drop order.
struct Session {
    raw: Raw,
    scratch: TempDir,
    _service: Service,
    _bus: Bus,
}

impl Session {
    fn new(toml: &str) -> Result<Session, Unavailable> {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|why| Unavailable(format!("/dev/fuse cannot be opened: {why}")))?;
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable("only root can become other users".to_owned()));
        }
        let bus = Bus::dbus_daemon()?;
        let service = Launch::on(&bus).config(toml).start();
        let path = bus.address().strip_prefix("unix:path=").expect("it has a path").to_owned();
        let socket = UnixStream::connect(path).expect("the bus listens");
        Ok(Session { raw: Raw::new(socket, 0), scratch: temp_dir(), _service: service, _bus: bus })
    }

    /// An empty directory.
    fn directory(&self, name: &str) -> String {
        let path = self.scratch.path().join(name);
        fs::create_dir(&path).expect("an own directory");
        fs::set_permissions(self.scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("own");
        path.to_str().expect("a path of text").to_owned()
    }

    /// What root reads there; bounded.
    fn read(&self, path: &str) -> Process {
        Process::spawn(Command::new("timeout").args(["20", "cat", path]).env("LC_ALL", "C"))
    }
}

fn publish(raw: &mut Raw, mount: &str, name: &str, content: &str) {
    let args = [text(name), text(content)];
    raw.call(mount, "Filesystem", "PublishText", &args)
        .unwrap_or_else(|error| panic!("PublishText: {error}"));
}

fn publish_endpoint(raw: &mut Raw, mount: &str, name: &str, endpoint: &str) {
    let args = [text(name), wire::path(endpoint)];
    let done = raw.call(mount, "Filesystem", "PublishEndpoint", &args);
    done.unwrap_or_else(|error| panic!("PublishEndpoint: {error}"));
}

fn open(raw: &mut Raw, mount: &str) -> OwnedFd {
    raw.call(mount, "Endpoint", "Open", &[no_options()]).expect("Open").fds.pop().expect("a descriptor")
}

fn mountinfo(directory: &str) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    mounts.lines().find(|line| line.split(' ').nth(4) == Some(directory)).map(str::to_owned)
}

/// Neither set-id programs nor devices in it work, and for others it is shut, whatever the modes say.
#[test]
fn c14_a_mount_is_for_its_owner_only() {
    let mut session = or_skip!(Session::new(""));
    let directory = session.directory("live");
    let mount = session.raw.create(&format!("fuse:path={directory},mode=0666"));
    publish(&mut session.raw, &mount, "a", "root's");
    let line = mountinfo(&directory).expect("it is mounted");
    let options: Vec<&str> = line.split(' ').nth(5).expect("options").split(',').collect();
    assert!(options.contains(&"nosuid") && options.contains(&"nodev"), "{line}");
    // What serves it would refuse others, too; but they would wait for it.
    assert!(!line.contains("allow_other"), "{line}");
    let file = format!("{directory}/a");
    assert_eq!(session.read(&file).finish().success(), "root's");
    let bob = BOB.uid.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &bob, "--regid", &bob, "--clear-groups", "timeout", "20", "cat", &file]);
    let refused = Process::spawn(command.env("LC_ALL", "C")).finish();
    assert!(!refused.status.success() && refused.stderr.contains("Permission denied"), "{}", refused.stderr);
}

/// A directory of somebody else's is not to be taken from him, nor what is in one's own to be hidden.
#[test]
fn c14_a_mount_point_is_the_callers_and_empty() {
    let mut session = or_skip!(Session::new(""));
    let (theirs, full) = (session.directory("theirs"), session.directory("full"));
    std::os::unix::fs::chown(&theirs, Some(BOB.uid), None).expect("root may");
    fs::write(Path::new(&full).join("file"), "").expect("an own directory");
    let refusal = session.raw.refused("Create", &format!("fuse:path={theirs}"));
    assert_error(&refusal, "PermissionDenied", &["must belong to the caller"]);
    assert_error(&session.raw.refused("Create", &format!("fuse:path={full}")), "Busy", &["must be empty"]);
    assert_eq!([&theirs, &full].map(|directory| mountinfo(directory)), [None, None]);
}

/// A read waits no longer than the deadline of the mount.
#[test]
fn c6_a_file_that_has_nothing_answers_in_time() {
    let mut session = or_skip!(Session::new(""));
    let directory = session.directory("live");
    let mount = session.raw.create(&format!("fuse:path={directory},deadline=300"));
    let pipe = session.raw.create("pipe:packet=true");
    publish_endpoint(&mut session.raw, &mount, "wait", &pipe);
    let reader = session.read(&format!("{directory}/wait")).finish();
    // timeout(1) ends it with 124.
    assert_eq!(reader.status.code(), Some(1), "{}", reader.stderr);
    assert!(reader.stderr.contains("Input/output error"), "{}", reader.stderr);
}

#[test]
fn d13_mounts_and_what_they_hold_are_limited() {
    let mut session = or_skip!(Session::new("[limits]\nmounts = 2\n"));
    let directories = ["a", "b", "c"].map(|name| session.directory(name));
    let mount = session.raw.create(&format!("fuse:path={},size=4096,files=2", directories[0]));
    session.raw.create(&format!("fuse:path={}", directories[1]));
    let refusal = session.raw.refused("Create", &format!("fuse:path={}", directories[2]));
    assert_limit(&refusal, "mounts", 2);
    publish(&mut session.raw, &mount, "a", &"x".repeat(4000));
    let refused = |raw: &mut Raw, name: &str, content: &str| {
        error(raw.call(&mount, "Filesystem", "PublishText", &[text(name), text(content)]))
    };
    let full = refused(&mut session.raw, "b", &"x".repeat(97));
    assert_error(&full, "LimitExceeded", &["4000 of 4096"]);
    publish(&mut session.raw, &mount, "b", "x");
    assert_error(&refused(&mut session.raw, "c", ""), "LimitExceeded", &["2 files"]);
}

/// What others would have to trust cannot be asked for, in any spelling, and nothing is mounted on a path.
#[test]
fn c14_hostile_options_on_the_system_bus() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    for option in [
        "allow_other",
        "allow_root",
        "suid",
        "dev",
        "exec",
        "user_id=0",
        "rootmode=104755",
        "fd=0",
        "subtype=x",
    ] {
        let refusal = alice.refused("Create", &format!("fuse:{option}"));
        assert_error(&refusal, "InvalidArgument", &["no key"]);
    }
    assert_error(&alice.refused("Create", "fuse:mode=6755"), "InvalidArgument", &["set-id"]);
    let own = stage.directory((ALICE, ALICE.gid), 0o755, "live");
    for path in [&own, "/etc", "/proc/self/root"] {
        let refusal = alice.refused("Create", &format!("fuse:path={path}"));
        assert_error(&refusal, "NotSupported", &["leave path out"]);
    }
    // Who may have been kept from it by what confines him is.
    let mut confined = stage.raw(Identity::from(ALICE).within(&["unshare", "--mount"]));
    assert_error(&confined.refused("Create", "fuse:"), "Confined", &["mount namespace"]);
}

/// Alice's is closed to bob and to root, who have its descriptor; and to a namespace that bob makes.
#[test]
fn c14_a_detached_mount_is_for_its_owner_only() {
    let stage = or_skip!(Stage::new());
    or_skip!(stage.bus.may_mount(&ALICE.into()));
    let mut alice = stage.alice();
    let mount = alice.create("fuse:mode=0666");
    publish(&mut alice, &mount, "a", "hers");
    let fd = open(&mut alice, &mount);
    let denied =
        fs::read(format!("/proc/self/fd/{}/a", fd.as_raw_fd())).map_err(|error| error.raw_os_error());
    assert_eq!(denied, Err(Some(rustix::io::Errno::ACCESS.raw_os_error())));
    let look = |who: &Identity, inside: &str| {
        let holder = stage.bus.holder(who, open(&mut stage.alice(), &mount));
        let script = format!("LC_ALL=C exec {inside} cat /proc/{}/fd/0/a", holder.pid());
        stage.bus.sh_as(who, &script).finish()
    };
    assert_eq!(look(&ALICE.into(), "").success(), "hers");
    for inside in ["", "unshare --user --map-root-user"] {
        let refused = look(&BOB.into(), inside);
        assert!(!refused.status.success(), "bob reads {}", refused.text());
    }
}

/// Files that wait, more readers than may wait at once, a file that comes out of another file of the same mount:
/// bob does not notice, and everybody is answered.
#[test]
fn c6_files_that_do_not_answer() {
    let stage = or_skip!(Stage::new());
    or_skip!(stage.bus.may_mount(&ALICE.into()));
    let mut alice = stage.alice();
    let mount = alice.create("fuse:deadline=1000");
    let holder = stage.bus.holder(&ALICE.into(), open(&mut alice, &mount));
    let at = format!("/proc/{}/fd/0", holder.pid());
    publish(&mut alice, &mount, "a", "round");
    let memory = alice.attach(&format!("mmap:path={at}/a"));
    publish_endpoint(&mut alice, &mount, "b", &memory);
    let again = alice.attach(&format!("mmap:path={at}/b"));
    publish_endpoint(&mut alice, &mount, "c", &again);
    let itself = [text("d"), wire::path(&mount)];
    let refusal = error(alice.call(&mount, "Filesystem", "PublishEndpoint", &itself));
    assert_error(&refusal, "NotSupported", &["nothing in it to read"]);
    let pipe = alice.create("pipe:packet=true");
    publish_endpoint(&mut alice, &mount, "wait", &pipe);
    let script = r#"
import os, sys, threading
os.chdir(sys.argv[1])
def read():
    try: os.read(os.open('wait', os.O_RDONLY), 1)
    except OSError: pass
readers = [threading.Thread(target=read) for _ in range(300)]
for reader in readers: reader.start()
for reader in readers: reader.join()
print(open('b').read(), open('c').read())
"#;
    let attack = || stage.bus.python_as(&ALICE.into(), script, &[&at]).finish().success();
    let (read, latencies) = pings_during(&stage, BOB, attack);
    latencies.assert_calm("readers that wait");
    assert_eq!(read, "round round\n");
    alice.ping().expect("her worker goes on");
}

/// A worker that was taken over says that it wants mounts, over and over: it gets what it may have, and nobody notices.
#[test]
fn c14_a_worker_that_wants_mounts() {
    let stage = or_skip!(Stage::with_config("[front]\nworker-starts = 1\n"));
    or_skip!(stage.bus.may_mount(&ALICE.into()));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    alice.create("pipe:");
    let worker = stage.worker_of(ALICE);
    let streams = Streams::of(worker);
    for _ in 0..1000 {
        let mut word = Outgoing::signal(None, ipc_harness::PATH, "org.example.IPC.Worker", "Mount", &[]);
        word.serial = 77;
        streams.say(&word);
        bob.ping().expect("bob is answered");
    }
    // Its share is used up, and it goes on.
    assert_error(&alice.refused("Create", "fuse:"), "LimitExceeded", &["worker-starts is 1"]);
    assert_eq!(stage.worker_of(ALICE), worker);
    let mount = bob.create("fuse:");
    bob.close(&mount);
    // What it did not ask for in the proper way it does not keep, and no process stays.
    stage.until("the mounters have gone", || {
        let of = |pid: i32| status(pid, "Name").is_some_and(|name| name == "ipcd-mounter");
        !stage.workers().iter().any(|worker| of(worker.pid))
    });
    assert!(!descriptors(worker).iter().any(|path| path == Path::new("/dev/fuse")));
}
