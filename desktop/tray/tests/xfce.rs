//! `ipc-tray` in the panel of Xfce, without a monitor: the panel takes it in, draws its icon, and opens its menu under a
//! click. Pictures are left in target/desktop.

mod screen;

use std::fs;
use std::process::Command;

use futures_util::StreamExt;
use ipc_harness::{
    Bus, Busctl, Process, Service, TempDir, Unavailable, busctl, connect, need_tool, or_skip, patience,
    temp_dir, watchdog,
};
use screen::{Area, Pixel, RETURN, Screen, UP};
use zbus::{Connection, MatchRule, MessageStream, message::Type};

const WATCHER: (&str, &str) = ("/StatusNotifierWatcher", "org.kde.StatusNotifierWatcher");
const MENU: &str = "com.canonical.dbusmenu";

/// The height of the panel; it is all of one colour, the rest of the screen is black.
const PANEL: usize = 32;
const COLOUR: Pixel = [0x80, 0x40, 0x00];
const SETTINGS: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="length" type="uint" value="100"/>
      <property name="size" type="uint" value="32"/>
      <property name="icon-size" type="uint" value="0"/>
      <property name="background-style" type="uint" value="1"/>
      <property name="background-rgba" type="array">
        <value type="double" value="0"/>
        <value type="double" value="0.250980"/>
        <value type="double" value="0.501961"/>
        <value type="double" value="1"/>
      </property>
      <property name="plugin-ids" type="array"><value type="int" value="1"/></property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="systray"/>
  </property>
</channel>
"#;

/// The panel, and the bus and the screen that it is on. Field order is drop order.
struct Panel {
    _panel: Process,
    _settings: Process,
    screen: Screen,
    changes: MessageStream,
    _connection: Connection,
    tool: Busctl,
    bus: Bus,
    home: TempDir,
}

impl Panel {
    async fn start() -> Result<Panel, Unavailable> {
        need_tool("xfce4-panel")?;
        let bus = Bus::dbus_daemon()?;
        let screen = Screen::start()?;
        let home = temp_dir();
        let settings = home.path().join(".config/xfce4/xfconf/xfce-perchannel-xml");
        fs::create_dir_all(&settings).expect("a directory in an own directory");
        fs::write(settings.join("xfce4-panel.xml"), SETTINGS).expect("a file in an own directory");
        let connection = connect(&bus).await;
        let rule = MatchRule::builder().msg_type(Type::Signal).build().expect("a rule");
        let changes = MessageStream::for_match_rule(rule, &connection, None).await.expect("a match rule");
        let tool = busctl(&bus).to(WATCHER.1);
        // The bus of a test starts nobody.
        let settings =
            Process::spawn(&mut inside(&service_program("org.xfce.Xfconf")?, &bus, &screen, &home));
        let mut panel = inside("xfce4-panel", &bus, &screen, &home);
        panel.args(["--disable-wm-check"]);
        let panel = Process::spawn_group(&mut panel);
        let mut panel = Panel {
            _panel: panel,
            _settings: settings,
            screen,
            changes,
            _connection: connection,
            tool,
            bus,
            home,
        };
        panel
            .until(|tool| property(tool, "IsStatusNotifierHostRegistered").filter(|is| is == "b true"))
            .await;
        panel.empty();
        Ok(panel)
    }

    /// Waits until nothing is in it.
    fn empty(&self) {
        self.screen.until("tray-none", |it| it.area(PANEL, |pixel| pixel != COLOUR).is_none().then_some(()));
    }

    /// Starts the tray.
    fn tray(&self) -> Process {
        let mut tray = inside(env!("CARGO_BIN_EXE_ipc-tray"), &self.bus, &self.screen, &self.home);
        Process::spawn(tray.args(["--bus", "session"]))
    }

