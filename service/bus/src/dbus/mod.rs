//! The mechanism `dbus`: methods, signals and names on a message bus, as endpoints that carry messages.
//!
//! D-Bus is no system call, so its row is here, beside the layer that knows D-Bus, and joins the
//! kernel's rows in [`MECHANISMS`](crate::MECHANISMS). Each endpoint has a connection of its own
//! (`link.rs`), on which the caller's own process could be: what it may do there, the bus decides.

pub mod body;
mod bus;
mod endpoint;
mod inbox;
mod json;
pub(crate) mod link;
pub(crate) mod list;
mod method;
mod names;
pub(crate) mod object;
pub(crate) mod own;
mod own_name;
pub(crate) mod property;
mod signal;
pub(crate) mod target;
mod template;
#[cfg(test)]
mod tests;
mod waiting;
pub(crate) mod wish;

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64},
};

use event_listener::Event;
use ipc_kernel::{
    Ability, Attempt, Descriptor, Endpoint, Error, Kind, Lack, Opening, Parameter, Parameters, Readiness,
    Result, dict, mechanism::Adoption, shape::Shape,
};
use tokio::{runtime::Handle, sync::Notify};
use zbus::{MatchRule, message::Type};

use self::{
    body::Form,
    bus::Bus,
    endpoint::{DbusEndpoint, Role},
    link::{DBUS, Task},
    method::Method,
    names::WatchedName,
    own_name::OwnedName,
    property::Property,
    signal::Signals,
    target::Target,
    wish::Wish,
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "dbus",
    schemes: &["dbus"],
    summary: "Methods, signals, properties and names on a message bus, as messages",
    shapes: &[Shape::Messages],
    create_parameters: wish::CREATE,
    attach_parameters: wish::ATTACH,
    columns: list::COLUMNS,
    open_parameters: &[],
    create,
    anonymous: |_| false,
    attach,
    adopt: |fd| Ok(Adoption::Refused(fd)),
    list: list::list,
    limits: || {
        dict! {
            "bytes" => body::MOST_BYTES as u64,
            "fds" => body::MOST_FDS as u64,
        }
    },
    available: || Ok(()),
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Fd,
            "a connection is authenticated for its endpoint alone; connect to the bus yourself",
        ),
        Lack::new(Ability::Permissions, "who may call whom, the policy of the bus says"),
        Lack::new(
            Ability::Remove,
            "nothing is removed from a bus; a name that is owned is given back by `Close`",
        ),
    ],
    reference: include_str!("dbus.md"),
};

fn attach(parameters: &Parameters) -> Result<Opening> {
    let wish = Wish(parameters);
    let bus = wish.0.text("bus").unwrap_or("session");
    if wish.given("signal") || wish.given("match") {
        signals(&wish, bus)
    } else if wish.given("property") {
        property(&wish, bus)
    } else if wish.given("watch-name") {
        watched_name(&wish, bus)
    } else {
        method(&wish, bus)
    }
}

fn method(wish: &Wish<'_>, bus: &str) -> Result<Opening> {
    const KIND: &str = "a method";
    let method = Method {
        target: target(wish, KIND)?,
        interface: wish.text("interface").map(wish::interface).transpose()?,
        member: wish::member(wish.needed(KIND, "member")?)?,
        types: wish.types_of_calls()?,
        form: wish.form(Form::Plain),
        flags: wish.flags(),
        timeout: wish.timeout(),
        calls: Mutex::default(),
    };
    if method.target.name == DBUS && method.interface.as_deref() == Some("org.freedesktop.DBus.Monitoring") {
        return Err(Error::not_supported(
            "a monitor of a bus is no client of it any more: its connection could not be an endpoint; use busctl monitor",
        ));
    }
    open(wish, wish::ATTACH, bus, method)
}

fn signals(wish: &Wish<'_>, bus: &str) -> Result<Opening> {
    const KIND: &str = "signals";
    wish.only(
        KIND,
        &["bus", "name", "path", "interface", "member", "signature", "body", "signal", "match", "depth"],
    )?;
    let part = |key, check: fn(String) -> Result<String>| wish.text(key).map(check).transpose();
    let name = part("name", wish::bus_name)?;
    let (path, interface) = (part("path", wish::path)?, part("interface", wish::interface)?);
    let member = part("member", wish::member)?;
    if name.as_deref() == Some(crate::NAME) {
        return Err(Error::invalid(format!(
            "the signals of {} are this service's own: an endpoint for them would be told of its own messages",
            crate::NAME
        )));
    }
    let rule = match wish.0.text("match") {
        Some(_) if wish.given("signal") => {
            return Err(Error::invalid("signals are chosen by signal=true or by match=…, not by both"));
        }
        Some(rule) => rule_of(rule)?,
        None if !wish.0.bool("signal") => {
            return Err(Error::invalid("the key \"signal\" must be true, or left out"));
        }
        None => {
            let parts = [("sender", &name), ("path", &path), ("interface", &interface), ("member", &member)];
            let parts =
                parts.into_iter().filter_map(|(key, text)| Some(format!(",{key}='{}'", text.as_ref()?)));
            format!("type='signal'{}", parts.collect::<String>())
        }
    };
    let role = Signals {
        rule,
        path,
        interface,
        member,
        types: wish.types()?,
        form: wish.form(Form::Json),
        left_out: AtomicU64::new(0),
    };
    open(wish, wish::ATTACH, bus, role)
}

