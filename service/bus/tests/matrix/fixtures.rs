//! One of everything as a source and as a sink, and its far end: how something is put into it, and taken out.

use std::{
    fmt,
    fs::File,
    io::{Read, Write},
    net::UdpSocket,
    num::NonZeroU32,
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ipc_bus::MECHANISMS;
use ipc_engine::{Call, Endpoint, Engine, Limits, Relay, events::Happening};
use ipc_kernel::{
    Attempt, Dict, Error, Value, dict,
    shape::{Outgoing, Shape},
    signal::names,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::bus::Bus;

/// What a mechanism is with a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub mechanism: &'static str,
    pub shape: Shape,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.mechanism, self.shape.name())
    }
}

pub struct World {
    engine: Arc<Engine>,
    call: Call,
    directory: TempDir,
    bus: Bus,
    /// Mounts take their time; all pairs share one as the source and one as the sink.
    mount: Result<Arc<Endpoint>, Error>,
    other_mount: Result<Arc<Endpoint>, Error>,
    next: AtomicU32,
}

impl World {
    pub async fn new() -> Self {
        let engine =
            Engine::of(MECHANISMS, Limits { endpoints: 4096, mailboxes: 256, ..Limits::default() }, None);
        // Somebody hears the news.
        let heard = engine.clone();
        tokio::spawn(async move {
            loop {
                if let ipc_engine::Object::Endpoint(endpoint) = heard.next_news().await {
                    endpoint.events.unannounced(usize::MAX);
                }
            }
        });
        let call = engine.admit(engine.clients.get(":1.1")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let bus = Bus::new(directory.path()).await;
        let mount = async |name| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            engine.create(&call, &format!("fuse:path={}", path.display()), Dict::new()).await
        };
        let (mount, other_mount) = (mount("mount").await, mount("other").await);
        if let Ok(mount) = &mount {
            engine.publish(mount, "file", b"").await.unwrap();
        }
        Self { engine, call, directory, bus, mount, other_mount, next: AtomicU32::new(0) }
    }

    pub fn available(&self, mechanism: &str) -> Result<(), Error> {
        (MECHANISMS.by_name(mechanism)?.available)()?;
        match &self.mount {
            Err(error) if mechanism == "fuse" => Err(error.clone()),
            _ => Ok(()),
        }
    }

    pub async fn relay(
        &self,
        source: &Arc<Endpoint>,
        sink: &Arc<Endpoint>,
        options: Dict,
    ) -> Result<Arc<Relay>, Error> {
        self.engine.start_relay(&self.call, source.clone(), sink.clone(), options).await
    }

    pub fn close(&self, endpoint: Arc<Endpoint>) {
        if endpoint.mechanism.name != "fuse" {
            let _named = endpoint.kernel.remove();
            self.engine.close(&endpoint, "the pair was tested");
        }
    }

