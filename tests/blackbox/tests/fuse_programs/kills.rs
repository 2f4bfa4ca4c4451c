//! `kill -9` in every state: of who reads and writes, of whoever has what is published, of the service itself. Nothing
//! hangs, and nothing is lost.

use std::fs;
use std::path::PathBuf;

use ipc_blackbox::{Client, Mount, Options, Stage, Way, integer, is_signal, mounted, mountinfo, options};
use ipc_harness::{Address, Launch, Process, Signal, connect, or_skip, patience, unique, watchdog};
use zbus::{ObjectPath, OwnedVariant};

use crate::live;

/// Until the process sleeps in the kernel: there is nothing that it could wait for but the file.
#[track_caller]
fn sleeps(process: &Process) {
    let stat = format!("/proc/{}/stat", process.pid());
    let until = std::time::Instant::now() + patience();
    while std::time::Instant::now() < until {
        let stat = fs::read_to_string(&stat).expect("a process that was not waited for");
        if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" S") || rest.starts_with(" D")) {
            return;
        }
    }
    panic!("it does not wait: {}", process.stderr().text());
}

/// Until the service has been told that nobody has a file open any more.
async fn all_closed(mount: &Mount) {
    let opened = async || {
        let state: std::collections::BTreeMap<String, OwnedVariant> =
            mount.client.call(&mount.path, "Endpoint", "Inspect", &()).await.expect("Inspect");
        integer(&state["opened"])
    };
    watchdog(patience(), async { while opened().await > 0 {} }).await;
}

/// Does the first, says so, and then what is to be interrupted.
fn doing(mount: &Mount, first: &str, then: &str) -> Process {
    let script = format!("import mmap, select, time\n{first}\nprint('there', flush=True)\n{then}");
    let process = mount.python(&script, &[]);
    process.wait_for(|line| line == "there");
    sleeps(&process);
    process
}

/// Proves: fuse read, write
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_takes_nothing_and_leaves_nothing() {
    let (_stage, mount) = or_skip!(live(",deadline=60000").await);
    let client = &mount.client;
    mount.publish_text("content", "some text").await;
    let queue = client.create("pipe:packet=true").await;
    mount.publish_endpoint("queue", &queue).await;
    let pipe = client.create("pipe:").await;
    mount.publish_endpoint("pipe", &pipe).await;
    let full = format!("posixmq:name=/{},depth=1,size=10,remove-on-close=true", unique("q"));
    let full = client.create(&full).await;
    mount.publish_endpoint("full", &full).await;
    let semaphore = format!("posixsem:name=/{},value=0,remove-on-close=true", unique("s"));
    let semaphore = client.create(&semaphore).await;
    mount.publish_endpoint("semaphore", &semaphore).await;
    let send = async |queue: &str, text: &str| {
        client.reply(queue, "Messages", "SendText", &(text, Options::new(), 0u32)).await.expect("SendText");
    };
    // What each waits for comes once it has been killed, and is there for whoever comes next.
    let mut killed = doing(&mount, "f = os.open('queue', os.O_RDONLY)", "os.read(f, 100)");
    killed.signal(Signal::KILL);
    send(&queue, "message").await;
    killed.wait();
    assert_eq!(mount.sh("cat queue"), "message");

    let mut killed = doing(&mount, "f = os.open('pipe', os.O_RDONLY)", "os.read(f, 100)");
    killed.signal(Signal::KILL);
    client.write(&pipe, b"bytes", 0).await.expect("Write");
    killed.wait();
    assert_eq!(mount.sh("head -c 5 pipe"), "bytes");

    let mut killed = doing(&mount, "f = os.open('semaphore', os.O_WRONLY)", "os.write(f, b'-2')");
    killed.signal(Signal::KILL);
    client.reply(&semaphore, "Semaphore", "Post", &(2u32,)).await.expect("Post");
    killed.wait();
    assert_eq!(mount.sh("cat semaphore"), "2\n");

    send(&full, "first").await;
    let mut killed = doing(&mount, "f = os.open('full', os.O_WRONLY)", "os.write(f, b'second')");
    killed.signal(Signal::KILL);
    assert!(mount.sh("dd if=full bs=10 count=1 status=none") == "first");
    killed.wait();

    // The kernel waits for nobody's answer in these, so they end at once.
    let sleep = "time.sleep(1000)";
    for (first, then) in [
        ("f = os.open('queue', os.O_RDONLY); p = select.poll(); p.register(f, select.POLLIN)", "p.poll()"),
        ("f = os.open('queue', os.O_RDONLY)", "select.select([f], [], [])"),
        (
            "f = os.open('content', os.O_RDWR)\ntry: m = mmap.mmap(f, 9); m[0] = 88\nexcept OSError: pass",
            sleep,
        ),
        ("f = os.open('content', os.O_RDWR); os.write(f, b'half')", sleep),
        ("os.chdir('/'); f = os.open(sys.argv[1], os.O_RDONLY); os.listdir(f)", sleep),
    ] {
        doing(&mount, first, then).kill();
    }
    all_closed(&mount).await;
    assert_eq!(mount.sh("cat content"), "half text");
    // At any moment of it.
    for round in 0..30 {
        let mut killed =
            mount.script("while :; do cat content > /dev/null; echo x > queue; head -c 1 queue; done");
        for _ in 0..round {
            mount.sh("cat content");
        }
        killed.kill();
    }
    all_closed(&mount).await;
    assert_eq!(mount.sh("cat content"), "half text");
}

