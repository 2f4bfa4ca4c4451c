//! A system bus with real users: who somebody is to the bus is who he is to the kernel, and the rules hold.

use std::path::Path;

use ipc_harness::system::{ALICE, BOB, EXTRA, IPCD, Identity, NOBODY, ROOT, SHARED};
use ipc_harness::{Address, Kind, SystemBus, or_skip, patience, watchdog};
use zbus::Connection;

const DRIVER: &str = "org.freedesktop.DBus";

/// A service of no importance, that everybody may call.
const DUMMY: &str = r#"
  <policy user="ipcd"><allow own="org.example.Dummy"/></policy>
  <policy context="default"><allow send_destination="org.example.Dummy"/></policy>"#;

async fn ask<R>(connection: &Connection, method: &str, body: &str) -> zbus::Result<R>
where
    R: for<'d> zbus::wire::DynamicDeserialize<'d>,
{
    let body = (body,);
    let call = connection.call_method(Some(DRIVER), "/org/freedesktop/DBus", Some(DRIVER), method, &body);
    let reply = watchdog(patience(), call).await?;
    reply.body().deserialize()
}

async fn credentials(connection: &Connection) -> (u32, Vec<u32>) {
    let name = connection.unique_name().expect("a connection to a bus").to_string();
    let mut told: std::collections::HashMap<String, zbus::OwnedVariant> =
        ask(connection, "GetConnectionCredentials", &name).await.expect("credentials");
    let uid = told.remove("UnixUserID").expect("a uid").try_into().expect("a number");
    let groups = told.remove("UnixGroupIDs").expect("groups").try_into().expect("numbers");
    (uid, groups)
}

async fn everybody_is_himself(bus: SystemBus) {
    let cases: [(Identity, Vec<u32>); 6] = [
        (ROOT.into(), vec![0]),
        (ALICE.into(), vec![ALICE.gid, SHARED]),
        (BOB.into(), vec![BOB.gid, SHARED]),
        (NOBODY.into(), vec![NOBODY.gid]),
        (Identity::from(ALICE).with_groups(&[]), vec![ALICE.gid]),
        (Identity::from(ALICE).with_groups(&[EXTRA]), vec![ALICE.gid, EXTRA]),
    ];
    for (identity, groups) in cases {
        let connection = bus.connect_as(&identity).await;
        assert_eq!(credentials(&connection).await, (identity.uid, groups), "{identity:?}");
    }
    // Whose process it is: the one that connected, which still lives.
    let alice = bus.connect_as(&ALICE.into()).await;
    let name = alice.unique_name().expect("a connection to a bus").to_string();
    let pid: u32 = ask(&alice, "GetConnectionUnixProcessID", &name).await.expect("a pid");
    assert_eq!(pid.cast_signed(), bus.connector_pid(&ALICE.into()));
}

async fn the_rules_of_a_system_bus_hold(bus: SystemBus) {
    let bus = or_skip!(SystemBus::with_elements(bus.kind(), DUMMY));
    let (service, alice) = (bus.connect_as(&IPCD.into()).await, bus.connect_as(&ALICE.into()).await);
    // Who has an object server answers pings.
    let _server = service.object_server();
    service.request_name("org.example.Dummy").await.expect("ipcd may own it");
    let refused = alice.request_name("org.example.Dummy").await.expect_err("alice may not");
    assert!(refused.to_string().contains("AccessDenied"), "{refused}");
    let refused = alice.request_name("org.example.Other").await.expect_err("nor another one");
    assert!(refused.to_string().contains("AccessDenied"), "{refused}");
    let ping = |to: &'static str| {
        let alice = alice.clone();
        async move { alice.call_method(Some(to), "/", Some("org.freedesktop.DBus.Peer"), "Ping", &()).await }
    };
    watchdog(patience(), ping("org.example.Dummy")).await.expect("an answer");
    let bob = bus.connect_as(&BOB.into()).await;
    let name = bob.unique_name().expect("a connection to a bus").to_string();
    let call = alice.call_method(Some(name.as_str()), "/", Some("org.freedesktop.DBus.Peer"), "Ping", &());
    let refused = watchdog(patience(), call).await.expect_err("users do not call users");
    assert!(refused.to_string().contains("AccessDenied"), "{refused}");
}

async fn programs_run_as_users(bus: SystemBus) {
    let said = bus.sh_as(&ALICE.into(), "id -un; id -G; grep CapEff /proc/self/status").finish().success();
    assert_eq!(said, format!("alice\n{} {SHARED}\nCapEff:\t0000000000000000\n", ALICE.gid));
    let script = "import os; print(os.getuid(), os.environ['DBUS_SYSTEM_BUS_ADDRESS'])";
    let said = bus.python_as(&BOB.into(), script, &[]).finish().success();
    assert_eq!(said, format!("{} {}\n", BOB.uid, bus.address()));
    let within = Identity::from(ALICE).within(&["unshare", "--net"]);
    let link = |identity: &Identity, name: &str| {
        bus.sh_as(identity, &format!("readlink /proc/self/ns/{name}")).finish().success()
    };
    assert_ne!(link(&within, "net"), link(&ALICE.into(), "net"));
    assert_eq!(link(&within, "mnt"), link(&ALICE.into(), "mnt"));
    let inside = Identity::from(ALICE).inside(&["unshare", "--user"]);
    assert_ne!(link(&inside, "user"), link(&ALICE.into(), "user"));
    let connection = bus.connect_as(&inside).await;
    assert_eq!(credentials(&connection).await.0, ALICE.uid);
    let passwd = std::fs::read_to_string("/etc/passwd").expect("the machine's own");
    assert!(!passwd.contains("alice"), "the machine's users stay as they are");
    let dir = bus.dir_of(ALICE);
    bus.sh_as(&ALICE.into(), &format!("echo x >{}/file", dir.path().display())).finish().success();
}

async fn nothing_is_left(bus: SystemBus) {
    let _alice = bus.connect_as(&ALICE.into()).await;
    let pids = [bus.pid(), bus.connector_pid(&ALICE.into())];
    let socket = bus.socket().to_owned();
    drop(bus);
    assert!(!Path::new(&socket).exists());
    for pid in pids {
        assert!(!Path::new("/proc").join(pid.to_string()).exists(), "{pid} is left");
    }
}

macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        on_both!(@ dbus_daemon, DbusDaemon, $($test),+);
        on_both!(@ dbus_broker, DbusBroker, $($test),+);
    };
    (@ $module:ident, $kind:ident, $($test:ident),+) => {
        mod $module { $(
            #[tokio::test]
            async fn $test() {
                super::$test(ipc_harness::or_skip!(super::bus(super::Kind::$kind))).await
            }
        )+ }
    };
}

/// Without the shipped policy: this is about the bus.
fn bus(kind: Kind) -> Result<SystemBus, ipc_harness::Unavailable> {
    SystemBus::with_elements(kind, "")
}

on_both!(everybody_is_himself, the_rules_of_a_system_bus_hold, programs_run_as_users, nothing_is_left);

#[tokio::test]
async fn a_bus_can_be_restarted() {
    let mut bus = or_skip!(bus(Kind::DbusDaemon));
    let before = bus.connect_as(&ALICE.into()).await;
    bus.restart();
    watchdog(patience(), before.closed()).await;
    let after = bus.connect_as(&ALICE.into()).await;
    assert_eq!(credentials(&after).await.0, ALICE.uid);
    assert_ne!(before.server_guid(), after.server_guid());
}
