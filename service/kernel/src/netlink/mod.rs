//! What the kernel tells everybody over netlink(7): network interfaces, addresses, routes,
//! neighbours and rules (rtnetlink(7)), devices (NETLINK_KOBJECT_UEVENT), processes (the proc
//! connector), and the families of generic netlink, decoded into [`Event`]s with names instead of
//! numbers and addresses as text.
//!
//! A [`Source`] is one socket and what it needs to decode what comes from it. Nothing here waits:
//! a source says what has happened, or what to wait for.
//!
//! Beside that are the parts of the mechanism `netlink`, whose messages stay bytes: its names ([`family`]),
//! its endpoints ([`endpoint`]), what the kernel says of a request ([`answer`]), the list of netlink sockets
//! ([`list`]); and the table of all sockets, whatever their family ([`sockets`]).

pub mod answer;
pub mod endpoint;
pub mod family;
pub mod generic;
pub mod list;
mod listener;
pub mod monitor;
pub mod process_events;
pub mod route;
pub mod socket;
pub mod sockets;
pub mod uevent;
pub mod wire;

use std::collections::BTreeMap;

use crate::{Attempt, Dict, Result};

/// One thing that the kernel told.
#[derive(Debug, Clone)]
pub enum Event {
    /// It is new, or something about it is.
    LinkChanged(Link),
    LinkRemoved(Link),
    AddressAdded(Address),
    AddressRemoved(Address),
    RouteAdded(Route),
    RouteRemoved(Route),
    NeighbourChanged(Neighbour),
    NeighbourRemoved(Neighbour),
    RuleAdded(Rule),
    RuleRemoved(Rule),
    Device(Device),
    Process(Process),
    Generic(Generic),
    /// Events of this source were lost: "route", "uevent", "udev", "process", or the name of a family.
    Overflow(String),
}

impl Event {
    /// The details of what it is about, where that has some.
    pub fn details(&mut self) -> Option<&mut Dict> {
        match self {
            Self::LinkChanged(link) | Self::LinkRemoved(link) => Some(&mut link.details),
            Self::AddressAdded(address) | Self::AddressRemoved(address) => Some(&mut address.details),
            Self::RouteAdded(route) | Self::RouteRemoved(route) => Some(&mut route.details),
            Self::NeighbourChanged(neighbour) | Self::NeighbourRemoved(neighbour) => {
                Some(&mut neighbour.details)
            }
            Self::RuleAdded(rule) | Self::RuleRemoved(rule) => Some(&mut rule.details),
            Self::Process(process) => Some(&mut process.details),
            Self::Generic(generic) => Some(&mut generic.attributes),
            Self::Device(_) | Self::Overflow(_) => None,
        }
    }
}

/// A network interface; the index is what makes it this one.
///
/// Details: `type` (s), `flags` (as), `mtu`, `min-mtu`, `max-mtu` (u), `mac`, `broadcast`, `permanent-mac` (s), `kind`
/// (s), `port-kind` (s), `carrier` (b), `master` (s), `altnames` (as), `alias` (s), `group` (u),
/// `transmit-queue-length`, `transmit-queues`, `receive-queues` (u), `port-name` (s), `protocol-down` (b); of a VLAN, a
/// veth and the like `parent` (s), or, when that is in another namespace, `parent-index` and `parent-namespace` (i).
/// In an event, `old-state`, `old-name`, `old-mtu`, …, as far as changed, and `rescanned` (b, true) where the kernel did
/// not say it by itself: it was found when all were read anew, after an overflow or for a snapshot.
#[derive(Debug, Clone)]
pub struct Link {
    pub index: i32,
    pub name: String,
    /// The operational state of RFC 2863, as `ip link` names it in lower case: "up", "down", "dormant",
    /// "lowerlayerdown", "unknown", …
    pub state: String,
    pub details: Dict,
}

/// An address of an interface; index, address, prefix and peer are what make it this one. It is added
/// again when something about it changes.
///
/// Details: `family` ("inet", "inet6"), `scope` (s), `flags` (as), `label` (s), `peer` (s), `broadcast` (s), `metric` (u),
/// `protocol` (s), and how long it remains, if not for ever: `valid-s` and `preferred-s` (u). In an event
/// `old-flags`, … and `rescanned`, as with links.
#[derive(Debug, Clone)]
pub struct Address {
    pub index: i32,
    pub interface: String,
    pub address: String,
    pub prefix: u8,
    pub details: Dict,
}

