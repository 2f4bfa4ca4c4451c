//! Links: `struct ifinfomsg` and its attributes, rtnetlink(7), and the table of them.
//!
//! Other interfaces are kept by index, as their names change; who asks gets the name of the moment.
//! What may change without a message (statistics, the queueing discipline, how often an interface is
//! promiscuous) is left out: the table is to be what the kernel would say.

use std::collections::BTreeMap;

use super::names;
use crate::{
    Dict, Value, dict,
    netlink::{
        Event, Link,
        wire::{self, Damaged},
    },
};

/// What the kernel says about a link.
#[derive(Debug, Clone)]
pub struct Row {
    pub index: i32,
    name: String,
    state: String,
    /// The bridge, bond, … that it is a port of.
    master: Option<i32>,
    /// The interface below (a VLAN's), or the other end (of a veth); in the same namespace or in another.
    parent: Option<i32>,
    details: Dict,
}

/// The detail that says that the parent is in another namespace.
const PARENT_NAMESPACE: &str = "parent-namespace";

impl Row {
    fn is_veth(&self) -> bool {
        self.details.get("kind").is_some_and(|kind| kind.same(&"veth".into()))
    }
}

/// `None` for what is not about a link as a whole: of a bridge's ports (AF_BRIDGE), of a family of
/// addresses, and the events of the wireless extensions, which bring no state along.
pub fn decode(payload: &[u8]) -> Result<Option<Row>, Damaged> {
    let (header, attributes) = wire::parts::<16>(payload)?;
    let [family, _, kind_low, kind_high, i, j, k, l, a, b, c, d, ..] = *header;
    let kind = u16::from_ne_bytes([kind_low, kind_high]);
    let flags = u32::from_ne_bytes([a, b, c, d]);
    let index = i32::from_ne_bytes([i, j, k, l]);
    if i32::from(family) != libc::AF_UNSPEC {
        return Ok(None);
    }
    let mut row = Row {
        index,
        name: String::new(),
        state: operational_state(0),
        master: None,
        parent: None,
        details: dict! { "type" => link_type(kind), "flags" => names::flags(flags, FLAGS) },
    };
    for (attribute, payload) in wire::each(&attributes) {
        let word = || wire::word(payload).map(Value::U32);
        let limit = || wire::word(payload).filter(|limit| *limit != 0).map(Value::U32);
        let flag = || payload.first().map(|byte| Value::Bool(*byte != 0));
        let hardware = || (!payload.is_empty()).then(|| Value::Text(names::hardware(kind, payload)));
        let text = || Some(Value::Text(wire::text(payload)));
        let (key, value) = match attribute {
            libc::IFLA_WIRELESS => return Ok(None),
            libc::IFLA_IFNAME => {
                row.name = wire::text(payload);
                continue;
            }
            libc::IFLA_OPERSTATE => {
                row.state = operational_state(payload.first().copied().unwrap_or_default());
                continue;
            }
            libc::IFLA_MASTER => {
                row.master = wire::signed(payload);
                continue;
            }
            libc::IFLA_LINK => {
                // Sent for the loopback device and the like: none.
                row.parent = wire::signed(payload).filter(|parent| *parent != 0 && *parent != index);
                continue;
            }
            libc::IFLA_LINKINFO => {
                link_info(payload, &mut row.details)?;
                continue;
            }
            libc::IFLA_PROP_LIST => ("altnames", Some(alternative_names(payload)?)),
            libc::IFLA_ADDRESS => ("mac", hardware()),
            libc::IFLA_BROADCAST => ("broadcast", hardware()),
            libc::IFLA_PERM_ADDRESS => ("permanent-mac", hardware()),
            libc::IFLA_MTU => ("mtu", word()),
            libc::IFLA_MIN_MTU => ("min-mtu", limit()),
            libc::IFLA_MAX_MTU => ("max-mtu", limit()),
            libc::IFLA_IFALIAS => ("alias", text()),
            libc::IFLA_PHYS_PORT_NAME => ("port-name", text()),
            libc::IFLA_TXQLEN => ("transmit-queue-length", word()),
            libc::IFLA_NUM_TX_QUEUES => ("transmit-queues", word()),
            libc::IFLA_NUM_RX_QUEUES => ("receive-queues", word()),
            libc::IFLA_GROUP => ("group", word()),
            libc::IFLA_CARRIER => ("carrier", flag()),
            libc::IFLA_PROTO_DOWN => ("protocol-down", flag()),
            libc::IFLA_LINK_NETNSID => (PARENT_NAMESPACE, wire::signed(payload).map(Value::I32)),
            _ => continue,
        };
        row.details.extend(value.map(|value| (key.to_owned(), value)));
    }
    Ok(Some(row))
}

/// IFLA_INFO_KIND and IFLA_INFO_SLAVE_KIND: "veth", "bridge", "vlan", …
fn link_info(payload: &[u8], details: &mut Dict) -> Result<(), Damaged> {
    for (attribute, payload) in wire::each(&wire::attributes(payload)?) {
        let key = match attribute {
            libc::IFLA_INFO_KIND => "kind",
            libc::IFLA_INFO_SLAVE_KIND => "port-kind",
            _ => continue,
        };
        details.insert(key.to_owned(), Value::Text(wire::text(payload)));
    }
    Ok(())
}

fn alternative_names(payload: &[u8]) -> Result<Value, Damaged> {
    let properties = wire::attributes(payload)?;
    let names = wire::each(&properties).filter(|(kind, _)| *kind == libc::IFLA_ALT_IFNAME);
    Ok(Value::Texts(names.map(|(_, payload)| wire::text(payload)).collect()))
}

