//! System V message queues from outside: with programs that use the C library (by Python's ctypes), ipcs and ipcrm.

use std::collections::BTreeMap;

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, integer, options};
use ipc_harness::{need_tool, or_skip};
use zbus::OwnedVariant;

const DEFAULT: u32 = u32::MAX;

type Message = (Vec<u8>, BTreeMap<String, OwnedVariant>);

/// A queue that goes when its endpoint is closed, or the service ends.
async fn queue(client: &Client, parameters: &str) -> String {
    client.create(&format!("sysvmq:{parameters},remove-on-close")).await
}

async fn state(client: &Client, endpoint: &str, key: &str) -> i64 {
    let state: BTreeMap<String, OwnedVariant> =
        client.call(endpoint, "Endpoint", "Inspect", &()).await.expect("Inspect");
    integer(&state[key])
}

async fn send(client: &Client, path: &str, kind: i64, data: &[u8]) {
    client.send(path, data, options([("type", kind.into())])).await.expect("Send");
}

/// Type and bytes of the next message.
async fn receive(
    client: &Client,
    path: &str,
    selector: Options<'_>,
    timeout_ms: u32,
) -> Result<(i64, Vec<u8>), ipc_harness::CallError> {
    let received: Result<Message, _> =
        client.call(path, "Messages", "Receive", &(selector, timeout_ms)).await;
    received.map(|(data, attributes)| (integer(&attributes["type"]), data))
}

/// Asks and answers over one queue: each takes what has its own number as the type.
///
/// Proves: sysvmq create, read, write
async fn a_program_answers(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let queue = queue(&client, "key=random").await;
    let address = client.address(&queue).await;
    let key = address.strip_prefix("sysvmq:key=").expect("its key");
    let program = "import ctypes,os,struct,sys\nc=ctypes.CDLL(None,use_errno=True)\n\
        q=c.msgget(ctypes.c_int(int(sys.argv[1],16)),0)\n\
        b=ctypes.create_string_buffer(8200)\nprint('pid',os.getpid())\n\
        n=c.msgrcv(q,b,8192,ctypes.c_long(os.getpid()),0)\n\
        t,=struct.unpack('l',b.raw[:8])\n\
        ctypes.memmove(b,struct.pack('l',t+1),8)\nc.msgsnd(q,b,n,0)";
    let process = stage.python(program, &[key]);
    let line = process.wait_for(|line| line.starts_with("pid "));
    let pid: i64 = line["pid ".len()..].parse().expect("a pid");
    send(&client, &queue, pid + 7, b"for somebody else").await;
    send(&client, &queue, pid, b"question\0").await;
    let answer = receive(&client, &queue, options([("type", (pid + 1).into())]), DEFAULT).await;
    assert_eq!(answer, Ok((pid + 1, b"question\0".to_vec())));
    process.finish().success();
    assert_eq!(state(&client, &queue, "lspid").await, pid);
    assert_eq!(state(&client, &queue, "qnum").await, 1);
    assert_eq!(client.number(&queue, "Messages", "Depth").await, 1);
    assert_eq!(client.number(&queue, "Messages", "MaxMessageSize").await, 8192);
}

async fn browsing_and_purging(stage: Stage) {
    let client = stage.client().await;
    let queue = queue(&client, "key=private").await;
    for (kind, text) in [(3, "a"), (1, "b"), (3, "c"), (2, "d")] {
        send(&client, &queue, kind, text.as_bytes()).await;
    }
    let mut seen = Vec::new();
    for index in 0u64.. {
        let peeked: Result<Message, _> =
            client.call(&queue, "Messages", "Peek", &(options([("index", index.into())]), 0u32)).await;
        match peeked {
            Ok((data, attributes)) => seen.push((integer(&attributes["type"]), data)),
            Err(busy) => {
                assert_error(&busy, "Busy", &["peek at"]);
                break;
            }
        }
    }
    assert_eq!(seen, [(3, b"a".into()), (1, b"b".into()), (3, b"c".into()), (2, b"d".into())]);
    let purge = async |selector: Options<'_>| -> u64 {
        client.call(&queue, "Messages", "Purge", &(selector,)).await.expect("Purge")
    };
    assert_eq!(purge(options([("type", 3i64.into())])).await, 2);
    assert_eq!(receive(&client, &queue, options([("type", (-9i64).into())]), 0).await, Ok((1, b"b".into())));
    assert_eq!(purge(Options::new()).await, 1);
    assert_error(&error(receive(&client, &queue, Options::new(), 0).await), "Busy", &["receive from"]);
}

