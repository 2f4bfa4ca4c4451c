//! What is refused: loops, bad input, and the system bus where a process of the service would speak.

use ipc_blackbox::{Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::{busctl, or_skip};

use crate::peer::{Attributes, PEER, Peer, bus, method, need_peer, receive, send, text};

/// Nothing leads back into the service.
async fn loops_are_refused(stage: Stage) {
    let client = stage.client().await;
    let bus = bus(&stage);
    let own = format!("dbus:bus={bus},name=org.example.IPC,path=/org/example/IPC,member=Create");
    assert_error(
        &error(client.try_attach(&own, Options::new()).await),
        "InvalidArgument",
        &["org.example.IPC", "own name", "for ever"],
    );
    let unique = busctl(&stage).run(&["--no-legend", "--unique", "list"]).expect("busctl list");
    let service = unique.lines().find(|line| line.contains(" ipcd ")).expect("the service's connection");
    let name = service.split_whitespace().next().expect("a name");
    let own = format!("dbus:bus={bus},name={name},path=/org/example/IPC,member=Create");
    assert_error(
        &error(client.try_attach(&own, Options::new()).await),
        "InvalidArgument",
        &["own connection", name],
    );
    let own = format!("dbus:bus={bus},signal=true,name=org.example.IPC");
    assert_error(&error(client.try_attach(&own, Options::new()).await), "InvalidArgument", &["own messages"]);
}

/// A name that this process comes to have while somebody is attached to it: no call goes there any more.
async fn a_loop_that_comes_later_is_refused(stage: Stage) {
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let note = client.attach(&method(&stage, "Note", ",signature=s")).await;
    assert_eq!(peer.ask("leave"), "done");
    let script = client.create(&format!("dbus:bus={},own-name=org.test.Peer", bus(&stage))).await;
    // Whoever owns it now is told to both connections in some order: until then, a call is answered by nobody here.
    let refused = loop {
        match client.send(&note, b"round", Options::new()).await {
            Err(refused) => break refused,
            Ok(()) => drop(client.receive(&script, 200).await),
        }
    };
    assert_error(&refused, "InvalidArgument", &["org.test.Peer", "own connection", "for ever"]);
}

async fn bad_input_is_named(stage: Stage) {
    let _peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let b = bus(&stage);
    let peer = format!("bus={b},name=org.test.Peer,path=/peer");
    for (address, name, phrases) in [
        ("member=X".to_owned(), "InvalidArgument", &["a method needs the key \"name\""][..]),
        (format!("{peer},interface=org.x.I"), "InvalidArgument", &["needs the key \"member\""]),
        (format!("bus={b},name=no..name,path=/,member=X"), "InvalidArgument", &["no..name", "name on a bus"]),
        (format!("bus={b},name=org.x,path=peer,member=X"), "InvalidArgument", &["\"peer\"", "object path"]),
        (format!("{peer},member=a-b"), "InvalidArgument", &["a-b", "member name"]),
        (format!("{peer},member=X,interface=x"), "InvalidArgument", &["interface name"]),
        (format!("{peer},member=X,signature=a"), "InvalidArgument", &["signature", "\"a\""]),
        (format!("{peer},member=X,flags=urgent"), "InvalidArgument", &["no-auto-start"]),
        (
            format!("{peer},member=X,interface=org.freedesktop.DBus.Local"),
            "InvalidArgument",
            &["disconnects"],
        ),
        (format!("bus={b},name=org.nobody,path=/,member=X"), "NotFound", &["org.nobody", "cannot start"]),
        (format!("bus={b},signal=true,match=path='/'"), "InvalidArgument", &["not by both"]),
        (format!("bus={b},signal=false"), "InvalidArgument", &["must be true"]),
        (format!("bus={b},match=nonsense"), "InvalidArgument", &["match rule"]),
        (format!("bus={b},match=type='method_call'"), "InvalidArgument", &["monitor"]),
        (format!("bus={b},match=eavesdrop='true'"), "InvalidArgument", &["monitor"]),
        (
            format!("bus={b},signal=true,flags=no-auto-start"),
            "InvalidArgument",
            &["means nothing for signals"],
        ),
        ("bus=tcp:host=localhost,name=org.x,path=/,member=X".to_owned(), "InvalidArgument", &["unix:path="]),
        ("bus=unix:path=/nowhere,name=org.x,path=/,member=X".to_owned(), "NotFound", &["/nowhere", "ENOENT"]),
        (
            format!(
                "bus={b},name=org.freedesktop.DBus,path=/,interface=org.freedesktop.DBus.Monitoring,member=BecomeMonitor"
            ),
            "NotSupported",
            &["busctl monitor"],
        ),
    ] {
        let refused = error(client.try_attach(&format!("dbus:{address}"), Options::new()).await);
        assert_error(&refused, name, phrases);
    }
    let many = client.attach(&method(&stage, "Echo", ",signature=ua{sv}")).await;
    for (body, phrases) in [
        ("", &["JSON array", "2 arguments"][..]),
        ("x", &["JSON array"]),
        ("{}", &["such as"]),
        ("[1]", &["not of 1"]),
        ("[-1,{}]", &["argument 0", "from 0 to 4294967295", "-1"]),
        ("[1.5,{}]", &["1.5"]),
        ("[1,[]]", &["argument 1", "an object", "a{sv}"]),
        (r#"[1,{"a":5}]"#, &["key \"a\"", "\"type\" and \"data\""]),
        (r#"[1,{"a":{"type":"ss","data":1}}]"#, &["\"ss\"", "one complete type"]),
        (r#"[1,{"a":{"type":"h","data":0}}]"#, &["file descriptor 0", "has 0"]),
    ] {
        let refused = error(client.send(&many, body.as_bytes(), Options::new()).await);
        assert_error(&refused, "InvalidArgument", phrases);
    }
    let refused = error(client.send(&many, b"[1,{}]", options([("id", 5u32.into())])).await);
    assert_error(&refused, "InvalidArgument", &["\"id\"", "text"]);
    let line = client.attach(&method(&stage, "Echo", ",signature=s")).await;
    assert_error(
        &error(client.send(&line, b"\xff", Options::new()).await),
        "InvalidArgument",
        &["UTF-8", "signature=ay"],
    );
    assert_error(
        &error(client.send(&line, b"a\0b", Options::new()).await),
        "InvalidArgument",
        &["zero byte"],
    );
    assert_error(&error(client.open(&line, Options::new()).await), "NotSupported", &["not handed out"]);
}

/// A bus that goes ends what is attached to it, after everything that it said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_may_go() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let other = or_skip!(Stage::new(Way::DbusDaemon));
    let mut peer = or_skip!(Peer::start(&other));
    let client = stage.client().await;
    let silent = client.attach(&method(&other, "Silent", "")).await;
    let signals =
        client.attach(&format!("dbus:bus={},signal=true,interface=org.test.Peer", bus(&other))).await;
    send(&client, &silent, "").await;
    peer.line();
    assert_eq!(peer.ask("say last"), "done");
    drop((peer, other));
    let (_, attributes) = receive(&client, &silent).await;
    assert_eq!(text(&attributes, "error"), "org.freedesktop.DBus.Error.NoReply");
    assert_error(&error(client.receive(&silent, 10_000).await), "Closed", &["has gone"]);
    assert_error(&error(client.send(&silent, b"", Options::new()).await), "Closed", &["has gone"]);
    assert_eq!(receive(&client, &signals).await.0, "[\"last\"]");
    assert_error(&error(client.receive(&signals, 10_000).await), "Closed", &["has gone"]);
}

/// The process of a caller belongs to the service: on the system bus it would be taken for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_system_bus_is_closed_to_workers() {
    let stage = or_skip!(Stage::new(Way::System));
    or_skip!(need_peer());
    let client = stage.client().await;
    for bus in ["session", "system"] {
        let refused =
            error(client.try_attach(&format!("dbus:bus={bus},watch-name=org.x"), Options::new()).await);
        assert_error(
            &refused,
            "PermissionDenied",
            &[&format!("bus={bus}"), "taken for the service", "unix:path="],
        );
    }
    let own = format!("dbus:bus={},watch-name=org.x", bus(&stage));
    assert_error(
        &error(client.try_attach(&own, Options::new()).await),
        "PermissionDenied",
        &["closed to this service"],
    );
    let listed: Result<Vec<Attributes>, _> =
        client.call("/org/example/IPC/dbus", "Mechanism", "List", &(Options::new(),)).await;
    assert_error(&error(listed), "Unavailable", &["busctl list"]);

    // Another bus is the caller's own affair.
    let dir = stage.temp_dir();
    let address = format!("unix:path={}/bus", dir.path().display());
    let theirs =
        stage.sh(&format!("exec dbus-daemon --session --nofork --print-address=1 --address={address}"));
    theirs.wait_for(|line| line.starts_with("unix:"));
    let mut peer = Peer { process: stage.python(PEER, &[&address]), lines: 0 };
    assert_eq!(peer.line(), "ready");
    let method = "name=org.test.Peer,path=/peer,interface=org.test.Peer,member=Echo,signature=s";
    let echo = client.attach(&format!("dbus:bus={address},{method}")).await;
    send(&client, &echo, "by address").await;
    assert_eq!(receive(&client, &echo).await.0, "by address");
    peer.line();
}

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", loops_are_refused, a_loop_that_comes_later_is_refused, bad_input_is_named);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", loops_are_refused, a_loop_that_comes_later_is_refused, bad_input_is_named);
everywhere!(@ private_bus, Private, with_config, "", loops_are_refused, a_loop_that_comes_later_is_refused, bad_input_is_named);
