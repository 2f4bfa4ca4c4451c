//! zbus clients, peer-to-peer connections, and the bound on what they await.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipc_harness::{Bus, NAME, PATH, connect, on_each_bus, peer, watchdog};
use zbus::connection::Builder;

/// The manager as far as `Connect()` goes; serves itself on the other end too.
struct Manager;

#[zbus::interface(name = "org.example.IPC")]
impl Manager {
    async fn connect(&self) -> zbus::fdo::Result<zbus::OwnedFd> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| zbus::fdo::Error::IOError(error.to_string()))?;
        tokio::spawn(async move {
            let guid = zbus::Guid::generate();
            let built = Builder::unix_stream(ours).server(guid).p2p().serve_at(PATH, Manager).build().await;
            built.expect("the other end").closed().await;
        });
        Ok(std::os::fd::OwnedFd::from(theirs).into())
    }

    fn greet(&self) -> &str {
        "hello"
    }
}

on_each_bus!(async a_peer_is_reached_without_the_bus);

async fn a_peer_is_reached_without_the_bus(bus: Bus) {
    let service = connect(&bus).await;
    service.object_server().at(PATH, Manager).await.expect("serving the manager");
    service.request_name(NAME).await.expect("the name");
    let peer = peer(&connect(&bus).await).await;
    assert!(!peer.is_bus());
    drop(bus);
    let reply = peer.call_method(None::<&str>, PATH, Some(NAME), "Greet", &()).await.expect("Greet()");
    assert_eq!(reply.body().deserialize::<String>().expect("a text"), "hello");
}

#[tokio::test]
#[should_panic(expected = "tests/harness/tests/client.rs:")]
async fn the_watchdog_names_the_wait() {
    watchdog(Duration::from_millis(1), std::future::pending::<()>()).await;
}
