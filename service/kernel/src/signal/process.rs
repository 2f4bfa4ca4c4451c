//! A process that signals are sent to, and whose end is watched, as an endpoint.
//!
//! Its exit code is the kernel's to tell: to its parent by waitpid(2), since Linux 6.15 to whoever
//! has held a pidfd since before it was reaped (`PIDFD_INFO_EXIT`), and to those who may look into
//! it while it is a zombie (proc_pid_stat(5), field 52). Nobody else learns it, and is told so.

use std::{os::fd::OwnedFd, sync::OnceLock};

use rustix::{event::PollFlags, io::Errno};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Kind, Parameters, Readiness, Result,
    fd::{duplicate, poll_now},
    shape::{self, Exit, Shape, readable},
    signal::{
        address::{is_reaped, refuse_own},
        names,
        pidfd::{self, Ending, Scope},
        status::{self, Stat, Status},
    },
};

/// What of the process, or what around it, a signal goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Process,
    Thread(i32),
    /// The process group that it leads.
    Group,
}

impl Target {
    pub fn tid(self) -> Option<i32> {
        match self {
            Self::Thread(tid) => Some(tid),
            Self::Process | Self::Group => None,
        }
    }

    pub fn describe(self, pid: i32) -> String {
        match self {
            Self::Process => format!("process {pid}"),
            Self::Thread(tid) => format!("thread {tid} of process {pid}"),
            Self::Group => format!("process group {pid}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Thread(_) => "thread",
            Self::Group => "group",
        }
    }
}

pub struct Process {
    fd: Fd,
    pid: i32,
    target: Target,
    /// Clock ticks; tells it apart from others that have the number at another time.
    start: u64,
    inode: Option<u64>,
    /// Its name when it was attached.
    command: Vec<u8>,
    exit: OnceLock<Exit>,
}

impl Process {
    pub fn new(fd: OwnedFd, pid: i32, target: Target, stat: &Stat) -> Self {
        let inode = pidfd::inode(&fd);
        let (start, command) = (stat.start, stat.command.clone());
        Self { fd: Fd::new(fd), pid, target, start, inode, command, exit: OnceLock::new() }
    }

    /// From a pidfd that a caller hands over; None: it is no pidfd.
    pub fn adopt(fd: OwnedFd) -> Result<std::result::Result<Self, OwnedFd>> {
        let Some(owner) = pidfd::owner(&fd) else { return Ok(Err(fd)) };
        let ended = || Error::new(Kind::Gone, "the process of this pidfd has ended and was reaped");
        match owner.id {
            0 => return Err(Error::not_supported("the process of this pidfd is in another pid namespace")),
            id if id < 0 => return Err(ended()),
            id => refuse_own(id)?,
        }
        let directory = status::directory(owner.id, None);
        let tgid = status::status(&directory).map_or(owner.id, |status| status.tgid);
        refuse_own(tgid)?;
        let target = if owner.thread { Target::Thread(owner.id) } else { Target::Process };
        match (status::stat(&directory), is_reaped(&fd)) {
            (Some(stat), false) => Ok(Ok(Self::new(fd, tgid, target, &stat))),
            _ => Err(ended()),
        }
    }

    fn describe(&self) -> String {
        self.target.describe(self.pid)
    }

    fn directory(&self) -> String {
        status::directory(self.pid, self.target.tid())
    }

    /// What /proc says of this very process; None: it has been reaped.
    fn look(&self) -> Option<(Stat, Status)> {
        let directory = self.directory();
        let found = (status::stat(&directory)?, status::status(&directory)?);
        (!is_reaped(&self.fd)).then_some(found)
    }

    fn ended(&self) -> Error {
        Error::new(Kind::Gone, format!("{} has ended (ESRCH)", self.describe()))
    }

    /// The exit status of a zombie, if the kernel shows it to this user. It shows 0 to others, so
    /// something else tells whether it does: the link that proc_pid_cwd(5) says needs the same right.
    fn zombie_exit(&self) -> Option<Exit> {
        let directory = self.directory();
        let stat = status::stat(&directory)?;
        let refused = rustix::fs::readlink(format!("{directory}/cwd"), Vec::new()).err()?;
        (stat.is_zombie() && refused == Errno::NOENT && !is_reaped(&self.fd))
            .then(|| Exit::from_status(stat.exit_status))
    }

    fn watch(&self) -> Result<Attempt<Exit>> {
        let events = poll_now(&self.fd, PollFlags::IN)?;
        if events.is_empty() {
            return Ok(readable(&self.fd));
        }
        Ok(match pidfd::ending(&self.fd) {
            Ending::Known(exit) => Attempt::Done(exit),
            ending => match self.zombie_exit() {
                Some(exit) => Attempt::Done(exit),
                // It is a zombie of another user; who reaps it, makes the kernel tell.
                None if ending == Ending::Unknown && !events.contains(PollFlags::HUP) => {
                    // It may have been reaped between the two looks.
                    match pidfd::ending(&self.fd) {
                        Ending::Known(exit) => Attempt::Done(exit),
                        _ => Attempt::Wait(Readiness::HungUp(self.fd.clone())),
                    }
                }
                None => Attempt::Done(Exit::UNKNOWN),
            },
        })
    }
}

impl Endpoint for Process {
    fn address(&self) -> Address {
        let mut address = Address::new("signal").with("pid", self.pid.to_string());
        match self.target {
            Target::Process => {}
            Target::Thread(tid) => address = address.with("tid", tid.to_string()),
            Target::Group => address = address.with("group", "true"),
        }
        address = address.with("start", self.start.to_string());
        match self.inode {
            Some(inode) => address.with("inode", inode.to_string()),
            None => address,
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Process]
    }

