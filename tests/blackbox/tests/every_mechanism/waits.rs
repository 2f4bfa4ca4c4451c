//! Calls that wait: refused at once without time, over when their time is, and done when something happens.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, options};
use ipc_harness::{CallError, unique};
use zbus::message::Message;

use crate::{DEFAULT, inspect};

/// That a call waits, with its timeout as an argument; `happens` is what it waits for.
async fn ends(
    client: &Client,
    call: impl AsyncFn(u32) -> Result<Message, CallError>,
    happens: impl AsyncFnOnce(),
) {
    assert_error(&error(call(0).await), "Busy", &["without waiting"]);
    assert_error(&error(call(30).await), "Timeout", &["within 30 ms"]);
    let then = async {
        client.used("waits", 1).await;
        happens().await;
    };
    let (done, ()) = tokio::join!(call(DEFAULT), then);
    done.expect("what was waited for has come");
    client.used("waits", 0).await;
}

/// Proves: pipe wait
/// Proves: fifo wait
async fn for_bytes(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let path = dir.path().join("fifo");
    for endpoint in
        [client.create("pipe:").await, client.create(&format!("fifo:path={}", path.display())).await]
    {
        let read = async |timeout: u32| client.reply(&endpoint, "Stream", "Read", &(9u32, timeout)).await;
        let write = async || {
            if endpoint.contains("/fifo/") {
                stage.sh(&format!("echo bell > '{}'", path.display())).finish().success();
            } else {
                client.write(&endpoint, b"bell", DEFAULT).await.expect("Write");
            }
        };
        ends(&client, read, write).await;
    }
}

/// Proves: sysvmq wait
/// Proves: posixmq wait
/// Proves: netlink create, read, write, wait
async fn for_messages(stage: Stage) {
    let client = stage.client().await;
    let sender = client.create("netlink:family=usersock").await;
    for address in [
        "sysvmq:key=private,remove-on-close".to_owned(),
        format!("posixmq:name=/{},remove-on-close", unique("waits")),
        "netlink:family=usersock".to_owned(),
    ] {
        let endpoint = client.create(&address).await;
        let receive = async |timeout: u32| {
            client.reply(&endpoint, "Messages", "Receive", &(Options::new(), timeout)).await
        };
        let send = async || match address.starts_with("netlink:") {
            true => {
                let port = (*inspect(&client, &endpoint).await["port"]).try_clone().expect("a number");
                client.send(&sender, b"bell", options([("port", port)])).await.expect("Send");
            }
            false => client.send(&endpoint, b"bell", Options::new()).await.expect("Send"),
        };
        ends(&client, receive, send).await;
    }
}

/// Proves: sysvsem write, wait
/// Proves: posixsem write, wait
async fn for_a_unit(stage: Stage) {
    let client = stage.client().await;
    for address in [
        "sysvsem:key=private,values=0,remove-on-close".to_owned(),
        format!("posixsem:name=/{},value=0,remove-on-close", unique("waits")),
    ] {
        let endpoint = client.create(&address).await;
        let wait = async |timeout: u32| client.reply(&endpoint, "Semaphore", "Wait", &(timeout,)).await;
        let post =
            async || client.call::<(), _>(&endpoint, "Semaphore", "Post", &(1u32,)).await.expect("Post");
        ends(&client, wait, post).await;
        assert_eq!(client.number(&endpoint, "Semaphore", "Value").await, 0, "it was taken");
    }
}

/// Proves: futex wait
async fn for_a_wake_up(stage: Stage) {
    let client = stage.client().await;
    let futex = client.create("futex:value=3").await;
    let wait = async |timeout: u32| client.reply(&futex, "Futex", "Wait", &(3u32, timeout)).await;
    let wake = async || {
        // First the value, as everybody does who wakes: nobody knows when a waiter sleeps.
        client.call::<(), _>(&futex, "Futex", "Store", &(4u32,)).await.expect("Store");
        client.call::<u32, _>(&futex, "Futex", "Wake", &(u32::MAX,)).await.expect("Wake");
    };
    ends(&client, wait, wake).await;
}

/// Proves: unix wait
/// Proves: inet wait
async fn for_connections(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let path = dir.path().join("socket");
    let unix = client.create(&format!("unix:path={}", path.display())).await;
    let accept = async |timeout: u32| client.reply(&unix, "Listener", "Accept", &(timeout,)).await;
    let connect = async || drop(UnixStream::connect(&path).expect("connecting"));
    ends(&client, accept, connect).await;
    let inet = client.create("tcp:host=127.0.0.1,port=0").await;
    let address = client.address(&inet).await;
    let port: u16 = address.rsplit_once("port=").expect("a port").1.parse().expect("its number");
    let accept = async |timeout: u32| client.reply(&inet, "Listener", "Accept", &(timeout,)).await;
    let connect = async || drop(TcpStream::connect(("127.0.0.1", port)).expect("connecting"));
    ends(&client, accept, connect).await;
}

/// Proves: signal wait
async fn for_the_end_of_a_process(stage: Stage) {
    let client = stage.client().await;
    let mut process = stage.sh("exec cat");
    let endpoint = client.attach(&format!("signal:pid={}", process.pid())).await;
    let wait = async |timeout: u32| client.reply(&endpoint, "Process", "WaitExit", &(timeout,)).await;
    ends(&client, wait, async || process.close_stdin()).await;
}

/// Proves: inotify wait
async fn for_events(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let watch = client.create(&format!("inotify:path={},events=create", dir.path().display())).await;
    let wait = async |timeout: u32| client.reply(&watch, "Watch", "WaitSince", &(0u64, timeout)).await;
    let touch = async || drop(stage.sh(&format!("touch '{}/bell'", dir.path().display())).finish().success());
    ends(&client, wait, touch).await;
}

everywhere!(
    for_bytes,
    for_messages,
    for_a_unit,
    for_a_wake_up,
    for_connections,
    for_the_end_of_a_process,
    for_events,
);
