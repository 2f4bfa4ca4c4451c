//! A child process whose output is collected and which never outlives the value that stands for it.
//!
//! A script leads a process group of its own, so that whatever it leaves in the background goes with it. Buses,
//! the service and tools stay in the group of the test, so that a terminal's Ctrl-C, after which nothing is
//! dropped, ends them too.
//! Waiting is a poll on its pidfd, so every wait has a bound and no signal can hit a recycled pid.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::lines::Lines;
use crate::tools::patience;

/// A running child process. Killed on drop.
pub struct Process {
    name: String,
    child: Child,
    /// Whether it leads a process group of its own.
    leads: bool,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
    status: Option<ExitStatus>,
}

/// What a process left behind.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    /// The standard output as text, when the process succeeded; else a panic with what it said.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.status.success(), "{}; it said:\n{}", self.status, self.stderr);
        self.text()
    }

    /// The standard output, bytes that are not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Process {
    /// Starts the command with pipes on standard input and output and error; panics when it cannot be started
    /// (ask [`need_tool`](crate::need_tool) first for what may be missing).
    #[track_caller]
    pub fn spawn(command: &mut Command) -> Process {
        Process::start(piped(command), false)
    }

    /// The same in a process group of its own, which is killed as a whole once the command has ended.
    #[track_caller]
    pub fn spawn_group(command: &mut Command) -> Process {
        Process::start(piped(command).process_group(0), true)
    }

    /// Starts the command with whatever it was given as standard streams; those that are pipes are collected.
    #[track_caller]
    pub(crate) fn spawn_prepared(command: &mut Command) -> Process {
        Process::start(command, false)
    }

    #[track_caller]
    fn start(command: &mut Command, leads: bool) -> Process {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{name} could not be started: {error}"),
        };
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        Process {
            name,
            pidfd: pidfd.expect("pidfd_open of a child that was not waited for"),
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(Lines::collect).unwrap_or_else(ended),
            stderr: child.stderr.take().map(Lines::collect).unwrap_or_else(ended),
            child,
            leads,
            status: None,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// Its standard output, as it comes.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Its standard error, as it comes.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// The first line of its output that is wanted; panics with everything it said if none comes.
    #[track_caller]
    pub fn wait_for(&self, wanted: impl FnMut(&str) -> bool) -> String {
        match self.stdout.wait_for(wanted) {
            Ok(line) => line,
            Err(missing) => panic!("{}: {missing}\nand as errors:\n{}", self.name, self.stderr.text()),
        }
    }

    /// Writes to its standard input; panics when that is closed.
    #[track_caller]
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let Some(stdin) = &mut self.stdin else { panic!("the input of {} is closed", self.name) };
        if let Err(error) = stdin.write_all(bytes.as_ref()) {
            panic!("writing to {}: {error}; it said:\n{}", self.name, self.stderr.text());
        }
    }

    /// Gives it the end of its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Its pidfd, readable once it has ended.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Sends it a signal; a process that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => panic!("{signal:?} to {} (pid {}): {error}", self.name, self.pid()),
        }
    }

    /// Its exit status if it ends within the bound. What is left in a process group of its own is killed then.
    pub fn wait_within(&mut self, bound: Duration) -> Option<ExitStatus> {
        if self.status.is_none() && readable_within(&self.pidfd, bound) {
            self.status = Some(self.reap());
        }
        self.status
    }

    /// Waits for its end; panics when patience ends before.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        match self.wait_within(patience()) {
            Some(status) => status,
            None => {
                panic!("{} (pid {}) does not end; it said:\n{}", self.name, self.pid(), self.stderr.text())
            }
        }
    }

    /// Closes its input, waits for its end and returns all it said; panics when patience ends before.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        self.close_stdin();
        let status = self.wait();
        // The collecting threads are a moment behind; longer if a grandchild holds the pipes.
        assert!(self.stdout.wait_end() && self.stderr.wait_end(), "the output of {} does not end", self.name);
        Finished { status, stdout: self.stdout.bytes(), stderr: self.stderr.text() }
    }

    /// SIGTERM, and its exit status; panics (and kills it) when patience ends before.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL, to its whole group if it has its own.
    pub fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        self.signal(Signal::KILL);
        let status = self.reap();
        *self.status.insert(status)
    }

    fn reap(&mut self) -> ExitStatus {
        if self.leads {
            // The leader is not waited for yet, so its group id cannot have been given to anybody else. An error
            // means that it was the last one.
            let _last = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        // ECHILD: the program that runs the test ignores SIGCHLD.
        self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0xff00))
    }
}

fn piped(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn ended() -> Lines {
    let lines = Lines::default();
    lines.end();
    lines
}

/// Waits until this process, of whomever, has ended (it may not be waited for yet); false when patience ends before.
pub fn wait_gone(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return true };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => readable_within(pidfd, patience()),
        Err(Errno::SRCH) => true,
        Err(error) => panic!("pidfd_open of {pid:?}: {error}"),
    }
}

/// Waits until the descriptor is readable (or at its end); false when the bound is over before.
pub(crate) fn readable_within(fd: impl AsFd, bound: Duration) -> bool {
    let deadline = Instant::now() + bound;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}
