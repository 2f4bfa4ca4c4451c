//! Changes of files and directories, inotify(7).
//!
//! An endpoint is a watch. All watches of the process share one inotify instance, which the hub
//! (`inotify/hub.rs`) reads, driven by this mechanism's `driver`; an endpoint takes what the hub
//! has put aside for it and gives it its names and its path.

use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::fs::{FileType, Stat};

use crate::{
    Ability, Lack, Address, Attempt, Descriptor, Dict, Endpoint, Error, Fd, Opening, Parameter, Parameters, Result, Type, Value, dict,
    fd, inotify,
    inotify::{
        filesystem::Filesystem,
        filter::Filter,
        flow::{Flow, One, Source},
        hub::{HUB, Want},
        poll::Poll,
        queue::{Handle, Wish},
        settle::Settle,
        tree::{Mark, Tree},
        users,
    },
    mechanism::{Adoption, Column},
    proc,
    shape::{Events, Notice, Shape},
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
    list: || Ok(list()?.into()),
    limits,
    available: || Ok(()),
    driver: Some(|| HUB.drive()),
    lacks: &[
        Lack::new(
            Ability::Attach,
            "a watch belongs to the process that made it; `Create` adds one to a file or directory that exists",
        ),
        Lack::new(
            Ability::Write,
            "what is watched is written by others; a watch only tells",
        ),
        Lack::new(
            Ability::Fd,
            "all watches share one inotify instance, whose descriptor would give away the events of every endpoint",
        ),
        Lack::new(
            Ability::Relay,
            "an event is a D-Bus signal with names and paths, and no bytes",
        ),
        Lack::new(
            Ability::Permissions,
            "a watch has none; making one takes the right to read the file",
        ),
        Lack::new(
            Ability::Remove,
            "a watch has no name; `Close` ends it",
        ),
    ],
    reference: REFERENCE,
};

