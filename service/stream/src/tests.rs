//! Streams as zbus uses them, and what a hostile other end may write.

use std::{io::IoSlice, os::fd::AsFd, sync::Mutex, time::Duration};

use futures_util::StreamExt;
use tokio::time::timeout;
use zbus::{
    Connection, Guid, Message, MessageStream,
    connection::{Builder, socket::WriteHalf},
    message::Type,
};

use super::{message::HEADER, wire::send, *};

async fn ends() -> (Connection, MessageStream, Handle) {
    let (one, other) = pair().expect("a pair");
    let discard: Discard = Arc::new(drop);
    let guid = Guid::generate();
    let writer = Stream::new(one, 1 << 20, discard.clone()).expect("a stream");
    let writer = Builder::authenticated_socket(writer, guid.clone()).p2p().build().await.expect("a writer");
    let (reader, handle) = Stream::new(other, 1 << 20, discard).expect("a stream").gated();
    let reader =
        Builder::authenticated_socket(reader, guid).p2p().build_message_stream().await.expect("a reader");
    (writer, reader, handle)
}

fn message(number: u32, size: usize) -> Message {
    Message::signal("/", "a.b", "C").build(&(number, vec![0_u8; size])).expect("valid")
}

async fn next(reader: &mut MessageStream) -> Message {
    let next = timeout(Duration::from_secs(20), reader.next()).await.expect("nothing came");
    next.expect("the end").expect("an error")
}

fn number(message: &Message) -> u32 {
    message.body().deserialize::<(u32, Vec<u8>)>().expect("what was sent").0
}

#[tokio::test]
async fn batches_arrive_whole_and_in_order() {
    let (writer, mut reader, mut handle) = ends().await;
    handle.open();
    let sizes = (0..200).map(|number| if number % 7 == 0 { 100_000 } else { number * 3 });
    let messages: Vec<_> = sizes.enumerate().map(|(number, size)| message(number as u32, size)).collect();
    let sending = tokio::spawn(async move { writer.send_all(&messages).await.map(|()| writer) });
    for expected in 0..200 {
        assert_eq!(number(&next(&mut reader).await), expected);
    }
    drop(sending.await.expect("no panic").expect("sent"));
}

/// One after the other, so that each finds the reader waiting, and descriptors among them.
#[tokio::test]
async fn no_message_waits_for_the_next() {
    let (writer, mut reader, mut handle) = ends().await;
    handle.open();
    for round in 0..100 {
        writer.send(&message(round, 10)).await.expect("sent");
        assert_eq!(number(&next(&mut reader).await), round);
        let fd = zbus::Fd::from(std::io::stderr().as_fd().try_clone_to_owned().expect("a duplicate"));
        let with_fd = Message::signal("/", "a.b", "D").build(&fd).expect("valid");
        writer.send_all(&[message(round, 4096), with_fd, message(round, 1)]).await.expect("sent");
        assert_eq!(number(&next(&mut reader).await), round);
        assert_eq!(next(&mut reader).await.data().fds().len(), 1);
        assert_eq!(number(&next(&mut reader).await), round);
    }
}

#[tokio::test]
async fn nothing_is_read_before_the_gate_is_open() {
    let (writer, mut reader, mut handle) = ends().await;
    writer.send(&message(1, 1)).await.expect("sent");
    let early = timeout(Duration::from_millis(50), reader.next()).await;
    assert!(early.is_err(), "{early:?}");
    handle.open();
    assert_eq!(number(&next(&mut reader).await), 1);
    handle.hang_up();
    let end = timeout(Duration::from_secs(20), reader.next()).await.expect("it ends");
    assert!(end.is_none_or(|end| end.is_err()));
}

const LIMIT: usize = 100_000;

/// A connection over a stream, the bare other end, and the count of discarded descriptors.
async fn connection() -> (MessageStream, OwnedFd, Arc<Mutex<usize>>) {
    let (ours, theirs) = pair().expect("a pair");
    let discarded = Arc::new(Mutex::new(0));
    let count = discarded.clone();
    let discard = Arc::new(move |fds: Vec<OwnedFd>| *count.lock().expect("not poisoned") += fds.len());
    let stream = Stream::new(ours, LIMIT, discard).expect("a stream");
    let builder = Builder::authenticated_socket(stream, Guid::generate()).p2p().validate_bodies();
    (builder.build_message_stream().await.expect("a connection"), theirs, discarded)
}

