//! Object paths: `/org/example/IPC`, a node for each mechanism, an object for each endpoint and relay.

use std::sync::Arc;

use ipc_engine::{Endpoint, Engine, Object, Relay, relay::of_tee};
use ipc_kernel::{Dict, Error, Kind, Value};
use zbus::{ObjectPath, OwnedObjectPath};

use crate::errors::Result;

pub const MANAGER: &str = "/org/example/IPC";
/// The node of netlink, which has an interface of its own.
pub const NETLINK: &str = "/org/example/IPC/netlink";
pub const RELAYS: &str = "/org/example/IPC/relay";

pub fn node(mechanism: &str) -> String {
    format!("{MANAGER}/{mechanism}")
}

pub fn endpoint(endpoint: &Endpoint) -> OwnedObjectPath {
    numbered(endpoint.mechanism.name, endpoint.id)
}

/// An endpoint that there is, or was.
pub fn numbered(mechanism: &str, id: u64) -> OwnedObjectPath {
    valid(format!("{MANAGER}/{mechanism}/{id}"))
}

pub fn relay(relay: &Relay) -> OwnedObjectPath {
    valid(format!("{RELAYS}/{}", relay.id))
}

pub fn of(object: &Object) -> OwnedObjectPath {
    match object {
        Object::Endpoint(it) => endpoint(it),
        Object::Relay(it) => relay(it),
    }
}

fn valid(path: String) -> OwnedObjectPath {
    // Made of mechanism names and decimal numbers, which are valid elements.
    ObjectPath::from_string_unchecked(path).into()
}

/// The endpoint that an argument of type `o` names.
pub fn find_endpoint(engine: &Engine, path: &ObjectPath<'_>) -> Result<Arc<Endpoint>> {
    Ok(endpoint_at(engine, path.as_str())?)
}

/// The endpoints that the option `tee` of Relay names. A value of another type is refused with the other options.
pub fn find_tee(engine: &Engine, options: &Dict) -> Result<Vec<Arc<Endpoint>>> {
    let Some(Value::Texts(paths)) = options.get("tee") else { return Ok(Vec::new()) };
    let found = paths.iter().map(|path| endpoint_at(engine, path).map_err(of_tee));
    Ok(found.collect::<ipc_kernel::Result<_>>()?)
}

fn endpoint_at(engine: &Engine, path: &str) -> ipc_kernel::Result<Arc<Endpoint>> {
    let found = number(path).and_then(|(name, id)| {
        let endpoint = engine.endpoint(id)?;
        (endpoint.mechanism.name == name).then_some(endpoint)
    });
    found.ok_or_else(|| {
        Error::new(Kind::NoSuchEndpoint, format!("there is no endpoint {path}; it was closed, or never made"))
    })
}

fn number(path: &str) -> Option<(&str, u64)> {
    let (name, id) = path.strip_prefix(MANAGER)?.strip_prefix('/')?.split_once('/')?;
    // "1", never "01" or "+1": one object has one path.
    let parsed: u64 = id.parse().ok()?;
    (parsed.to_string() == id).then_some((name, parsed))
}
