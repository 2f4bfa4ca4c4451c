//! What the herald tells, as signals: to everybody, on every connection where that is its place.

use std::sync::Arc;

use ipc_kernel::netlink::{Address, Event, Link, Neighbour, Route};
use zbus::{
    Message, Variant,
    object_server::Interface,
    wire::{Structure, StructureBuilder},
};

use crate::{
    errors::Result,
    interfaces::netlink::Netlink,
    paths,
    tree::Tree,
    variants::{inner_dict, text},
};

/// Events that are told before somebody else has a turn.
const TURN: usize = 64;

/// Tells for as long as the service runs.
pub async fn run(tree: Arc<Tree>) {
    let most = tree.engine.limits.signal_payload as usize;
    loop {
        let events = tree.engine.next_told(TURN).await;
        let served = tree.served().await;
        for event in events {
            let message = match signal(event.seq, &event.happening) {
                // The gap in the numbers shows it.
                Ok(message) if message.body().len() > most => continue,
                Ok(message) => message,
                Err(error) => {
                    tracing::error!("an event of netlink could not be told: {error:?}");
                    continue;
                }
            };
            for serving in served.iter().filter(|serving| serving.face.hears_the_herald()) {
                serving.outbox.send(message.clone()).await;
            }
        }
        tokio::task::yield_now().await;
    }
}

fn signal(seq: u64, event: &Event) -> Result<Message> {
    let (member, fields) = told(event)?;
    let mut arguments = StructureBuilder::new().add_field(seq);
    fields.into_iter().for_each(|field| arguments.push_value(field));
    let body: Structure<'_> = arguments.build()?;
    Ok(Message::signal(paths::NETLINK, Netlink::name(), member).build(&body)?)
}

/// The name of the signal and its arguments behind the number, as the interface's file declares them.
pub fn told(event: &Event) -> Result<(&'static str, Vec<Variant<'static>>)> {
    Ok(match event.clone() {
        Event::LinkChanged(Link { index, name, state, details }) => {
            ("LinkChanged", vec![index.into(), string(&name), string(&state), dict(details)?])
        }
        Event::LinkRemoved(Link { index, name, details, .. }) => {
            ("LinkRemoved", vec![index.into(), string(&name), dict(details)?])
        }
        Event::AddressAdded(it) => ("AddressAdded", address(it)?),
        Event::AddressRemoved(it) => ("AddressRemoved", address(it)?),
        Event::RouteAdded(it) => ("RouteAdded", route(it)?),
        Event::RouteRemoved(it) => ("RouteRemoved", route(it)?),
        Event::NeighbourChanged(it) => ("NeighbourChanged", neighbour(it)?),
        Event::NeighbourRemoved(it) => ("NeighbourRemoved", neighbour(it)?),
        Event::RuleAdded(it) => ("RuleAdded", vec![it.priority.into(), it.table.into(), dict(it.details)?]),
        Event::RuleRemoved(it) => {
            ("RuleRemoved", vec![it.priority.into(), it.table.into(), dict(it.details)?])
        }
        Event::Device(it) => {
            let properties: std::collections::BTreeMap<_, _> =
                it.properties.iter().map(|(key, value)| (text(key), text(value))).collect();
            let texts = [&it.action, &it.devpath, &it.subsystem, it.source].map(|it: &str| string(it));
            ("DeviceEvent", texts.into_iter().chain([Variant::Dict(properties.into())]).collect())
        }
        Event::Process(it) => {
            ("ProcessEvent", vec![string(it.event), it.pid.into(), it.tid.into(), dict(it.details)?])
        }
        Event::Generic(it) => (
            "GenericEvent",
            vec![string(&it.family), string(&it.group), string(&it.command), dict(it.attributes)?],
        ),
        Event::Overflow(source) => ("Overflow", vec![string(&source)]),
    })
}

fn address(it: Address) -> Result<Vec<Variant<'static>>> {
    Ok(vec![it.index.into(), string(&it.interface), string(&it.address), it.prefix.into(), dict(it.details)?])
}

fn route(it: Route) -> Result<Vec<Variant<'static>>> {
    Ok(vec![string(&it.destination), string(&it.gateway), string(&it.interface), dict(it.details)?])
}

fn neighbour(it: Neighbour) -> Result<Vec<Variant<'static>>> {
    Ok(vec![
        it.index.into(),
        string(&it.interface),
        string(&it.address),
        string(&it.state),
        dict(it.details)?,
    ])
}

fn string(it: &str) -> Variant<'static> {
    text(it).into()
}

fn dict(details: ipc_kernel::Dict) -> Result<Variant<'static>> {
    Ok(Variant::Dict(inner_dict(details)?))
}
