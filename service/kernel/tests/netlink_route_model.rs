//! rtnetlink against a model: random operations of `ip`, as fast as they come; a listener who believes
//! every event ends up with what `ip` says is there, and was told nothing twice. Also when the kernel
//! lost events.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod netlink;
mod waiting;

use ipc_kernel::netlink::route::Routes;
use netlink::{
    Compared, facts, facts::assert_same, in_a_namespace, ip, ip_batch, ip_json, start_batch, told,
    until_same, world::World,
};
use proptest::{
    collection::vec,
    prelude::*,
    sample,
    test_runner::{Config, TestRunner},
};

/// Commands on links, addresses, rules and neighbours: A and B are interfaces, few enough to meet each
/// other, N and M small numbers. Many fail, as what they name is not there.
const COMMANDS: &[&str] = &[
    "link add A type veth peer name B",
    "link add A type veth peer name B",
    "link add A type bridge",
    "link del A",
    "link set A name B",
    "link set A up",
    "link set A up",
    "link set A down",
    "link set A mtu N400",
    "link set A address 02:00:00:00:00:0N",
    "link set A master B",
    "link set A master B",
    "link set A nomaster",
    "link set A alias number-N",
    "link property add dev A altname other-N",
    "addr add 192.0.N.M/24 dev A",
    "addr add 192.0.N.M peer 198.51.100.M/32 dev A",
    "addr del 192.0.N.M/24 dev A",
    "addr add 2001:db8:N::M/64 dev A",
    "addr replace 2001:db8:N::M/64 dev A valid_lft M000 preferred_lft 0",
    "addr del 2001:db8:N::M/64 dev A",
    "addr flush dev A",
    "rule add iif A table 10N priority N",
    "-6 rule add fwmark N table 10M priority N",
    "rule del priority N",
    "neigh replace 203.0.113.N lladdr 02:00:00:00:00:0M nud permanent dev A",
    "neigh replace 203.0.113.N nud noarp dev A",
    "neigh del 203.0.113.N dev A",
];

/// Commands on routes over two interfaces that stay up; ROUTE is an IPv4 route, SIX one of IPv6.
const ROUTE_COMMANDS: &[&str] = &[
    "route add ROUTE via 192.0.2.1N",
    "route replace ROUTE via 192.0.2.1N",
    "route append ROUTE via 192.0.2.1N",
    "route prepend ROUTE via 192.0.2.1N",
    "route replace ROUTE nexthop via 192.0.2.1N nexthop via 192.0.2.2M weight 3",
    "route add blackhole ROUTE",
    "route del ROUTE via 192.0.2.1N",
    "route del ROUTE",
    "route add SIX via fe80::N dev if0",
    "route replace SIX via fe80::N dev if1",
    "route add SIX nexthop via fe80::N dev if0 nexthop via fe80::M dev if1",
    "route add unreachable SIX",
    "route del SIX",
];

fn command(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    (sample::select(of), 0..6_u8, 0..6_u8, 1..5_u8, 1..5_u8).prop_map(|(command, a, b, n, m)| {
        command
            .replace("ROUTE", "10.M.0.0/16 metric METRIC table 10M")
            .replace("SIX", "2001:db8:M::/64 metric 1METRIC table 10M")
            .replace("METRIC", &(b % 2).to_string())
            .replace('A', &format!("if{a}"))
            .replace('B', &format!("if{b}"))
            .replace('N', &n.to_string())
            .replace('M', &m.to_string())
    })
}

/// What is left of a run goes, so that the next one begins with nothing.
fn clear() {
    let links = ip_json("link").into_iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
    let mut commands: Vec<_> =
        links.filter(|name| name != "lo").map(|name| format!("link del {name}")).collect();
    commands.extend(
        (1..5)
            .flat_map(|n| ["rule", "-6 rule"].map(|rule| format!("{rule} del priority {n}")))
            .cycle()
            .take(80),
    );
    commands.extend(
        (1..5).flat_map(|n| ["-4", "-6"].map(|family| format!("{family} route flush table {}", 100 + n))),
    );
    ip_batch(&commands);
}

fn links_and_addresses(world: &World) -> Compared {
    // Of a link that is down, the kernel says nothing of these.
    let told = |links: facts::All| -> facts::All {
        let told = |mut link: facts::Facts| {
            link.retain(|key, _| key != "alias" && key != "altnames");
            link
        };
        links.into_iter().map(told).collect()
    };
    vec![
        ("links", told(world.links()), told(facts::ip_links(&ip_json("link")))),
        ("addresses", world.addresses(), facts::ip_addresses(&ip_json("addr"))),
    ]
}

fn rules_and_neighbours(world: &World) -> Compared {
    let mut rules = facts::ip_rules(&ip_json("-4 rule"), "inet");
    rules.extend(facts::ip_rules(&ip_json("-6 rule"), "inet6"));
    let neighbours = facts::ip_neighbours(&ip_json("neigh show nud all"));
    vec![("rules", world.rules(), rules), ("neighbours", world.neighbours(), neighbours)]
}

