//! Bytes to bytes, in the way that costs least for the pair of ends.
//!
//! - Where one of them is a pipe, splice(2) moves pages from one to the other.
//! - Between two sockets, or files, splice moves them through a pipe of the relay's own.
//! - Into TCP large reads and writes are as fast, and need no pipe; they also serve where
//!   descriptors have to be looked at, and where a file does not know splice.
//! - Small writes are read and written too: one read gathers a thousand of them, where splice
//!   takes each as a page of its own and stops when the slots of a pipe are used up.
//!
//! Attempts come first; only when one fails the side that was not ready is waited for. Whatever
//! was taken from the source and is not in the sink is in this struct, never only in a future:
//! so a pause or a stop may drop the future at any time, and [`Streams::give_back`] returns it.

use ipc_kernel::{
    Result,
    mechanism::EndKind,
    relay_io::{self, CHUNK, Cursor, WINDOW},
};
use rustix::io::Errno;

use super::{
    Lane,
    buffers::{self, Pending},
    ends::{Intake, Outlet},
    flow::{Bound, Flow},
    options::Options,
    reconnect::Side,
    task::Ended,
};
use crate::endpoint::Endpoint;

/// After so many bytes, or so many operations, the other tasks have their turn.
const TURN_BYTES: usize = 1 << 20;
const TURN_OPERATIONS: usize = 16;

/// Bulk: worth a larger pipe.
const BULK: usize = 32 * 1024;
/// A transfer so small that the source is probably empty now, or consists of small writes.
const THIN: usize = 4096;
/// So many operations after a thin one copy.
const COPIES: u8 = 16;

/// After so many transfers in a row the source is busy: it is not watched until it is empty.
const STREAK: u8 = 2;

/// So often splice may say EAGAIN although both ends are ready. Once is a race with the writer or
/// the reader; more often it is a kind of file that splice does not serve.
const UNCLEAR: u8 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Direct,
    Through,
    Copy,
}

#[derive(Debug)]
pub(super) struct Streams {
    intake: Intake,
    outlet: Outlet,
    method: Method,
    own: Option<OwnPipe>,
    pending: Pending,
    /// The size of a buffer (the limit relay-buffer).
    buffer: usize,
    thin: bool,
    /// How many transfers in a row found something.
    streak: u8,
    /// How many operations copy before splice is tried again.
    copies: u8,
    /// How often splice in a row was in vain with both ends ready.
    unclear: u8,
    grown: bool,
    flow: Option<Flow>,
    /// The most that one operation takes from the source.
    most: usize,
}

/// The pipe between two sockets.
#[derive(Debug)]
struct OwnPipe {
    reader: Cursor,
    writer: Cursor,
    filled: usize,
}

/// What one step has done.
enum Step {
    /// So many bytes are in the sink.
    Moved(usize),
    /// Something else changed; go on.
    Again,
    SourceBlocked,
    SinkBlocked,
    End,
}

impl Streams {
    pub async fn open(
        source: &Endpoint,
        sink: &Endpoint,
        options: &Options,
        buffer: usize,
        lane: &Lane,
    ) -> Result<Self> {
        let outlet = Outlet::open(sink, lane).await?;
        let intake = Intake::open(source, options.fds, lane).await?;
        let mut streams = Self {
            method: method(intake.cursor.kind, outlet.cursor.kind),
            intake,
            outlet,
            own: None,
            pending: Pending::default(),
            buffer,
            thin: false,
            streak: 0,
            copies: 0,
            unclear: 0,
            grown: false,
            flow: Flow::new(options),
            most: CHUNK,
        };
        if streams.method == Method::Through && !streams.intake.forwards() {
            let (reader, writer) = relay_io::pipe()?;
            streams.own = Some(OwnPipe { reader, writer, filled: 0 });
        }
        Ok(streams)
    }

