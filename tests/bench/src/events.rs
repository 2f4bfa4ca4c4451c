//! P9 and P10: how soon a client hears of a change of a file, and how many events it can be told a second.
//!
//! P9 times single writes, from before write(2) to the handler, on the clock that all processes share; all of them share
//! one CPU, too, as on two it is one time or two and a half, whoever is measured. Its peers are
//! Gio.FileMonitor (python3-gi, whose handler does nothing but look at the clock) and inotifywait, read through a pipe.
//! P10 stops the service while files are opened, until the kernel's queue is full, and times how long it takes to tell
//! everybody. Its peer is the smallest zbus service, which emits one signal after the other.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    num::NonZeroUsize,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use ipc_harness::{Bus, connect, need_tool, peer, temp_dir};
use rustix::{
    process::{Pid, Signal, kill_process},
    time::{ClockId, clock_gettime},
};
use tokio::time::timeout;
use zbus::{Connection, MatchRule, MessageStream, message::Type};

use crate::{
    Settings,
    cpu::on_one_cpu,
    peers::{self, Client, ECHO, ECHO_PATH, Ipc, Killed},
    rounds::{Contender, Stats, interleave},
    table::{Bar, Row},
};

const WATCH: &str = "org.example.IPC.Watch";

/// Longer than any event takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What gio does with each change: its time.
const FILE_MONITOR: &str = r"
import sys, time
from gi.repository import Gio, GLib
monitor = Gio.File.new_for_path(sys.argv[1]).monitor_directory(Gio.FileMonitorFlags.NONE, None)
monitor.set_rate_limit(0)
def changed(monitor, file, other, event):
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    if event == Gio.FileMonitorEvent.CHANGED:
        print(now, flush=True)
monitor.connect('changed', changed)
print('ready', flush=True)
GLib.MainLoop().run()
";

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    // Cargo brings the program up to date, with all CPUs.
    drop(Ipc::start()?);
    let alone = settings.clone();
    let mut rows = on_one_cpu(move || latency(&alone))?;
    rows.extend(throughput(settings)?);
    Ok(rows)
}

fn now() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Writes so many times, each after what the one before has led to; the median in µs.
fn writes(directory: &Path, times: usize, mut heard: impl FnMut() -> Result<i64>) -> Result<f64> {
    // Neither making nor emptying it is a change of its content.
    let file = directory.join("file");
    let mut file = File::options().append(true).create(true).open(file).context("a file")?;
    let mut delays = Vec::with_capacity(times);
    for _ in 0..times {
        let written = now();
        file.write_all(b"x").context("write")?;
        delays.push((heard()? - written) as f64 / 1000.0);
    }
    Ok(Stats::of(delays).median)
}

/// Signals of an interface that come to a connection.
struct Signals {
    client: Client,
    stream: MessageStream,
    path: String,
}

impl Signals {
    /// `member`: which, of `path`; on a bus the rule is the bus's, too.
    fn on(client: Client, bus: bool, interface: &'static str, path: &str) -> Result<Signals> {
        let stream = client.with(async |connection: &Connection| {
            if !bus {
                return Ok(MessageStream::from(connection));
            }
            let rule = MatchRule::builder().msg_type(Type::Signal).interface(interface).path(path.to_owned());
            MessageStream::for_match_rule(rule.build()?, connection, NonZeroUsize::new(1 << 16)).await
        });
        Ok(Signals { client, stream: stream.context("a match rule")?, path: path.to_owned() })
    }

    /// Waits for the next signal of the path that is one of these; gives it.
    fn next(&mut self, members: &[&str]) -> Result<zbus::Message> {
        let (stream, path) = (&mut self.stream, self.path.as_str());
        self.client.with(async |_: &Connection| {
            let wanted = async {
                while let Some(message) = stream.next().await {
                    let message = message?;
                    let header = message.header();
                    let is_wanted = header.member().is_some_and(|member| members.contains(&member.as_str()));
                    // A private connection gets those of all objects.
                    if is_wanted && header.path().is_some_and(|of| of.as_str() == path) {
                        return Ok(message);
                    }
                }
                bail!("the connection has ended")
            };
            timeout(PATIENCE, wanted).await.context("no signal came")?
        })
    }
}