/// A service that never answers, until it is killed.
const SILENT: &str = "
import sys, dbus, dbus.bus, dbus.service
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib
DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(sys.argv[1])
class Thing(dbus.service.Object):
    @dbus.service.method('org.freedesktop.DBus.Properties', in_signature='ss', out_signature='v',
                         async_callbacks=('answer', 'fail'))
    def Get(self, interface, name, answer, fail):
        if name == 'Loud': answer(dbus.Int32(5, variant_level=0))
        else: print('asked', flush=True)
Thing(bus, '/thing')
bus.request_name('org.test.Thing')
print('ready', flush=True)
GLib.MainLoop().run()
";

/// Proves: fuse read
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_hear_that_whoever_has_it_was_killed() {
    const PYTHON: &str = "/usr/bin/python3";
    let imports = std::process::Command::new(PYTHON).args(["-c", "import dbus, gi.repository.GLib"]).output();
    if !imports.is_ok_and(|done| done.status.success()) {
        ipc_harness::skip!("python3-dbus and python3-gi are not installed");
    }
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mount = or_skip!(mounted(&stage, ",deadline=60000").await);
    let start = || {
        let mut command = std::process::Command::new(PYTHON);
        let service = Process::spawn(command.args(["-u", "-c", SILENT, stage.address()]));
        service.wait_for(|line| line == "ready");
        service
    };
    let mut service = start();
    let object = ObjectPath::try_from("/thing").expect("a path");
    for property in ["Loud", "Silent"] {
        let to = (property, stage.address(), "org.test.Thing", &object, "org.test.Thing", property);
        let done = mount.client.reply(&mount.path, "Filesystem", "PublishProperty", &to).await;
        done.expect("PublishProperty");
    }
    assert_eq!(mount.sh("cat Loud"), "5\n");
    let reader = mount.script("exec cat Silent");
    service.wait_for(|line| line == "asked");
    service.kill();
    let said = reader.finish();
    assert!(!said.status.success(), "{}", said.text());
    let gone = mount.script("cat Loud").finish();
    assert!(gone.stderr.contains("No such file or directory"), "{}", gone.stderr);
    let _again = start();
    assert_eq!(mount.sh("cat Loud"), "5\n");
    // A socket whose other end dies, and a process that is watched.
    let scratch = stage.temp_dir();
    let path = scratch.path().join("socket");
    let server = "
import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('listening', flush=True)
s.accept(); time.sleep(1000)
";
    let mut server = ipc_harness::python(server, &[path.to_str().expect("UTF-8")]);
    server.wait_for(|line| line == "listening");
    let socket = mount.client.attach(&format!("unix:path={}", path.display())).await;
    mount.publish_endpoint("socket", &socket).await;
    let process = mount.client.attach(&format!("signal:pid={}", server.pid())).await;
    mount.publish_endpoint("process", &process).await;
    let tail = mount.script("exec tail -f -s 0.05 -n +1 process");
    let inbox = mount.client.inbox().await;
    let reader = mount.script("exec cat socket");
    inbox.signal(&mount.path, "Read").await;
    server.kill();
    assert_eq!(reader.finish().success(), "", "end of file");
    let line = tail.wait_for(|line| line.contains("EXITED"));
    assert!(line.contains("signal=9") || line.contains("signal=-1"), "{line}");
    // A publisher that is killed takes along what lives as long as it does, as one that leaves.
    let mut holder = ipc_harness::sh("exec sleep 1000");
    let bound = options([("lifetime", format!("pid:{}", holder.pid()).into())]);
    let bound = mount.client.create_with("pipe:packet=true", bound).await;
    mount.publish_endpoint("bound", &bound).await;
    let reader = mount.script("exec cat bound");
    let read_of = |message: &zbus::Message| {
        let told = message.body().deserialize::<(String, u32)>();
        is_signal(message, &mount.path, "Read") && told.is_ok_and(|(name, _)| name == "bound")
    };
    inbox.until(|all| all.iter().any(read_of).then_some(())).await;
    holder.kill();
    let said = reader.finish();
    assert!(said.stderr.contains("Input/output error"), "{}", said.stderr);
    assert_eq!(mount.sh("while [ -e bound ]; do :; done; ls"), "Loud\nSilent\nprocess\nsocket\n");
}

