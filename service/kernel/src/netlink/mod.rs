//! What the kernel tells everybody over netlink(7): network interfaces, addresses, routes,
//! neighbours and rules (rtnetlink(7)), devices (NETLINK_KOBJECT_UEVENT), processes (the proc
//! connector), and the families of generic netlink, decoded into [`Event`]s with names instead of
//! numbers and addresses as text.
//!
//! A [`Source`] is one socket and what it needs to decode what comes from it. Nothing here waits:
//! a source says what has happened, or what to wait for.

pub mod generic;
mod listener;
mod message;
pub mod process_events;
pub mod uevent;

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

/// A network interface. Details: `mtu` (u), `mac` (s), `kind` (s), `flags` (as), `carrier` (b), `master` (s),
/// `altnames` (as) and what else the kernel says; in an event `old-state`, `old-name`, … as far as changed.
#[derive(Debug, Clone)]
pub struct Link {
    pub index: i32,
    pub name: String,
    /// The operational state of RFC 2863, as `ip link` names it in lower case: "up", "down", "dormant",
    /// "lowerlayerdown", "unknown", …
    pub state: String,
    pub details: Dict,
}

/// An address of an interface. Details: `family` (s), `scope` (s), `flags` (as), `label` (s), `peer` (s),
/// `broadcast` (s), `valid-s` and `preferred-s` (u).
#[derive(Debug, Clone)]
pub struct Address {
    pub index: i32,
    pub interface: String,
    pub address: String,
    pub prefix: u8,
    pub details: Dict,
}

/// Details: `family` (s), `table` (u), `protocol`, `scope`, `type` (s), `metric` (u), `source` (s),
/// `preferred-source` (s), `nexthops` (aa{sv}), `replaced` (b).
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

/// Details: `family` (s), `mac` (s), `flags` (as), `old-state` (s), `old-mac` (s).
#[derive(Debug, Clone)]
pub struct Neighbour {
    pub index: i32,
    pub interface: String,
    pub address: String,
    /// "reachable", "stale", "failed", …, as `ip neighbour` names it in lower case.
    pub state: String,
    pub details: Dict,
}

/// Details: `family`, `action`, `source`, `destination`, `in-interface`, `out-interface` (s), `mark`,
/// `mark-mask`, `uid-first`, `uid-last` (u), …
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
