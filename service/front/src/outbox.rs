//! Everything that goes to the bus goes through here. What comes when nothing waits is written at once;
//! what finds no room for itself, or others waiting, is written by one task, in turn. A message that is
//! cut off in the middle would end the connection, so nothing that may be cancelled waits while it
//! writes.
//!
//! Replies and signals of workers wait for room, and their worker with them; the front's own words are
//! small and never wait, because the router says them. What the herald says to everybody comes last, and is
//! dropped rather than kept waiting: its numbers show the gap.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
};

use ipc_stream::{BusSocket, Reader, Writer};
use tokio::sync::{Notify, mpsc};
use zbus::{
    connection::socket::{Socket, Split, WriteHalf},
    export::async_trait::async_trait,
    message::Message,
};

use crate::{closer::Closer, lock, parcel::Parcel};

/// Each may have the size of a reply.
const PARCELS: usize = 16;

/// Errors, the news of lost workers, and calls of the bus.
const WORDS: usize = 1024;

/// What the herald says to everybody.
const BROADCASTS: usize = 256;

/// As many messages go in one write.
const BATCH: usize = 16;

pub struct Outbox {
    parcels: mpsc::Sender<Parcel>,
    words: mpsc::Sender<Parcel>,
    broadcasts: mpsc::Sender<Parcel>,
    line: Arc<Line>,
    closer: Arc<Closer>,
}

struct Line {
    writer: Writer,
    state: Mutex<State>,
    /// The task has something to finish.
    begun: Notify,
    written: Notify,
}

#[derive(Default)]
struct State {
    /// So many were given to the task, and so many it has written.
    given: u64,
    written: u64,
    /// A part of this one has left. Nothing else waits when it comes here, and it goes first.
    begun: Option<Parcel>,
}

impl Outbox {
    /// The task ends when the connection does.
    pub fn new(writer: Writer, closer: Arc<Closer>) -> (Arc<Self>, impl Future<Output = ()> + Send) {
        let (parcels, parcels_out) = mpsc::channel(PARCELS);
        let (words, words_out) = mpsc::channel(WORDS);
        let (broadcasts, broadcasts_out) = mpsc::channel(BROADCASTS);
        let state = Mutex::default();
        let line = Arc::new(Line { writer, state, begun: Notify::new(), written: Notify::new() });
        let task = run(line.clone(), parcels_out, words_out, broadcasts_out);
        (Arc::new(Self { parcels, words, broadcasts, line, closer }), task)
    }

    /// Waits for room. False: the bus is gone.
    pub async fn send(&self, parcel: Parcel) -> bool {
        let Ok(room) = self.parcels.reserve().await else { return false };
        if let Some(parcel) = self.line.at_once(parcel) {
            room.send(parcel);
        }
        true
    }

    /// Sends what is for everybody, if there is room; else it is dropped. It has to wait for all others.
    pub fn broadcast(&self, parcel: Parcel) {
        if let Ok(room) = self.broadcasts.try_reserve()
            && let Some(parcel) = self.line.at_once(parcel)
        {
            room.send(parcel);
        }
    }

    /// False: there is no room, because the bus reads nothing.
    pub fn say(&self, message: Message) -> bool {
        let Ok(room) = self.words.try_reserve() else { return false };
        self.put(message, room);
        true
    }

    /// A call of the bus, by the front.
    async fn ask(&self, message: Message) -> io::Result<()> {
        let room = self.words.reserve().await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.put(message, room);
        Ok(())
    }

    fn put(&self, message: Message, room: mpsc::Permit<'_, Parcel>) {
        // No descriptors of anybody are in it.
        if let Some(parcel) = self.line.at_once(Parcel::new(message, None, &self.closer)) {
            room.send(parcel);
        }
    }

    /// Ends when everything is written that was there before; or the bus is gone.
    pub async fn flush(&self) {
        let given = lock(&self.line.state).given;
        loop {
            let written = self.line.written.notified();
            if lock(&self.line.state).written >= given || self.words.is_closed() {
                return;
            }
            written.await;
        }
    }
}

impl Line {
    /// Writes it, if nothing waits. Otherwise the task gets it: what is not begun comes back.
    fn at_once(&self, mut parcel: Parcel) -> Option<Parcel> {
        let mut state = lock(&self.state);
        let idle = state.given == state.written;
        // What is wrong with the connection is the task's to see.
        if idle && matches!(parcel.send_now(&self.writer), Ok(true)) {
            return None;
        }
        state.given += 1;
        if !parcel.is_begun() {
            return Some(parcel);
        }
        state.begun = Some(parcel);
        self.begun.notify_one();
        None
    }

    fn wrote(&self, count: usize) {
        lock(&self.state).written += count as u64;
        self.written.notify_waiters();
    }
}

