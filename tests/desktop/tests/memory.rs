//! The extension's memory, over a thousand events and a thousand more: what the second thousand leaves behind.

use ipc_desktop::{Desktop, Shell};
use ipc_harness::{Launch, Process, Service, or_skip};
use std::fmt::Write;
use std::process::Command;

/// A thousand events: addresses that come and go. The last one is a mark.
fn thousand(service: &Service, round: usize) {
    let mut batch = String::new();
    for number in 0..500 {
        let address = format!("10.{round}.{}.{}/32 dev lo", number / 250, number % 250);
        write!(batch, "address add {address}\naddress delete {address}\n").expect("writing into a string");
    }
    writeln!(batch, "address add 10.{round}.9.9/32 dev lo").expect("writing into a string");
    let mut ip = Command::new("nsenter");
    let mut ip =
        Process::spawn(ip.args(["--net", "--target", &service.pid().to_string(), "--", "ip", "-batch", "-"]));
    ip.write(batch);
    ip.finish().success();
}

/// The bytes that the objects of all JavaScript in the shell take, garbage collected.
async fn heap(shell: &Shell) -> u64 {
    let file = shell.home().join("memory");
    let file = file.display();
    shell
        .eval(&format!("imports.system.gc(); imports.system.gc(); imports.system.dumpMemoryInfo('{file}')"))
        .await;
    let told = std::fs::read_to_string(shell.home().join("memory")).expect("what dumpMemoryInfo writes");
    // The first is in whole chunks, the second, of the zone, is exact.
    let bytes = |line: &str| line.trim().strip_prefix("\"gcBytes\": ")?.trim_end_matches(',').parse().ok();
    told.lines().filter_map(bytes).next_back().expect("gcBytes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_events_leave_nothing_behind() {
    let desktop = or_skip!(Desktop::new());
    let service = or_skip!(Launch::on(&desktop.session).in_own_network()).start();
    let mut shell = desktop.start(&[]).await;
    shell.set("show-loopback", "true").await;
    shell.open(true).await;
    let mut heaps = Vec::new();
    for round in 1..=4 {
        thousand(&service, round);
        let mark = format!("10.{round}.9.9/32");
        shell.row(|row| row.iter().any(|text| text.contains(&mark)).then_some(())).await;
        heaps.push(heap(&shell).await);
    }
    println!("bytes of JavaScript objects after each thousand events: {heaps:?}");
    // The first round fills the feed and whatever the shell compiles; after that there is nothing to grow.
    assert!(heaps[3] < heaps[1] + 64 * 1024, "{heaps:?}");
}
