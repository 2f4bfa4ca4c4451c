//! Published files: what coreutils, Python and a killed service make of them.

use std::fs;
use std::path::PathBuf;

use ipc_blackbox::{
    Client, Options, Stage, Way, assert_error, can_mount, error, everywhere, mounted, mountinfo, options,
};
use ipc_harness::{Launch, connect, or_skip};
use zbus::ObjectPath;

/// Proves: fuse create, read, write
async fn content_is_a_file_to_every_tool(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish_text("sound/volume", "30\n").await;
    assert_eq!(mount.sh("cat sound/volume"), "30\n");
    assert_eq!(mount.sh("ls -l sound/volume").split(' ').next(), Some("-rw-------"));
    assert_eq!(mount.sh("stat -c '%s %F %h' sound/volume"), "3 regular file 1\n");
    assert_eq!(mount.sh("echo 55 > sound/volume; cat sound/volume"), "55\n");
    assert_eq!(mount.sh("echo 66 >> sound/volume; cat sound/volume"), "55\n66\n");
    assert_eq!(mount.sh("truncate -s 4 sound/volume; cat sound/volume; truncate -s 0 sound/volume"), "55\n6");
    assert_eq!(mount.sh("find . -type f -empty; find . | wc -l"), "./sound/volume\n3\n");
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
    mount.publish("big", &bytes).await;
    assert_eq!(mount.script("cat big").finish().stdout, bytes);
    assert_eq!(
        mount.script("dd if=big bs=1000 skip=100 count=3 status=none").finish().stdout,
        bytes[100_000..103_000]
    );
    mount.sh("cp big ../copy; cmp big ../copy; rm ../copy; cp big sound/volume; cmp big sound/volume");
    mount.publish_text("words", "alpha\nbeta\ngamma\n").await;
    assert_eq!(mount.sh("grep -n beta words; tail -n 1 words; wc -c < words"), "2:beta\ngamma\n17\n");
    mount.sh("touch -d '2001-02-03 04:05:06 UTC' words; chmod 640 words");
    assert_eq!(mount.sh("stat -c '%Y %a' words"), "981173106 640\n");
    // Whoever has it open sees what is published.
    let follower = mount.script("tail -n +1 -F -s 0.05 words");
    follower.wait_for(|line| line == "gamma");
    mount.publish_text("words", "alpha\nbeta\ngamma\ndelta\n").await;
    follower.wait_for(|line| line == "delta");
    mount.unpublish("words").await;
    assert_eq!(mount.sh("ls"), "big\nsound\n");
    mount.unpublish("sound").await;
    assert_eq!(mount.sh("ls -a"), ".\n..\nbig\n");
}

async fn names_are_the_publishers(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish_text("d/a", "x").await;
    for refused in [
        "rm d/a",
        "rm -f d/a",
        "rmdir d",
        "mkdir e",
        "touch e",
        "ln d/a d/b",
        "ln -s a d/b",
        "mv d/a d/b",
        "mknod e p",
    ] {
        let finished = mount.script(refused).finish();
        assert!(!finished.status.success(), "{refused}");
        assert!(finished.stderr.contains("not permitted"), "{refused}: {}", finished.stderr);
    }
    assert_eq!(mount.sh("cat d/a; ls d"), "xa\n");
    let (client, path) = (&mount.client, &mount.path);
    let publish =
        async |name: &str| error(client.reply(path, "Filesystem", "PublishText", &(name, "x")).await);
    for name in ["", "/a", "a/", "a//b", ".", "a/../b", &"x".repeat(256)] {
        assert_error(&publish(name).await, "InvalidArgument", &["name"]);
    }
    assert_error(&publish("d").await, "Exists", &["directory"]);
    assert_error(&publish("d/a/b").await, "Exists", &["\"d/a\" is a file"]);
    let gone = client.reply(path, "Filesystem", "Unpublish", &("nothing",)).await;
    assert_error(&error(gone), "NotFound", &["nothing"]);
    let nobody = ObjectPath::try_from("/org/example/IPC/pipe/4711").expect("a path");
    let none = client.reply(path, "Filesystem", "PublishEndpoint", &("p", nobody)).await;
    assert_error(&error(none), "NoSuchEndpoint", &["pipe/4711"]);
    let itself = ObjectPath::try_from(path.as_str()).expect("a path");
    let itself = client.reply(path, "Filesystem", "PublishEndpoint", &("p", itself)).await;
    assert_error(&error(itself), "NotSupported", &["nothing in it to read"]);
}

