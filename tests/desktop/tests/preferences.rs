//! The preferences of the extension in GNOME Shell: their window opens, each line of it sets its key, and the extension
//! that runs does as it says.

use std::fs;

use ipc_desktop::{Desktop, Preferences, Shell};
use ipc_harness::{Launch, Monitor, Process, Service, busctl, busctl_monitor, or_skip, sh};
use serde_json::Value;

/// The switches, with their keys.
const SWITCHES: &[(&str, &str)] = &[
    ("Network interfaces", "show-network"),
    ("Loopback interface", "show-loopback"),
    ("Relays and endpoints", "show-objects"),
    ("Recent events", "show-events"),
    ("Events of network interfaces", "feed-network"),
    ("Events of devices", "feed-devices"),
    ("Show notifications", "notifications"),
    ("When a process has ended", "notify-processes"),
    ("When a watched folder changes", "notify-folders"),
];

/// Presses a switch, and waits until the shell has its key as it is then.
async fn press(preferences: &mut Preferences, shell: &mut Shell, title: &str) {
    let key = SWITCHES.iter().find(|it| it.0 == title).expect("a switch").1;
    let before = preferences.hand("active", &[title.into()]);
    preferences.hand("press", &[title.into()]);
    let now = preferences.hand("active", &[title.into()]);
    assert_eq!(before.as_bool().map(|it| !it), now.as_bool(), "{title}");
    setting(shell, key, &now.to_string()).await;
}

/// Waits until the shell has this key as wanted.
async fn setting(shell: &mut Shell, key: &str, value: &str) {
    shell.until(|state| (state["settings"][key] == value).then_some(())).await;
}

fn has_row(state: &Value, text: &str) -> bool {
    state["rows"].to_string().contains(text)
}

async fn shown(shell: &mut Shell, text: &str) {
    shell.until(|state| has_row(state, text).then_some(())).await;
}

