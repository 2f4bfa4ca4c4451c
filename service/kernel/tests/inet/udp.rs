//! Datagrams: to hosts and to groups.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use ipc_kernel::{
    Attempt, Dict, Endpoint, Fd, Kind, Result, Value,
    blocked::Sent,
    dict,
    shape::{Outgoing, Shape},
};

use crate::support::{
    attach, create, failure, has_ipv6, in_own_network, number, port, receive, send, text, udp, wait,
};

#[test]
fn datagrams_come_whole_with_their_sender() {
    for host in ["127.0.0.1", "::1"] {
        if host == "::1" && !has_ipv6() {
            continue;
        }
        let endpoint = create(&format!("udp:host={host},rcvbuf=200K,sndbuf=200K")).unwrap();
        assert_eq!(endpoint.shapes(), [Shape::Messages]);
        let messages = endpoint.messages().unwrap();
        let peer = udp(&format!("{}:0", if host == "::1" { "[::1]" } else { host }));
        peer.connect((host, port(&*endpoint))).unwrap();
        let largest = vec![7; usize::try_from(messages.max_message_size()).unwrap()];
        for data in [&b"one"[..], b"", &largest] {
            assert_eq!(peer.send(data).unwrap(), data.len());
            let peeked = wait(|| messages.peek(&Dict::new())).unwrap();
            assert_eq!(peeked.data, data);
            let message = receive(&*endpoint).unwrap();
            assert_eq!(message.data, data);
            // The sender's address is good for an answer.
            let from = text(&message.attributes, "address");
            assert_eq!(from, text(&peeked.attributes, "address"));
            send(&*endpoint, data, Some(&from)).unwrap();
            let mut back = vec![0; 70_000];
            let length = peer.recv(&mut back).unwrap();
            assert_eq!(&back[..length], data);
        }
        assert!(matches!(messages.receive(&Dict::new()).unwrap(), Attempt::Wait(_)));
        assert!(matches!(messages.arrival().unwrap(), Attempt::Wait(_)));
        peer.send(b"").unwrap();
        wait(|| messages.arrival()).unwrap();
        assert_eq!(receive(&*endpoint).unwrap().data, b"");

        let to = peer.local_addr().unwrap().to_string();
        let error = send(&*endpoint, &vec![0; largest.len() + 1], Some(&to)).unwrap_err();
        assert_eq!(error.kind, Kind::TooLarge, "{error}");
        assert!(error.text.contains("65507"), "{error}");
    }
}

#[test]
fn socat_understands_us() {
    let endpoint = create("udp:").unwrap();
    let socat = Command::new("socat")
        .args(["-u", "-", &format!("UDP:127.0.0.1:{}", port(&*endpoint))])
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut socat) = socat else {
        eprintln!("SKIPPED: socat does not start");
        return;
    };
    socat.stdin.take().unwrap().write_all(b"from socat").unwrap();
    assert_eq!(receive(&*endpoint).unwrap().data, b"from socat");
    socat.wait().unwrap();
}

#[test]
fn a_connected_socket_hears_its_peer_only() {
    let peer = udp("127.0.0.1:0");
    let at = peer.local_addr().unwrap();
    let endpoint = attach(&format!("udp:host=localhost,family=ipv4,port={}", at.port())).unwrap();
    assert_eq!(endpoint.address().to_string(), format!("udp:host=127.0.0.1,port={}", at.port()));
    send(&*endpoint, b"ping", None).unwrap();
    let mut data = [0; 10];
    let (length, from) = peer.recv_from(&mut data).unwrap();
    assert_eq!(&data[..length], b"ping");
    udp("127.0.0.1:0").send_to(b"stranger", from).unwrap();
    peer.send_to(b"pong", from).unwrap();
    assert_eq!(receive(&*endpoint).unwrap().data, b"pong");
    assert_eq!(text(&endpoint.inspect().unwrap(), "state"), "established");

    // Nobody is there any more: the first datagram brings the ICMP error, the next call tells.
    drop(peer);
    send(&*endpoint, b"ping", None).unwrap();
    let error = receive(&*endpoint).unwrap_err();
    assert_eq!(error.kind, Kind::Closed);
    assert!(error.text.contains("ECONNREFUSED") && error.text.contains(&at.to_string()), "{error}");
}

