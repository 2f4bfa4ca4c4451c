//! Published properties: a property of any service, read and set as a file.

use std::sync::Mutex;

use ipc_blackbox::{Mount, Stage, Way, assert_error, error, mounted};
use ipc_harness::{Address, or_skip};
use zbus::{Connection, ObjectPath, connection::Builder, fdo, interface};

/// A service with properties of several types, one of which never answers.
struct Sound {
    volume: Mutex<i32>,
    title: Mutex<String>,
}

#[interface(name = "org.example.Sound")]
impl Sound {
    #[zbus(property)]
    fn volume(&self) -> i32 {
        *self.volume.lock().expect("no panic")
    }

    #[zbus(property)]
    fn set_volume(&self, volume: i32) -> fdo::Result<()> {
        if volume > 100 {
            return Err(fdo::Error::AccessDenied("too loud".to_owned()));
        }
        *self.volume.lock().expect("no panic") = volume;
        Ok(())
    }

    #[zbus(property)]
    fn title(&self) -> String {
        self.title.lock().expect("no panic").clone()
    }

    #[zbus(property)]
    fn set_title(&self, title: String) {
        *self.title.lock().expect("no panic") = title;
    }

    #[zbus(property)]
    fn levels(&self) -> Vec<i32> {
        vec![1, 2]
    }

    #[zbus(property)]
    async fn silence(&self) -> i32 {
        std::future::pending().await
    }
}

async fn service(stage: &Stage) -> Connection {
    let sound = Sound { volume: Mutex::new(30), title: Mutex::new("a b".to_owned()) };
    let address: zbus::Address = stage.address().parse().expect("an address");
    let builder = Builder::address(address).name("org.example.Sound").serve_at("/sound", sound);
    builder.build().await.expect("a service")
}

async fn publish(
    mount: &Mount,
    name: &str,
    to: (&str, &str, &str, &str, &str),
) -> Result<(), ipc_harness::CallError> {
    let (bus, service, object, interface, property) = to;
    let object = ObjectPath::try_from(object).expect("a path");
    let body = (name, bus, service, object, interface, property);
    mount.client.reply(&mount.path, "Filesystem", "PublishProperty", &body).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_property_is_read_and_set_as_a_file() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mount = or_skip!(mounted(&stage, ",deadline=1000").await);
    let sound = service(&stage).await;
    for property in ["Volume", "Title", "Levels", "Silence", "Missing"] {
        let to = (stage.address(), "org.example.Sound", "/sound", "org.example.Sound", property);
        publish(&mount, &format!("sound/{}", property.to_lowercase()), to).await.expect("PublishProperty");
    }
    assert_eq!(mount.sh("cat sound/volume; echo 55 > sound/volume; cat sound/volume"), "30\n55\n");
    assert_eq!(mount.sh("echo c d > sound/title; cat sound/title sound/levels"), "c d\n[1, 2]\n");
    for (script, why) in [
        ("env echo x > sound/volume", "Invalid argument"),
        ("env echo 101 > sound/volume", "Permission denied"),
        ("env echo 1 > sound/levels", "not supported"),
        ("cat sound/missing", "No such file"),
        // One that never answers is an error by the deadline.
        ("cat sound/silence", "Input/output error"),
    ] {
        let failed = mount.script(script).finish();
        assert!(!failed.status.success() && failed.stderr.contains(why), "{script}: {}", failed.stderr);
    }
    assert_eq!(mount.sh("cat sound/volume"), "55\n");
    sound.close().await.expect("leaving the bus");
    let gone = mount.script("cat sound/volume").finish();
    assert!(gone.stderr.contains("No such file"), "{}", gone.stderr);
}

