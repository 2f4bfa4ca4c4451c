//! Buses that a caller has his worker connect to: which may be reached, and that none of them leads back into the
//! service by some way round. What those that are reached may say, `dbus_lies.rs` has.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};

use ipc_adversary::liar::{SERVICE, receive, send};
use ipc_adversary::wire::{Outgoing, dict, no_options, text};
use ipc_adversary::{DRIVER, Liar, Lie, Stage, assert_error, error, object};
use ipc_harness::system::{ALICE, BOB};
use ipc_harness::{NAME, PATH, Process, or_skip};

/// Other transports run programs, or cannot say who is there; so they are not even tried.
#[test]
fn only_unix_sockets_are_connected_to() {
    let stage = or_skip!(Stage::new());
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    tcp.set_nonblocking(true).expect("a socket");
    let port = tcp.local_addr().expect("a port").port();
    let ran = stage.path("ran");
    let mut alice = stage.alice();
    for bus in [
        format!("tcp:host=127.0.0.1%2cport={port}"),
        format!("tcp:host=127.0.0.1%2cport={port};tcp:host=127.0.0.1%2cport={port}"),
        format!("nonce-tcp:host=127.0.0.1%2cport={port}%2cnoncefile=/etc/passwd"),
        format!("unixexec:path=/bin/touch%2cargv1={ran}"),
        "autolaunch:".to_owned(),
        "launchd:env=HOME".to_owned(),
        "vsock:cid=1%2cport=1".to_owned(),
        "systemd:".to_owned(),
        "unix:tmpdir=/tmp".to_owned(),
        "unix:dir=/tmp".to_owned(),
        "unix:runtime=yes".to_owned(),
        "unix:".to_owned(),
        "nothing".to_owned(),
    ] {
        let refusal = alice.refused("Attach", &format!("dbus:bus={bus},watch-name=org.x.Y"));
        assert_error(&refusal, "InvalidArgument", &["\"bus\"", "unix:path="]);
    }
    assert!(tcp.accept().is_err(), "the worker has connected to a port");
    assert!(!fs::exists(&ran).expect("a directory"), "the worker has run a program");
}

/// The process of the worker belongs to the service: on the service's bus it would be taken for it.
#[test]
fn the_system_bus_is_closed_whatever_leads_there() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    for bus in ["session", "system"] {
        let refusal = alice.refused("Attach", &format!("dbus:bus={bus},watch-name=org.x.Y"));
        assert_error(&refusal, "PermissionDenied", &["taken for the service"]);
        let refusal = alice.refused("Create", &format!("dbus:bus={bus},own-name=org.x.Y"));
        assert_error(&refusal, "PermissionDenied", &["taken for the service"]);
    }
    let socket = stage.bus.socket().to_owned();
    let (directory, file) = socket.rsplit_once('/').expect("a path");
    let (link, directory_link) = (stage.path("link"), stage.path("directory"));
    symlink(&socket, &link).expect("an own directory");
    symlink(directory, &directory_link).expect("an own directory");
    let twice = stage.path("twice");
    symlink(&link, &twice).expect("an own directory");
    for path in [
        socket.clone(),
        format!("{directory}/../{}/{file}", directory.rsplit('/').next().expect("a name")),
        format!("/proc/self/root{socket}"),
        link,
        twice,
        format!("{directory_link}/{file}"),
        socket.replace("bus", "%2562us"),
    ] {
        let refusal = alice.refused("Attach", &format!("dbus:bus=unix:path={path},watch-name=org.x.Y"));
        assert_error(&refusal, "PermissionDenied", &["closed to this service"]);
    }
    let listed = error(alice.call("/org/example/IPC/dbus", "Mechanism", "List", &[no_options()]));
    assert_error(&listed, "Unavailable", &["busctl list"]);
}

