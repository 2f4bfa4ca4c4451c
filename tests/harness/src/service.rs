//! The built service, `ipcd`, started as an init system starts it.
//!
//! Ready is what the service itself calls ready: `READY=1` on the `NOTIFY_SOCKET` that the harness owns
//! (sd_notify(3)). The program is the one beside the running test, `target/<profile>/ipcd`: cargo is asked once in
//! a process to bring it up to date, for only cargo knows whether it is. `IPCD=/path/to/ipcd` takes another one
//! (an installed one, say) and asks nobody.
//!
//! What the service logs goes to a file and is shown when the test that it served fails.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::Address;
use crate::lines::Lines;
use crate::process::Process;
use crate::tools::{Unavailable, need_tool, patience, target_directory, temp_dir};

/// How to start the service; [`Service::on`] and [`Service::private`] are the short forms.
#[derive(Debug)]
#[must_use = "nothing runs before start()"]
pub struct Launch {
    bus: String,
    config: Option<String>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    program: Option<PathBuf>,
    /// Words before the program.
    words: Vec<String>,
    /// The address of the bus that it is to take for the system's.
    system: Option<String>,
    own_network: bool,
}

/// A running service. Ended on drop (killed if it does not heed SIGTERM); its log is printed if the test is failing.
pub struct Service {
    process: Process,
    address: String,
    notifications: Lines,
    log: PathBuf,
    _dir: TempDir,
}

/// A service that did not become ready.
#[derive(Debug)]
pub struct FailedStart {
    /// How it ended; `None` if it still ran, silently, when patience ended.
    pub status: Option<ExitStatus>,
    /// What it logged.
    pub log: String,
}

impl fmt::Display for FailedStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "ipcd ended before it was ready: {status}; its log:\n{}", self.log),
            None => write!(f, "ipcd does not become ready; its log:\n{}", self.log),
        }
    }
}

impl std::error::Error for FailedStart {}

impl Launch {
    /// `ipcd --bus ADDRESS`.
    pub fn on(bus: &(impl Address + ?Sized)) -> Launch {
        Launch {
            bus: bus.address().to_owned(),
            config: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            program: None,
            words: Vec::new(),
            system: None,
            own_network: false,
        }
    }

    /// `ipcd --bus system`, run by other words (those that enter a namespace), where the system bus is at `address`.
    pub(crate) fn system(address: &str, words: Vec<String>) -> Launch {
        Launch { words, system: Some(address.to_owned()), ..Launch::on("system") }
    }

    /// `ipcd --bus private`, run by other words.
    pub(crate) fn private_by(words: Vec<String>) -> Launch {
        Launch { words, ..Launch::private() }
    }

    /// `ipcd --bus private`: the service is its own message bus.
    pub fn private() -> Launch {
        Launch::on("private")
    }

    /// The text of the configuration file (TOML), given as `--config FILE`.
    pub fn config(mut self, toml: &str) -> Launch {
        self.config = Some(toml.to_owned());
        self
    }

    /// One more argument.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Launch {
        self.arguments.push(argument.into());
        self
    }

    /// One more environment variable.
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Launch {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// In a network namespace of its own, in which a loopback interface is all there is, and that is down.
    pub fn in_own_network(mut self) -> Result<Launch, Unavailable> {
        for tool in ["unshare", "nsenter", "ip"] {
            need_tool(tool)?;
        }
        let tried = Command::new("unshare").args(["--net", "true"]).output();
        if !tried.is_ok_and(|tried| tried.status.success()) {
            return Err(Unavailable("no network namespace can be made here".into()));
        }
        self.own_network = true;
        Ok(self)
    }

    /// Another program than the built `ipcd`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Launch {
        self.program = Some(program.into());
        self
    }

    /// Starts it and waits until it is ready; panics with its log when it does not become so.
    #[track_caller]
    pub fn start(self) -> Service {
        self.try_start().unwrap_or_else(|failed| panic!("{failed}"))
    }

    /// The same for tests of a start that must fail.
    pub fn try_start(self) -> Result<Service, FailedStart> {
        let dir = temp_dir();
        let log = dir.path().join("log");
        let notify = dir.path().join("notify");
        let socket = UnixDatagram::bind(&notify).expect("a socket in an own directory");
        // On the system bus it is another user than the test's who says that it is ready.
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o666)).expect("the mode of an own socket");
        let mut process = Process::spawn_prepared(&mut self.command(&dir, &log));
        let notifications = Lines::default();
        collect_datagrams(socket, process.pidfd(), notifications.clone());
        if let Err(missing) = notifications.wait_for(|line| line == "READY=1") {
            // The notifications of a process that ended are at their end, so its status is a moment away.
            let status = if missing.ended { process.wait_within(patience()) } else { None };
            process.kill();
            return Err(FailedStart { status, log: read_log(&log) });
        }
        let address = match self.bus.as_str() {
            "private" => printed_address(&process, &notifications),
            address => self.system.as_deref().unwrap_or(address).to_owned(),
        };
        Ok(Service { process, address, notifications, log, _dir: dir })
    }

    fn command(&self, dir: &TempDir, log: &Path) -> Command {
        let program = self.program.as_deref().unwrap_or_else(|| built_program());
        let mut words = self.words.clone();
        if self.own_network {
            words.extend(["unshare", "--net", "--"].map(String::from));
        }
        let mut command = match words.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        if let Some(address) = &self.system {
            command.env("DBUS_SYSTEM_BUS_ADDRESS", address);
        }
        command.args(["--bus", &self.bus]);
        if let Some(text) = &self.config {
            let file = dir.path().join("config.toml");
            fs::write(&file, text).expect("writing into an own directory");
            command.arg("--config").arg(file);
        }
        command.args(&self.arguments);
        command.env("NOTIFY_SOCKET", dir.path().join("notify")).env_remove("WATCHDOG_USEC");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let log = File::create(log).expect("a file in an own directory");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        command
    }
}

