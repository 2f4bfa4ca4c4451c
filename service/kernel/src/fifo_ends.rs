//! The ends of one FIFO that the service holds, for `mechanisms/fifo.rs`.
//!
//! An end is opened when it is first needed, because being a reader or a writer of a FIFO is
//! visible to everybody else: a reader lets waiting writers in, a writer that leaves is an end of
//! stream. Every end is opened through the pinned inode (`/proc/self/fd/N`), never through the
//! path, so that a FIFO that was renamed or replaced stays the one that was opened. Every end is
//! non-blocking from open(2) on: opening a FIFO waits for the other side otherwise (fifo(7)).

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{event::PollFlags, fs::OFlags, io::Errno};

use crate::{
    Attempt, Dict, Error, Fd, Kind, Readiness, Result,
    error::Attempted,
    fd,
    mechanism::{End, EndKind},
    pipe_io, shape,
    shape::Direction,
};

pub struct Ends {
    /// O_PATH: neither a reader nor a writer.
    pinned: Fd,
    /// The kernel forgets a FIFO's capacity when nobody has it open; it is set at every opening.
    capacity: Option<u64>,
    held: Mutex<Held>,
}

struct Held {
    reader: Side,
    writer: Side,
    pause: Pause,
}

enum Side {
    /// Opened when it is needed.
    Closed,
    Open(Fd),
    /// Never again.
    Shut,
}

impl Side {
    fn fd(&self) -> Option<&Fd> {
        match self {
            Self::Open(fd) => Some(fd),
            _ => None,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open(_) => "held",
            Self::Shut => "shut",
        }
    }
}

impl Ends {
    /// No end is open yet.
    pub fn new(pinned: Fd, capacity: Option<u64>) -> Self {
        let held = Held { reader: Side::Closed, writer: Side::Closed, pause: Pause::default() };
        Self { pinned, capacity, held: Mutex::new(held) }
    }

