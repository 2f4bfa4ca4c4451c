//! rtnetlink in a network namespace of the test's own: what `ip` does there is told, and what `ip` says
//! is there is what the service says.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod netlink;
mod waiting;

use ipc_kernel::{
    Value,
    netlink::{Address, Event, Link, monitor::Monitor, route::Routes},
};
use netlink::{facts, in_a_namespace, ip, ip_json, one, open, snapshot, told, until_same, wait_for};

/// A pair of connected interfaces, both up, as the kernel finds out a little later.
fn pair(a: &str, b: &str) {
    let mut routes = Routes::open().unwrap();
    ip(&format!("link add {a} type veth peer name {b}"));
    ip(&format!("link set {a} up"));
    ip(&format!("link set {b} up"));
    let is_up = |link: &Link| (link.name == a || link.name == b) && link.state == "up";
    while snapshot(routes.links()).iter().filter(|link| is_up(link)).count() < 2 {
        wait_for(&mut routes);
    }
}

/// Interfaces made after this have no IPv6, which gives them addresses and routes at any time.
fn without_ipv6() {
    _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
}

fn changed(event: &Event) -> &Link {
    match event {
        Event::LinkChanged(link) => link,
        other => panic!("no link changed: {other:#?}"),
    }
}

fn detail(details: &ipc_kernel::Dict, key: &str) -> String {
    details.get(key).map(facts::text).unwrap_or_default()
}

#[test]
fn a_link_is_told_from_its_beginning_to_its_end() {
    in_a_namespace(|| {
        without_ipv6();
        let mut routes = open();
        ip("link add br0 type bridge");
        let events = told(&mut routes);
        let link = changed(&events[0]);
        assert_eq!((link.name.as_str(), link.state.as_str()), ("br0", "down"));
        assert_eq!(detail(&link.details, "kind"), "bridge");
        let index = link.index;

        ip("link set br0 name lan");
        let event = one(&mut routes);
        let link = changed(&event);
        assert_eq!((link.index, link.name.as_str()), (index, "lan"));
        assert_eq!(detail(&link.details, "old-name"), "br0");

        ip("link set lan mtu 1400");
        let event = one(&mut routes);
        let details = &changed(&event).details;
        assert_eq!((detail(details, "mtu"), detail(details, "old-mtu")), ("1400".into(), "1500".into()));
        assert_eq!(details.keys().filter(|key| key.starts_with("old-")).count(), 1, "{details:?}");

        // The same once more is no event.
        ip("link set lan mtu 1400");
        assert!(told(&mut routes).is_empty());

        // Of a link that is down, the kernel does not say this by itself.
        ip("link property add dev lan altname uplink");
        assert!(snapshot(routes.links()).iter().any(|link| detail(&link.details, "altnames") == "uplink"));
        let event = one(&mut routes);
        let details = &changed(&event).details;
        assert_eq!(
            (detail(details, "altnames"), detail(details, "rescanned")),
            ("uplink".into(), "true".into())
        );

        ip("link del lan");
        let events = told(&mut routes);
        let Some(Event::LinkRemoved(link)) = events.last() else { panic!("{events:#?}") };
        assert_eq!((link.index, link.name.as_str()), (index, "lan"));
        assert_eq!(detail(&link.details, "mtu"), "1400");
    });
}

#[test]
fn a_state_comes_with_the_one_before() {
    in_a_namespace(|| {
        ip("link add a0 type veth peer name b0");
        ip("link set a0 up");
        let mut routes = open();
        ip("link set b0 up");
        // The kernel works out operational states a little later.
        let link = loop {
            let up = |event: Event| match event {
                Event::LinkChanged(link) if link.name == "a0" && link.state == "up" => Some(link),
                _ => None,
            };
            if let Some(link) = wait_for(&mut routes).into_iter().find_map(up) {
                break link;
            }
        };
        assert_eq!(detail(&link.details, "old-state"), "lowerlayerdown");
        assert!(matches!(link.details.get("carrier"), Some(Value::Bool(true))));
        assert_eq!(detail(&link.details, "parent"), "b0");
    });
}

