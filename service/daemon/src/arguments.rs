//! The command line.

use std::{env, ffi::OsString, path::PathBuf, str::FromStr};

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

/// Serves every IPC mechanism of the Linux kernel over D-Bus, as org.example.IPC.
#[derive(Debug, Parser)]
#[command(version, about, long_about = LONG)]
pub struct Arguments {
    /// Where to serve: session, system (as root: every caller gets a process of his own), private
    /// (an own bus, made for the occasion), or a D-Bus address. Without it: the session bus if there
    /// is one, else a private bus.
    #[arg(long, value_name = "session|system|private|ADDRESS")]
    pub bus: Option<BusChoice>,

    /// The configuration file (TOML). Without it: ipcd.toml in $XDG_CONFIG_HOME (~/.config), else
    /// /etc/ipcd.toml, else the defaults. On the system bus: /etc/ipcd.toml, else the defaults.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Checks the configuration and ends.
    #[arg(long)]
    pub check_config: bool,

    /// The directory of declared endpoints and relays (*.toml). Without it: ipcd/relays.d in
    /// $XDG_CONFIG_HOME (~/.config) and in /etc, on the session bus or where no bus was chosen. Not on the
    /// system bus.
    #[arg(long, value_name = "DIRECTORY")]
    pub relays: Option<PathBuf>,

    /// Checks the declared endpoints and relays, tells every error with its file and line, and ends.
    #[arg(long)]
    pub check_relays: bool,

    /// Prints the introspection data of an interface, or the names of all interfaces, and ends.
    /// Needs no bus.
    #[arg(long, value_name = "INTERFACE", num_args = 0..=1, default_missing_value = "")]
    pub introspect: Option<String>,

    /// What is logged: error, warn, info, debug, trace or off. To the journal under systemd, else to
    /// standard error.
    #[arg(long, value_name = "LEVEL", default_value = "info", global = true)]
    pub log_level: LevelFilter,

    /// The user as whom the front of the system bus runs.
    #[arg(long, value_name = "NAME", default_value = "ipcd", global = true, hide = true)]
    pub front_user: String,

    /// Environment variables that this program gave itself when it emptied its environment.
    #[arg(long, value_name = "NAME=VALUE", global = true, hide = true)]
    pub carried: Vec<OsString>,

    /// A worker that makes a system call which the sandbox does not allow ends, and names it, instead
    /// of getting EPERM: for tests of what is allowed.
    #[arg(long, global = true, hide = true)]
    pub sandbox_kills: bool,

    #[command(subcommand)]
    pub unit: Option<Unit>,
}

/// What a systemd unit starts; `--bus system` is both in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Unit {
    /// Starts workers for the front (ipcd-spawner.service).
    #[command(hide = true)]
    Spawner,
    /// Serves the system bus through workers (ipcd.service).
    #[command(hide = true)]
    Front,
}

const LONG: &str = "\
Serves every IPC mechanism of the Linux kernel over D-Bus, as org.example.IPC: any program that can
speak D-Bus creates, attaches to and relays between pipes, FIFOs, sockets, shared memory, semaphores
and watches.

Ends on SIGTERM or SIGINT: waits are cancelled, relays stop, endpoints close. Reads declared endpoints and
relays again on SIGHUP, but on the system bus. Tells systemd (sd_notify) when it is ready.";

/// Where to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusChoice {
    Session,
    System,
    Private,
    Address(String),
}

impl FromStr for BusChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "session" => Ok(Self::Session),
            "private" => Ok(Self::Private),
            "system" => Ok(Self::System),
            address if address.contains(':') => Ok(Self::Address(address.to_owned())),
            _ => {
                Err("it must be session, system, private, or a D-Bus address such as unix:path=/run/user/1000/bus"
                    .into())
            }
        }
    }
}

/// The session bus if there is one: where its address is known, or where systemd puts its socket.
pub fn default_bus() -> BusChoice {
    let by_address = env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some_and(|address| !address.is_empty());
    let by_socket = env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| PathBuf::from(dir).join("bus").exists());
    if by_address || by_socket { BusChoice::Session } else { BusChoice::Private }
}
