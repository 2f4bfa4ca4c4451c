//! Names: watched, owned, listed.

use std::collections::BTreeMap;

use ipc_blackbox::{Options, Stage, Way, assert_error, error, everywhere, integer, options};
use ipc_harness::{Address, busctl, need_tool, or_skip};

use crate::peer::{Attributes, Peer, bus, receive, text};

async fn names_are_watched(stage: Stage) {
    let client = stage.client().await;
    let watch = client.attach(&format!("dbus:bus={},watch-name=org.test.Peer", bus(&stage))).await;
    let (data, _) = receive(&client, &watch).await;
    assert_eq!(data, r#"{"event":"vanished","name":"org.test.Peer","owner":""}"#);
    let mut peer = or_skip!(Peer::start(&stage));
    let (data, attributes) = receive(&client, &watch).await;
    let owner = text(&attributes, "owner");
    assert!(owner.starts_with(':'), "{owner}");
    assert_eq!(data, format!(r#"{{"event":"appeared","name":"org.test.Peer","owner":"{owner}"}}"#));
    assert_eq!(peer.ask("leave"), "done");
    let (_, attributes) = receive(&client, &watch).await;
    assert_eq!(["event", "owner"].map(|key| text(&attributes, key)), ["vanished", &owner]);
    assert_eq!(peer.ask("back"), "done");
    let (_, attributes) = receive(&client, &watch).await;
    assert_eq!(["event", "owner"].map(|key| text(&attributes, key)), ["appeared", &owner]);
    let watch = client.attach(&format!("dbus:bus={},watch-name={owner}", bus(&stage))).await;
    assert_eq!(text(&receive(&client, &watch).await.1, "event"), "appeared");
    peer.process.kill();
    assert_eq!(text(&receive(&client, &watch).await.1, "event"), "vanished");
    assert_error(
        &error(client.send(&watch, b"", Options::new()).await),
        "NotSupported",
        &["takes no messages"],
    );
    let wrong = format!("dbus:bus={},watch-name=nobody", bus(&stage));
    assert_error(&error(client.try_attach(&wrong, Options::new()).await), "InvalidArgument", &["nobody"]);
}

/// busctl calls a name that is owned here, and gets what is answered here.
///
/// Proves: dbus create, read, write
async fn a_name_is_owned(stage: Stage) {
    or_skip!(need_tool("busctl"));
    let client = stage.client().await;
    let b = bus(&stage);
    let address = format!(
        "dbus:bus={b},own-name=org.test.Script,path=/script,interface=org.test.Script,signature=s,timeout-ms=300"
    );
    let script = client.create(&address).await;
    assert_error(
        &error(client.try_create(&address, Options::new()).await),
        "Exists",
        &["org.test.Script", "owned by :", "(ipcd)"],
    );
    let call = |member: &str, arguments: &[&str]| {
        let mut words = vec!["call", "org.test.Script", "/script", "org.test.Script", member];
        words.extend(arguments);
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let tool = busctl(&stage).to("org.test.Script");
        tokio::task::spawn_blocking(move || tool.run(&words.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let number = |attributes: &Attributes| integer(&attributes["call"]) as u64;

    let calling = call("Greet", &["su", "world", "7"]);
    let (data, attributes) = receive(&client, &script).await;
    assert_eq!(data, r#"["world",7]"#);
    assert_eq!(
        ["path", "interface", "member", "signature"].map(|key| text(&attributes, key)),
        ["/script", "org.test.Script", "Greet", "su"]
    );
    client.send(&script, b"hello", options([("call", number(&attributes).into())])).await.expect("Send");
    assert_eq!(calling.await.expect("a task").expect("an answer"), "s \"hello\"");
    let again = error(client.send(&script, b"hello", options([("call", number(&attributes).into())])).await);
    assert_error(&again, "NotFound", &["no call 1 waits", "was answered"]);

    // Any signature, and errors; in any order.
    let (first, second) = (call("One", &["s", "1"]), call("Two", &["s", "2"]));
    let mut calls = BTreeMap::new();
    for _ in 0..2 {
        let (_, attributes) = receive(&client, &script).await;
        calls.insert(text(&attributes, "member"), number(&attributes));
    }
    let many = options([("call", calls["Two"].into()), ("signature", "a{sv}".into())]);
    client.send(&script, br#"[{"n":{"type":"i","data":-5}}]"#, many).await.expect("Send");
    let failed = options([("call", calls["One"].into()), ("error", "org.test.Error.No".into())]);
    client.send(&script, b"not today", failed).await.expect("Send");
    assert_eq!(second.await.expect("a task").expect("an answer"), "a{sv} 1 \"n\" i -5");
    let refused = first.await.expect("a task").expect_err("an error");
    assert_eq!((refused.name.as_str(), refused.text.as_str()), ("org.test.Error.No", "not today"));

    // What nobody answers ends; what is not served never comes here.
    let late = call("Late", &[]).await.expect("a task").expect_err("an error");
    assert_eq!(late.name, "org.freedesktop.DBus.Error.NoReply");
    assert!(late.text.contains("300 ms"), "{late}");
    receive(&client, &script).await;
    let tool = busctl(&stage);
    for (path, interface, name) in
        [("/other", "org.test.Script", "UnknownObject"), ("/script", "org.test.Other", "UnknownInterface")]
    {
        let refused =
            tool.clone().to("org.test.Script").call(path, interface, "X", "", &[]).expect_err("an error");
        assert_eq!(refused.name, format!("org.freedesktop.DBus.Error.{name}"));
    }
    tool.clone()
        .to("org.test.Script")
        .call("/", "org.freedesktop.DBus.Peer", "Ping", "", &[])
        .expect("a ping");
    assert_error(&error(client.receive(&script, 0).await), "Busy", &[]);

    // One who waits for no answer is not answered.
    let mut words =
        vec!["--expect-reply=false", "call", "org.test.Script", "/script", "org.test.Script", "Note"];
    words.extend(["s", "by the way"]);
    tool.run(&words).expect("a call");
    let (data, attributes) = receive(&client, &script).await;
    assert!(data == "by the way" && !attributes.contains_key("call"), "{data} {attributes:?}");

    let no_number = error(client.send(&script, b"x", Options::new()).await);
    assert_error(&no_number, "InvalidArgument", &["\"call\"", "number"]);
    let wrong = options([("call", 99u64.into()), ("error", "no name".into())]);
    assert_error(
        &error(client.send(&script, b"x", wrong).await),
        "InvalidArgument",
        &["error name", "no name"],
    );

    // From within, it would be a loop.
    let within = format!("dbus:bus={b},name=org.test.Script,path=/script,member=Greet");
    assert_error(
        &error(client.try_attach(&within, Options::new()).await),
        "InvalidArgument",
        &["own connection"],
    );
    client.close(&script).await;
    // busd leaves callers of nobody without an answer.
    if stage.way != Way::Private {
        let gone =
            tool.to("org.test.Script").call("/script", "org.test.Script", "X", "", &[]).expect_err("nobody");
        assert!(gone.name.ends_with("ServiceUnknown") || gone.name.ends_with("NameHasNoOwner"), "{gone}");
    }
    for (key, phrases) in
        [("own-name=:1.5", &["can be owned"][..]), ("own-name=org", &["org"]), ("path=/", &["own-name"])]
    {
        let refused = error(client.try_create(&format!("dbus:bus={b},{key}"), Options::new()).await);
        assert_error(&refused, "InvalidArgument", phrases);
    }
}

/// Everything that is there, as the bus itself says.
///
/// Proves: dbus attach, list
async fn buses_are_listed(stage: Stage) {
    let peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let rows = client.list("dbus").await;
    let of = |name: &str| {
        rows.iter()
            .find(|row| text(row, "name") == name && text(row, "bus") == stage.address())
            .unwrap_or_else(|| panic!("{name} is not listed: {rows:?}"))
    };
    let row = of("org.test.Peer");
    assert_eq!(integer(&row["pid"]), i64::from(peer.process.pid()));
    assert_eq!(text(row, "command"), "python3");
    assert_eq!(integer(&row["uid"]), i64::from(rustix::process::geteuid().as_raw()));
    assert_eq!(text(of(&text(row, "owner")), "owner"), text(row, "owner"));
    assert_eq!(text(of("org.example.IPC"), "command"), "ipcd");
    let watch = client.attach(&text(row, "address")).await;
    assert_eq!(text(&receive(&client, &watch).await.1, "owner"), text(row, "owner"));
}

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", names_are_watched, a_name_is_owned, buses_are_listed);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", names_are_watched, a_name_is_owned, buses_are_listed);
everywhere!(@ private_bus, Private, with_config, "", names_are_watched, a_name_is_owned, buses_are_listed);
