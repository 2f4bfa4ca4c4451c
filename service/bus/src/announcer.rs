//! The announcer: turns the engine's news into signals.
//!
//! One task, so that what happens to one object is told in order: it was added, its events, it
//! was closed, it was removed. News of an object come after the reply to the call that caused
//! them, because the task runs only when that call has done all it had to do.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ipc_engine::{
    Endpoint, Object, Relay,
    events::{Happening, Kept, Numbered},
};
use zbus::{Message, ObjectPath, Variant, fdo, names::InterfaceName, object_server::Interface};

use crate::{
    interfaces::{
        self,
        filesystem::Filesystem,
        futex::Futex,
        listener::Listener,
        mailbox,
        memory::Memory,
        messages::Messages,
        object_manager, process, relay,
        stream::Stream,
        watch::{self, Watch},
    },
    paths,
    tree::{Tree, id},
    variants::{Vardict, vardict},
};

/// Events of one object that are announced before another one has its turn.
const TURN: usize = 64;

/// Bytes of paths in one signal.
const MANY_BYTES: usize = 32 * 1024;

/// Announces for as long as the service runs.
pub async fn run(tree: Arc<Tree>) {
    let mut announcer = Announcer { tree, introduced: HashSet::new() };
    loop {
        let object = announcer.tree.engine.next_news().await;
        announcer.announce(object).await;
    }
}

struct Announcer {
    tree: Arc<Tree>,
    /// The objects for which InterfacesAdded was sent.
    introduced: HashSet<u64>,
}

impl Announcer {
    async fn announce(&mut self, object: Object) {
        self.introduce(&object).await;
        match &object {
            Object::Endpoint(endpoint) => self.endpoint(endpoint).await,
            Object::Relay(relay) => self.relay(relay).await,
        }
    }

    /// Tells that the object is there, once. What the engine made by itself (accepted
    /// connections) enters the tree here.
    async fn introduce(&mut self, object: &Object) {
        if self.introduced.contains(&id(object)) {
            return;
        }
        if !self.tree.has(object).await && self.tree.enter(object).await.is_err() {
            return;
        }
        self.introduced.insert(id(object));
        let path = paths::of(object);
        for serving in self.tree.served().await {
            let server = serving.connection.object_server();
            let found =
                object_manager::interfaces(&serving.face, &self.tree, object, server, &serving.connection)
                    .await;
            let body = match found {
                Ok(found) => (&path, found),
                Err(error) => {
                    tracing::error!("{path} could not be announced: {error}");
                    continue;
                }
            };
            serving.signal(object, &mut None, &|to| of_manager(to, "InterfacesAdded", &body)).await;
        }
    }

    async fn endpoint(&mut self, endpoint: &Arc<Endpoint>) {
        let path = paths::endpoint(endpoint);
        let object = Object::Endpoint(endpoint.clone());
        let events = endpoint.events.unannounced(TURN);
        let more = events.len() == TURN;
        if endpoint.batch {
            self.many(&object, &path, &events).await;
        }
        for event in events.into_iter().filter(|_| !endpoint.batch) {
            if let Happening::Accepted(accepted) = event.happening
                && let Some(accepted) = self.tree.engine.endpoint(accepted)
            {
                self.introduce(&Object::Endpoint(accepted)).await;
            }
            let build = |to: Option<&str>| self.event(to, endpoint, &path, event.seq, &event.happening);
            self.tree.signal(&object, build).await;
            if matches!(event.happening, Happening::Exited(_)) {
                let changed = BTreeMap::from([("Alive", Variant::from(false))]);
                self.changed(&object, &path, process::Process::name(), changed).await;
            }
        }
        if more {
            // The rest has its turn after the others.
            self.tree.engine.announce(object);
        } else if let Some(reason) = endpoint.closed_reason() {
            let build = |to: Option<&str>| {
                signal::<interfaces::endpoint::Endpoint, _>(to, &path, "Closed", &(reason,))
            };
            self.tree.signal(&object, build).await;
            self.removed(&object).await;
        }
    }

    /// Announces the events of a watch, as many changes in one signal as come one after the other.
    async fn many(&self, object: &Object, path: &ObjectPath<'_>, events: &[Numbered]) {
        let mut left = events;
        while let Some(first) = left.first() {
            let mut bytes = 0;
            let fits = |event: &&Numbered| {
                bytes += event.happening.bytes();
                matches!(event.happening, Happening::Changed(_)) && bytes <= MANY_BYTES
            };
            // One alone is announced, however large it is; so is what is no change.
            let count = left.iter().take_while(fits).count().max(1);
            let (together, rest) = left.split_at(count);
            left = rest;
            let changes: Vec<_> = together
                .iter()
                .filter_map(|event| match &event.happening {
                    Happening::Changed(change) => watch::change(change).ok(),
                    _ => None,
                })
                .collect();
            let build = |to: Option<&str>| match changes.is_empty() {
                false => signal::<Watch, _>(to, path, "ChangedMany", &(first.seq, &changes)),
                true => signal::<Watch, _>(to, path, "Overflow", &(first.seq, 0u64)),
            };
            self.tree.signal(object, build).await;
        }
    }

