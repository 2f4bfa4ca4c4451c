//! The extension's memory, over a thousand events and a thousand more: nothing is left behind by what has happened.
//!
//! What is counted is what lives on the heap of JavaScript, each object and string, garbage collected. The bytes that
//! the collector says are no measure: it counts pages of 4 KiB that have anything in them, and these become more by some
//! kilobytes in a thousand events with as many objects as before, scattered more widely. Code that is compiled is not
//! counted; it comes with use, and is thrown away now and then.

use ipc_desktop::{Desktop, Shell};
use ipc_harness::{Launch, Process, Service, or_skip};
use std::fmt::Write;
use std::fs;
use std::process::Command;

/// A thousand events: addresses that come and go. The last one is a mark, and goes with the next thousand.
fn thousand(service: &Service, round: usize) {
    let mut batch = String::new();
    if round > 1 {
        writeln!(batch, "address delete 10.{}.9.9/32 dev lo", round - 1).expect("writing into a string");
    }
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

/// How many objects, strings and all else live on the heap of all JavaScript in the shell, compiled code left out.
async fn living(shell: &Shell) -> i64 {
    let file = shell.home().join("heap");
    // What is written would be added to it.
    let _none_at_first = fs::remove_file(&file);
    let gc = "imports.system.gc(); imports.system.gc()";
    shell.eval(&format!("{gc}; imports.system.dumpHeap('{}')", file.display())).await;
    let heap = String::from_utf8_lossy(&fs::read(file).expect("what dumpHeap writes")).into_owned();
    // Below the roots, a line for each with its address; `>` is before what it holds.
    let (_, all) = heap.split_once("\n==========\n").expect("what dumpHeap writes");
    let living = all.lines().filter(|line| line.starts_with("0x") && !line.ends_with("jitcode")).count();
    i64::try_from(living).expect("fewer than 2^63")
}

/// What of the extension has a number: lines of its feed, what it hears, and what its menu is made of.
async fn counted(shell: &Shell) -> Vec<u64> {
    let counts = shell
        .eval(
            "(() => {
                const button = Main.panel.statusArea['ipc@example.org'];
                const count = actor => actor.get_children().reduce((sum, child) => sum + count(child), 1);
                const {feed, service} = button._model;
                return [feed.lines.length, service._subscriptions.length, count(button.menu.box)];
            })()",
        )
        .await;
    serde_json::from_value(counts).expect("numbers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_events_leave_nothing_behind() {
    let desktop = or_skip!(Desktop::new());
    let service = or_skip!(Launch::on(&desktop.session).in_own_network()).start();
    let mut shell = desktop.start(&[]).await;
    shell.set("show-loopback", "true").await;
    shell.open(true).await;
    let (mut heaps, mut counts) = (Vec::new(), Vec::new());
    for round in 1..=9 {
        thousand(&service, round);
        let mark = format!("10.{round}.9.9/32");
        shell.row(|row| row.iter().any(|text| text.contains(&mark)).then_some(())).await;
        heaps.push(living(&shell).await);
        counts.push(counted(&shell).await);
    }
    println!("what lives on the heap after each thousand events: {heaps:?}");
    println!("lines of the feed, signals that are heard, parts of the menu: {counts:?}");
    assert!(counts[2..].iter().all(|it| *it == counts[2]), "{counts:?}");
    assert!(counts[8][0] <= 50, "{counts:?}");
    // The first rounds fill the feed and what the shell makes when it is first used, as it does at times later. A leak is
    // there in all of them: one object in ten events would be a hundred each time.
    let mut growths: Vec<_> = heaps[2..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    growths.sort_unstable();
    let median = growths[growths.len() / 2];
    assert!(median < 30, "{median} more after each thousand events: {heaps:?}");
}
