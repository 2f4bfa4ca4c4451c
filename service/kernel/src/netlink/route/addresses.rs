//! Addresses: `struct ifaddrmsg` and its attributes, rtnetlink(7), and the table of them.
//!
//! What remains of a lifetime changes by itself, so that the table keeps when it ends.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{links, names};
use crate::{
    Dict, Value, dict,
    netlink::{
        Address, Event,
        wire::{self, Damaged},
    },
};

/// What the kernel says about an address.
#[derive(Debug, Clone)]
pub struct Row {
    pub key: Key,
    address: IpAddr,
    prefix: u8,
    details: Dict,
    valid_until: Option<Instant>,
    preferred_until: Option<Instant>,
}

/// What makes it this address and no other: of IPv6, an interface has each address once; of IPv4, once
/// for each prefix and peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    index: i32,
    address: IpAddr,
    prefix: u8,
    peer: Option<IpAddr>,
}

/// Attributes that libc does not name.
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;

/// `None` for other families than IPv4 and IPv6.
pub fn decode(payload: &[u8]) -> Result<Option<Row>, Damaged> {
    let (header, attributes) = wire::parts::<8>(payload)?;
    let [family, prefix, flags, scope, i, j, k, l] = *header;
    let index = i32::from_ne_bytes([i, j, k, l]);
    let Some(name) = names::family(family) else { return Ok(None) };
    let mut flags = u32::from(flags);
    let (mut local, mut remote, mut lifetimes) = (None, None, None);
    let mut details = dict! { "family" => name, "scope" => names::scope(scope) };
    for (attribute, payload) in wire::each(&attributes) {
        let ip = || names::ip(family, payload);
        let (key, value) = match attribute {
            libc::IFA_LOCAL => {
                local = ip();
                continue;
            }
            libc::IFA_ADDRESS => {
                remote = ip();
                continue;
            }
            libc::IFA_FLAGS => {
                flags = wire::word(payload).unwrap_or(flags);
                continue;
            }
            libc::IFA_CACHEINFO => {
                lifetimes = wire::word(payload).zip(payload.get(4..).and_then(wire::word));
                continue;
            }
            libc::IFA_LABEL => ("label", Some(Value::Text(wire::text(payload)))),
            libc::IFA_BROADCAST => ("broadcast", ip().map(|ip| Value::Text(ip.to_string()))),
            IFA_RT_PRIORITY => ("metric", wire::word(payload).map(Value::U32)),
            IFA_PROTO => ("protocol", payload.first().map(|number| Value::Text(protocol(*number)))),
            _ => continue,
        };
        details.extend(value.map(|value| (key.to_owned(), value)));
    }
    let mut flag_names = FLAGS.to_vec();
    if i32::from(family) == libc::AF_INET6 {
        flag_names[0] = TEMPORARY;
    }
    details.insert("flags".to_owned(), names::flags(flags, &flag_names));
    // Of a point-to-point address, IFA_ADDRESS is the other end; else both are the same, or one is missing.
    let Some(address) = local.or(remote) else { return Ok(None) };
    let peer = remote.filter(|remote| *remote != address);
    details.extend(peer.map(|peer| ("peer".to_owned(), peer.to_string().into())));
    let key = match address {
        IpAddr::V4(_) => Key { index, address, prefix, peer },
        IpAddr::V6(_) => Key { index, address, prefix: 0, peer: None },
    };
    let now = Instant::now();
    let until = |seconds: u32| (seconds != u32::MAX).then(|| now + Duration::from_secs(seconds.into()));
    let (preferred, valid) = lifetimes.unwrap_or((u32::MAX, u32::MAX));
    let (valid_until, preferred_until) = (until(valid), until(preferred));
    Ok(Some(Row { key, address, prefix, details, valid_until, preferred_until }))
}

/// IFAPROT_*: what the kernel made it from.
fn protocol(number: u8) -> String {
    match number {
        0 => "unspec",
        1 => "kernel_lo",
        2 => "kernel_ra",
        3 => "kernel_ll",
        other => return other.to_string(),
    }
    .to_owned()
}

/// IFA_F_*.
const FLAGS: &[(u32, &str)] = &[
    (0x1, "secondary"),
    (0x2, "nodad"),
    (0x4, "optimistic"),
    (0x8, "dadfailed"),
    (0x10, "homeaddress"),
    (0x20, "deprecated"),
    (0x40, "tentative"),
    (0x80, "permanent"),
    (0x100, "managetempaddr"),
    (0x200, "noprefixroute"),
    (0x400, "mcautojoin"),
    (0x800, "stable_privacy"),
];

/// What the first bit means of an IPv6 address.
const TEMPORARY: (u32, &str) = (0x1, "temporary");

/// The addresses of all interfaces, as they were told.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<Key, Row>);

impl Table {
    /// Takes an address in: what is to be told about it, if anything is new.
    ///
    /// Of an interface that is not known, it is not taken in: either that has gone since, or it came while
    /// the tables were read, and both are told again by what waits in the socket.
    pub fn set(&mut self, row: Row, links: &links::Table) -> Option<Event> {
        if !links.knows(row.key.index) {
            return None;
        }
        let mut address = row.describe(links);
        let old = self.0.insert(row.key.clone(), row.clone());
        if let Some(old) = old {
            if old.same(&row) {
                return None;
            }
            let before = old.describe(links);
            address.details.extend(names::changes(&before.details, &address.details));
            if before.prefix != address.prefix {
                address.details.insert("old-prefix".to_owned(), u32::from(before.prefix).into());
            }
        }
        Some(Event::AddressAdded(address))
    }

    /// Takes an address out: its removal, where it was told.
    pub fn remove(&mut self, key: &Key, links: &links::Table) -> Option<Event> {
        self.0.remove(key).map(|row| Event::AddressRemoved(row.describe(links)))
    }

    /// Takes out what an interface has, that itself is about to go.
    pub fn remove_all(&mut self, index: i32, links: &links::Table) -> Vec<Event> {
        let keys: Vec<_> = self.0.keys().filter(|key| key.index == index).cloned().collect();
        keys.iter().filter_map(|key| self.remove(key, links)).collect()
    }

    pub fn keys(&self) -> Vec<Key> {
        self.0.keys().cloned().collect()
    }

    pub fn rows(&self, links: &links::Table) -> Vec<Address> {
        self.0.values().map(|row| row.describe(links)).collect()
    }
}

impl Row {
    fn describe(&self, links: &links::Table) -> Address {
        let now = Instant::now();
        let mut details = self.details.clone();
        for (key, until) in [("valid-s", self.valid_until), ("preferred-s", self.preferred_until)] {
            // At most what the kernel said, which was a u32.
            let remaining =
                until.map(|until| until.saturating_duration_since(now).as_secs_f64().round() as u32);
            details.extend(remaining.map(|seconds| (key.to_owned(), Value::U32(seconds))));
        }
        Address {
            index: self.key.index,
            interface: links.name(self.key.index),
            address: self.address.to_string(),
            prefix: self.prefix,
            details,
        }
    }

    /// Whether nothing changed but what time changes. The kernel counts in whole seconds.
    fn same(&self, other: &Self) -> bool {
        let close = |a: Option<Instant>, b: Option<Instant>| match (a, b) {
            (Some(a), Some(b)) => a.max(b) - a.min(b) <= Duration::from_secs(2),
            (a, b) => a.is_none() && b.is_none(),
        };
        self.prefix == other.prefix
            && names::same(&self.details, &other.details)
            && close(self.valid_until, other.valid_until)
            && close(self.preferred_until, other.preferred_until)
    }
}
