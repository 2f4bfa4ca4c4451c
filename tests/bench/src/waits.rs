//! P11: thousands of waits for futexes and POSIX semaphores that are pending at once, and how soon one of them is
//! told when its word is woken.
//!
//! The peer is the same little zbus service for both ways: one that starts a thread for each wait. Both are talked
//! to over a socket pair; the benchmark wakes the words itself, in the memory that it shares with them.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, stream::SelectAll};
use ipc_harness::{Bus, Launch, NAME, PATH, Service, connect, patience, peer, watchdog};
use ipc_kernel::{
    Address, Endpoint, Opening, Parameters,
    futex_word::{ANY, FutexWord},
    mechanisms,
    word::{self, Watched},
    word_place::{Room, WordPlace},
};
use tokio::runtime::Runtime;
use zbus::{Connection, Guid, Message, MessageStream, connection::Builder, interface, message::Type};

use crate::{
    Settings,
    peers::{Options, runtime},
    rounds::{Contender, Stats, interleave},
    table::{Bar, Row},
};

/// The words that the waits are for.
const WORDS: usize = 64;
const SEMAPHORES: usize = 16;
/// The connections that the service is asked over.
const CONNECTIONS: usize = 4;
/// Wake-ups of one round; the waits are not made again.
const SAMPLES: usize = 50;
const LIMITS: &str = "[limits]\ncalls = 16384\ncalls-per-connection = 16384\nwaits = 16384\n";
const TIMEOUT: u32 = 300_000;
const WAITERS: &str = "org.example.Waiters";
const WAITERS_PATH: &str = "/org/example/Waiters";

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    let waits = if settings.quick { 2_000 } else { 10_000 };
    let memory = Memory::new()?;
    let ours = Ours::start(&memory, waits)?;
    let theirs = Theirs::start(&memory, waits)?;
    let mut contenders: [Contender<'_, f64>; 4] = [
        Box::new(|| ours.clients.p50(|n| memory.wake(n))),
        Box::new(|| theirs.clients.p50(|n| memory.wake(n + WORDS))),
        Box::new(|| ours.clients.p50(|n| ours.post(n))),
        Box::new(bare_threads),
    ];
    let samples = interleave(settings.rounds, &mut contenders)?;
    let [futex, their_futex, semaphore, bare] = samples.as_slice() else { bail!("a contender is missing") };
    let what = |what: &str| format!("{what}, {waits} waits pending");
    let peer = "zbus service with a thread per wait";
    Ok(vec![
        Row::ratio(
            "P11",
            what("threads"),
            "",
            &[ours.cost.threads],
            (peer, &[theirs.cost.threads]),
            Bar::None,
        ),
        Row::absolute("P11", what("threads"), "", &[ours.cost.threads], Bar::AtMost(100.0)),
        Row::absolute("P11", what("more RSS"), "MB", &[ours.cost.memory], Bar::AtMost(8.0)),
        Row::ratio(
            "P11",
            what("more RSS"),
            "MB",
            &[ours.cost.memory],
            (peer, &[theirs.cost.memory]),
            Bar::None,
        ),
        Row::ratio("P11", what("futex to reply, p50"), "µs", futex, (peer, their_futex), Bar::AtMost(2.0)),
        Row::ratio(
            "P11",
            what("semaphore to reply, p50"),
            "µs",
            semaphore,
            (peer, their_futex),
            Bar::AtMost(2.0),
        ),
        Row::ratio("P11", "futex to reply, p50", "µs", futex, ("a bare thread, no D-Bus", bare), Bar::None),
    ])
}

/// Words that all share: one half for the service, the other for the peer.
struct Memory {
    place: WordPlace,
    words: Vec<FutexWord>,
}

impl Memory {
    fn new() -> Result<Memory> {
        let room = Room { what: "futex", bytes: 4, alignment: 4 };
        let place = WordPlace::fresh(&[0; 8 * WORDS], room)?;
        let (mapping, _) = place.mapped()?;
        let word = |n: usize| FutexWord { mapping: mapping.clone(), offset: 4 * n };
        let words = (0..2 * WORDS).map(word).collect();
        Ok(Memory { place, words })
    }

    fn address(&self, n: usize) -> Address {
        self.place.address("futex", "name").with("offset", (4 * n).to_string())
    }

    /// Without a change: just one wait ends.
    fn wake(&self, n: usize) -> Result<()> {
        let half = n / WORDS * WORDS;
        ensure!(self.words[half + n % WORDS].wake(1, ANY)? == 1, "nobody waits for the word {n}");
        Ok(())
    }
}

fn attached(address: &Address) -> Result<Box<dyn Endpoint>> {
    let mechanism = mechanisms::by_scheme(&address.scheme)?;
    let parameters = Parameters::check(mechanism.attach_parameters, &[], address, &ipc_kernel::Dict::new())?;
    match (mechanism.attach)(&parameters)? {
        Opening::Done(endpoint) => Ok(endpoint),
        Opening::Pending(_) => bail!("memory opens at once"),
    }
}

