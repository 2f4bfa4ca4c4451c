//! The command line; the manual page is made of it, too.

use std::str::FromStr;

use clap::Parser;

/// Shows network interfaces, events of the kernel, endpoints and relays of org.example.IPC in the panel.
#[derive(Debug, Parser)]
#[command(version, about, long_about = LONG)]
pub struct Arguments {
    /// The bus of the service: system, session, or a D-Bus address. Without it: the system bus if the
    /// service is there or can be started there, else the session bus.
    #[arg(long, value_name = "system|session|ADDRESS")]
    pub bus: Option<Choice>,

    /// Tells nothing outside the menu.
    #[arg(long)]
    pub no_notifications: bool,
}

const LONG: &str = "\
Shows network interfaces, events of the kernel, endpoints and relays of org.example.IPC in the panel.

It needs a panel that shows StatusNotifierItems (KDE Plasma, Xfce, LXQt, Cinnamon, waybar, GNOME with the \
extension AppIndicator), and waits for one. Notifications go to org.freedesktop.Notifications.";

/// The option `--bus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    System,
    Session,
    Address(String),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "system" => Ok(Self::System),
            "session" => Ok(Self::Session),
            address if address.contains(':') => Ok(Self::Address(address.to_owned())),
            _ => Err("expected system, session or a D-Bus address such as unix:path=/run/bus".to_owned()),
        }
    }
}
