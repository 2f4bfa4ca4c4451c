//! P6 and P8: a sequential round trip to the service, against one to the smallest zbus service there is, on the same
//! bus. Client, bus and services share one CPU: a round trip between two is the scheduler's more than anybody's.
//!
//! A round is short and there are ten times as many as was asked for, so that a disturbance spoils a few of them.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    Settings,
    cpu::on_one_cpu,
    peers::{self, Client, ECHO, ECHO_PATH, Ipc},
    rounds::{Contender, interleave},
    system,
    table::{Bar, Row},
};
use ipc_harness::{NAME, PATH, connect, peer};

pub const PEER: &str = "org.freedesktop.DBus.Peer";
/// So many short rounds stand for one.
pub const SHORT: usize = 10;

pub const ENDPOINT: &str = "org.example.IPC.Endpoint";

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    // Cargo brings the program up to date, with all CPUs.
    drop(Ipc::start()?);
    let settings = settings.clone();
    on_one_cpu(move || {
        let mut rows = measure(&settings)?;
        rows.extend(system::calls(&settings)?);
        Ok(rows)
    })
}

fn measure(settings: &Settings) -> Result<Vec<Row>> {
    let ipc = Ipc::start()?;
    let _echo = peers::echo(&ipc.bus)?;
    let pipe = ipc.create("pipe:")?;
    let on_bus = Client::on(&ipc.bus)?;
    let private = Client::new(async { peer(&connect(&ipc.bus).await).await })?;
    let times = if settings.quick { 50 } else { 400 };
    let microseconds = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
        let started = Instant::now();
        run()?;
        Ok(started.elapsed().as_secs_f64() * 1e6 / times as f64)
    };
    let (on_bus, private) = (&on_bus, &private);
    let (service, echo) = (Some(NAME), Some(ECHO));
    let mut contenders: [Contender<'_, f64>; 7] = [
        Box::new(|| microseconds(&|| on_bus.repeat(service, PATH, PEER, "Ping", &(), times))),
        Box::new(|| microseconds(&|| on_bus.repeat(echo, ECHO_PATH, PEER, "Ping", &(), times))),
        Box::new(|| microseconds(&|| on_bus.repeat(echo, ECHO_PATH, ECHO, "Echo", &("text",), times))),
        Box::new(|| microseconds(&|| on_bus.repeat(service, &pipe, ENDPOINT, "Inspect", &(), times))),
        Box::new(|| microseconds(&|| on_bus.repeat(echo, ECHO_PATH, ECHO, "Dictionary", &(), times))),
        Box::new(|| microseconds(&|| private.repeat(None, PATH, PEER, "Ping", &(), times))),
        Box::new(|| microseconds(&|| private.repeat(None, &pipe, ENDPOINT, "Inspect", &(), times))),
    ];
    let samples = interleave(SHORT * settings.rounds, &mut contenders)?;
    let [ping, echo_ping, echo, inspect, dictionary, private_ping, private_inspect] = samples.as_slice()
    else {
        bail!("a contender is missing");
    };
    let row = |number, what, ours: &[f64], peer: (&str, &[f64]), bar| {
        Row::ratio(number, what, "µs", ours, peer, bar)
    };
    let (peer_ping, peer_echo) = ("Ping of the echo service", "Echo of the echo service");
    Ok(vec![
        row("P6", "Peer.Ping", ping, (peer_ping, echo_ping), Bar::AtMost(1.15)),
        row("P6", "Inspect of a pipe", inspect, (peer_echo, echo), Bar::AtMost(1.15)),
        row("P6", "Inspect of a pipe", inspect, ("a constant a{sv}", dictionary), Bar::None),
        row("P8", "Peer.Ping through Connect()", private_ping, (peer_ping, echo_ping), Bar::AtMost(0.5)),
        row("P8", "Inspect through Connect()", private_inspect, (peer_echo, echo), Bar::AtMost(0.5)),
    ])
}