#[test]
fn ports_name_their_bridge_even_when_it_is_renamed() {
    in_a_namespace(|| {
        without_ipv6();
        ip("link add br0 type bridge");
        ip("link add a0 type veth peer name b0");
        let mut routes = open();
        ip("link set a0 master br0");
        let masters: Vec<_> = told(&mut routes)
            .iter()
            .filter_map(|event| match event {
                Event::LinkChanged(link) if link.name == "a0" => Some(detail(&link.details, "master")),
                _ => None,
            })
            .collect();
        assert_eq!(masters.last().map(String::as_str), Some("br0"));
        ip("link set br0 name lan");
        let events = told(&mut routes);
        assert_eq!(events.len(), 2, "{events:#?}");
        assert_eq!(changed(&events[0]).name, "lan");
        let port = changed(&events[1]);
        assert_eq!((port.name.as_str(), detail(&port.details, "master")), ("a0", "lan".into()));
        assert_eq!(detail(&port.details, "old-master"), "br0");
        // The end of a port is told by bridges as if it were the end of the link.
        ip("link set a0 nomaster");
        let events = told(&mut routes);
        assert!(!events.iter().any(|event| matches!(event, Event::LinkRemoved(_))), "{events:#?}");
        assert_eq!(detail(&changed(events.last().unwrap()).details, "master"), "");
    });
}

/// The address that was added under this text, as it was told last: IPv6 ones begin as "tentative".
fn added(events: Vec<Event>, text: &str) -> Address {
    let added = |event| match event {
        Event::AddressAdded(address) if address.address == text => Some(address),
        _ => None,
    };
    events.into_iter().filter_map(added).next_back().unwrap()
}

#[test]
fn addresses_come_and_go_with_their_interface() {
    in_a_namespace(|| {
        pair("a0", "b0");
        let mut routes = open();
        ip("addr add 192.0.2.1/24 dev a0 label a0:1");
        let address = added(told(&mut routes), "192.0.2.1");
        assert_eq!((address.interface.as_str(), address.prefix), ("a0", 24));
        assert_eq!(detail(&address.details, "label"), "a0:1");

        ip("addr add 2001:db8::1/64 dev a0 valid_lft 3000 preferred_lft 1000");
        let address = added(told(&mut routes), "2001:db8::1");
        assert_eq!((address.interface.as_str(), address.prefix), ("a0", 64));
        let Some(Value::U32(valid)) = address.details.get("valid-s") else { panic!("{address:?}") };
        assert!((2990..=3000).contains(valid), "{valid}");

        ip("link del a0");
        let events = told(&mut routes);
        let gone = |event: &Event| match event {
            Event::AddressRemoved(address) => Some(address.address.clone()),
            _ => None,
        };
        let gone: Vec<_> = events.iter().filter_map(gone).collect();
        for address in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(gone.iter().filter(|gone| *gone == address).count(), 1, "{events:#?}");
        }
        assert!(snapshot(routes.addresses()).iter().all(|address| address.interface == "lo"));
    });
}

