//! Introspection data, made without a bus: for `ipcd --introspect`, for the files under
//! `interfaces/`, and for the nodes above the endpoints.

use std::{fmt::Write, sync::Arc};

use ipc_engine::{Engine, Limits, Object};
use ipc_kernel::Dict;
use zbus::object_server::Interface;

use crate::{
    errors::Result,
    face::Face,
    interfaces::{
        Served, endpoint::Endpoint, filesystem::Filesystem, futex::Futex, introspectable::Introspectable,
        listener::Listener, mailbox::Mailbox, manager::Manager, mechanism::Mechanism, memory::Memory,
        messages::Messages, netlink::Netlink, object_manager::ObjectManager, process::Process, relay::Relay,
        semaphore::Semaphore, stream::Stream, watch::Watch,
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
    for mechanism in tree.engine.mechanisms.iter() {
        if path == paths::node(mechanism.name) {
            write(&mut xml, &Mechanism::new(&face, mechanism));
        }
    }
    if path == paths::NETLINK {
        write(&mut xml, &Netlink::new(&face));
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
                tree.engine.mechanisms.iter().map(|mechanism| mechanism.name.to_owned()).collect();
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
    let interfaces: Vec<(String, &str, Box<dyn Interface>)> = vec![
        named(doc::MANAGER, Manager::new(&face, &tree)),
        named(doc::MECHANISM, Mechanism::new(&face, engine.mechanisms.by_name("pipe")?)),
        named(doc::ENDPOINT, Endpoint::new(&face, &source)),
        named(doc::STREAM, Stream::new(&face, &source)),
        named(doc::LISTENER, Listener::new(&face, &tree, &source)),
        named(doc::MESSAGES, Messages::new(&face, &source)),
        named(doc::MEMORY, Memory::new(&face, &source)),
        named(doc::SEMAPHORE, Semaphore::new(&face, &source)),
        named(doc::FUTEX, Futex::new(&face, &source)),
        named(doc::WATCH, Watch::new(&face, &source)),
        named(doc::PROCESS, Process::new(&face, &source)),
        named(doc::MAILBOX, Mailbox::new(&face, &source)),
        named(doc::FILESYSTEM, Filesystem::new(&face, &source)),
        named(doc::RELAY, Relay::new(&face, &relay)),
        named(doc::NETLINK, Netlink::new(&face)),
    ];
    let documents = interfaces
        .into_iter()
        .map(|(name, doc, interface)| {
            let mut xml = format!("{HEAD}<node>\n  <!--\n{doc}\n  -->\n");
            write(&mut xml, &*interface);
            xml.push_str("</node>\n");
            (name, xml)
        })
        .collect();
    engine.stop();
    drop(Object::Relay(relay));
    Ok(documents)
}

fn named<I: Interface>(doc: &'static str, interface: I) -> (String, &'static str, Box<dyn Interface>) {
    (I::name().to_string(), doc, Box::new(interface))
}

/// What each interface is for. zbus takes the comments of members from their doc comments, but has
/// no place for that of the whole.
mod doc {
    pub const MANAGER: &str = "\
Creates, attaches to and relays between the kernel's objects for inter-process communication.

An address says what: scheme:key=value,key=value, in the syntax of D-Bus addresses. Any key may
be given in the options instead, under the same name with its own D-Bus type. Describe() on a
mechanism's node lists the keys. See docs/reference for everything.";
    pub const MECHANISM: &str = "\
One mechanism of the kernel: its keys, its limits, and its objects on the whole machine.";
    pub const ENDPOINT: &str = "\
A kernel object that was created, attached or adopted. Its other interfaces say what can be
done with it.";
    pub const STREAM: &str = "\
A stream of bytes: pipes, FIFOs, stream sockets.";
    pub const LISTENER: &str = "\
A socket that listens for connections. Each connection becomes an endpoint of its own.";
    pub const MESSAGES: &str = "\
Messages that keep their borders: datagram and seqpacket sockets, pipes in packet mode,
message queues.";
    pub const MEMORY: &str = "\
Shared memory. Offsets and sizes are in bytes. Words are in the byte order of the machine, and
must be aligned to their size; the operations on them are atomic (sequentially consistent).";
    pub const SEMAPHORE: &str = "\
A semaphore, or a set of them.";
    pub const FUTEX: &str = "\
A word of 32 bits in shared memory, on which processes sleep until another one wakes them
(futex(2)).";
    pub const WATCH: &str = "\
A watch on a file or directory (inotify(7)).";
    pub const PROCESS: &str = "\
A process (or one of its threads, or the group that it leads), to send signals to and to watch
until it ends. It is held as a pidfd: its number cannot come to mean another process.";
    pub const MAILBOX: &str = "\
A process of the service's own that receives signals for the caller (signal(7)).";
    pub const FILESYSTEM: &str = "\
A directory whose files are published by the caller (fuse(4)).";
    pub const RELAY: &str = "\
A relay moves everything that comes out of its source into its sink, with back-pressure: when
the sink is full, it stops reading.";
    pub const NETLINK: &str = "\
On /org/example/IPC/netlink: what the kernel tells every process over netlink(7), as signals to
everybody; a match rule is enough, there is nothing to subscribe to. Names stand for numbers,
addresses are text. All signals are numbered in one sequence: a gap means that some were not
delivered, and Since() has them. For a state without a gap, receive signals first, then ask for
a list, and leave out what has a number up to the list's own. (A call also starts the service, where
the bus does that; a match rule does not.)

Only what the kernel shows every user is told. Processes are among that since Linux 6.6
(WatchProcesses).";
}
