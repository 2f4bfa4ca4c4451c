//! The options that bound a flow: after how much, or how long without any, a relay ends.

use std::time::{Duration, Instant};

use ipc_kernel::{Dict, Kind, dict};

use super::{
    framed::{packets, queue, receive, send, seqpacket},
    *,
};

/// Not one byte more than was asked for leaves the source, and its end stays: another relay goes on there.
#[tokio::test]
async fn bytes_are_exact_whatever_moves_them() {
    let data = noise(3 << 20, 11);
    for (from, to) in [("pipe", "pipe"), ("pipe", "unix"), ("unix", "unix"), ("tcp", "pipe"), ("unix", "tcp")]
    {
        for (bytes, piece) in [(1u64, 1), (4097, 100), (70_000, 65_536), ((1 << 20) + 3, 300_001)] {
            let world = World::new();
            let (source, input) = world.source(from).await;
            let (sink, output) = world.sink(to).await;
            let fed = feed(input, data.clone(), piece.max(1000));
            let first = world.relay(&source, &sink, dict! { "bytes" => bytes }).await.unwrap();
            let got = read_exactly(&output, bytes as usize).await.unwrap();
            let finished = ended(&first).await;
            assert_eq!((finished.reason, finished.failed), (format!("bytes={bytes} is reached"), false));
            assert_eq!(finished.bytes, bytes);
            assert!(got == data[..bytes as usize], "{from} to {to}");
            let rest = world.relay(&source, &sink, Dict::new()).await.unwrap();
            assert!(drain(output).await.unwrap() == data[bytes as usize..], "{from} to {to}: {bytes}");
            fed.await.unwrap().unwrap();
            ends_well(&ended(&rest).await);
        }
    }
}

#[tokio::test]
async fn what_was_not_asked_for_stays_in_the_kernel() {
    let world = World::new();
    let ((source, input), (sink, output)) = (world.pipe_source().await, world.pipe_sink().await);
    write(&input, &noise(50_000, 1));
    let relay = world.relay(&source, &sink, dict! { "bytes" => 12_345u64 }).await.unwrap();
    ended(&relay).await;
    assert_eq!(rustix::io::ioctl_fionread(&input).unwrap(), 50_000 - 12_345);
    assert_eq!(rustix::io::ioctl_fionread(&output).unwrap(), 12_345);
}

#[tokio::test]
async fn count_is_exact_for_messages_and_frames() {
    let world = World::new();
    let (source, input) = seqpacket(&world).await;
    let (sink, output) = world.packet_sink().await;
    for message in [b"1", b"2", b"3", b"4", b"5"] {
        write(&input, message);
    }
    let relay = world.relay(&source, &sink, dict! { "count" => 3u64 }).await.unwrap();
    let finished = ended(&relay).await;
    assert_eq!((finished.reason.as_str(), finished.messages), ("count=3 is reached", 3));
    let next = world.engine.receive(&world.call, &source, &Dict::new(), 0).await.unwrap();
    assert_eq!(next.data, b"4");
    world.engine.close(&sink, "test");
    drop((sink, relay));
    world.take_news().await;
    assert_eq!(packets(output).await.unwrap(), [b"1", b"2", b"3"]);

    // Lines into a queue, and out of it as lines.
    let (lines, input) = world.pipe_source().await;
    let (out, output) = world.pipe_sink().await;
    let middle = queue(&world, "depth=4,size=8").await;
    write(&input, b"a\nb\nc\nd\n");
    let options = |count: u64| dict! { "framing" => "line", "count" => count };
    let into = world.relay(&lines, &middle, options(3)).await.unwrap();
    assert_eq!(ended(&into).await.messages, 3);
    assert_eq!(world.engine.read(&world.call, &lines, 100, 0).await.unwrap(), b"d\n");
    let from = world.relay(&middle, &out, options(2)).await.unwrap();
    assert_eq!(ended(&from).await.messages, 2);
    assert_eq!(read_exactly(&output, 4).await.unwrap(), b"a\nb\n");
    assert_eq!(receive(&world, &middle).await.0, b"c");
}

