//! Properties, mirrored and set.

use ipc_blackbox::{Options, Stage, Way, assert_error, error, everywhere};
use ipc_harness::or_skip;

use crate::peer::{Attributes, Peer, bus, receive, send, text};

/// The value is there at once, and each other one as it comes, whether the service tells it, tells only that there is
/// another, or tells nothing but when asked.
async fn properties_are_mirrored(stage: Stage) {
    let mut peer = or_skip!(Peer::start(&stage));
    let client = stage.client().await;
    let address = |property: &str| {
        format!(
            "dbus:bus={},name=org.test.Peer,path=/peer,interface=org.test.Peer,property={property}",
            bus(&stage)
        )
    };
    let volume = client.attach(&address("Volume")).await;
    let (data, attributes) = receive(&client, &volume).await;
    assert_eq!((data.as_str(), text(&attributes, "signature").as_str()), ("30", "u"));
    assert_eq!(peer.ask("turn 31"), "done");
    assert_eq!(receive(&client, &volume).await.0, "31");
    // What is set is what the service makes of it.
    send(&client, &volume, "1000").await;
    assert_eq!(peer.line(), "set Volume 1000");
    assert_eq!(receive(&client, &volume).await.0, "100");
    // No news, no message; and the last value stays.
    send(&client, &volume, "100").await;
    assert_eq!(peer.line(), "set Volume 100");
    assert_error(&error(client.receive(&volume, 50).await), "Timeout", &[]);
    let last: (Vec<u8>, Attributes) =
        client.call(&volume, "Messages", "Peek", &(Options::new(), 0u32)).await.expect("Peek");
    assert_eq!(last.0, b"100");

    for (property, before, after) in
        [("Title", "\"none\"", "\"a song\""), ("Quiet", "1", "-9223372036854775808")]
    {
        let mirror = client.attach(&address(property)).await;
        assert_eq!(receive(&client, &mirror).await.0, before);
        send(&client, &mirror, after).await;
        peer.line();
        assert_eq!(receive(&client, &mirror).await.0, after, "{property}");
    }

    let fixed = client.attach(&address("Fixed")).await;
    assert_eq!(receive(&client, &fixed).await.0, "7");
    send(&client, &fixed, "8").await;
    peer.line();
    let (data, attributes) = receive(&client, &fixed).await;
    assert_eq!(
        (data.as_str(), text(&attributes, "error").as_str()),
        ("\"it is fixed\"", "org.freedesktop.DBus.Error.PropertyReadOnly")
    );
    let refused = error(client.send(&fixed, b"256", Options::new()).await);
    assert_error(&refused, "InvalidArgument", &["from 0 to 255", "256"]);
    assert_error(
        &error(client.send(&fixed, b"x", Options::new()).await),
        "InvalidArgument",
        &["JSON", "type y"],
    );

    // The value outlives its service, and is looked at again when that is back.
    assert_eq!(peer.ask("leave"), "done");
    let last: (Vec<u8>, Attributes) =
        client.call(&volume, "Messages", "Peek", &(Options::new(), 0u32)).await.expect("Peek");
    assert_eq!(last.0, b"100");
    assert_eq!(peer.ask("turn 5"), "done");
    assert_eq!(peer.ask("back"), "done");
    assert_eq!(receive(&client, &volume).await.0, "5");

    let unknown = error(client.try_attach(&address("Nothing"), Options::new()).await);
    assert_error(&unknown, "NotFound", &["Nothing", "UnknownProperty", "no Nothing"]);
    for (more, phrases) in
        [("Volume,body=plain", &["means nothing for a property"][..]), ("Volume,signature=uu", &["one type"])]
    {
        assert_error(
            &error(client.try_attach(&address(more), Options::new()).await),
            "InvalidArgument",
            phrases,
        );
    }
}

/// Two properties that follow each other come to rest.
///
/// Proves: dbus relay
async fn properties_follow_each_other(stage: Stage) {
    let other = or_skip!(Stage::new(Way::DbusDaemon));
    let (mut here, mut there) = (or_skip!(Peer::start(&stage)), or_skip!(Peer::start(&other)));
    let client = stage.client().await;
    let volume = |stage: &Stage| {
        format!(
            "dbus:bus={},name=org.test.Peer,path=/peer,interface=org.test.Peer,property=Volume",
            bus(stage)
        )
    };
    let (one, two) = (client.attach(&volume(&stage)).await, client.attach(&volume(&other)).await);
    assert_eq!(here.ask("turn 40"), "done");
    client.relay(&one, &two, Options::new()).await;
    // The value from before, and the one that it has now.
    assert_eq!(there.line(), "set Volume 30");
    assert_eq!(there.line(), "set Volume 40");
    client.relay(&two, &one, Options::new()).await;
    assert_eq!(here.line(), "set Volume 30");
}

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", properties_are_mirrored, properties_follow_each_other);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", properties_are_mirrored, properties_follow_each_other);
everywhere!(@ private_bus, Private, with_config, "", properties_are_mirrored, properties_follow_each_other);