#[test]
fn routes_are_told_with_what_they_replace() {
    in_a_namespace(|| {
        without_ipv6();
        pair("a0", "b0");
        ip("addr add 192.0.2.1/24 dev a0");
        let mut routes = open();
        let mut route = |command: &str| {
            ip(command);
            match one(&mut routes) {
                Event::RouteAdded(route) | Event::RouteRemoved(route) => route,
                other => panic!("{other:#?}"),
            }
        };
        let added = route("route add 198.51.100.0/24 via 192.0.2.2 metric 7 table 100 mtu 1300");
        assert_eq!((added.destination.as_str(), added.gateway.as_str()), ("198.51.100.0/24", "192.0.2.2"));
        assert_eq!((added.interface.as_str(), detail(&added.details, "table")), ("a0", "100".into()));
        assert_eq!(detail(&added.details, "metric"), "7");
        assert_eq!(detail(&added.details, "metrics"), "mtu=1300");
        assert!(!added.details.contains_key("replaced"));

        let replaced = route("route replace 198.51.100.0/24 via 192.0.2.3 metric 7 table 100");
        assert_eq!(detail(&replaced.details, "replaced"), "true");
        assert_eq!(replaced.gateway, "192.0.2.3");
        let removed = route("route del 198.51.100.0/24 metric 7 table 100");
        assert_eq!(removed.gateway, "192.0.2.3");

        let paths = route("route add default nexthop via 192.0.2.2 weight 1 nexthop via 192.0.2.3 weight 5");
        assert_eq!(
            (paths.destination.as_str(), paths.gateway.as_str(), paths.interface.as_str()),
            ("default", "", "")
        );
        let Some(Value::Dicts(hops)) = paths.details.get("nexthops") else { panic!("{paths:#?}") };
        assert_eq!((hops.len(), detail(&hops[1], "gateway")), (2, "192.0.2.3".into()));
        assert_eq!((detail(&hops[1], "weight"), detail(&hops[1], "interface")), ("5".into(), "a0".into()));

        let none = route("route add blackhole 203.0.113.0/24");
        assert_eq!((detail(&none.details, "type"), none.interface.as_str()), ("blackhole".into(), ""));
    });
}

#[test]
fn neighbours_are_told_with_their_states() {
    in_a_namespace(|| {
        without_ipv6();
        pair("a0", "b0");
        let mut routes = open();
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 nud reachable dev a0");
        let Event::NeighbourChanged(first) = one(&mut routes) else { panic!("a neighbour") };
        assert_eq!((first.interface.as_str(), first.address.as_str()), ("a0", "192.0.2.9"));
        assert_eq!(
            (first.state.as_str(), detail(&first.details, "mac")),
            ("reachable", "02:00:00:00:00:09".into())
        );
        ip("neigh replace 192.0.2.9 lladdr 02:00:00:00:00:0a nud permanent dev a0");
        let Event::NeighbourChanged(second) = one(&mut routes) else { panic!("a neighbour") };
        assert_eq!(detail(&second.details, "old-state"), "reachable");
        assert_eq!(detail(&second.details, "old-mac"), "02:00:00:00:00:09");
        ip("neigh del 192.0.2.9 dev a0");
        let events = told(&mut routes);
        let Some(Event::NeighbourRemoved(gone)) = events.last() else { panic!("{events:#?}") };
        assert_eq!(gone.address, "192.0.2.9");
    });
}

#[test]
fn rules_are_told() {
    in_a_namespace(|| {
        let mut routes = open();
        ip("rule add not from 192.0.2.0/24 fwmark 0x7/0xff uidrange 1-99 iif lo table 100 priority 50");
        let Event::RuleAdded(rule) = one(&mut routes) else { panic!("a rule") };
        assert_eq!((rule.priority, rule.table), (50, 100));
        let details = &rule.details;
        assert_eq!(
            (detail(details, "source"), detail(details, "action")),
            ("192.0.2.0/24".into(), "lookup".into())
        );
        assert_eq!((detail(details, "mark"), detail(details, "mark-mask")), ("7".into(), "255".into()));
        assert_eq!((detail(details, "uid-first"), detail(details, "uid-last")), ("1".into(), "99".into()));
        assert_eq!(
            (detail(details, "inverted"), detail(details, "in-interface")),
            ("true".into(), "lo".into())
        );
        ip("rule del priority 50");
        assert!(matches!(one(&mut routes), Event::RuleRemoved(rule) if rule.priority == 50));
    });
}

