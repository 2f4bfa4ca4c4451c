//! FUSE mounts as /proc/self/mountinfo has them, and what was left behind by processes that were killed.
//!
//! Nothing here asks a file system anything: one that does not answer would hold whoever asks.

use std::{
    collections::HashMap,
    ffi::OsString,
    fmt, fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use crate::{
    Address, Dict, Value, dict,
    fuse::{
        detached,
        mount::{self, SUBTYPE},
    },
    mechanism::Column,
    proc,
    signal::status,
};

pub const COLUMNS: &[Column] = &[
    Column {
        key: "path",
        kind: "s",
        summary: "Where it is mounted; not there for one that is mounted nowhere",
    },
    Column { key: "type", kind: "s", summary: "fuse, or fuse. and the subtype: fuse.ipcd is this program's" },
    Column { key: "source", kind: "s", summary: "What the server calls it" },
    Column { key: "owner", kind: "u", summary: "User id of whoever mounted it, the only one who may use it" },
    Column { key: "device", kind: "s", summary: "Device number, major:minor" },
    Column { key: "options", kind: "as", summary: "Mount options: rw, nosuid, nodev" },
    Column { key: "allow-other", kind: "b", summary: "Whether other users may use it, too" },
    Column { key: "state", kind: "s", summary: "served, stale (its process has ended) or unknown" },
    Column {
        key: "holders",
        kind: "aa{sv}",
        summary: "Processes that serve it, as far as the caller may see: pid, command, fd",
    },
];

/// Which process serves a mount of this program's, written into the mount's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pid: i32,
    /// In clock ticks since the machine's start: with the number, it is that very process.
    start: u64,
    /// The inode number of the pid namespace in which it has the number.
    namespace: u64,
}

impl Server {
    pub fn own() -> Self {
        let pid = std::process::id().cast_signed();
        let start = status::stat(&status::directory(pid, None)).map_or(0, |stat| stat.start);
        Self { pid, start, namespace: own_namespace() }
    }

    fn parse(source: &str) -> Option<Self> {
        let mut numbers = source.strip_prefix(SUBTYPE)?.strip_prefix('-')?.split('-');
        let mut next = || numbers.next()?.parse::<u64>().ok();
        let server = Self { pid: next()?.try_into().ok()?, start: next()?, namespace: next()? };
        (server.to_string() == source).then_some(server)
    }

    /// Whether it has ended; None: its number means nothing here.
    fn has_ended(&self) -> Option<bool> {
        if self.namespace != own_namespace() {
            return None;
        }
        let running = status::stat(&status::directory(self.pid, None));
        Some(running.is_none_or(|stat| stat.start != self.start || stat.state == b'Z'))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SUBTYPE}-{}-{}-{}", self.pid, self.start, self.namespace)
    }
}

fn own_namespace() -> u64 {
    rustix::fs::stat("/proc/self/ns/pid").map_or(0, |stat| stat.st_ino)
}

/// A line of mountinfo (proc_pid_mountinfo(5)) about a FUSE mount.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    path: PathBuf,
    kind: String,
    source: String,
    device: (u32, u32),
    options: Vec<String>,
    /// Of the file system, as FUSE itself shows them.
    super_options: Vec<String>,
}

impl Line {
    /// `id parent major:minor root point options … - type source options`.
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |field: &[u8]| String::from_utf8_lossy(&proc::unescaped(field)).into_owned();
        let list = |field: &[u8]| text(field).split(',').map(str::to_owned).collect();
        let kind = text(fields.get(dash + 1)?);
        // fuseblk is for the drivers of file systems on disks.
        if kind != "fuse" && !kind.starts_with("fuse.") {
            return None;
        }
        let device = text(fields.get(2)?);
        let (major, minor) = device.split_once(':')?;
        Some(Self {
            path: PathBuf::from(OsString::from_vec(proc::unescaped(fields.get(4)?))),
            kind,
            source: text(fields.get(dash + 2)?),
            device: (major.parse().ok()?, minor.parse().ok()?),
            options: list(fields.get(5)?),
            super_options: list(fields.get(dash + 3)?),
        })
    }

    fn owner(&self) -> Option<u32> {
        self.super_options.iter().find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
    }

    fn server(&self) -> Option<Server> {
        (self.kind.strip_prefix("fuse.") == Some(SUBTYPE)).then(|| Server::parse(&self.source))?
    }

    fn is_stale(&self) -> bool {
        self.server().and_then(|server| server.has_ended()) == Some(true)
    }
}

fn lines() -> Vec<Line> {
    let mounts = fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    mounts.split(|byte| *byte == b'\n').filter_map(Line::parse).collect()
}

/// Where the file system with this device number is mounted.
pub fn points(device: (u32, u32)) -> Vec<PathBuf> {
    lines().into_iter().filter(|line| line.device == device).map(|line| line.path).collect()
}

