//! What the kernel tells everybody: heard with a match rule and nothing else, joined to the state without a gap.
//! ip(8) beside the service changes what there is to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use ipc_blackbox::{Client, Inbox, Options, Stage, everywhere, integer, is_signal};
use ipc_harness::system::{ALICE, SystemBus};
use ipc_harness::xml::{attribute, tags};
use ipc_harness::{Process, Unavailable, or_skip, patience, watchdog};
use zbus::message::{Message, Type};
use zbus::{OwnedVariant, Variant};

const NODE: &str = "/org/example/IPC/netlink";

type Details = BTreeMap<String, OwnedVariant>;
type Link = (i32, String, String, Details);
type Address = (i32, String, String, u8, Details);
type Route = (String, String, String, Details);
type Rule = (u32, u32, Details);
type Past = (u64, u64, String, OwnedVariant);

/// A list of the node, with its number.
async fn list<T>(client: &Client, method: &str) -> (u64, Vec<T>)
where
    (u64, Vec<T>): for<'d> zbus::wire::DynamicDeserialize<'d>,
{
    let listed = client.call(NODE, "Netlink", method, &()).await;
    listed.unwrap_or_else(|error| panic!("{method}: {error}"))
}

async fn since(client: &Client, seq: u64) -> (Vec<Past>, u64) {
    client.call(NODE, "Netlink", "Since", &(seq,)).await.expect("Since")
}

/// Listens, and over a private connection on the system bus there is something to hear from then on.
async fn listen(client: &Client) -> Inbox {
    let inbox = client.broadcasts().await;
    list::<Link>(client, "Links").await;
    inbox
}

fn told(all: &[Message]) -> Vec<&Message> {
    let ours = |message: &&Message| {
        message.message_type() == Type::Signal
            && message.header().path().is_some_and(|path| *path == NODE)
            && message.header().interface().is_some_and(|name| *name == "org.example.IPC.Netlink")
    };
    all.iter().filter(ours).collect()
}

/// The first signal of this name whose arguments are as wanted.
#[track_caller]
fn wait_for<T, R>(
    inbox: &Inbox,
    member: &'static str,
    mut wanted: impl FnMut(T) -> Option<R>,
) -> impl Future<Output = R>
where
    T: for<'d> zbus::wire::DynamicDeserialize<'d>,
{
    inbox.until(move |all| {
        all.iter().filter(|message| is_signal(message, NODE, member)).find_map(|message| {
            let read = message.body().deserialize();
            wanted(read.unwrap_or_else(|error| panic!("{member} has other arguments: {error}")))
        })
    })
}

fn text(details: &Details, key: &str) -> Option<String> {
    String::try_from(details.get(key)?.try_clone().ok()?).ok()
}

async fn changes_are_told(stage: Stage) {
    let (client, service) = (stage.client().await, &stage.service);
    let inbox = listen(&client).await;
    service.ip("link set lo up");
    let (seq, index) = wait_for(&inbox, "LinkChanged", |it: (u64, i32, String, String, Details)| {
        assert!(it.2 == "lo" && it.3 != "down", "{it:?}");
        assert_eq!(text(&it.4, "old-state").as_deref(), Some("down"), "{it:?}");
        Some((it.0, it.1))
    })
    .await;
    assert!(seq > 0 && index > 0);
    service.ip("address add 10.77.0.1/24 dev lo");
    let address = |it: (u64, i32, String, String, u8, Details)| {
        (it.3 == "10.77.0.1").then(|| assert_eq!((it.1, &*it.2, it.4), (index, "lo", 24)))
    };
    wait_for(&inbox, "AddressAdded", address).await;
    service.ip("route add 10.88.0.0/16 via 10.77.0.7 dev lo");
    let route = |it: (u64, String, String, String, Details)| {
        (it.1 == "10.88.0.0/16").then(|| assert_eq!((&*it.2, &*it.3), ("10.77.0.7", "lo")))
    };
    wait_for(&inbox, "RouteAdded", route).await;
    service.ip("rule add priority 4711 table 77");
    let rule = |it: (u64, u32, u32, Details)| (it.1 == 4711).then(|| assert_eq!(it.2, 77));
    wait_for(&inbox, "RuleAdded", rule).await;

    let (_, links) = list::<Link>(&client, "Links").await;
    assert!(matches!(&links[..], [(_, name, state, _)] if name == "lo" && state != "down"), "{links:?}");
    let (_, addresses) = list::<Address>(&client, "Addresses").await;
    assert!(addresses.iter().any(|it| (&*it.1, &*it.2, it.3) == ("lo", "10.77.0.1", 24)), "{addresses:?}");
    let (_, routes) = list::<Route>(&client, "Routes").await;
    assert!(
        routes.iter().any(|it| (&*it.0, &*it.1, &*it.2) == ("10.88.0.0/16", "10.77.0.7", "lo")),
        "{routes:?}"
    );
    let (_, rules) = list::<Rule>(&client, "Rules").await;
    assert!(rules.iter().any(|it| (it.0, it.1) == (4711, 77)), "{rules:?}");

    service.ip("rule delete priority 4711");
    wait_for(&inbox, "RuleRemoved", |it: (u64, u32, u32, Details)| (it.1 == 4711).then_some(())).await;
    service.ip("route delete 10.88.0.0/16");
    wait_for(&inbox, "RouteRemoved", route).await;
    service.ip("address delete 10.77.0.1/24 dev lo");
    wait_for(&inbox, "AddressRemoved", address).await;
    service.ip("link set lo down");
    wait_for(&inbox, "LinkChanged", |it: (u64, i32, String, String, Details)| (it.3 == "down").then_some(()))
        .await;
    numbers_have_no_gap(&inbox);
}

