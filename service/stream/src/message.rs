//! The bytes of a message, and the message that they are.

use std::{
    io, mem,
    os::fd::{AsFd, OwnedFd},
};

use zbus::{connection::socket::ReadHalf, export::async_trait::async_trait, message::Message};

use crate::bad;

/// The first bytes of a message, which tell its length.
pub const HEADER: usize = 16;

/// What is read ahead; a larger message gets room of its own.
const BUFFER: usize = 4096;

/// The message that these bytes are, with these descriptors.
pub async fn read(bytes: Vec<u8>, fds: Vec<OwnedFd>, seq: u64) -> zbus::Result<Message> {
    let mut input = Input { start: 0, end: bytes.len(), bytes, fds };
    input.receive_message(seq, &mut Vec::new(), &mut Vec::new()).await
}

/// Reads a message with stand-ins for its descriptors: zbus closes those of one that it cannot read.
pub async fn rehearse(bytes: &[u8], fds: usize, any: impl AsFd) -> zbus::Result<()> {
    let stand_in = |_| Ok(rustix::io::fcntl_dupfd_cloexec(&any, 0)?);
    let stand_ins = (0..fds).map(stand_in).collect::<io::Result<Vec<OwnedFd>>>()?;
    read(bytes.to_vec(), stand_ins, 0).await.map(drop)
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

/// What was read and not taken yet; for zbus, a socket that has a whole message ready.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Of the message that is taken now.
    fds: Vec<OwnedFd>,
}

impl Input {
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Room behind what is unread, for a message of this length at least.
    pub fn room(&mut self, length: usize) -> &mut [u8] {
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

    /// So many bytes were put into the room.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// The first message, which has this length, with its descriptors. It is taken even if it cannot
    /// be read.
    pub async fn take(&mut self, length: usize, fds: Vec<OwnedFd>, seq: u64) -> zbus::Result<Message> {
        let next = self.start + length;
        self.fds = fds;
        let message = self.receive_message(seq, &mut Vec::new(), &mut Vec::new()).await;
        self.start = next;
        message
    }

    /// Leaves the first message out.
    pub fn skip(&mut self, length: usize) {
        self.start += length;
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