/// A rule as it is given to the bus.
fn rule_of(text: &str) -> Result<String> {
    let wrong =
        |why: String| Error::invalid(format!("the key \"match\" must be a match rule for signals: {why}"));
    let rule = MatchRule::try_from(text).map_err(|error| wrong(format!("{text:?}: {error}")))?;
    match rule.msg_type() {
        Some(Type::Signal) => {}
        None => return rule_of(&format!("type='signal',{text}")),
        Some(_) => {
            return Err(wrong(
                "calls and replies of others are seen by a monitor only (busctl monitor)".into(),
            ));
        }
    }
    if rule.eavesdrop() || rule.destination().is_some() {
        return Err(wrong("what is sent to others is seen by a monitor only (busctl monitor)".into()));
    }
    Ok(text.to_owned())
}

fn property(wish: &Wish<'_>, bus: &str) -> Result<Opening> {
    const KIND: &str = "a property";
    wish.only(
        KIND,
        &["bus", "name", "path", "interface", "property", "signature", "flags", "timeout-ms", "depth"],
    )?;
    let signature = wish.text("signature");
    if let Some(text) = signature.as_ref().filter(|text| json::single(text).is_none()) {
        return Err(Error::invalid(format!(
            "the key \"signature\" must be the one type of the property, not {text:?}"
        )));
    }
    let role = Property {
        target: target(wish, KIND)?,
        interface: wish::interface(wish.needed(KIND, "interface")?)?,
        name: wish::member(wish.needed(KIND, "property")?)?,
        signature,
        flags: wish.flags(),
        timeout: wish.timeout(),
        state: Mutex::default(),
        answered: Notify::new(),
    };
    open(wish, wish::ATTACH, bus, role)
}

fn watched_name(wish: &Wish<'_>, bus: &str) -> Result<Opening> {
    const KIND: &str = "a name";
    wish.only(KIND, &["bus", "watch-name", "depth"])?;
    let name = wish::bus_name(wish.needed(KIND, "watch-name")?)?;
    open(wish, wish::ATTACH, bus, WatchedName { name, heard: AtomicBool::new(false) })
}

fn create(parameters: &Parameters) -> Result<Opening> {
    let wish = Wish(parameters);
    let part = |key, check: fn(String) -> Result<String>| wish.text(key).map(check).transpose();
    let role = OwnedName {
        name: wish::well_known(wish.needed("a name", "own-name")?)?,
        path: part("path", wish::path)?,
        interface: part("interface", wish::interface)?,
        member: part("member", wish::member)?,
        types: wish.types()?,
        form: wish.form(Form::Plain),
        timeout: wish.timeout(),
        calls: Mutex::default(),
        noted: OnceLock::new(),
    };
    open(&wish, wish::CREATE, wish.0.text("bus").unwrap_or("session"), role)
}

/// The object that methods and properties are of.
fn target(wish: &Wish<'_>, kind: &str) -> Result<Target> {
    Target::new(wish::bus_name(wish.needed(kind, "name")?)?, wish::path(wish.needed(kind, "path")?)?)
}

/// Connects, and makes the endpoint when the bus has answered what it is asked then.
fn open<R: Role>(wish: &Wish<'_>, table: &[Parameter], bus: &str, role: R) -> Result<Opening> {
    let (bus, depth, address) = (Bus::find(bus)?, wish.depth(), wish.address(table));
    let socket = bus.connect()?;
    pending(async move {
        let (core, role, reader) = link::start(bus, socket, depth, role).await?;
        role.set_up(&core).await?;
        Ok(Box::new(DbusEndpoint { address, core, role, _reader: reader }) as Box<dyn Endpoint>)
    })
}

/// What a task of the runtime makes, as an open that goes on. Given up, the task ends.
fn pending(making: impl Future<Output = Result<Box<dyn Endpoint>>> + Send + 'static) -> Result<Opening> {
    let runtime = Handle::try_current()
        .map_err(|_| Error::new(Kind::Unavailable, "a connection to a bus needs the service's runtime"))?;
    let made = Arc::new((Mutex::new(None), Event::new()));
    let task = Task(
        runtime
            .spawn({
                let made = made.clone();
                async move {
                    let result = making.await;
                    *made.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                    made.1.notify(usize::MAX);
                }
            })
            .abort_handle(),
    );
    Ok(Opening::Pending(Box::new(move || {
        let _until_it_is_made = &task;
        let notified = made.1.listen();
        match made.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => result.map(Attempt::Done),
            None => Ok(Attempt::Wait(Readiness::Notified(notified))),
        }
    })))
}
