//! A link that flaps thousands of times: nothing is missed, and list and signals agree with what there is.
//! `ip -o monitor` hears the same beside the service.

use std::collections::BTreeMap;
use std::fs;

use ipc_blackbox::{Stage, Way, is_signal};
use ipc_harness::{Process, Unavailable, or_skip, sh};
use zbus::message::Message;
use zbus::wire::Structure;
use zbus::{OwnedVariant, Variant};

const NODE: &str = "/org/example/IPC/netlink";
const FLAPS: usize = 2_000;

type Details = BTreeMap<String, OwnedVariant>;

/// As a shell in the service's network namespace.
fn inside(stage: &Stage, script: &str) -> Process {
    sh(&format!("exec nsenter --net --target {} -- sh -ec '{script}'", stage.service.pid()))
}

/// Number, index, name, state.
fn link_changed(message: &Message) -> Option<(u64, i32, String, String)> {
    let changed = is_signal(message, NODE, "LinkChanged");
    let read = || message.body().deserialize::<(u64, i32, String, String, Details)>().expect("LinkChanged");
    changed.then(read).map(|it| (it.0, it.1, it.2, it.3))
}

/// In portions that the service tells of before the next one: nothing is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flaps_by_the_hundred() {
    let (missed, told, by_ip) = or_skip!(flap(100).await);
    assert_eq!(missed, 0);
    assert_eq!(told, by_ip);
    assert!(told >= 2 * FLAPS, "{told}");
}

/// Makes a link flap, so many times at once. How many numbers were skipped, and how many changes of the link were
/// told: by the service, and by ip(8). List and signals agree at the end with what there is.
async fn flap(portion: usize) -> Result<(usize, usize, usize), Unavailable> {
    let stage = Stage::in_own_network(Way::DbusDaemon, "")?;
    let client = stage.client().await;
    let inbox = client.broadcasts().await;
    let directory = stage.temp_dir();
    let heard = directory.path().join("heard");
    let heard = heard.display();
    inside(&stage, "ip link add v0 type veth peer name v1; ip link set v1 up").finish().success();
    let _monitor = inside(&stage, &format!("exec ip -o monitor link > {heard}"));
    let begin = "n=0; until grep -q begin {}; do n=$((n+1)); ip link add begin$n type bridge; done";
    inside(&stage, &begin.replace("{}", &heard.to_string())).finish().success();
    let links = async || -> (u64, Vec<(i32, String, String, Details)>) {
        client.call(NODE, "Netlink", "Links", &()).await.expect("Links")
    };
    let (first, _) = links().await;
    let told = async |name: &str| {
        let named = |all: &[Message]| all.iter().filter_map(link_changed).find(|it| it.2 == name);
        inbox.until(|all| named(all).map(|it| it.0)).await
    };
    let batch = format!(
        "n=0; while [ $n -lt {portion} ]; do n=$((n+1)); echo link set v0 up; echo link set v0 down; done | ip -batch -"
    );
    for n in 0..FLAPS / portion {
        inside(&stage, &format!("{batch}; ip link add m{n} type bridge")).finish().success();
        told(&format!("m{n}")).await;
    }
    inside(&stage, "ip link set v0 up; ip link add end type bridge").finish().success();
    let last = told("end").await;
    let all = inbox.all();
    let numbers: Vec<u64> =
        all.iter().filter_map(number).filter(|seq| *seq > first && *seq <= last).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "told once, in order");
    let missed = (last - first) as usize - numbers.len();
    let ours = all.iter().filter_map(link_changed).filter(|it| it.2 == "v0" && it.0 > first).count();
    inside(&stage, &format!("until grep -q \" end:\" {heard}; do :; done")).finish().success();
    let monitored = fs::read_to_string(directory.path().join("heard")).expect("what ip heard");
    let theirs = monitored.lines().filter(|line| line.contains(": v0@")).count();
    eprintln!("{ours} changes of v0 told, {theirs} by ip; {missed} numbers skipped");

    let (_, list) = links().await;
    let state = list.iter().find(|it| it.1 == "v0").map(|it| it.2.clone()).expect("v0 is there");
    let there = inside(&stage, "ip -o link show v0").finish().success();
    assert!(state == "up" && there.contains("state UP"), "{state}: {there}");
    let after = |all: &[Message]| all.iter().filter_map(link_changed).rfind(|it| it.2 == "v0");
    assert_eq!(inbox.until(|all| after(all).map(|it| it.3)).await, state);
    Ok((missed, ours, theirs))
}

/// That of any signal of the node.
fn number(message: &Message) -> Option<u64> {
    if message.header().path().is_none_or(|path| *path != NODE) {
        return None;
    }
    let body = message.body();
    match body.deserialize::<Structure<'_>>().ok()?.fields() {
        [Variant::U64(seq), ..] => Some(*seq),
        _ => None,
    }
}
