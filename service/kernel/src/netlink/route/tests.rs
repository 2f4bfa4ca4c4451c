//! Messages that the kernel would not send: cut, mutated, invented. Reading them ends in a value or an
//! error. What real messages say is compared with `ip` in tests/netlink_route.rs.

use proptest::{collection::vec, prelude::*};

use super::*;

/// An attribute with its padding.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, header: &[u8], attributes: &[Vec<u8>]) -> (u16, Vec<u8>) {
    (kind, [header, &attributes.concat()].concat())
}

const FOUR: u8 = libc::AF_INET as u8;
const SIX: u8 = libc::AF_INET6 as u8;

/// One of each, as the kernel would send it.
fn samples() -> Vec<(u16, Vec<u8>)> {
    let word = |n: u32| n.to_ne_bytes();
    let link_header = [0, 0, 1, 0, 7, 0, 0, 0, 0x43, 0x10, 1, 0, 0, 0, 0, 0];
    let link = [
        attribute(libc::IFLA_IFNAME, b"eth0\0"),
        attribute(libc::IFLA_MTU, &word(1500)),
        attribute(libc::IFLA_OPERSTATE, &[6]),
        attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
        attribute(libc::IFLA_MASTER, &word(9)),
        attribute(libc::IFLA_LINK, &word(8)),
        attribute(libc::IFLA_LINKINFO, &attribute(libc::IFLA_INFO_KIND, b"veth\0")),
        attribute(libc::IFLA_PROP_LIST | 0x8000, &attribute(libc::IFLA_ALT_IFNAME, b"uplink\0")),
    ];
    let address = |family, bytes: &[u8]| {
        let attributes = [
            attribute(libc::IFA_ADDRESS, bytes),
            attribute(libc::IFA_LOCAL, bytes),
            attribute(libc::IFA_LABEL, b"eth0\0"),
            attribute(libc::IFA_FLAGS, &word(0x80)),
            attribute(libc::IFA_CACHEINFO, &[word(60), word(90), word(0), word(0)].concat()),
        ];
        message(libc::RTM_NEWADDR, &[family, 24, 0, 0, 7, 0, 0, 0], &attributes)
    };
    let path = [&[16, 0, 0, 4][..], &word(7), &attribute(libc::RTA_GATEWAY, &[192, 0, 2, 2])].concat();
    let route = [
        attribute(libc::RTA_DST, &[198, 51, 100, 0]),
        attribute(libc::RTA_TABLE, &word(1000)),
        attribute(libc::RTA_MULTIPATH, &[path.clone(), path].concat()),
        attribute(libc::RTA_METRICS, &attribute(2, &word(1400))),
        attribute(libc::RTA_VIA, &[&[SIX, 0][..], &[0xfe; 16]].concat()),
        attribute(libc::RTA_CACHEINFO, &[0; 32]),
    ];
    let neighbour = [
        attribute(libc::NDA_DST, &[192, 0, 2, 9]),
        attribute(libc::NDA_LLADDR, &[2, 0, 0, 0, 0, 9]),
        attribute(15, &word(1)),
    ];
    let rule = [
        attribute(2, &[192, 0, 2, 0]),
        attribute(6, &word(50)),
        attribute(15, &word(100)),
        attribute(20, &[word(1), word(99)].concat()),
        attribute(24, &[80, 0, 90, 0]),
        attribute(12, &[0, 0, 0, 0, 0, 0, 0, 5]),
    ];
    let mut samples = vec![
        message(libc::RTM_NEWLINK, &link_header, &link),
        address(FOUR, &[192, 0, 2, 1]),
        address(SIX, &[0x20; 16]),
        message(libc::RTM_NEWROUTE, &[FOUR, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], &route),
        message(libc::RTM_NEWNEIGH, &[FOUR, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0x80, 1], &neighbour),
        message(libc::RTM_NEWRULE, &[FOUR, 0, 24, 0, 0, 0, 0, 1, 2, 0, 0, 0], &rule),
    ];
    // Each kind's removal has the next number.
    let removals: Vec<_> = samples.iter().rev().map(|(kind, payload)| (kind + 1, payload.clone())).collect();
    samples.extend(removals);
    samples
}

