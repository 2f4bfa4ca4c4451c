//! zbus clients for suites in Rust, and a bound for everything that they await.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::Location;
use std::time::Duration;

use zbus::Connection;
use zbus::connection::Builder;

use crate::{Address, NAME, PATH, patience};

/// A connection to this bus; panics when there is none. (A test's runtime is tokio's, with `net` and `time`.)
///
/// The tools of this crate block their thread. In a runtime of one thread a connection then does not answer, not
/// even a ping: run them through [`tokio::task::spawn_blocking`] where the service waits for the connection.
pub async fn connect(bus: &(impl Address + ?Sized)) -> Connection {
    let address = bus.address();
    let built = watchdog(patience(), Builder::address(address).build()).await;
    built.unwrap_or_else(|error| panic!("connecting to {address}: {error}"))
}

/// A peer-to-peer connection straight to the process that holds the caller's objects, from the manager's
/// `Connect()`; panics when it is refused.
pub async fn peer(connection: &Connection) -> Connection {
    peer_as(connection, rustix::process::geteuid().as_raw()).await
}

/// The same for a connection of another user.
pub async fn peer_as(connection: &Connection, uid: u32) -> Connection {
    let call = connection.call_method(Some(NAME), PATH, Some(NAME), "Connect", &());
    let reply = watchdog(patience(), call).await.unwrap_or_else(|error| panic!("Connect(): {error}"));
    let fd: zbus::OwnedFd = match reply.body().deserialize() {
        Ok(fd) => fd,
        Err(error) => panic!("Connect() returned no descriptor: {error}"),
    };
    let stream = UnixStream::from(OwnedFd::from(fd));
    let built = watchdog(patience(), Builder::unix_stream(stream).user_id(uid).p2p().build()).await;
    built.unwrap_or_else(|error| panic!("talking to what Connect() returned: {error}"))
}

/// The future's result, or a panic that names the caller when it takes longer than the bound: no test hangs.
#[track_caller]
pub fn watchdog<F: Future>(bound: Duration, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match tokio::time::timeout(bound, future).await {
            Ok(output) => output,
            Err(_) => panic!("the wait at {caller} did not end within {bound:?}"),
        }
    }
}