fn with_fds(count: usize) -> Message {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("exists"));
    let fds: Vec<_> = (0..count).map(|_| zbus::OwnedFd::from(null())).collect();
    Message::signal("/a", "org.example.A", "A").build(&(fds, "x")).expect("valid")
}

fn write(to: &OwnedFd, bytes: &[u8], message: &Message) {
    let fds: Vec<_> = message.data().fds().iter().map(AsFd::as_fd).collect();
    assert_eq!(send(to, &[IoSlice::new(bytes)], &fds).expect("sent"), bytes.len());
}

#[tokio::test]
async fn messages_keep_their_descriptors() {
    let (mut messages, theirs, discarded) = connection().await;
    let counts = [0, 3, 0, 0, 1, 8, 0, 253, 2];
    let stream = Stream::new(theirs, LIMIT, Arc::new(drop)).expect("a stream");
    let other =
        Builder::authenticated_socket(stream, Guid::generate()).p2p().build().await.expect("a connection");
    let sent: Vec<_> = counts.iter().map(|count| with_fds(*count)).collect();
    other.send_all(&sent).await.expect("sent");
    for count in counts {
        let message = messages.next().await.expect("open").expect("a message");
        assert_eq!(message.data().fds().len(), count);
        let (fds, text): (Vec<zbus::OwnedFd>, String) = message.body().deserialize().expect("(ahs)");
        assert_eq!((fds.len(), text.as_str()), (count, "x"));
    }
    drop((messages, other));
    assert_eq!(*discarded.lock().expect("not poisoned"), 0);
}

#[tokio::test]
async fn descriptors_of_what_is_not_readable_are_discarded() {
    let good = with_fds(2);
    let change = |at: usize, byte: u8| {
        let mut bytes = good.data().to_vec();
        bytes[at] = byte;
        bytes
    };
    // Neither byte order, nor a version of the protocol.
    for bytes in [change(0, b'x'), change(3, 9)] {
        let (mut messages, theirs, discarded) = connection().await;
        write(&theirs, &bytes, &good);
        messages.next().await.expect("an answer").expect_err("not readable");
        Connection::from(&messages).closed().await;
        drop(messages);
        // The reader goes with its task.
        while *discarded.lock().expect("not poisoned") < 2 {
            tokio::task::yield_now().await;
        }
    }
}

/// A caller's call goes to his worker as it came, and its body may be anything: that is for an error, not for the end
/// of the stream.
#[tokio::test]
async fn a_body_that_is_not_readable_ends_nothing() {
    let (ours, theirs) = pair().expect("a pair");
    let stream = Stream::new(ours, LIMIT, Arc::new(drop)).expect("a stream");
    let mut messages = Builder::authenticated_socket(stream, Guid::generate())
        .p2p()
        .build_message_stream()
        .await
        .expect("a connection");
    let good = with_fds(2);
    let mut bytes = good.data().to_vec();
    *bytes.last_mut().expect("a message") = b'x';
    write(&theirs, &bytes, &good);
    write(&theirs, good.data(), &good);
    let first = messages.next().await.expect("open").expect("a message");
    assert_eq!(first.data().fds().len(), 2);
    first.body().validate().expect_err("not readable");
    messages.next().await.expect("open").expect("the next message");
}

#[tokio::test]
async fn no_memory_is_taken_for_what_is_too_long() {
    let (mut messages, theirs, _) = connection().await;
    let mut header = with_fds(0).data()[..HEADER].to_vec();
    header[4..8].copy_from_slice(&(LIMIT as u32).to_le_bytes());
    // Nothing follows: the length alone says it.
    write(&theirs, &header, &with_fds(0));
    let error = messages.next().await.expect("an answer").expect_err("too long");
    assert!(error.to_string().contains("the limit is 100000"), "{error}");
}

