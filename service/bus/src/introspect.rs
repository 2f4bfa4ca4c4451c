//! Introspection data, made without a bus: for `ipcd --introspect`, for the files under
//! `interfaces/`, and for the nodes above the endpoints.

use std::{fmt::Write, sync::Arc};

use ipc_engine::{Engine, Limits, Object};
use ipc_kernel::{Dict, mechanisms};
use zbus::object_server::Interface;

use crate::{
    errors::Result,
    face::Face,
    interfaces::{
        Served, endpoint::Endpoint, introspectable::Introspectable, listener::Listener, manager::Manager,
        mechanism::Mechanism, memory::Memory, messages::Messages, object_manager::ObjectManager,
        relay::Relay, semaphore::Semaphore, stream::Stream, watch::Watch,
    },
    paths,
    tree::Tree,
};

const HEAD: &str = r#"<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"#;

/// What every object has (D-Bus Specification, "Standard Interfaces"); zbus serves them.
const STANDARD: &str = r#"  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId">
      <arg name="machine_uuid" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
"#;

/// The data of a node above the endpoints: its own interfaces, and the names of its children.
pub fn node(tree: &Arc<Tree>, path: &str) -> String {
    let face = Face::on_bus(tree.engine.clone());
    let mut xml = format!("{HEAD}<node>\n{STANDARD}");
    write(&mut xml, &Introspectable::new(tree));
    if path == paths::MANAGER {
        write(&mut xml, &Manager::new(&face, tree));
        write(&mut xml, &ObjectManager::new(&face, tree));
    }
    for mechanism in mechanisms::ALL {
        if path == paths::node(mechanism.name) {
            write(&mut xml, &Mechanism::new(&face, mechanism));
        }
    }
    for child in children(tree, path) {
        // Names of mechanisms and decimal numbers; writing to a String cannot fail.
        let _ = writeln!(xml, "  <node name=\"{child}\"/>");
    }
    xml.push_str("</node>\n");
    xml
}

fn children(tree: &Tree, path: &str) -> Vec<String> {
    match path {
        "/" => return vec!["org".to_owned()],
        "/org" => return vec!["example".to_owned()],
        "/org/example" => return vec!["IPC".to_owned()],
        paths::MANAGER => {
            let mut names: Vec<_> =
                mechanisms::ALL.iter().map(|mechanism| mechanism.name.to_owned()).collect();
            if tree.engine.objects().iter().any(|object| matches!(object, Object::Relay(_))) {
                names.push("relay".to_owned());
            }
            return names;
        }
        _ => {}
    }
    let prefix = format!("{path}/");
    tree.engine
        .objects()
        .iter()
        .filter_map(|object| paths::of(object).strip_prefix(prefix.as_str()).map(str::to_owned))
        .collect()
}

fn write(xml: &mut String, interface: &dyn Interface) {
    interface.introspect_to_writer(xml, 2);
}

/// Every interface with its XML document, without any bus. Needs a tokio runtime.
pub async fn documents() -> Result<Vec<(String, String)>> {
    let engine = Engine::new(Limits::default());
    let tree = Tree::new(engine.clone());
    let face = Face::private(engine.clone(), "introspection".to_owned());
    // The interfaces describe themselves; any endpoint and any relay will do.
    let call = engine.admit(engine.clients.get("introspection"))?;
    let source = engine.create(&call, "pipe:", Dict::new()).await?;
    let sink = engine.create(&call, "pipe:", Dict::new()).await?;
    let relay = engine.start_relay(&call, source.clone(), sink.clone(), Dict::new()).await?;
    let interfaces: Vec<(String, Box<dyn Interface>)> = vec![
        named(Manager::new(&face, &tree)),
        named(Mechanism::new(&face, mechanisms::by_name("pipe")?)),
        named(Endpoint::new(&face, &source)),
        named(Stream::new(&face, &source)),
        named(Listener::new(&face, &tree, &source)),
        named(Messages::new(&face, &source)),
        named(Memory::new(&face, &source)),
        named(Semaphore::new(&face, &source)),
        named(Watch::new(&face, &source)),
        named(Relay::new(&face, &relay)),
    ];
    let documents = interfaces
        .into_iter()
        .map(|(name, interface)| {
            let mut xml = format!("{HEAD}<node>\n");
            write(&mut xml, &*interface);
            xml.push_str("</node>\n");
            (name, xml)
        })
        .collect();
    engine.stop();
    drop(Object::Relay(relay));
    Ok(documents)
}

fn named<I: Interface>(interface: I) -> (String, Box<dyn Interface>) {
    (I::name().to_string(), Box::new(interface))
}
