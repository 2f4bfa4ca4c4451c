//! The loop: requests of the front, ends of children, SIGTERM. Nothing in it waits for anybody but
//! poll(2).

use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair};
use rustix::process::Signal;

use crate::confinement::Surroundings;
use crate::error::Attempting;
use crate::front::{Front, Next};
use crate::identity::{become_front, become_worker, is_fit};
use crate::mounter::become_mounter;
use crate::process::{Child, exit_at_once, fork, log, wait};
use crate::protocol::{HERALD, Identity, REQUEST_SIZE, Refusal, Reply, Request};
use crate::{Error, FrontStart, Role, datagram, signals};

/// How long the front, which waits for the workers, and then the workers may take to end.
const FRONT_STOPS: Duration = Duration::from_secs(5);
const WORKERS_STOP: Duration = Duration::from_secs(3);
/// A killed process ends at once, or not before a file system answers it.
const KILLED: Duration = Duration::from_millis(500);

/// The most workers: enough for the front's own limit and as many killed ones that a dead file system
/// holds on to, and so few that their descriptors fit into RLIMIT_NOFILE as it usually is.
const WORKERS_MAX: usize = 256;

/// A mounter makes one mount and ends. Its user may stop it; then it is killed.
const MOUNTER_LIVES: Duration = Duration::from_secs(4);

pub struct Spawner {
    /// Whom requests are taken from.
    user: Identity,
    surroundings: Surroundings,
    signals: OwnedFd,
    /// Under systemd: where fronts connect.
    listener: Option<OwnedFd>,
    /// The socket of the one front.
    connection: Option<OwnedFd>,
    front: Front,
    workers: Vec<Worker>,
}

struct Worker {
    name: String,
    child: Child,
    /// The front's end of its control socket, for the next front. None where systemd keeps it, and
    /// of a worker that was killed.
    control: Option<OwnedFd>,
    /// When it is killed, if it is a mounter.
    until: Option<Instant>,
}

/// What a child takes out of the spawner.
enum Birth {
    Front(OwnedFd),
    Worker(OwnedFd, Identity),
    Herald(OwnedFd, Identity),
    Mounter(OwnedFd, Identity),
}

/// What poll(2) saw.
struct Ready {
    stop: bool,
    front_ended: bool,
    connection: bool,
    listener: bool,
    worker_ended: bool,
}

impl Spawner {
    pub fn new(user: Identity, listener: Option<OwnedFd>) -> Result<Self, Error> {
        let front = if listener.is_some() { Front::Foreign } else { Front::due() };
        let (surroundings, signals) = (Surroundings::own()?, signals::watch()?);
        let workers = Vec::new();
        Ok(Self { user, surroundings, signals, listener, connection: None, front, workers })
    }

    /// Returns in the spawner when it ends, and in every child.
    pub fn run(mut self) -> Result<Role, Error> {
        loop {
            let ready = self.wait()?;
            if ready.worker_ended {
                self.workers.retain(|worker| worker.child.reap().is_none());
            }
            self.end_mounters();
            if ready.stop {
                self.stop();
                return Ok(Role::Ended);
            }
            if ready.front_ended {
                match self.front_ended() {
                    Next::Restart(front) => self.front = front,
                    next => {
                        self.stop();
                        return if matches!(next, Next::End) {
                            Ok(Role::Ended)
                        } else {
                            Err(Error::FrontGaveUp)
                        };
                    }
                }
            }
            if ready.listener {
                self.accept();
            }
            let started = if ready.connection { self.answer() } else { self.start_front() };
            if let Some(birth) = started {
                return Ok(self.give_birth(birth));
            }
        }
    }

