//! A private system bus: of type system, with the stock rules, the service's shipped policy, and real users.
//!
//! The bus, the service and every client run in a mount namespace of their own, see [`namespace`](self::User); the
//! test itself stays outside and uses sockets that programs of the users connected for it. So a zbus client in the
//! test is alice to the bus, by the kernel's word.

mod connector;
mod namespace;

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;
use zbus::Connection;
use zbus::connection::Builder;

use self::connector::Connector;
use self::namespace::Namespace;
pub use self::namespace::{ALICE, BOB, CAROL, EXTRA, IPCD, Identity, NOBODY, ROOT, SHARED, User};
use crate::bus::{Kind, answers, end_children, failed};
use crate::lines::Lines;
use crate::process::Process;
use crate::service::{Launch, collect_datagrams};
use crate::tools::{Unavailable, need_tool, patience, temp_dir};
use crate::{Address, watchdog};

/// A running private system bus. Ended on drop, with the namespace and everybody's programs.
pub struct SystemBus {
    kind: Kind,
    address: String,
    connectors: Mutex<HashMap<Identity, Connector>>,
    process: Process,
    namespace: Namespace,
    _dir: TempDir,
}

/// What the stock system.conf allows: nobody owns a name, nobody sends a call, but to the bus itself.
const STOCK: &str = r#"
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"
          send_member="UpdateActivationEnvironment"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>"#;

/// As the harness's other dbus-broker is started, see there. $1: the configuration.
const BROKER_SCRIPT: &str = r#"
exec 3<&0 </dev/null
export LISTEN_FDS=1 LISTEN_PID=$$
exec dbus-broker-launch --scope system --config-file "$1"
"#;

impl SystemBus {
    /// A dbus-daemon with the policy that the service ships.
    pub fn dbus_daemon() -> Result<SystemBus, Unavailable> {
        SystemBus::start(Kind::DbusDaemon)
    }

    /// A dbus-broker with the policy that the service ships.
    pub fn dbus_broker() -> Result<SystemBus, Unavailable> {
        SystemBus::start(Kind::DbusBroker)
    }

    /// A bus of this kind with the policy that the service ships.
    pub fn start(kind: Kind) -> Result<SystemBus, Unavailable> {
        SystemBus::with_more(kind, "")
    }

    /// The same with elements of the test's own behind the policy that the service ships.
    pub fn with_more(kind: Kind, elements: &str) -> Result<SystemBus, Unavailable> {
        let shipped = shipped_policy();
        assert!(shipped.is_file(), "{} is missing", shipped.display());
        SystemBus::with_elements(kind, &format!("\n  <include>{}</include>{elements}", shipped.display()))
    }

    /// A bus with elements of the test's own behind the stock ones: a policy, limits.
    pub fn with_elements(kind: Kind, elements: &str) -> Result<SystemBus, Unavailable> {
        need_tool(&kind.to_string())?;
        let namespace = Namespace::new()?;
        let dir = temp_dir();
        let (config, socket) = (dir.path().join("system.conf"), dir.path().join("bus"));
        fs::write(&config, configuration(&socket, elements)).expect("writing into an own directory");
        let address = format!("unix:path={}", socket.display());
        let process = match kind {
            Kind::DbusDaemon => start_daemon(&namespace, &config)?,
            Kind::DbusBroker => start_broker(&namespace, &config, &socket, &address)?,
        };
        Ok(SystemBus { kind, address, connectors: Mutex::default(), process, namespace, _dir: dir })
    }

    /// Which bus this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The process of the bus (of the launcher, for dbus-broker).
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The path of its socket.
    pub fn socket(&self) -> &str {
        self.address.strip_prefix("unix:path=").expect("the address was made of a path")
    }

    /// What is `/run/systemd` for everybody on this bus.
    pub fn run_systemd(&self) -> PathBuf {
        self.namespace.run_systemd()
    }

    /// Ends the bus as a crash does, and starts it anew at the same address.
    pub fn restart(&mut self) {
        assert_eq!(self.kind, Kind::DbusDaemon, "dbus-broker listens through its launcher");
        self.process.kill();
        let config = Path::new(self.socket()).with_file_name("system.conf");
        let _left = fs::remove_file(self.socket());
        self.process = start_daemon(&self.namespace, &config).unwrap_or_else(|why| panic!("{why}"));
    }

    /// A program run as this user, who finds the bus as the system bus.
    pub fn command_as(&self, identity: &Identity, program: impl AsRef<Path>) -> Command {
        let mut command = self.namespace.command_as(identity, program);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        command
    }

