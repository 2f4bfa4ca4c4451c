//! All that the kernel tells over netlink, in one place: a [`Monitor`] joins the [`Source`]s.
//!
//! How to follow the kernel with it, without a gap:
//!
//! 1. [`Monitor::new`] opens what this process may open; [`unavailable`](Monitor::unavailable) says what
//!    it may not, and why. Nothing that was there before counts as an event.
//! 2. [`next`](Monitor::next) gives what has happened, in the kernel's order for each source, or says
//!    what to wait for: any of the sockets. Number each event as it comes.
//! 3. A snapshot ([`links`](Monitor::links), …) first reads what the kernel has told so far, so that it
//!    shows what was done before it was asked for. The events read by that come with the next
//!    [`drained`](Monitor::drained) (or `next`): number those *before* the snapshot's own number is
//!    taken, and the snapshot of links or addresses is exactly the state at this number:
//!
//!    ```no_run
//!    # use ipc_kernel::netlink::{Event, Link, monitor::Monitor};
//!    # fn number(_: Vec<Event>) -> u64 { 0 }
//!    fn links(monitor: &mut Monitor) -> ipc_kernel::Result<(u64, Vec<Link>)> {
//!        let links = monitor.links()?;
//!        Ok((number(monitor.drained()), links))
//!    }
//!    ```
//!
//!    Routes, neighbours and rules are read from the kernel after that: they hold every event up to the
//!    number, and may hold later ones. An event carries the whole new state, so that applying it again
//!    changes nothing.
//! 4. After [`Event::Overflow`] of a source, some of its events are missing. Links and addresses are
//!    compared with what was told; the difference follows as events (`rescanned` in their details).
//!    Whoever follows routes, neighbours or rules asks for a new snapshot.
//!
//! A monitor shows the network namespace of the thread that made it.

use super::{
    Address, Event, Link, Neighbour, Route, Rule, Source,
    generic::Families,
    process_events::{self, ProcessEvents},
    route::Routes,
    uevent::{Sender, Uevents},
};
use crate::{Attempt, Error, Kind, Readiness, Result};

/// Every source that can be opened, as one.
pub struct Monitor {
    routes: Option<Routes>,
    /// Those that have no snapshots, with their names as in [`Event::Overflow`].
    others: Vec<(&'static str, Box<dyn Source>)>,
    unavailable: Vec<(String, Error)>,
}

impl Monitor {
    /// Opens what can be opened.
    pub fn new() -> Self {
        let mut unavailable = Vec::new();
        let mut noted = |name: &str, error| unavailable.push((name.to_owned(), error));
        let routes = Routes::open().map_err(|error| noted(ROUTE, error)).ok();
        let mut others: Vec<(&'static str, Box<dyn Source>)> = Vec::new();
        for sender in [Sender::Kernel, Sender::Udev] {
            match Uevents::open(sender) {
                Ok(source) => others.push((sender.source(), Box::new(source))),
                Err(error) => noted(sender.source(), error),
            }
        }
        match Families::open() {
            Ok(source) => others.push((GENERIC, Box::new(source))),
            Err(error) => noted(GENERIC, error),
        }
        Self { routes, others, unavailable }
    }

    /// The sources that could not be opened, or that failed later, and why.
    pub fn unavailable(&self) -> &[(String, Error)] {
        &self.unavailable
    }

    /// What has happened, at most a few hundred events of each source at a time and never an empty
    /// list; else what to wait for, any of all sockets.
    ///
    /// A source that fails is left out from then on: that is told as its overflow. Fails with
    /// `Unavailable` when no source is left.
    #[expect(clippy::should_implement_trait, reason = "as Source::next, of which this is the sum")]
    pub fn next(&mut self) -> Result<Attempt<Vec<Event>>> {
        let mut events = Vec::new();
        let mut waits = Vec::new();
        let unavailable = &mut self.unavailable;
        let mut ask = |name: &str, source: &mut dyn Source| {
            match source.next() {
                Ok(Attempt::Done(told)) => events.extend(told),
                Ok(Attempt::Wait(Readiness::Any(any))) => waits.extend(any),
                Ok(Attempt::Wait(readiness)) => waits.push(readiness),
                Err(error) => {
                    unavailable.push((name.to_owned(), error));
                    events.push(Event::Overflow(name.to_owned()));
                    return false;
                }
            }
            true
        };
        self.routes.take_if(|routes| !ask(ROUTE, routes));
        self.others.retain_mut(|(name, source)| ask(name, &mut **source));
        if !events.is_empty() {
            return Ok(Attempt::Done(events));
        }
        if waits.is_empty() {
            return Err(none(&self.unavailable, "netlink events"));
        }
        Ok(Attempt::Wait(Readiness::Any(waits)))
    }

    /// The events that snapshots have read from the kernel since the last [`next`](Self::next). Often none.
    pub fn drained(&mut self) -> Vec<Event> {
        self.routes.as_mut().map(Routes::drained).unwrap_or_default()
    }

    /// The network interfaces, by index.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.source()?.links()
    }

    /// The addresses of all interfaces.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        self.source()?.addresses()
    }

    /// The IPv4 and IPv6 routes of all tables.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        self.source()?.routes()
    }

    /// What is known of the neighbours on the link (ARP and NDP).
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        self.source()?.neighbours()
    }

    /// The IPv4 and IPv6 routing rules.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        self.source()?.rules()
    }

    /// Begins or ends to tell of processes ([`Event::Process`]), which costs the machine a message for
    /// each fork and exit. To be followed by [`next`](Self::next): the last wait does not know of it.
    pub fn watch_processes(&mut self, on: bool) -> Result<()> {
        if !on {
            self.others.retain(|(name, _)| *name != process_events::SOURCE);
        } else if self.others.iter().all(|(name, _)| *name != process_events::SOURCE) {
            self.others.push((process_events::SOURCE, Box::new(ProcessEvents::open()?)));
        }
        Ok(())
    }

    fn source(&mut self) -> Result<&mut Routes> {
        self.routes.as_mut().ok_or_else(|| none(&self.unavailable, "the network's state"))
    }
}

impl Default for Monitor {
    fn default() -> Self {
        Self::new()
    }
}

/// The name of the source of links, addresses, routes, neighbours and rules.
pub const ROUTE: &str = "route";

/// The families of generic netlink as a whole; each tells its losses by its own name.
const GENERIC: &str = "generic";

fn none(unavailable: &[(String, Error)], what: &str) -> Error {
    let why = unavailable.first().map(|(_, error)| error.text.as_str()).unwrap_or_default();
    Error::new(Kind::Unavailable, format!("cannot tell {what}: {why}"))
}