/// What the waits cost a process.
struct Cost {
    threads: f64,
    /// MB (10^6 bytes).
    memory: f64,
}

impl Cost {
    fn of(pid: u32, before: f64) -> Result<Cost> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).context("the threads")?.count();
        Ok(Cost { threads: threads as f64, memory: (rss(pid)? - before) / 1e6 })
    }
}

/// Resident set size in bytes (proc_pid_status(5)).
fn rss(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS")?;
    Ok(kilobytes * 1024.0)
}

/// Connections on which calls are pending, and the replies of all.
struct Clients {
    runtime: Runtime,
    connections: Vec<Connection>,
    replies: std::cell::RefCell<SelectAll<MessageStream>>,
}

impl Clients {
    fn new(connect: impl AsyncFnOnce() -> Result<Vec<Connection>>) -> Result<Clients> {
        let runtime = runtime()?;
        let connections = runtime.block_on(connect())?;
        Ok(Clients { runtime, connections, replies: Default::default() })
    }

    /// From now on replies are for `p50`: what is not read would hold up the others.
    fn listen(&self) {
        let streams = self.connections.iter().map(MessageStream::from);
        *self.replies.borrow_mut() =
            self.runtime.block_on(async { futures_util::stream::select_all(streams) });
    }

    /// Sends a call whose reply is for later.
    fn begin(&self, n: usize, path: &str, interface: &str, method: &str, body: &(u32, u32)) -> Result<()> {
        let call = Message::method_call(path, method).interface(interface);
        // sem_wait(3) has no expected value.
        let call = if interface.ends_with("Semaphore") { call.build(&body.1)? } else { call.build(body)? };
        Ok(self.runtime.block_on(self.connections[n % self.connections.len()].send(&call))?)
    }

    /// The median time from a wake-up to the reply to a wait, in µs.
    fn p50(&self, wake: impl Fn(usize) -> Result<()>) -> Result<f64> {
        let mut replies = self.replies.borrow_mut();
        let mut one = |n| -> Result<f64> {
            let started = Instant::now();
            wake(n)?;
            self.runtime.block_on(watchdog(patience(), async {
                loop {
                    let message = replies.next().await.context("the connection ended")??;
                    match message.message_type() {
                        Type::MethodReturn => return Ok(started.elapsed().as_secs_f64() * 1e6),
                        Type::Error => bail!("a wait failed: {message}"),
                        // Signals of what was made.
                        _ => {}
                    }
                }
            }))
        };
        let samples = (0..SAMPLES).map(&mut one).collect::<Result<Vec<f64>>>()?;
        Ok(Stats::of(samples).median)
    }
}

/// The service with its waits: half of them for futexes, half for semaphores.
struct Ours {
    clients: Clients,
    semaphores: Vec<Box<dyn Endpoint>>,
    cost: Cost,
    _service: Service,
    _bus: Bus,
}

impl Ours {
    fn start(memory: &Memory, waits: usize) -> Result<Ours> {
        let bus = Bus::dbus_daemon()?;
        let service = Launch::on(&bus).config(LIMITS).start();
        let clients = Clients::new(async || {
            let on_bus = connect(&bus).await;
            let mut peers = Vec::new();
            for _ in 0..CONNECTIONS {
                peers.push(peer(&on_bus).await);
            }
            Ok(peers)
        })?;
        let make = |method: &'static str, address: String| -> Result<String> {
            let body = (address, Options::new());
            let call = clients.connections[0].call_method(None::<&str>, PATH, Some(NAME), method, &body);
            let reply = clients.runtime.block_on(call)?;
            Ok(reply.body().deserialize::<zbus::OwnedObjectPath>()?.to_string())
        };
        let futexes: Vec<_> =
            (0..WORDS).map(|n| make("Attach", memory.address(n).to_string())).collect::<Result<_>>()?;
        let mut semaphores = Vec::new();
        let mut paths = Vec::new();
        for n in 0..SEMAPHORES {
            let address =
                Address::new("posixsem").with("name", format!("/ipc-bench-{}-{n}", std::process::id()));
            paths.push(make("Create", format!("{address},value=0,remove-on-close"))?);
            semaphores.push(attached(&address)?);
        }
        // A pid is positive.
        let pid = service.pid() as u32;
        let before = rss(pid)?;
        for n in 0..waits / 2 {
            let (futex, semaphore) = (&futexes[n % WORDS], &paths[n % SEMAPHORES]);
            clients.begin(n, futex, "org.example.IPC.Futex", "Wait", &(0, TIMEOUT))?;
            clients.begin(n, semaphore, "org.example.IPC.Semaphore", "Wait", &(0, TIMEOUT))?;
        }
        let pending = || -> Result<u32> {
            let call = clients.connections[0].call_method(
                None::<&str>,
                PATH,
                Some("org.freedesktop.DBus.Properties"),
                "Get",
                &(NAME, "Usage"),
            );
            let reply = clients.runtime.block_on(call)?;
            let usage: zbus::OwnedVariant = reply.body().deserialize()?;
            let usage = std::collections::HashMap::<String, zbus::OwnedVariant>::try_from(usage)?;
            Ok(u32::try_from(usage.get("waits").context("no waits in Usage")?)?)
        };
        settled(|| Ok(pending()? as usize == waits / 2 * 2))?;
        let cost = Cost::of(pid, before)?;
        clients.listen();
        Ok(Ours { clients, semaphores, cost, _service: service, _bus: bus })
    }

    fn post(&self, n: usize) -> Result<()> {
        Ok(self.semaphores[n % SEMAPHORES].semaphore().context("a semaphore")?.post(1)?)
    }
}

