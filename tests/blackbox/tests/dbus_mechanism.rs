//! Message buses as a mechanism: calls, signals, properties and names of others, who are written with dbus-python,
//! which is libdbus, or are busctl and gdbus.

use std::collections::BTreeMap;

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::{Address, Process, Unavailable, busctl, need_tool, or_skip};
use zbus::{OwnedVariant, Variant};

const PEER: &str = include_str!("dbus_mechanism/peer.py");

/// The system's python: others know nothing of Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

/// The program, asked one thing after the other.
struct Peer {
    process: Process,
    lines: usize,
}

impl Peer {
    fn start(stage: &Stage) -> Result<Peer, Unavailable> {
        let imports =
            std::process::Command::new(PYTHON).args(["-c", "import dbus, gi.repository.GLib"]).output();
        if !imports.is_ok_and(|done| done.status.success()) {
            return Err(Unavailable("python3-dbus and python3-gi are not installed".to_owned()));
        }
        let mut command = std::process::Command::new(PYTHON);
        command.args(["-u", "-c", PEER, stage.address()]);
        let mut peer = Peer { process: Process::spawn_group(&mut command), lines: 0 };
        assert_eq!(peer.line(), "ready");
        Ok(peer)
    }

    /// The next line that it says.
    #[track_caller]
    fn line(&mut self) -> String {
        let at = self.lines;
        self.lines += 1;
        let said = self.process.stdout().wait_until(|lines| lines.get(at).map(|line| line.to_string()));
        said.unwrap_or_else(|_| panic!("it says no more: {}", self.process.stderr().text()))
    }

    /// Has it do something, which it confirms.
    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.process.write(format!("{line}\n"));
        self.line()
    }
}

/// The bus of the stage, as the value of a key.
fn bus(stage: &Stage) -> String {
    stage.address().replace('%', "%25").replace(',', "%2c")
}

fn method(stage: &Stage, member: &str, more: &str) -> String {
    format!(
        "dbus:bus={},name=org.test.Peer,path=/peer,interface=org.test.Peer,member={member}{more}",
        bus(stage)
    )
}

type Attributes = BTreeMap<String, OwnedVariant>;

#[track_caller]
fn text(attributes: &Attributes, key: &str) -> String {
    match attributes.get(key).map(|value| &**value) {
        Some(Variant::Str(text)) => text.to_string(),
        other => panic!("{key} is {other:?}"),
    }
}

async fn receive(client: &Client, path: &str) -> (String, Attributes) {
    let (data, attributes) = client.receive(path, 10_000).await.expect("Receive");
    (String::from_utf8(data).expect("text"), attributes)
}

async fn send(client: &Client, path: &str, data: &str) {
    client.send(path, data.as_bytes(), Options::new()).await.expect("Send");
}

