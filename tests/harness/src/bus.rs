//! A private message bus for one test: the real dbus-daemon or the real dbus-broker.
//!
//! Both read the same small configuration: a session bus that allows everything, with the limits of the stock
//! session.conf, and no activation. A test of the policy brings its own policy section.
//!
//! dbus-broker is made for systemd. Without it, its launcher needs three things: the listening socket as
//! descriptor 3 (socket activation), the address of the bus itself in `DBUS_SESSION_BUS_ADDRESS` (the launcher is
//! a client of its own bus), and a reader on `/run/systemd/journal/socket`. The last is a socket of the harness in
//! a directory that is bind-mounted over `/run/systemd` in a private mount namespace; who is not root makes a user
//! namespace around it, in which the own uid stays what it is, so that credentials on the bus are the real ones.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::Address;
use crate::lines::Lines;
use crate::process::Process;
use crate::service::collect_datagrams;
use crate::tools::{Unavailable, need_tool, patience, temp_dir, unique};

/// The message buses that the service must work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    DbusDaemon,
    DbusBroker,
}

impl Kind {
    /// All of them, for tests that run on each.
    pub const ALL: [Kind; 2] = [Kind::DbusDaemon, Kind::DbusBroker];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::DbusDaemon => "dbus-daemon",
            Kind::DbusBroker => "dbus-broker",
        })
    }
}

/// A running private bus, ended and cleaned up on drop.
pub struct Bus {
    process: BusProcess,
    place: Place,
}

/// Everybody may do everything, as on a stock session bus.
const ALLOW_ALL: &str = r#"
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>"#;

/// The limits of the stock session.conf: none of them is meant to be hit.
const LIMITS: &[(&str, u32)] = &[
    ("max_incoming_bytes", 1_000_000_000),
    ("max_incoming_unix_fds", 250_000_000),
    ("max_outgoing_bytes", 1_000_000_000),
    ("max_outgoing_unix_fds", 250_000_000),
    ("max_message_size", 1_000_000_000),
    ("auth_timeout", 240_000),
    ("pending_fd_timeout", 150_000),
    ("max_completed_connections", 100_000),
    ("max_incomplete_connections", 10_000),
    ("max_connections_per_user", 100_000),
    ("max_names_per_connection", 50_000),
    ("max_match_rules_per_connection", 50_000),
    ("max_replies_per_connection", 50_000),
];

/// Runs as the process that becomes dbus-broker-launch. $1: the directory for /run/systemd, $2: the configuration.
const BROKER_SCRIPT: &str = r#"
exec 3<&0 </dev/null
[ -d /run/systemd ] || { mount -t tmpfs run /run; mkdir /run/systemd; }
mount --bind "$1" /run/systemd
export LISTEN_FDS=1 LISTEN_PID=$$
exec dbus-broker-launch --scope user --config-file "$2"
"#;

impl Bus {
    /// A dbus-daemon that allows everything.
    pub fn dbus_daemon() -> Result<Bus, Unavailable> {
        Bus::start(Kind::DbusDaemon)
    }

    /// A dbus-broker that allows everything.
    pub fn dbus_broker() -> Result<Bus, Unavailable> {
        Bus::start(Kind::DbusBroker)
    }

    /// A bus of this kind that allows everything.
    pub fn start(kind: Kind) -> Result<Bus, Unavailable> {
        Bus::with_policy(kind, ALLOW_ALL)
    }

    /// A bus with `<policy>` and `<limit>` elements of the test's own instead of those that allow everything.
    pub fn with_policy(kind: Kind, policy: &str) -> Result<Bus, Unavailable> {
        need_tool(&kind.to_string())?;
        let place = Place::new("session", &format!("\n  <keep_umask/>{policy}\n{}", limits(policy)));
        let process = match kind {
            Kind::DbusDaemon => start_daemon(Command::new(DAEMON), &place)?,
            Kind::DbusBroker => start_in_a_namespace(&place)?,
        };
        Ok(Bus { process: BusProcess { kind, process }, place })
    }

    /// Which bus this is.
    pub fn kind(&self) -> Kind {
        self.process.kind
    }

    /// Its address, such as `unix:path=/tmp/ipc-x/bus`.
    pub fn address(&self) -> &str {
        &self.place.address
    }

    /// The process of the bus (of the launcher, for dbus-broker).
    pub fn pid(&self) -> i32 {
        self.process.process.pid()
    }
}

impl Address for Bus {
    fn address(&self) -> &str {
        &self.place.address
    }
}

/// What a test's own policy does not say.
fn limits(policy: &str) -> String {
    LIMITS
        .iter()
        .filter(|(name, _)| !policy.contains(&format!("\"{name}\"")))
        .map(|(name, value)| format!("  <limit name=\"{name}\">{value}</limit>\n"))
        .collect()
}

