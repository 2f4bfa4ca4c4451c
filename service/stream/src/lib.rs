//! The byte stream between the front and a worker, as a socket for zbus: D-Bus without a handshake,
//! with file descriptors. zbus has no such socket of its own. Both ends are one of these.
//!
//! zbus reads a message of up to 128 MiB from whoever sends it, and closes the file descriptors of one
//! that it cannot read. From a worker, which its user may have taken over, neither will do. So this
//! reader looks at the sizes before it takes memory, and when there are descriptors it tries the
//! message with stand-ins first: what zbus then gets with the real ones is known to be readable, and
//! everything else goes to whoever can afford to close it.
//!
//! A read that did not fill the buffer has emptied the socket, unless it stopped behind descriptors:
//! the next one waits for news instead of asking the kernel in vain.

#![forbid(unsafe_code)]

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::{self, MaybeUninit},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::{io::Interest, net::UnixStream, sync::oneshot};
use zbus::{
    connection::socket::{ReadHalf, Socket, Split, WriteHalf},
    export::async_trait::async_trait,
    message::Message,
};

/// What is read ahead; a larger message gets room of its own.
const BUFFER: usize = 4096;

/// So many messages go in one write.
const BATCH: usize = 64;

/// The first bytes of a message, which tell its length.
pub const HEADER: usize = 16;

/// The most descriptors of one message that the kernel passes (SCM_MAX_FD).
const FDS: usize = 253;

/// Where descriptors go that nobody takes.
pub type Discard = Arc<dyn Fn(Vec<OwnedFd>) + Send + Sync>;

/// One end of the stream.
pub struct Stream {
    socket: Arc<UnixStream>,
    limit: usize,
    discard: Discard,
    gate: Option<oneshot::Receiver<()>>,
}

/// The other hand on a stream, see [`Stream::gated`].
#[derive(Debug)]
pub struct Handle {
    socket: Arc<UnixStream>,
    gate: Option<oneshot::Sender<()>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("socket", &self.socket).field("limit", &self.limit).finish()
    }
}

impl Stream {
    /// `limit`: the most bytes of a message; what is longer ends the stream.
    pub fn new(socket: OwnedFd, limit: usize, discard: Discard) -> io::Result<Self> {
        Ok(Self { socket: Arc::new(watched(socket)?), limit, discard, gate: None })
    }

    /// Reading begins when the gate is opened: whoever serves objects puts all of them in place
    /// first, and no message finds a tree that is half there.
    pub fn gated(mut self) -> (Self, Handle) {
        let (open, gate) = oneshot::channel();
        self.gate = Some(gate);
        let handle = Handle { socket: self.socket.clone(), gate: Some(open) };
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
        let _ = hang_up(&self.socket);
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
        let writer = Writer(self.socket.clone());
        let reader = Reader {
            socket: self.socket,
            limit: self.limit,
            discard: self.discard,
            gate: self.gate,
            drained: false,
            input: Input::default(),
            fds: Vec::new(),
        };
        Split::new(reader, writer)
    }
}

pub struct Reader {
    socket: Arc<UnixStream>,
    limit: usize,
    discard: Discard,
    gate: Option<oneshot::Receiver<()>>,
    /// Nothing was there any more after the last read.
    drained: bool,
    input: Input,
    /// Came with what was read, and no message has taken them yet.
    fds: Vec<OwnedFd>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("socket", &self.socket).field("limit", &self.limit).finish()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.fds.is_empty() {
            (self.discard)(mem::take(&mut self.fds));
        }
    }
}

impl Reader {
    /// The next message, for who reads without a connection of zbus. Its body is not validated.
    pub async fn next(&mut self) -> zbus::Result<Message> {
        self.receive_message(0, &mut Vec::new(), &mut Vec::new()).await
    }

    /// Reads until a whole message is there; its length.
    async fn whole(&mut self) -> io::Result<usize> {
        loop {
            let length = length(self.input.unread())?;
            if let Some(length) = length {
                if length > self.limit {
                    return Err(bad(format!("a message of {length} bytes; the limit is {}", self.limit)));
                }
                if self.input.unread().len() >= length {
                    return Ok(length);
                }
            }
            self.fill(length.unwrap_or(HEADER)).await?;
        }
    }

    async fn fill(&mut self, length: usize) -> io::Result<()> {
        let room = self.input.room(length);
        let size = room.len();
        let socket = &*self.socket;
        if mem::take(&mut self.drained) {
            // Forgets the readiness that this read has used up; an end of the stream is remembered.
            let _ =
                socket.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
        }
        let (read, fds) = socket.async_io(Interest::READABLE, || receive(socket, room)).await?;
        self.drained = read < size && fds.is_empty();
        self.input.end += read;
        if !fds.is_empty() {
            self.fds.extend(fds);
            // Those of one message that is not whole yet, and of the next one.
            if self.fds.len() > 2 * FDS {
                return Err(bad("more file descriptors than any message has".to_owned()));
            }
        }
        Ok(())
    }