fn latency(settings: &Settings) -> Result<Vec<Row>> {
    let times = if settings.quick { 20 } else { 300 };
    let ipc = Ipc::start()?;
    let [ours, private, gio, pipe] = [(); 4].map(|()| temp_dir());
    let watch = |directory: &Path| ipc.create(&format!("inotify:path={},events=modify", directory.display()));
    let over_bus = watch(ours.path())?;
    let mut over_bus = Signals::on(Client::on(&ipc.bus)?, true, WATCH, &over_bus)?;
    let peer_to_peer = Client::new(async { peer(&connect(&ipc.bus).await).await })?;
    let own = watch(private.path())?;
    let mut peer_to_peer = Signals::on(peer_to_peer, false, WATCH, &own)?;
    let mut monitor = file_monitor(gio.path())?;
    let mut inotifywait = inotifywait(pipe.path())?;

    let mut contenders: Vec<Contender<'_, f64>> = vec![
        Box::new(|| writes(ours.path(), times, || over_bus.next(&["Changed"]).map(|_| now()))),
        Box::new(|| writes(private.path(), times, || peer_to_peer.next(&["Changed"]).map(|_| now()))),
        Box::new(|| writes(pipe.path(), times, || inotifywait.line().map(|_| now()))),
    ];
    if let Some(monitor) = &mut monitor {
        contenders.push(Box::new(|| writes(gio.path(), times, || Ok(monitor.line()?.trim().parse()?))));
    }
    let samples = interleave(settings.rounds, &mut contenders)?;
    let [bus, private, pipe, gio @ ..] = samples.as_slice() else { bail!("a contender is missing") };
    let row =
        |what: &str, ours: &[f64], peer: (&str, &[f64]), bar| Row::ratio("P9", what, "µs", ours, peer, bar);
    let (over_bus, through) = ("write(2) to the client's handler", "the same through Connect()");
    let mut rows = Vec::new();
    if let [gio] = gio {
        rows.push(row(over_bus, bus, ("Gio.FileMonitor", gio), Bar::AtMost(1.5)));
        rows.push(row(through, private, ("Gio.FileMonitor", gio), Bar::AtMost(1.0)));
    }
    rows.push(row(over_bus, bus, ("inotifywait, through a pipe", pipe), Bar::None));
    rows.push(row(through, private, ("inotifywait, through a pipe", pipe), Bar::None));
    Ok(rows)
}

/// A program that tells of changes line by line.
struct Teller {
    _child: Killed,
    lines: BufReader<std::process::ChildStdout>,
}

impl Teller {
    fn start(command: &mut Command) -> Result<Teller> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
        let lines = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Teller { _child: Killed(child), lines })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "it has ended");
        Ok(line)
    }
}

/// None where python3-gi is not installed.
fn file_monitor(directory: &Path) -> Result<Option<Teller>> {
    // The system's own python has the system's modules.
    let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let import =
            Command::new(python).args(["-c", "from gi.repository import Gio"]).stderr(Stdio::null()).status();
        import.is_ok_and(|status| status.success())
    });
    let Some(python) = python else {
        eprintln!("SKIPPED: Gio.FileMonitor: python3-gi is not installed");
        return Ok(None);
    };
    let mut teller = Teller::start(Command::new(python).args(["-u", "-c", FILE_MONITOR]).arg(directory))?;
    ensure!(teller.line()?.trim() == "ready", "the monitor did not start");
    Ok(Some(teller))
}

fn inotifywait(directory: &Path) -> Result<Teller> {
    need_tool("inotifywait")?;
    let mut command = Command::new("inotifywait");
    command.args(["-m", "-e", "modify,create", "--format", "%e"]).arg(directory).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().context("inotifywait")?;
    let mut messages = BufReader::new(child.stderr.take().context("its messages")?).lines();
    let ready = messages.any(|line| line.is_ok_and(|line| line.contains("Watches established")));
    ensure!(ready, "inotifywait did not start");
    let mut lines = BufReader::new(child.stdout.take().context("its output")?);
    // The file that is written to is there from now on.
    fs::write(directory.join("file"), "").context("a file")?;
    let mut first = String::new();
    lines.read_line(&mut first)?;
    Ok(Teller { _child: Killed(child), lines })
}