/// Whoever polls is woken by what the service tells of, once for each reader, and by its coming and going.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_property_that_changes_wakes_whoever_polls() {
    for way in [Way::DbusDaemon, Way::DbusBroker, Way::Private] {
        let stage = or_skip!(Stage::new(way));
        let mount = or_skip!(mounted(&stage, "").await);
        let sound = service(&stage).await;
        let to = (stage.address(), "org.example.Sound", "/sound", "org.example.Sound", "Volume");
        publish(&mount, "volume", to).await.expect("PublishProperty");
        let script = r#"
import select
f = os.open('volume', os.O_RDONLY)
poll = select.poll()
poll.register(f, select.POLLIN)
while True:
    poll.poll()
    part = os.pread(f, 1, 0)
    assert poll.poll(0), 'it was not read to the end'
    try: text = os.pread(f, 100, 0).decode().strip()
    except FileNotFoundError: text = 'nobody'
    print(text, len(poll.poll(0)), flush=True)
    if text == '7': break
"#;
        let poller = mount.python(script, &[]);
        poller.wait_for(|line| line == "30 0");
        assert_eq!(mount.sh("echo 55 > volume"), "");
        poller.wait_for(|line| line == "55 0");
        let interface =
            sound.object_server().interface::<_, Sound>("/sound").await.expect("the service's interface");
        *interface.get().await.volume.lock().expect("no panic") = 7;
        interface.get().await.volume_changed(interface.signal_emitter()).await.expect("PropertiesChanged");
        poller.wait_for(|line| line == "7 0");
        poller.finish().success();
        let watcher = mount.python(
            r#"
import select
f = os.open('volume', os.O_RDONLY)
poll = select.poll()
poll.register(f, select.POLLIN)
while True:
    poll.poll()
    try: print(os.pread(f, 100, 0).decode(), flush=True)
    except FileNotFoundError: break
"#,
            &[],
        );
        watcher.wait_for(|line| line == "7");
        sound.close().await.expect("leaving the bus");
        watcher.finish().success();
    }
}

/// A file may be there before its service is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_may_come_later() {
    let stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, "").await);
    let to = (stage.address(), "org.example.Sound", "/sound", "org.example.Sound", "Volume");
    publish(&mount, "volume", to).await.expect("PublishProperty");
    let nobody = mount.script("cat volume").finish();
    assert!(nobody.stderr.contains("No such file"), "{}", nobody.stderr);
    let sound = service(&stage).await;
    assert_eq!(mount.sh("cat volume"), "30\n");
    drop(sound);
}

/// Files of the same property are told each for itself, also when another one has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_one_property_do_not_depend_on_each_other() {
    for way in [Way::DbusDaemon, Way::DbusBroker, Way::Private] {
        let stage = or_skip!(Stage::new(way));
        let mount = or_skip!(mounted(&stage, "").await);
        let sound = service(&stage).await;
        let to = (stage.address(), "org.example.Sound", "/sound", "org.example.Sound", "Volume");
        for name in ["a", "b"] {
            publish(&mount, name, to).await.expect("PublishProperty");
        }
        let script = r#"
import select
f = os.open('a', os.O_RDONLY)
poll = select.poll()
poll.register(f, select.POLLIN)
text = ''
while text != '40':
    poll.poll()
    try: text = os.pread(f, 100, 0).decode().strip()
    except FileNotFoundError: text = 'nobody'
    print(text, flush=True)
"#;
        let poller = mount.python(script, &[]);
        poller.wait_for(|line| line == "30");
        let interface =
            sound.object_server().interface::<_, Sound>("/sound").await.expect("the service's interface");
        mount.unpublish("b").await;
        // What the bus is asked for goes on after Unpublish, so that the first of these may still come by.
        for volume in 31..=40 {
            *interface.get().await.volume.lock().expect("no panic") = volume;
            let told = interface.get().await.volume_changed(interface.signal_emitter()).await;
            told.expect("PropertiesChanged");
            poller.wait_for(|line| line == volume.to_string());
        }
        poller.finish().success();
    }
}

/// Nothing leads back into the service, and buses are those that the mechanism dbus reaches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_published_is_named() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mount = or_skip!(mounted(&stage, "").await);
    let unique = ipc_harness::busctl(&stage).run(&["--no-legend", "--unique", "list"]).expect("busctl list");
    let service = unique.lines().find(|line| line.contains(" ipcd ")).expect("the service's connection");
    let own = service.split_whitespace().next().expect("a name");
    let bus = stage.address();
    for (bus, service, interface, name, phrase) in [
        ("nowhere", "a.b", "a.b", "InvalidArgument", "session, system, or the address"),
        ("tcp:host=127.0.0.1,port=1", "a.b", "a.b", "InvalidArgument", "unix:path="),
        ("unixexec:path=/bin/true", "a.b", "a.b", "InvalidArgument", "unix:path="),
        ("unix:path=/nonexistent", "a.b", "a.b", "NotFound", "that is where bus=unix:path=/nonexistent is"),
        (bus, "a..b", "a.b", "InvalidArgument", "name on a bus"),
        (bus, "a.b", "ab", "InvalidArgument", "interface name"),
        (bus, "org.example.IPC", "org.example.IPC", "InvalidArgument", "own name"),
        (bus, own, "org.example.IPC", "InvalidArgument", "own connection"),
    ] {
        let refused = publish(&mount, "x", (bus, service, "/", interface, "P")).await;
        assert_error(&error(refused), name, &[phrase]);
    }
}