/// Uses a mount in every way until the service is gone, and says what it sees. Each line of input is a look.
const USER: &str = "
import errno, mmap, select
os.chdir('d')
def attempt(name, call):
    try: print(name, call(), flush=True)
    except OSError as e: print(name, errno.errorcode[e.errno], flush=True)
    except ValueError as e: print(name, e, flush=True)
f, q = os.open('../a', os.O_RDWR), os.open('../q', os.O_RDONLY | os.O_NONBLOCK)
poll = select.poll()
poll.register(q, select.POLLIN)
print('there', flush=True)
print('poll', poll.poll()[0][1] & select.POLLERR, flush=True)
for line in sys.stdin:
    attempt('read', lambda: os.pread(f, 9, 0))
    attempt('write', lambda: os.pwrite(f, b'x', 0))
    attempt('stat', lambda: os.fstat(f))
    attempt('open', lambda: os.open('../a', os.O_RDONLY))
    attempt('list', lambda: os.listdir('.'))
    attempt('nonblocking', lambda: os.read(q, 9))
    attempt('poll', lambda: poll.poll(0)[0][1] & select.POLLERR)
    print('end', flush=True)
";

fn look(user: &mut Process) -> Vec<String> {
    let before = user.stdout().lines().len();
    user.write("\n");
    user.stdout()
        .wait_until(|lines| {
            lines[before..]
                .iter()
                .any(|line| *line == "end")
                .then(|| lines[before..].iter().map(|line| line.to_string()).collect())
        })
        .unwrap_or_else(|_| panic!("it says no more: {}", user.stderr().text()))
}

