//! A worker, seen by its front: a control socket, streams on it, calls of several connections.

use std::{
    collections::VecDeque,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use ipc_bus::{mounts::Wanted, worker};
use ipc_engine::{Engine, Limits};
use ipc_kernel::{
    Address, Attempt, Dict, Fd, Opening, Parameters, mechanisms, socket_io,
    socket_messages::{self, Taking},
};
use serde::Serialize;
use tokio::{task::JoinHandle, time::timeout};
use zbus::{
    Connection, DynamicType, Guid, Message, MessageStream, ObjectPath, OwnedObjectPath, Variant,
    connection::Builder, message::Type,
};

/// Far longer than anything here takes; a test that reaches it has hung.
const WATCHDOG: Duration = Duration::from_secs(30);

const BUS: &str = "0123456789abcdef0123456789abcdef";
const ANOTHER_BUS: &str = "fedcba9876543210fedcba9876543210";
const MANAGER: &str = "/org/example/IPC";

type NoOptions = std::collections::HashMap<&'static str, Variant<'static>>;

async fn watched<T>(what: impl Future<Output = T>) -> T {
    timeout(WATCHDOG, what).await.expect("the watchdog")
}

/// The front's end of a worker that runs in this process.
struct Front {
    control: Fd,
    worker: JoinHandle<ipc_kernel::Result<()>>,
    engine: Arc<Engine>,
}

impl Front {
    fn new(limits: Limits) -> Front {
        let (ours, theirs) = control_pair();
        let engine = Engine::new(limits);
        let worker =
            tokio::spawn(worker::serve(theirs, engine.clone(), Wanted::none(), std::future::pending()));
        Front { control: Fd::from(ours), worker, engine }
    }

    fn bring(&self, bus: &str, stream: OwnedFd) {
        let bytes = [worker::SERVE, bus.as_bytes()].concat();
        let sent = socket_messages::send(&self.control, &bytes, &[Fd::from(stream)], None).expect("sending");
        assert!(matches!(sent, Attempt::Done(())));
    }

    /// Brings a stream and waits until the worker serves on it.
    async fn stream(&self, bus: &str) -> Stream {
        let (ours, theirs) = socket_io::pair().expect("a pair");
        self.bring(bus, theirs);
        self.served().await;
        Stream::new(ours).await
    }

    async fn served(&self) {
        let answer = watched(async {
            loop {
                match socket_messages::receive(&self.control, Taking::Take, true).expect("an answer") {
                    Attempt::Done(answer) => return answer.data,
                    Attempt::Wait(readiness) => ipc_engine::wait::until(readiness).await.expect("waiting"),
                }
            }
        });
        assert_eq!(answer.await, worker::SERVED);
    }
}

/// A pair of SOCK_SEQPACKET sockets, from the mechanism that has them.
fn control_pair() -> (OwnedFd, OwnedFd) {
    let unix = mechanisms::by_name("unix").expect("a mechanism");
    let check = |table, address: &str| {
        let address = Address::parse(address).expect("an address");
        Parameters::check(table, &[], &address, &Dict::new()).expect("parameters")
    };
    let parameters = check(unix.create_parameters, "unix:pair,type=seqpacket");
    let Opening::Done(pair) = (unix.create)(&parameters).expect("a pair") else { panic!("it takes no time") };
    let open = |end: &str| pair.open(&check(unix.open_parameters, end)).expect("an end");
    (open("unix:end=own"), open("unix:end=peer"))
}

/// The front's end of a stream.
struct Stream {
    connection: Connection,
    messages: MessageStream,
    handle: ipc_stream::Handle,
    /// Signals that came while a reply was waited for.
    signals: VecDeque<Message>,
}

impl Stream {
    async fn new(socket: OwnedFd) -> Stream {
        let (socket, mut handle) =
            ipc_stream::Stream::new(socket, 64 << 20, std::sync::Arc::new(drop)).expect("a socket").gated();
        let connection =
            Builder::authenticated_socket(socket, Guid::generate()).p2p().build().await.expect("p2p");
        let messages = MessageStream::from(&connection);
        handle.open();
        Stream { connection, messages, handle, signals: VecDeque::new() }
    }

    async fn next(&mut self) -> Message {
        watched(self.messages.next()).await.expect("not the end").expect("a message")
    }

    async fn signal(&mut self) -> Message {
        if let Some(signal) = self.signals.pop_front() {
            return signal;
        }
        let message = self.next().await;
        assert_eq!(message.message_type(), Type::Signal, "{message}");
        message
    }

    /// Signals up to the last one of this member, as (member, addressee), sorted where one has several.
    async fn told_until(&mut self, last: &str, count: usize) -> Vec<(String, String)> {
        let mut told = Vec::new();
        while told.iter().filter(|(member, _): &&(String, String)| member == last).count() < count {
            let signal = self.signal().await;
            let header = signal.header();
            assert!(header.sender().is_none(), "{signal}");
            let to = header.destination().map(ToString::to_string).unwrap_or_default();
            told.push((header.member().expect("a member").to_string(), to));
        }
        told
    }

    /// `Clients`, which is the first on a stream.
    async fn clients(&mut self) -> Vec<String> {
        let signal = self.signal().await;
        let header = signal.header();
        assert_eq!(header.interface().map(|it| it.as_str()), Some(worker::INTERFACE));
        assert_eq!(header.member().map(|it| it.as_str()), Some("Clients"));
        assert!(header.destination().is_none());
        let mut names: Vec<String> = signal.body().deserialize().expect("names");
        names.sort();
        names
    }

    async fn send(
        &self,
        from: &str,
        path: &str,
        call: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Message {
        let message = call_message(from, path, call, body);
        self.connection.send(&message).await.expect("sending");
        message
    }

    async fn call(
        &mut self,
        from: &str,
        path: &str,
        call: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Message {
        let call = self.send(from, path, call, body).await;
        self.reply(&call).await
    }

    async fn reply(&mut self, call: &Message) -> Message {
        loop {
            let message = self.next().await;
            if message.message_type() == Type::Signal {
                self.signals.push_back(message);
                continue;
            }
            let header = message.header();
            assert_eq!(header.reply_serial(), Some(call.primary_header().serial_num()));
            assert_eq!(
                header.destination().map(ToString::to_string),
                call.header().sender().map(ToString::to_string)
            );
            return message.clone();
        }
    }

    async fn create(&mut self, from: &str, address: &str) -> String {
        let reply = self.call(from, MANAGER, "org.example.IPC.Create", &(address, NoOptions::new())).await;
        path_in(&reply)
    }

    async fn leaves(&self, name: &str) {
        let left = Message::signal("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged")
            .sender("org.freedesktop.DBus")
            .and_then_build(&(name, name, ""));
        self.connection.send(&left).await.expect("sending");
    }
}

trait AndThenBuild {
    fn and_then_build(self, body: &(impl Serialize + DynamicType)) -> Message;
}

impl AndThenBuild for zbus::message::Builder<'_> {
    fn and_then_build(self, body: &(impl Serialize + DynamicType)) -> Message {
        self.build(body).expect("a message")
    }
}

/// A call as the bus forwards it: `call` is `interface.Member`.
fn call_message(from: &str, path: &str, call: &str, body: &(impl Serialize + DynamicType)) -> Message {
    let (interface, member) = call.rsplit_once('.').expect("interface.Member");
    Message::method_call(path, member)
        .destination("org.example.IPC")
        .interface(interface)
        .sender(from)
        .and_then_build(body)
}

fn path_in(reply: &Message) -> String {
    assert_eq!(
        reply.message_type(),
        Type::MethodReturn,
        "{reply}: {:?}",
        reply.body().deserialize::<String>()
    );
    reply.body().deserialize::<OwnedObjectPath>().expect("a path").to_string()
}

fn pairs<const N: usize>(expected: [(&str, &str); N]) -> Vec<(String, String)> {
    expected.map(|(member, to)| (member.to_owned(), to.to_owned())).into()
}

#[tokio::test]
async fn signals_go_to_creator_and_subscribers_only() {
    let front = Front::new(Limits::default());
    let mut stream = front.stream(BUS).await;
    assert!(stream.clients().await.is_empty());
    let pipe = stream.create(":1.5", "pipe:").await;
    assert_eq!(stream.told_until("InterfacesAdded", 1).await, pairs([("InterfacesAdded", ":1.5")]));
    // A third one is there, and calls.
    stream.call(":1.7", &pipe, "org.example.IPC.Endpoint.Inspect", &()).await;
    stream.call(":1.6", &pipe, "org.example.IPC.Endpoint.Subscribe", &()).await;
    stream.call(":1.8", MANAGER, "org.example.IPC.Subscribe", &()).await;
    let other = stream.create(":1.5", "pipe:").await;
    let added = pairs([("InterfacesAdded", ":1.8"), ("InterfacesAdded", ":1.5")]);
    assert_eq!(stream.told_until("InterfacesAdded", 2).await, added);
    // A relay's property changes; who subscribed to everything and who made it hear of it.
    let ends = (ObjectPath::try_from(pipe.as_str()), ObjectPath::try_from(other.as_str()));
    let ends = (ends.0.expect("a path"), ends.1.expect("a path"), NoOptions::new());
    let relay = path_in(&stream.call(":1.7", MANAGER, "org.example.IPC.Relay", &ends).await);
    stream.call(":1.7", &relay, "org.example.IPC.Relay.Stop", &()).await;
    let told = stream.told_until("InterfacesRemoved", 2).await;
    assert!(told.contains(&("PropertiesChanged".into(), ":1.7".into())), "{told:?}");
    assert!(told.iter().all(|(_, to)| [":1.7", ":1.8"].contains(&to.as_str())), "{told:?}");
    // The endpoint's last signals go to its subscriber as well.
    stream.call(":1.5", &pipe, "org.example.IPC.Endpoint.Close", &()).await;
    let mut told = stream.told_until("InterfacesRemoved", 3).await;
    told.sort();
    let each = |member: &str| [":1.5", ":1.6", ":1.8"].map(|to| (member.to_owned(), to.to_owned()));
    assert_eq!(told, [each("Closed"), each("InterfacesRemoved")].concat());
    // Who has left gets nothing more.
    stream.leaves(":1.8").await;
    stream.leaves(":1.6").await;
    stream.call(":1.7", MANAGER, "org.freedesktop.DBus.Peer.Ping", &()).await;
    stream.call(":1.5", &other, "org.example.IPC.Endpoint.Close", &()).await;
    let told = stream.told_until("InterfacesRemoved", 1).await;
    assert_eq!(told, pairs([("Closed", ":1.5"), ("InterfacesRemoved", ":1.5")]));
}

#[tokio::test]
async fn objects_survive_a_change_of_the_stream() {
    let front = Front::new(Limits::default());
    let mut first = front.stream(BUS).await;
    assert!(first.clients().await.is_empty());
    let source = first.create(":1.5", "unix:pair").await;
    let sink = first.create(":1.5", "pipe:").await;
    let mine = first.create(":1.9", "pipe:lifetime=client").await;
    first.call(":1.6", &sink, "org.example.IPC.Endpoint.Subscribe", &()).await;
    let options = std::collections::HashMap::from([("end", Variant::from("peer"))]);
    let opened = first.call(":1.5", &source, "org.example.IPC.Endpoint.Open", &(options,)).await;
    let fd: zbus::OwnedFd = opened.body().deserialize().expect("a descriptor");
    let path = |text: &str| ObjectPath::try_from(text.to_owned()).expect("a path");
    let ends = (path(&source), path(&sink), NoOptions::new());
    let relay = path_in(&first.call(":1.5", MANAGER, "org.example.IPC.Relay", &ends).await);
    // A call that is not answered any more: the front has died.
    first.send(":1.5", &source, "org.example.IPC.Stream.Read", &(16u32, 20_000u32)).await;
    drop(first);
    UnixStream::from(OwnedFd::from(fd)).write_all(b"meanwhile").expect("writing into the relay");

    let mut second = front.stream(BUS).await;
    assert_eq!(second.clients().await, [":1.5", ":1.6", ":1.9"]);
    let read = second.call(":1.6", &sink, "org.example.IPC.Stream.Read", &(64u32, 20_000u32)).await;
    assert_eq!(read.body().deserialize::<Vec<u8>>().expect("bytes"), b"meanwhile");
    second.leaves(":1.9").await;
    second.call(":1.5", &relay, "org.example.IPC.Relay.Stop", &()).await;
    second.call(":1.5", &sink, "org.example.IPC.Endpoint.Close", &()).await;
    let mut told = second.told_until("InterfacesRemoved", 3).await;
    told.sort();
    told.dedup();
    assert!(told.contains(&("Finished".into(), ":1.5".into())), "{told:?}");
    assert!(told.contains(&("Closed".into(), ":1.6".into())), "{told:?}");
    assert!(told.iter().all(|(_, to)| to != ":1.9"), "{told:?}");
    let gone = second.call(":1.6", &mine, "org.example.IPC.Endpoint.Inspect", &()).await;
    assert_eq!(gone.message_type(), Type::Error, "its client has left");

    // A stream is replaced while the one before is still there and nobody reads it.
    let mut third = front.stream(BUS).await;
    assert_eq!(third.clients().await, [":1.5", ":1.6"]);
    watched(second.connection.closed()).await;
    // Another bus: nobody of the first one is there, and its names mean others.
    let kept = third.create(":1.5", "pipe:lifetime=client").await;
    let mut fourth = front.stream(ANOTHER_BUS).await;
    assert!(fourth.clients().await.is_empty());
    let gone = fourth.call(":1.5", &kept, "org.example.IPC.Endpoint.Inspect", &()).await;
    assert_eq!(gone.message_type(), Type::Error);
    fourth.create(":1.9", "pipe:lifetime=client").await;
    let told = fourth.told_until("InterfacesAdded", 1).await;
    assert_eq!(told, pairs([("InterfacesAdded", ":1.9")]), "a name that was used on the bus before");
}

/// Calls that lie on the stream before the worker has it find the whole tree.
#[tokio::test]
async fn early_calls_find_everything_in_place() {
    let front = Front::new(Limits::default());
    let mut stream = front.stream(BUS).await;
    stream.clients().await;
    let pipe = stream.create(":1.5", "pipe:").await;
    stream.handle.hang_up();
    let (ours, theirs) = socket_io::pair().expect("a pair");
    let mut stream = Stream::new(ours).await;
    let mut calls = Vec::new();
    for _ in 0..40 {
        calls.push(stream.send(":1.5", &pipe, "org.example.IPC.Endpoint.Inspect", &()).await);
    }
    front.bring(BUS, theirs);
    front.served().await;
    stream.clients().await;
    for call in calls {
        assert_eq!(stream.reply(&call).await.message_type(), Type::MethodReturn);
    }
}

#[tokio::test]
async fn descriptors_pass_both_ways_with_their_messages() {
    let front = Front::new(Limits::default());
    let mut stream = front.stream(BUS).await;
    stream.clients().await;
    let mut calls = Vec::new();
    for n in 0..20u8 {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(&[n]).expect("writing");
        let adopt = (zbus::Fd::from(reader.as_fd()), NoOptions::new());
        calls.push(stream.send(":1.5", MANAGER, "org.example.IPC.Adopt", &adopt).await);
        stream.send(":1.5", MANAGER, "org.freedesktop.DBus.Peer.Ping", &()).await;
    }
    let mut adopted = Vec::new();
    let mut replies = 0;
    while replies < 2 * calls.len() {
        let message = stream.next().await;
        let serial = message.header().reply_serial();
        replies += usize::from(serial.is_some());
        if let Some(n) = calls.iter().position(|call| Some(call.primary_header().serial_num()) == serial) {
            adopted.push((n, path_in(&message)));
        }
    }
    assert_eq!(adopted.len(), calls.len());
    for (n, path) in adopted {
        let read = stream.call(":1.5", &path, "org.example.IPC.Stream.Read", &(8u32, 20_000u32)).await;
        assert_eq!(read.body().deserialize::<Vec<u8>>().expect("bytes"), [n as u8]);
    }
}

#[tokio::test]
async fn a_worker_with_nothing_to_do_offers_to_end() {
    let front = Front::new(Limits { idle_s: 1, ..Limits::default() });
    let mut stream = front.stream(BUS).await;
    stream.clients().await;
    for _ in 0..2 {
        let idle = stream.signal().await;
        assert_eq!(idle.header().interface().map(|it| it.as_str()), Some(worker::INTERFACE));
        assert_eq!(idle.header().member().map(|it| it.as_str()), Some("Idle"));
        assert!(idle.header().destination().is_none());
    }
    // Whoever has something is not idle; only silence can show that, so two periods of it.
    stream.call(":1.5", MANAGER, "org.example.IPC.Subscribe", &()).await;
    timeout(Duration::from_millis(2500), stream.next()).await.expect_err("it must not offer to end");
    stream.call(":1.5", MANAGER, "org.example.IPC.Unsubscribe", &()).await;
    assert_eq!(stream.signal().await.header().member().map(|it| it.to_string()).as_deref(), Some("Idle"));
}

#[tokio::test]
async fn the_end_of_the_control_socket_ends_the_worker() {
    let front = Front::new(Limits::default());
    let mut stream = front.stream(BUS).await;
    stream.clients().await;
    let dir = tempfile::tempdir().expect("a directory");
    let listener = dir.path().join("socket");
    stream.create(":1.5", &format!("unix:path={}", listener.display())).await;
    let pipe = stream.create(":1.5", "pipe:").await;
    let waiting = stream.send(":1.5", &pipe, "org.example.IPC.Stream.Read", &(1u32, 60_000u32)).await;
    stream.call(":1.5", MANAGER, "org.freedesktop.DBus.Peer.Ping", &()).await;
    drop(front.control);
    let cancelled = stream.reply(&waiting).await;
    assert_eq!(
        cancelled.header().error_name().map(|it| it.to_string()).as_deref(),
        Some("org.example.IPC.Error.Cancelled")
    );
    let told = stream.told_until("InterfacesRemoved", 2).await;
    assert_eq!(told.iter().filter(|(member, to)| member == "Closed" && to == ":1.5").count(), 2, "{told:?}");
    watched(front.worker).await.expect("no panic").expect("an orderly end");
    assert!(!listener.exists(), "the name of a listening socket goes with it");
    assert!(front.engine.objects().is_empty());
}

#[tokio::test]
async fn a_front_of_another_version_ends_the_worker() {
    let front = Front::new(Limits::default());
    let sent = socket_messages::send(&front.control, b"ipc2", &[], None).expect("sending");
    assert!(matches!(sent, Attempt::Done(())));
    let error = watched(front.worker).await.expect("no panic").expect_err("it does not understand");
    assert!(error.text.contains("another version"), "{error}");
}
