//! Notifications, over org.freedesktop.Notifications: grouped, limited, and never in the way.
//!
//! News of the same topic replace each other. More than [`BURST`] a minute are counted and told as one. Two actions:
//! a file is shown in its folder, and a topic is muted until the tray ends. A desktop without notifications is
//! no error.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::{StreamExt, stream::BoxStream};
use zbus::{Connection, Variant, proxy};

use crate::state::News;

/// So many within [`WINDOW`] are told one by one.
const BURST: usize = 6;
const WINDOW: Duration = Duration::from_secs(60);

/// So many topics are known by their number, to be replaced.
const TOPICS: usize = 64;

#[proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    #[allow(clippy::too_many_arguments)]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, Variant<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;

    #[zbus(signal)]
    fn action_invoked(&self, id: u32, action_key: String) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.FileManager1",
    default_service = "org.freedesktop.FileManager1",
    default_path = "/org/freedesktop/FileManager1"
)]
trait FileManager {
    fn show_items(&self, uris: &[&str], startup_id: &str) -> zbus::Result<()>;
}

pub struct Notifier {
    enabled: bool,
    limit: Limit,
    muted: HashSet<String>,
    /// What was told of which topic, the oldest first.
    told: VecDeque<Told>,
    session: Option<Connection>,
}

struct Told {
    topic: String,
    id: u32,
    file: Option<String>,
}

/// An action that a user has chosen.
pub type Chosen = (u32, String);

impl Notifier {
    pub fn new(enabled: bool) -> Self {
        Self { enabled, limit: Limit::default(), muted: HashSet::new(), told: VecDeque::new(), session: None }
    }

    pub fn enabled(&self) -> bool {
        self.enabled
    }

    pub fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// The actions that users choose; none where there are no notifications.
    pub async fn chosen(&mut self) -> BoxStream<'static, Chosen> {
        match self.listen().await {
            Ok(stream) => stream,
            Err(_) => futures_util::stream::pending().boxed(),
        }
    }

    async fn listen(&mut self) -> Result<BoxStream<'static, Chosen>> {
        let session = Connection::session().await?;
        let stream = NotificationsProxy::new(&session).await?.receive_action_invoked().await?;
        self.session = Some(session);
        let stream = stream.filter_map(async |signal| {
            let arguments = signal.args().ok()?;
            Some((arguments.id, arguments.action_key.clone()))
        });
        Ok(stream.boxed())
    }

    /// Tells it, unless that is not wanted.
    pub async fn tell(&mut self, news: News) {
        if !self.enabled || self.muted.contains(&news.topic) {
            return;
        }
        let news = match self.limit.admit(Instant::now()) {
            0 => news,
            held_back => News {
                topic: "many".to_owned(),
                summary: format!("{held_back} more events"),
                body: format!("The last one: {}. They are in the menu.", news.summary),
                file: None,
            },
        };
        // Nobody to tell it to: the menu has it.
        if let Err(error) = self.show(news).await {
            eprintln!("ipc-tray: no notification: {error:#}");
        }
    }

    async fn show(&mut self, news: News) -> Result<()> {
        let Some(session) = &self.session else { return Ok(()) };
        let before = self.told.iter().position(|told| told.topic == news.topic);
        let before = before.and_then(|index| self.told.remove(index)).map_or(0, |told| told.id);
        let mut actions = vec![];
        if news.file.is_some() {
            actions.extend(["default", "Show in folder"]);
        }
        actions.extend(["mute", "Do not tell this again"]);
        let hints = HashMap::from([
            ("desktop-entry", Variant::from("org.example.IPC.Tray")),
            ("category", Variant::from("device")),
        ]);
        let id = NotificationsProxy::new(session)
            .await?
            .notify(
                "Kernel events",
                before,
                "org.example.IPC",
                &news.summary,
                &escaped(&news.body),
                &actions,
                hints,
                -1,
            )
            .await?;
        self.told.push_back(Told { topic: news.topic, id, file: news.file });
        if self.told.len() > TOPICS {
            self.told.pop_front();
        }
        Ok(())
    }

    /// Carries out an action; those of other programs' notifications come, too.
    pub async fn act(&mut self, (id, action): Chosen) {
        let Some(told) = self.told.iter().find(|told| told.id == id) else { return };
        match (action.as_str(), &told.file, &self.session) {
            ("mute", ..) => drop(self.muted.insert(told.topic.clone())),
            ("default", Some(file), Some(session)) => {
                let shown =
                    async { FileManagerProxy::new(session).await?.show_items(&[&uri(file)], "").await };
                if let Err(error) = shown.await {
                    eprintln!("ipc-tray: cannot show {file}: {error}");
                }
            }
            _ => {}
        }
    }
}

/// How many may be told.
#[derive(Debug, Default)]
struct Limit {
    told: VecDeque<Instant>,
    held_back: usize,
}

impl Limit {
    /// How many were held back, this one included; 0: it may be told by itself.
    fn admit(&mut self, now: Instant) -> usize {
        self.told.retain(|&then| now.duration_since(then) < WINDOW);
        if self.told.len() < BURST {
            self.told.push_back(now);
            self.held_back = 0;
        } else {
            self.held_back += 1;
        }
        self.held_back
    }
}

/// Bodies may be markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn uri(path: &str) -> String {
    let mut uri = String::from("file://");
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                uri.push(byte.into())
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_few_a_minute_are_one() {
        let mut limit = Limit::default();
        let start = Instant::now();
        let admitted: Vec<_> = (0..9).map(|_| limit.admit(start)).collect();
        assert_eq!(admitted, [0, 0, 0, 0, 0, 0, 1, 2, 3]);
        assert_eq!(limit.admit(start + WINDOW), 0);
    }

    #[test]
    fn bodies_and_paths_are_escaped() {
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
        assert_eq!(uri("/home/ä b"), "file:///home/%C3%A4%20b");
    }
}
