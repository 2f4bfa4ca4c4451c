//! A worker's way to the front, in the hand of a test: what goes into it is what a worker would say that its user
//! took over.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::socket_type;
use rustix::net::{SendFlags, SocketType, getpeername, send};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::wire::Outgoing;

/// The streams of a worker, copied out of it by root: the one to the front, and those of its runtime.
pub struct Streams(Vec<UnixStream>);

impl Streams {
    #[track_caller]
    pub fn of(worker: i32) -> Streams {
        let pid = Pid::from_raw(worker).expect("a pid");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a living worker");
        let (mut streams, mut seen) = (Vec::new(), Vec::new());
        for fd in 0..64 {
            let Ok(link) = fs::read_link(format!("/proc/{worker}/fd/{fd}")) else { continue };
            // Once each, however many descriptors of it there are.
            if !link.to_string_lossy().starts_with("socket:") || seen.contains(&link) {
                continue;
            }
            seen.push(link);
            let fd: OwnedFd = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).expect("root may");
            let stream = socket_type(&fd).expect("a socket") == SocketType::STREAM;
            if stream && getpeername(&fd).is_ok() {
                streams.push(UnixStream::from(fd));
            }
        }
        assert!(!streams.is_empty(), "worker {worker} has no stream to the front");
        Streams(streams)
    }

    /// Says this on all of them: the runtime's own reads it and does not mind.
    pub fn say(&self, message: &Outgoing) {
        self.say_bytes(&message.encode());
    }

    pub fn say_bytes(&self, bytes: &[u8]) {
        for stream in &self.0 {
            // A socket pair of the runtime may be full.
            let _own_pair = send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }
}
