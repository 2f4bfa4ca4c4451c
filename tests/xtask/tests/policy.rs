//! The shipped bus policy on real buses: what it lets through, and what it stops.
//!
//! A bus with the machine's own stock rules for the system bus, then ours, as on an installed system.
//! User `ipcd` need not exist here: the tests put the user that runs them in his place, or somebody else's
//! name when it is the difference that counts. The service is a connection that answers everything, so that
//! whatever gets an answer has passed the bus.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::StreamExt;
use ipc_harness::{Bus, Kind, NAME, PATH, Unavailable, connect, or_skip, patience, watchdog};
use zbus::{Connection, Fd, MessageStream, fdo, message::Type};

/// A user and a group that every system has and nobody runs tests as.
const SOMEBODY_ELSE: &str = "daemon";

/// The bus itself.
const DRIVER: &str = "org.freedesktop.DBus";

/// The methods that may carry fds.
const WITH_FDS: &[(&str, &str)] = &[
    ("org.example.IPC", "Adopt"),
    ("org.example.IPC.Messages", "Send"),
    ("org.example.IPC.Messages", "SendText"),
];
/// limits.md: fds-per-call, its hard maximum.
const MOST_FDS: usize = 4;

struct Scene {
    service: Connection,
    client: Connection,
    /// Signals that have reached the service.
    signals: Arc<AtomicUsize>,
    _bus: Bus,
}

impl Scene {
    /// A bus with the shipped policy and these examples, on which the caller is `ipcd` and serves.
    async fn set(kind: Kind, examples: &[String]) -> Result<Scene, Unavailable> {
        let policy = stock()? + &shipped().replace("user=\"ipcd\"", &me("user")) + &examples.concat();
        let bus = Bus::with_policy(kind, &policy)?;
        let (service, client) = (connect(&bus).await, connect(&bus).await);
        let signals = Arc::new(AtomicUsize::new(0));
        answer_everything(&service, signals.clone());
        answer_everything(&client, Arc::default());
        let named = watchdog(patience(), service.request_name(NAME)).await;
        named.expect("user ipcd may own the name");
        Ok(Scene { service, client, signals, _bus: bus })
    }

    /// Whether the bus lets a call with this many fds through.
    async fn passes(&self, interface: Option<&str>, member: &str, fds: usize) -> bool {
        called(&self.client, NAME, interface, member, fds).await
    }
}

async fn called(by: &Connection, to: &str, interface: Option<&str>, member: &str, fds: usize) -> bool {
    let path = if to == DRIVER { "/org/freedesktop/DBus" } else { PATH };
    let fds: Vec<Fd> = (0..fds).map(|_| Fd::from(some_fd())).collect();
    let answer = match fds.len() {
        0 => watchdog(patience(), by.call_method(Some(to), path, interface, member, &())).await,
        _ => watchdog(patience(), by.call_method(Some(to), path, interface, member, &fds)).await,
    };
    match answer {
        Ok(_) => true,
        Err(zbus::Error::FDO(error)) if matches!(*error, fdo::Error::AccessDenied(_)) => false,
        // It has passed; the bus itself has its own reasons to refuse it.
        Err(zbus::Error::FDO(_) | zbus::Error::MethodError(..)) => true,
        Err(error) => panic!("{interface:?}.{member}: {error}"),
    }
}

fn some_fd() -> OwnedFd {
    fs::File::open("/dev/null").expect("everybody may read it").into()
}

fn answer_everything(connection: &Connection, signals: Arc<AtomicUsize>) {
    let mut messages = MessageStream::from(connection);
    let connection = connection.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            match message.message_type() {
                Type::MethodCall => {
                    let _gone = connection.reply(&message.header(), &()).await;
                }
                Type::Signal if message.header().sender().is_some_and(|name| name.starts_with(':')) => {
                    signals.fetch_add(1, Ordering::SeqCst);
                }
                _ => {}
            }
        }
    });
}

