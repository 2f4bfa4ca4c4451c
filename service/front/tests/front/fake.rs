//! A spawner and workers for tests: a thread of its own, like a process of its own.
//!
//! A worker is a task that does what the member of a call says. Killing it drops the task, and with it
//! its sockets, as the end of a process would.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc as std_mpsc,
    },
};

use futures_util::StreamExt;
use ipc_harness::patience;
use ipc_spawner::protocol::{Confinement, HERALD, REQUEST_SIZE, Refusal, Reply, Request};
use ipc_stream::Stream;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::{io::Interest, net::UnixStream, task::JoinHandle};
use zbus::{
    Connection, Guid, MessageStream,
    connection::Builder,
    message::{Flags, Message, Type},
};

pub struct Fake {
    shared: Arc<Shared>,
    /// Ends the thread and everything in it.
    end: Option<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Default)]
struct Shared {
    confinement: AtomicU32,
    started: AtomicU32,
    heralds: AtomicU32,
    examined: AtomicU32,
    /// Starts fail with this errno.
    refuse: AtomicU32,
    workers: Mutex<Vec<(String, JoinHandle<()>)>>,
    /// Whom each worker names as its clients when it is asked to serve.
    clients: Mutex<Vec<String>>,
    departed: News,
    /// As heard by the herald.
    herald_heard: News,
    let_go: News,
    pinged: News,
}

/// Names, for a test that listens.
#[derive(Default)]
struct News(Mutex<Option<std_mpsc::Sender<String>>>);

impl News {
    fn listen(&self) -> std_mpsc::Receiver<String> {
        let (sender, receiver) = std_mpsc::channel();
        *self.0.lock().expect("not poisoned") = Some(sender);
        receiver
    }

    fn tell(&self, name: &str) {
        if let Some(listener) = &*self.0.lock().expect("not poisoned") {
            let _heard = listener.send(name.to_owned());
        }
    }
}

/// The next of them.
pub async fn next(news: std_mpsc::Receiver<String>) -> (String, std_mpsc::Receiver<String>) {
    let wait = move || (news.recv_timeout(patience()).expect("it happens"), news);
    tokio::task::spawn_blocking(wait).await.expect("a task")
}

impl Fake {
    /// With the front's end of the socket.
    pub fn new() -> (Self, OwnedFd) {
        let (ours, theirs) = pair();
        let shared = Arc::new(Shared::default());
        let (end, ended) = tokio::sync::oneshot::channel();
        let thread_shared = shared.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = serve(thread_shared, ours) => {}
                    _ = ended => {}
                }
            });
        });
        (Self { shared, end: Some(end) }, theirs)
    }

    /// What the next examined process is.
    pub fn examine_says(&self, confinement: u32) {
        self.shared.confinement.store(confinement, Ordering::SeqCst);
    }

    pub fn starts_fail_with(&self, errno: u32) {
        self.shared.refuse.store(errno, Ordering::SeqCst);
    }

    pub fn started(&self) -> u32 {
        self.shared.started.load(Ordering::SeqCst)
    }

    pub fn examined(&self) -> u32 {
        self.shared.examined.load(Ordering::SeqCst)
    }

    pub fn clients_are(&self, names: Vec<String>) {
        *self.shared.clients.lock().expect("not poisoned") = names;
    }

    /// The names of the clients of whose departure workers hear.
    pub fn departures(&self) -> std_mpsc::Receiver<String> {
        self.shared.departed.listen()
    }

    /// The names of the clients of whose departure the herald hears.
    pub fn herald_hears(&self) -> std_mpsc::Receiver<String> {
        self.shared.herald_heard.listen()
    }

    pub fn heralds(&self) -> u32 {
        self.shared.heralds.load(Ordering::SeqCst)
    }

    /// The names of workers whose control socket ended.
    pub fn let_go(&self) -> std_mpsc::Receiver<String> {
        self.shared.let_go.listen()
    }

    /// The names of workers that were asked whether they run, and answered.
    pub fn pings(&self) -> std_mpsc::Receiver<String> {
        self.shared.pinged.listen()
    }

    /// The spawner and all workers are gone at once.
    pub fn end(&mut self) {
        self.end.take();
    }
}

pub fn pair() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("a pair")
}

fn watched(socket: OwnedFd) -> UnixStream {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true).expect("a socket");
    UnixStream::from_std(socket).expect("a runtime")
}

async fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let attempt = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok((got.bytes, fds.pop()))
    };
    socket.async_io(Interest::READABLE, attempt).await
}