fn start_in_a_namespace(place: &Place) -> Result<Process, Unavailable> {
    need_tool("unshare")?;
    // A user namespace for who may not mount without: in a container root may lack that right too.
    const IN_A_USER_NAMESPACE: &[&str] = &["--user", "--map-current-user", "--keep-caps"];
    let start = |namespace: &[&str]| {
        let run = place.config.with_file_name(unique("run"));
        fs::create_dir_all(run.join("journal")).expect("a directory in an own directory");
        let mut command = Command::new("unshare");
        command.args(namespace).args(["--mount", "--propagation", "private"]);
        command.args(["sh", "-ec", BROKER_SCRIPT, "dbus-broker"]).arg(&run).arg(&place.config);
        command.env("DBUS_SESSION_BUS_ADDRESS", &place.address);
        start_broker(command, &run, place)
    };
    if rustix::process::geteuid().is_root()
        && let Ok(process) = start(&[])
    {
        return Ok(process);
    }
    start(IN_A_USER_NAMESPACE)
}

/// Where a bus has its configuration and its socket.
pub(crate) struct Place {
    pub address: String,
    pub config: PathBuf,
    pub socket: PathBuf,
    _dir: TempDir,
}

impl Place {
    /// For a bus of this type with these elements in its configuration.
    pub(crate) fn new(kind: &str, elements: &str) -> Place {
        let dir = temp_dir();
        let (config, socket) = (dir.path().join("bus.conf"), dir.path().join("bus"));
        let address = format!("unix:path={}", socket.display());
        let configuration = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>{kind}</type>
  <auth>EXTERNAL</auth>
  <listen>{address}</listen>{elements}
</busconfig>
"#
        );
        fs::write(&config, configuration).expect("writing into an own directory");
        Place { address, config, socket, _dir: dir }
    }
}

/// The process of a bus, ended on drop.
pub(crate) struct BusProcess {
    pub kind: Kind,
    pub process: Process,
}

impl Drop for BusProcess {
    /// The launcher outlives its broker by the moment it takes to reap it, so the broker goes first: the other way
    /// round it would be left to a process 1 that in a container may never reap it.
    fn drop(&mut self) {
        if self.kind == Kind::DbusBroker && end_children(self.process.pid()) {
            self.process.wait_within(patience());
        }
        self.process.kill();
    }
}

pub(crate) const DAEMON: &str = "dbus-daemon";

/// `daemon` runs it; here it gets its arguments.
pub(crate) fn start_daemon(mut daemon: Command, place: &Place) -> Result<Process, Unavailable> {
    daemon.args(["--nofork", "--nopidfile", "--nosyslog", "--print-address=1"]);
    let process = Process::spawn(daemon.arg("--config-file").arg(&place.config));
    // It prints its address once it listens.
    match process.stdout().wait_for(|line| line.starts_with("unix:")) {
        Ok(_) => Ok(process),
        Err(_) => Err(failed(DAEMON, process)),
    }
}

/// `launcher` becomes dbus-broker-launch, with `run` as /run/systemd. The listening socket comes as its standard input,
/// for that is where a descriptor can be put without unsafe code.
pub(crate) fn start_broker(mut launcher: Command, run: &Path, place: &Place) -> Result<Process, Unavailable> {
    need_tool("dbus-broker-launch")?;
    let journal = UnixDatagram::bind(run.join("journal/socket")).expect("a socket in an own directory");
    // Of an attempt before; nothing is there usually.
    let _none = fs::remove_file(&place.socket);
    let listener = UnixListener::bind(&place.socket).expect("a socket in an own directory");
    fs::set_permissions(&place.socket, fs::Permissions::from_mode(0o666)).expect("the mode of an own socket");
    launcher.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = Process::spawn_prepared(&mut launcher);
    // The command keeps the listening socket open: without it, the end of the launcher ends every wait for it.
    drop(launcher);
    collect_datagrams(journal, process.pidfd(), Lines::default());
    match answers(&place.socket) {
        Ok(()) => Ok(process),
        Err(_) => Err(failed("dbus-broker", process)),
    }
}

/// Whether a bus answers behind this socket: the socket listens before the bus runs, so a connection says nothing,
/// but the answer to the first line of the authentication does.
fn answers(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience()))?;
    let uid = rustix::process::geteuid().as_raw().to_string();
    let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer)?;
    if &answer == b"OK" { Ok(()) } else { Err(std::io::ErrorKind::PermissionDenied.into()) }
}

fn failed(name: &str, mut process: Process) -> Unavailable {
    process.kill();
    process.stderr().wait_end();
    Unavailable(format!("{name} does not start here: {}", process.stderr().text().trim()))
}

/// SIGTERM to the children of this process; whether there was one to be signalled.
fn end_children(pid: i32) -> bool {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    // Not reaped before the parent is ended, so these are still the same processes.
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    let children = children.filter_map(rustix::process::Pid::from_raw);
    children.filter(|&child| rustix::process::kill_process(child, Signal::TERM).is_ok()).count() > 0
}