#[test]
fn recverr_names_the_destination_without_connection() {
    let endpoint = create("udp:recverr=true").unwrap();
    let gone = udp("127.0.0.1:0").local_addr().unwrap();
    let to = gone.to_string();
    send(&*endpoint, b"x", Some(&to)).unwrap();
    let error = receive(&*endpoint).unwrap_err();
    assert_eq!(error.kind, Kind::Closed);
    for phrase in [to.as_str(), "ECONNREFUSED", "ICMP type 3 code 3 from 127.0.0.1"] {
        assert!(error.text.contains(phrase), "{error}");
    }
    // Told once; the socket goes on.
    assert!(matches!(endpoint.messages().unwrap().receive(&Dict::new()).unwrap(), Attempt::Wait(_)));
    send(&*endpoint, b"x", Some(&to)).unwrap();
    let error = send(&*endpoint, b"y", Some(&to)).unwrap_err();
    assert!(error.text.contains("ICMP type 3"), "{error}");
}

#[test]
fn a_range_drops_datagrams_from_elsewhere() {
    let endpoint = create("udp:range=127.0.0.9").unwrap();
    let at = format!("127.0.0.1:{}", port(&*endpoint));
    let messages = endpoint.messages().unwrap();
    let (outside, inside) = (udp("127.0.0.1:0"), udp("127.0.0.9:0"));
    for n in 0..3 {
        outside.send_to(b"out", &at).unwrap();
        // What is dropped is no arrival.
        assert!(matches!(messages.arrival().unwrap(), Attempt::Wait(_)));
        outside.send_to(b"out", &at).unwrap();
        inside.send_to(&[n], &at).unwrap();
        assert_eq!(wait(|| messages.peek(&Dict::new())).unwrap().data, [n]);
        assert_eq!(receive(&*endpoint).unwrap().data, [n]);
    }
    assert_eq!(number(&endpoint.inspect().unwrap(), "refused"), 6);
}

#[test]
fn times_are_the_kernels() {
    let endpoint = create("udp:timestamps=true").unwrap();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let before = now();
    udp("127.0.0.1:0").send_to(b"x", ("127.0.0.1", port(&*endpoint))).unwrap();
    let time = number(&receive(&*endpoint).unwrap().attributes, "time");
    assert!((before.cast_signed()..=now().cast_signed()).contains(&time), "{before} {time}");
}

#[test]
fn one_socket_speaks_both_families() {
    if !has_ipv6() {
        return;
    }
    let endpoint = create("udp:host=::").unwrap();
    let peer = udp("127.0.0.1:0");
    peer.send_to(b"four", ("127.0.0.1", port(&*endpoint))).unwrap();
    let message = receive(&*endpoint).unwrap();
    let from = text(&message.attributes, "address");
    assert_eq!(from, format!("udp:host=127.0.0.1,port={}", peer.local_addr().unwrap().port()));
    send(&*endpoint, b"back", Some(&from)).unwrap();
    assert_eq!(peer.recv(&mut [0; 10]).unwrap(), 4);
}