/// Proves: fuse read, event
async fn readers_and_writers_are_told(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    let inbox = mount.client.inbox().await;
    mount.publish_text("a", "x").await;
    let cat = mount.script("echo $$; exec cat a");
    let pid: u32 = cat.wait_for(|_| true).parse().expect("a pid");
    let told: (String, u32) = inbox.signal(&mount.path, "Read").await.body().deserialize().expect("Read");
    assert_eq!(told, ("a".to_owned(), pid));
    mount.sh("printf 12 > a; printf 3 >> a");
    let told = inbox.signals(&mount.path, "Written", 2).await;
    let told: Vec<(String, Vec<u8>)> =
        told.iter().map(|message| message.body().deserialize().expect("Written")).collect();
    assert_eq!(told, [("a".to_owned(), b"12".to_vec()), ("a".to_owned(), b"3".to_vec())]);
    type Kept = (u64, u64, String, String, u32, Vec<u8>);
    let (kept, lost): (Vec<Kept>, u64) =
        mount.client.call(&mount.path, "Filesystem", "Since", &(1u64,)).await.expect("Since");
    let kept: Vec<_> =
        kept.into_iter().map(|(seq, _, what, name, pid, data)| (seq, what, name, pid, data)).collect();
    let written = |seq, data: &[u8]| (seq, "written".to_owned(), "a".to_owned(), 0, data.to_vec());
    assert_eq!((kept, lost), (vec![written(2, b"12"), written(3, b"3")], 0));
}

async fn random_accesses_are_those_of_a_file(stage: Stage) {
    let mount = or_skip!(mounted(&stage, ",size=256K").await);
    mount.publish("f", b"").await;
    // The same calls on a file beside it, as fsx does.
    let script = r#"
import random
seed = random.randrange(1 << 32)
print('seed', seed)
random.seed(seed)
ours, model = (os.open(name, os.O_RDWR | flags) for name, flags in (('f', 0), ('../model', os.O_CREAT)))
for step in range(3000):
    what, at, size = random.choice('rrwwwtas'), random.randrange(200_000), random.randrange(1, 40_000)
    if what == 'r': got, want = (os.pread(fd, size, at) for fd in (ours, model))
    elif what == 'w':
        data = random.randbytes(size)
        got, want = (os.pwrite(fd, data, at) for fd in (ours, model))
    elif what == 't': got, want = (os.ftruncate(fd, at) for fd in (ours, model))
    elif what == 'a':
        if os.fstat(model).st_size > 200_000: continue
        opened = [os.open(name, os.O_WRONLY | os.O_APPEND) for name in ('f', '../model')]
        got, want = (os.write(fd, b'appended') for fd in opened)
        for fd in opened: os.close(fd)
    else: got, want = (os.fstat(fd).st_size for fd in (ours, model))
    assert got == want, (step, what, at, size)
try: os.pwrite(ours, bytes(300_000), 0)
except OSError as e: print(os.strerror(e.errno))
"#;
    let said = mount.python(script, &[]).finish();
    let text = said.success();
    assert!(text.ends_with("No space left on device\n"), "{text}");
}

async fn files_can_be_polled_and_mapped(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish_text("a", "one").await;
    let script = r#"
import select
f = os.open('a', os.O_RDONLY)
poll = select.poll()
poll.register(f, select.POLLIN)
while True:
    poll.poll()
    text = os.pread(f, 100, 0).decode()
    print(text, flush=True)
    if text == 'end': break
"#;
    let poller = mount.python(script, &[]);
    poller.wait_for(|line| line == "one");
    mount.publish_text("a", "two").await;
    poller.wait_for(|line| line == "two");
    mount.publish_text("a", "end").await;
    poller.finish().success();
    let map = r#"
import mmap
f = os.open('a', os.O_RDWR)
try: m = mmap.mmap(f, 3)
except OSError as e: print(os.strerror(e.errno)); sys.exit()
print(m[:].decode(), flush=True)
sys.stdin.readline()
print(m[:].decode(), flush=True)
m[0:1] = b'M'
m.flush()
"#;
    let mut mapper = mount.python(map, &[]);
    let first = mapper.wait_for(|_| true);
    if first == "No such device" {
        ipc_harness::skip!("files that bypass the page cache can be mapped since Linux 6.6");
    }
    assert_eq!(first, "end");
    mount.publish_text("a", "new").await;
    mapper.write("\n");
    mapper.wait_for(|line| line == "new");
    mapper.finish().success();
    assert_eq!(mount.sh("cat a"), "Mew");
}

async fn many_read_at_once(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish("a", &[b'x'; 100_000]).await;
    let counted = mount.sh("for i in $(seq 200); do wc -c < a & done; wait");
    assert_eq!(counted, "100000\n".repeat(200));
}

