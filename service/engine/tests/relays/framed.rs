//! Messages to messages, and the adapters between messages and bytes.

use ipc_kernel::{Dict, Kind, dict};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::*;

pub(super) async fn seqpacket(world: &World) -> (Arc<Endpoint>, OwnedFd) {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    (world.adopt(ours).await, theirs)
}

/// Messages of many lengths, none of them 0.
pub(super) fn messages(count: u64, max: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let size = usize::from_ne_bytes(noise(8, n + 1).try_into().unwrap()) % max + 1;
            noise(size, n + 99).into_iter().map(|byte| if byte == b'\n' { b' ' } else { byte }).collect()
        })
        .collect()
}

/// Reads packets until the writers have gone.
pub(super) fn packets(fd: OwnedFd) -> tokio::task::JoinHandle<Vec<Vec<u8>>> {
    tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match rustix::io::read(&fd, &mut buffer).unwrap() {
                0 => return all,
                length => all.push(buffer[..length].to_vec()),
            }
        }
    })
}

#[tokio::test]
async fn borders_are_kept() {
    let world = World::new();
    let all = messages(2000, 4096);
    for to in ["packets", "seqpacket"] {
        let (source, input) = seqpacket(&world).await;
        let (sink, output) = match to {
            "packets" => world.packet_sink().await,
            _ => seqpacket(&world).await,
        };
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        let sent = all.clone();
        let feeder =
            tokio::task::spawn_blocking(move || sent.iter().for_each(|message| write(&input, message)));
        let reader = packets(output.try_clone().unwrap());
        feeder.await.unwrap();
        let finished = ended(&relay).await;
        ends_well(&finished);
        assert_eq!((finished.messages, relay.method()), (2000, "messages"));
        world.engine.close(&sink, "test");
        drop((sink, relay));
        world.take_news().await;
        assert!(reader.await.unwrap() == all, "{to}");
    }
}

/// A message that the sink cannot take stays at the source, with its descriptors.
#[tokio::test]
async fn a_message_that_does_not_fit_stays() {
    let world = World::new();
    let (source, input) = seqpacket(&world).await;
    let (sink, _output) = world.packet_sink().await;
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    write(&input, b"fits");
    write(&input, &noise(5000, 1));
    let finished = ended(&relay).await;
    assert!(finished.failed && finished.reason.contains("5000") && finished.reason.contains("4096"));
    assert_eq!(finished.messages, 1);
    let message = world.engine.receive(&world.call, &source, &Dict::new(), 1000).await.unwrap();
    assert!(message.data == noise(5000, 1));
}

/// A sink that is not read: one message waits in the relay, and comes back when it stops.
#[tokio::test]
async fn a_full_sink_takes_nothing_more() {
    let world = World::new();
    let (source, input) = seqpacket(&world).await;
    let (sink, output) = world.packet_sink().await;
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    ipc_kernel::fd::set_nonblocking(input.as_fd()).unwrap();
    let witness = Witness::new(&world).await;
    let (mut sent, mut refused) = (0u32, 0);
    while refused < 2 {
        match rustix::io::write(&input, &sent.to_be_bytes()) {
            Ok(_) => (sent, refused) = (sent + 1, 0),
            Err(_) => {
                refused += 1;
                witness.turn().await;
            }
        }
    }
    relay.stop("stopped");
    let delivered = ended(&relay).await.messages as u32;
    assert!(delivered < sent);
    // The next one is the one that waited.
    let message = world.engine.receive(&world.call, &source, &Dict::new(), 1000).await.unwrap();
    assert_eq!(message.data, delivered.to_be_bytes());
    drop(output);
}

