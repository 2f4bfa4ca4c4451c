//! P12: `List` of 10,000 message queues over the bus, against lsipc(1), as a whole process that writes to nobody. Ours is
//! the call until the reply has come.

use std::{
    collections::HashMap,
    io::Write,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use ipc_harness::need_tool;
use zbus::{OwnedVariant, Variant};

use crate::{
    Settings,
    peers::{Client, Ipc, Options},
    rounds::{Contender, interleave},
    table::{Bar, Row},
};

const NODE: &str = "/org/example/IPC/sysvmq";
const MECHANISM: &str = "org.example.IPC.Mechanism";

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    for tool in ["lsipc", "python3", "xargs", "ipcrm"] {
        need_tool(tool)?;
    }
    let count = if settings.quick { 500 } else { 10_000 };
    let queues = Queues::make(count)?;
    let ipc = Ipc::start()?;
    let client = Client::on(&ipc.bus)?;
    let rows: Vec<HashMap<String, OwnedVariant>> =
        client.call(NODE, MECHANISM, "List", &(Options::new(),))?;
    ensure!(rows.len() >= count, "only {} queues are listed", rows.len());
    drop(rows);

    let milliseconds = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
        let started = Instant::now();
        run()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let list =
        |filter: Options<'_>| client.repeat(Some(ipc_harness::NAME), NODE, MECHANISM, "List", &(filter,), 1);
    let one = Options::from([("id", Variant::from(queues.first()))]);
    let mut contenders: [Contender<'_, f64>; 4] = [
        Box::new(|| milliseconds(&|| list(Options::new()))),
        Box::new(|| milliseconds(&|| list(one.clone()))),
        Box::new(|| milliseconds(&|| tool("lsipc", &["-q"]))),
        Box::new(|| milliseconds(&|| tool("ipcs", &["-q"]))),
    ];
    let samples = interleave(settings.rounds, &mut contenders)?;
    let what = format!("List of {count} queues");
    let row = |what: &str, ours: &[f64], peer: &str, theirs: &[f64], bar| {
        Row::ratio("P12", what, "ms", ours, (peer, theirs), bar)
    };
    Ok(vec![
        row(&what, &samples[0], "lsipc -q", &samples[2], Bar::AtMost(1.0)),
        row(&what, &samples[0], "ipcs -q", &samples[3], Bar::None),
        row(&format!("{what}, one wanted"), &samples[1], "lsipc -q", &samples[2], Bar::None),
    ])
}

fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    ensure!(status.with_context(|| program.to_owned())?.success(), "{program} failed");
    Ok(())
}

/// Queues without a key, removed at the end.
struct Queues(String);

impl Queues {
    fn make(count: usize) -> Result<Self> {
        let program = "import ctypes,sys\nc=ctypes.CDLL(None)\nfor _ in range(int(sys.argv[1])): print(c.msgget(0,0o600))";
        let output =
            Command::new("python3").args(["-c", program, &count.to_string()]).output().context("python3")?;
        let queues = Self(String::from_utf8(output.stdout).context("ids")?);
        ensure!(!queues.0.contains("-1"), "kernel.msgmni allows no {count} queues");
        Ok(queues)
    }

    fn first(&self) -> i32 {
        self.0.lines().next().and_then(|id| id.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        let ids: String = self.0.lines().filter(|id| *id != "-1").map(|id| format!("-q {id} ")).collect();
        let remove = Command::new("xargs").args(["-n", "1000", "ipcrm"]).stdin(Stdio::piped()).spawn();
        // What is left then, ipcrm(1) removes.
        let Ok(mut remove) = remove else { return eprintln!("queues are left: {ids}") };
        if let Some(mut input) = remove.stdin.take() {
            let _ = input.write_all(ids.as_bytes());
        }
        let _ = remove.wait();
    }
}
