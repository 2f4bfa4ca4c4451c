//! A connected unix socket between two processes that trust its origin, so that they speak D-Bus
//! on it from the first byte: no authentication. zbus has no such socket of its own that carries
//! file descriptors; this one hands bytes and descriptors to the kernel layer.
//!
//! Reading begins when the gate is opened: whoever serves objects puts all of them in place first,
//! and no message finds a tree that is half there.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net,
    },
    sync::Arc,
};

use ipc_kernel::{fd, socket_io};
use tokio::{io::Interest, net::UnixStream, sync::oneshot};
use zbus::{
    connection::socket::{ReadHalf, Socket, Split, WriteHalf},
    export::async_trait::async_trait,
};

/// The socket, for [`zbus::connection::Builder::authenticated_socket`].
#[derive(Debug)]
pub struct PeerSocket {
    socket: Arc<UnixStream>,
    gate: oneshot::Receiver<()>,
}

/// The other hand on the socket.
#[derive(Debug)]
pub struct Handle {
    socket: Arc<UnixStream>,
    gate: Option<oneshot::Sender<()>>,
}

impl PeerSocket {
    /// Needs a tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<(Self, Handle)> {
        fd::set_nonblocking(socket.as_fd()).map_err(io::Error::other)?;
        let socket = Arc::new(UnixStream::from_std(net::UnixStream::from(socket))?);
        let (open, gate) = oneshot::channel();
        Ok((Self { socket: socket.clone(), gate }, Handle { socket, gate: Some(open) }))
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
        let _ = socket_io::hang_up(&*self.socket);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Socket for PeerSocket {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        Split::new(
            Reader { socket: self.socket.clone(), gate: Some(self.gate) },
            Writer { socket: self.socket },
        )
    }
}

#[derive(Debug)]
pub struct Reader {
    socket: Arc<UnixStream>,
    gate: Option<oneshot::Receiver<()>>,
}

#[async_trait]
impl ReadHalf for Reader {
    /// zbus asks for the head of a message, then for the rest of it, never for more: so the file
    /// descriptors that come with the bytes are the message's.
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if let Some(gate) = self.gate.take() {
            // Nobody will open it: the connection was given up.
            gate.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        }
        let socket = &*self.socket;
        socket.async_io(Interest::READABLE, || socket_io::receive_bytes(socket, buffer)).await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

#[derive(Debug)]
pub struct Writer {
    socket: Arc<UnixStream>,
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let socket = &*self.socket;
        socket.async_io(Interest::WRITABLE, || socket_io::send_bytes(socket, buffer, fds)).await
    }

    async fn close(&mut self) -> io::Result<()> {
        socket_io::hang_up(&*self.socket)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}
