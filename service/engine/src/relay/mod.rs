//! Relays: everything that comes out of a source goes into a sink, with no client in between.
//!
//! A relay is a task ([`task`]) that pumps bytes ([`streams`]) or messages ([`messages`]) and
//! waits for nothing but its ends. Events, units of a semaphore, wake-ups, signals and snapshots of memory are
//! messages to it ([`kinds`], [`sources`], [`sinks`]). Here is what others see and want of it. It never holds more
//! than a bounded amount: when the sink is full, the source is not read. What it has taken when it
//! ends goes back to the source, so nothing is lost.
//!
//! The rules, as the reference has them: end of stream of the source is passed on as a half-close
//! of the sink; file descriptors are forwarded or refused, and never dropped silently; a message
//! that does not fit stays at the source, or is dropped and told ([`skip`]). How much goes, and how fast, may be
//! bounded ([`flow`]); several may write messages into one stream ([`turns`]), and what comes may go to several sinks
//! ([`tee`] for messages, [`fan`] and [`unframed`] for bytes). A socket whose peer has left may be connected again ([`reconnect`]).

mod bucket;
mod buffers;
mod checks;
mod control;
mod datagrams;
mod ends;
mod fan;
mod filter;
mod flow;
mod frames;
mod json;
pub mod kinds;
mod messages;
mod meter;
pub mod options;
mod reconnect;
mod sinks;
mod skip;
mod sources;
mod streams;
mod task;
mod tee;
mod turns;
mod unframed;
mod work;

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError, Weak,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use ipc_kernel::{Dict, Error, Kind, Result, dict};

use crate::{Engine, Object, client::Call, endpoint::Endpoint, flag::Flag};

pub use self::{checks::of_tee, options::RELAY_OPTIONS, task::Finished};
use self::{
    control::{Control, Order},
    kinds::Origin,
    meter::Meter,
    options::Options,
    reconnect::Told,
    skip::Skips,
};
pub(crate) use self::{reconnect::Connections, turns::Turns};

/// A relay that runs, or has run.
#[derive(Debug)]
pub struct Relay {
    /// Unique in the service, never used again; endpoints are counted with it.
    pub id: u64,
    pub source: Arc<Endpoint>,
    pub sink: Arc<Endpoint>,
    /// The further sinks: each message goes to all.
    pub tee: Vec<Arc<Endpoint>>,
    /// The connection that made it.
    pub creator: String,
    /// Microseconds since the epoch.
    pub created_at: u64,
    /// Set when it has ended; then [`finished`](Self::finished) says how.
    pub ended: Flag,
    options: Options,
    control: Control,
    forth: Lane,
    back: Option<Lane>,
    /// Of its connections.
    told: Told,
    finished: OnceLock<Finished>,
    dirty: AtomicBool,
    engine: Weak<Engine>,
}

/// What a relay is doing, on the bus the property `State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// One of its ends is not there yet: a FIFO that nobody has opened on the other side.
    Waiting,
    /// A peer has left, and is connected to again.
    Reconnecting,
    /// It moves what comes.
    Running,
    Paused,
    Finished,
    Failed,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Reconnecting => "reconnecting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// What is known of one direction.
#[derive(Debug)]
struct Lane {
    meter: Meter,
    /// How the data is moved, as `Inspect` says it.
    method: Mutex<&'static str>,
    /// How many messages the option `filter` has dropped.
    filtered: AtomicU64,
    /// What the sink could not take.
    skips: Skips,
    waiting: AtomicBool,
    news: Weak<Relay>,
}

impl Lane {
    fn new(news: Weak<Relay>, options: &Options) -> Self {
        Self {
            meter: Meter::new(),
            method: Mutex::new("none yet"),
            filtered: AtomicU64::new(0),
            skips: Skips::new(options.skip),
            waiting: AtomicBool::new(false),
            news,
        }
    }

    fn set_method(&self, name: &'static str) {
        *self.method.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    fn method(&self) -> &'static str {
        *self.method.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was dropped.
    fn filtered(&self) {
        self.filtered.fetch_add(1, Ordering::Relaxed);
    }

    /// The direction waits for an end as long as the result lives.
    fn wait(&self) -> Waiting<'_> {
        self.set_waiting(true);
        Waiting(self)
    }