    pub async fn pump(&mut self, source: &Endpoint, lane: &Lane) -> Result<Ended> {
        let (mut bytes, mut operations) = (0, 0);
        let mut shown = "";
        loop {
            match self.bound(lane) {
                None => {}
                Some(Bound::Ended(ended)) => return Ok(ended),
                Some(Bound::Later(then)) => {
                    tokio::select! {
                        biased;
                        ended = self.outlet.gone() => return ended,
                        () = tokio::time::sleep_until(then) => continue,
                    }
                }
                Some(Bound::Bytes(most)) => self.most = usize::try_from(most).unwrap_or(CHUNK).min(CHUNK),
            }
            if self.outlet.cursor.room() == 0 {
                return Ok(Ended::Full);
            }
            let name = self.method_name();
            if !std::ptr::eq(name, shown) {
                lane.set_method(name);
                shown = name;
            }
            match self.step(source)? {
                Step::Moved(length) => {
                    lane.meter.add_bytes(length);
                    bytes += length;
                    operations += 1;
                }
                Step::Again => operations += 1,
                Step::SourceBlocked => {
                    if self.thin {
                        self.outlet.rest();
                    }
                    self.streak = 0;
                    tokio::select! {
                        biased;
                        ready = self.intake.ready() => ready?,
                        ended = self.outlet.gone() => return ended,
                    }
                    (bytes, operations) = (0, 0);
                }
                Step::SinkBlocked => {
                    self.outlet.ready().await?;
                    (bytes, operations) = (0, 0);
                }
                Step::End => return Ok(Ended::EndOfStream),
            }
            if bytes >= TURN_BYTES || operations >= TURN_OPERATIONS {
                tokio::task::yield_now().await;
                (bytes, operations) = (0, 0);
            }
        }
    }

    /// What may be taken now. None: as much as there is, or nothing before what was taken is in the sink.
    fn bound(&mut self, lane: &Lane) -> Option<Bound> {
        if self.flow.is_none() || self.held() > 0 {
            return None;
        }
        self.flow.as_mut().map(|flow| flow.most(lane.meter.bytes()))
    }

    fn step(&mut self, source: &Endpoint) -> Result<Step> {
        if !self.pending.is_empty() {
            return self.write_pending();
        }
        if self.own.as_ref().is_some_and(|own| own.filled > 0) {
            return self.push();
        }
        if let Some(kept) = source.take_kept_bytes(self.buffer.min(self.most)) {
            let length = kept.len();
            self.pending.fill(kept, length);
            return self.write_pending();
        }
        match self.method {
            _ if self.intake.forwards() => self.forward(),
            _ if self.intake.must_be_read() => self.copy(),
            Method::Copy => self.copy(),
            _ if self.copies > 0 => {
                self.copies -= 1;
                self.copy()
            }
            Method::Direct => self.splice(),
            Method::Through => self.pull(),
        }
    }

    /// From the relay's memory into the sink.
    fn write_pending(&mut self) -> Result<Step> {
        match self.outlet.write(self.pending.rest(), &[])? {
            Some(written) => {
                self.pending.written(written);
                Ok(Step::Moved(written))
            }
            None => {
                self.pending.shrink();
                Ok(Step::SinkBlocked)
            }
        }
    }

    /// From the source into the relay's memory, and on.
    fn copy(&mut self) -> Result<Step> {
        let mut buffer = buffers::take(self.buffer);
        let most = buffer.len().min(self.most);
        match self.intake.read(&mut buffer[..most]) {
            Ok(Some(length)) if length > 0 => {
                self.pending.fill(buffer, length);
                self.see(length);
                self.write_pending()
            }
            other => {
                buffers::put(buffer);
                Ok(if other?.is_some() { Step::End } else { Step::SourceBlocked })
            }
        }
    }

    /// From one unix socket into another with the descriptors. Nothing is taken before the sink
    /// has it: descriptors could not be put back.
    fn forward(&mut self) -> Result<Step> {
        let mut buffer = buffers::take(self.buffer.max(WINDOW));
        let step = self.forward_through(&mut buffer);
        buffers::put(buffer);
        step
    }

