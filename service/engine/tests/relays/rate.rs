//! rate-bytes and rate-messages: never faster, whatever moves the data, and the writer is the one who waits.
//!
//! Times are only compared with the least that the rate allows: a loaded machine may be slower.

use std::time::{Duration, Instant};

use ipc_engine::relay::State;
use ipc_kernel::{Kind, dict};
use rustix::time::{ClockId, clock_gettime};

use super::{
    framed::{packets, queue, seqpacket},
    *,
};

#[tokio::test]
async fn streams_are_no_faster_whatever_moves_them() {
    const RATE: usize = 1 << 20;
    let data = noise(RATE / 2, 21);
    for (from, to) in [("pipe", "pipe"), ("unix", "unix"), ("unix", "tcp"), ("tcp", "pipe")] {
        let world = World::new();
        let (source, input) = world.source(from).await;
        let (sink, output) = world.sink(to).await;
        let start = Instant::now();
        let relay = world.relay(&source, &sink, dict! { "rate-bytes" => RATE as u64 }).await.unwrap();
        let fed = feed(input, data.clone(), 50_000);
        assert!(drain(output).await.unwrap() == data, "{from} to {to}");
        // All but the burst of 100 ms.
        assert!(start.elapsed() >= Duration::from_millis(400), "{from} to {to}: {:?}", start.elapsed());
        fed.await.unwrap().unwrap();
        ends_well(&ended(&relay).await);
    }
}

/// A relay that waits for its rate takes nothing, spends nothing, and can be stopped and left.
#[tokio::test]
async fn the_writer_waits_and_nobody_spins() {
    let world = World::new();
    for kind in ["pipe", "unix"] {
        let ((source, input), (sink, output)) = match kind {
            "pipe" => (world.pipe_source().await, world.pipe_sink().await),
            _ => (world.unix().await, world.unix().await),
        };
        ipc_kernel::fd::set_nonblocking(input.as_fd()).unwrap();
        let relay = world.relay(&source, &sink, dict! { "rate-bytes" => 1000u64 }).await.unwrap();
        let (mut written, piece) = (0, noise(4096, 1));
        let start = Instant::now();
        let busy = clock_gettime(ClockId::ThreadCPUTime);
        let second = tokio::time::sleep(Duration::from_secs(1));
        tokio::pin!(second);
        loop {
            if let Ok(length) = rustix::io::write(&input, &piece) {
                written += length;
            }
            tokio::select! {
                biased;
                () = &mut second => break,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        let spent = clock_gettime(ClockId::ThreadCPUTime) - busy;
        let spent = Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32);
        assert!(spent < start.elapsed() / 4, "{kind}: {spent:?} of {:?}", start.elapsed());
        let most = 100 + start.elapsed().as_millis() as u64 + 1;
        assert!((100..=most).contains(&relay.bytes()), "{kind}: {} in {:?}", relay.bytes(), start.elapsed());
        assert_eq!(relay.state(), State::Running);
        if kind == "pipe" {
            assert!(written <= 65_536 + 4096, "the pipe has filled: {written}");
            // All that was not moved is still in the kernel.
            relay.stop("stopped");
            let moved = ended(&relay).await.bytes;
            assert_eq!(rustix::io::ioctl_fionread(&input).unwrap(), written as u64 - moved);
        } else {
            drop(output);
            assert!(ended(&relay).await.reason.contains("the sink was closed"));
        }
    }
}

#[tokio::test]
async fn messages_are_no_faster() {
    // 5 at once, 15 in 300 ms.
    let least = Duration::from_millis(300);
    let world = World::new();
    let rate = |framing: &str| {
        let mut options = dict! { "rate-messages" => 50u32 };
        if !framing.is_empty() {
            options.insert("framing".into(), framing.into());
        }
        options
    };
    let all: Vec<_> = (0..20u8).map(|n| vec![n + 32]).collect();

    let ((source, input), (sink, output)) = (seqpacket(&world).await, seqpacket(&world).await);
    all.iter().for_each(|message| write(&input, message));
    drop(input);
    let start = Instant::now();
    let relay = world.relay(&source, &sink, rate("")).await.unwrap();
    ends_well(&ended(&relay).await);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    world.engine.close(&sink, "test");
    drop((sink, relay));
    world.take_news().await;
    assert!(packets(output).await.unwrap() == all);

    let ((lines, input), (middle, output)) = (world.pipe_source().await, seqpacket(&world).await);
    all.iter().for_each(|message| write(&input, &[message, &b"\n"[..]].concat()));
    drop(input);
    let start = Instant::now();
    let relay = world.relay(&lines, &middle, rate("line")).await.unwrap();
    ends_well(&ended(&relay).await);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());

    let (source, (out, read)) = (world.adopt(output).await, world.pipe_sink().await);
    let start = Instant::now();
    let relay = world.relay(&source, &out, rate("line")).await.unwrap();
    assert_eq!(read_exactly(&read, 40).await.unwrap()[38..], [51, b'\n']);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    running(&relay);
}

/// The bytes of messages have a rate, too; pauses in between change nothing, and count is still exact.
#[tokio::test]
async fn message_bytes_and_pauses() {
    let world = World::new();
    let (source, input) = seqpacket(&world).await;
    let sink = queue(&world, "depth=10,size=1024").await;
    for n in 0..8 {
        write(&input, &noise(1000, n + 1));
    }
    let start = Instant::now();
    let options = dict! { "rate-bytes" => 10_000u64, "count" => 5u64 };
    let relay = world.relay(&source, &sink, options).await.unwrap();
    while relay.finished().is_none() {
        _ = relay.pause();
        tokio::task::yield_now().await;
        _ = relay.resume();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    // The first is the burst, and pays for itself before the second.
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!((relay.messages(), sink.messages().unwrap().depth()), (5, Some(5)));
    let next = world.engine.receive(&world.call, &source, &Dict::new(), 0).await.unwrap();
    assert!(next.data == noise(1000, 6));
}

#[tokio::test]
async fn rates_that_fit_no_end_are_named() {
    let world = World::new();
    let ((source, _a), (sink, _b)) = (world.unix().await, world.unix().await);
    for (options, key) in [
        (dict! { "rate-messages" => 1u32 }, "\"rate-messages\""),
        (dict! { "rate-bytes" => 0u64 }, "\"rate-bytes\""),
    ] {
        let refused = world.relay(&source, &sink, options).await.unwrap_err();
        assert!(refused.kind == Kind::InvalidArgument && refused.text.contains(key), "{refused}");
    }
}
