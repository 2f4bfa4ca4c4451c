//! Messages of every family, whole and damaged.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::{
    testing::{attribute, message},
    *,
};
use crate::{Dict, dict, netlink::wire::damage};

const ID: u16 = 30;
const GROUP: u32 = 40;

fn known(name: &str) -> &'static Known {
    KNOWN.iter().find(|known| known.name == name).unwrap()
}

fn told(family: &str, group: &str, data: &[u8]) -> Option<Vec<Generic>> {
    let groups = BTreeMap::from([(GROUP, group.to_owned())]);
    decode(known(family), ID, &groups, Datagram { data, group: GROUP })
}

#[track_caller]
fn says(family: &str, group: &str, number: u8, attributes: &[Vec<u8>], command: &str, expected: &Dict) {
    let data = message(ID, number, attributes);
    let told = told(family, group, &data).unwrap();
    let [event] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((&*event.family, &*event.group, &*event.command), (family, group, command));
    assert_eq!(format!("{:?}", event.attributes), format!("{expected:?}"));
}

fn word(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_ne_bytes())
}

/// `struct acpi_genl_event` of a lid that was closed.
fn lid() -> Vec<u8> {
    let mut event = [0; 44];
    event[..10].copy_from_slice(b"button/lid");
    event[20..23].copy_from_slice(b"LID");
    event[36..40].copy_from_slice(&0x80_u32.to_ne_bytes());
    event[40..].copy_from_slice(&3_u32.to_ne_bytes());
    attribute(1, &event)
}

#[test]
fn a_lid_and_a_power_button() {
    let expected =
        dict! { "device-class" => "button/lid", "bus-id" => "LID", "type" => 0x80_u32, "data" => 3_u32 };
    says("acpi_event", "acpi_mc_group", 1, &[lid()], "event", &expected);
    for short in [0, 20, 40, 43] {
        let data = message(ID, 1, &[attribute(1, &[0; 44][..short])]);
        assert!(told("acpi_event", "acpi_mc_group", &data).is_none(), "{short} bytes");
    }
}

#[test]
fn thermal_events_and_samples() {
    let created = [word(2, 3), attribute(10, b"x86_pkg_temp\0")];
    let expected = dict! { "tz-id" => 3_u32, "tz-name" => "x86_pkg_temp" };
    says("thermal", "event", 1, &created, "tz-create", &expected);
    let trip = [word(2, 3), word(5, 1), word(6, 3), word(7, 105_000), word(8, 0)];
    let expected = dict! {
        "tz-id" => 3_u32, "tz-trip-id" => 1_u32, "tz-trip-type" => "critical",
        "tz-trip-temp" => 105_000, "tz-trip-hyst" => 0,
    };
    says("thermal", "event", 7, &trip, "tz-trip-change", &expected);
    let sample = [word(2, 3), word(3, (-5000_i32).cast_unsigned())];
    let expected = dict! { "tz-id" => 3_u32, "tz-temp" => -5000 };
    says("thermal", "sampling", 0, &sample, "temp", &expected);
    let cpus = [word(21, 0), word(22, 500), word(23, 400), word(21, 1), word(22, 0), word(23, 0)].concat();
    let expected = dict! { "cpu-capability" => vec![
        dict! { "id" => 0_u32, "performance" => 500_u32, "efficiency" => 400_u32 },
        dict! { "id" => 1_u32, "performance" => 0_u32, "efficiency" => 0_u32 },
    ] };
    says("thermal", "event", 14, &[attribute(20, &cpus)], "cpu-capability-change", &expected);
    let crossed = [word(2, 0), word(27, 39_000), word(3, 41_000)];
    let expected = dict! { "tz-id" => 0_u32, "tz-prev-temp" => 39_000, "tz-temp" => 41_000 };
    says("thermal", "event", 18, &crossed, "threshold-up", &expected);
    says("thermal", "event", 20, &[word(99, 1)], "20", &dict! { "99" => 1_u32.to_ne_bytes().to_vec() });
}

#[test]
fn a_quota_that_is_exceeded() {
    let id = |kind, id: u64| attribute(kind, &id.to_ne_bytes());
    let warning = [word(1, 0), id(2, 1000), word(3, 6), word(4, 8), word(5, 1), id(6, 1000)];
    let expected = dict! {
        "qtype" => "user", "excess-id" => 1000_u64, "warning" => "bsoftwarn", "dev-major" => 8_u32,
        "dev-minor" => 1_u32, "device" => "8:1", "caused-id" => 1000_u64,
    };
    says("VFS_DQUOT", "events", 1, &warning, "warning", &expected);
}

#[test]
fn families_and_groups_that_come_and_go() {
    let group = [attribute(2, &7_u32.to_ne_bytes()), attribute(1, b"acpi_mc_group\0")].concat();
    let family = [
        attribute(2, b"acpi_event\0"),
        attribute(1, &29_u16.to_ne_bytes()),
        word(3, 1),
        word(4, 0),
        word(5, 1),
        attribute(7, &attribute(1, &group)),
    ];
    let groups = vec![dict! { "id" => 7_u32, "name" => "acpi_mc_group" }];
    let expected = dict! {
        "name" => "acpi_event", "id" => 29_u32, "version" => 1_u32, "header-size" => 0_u32,
        "max-attribute" => 1_u32, "groups" => groups.clone(),
    };
    for (number, command) in [(1, "newfamily"), (2, "delfamily")] {
        says("nlctrl", "notify", number, &family, command, &expected);
    }
    let told = told("nlctrl", "notify", &message(ID, 1, &family)).unwrap();
    let new = Family { name: "acpi_event".into(), id: 29, groups: vec![("acpi_mc_group".into(), 7)] };
    assert_eq!(new_family(&Event::Generic(told[0].clone())), Some(new));
    let short = [attribute(2, b"acpi_event\0"), attribute(1, &29_u16.to_ne_bytes()), family[5].clone()];
    let expected = dict! { "name" => "acpi_event", "id" => 29_u32, "groups" => groups };
    says("nlctrl", "notify", 7, &short, "newmcast-grp", &expected);
    says("nlctrl", "notify", 8, &short, "delmcast-grp", &expected);
}

