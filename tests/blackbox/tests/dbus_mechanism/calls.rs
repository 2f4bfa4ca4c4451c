//! Methods: messages as calls, replies as messages.

use ipc_blackbox::{Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::{Address, Process, need_tool, or_skip};

use crate::peer::{Attributes, Peer, method, receive, send, text};

/// Each form of a body, there and back: what is sent is what the other side is called with.
///
/// Proves: dbus attach, read, write
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
///
/// Proves: dbus wait
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

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", messages_become_calls, errors_keep_their_names, calls_have_a_bound, flags_arrive);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", messages_become_calls, errors_keep_their_names, calls_have_a_bound, flags_arrive);
// busd has no monitors.
everywhere!(@ private_bus, Private, with_config, "", messages_become_calls, errors_keep_their_names, calls_have_a_bound);
