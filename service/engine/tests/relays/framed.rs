//! Messages to messages, and the adapters between messages and bytes.

use ipc_kernel::{Dict, Kind, dict};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::*;

async fn seqpacket(world: &World) -> (Arc<Endpoint>, OwnedFd) {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    (world.adopt(ours).await, theirs)
}

/// Messages of many lengths, none of them 0.
fn messages(count: u64, max: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let size = usize::from_ne_bytes(noise(8, n + 1).try_into().unwrap()) % max + 1;
            noise(size, n + 99).into_iter().map(|byte| if byte == b'\n' { b' ' } else { byte }).collect()
        })
        .collect()
}

/// Reads packets until the writers have gone.
fn packets(fd: OwnedFd) -> tokio::task::JoinHandle<Vec<Vec<u8>>> {
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
