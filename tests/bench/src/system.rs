//! P7, P8 and P13 on the system bus: what it costs that every caller is served by a process that is that caller.
//!
//! The bus has the rules that the package installs, and the caller is an ordinary user. The echo service beside it
//! serves everybody itself, as services usually do. Needs root, for the users; without it, its rows are left out.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use ipc_harness::{Kind, NAME, PATH, Process, Service, SystemBus, peer_as, system::ALICE};
use zbus::Connection;

use crate::{
    Settings,
    calls::{ENDPOINT, PEER, SHORT},
    idle::{pss, switches_within},
    peers::{self, Client, ECHO, ECHO_PATH},
    rounds::{Contender, interleave},
    table::{Bar, Row},
};

/// Who owns the echo service, and that everybody may call it.
const ECHO_POLICY: &str = r#"
  <policy user="root"><allow own="org.example.Echo"/></policy>
  <policy context="default"><allow send_destination="org.example.Echo"/></policy>"#;

/// Calls in flight of one connection: the limit calls-per-connection.
const PIPELINED: usize = 16;

/// The service on a system bus, an ordinary user, and an echo service. Field order is drop order.
struct System {
    client: Client,
    _echo: Process,
    service: Service,
    bus: SystemBus,
}

/// Starts all of it; None, and a word about it, where that needs more rights than we have.
fn start(config: &str) -> Result<Option<System>> {
    let bus = match SystemBus::with_more(Kind::DbusDaemon, ECHO_POLICY) {
        Ok(bus) => bus,
        Err(why) => {
            eprintln!("no rows of the system bus: {why}");
            return Ok(None);
        }
    };
    let service = bus.launch().config(config).start();
    let echo = peers::echo(&bus)?;
    let client = Client::new(bus.connect_as(&ALICE.into()))?;
    Ok(Some(System { client, _echo: echo, service, bus }))
}

/// P7 and P8. To be called by a thread that is pinned to one CPU.
pub fn calls(settings: &Settings) -> Result<Vec<Row>> {
    let Some(System { client, service: _service, _echo, bus }) = start("")? else {
        return Ok(Vec::new());
    };
    let private = Client::new(async { peer_as(&bus.connect_as(&ALICE.into()).await, ALICE.uid).await })?;
    let pipe: zbus::OwnedObjectPath = client.call(PATH, NAME, "Create", &("pipe:", peers::Options::new()))?;
    let times = if settings.quick { 48 } else { 400 };
    let microseconds = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
        let started = Instant::now();
        run()?;
        Ok(started.elapsed().as_secs_f64() * 1e6 / times as f64)
    };
    let (client, private, pipe) = (&client, &private, pipe.as_str());
    let (service, echo) = (Some(NAME), Some(ECHO));
    let pipelined = |name, path, interface, method| {
        client.with(async |connection| in_flight(connection, name, path, interface, method, times).await)
    };
    let mut contenders: [Contender<'_, f64>; 8] = [
        Box::new(|| microseconds(&|| client.repeat(service, PATH, PEER, "Ping", &(), times))),
        Box::new(|| microseconds(&|| client.repeat(echo, ECHO_PATH, PEER, "Ping", &(), times))),
        Box::new(|| microseconds(&|| client.repeat(service, pipe, ENDPOINT, "Inspect", &(), times))),
        Box::new(|| microseconds(&|| client.repeat(echo, ECHO_PATH, ECHO, "Dictionary", &(), times))),
        Box::new(|| microseconds(&|| pipelined(NAME, PATH, PEER, "Ping"))),
        Box::new(|| microseconds(&|| pipelined(ECHO, ECHO_PATH, PEER, "Ping"))),
        Box::new(|| microseconds(&|| private.repeat(None, PATH, PEER, "Ping", &(), times))),
        Box::new(|| microseconds(&|| private.repeat(None, pipe, ENDPOINT, "Inspect", &(), times))),
    ];
    let samples = interleave(SHORT * settings.rounds, &mut contenders)?;
    let [ping, echo_ping, inspect, dictionary, many, echo_many, private_ping, private_inspect] =
        samples.as_slice()
    else {
        bail!("a contender is missing");
    };
    let row = |number, what, ours: &[f64], peer: (&str, &[f64]), bar| {
        Row::ratio(number, what, "µs", ours, peer, bar)
    };
    let (peer_ping, peer_constant) = ("Ping of the echo service", "a constant a{sv}");
    Ok(vec![
        row("P7", "Peer.Ping, system bus", ping, (peer_ping, echo_ping), Bar::AtMost(1.5)),
        row("P7", "Inspect of a pipe, system bus", inspect, (peer_constant, dictionary), Bar::AtMost(1.5)),
        row("P7", "Peer.Ping, system bus, 16 in flight", many, (peer_ping, echo_many), Bar::AtMost(1.25)),
        row(
            "P8",
            "Peer.Ping through Connect(), system bus",
            private_ping,
            (peer_ping, echo_ping),
            Bar::AtMost(0.5),
        ),
        row(
            "P8",
            "Inspect through Connect(), system bus",
            private_inspect,
            (peer_constant, dictionary),
            Bar::AtMost(0.5),
        ),
    ])
}