/// A program of the caller's own may hand on to the system bus: he speaks there then, and the service is still none
/// that he is bridged to, whatever it is called.
#[test]
fn nothing_leads_back_through_another_address() {
    let stage = or_skip!(Stage::new());
    let way_round = stage.path("round");
    let listen = format!("UNIX-LISTEN:{way_round},fork,mode=666");
    let connect = format!("UNIX-CONNECT:{}", stage.bus.socket());
    let mut socat = stage.bus.command_as(&ALICE.into(), "socat");
    let _socat = Process::spawn_group(socat.args(["-d", "-d", &listen, &connect]));
    _socat.stderr().wait_for(|line| line.contains("listening")).expect("socat listens");
    let mut alice = stage.alice();
    let owner = alice.owner();
    let of = |name: &str| {
        format!("dbus:bus=unix:path={way_round},name={name},path={PATH},interface={NAME},member=Create")
    };
    assert_error(&alice.refused("Attach", &of(NAME)), "InvalidArgument", &["this service's own name"]);
    assert_error(
        &alice.refused("Attach", &of(&owner)),
        "InvalidArgument",
        &["this service by another name", "for ever"],
    );
    let signals = format!("dbus:bus=unix:path={way_round},signal=true,name={NAME}");
    assert_error(&alice.refused("Attach", &signals), "InvalidArgument", &["own messages"]);
}

/// A name may come to be one of this process's own while somebody is attached to it.
#[test]
fn a_name_that_becomes_our_own_is_called_no_more() {
    let stage = or_skip!(Stage::new());
    let lie = |sender| {
        let names = [text("org.test.X"), text(":1.9"), text(SERVICE)];
        let changed = Outgoing::signal(None, "/org/freedesktop/DBus", DRIVER, "NameOwnerChanged", &names);
        Lie::Says(sender, changed)
    };
    // Only the bus says who has a name.
    let forging = Liar::answering(&stage.path("forging"), move |call| {
        vec![lie(":1.66"), Lie::Says(":1.9", Outgoing::reply(SERVICE, call.serial, &[text("here")]))]
    });
    let telling = Liar::answering(&stage.path("telling"), move |call| {
        vec![lie(DRIVER), Lie::Says(":1.9", Outgoing::reply(SERVICE, call.serial, &[text("here")]))]
    });
    let mut alice = stage.alice();
    for liar in [&forging, &telling] {
        let endpoint = alice.attach(&liar.method(""));
        send(&mut alice, &endpoint, b"").expect("Send");
        assert_eq!(receive(&mut alice, &endpoint).0, "here");
        let again = send(&mut alice, &endpoint, b"");
        if std::ptr::eq(liar, &telling) {
            assert_error(&error(again), "InvalidArgument", &["own connection", "for ever"]);
        } else {
            again.expect("Send");
        }
    }
    // Whoever it is by its unique name is known from the beginning.
    let own = format!("dbus:bus={},name={SERVICE},path=/x,member=M", telling.address());
    assert_error(&alice.refused("Attach", &own), "InvalidArgument", &["own connection"]);
    // And a name that is owned here is, before the bus has told anybody.
    let honest = Liar::start(&stage.path("honest"), |_| None);
    let endpoint = alice.attach(&honest.method(""));
    send(&mut alice, &endpoint, b"").expect("Send");
    let owned = alice.create(&format!("dbus:bus={},own-name=org.test.X", honest.address()));
    assert_error(&error(send(&mut alice, &endpoint, b"")), "InvalidArgument", &["own connection"]);
    alice.close(&owned);
    send(&mut alice, &endpoint, b"").expect("Send");
}

/// Somebody else's socket is the kernel's affair: a worker is its caller.
#[test]
fn a_bus_of_somebody_else_is_none_of_his() {
    let stage = or_skip!(Stage::new());
    let path = stage.path("bobs");
    let liar = Liar::start(&path, |_| None);
    std::os::unix::fs::chown(&path, Some(BOB.uid), Some(BOB.gid)).expect("root may");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("root may");
    let address = text(format!("dbus:bus={},watch-name=org.x.Y", liar.address()));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let refusal = error(alice.call(PATH, "", "Attach", &[address.clone(), no_options()]));
    assert_error(&refusal, "PermissionDenied", &["EACCES", "bobs"]);
    object(&bob.call(PATH, "", "Attach", &[address, dict(&[])]).expect("Attach").args());
}
