//! Several relays into one sink: messages stay whole, those of one source stay in their order, and the end of stream
//! comes when the last one ends.

use std::collections::VecDeque;

use ipc_kernel::{Kind, dict};

use super::{
    framed::{packets, seqpacket},
    *,
};

/// Messages that say which source they come from, larger than what a pipe takes at once.
fn tagged(source: u8, count: u64) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let seed = n * 7 + u64::from(source) + 1;
            let mut message = noise((seed * 7919 % 20_000) as usize + 1, seed);
            message[0] = source;
            message
        })
        .collect()
}

/// Each source's messages, and nothing else, in its order.
fn check(sent: Vec<Vec<Vec<u8>>>, got: impl IntoIterator<Item = Vec<u8>>) {
    let mut left: Vec<VecDeque<_>> = sent.into_iter().map(VecDeque::from).collect();
    for (n, message) in got.into_iter().enumerate() {
        let next = left[usize::from(message[0])].pop_front();
        assert!(next.as_ref() == Some(&message), "message {n} of {} bytes is not the next", message.len());
    }
    assert!(left.iter().all(VecDeque::is_empty));
}

#[tokio::test]
async fn messages_into_one_stream_stay_whole() {
    for to in ["pipe", "unix", "tcp"] {
        let world = World::new();
        let (sink, output) = world.sink(to).await;
        let sent: Vec<_> = (0..4).map(|source| tagged(source, 50 * (u64::from(source) + 1))).collect();
        let (mut relays, mut feeders) = (Vec::new(), Vec::new());
        for messages in sent.clone() {
            let (source, input) = seqpacket(&world).await;
            relays.push(world.relay(&source, &sink, dict! { "framing" => "length" }).await.unwrap());
            feeders.push(tokio::task::spawn_blocking(move || {
                messages.iter().for_each(|message| write(&input, message));
            }));
        }
        // The first ends long before the last: only that one passes the end of stream on.
        let bytes = drain(output).await.unwrap();
        let (mut rest, mut got) = (bytes.as_slice(), Vec::new());
        while let Some((length, behind)) = rest.split_first_chunk() {
            let (message, behind) = behind.split_at(u32::from_be_bytes(*length) as usize);
            got.push(message.to_vec());
            rest = behind;
        }
        check(sent, got);
        for feeder in feeders {
            feeder.await.unwrap();
        }
        for relay in relays {
            ends_well(&ended(&relay).await);
        }
    }
}

#[tokio::test]
async fn lines_into_one_sink_of_messages_stay_whole() {
    let world = World::new();
    let (sink, output) = seqpacket(&world).await;
    let clean =
        |message: Vec<u8>| message.into_iter().map(|byte| if byte == b'\n' { 0 } else { byte }).collect();
    let sent: Vec<Vec<Vec<u8>>> =
        [0, 1, 2].map(|source| tagged(source, 100).into_iter().map(clean).collect()).into_iter().collect();
    let reader = packets(output);
    let mut relays = Vec::new();
    for messages in &sent {
        let (source, input) = world.pipe_source().await;
        relays.push(world.relay(&source, &sink, dict! { "framing" => "line" }).await.unwrap());
        _ = feed(input, messages.iter().flat_map(|m| [m.as_slice(), b"\n"].concat()).collect(), 777);
    }
    for relay in &relays {
        ends_well(&ended(relay).await);
    }
    world.engine.close(&sink, "test");
    drop((sink, relays));
    world.take_news().await;
    check(sent, reader.await.unwrap());
}

/// Nobody writes into a message that another relay has begun; when that one is stopped, it says what is torn.
#[tokio::test]
async fn a_message_that_was_begun_is_waited_for() {
    let world = World::new();
    let (sink, output) = world.pipe_sink().await;
    let ((large, large_far), (small, small_far)) = (seqpacket(&world).await, seqpacket(&world).await);
    let options = || dict! { "framing" => "length" };
    let first = world.relay(&large, &sink, options()).await.unwrap();
    let message = noise(150_000, 1);
    write(&large_far, &message);
    until("the sink is full", || first.bytes() >= 65_536).await;
    let second = world.relay(&small, &sink, options()).await.unwrap();
    write(&small_far, b"small");
    let witness = Witness::new(&world).await;
    first.pause().unwrap();
    witness.turn().await;
    assert_eq!(second.bytes(), 0);
    first.resume().unwrap();
    let got = read_exactly(&output, 4 + message.len() + 4 + 5).await.unwrap();
    assert!(got[4..][..message.len()] == message && got.ends_with(b"\0\0\0\x05small"));
    // Bytes have no borders between which to take turns.
    let (stream, _input) = world.pipe_source().await;
    let refused = world.relay(&stream, &sink, Dict::new()).await.unwrap_err();
    assert!(refused.kind == Kind::Busy && refused.text.contains("already written"), "{refused}");
    // A reader that goes ends both.
    drop(output);
    assert!(ended(&first).await.failed && ended(&second).await.failed);
}