/// Each test on each bus: a bus with a policy of its own is none that `on_each_bus!` makes.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod dbus_daemon { $(#[tokio::test] async fn $test() { super::$test(super::Kind::DbusDaemon).await })+ }
        mod dbus_broker { $(#[tokio::test] async fn $test() { super::$test(super::Kind::DbusBroker).await })+ }
    };
}
on_both!(
    interfaces_are_open_and_fds_are_counted,
    nothing_else_reaches_the_service,
    only_ipcd_owns_the_name,
    the_service_asks_the_bus_and_its_clients,
    one_interface_can_be_closed,
    it_can_be_opened_to_a_group_only,
);

async fn interfaces_are_open_and_fds_are_counted(kind: Kind) {
    let scene = or_skip!(Scene::set(kind, &[]).await);
    let mut wrong = Vec::new();
    let mut expect = async |interface: &str, member: &str, fds: usize, passes: bool| {
        if scene.passes(Some(interface), member, fds).await != passes {
            wrong.push(format!("{interface}.{member} with {fds} fds should be let through: {passes}"));
        }
    };
    for interface in interfaces() {
        expect(&interface, "AnyMethod", 0, true).await;
        expect(&interface, "AnyMethod", 1, false).await;
    }
    for (interface, member) in WITH_FDS {
        expect(interface, member, 0, true).await;
        expect(interface, member, 1, true).await;
        expect(interface, member, MOST_FDS, true).await;
        expect(interface, member, MOST_FDS + 1, false).await;
    }
    for (interface, member) in [
        ("org.freedesktop.DBus.Peer", "Ping"),
        ("org.freedesktop.DBus.Introspectable", "Introspect"),
        ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
        ("org.freedesktop.DBus.Properties", "Get"),
        ("org.freedesktop.DBus.Properties", "GetAll"),
    ] {
        expect(interface, member, 0, true).await;
        expect(interface, member, 1, false).await;
    }
    assert!(wrong.is_empty(), "on {kind}: {}", wrong.join("; "));
}

async fn nothing_else_reaches_the_service(kind: Kind) {
    let scene = or_skip!(Scene::set(kind, &[]).await);
    assert!(!scene.passes(Some("org.freedesktop.DBus.Properties"), "Set", 0).await);
    assert!(
        !scene.passes(Some("org.example.IPC.Worker"), "Idle", 0).await,
        "an interface that it does not have"
    );
    assert!(!scene.passes(None, "Create", 0).await, "a call that hides its interface");
    // By its unique name it is the same connection.
    let unique = scene.service.unique_name().expect("on a bus").to_string();
    assert!(!called(&scene.client, &unique, Some("org.freedesktop.DBus.Properties"), "Set", 0).await);

    let signal = scene.client.emit_signal(Some(NAME), PATH, NAME, "Closed", &("forged",));
    watchdog(patience(), signal).await.expect("sent to the bus");
    // What is sent after it arrives after it.
    assert!(scene.passes(Some(NAME), "Create", 0).await);
    assert_eq!(scene.signals.load(Ordering::SeqCst), 0, "signals to the service are stopped");
}

async fn only_ipcd_owns_the_name(kind: Kind) {
    let stranger = shipped().replace("user=\"ipcd\"", &format!("user=\"{SOMEBODY_ELSE}\""));
    let bus = or_skip!(stock().and_then(|stock| Bus::with_policy(kind, &(stock + &stranger))));
    let connection = connect(&bus).await;
    let refused = watchdog(patience(), connection.request_name(NAME)).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("AccessDenied")));
    // Nor may a stranger read the statistics of others.
    let stats = "org.freedesktop.DBus.Debug.Stats";
    assert!(!called(&connection, DRIVER, Some(stats), "GetConnectionStats", 0).await);
}

async fn the_service_asks_the_bus_and_its_clients(kind: Kind) {
    let scene = or_skip!(Scene::set(kind, &[]).await);
    let client = scene.client.unique_name().expect("on a bus").to_string();
    assert!(called(&scene.service, &client, Some("org.freedesktop.DBus.Peer"), "Ping", 0).await);
    assert!(!called(&scene.service, &client, Some("org.freedesktop.DBus.Peer"), "GetMachineId", 0).await);
    let stats = "org.freedesktop.DBus.Debug.Stats";
    assert!(called(&scene.service, DRIVER, Some(stats), "GetConnectionStats", 0).await);
    assert!(!called(&scene.service, DRIVER, Some(stats), "GetAllMatchRules", 0).await);
    // What it sends of itself: to the one who is concerned.
    let signal = scene.service.emit_signal(Some(client.as_str()), PATH, NAME, "Lost", &("reason",));
    watchdog(patience(), signal).await.expect("signals may be sent");
}

