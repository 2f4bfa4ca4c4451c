//! What the kernel tells over netlink(7) about devices, processes and families of generic netlink,
//! compared with what others see of the same: `udevadm`, waitpid(2) in python3, `ip` and `ethtool`.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod generic;
mod processes;
mod uevents;
#[path = "../waiting/mod.rs"]
mod waiting;

use std::{collections::VecDeque, process::Command, time::Instant};

use ipc_kernel::{
    Attempt, Fd, Readiness, Result,
    netlink::{Event, Source},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, netlink::SocketAddrNetlink},
};
use waiting::PATIENCE;

/// A source, and what it told that no test has looked at.
pub struct Heard<S>(S, VecDeque<Event>);

impl<S: Source> Heard<S> {
    pub fn new(source: S) -> Self {
        Self(source, VecDeque::new())
    }

    /// The events up to a wanted one, that one last.
    pub fn until(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> bool) -> Vec<Event> {
        let deadline = Instant::now() + PATIENCE;
        let mut told = Vec::new();
        loop {
            while let Some(event) = self.1.pop_front() {
                let found = wanted(&event);
                told.push(event);
                if found {
                    return told;
                }
            }
            match self.0.next().unwrap() {
                Attempt::Done(events) => {
                    assert!(!events.is_empty(), "no events are not told");
                    self.1.extend(events);
                }
                Attempt::Wait(readiness) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let left = Timespec::try_from(left).unwrap();
                    let fds = fds(readiness);
                    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
                    let ready = rustix::event::poll(&mut fds, Some(&left)).unwrap();
                    assert!(ready > 0, "not told in time: {what}; but {told:?}");
                }
            }
        }
    }
}

/// What every source waits for.
fn fds(readiness: Readiness) -> Vec<Fd> {
    match readiness {
        Readiness::Readable(fd) => vec![fd],
        Readiness::Any(any) => any.into_iter().flat_map(fds).collect(),
        other => panic!("a source waits for its sockets, not for {other:?}"),
    }
}

/// Runs `with` on a thread that is alone in a network namespace; None, visibly, where that is not
/// possible. What the thread starts is in it, too.
pub fn in_a_fresh_network<T: Send>(with: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: file descriptors stay shared with the other threads.
            match unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) } {
                Ok(()) => Some(with()),
                Err(errno) => {
                    eprintln!("SKIPPED: no network namespace for this user: {errno}");
                    None
                }
            }
        });
        thread.join().unwrap()
    })
}

/// Runs a program and returns what it wrote; None, visibly, where it is not installed.
pub fn output(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            eprintln!("SKIPPED: cannot start {program}: {error}");
            None
        }
    }
}

/// Sends to a multicast group as any process may try to; not by the kernel, whatever it says.
pub fn send(family: Protocol, group: u32, message: &[u8]) -> rustix::io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(family))?;
    let group = SocketAddrNetlink::new(0, 1 << (group - 1));
    rustix::net::sendto(&socket, message, SendFlags::empty(), &group).map(drop)
}

/// Whether a socket that has joined the group hears what [`send`] sends: that it is dropped by a
/// source means something only then.
pub fn is_heard(family: Protocol, group: u32, message: &[u8]) -> Result<bool, rustix::io::Errno> {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(family))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 1 << (group - 1)))?;
    send(family, group, message)?;
    let mut buffer = vec![0; message.len()];
    loop {
        let (_, length) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
        if buffer[..length.min(message.len())] == *message {
            return Ok(true);
        }
    }
}
