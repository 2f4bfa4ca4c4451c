//! Who is on the buses that are known here: the session's, the system's, and the one that the service is
//! on. What busctl(1) lists: every name, its owner, and his process.

use std::{collections::BTreeSet, sync::OnceLock};

use futures_util::{StreamExt, stream};
use ipc_kernel::{
    Address, Error, Kind, Result, Value, listing::Listing, mechanism::Column, proc, unix::peers,
};
use tokio::{runtime::Handle, time::timeout};
use zbus::Connection;

use super::{
    bus::Bus,
    link::{PATIENCE, ask, connect, failed},
};

pub const COLUMNS: &[Column] = &[
    Column {
        key: "bus",
        kind: "s",
        summary: "session, system, or the address of the bus that the service is on",
    },
    Column { key: "name", kind: "s", summary: "Well-known or unique name" },
    Column { key: "address", kind: "s", summary: "Address for Attach, which watches the name" },
    Column { key: "owner", kind: "s", summary: "Unique name of the owner, where there is one" },
    Column { key: "activatable", kind: "b", summary: "Whether the bus can start the service" },
    Column { key: "pid", kind: "u", summary: "Process of the owner, where the bus tells" },
    Column { key: "command", kind: "s", summary: "Its command name" },
    Column { key: "uid", kind: "u", summary: "User id of the owner, where the bus tells" },
];

/// Questions that wait for the bus's answer at once.
const AT_ONCE: usize = 32;

/// The address of the bus that the service is on, where that is neither the session's nor the system's.
static SERVED: OnceLock<String> = OnceLock::new();

pub fn set_served(address: &str) {
    // A process serves on one bus.
    let _ = SERVED.set(address.to_owned());
}

pub fn list() -> Result<Listing> {
    if peers::any() {
        return Err(Error::new(
            Kind::Unavailable,
            "buses are not listed here, as a process of the service would be taken for the service on them; busctl list \
             shows what there is, and so does this service on a session bus",
        ));
    }
    let runtime = Handle::try_current()
        .map_err(|_| Error::new(Kind::Unavailable, "a connection to a bus needs the service's runtime"))?;
    let (mut listing, mut listed, mut missing) = (Listing::default(), BTreeSet::new(), Vec::new());
    for label in ["session", "system"].into_iter().chain(SERVED.get().map(String::as_str)) {
        let asking = async { timeout(PATIENCE, rows(label, &mut listed, &mut listing)).await };
        match runtime.block_on(asking) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => missing.push(error.text),
            Err(_) => {
                missing.push(format!("the bus {label} has not answered within {} s", PATIENCE.as_secs()))
            }
        }
    }
    match listing.is_empty() {
        false => Ok(listing),
        true => Err(Error::new(Kind::Unavailable, format!("no bus can be asked: {}", missing.join("; ")))),
    }
}

/// The rows of a bus that was not listed under another label.
async fn rows(label: &str, listed: &mut BTreeSet<String>, listing: &mut Listing) -> Result<()> {
    let bus = Bus::find(label)?;
    let stream = connect(&bus, bus.connect()?).await?;
    let connection = Connection::from(&stream);
    // What comes beside the answers is of no interest, and must not fill a queue.
    drop(stream);
    let attempt = format!("list the names on the bus {label}");
    let id: String = ask(&connection, "GetId", &()).await.map_err(|error| failed(&attempt, error))?;
    if !listed.insert(id) {
        return Ok(());
    }
    let names: Vec<String> =
        ask(&connection, "ListNames", &()).await.map_err(|error| failed(&attempt, error))?;
    let activatable: Vec<String> =
        ask(&connection, "ListActivatableNames", &()).await.map_err(|error| failed(&attempt, error))?;
    let own = connection.unique_name().map(|name| name.to_string()).unwrap_or_default();
    let mut all: BTreeSet<&String> = names.iter().chain(&activatable).collect();
    all.remove(&own);
    let found: Vec<_> = stream::iter(all)
        .map(|name| row(&connection, label, name, activatable.contains(name)))
        .buffered(AT_ONCE)
        .collect()
        .await;
    found.into_iter().for_each(|row| listing.push(row));
    Ok(())
}

async fn row(
    connection: &Connection,
    label: &str,
    name: &str,
    activatable: bool,
) -> Vec<(&'static str, Value)> {
    let address = Address::new("dbus").with("bus", label).with("watch-name", name).to_string();
    let mut row: Vec<(&'static str, Value)> = vec![
        ("bus", label.into()),
        ("name", name.into()),
        ("address", address.into()),
        ("activatable", activatable.into()),
    ];
    // Whoever has left meanwhile, or has never been there, has no owner.
    let Ok(owner) = ask::<String, _>(connection, "GetNameOwner", &(name,)).await else { return row };
    if let Ok(pid) = ask::<u32, _>(connection, "GetConnectionUnixProcessID", &(owner.as_str(),)).await {
        row.push(("pid", pid.into()));
        row.push(("command", proc::command(pid).into()));
    }
    if let Ok(uid) = ask::<u32, _>(connection, "GetConnectionUnixUser", &(owner.as_str(),)).await {
        row.push(("uid", uid.into()));
    }
    row.push(("owner", owner.into()));
    row
}
