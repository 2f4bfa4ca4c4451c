//! Bytes to bytes: every pair of ends, half-closes, back-pressure, peers that go.

use ipc_engine::relay::State;
use ipc_kernel::{Dict, Kind, dict};
use rustix::net::Shutdown;

use super::*;

const MIB: usize = 1 << 20;

/// Every pair of one-way streams, with pieces from small to large.
#[tokio::test]
async fn every_pair_moves_everything() {
    for (piece, length) in [(1, 20_000), (64, 100_000), (4096, 2 * MIB), (300_001, 9 * MIB + 17)] {
        for (from, to, method) in [
            ("pipe", "pipe", "splice"),
            ("pipe", "unix", "splice"),
            ("unix", "pipe", "splice"),
            ("tcp", "pipe", "splice"),
            ("unix", "unix", "splice through a pipe"),
            ("tcp", "unix", "splice through a pipe"),
            ("unix", "tcp", "read and write"),
            ("pipe", "tcp", "read and write"),
            ("tcp", "tcp", "read and write"),
        ] {
            let world = World::new();
            let (source, input) = world.source(from).await;
            let (sink, output) = world.sink(to).await;
            let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
            let data = noise(length, 7);
            let fed = feed(input, data.clone(), piece);
            let got = drain(output).await.unwrap();
            fed.await.unwrap().unwrap();
            assert!(got == data, "{from} to {to} in pieces of {piece}: {} of {length} bytes", got.len());
            let finished = ended(&relay).await;
            ends_well(&finished);
            assert_eq!(finished.bytes, length as u64);
            assert_eq!((relay.bytes(), relay.method()), (length as u64, method), "{from} to {to}");
            assert_eq!(relay.state(), State::Finished);
            assert!(relay.rate() > 0);
            assert!(world.engine.relay(relay.id).is_none());
        }
    }
}

#[tokio::test]
async fn memory_goes_in_and_out() {
    let world = World::new();
    let data = noise(3 * MIB + 5, 3);
    let memory = |length: usize| format!("mmap:size={length}");

    for out in ["pipe", "unix", "tcp"] {
        let source = world.create(&memory(data.len())).await;
        source.memory().unwrap().write(0, &data).unwrap();
        let (sink, output) = world.sink(out).await;
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        let got = drain(output).await.unwrap();
        assert!(got == data, "memory to {out}: {}", got.len());
        ends_well(&ended(&relay).await);
    }

    // Into memory, which takes what there is room for; the rest stays at the source.
    for from in ["pipe", "unix", "tcp"] {
        let sink = world.create(&memory(100_000)).await;
        let (source, input) = world.source(from).await;
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        let fed = feed(input, data[..150_000].to_vec(), 10_000);
        let finished = ended(&relay).await;
        assert_eq!((finished.reason.as_str(), finished.bytes), ("the memory is full", 100_000), "{from}");
        assert!(sink.memory().unwrap().read(0, 100_000).unwrap() == data[..100_000]);
        let mut rest = Vec::new();
        while rest.len() < 50_000 {
            rest.extend(world.engine.read(&world.call, &source, 65536, 5000).await.unwrap());
        }
        assert!(rest == data[100_000..150_000], "{from}");
        fed.await.unwrap().unwrap();
    }

    let (source, sink) = (world.create(&memory(data.len())).await, world.create(&memory(data.len())).await);
    source.memory().unwrap().write(0, &data).unwrap();
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    assert!(!ended(&relay).await.failed);
    assert!(sink.memory().unwrap().read(0, data.len()).unwrap() == data);
}