async fn one_interface_can_be_closed(kind: Kind) {
    let example = policies("examples/org.example.IPC-no-memory.conf");
    let strangers = example.replace("user=\"root\"", &format!("user=\"{SOMEBODY_ELSE}\""));
    let scene = or_skip!(Scene::set(kind, &[strangers]).await);
    assert!(!scene.passes(Some("org.example.IPC.Memory"), "Read", 0).await);
    assert!(scene.passes(Some("org.example.IPC.Stream"), "Read", 0).await);

    let mine = example.replace("user=\"root\"", &me("user"));
    let scene = or_skip!(Scene::set(kind, &[mine]).await);
    assert!(scene.passes(Some("org.example.IPC.Memory"), "Read", 0).await);
}

async fn it_can_be_opened_to_a_group_only(kind: Kind) {
    let example = policies("examples/org.example.IPC-group.conf");
    let others = example.replace("group=\"ipc\"", &format!("group=\"{SOMEBODY_ELSE}\""));
    let scene = or_skip!(Scene::set(kind, &[others]).await);
    assert!(!scene.passes(Some(NAME), "Create", 0).await);

    let mine = example.replace("group=\"ipc\"", &me("group"));
    let scene = or_skip!(Scene::set(kind, &[mine]).await);
    assert!(scene.passes(Some(NAME), "Create", 0).await);
    assert!(scene.passes(Some(NAME), "Adopt", 1).await);
    assert!(!scene.passes(Some(NAME), "Create", 1).await);
    assert!(!scene.passes(Some("org.freedesktop.DBus.Properties"), "Set", 0).await);
}

/// `user="NAME"` or `group="NAME"` of whoever runs the tests; who has no name is written as a number.
fn me(kind: &str) -> String {
    let id = |options: &[&str]| {
        let output = Command::new("id").args(options).output().expect("id of coreutils");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let short = if kind == "user" { "-u" } else { "-g" };
    let name = id(&[short, "-n"]).or_else(|| id(&[short])).expect("id tells a number at least");
    format!("{kind}=\"{name}\"")
}

/// The interfaces of the service, as their files are called.
fn interfaces() -> Vec<String> {
    let files = fs::read_dir(root().join("interfaces")).expect("interfaces/");
    let names = files.map(|file| file.expect("an entry").file_name().to_string_lossy().into_owned());
    let interfaces: Vec<_> = names.filter_map(|name| Some(name.strip_suffix(".xml")?.to_owned())).collect();
    assert!(interfaces.len() > 5, "{interfaces:?}");
    interfaces
}

fn shipped() -> String {
    policies("org.example.IPC.conf")
}

/// What stands inside `<busconfig>` of one of our files.
fn policies(file: &str) -> String {
    let text = fs::read_to_string(root().join("dbus-policy").join(file)).expect(file);
    let (_, inside) = text.split_once("<busconfig>").expect(file);
    inside.split_once("</busconfig>").expect(file).0.to_owned()
}

/// The rules that the system bus of this machine begins with, root's left to somebody else.
fn stock() -> Result<String, Unavailable> {
    let file = Path::new("/usr/share/dbus-1/system.conf");
    let text =
        fs::read_to_string(file).map_err(|error| Unavailable(format!("{}: {error}", file.display())))?;
    let elements = text.split("<policy").skip(1).filter_map(|rest| rest.split_once("</policy>"));
    let stock: String = elements.map(|(element, _)| format!("<policy{element}</policy>\n")).collect();
    Ok(stock.replace("user=\"root\"", &format!("user=\"{SOMEBODY_ELSE}\"")))
}

fn root() -> PathBuf {
    // This crate lies two levels below the top of the checkout.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
