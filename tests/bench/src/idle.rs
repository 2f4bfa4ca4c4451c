//! P13: what the service costs when nobody uses it, and how soon it answers.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use ipc_harness::{Bus, NAME};

use crate::{
    Settings,
    data::{Channel, Way},
    peers::{Client, ECHO, Ipc, Killed},
    rounds::{Contender, interleave},
    system,
    table::{Bar, Row},
};

/// What a start leaves to do is done by then.
const SETTLE: Duration = Duration::from_secs(1);

/// First reply in ms, and memory in MB (10^6 bytes).
struct Start {
    first_reply: f64,
    memory: f64,
}

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    let ipc = Ipc::start()?;
    let program = ipc.program()?;
    let own = std::env::current_exe().context("the own program")?;
    let bus = Bus::dbus_daemon()?;
    let mut contenders: [Contender<'_, Start>; 2] = [
        Box::new(|| start(&program, &["--bus", bus.address()], &bus, NAME)),
        Box::new(|| start(&own, &["echo", bus.address()], &bus, ECHO)),
    ];
    let samples = interleave(settings.rounds, &mut contenders)?;
    let [first_reply, memory] = [|start: &Start| start.first_reply, |start: &Start| start.memory].map(|of| {
        samples.iter().map(|samples| samples.iter().map(of).collect::<Vec<f64>>()).collect::<Vec<_>>()
    });
    let wake_ups = wake_ups(settings, &ipc)?;
    let peer = "bare zbus service";
    let mut rows = vec![
        Row::absolute("P13", "PSS of the idle service", "MB", &memory[0], Bar::AtMost(4.0)),
        Row::ratio("P13", "PSS of the idle service", "MB", &memory[0], (peer, &memory[1]), Bar::None),
        Row::absolute("P13", "start to first reply", "ms", &first_reply[0], Bar::AtMost(5.0)),
        Row::ratio("P13", "start to first reply", "ms", &first_reply[0], (peer, &first_reply[1]), Bar::None),
        Row::absolute("P13", "wake-ups, idle", "1/s", &wake_ups[0], Bar::AtMost(0.0)),
        Row::absolute("P13", "wake-ups, relay at rest", "1/s", &wake_ups[1], Bar::AtMost(0.0)),
    ];
    rows.extend(system::idle(settings)?);
    Ok(rows)
}

fn start(program: &Path, arguments: &[&str], bus: &Bus, name: &'static str) -> Result<Start> {
    let client = Client::on(bus)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (running, first_reply) =
        client.with(async |connection| first_reply(connection, &mut command, name).await)?;
    thread::sleep(SETTLE);
    let memory = pss(running.0.id())?;
    drop(running);
    // The next one starts when the name is free again.
    client.with(async |connection| released(connection, name).await)?;
    Ok(Start { first_reply: first_reply.as_secs_f64() * 1e3, memory: memory / 1e6 })
}

/// From the start of the program to its reply to a call that is made when its name appears on the bus.
async fn first_reply(
    connection: &zbus::Connection,
    command: &mut Command,
    name: &'static str,
) -> Result<(Killed, Duration)> {
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    let mut owners = bus.receive_name_owner_changed_with_args(&[(0, name)]).await?;
    let started = Instant::now();
    let running = Killed(command.spawn().with_context(|| format!("{command:?}"))?);
    ipc_harness::watchdog(ipc_harness::patience(), owners.next()).await.context("no name owner")?;
    connection.call_method(Some(name), "/", Some("org.freedesktop.DBus.Peer"), "Ping", &()).await?;
    Ok((running, started.elapsed()))
}

async fn released(connection: &zbus::Connection, name: &'static str) -> Result<()> {
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    let mut owners = bus.receive_name_owner_changed_with_args(&[(0, name)]).await?;
    let gone = async {
        while bus.name_has_owner(name.try_into()?).await? {
            owners.next().await.context("no name owner")?;
        }
        Ok(())
    };
    ipc_harness::watchdog(ipc_harness::patience(), gone).await
}

/// Proportional set size in bytes (proc_pid_smaps(5)).
pub fn pss(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().context("Pss")?;
    Ok(kilobytes * 1024.0)
}

/// Context switches a second, with nothing there and with a relay that has nothing to do.
fn wake_ups(settings: &Settings, ipc: &Ipc) -> Result<[Vec<f64>; 2]> {
    // A pid is positive.
    let count = || -> Result<Vec<f64>> { Ok(vec![switches_within(settings, ipc.pid() as u32)?]) };
    let idle = count()?;
    let Channel { write: _write, read } = Way::Unix.open()?;
    let Channel { write, read: _read } = Way::Unix.open()?;
    let (source, sink) = (ipc.adopt(read)?, ipc.adopt(write)?);
    ipc.relay(&source, &sink)?;
    Ok([idle, count()?])
}

/// Context switches a second of a process that has nothing to do.
pub fn switches_within(settings: &Settings, pid: u32) -> Result<f64> {
    let window = Duration::from_secs(if settings.quick { 1 } else { 5 });
    thread::sleep(SETTLE);
    let before = switches(pid)?;
    thread::sleep(window);
    Ok((switches(pid)? - before) as f64 / window.as_secs_f64())
}

/// All context switches of the threads of a process (proc_pid_status(5)).
fn switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the threads of the service")? {
        let status = fs::read_to_string(task?.path().join("status")).context("status")?;
        let counts = status.lines().filter_map(|line| line.split_once("_ctxt_switches:"));
        sum += counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>();
    }
    Ok(sum)
}
