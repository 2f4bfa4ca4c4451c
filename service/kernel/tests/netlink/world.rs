//! A listener who knows only what he is told: a snapshot at the start, and then every event.

use std::collections::BTreeMap;

use ipc_kernel::{
    Value,
    netlink::{Address, Event, Link, Neighbour, Route, Rule, route::Routes},
};

use super::facts;

type AddressKey = (i32, String, u8, String);

#[derive(Default)]
pub struct World {
    links: BTreeMap<i32, Link>,
    addresses: BTreeMap<AddressKey, Address>,
    neighbours: BTreeMap<(i32, String), Neighbour>,
    routes: Vec<Route>,
    rules: Vec<Rule>,
    follows_routes: bool,
    pub overflows: usize,
}

impl World {
    pub fn new(routes: &mut Routes) -> Self {
        loop {
            let links = routes.links().unwrap();
            // What the snapshot already holds.
            drop(routes.drained());
            let addresses = routes.addresses().unwrap();
            // Both are of the same moment when nothing was told in between.
            if !routes.drained().is_empty() {
                continue;
            }
            let mut world = Self {
                links: links.into_iter().map(|link| (link.index, link)).collect(),
                addresses: addresses.into_iter().map(|one| (address_key(&one), one)).collect(),
                ..Self::default()
            };
            world.look_again(routes);
            return world;
        }
    }

    /// From now on, believes what is told of routes. Those of IPv4 go without a word when their interface
    /// goes down.
    pub fn follow_routes(&mut self, routes: &mut Routes) {
        self.look_again(routes);
        self.follows_routes = true;
    }

    /// Snapshots of what is not compared after an overflow.
    pub fn look_again(&mut self, routes: &mut Routes) {
        let neighbours = routes.neighbours().unwrap().into_iter();
        self.neighbours = neighbours.map(|one| ((one.index, one.address.clone()), one)).collect();
        self.routes = routes.routes().unwrap();
        self.rules = routes.rules().unwrap();
    }

    /// Takes an event for what it says. Nothing is told that is known already.
    pub fn believe(&mut self, mut event: Event) {
        let told = event.clone();
        if let Some(details) = event.details() {
            details.retain(|key, _| !key.starts_with("old-") && key != "rescanned");
        }
        match event {
            Event::LinkChanged(link) => {
                let old = self.links.insert(link.index, link.clone());
                let known = old.is_some_and(|old| same_link(&old, &link));
                assert!(!known, "told twice: {told:#?}");
            }
            Event::LinkRemoved(link) => {
                assert!(self.links.remove(&link.index).is_some(), "never told: {told:#?}");
                assert!(!self.addresses.keys().any(|key| key.0 == link.index), "addresses stay: {told:#?}");
            }
            Event::AddressAdded(address) => _ = self.addresses.insert(address_key(&address), address),
            Event::AddressRemoved(address) => {
                assert!(self.addresses.remove(&address_key(&address)).is_some(), "never told: {told:#?}");
            }
            Event::NeighbourChanged(one) => {
                self.neighbours.insert((one.index, one.address.clone()), one);
            }
            Event::NeighbourRemoved(one) => {
                self.neighbours.remove(&(one.index, one.address));
            }
            Event::RouteAdded(_) | Event::RouteRemoved(_) if !self.follows_routes => {}
            Event::RouteAdded(route) if self.routes.iter().any(|other| same_route(other, &route)) => {}
            Event::RouteAdded(route) => self.add_route(route),
            // What happened while the snapshot was taken is told once more.
            Event::RouteRemoved(route) => {
                let gone = facts::route(&route);
                let known = self.routes.iter().position(|route| facts::route(route) == gone);
                known.into_iter().for_each(|known| _ = self.routes.remove(known));
            }
            Event::RuleAdded(rule)
                if self.rules.iter().any(|other| facts::rule(other) == facts::rule(&rule)) => {}
            Event::RuleAdded(rule) => self.rules.push(rule),
            Event::RuleRemoved(rule) => {
                let gone = facts::rule(&rule);
                let known = self.rules.iter().position(|rule| facts::rule(rule) == gone);
                self.rules.remove(known.unwrap_or_else(|| panic!("never told: {told:#?}")));
            }
            Event::Overflow(source) => {
                assert_eq!(source, "route");
                self.overflows += 1;
            }
            other => panic!("{other:?} is not of this source"),
        }
    }

    /// Of the routes that differ in no more than where they lead, the first one is used: a new one is
    /// before them, unless it says that it is behind, or takes the place of the first.
    fn add_route(&mut self, mut route: Route) {
        let key = |route: &Route| {
            let details =
                ["family", "table", "metric", "tos"].map(|key| route.details.get(key).map(facts::text));
            (route.destination.clone(), details)
        };
        let mut said = |word| route.details.remove(word).is_some();
        let (replaced, appended) = (said("replaced"), said("appended"));
        let alike = |other: &Route| key(other) == key(&route);
        let first = self.routes.iter().position(alike);
        match (first, self.routes.iter().rposition(alike)) {
            (Some(first), _) if replaced => self.routes[first] = route,
            (_, Some(last)) if appended => self.routes.insert(last + 1, route),
            (Some(first), _) => self.routes.insert(first, route),
            _ => self.routes.push(route),
        }
    }

    pub fn links(&self) -> facts::All {
        facts::links(&self.links.values().cloned().collect::<Vec<_>>())
    }

    /// With the names that the interfaces have now.
    pub fn addresses(&self) -> facts::All {
        let name = |index: i32| self.links[&index].name.clone();
        let renamed = self.addresses.values().cloned();
        let renamed = renamed.map(|address| Address { interface: name(address.index), ..address });
        facts::addresses(&renamed.collect::<Vec<_>>())
    }

    pub fn neighbours(&self) -> facts::All {
        let name = |index: i32| self.links[&index].name.clone();
        let renamed = self.neighbours.values().cloned();
        let renamed = renamed.map(|one| Neighbour { interface: name(one.index), ..one });
        facts::neighbours(&renamed.collect::<Vec<_>>())
    }

    pub fn rules(&self) -> facts::All {
        facts::rules(&self.rules)
    }

    pub fn routes(&self) -> facts::All {
        facts::routes(&self.routes)
    }
}

fn address_key(address: &Address) -> AddressKey {
    let peer = address.details.get("peer").map(facts::text).unwrap_or_default();
    (address.index, address.address.clone(), address.prefix, peer)
}

fn same_route(a: &Route, b: &Route) -> bool {
    facts::route(a) == facts::route(b)
}

fn same_link(a: &Link, b: &Link) -> bool {
    let value = |(key, value): (&String, &Value)| (key.clone(), facts::text(value));
    let whole = |link: &Link| {
        let details: BTreeMap<_, _> = link.details.iter().map(value).collect();
        (link.name.clone(), link.state.clone(), details)
    };
    whole(a) == whole(b)
}
