//! Routes: `struct rtmsg` and its attributes, rtnetlink(7).

use super::{links::Table, names};
use crate::{
    Dict, Value, dict,
    netlink::{
        Route,
        wire::{self, Damaged},
    },
};

/// NLM_F_REPLACE and NLM_F_APPEND of the message: what the route was made with.
const REPLACE: u16 = 0x100;
const APPEND: u16 = 0x800;

/// RTA_NH_ID, which libc does not name.
const RTA_NH_ID: u16 = 30;

/// `None` for other families than IPv4 and IPv6, and for what the kernel only remembers (clones).
pub fn decode(payload: &[u8], flags: u16, links: &Table) -> Result<Option<Route>, Damaged> {
    let (header, attributes) = wire::parts::<12>(payload)?;
    let [family, length, source_length, tos, table, protocol, scope, kind, a, b, c, d] = *header;
    let route_flags = u32::from_ne_bytes([a, b, c, d]);
    let Some(family_name) = names::family(family) else { return Ok(None) };
    if route_flags & CLONED != 0 {
        return Ok(None);
    }
    let (mut destination, mut source) = (None, None);
    let mut hop = Hop::default();
    let mut details = dict! {
        "family" => family_name,
        "table" => u32::from(table),
        "protocol" => names::protocol(protocol),
        "scope" => names::scope(scope),
        "type" => names::route_type(kind),
    };
    if route_flags != 0 {
        details.insert("flags".to_owned(), names::flags(route_flags, FLAGS));
    }
    if tos != 0 {
        details.insert("tos".to_owned(), u32::from(tos).into());
    }
    for (flag, key) in [(REPLACE, "replaced"), (APPEND, "appended")] {
        if flags & flag != 0 {
            details.insert(key.to_owned(), true.into());
        }
    }
    for (attribute, payload) in wire::each(&attributes) {
        let word = || wire::word(payload).map(Value::U32);
        let (key, value) = match attribute {
            libc::RTA_DST => {
                destination = names::ip(family, payload);
                continue;
            }
            libc::RTA_SRC => {
                source = names::ip(family, payload);
                continue;
            }
            libc::RTA_OIF | libc::RTA_GATEWAY | libc::RTA_VIA | libc::RTA_ENCAP_TYPE | libc::RTA_ENCAP => {
                hop.take(family, attribute, payload);
                continue;
            }
            libc::RTA_CACHEINFO => {
                details.extend(cache_info(payload));
                continue;
            }
            libc::RTA_MULTIPATH => ("nexthops", Some(Value::Dicts(next_hops(family, payload, links)?))),
            libc::RTA_METRICS => ("metrics", Some(Value::Dict(metrics(payload)?))),
            libc::RTA_TABLE => ("table", word()),
            libc::RTA_PRIORITY => ("metric", word()),
            libc::RTA_PREFSRC => {
                ("preferred-source", names::ip(family, payload).map(|ip| Value::Text(ip.to_string())))
            }
            libc::RTA_IIF => ("in-interface", wire::signed(payload).map(|index| links.name(index).into())),
            libc::RTA_FLOW => ("realm", word()),
            libc::RTA_MARK => ("mark", word()),
            libc::RTA_UID => ("uid", word()),
            libc::RTA_PREF => ("preference", payload.first().map(|number| preference(*number).into())),
            libc::RTA_TTL_PROPAGATE => ("ttl-propagate", payload.first().map(|byte| Value::Bool(*byte != 0))),
            RTA_NH_ID => ("nexthop-id", word()),
            _ => continue,
        };
        details.extend(value.map(|value| (key.to_owned(), value)));
    }
    if source.is_some() || source_length != 0 {
        details.insert("source".to_owned(), names::prefix(family, source, source_length).into());
    }
    details.extend(hop.details);
    details.extend(hop.index.map(|index| ("index".to_owned(), index.into())));
    Ok(Some(Route {
        destination: names::prefix(family, destination, length),
        gateway: hop.gateway,
        interface: hop.index.map(|index| links.name(index)).unwrap_or_default(),
        details,
    }))
}

/// Where a packet goes next, of a route or of one of its paths.
#[derive(Default)]
struct Hop {
    index: Option<i32>,
    gateway: String,
    details: Dict,
}

impl Hop {
    fn take(&mut self, family: u8, attribute: u16, payload: &[u8]) {
        let gateway = match attribute {
            libc::RTA_OIF => {
                self.index = wire::signed(payload);
                return;
            }
            libc::RTA_ENCAP_TYPE => {
                let kind = wire::half(payload).map(encapsulation);
                self.details.extend(kind.map(|kind| ("encapsulation".to_owned(), kind.into())));
                return;
            }
            libc::RTA_ENCAP => {
                self.details.insert("encapsulation-data".to_owned(), payload.to_vec().into());
                return;
            }
            libc::RTA_GATEWAY => names::ip(family, payload),
            // RTA_VIA, a gateway of the other family: that as u16, then the address.
            _ => wire::half(payload)
                .and_then(|family| u8::try_from(family).ok())
                .and_then(|family| names::ip(family, payload.get(2..)?)),
        };
        if let Some(gateway) = gateway {
            self.gateway = gateway.to_string();
        }
    }
}

