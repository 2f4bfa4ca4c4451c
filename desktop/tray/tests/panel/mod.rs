//! A panel and a notification server, as far as a tray can tell: what it registers, draws and tells is here to be
//! looked at.

use std::collections::HashMap;
use std::process::Command;

use futures_util::StreamExt;
use ipc_harness::{Busctl, Process, TempDir, busctl, connect, patience, temp_dir};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zbus::{
    Connection, MatchRule, MessageStream, OwnedVariant, interface, message::Type,
    object_server::SignalEmitter,
};

const MENU: &str = "com.canonical.dbusmenu";

/// What was told: summary, body, number, the number of the one that it takes the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub summary: String,
    pub body: String,
    pub id: u32,
    pub replaces: u32,
    pub actions: Vec<String>,
}

struct Watcher(UnboundedSender<String>);

#[interface(name = "org.kde.StatusNotifierWatcher")]
impl Watcher {
    async fn register_status_notifier_item(&self, service: String) {
        let _ = self.0.send(service);
    }

    #[zbus(property)]
    async fn is_status_notifier_host_registered(&self) -> bool {
        true
    }
}

struct Notifications {
    told: UnboundedSender<Told>,
    last: std::sync::atomic::AtomicU32,
}

#[interface(name = "org.freedesktop.Notifications")]
impl Notifications {
    #[allow(clippy::too_many_arguments)]
    async fn notify(
        &self,
        _app_name: String,
        replaces: u32,
        _app_icon: String,
        summary: String,
        body: String,
        actions: Vec<String>,
        _hints: HashMap<String, OwnedVariant>,
        _expire_timeout: i32,
    ) -> u32 {
        let id = self.last.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let _ = self.told.send(Told { summary, body, id, replaces, actions });
        id
    }

    #[zbus(signal)]
    async fn action_invoked(emitter: &SignalEmitter<'_>, id: u32, action_key: &str) -> zbus::Result<()>;
}

/// A desktop with a tray in it. Field order is drop order.
pub struct Desktop {
    pub tray: Process,
    pub home: TempDir,
    told: UnboundedReceiver<Told>,
    changes: MessageStream,
    menu: Busctl,
    connection: Connection,
}

/// An entry of a menu.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: i64,
    pub label: String,
    pub checked: bool,
}

impl Desktop {
    /// Starts a panel on this bus, and `ipc-tray` in it.
    pub async fn start(address: &str) -> Desktop {
        let connection = connect(address).await;
        let (items, mut item) = unbounded_channel();
        let (tell, told) = unbounded_channel();
        let notifications = Notifications { told: tell, last: 0.into() };
        let server = connection.object_server();
        server.at("/StatusNotifierWatcher", Watcher(items)).await.expect("an object");
        server.at("/org/freedesktop/Notifications", notifications).await.expect("an object");
        for name in ["org.kde.StatusNotifierWatcher", "org.freedesktop.Notifications"] {
            connection.request_name(name).await.expect("a name on an own bus");
        }
        let rule = MatchRule::builder().msg_type(Type::Signal).path("/MenuBar").build().expect("a rule");
        let changes = MessageStream::for_match_rule(rule, &connection, None).await.expect("a match rule");
        let home = temp_dir();
        let tray = Process::spawn(
            Command::new(env!("CARGO_BIN_EXE_ipc-tray"))
                .args(["--bus", "session"])
                .env("DBUS_SESSION_BUS_ADDRESS", address)
                .env("HOME", home.path())
                .env_remove("XDG_CONFIG_HOME"),
        );
        let item = within(item.recv()).await.expect("an item");
        Desktop { tray, home, told, changes, menu: busctl(address).to(&item), connection }
    }

    /// All entries of the menu and its submenus.
    pub fn entries(&self) -> Vec<Entry> {
        let layout = self.menu.call_json("/MenuBar", MENU, "GetLayout", "iias", &["0", "-1", "0"]);
        let layout = layout.expect("a layout");
        let mut entries = Vec::new();
        collect(&layout[1], &mut entries);
        entries
    }

    /// Waits until the menu has an entry as wanted.
    pub async fn entry(&mut self, wanted: impl Fn(&Entry) -> bool) -> Entry {
        let found = async {
            loop {
                if let Some(entry) = self.entries().into_iter().find(&wanted) {
                    return entry;
                }
                self.changes.next().await.expect("the bus goes on").expect("a signal");
            }
        };
        match tokio::time::timeout(patience(), found).await {
            Ok(entry) => entry,
            Err(_) => panic!("the menu has no such entry: {:#?}", self.entries()),
        }
    }

    /// Waits for an entry with this label, and chooses it.
    pub async fn choose(&mut self, label: &str) {
        let entry = self.entry(|entry| entry.label == label).await;
        let words = [entry.id.to_string(), "clicked".into(), "i".into(), "0".into(), "0".into()];
        let words = words.each_ref().map(String::as_str);
        self.menu.call("/MenuBar", MENU, "Event", "isvu", &words).expect("a click");
    }

    /// The menu is opened.
    pub fn open(&self) {
        self.menu.call("/MenuBar", MENU, "AboutToShow", "i", &["0"]).expect("AboutToShow");
    }

    /// The next notification.
    pub async fn told(&mut self) -> Told {
        within(self.told.recv()).await.expect("the server goes on")
    }

    /// The user chooses an action of a notification.
    pub async fn act(&self, told: &Told, action: &str) {
        let server = self.connection.object_server();
        let notifications = server.interface::<_, Notifications>("/org/freedesktop/Notifications").await;
        let notifications = notifications.expect("an own object");
        Notifications::action_invoked(notifications.signal_emitter(), told.id, action).await.expect("sent");
    }

    /// A property of the item, as busctl prints it.
    pub fn property(&self, name: &str) -> String {
        self.menu.property("/StatusNotifierItem", "org.kde.StatusNotifierItem", name).expect(name)
    }
}

fn collect(node: &Value, entries: &mut Vec<Entry>) {
    let (id, properties) = (node[0].as_i64().unwrap_or_default(), &node[1]);
    if let Some(label) = properties["label"]["data"].as_str() {
        let checked = properties["toggle-state"]["data"] == 1;
        entries.push(Entry { id, label: label.replace("__", "_"), checked });
    }
    for child in node[2].as_array().into_iter().flatten() {
        collect(&child["data"], entries);
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(patience(), future).await.expect("nothing comes")
}