/// Whatever the pieces in which the bytes come, the frames are the same; there and back again.
#[tokio::test]
async fn frames_in_any_pieces() {
    for (framing, record) in [("line", None), ("length", None), ("fixed", Some(777u32))] {
        for piece in [1, 3, 4095, 70_000] {
            let world = World::new();
            let count = if piece == 1 { 20 } else { 300 };
            let all: Vec<Vec<u8>> = match record {
                Some(size) => (0..count).map(|n| noise(size as usize, n + 1)).collect(),
                None => messages(count, 4000),
            };
            let bytes: Vec<u8> = match framing {
                "line" => all.iter().flat_map(|m| [m.as_slice(), b"\n"].concat()).collect(),
                "length" => all
                    .iter()
                    .flat_map(|m| [&(m.len() as u32).to_be_bytes(), m.as_slice()].concat())
                    .collect(),
                _ => all.concat(),
            };
            let mut options = dict! { "framing" => framing };
            if let Some(size) = record {
                options.insert("record-size".into(), size.into());
            }
            let (source, input) = world.unix().await;
            let (middle, middle_far) = seqpacket(&world).await;
            let (back, _) = (world.adopt(middle_far).await, ());
            let (sink, output) = world.pipe_sink().await;
            let there = world.relay(&source, &middle, options.clone()).await.unwrap();
            let again = world.relay(&back, &sink, options).await.unwrap();
            let fed = feed(input, bytes.clone(), piece);
            let got = read_exactly(&output, bytes.len()).await.unwrap();
            assert!(got == bytes, "{framing} in pieces of {piece}");
            fed.await.unwrap().unwrap();
            ends_well(&ended(&there).await);
            assert_eq!((there.messages(), there.method()), (count, "stream to messages"));
            until("the last one is counted", || again.messages() == count).await;
            assert_eq!(again.method(), "messages to stream");
        }
    }
}

#[tokio::test]
async fn the_last_line_and_the_last_record_may_be_short() {
    for (options, input, expected) in [
        (dict! { "framing" => "line" }, &b"one\r\ntwo"[..], [&b"one\r"[..], b"two"]),
        (dict! { "framing" => "fixed", "record-size" => 4u32 }, b"abcdef", [b"abcd", b"ef"]),
    ] {
        let world = World::new();
        let (source, writer) = world.pipe_source().await;
        let (sink, output) = world.packet_sink().await;
        let relay = world.relay(&source, &sink, options).await.unwrap();
        write(&writer, input);
        drop(writer);
        ends_well(&ended(&relay).await);
        world.engine.close(&sink, "test");
        drop((sink, relay));
        world.take_news().await;
        assert_eq!(packets(output).await.unwrap(), expected);
    }
}

/// What cannot be framed ends the relay, and every byte is still there.
#[tokio::test]
async fn bad_frames_keep_their_bytes() {
    let long = [noise(5000, 1).into_iter().map(|b| b | 128).collect::<Vec<u8>>(), b"\n".to_vec()].concat();
    for (framing, bytes, says) in [
        ("line", long.as_slice(), "4096"),
        ("length", b"\xff\xff\xff\xffabc", "4294967295"),
        ("length", b"\0\0\0\x08abc", "inside a message"),
    ] {
        let world = World::new();
        let (source, writer) = world.pipe_source().await;
        let (sink, _output) = world.packet_sink().await;
        let relay = world.relay(&source, &sink, dict! { "framing" => framing }).await.unwrap();
        write(&writer, bytes);
        drop(writer);
        let finished = ended(&relay).await;
        assert!(finished.failed && finished.reason.contains(says), "{}", finished.reason);
        let mut rest = Vec::new();
        loop {
            match world.engine.read(&world.call, &source, 65536, 1000).await.unwrap() {
                data if data.is_empty() => break,
                data => rest.extend(data),
            }
        }
        assert!(rest == bytes, "{framing}: {} of {}", rest.len(), bytes.len());
    }
}