async fn hidden(shell: &mut Shell, text: &str) {
    shell.until(|state| (!has_row(state, text)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dialog_opens_and_each_line_sets_its_key() {
    let desktop = or_skip!(Desktop::new());
    let mut shell = desktop.start(&[]).await;
    let mut preferences = Preferences::open(&desktop, &mut shell).await;
    for (title, key) in SWITCHES {
        let before = preferences.hand("active", &[(*title).into()]);
        setting(&mut shell, key, &before.to_string()).await;
        press(&mut preferences, &mut shell, title).await;
        press(&mut preferences, &mut shell, title).await;
    }
    preferences.hand("number", &["Number of recent events".into(), 3.into()]);
    setting(&mut shell, "events-shown", "3").await;
    // It follows the settings as well.
    shell.set("show-network", "false").await;
    preferences.line("Network interfaces", true, Some(false));
    shell.picture("gnome-preferences").await;
    preferences.hand("close", &[]);
    shell.until(|state| (!state["windows"].to_string().contains("IPC")).then_some(())).await;
    let log = preferences.log();
    assert!(!log.contains("JS ERROR") && !log.contains("CRITICAL"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_menu_shows_what_is_chosen() {
    let desktop = or_skip!(Desktop::new());
    let service = or_skip!(Launch::on(&desktop.session).in_own_network()).start();
    let mut shell = desktop.start(&[]).await;
    let folder = shell.home().join("Inbox");
    fs::create_dir(&folder).expect("a directory in an own directory");
    shell.set("folders", &format!("[\"{}\"]", folder.display())).await;
    busctl(&desktop.session).manager("Create", "sa{sv}", &["pipe:", "0"]).expect("Create");
    // A new interface comes with a dozen of them, at any time after it.
    shell.set("feed-devices", "false").await;
    service.ip("link add left type veth peer name right");
    let mut preferences = Preferences::open(&desktop, &mut shell).await;
    shell.open(true).await;
    let write = |name: &str| fs::write(folder.join(name), "x").expect("a file in an own directory");
    shown(&mut shell, "left is new").await;
    shown(&mut shell, "Watch This Folder").await;
    write("first");
    shown(&mut shell, "first is new").await;

    // Each of a section of its own.
    for (title, row) in [
        ("Network interfaces", "[\"left\","),
        ("Relays and endpoints", "\"pipe:"),
        ("Recent events", "first is new"),
    ] {
        shown(&mut shell, row).await;
        press(&mut preferences, &mut shell, title).await;
        hidden(&mut shell, row).await;
        press(&mut preferences, &mut shell, title).await;
        shown(&mut shell, row).await;
    }
    assert!(!has_row(shell.state(), "[\"lo\","));
    press(&mut preferences, &mut shell, "Loopback interface").await;
    shown(&mut shell, "[\"lo\",").await;
    preferences.hand("number", &["Number of recent events".into(), 1.into()]);
    hidden(&mut shell, "left is new").await;
    shown(&mut shell, "first is new").await;
    preferences.hand("number", &["Number of recent events".into(), 15.into()]);
    shown(&mut shell, "left is new").await;

    // What is told of next is a file; what would have been told of before it is not there.
    press(&mut preferences, &mut shell, "Events of network interfaces").await;
    service.ip("address add 10.77.0.1/24 dev left");
    shown(&mut shell, "10.77.0.1/24").await;
    let device = fs::write("/sys/class/mem/null/uevent", "change").is_ok();
    write("second");
    shown(&mut shell, "second is new").await;
    assert!(!has_row(shell.state(), "has the address"), "{:#}", shell.state());
    assert!(!has_row(shell.state(), "Device null"), "{:#}", shell.state());
    press(&mut preferences, &mut shell, "Events of network interfaces").await;
    press(&mut preferences, &mut shell, "Events of devices").await;
    service.ip("address delete 10.77.0.1/24 dev left");
    shown(&mut shell, "left has lost the address").await;
    if device && fs::write("/sys/class/mem/null/uevent", "change").is_ok() {
        shown(&mut shell, "Device null has changed").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_are_watched_as_they_are_listed() {
    let desktop = or_skip!(Desktop::new());
    let _service = Service::on(&desktop.session);
    let mut shell = desktop.start(&[]).await;
    shell.open(true).await;
    shown(&mut shell, "Watch This Folder").await;
    let mut preferences = Preferences::open(&desktop, &mut shell).await;
    let objects = objects(&desktop);
    let folder = shell.home().join("Inbox");
    fs::create_dir(&folder).expect("a directory in an own directory");
    let path = folder.to_str().expect("UTF-8").to_owned();

    preferences.hand("click", &["Add a folder".into()]);
    preferences.hand("choose", &[path.clone().into()]);
    setting(&mut shell, "folders", &format!("['{path}']")).await;
    preferences.line(&path, true, None);
    objects.wait_for_all(&["InterfacesAdded", "/org/example/IPC/inotify/"]);
    fs::write(folder.join("letter"), "x").expect("a file in an own directory");
    shown(&mut shell, "letter is new in ~/Inbox").await;

    preferences.hand("click", &["Do not watch any more".into(), path.clone().into()]);
    setting(&mut shell, "folders", "[]").await;
    preferences.line(&path, false, None);
    objects.wait_for_all(&["InterfacesRemoved", "/org/example/IPC/inotify/"]);
    let left = busctl(&desktop.session).tree().expect("a tree");
    assert!(!left.contains("/inotify/"), "{left}");
}

/// The objects that come and go from now on, as lines of the service's signals.
fn objects(desktop: &Desktop) -> Monitor {
    let of_objects = "--match=type='signal',interface='org.freedesktop.DBus.ObjectManager'";
    busctl_monitor(&busctl(&desktop.session), &[of_objects])
}

/// Has a process end, and waits until the menu says so; what it is called.
async fn end(shell: &mut Shell, mut process: Process) -> String {
    shell.activate_entry("Number or name of a process", &process.pid().to_string()).await;
    let name = format!("sh ({})", process.pid());
    shown(shell, &name).await;
    process.close_stdin();
    shown(shell, &format!("{name}: exit code")).await;
    name
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_notified_that_is_not_wanted() {
    let desktop = or_skip!(Desktop::new());
    let _service = Service::on(&desktop.session);
    let mut shell = desktop.start(&[]).await;
    shell.open(true).await;
    shown(&mut shell, "Tell When a Process Ends").await;
    shell.activate("Tell When a Process Ends").await;
    let mut preferences = Preferences::open(&desktop, &mut shell).await;
    for title in ["Show notifications", "When a process has ended"] {
        press(&mut preferences, &mut shell, title).await;
        let quiet = end(&mut shell, sh("read line || exit 3")).await;
        press(&mut preferences, &mut shell, title).await;
        // One that is told of shows that the one before it was not.
        let loud = end(&mut shell, sh("read line || exit 4")).await;
        shell.until(|state| state["notifications"].to_string().contains(&loud).then_some(())).await;
        assert!(!shell.state()["notifications"].to_string().contains(&quiet), "{:#}", shell.state());
    }
    // Files only if they are asked for.
    let made = objects(&desktop);
    let folder = shell.home().join("Inbox");
    fs::create_dir(&folder).expect("a directory in an own directory");
    shell.set("folders", &format!("[\"{}\"]", folder.display())).await;
    made.wait_for_all(&["/org/example/IPC/inotify/"]);
    fs::write(folder.join("quiet"), "x").expect("a file in an own directory");
    shown(&mut shell, "quiet is new").await;
    press(&mut preferences, &mut shell, "When a watched folder changes").await;
    fs::write(folder.join("loud"), "x").expect("a file in an own directory");
    shell.until(|state| state["notifications"].to_string().contains("loud is new").then_some(())).await;
    assert!(!shell.state()["notifications"].to_string().contains("quiet"), "{:#}", shell.state());
}
