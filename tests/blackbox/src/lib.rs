//! The stage of the black-box suites: the service reached in each way that clients have.
//!
//! A suite is a set of functions `async fn it_does_this(stage: Stage)`; [`everywhere!`] makes tests of them on
//! dbus-daemon, on dbus-broker, on the service's own private bus and over a private connection from `Connect()`.
//! Nothing here knows the inside of the service: it is called as the XML under `interfaces/` says.

mod client;
mod inbox;

pub use client::{Client, Options, assert_error, error, options};
pub use inbox::{Inbox, is_signal, path_of};

use ipc_harness::{Address, Bus, Launch, Service, Unavailable, connect, peer};

/// How the clients of a stage reach the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    DbusDaemon,
    DbusBroker,
    /// The message bus that the service brings itself.
    Private,
    /// A private connection, with no bus in between.
    Peer,
}

/// A running service, and the way to it. Field order is drop order: the service leaves before its bus does.
pub struct Stage {
    pub way: Way,
    pub service: Service,
    pub bus: Option<Bus>,
}

impl Stage {
    /// A service with the default configuration.
    pub fn new(way: Way) -> Result<Stage, Unavailable> {
        Stage::with_config(way, "")
    }

    /// A service with this configuration file.
    pub fn with_config(way: Way, toml: &str) -> Result<Stage, Unavailable> {
        let bus = match way {
            Way::DbusDaemon | Way::Peer => Some(Bus::dbus_daemon()?),
            Way::DbusBroker => Some(Bus::dbus_broker()?),
            Way::Private => None,
        };
        let launch = bus.as_ref().map_or_else(Launch::private, Launch::on);
        Ok(Stage { way, service: launch.config(toml).start(), bus })
    }

    /// A client of its own: a new connection of the stage's kind.
    pub async fn client(&self) -> Client {
        let on_bus = connect(&self.service).await;
        match self.way {
            Way::Peer => Client::of_peer(peer(&on_bus).await),
            _ => Client::of_bus(on_bus),
        }
    }
}

impl Address for Stage {
    fn address(&self) -> &str {
        self.service.address()
    }
}

/// One test for each [`Way`] of functions `async fn a(stage: Stage)`; `config = TEXT;` in front of them is the
/// service's configuration file.
#[macro_export]
macro_rules! everywhere {
    (config = $config:expr; $($test:ident),+ $(,)?) => {
        $crate::everywhere!(@ dbus_daemon, DbusDaemon, $config, $($test),+);
        $crate::everywhere!(@ dbus_broker, DbusBroker, $config, $($test),+);
        $crate::everywhere!(@ private_bus, Private, $config, $($test),+);
        $crate::everywhere!(@ peer_to_peer, Peer, $config, $($test),+);
    };
    (@ $module:ident, $way:ident, $config:expr, $($test:ident),+) => {
        mod $module { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let stage = $crate::Stage::with_config($crate::Way::$way, $config);
                super::$test(ipc_harness::or_skip!(stage)).await
            }
        )+ }
    };
    ($($test:ident),+ $(,)?) => {
        $crate::everywhere!(config = ""; $($test),+);
    };
}
