//! The stage of the black-box suites: the service reached in each way that clients have.
//!
//! A suite is a set of functions `async fn it_does_this(stage: Stage)`; [`everywhere!`] makes tests of them on
//! dbus-daemon, on dbus-broker, on the service's own private bus, over a private connection from `Connect()`, and on
//! a system bus, where the clients are those of alice, an ordinary user.
//! Nothing here knows the inside of the service: it is called as the XML under `interfaces/` says.

mod client;
mod inbox;
mod isolation;
mod mount;

pub use client::{Client, Options, assert_error, error, integer, options};
pub use inbox::{Inbox, is_signal, path_of};
pub use isolation::isolated;
pub use mount::{Mount, can_mount, can_mount_on, mounted, mountinfo};

use ipc_harness::system::{ALICE, SystemBus};
use ipc_harness::{Address, Bus, Launch, Process, Service, TempDir, Unavailable, connect, peer};

/// How the clients of a stage reach the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    DbusDaemon,
    DbusBroker,
    /// The message bus that the service brings itself.
    Private,
    /// A private connection, with no bus in between.
    Peer,
    /// A system bus with the shipped policy; clients and what the suites run are alice's.
    System,
}

/// A running service, and the way to it. Field order is drop order: the service leaves before its bus does.
pub struct Stage {
    pub way: Way,
    pub service: Service,
    pub bus: Option<Bus>,
    pub system: Option<SystemBus>,
}

impl Stage {
    /// A service with the default configuration.
    pub fn new(way: Way) -> Result<Stage, Unavailable> {
        Stage::with_config(way, "")
    }

    /// A service with this configuration file.
    pub fn with_config(way: Way, toml: &str) -> Result<Stage, Unavailable> {
        Stage::launched(way, |launch| Ok(launch.config(toml)))
    }

    /// The same in a network namespace of its own.
    pub fn in_own_network(way: Way, toml: &str) -> Result<Stage, Unavailable> {
        Stage::launched(way, |launch| launch.config(toml).in_own_network())
    }

    fn launched(
        way: Way,
        prepare: impl FnOnce(Launch) -> Result<Launch, Unavailable>,
    ) -> Result<Stage, Unavailable> {
        let system = if way == Way::System { Some(SystemBus::dbus_daemon()?) } else { None };
        let bus = match way {
            Way::DbusDaemon | Way::Peer => Some(Bus::dbus_daemon()?),
            Way::DbusBroker => Some(Bus::dbus_broker()?),
            Way::Private | Way::System => None,
        };
        let launch = match (&bus, &system) {
            (Some(bus), _) => Launch::on(bus),
            (_, Some(system)) => system.launch(),
            _ => Launch::private(),
        };
        Ok(Stage { way, service: prepare(launch)?.start(), bus, system })
    }

    /// A client of its own: a new connection of the stage's kind.
    pub async fn client(&self) -> Client {
        if let Some(system) = &self.system {
            return Client::of_system_bus(system.connect_as(&ALICE.into()).await);
        }
        let on_bus = connect(&self.service).await;
        match self.way {
            Way::Peer => Client::of_peer(peer(&on_bus).await),
            _ => Client::of_bus(on_bus),
        }
    }

    /// A directory in which the clients may do what they like.
    pub fn temp_dir(&self) -> TempDir {
        match &self.system {
            Some(system) => system.dir_of(ALICE),
            None => ipc_harness::temp_dir(),
        }
    }

    /// `python3 -c SCRIPT ARGUMENTS`, run by the user whose the clients are.
    pub fn python(&self, script: &str, arguments: &[&str]) -> Process {
        match &self.system {
            Some(system) => system.python_as(&ALICE.into(), script, arguments),
            None => ipc_harness::python(script, arguments),
        }
    }

    /// `sh -ec SCRIPT`, run by the user whose the clients are.
    pub fn sh(&self, script: &str) -> Process {
        match &self.system {
            Some(system) => system.sh_as(&ALICE.into(), script),
            None => ipc_harness::sh(script),
        }
    }

    /// `socat ARGUMENTS`, run by the user whose the clients are.
    pub fn socat(&self, arguments: &[&str]) -> Process {
        match &self.system {
            Some(system) => Process::spawn_group(system.command_as(&ALICE.into(), "socat").args(arguments)),
            None => ipc_harness::socat(arguments),
        }
    }
}

impl Address for Stage {
    fn address(&self) -> &str {
        self.service.address()
    }
}

/// One test for each [`Way`] of functions `async fn a(stage: Stage)`; in front of them may be `config = TEXT;`, the
/// service's configuration file, `in_own_network;`, for the service alone, or `isolated;`, for the test, too
/// ([`isolated`]).
#[macro_export]
macro_rules! everywhere {
    (isolated; $($test:ident),+ $(,)?) => {
        $crate::everywhere!(# dbus_daemon, DbusDaemon, $($test),+);
        $crate::everywhere!(# dbus_broker, DbusBroker, $($test),+);
        $crate::everywhere!(# private_bus, Private, $($test),+);
        $crate::everywhere!(# peer_to_peer, Peer, $($test),+);
        $crate::everywhere!(# system_bus, System, $($test),+);
    };
    (# $module:ident, $way:ident, $($test:ident),+) => {
        mod $module { $(
            #[test]
            fn $test() {
                $crate::isolated($crate::Way::$way, "", super::$test);
            }
        )+ }
    };
    (config = $config:expr; $($test:ident),+ $(,)?) => {
        $crate::everywhere!(@ with_config, $config, $($test),+);
    };
    (in_own_network; $($test:ident),+ $(,)?) => {
        $crate::everywhere!(@ in_own_network, "", $($test),+);
    };
    (@ $make:ident, $config:expr, $($test:ident),+) => {
        $crate::everywhere!(@ dbus_daemon, DbusDaemon, $make, $config, $($test),+);
        $crate::everywhere!(@ dbus_broker, DbusBroker, $make, $config, $($test),+);
        $crate::everywhere!(@ private_bus, Private, $make, $config, $($test),+);
        $crate::everywhere!(@ peer_to_peer, Peer, $make, $config, $($test),+);
        $crate::everywhere!(@ system_bus, System, $make, $config, $($test),+);
    };
    (@ $module:ident, $way:ident, $make:ident, $config:expr, $($test:ident),+) => {
        mod $module { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let stage = $crate::Stage::$make($crate::Way::$way, $config);
                super::$test(ipc_harness::or_skip!(stage)).await
            }
        )+ }
    };
    ($($test:ident),+ $(,)?) => {
        $crate::everywhere!(config = ""; $($test),+);
    };
}