async fn errors_say_what_is_wrong(stage: Stage) {
    let client = stage.client().await;
    let queue = queue(&client, "key=private,qbytes=100").await;
    let refused = error(client.open(&queue, Options::new()).await);
    assert_error(&refused, "NotSupported", &["pipe", "deliver"]);
    let refused = error(client.send(&queue, b"x", options([("type", 0i64.into())])).await);
    assert_error(&refused, "InvalidArgument", &["above 0"]);
    let refused = error(client.send(&queue, b"x", options([("priority", 1u32.into())])).await);
    assert_error(&refused, "InvalidArgument", &["priority", "type"]);
    assert_error(
        &error(client.send(&queue, &[0; 101], Options::new()).await),
        "TooLarge",
        &["100", "qbytes"],
    );
    assert_error(
        &error(client.send(&queue, &[0; 9000], Options::new()).await),
        "TooLarge",
        &["8192", "msgmax"],
    );
    send(&client, &queue, 1, b"0123456789").await;
    let refused = error(receive(&client, &queue, options([("max-size", 3u32.into())]), 0).await);
    assert_error(&refused, "TooLarge", &["max-size", "E2BIG"]);
    let cut = options([("max-size", 3u32.into()), ("truncate", true.into())]);
    assert_eq!(receive(&client, &queue, cut, 0).await, Ok((1, b"012".into())));
    assert_error(
        &error(receive(&client, &queue, options([("type", 4i64.into())]), 50).await),
        "Timeout",
        &["50 ms"],
    );
    for (address, name, phrase) in [
        ("sysvmq:key=0", "InvalidArgument", "IPC_PRIVATE"),
        ("sysvmq:", "InvalidArgument", "missing"),
        ("sysvmq:key=private,mode=7777", "InvalidArgument", "0777"),
    ] {
        assert_error(&error(client.try_create(address, Options::new()).await), name, &[phrase]);
    }
    let missing = error(client.try_attach("sysvmq:id=2147483647", Options::new()).await);
    assert_error(&missing, "NotFound", &["2147483647"]);
    let key = options([("key", "0x7fffff01".into())]);
    assert_error(&error(client.try_attach("sysvmq:", key).await), "NotFound", &["0x7fffff01"]);
}

async fn removal_ends_every_wait(stage: Stage) {
    or_skip!(need_tool("ipcrm"));
    let client = stage.client().await;
    let queue = queue(&client, "key=private").await;
    let id = state(&client, &queue, "id").await;
    let waiting: Vec<_> = (1..=8i64)
        .map(|kind| {
            let (client, queue) = (client.clone(), queue.clone());
            tokio::spawn(
                async move { receive(&client, &queue, options([("type", kind.into())]), DEFAULT).await },
            )
        })
        .collect();
    client.used("waits", 8).await;
    stage.sh(&format!("ipcrm -q {id}")).finish().success();
    for waiting in waiting {
        assert_error(&error(waiting.await.expect("no panic")), "Gone", &["removed"]);
    }
    let gone = error(client.call::<(), _>(&queue, "Endpoint", "Remove", &()).await);
    assert_error(&gone, "Gone", &["removed"]);
}

