//! What the service says of itself: every object introspects with the tools that users have, in valid XML that says
//! what each argument is, and that stays small.

use std::collections::BTreeSet;
use std::process::Command;

use ipc_blackbox::{Client, Options, Stage, everywhere};
use ipc_harness::xml::{attribute, children, tags};
use ipc_harness::{
    Bus, NAME, PATH, Process, Service, busctl, connect, gdbus, has_tool, need_tool, on_each_bus, or_skip,
    temp_dir, unique,
};

const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";

/// One endpoint of each shape, and a relay.
async fn one_of_each(client: &Client) -> Vec<String> {
    let mut made = Vec::new();
    for address in [
        "pipe:",
        "pipe:packet",
        "unix:pair,type=seqpacket",
        "tcp:host=127.0.0.1,port=0",
        "mmap:size=4096",
        "inotify:path=/tmp",
        &format!("posixsem:name=/{},remove-on-close", unique("introspection")),
    ] {
        made.push(client.create(address).await);
    }
    let sink = client.create("pipe:").await;
    made.push(client.relay(&made[0], &sink, Options::new()).await);
    made.push(sink);
    made
}

async fn document(client: &Client, path: &str) -> String {
    client.call(path, INTROSPECTABLE, "Introspect", &()).await.expect("Introspect")
}

/// From the root to the last leaf by the names that the nodes give, every object is found.
async fn the_tree_is_complete(stage: Stage) {
    let client = stage.client().await;
    let made = one_of_each(&client).await;
    let mut found = BTreeSet::new();
    let mut open = vec!["/".to_owned()];
    while let Some(path) = open.pop() {
        let xml = document(&client, &path).await;
        for child in children(&xml) {
            open.push(format!("{}/{child}", path.trim_end_matches('/')));
        }
        assert!(found.insert(path.clone()), "{path} is there twice");
    }
    for path in
        made.iter().map(String::as_str).chain([PATH, "/org/example/IPC/pipe", "/org/example/IPC/inotify"])
    {
        assert!(found.contains(path), "{path} is not in {found:?}");
    }
    client.close(&made[1]).await;
    let pipes = document(&client, "/org/example/IPC/pipe").await;
    let number = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    assert!(!children(&pipes).contains(&number(&made[1]).as_str()));
    assert!(children(&pipes).contains(&number(&made[0]).as_str()));
}

async fn the_documents_are_right(stage: Stage) {
    let client = stage.client().await;
    let mut paths = one_of_each(&client).await;
    paths.extend([PATH.to_owned(), "/org/example/IPC/pipe".to_owned(), "/".to_owned()]);
    for path in &paths {
        let xml = document(&client, path).await;
        if has_tool("xmllint") {
            let mut lint = Process::spawn(Command::new("xmllint").args(["--noout", "--nonet", "-"]));
            lint.write(&xml);
            lint.finish().success();
        }
        let (mut interface, mut member) = ("", "");
        for tag in tags(&xml) {
            let name = attribute(tag, "name").unwrap_or_default();
            match tag.split([' ', '/']).next() {
                Some("interface") => interface = name,
                Some("method" | "signal") => member = name,
                Some("arg") => {
                    // zbus does not name those of its own Introspectable and Peer.
                    assert!(
                        !interface.starts_with(NAME) || !name.is_empty(),
                        "{interface}.{member} of {path} has an argument without a name"
                    );
                    assert!(
                        attribute(tag, "type").is_some_and(|kind| zbus::Signature::try_from(kind).is_ok()),
                        "{tag}"
                    );
                    // Who calls is what the bus and the kernel say, never what an argument does.
                    let claims = ["uid", "user", "owner", "gid", "credentials"];
                    assert!(!claims.contains(&name), "{interface}.{member} has an argument {name}");
                }
                Some("property") => {
                    assert_eq!(attribute(tag, "access"), Some("read"), "{interface}.{name} of {path}");
                }
                _ => {}
            }
        }
        for documented in
            xml.split("<interface ").skip(1).filter(|it| it.starts_with("name=\"org.example.IPC"))
        {
            let (methods, comments) =
                (documented.matches("<method").count(), documented.matches("<!--").count());
            assert!(comments >= methods, "methods without a word about them: {documented}");
        }
    }
    let refused = client
        .call::<(), _>(
            PATH,
            "org.freedesktop.DBus.Properties",
            "Set",
            &(NAME, "Version", zbus::Variant::from("9")),
        )
        .await;
    let refused = ipc_blackbox::error(refused);
    assert!(refused.name.starts_with("org.freedesktop.DBus.Error."), "{refused}");
}