async fn in_flight(
    connection: &Connection,
    name: &str,
    path: &str,
    interface: &str,
    method: &str,
    times: usize,
) -> Result<()> {
    for _ in 0..times / PIPELINED {
        let call = |_| connection.call_method(Some(name), path, Some(interface), method, &());
        try_join_all((0..PIPELINED).map(call)).await?;
    }
    Ok(())
}

/// P13: the front and a worker at rest, and the first reply to a caller who has no worker yet.
pub fn idle(settings: &Settings) -> Result<Vec<Row>> {
    // A second, the least, so that a worker ends between the rounds.
    let config = "[limits]\nidle-s = 1\n";
    let Some(system) = start(config)? else { return Ok(Vec::new()) };
    let mut first_reply = Vec::new();
    let mut memory = Vec::new();
    for round in 0..=settings.rounds {
        system.until_no_worker()?;
        let started = Instant::now();
        system.client.repeat(Some(NAME), PATH, PEER, "Ping", &(), 1)?;
        let took = started.elapsed().as_secs_f64() * 1e3;
        let worker = system.process("ipcd-worker")?.context("no worker after a call")?;
        let front = system.process("ipcd-front")?.context("no front")?;
        if round > 0 {
            first_reply.push(took);
            memory.push((pss(front)? + pss(worker)?) / 1e6);
        }
    }
    drop(system);
    let Some(system) = start("")? else { return Ok(Vec::new()) };
    // At rest: a worker that has something to stay for, and nothing to do.
    let _pipe: zbus::OwnedObjectPath =
        system.client.call(PATH, NAME, "Create", &("pipe:", peers::Options::new()))?;
    let mut wake_ups = 0.0;
    for name in ["ipcd-spawner", "ipcd-front", "ipcd-worker"] {
        let pid = system.process(name)?.with_context(|| format!("no {name}"))?;
        wake_ups += switches_within(settings, pid)?;
    }
    Ok(vec![
        Row::absolute("P13", "PSS of front and one worker", "MB", &memory, Bar::AtMost(7.0)),
        Row::absolute(
            "P13",
            "first reply, with a worker started on the way",
            "ms",
            &first_reply,
            Bar::AtMost(15.0),
        ),
        Row::absolute("P13", "wake-ups of spawner, front and worker", "1/s", &[wake_ups], Bar::AtMost(0.0)),
    ])
}

impl System {
    /// The process of the service with this name (proc_pid_comm(5)): the spawner, or a child of it.
    fn process(&self, name: &str) -> Result<Option<u32>> {
        let spawner = self.service.pid();
        let children = fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children"))
            .context("the children of the spawner")?;
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        // A pid is positive.
        let mut all = children.chain([spawner as u32]);
        Ok(all.find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
        }))
    }

    /// Waits for the end of an idle worker.
    fn until_no_worker(&self) -> Result<()> {
        let started = Instant::now();
        while self.process("ipcd-worker")?.is_some() {
            if started.elapsed() > ipc_harness::patience() {
                bail!("an idle worker does not end; the log:\n{}", self.service.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