    async fn create(&self, address: &str) -> Arc<Endpoint> {
        self.engine
            .create(&self.call, address, Dict::new())
            .await
            .unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    async fn attach(&self, address: &str) -> Arc<Endpoint> {
        self.engine
            .attach(&self.call, address, Dict::new())
            .await
            .unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// The kernel's list of ports, in which they are looked for, may leave one out while others come and go.
    async fn attach_port(&self, port: i128) -> Arc<Endpoint> {
        let address = format!("netlink:family=usersock,port={port}");
        loop {
            match self.engine.attach(&self.call, &address, Dict::new()).await {
                Err(error) if error.kind == ipc_kernel::Kind::NotFound => tokio::task::yield_now().await,
                attached => return attached.unwrap(),
            }
        }
    }

    async fn adopt(&self, fd: impl Into<OwnedFd>) -> Arc<Endpoint> {
        self.engine.adopt(&self.call, fd.into(), Dict::new()).await.unwrap()
    }

    /// A path that nothing has.
    fn path(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.directory.path().join(number.to_string()).display().to_string()
    }

    /// A name for what is not in the file system.
    fn name(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("/matrix-{}-{:p}-{number}", std::process::id(), &raw const self.next)
    }

    /// An object that takes on its own what is put into it: queues, semaphores, memory of a size.
    async fn object(&self, kind: Kind, size: usize) -> Arc<Endpoint> {
        let address = match (kind.mechanism, kind.shape) {
            ("sysvmq", _) => "sysvmq:key=private".to_owned(),
            ("posixmq", _) => format!("posixmq:name={}", self.name()),
            ("sysvshm", _) => format!("sysvshm:key=private,size={size}"),
            ("posixshm", _) => format!("posixshm:name={},size={size}", self.name()),
            ("mmap", _) => format!("mmap:size={size}"),
            ("sysvsem", _) => "sysvsem:key=private".to_owned(),
            ("posixsem", _) => format!("posixsem:name={},value=0", self.name()),
            ("futex", _) => "futex:".to_owned(),
            ("unix", Shape::Listener) => format!("unix:path={}", self.path()),
            ("inet", Shape::Listener) => "tcp:host=127.0.0.1,port=0".to_owned(),
            ("signal", Shape::Mailbox) => "signal:numbers=SIGUSR1".to_owned(),
            ("inotify", _) => {
                let path = self.path();
                std::fs::create_dir(&path).unwrap();
                return self.create(&format!("inotify:path={path},events=create")).await;
            }
            ("fuse", _) => return self.mount.clone().unwrap(),
            _ => panic!("{kind} has no fixture here"),
        };
        self.create(&address).await
    }
}

/// The other side of an endpoint.
enum Far {
    /// It is the endpoint itself, or in the file system.
    Same,
    Fd(OwnedFd),
    Endpoint(Arc<Endpoint>),
    Child(Ending),
}

/// A process that ends with the test, at the latest.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn seqpacket() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn tcp() -> (OwnedFd, OwnedFd) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0.into(), theirs.into())
}

/// A socket that is sent to, and one that sends to it.
fn udp() -> (OwnedFd, OwnedFd) {
    let (to, from) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    from.connect(to.local_addr().unwrap()).unwrap();
    (to.into(), from.into())
}

/// What comes out, and what goes in, of each kind that has two ends.
fn two_ends(kind: Kind) -> Option<(OwnedFd, OwnedFd)> {
    Some(match (kind.mechanism, kind.shape) {
        ("pipe", Shape::Stream) => rustix::pipe::pipe().unwrap(),
        ("pipe", _) => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::DIRECT).unwrap(),
        ("unix", Shape::Stream) => {
            let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
            (one.into(), other.into())
        }
        ("unix", Shape::Messages) => seqpacket(),
        ("inet", Shape::Stream) => tcp(),
        ("inet", Shape::Messages) => udp(),
        _ => return None,
    })
}

pub struct Source {
    pub endpoint: Arc<Endpoint>,
    kind: Kind,
    far: Far,
}

impl Source {
    pub async fn new(world: &World, kind: Kind, held: &str) -> Self {
        let made = |endpoint, far| Self { endpoint, kind, far };
        // The end that reads a pipe does not show that it is one of packets.
        if (kind.mechanism, kind.shape) == ("pipe", Shape::Messages) {
            return made(world.create("pipe:packet=true").await, Far::Same);
        }
        if let Some((out, into)) = two_ends(kind) {
            return made(world.adopt(out).await, Far::Fd(into));
        }
        match (kind.mechanism, kind.shape) {
            ("fifo", _) => {
                let path = world.path();
                let endpoint = world.create(&format!("fifo:path={path}")).await;
                let writer = File::options().read(true).write(true).open(path).unwrap();
                made(endpoint, Far::Fd(writer.into()))
            }
            ("netlink", _) => {
                let endpoint = world.create("netlink:family=usersock").await;
                let port = endpoint.kernel.inspect().unwrap()["port"].integer().unwrap();
                let far = world.attach_port(port).await;
                made(endpoint, Far::Endpoint(far))
            }
            ("dbus", _) => {
                let what = "match=type='signal'%2cinterface='org.test.Peer',body=plain";
                made(world.attach(&format!("dbus:bus={},{what}", world.bus.address)).await, Far::Same)
            }
            ("signal", Shape::Process) => {
                let child = Ending(Command::new("sleep").arg("600").spawn().unwrap());
                made(world.attach(&format!("signal:pid={}", child.0.id())).await, Far::Child(child))
            }
            (_, Shape::Memory) => {
                let endpoint = world.object(kind, held.len()).await;
                endpoint.memory().unwrap().write(0, held.as_bytes()).unwrap();
                made(endpoint, Far::Same)
            }
            _ => made(world.object(kind, 0).await, Far::Same),
        }
    }