    fn forward_through(&mut self, buffer: &mut [u8]) -> Result<Step> {
        let Some((length, fds)) = self.intake.peek(buffer)? else {
            return Ok(Step::SourceBlocked);
        };
        if length == 0 {
            return Ok(Step::End);
        }
        let Some(written) = self.outlet.write(&buffer[..length.min(self.most)], &fds)? else {
            return Ok(Step::SinkBlocked);
        };
        self.intake.take(&mut buffer[..written])?;
        self.thin = length < THIN;
        Ok(Step::Moved(written))
    }

    /// From the source into the sink, inside the kernel.
    fn splice(&mut self) -> Result<Step> {
        enum Found {
            Moved(usize),
            SinkBlocked,
            Unclear,
        }
        let Self { intake: Intake { cursor: from, watch, .. }, outlet, most, .. } = self;
        let to = &mut outlet.cursor;
        let found = watch.attempt(|| match relay_io::splice(from, to, *most) {
            Err(Errno::AGAIN) => match relay_io::poll_both(from, to)? {
                (false, _) => Err(Errno::AGAIN),
                (true, false) => Ok(Found::SinkBlocked),
                (true, true) => Ok(Found::Unclear),
            },
            moved => moved.map(Found::Moved),
        });
        match found {
            Ok(Some(Found::Moved(0))) => Ok(Step::End),
            Ok(Some(Found::Moved(length))) => {
                self.saw(length);
                Ok(Step::Moved(length))
            }
            Ok(Some(Found::SinkBlocked)) => Ok(Step::SinkBlocked),
            Ok(None) => Ok(Step::SourceBlocked),
            Ok(Some(Found::Unclear)) if self.unclear < UNCLEAR => {
                self.unclear += 1;
                Ok(Step::Again)
            }
            // One of them does not know splice: read and write say more.
            Ok(Some(Found::Unclear)) | Err(Errno::INVAL) => self.fall_back(),
            Err(errno) => Err(self.splice_failed(errno)),
        }
    }

    /// From the source into the relay's own pipe, and on.
    fn pull(&mut self) -> Result<Step> {
        let (from, Some(own)) = (&mut self.intake.cursor, &mut self.own) else {
            return self.fall_back();
        };
        match self.intake.watch.attempt(|| relay_io::splice(from, &mut own.writer, self.most)) {
            Ok(Some(0)) => Ok(Step::End),
            Ok(Some(length)) => {
                own.filled += length;
                self.saw(length);
                self.push()
            }
            Ok(None) => Ok(Step::SourceBlocked),
            Err(Errno::INVAL) => self.fall_back(),
            Err(errno) => Err(self.intake.failed(errno)),
        }
    }

    /// From the relay's own pipe into the sink.
    fn push(&mut self) -> Result<Step> {
        let Some(own) = &mut self.own else {
            return Ok(Step::Again);
        };
        let filled = own.filled;
        match self.outlet.attempt(|to| relay_io::splice(&mut own.reader, to, filled)) {
            Ok(Some(length)) => {
                own.filled = filled.saturating_sub(length);
                Ok(Step::Moved(length))
            }
            Ok(None) => Ok(Step::SinkBlocked),
            Err(Errno::INVAL) => self.fall_back(),
            Err(errno) => Err(self.outlet.failed(errno)),
        }
    }

    /// So much came at once.
    fn saw(&mut self, length: usize) {
        self.unclear = 0;
        self.see(length);
        if length >= BULK && !self.grown {
            self.grown = true;
            self.intake.cursor.grow();
            self.outlet.cursor.grow();
            if let Some(own) = &self.own {
                own.writer.grow();
            }
        }
    }