/// The paths of a route with several: `struct rtnexthop`, each with attributes of its own.
fn next_hops(family: u8, mut rest: &[u8], links: &Table) -> Result<Vec<Dict>, Damaged> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let damaged = || Damaged::new("a path of a route ends too early");
        let header: &[u8; 8] = rest.first_chunk().ok_or_else(damaged)?;
        let [length_low, length_high, flags, hops, i, j, k, l] = *header;
        let length = usize::from(u16::from_ne_bytes([length_low, length_high]));
        let index = i32::from_ne_bytes([i, j, k, l]);
        let attributes = wire::attributes(rest.get(8..length).ok_or_else(damaged)?)?;
        let mut hop = Hop::default();
        for (attribute, payload) in wire::each(&attributes) {
            if matches!(attribute, libc::RTA_GATEWAY | libc::RTA_VIA | libc::RTA_ENCAP_TYPE | libc::RTA_ENCAP)
            {
                hop.take(family, attribute, payload);
            }
        }
        let mut path = dict! {
            "gateway" => hop.gateway,
            "interface" => links.name(index),
            "index" => index,
            // The kernel counts from 0.
            "weight" => u32::from(hops) + 1,
        };
        if flags != 0 {
            path.insert("flags".to_owned(), names::flags(flags.into(), FLAGS));
        }
        path.extend(hop.details);
        found.push(path);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// RTAX_*: what connections over the route begin with.
fn metrics(payload: &[u8]) -> Result<Dict, Damaged> {
    const NAMES: [&str; 18] = [
        "",
        "lock",
        "mtu",
        "window",
        "rtt",
        "rttvar",
        "ssthresh",
        "cwnd",
        "advmss",
        "reordering",
        "hoplimit",
        "initcwnd",
        "features",
        "rto-min",
        "initrwnd",
        "quickack",
        "congestion-control",
        "fastopen-no-cookie",
    ];
    const CONGESTION_CONTROL: u16 = 16;
    let mut found = Dict::new();
    for (attribute, payload) in wire::each(&wire::attributes(payload)?) {
        let value = match attribute {
            CONGESTION_CONTROL => Some(Value::Text(wire::text(payload))),
            _ => wire::word(payload).map(Value::U32),
        };
        let name = NAMES.get(usize::from(attribute)).filter(|name| !name.is_empty());
        found.extend(name.zip(value).map(|(name, value)| ((*name).to_owned(), value)));
    }
    Ok(found)
}

/// `struct rta_cacheinfo`: when the route ends, and with which error packets are refused.
fn cache_info(payload: &[u8]) -> Dict {
    /// USER_HZ, the same on every architecture that is left.
    const TICKS: i32 = 100;
    let mut found = Dict::new();
    if let Some(expires) =
        payload.get(8..).and_then(wire::signed).and_then(|ticks| u32::try_from(ticks / TICKS).ok())
    {
        found.extend((expires != 0).then(|| ("expires-s".to_owned(), expires.into())));
    }
    if let Some(error) = payload.get(12..).and_then(wire::signed).filter(|error| *error != 0) {
        found.insert("error".to_owned(), error.saturating_abs().into());
    }
    found
}

/// ICMPV6_ROUTER_PREF_*.
fn preference(number: u8) -> String {
    match number {
        0 => "medium".to_owned(),
        1 => "high".to_owned(),
        3 => "low".to_owned(),
        other => other.to_string(),
    }
}

/// LWTUNNEL_ENCAP_*.
fn encapsulation(number: u16) -> String {
    const NAMES: [&str; 11] =
        ["none", "mpls", "ip", "ila", "ip6", "seg6", "bpf", "seg6local", "rpl", "ioam6", "xfrm"];
    NAMES.get(usize::from(number)).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// RTM_F_CLONED.
const CLONED: u32 = 0x200;

/// RTNH_F_* and RTM_F_*.
const FLAGS: &[(u32, &str)] = &[
    (0x1, "dead"),
    (0x2, "pervasive"),
    (0x4, "onlink"),
    (0x8, "offload"),
    (0x10, "linkdown"),
    (0x20, "unresolved"),
    (0x40, "trap"),
    (0x100, "notify"),
    (0x800, "prefix"),
    (0x4000, "rt_offload"),
    (0x8000, "rt_trap"),
    (0x2000_0000, "offload_failed"),
];