    fn inspect(&self) -> Result<Dict> {
        let exit = match self.exit.get() {
            Some(exit) => Some(*exit),
            None => match shape::Process::exit(self)? {
                Attempt::Done(exit) => Some(exit),
                Attempt::Wait(_) => None,
            },
        };
        let mut state = match self.look() {
            Some((stat, status)) => {
                let mut state = status.describe(&stat);
                state.insert("pending-thread".into(), names::names_in(status.pending.0).into());
                state.insert("queued-signals".into(), status.queued.0.into());
                state.insert("max-queued-signals".into(), status.queued.1.into());
                state.insert("command-line".into(), status::arguments(self.pid).into());
                state.insert("process-group".into(), stat.pgrp.cast_unsigned().into());
                state
            }
            None => crate::dict! { "state" => "reaped" },
        };
        state.insert("pid".into(), self.pid.cast_unsigned().into());
        state.insert("target".into(), self.target.name().into());
        if let Target::Thread(tid) = self.target {
            state.insert("tid".into(), tid.cast_unsigned().into());
        }
        if let Some(inode) = self.inode {
            state.insert("inode".into(), inode.into());
        }
        state.insert("alive".into(), exit.is_none().into());
        match exit {
            Some(exit) if exit == Exit::UNKNOWN => {
                let why = "the kernel did not keep it: that needs Linux 6.15";
                state.insert("exit-unknown".into(), why.into());
            }
            Some(exit) => {
                state.insert("exit-code".into(), exit.code.into());
                state.insert("core".into(), exit.core.into());
                if exit.signal != 0 {
                    state.insert("exit-signal".into(), names::name(exit.signal).into());
                }
            }
            None => {}
        }
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        duplicate(&self.fd)
    }

    fn set_permissions(&self, _permissions: crate::mechanism::Permissions) -> Result<()> {
        Err(Error::not_supported("a process has no permissions of its own: kill(2) compares user ids"))
    }

    fn remove(&self) -> Result<()> {
        Err(Error::not_supported("a process has no name to remove; Terminate ends it"))
    }

    fn process(&self) -> Option<&dyn shape::Process> {
        Some(self)
    }
}

impl shape::Process for Process {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn command(&self) -> String {
        let now = self.look().map(|(stat, _)| stat.command);
        String::from_utf8_lossy(&now.unwrap_or_else(|| self.command.clone())).into_owned()
    }

    fn alive(&self) -> bool {
        self.exit.get().is_none() && poll_now(&self.fd, PollFlags::IN).is_ok_and(|events| events.is_empty())
    }

    fn send(&self, signal: i32, value: i32) -> Result<()> {
        let scope = if self.target == Target::Group { Scope::Group } else { Scope::Own };
        let attempt = || {
            format!(
                "send {} to {}",
                if signal == 0 { "0".into() } else { names::name(signal) },
                self.describe()
            )
        };
        pidfd::send(&self.fd, signal, value, scope).map_err(|errno| match errno {
            Errno::SRCH => self.ended(),
            Errno::AGAIN => {
                let queued = self.look().map(|(_, status)| status.queued).unwrap_or_default();
                Error::new(
                    Kind::LimitExceeded,
                    format!(
                        "cannot {}: {}; {} of {} signals wait for its user's processes (RLIMIT_SIGPENDING): some have to \
                         be received first, or raise the limit of that process",
                        attempt(),
                        crate::error::describe(errno),
                        queued.0,
                        queued.1
                    ),
                )
            }
            Errno::PERM => Error::from_errno(errno, attempt())
                .help("a signal may be sent to processes of the same user (kill(2))"),
            Errno::INVAL if scope == Scope::Group => {
                Error::not_supported(format!("cannot {}: a group's signals need Linux 6.9 (EINVAL)", attempt()))
            }
            errno => Error::from_errno(errno, attempt()),
        })
    }

    fn handles(&self, signal: i32) -> Result<bool> {
        let (_, status) = self.look().ok_or_else(|| self.ended())?;
        Ok((status.caught | status.blocked) & names::bit(signal) != 0)
    }

    fn exit(&self) -> Result<Attempt<Exit>> {
        if let Some(exit) = self.exit.get() {
            return Ok(Attempt::Done(*exit));
        }
        let watched = self.watch()?;
        Ok(watched.map(|exit| *self.exit.get_or_init(|| exit)))
    }
}