    /// Small transfers are better copied.
    fn see(&mut self, length: usize) {
        self.thin = length < THIN;
        if self.thin {
            self.copies = COPIES;
        }
        self.streak = self.streak.saturating_add(1);
        if self.thin && self.streak >= STREAK {
            // Each small write would pay for the place in epoll, and a bulk of bytes for making it anew.
            self.intake.watch.release();
        }
    }

    /// Goes on with read and write.
    fn fall_back(&mut self) -> Result<Step> {
        self.empty_own_pipe();
        self.own = None;
        self.method = Method::Copy;
        Ok(Step::Again)
    }

    /// Moves what is in the relay's own pipe into its memory.
    fn empty_own_pipe(&mut self) {
        let Some(own) = &mut self.own else {
            return;
        };
        let mut taken = vec![0; own.filled];
        let mut length = 0;
        while length < taken.len() {
            // The pipe is nobody else's: what went in comes out.
            match own.reader.read(&mut taken[length..]) {
                Ok(more) if more > 0 => length += more,
                _ => break,
            }
        }
        own.filled = 0;
        if length > 0 {
            self.pending.fill(taken, length);
        }
    }

    /// Of the two ends only one can be the socket that an errno tells of.
    fn splice_failed(&self, errno: Errno) -> ipc_kernel::Error {
        match errno {
            Errno::PIPE => self.outlet.failed(errno),
            _ if matches!(self.intake.cursor.kind, EndKind::UnixStream | EndKind::Tcp) => {
                self.intake.failed(errno)
            }
            _ => self.outlet.failed(errno),
        }
    }

    /// Which end has lost its connection, after an error.
    pub fn lost(&self) -> Option<Side> {
        let source = self.intake.lost().then_some(Side::Source);
        self.outlet.lost().then_some(Side::Sink).or(source)
    }

    pub async fn renew_source(&mut self, source: &Endpoint, lane: &Lane) -> Result<()> {
        self.intake = Intake::open(source, self.intake.forwards(), lane).await?;
        (self.streak, self.unclear) = (0, 0);
        Ok(())
    }

    /// What is held goes into the new connection.
    pub async fn renew_sink(&mut self, sink: &Endpoint, lane: &Lane) -> Result<()> {
        self.outlet = Outlet::open(sink, lane).await?;
        self.unclear = 0;
        Ok(())
    }

    /// How many bytes were taken that are not in the sink.
    fn held(&self) -> usize {
        self.pending.rest().len() + self.own.as_ref().map_or(0, |own| own.filled)
    }

    /// At the end: what was taken goes on if the sink takes it at once (`flush`), and otherwise
    /// back to the source.
    pub fn give_back(mut self, source: &Endpoint, lane: &Lane, flush: bool) {
        while flush && self.held() > 0 && self.outlet.cursor.room() > 0 {
            let step = if self.pending.is_empty() { self.push() } else { self.write_pending() };
            match step {
                Ok(Step::Moved(length)) => lane.meter.add_bytes(length),
                Ok(Step::Again) => {}
                _ => break,
            }
        }
        // A file was only looked at: nothing was taken out of it.
        if matches!(self.intake.cursor.kind, EndKind::File { .. }) {
            return;
        }
        if self.pending.is_empty() {
            self.empty_own_pipe();
        }
        source.keep_bytes(&self.pending.take());
    }

    fn method_name(&self) -> &'static str {
        match self.method {
            _ if self.intake.forwards() => "recvmsg and sendmsg",
            Method::Direct => "splice",
            Method::Through => "splice through a pipe",
            Method::Copy => "read and write",
        }
    }
}

/// The fastest way from one kind of end to another, as measured (docs/performance).
fn method(from: EndKind, to: EndKind) -> Method {
    match (from, to) {
        (EndKind::File { .. }, EndKind::Tcp) => Method::Through,
        (_, EndKind::Tcp) => Method::Copy,
        (EndKind::Pipe, _) | (_, EndKind::Pipe) => Method::Direct,
        _ => Method::Through,
    }
}