/// Joins, or says why this machine cannot.
fn member(address: &str) -> Option<Box<dyn Endpoint>> {
    match create(address) {
        Ok(endpoint) => Some(endpoint),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

#[test]
fn groups_reach_all_members() {
    group_reaches_all_members("239.77.1.3", "lo");
}

/// Linux does not deliver IPv6 multicast on its loopback interface.
#[test]
fn groups_of_ipv6_reach_all_members() {
    let network = [
        "link add inet-a type veth peer name inet-b",
        "link set inet-b up",
        "link set inet-a up addrgenmode none",
        "address add fe80::1/64 dev inet-a nodad",
    ];
    in_own_network(&network, || group_reaches_all_members("ff02::7701:3", "inet-a"));
}

fn group_reaches_all_members(group: &str, interface: &str) {
    let Some(first) = member(&format!("udp:group={group},interface={interface}")) else { return };
    // What the first member says of itself is enough for the others.
    let address = first.address().to_string();
    assert!(
        address.starts_with("udp:group=") && address.contains(&format!(",interface={interface}")),
        "{address}"
    );
    let second = create(&address).unwrap();
    let sender = attach(&format!("{address},multicast-ttl=1,loop=true")).unwrap();
    send(&*sender, b"all", None).unwrap();
    for member in [&first, &second] {
        assert_eq!(receive(&**member).unwrap().data, b"all");
    }
    // A member sends to its group, which it belongs to itself.
    send(&*second, b"from a member", None).unwrap();
    for member in [&first, &second] {
        assert_eq!(receive(&**member).unwrap().data, b"from a member");
    }
    let state = first.inspect().unwrap();
    assert!(matches!(state.get("groups"), Some(Value::Texts(groups)) if groups[0].contains(interface)));
}

#[test]
fn a_source_keeps_other_senders_out() {
    let Some(member) = member("udp:group=232.77.1.4,interface=lo,source=127.0.0.9") else { return };
    let to = format!("udp:group=232.77.1.4,port={},interface=lo", port(&*member));
    let stranger = attach(&format!("{to},local-host=127.0.0.1")).unwrap();
    let source = attach(&format!("{to},local-host=127.0.0.9")).unwrap();
    if let Err(error) = send(&*stranger, b"stranger", None) {
        eprintln!("SKIPPED: {error}");
        return;
    }
    send(&*source, b"source", None).unwrap();
    assert_eq!(receive(&*member).unwrap().data, b"source");
}

#[test]
fn bad_messages_are_told_with_a_reason() {
    let endpoint = create("udp:").unwrap();
    let try_send = |attributes: Dict, fds: &[Fd]| -> Result<()> {
        wait(|| {
            endpoint.messages().unwrap().send(Outgoing {
                data: b"x",
                attributes: &attributes,
                fds,
                sent: &Sent::default(),
            })
        })
    };
    let null = Fd::from(rustix::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    for (attributes, fds, kind, phrase) in [
        (dict! {}, vec![], Kind::InvalidArgument, "no peer"),
        (dict! { "address" => "localhost:9" }, vec![], Kind::InvalidArgument, "literal"),
        (dict! { "address" => "udp:host=127.0.0.1,port=9,x=1" }, vec![], Kind::InvalidArgument, "\"x\""),
        (dict! { "address" => "[::1]:9" }, vec![], Kind::InvalidArgument, "family=ipv6"),
        (dict! { "address" => 9u32 }, vec![], Kind::InvalidArgument, "not u"),
        (dict! { "priority" => 9u32 }, vec![], Kind::InvalidArgument, "\"priority\""),
        (dict! { "address" => "127.255.255.255:9" }, vec![], Kind::PermissionDenied, "broadcast=true"),
        (dict! { "address" => "127.0.0.1:9" }, vec![null], Kind::NotSupported, "unix socket"),
    ] {
        let error = try_send(attributes, &fds).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.text.contains(phrase), "{error}");
    }
    let error = endpoint.messages().unwrap().receive(&dict! { "type" => 1u32 }).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    let broadcasting = create("udp:broadcast=true").unwrap();
    send(&*broadcasting, b"x", Some("127.255.255.255:9")).unwrap();
    if has_ipv6() {
        // Connecting a datagram socket sends nothing.
        let error = failure(attach("udp:host=fe80::1,port=9"), "no scope");
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
        assert!(error.text.contains("fe80::1%eth0"), "{error}");
    }
}
