//! The system bus: which process is what.
//!
//! As root, `ipcd --bus system` is the spawner and starts everything else; under systemd there is
//! a unit for the spawner and one for the front. What calls [`ipc_spawner::supervise`] or
//! [`ipc_spawner::serve`] goes on in each process that the spawner forks, and what that one has
//! become is said by what they return. No thread and no runtime exists before that.
//!
//! The configuration is read once, by root; the forks have it. Their environment is empty, as that
//! of a worker can be read by its user; what matters to the front is put back there.

use std::{
    ffi::OsStr,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    pin::Pin,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use ipc_bus::{mounts, worker};
use ipc_engine::{Engine, Limits};
use ipc_front::{FdStore, Front, NoStore, Reconnect, Start};
use ipc_kernel::{
    Address,
    fuse::detached,
    signal::address,
    unix::{name::Name, peers},
};
use ipc_spawner::{
    Carried, FrontStart, MounterStart, Role, WorkerStart,
    protocol::Confinement,
    sandbox,
    sandbox::{Inmate, Violation},
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sd_notify::NotifyState;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};
use tracing::level_filters::LevelFilter;

use crate::{
    arguments::{Arguments, BusChoice, Unit},
    config::{self, Config},
    logs, notify, raise_file_limit,
};

/// The part that this process was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The spawner, which starts the front too.
    Whole,
    Unit(Unit),
}

/// Where the spawner's unit listens (ipcd-spawner.socket).
const SPAWNER: &str = "/run/ipcd/spawner";

/// Services that tell their clients apart by process: a worker would speak for this one there.
const PEERS: &[&str] = &["/run/systemd", "/var/run/systemd", "/run/dbus", "/var/run/dbus", "/run/ipcd"];

/// Threads of a worker that may be busy with slow file systems.
const SLOW_CALLS: usize = 4;

/// None: it is about another bus, or about none.
pub fn part(arguments: &Arguments) -> Option<Part> {
    match (arguments.unit, &arguments.bus) {
        _ if arguments.introspect.is_some() => None,
        (Some(unit), _) => Some(Part::Unit(unit)),
        (None, Some(BusChoice::System)) => Some(Part::Whole),
        _ => None,
    }
}

pub fn run(part: Part, arguments: Arguments) -> Result<()> {
    if arguments.relays.is_some() || arguments.check_relays {
        bail!(
            "endpoints and relays are declared for a user, not for the system bus, where nobody has called yet: in his \
             ~/.config/ipcd/relays.d, or in a unit like /usr/share/doc/ipcd/examples/ipcd-relays@.service"
        );
    }
    if arguments.check_config {
        config::load_system(arguments.config.as_deref())?;
        println!("the configuration is valid");
        return Ok(());
    }
    if part == Part::Unit(Unit::Front) {
        let config = config::load_system(arguments.config.as_deref())?;
        return front_unit(config, arguments.log_level);
    }
    // Before anything is read: it starts anew.
    ipc_spawner::with_empty_environment(std::env::args_os())?;
    let mut carried = Carried::from_arguments(arguments.carried)?;
    let config = config::load_system(arguments.config.as_deref())?;
    let user = &arguments.front_user;
    let violation = if arguments.sandbox_kills { Violation::Kill } else { Violation::Errno };
    let role = match part {
        Part::Whole => ipc_spawner::supervise(user)?,
        Part::Unit(_) => ipc_spawner::serve(listener(&mut carried)?, user)?,
    };
    match role {
        Role::Ended => Ok(()),
        Role::Worker(start) => {
            logs::start_with(arguments.log_level, carried.get(logs::JOURNAL_STREAM).is_some());
            serve_caller(start, &carried, config, violation)
                .inspect_err(|error| tracing::error!("a worker has to end: {error:#}"))
        }
        Role::Herald(start) => {
            logs::start_with(arguments.log_level, carried.get(logs::JOURNAL_STREAM).is_some());
            serve_everybody(start, config, violation)
                .inspect_err(|error| tracing::error!("the herald has to end: {error:#}"))
        }
        Role::Mounter(MounterStart { worker, device }) => {
            sandbox::enter(Inmate::Mounter, violation)?;
            detached::answer(worker, device).map_err(|error| anyhow!("{error}"))
        }
        Role::Front(FrontStart { spawner, workers }) => {
            carried.put_back()?;
            let fd_store = Box::new(NoStore);
            let start =
                Start { spawner, reconnect: None, workers, limits: config.front, address: None, fd_store };
            serve_bus(start, arguments.log_level)
        }
    }
}

/// The socket that systemd listens on for the spawner.
fn listener(carried: &mut Carried) -> Result<OwnedFd> {
    let mut passed = carried.take_listen_fds()?;
    match (passed.pop(), passed.is_empty()) {
        (Some((_, listener)), true) => Ok(listener),
        _ => bail!(
            "the spawner needs the one socket of its unit (LISTEN_FDS): start ipcd-spawner.socket, or run ipcd \
             --bus system without units"
        ),
    }
}

/// The front as a unit: systemd has made it its user, and keeps the workers' control sockets.
fn front_unit(config: Config, level: LevelFilter) -> Result<()> {
    let kept = Carried::from_environment().take_listen_fds()?;
    let spawner = connect_to_spawner().with_context(|| {
        format!("the spawner does not listen on {SPAWNER}: start ipcd-spawner.socket, or run ipcd --bus system as root")
    })?;
    let reconnect: Reconnect = Box::new(connect_to_spawner);
    serve_bus(
        Start {
            spawner,
            reconnect: Some(reconnect),
            workers: kept,
            limits: config.front,
            address: None,
            fd_store: Box::new(SystemdStore),
        },
        level,
    )
}