/// With many endpoints the manager's own document does not grow, and a node only by their names.
async fn it_stays_small(stage: Stage) {
    let client = stage.client().await;
    let before = document(&client, PATH).await.len();
    let node_before = document(&client, "/org/example/IPC/pipe").await.len();
    for _ in 0..100 {
        client.create("pipe:").await;
    }
    let after = document(&client, PATH).await;
    assert_eq!(after.len(), before);
    assert!(after.len() < 32 * 1024, "{} bytes", after.len());
    let node = document(&client, "/org/example/IPC/pipe").await;
    assert_eq!(children(&node).len(), 100);
    assert!(node.len() - node_before < 100 * 40, "{} bytes", node.len());
}

/// Every mechanism describes its keys, with types that D-Bus knows.
async fn mechanisms_describe_themselves(stage: Stage) {
    let client = stage.client().await;
    let names = client.property(PATH, "", "Mechanisms").await.expect("Mechanisms");
    let names: Vec<String> = names.try_into().expect("texts");
    assert!(names.len() >= 7, "{names:?}");
    type Key = (String, Vec<String>, String, String, bool, String);
    for name in names {
        let node = format!("{PATH}/{name}");
        let keys: Vec<Key> = client.call(&node, "Mechanism", "Describe", &()).await.expect("Describe");
        for (key, verbs, kind, _, _, meaning) in &keys {
            assert!(zbus::Signature::try_from(kind.as_str()).is_ok(), "{name} {key}: {kind}");
            assert!(!meaning.is_empty() && !verbs.is_empty(), "{name} {key}");
            assert!(verbs.iter().all(|verb| ["create", "attach", "open"].contains(&verb.as_str())));
        }
        // What is missing is named: the first key that must be there.
        let required = keys.iter().find(|key| key.4 && key.1.contains(&"create".to_owned()));
        if let Some((key, ..)) = required {
            let scheme = if name == "inet" { "tcp" } else { &name };
            let missing = ipc_blackbox::error(client.try_create(&format!("{scheme}:"), Options::new()).await);
            assert!(missing.text.contains(&format!("{key:?}")), "{missing}");
        }
        assert!(keys.iter().any(|key| key.0 == "lifetime"), "{name} lists the options of every mechanism");
        let available = client.property(&node, "Mechanism", "Available").await.expect("Available");
        let reason = client.property(&node, "Mechanism", "Reason").await.expect("Reason");
        let reason = String::try_from(reason).expect("a text");
        assert_eq!(bool::try_from(available), Ok(reason.is_empty()), "{name}: {reason}");
        client.property(&node, "Mechanism", "Limits").await.expect("Limits");
    }
}

everywhere!(the_tree_is_complete, the_documents_are_right, it_stays_small, mechanisms_describe_themselves);

mod tools {
    use super::*;

    /// What `busctl introspect` and `gdbus introspect` show.
    fn both_tools_show_every_object(bus: Bus) {
        or_skip!(need_tool("gdbus"));
        let service = Service::on(&bus);
        let (busctl, gdbus) = (busctl(&service), gdbus(&service));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let client = runtime.block_on(async { Client::of_bus(connect(&service).await) });
        let made = runtime.block_on(one_of_each(&client));
        let tree = busctl.tree().expect("busctl tree");
        for path in made.iter().map(String::as_str).chain([PATH, "/org/example/IPC/fifo"]) {
            assert!(tree.lines().any(|line| line == path), "{path} is not in {tree}");
            let shown = busctl.introspect(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(shown.contains("org.example.IPC"), "{shown}");
            assert!(!shown.contains("writable"), "{path} has a writable property: {shown}");
            let shown = gdbus.introspect(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(shown.contains("<interface name=\"org.example.IPC"), "{shown}");
        }
        // What is written in a program's own document is what it is called by.
        let dir = temp_dir();
        let fifo = format!("'fifo:path={}'", dir.path().join("fifo").display());
        gdbus.manager("Create", &[&fifo, "{}"]).expect("gdbus reads the signatures from the document");
    }

    on_each_bus!(both_tools_show_every_object);
}