    fn set_waiting(&self, waiting: bool) {
        if self.waiting.swap(waiting, Ordering::AcqRel) != waiting
            && let Some(relay) = self.news.upgrade()
        {
            relay.announce();
        }
    }
}

struct Waiting<'a>(&'a Lane);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set_waiting(false);
    }
}

impl Engine {
    /// Moves everything that comes out of `source` into `sink`, from now on.
    ///
    /// What cannot work is refused here ([`checks`]); what goes wrong later ends the relay.
    pub async fn start_relay(
        self: &Arc<Self>,
        call: &Call,
        source: Arc<Endpoint>,
        sink: Arc<Endpoint>,
        options: Dict,
    ) -> Result<Arc<Relay>> {
        self.start_tee(call, source, sink, Vec::new(), options).await
    }

    /// The same with the further sinks that the option `tee` names.
    pub async fn start_tee(
        self: &Arc<Self>,
        call: &Call,
        source: Arc<Endpoint>,
        sink: Arc<Endpoint>,
        tee: Vec<Arc<Endpoint>>,
        options: Dict,
    ) -> Result<Arc<Relay>> {
        let options = Options::parse(&options)?.with_tee(!tee.is_empty());
        let mut plans = checks::check(self, &source, &sink, &tee, &options)?;
        if plans.forth.from == Origin::Wakes {
            plans.forth.value = Some(self.on_futex(&source, |word| word.load()).await?);
        }
        let relay = Arc::new_cyclic(|news| Relay {
            id: self.next_id(),
            source,
            sink,
            tee,
            creator: call.client.name.clone(),
            created_at: crate::events::now(),
            ended: Flag::new(),
            control: Control::default(),
            forth: Lane::new(news.clone(), &options),
            back: options.both.then(|| Lane::new(news.clone(), &options)),
            options,
            told: Told::default(),
            finished: OnceLock::new(),
            dirty: AtomicBool::new(false),
            engine: Arc::downgrade(self),
        });
        self.enter_relay(&relay)?;
        // From here on `Engine::close`, `client_left` and `stop` find it; this closes the gap before.
        for endpoint in relay.ends() {
            if endpoint.closed.is_set() {
                relay.endpoint_closed(endpoint);
            }
        }
        if relay.options.client_lifetime && call.client.gone.is_set() {
            relay.stop(CONNECTION_ENDED);
        }
        if self.stopping.is_set() {
            relay.stop("the service is stopping");
        }
        tokio::spawn(task::run(self.clone(), relay.clone(), plans));
        Ok(relay)
    }
}

/// The reason of a relay that a client has stopped.
pub const STOPPED: &str = "stopped";

const CONNECTION_ENDED: &str = "the connection that it belonged to has ended";

impl Relay {
    /// Stops moving data until [`resume`](Self::resume); what was taken stays with the relay.
    pub fn pause(&self) -> Result<()> {
        self.order(Some(Order::Pause))
    }

    pub fn resume(&self) -> Result<()> {
        self.order(None)
    }

    fn order(&self, order: Option<Order>) -> Result<()> {
        if let Some(finished) = self.finished() {
            return Err(Error::new(Kind::Closed, format!("the relay has ended: {}", finished.reason)));
        }
        if self.control.set(order) {
            self.announce();
        }
        Ok(())
    }

    /// Ends it, for this reason. What it had taken goes on or back; wait for
    /// [`ended`](Self::ended) to see it done.
    pub fn stop(&self, reason: &str) {
        self.control.set(Some(Order::Stop(reason.to_owned())));
    }

    /// One of its endpoints was closed.
    pub(crate) fn endpoint_closed(&self, endpoint: &Endpoint) {
        let which = if endpoint.id == self.source.id { "source" } else { "sink" };
        // With several it is said which.
        let name = if self.tee.is_empty() { String::new() } else { format!(" {}", endpoint.address) };
        let reason = endpoint.closed_reason().unwrap_or_default();
        self.stop(&format!("the {which} endpoint{name} was closed: {reason}"));
    }

    /// The connection of this name has ended.
    pub(crate) fn client_left(&self, name: &str) {
        if self.options.client_lifetime && self.creator == name {
            self.stop(CONNECTION_ENDED);
        }
    }

