//! `org.example.IPC.Filesystem`: files that are published in a directory.

use std::sync::Arc;

use ipc_engine::events::Happening;
use ipc_kernel::Error;
use serde_bytes::ByteBuf;
use zbus::{ObjectPath, interface, message::Header, object_server::SignalEmitter};

use crate::{
    callee::Method,
    errors::Result,
    interfaces::served,
    paths,
    property::Property,
    variants::{Given, dict},
};

served!(Filesystem);

/// An event that was kept: number, time in microseconds since the epoch, `read` or `written`, name of the file,
/// pid of the reader (else 0), bytes that were written.
type Kept = (u64, u64, String, String, u32, ByteBuf);

#[interface(name = "org.example.IPC.Filesystem")]
impl Filesystem {
    /// Publishes a file with this content, which the service holds: whoever may read the file reads it, and whoever
    /// writes changes it. Directories in the name (sound/volume) are made. Content that was published under the
    /// name is replaced. At most 1 MiB (payload) at once. Errors: InvalidArgument (the name), Exists (something
    /// else has the name), TooLarge, LimitExceeded (size and files of the mount).
    async fn publish(&self, name: &str, data: &[u8], #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.publish(&self.endpoint, name, data).await?)
    }

    /// Publishes text, as UTF-8 without a terminating zero; a newline at its end is up to the caller.
    async fn publish_text(&self, name: &str, text: &str, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.publish(&self.endpoint, name, text.as_bytes()).await?)
    }

    /// Publishes an endpoint, until it is closed. Streams and messages are taken by reading and sent by writing,
    /// one message a read(2) and a write(2); memory has its bytes, semaphores and futexes their value as text,
    /// watches, processes and mailboxes their events as lines. So has the node of netlink, /org/example/IPC/netlink, which
    /// is no endpoint, what the kernel tells everybody. Errors: InvalidArgument, NoSuchEndpoint, Exists,
    /// NotSupported (listening sockets and file systems), LimitExceeded.
    async fn publish_endpoint(
        &self,
        name: &str,
        endpoint: ObjectPath<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let _call = self.face.call(&header)?;
        let engine = &self.face.engine;
        if endpoint.as_str() == paths::NETLINK {
            if !self.face.hears_the_herald() {
                let text = "a user's worker does not hear what the kernel tells everybody; use a session bus";
                return Err(Error::not_supported(text).into());
            }
            return Ok(engine.publish_herald(&self.endpoint, name, self.face.herald()?)?);
        }
        let target = paths::find_endpoint(engine, &endpoint)?;
        Ok(engine.publish_endpoint(&self.endpoint, name, &target)?)
    }

    /// Publishes a property of any service but this one: reading the file gets it, as text and a newline, and writing
    /// sets it. poll(2) wakes when PropertiesChanged tells of it, and when the service comes or goes. bus is session,
    /// system or the address of a unix socket, as in the mechanism dbus. Numbers, booleans (true, false) and strings
    /// are written as they are read; a property of any other type is only read. What the service refuses is an error
    /// of read(2) and write(2): EACCES, ENOENT, EINVAL, EOPNOTSUPP, ENOSPC (LimitsExceeded), else EIO, as when it does
    /// not answer before the deadline of the mount; EPIPE when the bus has gone. Errors: InvalidArgument, Exists,
    /// LimitExceeded, NotFound and Unavailable (the bus cannot be reached).
    // D-Bus has no named arguments: each is one.
    #[allow(clippy::too_many_arguments)]
    async fn publish_property(
        &self,
        name: &str,
        bus: &str,
        service: &str,
        object: ObjectPath<'_>,
        interface: &str,
        property: &str,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let _call = self.face.call(&header)?;
        let value = Property::new(bus, service, object.as_str(), interface, property).await?;
        Ok(self.face.engine.publish_remote(&self.endpoint, name, Arc::new(value))?)
    }

    /// Publishes a method of any service but this one: each write(2) calls it, and returns when it has answered; then the
    /// answer is read, from the same open file (exec 3<>FILE; echo … >&3; cat <&3). Text is the one argument of a method
    /// that takes a string, and bytes of one that takes an array of bytes; the arguments of every other are a JSON array,
    /// as in the mechanism dbus, and nothing but a newline where it has none. The answer has the same form, and a newline.
    /// Options: signature (s, the types of the arguments; else the object's introspection data says them), body (s, plain or
    /// json), template (s, with signature: arguments with {message} for the text that is written), flags (as, no-auto-start
    /// and allow-interactive-authorization). A call that fails is an error of write(2), as with PublishProperty, and its
    /// name and text can be read. bus, Errors: as with PublishProperty; NotSupported (methods of the bus that are about
    /// connections, such as RequestName).
    #[allow(clippy::too_many_arguments)]
    async fn publish_call(
        &self,
        name: &str,
        bus: &str,
        service: &str,
        object: ObjectPath<'_>,
        interface: &str,
        method: &str,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let _call = self.face.call(&header)?;
        let callee = Method::new(bus, service, object.as_str(), interface, method, &dict(options)?).await?;
        Ok(self.face.engine.publish_callee(&self.endpoint, name, Arc::new(callee))?)
    }

    /// Removes a file, or a directory with all that is in it; directories that are empty then go, too. Who has a
    /// file open keeps what he has open. Error: NotFound.
    async fn unpublish(&self, name: &str, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.unpublish(&self.endpoint, name).await?)
    }

    /// What Read and Written have said since number seq, as far as it is kept (1,024 events and 1 MiB): number of
    /// the event, time in microseconds since the epoch, read or written, name of the file, pid of the reader (else
    /// 0), bytes that were written; and how many are no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let kept = events.into_iter().filter_map(|event| match event.happening {
            Happening::Read { name, pid } => {
                Some((event.seq, event.at, "read".to_owned(), name, pid, ByteBuf::new()))
            }
            Happening::Written { name, data } => {
                Some((event.seq, event.at, "written".to_owned(), name, 0, ByteBuf::from(data)))
            }
            _ => None,
        });
        Ok((kept.collect(), lost))
    }

    /// A process reads a file: the first time since it has opened it.
    #[zbus(signal)]
    pub async fn read(emitter: &SignalEmitter<'_>, name: &str, pid: u32) -> zbus::Result<()>;

    /// Bytes were written to a file, in one write(2); more than 64 KiB (signal-payload) come as several signals.
    #[zbus(signal)]
    pub async fn written(emitter: &SignalEmitter<'_>, name: &str, data: &[u8]) -> zbus::Result<()>;

    /// The directory. A byte that is not UTF-8 is replaced; the property Address of the endpoint has it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn mount_point(&self) -> Result<String> {
        Ok(self.endpoint.filesystem()?.mount_point().to_string_lossy().into_owned())
    }
}
