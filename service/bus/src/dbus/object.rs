//! Objects on buses that files stand for: they are called, and what is told of them is followed.
//!
//! They share one connection for each bus, as there may be a thousand of them. Each call waits for its reply by its
//! serial number, and is bounded by whoever makes it.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use event_listener::{Event, EventListener};
use ipc_engine::wait::until;
use ipc_kernel::{Attempt, Error, Kind, Result, shape::Outgoing};
use tokio::{runtime::Handle, sync::oneshot};
use zbus::{Message as Wire, message};

use super::{
    body::{self, Values},
    bus::Bus,
    endpoint::Role,
    link::{self, Core, Task, error_text, kind_of, owner_rule},
    property,
    target::Target,
};

/// Buses that files may be on at once.
const BUSES: usize = 8;

/// An object, and how often it is known to have changed.
pub struct Object {
    link: Arc<Link>,
    target: Target,
    /// Of which the changes are followed: an interface and its property.
    property: Option<(String, String)>,
    version: AtomicU64,
    changed: Event,
    /// What the bus was asked for.
    rules: Mutex<Vec<String>>,
}

impl Object {
    /// Nobody has to have the name yet.
    pub async fn find(bus: &str, target: Target, property: Option<(String, String)>) -> Result<Arc<Self>> {
        let link = Link::to(bus).await?;
        let (version, changed) = (AtomicU64::new(0), Event::new());
        let object = Arc::new(Self { link, target, property, version, changed, rules: Mutex::default() });
        object.link.calls.objects().push(Arc::downgrade(&object));
        let followed = object.property.as_ref().map(|(of, _)| property::rule(&object.target, of));
        for rule in followed.into_iter().chain([owner_rule(&object.target.name)]) {
            object.link.follow(&rule).await?;
            object.rules().push(rule);
        }
        object.target.ask(&object.link.core).await?;
        Ok(object)
    }

    fn rules(&self) -> MutexGuard<'_, Vec<String>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a method of the object. Whoever drops this does not wait for the reply any more.
    pub async fn call(
        &self,
        interface: Option<&str>,
        member: &str,
        build: impl FnOnce(message::Builder<'_>) -> Result<Wire>,
    ) -> Result<std::result::Result<Wire, Refused>> {
        let core = &self.link.core;
        self.target.check(core)?;
        if self.target.owner().is_none() {
            self.target.ask(core).await?;
            self.target.reachable(core).await?;
        }
        let builder =
            Wire::method_call(self.target.path.as_str(), member).destination(self.target.name.as_str());
        let call = build(match interface {
            Some(interface) => builder.interface(interface),
            None => builder,
        })?;
        let reply = self.link.call(call).await?;
        let name = reply.header().error_name().map(|name| name.to_string());
        Ok(match name {
            Some(name) => Err(Refused { name, text: error_text(&reply) }),
            None => Ok(reply),
        })
    }

    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Notified when there is another version.
    pub fn changed(&self) -> EventListener {
        self.changed.listen()
    }

    /// `told`: the arguments, where the message is `PropertiesChanged`.
    fn hear(&self, message: &Wire, told: Option<&std::result::Result<Values, String>>) {
        let is_its = || {
            let (header, owner) = (message.header(), self.target.owner());
            header.path().is_some_and(|path| path.as_str() == self.target.path)
                && header.sender().is_some_and(|sender| Some(sender.as_str()) == owner.as_deref())
        };
        let has_changed = match (&self.property, told) {
            (Some((interface, name)), Some(told)) => {
                let says = |values: &Values| property::change(&values.values, interface, name).is_some();
                // What is too long to be looked at may say anything.
                is_its() && told.as_ref().map_or(true, says)
            }
            _ => self.target.handle(&self.link.core, message).is_some(),
        };
        if has_changed {
            self.version.fetch_add(1, Ordering::AcqRel);
            self.changed.notify(usize::MAX);
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // Without a runtime the connection ends, and its rules with it.
        let Ok(runtime) = Handle::try_current() else { return };
        let link = self.link.clone();
        let rules = std::mem::take(&mut *self.rules());
        runtime.spawn(async move {
            for rule in rules {
                link.unfollow(&rule).await;
            }
        });
    }
}

/// The error that was the answer.
#[derive(Debug)]
pub struct Refused {
    pub name: String,
    pub text: String,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::new(kind_of(&refused.name), format!("{}: {}", refused.name, refused.text))
    }
}

/// A connection that objects share.
struct Link {
    core: Arc<Core>,
    calls: Arc<Calls>,
    /// What the bus was asked for, and how many objects need it: not every bus counts.
    rules: tokio::sync::Mutex<HashMap<String, usize>>,
    _reader: Task,
}

/// Those that there are, by what was asked for.
static LINKS: Mutex<Vec<(String, Weak<Link>)>> = Mutex::new(Vec::new());

/// The one that there is and has not ended; Err where there are too many.
fn known(bus: &str) -> Result<Option<Arc<Link>>> {
    let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    links.retain(|(_, link)| link.upgrade().is_some_and(|link| link.core.inbox.check_open().is_ok()));
    match links.iter().find(|(label, _)| label == bus) {
        Some((_, link)) => Ok(link.upgrade()),
        None if links.len() >= BUSES => Err(Error::new(
            Kind::LimitExceeded,
            format!("published files are on {BUSES} buses already, which are the most at once"),
        )),
        None => Ok(None),
    }
}

impl Link {
    async fn to(bus: &str) -> Result<Arc<Self>> {
        if let Some(link) = known(bus)? {
            return Ok(link);
        }
        let found = Bus::find(bus)?;
        let socket = found.connect()?;
        // Nothing is received here but what is waited for.
        let (core, calls, reader) = link::start(found, socket, 0, Calls::default()).await?;
        let link = Arc::new(Self { core, calls, rules: Default::default(), _reader: reader });
        // Somebody may have been faster.
        if let Some(other) = known(bus)? {
            return Ok(other);
        }
        LINKS.lock().unwrap_or_else(PoisonError::into_inner).push((bus.to_owned(), Arc::downgrade(&link)));
        Ok(link)
    }