async fn run(
    line: Arc<Line>,
    mut parcels: mpsc::Receiver<Parcel>,
    mut words: mpsc::Receiver<Parcel>,
    mut broadcasts: mpsc::Receiver<Parcel>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut others = Vec::with_capacity(BATCH);
    let mut last = Vec::with_capacity(BATCH);
    let error = loop {
        tokio::select! {
            biased;
            () = line.begun.notified() => batch.extend(lock(&line.state).begun.take()),
            count = words.recv_many(&mut batch, BATCH) => if count == 0 { return },
            count = parcels.recv_many(&mut others, BATCH) => if count == 0 { return },
            count = broadcasts.recv_many(&mut last, BATCH) => if count == 0 { return },
        }
        batch.append(&mut others);
        batch.append(&mut last);
        let written = match &mut batch[..] {
            [one] => one.send_rest(&line.writer).await.map_err(zbus::Error::from),
            all => {
                let all: Vec<_> = all.iter().map(|parcel| parcel.message().clone()).collect();
                line.writer.clone().send_messages(&all).await
            }
        };
        if let Err(error) = written {
            break error;
        }
        line.wrote(batch.len());
        batch.clear();
    };
    tracing::error!("the message bus takes no more messages: {error}");
    // So that whoever waits for the end of the front sees it. It may have ended by itself.
    let _ended = line.writer.hang_up();
    drop((parcels, words, broadcasts));
    line.written.notify_waiters();
}

/// The socket to the bus as zbus gets it: what the front asks the bus goes through the outbox, too.
pub struct SharedSocket {
    reader: Reader,
    writer: Writer,
    outbox: Arc<Outbox>,
}

impl SharedSocket {
    /// With the outbox and its task.
    pub fn new(
        socket: BusSocket,
        closer: Arc<Closer>,
    ) -> (Self, Arc<Outbox>, impl Future<Output = ()> + Send) {
        let (reader, writer) = socket.split().take();
        let (outbox, task) = Outbox::new(writer.clone(), closer);
        (Self { reader, writer, outbox: outbox.clone() }, outbox, task)
    }

    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }
}

impl Socket for SharedSocket {
    type ReadHalf = Reader;
    type WriteHalf = SharedWriter;

    fn split(self) -> Split<Reader, SharedWriter> {
        Split::new(self.reader, SharedWriter { writer: self.writer, outbox: self.outbox })
    }
}

pub struct SharedWriter {
    writer: Writer,
    outbox: Arc<Outbox>,
}

impl std::fmt::Debug for SharedWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedWriter").field("writer", &self.writer).finish_non_exhaustive()
    }
}

#[async_trait]
impl WriteHalf for SharedWriter {
    /// The handshake, before there is anything else to write.
    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.writer.sendmsg(buffer, fds).await
    }

    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        Ok(self.outbox.ask(message.clone()).await?)
    }

    async fn close(&mut self) -> io::Result<()> {
        self.writer.hang_up()
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::{linux::net::SocketAddrExt, unix::net};

    use ipc_stream::Stream;

    use super::*;

    fn message(number: u32, size: usize) -> Message {
        Message::signal("/", "a.b", "C").build(&(number, vec![0_u8; size])).expect("valid")
    }

    /// What has begun is ended first, then the front's own words go, then the rest.
    #[tokio::test]
    async fn messages_stay_whole_and_words_come_first() {
        let name = format!("ipc-outbox-{}", std::process::id());
        let listening = net::SocketAddr::from_abstract_name(&name).expect("a name");
        let listener = net::UnixListener::bind_addr(&listening).expect("a socket");
        let address = format!("unix:abstract={name}").parse().expect("an address");
        let socket = BusSocket::connect(&address, Arc::new(drop)).expect("listens").expect("a Unix socket");
        let (bus, _) = listener.accept().expect("a connection");
        let closer = Closer::new();
        let (_socket, outbox, task) = SharedSocket::new(socket, closer.clone());
        let parcel = |number, size| Parcel::new(message(number, size), None, &closer);
        // There is room for some of it only, so the task has to go on.
        for (number, size) in [(0, 10), (1, 4 << 20), (2, 10), (3, 1 << 20)] {
            assert!(outbox.send(parcel(number, size)).await);
        }
        assert!(outbox.say(message(4, 10)));
        outbox.ask(message(5, 10)).await.expect("there is room");
        let task = tokio::spawn(task);
        let stream = Stream::new(bus.into(), 8 << 20, Arc::new(drop)).expect("a stream");
        let (mut reader, writer) = stream.split().take();
        let mut numbers = Vec::new();
        for _ in 0..6 {
            let message = reader.next().await.expect("whole");
            numbers.push(message.body().deserialize::<(u32, Vec<u8>)>().expect("what was sent").0);
        }
        assert_eq!(numbers, [0, 1, 4, 5, 2, 3]);
        outbox.flush().await;
        assert!(outbox.send(parcel(6, 10)).await);
        assert_eq!(
            reader.next().await.expect("whole").body().deserialize::<(u32, Vec<u8>)>().expect("it").0,
            6
        );
        // The bus is gone: nobody waits for it.
        drop((reader, writer));
        assert!(outbox.send(parcel(7, 10)).await);
        outbox.flush().await;
        assert!(!outbox.send(parcel(8, 10)).await);
        task.await.expect("it ends");
    }
}