#[track_caller]
fn numbers_have_no_gap(inbox: &Inbox) {
    let all = inbox.all();
    let first = |message: &&Message| -> u64 {
        let body = message.body();
        let fields: zbus::wire::Structure<'_> = body.deserialize().expect("arguments");
        match fields.fields() {
            [Variant::U64(seq), ..] => *seq,
            other => panic!("no number in front: {other:?}"),
        }
    };
    let numbers: Vec<_> = told(&all).iter().map(first).collect();
    assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{numbers:?}");
}

/// While addresses come and go, a list and the signals after its number make the same state as a later list.
async fn a_list_and_what_follows_it_have_no_gap(stage: Stage) {
    let (client, service) = (stage.client().await, &stage.service);
    let inbox = listen(&client).await;
    let script = "for n in $(seq 1 60); do ip address add 10.99.0.$n/32 dev lo; \
        [ $((n % 3)) = 0 ] && ip address delete 10.99.0.$((n / 2))/32 dev lo; done; \
        ip address add 10.99.1.1/32 dev lo";
    let script = format!("nsenter --net --target {} -- sh -c '{script}'", service.pid());
    let busy = ipc_harness::sh(&script);
    let mut snapshots = Vec::new();
    let done = |all: &[Message]| {
        let last = |message: &&Message| {
            let body = message.body();
            let read = body.deserialize::<(u64, i32, String, String, u8, Details)>();
            read.is_ok_and(|it| it.3 == "10.99.1.1")
        };
        told(all).iter().any(last)
    };
    let lists = async {
        while !done(&inbox.all()) {
            snapshots.push(list::<Address>(&client, "Addresses").await);
        }
    };
    watchdog(patience(), lists).await;
    drop(busy);
    let names = |list: &[Address]| list.iter().map(|it| it.2.clone()).collect::<BTreeSet<_>>();
    let wanted = names(&list::<Address>(&client, "Addresses").await.1);
    assert!(wanted.len() >= 41, "{wanted:?}");
    let all = inbox.all();
    for (seq, addresses) in &snapshots {
        let mut state = names(addresses);
        for message in told(&all) {
            let added = is_signal(message, NODE, "AddressAdded");
            if !added && !is_signal(message, NODE, "AddressRemoved") {
                continue;
            }
            let it: (u64, i32, String, String, u8, Details) =
                message.body().deserialize().expect("an address");
            if it.0 <= *seq {
                continue;
            }
            // In an exact list, each event after it changes something.
            let fresh = if added { state.insert(it.3.clone()) } else { state.remove(&it.3) };
            assert!(fresh, "{} {} is in the list of {seq} already", it.0, it.3);
        }
        assert_eq!(state, wanted, "from the list of {seq}");
    }
    numbers_have_no_gap(&inbox);
}

async fn what_was_missed_can_be_asked_for(stage: Stage) {
    let (client, service) = (stage.client().await, &stage.service);
    let (seq, _) = list::<Link>(&client, "Links").await;
    let (events, lost) = since(&client, 0).await;
    assert_eq!((events[0].2.as_str(), lost), ("Overflow", 0), "the first of all: {events:?}");
    assert_eq!(format!("{:?}", *events[0].3).matches("restart").count(), 1);
    service.ip("link set lo up");
    service.ip("address add 10.77.0.2/32 dev lo");
    let (after, _) = list::<Address>(&client, "Addresses").await;
    let (events, lost) = since(&client, seq).await;
    assert_eq!(lost, 0);
    assert!(events.iter().map(|it| it.0).eq(seq + 1..=after), "{seq} to {after}: {events:?}");
    assert!(events.iter().any(|it| it.2 == "LinkChanged"), "{events:?}");
    let arguments = events.iter().filter(|it| it.2 == "AddressAdded").map(|it| format!("{:?}", *it.3));
    assert!(arguments.into_iter().any(|it| it.contains("10.77.0.2")), "{events:?}");
    assert_eq!(since(&client, after).await, (vec![], 0));
    // A number from before this herald, and one that it has not reached: something is missing.
    for foreign in [7, after + 1_000_000_000] {
        let (events, lost) = since(&client, foreign).await;
        assert!(lost > 0 && events[0].2 == "Overflow", "{foreign}: {lost}, {events:?}");
    }
}

