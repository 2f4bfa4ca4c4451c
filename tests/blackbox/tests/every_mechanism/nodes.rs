//! The nodes of the mechanisms: what they say of themselves, and that their lists have what was made.

use std::collections::BTreeSet;

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, can_mount, error, everywhere};
use ipc_harness::{Address, PATH, unique};
use zbus::Signature;

use crate::{Row, assert_documented};

const NAMES: [&str; 17] = [
    "pipe", "fifo", "sysvmq", "posixmq", "sysvshm", "posixshm", "sysvsem", "posixsem", "futex", "mmap",
    "unix", "netlink", "inet", "inotify", "signal", "fuse", "dbus",
];

async fn texts(client: &Client, node: &str, property: &str) -> Vec<String> {
    let value = client.property(node, "Mechanism", property).await.expect(property);
    value.try_into().expect("texts")
}

async fn text(client: &Client, node: &str, property: &str) -> String {
    let value = client.property(node, "Mechanism", property).await.expect(property);
    String::try_from(value).expect("a text")
}

/// One of each, where it can be made: what workers of the system bus do not do is not.
async fn one_of_each(stage: &Stage, client: &Client) -> Vec<String> {
    let dir = stage.temp_dir();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let name = unique("each");
    let mut addresses = vec![
        "pipe:".to_owned(),
        format!("fifo:path={}", at("fifo")),
        "sysvmq:key=private,remove-on-close".into(),
        format!("posixmq:name=/{name},remove-on-close"),
        "sysvshm:key=private,size=4096,remove-on-close".into(),
        format!("posixshm:name=/{name},size=4096,remove-on-close"),
        "sysvsem:key=private,remove-on-close".into(),
        format!("posixsem:name=/{name},remove-on-close"),
        "futex:".into(),
        "mmap:size=4096".into(),
        format!("unix:path={}", at("socket")),
        "netlink:family=usersock".into(),
        "tcp:host=127.0.0.1,port=0".into(),
        format!("inotify:path={}", dir.path().display()),
        "signal:number=10".into(),
    ];
    if stage.way != Way::System && can_mount().is_ok() {
        std::fs::create_dir(dir.path().join("live")).expect("a directory");
        addresses.push(format!("fuse:path={}", at("live")));
    }
    if !matches!(stage.way, Way::System | Way::Peer) {
        let bus = stage.address().replace('%', "%25").replace(',', "%2c");
        addresses.push(format!("dbus:bus={bus},own-name=org.test.Each"));
    }
    let mut made = Vec::new();
    for address in addresses {
        made.push(client.create(&address).await);
    }
    made
}

async fn every_node_describes_itself(stage: Stage) {
    let client = stage.client().await;
    let known = client.property(PATH, "", "Mechanisms").await.expect("Mechanisms");
    assert_eq!(<Vec<String>>::try_from(known).expect("texts"), NAMES);
    type Key = (String, Vec<String>, String, String, bool, String);
    let mut schemes = BTreeSet::new();
    for name in NAMES {
        let node = format!("{PATH}/{name}");
        assert_eq!(text(&client, &node, "Name").await, name);
        assert!(text(&client, &node, "Summary").await.len() > 20, "{name}");
        for scheme in texts(&client, &node, "Schemes").await {
            assert!(schemes.insert(scheme.clone()), "{scheme} twice");
        }
        assert!(!texts(&client, &node, "Shapes").await.is_empty(), "{name}");
        let keys: Vec<Key> = client.call(&node, "Mechanism", "Describe", &()).await.expect("Describe");
        assert!(keys.iter().any(|key| key.1.contains(&"create".to_owned())), "{name}: {keys:?}");
        for (key, verbs, kind, _, _, meaning) in &keys {
            assert!(Signature::try_from(kind.as_str()).is_ok(), "{name} {key}: {kind}");
            assert!(!meaning.is_empty() && !verbs.is_empty(), "{name} {key}");
        }
        let available = client.property(&node, "Mechanism", "Available").await.expect("Available");
        let reason = text(&client, &node, "Reason").await;
        assert_eq!(bool::try_from(available), Ok(reason.is_empty()), "{name}: {reason}");
        client.property(&node, "Mechanism", "Limits").await.expect("Limits");
        let unknown = ipc_blackbox::options([("no-such-column", 1u32.into())]);
        let refused = client.call::<Vec<Row>, _>(&node, "Mechanism", "List", &(unknown,)).await;
        assert_error(&error(refused), "InvalidArgument", &["no-such-column"]);
    }
}

/// Where an object of it was made, no list is empty; its rows are as the reference page says, and its shapes are the
/// node's.
async fn every_list_has_what_was_made(stage: Stage) {
    let client = stage.client().await;
    let made = one_of_each(&stage, &client).await;
    let before = client.usage("endpoints").await;
    for endpoint in &made {
        let name = endpoint.split('/').nth(4).expect("a mechanism");
        let node = format!("{PATH}/{name}");
        let known = texts(&client, &node, "Shapes").await;
        let shapes = client.property(endpoint, "Endpoint", "Shapes").await.expect("Shapes");
        let shapes: Vec<String> = shapes.try_into().expect("texts");
        assert!(!shapes.is_empty() && shapes.iter().all(|shape| known.contains(shape)), "{name}: {shapes:?}");
        let rows: Result<Vec<Row>, _> = client.call(&node, "Mechanism", "List", &(Options::new(),)).await;
        match rows {
            // A futex is listed while somebody sleeps on it.
            Ok(rows) if name == "futex" => rows.iter().for_each(|row| assert_documented(name, row)),
            Ok(rows) => {
                assert!(!rows.is_empty(), "{name}");
                rows.iter().for_each(|row| assert_documented(name, row));
            }
            // There is a list of queues where their file system is mounted.
            Err(refused) if name == "posixmq" => assert_error(&refused, "Unavailable", &["not mounted"]),
            Err(refused) => panic!("List() of {name}: {refused}"),
        }
    }
    if stage.way == Way::System {
        let refused = client
            .call::<Vec<Row>, _>(&format!("{PATH}/dbus"), "Mechanism", "List", &(Options::new(),))
            .await;
        assert!(error(refused).is("Unavailable"));
    }
    assert_eq!(client.usage("endpoints").await, before, "lists make nothing");
}

everywhere!(every_node_describes_itself, every_list_has_what_was_made);
