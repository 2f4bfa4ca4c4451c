//! A GNOME Shell without a screen, with the extension in it.
//!
//! It has buses, a home and settings of its own, and runs in a pid namespace that ends with it. What its menu shows
//! comes as signals from src/probe.js, which it evaluates (it runs with `--unsafe-mode`): tests wait for those.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::StreamExt;
use ipc_harness::{Bus, Process, TempDir, Unavailable, connect, need_tool, patience, temp_dir, watchdog};
use serde_json::Value;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, match_rule};

use crate::extension::{UUID, Variant, pack};
use crate::output;

const SHELL: &str = "org.gnome.Shell";
/// Owned when the objects of the shell are there, which is later than its own name.
const SCREENSHOT: &str = "org.gnome.Shell.Screenshot";
const PROBE: &str = include_str!("probe.js");

/// A session bus and a system bus for one desktop.
pub struct Desktop {
    pub session: Bus,
    pub system: Bus,
    home: TempDir,
}

/// A running GNOME Shell, ended on drop.
pub struct Shell {
    connection: Connection,
    shown: MessageStream,
    state: Value,
    process: Process,
    home: PathBuf,
}

impl Desktop {
    /// Buses and a home in which the extension is installed and enabled.
    pub fn new() -> Result<Desktop, Unavailable> {
        for tool in ["gnome-shell", "gnome-extensions", "msgfmt", "unshare"] {
            need_tool(tool)?;
        }
        let desktop = Desktop { session: Bus::dbus_daemon()?, system: Bus::dbus_daemon()?, home: temp_dir() };
        let runtime = desktop.home.path().join("run");
        fs::create_dir(&runtime).expect("a directory in an own directory");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700))
            .expect("the mode of an own directory");
        let settings = desktop.home.path().join(".config/glib-2.0/settings");
        fs::create_dir_all(&settings).expect("a directory in an own directory");
        let keys = format!(
            "[org/gnome/shell]\nenabled-extensions=['{UUID}']\nwelcome-dialog-last-shown-version='999'\n\
             [org/gnome/desktop/interface]\nenable-animations=false\n"
        );
        fs::write(settings.join("keyfile"), keys).expect("a file in an own directory");
        let archive = pack(Variant::Legacy).unwrap_or_else(|error| panic!("{error:#}"));
        let mut install = desktop.command("gnome-extensions");
        Process::spawn(install.args(["install", "--force"]).arg(archive)).finish().success();
        Ok(desktop)
    }

    /// A directory that is its user's home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A program of the desktop.
    pub fn command(&self, program: &str) -> Command {
        let home = self.home.path();
        let mut command = Command::new(program);
        command.env("HOME", home).env("XDG_RUNTIME_DIR", home.join("run")).current_dir(home);
        command.env("DBUS_SESSION_BUS_ADDRESS", self.session.address());
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.system.address());
        // A file instead of a service, and no card to draw with.
        command.env("GSETTINGS_BACKEND", "keyfile").env("LIBGL_ALWAYS_SOFTWARE", "1");
        command.env("LC_ALL", "C.UTF-8").env("NO_AT_BRIDGE", "1");
        for variable in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "DISPLAY", "WAYLAND_DISPLAY"] {
            command.env_remove(variable);
        }
        command
    }

    /// Starts the shell, with more environment, and waits until the extension has its place in the panel.
    pub async fn start(&self, environment: &[(&str, &str)]) -> Shell {
        let connection = connect(&self.session).await;
        let shown = listen(&connection, MatchRule::builder().interface("org.example.Desktop")).await;
        let mut command = self.command("unshare");
        command.args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "gnome-shell",
            "--headless",
            "--no-x11",
        ]);
        command.args(["--virtual-monitor", "1280x800", "--unsafe-mode"]);
        command.envs(environment.iter().copied());
        let owned = owner_of(&connection, SCREENSHOT).await;
        let process = Process::spawn_group(&mut command);
        // Several of them start at the same time on a machine that does more than this.
        if tokio::time::timeout(4 * patience(), owned.wait()).await.is_err() {
            panic!("GNOME Shell does not start; it said:\n{}", process.stderr().text());
        }
        let home = self.home.path().to_owned();
        let mut shell = Shell { connection, shown, state: Value::Null, process, home };
        shell.eval(PROBE).await;
        shell.until(|state| state["there"].as_bool()?.then_some(())).await;
        shell
    }
}

/// Waits for a name on the bus.
struct Owner {
    changes: MessageStream,
    name: &'static str,
}

async fn owner_of(connection: &Connection, name: &'static str) -> Owner {
    let rule = MatchRule::builder().sender("org.freedesktop.DBus").member("NameOwnerChanged").arg(0, name);
    Owner { changes: listen(connection, rule).await, name }
}

/// What comes is kept for a test that is busy elsewhere: a full queue would stall the connection.
async fn listen(connection: &Connection, rule: match_rule::Builder<'_>) -> MessageStream {
    let rule = rule.msg_type(Type::Signal).build().expect("a match rule");
    let stream = MessageStream::for_match_rule(rule, connection, NonZeroUsize::new(1 << 16)).await;
    stream.expect("a bus that takes a match rule")
}

