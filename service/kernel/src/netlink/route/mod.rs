//! rtnetlink(7): links, addresses, routes, neighbours and rules.
//!
//! One socket is in the groups and tells what happens; another one asks for whole tables. Links and
//! addresses are kept as tables of what was told, which gives every event its old state and its
//! interface's name, and lets nothing be told twice.
//!
//! The two are read anew when the kernel had more to say than the socket's buffer takes (ENOBUFS), and
//! for a snapshot, as the kernel says nothing of some changes to an interface that is down (its alias, its
//! alternative names, its group). The difference from what was told is told.
//!
//! Groups are joined before the first table is read, so what changes meanwhile is seen twice rather than
//! not at all. After that, everything is in the kernel's order.

mod addresses;
mod links;
mod names;
mod neighbours;
mod routes;
mod rules;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    Address, Event, Link, Neighbour, Route, Rule, Source,
    monitor::ROUTE,
    socket::{RECEIVE_BUFFER, Received, Socket, set_receive_buffer},
    wire::{self, Damaged, Frame},
};
use crate::{Attempt, Readiness, Result, Value, shape};

/// What is listened to; beyond that, rtnetlink tells of multicast routing, MPLS, traffic control and more.
const GROUPS: &[u32] = &[
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// Events told at a time.
const BATCH: usize = 256;

/// Datagrams that a snapshot reads before it is taken: more than the receive buffer holds.
const DRAINED: usize = 8192;

/// Events that may wait for being told. Beyond, the socket is read no further, until the kernel says ENOBUFS.
const MOST_PENDING: usize = 16384;

/// When the tables changed under every attempt to read them, that is tried again after this long.
const PAUSE: Duration = Duration::from_millis(100);

/// The source of links, addresses, routes, neighbours and rules.
pub struct Routes {
    socket: Socket,
    dumps: Socket,
    tables: Tables,
    /// Read from the socket, and not told yet.
    pending: VecDeque<Event>,
    /// Something was lost, and the tables have not been read since.
    stale: bool,
}

#[derive(Default)]
struct Tables {
    links: links::Table,
    addresses: addresses::Table,
    neighbours: neighbours::Memory,
}

impl Routes {
    /// Opens the source in the network namespace of this thread.
    pub fn open() -> Result<Self> {
        Self::with_receive_buffer(RECEIVE_BUFFER)
    }

    /// As [`open`](Self::open), with a receive buffer of this many bytes, as far as the kernel allows.
    pub fn with_receive_buffer(bytes: usize) -> Result<Self> {
        let socket = Socket::open(None, GROUPS, "what the kernel tells of the network")?;
        set_receive_buffer(&socket.fd, bytes)?;
        let dumps = Socket::open(None, &[], "the state of the network")?;
        let mut routes =
            Self { socket, dumps, tables: Tables::default(), pending: VecDeque::new(), stale: true };
        routes.rescan()?;
        // What was there before is no event, nor is what changed meanwhile.
        routes.drain(DRAINED)?;
        routes.pending.clear();
        Ok(routes)
    }

    /// What snapshots have read from the socket, and was not told yet.
    pub fn drained(&mut self) -> Vec<Event> {
        self.pending.drain(..).collect()
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.drain(DRAINED)?;
        self.rescan()?;
        Ok(self.tables.links.rows())
    }

    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        self.drain(DRAINED)?;
        self.rescan()?;
        Ok(self.tables.addresses.rows(&self.tables.links))
    }

    pub fn routes(&mut self) -> Result<Vec<Route>> {
        self.drain(DRAINED)?;
        let links = &self.tables.links;
        self.dumps.both_families(libc::RTM_GETROUTE, 12, "the routes", |frame| {
            routes::decode(frame.payload, 0, links)
        })
    }

    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        self.drain(DRAINED)?;
        let rows = self.dumps.neighbours()?;
        Ok(rows.iter().map(|row| row.describe(&self.tables.links)).collect())
    }

    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        self.drain(DRAINED)?;
        self.dumps
            .both_families(libc::RTM_GETRULE, 12, "the routing rules", |frame| rules::decode(frame.payload))
    }

    /// Reads what the kernel has told, at most this many datagrams.
    fn drain(&mut self, datagrams: usize) -> Result<()> {
        for _ in 0..datagrams {
            if self.pending.len() >= MOST_PENDING {
                return Ok(());
            }
            let datagram = match self.socket.receive()? {
                Received::Datagram(datagram) => datagram,
                Received::Lost => {
                    lost(&mut self.stale, &mut self.pending);
                    continue;
                }
                Received::Empty => break,
            };
            for frame in wire::frames(datagram) {
                if frame.and_then(|frame| self.tables.apply(&frame, &mut self.pending)).is_err() {
                    lost(&mut self.stale, &mut self.pending);
                }
            }
        }
        // The kernel tells nothing more until its buffer was found empty; from then on all of it.
        if self.stale { self.rescan() } else { Ok(()) }
    }

    /// Reads the tables anew and tells how they differ from what was told.
    fn rescan(&mut self) -> Result<()> {
        let links = self.dumps.dump(libc::RTM_GETLINK, &[0; 16], "the network interfaces", |frame| {
            links::decode(frame.payload)
        })?;
        let addresses = self
            .dumps
            .dump(libc::RTM_GETADDR, &[0; 8], "the addresses", |frame| addresses::decode(frame.payload))?;
        let ((links, true), (addresses, true)) = (links, addresses) else {
            self.stale = true;
            return Ok(());
        };
        if self.stale {
            self.tables.neighbours.reset(self.dumps.neighbours()?);
        }
        self.stale = false;
        let before = self.pending.len();
        self.tables.replace(links, addresses, &mut self.pending);
        for event in self.pending.iter_mut().skip(before) {
            if let Some(details) = event.details() {
                details.insert("rescanned".to_owned(), Value::Bool(true));
            }
        }
        Ok(())
    }
}

