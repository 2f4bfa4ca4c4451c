//! P14: what one of many costs: a relay among 1,000, an endpoint among 4,000, a client among 500, each against the
//! same alone. What the kernel, the caches and the bus have to do with it is shown by peers: relays in a loop of C
//! (`hops.c`), and the echo service.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use ipc_harness::{Bus, connect, temp_dir};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use zbus::Connection;

use crate::{
    Settings,
    cpu::on_one_cpu,
    data::Way,
    idle::pss,
    peers::{self, ECHO, Ipc, Killed, echo, runtime},
    rounds::{Contender, interleave},
    table::{Bar, Row},
};

const LIMITS: &str = "[limits]\nrelays = 1024\nendpoints = 4096\n";

/// How much one of many may cost more.
const GROWTH: Bar = Bar::AtMost(1.3);

/// Hops or calls of one round.
const BATCH: usize = 2_000;

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    raise_file_limit()?;
    // Cargo brings the program up to date, with all CPUs.
    drop(Ipc::start()?);
    let part = if settings.quick { 10 } else { 1 };
    let settings = settings.clone();
    on_one_cpu(move || {
        let mut rows = relays(&settings, 1_000 / part)?;
        rows.extend(endpoints(&settings, 4_000 / part)?);
        rows.extend(clients(&settings, 500 / part)?);
        Ok(rows)
    })
}

fn raise_file_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("RLIMIT_NOFILE")
}

/// The far ends of a relay between two sockets.
struct Hop {
    write: File,
    read: File,
}

/// A service with so many relays, and what one costs it in KB.
fn with_relays(count: usize) -> Result<(Ipc, Vec<Hop>, f64)> {
    let ipc = Ipc::with_config(LIMITS)?;
    let mut hops = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..count {
        let (into, out) = (Way::Unix.open()?, Way::Unix.open()?);
        ends.push((ipc.adopt(into.read)?, ipc.adopt(out.write)?));
        hops.push(Hop { write: into.write.into(), read: out.read.into() });
    }
    let before = memory(&ipc)?;
    for (source, sink) in &ends {
        ipc.relay(source, sink)?;
    }
    // Each has moved something, and holds what it then holds.
    through(&mut hops, count)?;
    let each = (memory(&ipc)? - before) / count as f64;
    Ok((ipc, hops, each))
}

/// A byte through one relay after the other; µs of each.
fn through(hops: &mut [Hop], count: usize) -> Result<f64> {
    let started = Instant::now();
    for n in 0..count {
        let at = n % hops.len();
        hops[at].write.write_all(b"x")?;
        hops[at].read.read_exact(&mut [0])?;
    }
    Ok(started.elapsed().as_secs_f64() * 1e6 / count as f64)
}

