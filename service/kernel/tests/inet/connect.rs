//! Connecting, and everything that can be wrong with an address.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use ipc_kernel::{
    Address, Dict, Endpoint, Kind, Parameters, Result,
    inet::bind::Local,
    inet::connect::Connecting,
    mechanisms::{self, inet::DESCRIPTOR},
};
use rustix::{io::Errno, thread::CapabilitySet};

use crate::support::{attach, create, failure, has_ipv6, in_own_network, number, port, text, wait};

/// A listener whose backlog is full: it answers nobody any more.
struct Silent {
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
    address: SocketAddr,
}

fn silent(host: &str) -> Silent {
    let listener = TcpListener::bind((host, 0)).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    // A backlog of 0 takes one connection; the next is not answered.
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
    }
    Silent { _listener: listener, _waiting: waiting, address }
}

/// A port of loopback at which nobody listens: bound, so that nobody else gets it.
fn refusing(host: &str) -> (rustix::fd::OwnedFd, SocketAddr) {
    let at: SocketAddr = (host.parse::<std::net::IpAddr>().unwrap(), 0).into();
    let family = ipc_kernel::inet::address::family(&at);
    let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &at).unwrap();
    let at = ipc_kernel::inet::state::local(&socket).unwrap();
    (socket, at)
}

fn connecting(addresses: Vec<SocketAddr>, timeout: Duration) -> Result<rustix::fd::OwnedFd> {
    let local = Local::of(&Parameters::default()).unwrap();
    let mut connecting =
        Connecting::new(&Parameters::default(), "host.test", addresses, local, Instant::now(), timeout);
    wait(move || connecting.step())
}

#[test]
fn the_next_address_is_tried_when_one_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = listener.local_addr().unwrap();
    let (_held, refusing4) = refusing("127.0.0.1");
    let mut addresses = vec![refusing4];
    let held6 = has_ipv6().then(|| refusing("::1"));
    addresses.extend(held6.as_ref().map(|(_, address)| *address));
    addresses.push(good);
    let start = Instant::now();
    let socket = connecting(addresses, Duration::from_secs(10)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "one after the other, without waiting");
    assert_eq!(TcpStream::from(socket).peer_addr().unwrap(), good);
}

#[test]
fn the_next_address_is_tried_beside_one_that_is_silent() {
    let silent = silent(if has_ipv6() { "::1" } else { "127.0.0.2" });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = listener.local_addr().unwrap();
    let start = Instant::now();
    let socket = connecting(vec![silent.address, good], Duration::from_secs(10)).unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(5), "{took:?}");
    let stream = TcpStream::from(socket);
    assert_eq!(stream.peer_addr().unwrap(), good);
}

#[test]
fn when_all_fail_each_has_its_reason() {
    let (_one, first) = refusing("127.0.0.1");
    let (_two, second) = refusing("127.0.0.2");
    let error = connecting(vec![first, second], Duration::from_secs(10)).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    for address in [first, second] {
        assert!(error.text.contains(&format!("tcp {address}: nobody listens there")), "{error}");
    }
    let silent = silent("127.0.0.1");
    let error = connecting(vec![first, silent.address], Duration::from_millis(400)).unwrap_err();
    assert_eq!(error.kind, Kind::Timeout);
    assert!(error.text.contains("within 400 ms") && error.text.contains("nobody listens"), "{error}");
    assert!(error.text.contains(&silent.address.to_string()), "{error}");
}

#[test]
fn names_and_families_find_their_address() {
    let listener = create("tcp:host=localhost,family=ipv4").unwrap();
    let stream = attach(&format!("tcp:host=localhost,port={}", port(&*listener))).unwrap();
    assert_eq!(text(&stream.inspect().unwrap(), "peer-host"), "127.0.0.1");
    if has_ipv6() {
        let error = failure(attach("tcp:host=127.0.0.1,port=9,family=ipv6"), "an IPv4 literal");
        assert_eq!(error.kind, Kind::NotFound);
        assert!(error.text.contains("only IPv4"), "{error}");
        let listener = create("tcp:family=ipv6").unwrap();
        assert_eq!(text(&listener.inspect().unwrap(), "local-host"), "::1");
        let address = listener.address().to_string();
        let stream = attach(&address).unwrap();
        assert_eq!(stream.address().to_string(), address);
        let scoped = attach(&format!("tcp:host=%5b::1%25lo%5d,port={}", port(&*listener))).unwrap();
        assert_eq!(text(&scoped.inspect().unwrap(), "peer-host"), "::1");
    }
}

