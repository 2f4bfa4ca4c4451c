//! What the tray knows: kept true by signals, shown by the menu. No bus in here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use zbus::OwnedVariant;

use crate::signals::{Interfaces, Signal};

/// So many events are shown.
const FEED: usize = 12;

#[derive(Debug, Default, Clone)]
pub struct State {
    pub service: Service,
    pub links: BTreeMap<i32, Link>,
    pub endpoints: BTreeMap<String, Endpoint>,
    pub relays: BTreeMap<String, Relay>,
    /// The caller's processes, the youngest first, as of the last time that somebody looked.
    pub processes: Vec<Process>,
    /// Folders that are watched, by their endpoints.
    pub folders: BTreeMap<String, String>,
    /// Processes whose end is waited for, by their endpoints.
    pub awaited: BTreeMap<String, Process>,
    /// The latest events, the last one first.
    pub feed: VecDeque<String>,
    /// The numbers of the last events that the snapshots have.
    pub links_seq: u64,
    pub addresses_seq: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum Service {
    #[default]
    Unknown,
    /// On this bus.
    Present(String),
    /// Why, and what to do.
    Absent(String),
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub state: String,
    pub addresses: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: String,
    /// As of the last time that somebody looked; None where the kernel does not tell.
    pub waiting: Option<Waiting>,
}

/// What waits to be read or received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    Bytes(u64),
    Messages(u64),
}

impl Waiting {
    /// The depth among the properties of an endpoint.
    pub fn of(interfaces: &Interfaces) -> Option<Self> {
        let depth = |interface: &str| {
            let value = interfaces.get(interface)?.get("Depth")?.try_clone().ok()?;
            u64::try_from(value).ok()
        };
        let bytes = depth("org.example.IPC.Stream").map(Self::Bytes);
        bytes.or_else(|| depth("org.example.IPC.Messages").map(Self::Messages))
    }
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&size(*bytes)),
            Self::Messages(1) => f.write_str("1 message"),
            Self::Messages(count) => write!(f, "{count} messages"),
        }
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Relay {
    pub source: String,
    pub sink: String,
    pub state: String,
    /// Bytes moved, and bytes a second, as of the last time that somebody looked.
    pub bytes: u64,
    pub rate: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub command: String,
}

/// What is worth to be told outside the menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Later news of the same topic take its place.
    pub topic: String,
    pub summary: String,
    pub body: String,
    /// A file that it is about.
    pub file: Option<String>,
}

impl State {
    /// Takes a signal in. Some: it is worth to be told.
    pub fn apply(&mut self, signal: Signal) -> Option<News> {
        match signal {
            Signal::LinkChanged { seq, index, name, state } if seq > self.links_seq => {
                let link = self.links.entry(index).or_default();
                let before = std::mem::replace(&mut link.state, state.clone());
                link.name.clone_from(&name);
                if before == state {
                    return None;
                }
                self.note(format!("{name} is {state}"));
                // A new interface says nothing yet; one that was there and changes does.
                (!before.is_empty()).then(|| News {
                    topic: format!("link {name}"),
                    summary: format!("{name} is {state}"),
                    body: format!("The network interface was {before}."),
                    file: None,
                })
            }
            Signal::LinkRemoved { seq, index } if seq > self.links_seq => {
                let link = self.links.remove(&index)?;
                self.note(format!("{} is gone", link.name));
                None
            }
            Signal::AddressAdded { seq, index, name, address } if seq > self.addresses_seq => {
                let link =
                    self.links.entry(index).or_insert_with(|| Link { name: name.clone(), ..Link::default() });
                if link.addresses.insert(address.clone()) {
                    self.note(format!("{name} has {address}"));
                }
                None
            }
            Signal::AddressRemoved { seq, index, address } if seq > self.addresses_seq => {
                let link = self.links.get_mut(&index)?;
                let name = link.name.clone();
                if link.addresses.remove(&address) {
                    self.note(format!("{name} no longer has {address}"));
                }
                None
            }
            Signal::Device { action, path, subsystem } => {
                // Queues of network interfaces come and go by the dozen, with the interface that is told.
                if subsystem != "queues" && subsystem != "net" {
                    let name = path.rsplit('/').next().unwrap_or(&path);
                    self.note(format!("{subsystem} {name}: {action}"));
                }
                None
            }
            Signal::File { watch, events, path } => self.file(&watch, &events, path),
            Signal::Exited { process, code, signal, core } => self.exited(&process, code, signal, core),
            Signal::Added { path, interfaces } => {
                self.add(path, &interfaces);
                None
            }
            Signal::Removed { path } => {
                self.relays.remove(&path);
                self.endpoints.remove(&path);
                self.folders.remove(&path);
                None
            }
            Signal::RelayState { path, state } => {
                self.relays.get_mut(&path)?.state = state;
                None
            }
            Signal::RelayFinished { path, reason, bytes } => {
                let relay = self.relays.remove(&path)?;
                let what = format!("{} → {}", self.name(&relay.source), self.name(&relay.sink));
                self.note(format!("relay {what}: {reason}"));
                Some(News {
                    topic: format!("relay {path}"),
                    summary: "A relay has ended".to_owned(),
                    body: format!("{what}: {reason}, after {}", size(bytes)),
                    file: None,
                })
            }
            _ => None,
        }
    }