#[tokio::test]
async fn a_message_that_has_no_frame_stays() {
    for (options, message) in [
        (dict! { "framing" => "line" }, &b"two\nlines"[..]),
        (dict! { "framing" => "fixed", "record-size" => 4u32 }, b"five!"),
    ] {
        let world = World::new();
        let (source, input) = seqpacket(&world).await;
        let (sink, _output) = world.pipe_sink().await;
        let relay = world.relay(&source, &sink, options).await.unwrap();
        write(&input, message);
        let finished = ended(&relay).await;
        assert!(finished.failed && finished.reason.contains("kept at the source"), "{}", finished.reason);
        let kept = world.engine.receive(&world.call, &source, &Dict::new(), 0).await.unwrap();
        assert_eq!(kept.data, message);
    }
}

#[tokio::test]
async fn framing_is_demanded_where_it_is_needed_and_only_there() {
    let world = World::new();
    let (stream, _a) = world.pipe_source().await;
    let (stream_sink, _b) = world.pipe_sink().await;
    let (messages, _c) = seqpacket(&world).await;
    let (messages_sink, _d) = world.packet_sink().await;
    for (source, sink, options, says) in [
        (&stream, &messages, Dict::new(), "\"framing\""),
        (&messages, &stream_sink, Dict::new(), "\"framing\""),
        (&stream, &stream_sink, dict! { "framing" => "line" }, "makes no sense"),
        (&messages, &messages_sink, dict! { "framing" => "line" }, "makes no sense"),
        (&stream, &messages, dict! { "framing" => "fixed" }, "record-size"),
        (&stream, &messages, dict! { "framing" => "line", "record-size" => 5u32 }, "record-size"),
        (&stream, &messages_sink, dict! { "framing" => "fixed", "record-size" => 5000u32 }, "4096"),
        (&stream, &messages, dict! { "framing" => "words" }, "one of none, line, length, fixed"),
        (&stream, &messages, dict! { "frame" => "line" }, "no key"),
    ] {
        let error = world.relay(source, sink, options).await.unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
        assert!(error.text.contains(says), "{error}");
    }
}

/// A queue that is removed at the end, however that comes.
pub(super) struct Queue(Arc<Endpoint>);

impl std::ops::Deref for Queue {
    type Target = Arc<Endpoint>;

    fn deref(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.0.kernel.remove();
    }
}

/// As small as it may be: all queues of a user share one limit.
pub(super) async fn queue(world: &World, attributes: &str) -> Queue {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("ipc-relay-{}-{number}", std::process::id());
    Queue(world.create(&format!("posixmq:name=/{name},{attributes}")).await)
}

pub(super) async fn send(world: &World, queue: &Arc<Endpoint>, data: &[u8], priority: u32) {
    let attributes = dict! { "priority" => priority };
    let message =
        ipc_kernel::shape::Outgoing { data, attributes: &attributes, fds: &[], sent: &Default::default() };
    world.engine.send(&world.call, queue, message, 10_000).await.unwrap();
}

pub(super) async fn receive(world: &World, queue: &Arc<Endpoint>) -> (Vec<u8>, i128) {
    let message = world.engine.receive(&world.call, queue, &Dict::new(), 10_000).await.unwrap();
    (message.data, message.attributes["priority"].integer().unwrap())
}

/// Between two message queues priorities stay, an empty message is one, and a full sink takes nothing away.
#[tokio::test]
async fn queues_keep_their_priorities() {
    let world = World::new();
    let (source, sink) = (queue(&world, "depth=9,size=64").await, queue(&world, "depth=3,size=64").await);
    for (data, priority) in [("low", 0), ("a", 7), ("b", 7), ("top", 32767), ("", 3), ("mid", 100)] {
        send(&world, &source, data.as_bytes(), priority).await;
    }
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    until("the sink is full", || relay.messages() == 3).await;
    for expected in [("top", 32767), ("mid", 100), ("a", 7), ("b", 7), ("", 3), ("low", 0)] {
        assert_eq!(receive(&world, &sink).await, (expected.0.into(), expected.1));
    }
    relay.stop("stopped");
    assert_eq!(ended(&relay).await.messages, 6);
    // What another mechanism knows nothing of is left out; from there all have the lowest.
    let (other, far) = seqpacket(&world).await;
    let (out, back) = (
        world.relay(&source, &other, Dict::new()).await.unwrap(),
        world.relay(&other, &sink, Dict::new()).await.unwrap(),
    );
    send(&world, &source, b"out", 9).await;
    let mut buffer = [0; 64];
    until("it comes", || {
        ipc_kernel::fd::poll_now(&far, rustix::event::PollFlags::IN).is_ok_and(|now| !now.is_empty())
    })
    .await;
    let length = rustix::io::read(&far, &mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"out");
    write(&far, b"back");
    assert_eq!(receive(&world, &sink).await, (b"back".to_vec(), 0));
    out.stop("stopped");
    back.stop("stopped");
}

