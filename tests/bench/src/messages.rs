//! P4: messages through a relay, against a plain loop in C that receives and sends (`loop.c`, compiled with cc).
//!
//! The queues are the same for both, and so are the writer and the reader: that C program, too. The reader says how
//! long it took from its first message to its last.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use ipc_harness::{temp_dir, unique};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::{
    Settings,
    peers::{self, Ipc, Killed},
    rounds::{Contender, interleave},
    table::{Bar, Row},
};

const PEER: &str = "receive and send in C";

/// Bytes of a message.
const SIZE: usize = 64;

/// Messages of a second, and CPU time of the relay for one, in µs.
#[derive(Debug, Clone, Copy)]
struct Sample {
    speed: f64,
    cpu: f64,
}

/// An end, as `loop.c` names it.
enum End {
    Named { name: String, endpoint: String },
    Datagrams,
}

/// What is needed for every round.
struct Stage {
    ipc: Ipc,
    program: PathBuf,
    messages: usize,
}

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    let dir = temp_dir();
    let program = peers::compiled(dir.path(), "loop", include_str!("loop.c"))?;
    let stage = Stage { ipc: Ipc::start()?, program, messages: if settings.quick { 5_000 } else { 100_000 } };
    let mut rows = Vec::new();
    let posix = stage.posix()?;
    rows.extend(stage.compare(settings, "posixmq → unix datagrams", &posix, &End::Datagrams)?);
    let sysv = stage.sysv()?;
    rows.extend(stage.compare(settings, "sysvmq → posixmq", &sysv, &posix)?);
    Ok(rows)
}

impl Stage {
    fn posix(&self) -> Result<End> {
        let name = format!("/{}", unique("bench"));
        let endpoint = self.ipc.create(&format!("posixmq:name={name},depth=10,size=1024,remove-on-close"))?;
        Ok(End::Named { name, endpoint })
    }

    fn sysv(&self) -> Result<End> {
        // Unlikely to be anybody's: of this process.
        let key = 0x6900_0000 | std::process::id() & 0xff_ffff;
        let endpoint = self.ipc.create(&format!("sysvmq:key={key:#x},remove-on-close"))?;
        Ok(End::Named { name: key.to_string(), endpoint })
    }

    fn compare(&self, settings: &Settings, what: &str, source: &End, sink: &End) -> Result<[Row; 2]> {
        let mut contenders: [Contender<'_, Sample>; 2] =
            [Box::new(|| self.once(source, sink, true)), Box::new(|| self.once(source, sink, false))];
        let samples = interleave(settings.rounds, &mut contenders)?;
        let [ours, theirs] = samples.as_slice() else { bail!("a contender is missing") };
        let of =
            |samples: &[Sample], value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<_>>();
        let row = |unit, value: fn(&Sample) -> f64, bar| {
            let what = format!("{what}, {SIZE} B messages");
            Row::ratio("P4", what, unit, &of(ours, value), (PEER, &of(theirs, value)), bar)
        };
        Ok([
            row("1/s", |sample| sample.speed, Bar::AtLeast(0.9)),
            row("CPU µs", |sample| sample.cpu, Bar::None),
        ])
    }

    fn once(&self, source: &End, sink: &End, by_us: bool) -> Result<Sample> {
        let End::Named { name: from, endpoint: source } = source else { bail!("datagrams are a sink only") };
        let (to, write, read) = match sink {
            End::Named { name, .. } => (name.as_str(), None, None),
            End::Datagrams => {
                let kind = SocketType::DGRAM;
                let (write, read) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
                ("-", Some(write), Some(read))
            }
        };
        if !by_us {
            let moving =
                Killed(self.command(&["move", from, to], write.as_ref())?.spawn().context("the peer")?);
            // A pid is never beyond that.
            return self.measured(moving.0.id() as i32, from, to, read.as_ref());
        }
        let adopted = write.map(|write| self.ipc.adopt(write)).transpose()?;
        let sink = match (&adopted, sink) {
            (Some(adopted), _) => adopted,
            (None, End::Named { endpoint, .. }) => endpoint,
            (None, End::Datagrams) => bail!("datagrams without a socket"),
        };
        let relay = self.ipc.relay(source, sink)?;
        let sample = self.measured(self.ipc.pid(), from, to, read.as_ref())?;
        self.ipc.stop(&relay)?;
        if let Some(adopted) = &adopted {
            self.ipc.close(adopted)?;
        }
        Ok(sample)
    }

    /// Lets the writer and the reader run, with process `pid` between them.
    fn measured(&self, pid: i32, from: &str, to: &str, read: Option<&OwnedFd>) -> Result<Sample> {
        let count = self.messages.to_string();
        let before = peers::cpu_seconds(pid)?;
        let mut reader = self.command(&["read", to, &count], read)?;
        let reader = reader.stdout(Stdio::piped()).spawn().context("the reader")?;
        let mut writer = self.command(&["write", from, &count, &SIZE.to_string()], None)?;
        let mut writer = Killed(writer.spawn().context("the writer")?);
        let said = reader.wait_with_output().context("the reader")?;
        ensure!(said.status.success() && writer.0.wait()?.success(), "the reader or the writer failed");
        let said = String::from_utf8(said.stdout).context("what the reader says")?;
        let seconds: f64 = said.trim().parse().context("what the reader says")?;
        let messages = self.messages as f64;
        let cpu = (peers::cpu_seconds(pid)? - before) * 1e6 / messages;
        Ok(Sample { speed: messages / seconds, cpu })
    }

    fn command(&self, words: &[&str], socket: Option<&OwnedFd>) -> Result<Command> {
        let mut command = Command::new(&self.program);
        let input = match socket {
            Some(socket) => Stdio::from(File::from(socket.as_fd().try_clone_to_owned()?)),
            None => Stdio::null(),
        };
        command.args(words).stdin(input);
        Ok(command)
    }
}
