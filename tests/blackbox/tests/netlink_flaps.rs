//! A link that flaps thousands of times: nothing is missed, and list and signals agree with what there is.
//! `ip -o monitor` hears the same beside the service.

use std::collections::BTreeMap;
use std::fs;

use ipc_blackbox::{Stage, Way, is_signal};
use ipc_harness::{Process, or_skip, sh};
use zbus::message::Message;
use zbus::wire::Structure;
use zbus::{OwnedVariant, Variant};

const NODE: &str = "/org/example/IPC/netlink";
const FLAPS: usize = 2_000;
const AT_ONCE: usize = 100;

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
    let stage = or_skip!(Stage::in_own_network(Way::DbusDaemon, ""));
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
        "n=0; while [ $n -lt {AT_ONCE} ]; do n=$((n+1)); echo link set v0 up; echo link set v0 down; done | ip -batch -"
    );
    for n in 0..FLAPS / AT_ONCE {
        inside(&stage, &format!("{batch}; ip link add m{n} type bridge")).finish().success();
        told(&format!("m{n}")).await;
    }
    inside(&stage, "ip link set v0 up; ip link add end type bridge").finish().success();
    let last = told("end").await;
    let all = inbox.all();
    let numbers: Vec<u64> =
        all.iter().filter_map(number).filter(|seq| *seq > first && *seq <= last).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "told once, in order");
    assert_eq!(numbers.len(), (last - first) as usize, "none is missed");
    let changed = |it: &(u64, i32, String, String)| it.2 == "v0" && it.0 > first && it.0 < last;
    let ours = all.iter().filter_map(link_changed).filter(changed).count();
    inside(&stage, &format!("until grep -q \" end:\" {heard}; do :; done")).finish().success();
    let monitored = fs::read_to_string(directory.path().join("heard")).expect("what ip heard");
    let until_end = monitored.lines().take_while(|line| !line.contains(" end:"));
    assert_eq!(ours, until_end.filter(|line| line.contains(": v0@")).count());
    assert!(ours >= 2 * FLAPS, "{ours}");

    let (_, list) = links().await;
    let state = list.iter().find(|it| it.1 == "v0").map(|it| it.2.clone()).expect("v0 is there");
    let there = inside(&stage, "ip -o link show v0").finish().success();
    assert!(state == "up" && there.contains("state UP"), "{state}: {there}");
    let after = |all: &[Message]| all.iter().filter_map(link_changed).rfind(|it| it.2 == "v0");
    assert_eq!(inbox.until(|all| after(all).map(|it| it.3)).await, state);
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