    fn file(&mut self, watch: &str, events: &[String], path: String) -> Option<News> {
        let folder = self.folders.get(watch)?.clone();
        let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
        let is = |event: &str| events.iter().any(|one| one == event);
        let what =
            if is("DELETE") || is("MOVED_FROM") && !is("MOVED_TO") { "is gone" } else { "was written" };
        self.note(format!("{name} {what}"));
        (what == "was written").then(|| News {
            topic: format!("folder {folder}"),
            summary: name,
            body: format!("A file in {folder} {what}."),
            file: Some(path),
        })
    }

    fn exited(&mut self, endpoint: &str, code: i32, signal: i32, core: bool) -> Option<News> {
        let process = self.awaited.remove(endpoint)?;
        let how = match (code, signal) {
            (code, 0) if code >= 0 => format!("exit code {code}"),
            (_, 0) => "the kernel does not say how".to_owned(),
            (_, signal) if core => format!("ended by signal {signal}, with a core dump"),
            (_, signal) => format!("ended by signal {signal}"),
        };
        self.note(format!("{} has ended: {how}", process.command));
        Some(News {
            topic: format!("process {}", process.pid),
            summary: format!("{} has ended", process.command),
            body: format!("Process {}: {how}", process.pid),
            file: None,
        })
    }

    /// An object that is there.
    pub fn add(&mut self, path: String, interfaces: &Interfaces) {
        let text = |properties: &HashMap<String, OwnedVariant>, key: &str| {
            let value = properties.get(key).and_then(|value| value.try_clone().ok());
            value.and_then(text).unwrap_or_default()
        };
        if let Some(properties) = interfaces.get("org.example.IPC.Relay") {
            let relay = Relay {
                source: text(properties, "Source"),
                sink: text(properties, "Sink"),
                state: text(properties, "State"),
                ..Relay::default()
            };
            self.relays.insert(path, relay);
        } else if let Some(properties) = interfaces.get("org.example.IPC.Endpoint") {
            let (address, waiting) = (text(properties, "Address"), Waiting::of(interfaces));
            let endpoint = Endpoint { address, waiting };
            self.endpoints.insert(path, endpoint);
        }
    }

    /// What an endpoint is called: its address where it is known, without what makes it long.
    pub fn name(&self, path: &str) -> String {
        let address = self.endpoints.get(path).map(|endpoint| endpoint.address.as_str());
        address.unwrap_or_else(|| path.strip_prefix("/org/example/IPC/").unwrap_or(path)).to_owned()
    }

    pub fn note(&mut self, event: String) {
        self.feed.push_front(event);
        self.feed.truncate(FEED);
    }

    /// The service has gone: with it goes all that came from it but what was told.
    pub fn forget(&mut self) {
        let feed = std::mem::take(&mut self.feed);
        *self = Self { feed, ..Self::default() };
    }

