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

/// The service's own properties, by way of the bus that it is on: it does not wait for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_own_properties_are_files_too() {
    let stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, "").await);
    let own = (stage.address(), "org.example.IPC", "/org/example/IPC", "org.example.IPC", "Version");
    publish(&mount, "version", own).await.expect("PublishProperty");
    let version = mount.client.property(ipc_harness::PATH, "", "Version").await.expect("Version");
    let version = String::try_from(version).expect("a text");
    assert_eq!(mount.sh("cat version version"), format!("{version}\n{version}\n"));
    let read_only = mount.script("env echo x > version").finish();
    assert!(!read_only.status.success(), "{}", read_only.text());
    for (bus, service, interface, name, phrase) in [
        ("nowhere", "a.b", "a.b", "InvalidArgument", "session, system or an address"),
        ("unix:path=/nonexistent", "a.b", "a.b", "Unavailable", "cannot be reached"),
        (stage.address(), "a..b", "a.b", "InvalidArgument", "a service on a bus"),
        (stage.address(), "a.b", "ab", "InvalidArgument", "an interface"),
    ] {
        let refused = publish(&mount, "x", (bus, service, "/", interface, "P")).await;
        assert_error(&error(refused), name, &[phrase]);
    }
}