/// Proves: fuse create, list
async fn a_mount_is_judged_before_it_is_made(stage: Stage) {
    or_skip!(can_mount());
    let client = stage.client().await;
    let scratch = stage.temp_dir();
    let refused =
        async |address: String, settings: Options<'_>| error(client.try_create(&address, settings).await);
    let at = |name: &str| format!("fuse:path={}", scratch.path().join(name).display());
    if stage.way == Way::System {
        let why = refused(at("x"), Options::new()).await;
        return assert_error(&why, "NotSupported", &["no_new_privs", "ipcd --bus session"]);
    }
    fs::create_dir(scratch.path().join("full")).expect("a directory");
    fs::write(scratch.path().join("full/file"), "").expect("a file");
    fs::create_dir(scratch.path().join("empty")).expect("a directory");
    std::os::unix::fs::symlink("empty", scratch.path().join("link")).expect("a link");
    assert_error(&refused(at("missing"), Options::new()).await, "NotFound", &["mkdir"]);
    assert_error(&refused(at("full"), Options::new()).await, "Busy", &["must be empty"]);
    assert_error(&refused(at("full/file"), Options::new()).await, "InvalidArgument", &["directory"]);
    assert_error(&refused(at("link"), Options::new()).await, "InvalidArgument", &["symbolic link"]);
    assert_error(
        &refused("fuse:path=empty".to_owned(), Options::new()).await,
        "InvalidArgument",
        &["absolute"],
    );
    for option in
        ["allow_other", "allow-other", "allow_root", "suid", "dev", "exec", "fsname", "default_permissions"]
    {
        let why = refused(at("empty"), options([(option, true.into())])).await;
        assert_error(&why, "InvalidArgument", &[option, "no key"]);
    }
    let why = refused(format!("{},mode=4755", at("empty")), Options::new()).await;
    assert_error(&why, "InvalidArgument", &["set-id", "4755"]);
    if rustix::process::geteuid().is_root() {
        fs::create_dir(scratch.path().join("theirs")).expect("a directory");
        std::os::unix::fs::chown(scratch.path().join("theirs"), Some(1), None).expect("chown");
        let why = refused(at("theirs"), Options::new()).await;
        assert_error(&why, "PermissionDenied", &["must belong to the caller", "uid 1"]);
    }
    let mount = client.create(&at("empty")).await;
    let [line] = mountinfo(&scratch.path().join("empty")).try_into().expect("one mount");
    assert!(line.contains("nosuid,nodev") && line.contains(" fuse.ipcd "), "{line}");
    assert!(line.contains("default_permissions") && !line.contains("allow_other"), "{line}");
    assert_error(&refused(at("empty"), Options::new()).await, "Exists", &["mounted there already"]);
    let attach = error(client.try_attach(&at("empty"), Options::new()).await);
    assert_error(&attach, "NotSupported", &["the process that serves it"]);
    let rows = client.list("fuse").await;
    let wanted = scratch.path().join("empty").to_str().expect("UTF-8").to_owned();
    let row =
        rows.iter().find(|row| row.get("path").is_some_and(|path| format!("{path:?}").contains(&wanted)));
    let row = row.unwrap_or_else(|| panic!("the mount is not listed: {rows:?}"));
    let text = |key: &str| format!("{:?}", row.get(key));
    assert!(text("state").contains("served") && text("allow-other").contains("false"), "{row:?}");
    let uid = rustix::process::geteuid().as_raw().to_string();
    assert!(text("owner").contains(&uid), "{row:?}");
    client.close(&mount).await;
    assert!(mountinfo(&scratch.path().join("empty")).is_empty());
}

everywhere!(
    content_is_a_file_to_every_tool,
    names_are_the_publishers,
    readers_and_writers_are_told,
    random_accesses_are_those_of_a_file,
    files_can_be_polled_and_mapped,
    many_read_at_once,
    a_mount_is_judged_before_it_is_made,
);

/// What is bounded: mounts, files, bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_named() {
    or_skip!(can_mount());
    let stage = or_skip!(Stage::with_config(Way::Private, "[limits]\nmounts = 1\n"));
    let mount = or_skip!(mounted(&stage, ",files=2,size=10K").await);
    let second = error(mount.client.try_create("fuse:path=/x", Options::new()).await);
    assert_error(&second, "LimitExceeded", &["mounts is 1"]);
    mount.publish("a", &[0; 10_000]).await;
    let publish = async |name: &str, data: &[u8]| {
        error(mount.client.reply(&mount.path, "Filesystem", "Publish", &(name, data)).await)
    };
    assert_error(&publish("b", &[0; 1000]).await, "LimitExceeded", &["10000 of 10240", "size=N"]);
    mount.publish("b", &[0; 100]).await;
    assert_error(&publish("c", b"").await, "LimitExceeded", &["2 files", "files=N"]);
    assert_error(&publish("b", &vec![0; 2 << 20]).await, "TooLarge", &["payload"]);
    let full = mount.script("head -c 9000 /dev/zero > b").finish();
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
    assert_eq!(mount.sh("stat -f -c '%c %d' ."), "2 0\n", "files in all and left");
    mount.client.close(&mount.path).await;
    mount.client.create(&format!("fuse:path={}", mount.directory.display())).await;
}

