//! Queues that go when a test ends, however it ends; a C program as the other process; and the
//! waiting that the engine does otherwise.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, OnceLock, mpsc},
    time::{Duration, Instant},
};

use ipc_kernel::{
    Address, Attempt, Dict, Endpoint, Kind, Opening, Parameters, Readiness, Result,
    blocked::{self, Running, Sent},
    mechanisms::sysvmq::DESCRIPTOR,
    shape::{Message, Outgoing},
};

pub const PATIENCE: Duration = Duration::from_secs(20);

fn opened(opening: Result<Opening>) -> Result<Arc<dyn Endpoint>> {
    match opening? {
        Opening::Done(endpoint) => Ok(endpoint.into()),
        Opening::Pending(_) => panic!("queues open at once"),
    }
}

pub fn try_create(parameters: &str) -> Result<Queue> {
    let address = Address::parse(&format!("sysvmq:{parameters}"))?;
    let checked = Parameters::check(DESCRIPTOR.create_parameters, &[], &address, &Dict::new())?;
    opened((DESCRIPTOR.create)(&checked)).map(Queue)
}

pub fn create(parameters: &str) -> Queue {
    try_create(parameters).unwrap()
}

pub fn attach(parameters: &str) -> Result<Arc<dyn Endpoint>> {
    let address = Address::parse(&format!("sysvmq:{parameters}"))?;
    let checked = Parameters::check(DESCRIPTOR.attach_parameters, &[], &address, &Dict::new())?;
    opened((DESCRIPTOR.attach)(&checked))
}

/// A queue that is removed at the end.
pub struct Queue(pub Arc<dyn Endpoint>);

impl std::ops::Deref for Queue {
    type Target = Arc<dyn Endpoint>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

impl Queue {
    pub fn id(&self) -> i64 {
        number(&self.0, "id")
    }
}

pub fn number(endpoint: &Arc<dyn Endpoint>, key: &str) -> i64 {
    let state = endpoint.inspect().unwrap();
    let value = state.get(key).unwrap_or_else(|| panic!("no {key} in {state:?}"));
    value.integer().unwrap().try_into().unwrap()
}

/// Fails unless the error is of this kind and says this.
#[track_caller]
pub fn refused<T>(result: Result<T>, kind: Kind, phrase: &str) {
    let Err(error) = result else { panic!("accepted, where {kind:?} was expected: {phrase}") };
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.text.contains(phrase), "{error} does not say {phrase:?}");
}

/// Starts the blocking call of a readiness; the receiver hears of its end.
pub fn started(readiness: Readiness) -> (Running, mpsc::Receiver<()>) {
    let Readiness::Blocked(call) = readiness else { panic!("queues block, not {readiness:?}") };
    let (told, end) = mpsc::sync_channel(1);
    (blocked::start(call, move || _ = told.send(())).unwrap(), end)
}

pub fn give_up(running: &Running) {
    while !running.interrupt() {
        std::thread::yield_now();
    }
}

/// Repeats the attempt until it is done.
pub fn finish<T>(mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    loop {
        match attempt()? {
            Attempt::Done(value) => return Ok(value),
            Attempt::Wait(Readiness::After(pause)) => std::thread::sleep(pause),
            Attempt::Wait(readiness) => {
                let (running, end) = started(readiness);
                end.recv_timeout(PATIENCE).expect("the wait to end");
                give_up(&running);
            }
        }
    }
}

pub fn try_send(endpoint: &Arc<dyn Endpoint>, data: &[u8], attributes: &Dict) -> Result<Attempt<()>> {
    let sent = Sent::default();
    endpoint.messages().unwrap().send(Outgoing { data, attributes, fds: &[], sent: &sent })
}

pub fn send(endpoint: &Arc<dyn Endpoint>, kind: i64, data: &[u8]) -> Result<()> {
    let (sent, attributes) = (Sent::default(), ipc_kernel::dict! { "type" => kind });
    let messages = endpoint.messages().unwrap();
    finish(|| messages.send(Outgoing { data, attributes: &attributes, fds: &[], sent: &sent }))
}

pub fn try_receive(endpoint: &Arc<dyn Endpoint>, selector: &Dict) -> Result<Attempt<Message>> {
    endpoint.messages().unwrap().receive(selector)
}

/// The type and bytes of the next message, waiting for it.
pub fn receive(endpoint: &Arc<dyn Endpoint>, selector: &Dict) -> Result<(i64, Vec<u8>)> {
    finish(|| try_receive(endpoint, selector)).map(parts)
}

pub fn parts(message: Message) -> (i64, Vec<u8>) {
    (message.attributes["type"].integer().unwrap().try_into().unwrap(), message.data)
}

/// What waits now; None: nothing that is asked for.
pub fn now(endpoint: &Arc<dyn Endpoint>, selector: &Dict) -> Option<(i64, Vec<u8>)> {
    match try_receive(endpoint, selector).unwrap() {
        Attempt::Done(message) => Some(parts(message)),
        Attempt::Wait(_) => None,
    }
}

/// Looks again until it is so.
#[track_caller]
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "in time it did not come about that {what}");
        std::thread::yield_now();
    }
}

/// The C program, built once; None, visibly, without a C compiler.
fn program() -> Option<&'static PathBuf> {
    static BUILT: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("ipc-sysvmq-").tempdir().unwrap();
        let path = directory.path().join("peer");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sysvmq/peer.c");
        let mut gcc = Command::new("gcc");
        match gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&path).arg(source).status() {
            Ok(status) => assert!(status.success(), "gcc failed"),
            Err(error) => {
                eprintln!("SKIPPED: cannot start gcc: {error}");
                return None;
            }
        }
        // Another user runs it, too.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), everybody).unwrap();
        Some((directory, path))
    });
    built.as_ref().map(|(_, path)| path)
}

/// A process that uses the C library's functions.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start(user: Option<u32>) -> Option<Self> {
        let mut command = Command::new(program()?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut peer = Self { child, input, output };
        assert_eq!(peer.line(), "ready");
        Some(peer)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }

    /// Waits until the process sleeps in a system call.
    pub fn blocks(&self) {
        eventually("the peer blocks", || {
            let wchan = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid())).unwrap_or_default();
            let number = wchan.split(' ').next().and_then(|number| number.parse::<i64>().ok());
            number == Some(libc::SYS_msgrcv) || number == Some(libc::SYS_msgsnd)
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
