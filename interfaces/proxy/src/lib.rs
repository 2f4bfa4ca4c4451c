//! Client proxies for `org.example.IPC`, generated from the interface files beside this crate.
//!
//! ```no_run
//! # async fn example() -> zbus::Result<()> {
//! use std::collections::HashMap;
//! use ipc_proxy::{ManagerProxy, StreamProxy};
//!
//! let connection = zbus::Connection::session().await?;
//! let manager = ManagerProxy::new(&connection).await?;
//! let pipe = manager.create("pipe:capacity=64K", HashMap::new()).await?;
//! let stream = StreamProxy::new(&connection, pipe).await?;
//! stream.write_text("hello", 1000).await?;
//! assert_eq!(stream.read_text(5, 1000).await?, "hello");
//! # Ok(())
//! # }
//! ```
//!
//! Signals are taken from the current owner of the name only: zbus asks the bus who owns it, follows
//! the changes, and drops what other connections send from the same paths. On a private connection,
//! from `Connect()`, there is but one other side.
//!
//! Arguments `timeout_ms` are milliseconds that the service waits; the errors are named in
//! `docs/reference/errors.md` and come as [`zbus::Error::MethodError`].

#![forbid(unsafe_code)]

// Inside a macro, where rustfmt does not look: the generator lays them out the same on every machine.
macro_rules! interfaces {
    ($($module:ident: $proxy:ident),* $(,)?) => {$(
        #[allow(clippy::type_complexity, clippy::too_many_arguments)]
        pub mod $module;
        pub use $module::$proxy;
    )*};
}

interfaces! {
    manager: ManagerProxy,
    mechanism: MechanismProxy,
    endpoint: EndpointProxy,
    stream: StreamProxy,
    listener: ListenerProxy,
    messages: MessagesProxy,
    memory: MemoryProxy,
    semaphore: SemaphoreProxy,
    watch: WatchProxy,
    process: ProcessProxy,
    mailbox: MailboxProxy,
    netlink: NetlinkProxy,
    filesystem: FilesystemProxy,
    relay: RelayProxy,
}