    /// One line for the tooltip: the interfaces that carry something.
    pub fn summary(&self) -> String {
        let up = self.links.values().filter(|link| link.name != "lo" && !link.addresses.is_empty());
        let up: Vec<_> = up.map(|link| link.name.as_str()).collect();
        match &self.service {
            Service::Unknown => "connecting".to_owned(),
            Service::Absent(_) => "the service is not there".to_owned(),
            Service::Present(_) if up.is_empty() => "no network interface has an address".to_owned(),
            Service::Present(_) => format!("connected: {}", up.join(", ")),
        }
    }
}

/// Text, or an object path as text.
fn text(value: OwnedVariant) -> Option<String> {
    match String::try_from(value.try_clone().ok()?) {
        Ok(text) => Some(text),
        Err(_) => zbus::OwnedObjectPath::try_from(value).ok().map(|path| path.to_string()),
    }
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(seq: u64, state: &str) -> Signal {
        Signal::LinkChanged { seq, index: 2, name: "eth0".into(), state: state.into() }
    }

    #[test]
    fn a_link_that_changes_is_told_and_a_new_one_is_not() {
        let mut state = State::default();
        assert_eq!(state.apply(up(1, "down")), None);
        let news = state.apply(up(2, "up")).expect("news");
        assert_eq!((news.topic.as_str(), news.summary.as_str()), ("link eth0", "eth0 is up"));
        assert_eq!(news.body, "The network interface was down.");
        assert_eq!(state.apply(up(3, "up")), None, "nothing is new");
        assert_eq!(state.feed, ["eth0 is up", "eth0 is down"]);
    }

    #[test]
    fn what_a_snapshot_has_is_not_taken_twice() {
        let mut state = State { links_seq: 10, addresses_seq: 12, ..State::default() };
        state.apply(up(10, "up"));
        assert!(state.links.is_empty());
        let added =
            |seq| Signal::AddressAdded { seq, index: 2, name: "eth0".into(), address: "10.0.0.1/24".into() };
        state.apply(added(12));
        assert!(state.links.is_empty());
        state.apply(added(13));
        assert_eq!(state.links[&2].addresses.iter().collect::<Vec<_>>(), ["10.0.0.1/24"]);
        state.apply(Signal::AddressRemoved { seq: 14, index: 2, address: "10.0.0.1/24".into() });
        assert!(state.links[&2].addresses.is_empty());
    }

    #[test]
    fn a_process_that_is_awaited_is_told_with_its_code() {
        let mut state = State::default();
        let exited = |code, signal, core| Signal::Exited { process: "/p".into(), code, signal, core };
        assert_eq!(state.apply(exited(3, 0, false)), None, "nobody asked");
        for (signal, body) in [
            (exited(3, 0, false), "Process 7: exit code 3"),
            (exited(-1, 9, false), "Process 7: ended by signal 9"),
            (exited(-1, 11, true), "Process 7: ended by signal 11, with a core dump"),
            (exited(-1, 0, false), "Process 7: the kernel does not say how"),
        ] {
            state.awaited.insert("/p".into(), Process { pid: 7, command: "make".into() });
            let news = state.apply(signal).expect("news");
            assert_eq!((news.summary.as_str(), news.body.as_str()), ("make has ended", body));
        }
        assert!(state.awaited.is_empty());
    }

    #[test]
    fn only_files_of_watched_folders_are_told() {
        let mut state = State::default();
        let file = |events: &[&str]| Signal::File {
            watch: "/w".into(),
            events: events.iter().map(|&event| event.to_owned()).collect(),
            path: "/home/me/in/a.pdf".into(),
        };
        assert_eq!(state.apply(file(&["CLOSE_WRITE"])), None);
        state.folders.insert("/w".into(), "/home/me/in".into());
        let news = state.apply(file(&["CLOSE_WRITE"])).expect("news");
        assert_eq!((news.summary.as_str(), news.file.as_deref()), ("a.pdf", Some("/home/me/in/a.pdf")));
        assert_eq!(state.apply(file(&["DELETE"])), None);
        assert!(state.apply(file(&["MOVED_FROM", "MOVED_TO"])).is_some());
    }

    #[test]
    fn the_feed_has_an_end() {
        let mut state = State::default();
        for number in 0..100 {
            state.note(number.to_string());
        }
        assert_eq!((state.feed.len(), state.feed[0].as_str()), (FEED, "99"));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(
            [0, 1023, 1024, 1536, 5 << 30].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]
        );
    }
}