/// What the filter drops does not count, and units of a semaphore are messages.
#[tokio::test]
async fn count_counts_what_arrives() {
    let world = World::new();
    let (source, sink) = (queue(&world, "depth=4,size=8").await, queue(&world, "depth=4,size=8").await);
    for (data, priority) in [("a", 9), ("b", 8), ("c", 7), ("d", 6)] {
        send(&world, &source, data.as_bytes(), priority).await;
    }
    let options = dict! { "count" => 2u64, "filter" => dict! { "priority" => "..8" } };
    let relay = world.relay(&source, &sink, options).await.unwrap();
    assert_eq!(ended(&relay).await.messages, 2);
    assert_eq!((receive(&world, &sink).await.0, receive(&world, &sink).await.0), (b"b".into(), b"c".into()));
    assert_eq!(receive(&world, &source).await, (b"d".into(), 6));
}

#[tokio::test]
async fn idle_ends_it_when_nothing_has_moved() {
    let world = World::new();
    let ((source, input), (sink, output)) = (world.pipe_source().await, world.unix().await);
    let relay = world.relay(&source, &sink, dict! { "idle-ms" => 300u32 }).await.unwrap();
    let mut last = Instant::now();
    for _ in 0..5 {
        // A client that sends less often than that; the pause is what is tested.
        tokio::time::sleep(Duration::from_millis(100)).await;
        last = Instant::now();
        write(&input, b"x");
        read_exactly(&output, 1).await.unwrap();
        running(&relay);
    }
    let finished = ended(&relay).await;
    assert!(last.elapsed() >= Duration::from_millis(300), "{:?}", last.elapsed());
    assert_eq!(
        (finished.reason.as_str(), finished.failed, finished.bytes),
        ("nothing moved for 300 ms (idle-ms)", false, 5)
    );
    // A paused one is not idle; it has its time when it goes on.
    let relay = world.relay(&source, &sink, dict! { "idle-ms" => 50u32 }).await.unwrap();
    relay.pause().unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(relay.finished().is_none());
    relay.resume().unwrap();
    assert!(ended(&relay).await.reason.contains("idle-ms"));
    // A sink that takes nothing is idle, too; what was taken goes back.
    let (source, input) = world.unix().await;
    let fed = feed(input, noise(4 << 20, 3), 65_536);
    let relay = world.relay(&source, &sink, dict! { "idle-ms" => 200u32 }).await.unwrap();
    let finished = ended(&relay).await;
    assert!(finished.reason.contains("idle-ms"), "{}", finished.reason);
    drop((relay, sink));
    let mut rest = Vec::new();
    while rest.len() + (finished.bytes as usize) < 4 << 20 {
        rest.extend(world.engine.read(&world.call, &source, 1 << 20, 5000).await.unwrap());
    }
    assert!(rest == noise(4 << 20, 3)[finished.bytes as usize..]);
    fed.await.unwrap().unwrap();
}

#[tokio::test]
async fn options_that_fit_no_end_are_named() {
    let world = World::new();
    let ((stream, _a), (stream_sink, _b)) = (world.unix().await, world.unix().await);
    let ((messages, _c), (messages_sink, _d)) = (seqpacket(&world).await, seqpacket(&world).await);
    for (source, sink, options, key) in [
        (&stream, &stream_sink, dict! { "count" => 1u64 }, "\"count\""),
        (&messages, &messages_sink, dict! { "bytes" => 1u64 }, "\"bytes\""),
        (&stream, &messages_sink, dict! { "bytes" => 1u64, "framing" => "line" }, "\"bytes\""),
        (&stream, &stream_sink, dict! { "bytes" => 1u64, "both" => true }, "\"bytes\""),
        (&messages, &messages_sink, dict! { "count" => 1u64, "both" => true }, "\"count\""),
        (&messages, &messages_sink, dict! { "count" => 0u64 }, "\"count\""),
        (&stream, &stream_sink, dict! { "idle-ms" => 0u32 }, "\"idle-ms\""),
    ] {
        let refused = world.relay(source, sink, options).await.unwrap_err();
        assert!(refused.kind == Kind::InvalidArgument && refused.text.contains(key), "{key}: {refused}");
    }
}
