//! Every queue of the IPC namespace, as the mqueue file system shows them, and the limits.
//!
//! Queues can be used without that file system, but only its directory says which there are. It may
//! be mounted anywhere, several times, and a mount may also show the queues of another IPC
//! namespace; so every name is looked up by mq_open(3), too, and must mean the same queue there.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, StatxFlags},
    io::Errno,
    process::Resource,
};

use crate::{
    Address, Dict, Error, Kind, Result, Value, dict,
    error::Attempted,
    mqueue::calls::{self, Access, Attributes, Name, Status},
    named_file::{self, Identity},
    proc::{self, Held},
};

pub fn address(name: &Name) -> Address {
    Address::new("posixmq").with("name", name.as_bytes())
}

pub fn list() -> Result<Vec<Dict>> {
    let queues = queues()?;
    let names: HashSet<&[u8]> = queues.iter().map(|queue| queue.name.as_bytes()).collect();
    let holders = holders(&names);
    let everybody = std::cell::LazyCell::new(proc::sees_everybody);
    let row = |queue: Queue| {
        let held = holders.get(&queue.identity).map(Vec::as_slice).unwrap_or_default();
        let mut row = dict! {
            "address" => address(&queue.name).to_string(),
            "owner" => queue.uid,
            "group" => queue.gid,
            "holders" => proc::holders(&held.iter().collect::<Vec<_>>()),
        };
        row.insert("name".into(), Value::text_or_bytes(queue.name.as_bytes()));
        row.extend(queue.file);
        row.extend(queue.attributes.map(describe).unwrap_or_default());
        row.extend(queue.status.map(describe_status).unwrap_or_default());
        // Whether nobody has it open is only known when everybody could be asked.
        if !held.is_empty() || *everybody {
            row.insert("stale".into(), held.is_empty().into());
        }
        row
    };
    Ok(queues.into_iter().map(row).collect())
}

/// A queue that has a name.
struct Queue {
    name: Name,
    identity: Identity,
    uid: u32,
    gid: u32,
    /// What stat(2) says besides.
    file: Dict,
    /// Where the caller may open it.
    attributes: Option<Attributes>,
    /// Where the caller may open it for reading.
    status: Option<Status>,
}

/// The queues of the IPC namespace.
fn queues() -> Result<Vec<Queue>> {
    let mut failure = None;
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut listed = false;
    for mount in mounts() {
        let entries = match fs::read_dir(&mount).attempted(|| format!("list {}", mount.display())) {
            Ok(entries) => entries,
            Err(error) => {
                failure.get_or_insert(error);
                continue;
            }
        };
        listed = true;
        let entries = entries.flatten().filter_map(|entry| queue(&mount, &entry.file_name()));
        found.extend(entries.filter(|queue| seen.insert(queue.identity)));
    }
    match (listed, failure) {
        (true, _) => Ok(found),
        (false, Some(failure)) => Err(failure),
        (false, None) => Err(Error::new(
            Kind::Unavailable,
            "cannot list the message queues: the mqueue file system is not mounted (Create and Attach work without \
             it); mount it with: mkdir -p /dev/mqueue && mount -t mqueue none /dev/mqueue",
        )),
    }
}

/// Where the mqueue file system is mounted and not hidden by another mount.
fn mounts() -> Vec<PathBuf> {
    proc::mount_points("mqueue").into_iter().filter(|path| calls::is_mounted(path)).collect()
}

/// What an entry of the file system is; None where the name means another queue, or none: it was
/// removed a moment ago, or the file system is that of another IPC namespace.
fn queue(mount: &Path, name: &OsStr) -> Option<Queue> {
    let stat = rustix::fs::lstat(mount.join(name)).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let identity = Identity::from(&stat);
    let name = Name::check(&[b"/", name.as_bytes()].concat()).ok()?;
    let (attributes, status) = match look_up(&name) {
        Ok(Some(fd)) if calls::identity(&fd).ok()? == identity => {
            (calls::attributes(&fd).ok(), calls::status(&fd))
        }
        Ok(Some(_)) | Err(Errno::NOENT) => return None,
        // The mode allows nothing, or there is no descriptor left: what is known is shown.
        Ok(None) | Err(_) => (None, None),
    };
    let wanted = ["mode", "inode", "accessed", "modified", "changed"];
    let mut file = named_file::inspect(&stat);
    file.retain(|key, _| wanted.contains(&key.as_str()));
    Some(Queue { name, identity, uid: stat.st_uid, gid: stat.st_gid, file, attributes, status })
}

