//! Signals, and relays of them.

use ipc_blackbox::{Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::or_skip;
use zbus::Variant;

use crate::peer::{Attributes, Peer, bus, method, receive, send, text};

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

/// A signal of another bus, or of this one, as a signal of the endpoint.
///
/// Proves: dbus attach, event
async fn signals_are_delivered(stage: Stage) {
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let address = format!("dbus:bus={},signal=true,interface=org.test.Peer,member=Said,deliver", bus(&stage));
    let said = client.attach(&address).await;
    assert_eq!(peer.ask("say aloud"), "done");
    let received = inbox.signal(&said, "Received").await;
    let (seq, data, attributes): (u64, Vec<u8>, Attributes) =
        received.body().deserialize().expect("Received");
    assert_eq!((seq, &data[..], text(&attributes, "path").as_str()), (1, &b"[\"aloud\"]"[..], "/peer"));
}

/// A relay carries signals into a queue, and a queue into calls.
///
/// Proves: dbus relay
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

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", signals_become_messages, signals_are_delivered, relays_go_both_ways, signals_cross_over);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", signals_become_messages, signals_are_delivered, relays_go_both_ways, signals_cross_over);
everywhere!(@ private_bus, Private, with_config, "", signals_become_messages, signals_are_delivered, relays_go_both_ways, signals_cross_over);
