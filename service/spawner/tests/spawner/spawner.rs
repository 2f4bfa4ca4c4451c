//! The test's side: starts a spawner and is its front.

use std::fs::{self, Permissions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use ipc_harness::{TempDir, patience, temp_dir};
use ipc_spawner::client;
use ipc_spawner::protocol::{Confinement, Identity, Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{self, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{Uid, set_thread_res_uid};

/// A user that every system has, with a group of the same number.
pub const USER: &str = "daemon";
pub const USER_ID: u32 = 1;

/// A running spawner. Ended on drop.
pub struct Spawner {
    child: std::process::Child,
    directory: TempDir,
    /// Of `supervise`: where its fronts report.
    fronts: Option<OwnedFd>,
}

/// What a front of `supervise` reported.
pub struct Front {
    pub test: OwnedFd,
    pub spawner: OwnedFd,
    pub workers: Vec<(String, OwnedFd)>,
    pub pid: i32,
    pub carried: bool,
}

impl Spawner {
    pub fn serve() -> Self {
        Self::serve_logging_to(Stdio::inherit())
    }

    pub fn serve_logging_to(stderr: Stdio) -> Self {
        let directory = temp_dir();
        let listener = listen(&directory, "spawner");
        let mut command = Command::new(own());
        let child = spawn(command.args(["child", "serve"]).stdin(listener).stderr(stderr));
        Self { child, directory, fronts: None }
    }

    pub fn supervise() -> Self {
        let directory = temp_dir();
        let fronts = Some(listen(&directory, "front"));
        let mut command = Command::new(own());
        command.args(["child", "supervise"]).arg(directory.path()).stdin(Stdio::null());
        Self { child: spawn(&mut command), directory, fronts }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A connection to `serve`, of this user.
    pub fn connect_as(&self, uid: u32) -> OwnedFd {
        let path = self.directory.path().join("spawner");
        as_user(uid, || connect(path.to_str().unwrap()))
    }

    pub fn connect(&self) -> OwnedFd {
        self.connect_as(USER_ID)
    }

    /// The next front that `supervise` starts.
    pub fn front(&self) -> Front {
        let listener = self.fronts.as_ref().unwrap();
        await_readable(listener);
        let test = net::accept_with(listener, SocketFlags::CLOEXEC).unwrap();
        let credentials = net::sockopt::socket_peercred(&test).unwrap();
        assert_eq!((credentials.uid.as_raw(), credentials.gid.as_raw()), (USER_ID, USER_ID));
        let (numbers, _) = receive(&test).unwrap();
        let (count, carried) = numbers.split_once(' ').unwrap();
        let spawner = receive(&test).unwrap().1.unwrap();
        let worker = |_| receive(&test).map(|(name, fd)| (name, fd.unwrap())).unwrap();
        let workers = (0..count.parse().unwrap()).map(worker).collect();
        let pid = credentials.pid.as_raw_nonzero().get();
        Front { test, spawner, workers, pid, carried: carried == "true" }
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let pidfd = pidfd(self.pid());
        pidfd_send_signal(&pidfd, Signal::TERM).unwrap();
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        await_readable(pidfd(self.pid()));
        self.child.wait().unwrap()
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.terminate();
        }
    }
}

fn own() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

/// With variables that must not reach a worker, and one that must reach the front.
fn spawn(command: &mut Command) -> std::process::Child {
    command.env("SECRET", "of root").env("NOTIFY_SOCKET", "/run/none").spawn().unwrap()
}

fn listen(directory: &TempDir, name: &str) -> OwnedFd {
    let path = directory.path().join(name);
    let socket = net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    net::listen(&socket, 8).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
    socket
}

pub fn connect(path: &str) -> OwnedFd {
    let socket =
        net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// Does something with the effective uid of another user (this program has one thread).
fn as_user<T>(uid: u32, act: impl FnOnce() -> T) -> T {
    let switch = |uid| set_thread_res_uid(None, Some(Uid::from_raw(uid)), None).unwrap();
    switch(uid);
    let result = act();
    switch(0);
    result
}

/// One request and its reply.
pub fn call(spawner: &OwnedFd, request: &Request, pidfd: Option<BorrowedFd<'_>>) -> (Reply, Option<OwnedFd>) {
    client::send(spawner, request, pidfd).unwrap();
    reply(spawner)
}

pub fn reply(spawner: &OwnedFd) -> (Reply, Option<OwnedFd>) {
    await_readable(spawner);
    client::receive(spawner).unwrap()
}

/// Whether the other end was closed, after waiting for it.
pub fn is_closed(socket: &OwnedFd) -> bool {
    await_readable(socket);
    client::receive(socket).is_err_and(|error| {
        [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset].contains(&error.kind())
    })
}

pub fn identity(uid: u32, gid: u32, groups: &[u32]) -> Identity {
    Identity { uid, gid, groups: groups.to_vec(), confinement: Confinement(0) }
}

/// Starts a worker: its pid and its control socket. The reply comes before the worker is what it is
/// to be, but what it is asked first it answers as that.
pub fn start(spawner: &OwnedFd, name: &str, identity: Identity) -> (i32, OwnedFd) {
    let started = call(spawner, &Request::Start { name: name.into(), identity }, None);
    let (Reply::Started { pid }, Some(control)) = started else {
        panic!("{name} was not started: {started:?}");
    };
    assert!(ask(&control, "facts").contains("variables 0"));
    (pid.cast_signed(), control)
}

pub fn ask(control: &OwnedFd, question: &str) -> String {
    send(control, question, None);
    receive(control).expect("the worker has ended").0
}

pub fn send(socket: &OwnedFd, text: &str, fd: Option<BorrowedFd<'_>>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = net::SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    assert!(fds.is_empty() || control.push(net::SendAncillaryMessage::ScmRights(fds)));
    net::sendmsg(socket, &[io::IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// None: nobody has the other end any more.
pub fn receive(socket: &OwnedFd) -> Option<(String, Option<OwnedFd>)> {
    let mut bytes = [0; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = net::RecvAncillaryBuffer::new(&mut space);
    await_readable(socket);
    let mut into = [io::IoSliceMut::new(&mut bytes)];
    let received = net::recvmsg(socket, &mut into, &mut control, net::RecvFlags::CMSG_CLOEXEC).ok()?;
    let fd = control.drain().find_map(|message| match message {
        net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (received.bytes > 0).then(|| (String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), fd))
}

#[track_caller]
pub fn await_readable(fd: impl AsFd) {
    assert!(readable(fd, patience()), "nothing came");
}

pub fn readable(fd: impl AsFd, time: Duration) -> bool {
    let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&time)).unwrap() > 0
}

pub fn pidfd(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap()
}
