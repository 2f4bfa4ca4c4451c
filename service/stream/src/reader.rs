//! Reads ahead, and takes whole messages.
//!
//! Descriptors come with a byte, and a read ends with the bytes of the write that brought any (unix(7):
//! ancillary data is a barrier). Every sender here, bus or worker, writes a message that has descriptors
//! by itself and sends them with its first byte. So descriptors belong to the message in which the read
//! that brought them ends, whatever that message says of itself.
//!
//! Sizes are looked at before memory is taken. A message with descriptors is tried with stand-ins
//! first: what zbus then gets with the real ones is known to be readable, and everything else goes to
//! whoever can afford to close it.

use std::{collections::VecDeque, io, mem, os::fd::OwnedFd, sync::Arc};

use tokio::sync::oneshot;
use zbus::{
    connection::socket::ReadHalf,
    export::async_trait::async_trait,
    message::{Message, Type},
};

use crate::{
    Discard, bad,
    handshake::Handshake,
    message::{HEADER, Input, length, rehearse},
    wire::{FDS, Wire},
};

/// What a message does that zbus cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    Ends,
    IsLeftOut,
}

/// Who takes messages, see [`Reader::hand_over`]; with each, whether the next one has been read already.
pub type Take = Box<dyn FnMut(Message, bool) + Send + Sync>;

pub struct Reader {
    wire: Arc<Wire>,
    limit: usize,
    unreadable: Unreadable,
    discard: Discard,
    gate: Option<oneshot::Receiver<()>>,
    handshake: Handshake,
    taker: Taker,
    input: Input,
    /// What came with descriptors and no message has taken yet, in order.
    came: VecDeque<Came>,
}

enum Taker {
    /// The connection of zbus, or who else reads.
    Reader,
    Awaited(oneshot::Receiver<Take>),
    Here(Take),
}

struct Came {
    /// How many of the unread bytes there were when they had come.
    end: usize,
    fds: Vec<OwnedFd>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("wire", &self.wire).field("limit", &self.limit).finish()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for Came { fds, .. } in self.came.drain(..) {
            (self.discard)(fds);
        }
    }
}

impl Reader {
    pub(crate) fn new(
        wire: Arc<Wire>,
        limit: usize,
        unreadable: Unreadable,
        discard: Discard,
        gate: Option<oneshot::Receiver<()>>,
    ) -> Self {
        Self {
            wire,
            limit,
            unreadable,
            discard,
            gate,
            handshake: Handshake::default(),
            taker: Taker::Reader,
            input: Input::default(),
            came: VecDeque::new(),
        }
    }

    /// From the first on, calls and signals go to whom this sends, and only replies to the connection of
    /// zbus, which would pass on what it gets from task to task. While nobody was sent yet, the first of
    /// them waits, and what comes behind it.
    pub fn hand_over(&mut self) -> oneshot::Sender<Take> {
        let (sender, taker) = oneshot::channel();
        self.taker = Taker::Awaited(taker);
        sender
    }

    /// The next message, for who reads without a connection of zbus. Its body is not validated.
    pub async fn next(&mut self) -> zbus::Result<Message> {
        self.take(0).await
    }

    /// Whether the next message has been read already.
    pub fn has_next(&self) -> bool {
        is_whole(self.input.unread())
    }

    async fn take(&mut self, seq: u64) -> zbus::Result<Message> {
        loop {
            let length = self.whole().await?;
            let fds = self.fds_of(length);
            let rehearsed = match fds.len() {
                0 => Ok(()),
                count => rehearse(&self.input.unread()[..length], count, &*self.wire).await,
            };
            let error = match rehearsed {
                Ok(()) => match self.input.take(length, fds, seq).await {
                    Ok(message) => match self.hand(message).await? {
                        Some(message) => return Ok(message),
                        None => continue,
                    },
                    Err(error) => error,
                },
                Err(error) => {
                    self.input.skip(length);
                    (self.discard)(fds);
                    error
                }
            };
            if self.unreadable == Unreadable::Ends {
                return Err(error);
            }
            // Not louder: whoever likes to may cause it.
            tracing::debug!("a message was left out: {error}");
        }
    }

    /// Hands a message to who takes it; or it is the reader's.
    async fn hand(&mut self, message: Message) -> io::Result<Option<Message>> {
        if matches!(message.message_type(), Type::MethodReturn | Type::Error) {
            return Ok(Some(message));
        }
        if let Taker::Awaited(taker) = &mut self.taker {
            // Nobody comes: the connection was given up.
            let take = taker.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
            self.taker = Taker::Here(take);
        }
        let Taker::Here(take) = &mut self.taker else { return Ok(Some(message)) };
        let more = is_whole(self.input.unread());
        take(message, more);
        Ok(None)
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
            let (read, fds) = self.wire.receive(self.input.room(length.unwrap_or(HEADER))).await?;
            self.input.filled(read);
            self.keep(fds)?;
        }
    }

    /// Keeps what has come with the last bytes.
    fn keep(&mut self, fds: Vec<OwnedFd>) -> io::Result<()> {
        if !fds.is_empty() {
            self.came.push_back(Came { end: self.input.unread().len(), fds });
            // Those of one message that is not whole yet, and of the next one.
            if self.came.iter().map(|came| came.fds.len()).sum::<usize>() > 2 * FDS {
                return Err(bad("more file descriptors than any message has".to_owned()));
            }
        }
        Ok(())
    }

    /// The descriptors of the first message, which has this length and is about to be taken.
    fn fds_of(&mut self, length: usize) -> Vec<OwnedFd> {
        let mut fds = Vec::new();
        while self.came.front().is_some_and(|came| came.end <= length) {
            fds.extend(self.came.pop_front().into_iter().flat_map(|came| came.fds));
        }
        for later in &mut self.came {
            later.end -= length;
        }
        fds
    }
}

fn is_whole(bytes: &[u8]) -> bool {
    matches!(length(bytes), Ok(Some(length)) if length <= bytes.len())
}

#[async_trait]
impl ReadHalf for Reader {
    async fn receive_message(
        &mut self,
        seq: u64,
        early: &mut Vec<u8>,
        early_fds: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        if let Some(gate) = self.gate.take() {
            // Nobody will open it: the connection was given up.
            gate.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        }
        if !early.is_empty() {
            // What the handshake read too much, before anything else was.
            self.input.room(early.len())[..early.len()].copy_from_slice(early);
            self.input.filled(early.len());
            early.clear();
            self.keep(mem::take(early_fds))?;
        }
        self.take(seq).await
    }

    /// For the handshake, which reads no messages.
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let (read, fds) = self.wire.receive(buffer).await?;
        match self.handshake.check(&buffer[..read], fds.len()) {
            Ok(()) => Ok((read, fds)),
            Err(error) => {
                (self.discard)(fds);
                Err(error)
            }
        }
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}
