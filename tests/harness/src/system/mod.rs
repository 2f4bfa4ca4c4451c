//! A private system bus: of type system, with the stock rules, the service's shipped policy, and real users.
//!
//! The bus, the service and every client run in a mount namespace of their own, see [`namespace`](self::User); the
//! test itself stays outside and uses sockets that programs of the users connected for it. So a zbus client in the
//! test is alice to the bus, by the kernel's word.

mod connector;
mod namespace;

use std::collections::HashMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;
use zbus::Connection;
use zbus::connection::Builder;

use self::connector::Connector;
use self::namespace::Namespace;
pub use self::namespace::{ALICE, BOB, CAROL, EXTRA, IPCD, Identity, NOBODY, ROOT, SHARED, User};
use crate::bus::{BusProcess, DAEMON, Kind, Place, start_broker, start_daemon};
use crate::process::Process;
use crate::service::Launch;
use crate::tools::{Unavailable, need_tool, patience, temp_dir};
use crate::{Address, watchdog};

/// A running private system bus. Ended on drop, with the namespace and everybody's programs.
pub struct SystemBus {
    connectors: Mutex<HashMap<Identity, Connector>>,
    process: BusProcess,
    namespace: Namespace,
    place: Place,
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
        let place = Place::new("system", &format!("{STOCK}{elements}"));
        let process = start(kind, &namespace, &place)?;
        let process = BusProcess { kind, process };
        Ok(SystemBus { connectors: Mutex::default(), process, namespace, place })
    }

    /// Which bus this is.
    pub fn kind(&self) -> Kind {
        self.process.kind
    }

    /// The process of the bus (of the launcher, for dbus-broker).
    pub fn pid(&self) -> i32 {
        self.process.process.pid()
    }

    /// The path of its socket.
    pub fn socket(&self) -> &str {
        self.place.socket.to_str().expect("the path of a temporary directory is text")
    }

    /// What is `/run/systemd` for everybody on this bus.
    pub fn run_systemd(&self) -> PathBuf {
        self.namespace.run_systemd()
    }

    /// Ends the bus as a crash does, and starts it anew at the same address.
    pub fn restart(&mut self) {
        assert_eq!(self.kind(), Kind::DbusDaemon, "dbus-broker listens through its launcher");
        self.process.process.kill();
        let _left = fs::remove_file(&self.place.socket);
        let again = start(Kind::DbusDaemon, &self.namespace, &self.place);
        self.process.process = again.unwrap_or_else(|why| panic!("{why}"));
    }

    /// A program run as this user, who finds the bus as the system bus.
    pub fn command_as(&self, identity: &Identity, program: impl AsRef<Path>) -> Command {
        let mut command = self.namespace.command_as(identity, program);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.place.address);
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
        built.unwrap_or_else(|error| panic!("{identity:?} on {}: {error}", self.place.address))
    }

    /// How the service is started on it: `ipcd --bus system`, as root, in the same namespace.
    pub fn launch(&self) -> Launch {
        self.launch_at(&self.place.address)
    }

    /// The same where the service takes another address for that of the system bus.
    pub fn launch_at(&self, address: &str) -> Launch {
        Launch::system(address, self.namespace.prefix())
    }

    /// How this user runs a service of his own, on a private bus, in the same namespace.
    pub fn launch_private_as(&self, identity: &Identity) -> Launch {
        Launch::private_by(self.namespace.words_as(identity))
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
        &self.place.address
    }
}

/// The policy that the package installs.
fn shipped_policy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dbus-policy/org.example.IPC.conf")
}

/// The limits are those that the buses have built in.
fn start(kind: Kind, namespace: &Namespace, place: &Place) -> Result<Process, Unavailable> {
    match kind {
        Kind::DbusDaemon => start_daemon(namespace.command_as(&ROOT.into(), DAEMON), place),
        Kind::DbusBroker => {
            let mut command = namespace.command_as(&ROOT.into(), "/bin/sh");
            command.args(["-ec", BROKER_SCRIPT, "dbus-broker"]).arg(&place.config);
            command.env("DBUS_SYSTEM_BUS_ADDRESS", &place.address);
            start_broker(command, &namespace.run_systemd(), place)
        }
    }
}
