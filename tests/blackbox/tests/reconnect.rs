//! Relays that connect again, with socat(1) as the peer that leaves and comes back.

use std::{collections::BTreeMap, fs, io::Read, os::unix::fs::PermissionsExt, os::unix::net::UnixStream};

use ipc_blackbox::{
    Client, Inbox, Options, Stage, assert_error, error, everywhere, integer, options, path_of,
};
use ipc_harness::{Process, TempDir, need_tool, or_skip, unique};
use rustix::process::Signal;
use zbus::{OwnedVariant, Variant};

const DEFAULT: u32 = u32::MAX;

/// Where socat listens, as socat and as the service write it.
struct Place {
    listen: String,
    address: String,
    _dir: TempDir,
}

impl Place {
    fn unix(stage: &Stage) -> Place {
        let dir = stage.temp_dir();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("an own directory");
        let path = dir.path().join("socket").display().to_string();
        Place {
            listen: format!("UNIX-LISTEN:{path},mode=0666,unlink-early"),
            address: format!("unix:path={path},sndbuf=4096"),
            _dir: dir,
        }
    }

    fn tcp(stage: &Stage) -> Place {
        // Free a moment ago; the suite's tests run side by side, each with another one.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        Place {
            listen: format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr"),
            address: format!("tcp:host=127.0.0.1,port={port}"),
            _dir: stage.temp_dir(),
        }
    }

    fn both(stage: &Stage) -> [Place; 2] {
        [Place::unix(stage), Place::tcp(stage)]
    }

    /// socat there, with `-` or a program behind it; it listens when this returns.
    fn socat(&self, stage: &Stage, arguments: &[&str]) -> Process {
        let arguments = arguments.iter().map(|argument| match *argument {
            "LISTEN" => self.listen.as_str(),
            other => other,
        });
        let socat = stage.socat(&["-d", "-d"].into_iter().chain(arguments).collect::<Vec<_>>());
        socat.stderr().wait_for(|line| line.contains("listening on")).expect("socat listens");
        socat
    }

    /// What it receives is its output.
    fn reader(&self, stage: &Stage) -> Process {
        self.socat(stage, &["-u", "LISTEN", "-"])
    }

    /// What it is given, it sends.
    fn writer(&self, stage: &Stage) -> Process {
        self.socat(stage, &["-u", "-", "LISTEN"])
    }
}

/// Attempts come soon, so that a test does not wait for them.
fn soon<'a, const N: usize>(more: [(&'a str, Variant<'a>); N]) -> Options<'a> {
    let mut given = options([("reconnect", true.into()), ("retry-ms", 5u32.into())]);
    given.insert("retry-max-ms", 40u32.into());
    given.extend(more);
    given
}

/// Until the relay has told by signals that these are its states, one after the other; that it runs at first is told, too.
async fn state(inbox: &Inbox, relay: &str, wanted: &[&str]) {
    let told = inbox.until(|messages| {
        let mut states = Vec::new();
        for message in messages {
            let member = message.header().member().map(|member| member.to_string());
            if path_of(message) == relay && member.as_deref() == Some("PropertiesChanged") {
                let body = message.body();
                let (_, changed, _): (String, BTreeMap<String, OwnedVariant>, Vec<String>) =
                    body.deserialize().expect("as the specification says");
                if let Some(Variant::Str(state)) = changed.get("State").map(|state| &**state) {
                    states.push(state.to_string());
                }
            }
        }
        (states.len() > wanted.len()).then_some(states)
    });
    assert_eq!(told.await, [&["running"], wanted].concat());
}

async fn inspect(client: &Client, relay: &str) -> BTreeMap<String, OwnedVariant> {
    client.call(relay, "Relay", "Inspect", &()).await.expect("Inspect")
}

async fn finished(inbox: &Inbox, relay: &str) -> (String, u64, u64) {
    inbox.signal(relay, "Finished").await.body().deserialize().expect("reason, bytes, messages")
}

fn text(state: &BTreeMap<String, OwnedVariant>, key: &str) -> String {
    match &*state[key] {
        Variant::Str(text) => text.to_string(),
        other => panic!("{key} is {other:?}"),
    }
}

/// A reader is killed while it is stuck: to the byte, what its socket had not taken is in the next one.
async fn a_reader_that_is_killed_and_started_again(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let place = Place::unix(&stage);
    let mut reader = place.reader(&stage);
    let (source, sink) = (client.create("pipe:").await, client.attach(&place.address).await);
    let relay = client.relay(&source, &sink, soon([])).await;
    client.write(&source, b"one\n", DEFAULT).await.expect("Write");
    reader.wait_for(|line| line == "one");
    reader.signal(Signal::STOP);
    let lines: String = (0..6000).map(|number| format!("{number:09}\n")).collect();
    // The pipe takes all of it, and the socket the beginning.
    assert_eq!(client.write(&source, lines.as_bytes(), DEFAULT).await.expect("Write"), 60_000);
    while client.number(&relay, "Relay", "Bytes").await < 1000 {}
    reader.kill();
    state(&inbox, &relay, &["reconnecting"]).await;
    let taken = client.number(&relay, "Relay", "Bytes").await as usize - 4;
    let now = inspect(&client, &relay).await;
    assert_eq!((text(&now, "state").as_str(), &*now["reconnects"]), ("reconnecting", &Variant::U64(0)));
    // The path is there, and nobody behind it.
    while !text(&inspect(&client, &relay).await, "reconnect-error").contains("ECONNREFUSED") {}
    let reader = place.reader(&stage);
    reader.wait_for(|line| line == "000005999");
    state(&inbox, &relay, &["reconnecting", "running"]).await;
    assert!(reader.stdout().text() == lines[taken..], "after {taken}");
    assert_eq!(*inspect(&client, &relay).await["reconnects"], Variant::U64(1));
    client.run(&relay, "Relay", "Stop").await;
    assert_eq!(finished(&inbox, &relay).await, ("stopped".to_owned(), 60_004, 0));
}

