//! Raw netlink endpoints: requests to the kernel made of bytes here, its answers beside what ip(8) says, its
//! events, its refusals. [`ports`] has what processes say to each other, [`losses`] what nobody hears. Each test is in a network namespace of its own.

use std::collections::{BTreeMap, BTreeSet};

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, error, everywhere, integer, options};
use ipc_harness::system::{ALICE, Identity};
use ipc_harness::{python, sh};
use zbus::OwnedVariant;

mod losses;
mod ports;

type Attributes = BTreeMap<String, OwnedVariant>;

/// linux/netlink.h and linux/rtnetlink.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

/// A request about a link: struct nlmsghdr and struct ifinfomsg.
fn link_request(kind: u16, flags: u16, index: i32, change: (u32, u32)) -> Vec<u8> {
    let mut bytes = 32_u32.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([7, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0; 4]);
    bytes.extend(index.to_ne_bytes());
    bytes.extend(change.0.to_ne_bytes());
    bytes.extend(change.1.to_ne_bytes());
    bytes
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The messages of a datagram: type and everything behind the header.
fn parts(mut data: &[u8]) -> Vec<(u16, &[u8])> {
    let mut parts = Vec::new();
    while !data.is_empty() {
        let length = word(data, 0) as usize;
        parts.push((half(data, 4), &data[16..length]));
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    parts
}

/// Index and name (IFLA_IFNAME) of a link.
fn link(payload: &[u8]) -> (u32, String) {
    let mut rest = &payload[16..];
    while rest.len() >= 4 {
        let length = usize::from(half(rest, 0));
        if half(rest, 2) == 3 {
            return (word(payload, 4), String::from_utf8(rest[4..length - 1].to_vec()).expect("a name"));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    panic!("a link without name: {payload:?}")
}

fn number(attributes: &Attributes, key: &str) -> i64 {
    integer(attributes.get(key).unwrap_or_else(|| panic!("no {key} in {attributes:?}")))
}

fn text(attributes: &Attributes, key: &str) -> String {
    let value = attributes.get(key).unwrap_or_else(|| panic!("no {key} in {attributes:?}"));
    String::try_from(value.clone()).expect("a text")
}

async fn inspect(client: &Client, path: &str) -> Attributes {
    client.call(path, "Endpoint", "Inspect", &()).await.expect("Inspect")
}

/// By root, in the namespace of the test; the kernel may have no dummy interfaces.
fn ip(script: &str) {
    sh(script).finish().success();
}

async fn dump(client: &Client, endpoint: &str) -> BTreeSet<(u32, String)> {
    client
        .send(endpoint, &link_request(RTM_GETLINK, NLM_F_DUMP, 0, (0, 0)), Options::new())
        .await
        .expect("Send");
    let mut found = BTreeSet::new();
    loop {
        let (data, attributes) = client.receive(endpoint, 10_000).await.expect("Receive");
        assert_eq!(number(&attributes, "sender-port"), 0, "the kernel");
        for (kind, payload) in parts(&data) {
            match kind {
                RTM_NEWLINK => drop(found.insert(link(payload))),
                NLMSG_DONE => return found,
                other => panic!("type {other} in a dump of links: {attributes:?}"),
            }
        }
    }
}

/// What ip(8) says.
fn links() -> BTreeSet<(u32, String)> {
    let said = sh("ip -j link").finish().success();
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let link = |link: &serde_json::Value| {
        let index = link["ifindex"].as_u64().expect("an index");
        (u32::try_from(index).expect("an index"), link["ifname"].as_str().expect("a name").to_owned())
    };
    said.as_array().expect("a list").iter().map(link).collect()
}

/// Proves: netlink attach, read, write, fd
async fn dumps_are_what_ip_shows(stage: Stage) {
    let client = stage.client().await;
    // More than one datagram.
    ip(
        "for n in $(seq 30); do ip link add br$n type bridge; done; ip link add left type veth peer name right",
    );
    let endpoint = client.attach("netlink:family=route").await;
    let found = dump(&client, &endpoint).await;
    assert_eq!(found, links());
    assert_eq!(found.len(), 33);
    assert_eq!(client.address(&endpoint).await, "netlink:family=route");
    // Through the socket itself, and through one that somebody else has made.
    let fd = client.open(&endpoint, Options::new()).await.expect("Open");
    let again = client.try_adopt(&fd).await.expect("Adopt");
    assert_eq!(dump(&client, &again).await, found);
    assert_eq!(client.address(&again).await, "netlink:family=route");
}

/// Proves: netlink attach, event
async fn events_come_as_messages(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let delivered = client.attach("netlink:family=route,groups=link,deliver=true").await;
    let by_number = client.attach("netlink:family=0,groups=ipv4-ifaddr+1").await;
    assert_eq!(client.address(&by_number).await, "netlink:family=route,groups=link%2bipv4-ifaddr");
    ip("ip link add watched type bridge");
    ip("ip link del watched");
    let told = inbox
        .until(|all| {
            let told = all.iter().filter(|message| ipc_blackbox::is_signal(message, &delivered, "Received"));
            let told: Vec<(u64, Vec<u8>, Attributes)> =
                told.map(|message| message.body().deserialize().expect("Received")).collect();
            told.iter().any(|(_, data, _)| half(data, 4) == RTM_DELLINK).then_some(told)
        })
        .await;
    for (n, (seq, data, attributes)) in told.iter().enumerate() {
        assert_eq!(*seq, n as u64 + 1);
        assert_eq!(text(attributes, "group"), "link");
        assert_eq!(link(&data[16..]).1, "watched");
    }
    assert_eq!(half(&told[0].1, 4), RTM_NEWLINK);
    // The other one has the same.
    for (_, expected, _) in &told {
        let (data, _) = client.receive(&by_number, 10_000).await.expect("Receive");
        assert_eq!(&data, expected);
    }
    assert_error(&error(client.receive(&by_number, 0).await), "Busy", &[]);
}

async fn refusals_say_why(stage: Stage) {
    let client = stage.client().await;
    let endpoint = client.attach("netlink:family=route,strict=true").await;
    let ask = async |request: Vec<u8>| {
        client.send(&endpoint, &request, Options::new()).await.expect("Send");
        let (data, attributes) = client.receive(&endpoint, 10_000).await.expect("Receive");
        assert_eq!(word(&data, 8), 7, "the request's number");
        (half(&data, 4), attributes)
    };
    let (kind, missing) = ask(link_request(RTM_GETLINK, 0, 999, (0, 0))).await;
    assert_eq!(kind, NLMSG_ERROR);
    assert_eq!((number(&missing, "errno"), text(&missing, "error")), (19, "No such device (ENODEV)".into()));
    // A dump with flags in its header, which strict checking refuses.
    let (kind, strict) = ask(link_request(RTM_GETLINK, NLM_F_DUMP, 0, (1, 1))).await;
    assert_eq!((kind, number(&strict, "errno")), (NLMSG_DONE, 22));
    assert!(text(&strict, "text").contains("header"), "the kernel's own words: {strict:?}");
    // Setting an interface up is for root only.
    let (kind, up) = ask(link_request(RTM_NEWLINK, NLM_F_ACK, 1, (1, 1))).await;
    assert_eq!(kind, NLMSG_ERROR);
    let expected = if stage.way == Way::System { 1 } else { 0 };
    assert_eq!(number(&up, "errno"), expected, "{up:?}");
    assert_eq!(up.contains_key("error"), expected != 0);
}

async fn mistakes_are_named(stage: Stage) {
    let client = stage.client().await;
    let port = client.create("netlink:family=usersock").await;
    let taken = client.address(&port).await;
    let large = "netlink:family=route,rcvbuf=512M";
    for (address, name, phrases) in [
        ("netlink:", "InvalidArgument", &["family"][..]),
        ("netlink:family=rtnl", "InvalidArgument", &["rtnl", "route", "kobject-uevent"]),
        ("netlink:family=31", "NotFound", &["EPROTONOSUPPORT"]),
        ("netlink:family=route,groups=links", "InvalidArgument", &["links", "ipv4-ifaddr"]),
        ("netlink:family=route,groups=link+0", "InvalidArgument", &["65535"]),
        ("netlink:family=route,groups=9999", "NotFound", &["no such group", "EINVAL"]),
        ("netlink:family=route,port=5", "InvalidArgument", &["port", "usersock"]),
        ("netlink:family=usersock", "InvalidArgument", &["port", "Create"]),
        ("netlink:family=usersock,port=4294967295", "NotFound", &["4294967295"]),
        (large, "LimitExceeded", &["net.core.rmem_max"]),
    ] {
        assert_error(&error(client.try_attach(address, Options::new()).await), name, phrases);
    }
    let refused = error(client.try_create("netlink:family=route", Options::new()).await);
    assert_error(&refused, "InvalidArgument", &["Attach"]);
    assert_error(&error(client.try_create(&taken, Options::new()).await), "Exists", &["EADDRINUSE"]);

    let kernel = client.attach("netlink:family=route").await;
    let request = link_request(RTM_GETLINK, 0, 1, (0, 0));
    let mut longer = request.clone();
    longer[0] += 1;
    for garbage in [&b"garbage"[..], &[0; 40], &longer, &[]] {
        let refused = error(client.send(&kernel, garbage, Options::new()).await);
        assert_error(&refused, "InvalidArgument", &["netlink message"]);
    }
    let unknown = error(client.send(&kernel, &request, options([("colour", "red".into())])).await);
    assert_error(&unknown, "InvalidArgument", &["colour", "port and group"]);
    let beyond = error(client.send(&kernel, &request, options([("group", 33_u32.into())])).await);
    assert_error(&beyond, "InvalidArgument", &["33", "32"]);
    assert_error(
        &error(client.send(&port, b"x", Options::new()).await),
        "InvalidArgument",
        &["port", "group"],
    );
    let nobody = options([("port", u32::MAX.into())]);
    assert_error(&error(client.send(&port, b"x", nobody).await), "NotFound", &["ECONNREFUSED"]);
    let most = client.number(&port, "Messages", "MaxMessageSize").await;
    let too_large = vec![0; usize::try_from(most).expect("a size") + 1];
    let refused = error(client.send(&port, &too_large, options([("port", 1_u32.into())])).await);
    assert_error(&refused, "TooLarge", &[&most.to_string(), "sndbuf"]);
    assert_error(&error(client.reply(&port, "Endpoint", "Remove", &()).await), "NotSupported", &[]);
}

/// What takes a capability: alice has none, and is told which.
async fn rights_are_the_kernels(stage: Stage) {
    let client = stage.client().await;
    let refused = stage.way == Way::System;
    for address in ["netlink:family=route,groups=ipv4-mroute-r", "netlink:family=route,all-nsids=true"] {
        let attached = client.try_attach(address, Options::new()).await;
        assert_eq!(attached.is_err(), refused, "{attached:?}");
        if let Err(error) = attached {
            assert_error(&error, "PermissionDenied", &["EPERM"]);
        }
    }
    let group = client.try_create("netlink:family=usersock,groups=5", Options::new()).await;
    assert_eq!(group.is_err(), refused, "{group:?}");
    if let Err(error) = group {
        assert_error(&error, "PermissionDenied", &["CAP_NET_ADMIN", "group 5"]);
    }
    let kernel = client.attach("netlink:family=route").await;
    let request = link_request(RTM_GETLINK, 0, 1, (0, 0));
    let sent = client.send(&kernel, &request, options([("group", "link".into())])).await;
    assert_eq!(sent.is_err(), refused, "{sent:?}");
    if let Err(error) = sent {
        assert_error(&error, "PermissionDenied", &["CAP_NET_ADMIN"]);
    }
}

/// Interfaces of a namespace that has an id here, because a pair of interfaces joins the two.
async fn other_namespaces_are_told(stage: Stage) {
    if stage.way == Way::System {
        // It takes a capability: `rights_are_the_kernels`.
        return;
    }
    let client = stage.client().await;
    let endpoint = client.attach("netlink:family=route,groups=link,all-nsids=true").await;
    assert!(client.address(&endpoint).await.ends_with("groups=link,all-nsids=true"));
    let holder = sh("exec unshare --net sh -c 'echo up; read end'");
    holder.wait_for(|line| line == "up");
    let pid = holder.pid();
    ip(&format!("ip link add near type veth peer name far netns {pid}"));
    ip(&format!("nsenter --net=/proc/{pid}/ns/net ip link set far up"));
    loop {
        let (data, attributes) = client.receive(&endpoint, 10_000).await.expect("Receive");
        match link(&data[16..]).1.as_str() {
            "near" => assert!(!attributes.contains_key("nsid"), "{attributes:?}"),
            other => {
                assert_eq!((other, number(&attributes, "nsid")), ("far", 0));
                break;
            }
        }
    }
}

/// A socket that root has made and gives away: the kernel looks at who sends, too.
async fn a_given_socket_gives_no_right(stage: Stage) {
    let client = stage.client().await;
    let (family, kind) = (rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW);
    let socket = rustix::net::socket_with(family, kind, rustix::net::SocketFlags::CLOEXEC, None);
    let socket = socket.expect("a netlink socket");
    let adopted = client.try_adopt(&socket).await.expect("Adopt");
    assert_eq!(text(&inspect(&client, &adopted).await, "family"), "route");
    let expected = if stage.way == Way::System { 1 } else { 0 };
    for to in [Options::new(), options([("port", 0_u32.into())])] {
        let request = link_request(RTM_NEWLINK, NLM_F_ACK, 1, (1, 1));
        client.send(&adopted, &request, to).await.expect("Send");
        let (_, answer) = client.receive(&adopted, 10_000).await.expect("Receive");
        assert_eq!(number(&answer, "errno"), expected, "{answer:?}");
    }
}

/// Root speaks as if it was the kernel, to the group and to the port.
async fn only_the_kernel_is_believed(stage: Stage) {
    const LIAR: &str = "
import socket, sys
def send(family, data, port, groups):
    liar = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
    try: liar.sendto(data, (port, groups)); print('sent', flush=True)
    except OSError as e: print(e.strerror, flush=True)
port = int(sys.argv[1])
link = bytes([32, 0, 0, 0, 16, 0] + [0] * 26)
send(0, link, 0, 1)
send(0, link, port, 0)
send(15, b'add@/devices/forged', 0, 1)
send(15, b'libudev: from root', 0, 2)
";
    let client = stage.client().await;
    let route = client.attach("netlink:family=route,groups=link").await;
    let devices = client.attach("netlink:family=kobject-uevent,groups=kernel+udev").await;
    let port = number(&inspect(&client, &route).await, "port");
    let said = python(LIAR, &[&port.to_string()]).finish().success();
    assert_eq!(said.lines().nth(1), Some("Connection refused"), "the kernel keeps strangers from the port");
    ip("ip link add true type bridge");
    let (data, attributes) = client.receive(&route, 10_000).await.expect("Receive");
    assert_eq!((link(&data[16..]).1, number(&attributes, "sender-port")), ("true".to_owned(), 0));
    assert_eq!(number(&inspect(&client, &route).await, "refused"), 1);
    // Devices are told in the namespace of their network interfaces, and by udev, which is root's.
    let mut processed = Vec::new();
    while processed.is_empty() {
        let (data, attributes) = client.receive(&devices, 10_000).await.expect("Receive");
        match number(&attributes, "sender-port") {
            0 => assert_eq!(text(&attributes, "group"), "kernel"),
            _ => processed.push((data, text(&attributes, "group"), number(&attributes, "sender-uid"))),
        }
    }
    assert_eq!(processed, [(b"libudev: from root".to_vec(), "udev".to_owned(), 0)]);
    assert_eq!(number(&inspect(&client, &devices).await, "refused"), 1);
}

/// The lists of /proc, of ss(8), and of the service.
///
/// Proves: netlink list
async fn lists_agree(stage: Stage) {
    let client = stage.client().await;
    client.attach("netlink:family=route,groups=link+stats").await;
    client.create("netlink:family=usersock,port=4711").await;
    let proc = || -> BTreeSet<(i64, i64, i64)> {
        let said = sh("cat /proc/net/netlink").finish().success();
        let line = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let word = |n: usize| words[n].parse::<i64>().expect("a number");
            (word(1), word(2), word(9))
        };
        said.lines().skip(1).map(line).collect()
    };
    let rows = client.list("netlink").await;
    let family = |row: &Attributes| match text(row, "family").as_str() {
        "route" => 0,
        "usersock" => 2,
        "sock-diag" => 4,
        "xfrm" => 6,
        "selinux" => 7,
        "audit" => 9,
        "fib-lookup" => 10,
        "connector" => 11,
        "netfilter" => 12,
        "kobject-uevent" => 15,
        "generic" => 16,
        "rdma" => 20,
        "crypto" => 21,
        other => other.parse().unwrap_or_else(|_| panic!("the family {other}")),
    };
    let listed: BTreeSet<_> =
        rows.iter().map(|row| (family(row), number(row, "port"), number(row, "inode"))).collect();
    assert_eq!(listed.len(), rows.len(), "each once: {rows:?}");
    // Those that ask are gone when the other one asks; the system bus has none of its own.
    let asks = |row: &&(i64, i64, i64)| row.0 != 4 || row.1 == 0;
    assert_eq!(
        listed.iter().filter(asks).collect::<Vec<_>>(),
        proc().iter().filter(asks).collect::<Vec<_>>()
    );
    let ss = sh("ss -A netlink -aHn").finish().success();
    let ss: BTreeSet<(i64, i64)> = ss
        .lines()
        .map(|line| {
            let (family, port) =
                line.split_whitespace().nth(3).and_then(|word| word.split_once(':')).expect("a:b");
            (family.parse().expect("a family"), port.parse::<i64>().expect("a port") & 0xffff_ffff)
        })
        .collect();
    let listed = listed.iter().filter(asks).map(|row| (row.0, row.1)).collect::<BTreeSet<_>>();
    assert!(listed.is_subset(&ss), "{listed:?} {ss:?}");

    let own = rows.iter().find(|row| number(row, "port") == 4711).expect("the port");
    assert_eq!(text(own, "address"), "netlink:family=usersock,port=4711");
    assert!(format!("{:?}", own["holders"]).contains("ipcd"), "{own:?}");
    let groups: Vec<Vec<String>> =
        rows.iter().map(|row| row["groups"].clone().try_into().expect("texts")).collect();
    assert!(groups.contains(&vec!["link".into(), "stats".into()]), "also those above 32: {groups:?}");
    let kernel = rows.iter().find(|row| text(row, "family") == "route" && number(row, "port") == 0);
    assert_eq!(text(kernel.expect("the kernel's side"), "address"), "netlink:family=route");
}

everywhere!(
    isolated;
    dumps_are_what_ip_shows,
    events_come_as_messages,
    refusals_say_why,
    mistakes_are_named,
    rights_are_the_kernels,
    other_namespaces_are_told,
    a_given_socket_gives_no_right,
    only_the_kernel_is_believed,
    lists_agree,
);

/// Alice in a network namespace that the service is not in.
async fn confined_callers_are_refused(stage: Stage) {
    let system = stage.system.as_ref().expect("the system bus");
    let within = Identity::from(ALICE).within(&["unshare", "--net"]);
    let client = Client::of_system_bus(system.connect_as(&within).await);
    for address in ["netlink:family=route", "netlink:family=usersock,port=1"] {
        assert_error(&error(client.try_attach(address, Options::new()).await), "Confined", &["netlink"]);
    }
    let refused = error(client.try_create("netlink:family=usersock", Options::new()).await);
    assert_error(&refused, "Confined", &["netlink"]);
    let list = client.reply("/org/example/IPC/netlink", "Mechanism", "List", &(Options::new(),)).await;
    assert_error(&error(list), "Confined", &["netlink"]);
}

#[test]
fn confined() {
    ipc_blackbox::isolated(Way::System, "", confined_callers_are_refused);
}
