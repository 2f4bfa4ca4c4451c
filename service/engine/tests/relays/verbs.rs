//! What is done with a relay: pause, resume, stop; what ends it from outside; what is refused;
//! many at once.

use std::time::{Duration, Instant};

use ipc_engine::{Object, relay::State};
use ipc_kernel::{Dict, Kind, Value, dict};

use super::*;

#[tokio::test]
async fn pause_and_resume_lose_nothing() {
    for kind in ["pipe", "unix"] {
        let world = World::new();
        let ((source, input), (sink, output)) = match kind {
            "pipe" => (world.pipe_source().await, world.pipe_sink().await),
            _ => (world.unix().await, world.unix().await),
        };
        let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
        let witness = Witness::new(&world).await;
        let data = noise(20 << 20, 9);
        let fed = feed(input, data.clone(), 10_000);
        let got = drain(output);
        for step in 1..=10u64 {
            let (seen, wanted) = (relay.clone(), step * (1 << 20));
            until("it moves", || seen.bytes() >= wanted).await;
            relay.pause().unwrap();
            assert_eq!(relay.state(), State::Paused);
            witness.turn().await;
            let before = relay.bytes();
            witness.turn().await;
            assert_eq!(relay.bytes(), before, "a paused relay moves nothing");
            relay.resume().unwrap();
            running(&relay);
        }
        assert!(got.await.unwrap() == data, "{kind}");
        fed.await.unwrap().unwrap();
        ends_well(&ended(&relay).await);
        assert_eq!(relay.pause().unwrap_err().kind, Kind::Closed);
    }
}

/// Everything that changes is in the news, and the last news are the end.
#[tokio::test]
async fn states_are_announced() {
    let world = World::new();
    let ((source, _input), (sink, _output)) = (world.pipe_source().await, world.pipe_sink().await);
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    let news = async || match world.engine.next_news().await {
        Object::Relay(relay) => relay.state(),
        Object::Endpoint(endpoint) => panic!("{endpoint:?}"),
    };
    relay.pause().unwrap();
    assert_eq!(news().await, State::Paused);
    relay.resume().unwrap();
    assert_eq!(news().await, State::Running);
    relay.stop("stopped");
    assert_eq!(news().await, State::Finished);
    assert_eq!(relay.finished().unwrap().reason, "stopped");
    assert!(world.engine.news_are_out());
}

#[tokio::test]
async fn it_ends_with_its_endpoints_its_client_and_the_service() {
    let world = World::new();
    let make = async |options: Dict| {
        let ((source, input), (sink, output)) = (world.pipe_source().await, world.unix().await);
        (world.relay(&source, &sink, options).await.unwrap(), (input, output))
    };
    let (relay, _far) = make(Dict::new()).await;
    world.engine.close(&relay.source, "Close was called");
    assert_eq!(ended(&relay).await.reason, "the source endpoint was closed: Close was called");
    let (relay, _far) = make(Dict::new()).await;
    relay.pause().unwrap();
    world.engine.close(&relay.sink, "Close was called");
    assert_eq!(ended(&relay).await.reason, "the sink endpoint was closed: Close was called");

    let (stays, _far_too) = make(Dict::new()).await;
    let (goes, _far) = make(dict! { "lifetime" => "client" }).await;
    world.engine.client_left(":1.1");
    assert_eq!(ended(&goes).await.reason, "the connection that it belonged to has ended");
    running(&stays);
    world.engine.stop();
    assert_eq!(ended(&stays).await.reason, "the service is stopping");
}

#[tokio::test]
async fn what_cannot_work_is_refused() {
    let world = World::new();
    let (source, _a) = world.pipe_source().await;
    let (sink, _b) = world.pipe_sink().await;
    let (other_source, _c) = world.pipe_source().await;
    let (other_sink, _d) = world.pipe_sink().await;
    let pipe = world.create("pipe:").await;
    let second = world.create("pipe:").await;
    let (socket, _e) = world.unix().await;
    let directory = tempfile::tempdir().unwrap();
    let listener = world.create(&format!("unix:path={}", directory.path().join("l").to_str().unwrap())).await;
    let _running = world.relay(&source, &sink, Dict::new()).await.unwrap();
    let _second = world.relay(&pipe, &second, Dict::new()).await.unwrap();
    for (from, to, options, kind, says) in [
        (&pipe, &pipe, Dict::new(), Kind::InvalidArgument, "the same"),
        (&second, &pipe, Dict::new(), Kind::InvalidArgument, "go round for ever"),
        (&source, &other_sink, Dict::new(), Kind::Busy, "already read"),
        (&other_source, &sink, Dict::new(), Kind::Busy, "already written"),
        (&socket, &pipe, both(), Kind::InvalidArgument, "both=true needs sockets"),
        (&listener, &other_sink, Dict::new(), Kind::NotSupported, "Accept"),
    ] {
        let error = world.relay(from, to, options).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.text.contains(says), "{error}");
    }
    world.engine.close(&other_source, "gone");
    let error = world.relay(&other_source, &other_sink, Dict::new()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Closed, "{error}");
}