    fn event(
        &self,
        to: Option<&str>,
        endpoint: &Endpoint,
        path: &ObjectPath<'_>,
        seq: u64,
        happening: &Happening,
    ) -> zbus::Result<Message> {
        match happening {
            Happening::Changed(change) => {
                let text = String::from_utf8_lossy;
                let details = watch::details(change).unwrap_or_default();
                signal::<Watch, _>(
                    to,
                    path,
                    "Changed",
                    &(seq, &change.names, text(&change.path), text(&change.from), details),
                )
            }
            Happening::Overflow => signal::<Watch, _>(to, path, "Overflow", &(seq, 0u64)),
            Happening::Received { data, attributes } => {
                let data = serde_bytes::Bytes::new(data);
                if endpoint.kernel.stream().is_some() {
                    return signal::<Stream, _>(to, path, "Received", &(seq, data));
                }
                let attributes: Vardict = vardict(attributes.clone()).unwrap_or_default();
                signal::<Messages, _>(to, path, "Received", &(seq, data, attributes))
            }
            Happening::Accepted(id) => {
                let accepted =
                    ObjectPath::try_from(format!("{}/{id}", paths::node(endpoint.mechanism.name)))?;
                signal::<Listener, _>(to, path, "Accepted", &(seq, accepted))
            }
            Happening::Woken(value) => signal::<Futex, _>(to, path, "Woken", &(seq, value)),
            Happening::RangeChanged { watch, offset, length } => {
                signal::<Memory, _>(to, path, "Changed", &(seq, watch, offset, length))
            }
            Happening::Ready => signal::<Messages, _>(to, path, "Ready", &(seq,)),
            Happening::Signalled(received) => {
                signal::<mailbox::Mailbox, _>(to, path, "Received", &mailbox::body(seq, received))
            }
            Happening::Read { name, pid } => signal::<Filesystem, _>(to, path, "Read", &(name, *pid)),
            Happening::Written { name, data } => {
                signal::<Filesystem, _>(to, path, "Written", &(name, serde_bytes::Bytes::new(data)))
            }
            Happening::Exited(exit) => {
                signal::<process::Process, _>(to, path, "Exited", &(exit.code, exit.signal, exit.core))
            }
        }
    }

    async fn relay(&mut self, relay: &Arc<Relay>) {
        let path = paths::relay(relay);
        let object = Object::Relay(relay.clone());
        let changed = BTreeMap::from([("State", Variant::from(relay.state().name()))]);
        self.changed(&object, &path, relay::Relay::name(), changed).await;
        if let Some(end) = relay.finished() {
            let body = (end.reason.as_str(), end.bytes, end.messages);
            let build = |to: Option<&str>| signal::<relay::Relay, _>(to, &path, "Finished", &body);
            self.tree.signal(&object, build).await;
            self.removed(&object).await;
        }
    }

    /// PropertiesChanged; not by zbus's emitter, which would pass by the outbox.
    async fn changed(
        &self,
        object: &Object,
        path: &ObjectPath<'_>,
        interface: InterfaceName<'_>,
        changed: BTreeMap<&str, Variant<'_>>,
    ) {
        let body = (interface, changed, [""; 0].as_slice());
        let build = |to: Option<&str>| signal::<fdo::Properties, _>(to, path, "PropertiesChanged", &body);
        self.tree.signal(object, build).await;
    }

    async fn removed(&mut self, object: &Object) {
        self.introduced.remove(&id(object));
        if !self.tree.leave(object).await {
            return;
        }
        let body = (paths::of(object), object_manager::interface_names(object));
        self.tree.signal(object, |to| of_manager(to, "InterfacesRemoved", &body)).await;
        self.tree.forget(object).await;
    }
}

/// A signal of an interface, with the body that its declaration in the interface's file says; the
/// black-box suite reads every one of them through the generated proxies.
fn signal<I: Interface, B: serde::Serialize + zbus::DynamicType>(
    to: Option<&str>,
    path: &ObjectPath<'_>,
    member: &'static str,
    body: &B,
) -> zbus::Result<Message> {
    let signal = Message::signal(path, I::name(), member);
    match to {
        Some(name) => signal.destination(name).build(body),
        None => signal.build(body),
    }
}

/// A signal of the object manager.
fn of_manager<B: serde::Serialize + zbus::DynamicType>(
    to: Option<&str>,
    member: &'static str,
    body: &B,
) -> zbus::Result<Message> {
    signal::<object_manager::ObjectManager, _>(
        to,
        &ObjectPath::from_static_str_unchecked(paths::MANAGER),
        member,
        body,
    )
}