fn apply(tables: &mut Tables, kind: u16, payload: &[u8]) -> Result<Vec<Event>, Damaged> {
    let mut events = VecDeque::new();
    tables.apply(&Frame { kind, flags: 0, sequence: 0, payload }, &mut events)?;
    Ok(events.into())
}

#[test]
fn each_sample_is_told_once() {
    let mut tables = Tables::default();
    let mut names = Vec::new();
    for (kind, payload) in samples() {
        let events = apply(&mut tables, kind, &payload).unwrap();
        assert_eq!(events.len(), 1, "{kind}: {events:#?}");
        let text = format!("{:?}", events[0]);
        names.push(text.split('(').next().unwrap().to_owned());
    }
    let added =
        ["LinkChanged", "AddressAdded", "AddressAdded", "RouteAdded", "NeighbourChanged", "RuleAdded"];
    let removed = [
        "RuleRemoved",
        "NeighbourRemoved",
        "RouteRemoved",
        "AddressRemoved",
        "AddressRemoved",
        "LinkRemoved",
    ];
    assert_eq!(names, [added, removed].concat());
    // All of it has gone, and is not told to go again; routes and rules are not remembered.
    for (kind, payload) in samples().into_iter().rev().take(3) {
        assert!(apply(&mut tables, kind, &payload).unwrap().is_empty(), "{kind}");
    }
}

#[test]
fn what_a_link_names_is_told_by_name() {
    let mut tables = Tables::default();
    let (kind, payload) = samples().swap_remove(0);
    let Event::LinkChanged(link) = apply(&mut tables, kind, &payload).unwrap().remove(0) else { panic!() };
    assert_eq!((link.index, link.name.as_str(), link.state.as_str()), (7, "eth0", "up"));
    // Index 9 is not known.
    assert!(link.details["master"].same(&"if9".into()) && link.details["kind"].same(&"veth".into()));
    let bridge = message(
        kind,
        &[0, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[attribute(libc::IFLA_IFNAME, b"br0")],
    );
    let events = apply(&mut tables, kind, &bridge.1).unwrap();
    let [Event::LinkChanged(bridge), Event::LinkChanged(port)] = &events[..] else { panic!("{events:#?}") };
    assert_eq!((bridge.name.as_str(), port.index), ("br0", 7));
    assert!(port.details["master"].same(&"br0".into()) && port.details["old-master"].same(&"if9".into()));
}

#[test]
fn the_ports_of_a_bridge_and_wireless_events_are_no_links() {
    let mut tables = Tables::default();
    let (kind, payload) = samples().swap_remove(0);
    apply(&mut tables, kind, &payload).unwrap();
    let mut of_a_port = payload.clone();
    of_a_port[0] = libc::AF_BRIDGE as u8;
    let wireless = [payload, attribute(libc::IFLA_WIRELESS, b"event")].concat();
    for payload in [of_a_port, wireless] {
        for kind in [libc::RTM_NEWLINK, libc::RTM_DELLINK] {
            assert!(apply(&mut tables, kind, &payload).unwrap().is_empty());
        }
    }
}

proptest! {
    #[test]
    fn cut_messages_are_survived(which in 0..12_usize, keep in 0..300_usize) {
        let (kind, payload) = samples().swap_remove(which);
        let cut = &payload[..keep.min(payload.len())];
        let mut tables = Tables::default();
        _ = apply(&mut tables, kind, cut);
        // Nothing of what follows is spoilt by it.
        prop_assert!(apply(&mut tables, kind, &payload).is_ok());
    }

    #[test]
    fn mutated_messages_are_survived(
        changes in vec((0..12_usize, vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)), 1..8),
    ) {
        let mut tables = Tables::default();
        for (which, changes) in changes {
            let (kind, mut payload) = samples().swap_remove(which);
            for (index, byte) in changes {
                let at = index.index(payload.len());
                payload[at] = byte;
            }
            _ = apply(&mut tables, kind, &payload);
        }
        _ = (tables.links.rows(), tables.addresses.rows(&tables.links));
    }

    #[test]
    fn invented_messages_are_survived(kind in 16..36_u16, payload in vec(any::<u8>(), 0..200)) {
        _ = apply(&mut Tables::default(), kind, &payload);
    }
}