const PARAMETERS: &[Parameter] = &[
    Parameter::new("path", Type::Path, "Absolute path of the file or directory to watch").required(),
    Parameter::new("events", Type::Words(inotify::mask::WORDS), "Events to watch for; all, close, move and written are groups")
        .default("all"),
    Parameter::new("recursive", Type::Bool, "Watch all directories below, and those that come").default("false"),
    Parameter::new("include", Type::Text, "Glob of what is told, such as {*.c,*.h}; without a slash it is for names at any depth"),
    Parameter::new("exclude", Type::Text, "Glob of what is left out, directories with all that is in them"),
    Parameter::new("debounce-ms", Type::U32 { min: 1, max: 60_000 }, "Tell of a path once, when nothing more has happened to it for so long"),
    Parameter::new("initial", Type::Bool, "Begin with what is there: one event for each entry, marked INITIAL").default("false"),
    Parameter::new("rescan", Type::Bool, "After lost events look for what has changed; default: as recursive"),
    Parameter::new("poll-ms", Type::U32 { min: 100, max: 3_600_000 }, "Look again and again instead of watching, for file systems that do not tell"),
    Parameter::new("partial", Type::Bool, "Watch also where inotify does not see all changes (NFS, FUSE, proc, sysfs)").default("false"),
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

## Events

Each event has the names of inotify(7) without `IN_`: one of `ACCESS` `ATTRIB` `CLOSE_WRITE`
`CLOSE_NOWRITE` `CREATE` `DELETE` `DELETE_SELF` `MODIFY` `MOVE_SELF` `MOVED_FROM` `MOVED_TO` `OPEN`, with
`ISDIR` if it happened to a directory; `UNMOUNT` and `IGNORED` come unasked. Its path is that of the watch,
with `/` and the name of the entry behind it for what happened to an entry of a watched directory.
The path is what the file was called then, not now. Identical successive events may arrive as one.

A rename is one event with both names, `MOVED_FROM` `MOVED_TO`, its path and its former path; who asked for one of
the two gets both. `MOVED_FROM` alone went out of what is watched, `MOVED_TO` alone came in. What goes
out is told up to 20 ms late, and what happened after it then too: so long its other half is waited for. Two
names that change places (RENAME_EXCHANGE) are two renames. `written` asks for what makes a file complete:
`CLOSE_WRITE`, and `MOVED_TO` for programs that write a new file and rename it.

Events that no event of the kernel stands behind are marked by one name more: `INITIAL` (it was there at
`Create`, option `initial`), `FOUND` (it was in a directory that had just come), `RESCANNED` (it differs from
what was told, after events were lost or where renames overtook each other) and `POLLED`. They are `CREATE`,
`DELETE`, `MODIFY` or `ATTRIB`; who did not ask for that gets the first that he did ask for of `CLOSE_WRITE`,
`MOVED_TO` or `MOVED_FROM`.

After `IGNORED` the watch has ended; the reason says whether the file was removed, the file system was
unmounted or `oneshot` was asked for. A removed file ends its watch when nobody has it open any more.

## Whole trees

`recursive` watches every directory below, and those that come: a directory is watched first, then listed, so that
nothing in it is missed, and what both an event and the list have is told once. Directories that are renamed keep their
watches; those that go out lose them. Symbolic links are not followed. What the tree's own directories do to
themselves, the directory above tells; that a directory was opened, read or closed is not told, as the service
does it too. When the watched directory itself is renamed, or one above it, the watch ends: it could not find new
directories.

Directories that are not watched are told as `UNWATCHED` `ISDIR`, with the `reason` in the details: another file
system is mounted there; the caller may not read it (any more: whoever hears that knows nothing of what is in it,
until it is readable again and what is there is told as `FOUND`); a limit is reached. Each directory is a watch of the
kernel, and counts in the limit `watches`. A tree remembers the names in it, at most 262144.

`include` and `exclude` are globs. Without a slash they are for names at any depth, with one for the path below
the watched directory; `*` and `?` stop at slashes, `**` does not, `{a,b}` are alternatives. What is excluded is
neither told nor, if it is a directory, watched. `include` is for what is told only.

`debounce-ms` tells of a path when nothing more has happened to it for so long, or after ten times that: one event
with the names of all, in the order in which each came last.

## Lost events

16384 events wait for an endpoint; when more come, or when the kernel's own queue overflows
(fs.inotify.max_queued_events), `Overflow` says that some are lost. With `recursive` or `rescan` the directories are
then compared with what was told, and what differs is told as `RESCANNED`: names that are new or gone, and files whose
time of change (ctime) is later than the last that was told of them. What came and went in between is lost, a
rename may be `DELETE` and `CREATE`, and a clock that was set back may hide a change of content.

All watches of a caller share one inotify instance, as a user has few (fs.inotify.max_user_instances,
128). Watches of the same inode share the kernel's watch, whose mask is the union of theirs; each endpoint
gets only what it asked for.

## What inotify does not see

Stores through a mapping (mmap(2), msync(2)); what happens to a file through a hard link outside the watched
directory; what is mounted over a watched directory later. On network file systems, FUSE, proc, sysfs and the like it does
not see what a server, other machines or the kernel change: there `Create` is `NotSupported`, unless `poll-ms` has
the service look again and again (every `poll-ms` milliseconds after the last look; at most 65536 files; in proc the names
only, as its files have no size and no time), or `partial` says that what local processes change is enough.
`Inspect` names the file system and says with `complete` whether all its changes are seen.

Sources: inotify(7), inotify_add_watch(2), proc_pid_fdinfo(5).

| error | when |
| --- | --- |
| `InvalidArgument` | `path` is not absolute; an unknown event; a glob that is none |
| `NotFound` | nothing has this path |
| `PermissionDenied` | the caller may not read it, or not search the path |
| `Errno.ENOTDIR` | a part of the path is not a directory, or with `onlydir` or `recursive` all of it |
| `LimitExceeded` | `watches`; fs.inotify.max_user_watches or max_user_instances, with the value and who uses them; too many names |
| `Busy` | another endpoint watches the same inode with another `excl-unlink` |
| `NotSupported` | a file system that does not tell; `Attach`, `Open`, `Adopt`, `SetPermissions`, `Remove` |
| `Closed` | events are asked for after the watch has ended |

Not offered: IN_MASK_ADD and IN_MASK_CREATE, because the service needs them to share watches; `Open`, because the
instance carries the events of all endpoints, and the kernel has no fd of a single watch; fanotify(7), and with it who
changed a file: without CAP_SYS_ADMIN it marks single inodes as inotify does, tells no process, and names files by handles
that only open_by_handle_at(2) opens, which the sandbox forbids; what has the capability may use it directly.";

fn create(parameters: &Parameters) -> Result<Opening> {
    let path = parameters.path("path")?.ok_or_else(|| Error::invalid("the key \"path\" is missing"))?;
    let events = parameters.texts("events").unwrap_or_default();
    let mask = events.iter().fold(0, |mask, word| mask | inotify::mask::bits(word));
    if mask == 0 {
        return Err(Error::invalid("the key \"events\" is empty: name at least one event, or all"));
    }
    let wish = Wish {
        path,
        mask,
        only_directory: parameters.bool("onlydir") || parameters.bool("recursive"),
        dont_follow: parameters.bool("dont-follow"),
        excl_unlink: parameters.bool("excl-unlink"),
    };
    let oneshot = parameters.bool("oneshot");
    let settle = parameters.u32("debounce-ms").map(|ms| Settle::new(Duration::from_millis(ms.into())));
    let pinned = wish.find()?;
    let stat = fd::stat(&pinned)?;
    let filesystem = Filesystem::of(&pinned);
    let source = source(parameters, &wish, &pinned, &stat, &filesystem)?;
    let given = GIVEN.iter().filter_map(|key| Some((*key, parameters.written(key)?))).collect();
    let flow = Mutex::new(Flow::new(source, settle, oneshot));
    Ok(Watcher { wish, given, stat, filesystem, flow }.into())
}

/// Where the events come from, as the parameters and the file system say.
fn source(
    parameters: &Parameters,
    wish: &Wish,
    pinned: &Fd,
    stat: &Stat,
    filesystem: &Filesystem,
) -> Result<Source> {
    let filter = Filter::new(parameters)?;
    let (recursive, initial) = (parameters.bool("recursive"), parameters.bool("initial"));
    if let Some(ms) = parameters.u32("poll-ms") {
        let every = Duration::from_millis(ms.into());
        return Ok(Source::Poll(Box::new(Poll::new(wish.clone(), filter, recursive, every, initial)?)));
    }
    filesystem.demand_complete(&wish.attempt(), parameters.bool("partial"))?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let rescan = if parameters.has("rescan") { parameters.bool("rescan") } else { recursive };
    let inode = (stat.st_dev, stat.st_ino);
    let handle = Handle::new(wish.clone());
    if directory && (recursive || initial || rescan) {
        let mut tree = Tree::new(handle, filter, recursive, parameters.budget.clone(), inode);
        tree.start(pinned, Mark::Initial { told: initial })?;
        return Ok(Source::Tree(Box::new(tree)));
    }
    // Both halves of a rename are needed to make one event of it.
    let moves = if wish.mask & libc::IN_MOVE != 0 { libc::IN_MOVE } else { 0 };
    let want = Want {
        path: wish.path.clone(),
        mask: wish.mask | moves,
        excl_unlink: wish.excl_unlink,
        // Elsewhere it might have to be waited for.
        inode: filesystem.complete.then_some(inode),
    };
    let wd = HUB.watch(&handle, pinned, want)?;
    Ok(Source::One(One { handle, filter, wd }))
}

fn attach(_: &Parameters) -> Result<Opening> {
    Err(Error::not_supported(
        "an inotify watch has no name to attach to: it belongs to the process that made it; use Create, which adds a \
         watch to a file or directory that exists",
    ))
}

/// Every watch of every visible process. The kernel tells inodes, not paths; we know ours.
fn list() -> Result<Vec<Dict>> {
    let mut rows = Vec::new();
    for held in proc::held(users::is_instance) {
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
    let instances = users::instances();
    limits.insert("watches".into(), instances.iter().map(users::watches).sum::<u64>().into());
    limits.insert("instances".into(), (instances.len() as u64).into());
    limits
}

struct Watcher {
    wish: Wish,
    /// The keys that were given besides those of the wish, as in an address.
    given: Vec<(&'static str, String)>,
    stat: Stat,
    filesystem: Filesystem,
    flow: Mutex<Flow>,
}

/// The keys that are shown in the address as they were given.
const GIVEN: &[&str] =
    &["recursive", "include", "exclude", "debounce-ms", "initial", "rescan", "poll-ms", "partial", "oneshot"];

impl Watcher {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoint for Watcher {
    fn address(&self) -> Address {
        let wish = &self.wish;
        let mut address = Address::new("inotify").with("path", wish.path.as_os_str().as_bytes());
        if wish.mask != libc::IN_ALL_EVENTS {
            address = address.with("events", inotify::mask::words(wish.mask).join("+"));
        }
        for (key, set) in [
            ("onlydir", wish.only_directory),
            ("dont-follow", wish.dont_follow),
            ("excl-unlink", wish.excl_unlink),
        ] {
            if set {
                address = address.with(key, "true");
            }
        }
        self.given.iter().fold(address, |address, (key, value)| address.with(key, value.as_bytes()))
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Watch]
    }

    fn inspect(&self) -> Result<Dict> {
        let wish = &self.wish;
        let mut state = dict! {
            "path" => path_value(&wish.path),
            "events" => inotify::mask::words(wish.mask),
            "inode" => self.stat.st_ino,
            "filesystem" => self.filesystem.kind.as_str(),
            "complete" => self.filesystem.complete,
        };
        let flow = self.flow();
        state.insert("queued".into(), (flow.waiting() as u64).into());
        state.insert("flags".into(), flags(wish.excl_unlink, flow.oneshot()).into());
        if let Some(reason) = flow.ended() {
            state.insert("ended".into(), reason.into());
        }
        let wd = match &flow.source {
            Source::One(one) => one.wd,
            Source::Tree(tree) => {
                let (remembered, all) = tree.remembered();
                state.insert("directories".into(), (tree.directories() as u64).into());
                state.insert("unwatched".into(), (tree.unwatched() as u64).into());
                state.insert("remembered".into(), (remembered as u64).into());
                state.insert("remembers-all".into(), all.into());
                tree.root
            }
            Source::Poll(poll) => {
                state.insert("polled".into(), (poll.polled() as u64).into());
                return Ok(state);
            }
        };
        state.insert("wd".into(), wd.into());
        state.insert("endpoints".into(), (HUB.paths(wd).len() as u64).into());
        if let Some(line) = HUB.kernel_watches().iter().find(|line| line.wd == wd && flow.ended().is_none()) {
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
        self.flow().attempt()
    }
}