/// Proves: fuse create, read
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_killed_leaves_nobody_hanging() {
    or_skip!(ipc_blackbox::can_mount());
    let scratch = ipc_harness::temp_dir();
    let directories: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| scratch.path().join(name)).collect();
    let mut service = Launch::private().start();
    let client = Client::of_bus(connect(&service).await);
    let inbox = client.inbox().await;
    let queue = client.create("pipe:packet=true").await;
    let mut users = Vec::new();
    for directory in &directories {
        fs::create_dir(directory).expect("a directory");
        let mount = client.create(&format!("fuse:path={},deadline=60000", directory.display())).await;
        for name in ["a", "d/f"] {
            client.reply(&mount, "Filesystem", "PublishText", &(name, "text")).await.expect("PublishText");
        }
        let to = ("q", ObjectPath::try_from(queue.as_str()).expect("a path"));
        client.reply(&mount, "Filesystem", "PublishEndpoint", &to).await.expect("PublishEndpoint");
        let path = directory.to_str().expect("UTF-8");
        let user = ipc_harness::python(&format!("import os, sys\nos.chdir(sys.argv[1])\n{USER}"), &[path]);
        user.wait_for(|line| line == "there");
        let reader = ipc_harness::sh(&format!("cd {path}/d; export LC_ALL=C; exec cat ../q"));
        inbox.signal(&mount, "Read").await;
        users.push((user, reader));
    }
    service.kill();
    let gone =
        ["read", "write", "stat", "open", "list", "nonblocking"].map(|name| format!("{name} ENOTCONN"));
    for (user, reader) in &mut users {
        let finished = reader.wait();
        assert!(!finished.success(), "a read that waits ends");
        assert!(
            reader.stderr().text().contains("Software caused connection abort"),
            "{}",
            reader.stderr().text()
        );
        user.wait_for(|line| line == "poll 8");
        let seen = look(user);
        assert_eq!(seen[..6], gone, "{seen:?}");
    }
    for directory in &directories {
        let ls = ipc_harness::sh(&format!("export LC_ALL=C; ls {}", directory.display())).finish();
        assert!(ls.stderr.contains("Transport endpoint is not connected"), "{}", ls.stderr);
    }
    // The next one takes the mounts away, also where somebody is in them; he goes on to see nothing.
    let service = Launch::private().start();
    let client = Client::of_bus(connect(&service).await);
    for (directory, (user, _)) in directories.iter().zip(&mut users) {
        assert_eq!(ipc_harness::sh(&format!("ls -A {}", directory.display())).finish().success(), "");
        assert!(mountinfo(directory).is_empty());
        assert_eq!(look(user)[..6], gone);
        let mount = client.create(&format!("fuse:path={}", directory.display())).await;
        client.reply(&mount, "Filesystem", "PublishText", &("new", "new")).await.expect("PublishText");
        assert_eq!(ipc_harness::sh(&format!("cat {}/new", directory.display())).finish().success(), "new");
    }
}

/// Proves: fuse create, read, write
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_may_be_killed_at_any_moment() {
    or_skip!(ipc_blackbox::can_mount());
    let scratch = ipc_harness::temp_dir();
    let directory = scratch.path().join("live");
    fs::create_dir(&directory).expect("a directory");
    let mut service = Launch::private().start();
    for round in 0..6 {
        let client = Client::of_bus(connect(&service).await);
        let mount = client.create(&format!("fuse:path={},tree=true", directory.display())).await;
        let queue = client.create("pipe:packet=true").await;
        let to = ("q", ObjectPath::try_from(queue.as_str()).expect("a path"));
        client.reply(&mount, "Filesystem", "PublishEndpoint", &to).await.expect("PublishEndpoint");
        client.reply(&mount, "Filesystem", "PublishText", &("a", "text")).await.expect("PublishText");
        let busy = |script: &str| {
            ipc_harness::sh(&format!("cd {}; while {script}; do :; done; ls -R", directory.display()))
        };
        let users: Vec<Process> =
            ["cat a > /dev/null", "echo x > a", "ls -lR > /dev/null", "echo m > q; head -c 1 q > /dev/null"]
                .map(busy)
                .into();
        for number in 0..20 * round {
            let text = ("a", format!("text {number}"));
            client.reply(&mount, "Filesystem", "PublishText", &text).await.expect("PublishText");
        }
        service.kill();
        for user in users {
            assert!(!user.finish().status.success(), "it sees that the mount is gone");
        }
        service = Launch::private().start();
        assert_eq!(fs::read_dir(&directory).expect("an empty directory").count(), 0, "round {round}");
    }
}