/// Events a second, from the first rename to the last subscriber's last event.
fn throughput(settings: &Settings) -> Result<Vec<Row>> {
    // As many as the kernel's queue takes by default, and full signals.
    let events = if settings.quick { 1_600 } else { 16_000 };
    let mut rows = Vec::new();
    for subscribers in [1, 10] {
        let ipc = Ipc::start()?;
        let directory = temp_dir();
        let watch = ipc.create(&format!("inotify:path={},events=open,batch", directory.path().display()))?;
        for name in ["a", "b"] {
            fs::write(directory.path().join(name), "").context("a file")?;
        }
        let listen = |bus: &Bus, interface, path: &str| {
            let listen = || Signals::on(Client::on(bus)?, true, interface, path);
            (0..subscribers).map(|_| listen()).collect::<Result<Vec<_>>>()
        };
        let mut ours = listen(&ipc.bus, WATCH, &watch)?;
        let _emitter = peers::echo(&ipc.bus)?;
        let mut theirs = listen(&ipc.bus, ECHO, ECHO_PATH)?;
        let caller = Client::on(&ipc.bus)?;
        let mut contenders: [Contender<'_, f64>; 2] = [
            Box::new(|| opened(&ipc, directory.path(), events, &mut ours)),
            Box::new(|| emitted(&caller, events, &mut theirs)),
        ];
        let samples = interleave(settings.rounds, &mut contenders)?;
        let [batched, single] = samples.as_slice() else { bail!("a contender is missing") };
        let what = format!("events a second to {subscribers} subscribers, batched, none lost");
        let peer = ("zbus emitter, one by one", single.as_slice());
        rows.push(Row::ratio("P10", what, "1/s", batched, peer, Bar::AtLeast(8.0)));
    }
    Ok(rows)
}

/// All events wait in the kernel's queue when the clock starts, so that it is the service that is measured.
fn opened(ipc: &Ipc, directory: &Path, events: usize, subscribers: &mut [Signals]) -> Result<f64> {
    let service = Pid::from_raw(ipc.pid()).context("a process")?;
    kill_process(service, Signal::STOP).context("SIGSTOP")?;
    for turn in 0..events {
        // Two in turn, as successive events that are the same become one.
        File::open(directory.join(["a", "b"][turn % 2])).context("a file")?;
    }
    let started = Instant::now();
    kill_process(service, Signal::CONT).context("SIGCONT")?;
    for subscriber in subscribers {
        let (mut heard, mut next) = (0, None);
        while heard < events {
            let message = subscriber.next(&["ChangedMany", "Overflow"])?;
            ensure!(
                message.header().member().is_some_and(|member| member == "ChangedMany"),
                "events were lost"
            );
            type Change =
                (Vec<String>, String, String, std::collections::HashMap<String, zbus::OwnedVariant>);
            let (first, changes): (u64, Vec<Change>) = message.body().deserialize()?;
            ensure!(next.is_none_or(|next| next == first), "events are missing before {first}");
            next = Some(first + changes.len() as u64);
            heard += changes.len();
        }
    }
    Ok(events as f64 / started.elapsed().as_secs_f64())
}

fn emitted(caller: &Client, events: usize, subscribers: &mut [Signals]) -> Result<f64> {
    let started = Instant::now();
    caller.with(async |connection: &Connection| {
        connection.call_method(Some(ECHO), ECHO_PATH, Some(ECHO), "Emit", &(events as u32,)).await
    })?;
    for subscriber in subscribers {
        for expected in 1..=events as u64 {
            let (seq, ..): (u64, Vec<String>, String, String) =
                subscriber.next(&["Changed"])?.body().deserialize()?;
            ensure!(seq == expected, "signals of the peer are missing");
        }
    }
    Ok(events as f64 / started.elapsed().as_secs_f64())
}