/// Detaches the mounts of this program and this user whose processes have ended. Whoever comes upon one gets
/// "Transport endpoint is not connected", and nothing can be mounted there.
pub fn detach_stale() {
    let caller = rustix::process::geteuid().as_raw();
    for line in lines().iter().filter(|line| line.owner() == Some(caller) && line.is_stale()) {
        mount::detach_left(&line.path, line.device);
    }
}

/// Which process serves which connection, as far as the caller may look (proc_pid_fdinfo(5)).
fn connections() -> HashMap<u32, Vec<proc::Held>> {
    let mut connections: HashMap<u32, Vec<proc::Held>> = HashMap::new();
    for held in proc::held(|link| link == b"/dev/fuse") {
        let info = proc::fdinfo(held.pid, held.fd);
        if let Some(connection) = info.get("fuse_connection").and_then(|number| number.parse().ok()) {
            connections.entry(connection).or_default().push(held);
        }
    }
    connections
}

pub fn mounts() -> Vec<Dict> {
    let mut lines = lines();
    lines.extend(nowhere(&lines));
    if lines.is_empty() {
        return Vec::new();
    }
    let connections = connections();
    let none = Vec::new();
    lines
        .iter()
        .map(|line| {
            let holders = connections.get(&line.device.1).unwrap_or(&none);
            let state = match line.server().and_then(|server| server.has_ended()) {
                Some(true) => "stale",
                Some(false) => "served",
                // It is this process's own.
                None if line.path.as_os_str().is_empty() => "served",
                None if holders.is_empty() => "unknown",
                None => "served",
            };
            let holders: Vec<&proc::Held> = holders.iter().collect();
            let mut row = dict! {
                "type" => line.kind.as_str(),
                "source" => line.source.as_str(),
                "device" => format!("{}:{}", line.device.0, line.device.1),
                "options" => line.options.clone(),
                "allow-other" => line.super_options.iter().any(|option| option == "allow_other"),
                "state" => state,
                "holders" => proc::holders(&holders),
            };
            if let Some(owner) = line.owner() {
                row.insert("owner".into(), owner.into());
            }
            if !line.path.as_os_str().is_empty() {
                row.insert("path".into(), Value::text_or_bytes(line.path.as_os_str().as_encoded_bytes()));
            }
            row
        })
        .collect()
}

/// What mountinfo has not: the mounts of this process that are mounted nowhere, as far as it knows.
fn nowhere(listed: &[Line]) -> Vec<Line> {
    let own = detached::own().into_iter();
    own.filter(|device| listed.iter().all(|line| line.device != *device))
        .map(|device| Line {
            path: PathBuf::new(),
            kind: format!("fuse.{SUBTYPE}"),
            source: SUBTYPE.to_owned(),
            device,
            options: ["rw", "nosuid", "nodev"].map(str::to_owned).to_vec(),
            super_options: vec![format!("user_id={}", rustix::process::geteuid().as_raw())],
        })
        .collect()
}

/// The address of a mount.
pub fn address(path: Option<&Path>) -> Address {
    let address = Address::new("fuse");
    match path {
        Some(path) => address.with("path", path.as_os_str().as_encoded_bytes()),
        None => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_back_and_nothing_else_is() {
        let own = Server::own();
        assert_eq!(Server::parse(&own.to_string()), Some(own.clone()));
        assert_eq!(own.has_ended(), Some(false));
        assert_eq!(Server { start: own.start + 1, ..own.clone() }.has_ended(), Some(true), "another process");
        assert_eq!(Server { namespace: 1, ..own }.has_ended(), None, "a number that means nothing here");
        for other in
            ["", "ipcd", "ipcd-1", "ipcd-1-2", "ipcd-1-2-3-4", "ipcd-01-2-3", "ipcd-x-2-3", "sshfs-1-2-3"]
        {
            assert_eq!(Server::parse(other), None, "{other}");
        }
    }

    #[test]
    fn reads_the_lines_of_mountinfo() {
        let line = br"36 35 0:45 / /home/me/a\040b rw,nosuid,nodev shared:7 - fuse.ipcd ipcd-1-2-3 rw,user_id=1000,group_id=1000,default_permissions";
        let line = Line::parse(line).expect("a FUSE mount");
        assert_eq!(line.path, Path::new("/home/me/a b"));
        assert_eq!((line.owner(), line.device), (Some(1000), (0, 45)));
        assert_eq!(line.options, ["rw", "nosuid", "nodev"]);
        assert!(line.server().is_some());
        assert_eq!(Line::parse(b"36 35 0:20 / /x rw - fuseblk /dev/sda1 rw"), None);
        assert_eq!(Line::parse(b"36 35 0:20 / /x rw - tmpfs fuse rw"), None);
        assert_eq!(Line::parse(b""), None);
    }
}