fn all_routes(world: &World) -> Compared {
    let mut routes = facts::ip_routes(&ip_json("-4 route show table all"), "inet");
    routes.extend(facts::ip_routes(&ip_json("-6 route show table all"), "inet6"));
    vec![("routes", world.routes(), routes)]
}

/// Believes what is told until that is what `ip` says.
fn settle(world: &mut World, routes: &mut Routes, compare: impl Fn(&World) -> Compared) {
    until_same(routes, |_, events| {
        events.into_iter().for_each(|event| world.believe(event));
        compare(world)
    });
}

/// Believes what was told so far.
fn believe(world: &mut World, routes: &mut Routes) {
    told(routes).into_iter().for_each(|event| world.believe(event));
}

/// A snapshot finds what the kernel does not say by itself, and that is told.
fn find(world: &mut World, routes: &mut Routes) {
    settle(world, routes, links_and_addresses);
    let snapshot = facts::links(&routes.links().unwrap());
    believe(world, routes);
    assert_same("links", world.links(), snapshot.clone());
    assert_same("links", snapshot, facts::ip_links(&ip_json("link")));
}

fn run<T: std::fmt::Debug>(cases: u32, strategy: impl Strategy<Value = T>, test: impl Fn(T)) {
    let config = Config { cases, max_shrink_iters: 4, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&strategy, |input| {
        test(input);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn who_believes_every_event_knows_what_is_there() {
    in_a_namespace(|| {
        run(12, vec(command(COMMANDS), 1..150), |commands| {
            clear();
            let mut routes = Routes::open().unwrap();
            let mut world = World::new(&mut routes);
            for some in commands.chunks(20) {
                ip_batch(some);
                believe(&mut world, &mut routes);
            }
            find(&mut world, &mut routes);
            settle(&mut world, &mut routes, rules_and_neighbours);
            assert_eq!(world.overflows, 0);
        });
    });
}

#[test]
fn who_believes_every_event_knows_the_routes() {
    in_a_namespace(|| {
        run(12, vec(command(ROUTE_COMMANDS), 1..60), |commands| {
            clear();
            for command in ["link add if0 type veth peer name if1", "link set if0 up", "link set if1 up"] {
                ip(command);
            }
            ip("addr add 192.0.2.1/24 dev if0");
            let mut routes = Routes::open().unwrap();
            let mut world = World::new(&mut routes);
            settle(&mut world, &mut routes, links_and_addresses);
            world.follow_routes(&mut routes);
            ip_batch(&commands);
            settle(&mut world, &mut routes, all_routes);
        });
    });
}

#[test]
fn what_was_lost_is_found_and_told() {
    in_a_namespace(|| {
        run(8, vec(command(COMMANDS), 100..300), |commands| {
            clear();
            // It holds a message or two.
            let mut routes = Routes::with_receive_buffer(2304).unwrap();
            let mut world = World::new(&mut routes);
            ip_batch(&commands);
            // Nobody read meanwhile.
            ip("link add lost0 type veth peer name lost1");
            ip("link set lost0 up");
            settle(&mut world, &mut routes, links_and_addresses);
            assert!(world.overflows > 0);
            world.look_again(&mut routes);
            settle(&mut world, &mut routes, rules_and_neighbours);
            // It is heard again.
            ip("link set lost0 alias found");
            find(&mut world, &mut routes);
        });
    });
}

#[test]
fn snapshots_while_everything_changes() {
    in_a_namespace(|| {
        run(2, vec(command(COMMANDS), 1500), |commands| {
            clear();
            let mut routes = Routes::open().unwrap();
            let mut world = World::new(&mut routes);
            let mut batch = start_batch(&commands);
            let mut goes_on = true;
            while goes_on {
                goes_on = batch.try_wait().unwrap().is_none();
                // What a snapshot says is what was told until then, whatever goes on.
                let links = routes.links().unwrap();
                routes.drained().into_iter().for_each(|event| world.believe(event));
                assert_same("links", world.links(), facts::links(&links));
                let addresses = routes.addresses().unwrap();
                routes.drained().into_iter().for_each(|event| world.believe(event));
                assert_same("addresses", world.addresses(), facts::addresses(&addresses));
            }
            batch.wait().unwrap();
            find(&mut world, &mut routes);
            settle(&mut world, &mut routes, rules_and_neighbours);
        });
    });
}

#[test]
fn a_million_bytes_of_events_wait_for_a_slow_reader() {
    in_a_namespace(|| {
        let mut routes = Routes::open().unwrap();
        let mut world = World::new(&mut routes);
        ip("link add if0 type bridge");
        // More than the buffer holds, then less.
        for (count, lost) in [(6000, true), (200, false)] {
            let add = |n: u32| format!("addr add 10.{}.{}.{}/32 dev if0", count / 256, n / 250, n % 250 + 1);
            ip_batch(&(0..count).map(add).collect::<Vec<_>>());
            world.overflows = 0;
            settle(&mut world, &mut routes, links_and_addresses);
            assert_eq!(world.overflows > 0, lost, "{count} addresses");
        }
    });
}