    fn wait(&self) -> Result<Ready, Error> {
        fn watch<'a>(fds: &mut Vec<PollFd<'a>>, fd: &'a OwnedFd) -> usize {
            fds.push(PollFd::new(fd, PollFlags::IN));
            fds.len() - 1
        }
        let fds = &mut Vec::new();
        let front = match &self.front {
            Front::Running { child, .. } => Some(watch(fds, &child.pidfd)),
            _ => None,
        };
        let connection = self.connection.as_ref().map(|socket| watch(fds, socket));
        // One at a time: the next one waits until this one has gone.
        let listener = self.listener.as_ref().filter(|_| connection.is_none());
        let listener = listener.map(|socket| watch(fds, socket));
        let signals = watch(fds, &self.signals);
        for worker in &self.workers {
            watch(fds, &worker.child.pidfd);
        }
        let due = self.front.due_in().into_iter().chain(self.mounters_due_in()).min();
        wait(fds, due).attempting("waiting for requests")?;
        let came = |index: usize| !fds[index].revents().is_empty();
        Ok(Ready {
            stop: came(signals),
            front_ended: front.is_some_and(came),
            connection: connection.is_some_and(came),
            listener: listener.is_some_and(came),
            worker_ended: (signals + 1..fds.len()).any(came),
        })
    }

    /// Takes the next connection, if it is the front's.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = accept_with(listener, flags);
        let accepted = accepted.and_then(|socket| Ok((socket_peercred(&socket)?.uid.as_raw(), socket)));
        match accepted {
            Ok((uid, socket)) if uid == self.user.uid => self.connection = Some(socket),
            Ok((uid, _)) => {
                log(&format!("refused a connection of uid {uid}: the front's is {}", self.user.uid))
            }
            // It has gone again.
            Err(_) => {}
        }
    }

    /// One request, one reply. A front that has gone, or takes no reply, has no connection any more.
    fn answer(&mut self) -> Option<Birth> {
        let connection = self.connection.take()?;
        let mut bytes = [0; REQUEST_SIZE];
        let (length, fd) = match datagram::receive(&connection, &mut bytes) {
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.connection = Some(connection);
                return None;
            }
            Err(_) => return None,
        };
        let request = bytes.get(..length).ok_or(Refusal::Malformed).and_then(Request::decode);
        let mut control = None;
        // The herald ends with its front, and a mounter by itself.
        let outlives_front = matches!(request, Ok(Request::Start { .. }));
        let started = match request {
            Ok(Request::Examine { uid }) => Err(self.surroundings.examine(fd.as_ref(), uid)),
            Ok(Request::Kill { name }) => Err(self.kill(&name)),
            Ok(Request::Start { name, identity }) => Ok(self.start(name, identity)),
            Ok(Request::Herald) => Ok(self.start_herald()),
            Ok(Request::Mount { name, identity }) => Ok(self.start_mounter(name, identity)),
            Err(refusal) => Err(Reply::Refused(refusal)),
        };
        let reply = match started {
            Ok(Ok(Started::Parent(pid, front_end))) => {
                control = Some(front_end);
                Reply::Started { pid }
            }
            Ok(Ok(Started::Child(birth))) => return Some(birth),
            Ok(Err(refusal)) => Reply::Refused(refusal),
            Err(reply) => reply,
        };
        if datagram::send(&connection, &reply.encode(), control.as_ref().map(AsFd::as_fd)).is_ok() {
            self.connection = Some(connection);
        }
        // Where systemd starts the front it also keeps the control sockets for the next one.
        if outlives_front
            && matches!(self.front, Front::Running { .. })
            && let (Some(front_end), Some(worker)) = (control, self.workers.last_mut())
        {
            worker.control = Some(front_end);
        }
        None
    }

    fn start(&mut self, name: String, identity: Identity) -> Result<Started, Refusal> {
        // A worker of the front's user could connect here as the front.
        if !is_fit(&identity) || identity.uid == self.user.uid {
            return Err(Refusal::Identity);
        }
        self.fork(name, |control| Birth::Worker(control, identity))
    }

    /// Its sandbox keeps it from what a worker of the front's user could do.
    fn start_herald(&mut self) -> Result<Started, Refusal> {
        let identity = Identity { groups: Vec::new(), ..self.user.clone() };
        self.fork(HERALD.to_owned(), |control| Birth::Herald(control, identity))
    }

    /// One at a time of each worker. What it does, the user could do himself (unshare(1)); who is confined, and may
    /// not be allowed to, gets none.
    fn start_mounter(&mut self, name: String, identity: Identity) -> Result<Started, Refusal> {
        if !is_fit(&identity) || identity.uid == self.user.uid || !identity.confinement.is_none() {
            return Err(Refusal::Identity);
        }
        if self.workers.iter().any(|worker| worker.until.is_some() && worker.name == name) {
            return Err(Refusal::Errno(libc::EBUSY));
        }
        let started = self.fork(name, |socket| Birth::Mounter(socket, identity))?;
        if let (Started::Parent(..), Some(mounter)) = (&started, self.workers.last_mut()) {
            mounter.until = Some(Instant::now() + MOUNTER_LIVES);
        }
        Ok(started)
    }

    /// Kills those that take too long.
    fn end_mounters(&mut self) {
        let now = Instant::now();
        for mounter in &mut self.workers {
            if mounter.until.is_some_and(|until| until <= now) {
                // It may have ended; it is reaped when poll(2) says so.
                let _ended = mounter.child.signal(Signal::KILL);
                mounter.until = Some(now + MOUNTER_LIVES);
            }
        }
    }

    fn mounters_due_in(&self) -> Option<Duration> {
        let due = self.workers.iter().filter_map(|worker| worker.until).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn fork(&mut self, name: String, birth: impl FnOnce(OwnedFd) -> Birth) -> Result<Started, Refusal> {
        if self.workers.len() >= WORKERS_MAX {
            return Err(Refusal::Errno(libc::EAGAIN));
        }
        let (front_end, control) = control_pair()?;
        match fork().map_err(|error| Refusal::Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)))? {
            None => Ok(Started::Child(birth(control))),
            Some(child) => {
                let pid = child.pid.as_raw_nonzero().get().cast_unsigned();
                self.workers.push(Worker { name, child, control: None, until: None });
                Ok(Started::Parent(pid, front_end))
            }
        }
    }

    /// A killed worker that a dead file system holds on to stays in the table until it is reaped,
    /// beside a new one of the same name.
    fn kill(&mut self, name: &str) -> Reply {
        let mut reply = Reply::Refused(Refusal::NoSuchWorker);
        for worker in self.workers.iter_mut().filter(|worker| worker.name == name) {
            if worker.child.signal(Signal::KILL).is_some() {
                worker.control = None;
                reply = Reply::Killed;
            }
        }
        reply
    }

    fn front_ended(&mut self) -> Next {
        self.connection = None;
        match &self.front {
            Front::Running { child, since, delay } => match child.reap() {
                Some(status) => Front::ended(&status, *since, *delay),
                // Cannot be: its pidfd was readable.
                None => Next::GiveUp,
            },
            // Cannot be: there was no process to end.
            _ => Next::GiveUp,
        }
    }

    /// Starts the front if it is time to.
    fn start_front(&mut self) -> Option<Birth> {
        let Front::Waiting { delay, .. } = self.front else { return None };
        if self.front.due_in() != Some(Duration::ZERO) {
            return None;
        }
        let started = control_pair()
            .map_err(|refusal| format!("{refusal:?}"))
            .and_then(|(front, ours)| Ok((fork().map_err(|error| error.to_string())?, front, ours)));
        match started {
            Ok((None, front, _)) => return Some(Birth::Front(front)),
            Ok((Some(child), _, ours)) => {
                self.connection = Some(ours);
                self.front = Front::running(child, delay);
            }
            Err(error) => {
                log(&format!("the front cannot be forked: {error}; tried again in {} ms", delay.as_millis()));
                self.front = Front::retry(delay);
            }
        }
        None
    }

    /// In the child: drops everything of the spawner's and becomes what it was forked for.
    fn give_birth(mut self, birth: Birth) -> Role {
        let workers = mem::take(&mut self.workers);
        let user = self.user.clone();
        drop(self);
        let role = match birth {
            Birth::Worker(control, identity) => {
                drop(workers);
                become_worker(c"ipcd-worker", control, identity).map(Role::Worker)
            }
            Birth::Herald(control, identity) => {
                drop(workers);
                become_worker(c"ipcd-herald", control, identity).map(Role::Herald)
            }
            Birth::Mounter(socket, identity) => {
                drop(workers);
                become_mounter(socket, &identity).map(Role::Mounter)
            }
            Birth::Front(spawner) => {
                let control = |worker: Worker| Some((worker.name, worker.control?));
                let workers = workers.into_iter().filter_map(control).collect();
                become_front(FrontStart { spawner, workers }, &user).map(Role::Front)
            }
        };
        role.unwrap_or_else(|error| exit_at_once(&error))
    }

    /// SIGTERM: under systemd the workers go on, for the front that comes next; otherwise everybody
    /// ends, the front first: it tells the workers to, and passes on their last words.
    fn stop(&mut self) {
        self.connection = None;
        let front = match mem::replace(&mut self.front, Front::Foreign) {
            Front::Foreign => return,
            Front::Running { child, .. } => Some(child),
            Front::Waiting { .. } => None,
        };
        if let Some(child) = front {
            end(&[&child], FRONT_STOPS);
        }
        // Those that it did not reach.
        let workers: Vec<_> = self.workers.iter().map(|worker| &worker.child).collect();
        end(&workers, WORKERS_STOP);
        self.workers.clear();
    }
}

/// Where `start` returned.
enum Started {
    Parent(u32, OwnedFd),
    Child(Birth),
}

/// Both ends of a control socket.
fn control_pair() -> Result<(OwnedFd, OwnedFd), Refusal> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|error| Refusal::Errno(error.raw_os_error()))
}

/// SIGTERM, and SIGKILL for those that still run after this time.
fn end(children: &[&Child], time: Duration) {
    let mut left: Vec<_> = children.to_vec();
    for (signal, time) in [(Signal::TERM, time), (Signal::KILL, KILLED)] {
        let deadline = Instant::now() + time;
        left.retain(|child| child.signal(signal).is_some());
        left.retain(|child| child.reap_within(deadline.saturating_duration_since(Instant::now())).is_none());
    }
}
