//! `org.example.IPC`, the manager: the three verbs.

use std::sync::Arc;

use ipc_engine::{Object, declared::Declared};
use zbus::{ObjectPath, OwnedFd, OwnedObjectPath, interface, message::Header, object_server::SignalEmitter};

use crate::{
    errors::Result,
    face::Face,
    paths,
    tree::Tree,
    variants::{Given, Vardict, dict, vardict},
};

pub struct Manager {
    face: Arc<Face>,
    tree: Arc<Tree>,
}

impl Manager {
    pub fn new(face: &Arc<Face>, tree: &Arc<Tree>) -> Self {
        Self { face: face.clone(), tree: tree.clone() }
    }

    async fn enter(&self, object: Object) -> Result<OwnedObjectPath> {
        let path = paths::of(&object);
        self.tree.enter(&object).await?;
        Ok(path)
    }
}

#[interface(name = "org.example.IPC")]
impl Manager {
    /// Makes the kernel object that the address names, and an endpoint for it. Never opens what
    /// exists: that is org.example.IPC.Error.Exists, unless the option or-attach is true. Other
    /// errors: InvalidAddress, NoSuchMechanism, InvalidArgument, PermissionDenied, LimitExceeded
    /// (endpoints), Unavailable, and those of the mechanism's page.
    #[zbus(out_args("endpoint"))]
    async fn create(
        &self,
        address: &str,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let call = self.face.call(&header)?;
        let endpoint = self.face.engine.create(&call, address, dict(options)?).await?;
        self.enter(Object::Endpoint(endpoint)).await
    }

    /// Makes an endpoint for something that exists. Never creates: what does not exist is
    /// org.example.IPC.Error.NotFound.
    #[zbus(out_args("endpoint"))]
    async fn attach(
        &self,
        address: &str,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let call = self.face.call(&header)?;
        let endpoint = self.face.engine.attach(&call, address, dict(options)?).await?;
        self.enter(Object::Endpoint(endpoint)).await
    }

    /// Makes an endpoint for a file descriptor that the caller hands over: a pipe, FIFO, socket,
    /// memfd or file. The service finds out what it is.
    #[zbus(out_args("endpoint"))]
    async fn adopt(
        &self,
        fd: OwnedFd,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let call = self.face.call(&header)?;
        let endpoint = self.face.engine.adopt(&call, fd.into(), dict(options)?).await?;
        self.enter(Object::Endpoint(endpoint)).await
    }

    /// Moves everything that comes out of source into sink, until the end of the source, an error
    /// or Stop. Options: both (b), framing (s: none, line, length, fixed, json, base64), tee (ao), and
    /// those that filter, bound and convert what goes; see the reference. Errors: NoSuchEndpoint,
    /// InvalidArgument and NotSupported (the two do not fit; the text says what would), Busy (one
    /// of them is relayed already, or the source delivers), LimitExceeded (relays).
    #[zbus(out_args("relay"))]
    async fn relay(
        &self,
        source: ObjectPath<'_>,
        sink: ObjectPath<'_>,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let call = self.face.call(&header)?;
        let engine = &self.face.engine;
        let source = paths::find_endpoint(engine, &source)?;
        let sink = paths::find_endpoint(engine, &sink)?;
        let options = dict(options)?;
        let tee = paths::find_tee(engine, &options)?;
        let relay = engine.start_tee(&call, source, sink, tee, options).await?;
        self.enter(Object::Relay(relay)).await
    }

    /// Opens a private connection: one end of a socket on which the same object tree is served
    /// peer-to-peer, without the bus in between. The client authenticates as on a bus, within
    /// 10 s, but does not say Hello. Error: LimitExceeded (connections).
    #[zbus(out_args("socket"))]
    async fn connect(&self, #[zbus(header)] header: Header<'_>) -> Result<OwnedFd> {
        let _call = self.face.call(&header)?;
        let socket = self.tree.connect()?;
        Ok(socket.into())
    }

    /// Asks for the signals of all objects. On a session or private bus they go to everybody
    /// anyway; the call is accepted so that the same program works on the system bus.
    fn subscribe(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        self.face.subscribe(self.face.client_name(&header)?, None)
    }

    /// Takes Subscribe() back.
    fn unsubscribe(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        self.face.unsubscribe(self.face.client_name(&header)?, None);
        Ok(())
    }

    /// The process that held the caller's objects on the system bus has ended, and they with it, for
    /// this reason. Sent to every connection that it served, by the part of the service that watches
    /// over it; the next call starts another one. On other buses the service itself would have ended,
    /// and the bus says so.
    #[zbus(signal)]
    pub async fn lost(emitter: &SignalEmitter<'_>, reason: &str) -> zbus::Result<()>;

    /// The version of the service.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    /// The mechanisms that the service knows; each has a node of its name below this object.
    #[zbus(property(emits_changed_signal = "const"))]
    fn mechanisms(&self) -> Vec<&str> {
        self.face.engine.mechanisms.iter().map(|mechanism| mechanism.name).collect()
    }

    /// The limits of the service, under the keys of its configuration file.
    #[zbus(property(emits_changed_signal = "const"))]
    fn limits(&self) -> Result<Vardict> {
        vardict(self.face.engine.limits.to_dict())
    }

    /// What files in the directories relays.d declare, a dictionary each: file (s), name (s: endpoint.NAME, relay.NAME;
    /// empty for a file that cannot be used), state (s: starting, running, waiting, retrying, stopped by a client,
    /// finished, invalid), why (s), object (s: its path, while there is one). Empty on the system bus; see relays.d.
    #[zbus(property(emits_changed_signal = "false"))]
    fn declared(&self) -> Result<Vec<Vardict>> {
        let row = |row: Declared| {
            let object = row.object.as_ref().map(|object| paths::of(object).to_string()).unwrap_or_default();
            vardict(ipc_kernel::dict! {
                "file" => row.file,
                "name" => row.name,
                "state" => row.state,
                "why" => row.why,
                "object" => object,
            })
        };
        self.face.engine.declared.rows().into_iter().map(row).collect()
    }

    /// What is in use of the limits.
    #[zbus(property(emits_changed_signal = "false"))]
    fn usage(&self) -> Result<Vardict> {
        vardict(self.face.engine.usage())
    }
}
