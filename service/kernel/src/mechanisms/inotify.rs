//! Changes of files and directories, inotify(7).
//!
//! An endpoint is a watch. All watches of the process share one inotify instance, which the hub
//! (`inotify/hub.rs`) reads, driven by this mechanism's `driver`; an endpoint takes what the hub
//! has put aside for it and gives it its names and its path.

use std::{
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

use crate::{
    Address, Attempt, Descriptor, Dict, Endpoint, Error, Kind, Opening, Parameter, Parameters, Readiness, Result,
    Type, Value, dict,
    inotify::hub::HUB,
    inotify,
    inotify::queue::{Handle, Item, Wish},
    mechanism::{Adoption, Column},
    proc,
    shape::{Event, Events, Notice, Shape},
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "inotify",
    schemes: &["inotify"],
    summary: "Changes of files and directories as events (inotify(7))",
    shapes: &[Shape::Watch],
    create_parameters: PARAMETERS,
    attach_parameters: PARAMETERS,
    columns: &[
        Column { key: "pid", kind: "u", summary: "Process that has the watch" },
        Column { key: "command", kind: "s", summary: "Its command name" },
        Column { key: "fd", kind: "u", summary: "The inotify instance's file descriptor in that process" },
        Column { key: "wd", kind: "i", summary: "Watch descriptor" },
        Column { key: "inode", kind: "t", summary: "Inode number of what is watched" },
        Column { key: "device", kind: "s", summary: "Device of its file system, major:minor" },
        Column { key: "events", kind: "as", summary: "Events that are watched for" },
        Column { key: "flags", kind: "as", summary: "excl-unlink, oneshot" },
        Column { key: "path", kind: "s", summary: "Path, for the watches of this service" },
    ],
    open_parameters: &[],
    create,
    anonymous: |_| false,
    attach,
    adopt: |fd| Ok(Adoption::Refused(fd)),
    list,
    listing: None,
    limits,
    available: || Ok(()),
    driver: Some(|| HUB.drive()),
    reference: REFERENCE,
};

const PARAMETERS: &[Parameter] = &[
    Parameter::new("path", Type::Path, "Absolute path of the file or directory to watch").required(),
    Parameter::new("events", Type::Words(inotify::mask::WORDS), "Events to watch for; all, close and move are groups")
        .default("all"),
    Parameter::new("onlydir", Type::Bool, "Fail if the path is not a directory").default("false"),
    Parameter::new("dont-follow", Type::Bool, "Watch a symbolic link itself, not what it leads to").default("false"),
    Parameter::new("excl-unlink", Type::Bool, "No events of files that were removed from the directory but are open")
        .default("false"),
    Parameter::new("oneshot", Type::Bool, "End after one event").default("false"),
];

const REFERENCE: &str = "\
`Create` adds a watch to what the path leads to at that moment; the watch stays with that inode when it
is renamed, and events go on to carry the path that was given. The kernel object is the watch, so
nothing is created in the file system, and there is nothing to attach to: `Attach` is `NotSupported`.

Each event has the names of inotify(7) without `IN_`: one of `ACCESS` `ATTRIB` `CLOSE_WRITE`
`CLOSE_NOWRITE` `CREATE` `DELETE` `DELETE_SELF` `MODIFY` `MOVE_SELF` `MOVED_FROM` `MOVED_TO` `OPEN`, with
`ISDIR` if it happened to a directory; `UNMOUNT` and `IGNORED` come unasked. Its path is that of the watch,
with `/` and the name of the entry behind it for what happened to an entry of a watched directory.
The path is what the file was called then, not now. Identical successive events may arrive as one.

After `IGNORED` the watch has ended; the reason says whether the file was removed, the file system was
unmounted or `oneshot` was asked for. A removed file ends its watch when nobody has it open any more.

All watches of a caller share one inotify instance, as a user has few (fs.inotify.max_user_instances,
128). Watches of the same inode share the kernel's watch, whose mask is the union of theirs; each endpoint
gets only what it asked for. 16384 events wait for an endpoint; when more come, or when the kernel's own
queue overflows (fs.inotify.max_queued_events), `Overflow` says that some are lost.

inotify does not report stores through a mapping (mmap(2), msync(2)), nor what happens to a file through
a hard link outside the watched directory, nor what other machines do in a network file system, nor what
the kernel or a server changes in a pseudo file system (proc, sysfs, FUSE). `Inspect` names the file system
and says with `complete` whether all its changes are seen.

Sources: inotify(7), inotify_add_watch(2), proc_pid_fdinfo(5).

| error | when |
| --- | --- |
| `InvalidArgument` | `path` is not absolute; an unknown event |
| `NotFound` | nothing has this path |
| `PermissionDenied` | the caller may not read it, or not search the path |
| `Errno.ENOTDIR` | a part of the path is not a directory, or with `onlydir` all of it |
| `LimitExceeded` | fs.inotify.max_user_watches or max_user_instances is used up; the text has the value |
| `Busy` | another endpoint watches the same inode with another `excl-unlink` |
| `NotSupported` | `Attach`, `Open`, `Adopt`, `SetPermissions`, `Remove` |
| `Closed` | events are asked for after the watch has ended |

Not offered yet: whole directory trees (`recursive`) and renames as one event, include and
exclude patterns, debouncing and an initial listing; until then a rename is
`MOVED_FROM` and `MOVED_TO`. Not offered: IN_MASK_ADD and IN_MASK_CREATE, because the service needs them to
share watches; `Open`, because the instance carries the events of all endpoints, and the kernel has no fd
of a single watch; fanotify(7), because it needs CAP_SYS_ADMIN.";

fn create(parameters: &Parameters) -> Result<Opening> {
    let path = parameters.path("path")?.ok_or_else(|| Error::invalid("the key \"path\" is missing"))?;
    let events = parameters.texts("events").unwrap_or_default();
    let mask = events.iter().fold(0, |mask, word| mask | inotify::mask::bits(word));
    if mask == 0 {
        return Err(Error::invalid("the key \"events\" is empty: name at least one event, or all"));
    }
    let handle = HUB.subscribe(Wish {
        path,
        mask,
        only_directory: parameters.bool("onlydir"),
        dont_follow: parameters.bool("dont-follow"),
        excl_unlink: parameters.bool("excl-unlink"),
        oneshot: parameters.bool("oneshot"),
    })?;
    Ok(Watcher { handle }.into())
}

fn attach(_: &Parameters) -> Result<Opening> {
    Err(Error::not_supported(
        "an inotify watch has no name to attach to: it belongs to the process that made it; use Create, which adds a \
         watch to a file or directory that exists",
    ))
}

fn is_instance(link: &[u8]) -> bool {
    matches!(link, b"anon_inode:inotify" | b"anon_inode:[inotify]")
}

/// Every watch of every visible process. The kernel tells inodes, not paths; we know ours.
fn list() -> Result<Vec<Dict>> {
    let mut rows = Vec::new();
    for held in proc::held(is_instance) {
        let command = proc::command(held.pid);
        let ours = held.pid == std::process::id() && HUB.fd() == Some(held.fd);
        for line in inotify::mask::watches(&proc::fdinfo_text(held.pid, held.fd)) {
            let mut row = dict! {
                "pid" => held.pid,
                "command" => command.as_str(),
                "fd" => held.fd,
                "wd" => line.wd,
                "inode" => line.inode,
                "device" => line.device(),
                "events" => inotify::mask::words(line.mask),
                "flags" => flags(line.mask & libc::IN_EXCL_UNLINK != 0, line.mask & libc::IN_ONESHOT != 0),
            };
            if let Some(path) = ours.then(|| HUB.paths(line.wd).into_iter().next()).flatten() {
                row.insert("path".into(), path_value(&path));
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

fn flags(excl_unlink: bool, oneshot: bool) -> Vec<String> {
    let flags = [("excl-unlink", excl_unlink), ("oneshot", oneshot)];
    flags.iter().filter(|flag| flag.1).map(|flag| flag.0.to_owned()).collect()
}

fn path_value(path: &Path) -> Value {
    Value::text_or_bytes(path.as_os_str().as_bytes())
}

/// The limits are for a user: what the caller's own processes use counts. An instance that a child
/// process inherited is counted for both.
fn limits() -> Dict {
    let mut limits = Dict::new();
    for name in ["max_user_watches", "max_user_instances", "max_queued_events"] {
        if let Some(value) = proc::sysctl(&format!("fs/inotify/{name}")) {
            limits.insert(format!("fs.inotify.{name}"), value.into());
        }
    }
    let caller = rustix::process::geteuid().as_raw();
    let mut instances = proc::held(is_instance);
    instances.retain(|held| {
        std::fs::metadata(format!("/proc/{}", held.pid)).is_ok_and(|process| process.uid() == caller)
    });
    let watches = |held: &proc::Held| inotify::mask::watches(&proc::fdinfo_text(held.pid, held.fd)).len() as u64;
    limits.insert("watches".into(), instances.iter().map(watches).sum::<u64>().into());
    limits.insert("instances".into(), (instances.len() as u64).into());
    limits
}

struct Watcher {
    handle: Handle,
}

impl Endpoint for Watcher {
    fn address(&self) -> Address {
        let wish = &self.handle.wish;
        let mut address = Address::new("inotify").with("path", wish.path.as_os_str().as_bytes());
        if wish.mask != libc::IN_ALL_EVENTS {
            address = address.with("events", inotify::mask::words(wish.mask).join("+"));
        }
        for (key, set) in [
            ("onlydir", wish.only_directory),
            ("dont-follow", wish.dont_follow),
            ("excl-unlink", wish.excl_unlink),
            ("oneshot", wish.oneshot),
        ] {
            if set {
                address = address.with(key, "true");
            }
        }
        address
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Watch]
    }

    fn inspect(&self) -> Result<Dict> {
        let wish = &self.handle.wish;
        let mut state = dict! {
            "path" => path_value(&wish.path),
            "events" => inotify::mask::words(wish.mask),
            "flags" => flags(wish.excl_unlink, wish.oneshot),
            "wd" => self.handle.wd,
            "inode" => self.handle.stat.st_ino,
            "queued" => self.handle.queued() as u64,
            "endpoints" => HUB.paths(self.handle.wd).len() as u64,
            "filesystem" => self.handle.filesystem.as_str(),
            "complete" => self.handle.complete,
        };
        if let Some(reason) = self.handle.ended() {
            state.insert("ended".into(), reason.into());
        } else if let Some(line) = HUB.kernel_watches().iter().find(|line| line.wd == self.handle.wd) {
            state.insert("kernel-events".into(), inotify::mask::words(line.mask).into());
            state.insert("device".into(), line.device().into());
        }
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        Err(Error::not_supported(
            "a watch has no file descriptor of its own: all watches share one inotify instance, whose descriptor would \
             give away the events of every endpoint",
        ))
    }

    fn remove(&self) -> Result<()> {
        Err(Error::not_supported("a watch has no name to remove; Close ends it"))
    }

    fn events(&self) -> Option<&dyn Events> {
        Some(self)
    }
}

impl Events for Watcher {
    fn next(&self) -> Result<Attempt<Vec<Notice>>> {
        // Asked first: the end may come between two looks.
        let ended = self.handle.ended();
        match (self.handle.take(), ended) {
            (Ok(items), _) => Ok(Attempt::Done(items.into_iter().map(|item| self.notice(item)).collect())),
            (Err(_), Some(reason)) => Err(Error::new(Kind::Closed, format!("the watch has ended: {reason}"))),
            (Err(listener), None) => Ok(Attempt::Wait(Readiness::Notified(listener))),
        }
    }
}

impl Watcher {
    fn notice(&self, item: Item) -> Notice {
        match item {
            Item::Happened { mask, name } => Notice::Event(Event {
                names: inotify::mask::names(mask),
                path: join(&self.handle.wish.path, &name),
                from: Vec::new(),
            }),
            Item::Overflow => Notice::Overflow,
            Item::End(reason) => Notice::End(reason.to_owned()),
        }
    }
}

/// The path of a directory's entry; the directory's own where there is no name.
fn join(directory: &Path, name: &[u8]) -> Vec<u8> {
    let mut path = directory.as_os_str().as_bytes().to_owned();
    if !name.is_empty() {
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    path
}
