//! `ipc-tray` in a panel, driven as a panel drives it: over com.canonical.dbusmenu.

mod panel;

use std::fs;
use std::process::Command;

use ipc_blackbox::{Stage, Way, isolated, options};
use ipc_harness::{Address, Bus, Process, Service, or_skip, sh};

use panel::Desktop;

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn interfaces_come_change_and_go() {
    isolated(Way::DbusDaemon, "", |stage| async move {
        let mut desktop = Desktop::start(stage.address()).await;
        desktop.entry(|entry| entry.label == "No network interface but lo").await;
        ip("link add ta_1 type veth peer name tb");
        desktop.entry(|entry| entry.label == "ta_1: down").await;
        ip("link set ta_1 up");
        ip("link set tb up");
        let told = desktop.told().await;
        assert_eq!(
            (told.replaces, told.actions.as_slice()),
            (0, &["mute".into(), "Do not tell this again".into()][..])
        );
        ip("address add 192.0.2.7/24 dev ta_1");
        desktop.entry(|entry| entry.label.starts_with("ta_1: up, 192.0.2.7/24")).await;
        desktop.entry(|entry| entry.label == "ta_1 has 192.0.2.7/24").await;
        assert!(desktop.property("ToolTip").contains("connected: "), "{}", desktop.property("ToolTip"));
        ip("link set ta_1 down");
        desktop.entry(|entry| entry.label.starts_with("ta_1: down")).await;
        ip("link del ta_1");
        desktop.entry(|entry| entry.label == "ta_1 is gone").await;
        desktop.entry(|entry| entry.label == "No network interface but lo").await;
    });
}

#[tokio::test]
async fn the_end_of_a_process_is_told_with_its_exit_code() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mut desktop = Desktop::start(stage.address()).await;
    let mut process = sh("read line || exit 23");
    let label = format!("sh ({})", process.pid());
    desktop.entry(|entry| entry.label == "Notifications").await;
    desktop.entry(|entry| entry.label.starts_with("Service on")).await;
    desktop.open();
    desktop.choose(&label).await;
    desktop.entry(|entry| entry.label == label && entry.checked).await;
    process.close_stdin();
    let told = desktop.told().await;
    assert_eq!(told.summary, "sh has ended");
    assert_eq!(told.body, format!("Process {}: exit code 23", process.pid()));
}

#[tokio::test]
async fn a_relay_is_paused_and_stopped_from_the_menu() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mut desktop = Desktop::start(stage.address()).await;
    let client = stage.client().await;
    let (source, sink) = (client.create("pipe:").await, client.create("pipe:").await);
    let relay = client.relay(&source, &sink, options([])).await;
    desktop.entry(|entry| entry.label.contains(" → ")).await;
    desktop.choose("Pause").await;
    desktop.entry(|entry| entry.label.starts_with("paused, 0 B moved")).await;
    let state = client.property(&relay, "Relay", "State").await.expect("a state");
    assert_eq!(String::try_from(state).expect("text"), "paused");
    desktop.choose("Resume").await;
    desktop.entry(|entry| entry.label.starts_with("running, 0 B moved")).await;
    client.write(&source, b"hello", 1000).await.expect("written");
    assert_eq!(client.read(&sink, 5, 10_000).await.expect("read"), b"hello");
    desktop.open();
    desktop.entry(|entry| entry.label.starts_with("running, 5 B moved")).await;
    desktop.choose("Stop").await;
    let told = desktop.told().await;
    assert_eq!(told.summary, "A relay has ended");
    assert!(told.body.ends_with(": stopped, after 5 B"), "{}", told.body);
}

#[tokio::test]
async fn what_waits_is_said_when_the_menu_opens() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mut desktop = Desktop::start(stage.address()).await;
    let client = stage.client().await;
    let (pipe, queue) =
        (client.create("pipe:").await, client.create("sysvmq:key=private,remove-on-close").await);
    let (pipe_is, queue_is) = (client.address(&pipe).await, client.address(&queue).await);
    desktop.entry(|entry| entry.label == format!("{pipe_is}: 0 B")).await;
    client.write(&pipe, b"seven b", 1000).await.expect("written");
    client.send(&queue, b"one", options([])).await.expect("sent");
    desktop.open();
    desktop.entry(|entry| entry.label == format!("{pipe_is}: 7 B")).await;
    desktop.entry(|entry| entry.label == format!("{queue_is}: 1 message")).await;
    client.close(&queue).await;
}

#[tokio::test]
async fn a_watched_folder_tells_until_it_is_muted() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mut desktop = Desktop::start(stage.address()).await;
    let folder = desktop.home.path().to_str().expect("UTF-8").to_owned();
    desktop.choose(&folder).await;
    desktop.entry(|entry| entry.label == folder && entry.checked).await;
    let write = |name: &str| fs::write(format!("{folder}/{name}"), "x").expect("an own file");
    write("first.pdf");
    let first = desktop.told().await;
    assert_eq!(
        (first.summary.as_str(), first.body),
        ("first.pdf", format!("A file in {folder} was written."))
    );
    assert_eq!(first.actions[..2], ["default", "Show in folder"]);
    write("second.pdf");
    let second = desktop.told().await;
    assert_eq!(
        (second.summary.as_str(), second.replaces),
        ("second.pdf", first.id),
        "one topic, one notification"
    );
    desktop.act(&second, "mute").await;
    // It comes over another connection than the events: only what is told afterwards shows that it arrived.
    desktop.choose("Notifications").await;
    desktop.entry(|entry| entry.label == "Notifications" && !entry.checked).await;
    desktop.choose("Notifications").await;
    desktop.entry(|entry| entry.label == "Notifications" && entry.checked).await;
    write("third.pdf");
    desktop.entry(|entry| entry.label == "third.pdf was written").await;
    let mut process = sh("read line");
    desktop.open();
    desktop.choose(&format!("sh ({})", process.pid())).await;
    process.close_stdin();
    assert_eq!(desktop.told().await.summary, "sh has ended", "the third file is not told");
}

#[tokio::test]
async fn the_service_comes_and_goes() {
    let bus = or_skip!(Bus::dbus_daemon());
    let mut desktop = Desktop::start(bus.address()).await;
    desktop.entry(|entry| entry.label == "org.example.IPC is not on the session bus").await;
    desktop.entry(|entry| entry.label == "Install the package ipcd, or run: ipcd --bus session").await;
    assert_eq!(desktop.property("Status"), "s \"Passive\"");
    let service = Service::on(&bus);
    desktop.entry(|entry| entry.label == "Service on the session bus").await;
    assert_eq!(desktop.property("Status"), "s \"Active\"");
    drop(service);
    desktop.entry(|entry| entry.label == "org.example.IPC is not on the session bus").await;
    let _again = Service::on(&bus);
    desktop.entry(|entry| entry.label == "Service on the session bus").await;
    desktop.choose("Quit").await;
    assert!(desktop.tray.wait().success());
}

#[test]
fn a_wrong_option_and_a_missing_bus_are_said() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ipc-tray"));
        command.args(arguments).env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus");
        Process::spawn(&mut command).finish()
    };
    let wrong = run(&["--bus", "nonsense"]);
    assert!(wrong.stderr.contains("expected system, session or a D-Bus address"), "{}", wrong.stderr);
    let missing = run(&[]);
    assert!(
        missing.stderr.contains("is there a session bus (DBUS_SESSION_BUS_ADDRESS)?"),
        "{}",
        missing.stderr
    );
    assert!(run(&["--help"]).success().contains("StatusNotifierItem"));
}