impl Service {
    /// `ipcd --bus ADDRESS`, ready; panics with its log if it does not start.
    #[track_caller]
    pub fn on(bus: &(impl Address + ?Sized)) -> Service {
        Launch::on(bus).start()
    }

    /// `ipcd --bus private`, ready; [`address`](Service::address) is that of its own bus.
    #[track_caller]
    pub fn private() -> Service {
        Launch::private().start()
    }

    /// The address of the bus that it is on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// `ip ARGUMENTS` in its network namespace; panics with what it says when it fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.pid().to_string(), "--", "ip"]);
        let output = command.args(arguments.split(' ')).output().expect("nsenter");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {said}");
    }

    /// What it printed on standard output.
    pub fn stdout(&self) -> &Lines {
        self.process.stdout()
    }

    /// Its `sd_notify` assignments as lines: `READY=1`, `STATUS=…`, `STOPPING=1`.
    pub fn notifications(&self) -> &Lines {
        &self.notifications
    }

    /// What it logged until now.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM, and its exit status; panics with its log when it does not end within patience.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.terminate()
    }

    /// SIGKILL: the crash that clients must survive.
    pub fn kill(&mut self) -> ExitStatus {
        self.process.kill()
    }

    /// Waits for an end that the test caused otherwise; panics when patience ends before.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }
}

impl Address for Service {
    fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Service {
    /// Asked first: a service that is killed cannot unmount nor remove what it made in the kernel.
    fn drop(&mut self) {
        self.process.signal(Signal::TERM);
        let ended = self.process.wait_within(Duration::from_secs(5));
        let status = ended.unwrap_or_else(|| self.process.kill());
        if thread::panicking() {
            eprintln!("--- ipcd (pid {}, {status}) logged:\n{}---", self.pid(), self.log());
        }
    }
}

/// `STATUS=` names the address of a private bus, or the first line of the output does.
#[track_caller]
fn printed_address(process: &Process, notifications: &Lines) -> String {
    let told = notifications.lines().iter().find_map(|line| address_in(line.strip_prefix("STATUS=")?));
    told.unwrap_or_else(|| {
        let line = process.wait_for(|line| address_in(line).is_some());
        address_in(&line).expect("the line was chosen for it")
    })
}

/// The first word that is a D-Bus address.
fn address_in(line: &str) -> Option<String> {
    let start = line.find("unix:")?;
    line[start..].split_whitespace().next().map(str::to_owned)
}

fn read_log(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| format!("(no log: {error})\n").into_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Keeps the datagrams that a process sends to this socket as lines, until the process has ended and all that it
/// sent is read. A full socket would block the sender, so somebody must read to the end.
pub(crate) fn collect_datagrams(socket: UnixDatagram, process: &OwnedFd, lines: Lines) {
    let process = process.try_clone().expect("a copy of a pidfd");
    socket.set_nonblocking(true).expect("an own socket made non-blocking");
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        loop {
            // Asked before reading: what an ended process sent is in the queue by then.
            let ended = match wait_either(&socket, &process) {
                Ok(ended) => ended,
                Err(Errno::INTR) => continue,
                Err(error) => panic!("poll: {error}"),
            };
            while let Ok(count) = socket.recv(&mut buffer[..65535]) {
                // One datagram comes at once: who has seen READY=1 has seen the STATUS= beside it.
                let newline = count > 0 && buffer[count - 1] != b'\n';
                buffer[count] = b'\n';
                lines.push(&buffer[..count + usize::from(newline)]);
            }
            if ended {
                return lines.end();
            }
        }
    });
}

/// Waits for a datagram or the end of the process; whether the process has ended.
fn wait_either(socket: impl AsFd, process: impl AsFd) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
    rustix::event::poll(&mut fds, None)?;
    Ok(!fds[1].revents().is_empty())
}

/// The `ipcd` of this build, brought up to date by cargo once in a process.
fn built_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("IPCD") {
        Some(program) => program.into(),
        None => build().unwrap_or_else(|why| panic!("ipcd could not be built: {why}")),
    })
}

fn build() -> Result<PathBuf, String> {
    // target/<profile>/deps/<test>, or target/<profile>/<program> for a benchmark that is a program.
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let directory = test.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    let profile = match directory.and_then(Path::file_name).and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--package", "ipcd", "--bin", "ipcd", "--profile", profile]);
    command.args(["--message-format", "json-render-diagnostics"]);
    if let Some(target) = target_directory() {
        command.env("CARGO_TARGET_DIR", target);
    }
    // The directory of this crate is in the workspace, wherever the test was started.
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    // Cargo says itself where it put the program.
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    program.ok_or_else(|| "cargo names no executable".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_among_words() {
        assert_eq!(
            address_in("private bus at unix:path=/tmp/x,guid=1 now"),
            Some("unix:path=/tmp/x,guid=1".into())
        );
        assert_eq!(address_in("ready"), None);
    }
}