    /// How many of the waiting descriptors belong to the first message, which is known to be
    /// readable with them.
    async fn count_fds(&mut self, length: usize) -> zbus::Result<usize> {
        let message = rehearse(&self.input.unread()[..length], self.fds.len(), &self.socket).await?;
        Ok(message.header().unix_fds().unwrap_or(0) as usize)
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn receive_message(
        &mut self,
        seq: u64,
        _received: &mut Vec<u8>,
        _fds: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        if let Some(gate) = self.gate.take() {
            // Nobody will open it: the connection was given up.
            gate.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        }
        let length = self.whole().await?;
        if !self.fds.is_empty() {
            let count = self.count_fds(length).await?;
            self.input.fds = self.fds.drain(..count.min(self.fds.len())).collect();
        }
        self.input.receive_message(seq, &mut Vec::new(), &mut Vec::new()).await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// Reads a message with stand-ins for its descriptors: zbus closes those of one that it cannot read.
pub async fn rehearse(bytes: &[u8], fds: usize, socket: &UnixStream) -> zbus::Result<Message> {
    let stand_in = |_| Ok(rustix::io::fcntl_dupfd_cloexec(socket, 0)?);
    let stand_ins = (0..fds).map(stand_in).collect::<io::Result<Vec<OwnedFd>>>()?;
    read(bytes.to_vec(), stand_ins, 0).await
}

/// The message that these bytes are, with these descriptors.
pub async fn read(bytes: Vec<u8>, fds: Vec<OwnedFd>, seq: u64) -> zbus::Result<Message> {
    let mut input = Input { start: 0, end: bytes.len(), bytes, fds };
    input.receive_message(seq, &mut Vec::new(), &mut Vec::new()).await
}

/// What was read and not taken yet; for zbus, a socket that has a whole message ready.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Of the message that is taken now.
    fds: Vec<OwnedFd>,
}

impl Input {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Room behind what is unread, for a message of this length at least.
    fn room(&mut self, length: usize) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let wanted = length.max(BUFFER);
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        } else if self.bytes.len() > wanted && self.end <= wanted {
            // Of a large message before.
            self.bytes.truncate(wanted);
            self.bytes.shrink_to_fit();
        }
        &mut self.bytes[self.end..]
    }
}

#[async_trait]
impl ReadHalf for Input {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let count = buffer.len().min(self.end - self.start);
        buffer[..count].copy_from_slice(&self.bytes[self.start..self.start + count]);
        self.start += count;
        Ok((count, mem::take(&mut self.fds)))
    }
}

#[derive(Debug)]
pub struct Writer(pub Arc<UnixStream>);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let socket = &*self.0;
        socket.async_io(Interest::WRITABLE, || send(socket, &[IoSlice::new(buffer)], fds)).await
    }

    /// As many in one write as bring no file descriptors.
    async fn send_messages(&mut self, mut messages: &[Message]) -> zbus::Result<()> {
        while let Some(first) = messages.first() {
            let plain =
                messages.iter().take(BATCH).take_while(|message| message.data().fds().is_empty()).count();
            if plain < 2 {
                self.send_message(first).await?;
                messages = &messages[1..];
                continue;
            }
            let (batch, rest) = messages.split_at(plain);
            let mut slices: Vec<_> = batch.iter().map(|message| IoSlice::new(message.data())).collect();
            let mut left = &mut slices[..];
            let socket = &*self.0;
            while !left.is_empty() {
                let sent = socket.async_io(Interest::WRITABLE, || send(socket, left, &[])).await?;
                IoSlice::advance_slices(&mut left, sent);
            }
            messages = rest;
        }
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        hang_up(&self.0)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
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

/// The length of the message that begins here, once its first bytes are there.
pub fn length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let number = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        match header[0] {
            b'l' => Ok(u32::from_le_bytes(bytes) as usize),
            b'B' => Ok(u32::from_be_bytes(bytes) as usize),
            _ => Err(bad("what is no D-Bus message".to_owned())),
        }
    };
    let (body, fields) = (number(4)?, number(12)?);
    Ok(Some((HEADER + fields).next_multiple_of(8) + body))
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

pub fn receive(fd: impl AsFd + Copy, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut rooms = [IoSliceMut::new(room)];
    let received =
        retry_on_intr(|| rustix::net::recvmsg(fd, &mut rooms, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // There is room for all that one write may carry: the table of open files is full.
        return Err(rustix::io::Errno::MFILE.into());
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((received.bytes, fds))
}

fn send(fd: impl AsFd + Copy, bytes: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(bad(format!("{} file descriptors; the kernel passes {FDS} at most", fds.len())));
    }
    Ok(retry_on_intr(|| rustix::net::sendmsg(fd, bytes, &mut control, SendFlags::NOSIGNAL))?)
}

fn hang_up(socket: &UnixStream) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Both)?)
}

#[cfg(test)]
mod tests;
