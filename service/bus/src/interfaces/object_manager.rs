//! `org.freedesktop.DBus.ObjectManager` over everything below the manager.
//!
//! Not zbus's own: that one sends a signal for each interface of an object, before the reply to
//! the call that made it. Here an object is announced once, as a whole, after the reply.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ipc_engine::Object;
use ipc_kernel::shape::Shape;
use zbus::{
    Connection, ObjectPath, ObjectServer, OwnedObjectPath, fdo, interface,
    object_server::{Interface, SignalEmitter},
};

use crate::{
    face::Face,
    interfaces::{
        Served, endpoint, filesystem, futex, listener, mailbox, memory, messages, process, relay, semaphore,
        stream, watch,
    },
    paths,
    tree::Tree,
    variants::Vardict,
};

pub struct ObjectManager {
    face: Arc<Face>,
    tree: Arc<Tree>,
}

impl ObjectManager {
    pub fn new(face: &Arc<Face>, tree: &Arc<Tree>) -> Self {
        Self { face: face.clone(), tree: tree.clone() }
    }
}

/// Interface name → properties.
pub type Interfaces = BTreeMap<String, Vardict>;

#[interface(name = "org.freedesktop.DBus.ObjectManager", introspection_docs = false)]
impl ObjectManager {
    #[zbus(out_args("objpath_interfaces_and_properties"))]
    async fn get_managed_objects(
        &self,
        #[zbus(object_server)] server: &ObjectServer,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<HashMap<OwnedObjectPath, Interfaces>> {
        let mut objects = HashMap::new();
        for object in self.face.engine.objects() {
            let interfaces = interfaces(&self.face, &self.tree, &object, server, connection).await?;
            objects.insert(paths::of(&object), interfaces);
        }
        Ok(objects)
    }

    #[zbus(signal)]
    pub async fn interfaces_added(
        emitter: &SignalEmitter<'_>,
        object_path: ObjectPath<'_>,
        interfaces_and_properties: Interfaces,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub async fn interfaces_removed(
        emitter: &SignalEmitter<'_>,
        object_path: ObjectPath<'_>,
        interfaces: Vec<String>,
    ) -> zbus::Result<()>;
}

/// The interfaces of an object with their properties.
pub async fn interfaces(
    face: &Arc<Face>,
    tree: &Arc<Tree>,
    object: &Object,
    server: &ObjectServer,
    connection: &Connection,
) -> fdo::Result<Interfaces> {
    let emitter = SignalEmitter::from_parts(connection.clone(), paths::of(object).into_inner());
    let mut found = Interfaces::new();
    macro_rules! add {
        ($interface:expr) => {{
            let interface = $interface;
            let properties = interface.get_all(server, connection, None, &emitter).await?;
            found.insert(name(&interface), properties.into_iter().collect());
        }};
    }
    match object {
        Object::Relay(it) => add!(relay::Relay::new(face, it)),
        Object::Endpoint(it) => {
            add!(endpoint::Endpoint::new(face, it));
            for shape in &it.shapes {
                match shape {
                    Shape::Stream => add!(stream::Stream::new(face, it)),
                    Shape::Listener => add!(listener::Listener::new(face, tree, it)),
                    Shape::Messages => add!(messages::Messages::new(face, it)),
                    Shape::Memory => add!(memory::Memory::new(face, it)),
                    Shape::Semaphore => add!(semaphore::Semaphore::new(face, it)),
                    Shape::Futex => add!(futex::Futex::new(face, it)),
                    Shape::Watch => add!(watch::Watch::new(face, it)),
                    Shape::Process => add!(process::Process::new(face, it)),
                    Shape::Mailbox => add!(mailbox::Mailbox::new(face, it)),
                    Shape::Filesystem => add!(filesystem::Filesystem::new(face, it)),
                }
            }
        }
    }
    Ok(found)
}

fn name<I: Interface>(_: &I) -> String {
    I::name().to_string()
}

/// The names of the interfaces of an object.
pub fn interface_names(object: &Object) -> Vec<String> {
    let name = |shape: &Shape| match shape {
        Shape::Stream => stream::Stream::name(),
        Shape::Listener => listener::Listener::name(),
        Shape::Messages => messages::Messages::name(),
        Shape::Memory => memory::Memory::name(),
        Shape::Semaphore => semaphore::Semaphore::name(),
        Shape::Futex => futex::Futex::name(),
        Shape::Watch => watch::Watch::name(),
        Shape::Process => process::Process::name(),
        Shape::Mailbox => mailbox::Mailbox::name(),
        Shape::Filesystem => filesystem::Filesystem::name(),
    };
    match object {
        Object::Relay(_) => vec![relay::Relay::name().to_string()],
        Object::Endpoint(it) => {
            let mut names = vec![endpoint::Endpoint::name().to_string()];
            names.extend(it.shapes.iter().map(|shape| name(shape).to_string()));
            names
        }
    }
}
