//! Neighbours: `struct ndmsg` and its attributes, rtnetlink(7), and a memory of their states.
//!
//! The memory only serves to say what was before, and not to say the same twice; what does not fit in is
//! told without that.

use std::{collections::HashMap, net::IpAddr};

use super::{links, names};
use crate::{
    Dict, Value, dict,
    netlink::{
        Event, Neighbour,
        wire::{self, Damaged},
    },
};

/// What the kernel says about a neighbour.
#[derive(Debug, Clone)]
pub struct Row {
    index: i32,
    address: IpAddr,
    proxy: bool,
    state: String,
    details: Dict,
}

/// Attributes that libc does not name.
const NDA_PROTOCOL: u16 = 12;
const NDA_FLAGS_EXT: u16 = 15;

/// `None` for other families than IPv4 and IPv6: the forwarding tables of bridges.
pub fn decode(payload: &[u8]) -> Result<Option<Row>, Damaged> {
    let (header, attributes) = wire::parts::<12>(payload)?;
    let [family, _, _, _, i, j, k, l, state_low, state_high, flags, _kind] = *header;
    let index = i32::from_ne_bytes([i, j, k, l]);
    let state = u16::from_ne_bytes([state_low, state_high]);
    let Some(name) = names::family(family) else { return Ok(None) };
    let mut address = None;
    let mut bits = u32::from(flags);
    let mut details = dict! { "family" => name };
    for (attribute, payload) in wire::each(&attributes) {
        let (key, value) = match attribute {
            libc::NDA_DST => {
                address = names::ip(family, payload);
                continue;
            }
            NDA_FLAGS_EXT => {
                bits |= wire::word(payload).unwrap_or_default() << EXTENDED;
                continue;
            }
            libc::NDA_LLADDR if payload.is_empty() => continue,
            libc::NDA_LLADDR => ("mac", Some(Value::Text(names::mac(payload)))),
            NDA_PROTOCOL => ("protocol", payload.first().map(|number| names::protocol(*number).into())),
            _ => continue,
        };
        details.extend(value.map(|value| (key.to_owned(), value)));
    }
    details.insert("flags".to_owned(), names::flags(bits, FLAGS));
    let Some(address) = address else { return Ok(None) };
    let proxy = u32::from(flags) & PROXY != 0;
    Ok(Some(Row { index, address, proxy, state: state_name(state), details }))
}

/// NUD_*.
fn state_name(bits: u16) -> String {
    match bits {
        libc::NUD_NONE => "none",
        libc::NUD_INCOMPLETE => "incomplete",
        libc::NUD_REACHABLE => "reachable",
        libc::NUD_STALE => "stale",
        libc::NUD_DELAY => "delay",
        libc::NUD_PROBE => "probe",
        libc::NUD_FAILED => "failed",
        libc::NUD_NOARP => "noarp",
        libc::NUD_PERMANENT => "permanent",
        other => return other.to_string(),
    }
    .to_owned()
}

/// NTF_PROXY.
const PROXY: u32 = 0x8;

/// Where the bits of NDA_FLAGS_EXT are put: above those of `ndm_flags`.
const EXTENDED: u32 = 8;

/// NTF_* and NTF_EXT_*.
const FLAGS: &[(u32, &str)] = &[
    (0x1, "use"),
    (0x2, "self"),
    (0x4, "master"),
    (PROXY, "proxy"),
    (0x10, "ext_learned"),
    (0x20, "offloaded"),
    (0x40, "sticky"),
    (0x80, "router"),
    (0x1 << EXTENDED, "managed"),
    (0x2 << EXTENDED, "locked"),
    (0x4 << EXTENDED, "ext_validated"),
];

/// The last known states, of at most [`Memory::MOST`] neighbours.
#[derive(Debug, Default)]
pub struct Memory(HashMap<(i32, IpAddr, bool), Row>);

impl Memory {
    /// Four times what the kernel keeps of each family by default (gc_thresh3).
    const MOST: usize = 4096;

    /// Takes a neighbour in: what is to be told about it, if anything is new.
    pub fn set(&mut self, row: Row, links: &links::Table) -> Option<Event> {
        let mut neighbour = row.describe(links);
        let key = row.key();
        if let Some(old) = self.0.get(&key) {
            let mut changes = names::changes(&old.details, &row.details);
            if old.state != row.state {
                changes.insert("old-state".to_owned(), old.state.as_str().into());
            }
            if changes.is_empty() && old.details.len() == row.details.len() {
                return None;
            }
            neighbour.details.extend(changes);
        }
        if self.0.len() < Self::MOST || self.0.contains_key(&key) {
            self.0.insert(key, row);
        }
        Some(Event::NeighbourChanged(neighbour))
    }

    /// Forgets a neighbour that has gone.
    pub fn remove(&mut self, row: &Row, links: &links::Table) -> Event {
        self.0.remove(&row.key());
        Event::NeighbourRemoved(row.describe(links))
    }

    /// Remembers these, and no others.
    pub fn reset(&mut self, rows: Vec<Row>) {
        self.0 = rows.into_iter().take(Self::MOST).map(|row| (row.key(), row)).collect();
    }
}

impl Row {
    /// Whether it says anything: the kernel tells nobody of an entry that it has just begun with.
    pub fn is_known(&self) -> bool {
        self.proxy || self.state != state_name(libc::NUD_NONE)
    }

    fn key(&self) -> (i32, IpAddr, bool) {
        (self.index, self.address, self.proxy)
    }

    pub fn describe(&self, links: &links::Table) -> Neighbour {
        Neighbour {
            index: self.index,
            interface: links.name(self.index),
            address: self.address.to_string(),
            state: self.state.clone(),
            details: self.details.clone(),
        }
    }
}
