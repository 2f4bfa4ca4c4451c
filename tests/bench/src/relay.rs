//! P1, P2, P3 and P5: how fast data moves through a relay, and what it costs, against socat between the same ends
//! and against no relay at all.
//!
//! All of them get their ends as file descriptors and do the same work: the writer and the reader are the same
//! threads, and the pipes have the same size (1 MiB), which the relay would give them by itself.

use std::path::PathBuf;

use anyhow::Result;
use ipc_harness::temp_dir;

use crate::{
    Settings,
    data::{self, Channel, Way},
    peers::{self, Ipc, Socat},
    rounds::{Contender, interleave},
    table::{Bar, Row},
};

const SOCAT: &str = "socat";
const SOCAT_LARGE: &str = "socat -b 1048576";
const NONE: &str = "no relay";
const OPENED: &str = "data through an fd from Open(), 64 KiB writes";

/// socat's own buffer size, and one that is as good as any.
const DEFAULT_BUFFER: usize = 8192;
const LARGE_BUFFER: usize = 1 << 20;

/// Speed in MB/s and CPU seconds a GB (10^6 and 10^9 bytes).
#[derive(Debug, Clone, Copy)]
struct Sample {
    speed: f64,
    cpu: f64,
}

impl Sample {
    fn new(bytes: u64, seconds: f64, cpu: f64) -> Sample {
        Sample { speed: bytes as f64 / 1e6 / seconds, cpu: cpu / (bytes as f64 / 1e9) }
    }
}

/// Where the data comes from: a channel with a writer, or a file.
enum Source {
    Way(Way),
    File(PathBuf),
}

/// One comparison: source, sink, size of the writes.
struct Pair {
    source: Source,
    sink: Way,
    chunk: usize,
    total: u64,
}

/// Who moves the data.
#[derive(Clone, Copy)]
enum Mover<'a> {
    Ours(&'a Ipc),
    Socat(usize),
    None,
}

pub fn run(settings: &Settings) -> Result<Vec<Row>> {
    let ipc = Ipc::start()?;
    let mut rows = Vec::new();
    let megabytes = if settings.quick { 64 } else { 384 };
    let total = megabytes << 20;
    let small = total / 8;
    for chunk in [64 << 10, 1 << 20] {
        for way in [Way::Pipe, Way::Unix] {
            let pair = Pair { source: Source::Way(way), sink: way, chunk, total };
            if settings.wants("P1", &pair.name()) {
                rows.extend(pair.stream(&ipc, settings, "P1", [5.0, 1.4])?);
            }
        }
    }
    for chunk in [64 << 10, 1 << 20] {
        let pair = Pair { source: Source::Way(Way::Unix), sink: Way::Tcp, chunk, total };
        if settings.wants("P2", &pair.name()) {
            rows.extend(pair.stream(&ipc, settings, "P2", [1.9, 0.95])?);
        }
    }
    let directory = temp_dir();
    let file = directory.path().join("data");
    let pair = Pair { source: Source::File(file.clone()), sink: Way::Pipe, chunk: 1 << 20, total };
    if settings.wants("P2", &pair.name()) {
        data::file(&file, total)?;
        rows.extend(pair.stream(&ipc, settings, "P2", [5.0, 1.5])?);
    }
    drop(directory);
    for (source, sink) in [(Way::Pipe, Way::Pipe), (Way::Unix, Way::Unix), (Way::Unix, Way::Tcp)] {
        let pair = Pair { source: Source::Way(source), sink, chunk: 64, total: small };
        if !settings.wants("P3", &pair.name()) {
            continue;
        }
        let [ours, socat] = pair.rounds(settings, [Mover::Ours(&ipc), Mover::Socat(DEFAULT_BUFFER)])?;
        rows.push(Row::ratio(
            "P3",
            pair.name(),
            "MB/s",
            &speeds(&ours),
            (SOCAT, &speeds(&socat)),
            Bar::AtLeast(1.0),
        ));
    }
    if settings.wants("P5", OPENED) {
        rows.push(opened(&ipc, settings, total)?);
    }
    Ok(rows)
}

impl Pair {
    fn name(&self) -> String {
        let size = match self.chunk {
            chunk if chunk >= 1 << 20 => format!("{} MiB", chunk >> 20),
            chunk if chunk >= 1 << 10 => format!("{} KiB", chunk >> 10),
            chunk => format!("{chunk} B"),
        };
        match &self.source {
            Source::Way(way) => format!("{} → {}, {size} writes", way.name(), self.sink.name()),
            Source::File(_) => format!("file → {}", self.sink.name()),
        }
    }