/// IF_OPER_*.
fn operational_state(number: u8) -> String {
    const NAMES: [&str; 7] = ["unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"];
    NAMES.get(usize::from(number)).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// ARPHRD_*.
fn link_type(number: u16) -> String {
    match number {
        libc::ARPHRD_ETHER => "ether",
        libc::ARPHRD_INFINIBAND => "infiniband",
        libc::ARPHRD_CAN => "can",
        libc::ARPHRD_PPP => "ppp",
        libc::ARPHRD_TUNNEL => "ipip",
        libc::ARPHRD_TUNNEL6 => "tunnel6",
        libc::ARPHRD_LOOPBACK => "loopback",
        libc::ARPHRD_SIT => "sit",
        libc::ARPHRD_NONE => "none",
        778 => "gre",
        823 => "gre6",
        824 => "netlink",
        826 => "vsockmon",
        other => return other.to_string(),
    }
    .to_owned()
}

/// IFF_*.
const FLAGS: &[(u32, &str)] = &[
    (0x1, "up"),
    (0x2, "broadcast"),
    (0x4, "debug"),
    (0x8, "loopback"),
    (0x10, "pointopoint"),
    (0x20, "notrailers"),
    (0x40, "running"),
    (0x80, "noarp"),
    (0x100, "promisc"),
    (0x200, "allmulti"),
    (0x400, "master"),
    (0x800, "slave"),
    (0x1000, "multicast"),
    (0x2000, "portsel"),
    (0x4000, "automedia"),
    (0x8000, "dynamic"),
    (0x1_0000, "lower_up"),
    (0x2_0000, "dormant"),
    (0x4_0000, "echo"),
];

/// The links by index, as they were told.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<i32, Row>);

impl Table {
    /// Takes a link in: what is to be told about it, if anything is new.
    pub fn set(&mut self, row: Row) -> Vec<Event> {
        let index = row.index;
        // Of a new veth pair, the end that was made first is told without the other one, and not again.
        let other_end = row.parent.filter(|_| row.is_veth() && !row.details.contains_key(PARENT_NAMESPACE));
        self.change(index, other_end, |links| {
            links.insert(index, row);
            let other_end = other_end.and_then(|other_end| links.get_mut(&other_end));
            if let Some(end) = other_end.filter(|end| end.is_veth() && end.parent.is_none()) {
                end.parent = Some(index);
            }
        })
    }

    /// Takes a link out: its removal, where it was told.
    pub fn remove(&mut self, index: i32) -> Vec<Event> {
        self.change(index, None, |links| _ = links.remove(&index))
    }

    /// Tells what is another than before: the link itself, and those above or below it, as they are told
    /// with its name.
    fn change(
        &mut self,
        index: i32,
        other_end: Option<i32>,
        with: impl FnOnce(&mut BTreeMap<i32, Row>),
    ) -> Vec<Event> {
        let before: Vec<_> = self.concerned(index, other_end).collect();
        with(&mut self.0);
        let mut events = Vec::new();
        for old in before.iter().filter(|old| !self.0.contains_key(&old.index)) {
            events.push(Event::LinkRemoved(old.clone()));
        }
        for mut link in self.concerned(index, other_end) {
            if let Some(old) = before.iter().find(|old| old.index == link.index) {
                let (before, after) = (whole(old), whole(&link));
                if names::same(&before, &after) {
                    continue;
                }
                link.details.extend(names::changes(&before, &after));
            }
            events.push(Event::LinkChanged(link));
        }
        events
    }

    /// The link, and then those that name it, or will.
    fn concerned(&self, index: i32, other_end: Option<i32>) -> impl Iterator<Item = Link> {
        let concerned = move |row: &&Row| {
            let names_it = row.master == Some(index) || row.parent == Some(index);
            row.index != index && (names_it || other_end == Some(row.index))
        };
        let rows = self.0.get(&index).into_iter().chain(self.0.values().filter(concerned));
        rows.map(|row| self.describe(row))
    }

    pub fn knows(&self, index: i32) -> bool {
        self.0.contains_key(&index)
    }

    pub fn indexes(&self) -> Vec<i32> {
        self.0.keys().copied().collect()
    }

    pub fn rows(&self) -> Vec<Link> {
        self.0.values().map(|row| self.describe(row)).collect()
    }

    /// The name of an interface; of one that is not known, "if" and its number, as ip(8) says it.
    pub fn name(&self, index: i32) -> String {
        self.0.get(&index).map_or_else(|| format!("if{index}"), |row| row.name.clone())
    }

    fn describe(&self, row: &Row) -> Link {
        let mut details = row.details.clone();
        if let Some(master) = row.master {
            details.insert("master".to_owned(), self.name(master).into());
        }
        if let Some(parent) = row.parent {
            // The name is known where the interface is in this namespace.
            let (key, value) = match details.contains_key(PARENT_NAMESPACE) {
                true => ("parent-index", Value::I32(parent)),
                false => ("parent", Value::Text(self.name(parent))),
            };
            details.insert(key.to_owned(), value);
        }
        Link { index: row.index, name: row.name.clone(), state: row.state.clone(), details }
    }
}

/// What can change about a link, all of it.
fn whole(link: &Link) -> Dict {
    let mut whole = link.details.clone();
    whole.insert("name".to_owned(), link.name.as_str().into());
    whole.insert("state".to_owned(), link.state.as_str().into());
    whole
}
