//! The engine itself: the table of endpoints and relays, and the verbs that fill it.
//!
//! The engine knows nothing of buses. What changes without being asked for (an event, an end of a
//! lifetime, a finished relay) becomes *news*: a queue of objects with something to announce,
//! each in it once, so that the queue is never longer than the table. Whoever serves the objects
//! takes the news and announces them ([`Engine::next_news`]).

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ipc_kernel::{
    Address, Descriptor, Dict, Error, Kind, Opening, Parameters, Result, dict,
    listing::{Listing, check_filter},
    mechanism::{self, Adoption},
    mechanisms::{self, Register},
    shape::Shape,
};

use crate::{
    client::{Call, Client, Clients, Counter},
    declared::Board,
    endpoint::{Endpoint, Made, off_the_loop},
    flag::Flag,
    herald,
    limits::{Limits, exceeded},
    news::News,
    options::{Lifetime, Options},
    places::Place,
    range_watch::RangeWatches,
    relay::Relay,
    wait::{self, Cancel},
};

pub struct Engine {
    /// What there is to be created and attached.
    pub mechanisms: Register,
    pub limits: Limits,
    /// How the caller is confined, in words; None: it is not. One engine serves one identity.
    pub(crate) confinement: Option<String>,
    pub clients: Clients,
    pub counters: Counters,
    /// What files declare.
    pub declared: Board,
    pub(crate) stopping: Flag,
    pub(crate) range_watches: Arc<RangeWatches>,
    next_id: AtomicU64,
    admitted: AtomicU64,
    table: Mutex<Table>,
    pub(crate) news: Arc<News>,
    pub(crate) herald: herald::Place,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub calls: Arc<Counter>,
    pub waits: Arc<Counter>,
    pub endpoints: Arc<Counter>,
    pub watches: Arc<Counter>,
    pub mailboxes: Arc<Counter>,
    pub mounts: Arc<Counter>,
    pub leases: Arc<Counter>,
    pub subscriptions: Arc<Counter>,
    pub connections: Arc<Counter>,
}

#[derive(Default)]
struct Table {
    endpoints: BTreeMap<u64, (Arc<Endpoint>, Place)>,
    relays: BTreeMap<u64, Arc<Relay>>,
    /// Which mechanisms' drivers run.
    driven: Vec<&'static str>,
}

/// What an address and its options ask for.
struct Asked {
    own: Options,
    address: Address,
    options: Dict,
    mechanism: &'static Descriptor,
    place: Place,
}

/// A kernel object, and whether it is there since this call.
struct Opened {
    kernel: Box<dyn mechanism::Endpoint>,
    created: bool,
}

/// Something in the object tree.
#[derive(Debug, Clone)]
pub enum Object {
    Endpoint(Arc<Endpoint>),
    Relay(Arc<Relay>),
}

impl Engine {
    /// The engine of the kernel's mechanisms, for callers that are not confined.
    pub fn new(limits: Limits) -> Arc<Self> {
        Self::of(mechanisms::KERNEL, limits, None)
    }

