//! The extension in a real GNOME Shell, with a service beside it: what the menu says when the kernel has something to
//! tell, what its buttons do, and what becomes of it all when the service goes and comes back.
//!
//! Pictures are left in target/desktop.

use std::fs;
use std::time::Instant;

use ipc_desktop::{Desktop, Shell, staged};
use ipc_harness::{Bus, Launch, Monitor, Process, Service, busctl, busctl_monitor, object_path, or_skip, sh};

const ENTRY_FOLDER: &str = "Path of a folder";
const ENTRY_PROCESS: &str = "Number or name of a process";

/// Whether a line of the menu begins with this text.
fn begins(row: &[&str], text: &str) -> Option<()> {
    row.first().is_some_and(|first| first.starts_with(text)).then_some(())
}

/// Waits until a notification has this text.
async fn notified(shell: &mut Shell, text: &str) {
    let says = |it: &serde_json::Value| it.as_str().is_some_and(|it| it.contains(text));
    shell.until(|state| state["notifications"].as_array()?.iter().any(says).then_some(())).await;
}

/// The objects that are made from now on by the service on this bus, as lines of its signals.
fn made_on(bus: &Bus) -> Monitor {
    busctl_monitor(&busctl(bus), &["--match=type='signal',member='InterfacesAdded'"])
}

