//! The option `reconnect`: peers that leave and come back, at either end, and what becomes of what was held.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixDatagram, UnixListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use ipc_kernel::{Kind, Value, dict};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{
    framed::{queue, receive, send},
    *,
};

/// Where a peer listens, now and then.
struct Place {
    dir: tempfile::TempDir,
    port: u16,
    kind: &'static str,
}

impl Place {
    fn new(kind: &'static str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { dir: tempfile::tempdir().unwrap(), port, kind }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn address(&self) -> String {
        match self.kind {
            "tcp" => format!("tcp:host=127.0.0.1,port={}", self.port),
            kind => format!("unix:path={},type={kind},sndbuf=2304", self.path().display()),
        }
    }

    /// Somebody listens there, until it is dropped.
    fn listen(&self) -> OwnedFd {
        if self.kind == "tcp" {
            return TcpListener::bind(("127.0.0.1", self.port)).unwrap().into();
        }
        // A path that is left behind refuses connections.
        _ = std::fs::remove_file(self.path());
        match self.kind {
            "stream" => UnixListener::bind(self.path()).unwrap().into(),
            "dgram" => UnixDatagram::bind(self.path()).unwrap().into(),
            _ => {
                let flags = SocketFlags::CLOEXEC;
                let socket =
                    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                        .unwrap();
                rustix::net::bind(&socket, &SocketAddrUnix::new(self.path()).unwrap()).unwrap();
                rustix::net::listen(&socket, 8).unwrap();
                socket
            }
        }
    }
}

/// The next connection.
async fn accept(listener: &OwnedFd) -> OwnedFd {
    let listener = listener.try_clone().unwrap();
    let accepting = tokio::task::spawn_blocking(move || rustix::net::accept(listener).unwrap());
    tokio::time::timeout(PATIENCE, accepting).await.expect("a connection").unwrap()
}

async fn attach(world: &World, place: &Place) -> Arc<Endpoint> {
    world.engine.attach(&world.call, &place.address(), Dict::new()).await.unwrap()
}

/// Attempts come soon, so that a test does not wait for them.
fn soon(more: Dict) -> Dict {
    let mut options = dict! { "reconnect" => true, "retry-ms" => 2u32, "retry-max-ms" => 8u32 };
    options.extend(more);
    options
}

async fn becomes(relay: &Relay, state: State) {
    until(state.name(), || relay.state() == state).await;
}

/// The number that Inspect has under this key.
fn told(relay: &Relay, key: &str) -> i128 {
    relay.inspect()[key].integer().unwrap()
}