/// A socket to a bus, which is this test: its two halves, the bus's end, and the count of discarded descriptors.
fn bus_socket() -> (Reader, Writer, OwnedFd, Arc<Mutex<usize>>) {
    use std::os::{linux::net::SocketAddrExt, unix::net};
    let name = format!("ipc-stream-{}-{:?}", std::process::id(), std::thread::current().id());
    let listener = net::UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(&name).expect("a name"))
        .expect("a socket");
    let discarded = Arc::new(Mutex::new(0));
    let count = discarded.clone();
    let discard = Arc::new(move |fds: Vec<OwnedFd>| *count.lock().expect("not poisoned") += fds.len());
    let address = format!("unix:abstract={name}").parse().expect("an address");
    let socket = BusSocket::connect(&address, discard).expect("a listener").expect("a Unix socket");
    let (theirs, _) = listener.accept().expect("a connection");
    let (reader, writer) = socket.split().take();
    (reader, writer, theirs.into(), discarded)
}

async fn read_next(reader: &mut Reader) -> Message {
    timeout(Duration::from_secs(20), reader.next()).await.expect("nothing came").expect("a message")
}

/// All of it is there before the first is read.
#[tokio::test]
async fn what_is_left_out_takes_its_descriptors_along_and_no_others() {
    let (mut reader, _writer, theirs, discarded) = bus_socket();
    let (two, one, none) = (with_fds(2), with_fds(1), with_fds(0));
    let unreadable = |message: &Message| {
        let mut bytes = message.data().to_vec();
        // The code of the first header field: of a later version of the protocol.
        bytes[HEADER] = 100;
        bytes
    };
    write(&theirs, none.data(), &none);
    write(&theirs, &unreadable(&two), &two);
    write(&theirs, one.data(), &one);
    write(&theirs, &unreadable(&one), &one);
    write(&theirs, &unreadable(&none), &none);
    write(&theirs, none.data(), &none);
    write(&theirs, two.data(), &two);
    for count in [0, 1, 0, 2] {
        assert_eq!(read_next(&mut reader).await.data().fds().len(), count);
    }
    assert_eq!(*discarded.lock().expect("not poisoned"), 3);
}

#[tokio::test]
async fn what_does_not_fit_is_sent_later() {
    let (mut reader, writer, theirs, _) = bus_socket();
    let large = message(7, 8 << 20);
    let mut sent = 0;
    assert!(!writer.send_now(&large, &mut sent).expect("open"));
    assert!(0 < sent && sent < large.data().len(), "{sent}");
    let sending = tokio::spawn(async move {
        writer.send_rest(&large, &mut sent).await.expect("open");
        assert!(writer.send_now(&message(8, 8), &mut 0).expect("open"));
    });
    let stream = Stream::new(theirs, 16 << 20, Arc::new(drop)).expect("a stream");
    let (mut other_end, mut back) = stream.split().take();
    assert_eq!(number(&read_next(&mut other_end).await), 7);
    assert_eq!(number(&read_next(&mut other_end).await), 8);
    sending.await.expect("no panic");
    back.send_message(&message(9, 9)).await.expect("open");
    assert_eq!(number(&read_next(&mut reader).await), 9);
}

#[tokio::test]
async fn calls_and_signals_are_handed_over_and_replies_are_not() {
    let (mut reader, _writer, theirs, _) = bus_socket();
    let sender = reader.hand_over();
    let call = Message::method_call("/", "C").serial(3.try_into().expect("not 0")).build(&()).expect("valid");
    let reply = Message::method_return(&call.header()).build(&()).expect("valid");
    let all = [&reply, &message(1, 0), &call, &reply].map(|message| message.data().to_vec()).concat();
    write(&theirs, &all, &reply);
    assert_eq!(read_next(&mut reader).await.message_type(), Type::MethodReturn);
    let taken = Arc::new(Mutex::new(Vec::new()));
    let takes = taken.clone();
    let take = move |message: Message, more| {
        takes.lock().expect("not poisoned").push((message.message_type(), more));
    };
    // Until somebody takes the signal, the reply stays behind it.
    let comes = async { sender.send(Box::new(take)).unwrap_or_else(|_| panic!("the reader waits")) };
    let (next, ()) = futures_util::future::join(read_next(&mut reader), comes).await;
    assert_eq!(next.message_type(), Type::MethodReturn);
    assert_eq!(*taken.lock().expect("not poisoned"), [(Type::Signal, true), (Type::MethodCall, true)]);
}