/// Proves: sysvmq event
async fn messages_arrive_as_signals(stage: Stage) {
    let client = stage.client().await;
    let queue = queue(&client, "key=private").await;
    let id = state(&client, &queue, "id").await;
    let inbox = client.inbox().await;
    let notified = client.attach(&format!("sysvmq:id={id},notify")).await;
    send(&client, &queue, 4, b"it").await;
    inbox.until(|all| all.iter().any(|m| ipc_blackbox::is_signal(m, &notified, "Ready")).then_some(())).await;
    assert_eq!(state(&client, &queue, "qnum").await, 1, "Ready takes nothing");
    let delivered = client.attach(&format!("sysvmq:id={id},deliver")).await;
    type Received = (u64, Vec<u8>, BTreeMap<String, OwnedVariant>);
    let (_, data, attributes): Received = inbox
        .until(|all| {
            let found = all.iter().find(|m| ipc_blackbox::is_signal(m, &delivered, "Received"))?;
            Some(found.body().deserialize().expect("Received"))
        })
        .await;
    assert_eq!((integer(&attributes["type"]), data), (4, b"it".into()));
}

/// Proves: sysvmq relay
async fn a_queue_through_a_pipe(stage: Stage) {
    let client = stage.client().await;
    let (queue, pipe) = (queue(&client, "key=private").await, client.create("pipe:").await);
    client.relay(&queue, &pipe, options([("framing", "line".into())])).await;
    send(&client, &queue, 2, b"one").await;
    send(&client, &queue, 1, b"two").await;
    let mut text = String::new();
    while text.len() < 8 {
        text += &client.read_text(&pipe, 100, DEFAULT).await.expect("Read");
    }
    assert_eq!(text, "one\ntwo\n");
}

/// Proves: sysvmq permissions, list
async fn permissions_and_the_list(stage: Stage) {
    or_skip!(need_tool("ipcs"));
    let client = stage.client().await;
    let queue = queue(&client, "key=random,mode=0604").await;
    let id = state(&client, &queue, "id").await;
    let listed = || stage.sh("ipcs -q").finish().success();
    let line = |text: &str| {
        let of = |line: &&str| line.split_whitespace().nth(1) == Some(&id.to_string());
        text.lines().find(of).expect("ipcs lists it").to_owned()
    };
    assert_eq!(line(&listed()).split_whitespace().nth(3), Some("604"));
    let change = options([("mode", 0o640u32.into()), ("qbytes", 1000u64.into())]);
    client.call::<(), _>(&queue, "Endpoint", "SetPermissions", &(change,)).await.expect("SetPermissions");
    assert_eq!(line(&listed()).split_whitespace().nth(3), Some("640"));
    assert_eq!(client.number(&queue, "Messages", "MaxMessageSize").await, 1000);

    let node = "/org/example/IPC/sysvmq";
    let filter = options([("id", id.into())]);
    let rows: Vec<BTreeMap<String, OwnedVariant>> =
        client.call(node, "Mechanism", "List", &(filter,)).await.expect("List");
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((integer(&row["mode"]), integer(&row["qbytes"]), integer(&row["qnum"])), (0o640, 1000, 0));
    assert_eq!(String::try_from(row["address"].clone()), Ok(client.address(&queue).await));
    assert!(client.list("sysvmq").await.iter().any(|row| integer(&row["id"]) == id));
}

everywhere!(
    a_program_answers,
    browsing_and_purging,
    errors_say_what_is_wrong,
    removal_ends_every_wait,
    messages_arrive_as_signals,
    a_queue_through_a_pipe,
    permissions_and_the_list,
);

/// A list that no reply can carry is an error that says so, and a filter helps.
async fn a_list_that_is_too_large(stage: Stage) {
    let client = stage.client().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let queue = queue(&client, "key=private").await;
        ids.push(state(&client, &queue, "id").await);
    }
    let node = "/org/example/IPC/sysvmq";
    let list = async |filter: Options<'_>| {
        client.call::<Vec<BTreeMap<String, OwnedVariant>>, _>(node, "Mechanism", "List", &(filter,)).await
    };
    assert_error(&error(list(Options::new()).await), "TooLarge", &["4096", "(", "filter"]);
    assert_eq!(list(options([("id", ids[7].into())])).await.map(|rows| rows.len()), Ok(1));
}

mod with_a_small_list {
    use super::*;

    everywhere!(config = "[limits]\nlist = 4096\n"; a_list_that_is_too_large);
}