/// A directory is free as soon as its mount is closed, whatever is open in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_in_use_can_be_closed() {
    let stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, "").await);
    let queue = mount.client.create("pipe:packet=true").await;
    mount.publish_endpoint("wait", &queue).await;
    mount.publish_text("a", "x").await;
    let script = "
import threading
f = os.open('a', os.O_RDONLY)
def wait():
    try: print('read', os.read(os.open('wait', os.O_RDONLY), 1), flush=True)
    except OSError as e: print('failed', flush=True)
waiter = threading.Thread(target=wait)
waiter.start()
print('opened', flush=True)
sys.stdin.readline()
waiter.join()
try: os.pread(f, 1, 0); print('read on', flush=True)
except OSError as e: print('gone', flush=True)
";
    let inbox = mount.client.inbox().await;
    let mut user = mount.python(script, &[]);
    user.wait_for(|line| line == "opened");
    let told: (String, u32) = inbox.signal(&mount.path, "Read").await.body().deserialize().expect("Read");
    assert_eq!(told.0, "wait");
    mount.client.close(&mount.path).await;
    assert!(mountinfo(&mount.directory).is_empty());
    assert_eq!(fs::read_dir(&mount.directory).expect("the directory beneath").count(), 0);
    user.wait_for(|line| line == "failed");
    user.write("\n");
    user.wait_for(|line| line == "gone");
    user.finish().success();
}

/// Somebody else may unmount: the endpoint says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmounted_mount_closes() {
    let stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, "").await);
    let inbox = mount.client.inbox().await;
    let program = if rustix::process::geteuid().is_root() { "umount" } else { "fusermount3 -u" };
    ipc_harness::sh(&format!("{program} {}", mount.directory.display())).finish().success();
    let reason: String = inbox.signal(&mount.path, "Closed").await.body().deserialize().expect("a reason");
    assert_eq!(reason, "it was unmounted");
}

/// What lives as long as its client, or a process, goes with it; a service that ends leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_end_with_whom_they_belong_to() {
    let mut stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, ",lifetime=client").await);
    let observer = stage.client().await;
    let inbox = observer.inbox().await;
    let (directory, path) = (mount.directory.clone(), mount.path.clone());
    mount.client.connection.close().await.expect("leaving the bus");
    inbox.signal(&path, "Closed").await;
    assert!(mountinfo(&directory).is_empty());
    let mut sleeper = ipc_harness::sh("exec sleep 1000");
    let bound = format!("fuse:path={},lifetime=pid:{}", directory.display(), sleeper.pid());
    let bound = observer.create(&bound).await;
    sleeper.kill();
    inbox.signal(&bound, "Closed").await;
    assert!(mountinfo(&directory).is_empty());
    observer.create(&format!("fuse:path={}", directory.display())).await;
    assert!(stage.service.terminate().success());
    assert!(mountinfo(&directory).is_empty());
}

/// A service that was killed leaves mounts that answer nothing; the next one takes them away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_service_left_is_cleaned_up() {
    or_skip!(can_mount());
    let scratch = ipc_harness::temp_dir();
    let directories: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| scratch.path().join(name)).collect();
    let mut service = Launch::private().start();
    let client = Client::of_bus(connect(&service).await);
    for directory in &directories {
        fs::create_dir(directory).expect("a directory");
        client.create(&format!("fuse:path={}", directory.display())).await;
    }
    let other = scratch.path().join("other");
    fs::create_dir(&other).expect("a directory");
    let neighbour = Launch::private().start();
    Client::of_bus(connect(&neighbour).await).create(&format!("fuse:path={}", other.display())).await;
    service.kill();
    // Nothing hangs meanwhile.
    let left = fs::read_dir(&directories[0]).map(drop).map_err(|error| error.raw_os_error());
    assert_eq!(left, Err(Some(rustix::io::Errno::NOTCONN.raw_os_error())));
    let service = Launch::private().start();
    for directory in &directories {
        assert_eq!(fs::read_dir(directory).expect("an empty directory").count(), 0);
        assert!(mountinfo(directory).is_empty());
    }
    assert_eq!(mountinfo(&other).len(), 1, "that of a service that runs is left alone");
    let client = Client::of_bus(connect(&service).await);
    client.create(&format!("fuse:path={}", directories[0].display())).await;
}