/// Each form of a body, there and back: what is sent is what the other side is called with.
async fn messages_become_calls(stage: Stage) {
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let bytes = client.attach(&method(&stage, "Echo", ",signature=ay")).await;
    for data in [&b"\0\x01\xff"[..], b"", &[7; 1 << 20]] {
        client.send(&bytes, data, Options::new()).await.expect("Send");
        let (answer, attributes) = client.receive(&bytes, 10_000).await.expect("Receive");
        assert!(answer == data, "{} bytes came back as {}", data.len(), answer.len());
        assert_eq!(text(&attributes, "signature"), "ay");
        assert_eq!(peer.line(), format!("call Echo ay /peer {}", data.len()));
    }
    let line = client.attach(&method(&stage, "Echo", ",signature=s")).await;
    send(&client, &line, "grüße").await;
    assert_eq!(receive(&client, &line).await.0, "grüße");
    peer.line();
    for (signature, body) in [
        ("", ""),
        ("yb", "[255,true]"),
        ("nqiuxt", "[-32768,65535,-2147483648,4294967295,-9223372036854775808,18446744073709551615]"),
        ("dd", "[0.1,-1e+300]"),
        ("sog", r#"["a \"b\"","/a/b","a{sv}(ii)"]"#),
        ("a{sv}", r#"[{"a":{"data":1,"type":"u"},"b":{"data":["x",[1,2]],"type":"(sai)"}}]"#),
        ("(ss)", r#"[["a","b"]]"#),
        ("ss", r#"["a","b"]"#),
        ("a(ya{us})as", r#"[[[1,{"7":"seven"}],[2,{}]],["x","y"]]"#),
        ("v", r#"[{"data":{"data":{"data":5,"type":"x"},"type":"v"},"type":"v"}]"#),
    ] {
        let many = client
            .attach(&method(&stage, "Echo", &format!(",signature={}", signature.replace(',', "%2c"))))
            .await;
        send(&client, &many, body).await;
        let (answer, attributes) = receive(&client, &many).await;
        assert_eq!((answer.as_str(), text(&attributes, "signature").as_str()), (body, signature));
        assert!(peer.line().starts_with(&format!("call Echo {signature} /peer")));
        client.close(&many).await;
    }
    // Which reply belongs to which call, the caller's own id says.
    for id in ["first", "second"] {
        client.send(&line, id.as_bytes(), options([("id", id.into())])).await.expect("Send");
    }
    let second: (Vec<u8>, Attributes) = client
        .call(&line, "Messages", "Receive", &(options([("id", "second".into())]), 10_000u32))
        .await
        .expect("Receive");
    assert_eq!((second.0.as_slice(), text(&second.1, "id").as_str()), (&b"second"[..], "second"));
    assert_eq!(receive(&client, &line).await.0, "first");
}

/// An error is a reply, too; a call that nobody answers ends; and the bus's own errors keep their names.
async fn errors_keep_their_names(stage: Stage) {
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let failing = client.attach(&method(&stage, "Fail", ",signature=s")).await;
    send(&client, &failing, "no luck").await;
    let (answer, attributes) = receive(&client, &failing).await;
    assert_eq!((answer.as_str(), text(&attributes, "error").as_str()), ("no luck", "org.test.Error.Failed"));
    peer.line();

    let silent = client.attach(&method(&stage, "Silent", ",timeout-ms=50")).await;
    send(&client, &silent, "").await;
    let (answer, attributes) = receive(&client, &silent).await;
    assert_eq!(text(&attributes, "error"), "org.freedesktop.DBus.Error.NoReply");
    assert!(answer.contains("org.test.Peer") && answer.contains("50 ms (timeout-ms)"), "{answer}");
    peer.line();

    // One that dies is answered for by the bus, or by the deadline where the bus does not care (busd).
    let dying = client.attach(&method(&stage, "Die", ",timeout-ms=5000")).await;
    send(&client, &dying, "").await;
    let (_, attributes) = receive(&client, &dying).await;
    assert_eq!(text(&attributes, "error"), "org.freedesktop.DBus.Error.NoReply");
    send(&client, &dying, "").await;
    let (_, attributes) = receive(&client, &dying).await;
    let expected = if stage.way == Way::Private { "NoReply" } else { "ServiceUnknown" };
    assert_eq!(text(&attributes, "error"), format!("org.freedesktop.DBus.Error.{expected}"));
}

/// As many calls as the endpoint is deep; then a Send waits until a reply was received.
async fn calls_have_a_bound(stage: Stage) {
    let _peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let line = client.attach(&method(&stage, "Echo", ",signature=s,depth=2")).await;
    send(&client, &line, "1").await;
    send(&client, &line, "2").await;
    let full = |timeout: u32| {
        let (client, line) = (client.clone(), line.clone());
        async move { client.call::<(), _>(&line, "Messages", "Send", &(&b"3"[..], Options::new(), timeout)).await }
    };
    assert_error(&error(full(0).await), "Busy", &["without waiting"]);
    assert_error(&error(full(50).await), "Timeout", &["within 50 ms"]);
    let waiting = tokio::spawn(full(10_000));
    client.used("waits", 1).await;
    assert_eq!(receive(&client, &line).await.0, "1");
    waiting.await.expect("a task").expect("there is room");
    assert_eq!(receive(&client, &line).await.0, "2");
    assert_eq!(receive(&client, &line).await.0, "3");
}

/// What the flags of a call say is seen by whoever looks at the bus.
async fn flags_arrive(stage: Stage) {
    or_skip!(need_tool("busctl"));
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let mut watcher = std::process::Command::new("busctl");
    watcher.args([&format!("--address={}", stage.address()), "--json=short", "monitor", "org.test.Peer"]);
    let watcher = Process::spawn(&mut watcher);
    watcher.stderr().wait_for(|line| line.contains("Monitoring")).expect("busctl monitors");
    for (flags, number) in [
        ("", 0),
        (",flags=no-reply-expected", 1),
        (",flags=no-auto-start+allow-interactive-authorization", 6),
        (",flags=allow-interactive-authorization+no-reply-expected", 5),
    ] {
        let echo = client.attach(&method(&stage, "Echo", &format!(",signature=s{flags}"))).await;
        let word = format!("flags{number}");
        send(&client, &echo, &word).await;
        let call = watcher.wait_for(|line| line.contains("\"method_call\"") && line.contains(&word));
        assert!(call.contains(&format!("\"flags\":{number},")), "{call}");
        peer.line();
        if number & 1 == 0 {
            assert_eq!(receive(&client, &echo).await.0, word);
        } else {
            assert_error(&error(client.receive(&echo, 0).await), "Busy", &[]);
        }
    }
}

/// Signals by their parts or by a rule; of others alone, and of everybody who may be meant.
async fn signals_become_messages(stage: Stage) {
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let bus = bus(&stage);
    let by_parts = client
        .attach(&format!("dbus:bus={bus},signal=true,name=org.test.Peer,interface=org.test.Peer,member=Said"))
        .await;
    let by_rule =
        client.attach(&format!("dbus:bus={bus},match=path='/peer'%2carg0='second',body=plain")).await;
    for word in ["first", "second"] {
        assert_eq!(peer.ask(&format!("say {word}")), "done");
    }
    for word in ["first", "second"] {
        let (data, attributes) = receive(&client, &by_parts).await;
        assert_eq!(data, format!("[\"{word}\"]"));
        assert_eq!(
            ["path", "interface", "member", "signature"].map(|key| text(&attributes, key)),
            ["/peer", "org.test.Peer", "Said", "s"]
        );
        assert!(text(&attributes, "sender").starts_with(':'));
    }
    assert_eq!(receive(&client, &by_rule).await.0, "second");
    assert_error(&error(client.receive(&by_rule, 0).await), "Busy", &[]);

    // What is sent is a signal, of a body by the signature, that this process does not hear itself.
    let watcher = client.attach(&format!("dbus:bus={bus},signal=true,interface=org.test.Sent")).await;
    let sender = client
        .attach(&format!(
            "dbus:bus={bus},signal=true,path=/sent,interface=org.test.Sent,member=Sent,signature=su"
        ))
        .await;
    assert_eq!(peer.ask("hear org.test.Sent"), "done");
    send(&client, &sender, r#"["x",7]"#).await;
    assert_eq!(peer.line(), "heard /sent Sent su x 7");
    let other = options([("member", "Other".into()), ("signature", "ay".into()), ("path", "/other".into())]);
    client.send(&sender, b"[[1,2]]", other).await.expect("Send");
    assert_eq!(peer.line(), "heard /other Other ay 1 2");
    assert_error(&error(client.receive(&watcher, 0).await), "Busy", &[]);

    // More than fits is counted.
    let small = client.attach(&format!("dbus:bus={bus},signal=true,interface=org.test.Peer,depth=2")).await;
    for word in ["1", "2", "3", "4"] {
        assert_eq!(peer.ask(&format!("say {word}")), "done");
    }
    assert_eq!(peer.ask("hear org.test.Sent"), "done");
    send(&client, &sender, r#"["marker",0]"#).await;
    peer.line();
    assert_eq!(receive(&client, &small).await.0, "[\"1\"]");
    assert_eq!(receive(&client, &small).await.0, "[\"2\"]");
    assert_eq!(peer.ask("say 5"), "done");
    let (data, attributes) = receive(&client, &small).await;
    assert_eq!((data.as_str(), &*attributes["lost"]), ("[\"5\"]", &Variant::U64(2)));
}

/// A relay carries signals into a queue, and a queue into calls.
async fn relays_go_both_ways(stage: Stage) {
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let bus = bus(&stage);
    let signals =
        client.attach(&format!("dbus:bus={bus},signal=true,interface=org.test.Peer,member=Said")).await;
    let queue = client.create("sysvmq:key=private").await;
    let calls = client.attach(&method(&stage, "Note", ",signature=s,flags=no-reply-expected")).await;
    client.relay(&signals, &queue, Options::new()).await;
    assert_eq!(peer.ask("say one"), "done");
    assert_eq!(client.receive(&queue, 10_000).await.expect("Receive").0, b"[\"one\"]");
    client.relay(&queue, &calls, Options::new()).await;
    assert_eq!(peer.ask("say two"), "done");
    assert_eq!(peer.line(), "call Note s /peer 7");
    client.run(&queue, "Endpoint", "Remove").await;
}

/// A signal that is relayed from one bus to another is the same there; and back again it does not go.
async fn signals_cross_over(stage: Stage) {
    let other = or_skip!(Stage::new(Way::DbusDaemon));
    let (mut here, mut there) = (or_skip!(Peer::start(&stage)), or_skip!(Peer::start(&other)));
    let client = stage.client().await;
    let ends = |stage: &Stage| format!("dbus:bus={},signal=true,interface=org.test.Peer", bus(stage));
    let (from, to) = (client.attach(&ends(&stage)).await, client.attach(&ends(&other)).await);
    client.relay(&from, &to, Options::new()).await;
    let (from, to) = (client.attach(&ends(&other)).await, client.attach(&ends(&stage)).await);
    client.relay(&from, &to, Options::new()).await;
    assert_eq!(here.ask("hear org.test.Peer"), "done");
    assert_eq!(there.ask("hear org.test.Peer"), "done");
    assert_eq!(here.ask("say over"), "done");
    assert_eq!(here.line(), "heard /peer Said s over");
    assert_eq!(there.line(), "heard /peer Said s over");
    // Had the first one come back, it would have been heard before this one.
    assert_eq!(there.ask("say back"), "done");
    assert_eq!(there.line(), "heard /peer Said s back");
    assert_eq!(here.line(), "heard /peer Said s back");
}

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

everywhere!(@ dbus_daemon, DbusDaemon, "", messages_become_calls, errors_keep_their_names, calls_have_a_bound,
    flags_arrive, signals_become_messages, relays_go_both_ways, signals_cross_over, loops_are_refused, bad_input_is_named);
everywhere!(@ dbus_broker, DbusBroker, "", messages_become_calls, errors_keep_their_names, calls_have_a_bound,
    flags_arrive, signals_become_messages, relays_go_both_ways, signals_cross_over, loops_are_refused, bad_input_is_named);
everywhere!(@ private_bus, Private, "", messages_become_calls, errors_keep_their_names, calls_have_a_bound,
    signals_become_messages, relays_go_both_ways, signals_cross_over, loops_are_refused, bad_input_is_named);
