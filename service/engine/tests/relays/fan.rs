//! The option `tee` for bytes: all of them in every sink, at the pace of the slowest, whatever the ends are.

use std::process::{Command, Stdio};

use ipc_kernel::{Kind, dict};

use super::{
    framed::{queue, send},
    tee::tee,
    *,
};

async fn tee_of(
    world: &World,
    source: &Arc<Endpoint>,
    sinks: &[Arc<Endpoint>],
    options: Dict,
) -> Result<Arc<Relay>, Error> {
    let (sink, further) = sinks.split_first().unwrap();
    world.engine.start_tee(&world.call, source.clone(), sink.clone(), further.to_vec(), options).await
}

/// What tee(1) makes of it: its output, and two files.
fn by_coreutils(data: &[u8]) -> [Vec<u8>; 3] {
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| dir.path().join(name));
    let mut child =
        Command::new("tee").args(&files).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let data = data.to_vec();
    let feeding = std::thread::spawn(move || input.write_all(&data).unwrap());
    let output = child.wait_with_output().unwrap().stdout;
    feeding.join().unwrap();
    let [a, b] = files.map(|file| std::fs::read(file).unwrap());
    [output, a, b]
}

/// As tee(1): every mixture of ends, small writes and large ones, readers of different speed, pauses in between.
#[tokio::test]
async fn the_same_as_coreutils() {
    let data = noise(1 << 20, 11);
    let expected = by_coreutils(&data);
    let mixtures = [
        ("pipe", ["pipe", "pipe", "pipe"], "splice and tee"),
        ("unix", ["pipe", "unix", "tcp"], "read and write"),
        ("tcp", ["unix", "unix", "unix"], "read and write"),
        ("pipe", ["tcp", "pipe", "pipe"], "read and write"),
    ];
    for (from, kinds, method) in mixtures {
        for piece in [1, 700, 5000, 200_000] {
            let world = World::new();
            let data = if piece == 1 { data[..20_000].to_vec() } else { data.clone() };
            let (source, input) = world.source(from).await;
            let (mut sinks, mut readers) = (Vec::new(), Vec::new());
            for (index, kind) in kinds.into_iter().enumerate() {
                let (sink, output) = world.sink(kind).await;
                sinks.push(sink);
                readers.push(tokio::task::spawn_blocking(move || {
                    let (mut file, mut all) = (File::from(output), Vec::new());
                    let mut buffer = vec![0; [100_000, 333, 4096][index]];
                    loop {
                        match file.read(&mut buffer).unwrap() {
                            0 => return all,
                            length => all.extend_from_slice(&buffer[..length]),
                        }
                    }
                }));
            }
            let relay = tee_of(&world, &source, &sinks, Dict::new()).await.unwrap();
            let fed = feed(input, data.clone(), piece);
            for _ in 0..5 {
                // It may have ended: what is left is in the sinks then.
                if relay.pause().is_ok() {
                    tokio::task::yield_now().await;
                    _ = relay.resume();
                }
                tokio::task::yield_now().await;
            }
            fed.await.unwrap().unwrap();
            let finished = ended(&relay).await;
            ends_well(&finished);
            assert_eq!((finished.bytes, relay.method()), (data.len() as u64, method), "{from} in {piece}");
            for (reader, expected) in readers.into_iter().zip(&expected) {
                let got = reader.await.unwrap();
                assert!(got == expected[..data.len()], "{from} to {kinds:?} in pieces of {piece}");
            }
        }
    }
}