    /// The rows of a pair with bulk data: against socat, against socat with a large buffer, against nothing.
    fn stream(
        &self,
        ipc: &Ipc,
        settings: &Settings,
        number: &'static str,
        bars: [f64; 2],
    ) -> Result<Vec<Row>> {
        let direct = matches!(self.source, Source::Way(way) if way == self.sink);
        let movers = [
            Mover::Ours(ipc),
            Mover::Socat(DEFAULT_BUFFER),
            Mover::Socat(LARGE_BUFFER),
            if direct { Mover::None } else { Mover::Ours(ipc) },
        ];
        let [ours, socat, large, none] = self.rounds(settings, movers)?;
        let (name, speed) = (self.name(), speeds(&ours));
        let mut rows = vec![
            Row::ratio(number, &name, "MB/s", &speed, (SOCAT, &speeds(&socat)), Bar::AtLeast(bars[0])),
            Row::ratio(number, &name, "MB/s", &speed, (SOCAT_LARGE, &speeds(&large)), Bar::AtLeast(bars[1])),
        ];
        if direct {
            // Sockets copy on both sides of a relay, so only for pipes can it be as good as nothing.
            let bar = if self.sink == Way::Pipe { Bar::AtLeast(0.85) } else { Bar::None };
            rows.push(Row::ratio(number, &name, "MB/s", &speed, (NONE, &speeds(&none)), bar));
        }
        let bar = if number == "P1" { Bar::AtMost(0.25) } else { Bar::None };
        rows.push(Row::ratio(number, &name, "CPU s/GB", &cpu(&ours), (SOCAT_LARGE, &cpu(&large)), bar));
        Ok(rows)
    }

    fn rounds<const N: usize>(
        &self,
        settings: &Settings,
        movers: [Mover<'_>; N],
    ) -> Result<[Vec<Sample>; N]> {
        let mut contenders =
            movers.map(|mover| -> Contender<'_, Sample> { Box::new(move || self.once(mover)) });
        let samples = interleave(settings.rounds, &mut contenders)?;
        // interleave() returns as many as it was given.
        Ok(samples.try_into().unwrap_or_else(|_| std::array::from_fn(|_| Vec::new())))
    }

    fn once(&self, mover: Mover<'_>) -> Result<Sample> {
        let (write, read) = match &self.source {
            Source::Way(way) => {
                let Channel { write, read } = way.open()?;
                (Some(write), read)
            }
            Source::File(path) => (None, std::fs::File::open(path)?.into()),
        };
        let (sink, end) = match mover {
            // The channel of the source is all there is.
            Mover::None => (None, read.try_clone()?),
            _ => {
                let channel = self.sink.open()?;
                (Some(channel.write), channel.read)
            }
        };
        let measure = |pid: Option<i32>| -> Result<Sample> {
            let before = pid.map_or(Ok(0.0), peers::cpu_seconds)?;
            let (took, bytes) = match &write {
                Some(write) => (data::transfer(write, &end, self.chunk, self.total)?, self.total),
                None => data::receive(&end, self.total)?,
            };
            let cpu = pid.map_or(Ok(0.0), peers::cpu_seconds)? - before;
            Ok(Sample::new(bytes, took.as_secs_f64(), cpu))
        };
        match (mover, sink) {
            (Mover::Ours(ipc), Some(sink)) => {
                let (source, sink) = (ipc.adopt(read)?, ipc.adopt(sink)?);
                let relay = ipc.relay(&source, &sink)?;
                let sample = measure(Some(ipc.pid()))?;
                if write.is_some() {
                    ipc.stop(&relay)?;
                }
                ipc.close(&source)?;
                ipc.close(&sink)?;
                Ok(sample)
            }
            (Mover::Socat(buffer), Some(sink)) => {
                let socat = Socat::between(read, sink, buffer)?;
                measure(Some(socat.pid()))
            }
            _ => measure(None),
        }
    }
}

/// P5: a pipe whose ends came from Open(), against one that the process made itself.
fn opened(ipc: &Ipc, settings: &Settings, total: u64) -> Result<Row> {
    let chunk = 64 << 10;
    let speed = |channel: &Channel| -> Result<f64> {
        let took = data::transfer(&channel.write, &channel.read, chunk, total)?;
        Ok(total as f64 / 1e6 / took.as_secs_f64())
    };
    let mut contenders: [Contender<'_, f64>; 2] = [
        Box::new(|| {
            let endpoint = ipc.create("pipe:")?;
            let channel =
                Channel { write: ipc.open(&endpoint, "write")?, read: ipc.open(&endpoint, "read")? };
            // A process that asks for a blocking end gets one; the flags are of its own description.
            let found = speed(&channel);
            ipc.close(&endpoint)?;
            found
        }),
        Box::new(|| speed(&data::pipe()?)),
    ];
    let samples = interleave(settings.rounds, &mut contenders)?;
    Ok(Row::ratio("P5", OPENED, "MB/s", &samples[0], ("an own pipe", &samples[1]), Bar::AtLeast(0.97)))
}

fn speeds(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.speed).collect()
}

fn cpu(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.cpu).collect()
}