/// TCP shows that a reader has left by what is sent to it: from then on nothing is lost.
async fn a_tcp_reader_that_is_killed_and_started_again(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let place = Place::tcp(&stage);
    let queue = format!("posixmq:name=/{},depth=9,size=64,remove-on-close=true", unique("reconnect"));
    let mut reader = place.reader(&stage);
    let (source, sink) = (client.create(&queue).await, client.attach(&place.address).await);
    let relay = client.relay(&source, &sink, soon([("framing", "line".into())])).await;
    client.send(&source, b"one", options([])).await.expect("Send");
    reader.wait_for(|line| line == "one");
    reader.kill();
    client.send(&source, b"into the dead socket", options([])).await.expect("Send");
    state(&inbox, &relay, &["reconnecting"]).await;
    for message in ["two", "three"] {
        client.send(&source, message.as_bytes(), options([])).await.expect("Send");
    }
    let reader = place.reader(&stage);
    reader.wait_for(|line| line == "three");
    assert_eq!(reader.stdout().lines(), ["two", "three"]);
    state(&inbox, &relay, &["reconnecting", "running"]).await;
}

/// A source that leaves and comes back, three times, is one stream for the sink.
async fn a_writer_that_is_killed_and_started_again(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    for place in Place::both(&stage) {
        let mut writer = place.writer(&stage);
        let queue = format!("posixmq:name=/{},depth=9,size=64,remove-on-close=true", unique("reconnect"));
        let (source, sink) = (client.attach(&place.address).await, client.create(&queue).await);
        let socket = integer(&inspect_endpoint(&client, &source).await["inode"]);
        let relay = client.relay(&source, &sink, soon([("framing", "line".into())])).await;
        for round in 0..3 {
            let line = format!("line {round}");
            writer.write(format!("{line}\n"));
            assert_eq!(client.receive(&sink, DEFAULT).await.expect("Receive").0, line.as_bytes());
            writer.kill();
            let states = ["reconnecting", "running"].repeat(round + 1);
            state(&inbox, &relay, &states[..2 * round + 1]).await;
            writer = place.writer(&stage);
            state(&inbox, &relay, &states).await;
        }
        let now = inspect(&client, &relay).await;
        assert_eq!((&*now["reconnects"], &*now["messages"]), (&Variant::U64(3), &Variant::U64(3)));
        // It is the endpoint's socket that is another one.
        assert_ne!(integer(&inspect_endpoint(&client, &source).await["inode"]), socket);
        let open = client.open(&source, options([])).await.expect("Open");
        writer.write("through the relay\n");
        assert_eq!(client.receive(&sink, DEFAULT).await.expect("Receive").0, b"through the relay");
        client.run(&relay, "Relay", "Stop").await;
        finished(&inbox, &relay).await;
        writer.write("by Open\n");
        let mut read = [0; 8];
        fs::File::from(open).read_exact(&mut read).expect("what the new writer sends");
        assert_eq!(&read, b"by Open\n");
        writer.write("by Read\n");
        assert_eq!(client.read(&source, 100, DEFAULT).await.expect("Read"), b"by Read\n");
    }
}

async fn inspect_endpoint(client: &Client, endpoint: &str) -> BTreeMap<String, OwnedVariant> {
    client.call(endpoint, "Endpoint", "Inspect", &()).await.expect("Inspect")
}

/// Both ways: cat(1) behind socat answers, whichever socat that is.
async fn both_ways(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    for place in Place::both(&stage) {
        let mut echo = place.socat(&stage, &["LISTEN", "EXEC:cat"]);
        let (socket, pair) = (client.attach(&place.address).await, client.create("unix:pair=true").await);
        let far = client.open(&pair, options([("end", "peer".into())])).await.expect("Open");
        let mut far = UnixStream::from(far);
        let relay = client.relay(&pair, &socket, soon([("both", true.into())])).await;
        for round in 0..3 {
            let (sent, mut answer) = (format!("round {round}"), [0; 7]);
            client.property(&relay, "Relay", "State").await.expect("State");
            std::io::Write::write_all(&mut far, sent.as_bytes()).expect("the relay reads");
            far.read_exact(&mut answer).expect("cat answers");
            assert_eq!(answer, sent.as_bytes());
            echo.kill();
            let states = ["reconnecting", "running"].repeat(round + 1);
            state(&inbox, &relay, &states[..2 * round + 1]).await;
            echo = place.socat(&stage, &["LISTEN", "EXEC:cat"]);
            state(&inbox, &relay, &states).await;
        }
        // The end of the other end is the end: cat sees it, and the relay ends without another attempt.
        far.shutdown(std::net::Shutdown::Write).expect("half-close");
        let (reason, ..) = finished(&inbox, &relay).await;
        assert_eq!(reason, "end of stream");
        assert!(echo.wait().success());
    }
}

