//! Sockets for zbus: the byte stream between the front and a worker, which is D-Bus without a
//! handshake and of which zbus has none of its own; and the one to a message bus.
//!
//! zbus reads a message of up to 128 MiB from whoever sends it, and closes the file descriptors of one
//! that it cannot read. From a worker, which its user may have taken over, neither will do. And to zbus
//! a message that it cannot read is the end of the connection, while a bus passes on what it need not
//! understand. So `reader.rs` takes whole messages and looks at them first, and `handshake.rs` at the lines
//! before them; `wire.rs` has the system calls, of which there are as few as can be.

#![forbid(unsafe_code)]

use std::{io, os::fd::OwnedFd, sync::Arc};

use tokio::{net::UnixStream, sync::oneshot};
use zbus::connection::socket::{Socket, Split};

mod bus;
mod handshake;
mod message;
mod reader;
mod wire;

pub use bus::BusSocket;
pub use message::read;
pub use reader::{Reader, Take};
pub use wire::Writer;

use reader::Unreadable;
use wire::Wire;

/// Where descriptors go that nobody takes.
pub type Discard = Arc<dyn Fn(Vec<OwnedFd>) + Send + Sync>;

/// One end of the stream between front and worker. Both ends are one of these.
pub struct Stream {
    wire: Arc<Wire>,
    limit: usize,
    discard: Discard,
    gate: Option<oneshot::Receiver<()>>,
}

/// The other hand on a stream, see [`Stream::gated`].
#[derive(Debug)]
pub struct Handle {
    wire: Arc<Wire>,
    gate: Option<oneshot::Sender<()>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("wire", &self.wire).field("limit", &self.limit).finish()
    }
}

impl Stream {
    /// `limit`: the most bytes of a message; what is longer, or cannot be read, ends the stream.
    pub fn new(socket: OwnedFd, limit: usize, discard: Discard) -> io::Result<Self> {
        Ok(Self { wire: Arc::new(Wire::new(socket)?), limit, discard, gate: None })
    }

    /// Reading begins when the gate is opened: whoever serves objects puts all of them in place
    /// first, and no message finds a tree that is half there.
    pub fn gated(mut self) -> (Self, Handle) {
        let (open, gate) = oneshot::channel();
        self.gate = Some(gate);
        let handle = Handle { wire: self.wire.clone(), gate: Some(open) };
        (self, handle)
    }
}

impl Handle {
    /// Reading may begin.
    pub fn open(&mut self) {
        if let Some(gate) = self.gate.take() {
            // Fails only when the connection has ended.
            let _ = gate.send(());
        }
    }

    /// Ends the connection at once, also for whoever is writing to a peer that does not read.
    pub fn hang_up(&self) {
        // It may have ended by itself.
        let _ = self.wire.hang_up();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Socket for Stream {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let writer = Writer(self.wire.clone());
        let reader = Reader::new(self.wire, self.limit, Unreadable::Ends, self.discard, self.gate);
        Split::new(reader, writer)
    }
}

/// A connected pair for the two ends of a stream.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = std::os::unix::net::UnixStream::pair()?;
    Ok((one.into(), other.into()))
}

/// A Unix socket that the runtime waits for; of any type, for only its readiness is used.
pub fn watched(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