/// A route; of IPv4, destination, table, metric and `tos` find it, of IPv6 also the gateway.
///
/// Details: `family`, `protocol`, `scope`, `type` (s), `table`, `metric`, `tos` (u), `flags` (as), `source` (s),
/// `preferred-source` (s), `index` (i), `nexthops` (aa{sv}: `gateway`, `interface` (s), `index` (i), `weight` (u), `flags`
/// (as)), `nexthop-id` (u), `metrics` (a{sv}), `expires-s` (u), `error` (i), `preference` (s), `in-interface` (s), `realm`,
/// `mark`, `uid` (u), `ttl-propagate` (b), `encapsulation` (s), `encapsulation-data` (ay). In an event, `replaced` (b,
/// true) where it took the place of another, and `appended` (b, true) where it came beside one.
///
/// The kernel does not say so when it drops the IPv4 routes of an interface that goes down: whoever
/// follows them asks for a snapshot after a link lost its flag "up" or an address was removed.
#[derive(Debug, Clone)]
pub struct Route {
    /// "default", or address/prefix.
    pub destination: String,
    /// Empty where there is none.
    pub gateway: String,
    /// Empty where there is none, or more than one.
    pub interface: String,
    pub details: Dict,
}

/// An entry of the ARP or NDP table; index and address are what make it this one, and whether it has the
/// flag "proxy".
///
/// Details: `family` (s), `mac` (s), `flags` (as), `protocol` (s); in an event `old-state` and `old-mac` (s), where they
/// are known.
#[derive(Debug, Clone)]
pub struct Neighbour {
    pub index: i32,
    pub interface: String,
    pub address: String,
    /// "reachable", "stale", "failed", …, as `ip neighbour` names it in lower case.
    pub state: String,
    pub details: Dict,
}

/// A routing rule; nothing less than all of it makes it this one.
///
/// Details: `family`, `action` ("lookup", "goto", "nop", "blackhole", "unreachable", "prohibit"), `source`, `destination`,
/// `in-interface`, `out-interface`, `protocol` (s), `inverted`, `l3mdev` (b), `goto`, `mark`, `mark-mask`, `tos`, `dscp`,
/// `realm`, `ip-protocol`, `suppress-group`, `suppress-prefix-length` (u), `uid-first` and `uid-last`,
/// `source-port-first` and so on (u), `tunnel-id` (t).
#[derive(Debug, Clone)]
pub struct Rule {
    pub priority: u32,
    pub table: u32,
    pub details: Dict,
}

/// A kernel uevent, or what udev made of one.
#[derive(Debug, Clone)]
pub struct Device {
    /// "kernel" or "udev".
    pub source: &'static str,
    pub action: String,
    pub devpath: String,
    pub subsystem: String,
    pub properties: BTreeMap<String, String>,
}

/// An event of the proc connector. Details by event:
///
/// - fork: `child-pid`, `child-tid` (i); they differ for a new thread, and then the process is its parent's.
/// - exec: `command` (s), where it could still be read. comm: `command`, the new name.
/// - exit: `code`, `signal` (i), `core` (b), as `Process.Exit` has them; `parent-pid` (i), as has coredump,
///   where it has not been reaped yet.
/// - uid, gid: `real-id`, `effective-id` (u). ptrace: `tracer-pid`, `tracer-tid` (i), 0 when it is left.
#[derive(Debug, Clone)]
pub struct Process {
    /// "fork", "exec", "exit", "uid", "gid", "sid", "ptrace", "comm", "coredump".
    pub event: &'static str,
    pub pid: i32,
    pub tid: i32,
    pub details: Dict,
}

/// A multicast message of a family of generic netlink.
#[derive(Debug, Clone)]
pub struct Generic {
    pub family: String,
    pub group: String,
    /// Its name where it is known, else its number.
    pub command: String,
    /// Decoded where the family is known; others by number, as bytes.
    pub attributes: Dict,
}

/// One socket, and what decodes what comes from it.
pub trait Source: Send {
    /// What has happened since, at most a few hundred events at a time; never an empty list.
    fn next(&mut self) -> Result<Attempt<Vec<Event>>>;
}