/// Both ways at once; each way ends for itself.
#[tokio::test]
async fn both_ways_with_half_closes() {
    for kind in ["unix", "tcp"] {
        let world = World::new();
        let ((a, a_far), (b, b_far)) = match kind {
            "unix" => (world.unix().await, world.unix().await),
            _ => (world.tcp().await, world.unix().await),
        };
        let relay = world.relay(&a, &b, both()).await.unwrap();
        let (there, back) = (noise(5 * MIB, 1), noise(3 * MIB, 2));

        let (sent, a_read) = (there.clone(), a_far.try_clone().unwrap());
        let sender = tokio::task::spawn_blocking(move || {
            File::from(a_far.try_clone().unwrap()).write_all(&sent).unwrap();
            rustix::net::shutdown(&a_far, Shutdown::Write).unwrap();
        });
        let b_write = b_far.try_clone().unwrap();
        // The far end answers only when it has seen the end of what came.
        let got = drain(b_far).await.unwrap();
        sender.await.unwrap();
        assert!(got == there);
        running(&relay);
        let fed = feed(b_write, back.clone(), 65536);
        // All copies of b's far end are closed with it.
        assert!(drain(a_read).await.unwrap() == back, "{kind}");
        fed.await.unwrap().unwrap();
        ends_well(&ended(&relay).await);
        assert_eq!((relay.bytes(), relay.bytes_back()), (there.len() as u64, back.len() as u64));
    }
}

/// When one peer closes altogether, what it had sent still arrives.
#[tokio::test]
async fn a_peer_that_closes_has_its_last_word() {
    let world = World::new();
    let ((a, a_far), (b, b_far)) = (world.unix().await, world.unix().await);
    let relay = world.relay(&a, &b, both()).await.unwrap();
    write(&b_far, b"last word");
    drop(b_far);
    assert_eq!(drain(a_far).await.unwrap(), b"last word");
    ended(&relay).await;
}

#[tokio::test]
async fn shutdown_may_be_left_out() {
    let world = World::new();
    let (source, input) = world.pipe_source().await;
    let (sink, output) = world.pipe_sink().await;
    let relay = world.relay(&source, &sink, dict! { "shutdown" => false }).await.unwrap();
    write(&input, b"one");
    drop(input);
    ends_well(&ended(&relay).await);
    // The sink is still open: more can be written into it.
    assert_eq!(world.engine.write(&world.call, &sink, b" two", 1000).await.unwrap(), 4);
    world.engine.close(&sink, "test");
    drop((sink, relay));
    world.take_news().await;
    assert_eq!(drain(output).await.unwrap(), b"one two");
}

/// Nothing is lost when the reader goes: what was taken is read from the source again.
#[tokio::test]
async fn the_sink_goes_in_the_middle() {
    for (from, to) in
        [("pipe", "pipe"), ("unix", "unix"), ("unix", "tcp"), ("unix", "pipe"), ("pipe", "unix")]
    {
        let world = World::new();
        let (source, input) = match from {
            "pipe" => world.pipe_source().await,
            _ => world.unix().await,
        };
        let (sink, output) = world.sink(to).await;
        // TCP's would grow until they hold all of it; a pipe has none.
        _ = rustix::net::sockopt::set_socket_recv_buffer_size(&output, 65_536);
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        let data = noise(6 * MIB, 5);
        let fed = feed(input, data.clone(), 50_000);
        let first = read_exactly(&output, MIB).await.unwrap();
        assert!(first == data[..MIB]);
        // The sink's buffer fills: the relay holds what it can, and the writer waits.
        let mut before = 0;
        until("the relay stands still", || std::mem::replace(&mut before, relay.bytes()) == relay.bytes())
            .await;
        drop(output);
        let finished = ended(&relay).await;
        assert!(
            finished.failed && finished.reason.contains("the sink was closed"),
            "{from} to {to}: {finished:?}"
        );
        assert_eq!((relay.state(), relay.error()), (State::Failed, finished.reason.as_str()));

        // What the sink had accepted is gone with its reader, as always; what follows is there.
        let mut rest = Vec::new();
        loop {
            let data = world.engine.read(&world.call, &source, MIB as u32, 5000).await.unwrap();
            if data.is_empty() {
                break;
            }
            rest.extend(data);
        }
        let delivered = finished.bytes as usize;
        assert!(delivered >= MIB, "{from} to {to}");
        assert!(rest == data[delivered..], "{from} to {to}: {} + {}", delivered, rest.len());
        fed.await.unwrap().unwrap();
    }
}

