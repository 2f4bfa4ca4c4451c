//! Waiting for the other side to go: a process that is reaped, a reader that leaves.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use ipc_engine::wait::until;
use ipc_kernel::{Fd, Readiness, fd::poll_now};
use rustix::{
    event::PollFlags,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::time::timeout;

const WATCHDOG: Duration = Duration::from_secs(20);

/// A zombie is readable all the time; only when it is reaped, it hangs up.
#[tokio::test]
async fn a_process_is_reaped() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let fd = Fd::from(pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap());
    drop(child.stdin.take());
    timeout(WATCHDOG, until(Readiness::Readable(fd.clone()))).await.unwrap().unwrap();
    // Two at once, as the place in epoll is shared.
    let waits = [(); 2].map(|()| tokio::spawn(until(Readiness::HungUp(fd.clone()))));
    tokio::task::yield_now().await;
    assert!(waits.iter().all(|wait| !wait.is_finished()));
    assert!(!poll_now(&fd, PollFlags::IN).unwrap().contains(PollFlags::HUP));
    child.wait().unwrap();
    for wait in waits {
        timeout(WATCHDOG, wait).await.unwrap().unwrap().unwrap();
    }
    // And one that begins when it is over.
    timeout(WATCHDOG, until(Readiness::HungUp(fd))).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_leaves() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let fd = Fd::from(writer);
    let wait = tokio::spawn(until(Readiness::HungUp(fd.clone())));
    tokio::task::yield_now().await;
    assert!(!wait.is_finished());
    drop(reader);
    timeout(WATCHDOG, wait).await.unwrap().unwrap().unwrap();
    timeout(WATCHDOG, until(Readiness::HungUp(fd))).await.unwrap().unwrap();
}
