//! Rules: `struct fib_rule_hdr` of <linux/fib_rules.h> and its attributes.

use super::names;
use crate::{
    Dict, Value, dict,
    netlink::{
        Rule,
        wire::{self, Damaged},
    },
};

/// FRA_*, which libc does not name.
mod attribute {
    pub const DST: u16 = 1;
    pub const SRC: u16 = 2;
    pub const IIFNAME: u16 = 3;
    pub const GOTO: u16 = 4;
    pub const PRIORITY: u16 = 6;
    pub const FWMARK: u16 = 10;
    pub const FLOW: u16 = 11;
    pub const TUN_ID: u16 = 12;
    pub const SUPPRESS_IFGROUP: u16 = 13;
    pub const SUPPRESS_PREFIXLEN: u16 = 14;
    pub const TABLE: u16 = 15;
    pub const FWMASK: u16 = 16;
    pub const OIFNAME: u16 = 17;
    pub const L3MDEV: u16 = 19;
    pub const UID_RANGE: u16 = 20;
    pub const PROTOCOL: u16 = 21;
    pub const IP_PROTO: u16 = 22;
    pub const SPORT_RANGE: u16 = 23;
    pub const DPORT_RANGE: u16 = 24;
    pub const DSCP: u16 = 25;
}

/// `None` for other families than IPv4 and IPv6.
pub fn decode(payload: &[u8]) -> Result<Option<Rule>, Damaged> {
    let (header, attributes) = wire::parts::<12>(payload)?;
    let [family, destination_length, source_length, tos, table, _, _, action, a, b, c, d] = *header;
    let flags = u32::from_ne_bytes([a, b, c, d]);
    let Some(family_name) = names::family(family) else { return Ok(None) };
    let mut rule = Rule { priority: 0, table: table.into(), details: Dict::new() };
    let (mut destination, mut source) = (None, None);
    let mut details = dict! { "family" => family_name, "action" => action_name(action) };
    if flags & INVERT != 0 {
        details.insert("inverted".to_owned(), true.into());
    }
    if tos != 0 {
        details.insert("tos".to_owned(), u32::from(tos).into());
    }
    for (attribute, payload) in wire::each(&attributes) {
        let word = || wire::word(payload).map(Value::U32);
        let text = || Some(Value::Text(wire::text(payload)));
        let byte = || payload.first().map(|byte| Value::U32((*byte).into()));
        let (key, value) = match attribute {
            attribute::PRIORITY => {
                rule.priority = wire::word(payload).unwrap_or_default();
                continue;
            }
            attribute::TABLE => {
                rule.table = wire::word(payload).unwrap_or(rule.table);
                continue;
            }
            attribute::DST => {
                destination = names::ip(family, payload);
                continue;
            }
            attribute::SRC => {
                source = names::ip(family, payload);
                continue;
            }
            attribute::UID_RANGE => {
                details.extend(range("uid", wire::word(payload), payload.get(4..).and_then(wire::word)));
                continue;
            }
            attribute::SPORT_RANGE => {
                details.extend(ports("source-port", payload));
                continue;
            }
            attribute::DPORT_RANGE => {
                details.extend(ports("destination-port", payload));
                continue;
            }
            attribute::IIFNAME => ("in-interface", text()),
            attribute::OIFNAME => ("out-interface", text()),
            attribute::GOTO => ("goto", word()),
            attribute::FWMARK => ("mark", word()),
            attribute::FWMASK => ("mark-mask", word()),
            attribute::FLOW => ("realm", word()),
            // Big-endian, as on the wire.
            attribute::TUN_ID => {
                ("tunnel-id", payload.first_chunk().map(|bytes| Value::U64(u64::from_be_bytes(*bytes))))
            }
            // All ones: none.
            attribute::SUPPRESS_IFGROUP => ("suppress-group", limit(payload)),
            attribute::SUPPRESS_PREFIXLEN => ("suppress-prefix-length", limit(payload)),
            attribute::L3MDEV => {
                ("l3mdev", payload.first().filter(|byte| **byte != 0).map(|_| Value::Bool(true)))
            }
            attribute::PROTOCOL => {
                ("protocol", payload.first().map(|number| names::protocol(*number).into()))
            }
            attribute::IP_PROTO => ("ip-protocol", byte()),
            attribute::DSCP => ("dscp", byte()),
            _ => continue,
        };
        details.extend(value.map(|value| (key.to_owned(), value)));
    }
    for (key, address, length) in
        [("destination", destination, destination_length), ("source", source, source_length)]
    {
        if address.is_some() || length != 0 {
            details.insert(key.to_owned(), names::prefix(family, address, length).into());
        }
    }
    rule.details = details;
    Ok(Some(rule))
}

/// FIB_RULE_INVERT.
const INVERT: u32 = 2;

/// FR_ACT_*, as `ip rule` says them.
fn action_name(number: u8) -> String {
    match number {
        1 => "lookup",
        2 => "goto",
        3 => "nop",
        6 => "blackhole",
        7 => "unreachable",
        8 => "prohibit",
        other => return other.to_string(),
    }
    .to_owned()
}

fn limit(payload: &[u8]) -> Option<Value> {
    wire::word(payload).filter(|number| *number != u32::MAX).map(Value::U32)
}

/// `struct fib_rule_port_range`.
fn ports(name: &str, payload: &[u8]) -> Vec<(String, Value)> {
    range(name, wire::half(payload).map(u32::from), payload.get(2..).and_then(wire::half).map(u32::from))
}

fn range(name: &str, first: Option<u32>, last: Option<u32>) -> Vec<(String, Value)> {
    let ends = first.zip(last);
    ends.map(|(first, last)| {
        vec![(format!("{name}-first"), first.into()), (format!("{name}-last"), last.into())]
    })
    .unwrap_or_default()
}