    /// The engine of these mechanisms; `confinement` says how its callers are confined: "mount namespace, seccomp
    /// filter".
    pub fn of(mechanisms: Register, limits: Limits, confinement: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            mechanisms,
            limits,
            confinement,
            clients: Clients::default(),
            counters: Counters::default(),
            declared: Board::default(),
            stopping: Flag::new(),
            range_watches: Arc::default(),
            next_id: AtomicU64::new(1),
            admitted: AtomicU64::new(0),
            table: Mutex::default(),
            news: Arc::default(),
            herald: herald::Place::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a call of a client, within the limits.
    pub fn admit(&self, client: Arc<Client>) -> Result<Call> {
        if self.stopping.is_set() {
            return Err(Error::new(Kind::Cancelled, "the service is stopping"));
        }
        self.admitted.fetch_add(1, Ordering::Relaxed);
        let in_all =
            self.counters.calls.take(self.limits.calls, "there are too many calls in flight", "calls")?;
        Call::admit(client, self.limits.calls_per_connection, in_all)
    }

    /// Makes the kernel object that the address names, and an endpoint for it.
    pub async fn create(
        self: &Arc<Self>,
        call: &Call,
        address: &str,
        options: Dict,
    ) -> Result<Arc<Endpoint>> {
        let Asked { own, address, options, mechanism, place } = self.asked(address, options)?;
        let mut parameters = Parameters::check(mechanism.create_parameters, &[], &address, &options)?;
        self.may_create(mechanism, &parameters)?;
        let place = self.place_for_made(mechanism, place)?;
        parameters.budget = self.watches_budget();
        let opened = match self.open(call, mechanism.create, parameters).await {
            Err(error) if error.kind == Kind::Exists && own.or_attach => {
                self.may_attach(mechanism)?;
                let (address, options) = attachable(mechanism, address, options);
                let parameters = Parameters::check(mechanism.attach_parameters, &[], &address, &options)?;
                Opened { kernel: self.open(call, mechanism.attach, parameters).await?, created: false }
            }
            kernel => Opened { kernel: kernel?, created: true },
        };
        self.add(call, mechanism, opened, own, place)
    }

    /// Makes an endpoint for something that exists.
    pub async fn attach(
        self: &Arc<Self>,
        call: &Call,
        address: &str,
        options: Dict,
    ) -> Result<Arc<Endpoint>> {
        let Asked { own, address, options, mechanism, place } = self.asked(address, options)?;
        let parameters = Parameters::check(mechanism.attach_parameters, &[], &address, &options)?;
        self.may_attach(mechanism)?;
        let kernel = self.open(call, mechanism.attach, parameters).await?;
        self.add(call, mechanism, Opened { kernel, created: false }, own, place)
    }

    /// Reads an address, and takes a place for what it asks for.
    fn asked(&self, address: &str, options: Dict) -> Result<Asked> {
        let (own, address, options) = Options::split(Address::parse(address)?, options)?;
        self.may_live_as(&own.lifetime)?;
        let mechanism = self.mechanisms.by_scheme(&address.scheme)?;
        (mechanism.available)()?;
        Ok(Asked { own, address, options, mechanism, place: self.place_for(mechanism)? })
    }

    /// Makes an endpoint for an fd that the caller hands over.
    pub async fn adopt(self: &Arc<Self>, call: &Call, fd: OwnedFd, options: Dict) -> Result<Arc<Endpoint>> {
        let (own, _, rest) = Options::split(Address::new("adopt"), options)?;
        if let Some(key) = rest.keys().next() {
            return Err(Error::invalid(format!(
                "Adopt has no option {key:?}; what the endpoint is, the file descriptor says"
            )));
        }
        self.may_live_as(&own.lifetime)?;
        let mut fd = fd;
        for mechanism in self.mechanisms.iter() {
            match (mechanism.adopt)(fd)? {
                Adoption::Taken(kernel) => {
                    let place = self.place_for(mechanism)?;
                    return self.add(call, mechanism, Opened { kernel, created: false }, own, place);
                }
                Adoption::Refused(refused) => fd = refused,
            }
        }
        Err(ipc_kernel::fd::unsupported_kind(&fd))
    }

    /// Runs an open on the blocking pool (file systems may be slow), and waits where it must.
    async fn open(
        &self,
        call: &Call,
        open: fn(&Parameters) -> Result<Opening>,
        parameters: Parameters,
    ) -> Result<Box<dyn mechanism::Endpoint>> {
        let opening = blocking(move || open(&parameters)).await?;
        let pending = match opening {
            Opening::Done(kernel) => return Ok(kernel),
            Opening::Pending(pending) => pending,
        };
        // The mechanism has its own deadline; this one only bounds it.
        let patience = self.patience(self.limits.max_wait_ms)?;
        let _counted = self.counters.waits.take(self.limits.waits, "there are too many waits", "waits")?;
        let open = Flag::new();
        let cancel = Cancel { closed: &open, gone: &call.client.gone, stopping: &self.stopping };
        wait::complete(patience, cancel, || "connect".to_owned(), pending).await
    }

    fn add(
        self: &Arc<Self>,
        call: &Call,
        mechanism: &'static Descriptor,
        opened: Opened,
        own: Options,
        place: Place,
    ) -> Result<Arc<Endpoint>> {
        let guardian = match fits(&*opened.kernel, &own) {
            Ok(guardian) => guardian,
            Err(error) => {
                // A Create that cannot be completed leaves nothing behind; what was there stays.
                if opened.created {
                    let may_wait = opened.kernel.removal_may_wait();
                    off_the_loop(may_wait, move || _ = opened.kernel.remove());
                }
                return Err(error);
            }
        };
        let made = Made {
            mechanism,
            kernel: opened.kernel,
            lifetime: own.lifetime.clone(),
            creator: call.client.name.clone(),
            remove_on_close: own.remove_on_close,
            deliver: own.deliver,
            batch: own.batch,
        };
        let endpoint = self.enter(made, place);
        crate::lifetime::guard(self, &endpoint, &call.client, guardian);
        crate::pump::start(self, &endpoint, &own);
        Ok(endpoint)
    }

    /// Puts a new endpoint into the table.
    fn enter(self: &Arc<Self>, made: Made, place: Place) -> Arc<Endpoint> {
        let id = self.next_id();
        let endpoint = Arc::new(Endpoint::new(id, made, self.limits.events_kept));
        let mut table = self.table();
        table.endpoints.insert(id, (endpoint.clone(), place));
        if let Some(driver) = endpoint.mechanism.driver
            && !table.driven.contains(&endpoint.mechanism.name)
        {
            table.driven.push(endpoint.mechanism.name);
            crate::pump::drive(self.clone(), driver);
        }
        drop(table);
        crate::filesystem::entered(self, &endpoint);
        endpoint
    }

    /// An endpoint for an accepted connection; it lives as its listener does.
    pub(crate) fn accepted(
        self: &Arc<Self>,
        listener: &Endpoint,
        kernel: Box<dyn mechanism::Endpoint>,
        place: Place,
    ) -> Arc<Endpoint> {
        let made = Made {
            mechanism: listener.mechanism,
            kernel,
            lifetime: listener.lifetime.clone(),
            creator: listener.creator.clone(),
            remove_on_close: Some(false),
            deliver: false,
            batch: false,
        };
        let endpoint = self.enter(made, place);
        let guardian = match listener.lifetime {
            Lifetime::Process(pid) => crate::lifetime::pidfd(pid).ok(),
            _ => None,
        };
        crate::lifetime::guard(self, &endpoint, &self.clients.get(&listener.creator), guardian);
        endpoint
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub fn endpoint(&self, id: u64) -> Option<Arc<Endpoint>> {
        self.table().endpoints.get(&id).map(|(endpoint, _)| endpoint.clone())
    }

    pub fn relay(&self, id: u64) -> Option<Arc<Relay>> {
        self.table().relays.get(&id).cloned()
    }

    pub(crate) fn enter_relay(&self, relay: &Arc<Relay>) -> Result<()> {
        let mut table = self.table();
        let limit = self.limits.relays;
        if table.relays.len() >= limit as usize {
            return Err(exceeded("there are too many relays", "relays", limit));
        }
        if let Some(error) = relay.conflict(table.relays.values().map(|relay| &**relay)) {
            return Err(error);
        }
        table.relays.insert(relay.id, relay.clone());
        Ok(())
    }

    /// Everything in the table, relays first: they end before what they relay.
    pub fn objects(&self) -> Vec<Object> {
        let table = self.table();
        let relays = table.relays.values().cloned().map(Object::Relay);
        relays
            .chain(table.endpoints.values().map(|(endpoint, _)| Object::Endpoint(endpoint.clone())))
            .collect()
    }

    /// Takes an endpoint out of the table and ends what waits on it. The kernel object goes too
    /// if it was made to (`remove-on-close`); then it is announced. Says whether this call was the one that closed it.
    pub fn close(&self, endpoint: &Arc<Endpoint>, reason: &str) -> bool {
        if endpoint.reason.set(reason.to_owned()).is_err() {
            return false;
        }
        endpoint.closed.set();
        endpoint.give_back_kept();
        let mut table = self.table();
        table.endpoints.remove(&endpoint.id);
        for relay in table.relays.values() {
            if relay.ends().any(|end| end.id == endpoint.id) {
                relay.endpoint_closed(endpoint);
            }
        }
        drop(table);
        endpoint.remove_closed(self.news.clone());
        true
    }

    pub(crate) fn forget_relay(&self, relay: &Arc<Relay>) {
        self.table().relays.remove(&relay.id);
        self.announce(Object::Relay(relay.clone()));
    }

    /// A connection has ended: its waits end, and what lives as long as it does is closed.
    pub fn client_left(&self, name: &str) {
        self.clients.left(name);
        self.herald.left(name);
        for object in self.objects() {
            match object {
                Object::Relay(relay) => relay.client_left(name),
                Object::Endpoint(endpoint) => {
                    if endpoint.lifetime == Lifetime::Client && endpoint.creator == name {
                        self.close(&endpoint, "the connection that it belonged to has ended");
                    }
                }
            }
        }
    }

    /// Ends everything: waits are cancelled, relays stop, endpoints are closed, which are returned.
    pub fn stop(&self) -> Vec<Arc<Endpoint>> {
        self.stopping.set();
        let mut closed = Vec::new();
        for object in self.objects() {
            match object {
                Object::Relay(relay) => relay.stop("the service is stopping"),
                Object::Endpoint(endpoint) => {
                    self.close(&endpoint, "shutdown");
                    closed.push(endpoint);
                }
            }
        }
        closed
    }

    /// Objects of a mechanism on the whole machine that match the filter.
    pub async fn list(&self, mechanism: &'static Descriptor, filter: Dict) -> Result<Listing> {
        check_filter(mechanism.name, mechanism.columns, &filter)?;
        self.may_list(mechanism)?;
        blocking(move || {
            let mut listing = (mechanism.list)()?;
            listing.filter(&filter);
            Ok(listing)
        })
        .await
    }

    /// Whether nobody has anything here: no call, endpoint, relay, private connection,
    /// subscription or lease.
    pub fn is_idle(&self) -> bool {
        let counters = &self.counters;
        let counted = [
            &counters.calls,
            &counters.endpoints,
            &counters.watches,
            &counters.leases,
            &counters.subscriptions,
            &counters.connections,
        ];
        counted.iter().all(|counter| counter.value() == 0) && self.table().relays.is_empty()
    }

    /// How many calls have been admitted; to see whether there were any since.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// What is in use, under the keys of the limits.
    pub fn usage(&self) -> Dict {
        let relays = self.table().relays.len() as u32;
        dict! {
            "calls" => self.counters.calls.value(),
            "waits" => self.counters.waits.value(),
            "endpoints" => self.counters.endpoints.value(),
            "relays" => relays,
            "watches" => self.counters.watches.value(),
            "mailboxes" => self.counters.mailboxes.value(),
            "mounts" => self.counters.mounts.value(),
            "leases" => self.counters.leases.value(),
            "subscriptions" => self.counters.subscriptions.value(),
            "connections" => self.counters.connections.value(),
        }
    }
}

/// The part of what was given to Create that Attach understands as well.
fn attachable(mechanism: &Descriptor, mut address: Address, mut options: Dict) -> (Address, Dict) {
    let known = |key: &str| mechanism.attach_parameters.iter().any(|parameter| parameter.key == key);
    address.pairs.retain(|(key, _)| known(key));
    options.retain(|key, _| known(key));
    (address, options)
}

/// Whether the options fit what was opened. Returns the process that the lifetime depends on.
fn fits(kernel: &dyn mechanism::Endpoint, own: &Options) -> Result<Option<OwnedFd>> {
    let shapes = kernel.shapes();
    let has = |shape| shapes.contains(&shape);
    let misfit = [
        (own.deliver && !has(Shape::Stream) && !has(Shape::Messages), "deliver", "stream or messages"),
        (own.notify && !has(Shape::Messages) && !has(Shape::Futex), "notify", "messages or futex"),
        (own.accept && !has(Shape::Listener), "accept", "listener"),
        (own.batch && !has(Shape::Watch), "batch", "watch"),
    ]
    .into_iter()
    .find(|(wrong, ..)| *wrong);
    if let Some((_, option, wanted)) = misfit {
        return Err(Error::invalid(format!("the option {option:?} needs an endpoint of shape {wanted}")));
    }
    match own.lifetime {
        Lifetime::Process(pid) => crate::lifetime::pidfd(pid).map(Some),
        _ => Ok(None),
    }
}

/// Runs what may block for a while (file systems, name resolution) on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(Kind::Cancelled, "the service is stopping")),
    }
}
