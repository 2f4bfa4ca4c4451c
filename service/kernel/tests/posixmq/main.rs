//! POSIX message queues against the C library's own mq_open, mq_send, mq_receive, mq_notify and
//! mq_unlink, called by a program in C.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod alone;
mod descriptors;
mod errors;
mod exchange;
mod limits;
mod listing;
#[path = "../peer/mod.rs"]
mod peer;

use std::time::Duration;

use ipc_kernel::{
    Attempt, Dict, Endpoint, Fd, Readiness, Result, dict,
    mqueue::calls::{self, Name},
    shape::{Message, Messages, Outgoing},
};
use peer::*;
use rustix::event::{PollFd, PollFlags, Timespec};

/// Nothing in these tests takes that long; whatever does has failed.
const WATCHDOG: Duration = Duration::from_secs(10);

const PROGRAM: &str = include_str!("peer.c");

/// For mq_open(3) in the program.
const READ: i32 = libc::O_RDONLY;
const WRITE: i32 = libc::O_WRONLY;
const BOTH: i32 = libc::O_RDWR;
const NONBLOCK: i32 = libc::O_NONBLOCK;

/// A queue's name, unlinked at the end.
struct Queue(String);

impl Queue {
    fn new() -> Self {
        Self(format!("/{}", unique()))
    }

    fn address(&self) -> String {
        format!("posixmq:name={}", self.0)
    }

    /// Three messages of 64 bytes: all queues of a user share one limit.
    fn made(&self) -> Box<dyn Endpoint> {
        create(&format!("{},depth=3,size=64", self.address())).unwrap()
    }

    fn hex(&self) -> String {
        hex(self.0.as_bytes())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = calls::unlink(&Name::check(self.0.as_bytes()).unwrap());
    }
}

fn hex(bytes: &[u8]) -> String {
    match bytes {
        [] => "-".to_owned(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// What the program says of a message that it received.
fn received(text: &str, priority: u32) -> String {
    let text: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{priority} {text}").trim_end().to_owned()
}

fn messages(endpoint: &dyn Endpoint) -> &dyn Messages {
    endpoint.messages().unwrap()
}

fn try_send(endpoint: &dyn Endpoint, data: &[u8], priority: u32) -> Result<Attempt<()>> {
    let attributes = dict! { "priority" => priority };
    messages(endpoint).send(Outgoing { data, attributes: &attributes, fds: &[], sent: &Default::default() })
}

#[track_caller]
fn send(endpoint: &dyn Endpoint, data: &str, priority: u32) {
    assert!(matches!(try_send(endpoint, data.as_bytes(), priority), Ok(Attempt::Done(()))), "no room");
}

fn try_receive(endpoint: &dyn Endpoint) -> Result<Attempt<Message>> {
    messages(endpoint).receive(&Dict::new())
}

/// A message that is there, as text and priority.
#[track_caller]
fn receive(endpoint: &dyn Endpoint) -> (String, i128) {
    match try_receive(endpoint).unwrap() {
        Attempt::Done(message) => {
            (String::from_utf8(message.data).unwrap(), message.attributes["priority"].integer().unwrap())
        }
        Attempt::Wait(_) => panic!("there is no message"),
    }
}

#[track_caller]
fn must_wait<T>(attempt: Result<Attempt<T>>) -> Readiness {
    match attempt.unwrap() {
        Attempt::Wait(readiness) => readiness,
        Attempt::Done(_) => panic!("it did not wait"),
    }
}

/// Whether a readiness comes within this time.
fn comes(readiness: &Readiness, limit: Duration) -> bool {
    let (fd, interest): (&Fd, _) = match readiness {
        Readiness::Readable(fd) => (fd, PollFlags::IN),
        Readiness::Writable(fd) => (fd, PollFlags::OUT),
        other => panic!("a queue does not wait for {other:?}"),
    };
    let limit = Timespec::try_from(limit).unwrap();
    rustix::event::poll(&mut [PollFd::new(fd, interest)], Some(&limit)).unwrap() > 0
}

fn number(endpoint: &dyn Endpoint, key: &str) -> Option<i128> {
    endpoint.inspect().unwrap().get(key)?.integer()
}

/// So many threads of a process block in mq_timedreceive(2).
fn blocked(peer: &Peer) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", peer.pid())).unwrap().flatten();
    let call =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
    let wanted = format!("{} ", libc::SYS_mq_timedreceive);
    tasks.map(call).filter(|call| call.starts_with(&wanted)).count()
}
