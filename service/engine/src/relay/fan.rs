//! The option `tee` for bytes: out of one stream into several sinks, as tee(1) does it.
//!
//! A portion is taken from the source, and goes into each sink as fast as that one takes it; the next portion is taken
//! when all have this one. So the slowest sets the pace, and no sink is further ahead than one portion. How far each has
//! come is kept here, and not in a future: a pause sends nothing twice.
//!
//! Where all ends are pipes, splice(2) takes a portion into a pipe of the first sink's, tee(2) puts it into one of each
//! other sink's, and splice moves it on from there: no byte is copied. Otherwise it is read once and written to each.

use std::{fmt::Write, sync::Arc};

use futures_util::{FutureExt, future::select_all};
use ipc_kernel::{
    Result,
    mechanism::EndKind,
    relay_io::{self, Cursor},
};

use super::{
    Lane, buffers,
    ends::{Intake, Outlet, first_gone},
    flow::{Bound, Flow},
    options::Options,
    reconnect::Side,
    task::Ended,
};
use crate::endpoint::Endpoint;

/// After so many portions the other tasks have their turn.
const TURN: usize = 16;

/// A portion so small that the source is probably empty now, or consists of small writes: one read gathers many of
/// them, where splice takes no more than a pipe has slots.
const THIN: usize = 4096;
/// So many portions after a thin one are copied.
const COPIES: u8 = 16;

/// What a pipe holds that nobody has grown.
const PORTION: usize = 65_536;

#[derive(Debug)]
pub(super) struct Fan {
    intake: Intake,
    /// There are at least two.
    branches: Vec<Branch>,
    /// The bytes of the portion that is on its way, unless they are in the branches' pipes.
    bytes: Vec<u8>,
    /// How many bytes it has, and how many of them are counted as moved.
    length: usize,
    counted: usize,
    /// How many portions are copied before splice is tried again.
    copies: u8,
    /// The size of a buffer (the limit relay-buffer).
    buffer: usize,
    flow: Option<Flow>,
}

/// The way to one sink.
#[derive(Debug)]
struct Branch {
    outlet: Outlet,
    /// Where all ends are pipes.
    pipe: Option<OwnPipe>,
    /// How much of the portion is in the sink.
    written: usize,
}

#[derive(Debug)]
struct OwnPipe {
    reader: Cursor,
    writer: Cursor,
    /// The portion is in here.
    used: bool,
}

/// What one step has done.
enum Step {
    /// So many more bytes are in all sinks.
    Moved(usize),
    SourceBlocked,
    SinksBlocked,
    End,
}

impl Branch {
    /// As much of the portion as the sink takes now. None: nothing.
    fn advance(&mut self, bytes: &[u8], length: usize) -> Result<Option<usize>> {
        let rest = length - self.written;
        let moved = match &mut self.pipe {
            Some(OwnPipe { reader, used: true, .. }) => {
                let moved = self.outlet.attempt(|to| relay_io::splice(reader, to, rest));
                moved.map_err(|errno| self.outlet.failed(errno))?
            }
            // What is written is never more than the portion has.
            _ => self.outlet.write(&bytes[self.written..length], &[])?,
        };
        self.written += moved.unwrap_or(0);
        Ok(moved)
    }
}

impl Fan {
    pub async fn open(
        source: &Endpoint,
        sinks: impl Iterator<Item = &Arc<Endpoint>>,
        options: &Options,
        buffer: usize,
        lane: &Lane,
    ) -> Result<Self> {
        let mut branches = Vec::new();
        for sink in sinks {
            branches.push(Branch { outlet: Outlet::open(sink, lane).await?, pipe: None, written: 0 });
        }
        let intake = Intake::open(source, false, lane).await?;
        let kinds = branches.iter().map(|branch| branch.outlet.cursor.kind);
        if kinds.chain([intake.cursor.kind]).all(|kind| kind == EndKind::Pipe) {
            for branch in &mut branches {
                let (reader, writer) = relay_io::pipe()?;
                branch.pipe = Some(OwnPipe { reader, writer, used: false });
            }
        }
        let mut fan = Self {
            intake,
            branches,
            bytes: Vec::new(),
            length: 0,
            counted: 0,
            copies: 0,
            buffer,
            flow: Flow::new(options),
        };
        fan.set_method(lane);
        Ok(fan)
    }