#[test]
fn snapshots_are_what_ip_says() {
    in_a_namespace(|| {
        pair("a0", "b0");
        pair("c0", "d0");
        let mut routes = open();
        for command in [
            "link set lo up",
            "link add br0 type bridge",
            "link set c0 master br0",
            "link set br0 up",
            "link set d0 alias downstairs",
            "link set d0 group 5",
            "link property add dev d0 altname dd",
            "addr add 192.0.2.1/24 dev a0",
            "addr add 192.0.2.2/24 dev a0",
            "addr add 198.51.100.1 peer 198.51.100.2/32 dev a0",
            "addr add 192.0.2.7/32 dev b0 noprefixroute valid_lft 5000 preferred_lft 0",
            "addr add 2001:db8::1/64 dev a0 nodad",
            "addr add 2001:db8:1::1 peer 2001:db8:1::2/128 dev a0",
            "route add 10.0.0.0/8 via 192.0.2.9",
            "route add 10.0.0.0/8 via 192.0.2.10 metric 5 advmss 1000",
            "route add 10.1.0.0/16 nexthop via 192.0.2.9 weight 3 nexthop dev b0 onlink via 203.0.113.1",
            "route add blackhole 10.2.0.0/16 table 77",
            "route add unreachable 2001:db8:5::/48",
            "route add default via 2001:db8::2 proto static",
            "route add 2001:db8:7::/64 nexthop via 2001:db8::3 nexthop via 2001:db8::4 weight 9",
            "route add 10.3.0.0/16 via inet6 fe80::1 dev a0",
            "route add 10.4.0.0/16 dev a0 src 192.0.2.2 tos 0x10",
            "route add 2001:db8:8::/64 from 2001:db8::/64 dev a0",
            "neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev a0",
            "neigh add 2001:db8::9 lladdr 02:00:00:00:00:0a nud stale router dev a0",
            "rule add from 192.0.2.0/24 to 10.0.0.0/8 table 77 priority 10",
            "rule add fwmark 9 blackhole priority 11",
            "rule add goto 32766 priority 12",
            "-6 rule add iif a0 ipproto tcp dport 80-90 prohibit priority 13",
            "-6 rule add oif b0 table main suppress_prefixlength 8 priority 14",
        ] {
            ip(command);
        }
        until_same(&mut routes, |routes, _| {
            let mut ip_routes = facts::ip_routes(&ip_json("-4 route show table all"), "inet");
            ip_routes.extend(facts::ip_routes(&ip_json("-6 route show table all"), "inet6"));
            let mut ip_rules = facts::ip_rules(&ip_json("-4 rule"), "inet");
            ip_rules.extend(facts::ip_rules(&ip_json("-6 rule"), "inet6"));
            let ip_neighbours = facts::ip_neighbours(&ip_json("neigh show nud all"));
            vec![
                ("links", facts::links(&snapshot(routes.links())), facts::ip_links(&ip_json("link"))),
                (
                    "addresses",
                    facts::addresses(&snapshot(routes.addresses())),
                    facts::ip_addresses(&ip_json("addr")),
                ),
                ("routes", facts::routes(&snapshot(routes.routes())), ip_routes),
                ("neighbours", facts::neighbours(&snapshot(routes.neighbours())), ip_neighbours),
                ("rules", facts::rules(&snapshot(routes.rules())), ip_rules),
            ]
        });
    });
}

#[test]
fn a_snapshot_shows_what_was_done_before_and_keeps_the_events() {
    in_a_namespace(|| {
        let mut monitor = Monitor::new();
        assert!(monitor.unavailable().is_empty(), "{:?}", monitor.unavailable());
        ip("link add a0 type veth peer name b0");
        ip("addr add 192.0.2.1/24 dev a0");
        let links = monitor.links().unwrap();
        assert!(links.iter().any(|link| link.name == "a0"), "{links:#?}");
        let drained = monitor.drained();
        assert!(drained.iter().any(|event| matches!(event, Event::LinkChanged(link) if link.name == "a0")));
        assert!(drained.iter().any(|event| matches!(event, Event::AddressAdded(_))));
        assert!(monitor.drained().is_empty());
        assert!(monitor.addresses().unwrap().iter().any(|address| address.address == "192.0.2.1"));
        let rules = monitor.rules().unwrap();
        assert!(rules.iter().any(|rule| rule.table == 254), "{rules:#?}");
        assert!(monitor.neighbours().is_ok() && monitor.routes().is_ok());
    });
}

