//! The service on a private system bus, with its users, and a look at its processes from outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipc_harness::system::{ALICE, BOB, IPCD, Identity, User};
use ipc_harness::{
    CallError, NAME, PATH, Process, Service, SystemBus, TempDir, Unavailable, patience, temp_dir,
};

use crate::raw::Raw;
use crate::wire::{Arg, no_options, text};

/// A running service. Field order is drop order: the service leaves before its bus does.
pub struct Stage {
    pub service: Service,
    pub bus: SystemBus,
    dir: TempDir,
}

/// A process of the service that is one of its callers to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    pub pid: i32,
    pub uid: u32,
}

impl Stage {
    /// A service with the default configuration.
    pub fn new() -> Result<Stage, Unavailable> {
        Stage::with_config("")
    }

    /// A service with this configuration file.
    pub fn with_config(toml: &str) -> Result<Stage, Unavailable> {
        let bus = SystemBus::dbus_daemon()?;
        let service = bus.launch().config(toml).start();
        let dir = temp_dir();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).expect("an own directory");
        Ok(Stage { service, bus, dir })
    }

    /// A connection of this user.
    #[track_caller]
    pub fn raw(&self, who: impl Into<Identity>) -> Raw {
        let who = who.into();
        Raw::new(self.bus.socket_of(&who), who.uid)
    }

    #[track_caller]
    pub fn alice(&self) -> Raw {
        self.raw(ALICE)
    }

    #[track_caller]
    pub fn bob(&self) -> Raw {
        self.raw(BOB)
    }

    /// A path in a directory like /tmp: everybody may write there, and remove what is his.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a path of text").to_owned()
    }

    /// A file there.
    pub fn file(&self, owner: (User, u32), mode: u32, name: &str, content: &str) -> String {
        let (path, (user, group)) = (self.path(name), owner);
        fs::write(&path, content).expect("writing as root");
        own(&path, user.uid, group, mode);
        path
    }

    /// A directory there.
    pub fn directory(&self, owner: (User, u32), mode: u32, name: &str) -> String {
        let (path, (user, group)) = (self.path(name), owner);
        fs::create_dir(&path).expect("a directory made by root");
        own(&path, user.uid, group, mode);
        path
    }

    /// The process that starts the others; it is root.
    pub fn spawner(&self) -> i32 {
        self.service.pid()
    }

    /// The process that is on the bus.
    #[track_caller]
    pub fn front(&self) -> i32 {
        self.own("ipcd-front")
    }

    /// The process that tells everybody what the kernel tells everybody.
    #[track_caller]
    pub fn herald(&self) -> i32 {
        self.own("ipcd-herald")
    }

    #[track_caller]
    fn own(&self, name: &str) -> i32 {
        let children = self.children().into_iter().filter(|child| child.uid == IPCD.uid);
        let found: Vec<_> =
            children.filter(|child| status(child.pid, "Name").is_some_and(|it| it == name)).collect();
        match found[..] {
            [one] => one.pid,
            _ => panic!("one {name} is expected, not {found:?}; the log:\n{}", self.service.log()),
        }
    }

    /// All workers.
    pub fn workers(&self) -> Vec<Worker> {
        self.children().into_iter().filter(|child| child.uid != IPCD.uid).collect()
    }

    /// The workers of this user.
    pub fn workers_of(&self, user: User) -> Vec<i32> {
        self.workers().into_iter().filter(|worker| worker.uid == user.uid).map(|worker| worker.pid).collect()
    }

    /// The only worker of this user.
    #[track_caller]
    pub fn worker_of(&self, user: User) -> i32 {
        match self.workers_of(user)[..] {
            [pid] => pid,
            ref other => panic!("one worker of {} is expected, not {other:?}", user.name),
        }
    }

    /// Sets a limit of a process of this user's, as he may himself: `--nofile=100`.
    pub fn limit(&self, user: User, pid: i32, limit: &str) {
        let mut command = self.bus.command_as(&user.into(), "prlimit");
        Process::spawn(command.args([limit, "--pid", &pid.to_string()])).finish().success();
    }

    fn children(&self) -> Vec<Worker> {
        let spawner = self.spawner();
        let children =
            fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        // One that has just ended has no status any more, or is a zombie.
        let living = pids.filter_map(|pid| {
            let state = status(pid, "State")?;
            let uid = status(pid, "Uid")?.split_whitespace().nth(1)?.parse().ok()?;
            (!state.starts_with('Z')).then_some(Worker { pid, uid })
        });
        living.collect()
    }

    /// Asks until it is so, with a call to the bus between the questions: nothing is slept for. Panics when patience
    /// ends.
    #[track_caller]
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let mut pacing = Raw::new(self.bus.socket_of(&ALICE.into()), ALICE.uid);
        let started = std::time::Instant::now();
        while !is_so() {
            assert!(started.elapsed() < patience(), "{what}: not so; the log:\n{}", self.service.log());
            pacing.driver("GetId", &[]).expect("the bus answers");
        }
    }
}