    async fn follow(&self, rule: &str) -> Result<()> {
        let mut rules = self.rules.lock().await;
        if !rules.contains_key(rule) {
            self.core.add_match(rule).await?;
        }
        *rules.entry(rule.to_owned()).or_default() += 1;
        Ok(())
    }

    async fn unfollow(&self, rule: &str) {
        let mut rules = self.rules.lock().await;
        let left = rules.get(rule).map_or(0, |count| count - 1);
        if left > 0 {
            rules.insert(rule.to_owned(), left);
        } else if rules.remove(rule).is_some() {
            self.core.remove_match(rule).await;
        }
    }

    async fn call(&self, call: Wire) -> Result<Wire> {
        let (told, reply) = oneshot::channel();
        let call_waits = Waits { calls: &self.calls, serial: call.primary_header().serial_num() };
        self.calls.waiting().insert(call_waits.serial, told);
        while let Attempt::Wait(readiness) = self.core.offer(call.clone())? {
            until(readiness).await?;
        }
        reply.await.map_err(|_| {
            Error::new(Kind::Closed, format!("the bus {} has gone before the reply", self.core.bus.label))
        })
    }
}

/// What the connection's reader hands on.
#[derive(Default)]
struct Calls {
    waiting: Mutex<HashMap<NonZeroU32, oneshot::Sender<Wire>>>,
    objects: Mutex<Vec<Weak<Object>>>,
}

impl Calls {
    fn waiting(&self) -> MutexGuard<'_, HashMap<NonZeroU32, oneshot::Sender<Wire>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are still there.
    fn objects(&self) -> MutexGuard<'_, Vec<Weak<Object>>> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.retain(|object| object.strong_count() > 0);
        objects
    }
}

/// A call whose reply is waited for.
struct Waits<'a> {
    calls: &'a Calls,
    serial: NonZeroU32,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.calls.waiting().remove(&self.serial);
    }
}

impl Role for Calls {
    const SELECTORS: &'static [&'static str] = &[];
    const COMES_BACK: bool = false;

    async fn set_up(&self, _core: &Core) -> Result<()> {
        Ok(())
    }

    fn send(&self, _core: &Core, _message: Outgoing<'_>) -> Result<Attempt<()>> {
        Err(Error::not_supported("files call by themselves"))
    }

    fn handle(&self, _core: &Core, message: &Wire) {
        let header = message.header();
        if let Some(serial) = header.reply_serial() {
            if let Some(call) = self.waiting().remove(&serial) {
                // Whoever waited may be gone.
                let _ = call.send(message.clone());
            }
            return;
        }
        // Anybody can send a signal to one connection alone, whatever that has asked for.
        if message.message_type() != message::Type::Signal || header.destination().is_some() {
            return;
        }
        let is_change = header.interface().is_some_and(|name| name.as_str() == property::PROPERTIES)
            && header.member().is_some_and(|name| name.as_str() == "PropertiesChanged");
        let told = is_change.then(|| body::values(message));
        let objects: Vec<Arc<Object>> = self.objects().iter().filter_map(Weak::upgrade).collect();
        objects.iter().for_each(|object| object.hear(message, told.as_ref()));
    }

    fn expire(&self, _core: &Core, now: Option<tokio::time::Instant>) {
        if now.is_none() {
            self.waiting().clear();
        }
    }
}