impl Owner {
    async fn wait(mut self) {
        while let Some(Ok(message)) = self.changes.next().await {
            let (_, _, new): (String, String, String) = message.body().deserialize().expect("three names");
            if !new.is_empty() {
                return;
            }
        }
        panic!("the bus has gone before {} was there", self.name);
    }
}

impl Shell {
    /// Evaluates JavaScript in the shell; panics with what it throws. The value comes as JSON.
    #[track_caller]
    pub fn eval(&self, script: &str) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        let script = script.to_owned();
        async move {
            let call =
                self.connection.call_method(Some(SHELL), "/org/gnome/Shell", Some(SHELL), "Eval", &script);
            let reply = watchdog(patience(), call).await;
            let reply = reply.unwrap_or_else(|error| panic!("{caller}: Eval: {error}\n{}", self.log()));
            let (done, value): (bool, String) = reply.body().deserialize().expect("what Eval returns");
            assert!(done, "{caller}: {script}: {value}");
            serde_json::from_str(&value).unwrap_or(Value::Null)
        }
    }

    /// Opens the menu of the extension, or closes it.
    pub async fn open(&mut self, open: bool) {
        let method = if open { "open" } else { "close" };
        self.eval(&format!("Main.panel.statusArea['{UUID}'].menu.{method}(false)")).await;
        self.until(|state| (state["open"] == open).then_some(())).await;
    }

    /// Sets a key of the extension's settings to a value in GVariant's text format.
    pub async fn set(&self, key: &str, value: &str) {
        let settings = format!("Main.extensionManager.lookup('{UUID}').stateObj.getSettings()");
        let value = format!("imports.gi.GLib.Variant.parse(null, '{value}', null, null)");
        self.eval(&format!("{settings}.set_value('{key}', {value})")).await;
    }

    /// Activates the line of the menu with this text.
    pub async fn activate(&self, text: &str) {
        self.eval(&format!("probe.activate({})", Value::from(text))).await;
    }

    /// Presses the button with this name in the line with this text.
    pub async fn press(&self, text: &str, name: &str) {
        self.eval(&format!("probe.press({}, {})", Value::from(text), Value::from(name))).await;
    }

    /// Types into the entry with this hint, and presses Return.
    pub async fn activate_entry(&self, hint: &str, text: &str) {
        self.eval(&format!("probe.enter({}, {})", Value::from(hint), Value::from(text))).await;
    }

    /// What is seen, once it is as wanted: `open`, `rows` (each a list of texts), `notifications`.
    #[track_caller]
    pub fn until<T>(&mut self, mut judge: impl FnMut(&Value) -> Option<T>) -> impl Future<Output = T> {
        let caller = std::panic::Location::caller();
        async move {
            let wait = async {
                loop {
                    if let Some(answer) = judge(&self.state) {
                        return answer;
                    }
                    let message = self.shown.next().await.expect("a bus").expect("a message");
                    let text: String = message.body().deserialize().expect("a text");
                    self.state = serde_json::from_str(&text).expect("JSON");
                }
            };
            let waited = tokio::time::timeout(patience(), wait).await;
            waited.unwrap_or_else(|_| panic!("{caller}: this is seen: {:#}\n{}", self.state, self.log()))
        }
    }

    /// What was seen last.
    pub fn state(&self) -> &Value {
        &self.state
    }

    /// The same for one line of the menu, by the texts in it.
    #[track_caller]
    pub fn row<T>(&mut self, mut judge: impl FnMut(&[&str]) -> Option<T>) -> impl Future<Output = T> {
        self.until(move |state| {
            state["rows"].as_array()?.iter().find_map(|row| {
                let texts: Vec<&str> = row.as_array()?.iter().filter_map(Value::as_str).collect();
                judge(&texts)
            })
        })
    }

    /// A picture of the whole screen, in target/desktop.
    pub async fn picture(&self, name: &str) -> PathBuf {
        let file = output().join(format!("{name}.png"));
        fs::create_dir_all(output()).expect("a directory below target");
        let path = file.to_str().expect("a path in UTF-8").to_owned();
        let node = "/org/gnome/Shell/Screenshot";
        let service = Some(SCREENSHOT);
        let how = (false, false, path);
        let call = self.connection.call_method(service, node, service, "Screenshot", &how);
        let reply = watchdog(patience(), call).await.unwrap_or_else(|error| panic!("Screenshot: {error}"));
        let (done, _): (bool, String) = reply.body().deserialize().expect("what Screenshot returns");
        assert!(done, "no picture was made");
        file
    }

    /// Waits until somebody on the session bus has this name.
    pub async fn owned(&self, name: &'static str) {
        let owner = owner_of(&self.connection, name).await;
        let bus = Some("org.freedesktop.DBus");
        let call =
            self.connection.call_method(bus, "/org/freedesktop/DBus", bus, "NameHasOwner", &name).await;
        let owned: bool = call.expect("a bus").body().deserialize().expect("what NameHasOwner returns");
        if !owned {
            watchdog(patience(), owner.wait()).await;
        }
    }

    /// What the extension and the shell have complained of.
    pub fn log(&self) -> String {
        self.process.stderr().text()
    }

    /// Where its user lives.
    pub fn home(&self) -> &Path {
        &self.home
    }
}