fn connect_to_spawner() -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(SPAWNER)?)?;
    Ok(socket)
}

/// The file descriptor store of the unit, systemd.service(5) FileDescriptorStoreMax=.
struct SystemdStore;

impl FdStore for SystemdStore {
    fn keep(&self, name: &str, control: BorrowedFd<'_>) {
        let told = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[control]);
        if let Err(error) = told {
            tracing::warn!("{name} will not outlive the front: systemd did not take its socket: {error}");
        }
    }

    fn forget(&self, name: &str) {
        notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    fn outlives_front(&self) -> bool {
        true
    }
}

/// The front: serves the bus through workers, until it is told to stop or the bus has gone.
fn serve_bus(start: Start, level: LevelFilter) -> Result<()> {
    logs::start(level);
    raise_file_limit();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    runtime.block_on(async {
        // Before readiness: a signal that comes right after it is handled.
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let front = Front::start(start).await?;
        let status = "serving on the system bus";
        tracing::info!("{status}");
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
        let lost = tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = front.closed() => true,
        };
        if lost {
            front.leave().await;
            bail!("the bus has gone");
        }
        notify(&[NotifyState::Stopping]);
        front.stop().await;
        Ok(())
    })
}

/// A worker: serves one identity, until the front is done with it.
fn serve_caller(start: WorkerStart, carried: &Carried, config: Config, violation: Violation) -> Result<()> {
    let WorkerStart { control, identity } = start;
    let mut forbidden: Vec<Name> = PEERS.iter().map(|path| Name::Path(PathBuf::from(path))).collect();
    forbidden.extend(carried.get("DBUS_SYSTEM_BUS_ADDRESS").map(bus_sockets).unwrap_or_default());
    peers::forbid(forbidden);
    // The spawner is root's, as a worker of root's is.
    address::protect(rustix::process::getppid().map(|spawner| spawner.as_raw_pid()));
    let confined = |confinement: Confinement| (!confinement.is_none()).then(|| confinement.reasons());
    let engine = Engine::of(ipc_bus::MECHANISMS, config.limits, confined(identity.confinement));
    // A worker cannot mount, and has it done.
    let (helper, wanted) = mounts::through_the_front();
    detached::through(helper);
    in_sandbox(Inmate::Worker, violation, identity.uid, |told| worker::serve(control, engine, wanted, told))
}

/// The herald: tells everybody what the kernel tells everybody.
fn serve_everybody(start: WorkerStart, config: Config, violation: Violation) -> Result<()> {
    let WorkerStart { control, identity } = start;
    // It is not one user's: the front sees to it that nobody has more calls here than his share, waits or not.
    let Config { front, limits, .. } = config;
    let (calls, calls_per_connection) = (front.calls, front.calls_per_connection);
    let engine = Engine::new(Limits { calls, waits: calls, calls_per_connection, ..limits });
    in_sandbox(Inmate::Herald, violation, identity.uid, |told| worker::serve_herald(control, engine, told))
}

/// Serves in the sandbox, and tells when everything is to end.
fn in_sandbox<S: Future<Output = ipc_kernel::Result<()>>>(
    inmate: Inmate,
    violation: Violation,
    uid: u32,
    serve: impl FnOnce(Pin<Box<dyn Future<Output = ()>>>) -> S,
) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(SLOW_CALLS)
        // The first one stays: then there is one when the user has used up RLIMIT_NPROC.
        .thread_keep_alive(Duration::MAX)
        .build()
        .context("the runtime could not be started")?;
    sandbox::enter(inmate, violation)?;
    // tokio panics if it cannot start its first thread.
    std::thread::Builder::new()
        .spawn(|| ())
        .and_then(|thread| thread.join().map_err(|_| std::io::ErrorKind::Other.into()))
        .with_context(|| format!("uid {uid} may not start a thread (RLIMIT_NPROC)"))?;
    runtime.block_on(async {
        // At the end of everything the spawner says so in this way: what is to be removed is removed.
        let mut terminate = signal(SignalKind::terminate())?;
        let told = async move {
            terminate.recv().await;
        };
        tokio::task::spawn_blocking(|| ()).await?;
        serve(Box::pin(told)).await.map_err(|error| anyhow!("{error}"))
    })
}

/// The unix sockets in a list of D-Bus addresses, separated by semicolons.
fn bus_sockets(addresses: &OsStr) -> Vec<Name> {
    let addresses = String::from_utf8_lossy(addresses.as_bytes());
    let parsed = addresses.split(';').filter_map(|address| Address::parse(address).ok());
    let unix = parsed.filter(|address| address.scheme == "unix");
    unix.flat_map(|address| address.pairs)
        .filter_map(|(key, value)| match (key.as_str(), value?) {
            ("path", path) => Some(Name::Path(PathBuf::from(OsStr::from_bytes(&path)))),
            ("abstract", name) => Some(Name::Abstract(name)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_the_bus_are_found() {
        let address = OsStr::new("unix:path=/tmp/a%20b,guid=00;tcp:host=localhost,port=1;unix:abstract=x");
        assert_eq!(bus_sockets(address), [Name::Path("/tmp/a b".into()), Name::Abstract(b"x".to_vec())]);
        assert_eq!(bus_sockets(OsStr::new("")), []);
    }
}
