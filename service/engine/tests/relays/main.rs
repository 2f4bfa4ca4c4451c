//! Relays, end to end: real kernel objects, whose far ends are read and written by threads with
//! plain system calls.
#![allow(clippy::unwrap_used)]

mod datagrams;
mod fan;
mod flow;
mod framed;
mod merge;
mod rate;
mod reconnect;
mod rights;
mod shapes;
mod skip;
mod streams;
mod tee;
mod verbs;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use ipc_engine::{
    Call, Endpoint, Engine, Limits, Relay,
    relay::{Finished, State},
};
use ipc_kernel::{Dict, Error, dict};

/// Long enough for a loaded machine; nothing in a passing test waits for it.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// An engine and a caller.
struct World {
    engine: Arc<Engine>,
    call: Call,
}

impl World {
    fn new() -> Self {
        Self::with(Limits { relays: 1024, endpoints: 4096, ..Limits::default() })
    }

    fn with(limits: Limits) -> Self {
        let engine = Engine::new(limits);
        let call = engine.admit(engine.clients.get(":1.1")).unwrap();
        Self { engine, call }
    }

    async fn adopt(&self, fd: impl Into<OwnedFd>) -> Arc<Endpoint> {
        self.engine.adopt(&self.call, fd.into(), Dict::new()).await.unwrap()
    }

    async fn create(&self, address: &str) -> Arc<Endpoint> {
        self.engine.create(&self.call, address, Dict::new()).await.unwrap()
    }

    /// An endpoint that reads what is written into the fd.
    async fn pipe_source(&self) -> (Arc<Endpoint>, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (self.adopt(reader).await, writer)
    }

    /// An endpoint whose bytes come out of the fd.
    async fn pipe_sink(&self) -> (Arc<Endpoint>, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (self.adopt(writer).await, reader)
    }

    /// A packet pipe, which carries messages.
    async fn packet_sink(&self) -> (Arc<Endpoint>, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::DIRECT).unwrap();
        (self.adopt(writer).await, reader)
    }

    /// A connected unix stream socket, and its peer.
    async fn unix(&self) -> (Arc<Endpoint>, OwnedFd) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        (self.adopt(ours).await, theirs.into())
    }

    async fn tcp(&self) -> (Arc<Endpoint>, OwnedFd) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        (self.adopt(ours).await, theirs.into())
    }

    /// The source of that kind: pipe, unix or tcp.
    async fn source(&self, kind: &str) -> (Arc<Endpoint>, OwnedFd) {
        match kind {
            "pipe" => self.pipe_source().await,
            "unix" => self.unix().await,
            _ => self.tcp().await,
        }
    }

    /// The sink of that kind, likewise.
    async fn sink(&self, kind: &str) -> (Arc<Endpoint>, OwnedFd) {
        match kind {
            "pipe" => self.pipe_sink().await,
            "unix" => self.unix().await,
            _ => self.tcp().await,
        }
    }

    /// What is in the news is still there.
    async fn take_news(&self) {
        while !self.engine.news_are_out() {
            self.engine.next_news().await;
        }
    }

    async fn relay(
        &self,
        source: &Arc<Endpoint>,
        sink: &Arc<Endpoint>,
        options: Dict,
    ) -> Result<Arc<Relay>, Error> {
        self.engine.start_relay(&self.call, source.clone(), sink.clone(), options).await
    }
}

/// Writes it all from a thread, then closes.
fn feed(fd: OwnedFd, data: Vec<u8>, piece: usize) -> tokio::task::JoinHandle<std::io::Result<()>> {
    tokio::task::spawn_blocking(move || {
        let mut file = File::from(fd);
        data.chunks(piece).try_for_each(|piece| file.write_all(piece))
    })
}

/// Reads to the end from a thread.
fn drain(fd: OwnedFd) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut data = Vec::new();
        File::from(fd).read_to_end(&mut data).unwrap();
        data
    })
}

/// Reads so many bytes from a thread.
fn read_exactly(fd: &OwnedFd, length: usize) -> tokio::task::JoinHandle<Vec<u8>> {
    let mut file = File::from(fd.try_clone().unwrap());
    tokio::task::spawn_blocking(move || {
        let mut data = vec![0; length];
        file.read_exact(&mut data).unwrap();
        data
    })
}

fn write(fd: impl AsFd, data: &[u8]) {
    assert_eq!(rustix::io::write(fd, data).unwrap(), data.len());
}

async fn ended(relay: &Relay) -> Finished {
    relay.ended.wait().await;
    relay.finished().unwrap().clone()
}

/// Runs the service until the condition holds, which has no event: each look is a turn of all tasks.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let held = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, held).await.is_ok(), "in vain: {what}");
}

/// A relay beside the one that is tested, to show what that one does *not* do: the tests' runtime
/// has one thread and serves what is ready in its order, so when a byte that was written later has
/// come through here, whatever the other relay could do it has done.
struct Witness {
    _relay: Arc<Relay>,
    input: OwnedFd,
    output: OwnedFd,
}

impl Witness {
    async fn new(world: &World) -> Self {
        let ((source, input), (sink, output)) = (world.unix().await, world.unix().await);
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        Self { _relay: relay, input, output }
    }

    async fn turn(&self) {
        write(&self.input, b"!");
        read_exactly(&self.output, 1).await.unwrap();
    }
}

/// Bytes that look like nothing, the same in every run (xorshift64).
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        data.extend_from_slice(&next().to_ne_bytes());
    }
    data.truncate(length);
    data
}

fn ends_well(finished: &Finished) {
    assert_eq!((finished.reason.as_str(), finished.failed), ("end of stream", false));
}

fn both() -> Dict {
    dict! { "both" => true }
}

fn running(relay: &Relay) {
    assert_eq!(relay.state(), State::Running, "{:?}", relay.finished());
}