/// An idle relay notices that nobody reads any more.
#[tokio::test]
async fn an_idle_relay_sees_the_reader_go() {
    let world = World::new();
    for to in ["pipe", "unix"] {
        let (source, _input) = world.pipe_source().await;
        let (sink, output) = match to {
            "pipe" => world.pipe_sink().await,
            _ => world.unix().await,
        };
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        write(&_input, b"x");
        assert_eq!(read_exactly(&output, 1).await.unwrap(), b"x");
        drop(output);
        let finished = ended(&relay).await;
        assert!(finished.failed && finished.reason.starts_with("the sink was closed"), "{}", finished.reason);
    }
}

/// A sink that is never read: what the relay holds is bounded, and the writer feels it.
#[tokio::test]
async fn back_pressure_reaches_the_writer() {
    for (from, to) in [("unix", "unix"), ("pipe", "pipe"), ("unix", "tcp")] {
        let world = World::new();
        let (source, input) = match from {
            "pipe" => world.pipe_source().await,
            _ => world.unix().await,
        };
        let (sink, _output) = world.sink(to).await;
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        ipc_kernel::fd::set_nonblocking(input.as_fd()).unwrap();
        let piece = noise(65536, 1);
        let witness = Witness::new(&world).await;
        let (mut written, mut refused) = (0, 0);
        // The writer is refused again, with the relay having had its turns.
        while refused < 3 {
            match rustix::io::write(&input, &piece) {
                Ok(length) => (written, refused) = (written + length, 0),
                Err(rustix::io::Errno::AGAIN) => {
                    refused += 1;
                    witness.turn().await;
                }
                Err(errno) => panic!("{errno}"),
            }
            assert!(written < 16 * MIB, "{from} to {to}: {written}");
        }
        running(&relay);
        relay.stop("stopped");
        let finished = ended(&relay).await;
        assert_eq!((finished.reason.as_str(), finished.failed), ("stopped", false));
        // Nothing is lost: what the sink has and what the source has is all.
        drop(input);
        let mut rest = 0;
        loop {
            match world.engine.read(&world.call, &source, MIB as u32, 5000).await.unwrap().len() {
                0 => break,
                length => rest += length,
            }
        }
        assert_eq!(finished.bytes as usize + rest, written, "{from} to {to}");
    }
}

/// A FIFO without a reader or writer is waited for, and says so.
#[tokio::test]
async fn a_fifo_is_waited_for() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let source = world.create(&format!("fifo:path={}", path("in"))).await;
    let sink = world.create(&format!("fifo:path={}", path("out"))).await;
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    until("it waits", || relay.state() == State::Waiting).await;
    let (reader, writer) = (path("out"), path("in"));
    let reader = tokio::task::spawn_blocking(move || std::fs::read(reader).unwrap());
    let writer = tokio::task::spawn_blocking(move || std::fs::write(writer, b"through two FIFOs").unwrap());
    assert_eq!(reader.await.unwrap(), b"through two FIFOs");
    writer.await.unwrap();
    ends_well(&ended(&relay).await);
}

/// Bytes that a cancelled Read left behind go first.
#[tokio::test]
async fn kept_bytes_go_first() {
    let world = World::new();
    let (source, input) = world.pipe_source().await;
    let (sink, output) = world.pipe_sink().await;
    source.keep_bytes(b"first, ");
    write(&input, b"second");
    drop(input);
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    ends_well(&ended(&relay).await);
    assert_eq!(drain(output).await.unwrap(), b"first, second");
}

#[tokio::test]
async fn an_end_that_the_service_does_not_hold_is_an_error_of_the_call() {
    let world = World::new();
    let (source, _input) = world.pipe_source().await;
    let (sink, _output) = world.pipe_sink().await;
    // The other way round: it can write into neither.
    let error = world.relay(&sink, &source, Dict::new()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Closed, "{error}");
}
