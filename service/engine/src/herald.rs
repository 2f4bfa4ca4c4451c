//! The herald: what the kernel tells everybody over netlink(7), numbered, kept, and told on.
//!
//! There is one for a service, started when it is first asked for. A task of its own takes what the
//! [`Monitor`] of the kernel layer has decoded into a ring; whoever serves the bus takes it from there
//! ([`Engine::next_told`]). Nobody waits for a bus that does not read: the ring goes on, and the numbers
//! show the gap.
//!
//! The numbers begin at the time of the start, in microseconds. So a herald that was started anew never uses a
//! number again that another one has used, and who asks for what came since such a one is told that
//! something is missing. The first thing that each herald tells is an overflow of the source "restart".

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex as Lock, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use event_listener::{Event as Bell, EventListener};
use ipc_kernel::{
    Attempt, Dict, Readiness, Result, Value,
    netlink::{Address, Event, Link, Neighbour, Route, Rule, monitor::Monitor, sockets},
};
use tokio::sync::Mutex;

use crate::{
    Call, Client, Engine,
    engine::blocking,
    events::{Kept, Numbered, Ring, now},
    wait,
};

/// The source of the overflow that says that all of this has begun anew.
const RESTART: &str = "restart";

/// So much is taken before somebody else has a turn, in the monitor's portions: a storm of events keeps
/// nobody waiting.
const PORTIONS: usize = 16;

/// The first and the longest pause before the sources are opened again that have failed.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

pub struct Herald {
    ring: Ring<Event>,
    /// The number before the first.
    begin: u64,
    monitor: Arc<Mutex<Monitor>>,
    watchers: Lock<HashMap<String, Watcher>>,
    /// What is listened to has changed.
    changed: Bell,
}

/// A connection that wants to hear of processes.
struct Watcher {
    /// Keeps it from being forgotten while it is there.
    _client: Arc<Client>,
    times: u32,
}

/// The herald of an engine, once there is one.
#[derive(Default)]
pub(crate) struct Place {
    herald: OnceLock<Arc<Herald>>,
    started: Bell,
}

impl Place {
    pub(crate) fn left(&self, client: &str) {
        if let Some(herald) = self.herald.get() {
            herald.left(client);
        }
    }
}

impl Engine {
    /// The herald, started if this is the first time that somebody asks.
    pub fn herald(self: &Arc<Self>) -> Arc<Herald> {
        let herald = self.herald.herald.get_or_init(|| {
            let herald = Arc::new(Herald::new(self.limits.events_kept));
            let (engine, running) = (self.clone(), herald.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = engine.stopping.wait() => {}
                    () = running.run() => {}
                }
            });
            herald
        });
        self.herald.started.notify(usize::MAX);
        herald.clone()
    }

    /// The next events of the herald that nobody was told of yet, at most `max`, as soon as there are any.
    pub async fn next_told(&self, max: usize) -> Vec<Numbered<Event>> {
        let herald = loop {
            let started = self.herald.started.listen();
            if let Some(herald) = self.herald.herald.get() {
                break herald;
            }
            started.await;
        };
        loop {
            let pushed = herald.ring.pushed();
            let events = herald.ring.unannounced(max);
            if !events.is_empty() {
                return events;
            }
            pushed.await;
        }
    }
}

impl Herald {
    fn new(kept: u32) -> Self {
        let begin = now();
        let herald = Self {
            ring: Ring::after(begin, kept),
            begin,
            monitor: Arc::new(Mutex::new(Monitor::new())),
            watchers: Lock::default(),
            changed: Bell::new(),
        };
        herald.tell(Event::Overflow(RESTART.to_owned()));
        herald
    }

    fn watchers(&self) -> MutexGuard<'_, HashMap<String, Watcher>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sources that cannot be heard, and why.
    pub async fn unavailable(&self) -> BTreeMap<String, String> {
        let monitor = self.monitor.lock().await;
        monitor.unavailable().iter().map(|(source, error)| (source.clone(), error.text.clone())).collect()
    }

    fn tell(&self, event: Event) {
        self.ring.push(event);
    }