fn word(relay: &Relay, key: &str) -> String {
    match &relay.inspect()[key] {
        Value::Text(text) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

/// A reader reads a part and leaves; the next one has all that no socket had taken.
#[tokio::test]
async fn what_was_held_goes_into_the_next_connection() {
    for (from, kind) in [("pipe", "stream"), ("unix", "stream"), ("pipe", "tcp"), ("unix", "tcp")] {
        let (world, place) = (World::new(), Place::new(kind));
        let listener = place.listen();
        let (source, input) = world.source(from).await;
        let sink = attach(&world, &place).await;
        let first = accept(&listener).await;
        let relay = world.relay(&source, &sink, soon(Dict::new())).await.unwrap();
        let data = noise(8 << 20, 7);
        let fed = feed(input, data.clone(), 50_000);
        let before = read_exactly(&first, 100_000).await.unwrap();
        assert!(data.starts_with(&before));
        drop((first, listener));
        becomes(&relay, State::Reconnecting).await;
        let taken = relay.bytes();
        until("several attempts", || word(&relay, "reconnect-error").contains("ECONNREFUSED")).await;
        assert_eq!((relay.bytes(), told(&relay, "reconnects")), (taken, 0), "{from} to {kind}");
        let listener = place.listen();
        let second = drain(accept(&listener).await);
        fed.await.unwrap().unwrap();
        let finished = ended(&relay).await;
        ends_well(&finished);
        let after = second.await.unwrap();
        assert_eq!(finished.bytes, data.len() as u64, "each byte was taken once");
        assert!(after == data[taken as usize..], "{from} to {kind}: {} after {taken}", after.len());
        assert_eq!(told(&relay, "reconnects"), 1);
    }
}

/// A source that ends is no end; everybody who uses the endpoint has the next socket.
#[tokio::test]
async fn a_source_comes_back() {
    for kind in ["stream", "tcp"] {
        let (world, place) = (World::new(), Place::new(kind));
        let listener = place.listen();
        let source = attach(&world, &place).await;
        let (sink, output) = world.pipe_sink().await;
        let relay = world.relay(&source, &sink, soon(Dict::new())).await.unwrap();
        for round in 0..5u8 {
            let peer = accept(&listener).await;
            write(&peer, &[round; 9]);
            assert_eq!(read_exactly(&output, 9).await.unwrap(), [round; 9]);
            assert_eq!(told(&relay, "reconnects"), i128::from(round));
            running(&relay);
        }
        let last = accept(&listener).await;
        // Written and read by calls, beside the relay.
        until("it is connected", || relay.state() == State::Running).await;
        world.engine.write(&world.call, &source, b"from a call", 1000).await.unwrap();
        assert_eq!(read_exactly(&last, 11).await.unwrap(), b"from a call", "{kind}");
        relay.stop("stopped");
        assert_eq!(ended(&relay).await.bytes, 45);
        assert!(word(&relay, "reconnect-error").ends_with("has ended the connection"), "{kind}");
    }
}

/// Records begin anew where a connection took a part of one, and are whole on each.
#[tokio::test]
async fn a_record_begins_again() {
    let (world, place) = (World::new(), Place::new("stream"));
    let listener = place.listen();
    let source = queue(&world, "depth=9,size=8192").await;
    let sink = attach(&world, &place).await;
    let first = accept(&listener).await;
    let relay = world.relay(&source, &sink, soon(dict! { "framing" => "length" })).await.unwrap();
    let records: Vec<_> = (1..=3).map(|seed| noise(8192, seed)).collect();
    for record in &records {
        send(&world, &source, record, 0).await;
    }
    // The socket holds less than a record.
    until("a part is written", || relay.bytes() > 0).await;
    assert_eq!((relay.messages(), relay.bytes() < 8196), (0, true));
    drop(first);
    let second = accept(&listener).await;
    for record in &records {
        let whole = [&8192u32.to_be_bytes(), record.as_slice()].concat();
        assert!(read_exactly(&second, 8196).await.unwrap() == whole);
    }
    until("all are counted", || relay.messages() == 3).await;
    assert!(word(&relay, "reconnect-error").contains("nobody reads"));
}

/// A record of the source that its connection did not complete is no record, and is counted.
#[tokio::test]
async fn a_record_that_was_cut_is_told() {
    let (world, place) = (World::new(), Place::new("stream"));
    let listener = place.listen();
    let source = attach(&world, &place).await;
    let sink = queue(&world, "depth=9,size=64").await;
    let relay = world.relay(&source, &sink, soon(dict! { "framing" => "length" })).await.unwrap();
    let first = accept(&listener).await;
    write(&first, b"\0\0\0\x03one\0\0\0\x09incom");
    drop(first);
    let second = accept(&listener).await;
    write(&second, b"\0\0\0\x03two");
    assert_eq!(receive(&world, &sink).await.0, b"one");
    assert_eq!(receive(&world, &sink).await.0, b"two");
    assert_eq!(told(&relay, "cut"), 9);
    running(&relay);
}

/// Messages: what the peer had not taken is sent again, and what it had sent is received.
#[tokio::test]
async fn messages_go_to_the_next_peer() {
    for kind in ["seqpacket", "dgram"] {
        let (world, place) = (World::new(), Place::new(kind));
        let listener = place.listen();
        let source = queue(&world, "depth=9,size=64").await;
        let sink = attach(&world, &place).await;
        let relay = world.relay(&source, &sink, soon(Dict::new())).await.unwrap();
        let peer = async |listener: &OwnedFd| match kind {
            "dgram" => listener.try_clone().unwrap(),
            _ => accept(listener).await,
        };
        let first = peer(&listener).await;
        send(&world, &source, b"one", 0).await;
        assert_eq!(read_exactly(&first, 3).await.unwrap(), b"one");
        drop((first, listener));
        send(&world, &source, b"two", 0).await;
        becomes(&relay, State::Reconnecting).await;
        send(&world, &source, b"three", 0).await;
        let listener = place.listen();
        let second = peer(&listener).await;
        assert_eq!(read_exactly(&second, 3).await.unwrap(), b"two", "{kind}");
        assert_eq!(read_exactly(&second, 5).await.unwrap(), b"three", "{kind}");
        until("all are counted", || relay.messages() == 3).await;
        assert_eq!(told(&relay, "reconnects"), 1);
    }
}

/// What the former socket had received and nobody had read is there for the next reader.
#[tokio::test]
async fn what_nobody_had_read_is_kept() {
    for kind in ["stream", "seqpacket"] {
        let (world, place) = (World::new(), Place::new(kind));
        let listener = place.listen();
        let source = queue(&world, "depth=9,size=64").await;
        let sink = attach(&world, &place).await;
        let mut options = soon(Dict::new());
        if kind == "stream" {
            options.insert("framing".into(), "line".into());
        }
        let _relay = world.relay(&source, &sink, options).await.unwrap();
        let first = accept(&listener).await;
        write(&first, b"answer");
        drop(first);
        send(&world, &source, b"more", 0).await;
        let second = accept(&listener).await;
        assert_eq!(read_exactly(&second, 4).await.unwrap(), b"more");
        let answer = match kind {
            "stream" => world.engine.read(&world.call, &sink, 100, 1000).await.unwrap(),
            _ => world.engine.receive(&world.call, &sink, &Dict::new(), 1000).await.unwrap().data,
        };
        assert_eq!(answer, b"answer", "{kind}");
    }
}

/// Both ways: whichever notices first, both go on with one new connection; and the end of the other socket is the end.
#[tokio::test]
async fn both_ways_go_on_with_one_connection() {
    for kind in ["stream", "tcp"] {
        let (world, place) = (World::new(), Place::new(kind));
        let listener = place.listen();
        let (fixed, far) = world.unix().await;
        let client = attach(&world, &place).await;
        let relay = world.relay(&client, &fixed, soon(both())).await.unwrap();
        for round in 0..5u8 {
            let peer = accept(&listener).await;
            write(&peer, &[round; 3]);
            assert_eq!(read_exactly(&far, 3).await.unwrap(), [round; 3]);
            until("it is connected", || relay.state() == State::Running).await;
            write(&far, &[round; 5]);
            assert_eq!(read_exactly(&peer, 5).await.unwrap(), [round; 5], "{kind}");
            assert_eq!(told(&relay, "reconnects"), i128::from(round));
        }
        // A half-close is the end of a connection, too: the next one has both ways.
        let half = accept(&listener).await;
        rustix::net::shutdown(&half, rustix::net::Shutdown::Write).unwrap();
        let peer = accept(&listener).await;
        write(&peer, b"!");
        assert_eq!(read_exactly(&far, 1).await.unwrap(), b"!");
        until("it is connected", || relay.state() == State::Running).await;
        write(&far, b"?");
        assert_eq!(read_exactly(&peer, 1).await.unwrap(), b"?");
        drop(far);
        assert_eq!(drain(peer).await.unwrap(), b"");
        let finished = ended(&relay).await;
        assert!(!finished.failed, "{kind}: {finished:?}");
        drop(half);
    }
}

/// Two relays of one endpoint, which the reader of it and the writer into it share.
#[tokio::test]
async fn two_relays_share_the_next_connection() {
    let (world, place) = (World::new(), Place::new("stream"));
    let listener = place.listen();
    let ((source, input), (sink, output)) = (world.pipe_source().await, world.pipe_sink().await);
    let socket = attach(&world, &place).await;
    let into = world.relay(&source, &socket, soon(Dict::new())).await.unwrap();
    let from = world.relay(&socket, &sink, soon(Dict::new())).await.unwrap();
    for round in 0..10u8 {
        let peer = accept(&listener).await;
        write(&peer, &[round; 4]);
        assert_eq!(read_exactly(&output, 4).await.unwrap(), [round; 4]);
        until("both are connected", || [&into, &from].iter().all(|it| it.state() == State::Running)).await;
        write(&input, &[round; 6]);
        assert_eq!(read_exactly(&peer, 6).await.unwrap(), [round; 6]);
        assert_eq!(told(&into, "reconnects") + told(&from, "reconnects"), i128::from(round));
    }
}

/// Stop, Pause, the end of the endpoint and of the service, idle-ms and retries, with nobody there.
#[tokio::test]
async fn it_can_be_ended_while_nobody_is_there() {
    let lost = async |options: Dict| {
        let (world, place) = (World::new(), Place::new("stream"));
        let listener = place.listen();
        let ((source, input), sink) = (world.pipe_source().await, attach(&world, &place).await);
        let relay = world.relay(&source, &sink, soon(options)).await.unwrap();
        let first = accept(&listener).await;
        drop((first, listener));
        until("it has noticed", || relay.state() != State::Running).await;
        write(&input, b"held");
        (world, place, relay, source, input)
    };
    let kept = async |world: &World, source: &Arc<Endpoint>| {
        assert_eq!(world.engine.read(&world.call, source, 9, 5000).await.unwrap(), b"held");
    };
    let (world, place, relay, source, _input) = lost(Dict::new()).await;
    assert_eq!(relay.state(), State::Reconnecting);
    relay.pause().unwrap();
    assert_eq!(relay.state(), State::Paused);
    let listener = place.listen();
    relay.resume().unwrap();
    let again = accept(&listener).await;
    assert_eq!(read_exactly(&again, 4).await.unwrap(), b"held");
    drop((again, listener));
    becomes(&relay, State::Reconnecting).await;
    relay.stop("stopped");
    assert_eq!((ended(&relay).await.reason.as_str(), relay.bytes()), ("stopped", 4));
    drop((world, source));

    let (world, _place, relay, source, _input) = lost(Dict::new()).await;
    world.engine.close(&relay.sink, "test");
    assert!(ended(&relay).await.reason.contains("was closed: test"));
    kept(&world, &source).await;

    let (world, _place, relay, _source, _input) = lost(Dict::new()).await;
    world.engine.stop();
    assert_eq!(ended(&relay).await.reason, "the service is stopping");

    let (world, _place, relay, source, _input) = lost(dict! { "idle-ms" => 60u32 }).await;
    let finished = ended(&relay).await;
    assert_eq!((finished.reason.as_str(), finished.failed), ("nothing moved for 60 ms (idle-ms)", false));
    kept(&world, &source).await;

    let (world, _place, relay, source, _input) = lost(dict! { "retries" => 3u32 }).await;
    let finished = ended(&relay).await;
    assert!(finished.failed && finished.reason.contains("in 3 attempts (retries)"), "{}", finished.reason);
    assert!(finished.reason.contains("ECONNREFUSED"), "{}", finished.reason);
    kept(&world, &source).await;
}

/// Somebody who accepts and leaves at once is called less and less often; moved data makes it often again.
#[tokio::test]
async fn the_pauses_grow_and_are_bounded() {
    let (world, place) = (World::new(), Place::new("tcp"));
    let listener = place.listen();
    let source = attach(&world, &place).await;
    let (sink, output) = world.pipe_sink().await;
    let options = dict! { "reconnect" => true, "retry-ms" => 10u32, "retry-max-ms" => 80u32 };
    let _relay = world.relay(&source, &sink, options).await.unwrap();
    drop(accept(&listener).await);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let before = Instant::now();
        drop(accept(&listener).await);
        pauses.push(before.elapsed());
    }
    // From 5 ms on, and at least 40 ms in the end: what is longer is the machine's doing.
    assert!(pauses[0] >= Duration::from_millis(5) && pauses[6] >= Duration::from_millis(40), "{pauses:?}");
    let peer = accept(&listener).await;
    write(&peer, b"data");
    read_exactly(&output, 4).await.unwrap();
    drop(peer);
    let mut peer: TcpStream = accept(&listener).await.into();
    peer.write_all(b"more").unwrap();
    assert_eq!(read_exactly(&output, 4).await.unwrap(), b"more");
}

#[tokio::test]
async fn what_cannot_be_connected_again_is_refused() {
    let world = World::new();
    let place = Place::new("stream");
    let _listener = place.listen();
    let client = attach(&world, &place).await;
    let (pipe, _input) = world.pipe_source().await;
    let (accepted, _far) = world.tcp().await;
    let (other, _output) = world.pipe_sink().await;
    let lines = queue(&world, "depth=2,size=8").await;
    let pair = world.create("unix:pair=true").await;
    let bound = world.create("udp:port=0").await;
    let mut refused: Vec<(&Arc<Endpoint>, &Arc<Endpoint>, Dict, &str)> = vec![
        (&pipe, &accepted, soon(Dict::new()), "was accepted or handed over"),
        (&pipe, &other, soon(Dict::new()), "it is no connection of a socket"),
        (&pipe, &pair, soon(Dict::new()), "it is one of a pair"),
        (&lines, &bound, soon(Dict::new()), "udp has no connection"),
        (&pipe, &client, dict! { "retries" => 3u32 }, "\"retries\" belongs to reconnect=true"),
        (&pipe, &client, dict! { "retry-ms" => 3u32, "reconnect" => false }, "\"retry-ms\" belongs to"),
    ];
    let order = dict! { "reconnect" => true, "retry-ms" => 50u32, "retry-max-ms" => 49u32 };
    refused.push((
        &pipe,
        &client,
        order,
        "\"retry-ms\" is 50, but the longest pause, \"retry-max-ms\", is 49",
    ));
    for (source, sink, options, text) in refused {
        let error = world.relay(source, sink, options).await.unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
        assert!(error.text.contains(text), "{error}");
    }
    let deliver = dict! { "deliver" => true };
    let signals = world.engine.attach(&world.call, &place.address(), deliver).await.unwrap();
    let error = world.relay(&pipe, &signals, soon(Dict::new())).await.unwrap_err();
    assert!(error.text.contains("its option deliver closes it"), "{error}");
    // Without the option a connection ends as it always has.
    let relay = world.relay(&client, &other, Dict::new()).await.unwrap();
    drop(accept(&_listener).await);
    ends_well(&ended(&relay).await);
    assert!(!relay.inspect().contains_key("reconnects"));
}

/// What changes is told, once each.
#[tokio::test]
async fn states_are_news() {
    let (world, place) = (World::new(), Place::new("stream"));
    let listener = place.listen();
    let ((source, _input), sink) = (world.pipe_source().await, attach(&world, &place).await);
    let relay = world.relay(&source, &sink, soon(Dict::new())).await.unwrap();
    let first = accept(&listener).await;
    let witness = Witness::new(&world).await;
    witness.turn().await;
    assert!(world.engine.news_are_out(), "nothing has changed");
    drop((first, listener));
    let news = async || match world.engine.next_news().await {
        ipc_engine::Object::Relay(relay) => relay.state(),
        ipc_engine::Object::Endpoint(endpoint) => panic!("{endpoint:?}"),
    };
    assert_eq!(news().await, State::Reconnecting);
    let listener = place.listen();
    let _second = accept(&listener).await;
    assert_eq!(news().await, State::Running);
    assert!(world.engine.news_are_out());
    relay.stop("stopped");
    assert_eq!(news().await, State::Finished);
}
