//! A spawner whose workers are tasks: each answers every call, and that of one user also says what the input has.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use futures_util::StreamExt;
use ipc_spawner::protocol::{Confinement, HERALD, REQUEST_SIZE, Refusal, Reply, Request};
use ipc_stream::Stream;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use tokio::{io::Interest, net::UnixStream, task::JoinHandle};
use zbus::{
    Connection, Guid,
    connection::Builder,
    message::{Flags, Message, Type},
};

use crate::bus::HOSTILE;

/// The front's end of its socket to the spawner, and the spawner. `words`: what the hostile worker says.
pub fn spawner(words: Vec<u8>) -> (OwnedFd, impl Future<Output = ()>) {
    let (front, ours) = pair();
    (front, serve(ours, words.into()))
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair")
}

fn watched(socket: OwnedFd) -> UnixStream {
    UnixStream::from_std(socket.into()).expect("a non-blocking socket")
}

async fn serve(socket: OwnedFd, words: Arc<[u8]>) {
    let socket = watched(socket);
    let mut workers: HashMap<String, JoinHandle<()>> = HashMap::new();
    let mut bytes = [0; REQUEST_SIZE];
    loop {
        let Ok((length, _pidfd)) = receive(&socket, &mut bytes).await else { return };
        let request = Request::decode(&bytes[..length]).expect("the front follows the protocol");
        let (reply, control) = match request {
            Request::Examine { .. } => (Reply::Examined { confinement: Confinement(0), gid: None }, None),
            Request::Start { name, identity } => {
                let hostile = identity.uid == HOSTILE;
                let (front, worker) = started(if hostile { words.clone() } else { Arc::default() });
                workers.insert(name, worker);
                (Reply::Started { pid: 1 }, Some(front))
            }
            // As hostile as the worker.
            Request::Herald => {
                let (front, herald) = started(words.clone());
                workers.insert(HERALD.to_owned(), herald);
                (Reply::Started { pid: 1 }, Some(front))
            }
            // It ends with its socket, which the worker gets.
            Request::Mount { .. } => (Reply::Started { pid: 1 }, Some(started(words.clone()).0)),
            Request::Kill { name } => match workers.remove(&name) {
                Some(worker) => {
                    worker.abort();
                    (Reply::Killed, None)
                }
                None => (Reply::Refused(Refusal::NoSuchWorker), None),
            },
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = control.iter().map(AsFd::as_fd).collect();
        assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = reply.encode();
        if sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).is_err() {
            return;
        }
    }
}

fn started(words: Arc<[u8]>) -> (OwnedFd, JoinHandle<()>) {
    let (front, ours) = pair();
    (front, tokio::spawn(worker(ours, words)))
}

/// Until its control socket ends. Its streams end with it.
async fn worker(control: OwnedFd, words: Arc<[u8]>) {
    let control = watched(control);
    let mut streams = tokio::task::JoinSet::new();
    let mut bytes = [0; 64];
    while let Ok((length @ 1.., Some(stream))) = receive(&control, &mut bytes).await {
        assert!(bytes[..length].starts_with(b"ipc1"));
        if send(&control, b"ok", SendFlags::NOSIGNAL).is_err() {
            return;
        }
        streams.spawn(answer(stream, words.clone()));
    }
}

async fn answer(stream: OwnedFd, words: Arc<[u8]>) {
    let raw = stream.try_clone().expect("a descriptor");
    let stream = Stream::new(stream, 128 << 20, Arc::new(drop)).expect("a stream");
    let builder = Builder::authenticated_socket(stream, Guid::generate()).p2p();
    let Ok(mut messages) = builder.build_message_stream().await else { return };
    let connection = Connection::from(&messages);
    let mut words = Some(words).filter(|words| !words.is_empty());
    while let Some(Ok(call)) = messages.next().await {
        if call.message_type() != Type::MethodCall {
            continue;
        }
        if let Some(words) = words.take() {
            // What does not fit into the socket is not said.
            let _short = send(&raw, &words, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        if !call.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED) {
            let reply = Message::method_return(&call.header()).build(&()).expect("a valid answer");
            if connection.send(&reply).await.is_err() {
                return;
            }
        }
    }
}

/// A datagram, and the descriptor that came with it.
async fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let read = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let came = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if came.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((came.bytes, fd))
    };
    socket.async_io(Interest::READABLE, read).await
}