fn own(path: impl AsRef<Path>, uid: u32, gid: u32, mode: u32) {
    std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("root may");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("root may");
}

/// A line of /proc/PID/status; None when there is no such process.
pub fn status(pid: i32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// What the descriptors of a process are; of a process that has gone, none.
pub fn descriptors(pid: i32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

/// The usual calls, on a connection of any user.
impl Raw {
    #[track_caller]
    pub fn try_make(&mut self, verb: &str, address: &str) -> Result<String, CallError> {
        self.call(PATH, "", verb, &[text(address), no_options()]).map(|reply| object(&reply.args()))
    }

    #[track_caller]
    pub fn create(&mut self, address: &str) -> String {
        self.try_make("Create", address).unwrap_or_else(|error| panic!("Create({address}): {error}"))
    }

    #[track_caller]
    pub fn attach(&mut self, address: &str) -> String {
        self.try_make("Attach", address).unwrap_or_else(|error| panic!("Attach({address}): {error}"))
    }

    #[track_caller]
    pub fn refused(&mut self, verb: &str, address: &str) -> CallError {
        match self.try_make(verb, address) {
            Ok(path) => panic!("{verb}({address}) must fail, but made {path}"),
            Err(error) => error,
        }
    }

    #[track_caller]
    pub fn write(&mut self, endpoint: &str, data: &str) -> Result<u64, CallError> {
        let written = self.call(endpoint, "Stream", "WriteText", &[text(data), Arg::U32(1000)])?;
        Ok(number(&written.args()[0]))
    }

    #[track_caller]
    pub fn read_text(&mut self, endpoint: &str) -> Result<String, CallError> {
        let read = self.call(endpoint, "Stream", "ReadText", &[Arg::U32(65536), Arg::U32(1000)])?;
        match read.args().into_iter().next() {
            Some(Arg::Str(text)) => Ok(text),
            other => panic!("{other:?} is no text"),
        }
    }

    /// What is in use of a limit.
    #[track_caller]
    pub fn usage(&mut self, key: &str) -> u64 {
        let properties = "org.freedesktop.DBus.Properties";
        let usage =
            self.call(PATH, properties, "Get", &[text(NAME), text("Usage")]).expect("the property Usage");
        entry(&usage.args()[0], key).map_or_else(|| panic!("Usage has no {key}"), |value| number(&value))
    }

    #[track_caller]
    pub fn close(&mut self, endpoint: &str) {
        self.call(endpoint, "Endpoint", "Close", &[])
            .unwrap_or_else(|error| panic!("Close {endpoint}: {error}"));
    }

    /// `org.freedesktop.DBus.Peer.Ping` to the service.
    #[track_caller]
    pub fn ping(&mut self) -> Result<(), CallError> {
        self.call(PATH, "org.freedesktop.DBus.Peer", "Ping", &[]).map(drop)
    }

    /// The process that the bus says owns the service's name.
    #[track_caller]
    pub fn owner(&mut self) -> String {
        match self.driver("GetNameOwner", &[text(NAME)]).expect("the service is on the bus").args().remove(0)
        {
            Arg::Str(name) => name,
            other => panic!("{other:?} is no name"),
        }
    }
}

/// The object path that a call answered.
#[track_caller]
pub fn object(args: &[Arg]) -> String {
    match args {
        [Arg::Path(path)] => path.clone(),
        other => panic!("{other:?} is no object path"),
    }
}

/// A number of any width, also within variants.
#[track_caller]
pub fn number(arg: &Arg) -> u64 {
    match arg {
        Arg::Variant(inner) => number(inner),
        Arg::Byte(n) => (*n).into(),
        Arg::U32(n) => (*n).into(),
        Arg::U64(n) => *n,
        Arg::I32(n) => u64::try_from(*n).expect("not negative"),
        other => panic!("{other:?} is no number"),
    }
}

/// An entry of a dictionary, also within a variant.
pub fn entry(arg: &Arg, wanted: &str) -> Option<Arg> {
    match arg {
        Arg::Variant(inner) => entry(inner, wanted),
        Arg::Array(_, entries) => entries.iter().find_map(|pair| match pair {
            Arg::Pair(key, value) if **key == text(wanted) => Some((**value).clone()),
            _ => None,
        }),
        _ => None,
    }
}
