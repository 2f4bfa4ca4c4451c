//! The names that rtnetlink's numbers have in the kernel's headers, in lower case, and addresses as text.
//!
//! A number without a name here is told as a number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Dict, Value};

/// "inet" or "inet6"; nothing for the other families, which have no IP addresses.
pub fn family(number: u8) -> Option<&'static str> {
    match i32::from(number) {
        libc::AF_INET => Some("inet"),
        libc::AF_INET6 => Some("inet6"),
        _ => None,
    }
}

/// The address in an attribute of a message of this family.
pub fn ip(family: u8, payload: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => payload.first_chunk().map(|bytes| Ipv4Addr::from(*bytes).into()),
        libc::AF_INET6 => payload.first_chunk().map(|bytes| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

/// A prefix as address/length; "default" is the one that holds everything.
pub fn prefix(family: u8, address: Option<IpAddr>, length: u8) -> String {
    let any = match i32::from(family) {
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    match (address, length) {
        (None, 0) => "default".to_owned(),
        (address, length) => format!("{}/{length}", address.unwrap_or(any)),
    }
}

/// A hardware address; for tunnels, that is an IP address.
pub fn hardware(kind: u16, payload: &[u8]) -> String {
    const IPGRE: u16 = 778;
    const IP6GRE: u16 = 823;
    match kind {
        libc::ARPHRD_TUNNEL | libc::ARPHRD_SIT | IPGRE => ip(libc::AF_INET as u8, payload),
        libc::ARPHRD_TUNNEL6 | IP6GRE => ip(libc::AF_INET6 as u8, payload),
        _ => None,
    }
    .map_or_else(|| mac(payload), |address| address.to_string())
}

/// Bytes in the way of a MAC address: "02:00:5e:10:00:01".
pub fn mac(payload: &[u8]) -> String {
    payload.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The names of the bits that are set; a bit without a name is told as hexadecimal number.
pub fn flags(bits: u32, names: &[(u32, &str)]) -> Value {
    let mut found = Vec::new();
    let mut rest = bits;
    for (bit, name) in names {
        if bits & bit != 0 {
            rest &= !bit;
            found.push((*name).to_owned());
        }
    }
    if rest != 0 {
        found.push(format!("{rest:#x}"));
    }
    Value::Texts(found)
}

/// RT_SCOPE_*.
pub fn scope(number: u8) -> String {
    match number {
        libc::RT_SCOPE_UNIVERSE => "global".to_owned(),
        libc::RT_SCOPE_SITE => "site".to_owned(),
        libc::RT_SCOPE_LINK => "link".to_owned(),
        libc::RT_SCOPE_HOST => "host".to_owned(),
        libc::RT_SCOPE_NOWHERE => "nowhere".to_owned(),
        other => other.to_string(),
    }
}

/// RTPROT_*: who made a route or a rule.
pub fn protocol(number: u8) -> String {
    match number {
        0 => "unspec",
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        10 => "mrt",
        11 => "zebra",
        12 => "bird",
        13 => "dnrouted",
        14 => "xorp",
        15 => "ntk",
        16 => "dhcp",
        17 => "mrouted",
        18 => "keepalived",
        42 => "babel",
        84 => "ovn",
        99 => "openr",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        other => return other.to_string(),
    }
    .to_owned()
}

/// RTN_*: what happens to a packet.
pub fn route_type(number: u8) -> String {
    const NAMES: [&str; 12] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
        "xresolve",
    ];
    NAMES.get(usize::from(number)).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// What changed, for the details of an event: the old value of each key whose value is another one now,
/// under "old-" and its name.
pub fn changes(old: &Dict, new: &Dict) -> Dict {
    let changed = |(key, value): &(&String, &Value)| !new.get(*key).is_some_and(|new| new.same(value));
    old.iter().filter(changed).map(|(key, value)| (format!("old-{key}"), value.clone())).collect()
}

/// Whether two are the same, whatever the widths of their numbers.
pub fn same(old: &Dict, new: &Dict) -> bool {
    old.len() == new.len() && changes(old, new).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dict;

    #[test]
    fn bits_without_a_name_are_numbers() {
        let names = [(1, "up"), (2, "broadcast")];
        let Value::Texts(found) = flags(0x83, &names) else { panic!("texts") };
        assert_eq!(found, ["up", "broadcast", "0x80"]);
    }

    #[test]
    fn prefixes_are_text() {
        let four = libc::AF_INET as u8;
        assert_eq!(prefix(four, None, 0), "default");
        assert_eq!(prefix(four, ip(four, &[192, 0, 2, 0]), 24), "192.0.2.0/24");
        assert_eq!(prefix(libc::AF_INET6 as u8, None, 8), "::/8");
    }

    #[test]
    fn hardware_addresses_of_tunnels_are_ip_addresses() {
        assert_eq!(hardware(libc::ARPHRD_ETHER, &[2, 0, 0x5e, 0, 0, 1]), "02:00:5e:00:00:01");
        assert_eq!(hardware(libc::ARPHRD_SIT, &[192, 0, 2, 1]), "192.0.2.1");
        assert_eq!(hardware(libc::ARPHRD_SIT, &[1]), "01");
    }

    #[test]
    fn what_changed_is_told_with_its_old_value() {
        let old = dict! { "mtu" => 1500_u32, "alias" => "x", "kind" => "dummy" };
        let new = dict! { "mtu" => 1400_u32, "kind" => "dummy", "master" => "br0" };
        let changes = changes(&old, &new);
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["old-alias", "old-mtu"]);
        assert!(same(&old, &old) && !same(&old, &new) && !same(&dict! {}, &new));
    }
}