/// Properties are another interface's, which on the system bus somebody else serves.
async fn the_node_describes_itself(stage: Stage) {
    let client = stage.client().await;
    let xml: String = client
        .call(NODE, "org.freedesktop.DBus.Introspectable", "Introspect", &())
        .await
        .expect("Introspect");
    for interface in ["org.example.IPC.Netlink", "org.example.IPC.Mechanism"] {
        assert!(tags(&xml).into_iter().any(|tag| attribute(tag, "name") == Some(interface)), "{xml}");
    }
    let all: Result<Details, _> =
        client.call(NODE, "org.freedesktop.DBus.Properties", "GetAll", &("org.example.IPC.Netlink",)).await;
    assert!(all.expect("GetAll").is_empty());
    let sockets: Vec<Details> =
        client.call(NODE, "Netlink", "Sockets", &(Options::new(),)).await.expect("Sockets");
    assert!(!sockets.is_empty());
    client
        .call::<BTreeMap<String, String>, _>(NODE, "Netlink", "Unavailable", &())
        .await
        .expect("Unavailable");
}

everywhere!(in_own_network;
    changes_are_told,
    a_list_and_what_follows_it_have_no_gap,
    what_was_missed_can_be_asked_for,
    the_node_describes_itself,
);

/// A process that has ended with this code; which it was.
fn ended(code: u8) -> i32 {
    let mut process = Process::spawn(Command::new("sh").args(["-c", &format!("exit {code}")]));
    let pid = process.pid();
    assert_eq!(process.wait().code(), Some(code.into()));
    pid
}

/// Waits until the end of this process is told; with its code, if that is told.
async fn end_of(inbox: &Inbox, wanted: i32) -> i64 {
    let exit = |(_, event, pid, _, details): (u64, String, i32, i32, Details)| {
        (event == "exit" && pid == wanted).then(|| integer(&details["code"]))
    };
    wait_for(inbox, "ProcessEvent", exit).await
}

/// The kernel tells of processes in the first network namespace only.
async fn processes_are_told_while_somebody_asks(stage: Stage) {
    let (watcher, other) = (stage.client().await, stage.client().await);
    let inbox = listen(&other).await;
    match watcher.reply(NODE, "Netlink", "WatchProcesses", &()).await {
        Err(error) if error.is("Unavailable") || error.is("PermissionDenied") => {
            or_skip!(Err::<(), _>(Unavailable(error.text)));
        }
        asked => drop(asked.expect("WatchProcesses")),
    }
    assert_eq!(end_of(&inbox, ended(3)).await, 3);
    // Asked for twice, taken back once.
    watcher.run(NODE, "Netlink", "WatchProcesses").await;
    watcher.run(NODE, "Netlink", "UnwatchProcesses").await;
    assert_eq!(end_of(&inbox, ended(4)).await, 4);
    // The one who asked leaves: once the service has heard of that, nothing is told.
    watcher.connection.close().await.expect("closed");
    let untold = async {
        loop {
            let silent = ended(5);
            // What comes before the end of this one would be there by then.
            other.run(NODE, "Netlink", "WatchProcesses").await;
            end_of(&inbox, ended(6)).await;
            other.run(NODE, "Netlink", "UnwatchProcesses").await;
            let told = |message: &&Message| {
                let body = message.body();
                let read = body.deserialize::<(u64, String, i32, i32, Details)>();
                read.is_ok_and(|(_, event, pid, ..)| event == "exit" && pid == silent)
            };
            if !inbox.all().iter().filter(|it| is_signal(it, NODE, "ProcessEvent")).any(|it| told(&it)) {
                return;
            }
        }
    };
    watchdog(patience(), untold).await;
    // Nobody takes back what he did not ask for.
    other.run(NODE, "Netlink", "UnwatchProcesses").await;
}

mod processes {
    use super::*;
    everywhere!(processes_are_told_while_somebody_asks);
}

/// The herald's list has all that it needs: here a call that is missing ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sandbox_allows_what_is_needed() {
    let system = or_skip!(SystemBus::dbus_daemon());
    let service = or_skip!(system.launch().argument("--sandbox-kills").in_own_network()).start();
    let client = Client::of_system_bus(system.connect_as(&ALICE.into()).await);
    let inbox = listen(&client).await;
    for change in ["link set lo up", "address add 10.77.0.3/24 dev lo", "rule add priority 4712 table 78"] {
        service.ip(change);
    }
    wait_for(&inbox, "RuleAdded", |it: (u64, u32, u32, Details)| (it.1 == 4712).then_some(())).await;
    for list in ["Links", "Addresses", "Routes", "Neighbours", "Rules", "Unavailable"] {
        client.run(NODE, "Netlink", list).await;
    }
    client.reply(NODE, "Netlink", "Sockets", &(Options::new(),)).await.expect("Sockets");
    since(&client, 0).await;
    // In a network namespace of its own there are no processes to hear of.
    let _asked = client.reply(NODE, "Netlink", "WatchProcesses", &()).await;
    client.run(NODE, "Netlink", "UnwatchProcesses").await;
    let (before, _) = list::<Link>(&client, "Links").await;
    assert!(!service.log().contains("does not allow"), "{}", service.log());
    let (events, lost) = since(&client, 0).await;
    assert!(lost == 0 && events.iter().filter(|it| it.2 == "Overflow").count() == 1, "{before}: {events:?}");
}
