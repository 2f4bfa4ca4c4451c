//! The families of netlink(7) and their multicast groups, by the names of the kernel's headers in lower
//! case: `NETLINK_KOBJECT_UEVENT` is `kobject-uevent`, `RTNLGRP_IPV4_IFADDR` of family `route` is
//! `ipv4-ifaddr`. What has no name here goes by its number, so that a newer kernel's can be used too.

use std::fmt;

use crate::{Error, Result};

/// A netlink family: the protocol of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Family(pub u8);

/// A family's number, its name, and the names of its groups with their numbers.
type Row = (i32, &'static str, &'static [(u32, &'static str)]);

/// linux/netlink.h; MAX_LINKS is 32.
const FAMILIES: &[Row] = &[
    (libc::NETLINK_ROUTE, "route", ROUTE),
    (libc::NETLINK_USERSOCK, "usersock", &[]),
    (libc::NETLINK_FIREWALL, "firewall", &[]),
    (libc::NETLINK_SOCK_DIAG, "sock-diag", SOCK_DIAG),
    (libc::NETLINK_NFLOG, "nflog", &[]),
    (libc::NETLINK_XFRM, "xfrm", XFRM),
    (libc::NETLINK_SELINUX, "selinux", &[(1, "avc")]),
    (libc::NETLINK_ISCSI, "iscsi", &[]),
    (libc::NETLINK_AUDIT, "audit", &[(1, "readlog")]),
    (libc::NETLINK_FIB_LOOKUP, "fib-lookup", &[]),
    (libc::NETLINK_CONNECTOR, "connector", &[(1, "proc")]),
    (libc::NETLINK_NETFILTER, "netfilter", NETFILTER),
    (libc::NETLINK_IP6_FW, "ip6-fw", &[]),
    (libc::NETLINK_DNRTMSG, "dnrtmsg", &[]),
    (libc::NETLINK_KOBJECT_UEVENT, "kobject-uevent", &[(1, "kernel"), (UDEV, "udev")]),
    // The other groups of generic netlink are given out as families register.
    (libc::NETLINK_GENERIC, "generic", &[(16, "nlctrl")]),
    (libc::NETLINK_SCSITRANSPORT, "scsitransport", &[]),
    (libc::NETLINK_ECRYPTFS, "ecryptfs", &[]),
    (libc::NETLINK_RDMA, "rdma", &[(2, "iwpm"), (3, "ls"), (4, "notify")]),
    (libc::NETLINK_CRYPTO, "crypto", &[]),
    (22, "smc", &[]),
];

/// The group that udevd(8) tells processed events in; the kernel itself has group 1.
pub const UDEV: u32 = 2;

/// enum rtnetlink_groups of linux/rtnetlink.h, without DECnet and the holes.
const ROUTE: &[(u32, &str)] = &[
    (1, "link"),
    (2, "notify"),
    (3, "neigh"),
    (4, "tc"),
    (5, "ipv4-ifaddr"),
    (6, "ipv4-mroute"),
    (7, "ipv4-route"),
    (8, "ipv4-rule"),
    (9, "ipv6-ifaddr"),
    (10, "ipv6-mroute"),
    (11, "ipv6-route"),
    (12, "ipv6-ifinfo"),
    (18, "ipv6-prefix"),
    (19, "ipv6-rule"),
    (20, "nd-useropt"),
    (21, "phonet-ifaddr"),
    (22, "phonet-route"),
    (23, "dcb"),
    (24, "ipv4-netconf"),
    (25, "ipv6-netconf"),
    (26, "mdb"),
    (27, "mpls-route"),
    (28, "nsid"),
    (29, "mpls-netconf"),
    (30, "ipv4-mroute-r"),
    (31, "ipv6-mroute-r"),
    (32, "nexthop"),
    (33, "brvlan"),
    (34, "mctp-ifaddr"),
    (35, "tunnel"),
    (36, "stats"),
    (37, "ipv4-mcaddr"),
    (38, "ipv6-mcaddr"),
    (39, "ipv6-acaddr"),
];

/// linux/sock_diag.h.
const SOCK_DIAG: &[(u32, &str)] =
    &[(1, "inet-tcp-destroy"), (2, "inet-udp-destroy"), (3, "inet6-tcp-destroy"), (4, "inet6-udp-destroy")];

/// linux/xfrm.h.
const XFRM: &[(u32, &str)] = &[
    (1, "acquire"),
    (2, "expire"),
    (3, "sa"),
    (4, "policy"),
    (5, "aevents"),
    (6, "report"),
    (7, "migrate"),
    (8, "mapping"),
];

/// linux/netfilter/nfnetlink.h.
const NETFILTER: &[(u32, &str)] = &[
    (1, "conntrack-new"),
    (2, "conntrack-update"),
    (3, "conntrack-destroy"),
    (4, "conntrack-exp-new"),
    (5, "conntrack-exp-update"),
    (6, "conntrack-exp-destroy"),
    (7, "nftables"),
    (8, "acct-quota"),
    (9, "nftrace"),
];

impl Family {
    pub const ROUTE: Self = Self(libc::NETLINK_ROUTE as u8);
    /// Between processes: the only family without a kernel at the other end.
    pub const USERSOCK: Self = Self(libc::NETLINK_USERSOCK as u8);
    pub const CONNECTOR: Self = Self(libc::NETLINK_CONNECTOR as u8);
    pub const KOBJECT_UEVENT: Self = Self(libc::NETLINK_KOBJECT_UEVENT as u8);

    /// From its name or number.
    pub fn parse(text: &str) -> Result<Self> {
        if let Ok(number) = text.parse::<u8>()
            && i32::from(number) < MAX_LINKS
        {
            return Ok(Self(number));
        }
        let found = FAMILIES.iter().find(|row| row.1 == text);
        // All numbers of the table are below MAX_LINKS.
        found.map(|row| Self(row.0 as u8)).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|row| row.1).collect();
            Error::invalid(format!(
                "there is no netlink family {text:?}; the key \"family\" takes {}, or a number below {MAX_LINKS}",
                known.join(", ")
            ))
        })
    }

    fn row(self) -> Option<&'static Row> {
        FAMILIES.iter().find(|row| row.0 == i32::from(self.0))
    }

    fn groups(self) -> &'static [(u32, &'static str)] {
        self.row().map_or(&[], |row| row.2)
    }

    /// A group's number, from its name or number.
    pub fn group(self, text: &str) -> Result<u32> {
        match text.parse() {
            Ok(number) if (1..=MAX_GROUP).contains(&number) => return Ok(number),
            _ => {}
        }
        let found = self.groups().iter().find(|group| group.1 == text);
        found.map(|group| group.0).ok_or_else(|| {
            let known: Vec<_> = self.groups().iter().map(|group| group.1).collect();
            let known = match known.is_empty() {
                true => String::new(),
                false => format!("{}, or ", known.join(", ")),
            };
            Error::invalid(format!(
                "the netlink family {self} has no group {text:?}; a group is {known}a number from 1 to {MAX_GROUP}"
            ))
        })
    }

    /// A group's name, or its number where it has none.
    pub fn group_name(self, number: u32) -> String {
        let found = self.groups().iter().find(|group| group.0 == number);
        found.map_or_else(|| number.to_string(), |group| group.1.to_owned())
    }

    /// The names of the groups in a bitmap of the kernel's, the first group in the lowest bit.
    pub fn group_names(self, bitmap: &[u8]) -> Vec<String> {
        let (words, _) = bitmap.as_chunks::<4>();
        let words = words.iter().map(|word| u32::from_ne_bytes(*word));
        (0_u32..)
            .zip(words)
            .flat_map(|(n, word)| {
                (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| n * 32 + bit + 1)
            })
            .map(|group| self.group_name(group))
            .collect()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some(row) => f.write_str(row.1),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How many families the kernel has room for.
const MAX_LINKS: i32 = 32;

/// More than any family has; the kernel says where its own end.
const MAX_GROUP: u32 = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for (number, name, groups) in FAMILIES {
            let family = Family::parse(name).unwrap();
            assert_eq!(
                (family, family.to_string()),
                (Family::parse(&number.to_string()).unwrap(), (*name).into())
            );
            for (number, name) in *groups {
                assert_eq!(family.group(name), Ok(*number));
                assert_eq!(family.group(&number.to_string()), Ok(*number));
                assert_eq!(family.group_name(*number), *name);
            }
        }
        assert_eq!(Family::parse("17").unwrap().to_string(), "17");
        for text in ["", "32", "-1", "ROUTE", "rtnl"] {
            let error = Family::parse(text).unwrap_err();
            assert!(error.text.contains("kobject-uevent"), "{error}");
        }
        for text in ["", "0", "65536", "no-such"] {
            let error = Family::ROUTE.group(text).unwrap_err();
            assert!(error.text.contains("ipv4-ifaddr") && error.text.contains("65535"), "{error}");
        }
    }

    #[test]
    fn bitmaps_are_groups() {
        let mut bitmap = 0x8000_0011_u32.to_ne_bytes().to_vec();
        bitmap.extend(0x8_u32.to_ne_bytes());
        assert_eq!(Family::ROUTE.group_names(&bitmap), ["link", "ipv4-ifaddr", "nexthop", "stats"]);
        assert_eq!(Family::USERSOCK.group_names(&bitmap), ["1", "5", "32", "36"]);
        assert!(Family::ROUTE.group_names(&[1, 0]).is_empty());
    }
}