/// Notes that events were lost, and tells it once until the tables have been read anew.
fn lost(stale: &mut bool, pending: &mut VecDeque<Event>) {
    if !std::mem::replace(stale, true) {
        pending.push_back(Event::Overflow(ROUTE.to_owned()));
    }
}

impl Source for Routes {
    fn next(&mut self) -> Result<Attempt<Vec<Event>>> {
        if self.pending.is_empty() {
            self.drain(BATCH)?;
        }
        if !self.pending.is_empty() {
            let count = self.pending.len().min(BATCH);
            return Ok(Attempt::Done(self.pending.drain(..count).collect()));
        }
        let readable = shape::readable(&self.socket.fd);
        Ok(match readable {
            Attempt::Wait(readable) if self.stale => {
                Attempt::Wait(Readiness::Any(vec![readable, Readiness::After(PAUSE)]))
            }
            readable => readable,
        })
    }
}

impl Socket {
    /// The rows of IPv4 and of IPv6, which every kernel has at least one of. `length` is that of the
    /// request's fixed header, which begins with the family and asks for nothing else.
    fn both_families<T>(
        &mut self,
        kind: u16,
        length: usize,
        what: &str,
        decode: impl Fn(&Frame<'_>) -> Result<Option<T>, Damaged>,
    ) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut header = vec![0; length];
            // Both are below 256.
            header[0] = family as u8;
            // A kernel without IPv6 tells the rows of all other families instead.
            let decode = |frame: &Frame<'_>| match frame.payload.first() {
                Some(answer) if *answer == header[0] => decode(frame),
                _ => Ok(None),
            };
            // What changes under every attempt is told by events, too.
            rows.extend(self.dump(kind, &header, what, decode)?.0);
        }
        Ok(rows)
    }

    fn neighbours(&mut self) -> Result<Vec<neighbours::Row>> {
        self.both_families(libc::RTM_GETNEIGH, 12, "the neighbours", |frame| {
            Ok(neighbours::decode(frame.payload)?.filter(neighbours::Row::is_known))
        })
    }
}

impl Tables {
    /// Takes in what a message says, and tells what is new by it.
    fn apply(&mut self, frame: &Frame<'_>, events: &mut VecDeque<Event>) -> Result<(), Damaged> {
        let payload = frame.payload;
        match frame.kind {
            libc::RTM_NEWLINK => {
                events.extend(links::decode(payload)?.into_iter().flat_map(|link| self.links.set(link)));
            }
            libc::RTM_DELLINK => {
                if let Some(link) = links::decode(payload)? {
                    self.remove_link(link.index, events);
                }
            }
            libc::RTM_NEWADDR => {
                let row = addresses::decode(payload)?;
                events.extend(row.and_then(|row| self.addresses.set(row, &self.links)));
            }
            libc::RTM_DELADDR => {
                let row = addresses::decode(payload)?;
                events.extend(row.and_then(|row| self.addresses.remove(&row.key, &self.links)));
            }
            libc::RTM_NEWROUTE => {
                events.extend(routes::decode(payload, frame.flags, &self.links)?.map(Event::RouteAdded));
            }
            libc::RTM_DELROUTE => {
                events.extend(routes::decode(payload, 0, &self.links)?.map(Event::RouteRemoved));
            }
            libc::RTM_NEWNEIGH => {
                let row = neighbours::decode(payload)?;
                events.extend(row.and_then(|row| self.neighbours.set(row, &self.links)));
            }
            libc::RTM_DELNEIGH => {
                let row = neighbours::decode(payload)?;
                events.extend(row.map(|row| self.neighbours.remove(&row, &self.links)));
            }
            libc::RTM_NEWRULE => events.extend(rules::decode(payload)?.map(Event::RuleAdded)),
            libc::RTM_DELRULE => events.extend(rules::decode(payload)?.map(Event::RuleRemoved)),
            _ => {}
        }
        Ok(())
    }

    fn remove_link(&mut self, index: i32, events: &mut VecDeque<Event>) {
        events.extend(self.addresses.remove_all(index, &self.links));
        events.extend(self.links.remove(index));
    }

    /// Makes the tables what was read anew; tells the difference.
    fn replace(
        &mut self,
        links: Vec<links::Row>,
        addresses: Vec<addresses::Row>,
        events: &mut VecDeque<Event>,
    ) {
        let found: BTreeSet<_> = addresses.iter().map(|row| &row.key).collect();
        for key in self.addresses.keys().iter().filter(|key| !found.contains(key)) {
            events.extend(self.addresses.remove(key, &self.links));
        }
        let found: BTreeSet<_> = links.iter().map(|row| row.index).collect();
        for index in self.links.indexes().into_iter().filter(|index| !found.contains(index)) {
            self.remove_link(index, events);
        }
        events.extend(links.into_iter().flat_map(|link| self.links.set(link)));
        events.extend(addresses.into_iter().filter_map(|row| self.addresses.set(row, &self.links)));
    }
}
