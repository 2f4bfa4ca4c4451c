//! The extension in a real GNOME Shell.

use std::fs;

use ipc_desktop::Desktop;
use ipc_harness::{Launch, or_skip};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_shown_as_it_changes() {
    let desktop = or_skip!(Desktop::new());
    let launch = or_skip!(Launch::on(&desktop.session).in_own_network());
    let service = launch.start();
    let mut shell = desktop.start(&[]).await;
    shell.picture("panel").await;
    service.ip("link add left type veth peer name right");
    service.ip("link set left up");
    service.ip("link set right up");
    service.ip("address add 10.77.0.1/24 dev left");
    shell.open(true).await;
    shell.row(|row| matches!(row, ["left", addresses, "up"] if addresses.contains("10.77.0.1/24")).then_some(())).await;
    shell.picture("menu").await;
    service.ip("link set right down");
    shell.row(|row| (row.first() == Some(&"left") && row.last() != Some(&"up")).then_some(())).await;
    fs::write("/tmp/g_state.json", format!("{:#}", shell.state())).unwrap();
}