/// As many relays in a loop of C.
struct Loop {
    _process: Killed,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Loop {
    fn start(program: &Path, count: usize) -> Result<Loop> {
        let mut command = Command::new(program);
        command.args([count.to_string(), BATCH.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Killed(command.spawn().context("the peer")?);
        let ask = process.0.stdin.take().context("the peer's input")?;
        let answers = BufReader::new(process.0.stdout.take().context("the peer's output")?);
        Ok(Loop { _process: process, ask, answers })
    }

    fn through(&mut self) -> Result<f64> {
        self.ask.write_all(b"\n")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        answer.trim().parse().context("what the peer says")
    }
}

fn relays(settings: &Settings, count: usize) -> Result<Vec<Row>> {
    let dir = temp_dir();
    let program = peers::compiled(dir.path(), "hops", include_str!("hops.c"))?;
    let (mut loop_of_one, mut loop_of_all) = (Loop::start(&program, 1)?, Loop::start(&program, count)?);
    let (_one, mut single, _) = with_relays(1)?;
    let (_many, mut hops, each) = with_relays(count)?;
    let mut contenders: [Contender<'_, f64>; 4] = [
        Box::new(|| through(&mut hops, BATCH)),
        Box::new(|| through(&mut single, BATCH)),
        Box::new(|| loop_of_all.through()),
        Box::new(|| loop_of_one.through()),
    ];
    let samples = interleave(settings.rounds, &mut contenders)?;
    let [ours, alone, peer, peer_alone] = samples.as_slice() else { bail!("a contender is missing") };
    let what = format!("a byte through each of {count} relays");
    let of_peer = format!("a byte through each of {count} relays in C");
    Ok(vec![
        Row::ratio("P14", what, "µs", ours, ("through one relay", alone), GROWTH),
        Row::ratio("P14", of_peer, "µs", peer, ("through one in C", peer_alone), Bar::None),
        Row::absolute("P14", format!("memory of a relay, {count} of them"), "KB", &[each], Bar::AtMost(16.0)),
    ])
}

/// A service with so many pipes, and what one costs it in KB.
fn with_endpoints(count: usize) -> Result<(Ipc, Vec<String>, f64)> {
    let ipc = Ipc::with_config(LIMITS)?;
    let first = ipc.create("pipe:")?;
    let before = memory(&ipc)?;
    let mut paths = vec![first];
    for _ in 1..count {
        paths.push(ipc.create("pipe:")?);
    }
    // Of one there is nothing to be seen.
    let each = (memory(&ipc)? - before) / (count - 1).max(1) as f64;
    Ok((ipc, paths, each))
}

fn endpoints(settings: &Settings, count: usize) -> Result<Vec<Row>> {
    let (one, single, _) = with_endpoints(1)?;
    let (many, paths, each) = with_endpoints(count)?;
    let inspect = |ipc: &Ipc, paths: &[String]| -> Result<f64> {
        let started = Instant::now();
        for n in 0..BATCH {
            // Neighbours in time are no neighbours in the tree.
            ipc.inspect(&paths[n * 1_009 % paths.len()])?;
        }
        Ok(started.elapsed().as_secs_f64() * 1e6 / BATCH as f64)
    };
    let mut contenders: [Contender<'_, f64>; 2] =
        [Box::new(|| inspect(&many, &paths)), Box::new(|| inspect(&one, &single))];
    let samples = interleave(settings.rounds, &mut contenders)?;
    let what = format!("Inspect, {count} endpoints");
    let memory = format!("memory of an endpoint, {count} of them");
    Ok(vec![
        Row::ratio("P14", what, "µs", &samples[0], ("one endpoint", &samples[1]), GROWTH),
        Row::absolute("P14", memory, "KB", &[each], Bar::AtMost(4.0)),
    ])
}

/// Connections to a bus, all of which have called.
struct Clients {
    runtime: Runtime,
    connections: Vec<Connection>,
}

impl Clients {
    fn new(bus: &Bus, count: usize) -> Result<Clients> {
        let runtime = runtime()?;
        let mut connections = Vec::new();
        for _ in 0..count {
            connections.push(runtime.block_on(connect(bus)));
        }
        Ok(Clients { runtime, connections })
    }

    /// A Ping from one after the other; µs of each.
    fn ping(&self, name: &str) -> Result<f64> {
        let started = Instant::now();
        self.runtime.block_on(async {
            for n in 0..BATCH {
                let connection = &self.connections[n % self.connections.len()];
                let peer = Some("org.freedesktop.DBus.Peer");
                connection.call_method(Some(name), "/org/example", peer, "Ping", &()).await?;
            }
            anyhow::Ok(())
        })?;
        Ok(started.elapsed().as_secs_f64() * 1e6 / BATCH as f64)
    }
}

/// The bus has more to do with more clients, too: the echo service shows how much.
fn clients(settings: &Settings, count: usize) -> Result<Vec<Row>> {
    let (few, many) = (Ipc::start()?, Ipc::start()?);
    let _echoes = [echo(&few.bus)?, echo(&many.bus)?];
    let (one, all) = (Clients::new(&few.bus, 1)?, Clients::new(&many.bus, count)?);
    let mut contenders: [Contender<'_, f64>; 4] = [
        Box::new(|| all.ping(ipc_harness::NAME)),
        Box::new(|| one.ping(ipc_harness::NAME)),
        Box::new(|| all.ping(ECHO)),
        Box::new(|| one.ping(ECHO)),
    ];
    let samples = interleave(settings.rounds, &mut contenders)?;
    let [ours, alone, echo, echo_alone] = samples.as_slice() else { bail!("a contender is missing") };
    let what = format!("Peer.Ping, {count} clients");
    let of_echo = format!("Ping of the echo service, {count} clients");
    Ok(vec![
        Row::ratio("P14", what, "µs", ours, ("one client", alone), GROWTH),
        Row::ratio("P14", of_echo, "µs", echo, ("one client", echo_alone), Bar::None),
    ])
}

/// KB (10^3 bytes) of the service.
fn memory(ipc: &Ipc) -> Result<f64> {
    // A pid is positive.
    Ok(pss(ipc.pid() as u32)? / 1e3)
}