fn send(socket: &UnixStream, bytes: &[u8], fd: Option<&OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // The front may have gone.
    let _sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

async fn serve(shared: Arc<Shared>, socket: OwnedFd) {
    let socket = watched(socket);
    let mut buffer = [0; REQUEST_SIZE];
    while let Ok((length @ 1.., _pidfd)) = receive(&socket, &mut buffer).await {
        let mut control = None;
        let reply = match Request::decode(&buffer[..length]) {
            Ok(Request::Examine { .. }) => {
                shared.examined.fetch_add(1, Ordering::SeqCst);
                let confinement = Confinement(shared.confinement.load(Ordering::SeqCst));
                Reply::Examined { confinement, gid: None }
            }
            Ok(Request::Start { .. }) if shared.refuse.load(Ordering::SeqCst) != 0 => {
                Reply::Refused(Refusal::Errno(shared.refuse.load(Ordering::SeqCst).cast_signed()))
            }
            Ok(request @ (Request::Start { .. } | Request::Herald)) => {
                let (ours, theirs) = pair();
                let (name, count) = match request {
                    Request::Start { name, .. } => (name, &shared.started),
                    _ => (HERALD.to_owned(), &shared.heralds),
                };
                let instance = count.fetch_add(1, Ordering::SeqCst) + 1;
                let task = tokio::spawn(worker(shared.clone(), name.clone(), instance, ours));
                shared.workers.lock().expect("not poisoned").push((name, task));
                control = Some(theirs);
                Reply::Started { pid: instance }
            }
            Ok(Request::Kill { name }) => {
                let mut workers = shared.workers.lock().expect("not poisoned");
                workers.retain(|(other, task)| {
                    if *other == name {
                        task.abort();
                    }
                    *other != name
                });
                Reply::Killed
            }
            // No worker here asks for one.
            Ok(Request::Mount { .. }) => Reply::Refused(Refusal::NoSuchWorker),
            Err(refusal) => Reply::Refused(refusal),
        };
        send(&socket, &reply.encode(), control.as_ref());
    }
    // Workers outlive the spawner.
    std::future::pending().await
}

/// Until its control socket ends; a new request to serve replaces the stream before.
async fn worker(shared: Arc<Shared>, name: String, instance: u32, control: OwnedFd) {
    let control = watched(control);
    let mut buffer = [0; 64];
    let mut next = receive(&control, &mut buffer).await;
    while let Ok((36, Some(stream))) = next {
        let request = buffer;
        assert_eq!(&request[..4], b"ipc1");
        let guid = std::str::from_utf8(&request[4..36]).expect("hexadecimal").to_owned();
        send(&control, b"ok", None);
        let ended = tokio::select! {
            dead = tree(shared.clone(), name.clone(), instance, stream, guid) => Err(dead),
            again = receive(&control, &mut buffer) => Ok(again),
        };
        next = match ended {
            Ok(again) => again,
            Err(true) => return,
            Err(false) => receive(&control, &mut buffer).await,
        };
    }
    if name != HERALD {
        shared.let_go.tell(&name);
    }
}

/// Serves a stream until that ends (false), or a call says to end (true).
async fn tree(shared: Arc<Shared>, name: String, instance: u32, stream: OwnedFd, guid: String) -> bool {
    let raw = stream.try_clone().expect("a duplicate");
    let discard = Arc::new(drop);
    let stream = Stream::new(stream, 64 << 20, discard).expect("a stream");
    let guid = Guid::try_from(guid).expect("a GUID");
    let mut messages: MessageStream =
        Builder::authenticated_socket(stream, guid).p2p().build_message_stream().await.expect("a connection");
    let connection = Connection::from(&messages);
    let clients = shared.clients.lock().expect("not poisoned").clone();
    let word = |member| Message::signal("/org/example/IPC", "org.example.IPC.Worker", member);
    let is_herald = name == HERALD;
    if !is_herald {
        say(&connection, word("Clients").build(&clients)).await;
    }
    let netlink = || Message::signal("/org/example/IPC/netlink", "org.example.IPC.Netlink", "LinkChanged");
    while let Some(Ok(message)) = messages.next().await {
        let header = message.header();
        if message.message_type() == Type::Signal {
            let (gone, _, _): (String, String, String) =
                message.body().deserialize().expect("NameOwnerChanged");
            if is_herald { &shared.herald_heard } else { &shared.departed }.tell(&gone);
            continue;
        }
        let answer = match header.member().expect("a call").as_str() {
            "WhoAmI" => Some(Message::method_return(&header).build(&(&name, instance))),
            // By the front.
            "Ping" => {
                say(&connection, Message::method_return(&header).build(&())).await;
                if !is_herald {
                    shared.pinged.tell(&name);
                }
                None
            }
            "Echo" => {
                let body = message.body();
                let text: &str = body.deserialize().expect("a string");
                Some(Message::method_return(&header).build(&text))
            }
            "Fail" => {
                let error = Message::error(&header, "org.example.IPC.Error.NotFound");
                Some(error.build(&"there is no such thing; make it first"))
            }
            // The descriptor that came, and how it is called here.
            "Fd" => {
                let fd: zbus::OwnedFd = message.body().deserialize().expect("a descriptor");
                let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("proc(5)");
                Some(Message::method_return(&header).build(&(link.to_string_lossy(), fd)))
            }
            "Never" => None,
            // Answers what "Never" did not, when the client of that has left.
            "Late" => {
                let (client, serial): (String, u32) = message.body().deserialize().expect("(su)");
                let call = call_of(&client, serial);
                say(&connection, Message::method_return(&call.header()).build(&())).await;
                Some(Message::method_return(&header).build(&()))
            }
            "WrongSerial" => Some(
                Message::method_return(&call_of(header.sender().expect("a bus"), 123_456).header())
                    .build(&()),
            ),
            "Twice" => {
                say(&connection, Message::method_return(&header).build(&())).await;
                Some(Message::method_return(&header).build(&()))
            }
            "Foreign" => {
                let (client, serial): (String, u32) = message.body().deserialize().expect("(su)");
                Some(Message::method_return(&call_of(&client, serial).header()).build(&()))
            }
            "CallBack" => {
                Some(Message::method_call("/", "Reboot").destination("org.example.Somebody").build(&()))
            }
            "Oversize" => Some(Message::method_return(&header).build(&vec![0u8; 2 << 20])),
            "Fds" => {
                let null = std::fs::File::open("/dev/null").expect("exists");
                let fds: Vec<_> = (0..20)
                    .map(|_| zbus::OwnedFd::from(OwnedFd::from(null.try_clone().expect("few"))))
                    .collect();
                Some(Message::method_return(&header).build(&fds))
            }
            "Garbage" => {
                rustix::io::write(&raw, &[b'x'; 64]).expect("written");
                None
            }
            "Broken" => {
                // A string that is not UTF-8, said to be one.
                let broken = Message::method_return(&header).build(&"abc").expect("valid");
                let mut bytes = broken.data().to_vec();
                let at = bytes.len() - 4;
                bytes[at] = 0xff;
                rustix::io::write(&raw, &bytes).expect("written");
                None
            }
            "Broadcast" => Some(Message::signal("/org/example/IPC", "org.example.IPC", "Changed").build(&())),
            // To everybody, as the herald, so many, numbered.
            "Tell" => {
                let count: u32 = message.body().deserialize().expect("u");
                for number in 1..=count {
                    say(&connection, netlink().build(&number)).await;
                }
                Some(Message::method_return(&header).build(&()))
            }
            "TellMuch" => Some(netlink().build(&vec![0u8; 200 << 10])),
            "TellOne" => Some(netlink().destination(header.sender().expect("a bus")).build(&())),
            "Clients" => Some(word("Clients").build(&[""; 0].as_slice())),
            "SignalTo" => {
                let client: String = message.body().deserialize().expect("a name");
                let signal = Message::signal("/org/example/IPC", "org.example.IPC", "Changed")
                    .destination(client.as_str());
                say(&connection, signal.build(&())).await;
                Some(Message::method_return(&header).build(&()))
            }
            // Many large signals of one object, numbered.
            "Signals" => {
                let (count, size): (u32, u32) = message.body().deserialize().expect("(uu)");
                let client = header.sender().expect("a bus").to_owned();
                for number in 1..=count {
                    let signal =
                        Message::signal("/org/example/IPC/pipe/1", "org.example.IPC.Events", "Event");
                    let signal =
                        signal.destination(client.clone()).build(&(number, vec![0u8; size as usize]));
                    say(&connection, signal).await;
                }
                Some(Message::method_return(&header).build(&()))
            }
            "IdleQuietly" => {
                say(&connection, word("Idle").build(&())).await;
                None
            }
            "Idle" => Some(word("Idle").build(&())),
            "Die" => return true,
            // Like a process that was stopped.
            "Stop" => std::future::pending().await,
            other => panic!("no member {other}"),
        };
        if let Some(answer) = answer
            && !message.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED)
        {
            say(&connection, answer).await;
        }
    }
    false
}

/// Unless the front has closed the stream, for what was said before.
async fn say(connection: &Connection, message: zbus::Result<Message>) {
    let _sent = connection.send(&message.expect("valid")).await;
}

/// A call as this client would have made it.
fn call_of(client: &str, serial: u32) -> Message {
    let serial = serial.try_into().expect("not 0");
    Message::method_call("/", "X").sender(client).serial(serial).build(&()).expect("valid")
}
