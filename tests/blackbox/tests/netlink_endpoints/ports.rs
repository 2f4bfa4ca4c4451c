//! Family usersock: ports of processes, and broadcast between them.

use ipc_blackbox::{Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::python;

use super::{inspect, number, text};

/// A port of the family of its own; what comes is answered to whom it came from.
const PEER: &str = "
import os, socket, sys
peer = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)
peer.bind((0, 0))
print(peer.getsockname()[0], os.getuid(), flush=True)
for line in sys.stdin:
    if line.strip() == 'answer':
        data, sender = peer.recvfrom(65536)
        peer.sendto(b'you said ' + data, sender)
    else: peer.sendto(b'hello', (int(line), 0))
";

/// Proves: netlink create, attach, read, write
async fn processes_talk(stage: Stage) {
    let client = stage.client().await;
    let mut peer = stage.python(PEER, &[]);
    let said = peer.wait_for(|line| line.contains(' '));
    let said: Vec<i64> = said.split(' ').map(|word| word.parse().expect("a number")).collect();
    let port = client.create("netlink:family=usersock").await;
    let own = number(&inspect(&client, &port).await, "port");
    peer.write(format!("{own}\n"));
    let (data, attributes) = client.receive(&port, 10_000).await.expect("Receive");
    assert_eq!(data, b"hello");
    assert_eq!((number(&attributes, "sender-port"), number(&attributes, "sender-uid")), (said[0], said[1]));
    assert_eq!(number(&attributes, "sender-pid"), i64::from(peer.pid()));
    assert!(!attributes.contains_key("group"));
    // Addressed, and connected.
    peer.write("answer\n");
    let to = options([("port", u32::try_from(said[0]).expect("a port").into())]);
    client.send(&port, b"one", to).await.expect("Send");
    assert_eq!(client.receive(&port, 10_000).await.expect("Receive").0, b"you said one");
    let connected = client.attach(&format!("netlink:family=usersock,port={}", said[0])).await;
    peer.write("answer\n");
    client.send(&connected, b"two", Options::new()).await.expect("Send");
    assert_eq!(client.receive(&connected, 10_000).await.expect("Receive").0, b"you said two");
    // Connected, it hears nobody else.
    let to = options([(
        "port",
        u32::try_from(number(&inspect(&client, &connected).await, "port")).expect("a port").into(),
    )]);
    assert_error(&error(client.send(&port, b"three", to).await), "NotFound", &["ECONNREFUSED"]);
    peer.finish().success();
    assert_error(&error(client.send(&connected, b"four", Options::new()).await), "Closed", &["ECONNREFUSED"]);
}

/// Root's listener in a group, in Python; whoever is allowed to by the kernel sends: everybody.
async fn broadcasts_reach_the_group(stage: Stage) {
    const LISTENER: &str = "
import socket
listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)
listener.bind((0, 0))
listener.setsockopt(270, 1, 5)
print('listens', flush=True)
print(listener.recv(65536).decode(), flush=True)
";
    let client = stage.client().await;
    let listener = python(LISTENER, &[]);
    listener.wait_for(|line| line == "listens");
    let sender = client.create("netlink:family=usersock").await;
    client.send(&sender, b"to nobody", options([("group", 6_u32.into())])).await.expect("nobody listens");
    let to_five = || options([("group", "5".into())]);
    if stage.way == Way::System {
        client.send(&sender, b"to all", to_five()).await.expect("Send");
        listener.wait_for(|line| line == "to all");
        return;
    }
    let members = [
        client.create("netlink:family=usersock,groups=5").await,
        client.create_with("netlink:family=usersock", options([("groups", vec!["5", "6"].into())])).await,
    ];
    client.send(&sender, b"to all", to_five()).await.expect("Send");
    listener.wait_for(|line| line == "to all");
    for member in &members {
        let (data, attributes) = client.receive(member, 10_000).await.expect("Receive");
        assert_eq!((&data[..], text(&attributes, "group")), (&b"to all"[..], "5".into()));
    }
    // A member does not hear itself.
    client.send(&members[0], b"to others", to_five()).await.expect("Send");
    assert_eq!(client.receive(&members[1], 10_000).await.expect("Receive").0, b"to others");
    assert_error(&error(client.receive(&members[0], 0).await), "Busy", &[]);
}

everywhere!(isolated; processes_talk, broadcasts_reach_the_group);