#[tokio::test]
async fn relays_have_a_limit() {
    let world = World::with(Limits { relays: 1, ..Limits::default() });
    let ((a, _a), (b, _b)) = (world.pipe_source().await, world.pipe_sink().await);
    let ((c, _c), (d, _d)) = (world.pipe_source().await, world.pipe_sink().await);
    let first = world.relay(&a, &b, Dict::new()).await.unwrap();
    let error = world.relay(&c, &d, Dict::new()).await.unwrap_err();
    assert_eq!(error.kind, Kind::LimitExceeded);
    first.stop("stopped");
    ended(&first).await;
    world.relay(&c, &d, Dict::new()).await.unwrap();
}

#[tokio::test]
async fn inspect_tells_it_all() {
    let world = World::new();
    let ((a, a_far), (b, b_far)) = (world.unix().await, world.unix().await);
    let relay = world.relay(&a, &b, both()).await.unwrap();
    write(&a_far, b"12345");
    read_exactly(&b_far, 5).await.unwrap();
    until("it is counted", || relay.bytes() == 5).await;
    let state = relay.inspect();
    let expected = dict! {
        "state" => "running", "method" => "splice through a pipe", "bytes" => 5u64, "messages" => 0u64,
        "error" => "", "both" => true, "framing" => "none", "lifetime" => "service", "bytes-back" => 0u64,
        "messages-back" => 0u64, "method-back" => "splice through a pipe",
    };
    for (key, value) in &expected {
        assert!(state[key].same(value), "{key}: {:?}", state[key]);
    }
    assert!(matches!(state["rate"], Value::U64(rate) if rate > 0));
}

/// A thousand idle relays cost no processor time and little memory, and one more still moves.
#[tokio::test]
async fn a_thousand_idle_relays() {
    let needed = 4 * 2 * 1000 + 4000;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        eprintln!("SKIPPED: RLIMIT_NOFILE is below {needed}");
        return;
    }
    limit.current = limit.current.map(|current| current.max(needed));
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let world = World::new();
    let mut relays = Vec::new();
    for n in 0..1000 {
        let ((source, input), (sink, output)) = match n % 2 {
            0 => (world.pipe_source().await, world.pipe_sink().await),
            _ => (world.unix().await, world.unix().await),
        };
        relays.push((world.relay(&source, &sink, Dict::new()).await.unwrap(), input, output));
    }
    for (_, input, output) in &relays {
        write(input, b"hello");
        assert_eq!(read_exactly(output, 5).await.unwrap(), b"hello");
    }
    idle_for_an_hour().await;

    let (_, input, output) = relays.pop().unwrap();
    let start = Instant::now();
    let data = noise(1 << 20, 4);
    let fed = feed(input, data.clone(), 65536);
    assert!(drain(output).await.unwrap() == data);
    fed.await.unwrap().unwrap();
    eprintln!("1 MiB through the last of them: {:?}", start.elapsed());
    for (relay, ..) in &relays {
        assert_eq!(relay.state(), State::Running);
    }
}

/// Lets an hour go by on the runtime's own clock, which moves on whenever no task has anything to
/// do, a second at most each time: a relay that spins would stop it, and one that looks again and
/// again would use the processor.
async fn idle_for_an_hour() {
    let (stopped, watchdog) = tokio::sync::oneshot::channel();
    let (done, passed) = std::sync::mpsc::channel::<()>();
    // A thread, as the runtime's own timers follow the clock that is watched.
    let thread = std::thread::spawn(move || {
        if passed.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = stopped.send(());
        }
    });
    tokio::time::pause();
    let before = cpu();
    let hour = async {
        for _ in 0..3600 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = hour => {}
        Ok(()) = watchdog => panic!("idle relays are never idle"),
    }
    let used = cpu() - before;
    tokio::time::resume();
    drop(done);
    thread.join().unwrap();
    assert!(used < Duration::from_millis(500), "idle relays use the processor: {used:?}");
}

/// The processor time of this thread, which runs the relays.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
