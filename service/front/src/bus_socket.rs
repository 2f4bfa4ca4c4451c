//! The socket to the message bus: one odd message does not end it.
//!
//! To zbus a message that it cannot read is the end of the connection. But a bus passes on what it
//! cannot know the meaning of, such as a header field of a later version of the protocol, as the
//! specification asks; and dbus-broker does so with the front. Anybody could end the front with that.
//! So this reader takes whole messages, and leaves out those that zbus does not read. Who sent one
//! gets no answer: what cannot be read says neither whose nor which call it is.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr},
    },
    sync::Arc,
};

use ipc_stream::{HEADER, Writer, length, read, receive, rehearse, watched};
use tokio::{io::Interest, net::UnixStream};
use zbus::{
    Address,
    address::{Transport, transport::UnixSocket},
    connection::socket::{ReadHalf, Socket, Split},
    export::async_trait::async_trait,
    message::Message,
};

use crate::closer::Closer;

/// The longest message of the specification.
const LONGEST: usize = 128 << 20;

/// A socket to a bus, not authenticated yet: zbus does that.
#[derive(Debug)]
pub struct BusSocket(Arc<UnixStream>);

impl BusSocket {
    /// None: it is no address of a Unix socket.
    pub fn connect(address: &Address) -> io::Result<Option<Self>> {
        let Transport::Unix(unix) = address.transport() else { return Ok(None) };
        let name = match unix.path() {
            UnixSocket::File(path) => SocketAddr::from_pathname(path)?,
            UnixSocket::Abstract(name) => SocketAddr::from_abstract_name(OsStr::as_bytes(name))?,
            _ => return Ok(None),
        };
        let socket = std::os::unix::net::UnixStream::connect_addr(&name)?;
        Ok(Some(Self(Arc::new(watched(socket.into())?))))
    }
}

impl Socket for BusSocket {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        Split::new(Reader { socket: self.0.clone(), closer: Closer::new() }, Writer(self.0))
    }
}

pub struct Reader {
    socket: Arc<UnixStream>,
    /// Of the descriptors of what is left out.
    closer: Arc<Closer>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Reader {
    /// Fills `bytes`, first from what the handshake read too much. A message is read in two steps,
    /// so that all descriptors that come meanwhile are its own.
    async fn fill(
        &mut self,
        mut bytes: &mut [u8],
        early: &mut Vec<u8>,
        fds: &mut Vec<OwnedFd>,
    ) -> io::Result<()> {
        let count = early.len().min(bytes.len());
        let (start, rest) = bytes.split_at_mut(count);
        start.copy_from_slice(&early[..count]);
        early.drain(..count);
        bytes = rest;
        while !bytes.is_empty() {
            let (read, came) = self.recvmsg(bytes).await?;
            fds.extend(came);
            bytes = &mut bytes[read..];
        }
        Ok(())
    }

    async fn whole(&mut self, early: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; HEADER];
        self.fill(&mut bytes, early, fds).await?;
        let length = length(&bytes)?.unwrap_or(HEADER);
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of more than 128 MiB"));
        }
        bytes.resize(length, 0);
        self.fill(&mut bytes[HEADER..], early, fds).await?;
        Ok(bytes)
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn receive_message(
        &mut self,
        seq: u64,
        early: &mut Vec<u8>,
        early_fds: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        loop {
            let mut fds = std::mem::take(early_fds);
            let bytes = self.whole(early, &mut fds).await?;
            let rehearsed = match fds.len() {
                0 => Ok(()),
                count => rehearse(&bytes, count, &self.socket).await.map(drop),
            };
            let error = match rehearsed {
                Ok(()) => match read(bytes, fds, seq).await {
                    Ok(message) => return Ok(message),
                    Err(error) => error,
                },
                Err(error) => {
                    self.closer.close(None, Box::new(fds));
                    error
                }
            };
            // Not louder: whoever likes to may cause it.
            tracing::debug!("a message from the bus was left out: {error}");
        }
    }

    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let socket = &*self.socket;
        socket.async_io(Interest::READABLE, || receive(socket.as_fd(), buffer)).await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}
