//! Where data comes from and goes to: two threads, one that writes in chunks of a given size, one that reads as
//! much as it gets, and the channels between them and whatever is measured.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The size of all pipes, unless a benchmark is about the default: a peer could not grow one for want of knowing it.
pub const PIPE: usize = 1 << 20;

/// The reader's buffer.
const READ: usize = 1 << 20;

/// A channel in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Pipe,
    Unix,
    Tcp,
}

/// Its ends.
#[derive(Debug)]
pub struct Channel {
    pub write: OwnedFd,
    pub read: OwnedFd,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Pipe => "pipe",
            Way::Unix => "unix",
            Way::Tcp => "tcp",
        }
    }

    /// Opens one.
    pub fn open(self) -> Result<Channel> {
        match self {
            Way::Pipe => {
                let channel = pipe()?;
                rustix::pipe::fcntl_setpipe_size(&channel.write, PIPE).context("a pipe of 1 MiB")?;
                Ok(channel)
            }
            Way::Unix => {
                let (write, read) = UnixStream::pair().context("a pair of sockets")?;
                Ok(Channel { write: write.into(), read: read.into() })
            }
            Way::Tcp => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port")?;
                let write =
                    TcpStream::connect(listener.local_addr()?).context("a connection to an own port")?;
                let (read, _) = listener.accept()?;
                Ok(Channel { write: write.into(), read: read.into() })
            }
        }
    }
}

/// A pipe as the kernel makes it.
pub fn pipe() -> Result<Channel> {
    let (read, write) = std::io::pipe().context("a pipe")?;
    Ok(Channel { write: write.into(), read: read.into() })
}

/// A file with so many bytes, in the page cache.
pub fn file(path: &Path, total: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let chunk = vec![0x5a; 1 << 20];
    let mut left = total;
    while left > 0 {
        let length = left.min(chunk.len() as u64);
        // At most the length of the chunk.
        file.write_all(&chunk[..length as usize])?;
        left -= length;
    }
    Ok(())
}

/// Writes `total` bytes into the source in chunks and reads as many from the sink; the time from the first write
/// to the last read. One byte goes ahead: whatever is in between is ready then.
pub fn transfer(source: &OwnedFd, sink: &OwnedFd, chunk: usize, total: u64) -> Result<Duration> {
    let mut source = File::from(source.as_fd().try_clone_to_owned()?);
    let mut sink = File::from(sink.as_fd().try_clone_to_owned()?);
    source.write_all(&[1])?;
    sink.read_exact(&mut [0])?;
    let started = Instant::now();
    let writer = thread::spawn(move || -> std::io::Result<()> {
        let data = vec![0x5a; chunk];
        let mut left = total;
        while left > 0 {
            let length = left.min(chunk as u64);
            // At most the length of the chunk.
            source.write_all(&data[..length as usize])?;
            left -= length;
        }
        Ok(())
    });
    drain(&mut sink, total)?;
    let took = started.elapsed();
    match writer.join() {
        Ok(written) => written.context("writing")?,
        Err(_) => bail!("the writer panicked"),
    }
    Ok(took)
}

/// Reads `total` bytes that something else supplies; the time from the first read that returned to the last, and
/// the bytes of that time.
pub fn receive(sink: &OwnedFd, total: u64) -> Result<(Duration, u64)> {
    let mut sink = File::from(sink.as_fd().try_clone_to_owned()?);
    let mut first = [0; 4096];
    let length = sink.read(&mut first)? as u64;
    let started = Instant::now();
    drain(&mut sink, total - length)?;
    Ok((started.elapsed(), total - length))
}

fn drain(sink: &mut File, total: u64) -> Result<()> {
    let mut buffer = vec![0; READ];
    let mut left = total;
    while left > 0 {
        match sink.read(&mut buffer).context("reading")? {
            0 => bail!("the data ended {left} bytes early"),
            length => left = left.saturating_sub(length as u64),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_carries_what_was_written() {
        for way in [Way::Pipe, Way::Unix, Way::Tcp] {
            let channel = way.open().expect("a channel");
            transfer(&channel.write, &channel.read, 1000, 1_000_001).expect("a transfer");
        }
    }
}