    /// The inode itself, open with O_PATH.
    pub fn pinned(&self) -> &Fd {
        &self.pinned
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_nonblocking(&self, access: OFlags) -> rustix::io::Result<Fd> {
        let end = Fd::from(fd::reopen(&self.pinned, access | OFlags::NONBLOCK)?);
        if let Some(capacity) = self.capacity
            && rustix::pipe::fcntl_getpipe_size(&end).is_ok_and(|now| now as u64 != capacity)
        {
            // Somebody else may have filled it beyond that; `Inspect` tells the capacity there is.
            let _ = pipe_io::set_capacity(&end, capacity);
        }
        Ok(end)
    }

    /// Opens the FIFO for both directions and keeps it so: never blocks, never hangs up.
    pub fn hold(&self) -> Result<()> {
        let both = self
            .open_nonblocking(OFlags::RDWR)
            .attempted(|| "hold the FIFO open, which needs the right to read and to write it")?;
        let mut held = self.held();
        held.reader = Side::Open(both.clone());
        held.writer = Side::Open(both);
        Ok(())
    }

    /// Takes the place of an fd of somebody else: the directions that it had, no others.
    pub fn take_over(&self, (reads, writes): (bool, bool)) -> Result<()> {
        let mut held = self.held();
        if reads {
            self.reader(&mut held)?;
        } else {
            held.reader = Side::Shut;
        }
        if writes {
            // Without a reader it is opened later.
            let _ = self.writer(&mut held)?;
        } else {
            held.writer = Side::Shut;
        }
        Ok(())
    }

    fn reader(&self, held: &mut Held) -> Result<Fd> {
        match &held.reader {
            Side::Open(fd) => Ok(fd.clone()),
            Side::Shut => Err(shut("reading")),
            Side::Closed => {
                let opened =
                    self.open_nonblocking(OFlags::RDONLY).attempted(|| "open the FIFO for reading")?;
                held.reader = Side::Open(opened.clone());
                Ok(opened)
            }
        }
    }

    fn writer(&self, held: &mut Held) -> Result<Attempt<Fd>> {
        match &held.writer {
            Side::Open(fd) => Ok(Attempt::Done(fd.clone())),
            Side::Shut => Err(shut("writing")),
            Side::Closed => match self.open_nonblocking(OFlags::WRONLY) {
                Ok(opened) => {
                    held.writer = Side::Open(opened.clone());
                    held.pause = Pause::default();
                    Ok(Attempt::Done(opened))
                }
                // A reader that opens the FIFO blocks in open(2) until there is a writer, so not
                // even inotify tells of it: nothing but trying again finds it.
                Err(Errno::NXIO) => Ok(Attempt::Wait(Readiness::After(held.pause.next()))),
                Err(errno) => Err(Error::from_errno(errno, "open the FIFO for writing")),
            },
        }
    }

    /// Up to `max` bytes. Empty, once, when the last writer has gone; then the next writer is
    /// waited for.
    pub fn read(&self, max: usize) -> Result<Attempt<Vec<u8>>> {
        let mut held = self.held();
        let reader = self.reader(&mut held)?;
        let attempt = pipe_io::read(&reader, max)?;
        if matches!(&attempt, Attempt::Done(data) if data.is_empty()) {
            self.await_next_writer(&mut held, &reader)?;
        }
        Ok(attempt)
    }

    /// A reading end stays hung up once its writers have gone; a new one is hung up only after the
    /// next writer. It is opened before the old one is dropped, so that nothing is ever buffered
    /// without a reader. Bytes at that moment are of a writer that came in between, and may have
    /// gone again: only the old end tells its end of stream too.
    fn await_next_writer(&self, held: &mut Held, old: &Fd) -> Result<()> {
        let new = self.open_nonblocking(OFlags::RDONLY).attempted(|| "open the FIFO for reading again")?;
        if pipe_io::available(old) == 0 {
            held.reader = Side::Open(new);
        }
        Ok(())
    }

    /// What fits at this moment. `Closed`, once, when the last reader has gone; then the next
    /// reader is waited for.
    pub fn write(&self, data: &[u8]) -> Result<Attempt<usize>> {
        let mut held = self.held();
        let writer = match self.writer(&mut held)? {
            Attempt::Done(writer) => writer,
            Attempt::Wait(readiness) => return Ok(Attempt::Wait(readiness)),
        };
        let attempt = pipe_io::write(&writer, data);
        if matches!(&attempt, Err(error) if error.kind == Kind::Closed) {
            held.writer = Side::Closed;
        }
        attempt
    }

    /// The reading end for a relay, as soon as there is something to read: until a writer has
    /// been there, splice(2) would take its absence for the end of the stream.
    pub fn source(&self) -> Result<Attempt<End>> {
        let mut held = self.held();
        let reader = self.reader(&mut held)?;
        if pipe_io::available(&reader) > 0 {
            return Ok(Attempt::Done(End { fd: reader, kind: EndKind::Pipe }));
        }
        if pipe_io::hung_up(&reader)? {
            self.await_next_writer(&mut held, &reader)?;
        }
        Ok(shape::readable(&self.reader(&mut held)?))
    }

    /// The writing end for a relay, as soon as there is a reader.
    pub fn sink(&self) -> Result<Attempt<End>> {
        let mut held = self.held();
        if let Side::Open(writer) = &held.writer
            && fd::poll_now(writer, PollFlags::OUT)?.contains(PollFlags::ERR)
        {
            held.writer = Side::Closed;
        }
        Ok(self.writer(&mut held)?.map(|fd| End { fd, kind: EndKind::Pipe }))
    }

    /// Closes a direction for good.
    pub fn shutdown(&self, direction: Direction) -> Result<()> {
        let mut held = self.held();
        // An end that is held for both directions must not keep the one that ends: the other one
        // gets an end of its own, opened while the old is there.
        let shared = match (&held.reader, &held.writer) {
            (Side::Open(reader), Side::Open(writer)) => Arc::ptr_eq(reader, writer),
            _ => false,
        };
        match direction {
            Direction::Read if shared => {
                let writer = self.open_nonblocking(OFlags::WRONLY).attempted(|| "keep the writing end")?;
                held.writer = Side::Open(writer);
            }
            Direction::Write if shared => {
                let reader = self.open_nonblocking(OFlags::RDONLY).attempted(|| "keep the reading end")?;
                held.reader = Side::Open(reader);
            }
            _ => {}
        }
        if direction != Direction::Write {
            held.reader = Side::Shut;
        }
        if direction != Direction::Read {
            held.writer = Side::Shut;
        }
        Ok(())
    }

    /// A description of the caller's own, in blocking mode.
    pub fn open(&self, direction: Direction) -> Result<OwnedFd> {
        let (access, purpose) = match direction {
            Direction::Write => (OFlags::WRONLY, "writing"),
            _ => (OFlags::RDONLY, "reading"),
        };
        let opened = match fd::reopen(&self.pinned, access | OFlags::NONBLOCK) {
            Err(Errno::NXIO) => {
                return Err(Error::new(
                    Kind::Busy,
                    "cannot open the FIFO for writing: no process has it open for reading (ENXIO); try \
                     again when there is a reader, or attach with hold=true, which is one",
                ));
            }
            other => other.attempted(|| format!("open the FIFO for {purpose}"))?,
        };
        rustix::fs::fcntl_setfl(&opened, OFlags::empty()).attempted(|| "make the caller's end blocking")?;
        Ok(opened)
    }

    /// The kernel tells it through either end. None is opened for the question, as that would let waiting
    /// writers in.
    pub fn depth(&self) -> Result<u64> {
        let held = self.held();
        let end = held.reader.fd().or(held.writer.fd()).ok_or_else(|| {
            Error::not_supported(
                "the service holds no end of this FIFO through which the kernel would tell how many bytes wait; it \
                 does from the first Read or Write on, or with hold=true",
            )
        })?;
        fd::waiting(end)
    }

    /// Which ends are held; through one of them, what the kernel says of the pipe. None is opened
    /// for the question, as that would let waiting writers in.
    pub fn inspect(&self) -> Result<Dict> {
        let held = self.held();
        let mut state = match held.reader.fd().or(held.writer.fd()) {
            Some(end) => pipe_io::inspect(end)?,
            None => Dict::new(),
        };
        state.insert("read-end".into(), held.reader.word().into());
        state.insert("write-end".into(), held.writer.word().into());
        Ok(state)
    }
}

fn shut(what: &str) -> Error {
    Error::new(
        Kind::Closed,
        format!("the {what} end of this FIFO was shut down or never given; attach to its path again"),
    )
}

/// How long to wait before looking for a reader again: short at first, as it often comes at once.
#[derive(Default)]
struct Pause {
    last: Option<(Instant, Duration)>,
}

impl Pause {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);

    fn next(&mut self) -> Duration {
        let length = match self.last {
            Some((when, length)) if when.elapsed() < 4 * Self::LONGEST => (2 * length).min(Self::LONGEST),
            _ => Self::SHORTEST,
        };
        self.last = Some((Instant::now(), length));
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest() {
        let mut pause = Pause::default();
        let lengths: Vec<_> = (0..8).map(|_| pause.next().as_millis()).collect();
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 50, 50]);
    }
}
