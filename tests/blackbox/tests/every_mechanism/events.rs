//! What happens arrives as a signal of the bus, without a call that waits.

use std::net::{TcpStream, UdpSocket};

use ipc_blackbox::{Stage, everywhere, options};
use ipc_harness::unique;
use zbus::{OwnedObjectPath, Variant};

use crate::{DEFAULT, Row};

/// Bytes that a shell writes.
///
/// Proves: fifo event
async fn bytes_of_a_fifo(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let path = dir.path().join("fifo");
    let fifo = client.create(&format!("fifo:path={},deliver", path.display())).await;
    stage.sh(&format!("printf bell > '{}'", path.display())).finish().success();
    let (seq, data): (u64, Vec<u8>) =
        inbox.signal(&fifo, "Received").await.body().deserialize().expect("Received");
    assert_eq!((seq, &data[..]), (1, &b"bell"[..]));
}

/// Connections and datagrams from the network.
///
/// Proves: inet read, write, event
async fn connections_and_datagrams(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let port = |address: String| -> u16 {
        address.rsplit_once("port=").expect("a port").1.parse().expect("its number")
    };
    let listener = client.create("tcp:host=127.0.0.1,port=0,accept").await;
    let mut there =
        TcpStream::connect(("127.0.0.1", port(client.address(&listener).await))).expect("connecting");
    let accepted = inbox.signal(&listener, "Accepted").await;
    let (_, connection): (u64, OwnedObjectPath) = accepted.body().deserialize().expect("Accepted");
    std::io::Write::write_all(&mut there, b"question").expect("writing");
    assert_eq!(client.read(connection.as_str(), 99, DEFAULT).await.as_deref(), Ok(&b"question"[..]));
    client.write(connection.as_str(), b"answer", DEFAULT).await.expect("Write");
    let mut data = [0; 6];
    std::io::Read::read_exact(&mut there, &mut data).expect("reading");
    assert_eq!(&data, b"answer");

    let receiver = client.create("udp:host=127.0.0.1,port=0,deliver").await;
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    sender.send_to(b"datagram", ("127.0.0.1", port(client.address(&receiver).await))).expect("sending");
    let received = inbox.signal(&receiver, "Received").await;
    let (_, data, _): (u64, Vec<u8>, Row) = received.body().deserialize().expect("Received");
    assert_eq!(data, b"datagram");
}

/// Stores of others into a range that is watched.
///
/// Proves: posixshm read, write, event
/// Proves: sysvshm read, write, event
async fn stores_into_memory(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    for address in [
        format!("posixshm:name=/{},size=4096,remove-on-close", unique("events")),
        "sysvshm:key=random,size=4096,remove-on-close".to_owned(),
    ] {
        let memory = client.create(&address).await;
        let other = client.attach(&client.address(&memory).await).await;
        let every = options([("interval-ms", 10u32.into())]);
        let watch: u32 =
            client.call(&memory, "Memory", "WatchRange", &(64u64, 16u64, every)).await.expect("WatchRange");
        client
            .call::<(), _>(&other, "Memory", "Store", &(68u64, Variant::U32(0x0101_0101)))
            .await
            .expect("Store");
        let changed: (u64, u32, u64, u64) =
            inbox.signal(&memory, "Changed").await.body().deserialize().expect("Changed");
        assert_eq!(changed, (1, watch, 68, 4), "{address}");
        let read: Vec<u8> = client.call(&memory, "Memory", "Read", &(68u64, 4u64)).await.expect("Read");
        assert_eq!(read, [1; 4]);
    }
}

everywhere!(bytes_of_a_fifo, connections_and_datagrams, stores_into_memory);
