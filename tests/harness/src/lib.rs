//! What the black-box suites and benchmarks stand on.
//!
//! A test starts a private message bus, starts the service on it and talks to it with the programs that users
//! have (`busctl`, `gdbus`, `socat`, Python) or with zbus:
//!
//! ```no_run
//! use ipc_harness::{Bus, Service, or_skip};
//!
//! fn a_pipe_can_be_made() {
//!     let bus = or_skip!(Bus::dbus_broker()); // a machine without it: a skip that is printed and counted
//!     let _service = Service::on(&bus);
//!     let made = ipc_harness::busctl(&bus).manager("Create", "sa{sv}", &["pipe:", "0"]);
//!     let path = ipc_harness::object_path(&made.expect("Create failed"));
//!     assert!(path.starts_with("/org/example/IPC/pipe/"));
//! }
//! ```
//!
//! Four rules hold for everything here:
//!
//! - **It ends.** Every wait is bounded by [`patience`]; every process, socket and directory goes with the value
//!   that stands for it. Processes are signalled through pidfds, so never the wrong one.
//! - **No sleeping.** A wait is for an event: a line of output, an `sd_notify` message, the end of a process.
//! - **What the machine lacks is visible.** Constructors that need something optional return [`Unavailable`] with
//!   the reason; [`or_skip!`] turns it into a skip that is printed and written down, see [`report`].
//! - **What is broken panics**, with what the process printed: a harness has no caller that could do better.

#![forbid(unsafe_code)]

mod bus;
mod cli;
mod client;
mod lines;
mod monitor;
mod process;
pub mod report;
mod service;
pub mod system;
mod tools;
pub mod xml;

pub use bus::{Bus, Kind};
pub use cli::{Busctl, CallError, Gdbus, busctl, gdbus, object_path};
pub use client::{connect, peer, peer_as, watchdog};
pub use lines::{Lines, Missing};
pub use monitor::{Monitor, busctl_monitor, gdbus_monitor};
pub use process::{Finished, Process, wait_gone};
pub use rustix::process::Signal;
pub use service::{FailedStart, Launch, Service};
pub use system::SystemBus;
pub use tempfile::TempDir;
pub use tools::{Unavailable, has_tool, need_tool, patience, python, sh, socat, temp_dir, unique};

/// The well-known name of the service.
pub const NAME: &str = "org.example.IPC";
/// The object path of the manager.
pub const PATH: &str = "/org/example/IPC";

/// Anything that has a D-Bus address: a [`Bus`], a [`Service`], or the address itself.
pub trait Address {
    /// The D-Bus address, such as `unix:path=/tmp/x/bus`.
    fn address(&self) -> &str;
}

impl Address for str {
    fn address(&self) -> &str {
        self
    }
}

impl Address for String {
    fn address(&self) -> &str {
        self
    }
}

impl Address for Busctl {
    fn address(&self) -> &str {
        self.bus()
    }
}

impl Address for Gdbus {
    fn address(&self) -> &str {
        self.bus()
    }
}
