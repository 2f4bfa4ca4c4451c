//! The same facts, of what the service says and of what `ip -j -d` says, in words that compare.

use std::collections::{BTreeMap, BTreeSet};

use ipc_kernel::{
    Dict, Value,
    netlink::{Address, Link, Neighbour, Route, Rule},
};
use serde_json::Value as Json;

pub type Facts = BTreeMap<String, String>;

/// Every row, however they are ordered.
pub type All = BTreeSet<Facts>;

/// Compares, and says what differs.
#[track_caller]
pub fn assert_same(what: &str, ours: All, theirs: All) {
    let only_ours: Vec<_> = ours.difference(&theirs).collect();
    let only_theirs: Vec<_> = theirs.difference(&ours).collect();
    assert!(
        only_ours.is_empty() && only_theirs.is_empty(),
        "{what}: only the service says {only_ours:#?}, only ip says {only_theirs:#?}"
    );
}

pub fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Texts(texts) => {
            let mut texts = texts.clone();
            texts.sort();
            texts.join(" ")
        }
        Value::Dicts(dicts) => dicts.iter().map(dict).collect::<Vec<_>>().join(", "),
        Value::Dict(one) => dict(one),
        other => other.integer().map(|number| number.to_string()).unwrap(),
    }
}

fn dict(dict: &Dict) -> String {
    dict.iter().map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(" ")
}

fn take(details: &Dict, keys: &[&str], facts: &mut Facts) {
    for key in keys {
        facts.extend(details.get(*key).map(|value| ((*key).to_owned(), text(value))));
    }
}

fn flags(details: &Dict, left_out: &[&str]) -> Option<String> {
    let Value::Texts(flags) = details.get("flags")? else { panic!("flags are texts") };
    let mut flags: Vec<_> = flags.iter().filter(|flag| !left_out.contains(&flag.as_str())).cloned().collect();
    flags.sort();
    (!flags.is_empty()).then(|| flags.join(" "))
}

