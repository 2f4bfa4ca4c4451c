//! `org.example.IPC.Netlink`, on the node of netlink: what the kernel tells everybody, as signals to
//! everybody, and the state that they change.
//!
//! The interface has no properties: on the system bus its calls go to the herald, but those of
//! `org.freedesktop.DBus.Properties` to the caller's own worker, which has others to tell.

use std::{collections::BTreeMap, sync::Arc};

use ipc_engine::{
    Call,
    events::{Kept, Numbered},
    herald::Herald,
    since::Past,
};
use ipc_kernel::{Error, Kind, listing::Listing, netlink};
use serde::Serialize;
use zbus::{
    DynamicType, OwnedVariant, Variant, interface,
    message::Header,
    object_server::SignalEmitter,
    wire::{self, StructureBuilder, serialized::Context},
};

use crate::{
    errors::Result,
    face::Face,
    herald::told,
    rows::Rows,
    variants::{Given, Vardict, dict, text, vardict},
};

pub struct Netlink {
    face: Arc<Face>,
}

impl Netlink {
    pub fn new(face: &Arc<Face>) -> Self {
        Self { face: face.clone() }
    }

    fn admit(&self, header: &Header<'_>) -> Result<(Call, Arc<Herald>)> {
        Ok((self.face.call(header)?, self.face.herald()?))
    }

    /// A snapshot as it goes on the wire, if one reply may have so much.
    fn reply<T, R: Serialize + zbus::Type>(
        &self,
        (seq, items): (u64, Vec<T>),
        row: impl Fn(T) -> Result<R>,
    ) -> Result<(u64, Vec<R>)> {
        let reply = (seq, items.into_iter().map(row).collect::<Result<Vec<_>>>()?);
        let (longest, limit) = self.face.longest_list();
        let size = size(&reply)?;
        if size > longest as usize {
            let text = format!(
                "the list has {} rows of {size} bytes in all, more than the {longest} bytes ({limit}) that one \
                 reply may have; ask through Connect()",
                reply.1.len()
            );
            return Err(Error::new(Kind::TooLarge, text).into());
        }
        Ok(reply)
    }

    /// Events as Since tells them: the newest, as many as one reply may have.
    fn past(&self, (mut events, mut lost): Past<netlink::Event>) -> Result<(Vec<Told>, u64)> {
        let mut room = self.face.longest_list().0 as usize;
        let fits = |event: &&Numbered<netlink::Event>| {
            room.checked_sub(event.happening.bytes()).inspect(|rest| room = *rest).is_some()
        };
        let unfit = events.len() - events.iter().rev().take_while(fits).count();
        lost += unfit as u64;
        let mut kept = Vec::with_capacity(events.len() - unfit);
        for event in events.drain(unfit..) {
            let (name, fields) = told(&event.happening)?;
            let mut arguments = StructureBuilder::new();
            fields.into_iter().for_each(|field| arguments.push_value(field));
            let arguments = OwnedVariant::try_from(Variant::from(arguments.build()?))?;
            kept.push((event.seq, event.at, name, arguments));
        }
        Ok((kept, lost))
    }
}

fn size<T: Serialize + DynamicType>(value: &T) -> Result<usize> {
    Ok(wire::serialized_size(Context::new(wire::NATIVE_ENDIAN, 0), value)?.size())
}