/// One that reads nothing holds all up, by one portion; what not all have is kept, and who has it is said.
#[tokio::test]
async fn the_slowest_sets_the_pace_and_a_stop_tells_who_has_what() {
    for kind in ["pipe", "unix"] {
        let world = World::new();
        let (source, input) = world.source(kind).await;
        let ((quick, quick_out), (slow, slow_out)) = (world.sink(kind).await, world.sink(kind).await);
        let relay = tee(&world, &source, [&quick, &slow], Dict::new()).await.unwrap();
        let data = noise(4 << 20, 5);
        let fed = feed(input, data.clone(), 100_000);
        rustix::io::ioctl_fionbio(&quick_out, true).unwrap();
        let mut quick_has = Vec::new();
        let mut read = || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length) = rustix::io::read(&quick_out, &mut buffer) {
                quick_has.extend_from_slice(&buffer[..length]);
                if length == 0 {
                    break;
                }
            }
            quick_has.len()
        };
        // Until the slow one is full, and the quick one has nothing more to read for some turns of all tasks.
        let witness = Witness::new(&world).await;
        let (mut before, mut still) = (usize::MAX, 0);
        while still < 5 {
            witness.turn().await;
            let now = read();
            still = if now == before && now > 0 { still + 1 } else { 0 };
            before = now;
        }
        relay.stop("stopped");
        let finished = ended(&relay).await;
        let ahead = before as u64 - finished.bytes;
        assert!(ahead > 0 && ahead <= world.engine.limits.relay_buffer.into(), "{kind}: {ahead}");
        let torn =
            format!("stopped; of the bytes that were kept at the source {ahead} are in {}", quick.address);
        assert_eq!((finished.reason, finished.failed), (torn, false), "{kind}");
        assert!(data.starts_with(&quick_has));
        // The slow one has what is counted, and the source the rest, to the byte.
        let slow_has = read_exactly(&slow_out, finished.bytes as usize).await.unwrap();
        assert!(data.starts_with(&slow_has));
        let mut rest = Vec::new();
        while rest.len() + slow_has.len() < data.len() {
            rest.extend(world.engine.read(&world.call, &source, 1 << 20, 5000).await.unwrap());
        }
        assert!(rest == data[slow_has.len()..], "{kind}");
        fed.await.unwrap().unwrap();
    }
}

/// A reader that leaves ends it, says which, and the rest is at the source.
#[tokio::test]
async fn a_sink_that_goes_ends_it() {
    for kind in ["pipe", "unix"] {
        let world = World::new();
        let (source, input) = world.source(kind).await;
        let ((one, one_out), (two, two_out)) = (world.sink(kind).await, world.sink(kind).await);
        let relay = tee(&world, &source, [&one, &two], Dict::new()).await.unwrap();
        write(&input, b"both");
        for output in [&one_out, &two_out] {
            assert_eq!(read_exactly(output, 4).await.unwrap(), b"both");
        }
        until("it is counted", || relay.bytes() == 4).await;
        drop(two_out);
        let finished = ended(&relay).await;
        assert!(finished.failed && finished.reason.contains(&two.address), "{kind}: {}", finished.reason);
        write(&input, b"rest");
        assert_eq!(world.engine.read(&world.call, &source, 9, 5000).await.unwrap(), b"rest");
        drop(one_out);
    }
}

/// bytes, rate-bytes and idle-ms, which count what all have; not one byte more is taken.
#[tokio::test]
async fn it_is_bounded_as_every_relay() {
    for kind in ["pipe", "unix"] {
        let world = World::new();
        let (source, input) = world.source(kind).await;
        let ((one, one_out), (two, two_out)) = (world.sink(kind).await, world.sink(kind).await);
        let options = dict! { "bytes" => 30_001u64, "rate-bytes" => 1_000_000u64 };
        let relay = tee(&world, &source, [&one, &two], options).await.unwrap();
        let data = noise(50_000, 3);
        write(&input, &data);
        for output in [&one_out, &two_out] {
            assert!(read_exactly(output, 30_001).await.unwrap() == data[..30_001]);
        }
        let finished = ended(&relay).await;
        assert_eq!((finished.reason.as_str(), finished.bytes), ("bytes=30001 is reached", 30_001));
        assert_eq!(source.kept_count(), (0, 0), "{kind}: the rest is still in the kernel");
        assert!(world.engine.read(&world.call, &source, 50_000, 1000).await.unwrap() == data[30_001..]);
        let relay = tee(&world, &source, [&one, &two], dict! { "idle-ms" => 50u32 }).await.unwrap();
        assert_eq!(ended(&relay).await.reason, "nothing moved for 50 ms (idle-ms)");
    }
}