    /// Waits until somebody on the bus says what is wanted; each signal is a reason to ask again.
    async fn until<T>(&mut self, mut judge: impl FnMut(&Busctl) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(answer) = judge(&self.tool) {
                    return answer;
                }
                self.changes.next().await.expect("the bus goes on").expect("a signal");
            }
        };
        watchdog(patience(), wait).await
    }

    /// The item of the tray in the panel: the name of its connection.
    async fn item(&mut self) -> String {
        self.until(|tool| {
            let items = property(tool, "RegisteredStatusNotifierItems")?;
            let item = items.strip_prefix("as 1 \"")?.split(['/', '"']).next()?;
            Some(item.to_owned())
        })
        .await
    }

    /// Where the panel has an icon: something that is not of its colour, as high and wide as icons are.
    fn icon(&self, name: &str) -> Area {
        self.screen.until(name, |picture| {
            let area = picture.area(PANEL, |pixel| pixel != COLOUR)?;
            let sides = [area.right - area.left, area.bottom - area.top];
            sides.iter().all(|side| (6..=PANEL).contains(side)).then_some(area)
        })
    }
}

/// A program of this desktop.
fn inside(program: &str, bus: &Bus, screen: &Screen, home: &TempDir) -> Command {
    let mut command = Command::new(program);
    command.env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path()).env("DISPLAY", &screen.display);
    command.env("DBUS_SESSION_BUS_ADDRESS", bus.address()).env("LC_ALL", "C.UTF-8");
    command.env("GSETTINGS_BACKEND", "memory").env("GIO_USE_VFS", "local").env("NO_AT_BRIDGE", "1");
    for variable in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "WAYLAND_DISPLAY", "LANGUAGE"] {
        command.env_remove(variable);
    }
    command
}

/// The program that a bus would start for this name.
fn service_program(name: &str) -> Result<String, Unavailable> {
    let file = format!("/usr/share/dbus-1/services/{name}.service");
    let text = fs::read_to_string(&file).map_err(|error| Unavailable(format!("{file}: {error}")))?;
    let program = text.lines().find_map(|line| line.strip_prefix("Exec="));
    program.map(str::to_owned).ok_or_else(|| Unavailable(format!("{file} names no program")))
}

fn property(tool: &Busctl, name: &str) -> Option<String> {
    tool.property(WATCHER.0, WATCHER.1, name).ok()
}

/// Whether notifications are on, as the menu of this item says.
fn notifications(tool: &Busctl, item: &str) -> Option<bool> {
    let layout =
        tool.clone().to(item).call_json("/MenuBar", MENU, "GetLayout", "iias", &["0", "-1", "0"]).ok()?;
    let entries = layout[1][2].as_array()?;
    let entry = entries.iter().find(|it| it["data"][1]["label"]["data"] == "Notifications")?;
    Some(entry["data"][1]["toggle-state"]["data"] == 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_panel_of_xfce_shows_it_and_opens_its_menu() {
    let mut panel = or_skip!(Panel::start().await);
    let _service = Service::on(&panel.bus);
    let mut tray = panel.tray();
    let item = panel.item().await;
    assert!(panel.until(|tool| notifications(tool, &item)).await);
    let icon = panel.icon("tray-icon");

    let before = panel.screen.picture();
    panel.screen.click(icon);
    // A menu with eight lines is larger than a tooltip.
    panel.screen.until("tray-menu", |it| (it.differs(&before, PANEL) > 20_000).then_some(()));
    // From its lower end, over the line that only tells the bus: to “Quit”, to “Notifications”.
    [UP, UP, RETURN].into_iter().for_each(|key| panel.screen.press(key));
    panel.until(|tool| notifications(tool, &item).filter(|on| !on)).await;
    panel.screen.until("tray-menu-closed", |it| (it.differs(&before, PANEL) == 0).then_some(()));

    panel.screen.click(icon);
    panel.screen.until("tray-menu", |it| (it.differs(&before, PANEL) > 20_000).then_some(()));
    [UP, RETURN].into_iter().for_each(|key| panel.screen.press(key));
    assert!(tray.wait().success());
    panel.until(|tool| property(tool, "RegisteredStatusNotifierItems").filter(|items| items == "as 0")).await;
    panel.empty();
}