/// An event that was kept: number, time in microseconds since the epoch, name of the signal, its other
/// arguments.
type Told = (u64, u64, &'static str, OwnedVariant);

type Link = (i32, String, String, Vardict);
type Address = (i32, String, String, u8, Vardict);
type Route = (String, String, String, Vardict);
type Neighbour = (i32, String, String, String, Vardict);
type Rule = (u32, u32, Vardict);

#[interface(name = "org.example.IPC.Netlink")]
impl Netlink {
    /// The network interfaces: index, name, state (up, down, dormant, …), details. seq is the number
    /// of the last event that is in them: who receives signals goes on with the next one. Details:
    /// see the reference.
    #[zbus(out_args("seq", "links"))]
    async fn links(&self, #[zbus(header)] header: Header<'_>) -> Result<(u64, Vec<Link>)> {
        let (_call, herald) = self.admit(&header)?;
        let row = |it: netlink::Link| Ok((it.index, text(&it.name), text(&it.state), vardict(it.details)?));
        self.reply(herald.links().await?, row)
    }

    /// The addresses of all interfaces: index and name of the interface, address, length of its prefix,
    /// details.
    #[zbus(out_args("seq", "addresses"))]
    async fn addresses(&self, #[zbus(header)] header: Header<'_>) -> Result<(u64, Vec<Address>)> {
        let (_call, herald) = self.admit(&header)?;
        let row = |it: netlink::Address| {
            Ok((it.index, text(&it.interface), text(&it.address), it.prefix, vardict(it.details)?))
        };
        self.reply(herald.addresses().await?, row)
    }

    /// The routes of all tables: destination (address/prefix, or default), gateway and interface (empty:
    /// none, or several), details. Some may be in it whose events come after seq; told again, they change
    /// nothing. TooLarge: the reply would have more than 24 MiB (list), on the system bus 1 MiB (payload)
    /// except through Connect(). The same holds for the other lists.
    #[zbus(out_args("seq", "routes"))]
    async fn routes(&self, #[zbus(header)] header: Header<'_>) -> Result<(u64, Vec<Route>)> {
        let (_call, herald) = self.admit(&header)?;
        let row = |it: netlink::Route| {
            Ok((text(&it.destination), text(&it.gateway), text(&it.interface), vardict(it.details)?))
        };
        self.reply(herald.routes().await?, row)
    }

    /// What is known of the neighbours on the link (ARP, NDP): index and name of the interface, address,
    /// state (reachable, stale, failed, …), details.
    #[zbus(out_args("seq", "neighbours"))]
    async fn neighbours(&self, #[zbus(header)] header: Header<'_>) -> Result<(u64, Vec<Neighbour>)> {
        let (_call, herald) = self.admit(&header)?;
        let row = |it: netlink::Neighbour| {
            Ok((it.index, text(&it.interface), text(&it.address), text(&it.state), vardict(it.details)?))
        };
        self.reply(herald.neighbours().await?, row)
    }

    /// The rules by which a table of routes is chosen: priority, table, details.
    #[zbus(out_args("seq", "rules"))]
    async fn rules(&self, #[zbus(header)] header: Header<'_>) -> Result<(u64, Vec<Rule>)> {
        let (_call, herald) = self.admit(&header)?;
        let row = |it: netlink::Rule| Ok((it.priority, it.table, vardict(it.details)?));
        self.reply(herald.rules().await?, row)
    }

    /// The sockets of the network namespace that match the filter (sock_diag(7)): rows of family (s),
    /// and what the reference says. An empty filter lists all. TooLarge: as of Routes().
    #[zbus(out_args("sockets"))]
    async fn sockets(&self, filter: Given<'_>, #[zbus(header)] header: Header<'_>) -> Result<Rows> {
        let (_call, herald) = self.admit(&header)?;
        let sockets = Listing::from(herald.sockets(dict(filter)?).await?);
        let (longest, limit) = self.face.longest_list();
        Ok(Rows::new(&sockets, longest, limit)?)
    }

    /// What signals have told since number seq (0: all), as far as it is kept (events-kept, 1 MiB, and what
    /// fits into a reply): number, time in microseconds since the epoch, name of the signal, its other
    /// arguments as a structure; and how many are no longer kept. Not 0 if seq is a number from before a
    /// restart; then only new snapshots say what has become of the rest.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Told>, u64)> {
        let (_call, herald) = self.admit(&header)?;
        self.past(herald.since(seq))
    }

    /// The same as soon as there is something after seq: for clients that hear no signals. Each call goes on with
    /// the last number of the one before, or that of a list. timeout_ms: 0 does not wait (Busy), 4294967295 is the
    /// default of 20 s, at most 300 s. Errors: Busy, Timeout (nothing was told), Cancelled, LimitExceeded (waits).
    #[zbus(out_args("events", "lost"))]
    async fn wait_since(
        &self,
        seq: u64,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Vec<Told>, u64)> {
        let (call, herald) = self.admit(&header)?;
        self.past(self.face.engine.wait_told(&call, &herald, seq, timeout_ms).await?)
    }

    /// Asks for ProcessEvent signals, which come to everybody as long as somebody wants them. It ends with
    /// as many calls of UnwatchProcesses(), or when the caller leaves the bus; after Overflow of the source
    /// restart, it is to be asked for again.
    async fn watch_processes(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let (call, herald) = self.admit(&header)?;
        Ok(herald.watch_processes(&call).await?)
    }

    /// Takes one WatchProcesses() of the caller's back.
    fn unwatch_processes(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let (call, herald) = self.admit(&header)?;
        herald.unwatch_processes(&call.client.name);
        Ok(())
    }

    /// The sources of events that cannot be heard on this machine, and why: route, uevent, udev, process,
    /// or the name of a family of generic netlink.
    #[zbus(out_args("sources"))]
    async fn unavailable(&self, #[zbus(header)] header: Header<'_>) -> Result<BTreeMap<String, String>> {
        let (_call, herald) = self.admit(&header)?;
        Ok(herald.unavailable().await)
    }

    /// A network interface is new, or something about it is: then details have old-state, old-name, … for what
    /// has changed.
    #[zbus(signal)]
    pub async fn link_changed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        index: i32,
        interface: &str,
        state: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// A network interface has gone.
    #[zbus(signal)]
    pub async fn link_removed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        index: i32,
        interface: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// An interface has an address, or something about it is new.
    #[zbus(signal)]
    pub async fn address_added(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        index: i32,
        interface: &str,
        address: &str,
        prefix: u8,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// An interface no longer has an address.
    #[zbus(signal)]
    pub async fn address_removed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        index: i32,
        interface: &str,
        address: &str,
        prefix: u8,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// There is a route. The kernel does not tell of all routes that go with an interface.
    #[zbus(signal)]
    pub async fn route_added(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        destination: &str,
        gateway: &str,
        interface: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// A route has gone.
    #[zbus(signal)]
    pub async fn route_removed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        destination: &str,
        gateway: &str,
        interface: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// A neighbour is new, or its state or its link-layer address is.
    #[zbus(signal)]
    pub async fn neighbour_changed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        index: i32,
        interface: &str,
        address: &str,
        state: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// A neighbour is no longer known.
    #[zbus(signal)]
    pub async fn neighbour_removed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        index: i32,
        interface: &str,
        address: &str,
        state: &str,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// There is a rule.
    #[zbus(signal)]
    pub async fn rule_added(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        priority: u32,
        table: u32,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// A rule has gone.
    #[zbus(signal)]
    pub async fn rule_removed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        priority: u32,
        table: u32,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// A device: action (add, remove, change, bind, …), path below /sys, subsystem, and all that the event
    /// says. source is kernel, or udev for what udevd has made of it.
    #[zbus(signal)]
    pub async fn device_event(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        action: &str,
        devpath: &str,
        subsystem: &str,
        source: &str,
        properties: BTreeMap<String, String>,
    ) -> zbus::Result<()>;

    /// A process: fork, exec, exit, uid, gid, sid, ptrace, comm or coredump, with process and thread id. Only
    /// while somebody watches: WatchProcesses(). Since Linux 6.6 the kernel tells everybody.
    #[zbus(signal)]
    pub async fn process_event(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        event: &str,
        pid: i32,
        tid: i32,
        details: Vardict,
    ) -> zbus::Result<()>;

    /// A message of a family of generic netlink, such as acpi_event (lid, power button) or thermal.
    #[zbus(signal)]
    pub async fn generic_event(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        family: &str,
        group: &str,
        command: &str,
        attributes: Vardict,
    ) -> zbus::Result<()>;

    /// Events of this source were lost. Of links and addresses, what has changed meanwhile follows; of the
    /// others a new snapshot tells. Source restart: the service listens anew, and whoever had a snapshot takes
    /// a new one.
    #[zbus(signal)]
    pub async fn overflow(emitter: &SignalEmitter<'_>, seq: u64, source: &str) -> zbus::Result<()>;
}
