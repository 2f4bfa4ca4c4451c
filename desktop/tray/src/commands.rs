//! What the user chooses, as calls of the service.

use std::{collections::HashMap, env, fs, path::PathBuf};

use anyhow::{Context, Result};
use ipc_proxy::{EndpointProxy, ManagerProxy, MechanismProxy, RelayProxy};
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

use crate::{
    bus,
    state::{Process, State, Waiting},
};

/// The youngest so many processes are offered.
const PROCESSES: usize = 40;

#[derive(Debug, Clone)]
pub enum Command {
    /// The menu is about to show what changes without signals.
    Refresh,
    Pause(String),
    Resume(String),
    Stop(String),
    Close(String),
    /// Tell when this process ends.
    Await(Process),
    /// Tell what is written into this folder.
    Watch(String),
    Notify(bool),
    Quit,
}

impl Command {
    /// Does it. What it makes ends with this connection.
    pub async fn carry_out(self, connection: &Connection, state: &mut State) -> Result<()> {
        match self {
            Self::Refresh => refresh(connection, state).await?,
            Self::Pause(relay) => RelayProxy::new(connection, relay).await?.pause().await?,
            Self::Resume(relay) => RelayProxy::new(connection, relay).await?.resume().await?,
            Self::Stop(relay) => RelayProxy::new(connection, relay).await?.stop().await?,
            Self::Close(endpoint) => {
                EndpointProxy::new(connection, endpoint.as_str()).await?.close().await?;
                state.awaited.remove(&endpoint);
                state.folders.remove(&endpoint);
            }
            Self::Await(process) => {
                let endpoint = make(connection, true, &format!("signal:pid={}", process.pid), &[]).await?;
                state.awaited.insert(endpoint.to_string(), process);
            }
            Self::Watch(folder) => {
                let path = ("path", Variant::from(folder.clone()));
                let options = [path, ("events", Variant::from(vec!["written", "delete", "moved-from"]))];
                let endpoint = make(connection, false, "inotify:", &options).await?;
                state.folders.insert(endpoint.to_string(), folder);
            }
            Self::Notify(_) | Self::Quit => {}
        }
        Ok(())
    }
}

async fn make(
    connection: &Connection,
    attach: bool,
    address: &str,
    options: &[(&'static str, Variant<'_>)],
) -> Result<OwnedObjectPath> {
    let manager = ManagerProxy::new(connection).await?;
    let mut all = HashMap::from([("lifetime", Variant::from("client"))]);
    for (key, value) in options {
        all.insert(key, value.try_clone().context("an option")?);
    }
    let made = if attach { manager.attach(address, all).await } else { manager.create(address, all).await };
    Ok(made?)
}

/// The counters of relays, what waits in endpoints, and the processes that there are.
async fn refresh(connection: &Connection, state: &mut State) -> Result<()> {
    let relays: Vec<_> = state.relays.keys().cloned().collect();
    for path in relays {
        let relay = RelayProxy::new(connection, path.as_str()).await?;
        // It may end in between: a signal tells.
        let Ok(now) = relay.inspect().await else { continue };
        if let Some(known) = state.relays.get_mut(&path) {
            known.bytes = number(&now, "bytes").unwrap_or(known.bytes);
            known.rate = number(&now, "rate").unwrap_or_default();
        }
    }
    for (path, interfaces) in bus::objects(connection).await? {
        if let Some(known) = state.endpoints.get_mut(&path) {
            known.waiting = Waiting::of(&interfaces);
        }
    }
    let node = MechanismProxy::new(connection, "/org/example/IPC/signal").await?;
    let mut rows = node.list(HashMap::new()).await?;
    rows.sort_by_key(|row| std::cmp::Reverse(number(row, "start")));
    state.processes = rows
        .into_iter()
        .filter_map(|mut row| {
            let pid = u32::try_from(number(&row, "pid")?).ok()?;
            let command = String::try_from(row.remove("command")?).ok()?;
            (pid != std::process::id()).then_some(Process { pid, command })
        })
        .take(PROCESSES)
        .collect();
    Ok(())
}

fn number(row: &HashMap<String, OwnedVariant>, key: &str) -> Option<u64> {
    let value = row.get(key)?;
    u64::try_from(value.try_clone().ok()?)
        .ok()
        .or_else(|| u32::try_from(value.try_clone().ok()?).ok().map(u64::from))
}

/// Folders that people put things into: those of the XDG user directories, and home.
pub fn folders() -> Vec<String> {
    let Some(home) = env::var_os("HOME").map(PathBuf::from) else { return Vec::new() };
    let configuration = env::var_os("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
    let dirs = fs::read_to_string(configuration.join("user-dirs.dirs")).unwrap_or_default();
    let mut folders: Vec<_> = dirs.lines().filter_map(|line| folder(line, &home)).collect();
    folders.push(home.clone());
    if folders.len() == 1 {
        folders.push(home.join("Downloads"));
    }
    folders.retain(|folder| folder.is_dir());
    let mut folders: Vec<_> =
        folders.into_iter().filter_map(|folder| folder.into_os_string().into_string().ok()).collect();
    folders.sort();
    folders.dedup();
    folders
}

/// A line of user-dirs.dirs(5): XDG_DOWNLOAD_DIR="$HOME/Downloads".
fn folder(line: &str, home: &std::path::Path) -> Option<PathBuf> {
    let (key, value) = line.trim().split_once('=')?;
    if !key.starts_with("XDG_") {
        return None;
    }
    let value = value.trim().trim_matches('"');
    match value.strip_prefix("$HOME") {
        Some(rest) => Some(home.join(rest.trim_start_matches('/'))),
        None => value.starts_with('/').then(|| PathBuf::from(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_dirs_are_read_as_their_page_says() {
        let home = PathBuf::from("/home/me");
        assert_eq!(folder(r#"XDG_DOWNLOAD_DIR="$HOME/Downloads""#, &home), Some("/home/me/Downloads".into()));
        assert_eq!(folder(r#"XDG_MUSIC_DIR="/srv/music""#, &home), Some("/srv/music".into()));
        assert_eq!(folder(r#"XDG_DESKTOP_DIR="$HOME/""#, &home), Some("/home/me/".into()));
        assert_eq!(folder("# XDG_MUSIC_DIR=\"/srv\"", &home), None);
        assert_eq!(folder(r#"XDG_MUSIC_DIR="relative""#, &home), None);
    }
}
