//! Relays whose source is neither a socket nor a pipe, and what other suites do not have.

use ipc_blackbox::{Client, Options, Stage, everywhere, options};
use ipc_harness::unique;

use crate::{DEFAULT, inspect};

/// What comes out of the pipe, up to this many bytes.
async fn read(client: &Client, pipe: &str, length: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < length {
        data.extend(client.read(pipe, (length - data.len()) as u32, DEFAULT).await.expect("Read"));
    }
    data
}

/// Each message is a line.
///
/// Proves: posixmq create, read, write, relay
/// Proves: netlink relay
async fn messages_become_lines(stage: Stage) {
    let client = stage.client().await;
    let name = unique("relay");
    let queue = client.create(&format!("posixmq:name=/{name},remove-on-close")).await;
    let port = client.create("netlink:family=usersock").await;
    let own = (*inspect(&client, &port).await["port"]).try_clone().expect("a number");
    let sender = client.create("netlink:family=usersock").await;
    for source in [&queue, &port] {
        let pipe = client.create("pipe:").await;
        client.relay(source, &pipe, options([("framing", "line".into())])).await;
        for word in ["one", "two"] {
            let (to, attributes) = match source == &queue {
                true => (&queue, Options::new()),
                false => (&sender, options([("port", own.try_clone().expect("a number"))])),
            };
            client.send(to, word.as_bytes(), attributes).await.expect("Send");
        }
        assert_eq!(read(&client, &pipe, 8).await, b"one\ntwo\n", "{source}");
    }
    // And lines become messages.
    let pipe = client.create("pipe:").await;
    let sink = client.create(&format!("posixmq:name=/{name}-sink,remove-on-close")).await;
    client.relay(&pipe, &sink, options([("framing", "line".into())])).await;
    client.write(&pipe, b"three\n", DEFAULT).await.expect("Write");
    assert_eq!(client.receive(&sink, DEFAULT).await.expect("Receive").0, b"three");
}

/// All that is there, then the end; and into memory, from its start.
///
/// Proves: mmap create, read, write, relay
/// Proves: posixshm relay
async fn memory_is_moved(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    for address in
        ["mmap:size=6".to_owned(), format!("posixshm:name=/{},size=6,remove-on-close", unique("relay"))]
    {
        let memory = client.create(&address).await;
        client.call::<(), _>(&memory, "Memory", "WriteText", &(0u64, "memory")).await.expect("WriteText");
        let pipe = client.create("pipe:").await;
        let relay = client.relay(&memory, &pipe, Options::new()).await;
        assert_eq!(read(&client, &pipe, 6).await, b"memory", "{address}");
        let (reason, bytes, _): (String, u64, u64) =
            inbox.signal(&relay, "Finished").await.body().deserialize().expect("Finished");
        assert_eq!((reason.as_str(), bytes), ("end of stream", 6));
        let pipe = client.create("pipe:").await;
        let relay = client.relay(&pipe, &memory, Options::new()).await;
        client.write(&pipe, b"stream", DEFAULT).await.expect("Write");
        client.call::<(), _>(&pipe, "Stream", "Shutdown", &("write",)).await.expect("Shutdown");
        inbox.signal(&relay, "Finished").await;
        let text: String = client.call(&memory, "Memory", "ReadText", &(0u64, 6u64)).await.expect("ReadText");
        assert_eq!(text, "stream", "{address}");
    }
}

everywhere!(messages_become_lines, memory_is_moved);