/// What the name means in this IPC namespace, opened in whatever way the mode allows; None where
/// it allows none.
pub fn look_up(name: &Name) -> rustix::io::Result<Option<std::os::fd::OwnedFd>> {
    for access in [Access::Read, Access::Write] {
        match calls::open(name, access) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// `depth`, `size` and `messages`, the first two as the keys of Create.
pub fn describe(attributes: Attributes) -> Dict {
    let Attributes { depth, size, messages } = attributes;
    dict! { "depth" => depth, "size" => size, "messages" => messages }
}

pub fn describe_status(status: Status) -> Dict {
    let mut row = dict! { "bytes" => status.bytes };
    if let Some(notification) = status.notification {
        row.extend(dict! {
            "notify" => notification.how,
            "notify-pid" => notification.pid,
            "notify-command" => proc::command(notification.pid),
        });
        if notification.how == "signal" {
            row.insert("notify-signal".into(), notification.signal.into());
        }
    }
    row
}

/// The descriptors of queues with these names (with their slashes), by queue. The link of one that
/// mq_open(3) made is the name, and of one that was opened in the file system a whole path.
pub fn holders(names: &HashSet<&[u8]>) -> HashMap<Identity, Vec<Held>> {
    let mut by_queue: HashMap<Identity, Vec<Held>> = HashMap::new();
    let named = |link: &[u8]| {
        let slash = link.iter().rposition(|byte| *byte == b'/');
        slash.is_some_and(|slash| names.contains(&link[slash..]))
    };
    let wanted = |link: &[u8]| named(link) || link.strip_suffix(proc::DELETED).is_some_and(named);
    for held in proc::held(wanted) {
        // Not synchronised with a server: a dead network file system must not stop the list.
        let path = proc::fd_path(held.pid, held.fd);
        let Ok(stat) = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO) else {
            continue;
        };
        let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        by_queue.entry(Identity { device, inode: stat.stx_ino }).or_default().push(held);
    }
    by_queue
}

const SYSCTLS: [&str; 5] = ["queues_max", "msg_max", "msgsize_max", "msg_default", "msgsize_default"];

pub fn limits() -> Dict {
    let mut limits = dict! {
        "MQ_PRIO_MAX" => calls::PRIORITIES,
        "NAME_MAX" => calls::NAME_MAX as u64,
        "HARD_MSGMAX" => calls::DEPTH_MAX,
        "HARD_MSGSIZEMAX" => calls::SIZE_MAX,
    };
    for key in SYSCTLS {
        if let Some(value) = sysctl(key) {
            limits.insert(format!("fs.mqueue.{key}"), value.into());
        }
    }
    if let Some(limit) = user_limit() {
        limits.insert("RLIMIT_MSGQUEUE".into(), limit.into());
    }
    // The kernel tells neither; both are counted, where the file system is mounted.
    if let Ok(queues) = queues() {
        let own = rustix::process::geteuid().as_raw();
        let of_own = queues.iter().filter(|queue| queue.uid == own).filter_map(|queue| queue.attributes);
        let used = of_own.map(|attributes| footprint(attributes.depth, attributes.size)).sum::<u64>();
        limits.extend(dict! { "queues" => queues.len() as u64, "msgqueue-used" => used });
    }
    limits
}

/// A number of fs.mqueue, proc(5).
pub fn sysctl(key: &str) -> Option<u64> {
    proc::sysctl(&format!("fs/mqueue/{key}"))
}

/// RLIMIT_MSGQUEUE of this process; None is no limit.
pub fn user_limit() -> Option<u64> {
    rustix::process::getrlimit(Resource::Msgqueue).current
}

/// The bytes that the kernel counts for a queue, whether it has messages or not (getrlimit(2)).
pub fn footprint(depth: u64, size: u64) -> u64 {
    // struct msg_msg and struct posix_msg_tree_node have six words each.
    let overhead = 6 * size_of::<usize>() as u64;
    let nodes = depth.min(calls::PRIORITIES.into());
    depth.saturating_mul(size.saturating_add(overhead)).saturating_add(nodes.saturating_mul(overhead))
}