#[test]
fn a_family_that_comes_later_is_listened_to() {
    let mut families = Families::open().unwrap();
    let listens = |families: &Families| {
        let groups = |member: &Member| (member.known.name, member.id, member.groups.clone());
        families.members.iter().map(groups).collect::<Vec<_>>()
    };
    let all = listens(&families);
    assert_eq!(all[0].0, "nlctrl");
    for (name, id, groups) in all.clone() {
        // As if it had not been there when its module came, or had had another number.
        let groups = groups.into_iter().map(|(group, name)| (name, group)).collect();
        families.members.retain(|member| member.known.name != name);
        families
            .learn(Family { name: name.into(), id: id + 1, groups: vec![("gone".into(), 1 << 20)] })
            .unwrap();
        families.learn(Family { name: name.into(), id, groups }).unwrap();
    }
    assert_eq!(listens(&families), all);
    families.learn(Family { name: "nl80211".into(), id: 99, groups: vec![("scan".into(), 1)] }).unwrap();
    assert_eq!(listens(&families), all, "a family that is not known here");
}

#[test]
fn a_setting_of_an_interface() {
    let header = attribute(1 | 0x8000, &[word(1, 5), attribute(2, b"eth0\0")].concat());
    let rings = [header.clone(), word(2, 4096), word(6, 512)];
    let expected = dict! { "index" => 5_u32, "interface" => "eth0", "rx-max" => 4096_u32, "rx" => 512_u32 };
    says("ethtool", "monitor", 17, &rings, "rings-ntf", &expected);
    let bits = [attribute(1, b""), word(2, 15), word(4, 0b101)].concat();
    let debug = [header.clone(), attribute(2 | 0x8000, &bits)];
    let bits = dict! { "nomask" => true, "size" => 15_u32, "value" => vec![0_u32, 2] };
    let expected = dict! { "index" => 5_u32, "interface" => "eth0", "msgmask" => bits };
    says("ethtool", "monitor", 8, &debug, "debug-ntf", &expected);
    let later = [header, word(2, 7)];
    let number = 7_u32.to_ne_bytes().to_vec();
    let expected = dict! { "index" => 5_u32, "interface" => "eth0", "2" => number };
    says("ethtool", "monitor", 43, &later, "mm-ntf", &expected);
}

#[test]
fn other_families_and_groups_are_not_told() {
    let groups = BTreeMap::from([(GROUP, "acpi_mc_group".to_owned())]);
    let data = &message(ID, 1, &[lid()]);
    for (id, group) in [(ID + 1, GROUP), (ID, GROUP + 1), (ID, 0)] {
        assert!(decode(known("acpi_event"), id, &groups, Datagram { data, group }).is_none());
    }
    let two = [&data[..], data].concat();
    assert_eq!(told("acpi_event", "acpi_mc_group", &two).unwrap().len(), 2, "two in one");
}

#[test]
fn cut_messages_are_not_told() {
    let data = message(ID, 1, &[lid()]);
    for cut in damage::cut(&data).skip(1) {
        assert!(told("acpi_event", "acpi_mc_group", cut).is_none(), "{} bytes", cut.len());
    }
}

/// A message with everything nested that the family's tables know.
fn rich(family: &str) -> (u8, Vec<Vec<u8>>) {
    let inner = [word(1, 1), attribute(2, b"a\0"), word(21, 1), word(4, 7)].concat();
    let nested = |kind| attribute(kind, &attribute(1 | 0x8000, &inner));
    match family {
        "nlctrl" => (1, vec![attribute(2, b"f\0"), attribute(1, &[1, 0]), nested(6), nested(7), nested(8)]),
        "acpi_event" => (1, vec![lid(), nested(2)]),
        "thermal" => (14, vec![word(2, 1), word(6, 1), attribute(20, &word(21, 1)), nested(24)]),
        "ethtool" => (5, vec![attribute(1, &inner), attribute(3, &inner), word(5, 1000), nested(40)]),
        _ => (1, vec![word(1, 0), attribute(2, &[0; 8]), word(3, 4), word(4, 8), word(5, 1), nested(9)]),
    }
}

proptest! {
    #[test]
    fn damage_never_panics(
        (family, message) in prop::sample::select(KNOWN.iter().map(|known| known.name).collect::<Vec<_>>())
            .prop_flat_map(|family| {
                let (number, attributes) = rich(family);
                (Just(family), damage::damaged(message(ID, number, &attributes)))
            })
    ) {
        for event in told(family, "sampling", &message).unwrap_or_default() {
            new_family(&Event::Generic(event.clone()));
            prop_assert_eq!(event.family, family);
        }
    }

    #[test]
    fn damaged_attributes_never_panic(
        (family, number, attributes) in
            prop::sample::select(KNOWN.iter().map(|known| known.name).collect::<Vec<_>>())
                .prop_flat_map(|family| {
                    let (number, attributes) = rich(family);
                    (Just(family), Just(number), damage::damaged(attributes.concat()))
                })
    ) {
        // The header is whole, so that the damage reaches the tables.
        told(family, "event", &message(ID, number, &[attributes]));
    }
}
