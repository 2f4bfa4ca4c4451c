//! The socket itself: as few system calls and as few wake-ups as can be.
//!
//! A socket that is registered for writing wakes its process each time the other end has read. On a
//! machine with few CPUs that is one change of process more for every message, and nobody waited for
//! it. So the runtime watches for something to read; to write is tried, and only when there is no room
//! a duplicate is registered for that, until there is.
//!
//! A read that did not fill the buffer has emptied the socket (epoll(7)), unless it stopped behind
//! descriptors (unix(7)): the next one waits for news instead of asking the kernel in vain.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};
use tokio::io::{Interest, unix::AsyncFd};
use zbus::{connection::socket::WriteHalf, export::async_trait::async_trait, message::Message};

use crate::bad;

/// So many messages go in one write.
const BATCH: usize = 64;

/// The most descriptors of one message that the kernel passes (SCM_MAX_FD).
pub const FDS: usize = 253;

#[derive(Debug)]
pub struct Wire {
    socket: AsyncFd<OwnedFd>,
    /// The same socket, to be waited for by whoever writes: made when it is not needed yet, for there
    /// may be no room for another descriptor when it is.
    duplicate: OwnedFd,
}

impl Wire {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        let duplicate = fcntl_dupfd_cloexec(&socket, 0)?;
        Ok(Self { socket: register(socket, Interest::READABLE)?, duplicate })
    }

    /// What is there, with the descriptors that came with it.
    pub async fn receive(&self, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        loop {
            let mut readiness = self.socket.readable().await?;
            match receive(self.socket.get_ref(), room) {
                Ok((read, fds)) => {
                    if read < room.len() && fds.is_empty() {
                        // An end of the stream is remembered.
                        readiness.clear_ready();
                    }
                    return Ok((read, fds));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => readiness.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Some of these bytes, with all of the descriptors; `WouldBlock` if there is no room.
    fn try_send(&self, bytes: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        send(self.socket.get_ref(), bytes, fds)
    }

    /// The same, when there is room.
    async fn send(&self, bytes: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        match self.try_send(bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        let room = register(self.duplicate.as_fd(), Interest::WRITABLE)?;
        loop {
            let mut readiness = room.writable().await?;
            match readiness.try_io(|_| self.try_send(bytes, fds)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Ends it for both sides.
    pub fn hang_up(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.socket.get_ref(), Shutdown::Both)?)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; an owned or borrowed fd names the same open fd for its whole life"
)]
fn register<F: AsFd + AsRawFd>(fd: F, interest: Interest) -> io::Result<AsyncFd<F>> {
    AsyncFd::with_interest(fd, interest)
}

/// Writes to a socket. Of several that write to the same one, who has begun a message ends it first.
#[derive(Debug, Clone)]
pub struct Writer(pub(crate) Arc<Wire>);

impl Writer {
    /// Sends of this message, of which `sent` bytes have left, what there is room for. Whether that was
    /// all of it.
    pub fn send_now(&self, message: &Message, sent: &mut usize) -> io::Result<bool> {
        let data = message.data();
        while *sent < data.len() {
            match self.0.try_send(&[IoSlice::new(&data[*sent..])], &fds_left(message, *sent)) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends the rest of this message. What has left counts, whenever this is dropped.
    pub async fn send_rest(&self, message: &Message, sent: &mut usize) -> io::Result<()> {
        let data = message.data();
        while *sent < data.len() {
            *sent += self.0.send(&[IoSlice::new(&data[*sent..])], &fds_left(message, *sent)).await?;
        }
        Ok(())
    }

    /// Ends the connection, for both sides.
    pub fn hang_up(&self) -> io::Result<()> {
        self.0.hang_up()
    }
}

/// They go with the first byte.
fn fds_left(message: &Message, sent: usize) -> Vec<BorrowedFd<'_>> {
    if sent > 0 { Vec::new() } else { message.data().fds().iter().map(AsFd::as_fd).collect() }
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.send(&[IoSlice::new(buffer)], fds).await
    }

    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        Ok(self.send_rest(message, &mut 0).await?)
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
            while !left.is_empty() {
                let sent = self.0.send(left, &[]).await?;
                IoSlice::advance_slices(&mut left, sent);
            }
            messages = rest;
        }
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.hang_up()
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

fn receive(fd: impl AsFd + Copy, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
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

pub fn send(fd: impl AsFd + Copy, bytes: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(bad(format!("{} file descriptors; the kernel passes {FDS} at most", fds.len())));
    }
    Ok(retry_on_intr(|| rustix::net::sendmsg(fd, bytes, &mut control, SendFlags::NOSIGNAL))?)
}
