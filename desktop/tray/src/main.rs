//! `ipc-tray`: what the kernel tells, and what the caller's endpoints and relays do, in the panel.
//!
//! A StatusNotifierItem (crate ksni) for every panel that has a tray. Nothing is polled: [`watcher`] keeps
//! [`state::State`] true by signals, [`menu`] shows it, and what the user chooses comes back as a
//! [`commands::Command`]. What matters outside the menu is told by [`notifier`].

#![forbid(unsafe_code)]

mod arguments;
mod bus;
mod commands;
mod menu;
mod notifier;
mod signals;
mod state;
mod watcher;

use anyhow::{Context, Result};
use clap::Parser;
use ksni::TrayMethods;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::{arguments::Arguments, menu::Tray, notifier::Notifier};

/// As many choices of the user may wait; a menu gives one at a time.
const COMMANDS: usize = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (commands, wanted) = mpsc::channel(COMMANDS);
    let notifier = Notifier::new(!arguments.no_notifications);
    // Panels start later than their applets, and start again.
    let tray = Tray::new(commands, notifier.enabled())
        .assume_sni_available(true)
        .spawn()
        .await
        .context("cannot show an item in the tray; is there a session bus (DBUS_SESSION_BUS_ADDRESS)?")?;
    let mut terminated = signal(SignalKind::terminate()).context("SIGTERM")?;
    tokio::select! {
        ended = watcher::run(arguments.bus, &tray, notifier, wanted) => ended,
        _ = terminated.recv() => Ok(()),
        done = tokio::signal::ctrl_c() => done.context("SIGINT"),
    }?;
    tray.shutdown().await;
    Ok(())
}