    fn set_method(&mut self, lane: &Lane) {
        let pipes = self.branches.iter().all(|branch| branch.pipe.is_some());
        lane.set_method(if pipes { "splice and tee" } else { "read and write" });
    }

    pub async fn pump(&mut self, source: &Endpoint, lane: &Lane) -> Result<Ended> {
        loop {
            for _ in 0..TURN {
                let mut most = usize::MAX;
                if self.length == 0 {
                    match self.flow.as_mut().map(|flow| flow.most(lane.meter.bytes())) {
                        None => {}
                        Some(Bound::Ended(ended)) => return Ok(ended),
                        Some(Bound::Later(then)) => {
                            tokio::select! {
                                biased;
                                ended = first_gone(outlets(&mut self.branches)) => return ended,
                                () = tokio::time::sleep_until(then) => continue,
                            }
                        }
                        Some(Bound::Bytes(bytes)) => most = usize::try_from(bytes).unwrap_or(most),
                    }
                    // A sink of a fixed size.
                    let rooms = self.branches.iter().map(|branch| branch.outlet.cursor.room());
                    most = most.min(rooms.min().unwrap_or(most));
                    if most == 0 {
                        return Ok(Ended::Full);
                    }
                }
                match self.step(source, lane, most)? {
                    Step::Moved(length) => {
                        if length > 0 {
                            lane.meter.add_bytes(length);
                        }
                    }
                    Step::SourceBlocked => {
                        tokio::select! {
                            biased;
                            ready = self.intake.ready() => ready?,
                            ended = first_gone(outlets(&mut self.branches)) => return ended,
                        }
                    }
                    Step::SinksBlocked => {
                        if let Some(ended) = self.room().await? {
                            return Ok(ended);
                        }
                    }
                    Step::End => return Ok(Ended::EndOfStream),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn step(&mut self, source: &Endpoint, lane: &Lane, most: usize) -> Result<Step> {
        if self.length > 0 {
            return self.advance();
        }
        if let Some(kept) = source.take_kept_bytes(self.buffer.min(most)) {
            self.length = kept.len();
            self.bytes = kept;
            return self.advance();
        }
        let pipes = self.branches.iter().all(|branch| branch.pipe.is_some());
        if pipes && self.copies == 0 {
            return self.pull(lane, most);
        }
        self.copies = self.copies.saturating_sub(1);
        let mut buffer = buffers::take(self.buffer);
        let most = buffer.len().min(most);
        match self.intake.read(&mut buffer[..most]) {
            Ok(Some(length)) if length > 0 => {
                self.bytes = buffer;
                self.take(length);
                self.advance()
            }
            other => {
                buffers::put(buffer);
                Ok(if other?.is_some() { Step::End } else { Step::SourceBlocked })
            }
        }
    }

    /// A portion from the source into the pipes of all branches.
    fn pull(&mut self, lane: &Lane, most: usize) -> Result<Step> {
        let mut pipes = self.branches.iter_mut().filter_map(|branch| branch.pipe.as_mut());
        let Some(first) = pipes.next() else {
            return Ok(Step::End);
        };
        let (from, watch) = (&mut self.intake.cursor, &self.intake.watch);
        let length = match watch.attempt(|| relay_io::splice(from, &mut first.writer, most.min(PORTION))) {
            Ok(Some(0)) => return Ok(Step::End),
            Ok(Some(length)) => length,
            Ok(None) => return Ok(Step::SourceBlocked),
            Err(errno) => return Err(self.intake.failed(errno)),
        };
        first.used = true;
        // Empty ones of the same size take all of it; what is smaller, for want of memory for pipes, does not.
        let all = pipes.all(|pipe| {
            pipe.used = true;
            relay_io::tee(&first.reader, &pipe.writer, length) == Ok(length)
        });
        self.take(length);
        if !all {
            let bytes = self.out_of_pipe(0);
            self.bytes = bytes;
            self.branches.iter_mut().for_each(|branch| branch.pipe = None);
            self.set_method(lane);
        }
        self.advance()
    }

    /// A portion of so many bytes has come.
    fn take(&mut self, length: usize) {
        self.length = length;
        if length < THIN {
            self.copies = COPIES;
        }
    }

    /// From the portion into every sink that takes something.
    fn advance(&mut self) -> Result<Step> {
        let mut blocked = true;
        for branch in &mut self.branches {
            if branch.written < self.length && branch.advance(&self.bytes, self.length)?.is_some() {
                blocked = false;
            }
        }
        if blocked {
            return Ok(Step::SinksBlocked);
        }
        let all = self.in_all();
        let moved = all - self.counted;
        self.counted = all;
        if all == self.length {
            self.finish();
        }
        Ok(Step::Moved(moved))
    }

    /// How much of the portion is in every sink.
    fn in_all(&self) -> usize {
        self.branches.iter().map(|branch| branch.written).min().unwrap_or(0)
    }

    /// There is no portion any more.
    fn finish(&mut self) {
        (self.length, self.counted) = (0, 0);
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() == self.buffer {
            buffers::put(bytes);
        }
        for branch in &mut self.branches {
            branch.written = 0;
            if let Some(pipe) = &mut branch.pipe {
                pipe.used = false;
            }
        }
    }

    /// Completes when a sink that is behind may take something. Some: one has nobody who reads from it any more.
    async fn room(&mut self) -> Result<Option<Ended>> {
        let (behind, level): (Vec<_>, Vec<_>) =
            self.branches.iter_mut().partition(|branch| branch.written < self.length);
        let ready =
            behind.into_iter().map(|branch| branch.outlet.ready().map(|it| it.map(|()| None)).boxed());
        let gone = level.into_iter().map(|branch| branch.outlet.gone().map(|it| it.map(Some)).boxed());
        select_all(ready.chain(gone)).await.0
    }

    /// Which end has lost its connection, after an error.
    pub fn lost(&self) -> Option<Side> {
        self.intake.lost().then_some(Side::Source)
    }

    pub async fn renew_source(&mut self, source: &Endpoint, lane: &Lane) -> Result<()> {
        self.intake = Intake::open(source, false, lane).await?;
        Ok(())
    }

    /// At the end: the portion goes on if the sinks take it at once (`flush`); what not all have is kept at the source,
    /// whose next reader has to be told who has it already.
    pub fn give_back(mut self, source: &Endpoint, lane: &Lane, flush: bool) -> Option<String> {
        while flush && self.length > 0 {
            let Ok(Step::Moved(length)) = self.advance() else { break };
            lane.meter.add_bytes(length);
        }
        let all = self.in_all();
        lane.meter.add_bytes(all - self.counted);
        // A file was only looked at: nothing was taken out of it.
        if self.length == 0 || matches!(self.intake.cursor.kind, EndKind::File { .. }) {
            return None;
        }
        let last = self.branches.iter().position(|branch| branch.written == all)?;
        let rest = match &self.branches[last].pipe {
            Some(pipe) if pipe.used => self.out_of_pipe(last),
            _ => self.bytes[all..self.length].to_vec(),
        };
        source.keep_bytes(&rest);
        let mut torn = String::new();
        for Branch { outlet, written, .. } in &self.branches {
            if *written > all {
                let between =
                    if torn.is_empty() { "of the bytes that were kept at the source" } else { " and" };
                // Writing to a String cannot fail.
                let _infallible = write!(torn, "{between} {} are in {}", written - all, outlet.address);
            }
        }
        (!torn.is_empty()).then_some(torn)
    }

    /// What a branch's sink does not have, out of its pipe.
    fn out_of_pipe(&mut self, index: usize) -> Vec<u8> {
        let Branch { pipe: Some(pipe), written, .. } = &mut self.branches[index] else {
            return Vec::new();
        };
        let mut bytes = vec![0; self.length - *written];
        let mut read = 0;
        while read < bytes.len() {
            // The pipe is nobody else's: what went in comes out.
            match pipe.reader.read(&mut bytes[read..]) {
                Ok(more) if more > 0 => read += more,
                _ => break,
            }
        }
        bytes.truncate(read);
        bytes
    }
}

fn outlets(branches: &mut [Branch]) -> impl Iterator<Item = &mut Outlet> {
    branches.iter_mut().map(|branch| &mut branch.outlet)
}