    /// Makes something happen.
    pub async fn feed(&self, world: &World, payload: &str) {
        match (&self.far, self.kind.shape) {
            (Far::Fd(fd), Shape::Stream) => {
                File::from(fd.try_clone().unwrap()).write_all(format!("{payload}\n").as_bytes()).unwrap();
            }
            (Far::Fd(fd), _) => assert_eq!(rustix::io::write(fd, payload.as_bytes()).unwrap(), payload.len()),
            (Far::Endpoint(far), _) => send(world, far, payload).await,
            (Far::Child(child), _) => kill(child.0.id(), rustix::process::Signal::KILL),
            (Far::Same, Shape::Messages) if self.kind.mechanism == "dbus" => world.bus.say(payload).await,
            (Far::Same, Shape::Messages) => send(world, &self.endpoint, payload).await,
            (Far::Same, Shape::Semaphore) => self.endpoint.semaphore().unwrap().post(1).unwrap(),
            (Far::Same, Shape::Futex) => {
                let word = self.endpoint.futex().unwrap().word().unwrap();
                word.store(7).unwrap();
                word.wake(1, NonZeroU32::MAX).unwrap();
            }
            (Far::Same, Shape::Watch) => {
                let path = self.endpoint.kernel.inspect().unwrap()["path"].clone();
                let Value::Text(path) = path else { panic!("{path:?}") };
                File::create(std::path::Path::new(&path).join("new")).unwrap();
            }
            (Far::Same, Shape::Mailbox) => {
                let pid = self.endpoint.mailbox().unwrap().pid();
                kill(pid.unsigned_abs(), rustix::process::Signal::USR1);
            }
            (Far::Same, Shape::Filesystem) => {
                let path = world.directory.path().join("mount/file");
                tokio::task::spawn_blocking(move || std::fs::write(path, "written")).await.unwrap().unwrap();
            }
            (Far::Same, _) => {}
        }
    }
}