    pub fn state(&self) -> State {
        let waits = |lane: &Lane| lane.waiting.load(Ordering::Acquire);
        match self.finished() {
            Some(finished) if finished.failed => State::Failed,
            Some(_) => State::Finished,
            None if self.control.is_paused() => State::Paused,
            None if self.told.is_reconnecting() => State::Reconnecting,
            None if waits(&self.forth) || self.back.as_ref().is_some_and(waits) => State::Waiting,
            None => State::Running,
        }
    }

    /// Bytes that have arrived in the sink.
    pub fn bytes(&self) -> u64 {
        self.forth.meter.bytes()
    }

    /// Messages that have arrived in the sink; 0 between streams.
    pub fn messages(&self) -> u64 {
        self.forth.meter.messages()
    }

    /// With `both`: bytes that have arrived in the source.
    pub fn bytes_back(&self) -> u64 {
        self.back.as_ref().map_or(0, |lane| lane.meter.bytes())
    }

    /// With `both`: messages that have arrived in the source.
    pub fn messages_back(&self) -> u64 {
        self.back.as_ref().map_or(0, |lane| lane.meter.messages())
    }

    /// Bytes a second, both ways together, over the last four seconds.
    pub fn rate(&self) -> u64 {
        self.forth.meter.rate() + self.back.as_ref().map_or(0, |lane| lane.meter.rate())
    }

    /// How the data is moved: `splice`, `splice through a pipe`, `read and write`, …
    pub fn method(&self) -> &'static str {
        self.forth.method()
    }

    /// What went wrong; empty where nothing did.
    pub fn error(&self) -> &str {
        self.finished().filter(|finished| finished.failed).map_or("", |finished| &finished.reason)
    }

    /// How it ended, once it has.
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.get()
    }

    pub fn inspect(&self) -> Dict {
        let mut state = dict! {
            "state" => self.state().name(),
            "method" => self.method(),
            "bytes" => self.bytes(),
            "messages" => self.messages(),
            "rate" => self.rate(),
            "error" => self.error(),
            "both" => self.options.both,
            "framing" => self.options.framing.map_or("none", |framing| framing.name()),
            "lifetime" => if self.options.client_lifetime { "client" } else { "service" },
        };
        if !self.options.filter.is_empty() {
            state.insert("filtered".into(), self.forth.filtered.load(Ordering::Relaxed).into());
        }
        self.forth.skips.tell(&mut state, "");
        if self.options.reconnect.is_some() {
            self.told.tell(&mut state);
        }
        if let Some(back) = &self.back {
            back.skips.tell(&mut state, "-back");
            state.insert("method-back".into(), back.method().into());
            state.insert("bytes-back".into(), back.meter.bytes().into());
            state.insert("messages-back".into(), back.meter.messages().into());
        }
        state
    }

    /// Where data goes, from and to.
    fn ways(&self) -> impl Iterator<Item = (&Endpoint, &Endpoint)> {
        let back = self.back.is_some().then(|| (&*self.sink, &*self.source));
        let tee = self.tee.iter().map(|sink| (&*self.source, &**sink));
        std::iter::once((&*self.source, &*self.sink)).chain(back).chain(tee)
    }

    /// All endpoints that it needs.
    pub(crate) fn ends(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        [&self.source, &self.sink].into_iter().chain(&self.tee)
    }

    /// Whether it may run beside the others; asked with the table locked.
    pub(crate) fn conflict<'a>(&self, running: impl Iterator<Item = &'a Relay> + Clone) -> Option<Error> {
        checks::conflict(self, running)
    }

    fn finish(&self, engine: &Engine, reason: String, failed: bool) {
        let finished = Finished { reason, bytes: self.bytes(), messages: self.messages(), failed };
        // The task, which ends only once, is the only one to say so.
        let _ = self.finished.set(finished);
        if let Some(this) = self.forth.news.upgrade() {
            engine.forget_relay(&this);
        }
        self.ended.set();
    }

    fn announce(&self) {
        if let (Some(engine), Some(this)) = (self.engine.upgrade(), self.forth.news.upgrade()) {
            engine.announce(Object::Relay(this));
        }
    }

    /// Marks that something is to be announced; says whether it was not marked before.
    pub(crate) fn mark(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn unmark(&self) {
        self.dirty.store(false, Ordering::Release);
    }
}