/// Messages into streams: each record whole in every one, one after the other.
#[tokio::test]
async fn messages_go_into_several_streams() {
    let world = World::new();
    let source = queue(&world, "depth=9,size=8192").await;
    let ((one, one_out), (two, two_out)) = (world.unix().await, world.pipe_sink().await);
    rustix::pipe::fcntl_setpipe_size(&two_out, 8192).unwrap();
    let relay = tee(&world, &source, [&one, &two], dict! { "framing" => "length" }).await.unwrap();
    let records: Vec<_> = (1..=4).map(|seed| noise(5000, seed)).collect();
    for record in &records {
        send(&world, &source, record, 0).await;
    }
    // The first has the second record, of which a part is in the second sink.
    until("one is in both", || relay.messages() == 1).await;
    let frame = |record: &[u8]| [&5000u32.to_be_bytes(), record].concat();
    assert!(
        read_exactly(&one_out, 2 * 5004).await.unwrap() == [frame(&records[0]), frame(&records[1])].concat()
    );
    let witness = Witness::new(&world).await;
    for _ in 0..3 {
        relay.pause().unwrap();
        relay.resume().unwrap();
        witness.turn().await;
    }
    relay.stop("stopped");
    let reason = ended(&relay).await.reason;
    let told = format!(
        "stopped; 5004 of 5004 bytes of a message are in {} and 908 of 5004 bytes of a message are in {}; it was kept \
         whole at the source",
        one.address, two.address
    );
    assert_eq!(reason, told);
    assert_eq!((relay.messages(), relay.bytes()), (1, 5004 + 908));
    let kept = world.engine.receive(&world.call, &source, &Dict::new(), 1000).await.unwrap();
    assert!(kept.data == records[1]);
    world.engine.close(&two, "test");
    drop((two, relay));
    world.take_news().await;
    assert!(drain(two_out).await.unwrap() == [frame(&records[0]), frame(&records[1])].concat()[..5004 + 908]);
}

/// Memory is filled as far as the smallest goes; the ends of all are passed on, and the last writer does it.
#[tokio::test]
async fn memory_and_ends() {
    let world = World::new();
    let (source, input) = world.pipe_source().await;
    let (small, large) = (world.create("mmap:size=4096").await, world.create("mmap:size=8192").await);
    let relay = tee(&world, &source, [&large, &small], Dict::new()).await.unwrap();
    let data = noise(6000, 9);
    write(&input, &data);
    let finished = ended(&relay).await;
    assert_eq!((finished.reason.as_str(), finished.bytes), ("the memory is full", 4096));
    for memory in [&small, &large] {
        assert!(memory.memory().unwrap().read(0, 4096).unwrap() == data[..4096]);
    }
    assert!(world.engine.read(&world.call, &source, 9999, 1000).await.unwrap() == data[4096..]);
}

#[tokio::test]
async fn what_cannot_be_for_bytes() {
    let world = World::new();
    let ((source, _input), (one, _one)) = (world.unix().await, world.unix().await);
    let ((two, _two), lines) = (world.unix().await, queue(&world, "depth=2,size=8").await);
    for (sinks, options, words) in [
        ([&one, &two], dict! { "fds" => true }, "go to one reader"),
        ([&one, &two], dict! { "framing" => "line" }, "makes no sense between two streams"),
        ([&one, &two], dict! { "count" => 1u64 }, "\"bytes\" counts"),
        ([&one, &lines], Dict::new(), "takes messages, and the first sink is a stream of bytes"),
        (
            [&lines, &one],
            dict! { "framing" => "line" },
            "is a stream of bytes, and the first sink takes messages",
        ),
        ([&one, &source], Dict::new(), "are the same"),
    ] {
        let error = tee(&world, &source, sinks, options).await.unwrap_err();
        assert!(error.kind == Kind::InvalidArgument && error.text.contains(words), "{error}");
    }
    // Each of the sinks is taken: two would write in between.
    let _relay = tee(&world, &source, [&one, &two], Dict::new()).await.unwrap();
    let (other, _other) = world.pipe_source().await;
    let error = world.relay(&other, &two, Dict::new()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Busy, "{error}");
}