    /// `python3 -c SCRIPT ARGUMENTS` as this user.
    pub fn python_as(&self, identity: &Identity, script: &str, arguments: &[&str]) -> Process {
        let mut command = self.command_as(identity, "/usr/bin/python3");
        Process::spawn_group(command.args(["-u", "-c", script]).args(arguments))
    }

    /// `sh -ec SCRIPT` as this user.
    pub fn sh_as(&self, identity: &Identity, script: &str) -> Process {
        Process::spawn_group(self.command_as(identity, "/bin/sh").args(["-ec", script]))
    }

    /// A socket that this user connected to the bus; nothing is said on it yet.
    pub fn socket_of(&self, identity: &Identity) -> UnixStream {
        let path = self.socket().to_owned();
        self.with_connector(identity, |connector| connector.connect(&path))
            .unwrap_or_else(|error| panic!("{identity:?} cannot connect to {path}: {error}"))
    }

    /// The process by which this user connects.
    pub fn connector_pid(&self, identity: &Identity) -> i32 {
        self.with_connector(identity, |connector| connector.pid())
    }

    fn with_connector<T>(&self, identity: &Identity, ask: impl FnOnce(&mut Connector) -> T) -> T {
        let mut connectors = self.connectors.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || Connector::start(self.command_as(identity, "/usr/bin/python3"));
        ask(connectors.entry(identity.clone()).or_insert_with(start))
    }

    /// A zbus connection of this user.
    pub async fn connect_as(&self, identity: &Identity) -> Connection {
        let socket = self.socket_of(identity);
        let built = Builder::unix_stream(socket).user_id(identity.uid).build();
        let built = watchdog(patience(), built).await;
        built.unwrap_or_else(|error| panic!("{identity:?} on {}: {error}", self.address))
    }

    /// How the service is started on it: `ipcd --bus system`, as root, in the same namespace.
    pub fn launch(&self) -> Launch {
        self.launch_at(&self.address)
    }

    /// The same where the service takes another address for that of the system bus.
    pub fn launch_at(&self, address: &str) -> Launch {
        Launch::system(address, self.namespace.prefix())
    }

    /// A directory of this user's own (mode 0755), removed on drop.
    pub fn dir_of(&self, user: User) -> TempDir {
        let dir = temp_dir();
        std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid)).expect("root may");
        dir
    }
}

impl Address for SystemBus {
    fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for SystemBus {
    /// As [`Bus`](crate::Bus): the broker before its launcher.
    fn drop(&mut self) {
        if self.kind == Kind::DbusBroker && end_children(self.process.pid()) {
            self.process.wait_within(patience());
        }
        self.process.kill();
    }
}

/// The policy that the package installs.
fn shipped_policy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dbus-policy/org.example.IPC.conf")
}

/// The limits are those that the buses have built in.
fn configuration(socket: &Path, elements: &str) -> String {
    let socket = socket.display();
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path={socket}</listen>{STOCK}{elements}
</busconfig>
"#
    )
}

fn start_daemon(namespace: &Namespace, config: &Path) -> Result<Process, Unavailable> {
    let mut command = namespace.command_as(&ROOT.into(), "dbus-daemon");
    command.args(["--nofork", "--nopidfile", "--nosyslog", "--print-address=1"]);
    let process = Process::spawn(command.arg("--config-file").arg(config));
    match process.stdout().wait_for(|line| line.starts_with("unix:")) {
        Ok(_) => Ok(process),
        Err(_) => Err(failed("dbus-daemon", process)),
    }
}

fn start_broker(
    namespace: &Namespace,
    config: &Path,
    socket: &Path,
    address: &str,
) -> Result<Process, Unavailable> {
    need_tool("dbus-broker-launch")?;
    let journal = namespace.run_systemd().join("journal/socket");
    let journal = UnixDatagram::bind(journal).expect("a socket in an own directory");
    let listener = UnixListener::bind(socket).expect("a socket in an own directory");
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).expect("the mode of an own socket");
    let mut command = namespace.command_as(&ROOT.into(), "/bin/sh");
    command.args(["-ec", BROKER_SCRIPT, "dbus-broker"]).arg(config).env("DBUS_SYSTEM_BUS_ADDRESS", address);
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = Process::spawn_prepared(&mut command);
    // The command keeps the listening socket open: without it, the end of the launcher ends every wait for it.
    drop(command);
    collect_datagrams(journal, process.pidfd(), Lines::default());
    match answers(socket) {
        Ok(()) => Ok(process),
        Err(_) => Err(failed("dbus-broker", process)),
    }
}