#[test]
fn the_local_side_can_be_chosen() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("tcp:host=127.0.0.1,port={}", listener.local_addr().unwrap().port());
    let (held, free) = refusing("127.0.0.3");
    drop(held);
    let stream = attach(&format!("{at},local-host=127.0.0.3,local-port={}", free.port())).unwrap();
    let (_accepted, peer) = listener.accept().unwrap();
    assert_eq!(peer, free);
    assert_eq!(number(&stream.inspect().unwrap(), "local-port"), free.port().into());
    let again = failure(attach(&format!("{at},local-host=127.0.0.3,local-port={}", free.port())), "a twin");
    assert_eq!(again.kind, Kind::Exists, "{again}");
}

#[test]
fn a_taken_port_names_who_has_it() {
    for scheme in ["tcp", "udp"] {
        let first = create(&format!("{scheme}:")).unwrap();
        let error = failure(create(&first.address().to_string()), "the same port again");
        assert_eq!(error.kind, Kind::Exists);
        let me = format!("process {} (", std::process::id());
        assert!(error.text.contains("the port is taken") && error.text.contains(&me), "{error}");
    }
}

#[test]
fn a_privileged_port_names_the_sysctl() {
    let start = ipc_kernel::proc::sysctl("net/ipv4/ip_unprivileged_port_start").unwrap();
    if start < 2 {
        eprintln!("SKIPPED: net.ipv4.ip_unprivileged_port_start is {start}, no port is privileged");
        return;
    }
    // Capabilities are a thread's own.
    let result = std::thread::spawn(|| {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective
            .remove(CapabilitySet::NET_BIND_SERVICE | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
        rustix::thread::set_capabilities(None, sets).unwrap();
        let port = failure(create("tcp:port=1"), "a privileged port");
        (port, failure(create("tcp:mark=1"), "a mark without rights"))
    });
    let (port, mark) = result.join().unwrap();
    assert_eq!(port.kind, Kind::PermissionDenied);
    assert!(port.text.contains("net.ipv4.ip_unprivileged_port_start"), "{port}");
    assert_eq!(mark.kind, Kind::PermissionDenied);
    assert!(mark.text.contains("CAP_NET_ADMIN"), "{mark}");
}

#[test]
fn without_a_route_the_errno_says_it() {
    in_own_network(&["link set lo up"], || {
        for address in ["tcp:host=192.0.2.1,port=9", "udp:host=2001:db8::1,port=9"] {
            let error = failure(attach(address), address);
            assert_eq!(error.kind, Kind::Errno(Errno::NETUNREACH), "{error}");
            assert!(error.text.contains("ip route get"), "{error}");
        }
        let error = failure(create("udp:group=239.1.2.3"), "a group that no route leads to");
        assert_eq!(error.kind, Kind::Errno(Errno::NODEV), "{error}");
        assert!(error.text.contains("the key \"interface\""), "{error}");
    });
}

#[test]
fn bad_input_is_told_with_a_reason() {
    let (_held, refusing) = refusing("127.0.0.1");
    let refused = format!("tcp:host=127.0.0.1,port={}", refusing.port());
    // A label of more than 63 bytes: the resolver refuses it without asking anybody.
    let unknown = format!("tcp:host={}.test,port=9", "x".repeat(64));
    let attaching: &[(&str, Kind, &str)] = &[
        (&refused, Kind::NotFound, "nobody listens"),
        (&unknown, Kind::NotFound, "cannot find the host"),
        ("tcp:host=127.0.0.1", Kind::InvalidArgument, "\"port\" is missing"),
        ("tcp:port=9", Kind::InvalidArgument, "\"host\" is missing"),
        ("udp:port=9", Kind::InvalidArgument, "\"host\" is missing"),
        ("tcp:host=127.0.0.1,port=0", Kind::InvalidArgument, "1 to 65535"),
        ("tcp:host=127.0.0.1,port=65536", Kind::InvalidArgument, "from 0 to 65535"),
        ("tcp:host=127.0.0.1,port=9,backlog=1", Kind::InvalidArgument, "no key \"backlog\""),
        ("tcp:host=127.0.0.1,port=9,timeout=0", Kind::InvalidArgument, "\"timeout\""),
        ("tcp:host=127.0.0.1,port=9,broadcast=true", Kind::InvalidArgument, "belongs to udp"),
        ("tcp:host=127.0.0.1,port=9,linger=5", Kind::InvalidArgument, "\"linger\""),
        ("tcp:host=127.0.0.1,port=9,local-host=localhost", Kind::InvalidArgument, "literal"),
        ("tcp:host=127.0.0.1,port=9,local-host=::1", Kind::InvalidArgument, "another family"),
        ("tcp:host=127.0.0.1,port=9,local-host=192.0.2.77", Kind::NotFound, "no network interface has"),
        ("udp:host=127.0.0.1,group=239.1.2.3,port=9", Kind::InvalidArgument, "not both"),
        ("udp:host=127.0.0.1,port=9,nodelay=true", Kind::InvalidArgument, "belongs to tcp"),
        ("udp:host=127.255.255.255,port=9", Kind::PermissionDenied, "broadcast=true"),
    ];
    for (address, kind, phrase) in attaching {
        let error = failure(attach(address), address);
        assert_eq!(error.kind, *kind, "{address}: {error}");
        assert!(error.text.contains(phrase), "{address}: {error}");
    }
    let creating: &[(&str, Kind, &str)] = &[
        ("tcp:host=192.0.2.77", Kind::NotFound, "freebind=true"),
        ("tcp:host=a b", Kind::InvalidArgument, "without blanks"),
        ("tcp:host=127.0.0.1%25lo", Kind::InvalidArgument, "before '%'"),
        ("tcp:host=fe80::1%25nosuchif", Kind::NotFound, "no network interface \"nosuchif\""),
        ("tcp:v6only=true", Kind::InvalidArgument, "is IPv4"),
        ("tcp:range=127.0.0.1/8", Kind::InvalidArgument, "beyond its prefix"),
        ("tcp:device=nosuchif", Kind::NotFound, "`ip link`"),
        ("tcp:device=a-name-that-is-too-long", Kind::InvalidArgument, "1 to 15 bytes"),
        ("tcp:group=239.1.2.3", Kind::InvalidArgument, "belongs to udp"),
        ("tcp:protocol=sctp", Kind::InvalidArgument, "one of tcp, mptcp"),
        ("udp:backlog=1", Kind::InvalidArgument, "belongs to tcp"),
        ("udp:protocol=tcp", Kind::InvalidArgument, "belongs to tcp"),
        ("udp:group=127.0.0.1", Kind::InvalidArgument, "must be a multicast address"),
        ("udp:group=239.1.2.3,family=ipv6", Kind::InvalidArgument, "family"),
        ("udp:group=239.1.2.3,host=::1", Kind::InvalidArgument, "same family"),
        ("udp:group=239.1.2.3,source=239.1.2.4", Kind::InvalidArgument, "\"source\""),
        ("udp:source=127.0.0.1", Kind::InvalidArgument, "needs the key \"group\""),
        ("udp:group=239.1.2.3,interface=nosuchif", Kind::NotFound, "no network interface"),
    ];
    for (address, kind, phrase) in creating {
        let error = failure(create(address), address);
        assert_eq!(error.kind, *kind, "{address}: {error}");
        assert!(error.text.contains(phrase), "{address}: {error}");
    }
}

#[test]
fn the_row_is_consistent() {
    for (scheme, table) in [("tcp", DESCRIPTOR.create_parameters), ("tcp", DESCRIPTOR.attach_parameters)] {
        for parameter in table {
            assert!(!parameter.summary.is_empty());
            assert_eq!(
                table.iter().filter(|other| other.key == parameter.key).count(),
                1,
                "{}",
                parameter.key
            );
            if !parameter.default.is_empty() {
                let address = Address::new(scheme).with("port", "1");
                let parameters = Parameters::check(table, &[], &address, &Dict::new()).unwrap();
                assert!(parameters.has(parameter.key), "the default of {} does not parse", parameter.key);
            }
        }
    }
    assert_eq!(mechanisms::by_scheme("udp").unwrap().name, "inet");
    (DESCRIPTOR.available)().unwrap();
    let limits = (DESCRIPTOR.limits)();
    for key in ["net.core.somaxconn", "net.ipv4.ip_local_port_range", "tcp-sockets"] {
        assert!(limits.contains_key(key), "{limits:?}");
    }
    let endpoint: Box<dyn Endpoint> = create("udp:").unwrap();
    assert_eq!(endpoint.remove().unwrap_err().kind, Kind::NotSupported);
}