#[test]
fn what_the_kernel_lost_is_told_as_a_difference() {
    in_a_namespace(|| {
        without_ipv6();
        pair("a0", "b0");
        pair("c0", "d0");
        ip("addr add 192.0.2.1/24 dev a0");
        ip("addr add 192.0.2.2/24 dev c0");
        let mut routes = Routes::with_receive_buffer(2304).unwrap();
        ip("link set a0 mtu 1400");
        ip("link set a0 mtu 1300");
        ip("link set a0 mtu 1200");
        ip("addr del 192.0.2.1/24 dev a0");
        ip("addr add 192.0.2.3/24 dev a0");
        ip("link del c0");
        let events = told(&mut routes);
        let overflow =
            events.iter().position(|event| matches!(event, Event::Overflow(from) if from == "route"));
        let after = &events[overflow.unwrap() + 1..];
        assert!(!after.iter().any(|event| matches!(event, Event::Overflow(_))), "{after:#?}");
        let mut said = Vec::new();
        for mut event in after.iter().cloned() {
            let rescanned = event.details().is_some_and(|details| detail(details, "rescanned") == "true");
            if rescanned {
                said.push(match event {
                    Event::LinkChanged(link) => format!("{} {}", link.name, detail(&link.details, "mtu")),
                    Event::LinkRemoved(link) => format!("-{}", link.name),
                    Event::AddressAdded(address) => format!("+{}", address.address),
                    Event::AddressRemoved(address) => format!("-{}", address.address),
                    other => panic!("{other:#?}"),
                });
            }
        }
        for expected in ["-192.0.2.1", "-192.0.2.2", "-c0", "-d0", "a0 1200", "+192.0.2.3"] {
            assert!(said.iter().any(|said| said == expected), "{expected} is not in {said:?} of {events:#?}");
        }
        // It goes on as before.
        ip("link set a0 alias heard");
        let event = one(&mut routes);
        assert_eq!(detail(&changed(&event).details, "alias"), "heard");
        assert!(!changed(&event).details.contains_key("rescanned"));
    });
}

#[test]
fn another_process_is_not_taken_for_the_kernel() {
    in_a_namespace(|| {
        let mut routes = Routes::open().unwrap();
        // Both sockets of ours; the kernel shows their ports.
        let table = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
        let ports = table.lines().skip(1).filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (protocol, port) = (words.next()?, words.next()?.parse::<u32>().ok()?);
            (protocol == "0" && port != 0).then_some(port)
        });
        let ports: Vec<_> = ports.collect();
        assert!(ports.len() >= 2, "{table}");
        // The end of the loopback device, as the kernel would tell it.
        let mut forged = Vec::new();
        forged.extend(32_u32.to_ne_bytes());
        forged.extend(libc::RTM_DELLINK.to_ne_bytes());
        forged.extend([0; 10]);
        forged.extend([0, 0, 4, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, None)
                .unwrap();
        for port in ports {
            let address = rustix::net::netlink::SocketAddrNetlink::new(port, 0);
            rustix::net::sendto(&socket, &forged, rustix::net::SendFlags::empty(), &address).unwrap();
        }
        assert!(told(&mut routes).is_empty());
        assert!(snapshot(routes.links()).iter().any(|link| link.name == "lo"));
        // Neither does it keep the kernel from being heard.
        ip("link add br0 type bridge");
        assert!(!told(&mut routes).is_empty());
    });
}