async fn send(world: &World, endpoint: &Endpoint, payload: &str) {
    let (attributes, sent) = (Dict::new(), Default::default());
    let message = Outgoing { data: payload.as_bytes(), attributes: &attributes, fds: &[], sent: &sent };
    world.engine.send(&world.call, endpoint, message, u32::MAX).await.unwrap();
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub struct Sink {
    pub endpoint: Arc<Endpoint>,
    kind: Kind,
    far: Far,
    /// Who waits for a futex.
    waiter: Option<JoinHandle<()>>,
}

impl Sink {
    pub async fn new(world: &World, kind: Kind) -> Self {
        let made = |endpoint, far| Self { endpoint, kind, far, waiter: None };
        if let Some((out, into)) = two_ends(kind) {
            return made(world.adopt(into).await, Far::Fd(out));
        }
        match (kind.mechanism, kind.shape) {
            ("fuse", _) => made(world.other_mount.clone().unwrap(), Far::Same),
            ("fifo", _) => {
                let path = world.path();
                let endpoint = world.create(&format!("fifo:path={path}")).await;
                let reader = File::options().read(true).write(true).open(path).unwrap();
                made(endpoint, Far::Fd(reader.into()))
            }
            ("netlink", _) => {
                let far = world.create("netlink:family=usersock").await;
                let port = far.kernel.inspect().unwrap()["port"].integer().unwrap();
                let endpoint = world.attach_port(port).await;
                made(endpoint, Far::Endpoint(far))
            }
            ("dbus", _) => {
                let what = "name=org.test.Peer,path=/,interface=org.test.Peer,member=Note,signature=s,flags=no-reply-expected";
                made(world.attach(&format!("dbus:bus={},{what}", world.bus.address)).await, Far::Same)
            }
            ("signal", Shape::Process) => {
                let mailbox = world.create("signal:numbers=SIGUSR1").await;
                let pid = mailbox.mailbox().unwrap().pid();
                made(world.attach(&format!("signal:pid={pid}")).await, Far::Endpoint(mailbox))
            }
            _ => made(world.object(kind, 4096).await, Far::Same),
        }
    }

    /// A wake-up without a value is only seen by who waits already.
    pub async fn wait_for_data(&mut self) {
        if self.kind.shape != Shape::Futex {
            return;
        }
        let wait = self.endpoint.futex().unwrap().word().unwrap().wait(0, NonZeroU32::MAX);
        self.waiter = Some(tokio::spawn(async move {
            while let Attempt::Wait(readiness) = wait.attempt().unwrap() {
                ipc_engine::wait::until(readiness).await.unwrap();
            }
            wait.accept();
        }));
        let waits = || match &self.endpoint.kernel.inspect().unwrap()["waiters"] {
            Value::Dicts(waiters) => !waiters.is_empty(),
            other => panic!("{other:?}"),
        };
        while !waits() {
            tokio::task::yield_now().await;
        }
    }

    /// What has come: bytes, and for what are none, a text.
    pub async fn take(&mut self, world: &World, snapshot: bool) -> Vec<u8> {
        match (&self.far, self.kind.shape) {
            (Far::Fd(fd), shape) => {
                let mut file = File::from(fd.try_clone().unwrap());
                let lines = shape == Shape::Stream;
                let read = move || {
                    let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
                    while all.is_empty() || lines && all.last() != Some(&b'\n') {
                        let length = file.read(&mut buffer).unwrap();
                        assert!(length > 0, "the end came after {all:?}");
                        all.extend_from_slice(&buffer[..length]);
                    }
                    all
                };
                tokio::task::spawn_blocking(read).await.unwrap()
            }
            (Far::Endpoint(mailbox), Shape::Process) => loop {
                let pushed = mailbox.events.pushed();
                if let Some(event) = mailbox.events.since(0).0.pop() {
                    let Happening::Signalled(signal) = event.happening else { panic!("{event:?}") };
                    let text = format!("{} {}", names::name(signal.number), signal.value);
                    world.close(mailbox.clone());
                    return text.into_bytes();
                }
                pushed.await;
            },
            (Far::Endpoint(far), _) => {
                let came = receive(world, far).await;
                world.close(far.clone());
                came
            }
            (_, Shape::Messages) if self.kind.mechanism == "dbus" => world.bus.note().await.into_bytes(),
            (_, Shape::Messages) => receive(world, &self.endpoint).await,
            (_, Shape::Memory) => loop {
                // The kernel has no event for that.
                let mut content = self.endpoint.memory().unwrap().read(0, 4096).unwrap();
                let length = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                content.truncate(length);
                if length > 0 && (snapshot || content.ends_with(b"\n")) {
                    return content;
                }
                tokio::task::yield_now().await;
            },
            (_, Shape::Semaphore) => {
                world.engine.semaphore_wait(&world.call, &self.endpoint, u32::MAX).await.unwrap();
                b"1".to_vec()
            }
            (_, Shape::Futex) => {
                self.waiter.take().unwrap().await.unwrap();
                self.endpoint.futex().unwrap().word().unwrap().load().unwrap().to_string().into_bytes()
            }
            (_, shape) => panic!("nothing comes out of {}", shape.name()),
        }
    }
}

async fn receive(world: &World, endpoint: &Endpoint) -> Vec<u8> {
    world.engine.receive(&world.call, endpoint, &dict! {}, u32::MAX).await.unwrap().data
}