    async fn run(&self) {
        let mut pause = PAUSES.0;
        // What the monitor was last told.
        let mut watching = false;
        loop {
            let changed = self.changed.listen();
            let step = {
                let mut monitor = self.monitor.lock().await;
                self.step(&mut monitor, &mut watching)
            };
            let waited = match step {
                Ok(None) => {
                    pause = PAUSES.0;
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Some(readiness)) => tokio::select! {
                    waited = wait::until(readiness) => waited,
                    () = changed => Ok(()),
                },
                Err(error) => Err(error),
            };
            // No source is left; what was wrong, `unavailable` says.
            if waited.is_err() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                *self.monitor.lock().await = Monitor::new();
                watching = false;
                self.tell(Event::Overflow(RESTART.to_owned()));
            }
        }
    }

    /// Takes what there is. None: there may be more.
    fn step(&self, monitor: &mut Monitor, watching: &mut bool) -> Result<Option<Readiness>> {
        let wanted = !self.watchers().is_empty();
        if wanted != *watching {
            monitor.watch_processes(wanted)?;
            *watching = wanted;
        }
        for _ in 0..PORTIONS {
            match monitor.next()? {
                Attempt::Done(events) => events.into_iter().for_each(|event| self.tell(event)),
                Attempt::Wait(readiness) => return Ok(Some(readiness)),
            }
        }
        Ok(None)
    }

    /// The state as it is now, with the number of the last event that is in it. Events that come later
    /// may be in it, too; telling them again changes nothing.
    async fn snapshot<T: Send + 'static>(
        self: &Arc<Self>,
        take: impl FnOnce(&mut Monitor) -> Result<T> + Send + 'static,
    ) -> Result<(u64, T)> {
        let (herald, mut monitor) = (self.clone(), self.monitor.clone().lock_owned().await);
        blocking(move || {
            let taken = take(&mut monitor)?;
            monitor.drained().into_iter().for_each(|event| herald.tell(event));
            Ok((herald.ring.last(), taken))
        })
        .await
    }

    pub async fn links(self: &Arc<Self>) -> Result<(u64, Vec<Link>)> {
        self.snapshot(Monitor::links).await
    }

    pub async fn addresses(self: &Arc<Self>) -> Result<(u64, Vec<Address>)> {
        self.snapshot(Monitor::addresses).await
    }

    pub async fn routes(self: &Arc<Self>) -> Result<(u64, Vec<Route>)> {
        self.snapshot(Monitor::routes).await
    }

    pub async fn neighbours(self: &Arc<Self>) -> Result<(u64, Vec<Neighbour>)> {
        self.snapshot(Monitor::neighbours).await
    }

    pub async fn rules(self: &Arc<Self>) -> Result<(u64, Vec<Rule>)> {
        self.snapshot(Monitor::rules).await
    }

    /// The sockets of this network namespace that match (sock_diag(7)).
    pub async fn sockets(&self, filter: Dict) -> Result<Vec<Dict>> {
        blocking(move || sockets::list(&filter)).await
    }

    /// What was told after number `seq`, and how much of that is no longer kept: one at least, if that number
    /// is another herald's.
    pub fn since(&self, seq: u64) -> (Vec<Numbered<Event>>, u64) {
        let ours = (self.begin..=self.ring.last()).contains(&seq);
        let (events, lost) = self.ring.since(if ours { seq } else { self.begin });
        (events, lost + u64::from(!ours && seq != 0))
    }

    /// What to wait for until something new is told.
    pub fn told(&self) -> EventListener {
        self.ring.pushed()
    }

    /// Tells of processes from now on, until everybody who wanted that has taken it back or left.
    pub async fn watch_processes(&self, call: &Call) -> Result<()> {
        let mut monitor = self.monitor.lock().await;
        {
            let mut watchers = self.watchers();
            // Under the lock that `left` takes: it comes before or after.
            call.still_there()?;
            let watcher = watchers
                .entry(call.client.name.clone())
                .or_insert_with(|| Watcher { _client: call.client.clone(), times: 0 });
            watcher.times = watcher.times.saturating_add(1);
        }
        // Here already, so that the caller hears of it if it fails; once more changes nothing.
        let on = monitor.watch_processes(true);
        if on.is_err() {
            self.unwatch_processes(&call.client.name);
        }
        self.changed.notify(usize::MAX);
        on
    }

    /// Takes one `watch_processes` of this client back, if there is one.
    pub fn unwatch_processes(&self, client: &str) {
        let mut watchers = self.watchers();
        if let Some(watcher) = watchers.get_mut(client) {
            watcher.times -= 1;
            if watcher.times == 0 {
                watchers.remove(client);
                self.changed.notify(usize::MAX);
            }
        }
    }

    fn left(&self, client: &str) {
        if self.watchers().remove(client).is_some() {
            self.changed.notify(usize::MAX);
        }
    }
}

impl Kept for Event {
    fn bytes(&self) -> usize {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.len()).sum::<usize>();
        128 + match self {
            Self::LinkChanged(link) | Self::LinkRemoved(link) => {
                texts(&[&link.name, &link.state]) + dict(&link.details)
            }
            Self::AddressAdded(it) | Self::AddressRemoved(it) => {
                texts(&[&it.interface, &it.address]) + dict(&it.details)
            }
            Self::RouteAdded(it) | Self::RouteRemoved(it) => {
                texts(&[&it.destination, &it.gateway, &it.interface]) + dict(&it.details)
            }
            Self::NeighbourChanged(it) | Self::NeighbourRemoved(it) => {
                texts(&[&it.interface, &it.address, &it.state]) + dict(&it.details)
            }
            Self::RuleAdded(it) | Self::RuleRemoved(it) => dict(&it.details),
            Self::Device(it) => {
                let properties = it.properties.iter().map(|(key, value)| 24 + texts(&[key, value]));
                texts(&[&it.action, &it.devpath, &it.subsystem]) + properties.sum::<usize>()
            }
            Self::Process(it) => dict(&it.details),
            Self::Generic(it) => texts(&[&it.family, &it.group, &it.command]) + dict(&it.attributes),
            Self::Overflow(source) => source.len(),
        }
    }
}

/// No less than it takes on the wire.
fn dict(dict: &Dict) -> usize {
    dict.iter().map(|(key, value)| 32 + key.len() + size(value)).sum()
}

fn size(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Texts(texts) => texts.iter().map(|text| 8 + text.len()).sum(),
        Value::U32s(numbers) => 4 * numbers.len(),
        Value::I32s(numbers) => 4 * numbers.len(),
        Value::Dict(inner) => dict(inner),
        Value::Dicts(dicts) => dicts.iter().map(|inner| 8 + dict(inner)).sum(),
        Value::Bool(_)
        | Value::I32(_)
        | Value::U32(_)
        | Value::I64(_)
        | Value::U64(_)
        | Value::F64(_)
        | Value::Fd(_)
        | Value::Fds(_) => 8,
    }
}