/// Waits until it is so, and a moment longer.
fn settled(mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + patience();
    while !is()? {
        ensure!(Instant::now() < end, "the waits did not all begin in time");
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// The peer.
struct Theirs {
    clients: Clients,
    cost: Cost,
    child: Child,
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Theirs {
    fn start(memory: &Memory, waits: usize) -> Result<Theirs> {
        let (here, there) = UnixStream::pair()?;
        let mut command = Command::new(std::env::current_exe().context("the own program")?);
        let address = memory.place.address("futex", "name").to_string();
        command.args(["waiters", &address]).stdin(Stdio::from(OwnedFd::from(there)));
        let child = command.spawn().context("the peer")?;
        drop(command);
        let clients = Clients::new(async || Ok(vec![Builder::unix_stream(here).p2p().build().await?]))?;
        let mut theirs = Theirs { clients, cost: Cost { threads: 0.0, memory: 0.0 }, child };
        let pid = theirs.child.id();
        let before = rss(pid)?;
        for n in 0..waits {
            let word = (WORDS + n % WORDS) as u32;
            theirs.clients.begin(0, WAITERS_PATH, WAITERS, "Wait", &(word, 0))?;
        }
        settled(|| Ok(Cost::of(pid, before)?.threads >= waits as f64))?;
        theirs.cost = Cost::of(pid, before)?;
        theirs.clients.listen();
        Ok(theirs)
    }
}

/// A service with a thread for each wait.
struct Waiters {
    words: Vec<FutexWord>,
}

#[interface(name = "org.example.Waiters")]
impl Waiters {
    async fn wait(&self, word: u32, expected: u32) -> zbus::fdo::Result<()> {
        let failed = |error: String| zbus::fdo::Error::Failed(error);
        let word = self.words.get(word as usize).cloned().ok_or_else(|| failed("no such word".into()))?;
        let (woken, wake_up) = tokio::sync::oneshot::channel();
        thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || woken.send(wait(&word, expected)))
            .map_err(|error| failed(error.to_string()))?;
        let ended = wake_up.await.map_err(|error| failed(error.to_string()))?;
        ended.map(drop).map_err(|error| failed(error.to_string()))
    }
}

/// Blocks until the word is woken.
fn wait(word: &FutexWord, expected: u32) -> ipc_kernel::Result<Option<usize>> {
    word::wait_any(&[Watched::Shared { mapping: word.mapping.clone(), offset: word.offset, expected }])
}

/// Is that service, on the socket that is its standard input.
pub fn be_waiters(address: &str) -> Result<()> {
    let endpoint = attached(&Address::parse(address)?)?;
    let first = endpoint.futex().context("a futex")?.word()?;
    let word = |n: usize| FutexWord { mapping: first.mapping.clone(), offset: 4 * n };
    let words = (0..2 * WORDS).map(word).collect();
    let socket =
        std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().context("standard input")?;
    runtime()?.block_on(async {
        let builder = Builder::unix_stream(UnixStream::from(socket)).server(Guid::generate()).p2p();
        let connection = builder.serve_at(WAITERS_PATH, Waiters { words }).build().await?;
        connection.closed().await;
        Ok(())
    })
}

/// The same without D-Bus: from the wake-up to the thread that waits for it, in µs.
fn bare_threads() -> Result<f64> {
    let memory = Memory::new()?;
    let word = Arc::new(memory.words[0].clone());
    let samples = (0..SAMPLES).map(|_| {
        let (sender, receiver) = mpsc::channel();
        let waiting = word.clone();
        let waiter = thread::spawn(move || {
            let ended = wait(&waiting, 0);
            // The other side is there until it has this.
            let _ = sender.send(Instant::now());
            ended
        });
        let started = loop {
            let started = Instant::now();
            if word.wake(1, ANY)? == 1 {
                break started;
            }
            thread::yield_now();
        };
        let woken = receiver.recv().context("the waiting thread")?;
        if waiter.join().is_err() {
            bail!("the waiting thread panicked");
        }
        Ok(woken.duration_since(started).as_secs_f64() * 1e6)
    });
    Ok(Stats::of(samples.collect::<Result<Vec<f64>>>()?).median)
}
