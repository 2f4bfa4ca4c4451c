//! `org.example.IPC.Endpoint`, what every endpoint can do.

use ipc_engine::endpoint::{CLOSED, REMOVED};
use ipc_kernel::{Address, Error, Parameter, Parameters, Type, mechanism::Permissions};
use zbus::{OwnedFd, interface, message::Header, object_server::SignalEmitter};

use crate::{
    errors::Result,
    interfaces::served,
    variants::{Given, Vardict, dict, vardict},
};

served!(Endpoint);

/// The keys of SetPermissions.
static PERMISSIONS: &[Parameter] = &[
    Parameter::new("mode", Type::Mode, "Permission bits"),
    Parameter::new("uid", Type::U32 { min: 0, max: u32::MAX - 1 }, "User id of the owner"),
    Parameter::new("gid", Type::U32 { min: 0, max: u32::MAX - 1 }, "Group id"),
    Parameter::new(
        "qbytes",
        Type::Size { min: 0, max: u64::MAX },
        "Bytes that a System V message queue may hold",
    ),
];

#[interface(name = "org.example.IPC.Endpoint")]
impl Endpoint {
    /// The kernel's own file descriptor, so that data can flow with no service in between. The
    /// options are the mechanism's (end, access, …; see Describe); NotSupported where the kernel
    /// has no file descriptor for it.
    #[zbus(out_args("fd"))]
    async fn open(&self, options: Given<'_>, #[zbus(header)] header: Header<'_>) -> Result<OwnedFd> {
        let _call = self.face.call(&header)?;
        let table = self.endpoint.mechanism.open_parameters;
        let options = Parameters::check(table, &[], &Address::new("Open"), &dict(options)?)?;
        let engine = &self.face.engine;
        Ok(engine.on_kernel(&self.endpoint, move |kernel| kernel.open(&options)).await?.into())
    }

    /// Live state from the kernel; the keys are those of the mechanism's reference page.
    #[zbus(out_args("state"))]
    fn inspect(&self, #[zbus(header)] header: Header<'_>) -> Result<Vardict> {
        let _call = self.face.call(&header)?;
        vardict(self.endpoint.inspect()?)
    }

    /// Changes the kernel object's permissions: mode (u), uid (u), gid (u), of a System V queue also
    /// qbytes (t); what is not given stays as it is.
    async fn set_permissions(
        &self,
        permissions: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let _call = self.face.call(&header)?;
        let given =
            Parameters::check(PERMISSIONS, &[], &Address::new("SetPermissions"), &dict(permissions)?)?;
        let permissions = Permissions {
            mode: given.u32("mode"),
            uid: given.u32("uid"),
            gid: given.u32("gid"),
            qbytes: given.size("qbytes"),
        };
        if permissions == Permissions::default() {
            return Err(Error::invalid(
                "nothing to change: give mode, uid or gid (or qbytes of a System V queue)",
            )
            .into());
        }
        let engine = &self.face.engine;
        Ok(engine.on_kernel(&self.endpoint, move |kernel| kernel.set_permissions(permissions)).await?)
    }

    /// Closes the endpoint. The kernel object stays, unless remove-on-close says otherwise or
    /// nothing else holds it.
    fn close(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        self.face.engine.close(&self.endpoint, CLOSED);
        Ok(())
    }

    /// Removes the kernel object's name, and closes the endpoint.
    async fn remove(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        self.face.engine.on_kernel(&self.endpoint, |kernel| kernel.remove()).await?;
        self.face.engine.close(&self.endpoint, REMOVED);
        Ok(())
    }

    /// Asks for the signals of this endpoint; see Subscribe() of the manager.
    fn subscribe(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        self.face.subscribe(self.face.client_name(&header)?, Some(&self.endpoint))
    }

    /// Takes Subscribe() back.
    fn unsubscribe(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        self.face.unsubscribe(self.face.client_name(&header)?, Some(&self.endpoint));
        Ok(())
    }

    /// The endpoint was closed: by Close or Remove ("closed", "removed"), by the end of its
    /// lifetime, because the kernel object has gone, or at the service's end ("shutdown").
    #[zbus(signal)]
    pub async fn closed(emitter: &SignalEmitter<'_>, reason: &str) -> zbus::Result<()>;

    /// The mechanism's short name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn mechanism(&self) -> &str {
        self.endpoint.mechanism.name
    }

    /// The canonical address, accepted by Attach.
    #[zbus(property(emits_changed_signal = "const"))]
    fn address(&self) -> &str {
        &self.endpoint.address
    }

    /// The shapes that it has; each is an interface of this object.
    #[zbus(property(emits_changed_signal = "const"))]
    fn shapes(&self) -> Vec<&str> {
        self.endpoint.shapes.iter().map(|shape| shape.name()).collect()
    }

    /// service, client or pid:N; see the option lifetime.
    #[zbus(property(emits_changed_signal = "const"))]
    fn lifetime(&self) -> String {
        self.endpoint.lifetime.to_string()
    }

    /// The connection that made it: a unique bus name, or peer:N for a private connection.
    #[zbus(property(emits_changed_signal = "const"))]
    fn creator(&self) -> &str {
        &self.endpoint.creator
    }

    /// When it was made, in microseconds since the epoch.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_at(&self) -> u64 {
        self.endpoint.created_at
    }
}