/// Stop, Close, idle-ms and retries end it while nobody listens; what it holds is at the source.
async fn what_ends_it_while_nobody_listens(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let place = Place::unix(&stage);
    for end in ["Stop", "Close", "idle-ms", "retries"] {
        let mut reader = place.reader(&stage);
        let (source, sink) = (client.create("pipe:").await, client.attach(&place.address).await);
        let relay = match end {
            "idle-ms" => client.relay(&source, &sink, soon([("idle-ms", 300u32.into())])).await,
            "retries" => client.relay(&source, &sink, soon([("retries", 6u32.into())])).await,
            _ => client.relay(&source, &sink, soon([])).await,
        };
        client.write(&source, b"one\n", DEFAULT).await.expect("Write");
        reader.wait_for(|line| line == "one");
        reader.kill();
        client.write(&source, b"held\n", DEFAULT).await.expect("Write");
        state(&inbox, &relay, &["reconnecting"]).await;
        let expected = match end {
            "Stop" => {
                client.run(&relay, "Relay", "Pause").await;
                state(&inbox, &relay, &["reconnecting", "paused"]).await;
                client.run(&relay, "Relay", "Resume").await;
                client.run(&relay, "Relay", "Stop").await;
                "stopped"
            }
            "Close" => {
                client.close(&sink).await;
                "the sink endpoint was closed"
            }
            "idle-ms" => "nothing moved for 300 ms (idle-ms)",
            _ => "could not be connected again in 6 attempts (retries)",
        };
        let (reason, bytes, _) = finished(&inbox, &relay).await;
        assert!(reason.contains(expected) && bytes == 4, "{end}: {reason}, {bytes}");
        assert_eq!(client.read(&source, 100, DEFAULT).await.expect("Read"), b"held\n", "{end}");
    }
}

/// Each use that cannot work, with its name and what is said.
async fn what_cannot_be_connected_again(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let place = Place::unix(&stage);
    let _reader = place.reader(&stage);
    let socket = client.attach(&place.address).await;
    let (pipe, other) = (client.create("pipe:").await, client.create("pipe:").await);
    let fifo = stage.temp_dir();
    let fifo = client.create(&format!("fifo:path={}", fifo.path().join("fifo").display())).await;
    let (pair, datagrams) = (client.create("unix:pair=true").await, client.create("udp:port=0").await);
    let bound = client.create("unix:autobind=true,type=dgram").await;
    let listener = client.create("unix:autobind=true").await;
    let (adopted, _far) = UnixStream::pair().expect("a pair");
    let adopted = client.try_adopt(&adopted).await.expect("Adopt");
    let netlink = client.attach("netlink:family=route,groups=link").await;
    let nothing = "it is no connection of a socket";
    let cases = [
        (&pipe, &fifo, soon([]), "InvalidArgument", vec!["reconnect=true", "Attach", nothing]),
        (&pipe, &pair, soon([]), "InvalidArgument", vec!["it is one of a pair"]),
        (&pipe, &adopted, soon([]), "InvalidArgument", vec!["was accepted or handed over"]),
        (&netlink, &datagrams, soon([]), "InvalidArgument", vec!["udp has no connection", nothing]),
        (&netlink, &bound, soon([]), "InvalidArgument", vec!["connected to nobody"]),
        (&listener, &other, soon([]), "NotSupported", vec!["it only listens"]),
        (
            &pipe,
            &socket,
            soon([("retry-ms", 41u32.into())]),
            "InvalidArgument",
            vec!["\"retry-ms\" is 41", "\"retry-max-ms\", is 40"],
        ),
        (
            &pipe,
            &socket,
            options([("retries", 1u32.into())]),
            "InvalidArgument",
            vec!["\"retries\" belongs to reconnect=true"],
        ),
        (
            &pipe,
            &socket,
            soon([("retries", 0u32.into())]),
            "InvalidArgument",
            vec!["\"retries\"", "from 1 to"],
        ),
        (
            &pipe,
            &socket,
            options([("reconnect", 1u32.into())]),
            "InvalidArgument",
            vec!["\"reconnect\"", "true or false"],
        ),
    ];
    for (source, sink, given, name, phrases) in cases {
        assert_error(&error(client.try_relay(source, sink, given).await), name, &phrases);
    }
}

everywhere!(
    a_reader_that_is_killed_and_started_again,
    a_tcp_reader_that_is_killed_and_started_again,
    a_writer_that_is_killed_and_started_again,
    both_ways,
    what_ends_it_while_nobody_listens,
    what_cannot_be_connected_again,
);