fn json(value: &Json) -> Option<String> {
    match value {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Members of an object of `ip`, under our names.
fn rename(object: &Json, names: &[(&str, &str)], facts: &mut Facts) {
    for (theirs, ours) in names {
        facts.extend(json(&object[*theirs]).map(|value| ((*ours).to_owned(), value)));
    }
}

fn json_flags(value: &Json, left_out: &[&str]) -> Option<String> {
    let flags = value.as_array()?.iter().map(|flag| flag.as_str().unwrap().to_lowercase());
    let mut flags: Vec<_> = flags.filter(|flag| !left_out.contains(&flag.as_str())).collect();
    flags.sort();
    (!flags.is_empty()).then(|| flags.join(" "))
}

fn put(facts: &mut Facts, key: &str, value: Option<impl ToString>) {
    facts.extend(value.map(|value| (key.to_owned(), value.to_string())));
}

pub fn links(links: &[Link]) -> All {
    links.iter().map(link).collect()
}

fn link(link: &Link) -> Facts {
    let mut facts = Facts::new();
    put(&mut facts, "index", Some(link.index));
    put(&mut facts, "name", Some(&link.name));
    put(&mut facts, "state", Some(&link.state));
    put(&mut facts, "flags", flags(&link.details, &["running"]));
    let same = [
        "mtu",
        "min-mtu",
        "max-mtu",
        "mac",
        "broadcast",
        "kind",
        "port-kind",
        "master",
        "parent",
        "altnames",
        "alias",
        "group",
        "type",
        "transmit-queue-length",
        "transmit-queues",
        "receive-queues",
    ];
    take(&link.details, &same, &mut facts);
    facts
}

pub fn ip_links(rows: &[Json]) -> All {
    rows.iter().map(ip_link).collect()
}

fn ip_link(row: &Json) -> Facts {
    let mut facts = Facts::new();
    let names = [
        ("ifindex", "index"),
        ("ifname", "name"),
        ("mtu", "mtu"),
        ("address", "mac"),
        ("broadcast", "broadcast"),
        ("master", "master"),
        ("link", "parent"),
        ("ifalias", "alias"),
        ("link_type", "type"),
        ("txqlen", "transmit-queue-length"),
        ("num_tx_queues", "transmit-queues"),
        ("num_rx_queues", "receive-queues"),
    ];
    rename(row, &names, &mut facts);
    for (theirs, ours) in [("min_mtu", "min-mtu"), ("max_mtu", "max-mtu")] {
        put(&mut facts, ours, row[theirs].as_u64().filter(|limit| *limit != 0));
    }
    let info = &row["linkinfo"];
    rename(info, &[("info_kind", "kind"), ("info_slave_kind", "port-kind")], &mut facts);
    put(&mut facts, "state", row["operstate"].as_str().map(str::to_lowercase));
    put(&mut facts, "group", row["group"].as_str().map(|name| name.replace("default", "0")));
    put(&mut facts, "flags", json_flags(&row["flags"], &["no-carrier", "m-down"]));
    put(&mut facts, "altnames", json_flags(&row["altnames"], &[]));
    facts
}

pub fn addresses(addresses: &[Address]) -> All {
    addresses.iter().map(address).collect()
}

fn address(address: &Address) -> Facts {
    let mut facts = Facts::new();
    put(&mut facts, "index", Some(address.index));
    put(&mut facts, "interface", Some(&address.interface));
    put(&mut facts, "address", Some(&address.address));
    put(&mut facts, "prefix", Some(address.prefix));
    put(&mut facts, "flags", flags(&address.details, &[]));
    let same = ["family", "scope", "label", "peer", "broadcast", "metric"];
    take(&address.details, &same, &mut facts);
    for key in ["valid-s", "preferred-s"] {
        put(&mut facts, key, address.details.get(key).map(|_| "limited"));
    }
    facts
}

/// Of `ip addr`.
pub fn ip_addresses(rows: &[Json]) -> All {
    let mut all = All::new();
    for link in rows {
        for row in link["addr_info"].as_array().unwrap() {
            let mut facts = ip_address(row);
            put(&mut facts, "index", json(&link["ifindex"]));
            put(&mut facts, "interface", json(&link["ifname"]));
            all.insert(facts);
        }
    }
    all
}

fn ip_address(row: &Json) -> Facts {
    let mut facts = Facts::new();
    let names = [
        ("family", "family"),
        ("scope", "scope"),
        ("label", "label"),
        ("address", "peer"),
        ("metric", "metric"),
        ("broadcast", "broadcast"),
        ("local", "address"),
        ("prefixlen", "prefix"),
    ];
    rename(row, &names, &mut facts);
    for (theirs, ours) in [("valid_life_time", "valid-s"), ("preferred_life_time", "preferred-s")] {
        put(&mut facts, ours, row[theirs].as_u64().filter(|s| *s != u64::from(u32::MAX)).map(|_| "limited"));
    }
    let known = ["secondary", "temporary", "tentative", "dadfailed", "deprecated", "nodad", "noprefixroute"];
    let mut flags: Vec<_> = known.into_iter().filter(|flag| row[*flag] == true).collect();
    if row["dynamic"] != true {
        flags.push("permanent");
    }
    flags.sort_unstable();
    put(&mut facts, "flags", (!flags.is_empty()).then(|| flags.join(" ")));
    facts
}

pub fn routes(routes: &[Route]) -> All {
    routes.iter().map(route).collect()
}

pub fn route(route: &Route) -> Facts {
    let mut facts = Facts::new();
    put(&mut facts, "destination", Some(&route.destination));
    put(&mut facts, "gateway", Some(&route.gateway));
    put(&mut facts, "interface", Some(&route.interface));
    put(&mut facts, "flags", flags(&route.details, &[]));
    let same =
        ["family", "table", "protocol", "scope", "type", "metric", "preferred-source", "source", "tos"];
    take(&route.details, &same, &mut facts);
    take(&route.details, &["metrics", "preference"], &mut facts);
    if let Some(Value::Dicts(paths)) = route.details.get("nexthops") {
        let mut paths = paths.clone();
        paths.iter_mut().for_each(|path| _ = path.remove("index"));
        put(&mut facts, "nexthops", Some(text(&Value::Dicts(paths))));
    }
    facts
}

/// Of `ip -4 route show table all` or `ip -6 route show table all`.
pub fn ip_routes(rows: &[Json], family: &str) -> All {
    rows.iter().map(|row| ip_route(row, family)).collect()
}

fn ip_route(row: &Json, family: &str) -> Facts {
    let mut facts = Facts::new();
    let names = [
        ("protocol", "protocol"),
        ("scope", "scope"),
        ("type", "type"),
        ("prefsrc", "preferred-source"),
        ("pref", "preference"),
        ("metric", "metric"),
    ];
    rename(row, &names, &mut facts);
    let whole = if family == "inet6" { "/128" } else { "/32" };
    let prefix = |text: &str| match text.contains('/') || text == "default" {
        true => text.to_owned(),
        false => format!("{text}{whole}"),
    };
    put(&mut facts, "family", Some(family));
    put(&mut facts, "destination", row["dst"].as_str().map(prefix));
    put(&mut facts, "source", row["from"].as_str().map(prefix));
    let gateway = json(&row["gateway"]).or_else(|| json(&row["via"]["host"]));
    put(&mut facts, "gateway", Some(gateway.unwrap_or_default()));
    put(&mut facts, "interface", Some(json(&row["dev"]).unwrap_or_default()));
    let table = match row["table"].as_str().unwrap() {
        "main" => "254",
        "local" => "255",
        "default" => "253",
        other => other,
    };
    put(&mut facts, "table", Some(table));
    put(&mut facts, "flags", json_flags(&row["flags"], &[]));
    let tos = row["tos"].as_str().and_then(|tos| u8::from_str_radix(tos.strip_prefix("0x")?, 16).ok());
    put(&mut facts, "tos", tos);
    if let Some(metrics) = row["metrics"].as_array() {
        let metrics = metrics.iter().flat_map(|metrics| metrics.as_object().unwrap());
        let metrics: BTreeMap<_, _> = metrics.map(|(name, value)| (name, json(value).unwrap())).collect();
        let words: Vec<_> = metrics.iter().map(|(name, value)| format!("{name}={value}")).collect();
        put(&mut facts, "metrics", Some(words.join(" ")));
    }
    if let Some(paths) = row["nexthops"].as_array() {
        put(&mut facts, "nexthops", Some(paths.iter().map(ip_path).collect::<Vec<_>>().join(", ")));
    }
    facts
}

fn ip_path(path: &Json) -> String {
    let gateway = json(&path["gateway"]).or_else(|| json(&path["via"]["host"])).unwrap_or_default();
    let flags = json_flags(&path["flags"], &[]).map(|flags| format!("flags={flags} "));
    let flags = flags.unwrap_or_default();
    let (interface, weight) = (json(&path["dev"]).unwrap(), &path["weight"]);
    format!("{flags}gateway={gateway} interface={interface} weight={weight}")
}

pub fn neighbours(neighbours: &[Neighbour]) -> All {
    // `ip` shows proxies apart, and multicast groups come and go by themselves.
    let shown = |neighbour: &&Neighbour| {
        neighbour.state != "noarp"
            && !flags(&neighbour.details, &[]).is_some_and(|flags| flags.contains("proxy"))
    };
    neighbours.iter().filter(shown).map(neighbour).collect()
}

fn neighbour(neighbour: &Neighbour) -> Facts {
    let mut facts = Facts::new();
    put(&mut facts, "interface", Some(&neighbour.interface));
    put(&mut facts, "address", Some(&neighbour.address));
    put(&mut facts, "state", Some(&neighbour.state));
    take(&neighbour.details, &["mac"], &mut facts);
    put(&mut facts, "flags", flags(&neighbour.details, &[]));
    facts
}

/// Of `ip neigh show nud all`.
pub fn ip_neighbours(rows: &[Json]) -> All {
    let shown = rows.iter().filter(|row| !matches!(row["state"][0].as_str(), None | Some("NOARP")));
    shown
        .map(|row| {
            let mut facts = Facts::new();
            rename(row, &[("dst", "address"), ("dev", "interface"), ("lladdr", "mac")], &mut facts);
            put(&mut facts, "state", json_flags(&row["state"], &[]));
            let object = row.as_object().unwrap();
            let known = [("router", "router"), ("extern_learn", "ext_learned"), ("managed", "managed")];
            let flags: Vec<_> = known.iter().filter(|(theirs, _)| object.contains_key(*theirs)).collect();
            let mut flags: Vec<_> = flags.iter().map(|(_, ours)| *ours).collect();
            flags.sort_unstable();
            put(&mut facts, "flags", (!flags.is_empty()).then(|| flags.join(" ")));
            facts
        })
        .collect()
}

pub fn rules(rules: &[Rule]) -> All {
    rules.iter().map(rule).collect()
}

pub fn rule(rule: &Rule) -> Facts {
    let mut facts = Facts::new();
    put(&mut facts, "priority", Some(rule.priority));
    put(&mut facts, "table", Some(rule.table).filter(|table| *table != 0));
    let same = [
        "family",
        "action",
        "source",
        "destination",
        "in-interface",
        "out-interface",
        "inverted",
        "goto",
        "mark",
        "mark-mask",
        "uid-first",
        "uid-last",
        "destination-port-first",
        "destination-port-last",
        "protocol",
        "suppress-prefix-length",
        "ip-protocol",
    ];
    take(&rule.details, &same, &mut facts);
    facts
}

/// Of `ip -4 rule` or `ip -6 rule`.
pub fn ip_rules(rows: &[Json], family: &str) -> All {
    rows.iter().map(|row| ip_rule(row, family)).collect()
}

fn ip_rule(row: &Json, family: &str) -> Facts {
    let mut facts = Facts::new();
    let names = [
        ("priority", "priority"),
        ("iif", "in-interface"),
        ("oif", "out-interface"),
        ("goto", "goto"),
        ("uid_start", "uid-first"),
        ("uid_end", "uid-last"),
        ("protocol", "protocol"),
        ("dport_start", "destination-port-first"),
        ("dport_end", "destination-port-last"),
        ("suppress_prefixlen", "suppress-prefix-length"),
    ];
    rename(row, &names, &mut facts);
    put(&mut facts, "family", Some(family));
    let whole = if family == "inet6" { 128 } else { 32 };
    for (address, length, ours) in [("src", "srclen", "source"), ("dst", "dstlen", "destination")] {
        let prefix = row[address].as_str().filter(|address| *address != "all");
        let length = row[length].as_u64().unwrap_or(whole);
        put(&mut facts, ours, prefix.map(|prefix| format!("{prefix}/{length}")));
    }
    let table = row["table"].as_str().map(|table| match table {
        "main" => "254",
        "local" => "255",
        "default" => "253",
        other => other,
    });
    put(&mut facts, "table", table);
    let action = match (&row["action"], &row["goto"]) {
        (Json::String(action), _) => action,
        (_, Json::Null) => "lookup",
        _ => "goto",
    };
    put(&mut facts, "action", Some(action));
    put(&mut facts, "inverted", row.as_object().unwrap().get("not").map(|_| "true"));
    let number = |text: &Json| {
        let digits = text.as_str()?.strip_prefix("0x")?;
        u32::from_str_radix(digits, 16).ok()
    };
    if let Some(mark) = number(&row["fwmark"]) {
        put(&mut facts, "mark", Some(mark));
        put(&mut facts, "mark-mask", Some(number(&row["fwmask"]).unwrap_or(u32::MAX)));
    }
    put(
        &mut facts,
        "ip-protocol",
        row["ipproto"].as_str().map(|name| name.replace("tcp", "6").replace("udp", "17")),
    );
    facts
}
