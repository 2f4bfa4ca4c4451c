//! Keeps the tray true: a snapshot when the service appears, then its signals, until it has gone.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, stream::BoxStream};
use ipc_proxy::{ManagerProxy, NetlinkProxy};
use ksni::Handle;
use tokio::{sync::mpsc::Receiver, time::Instant};
use zbus::{Connection, Message, MessageStream, fdo};

use crate::{
    bus::{self, Choice, NAME},
    commands::Command,
    menu::Tray,
    notifier::{Chosen, Notifier},
    signals::{Signal, written},
    state::{Link, Service, State},
};

/// What comes within this time is shown at once: a panel draws the menu anew each time.
const SHOWN_AFTER: Duration = Duration::from_millis(100);

struct Watcher<'a> {
    tray: &'a Handle<Tray>,
    notifier: Notifier,
    chosen: BoxStream<'static, Chosen>,
    commands: Receiver<Command>,
    bus: Choice,
    connection: Connection,
    owners: MessageStream,
    signals: MessageStream,
    state: State,
    /// When what has changed is to be shown.
    due: Option<Instant>,
}

/// Whether the tray goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Quit,
    /// The service is another one, or the state has to be asked for again.
    Again,
    Go,
}

/// Runs until the user ends it.
pub async fn run(
    chosen_bus: Option<Choice>,
    tray: &Handle<Tray>,
    mut notifier: Notifier,
    commands: Receiver<Command>,
) -> Result<()> {
    let (bus, connection) = bus::find(chosen_bus).await?;
    let chosen = notifier.chosen().await;
    let (owners, signals) = (bus::owners(&connection).await?, bus::signals(&connection).await?);
    let state = State::default();
    let mut watcher =
        Watcher { tray, notifier, chosen, commands, bus, connection, owners, signals, state, due: None };
    loop {
        // Starts it, where the bus can do that.
        let owner = match watcher.snapshot().await {
            Ok(()) => bus::owner(&watcher.connection).await?,
            Err(error) => {
                watcher.state.forget();
                watcher.state.service = Service::Absent(help(&watcher.bus, &error));
                None
            }
        };
        watcher.show().await;
        loop {
            match watcher.step(owner.as_deref()).await? {
                Next::Go => {}
                Next::Again => break,
                Next::Quit => return Ok(()),
            }
        }
    }
}

impl Watcher<'_> {
    /// Waits for the next thing that happens, and deals with it.
    async fn step(&mut self, owner: Option<&str>) -> Result<Next> {
        let due = self.due;
        let shown = async move {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = self.owners.next() => self.owner_changed(change, owner),
            message = self.signals.next() => {
                let message = message.context("the bus has gone")?;
                Ok(self.signal(message, owner).await)
            }
            command = self.commands.recv() => Ok(match command {
                Some(command) => self.command(command).await,
                None => Next::Quit,
            }),
            Some(chosen) = self.chosen.next() => {
                self.notifier.act(chosen).await;
                Ok(Next::Go)
            }
            () = shown => {
                self.show().await;
                Ok(Next::Go)
            }
        }
    }

    fn owner_changed(&mut self, change: Option<zbus::Result<Message>>, known: Option<&str>) -> Result<Next> {
        let message = change.context("the bus has gone")??;
        let body = message.body();
        let (_, _, now) = body.deserialize::<(&str, &str, &str)>().context("NameOwnerChanged")?;
        // The one that the snapshot is of may be told late.
        Ok(if known.unwrap_or_default() == now { Next::Go } else { Next::Again })
    }

    async fn signal(&mut self, message: zbus::Result<Message>, owner: Option<&str>) -> Next {
        let Ok(message) = message else { return Next::Go };
        // Anybody may send from such a path on a session bus.
        if message.header().sender().map(|sender| sender.as_str()) != owner {
            return Next::Go;
        }
        let Some(signal) = Signal::parse(&message) else { return Next::Go };
        if matches!(signal, Signal::Overflow | Signal::Lost) {
            return Next::Again;
        }
        let news = self.state.apply(signal);
        self.due.get_or_insert(Instant::now() + SHOWN_AFTER);
        if let Some(news) = news {
            self.notifier.tell(news).await;
        }
        Next::Go
    }

    async fn command(&mut self, command: Command) -> Next {
        match &command {
            Command::Quit => return Next::Quit,
            Command::Notify(enabled) => self.notifier.enable(*enabled),
            _ => {}
        }
        if let Err(error) = command.carry_out(&self.connection, &mut self.state).await {
            self.state.note(brief(&error));
        }
        self.show().await;
        Next::Go
    }

    /// Everything anew. Signals come already, and what they tell beside the snapshot is known by its number.
    async fn snapshot(&mut self) -> Result<()> {
        let netlink = NetlinkProxy::new(&self.connection, "/org/example/IPC/netlink").await?;
        let (links_seq, links) = netlink.links().await?;
        let (addresses_seq, addresses) = netlink.addresses().await?;
        // What is on the other buses sent to everybody.
        ManagerProxy::new(&self.connection).await?.subscribe().await?;
        let objects = bus::objects(&self.connection).await?;
        let mut state = State {
            feed: std::mem::take(&mut self.state.feed),
            links_seq,
            addresses_seq,
            ..State::default()
        };
        state.service = Service::Present(self.bus.name().to_owned());
        for (index, name, carrier, _) in links {
            state.links.insert(index, Link { name, state: carrier, ..Link::default() });
        }
        for (index, _, address, prefix, _) in addresses {
            state.links.entry(index).or_default().addresses.insert(written(&address, prefix));
        }
        for (path, interfaces) in objects {
            state.add(path, &interfaces);
        }
        // What was asked for from this tray is still there, unless the service is another one.
        state.folders = std::mem::take(&mut self.state.folders);
        state.awaited = std::mem::take(&mut self.state.awaited);
        let endpoints = &state.endpoints;
        state.folders.retain(|path, _| endpoints.contains_key(path));
        state.awaited.retain(|path, _| endpoints.contains_key(path));
        self.state = state;
        Ok(())
    }

    async fn show(&mut self) {
        self.due = None;
        let (state, notify) = (self.state.clone(), self.notifier.enabled());
        self.tray
            .update(move |tray| {
                tray.state = state;
                tray.notify = notify;
            })
            .await;
    }
}

/// Why there is no service, and what to do, a line each.
fn help(bus: &Choice, error: &anyhow::Error) -> String {
    let unknown = matches!(
        error.downcast_ref(),
        Some(zbus::Error::FDO(error)) if matches!(**error, fdo::Error::ServiceUnknown(_))
    );
    if unknown {
        format!("{NAME} is not on the {}\nInstall the package ipcd, or run: ipcd --bus session", bus.name())
    } else {
        format!("{NAME} does not answer\n{}", brief(error))
    }
}

/// An error as one line that fits into a menu.
fn brief(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let text =
        text.rsplit_once(": ").filter(|_| text.starts_with("org.")).map_or(text.as_str(), |(_, rest)| rest);
    let mut line: String = text.lines().next().unwrap_or_default().chars().take(120).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}
