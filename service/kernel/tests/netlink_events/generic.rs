//! Generic netlink: what `ethtool` changes, and who else says that something changed.

use ipc_kernel::{
    Dict, Value,
    netlink::{
        Event, Generic,
        generic::Families,
        uevent::{Sender, Uevents},
    },
};
use rustix::net::netlink::GENERIC;

use crate::{Heard, in_a_fresh_network, is_heard, output, waiting::as_nobody};

fn told(source: &mut Heard<Families>, command: &str) -> Generic {
    let events =
        source.until(command, |event| matches!(event, Event::Generic(generic) if generic.command == command));
    match events.last() {
        Some(Event::Generic(generic)) => generic.clone(),
        other => panic!("{other:?}"),
    }
}

fn number(attributes: &Dict, key: &str) -> i128 {
    attributes.get(key).and_then(Value::integer).unwrap_or_else(|| panic!("no {key} in {attributes:?}"))
}

/// The index that `ip` shows.
fn index(interface: &str) -> i128 {
    let line = output("ip", &["-o", "link", "show", interface]).unwrap();
    line.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn what_ethtool_changes_is_told() {
    in_a_fresh_network(|| {
        let mut source = Heard::new(Families::open().unwrap());
        let veth = ["link", "add", "name", "veth-a", "numrxqueues", "4", "numtxqueues", "4", "type", "veth"];
        if output("ip", &veth).is_none() || output("ethtool", &["--version"]).is_none() {
            return;
        }
        output("ethtool", &["-L", "veth-a", "rx", "3", "tx", "2"]);
        let channels = told(&mut source, "channels-ntf");
        assert_eq!((&*channels.family, &*channels.group), ("ethtool", "monitor"));
        let attributes = &channels.attributes;
        assert_eq!(format!("{:?}", attributes["interface"]), "Text(\"veth-a\")");
        assert_eq!(number(attributes, "index"), index("veth-a"));
        let counts = ["rx-max", "tx-max", "rx-count", "tx-count"].map(|key| number(attributes, key));
        assert_eq!(counts, [4, 4, 3, 2]);
        let active = |attributes: &Dict| match &attributes["active"] {
            Value::Dict(bits) => match &bits["value"] {
                Value::U32s(bits) => bits.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        output("ethtool", &["-K", "veth-a", "tx-checksum-ip-generic", "off"]);
        let off = told(&mut source, "features-ntf");
        output("ethtool", &["-K", "veth-a", "tx-checksum-ip-generic", "on"]);
        let on = told(&mut source, "features-ntf");
        let (off, on) = (active(&off.attributes), active(&on.attributes));
        assert!(off.len() < on.len() && off.iter().all(|bit| on.contains(bit)), "{off:?} {on:?}");
    });
}

#[test]
fn an_ordinary_user_is_told_of_families_and_devices() {
    in_a_fresh_network(|| {
        let open = || (Families::open().unwrap(), Uevents::open(Sender::Kernel).unwrap());
        let Some((families, devices)) = as_nobody(open) else { return };
        as_nobody(|| Uevents::open(Sender::Udev).unwrap());
        if output("ip", &["link", "add", "name", "veth-a", "type", "veth"]).is_none() {
            return;
        }
        Heard::new(devices).until("the interface", |event| matches!(event, Event::Device(_)));
        if output("ethtool", &["-K", "veth-a", "tso", "off"]).is_some() {
            told(&mut Heard::new(families), "features-ntf");
        }
    });
}

#[test]
fn the_kernel_s_words_from_anybody_else_are_dropped() {
    in_a_fresh_network(|| {
        if output("ethtool", &["--version"]).is_none() {
            return;
        }
        let mut source = Heard::new(Families::open().unwrap());
        // Of nlctrl: a family "forged", which comes.
        let attribute = |kind: u16, payload: &[u8]| {
            let length = (payload.len() as u16 + 4).to_ne_bytes();
            let padding = payload.len().next_multiple_of(4) - payload.len();
            [&length[..], &kind.to_ne_bytes(), payload, &[0; 4][..padding]].concat()
        };
        let payload = [&[1, 2, 0, 0][..], &attribute(2, b"forged\0"), &attribute(1, &[99, 0])].concat();
        let length = (payload.len() as u32 + 16).to_ne_bytes();
        let forged = [&length[..], &16_u32.to_ne_bytes(), &[0; 8], &payload].concat();
        assert!(is_heard(GENERIC, 16, &forged).unwrap(), "by those who do not look");
        output("ip", &["link", "add", "name", "veth-a", "type", "veth"]);
        for tso in ["off", "on"] {
            output("ethtool", &["-K", "veth-a", "tso", tso]);
            // All that is told at the first time has been looked at when the second one comes.
            let events = source.until(tso, |event| matches!(event, Event::Generic(_)));
            let [Event::Generic(real)] = events.as_slice() else { panic!("{events:?}") };
            assert_eq!((&*real.family, &*real.command), ("ethtool", "features-ntf"));
        }
    });
}