#[tokio::test]
async fn queues_and_bytes() {
    let world = World::new();
    let (lines, input) = world.pipe_source().await;
    let (records, output) = world.pipe_sink().await;
    let middle = queue(&world, "depth=3,size=8").await;
    let framing = |word: &str| dict! { "framing" => word };
    let into = world.relay(&lines, &middle, framing("line")).await.unwrap();
    let out = world.relay(&middle, &records, framing("length")).await.unwrap();
    write(&input, b"one\ntwo\nthree\n");
    let read = read_exactly(&output, 23).await.unwrap();
    assert_eq!(read, b"\0\0\0\x03one\0\0\0\x03two\0\0\0\x05three");
    write(&input, b"more than 8 bytes\n");
    let finished = ended(&into).await;
    assert!(finished.failed && finished.reason.contains("8"), "{}", finished.reason);
    let mut kept = world.engine.read(&world.call, &lines, 100, 0).await.unwrap();
    kept.extend(world.engine.read(&world.call, &lines, 100, 0).await.unwrap());
    assert_eq!(kept, b"more than 8 bytes\n", "what was taken, and what was not");
    out.stop("stopped");
}

/// A message that is larger than the sink's stays at the source, and goes back into the queue with it.
#[tokio::test]
async fn what_a_queue_cannot_take_goes_back() {
    let world = World::new();
    let (source, sink) = (queue(&world, "depth=2,size=64").await, queue(&world, "depth=2,size=8").await);
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    send(&world, &source, b"more than 8 bytes", 5).await;
    let finished = ended(&relay).await;
    assert!(finished.failed && finished.reason.contains("17") && finished.reason.contains("8"));
    // For each way in which the endpoint may have been opened.
    for access in ["read-write", "read"] {
        let options = dict! { "access" => access };
        let other = world.engine.attach(&world.call, &source.address, options).await.unwrap();
        let message = match access {
            "read-write" => world.engine.receive(&world.call, &source, &Dict::new(), 0).await.unwrap(),
            _ => world.engine.receive(&world.call, &other, &Dict::new(), 0).await.unwrap(),
        };
        other.keep(message);
        world.engine.close(&other, "test");
        drop(other);
        world.take_news().await;
        assert_eq!(source.messages().unwrap().depth(), Some(1), "{access}");
    }
    assert_eq!(receive(&world, &source).await, (b"more than 8 bytes".to_vec(), 5));
}

#[tokio::test]
async fn a_queue_into_itself_is_refused() {
    let world = World::new();
    let source = queue(&world, "depth=2,size=8").await;
    let again =
        world.engine.attach(&world.call, &source.address, dict! { "access" => "write" }).await.unwrap();
    for sink in [&*source, &again] {
        let refused = world.relay(&source, sink, Dict::new()).await.unwrap_err();
        assert!(refused.kind == Kind::InvalidArgument && refused.text.contains("come back"), "{refused}");
    }
    let other = queue(&world, "depth=2,size=8").await;
    let relay = world.relay(&source, &other, Dict::new()).await.unwrap();
    let refused = world.relay(&other, &again, Dict::new()).await.unwrap_err();
    assert!(refused.text.contains("round for ever"), "{refused}");
    relay.stop("stopped");
}