/// A process that ends with this code when its input ends.
fn waiting_process(code: i32) -> Process {
    sh(&format!("read line || exit {code}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_shown_as_it_changes() {
    let desktop = or_skip!(Desktop::new());
    let service = or_skip!(Launch::on(&desktop.session).in_own_network()).start();
    let mut shell = desktop.start(&[]).await;
    shell.picture("gnome-panel").await;
    service.ip("link add left type veth peer name right");
    service.ip("link set left up");
    service.ip("link set right up");
    service.ip("address add 10.77.0.1/24 dev left");
    shell.open(true).await;
    let up = |row: &[&str]| matches!(row, ["left", addresses, "up"] if addresses.contains("10.77.0.1/24"));
    shell.row(|row| up(row).then_some(())).await;

    let folder = shell.home().join("Inbox");
    fs::create_dir(&folder).expect("a directory in an own directory");
    shell.activate_entry(ENTRY_FOLDER, "~/Inbox").await;
    shell.row(|row| begins(row, "Watch This Folder")).await;
    // Pressed in turn, so that the last frame of each is waited for: what a person sees of a cable that is loose.
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..5 {
        let pulled = Instant::now();
        service.ip("link set right down");
        shell
            .row(|row| (row.first() == Some(&"left") && row.last() == Some(&"no carrier")).then_some(()))
            .await;
        slowest = slowest.max(pulled.elapsed());
        service.ip("link set right up");
        shell.row(|row| up(row).then_some(())).await;
    }
    println!("from the start of ip(8) to the frame with the new state: at most {slowest:?}");
    shell.row(|row| begins(row, "left: no carrier (×")).await;
    fs::write(folder.join("report.pdf"), "done").expect("a file in an own directory");
    shell.row(|row| begins(row, "report.pdf is new in ~/Inbox")).await;
    shell.picture("gnome-menu").await;

    service.ip("address delete 10.77.0.1/24 dev left");
    shell.row(|row| begins(row, "left has lost the address 10.77.0.1")).await;
    service.ip("link delete left");
    shell.row(|row| begins(row, "left has gone")).await;
    shell.until(|state| (!state["rows"].to_string().contains("[\"left\"")).then_some(())).await;
    // Of a device that is on every machine; telling takes root.
    if fs::write("/sys/class/mem/null/uevent", "change").is_ok() {
        shell.row(|row| begins(row, "Device null has changed (mem)")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_end_are_told_of() {
    let desktop = or_skip!(Desktop::new());
    let _service = Service::on(&desktop.session);
    let mut shell = desktop.start(&[]).await;
    shell.open(true).await;
    let mut process = waiting_process(3);
    shell.activate("Tell When a Process Ends").await;
    shell.activate_entry(ENTRY_PROCESS, &process.pid().to_string()).await;
    let line = format!("sh ({})", process.pid());
    shell.row(|row| begins(row, &line)).await;
    shell.picture("gnome-process").await;
    process.close_stdin();
    shell.row(|row| begins(row, &format!("{line}: exit code 3"))).await;
    notified(&mut shell, &format!("{line} has ended: exit code 3")).await;
    // The endpoint was for this only.
    let left = busctl(&desktop.session).tree().expect("a tree");
    assert!(!left.contains("/signal/"), "{left}");

    shell.activate_entry(ENTRY_PROCESS, "4194303").await;
    shell.row(|row| row.iter().any(|text| text.contains("4194303")).then_some(())).await;
    shell.open(false).await;
    shell.picture("gnome-notification").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_are_shown_paused_and_stopped() {
    let desktop = or_skip!(Desktop::new());
    let _service = Service::on(&desktop.session);
    let bus = busctl(&desktop.session);
    let create =
        |address: &str| object_path(&bus.manager("Create", "sa{sv}", &[address, "0"]).expect("Create"));
    let bell = shell_fifo(&desktop);
    let source = create(&format!("fifo:path={bell}"));
    let (_, sink) = (create("unix:pair"), create("unix:pair"));
    let relay = bus.manager("Relay", "ooa{sv}", &[&source, &sink, "0"]).expect("Relay");
    let relay = object_path(&relay);
    let queue = create("sysvmq:key=private,remove-on-close");
    for word in ["one", "two"] {
        bus.call(&queue, "org.example.IPC.Messages", "SendText", "sa{sv}u", &[word, "0", "1000"])
            .expect("SendText");
    }
    let pipe = create("pipe:");
    bus.call(&pipe, "org.example.IPC.Stream", "WriteText", "su", &["seven b", "1000"]).expect("WriteText");
    let mut shell = desktop.start(&[]).await;
    shell.open(true).await;
    let title = format!("fifo:path={bell}");
    let end = |row: &[&str]| {
        (row.first() == Some(&title.as_str())).then(|| row.last().map(|end| (*end).to_owned()))
    };
    // Faster and slower, until a rate is shown that is not that of nothing.
    let _talk = sh(&format!(
        "exec 3>{bell}; while :; do for n in 1 2 3; do head -c $((n * 1000)) /dev/zero >&3; sleep 1; done; done"
    ));
    shell.row(|row| end(row)?.filter(|end| end.ends_with("/s") && !end.starts_with("0 "))).await;
    shell.row(|row| row.contains(&"2 messages").then_some(())).await;
    shell.row(|row| row.contains(&"7 bytes").then_some(())).await;
    shell.picture("gnome-relay").await;
    shell.press(&title, "Pause or resume").await;
    shell.row(|row| end(row)?.filter(|end| end == "paused")).await;
    let state = || bus.property(&relay, "org.example.IPC.Relay", "State").unwrap_or_default();
    assert_eq!(state(), "s \"paused\"");
    shell.press(&title, "Pause or resume").await;
    shell.row(|row| end(row)?.filter(|end| end != "paused")).await;
    assert_ne!(state(), "s \"paused\"");
    shell.press(&title, "Stop").await;
    shell.until(|state| (!state["rows"].to_string().contains('→')).then_some(())).await;
    assert_eq!(state(), "");
    bus.call(&queue, "org.example.IPC.Endpoint", "Remove", "", &[]).expect("Remove");
}

/// A path for a FIFO in the home of the desktop's user.
fn shell_fifo(desktop: &Desktop) -> String {
    desktop.home().join("bell").display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_comes_back_is_used_again() {
    let desktop = or_skip!(Desktop::new());
    let mut shell = desktop.start(&[]).await;
    shell.open(true).await;
    shell.row(|row| begins(row, "The IPC service is not installed")).await;
    shell.row(|row| row.iter().find(|text| text.contains("ipcd --bus session")).map(|_| ())).await;
    shell.picture("gnome-not-installed").await;

    let service = Service::on(&desktop.session);
    shell.row(|row| begins(row, "Watch This Folder")).await;
    let folder = shell.home().join("Inbox");
    fs::create_dir(&folder).expect("a directory in an own directory");
    shell.activate_entry(ENTRY_FOLDER, folder.to_str().expect("UTF-8")).await;
    let mut process = waiting_process(4);
    shell.activate("Tell When a Process Ends").await;
    shell.activate_entry(ENTRY_PROCESS, &process.pid().to_string()).await;
    let line = format!("sh ({})", process.pid());
    shell.row(|row| begins(row, &line)).await;
    drop(service);
    shell.row(|row| begins(row, "The IPC service is not installed")).await;

    // On the system bus this time, which is preferred.
    let session = made_on(&desktop.session);
    let _service = Service::on(&desktop.session);
    session.wait_for_all(&["/org/example/IPC/inotify/"]);
    let system = made_on(&desktop.system);
    let preferred = Service::on(&desktop.system);
    system.wait_for_all(&["/org/example/IPC/inotify/"]);
    system.wait_for_all(&["/org/example/IPC/signal/"]);
    fs::write(folder.join("letter"), "x").expect("a file in an own directory");
    shell.row(|row| begins(row, "letter is new in ~/Inbox")).await;
    process.close_stdin();
    notified(&mut shell, &format!("{line} has ended: exit code 4")).await;
    let session = made_on(&desktop.session);
    drop(preferred);
    session.wait_for_all(&["/org/example/IPC/inotify/"]);
}

/// As the package for desktops has it, and not in anybody's home: with its settings, texts and icon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_where_a_package_installs_it() {
    let desktop = or_skip!(Desktop::new());
    let home = desktop.home();
    fs::remove_dir_all(home.join(".local/share/gnome-shell/extensions")).expect("what was installed");
    staged::stage(&home.join("share")).unwrap_or_else(|error| panic!("{error:#}"));
    let data = format!("{}/share:/usr/local/share:/usr/share", home.display());
    let mut shell = desktop.start(&[("XDG_DATA_DIRS", &data), ("LANGUAGE", "de")]).await;
    shell.set("events-shown", "uint32 3").await;
    shell.until(|state| (state["settings"]["events-shown"] == "3").then_some(())).await;
    shell.open(true).await;
    shell.row(|row| begins(row, "Der IPC-Dienst ist nicht installiert")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_speaks_german() {
    let desktop = or_skip!(Desktop::new());
    let mut shell = desktop.start(&[("LANGUAGE", "de")]).await;
    shell.open(true).await;
    shell.row(|row| begins(row, "Der IPC-Dienst ist nicht installiert")).await;
    shell.row(|row| begins(row, "Einstellungen")).await;
}
