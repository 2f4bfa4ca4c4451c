//! An oracle beside all other tests: whatever callers do, and whatever is done to them, the processes that are not
//! theirs make few kinds of system calls, and none of them on what is a caller's. strace(1) watches the front and
//! the spawner while alice, bob and others do one of everything; so it also sees what the spawner's children do
//! before they are their callers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use ipc_adversary::wire::{self, Arg, Outgoing, bytes, dict, no_options, text};
use ipc_adversary::{Raw, Stage, Streams, outcome};
use ipc_harness::system::{ALICE, BOB, Identity, NOBODY, ROOT};
use ipc_harness::{PATH, Process, Signal, need_tool, or_skip, patience, temp_dir, wait_gone};

/// What all of them do: memory, time, an end.
const ANY: &[&str] = &[
    "brk",
    "clock_gettime",
    "exit",
    "exit_group",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "restart_syscall",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
];

/// Messages, readiness, threads that close what may hang, and the name of a group in passwd(5).
const FRONT: &[&str] = &[
    "clone",
    "clone3",
    "close",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "fcntl",
    "fstat",
    "ioctl",
    "lseek",
    "newfstatat",
    "openat",
    "pidfd_open",
    "prctl",
    "read",
    "recvfrom",
    "recvmsg",
    "rseq",
    "sched_getaffinity",
    "sched_yield",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "shutdown",
    "socketpair",
    "statx",
    "write",
];

/// Requests and replies, forks, and what /proc tells of a process.
const SPAWNER: &[&str] = &[
    "clone",
    "clone3",
    "close",
    "fcntl",
    "fstat",
    "lseek",
    "newfstatat",
    "openat",
    "pidfd_open",
    "pidfd_send_signal",
    "poll",
    "ppoll",
    "read",
    "recvmsg",
    "sendmsg",
    "socketpair",
    "statx",
    "waitid",
    "write",
];

/// What a child does on the way from root to its caller.
const BIRTH: &[&str] = &[
    "capget",
    "capset",
    "chdir",
    "close",
    "close_range",
    "dup2",
    "dup3",
    "fcntl",
    "getgroups",
    "ioctl",
    "keyctl",
    "open",
    "openat",
    "prctl",
    "prlimit64",
    "rseq",
    "set_robust_list",
    "setgroups",
    "setresgid",
    "setresuid",
    "setsid",
    "umask",
];

/// The paths that are named, and beginnings of paths that end with a slash.
const FRONTS_PATHS: &[&str] = &["/etc/passwd"];
const SPAWNERS_PATHS: &[&str] =
    &["/proc/", "ns/mnt", "ns/pid", "ns/ipc", "ns/net", "ns/user", "root", "status", "attr/current"];
const BIRTHS_PATHS: &[&str] = &["/", "/dev/null", "/proc/self/fd/2"];

/// strace, attached to the front and the spawner, with a log for each thread.
struct Trace {
    strace: Process,
    dir: ipc_harness::TempDir,
}

impl Trace {
    fn attach(pids: &[i32]) -> Trace {
        let dir = temp_dir();
        let mut command = Command::new("strace");
        // Strings long enough for a path; descriptors with what they are.
        command.args(["-ff", "-yy", "-s", "512", "-o"]).arg(dir.path().join("log"));
        command.args(pids.iter().map(|pid| format!("--attach={pid}")));
        let strace = Process::spawn(&mut command);
        for pid in pids {
            let attached = format!("Process {pid} attached");
            strace.stderr().wait_for(|line| line.contains(&attached)).expect("root may attach");
        }
        Trace { strace, dir }
    }

    /// The lines of each thread, by its id.
    fn end(mut self) -> BTreeMap<i32, Vec<String>> {
        self.strace.signal(Signal::INT);
        self.strace.wait();
        let mut logs = BTreeMap::new();
        for file in fs::read_dir(self.dir.path()).expect("an own directory").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let thread = name.strip_prefix("log.").and_then(|id| id.parse().ok()).expect("log.<thread>");
            let text = String::from_utf8_lossy(&fs::read(file.path()).expect("a log")).into_owned();
            logs.insert(thread, text.lines().map(str::to_owned).collect());
        }
        logs
    }
}

/// The call that a line is about; None: it is about a signal or an end.
fn call(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('(')?;
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(is_name).then_some(name)
}

/// The paths that a call names: the strings of those calls that take a path.
fn paths(line: &str) -> Vec<&str> {
    let takes_paths = [
        "open", "stat", "access", "readlink", "chdir", "exec", "link", "unlink", "mkdir", "mknod", "connect",
    ];
    match call(line) {
        // fstat is newfstatat with an empty path.
        Some(name) if takes_paths.iter().any(|part| name.contains(part)) => {
            line.split('"').skip(1).step_by(2).filter(|path| !path.is_empty()).collect()
        }
        _ => Vec::new(),
    }
}

/// Panics unless these lines have calls of the list only, and paths of the other, and touch nothing that is there.
fn judge(who: &str, lines: &[String], calls: &[&[&str]], allowed: &[&str], callers: &Path) {
    let callers = callers.display().to_string();
    for line in lines {
        let Some(name) = call(line) else { continue };
        assert!(calls.iter().any(|list| list.contains(&name)), "{who}: {name} is not in its list: {line}");
        for path in paths(line) {
            let below = |allowed: &&str| {
                path == *allowed || allowed.len() > 1 && allowed.ends_with('/') && path.starts_with(*allowed)
            };
            assert!(allowed.iter().any(below), "{who} names the path {path:?}: {line}");
        }
        // Whether it is a terminal, and that nothing waits for it.
        let harmless = ["FIONBIO", "TCGETS"].iter().any(|request| line.contains(request));
        assert!(name != "ioctl" || harmless, "{who}: {line}");
        // What passes through is a caller's, and closed in the end; a debug build first asks whether it is open.
        let passes = ["recvmsg", "sendmsg", "close"].contains(&name) || line.contains("F_GETFD");
        assert!(passes || !line.contains(&callers), "{who} touches what is a caller's: {line}");
    }
}

/// All threads of the front: the first, and those that one of them started.
fn threads(logs: &BTreeMap<i32, Vec<String>>, first: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::from([first]);
    let mut open = vec![first];
    while let Some(thread) = open.pop() {
        for line in logs.get(&thread).into_iter().flatten() {
            let started = line.starts_with("clone") && line.contains("CLONE_THREAD");
            let id = line.rsplit("= ").next().and_then(|id| id.split([' ', '<']).next()?.parse().ok());
            if let (true, Some(id)) = (started, id)
                && found.insert(id)
            {
                open.push(id);
            }
        }
    }
    found
}

/// One of everything that a caller does.
fn everything(stage: &Stage, user: &mut Raw, directory: &str, bobs: &str) {
    let fifo = user.create(&format!("fifo:path={directory}/fifo"));
    user.create(&format!("mmap:size=64,path={directory}/memory"));
    user.create(&format!("inotify:path={directory},events=create"));
    user.create(&format!("unix:path={directory}/socket"));
    user.attach(&format!("unix:path={directory}/socket"));
    let pipe = user.create("pipe:");
    let other = user.create("pipe:");
    user.write(&pipe, "x").expect("WriteText");
    user.read_text(&pipe).expect("ReadText");
    let relay = [Arg::Path(pipe.clone()), Arg::Path(other), no_options()];
    user.call(PATH, "", "Relay", &relay).expect("Relay");
    let opened = user.call(&fifo, "Endpoint", "Open", &[dict(&[("access", text("read-only"))])]);
    drop(opened);
    user.call(&fifo, "Endpoint", "SetPermissions", &[dict(&[("mode", Arg::U32(0o640))])])
        .expect("SetPermissions");
    user.call(&fifo, "Endpoint", "Remove", &[]).expect("Remove");
    user.call(PATH, "", "Connect", &[]).expect("Connect");
    let file = fs::File::open(format!("{directory}/memory")).expect("root may");
    let adopt = Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(1);
    // Whether it fits is the worker's to say.
    let _adopted = user.ask(adopt, &[file.as_fd()]);
    // What is refused: by the kernel, by the worker, by the front, by the bus.
    for address in
        [format!("mmap:path={bobs}/secret"), format!("fifo:path={bobs}/secret"), "pipe:pid=1,fd=0".to_owned()]
    {
        user.refused("Attach", &address);
    }
    user.refused("Create", "nothing:");
    let large = Raw::message(PATH, "", "Create", &[bytes(&vec![0; 2 << 20])]);
    assert!(user.ask(large, &[]).is_err_and(|error| error.is("TooLarge")));
    for _ in 0..100 {
        user.send(Raw::message(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(1)]));
    }
    user.driver("GetId", &[]).expect("the bus answers");
    let mut leaving = stage.raw(ALICE);
    leaving.create("pipe:lifetime=client");
}

/// Callers who get less, or nothing.
fn others(stage: &Stage) {
    stage.raw(ROOT).create("pipe:");
    assert!(stage.raw(NOBODY).try_make("Create", "pipe:").is_err());
    let confined = Identity::from(BOB).within(&["unshare", "--net"]);
    assert!(stage.raw(confined).refused("Attach", "pipe:pid=1,fd=0").is("Confined"));
}

/// Workers that are killed, by their user and for what they say.
fn ends(stage: &Stage, alice: &mut Raw) {
    let worker = stage.worker_of(ALICE);
    let pipe = alice.create("pipe:");
    let waiting = alice.send(Raw::message(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(20_000)]));
    stage.bus.sh_as(&ALICE.into(), &format!("kill -KILL {worker}")).finish().success();
    let reply = alice.reply_within(waiting, patience()).expect("an answer");
    assert!(outcome(reply).is_err_and(|error| error.is("Gone")));
    alice.create("pipe:");
    let worker = stage.worker_of(ALICE);
    let lie = Outgoing { serial: 9, ..Outgoing::reply(":1.9999", 7, &[]).with(wire::INTERFACE, text("a.b")) };
    Streams::of(worker).say(&lie);
    assert!(wait_gone(worker), "a worker that lies is ended");
}

#[test]
fn system_calls_of_the_front_and_the_spawner() {
    or_skip!(need_tool("strace"));
    let stage = or_skip!(Stage::with_config("[front]\nworker-starts = 16\n"));
    let alices = stage.directory((ALICE, ALICE.gid), 0o755, "alices");
    let bobs = stage.directory((BOB, BOB.gid), 0o755, "bobs");
    for (owner, path) in [(BOB, format!("{bobs}/secret")), (ALICE, format!("{alices}/secret"))] {
        fs::write(&path, "secret").expect("root may");
        std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid)).expect("root may");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("root may");
    }
    let (spawner, front) = (stage.spawner(), stage.front());
    let trace = Trace::attach(&[spawner, front]);
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    everything(&stage, &mut alice, &alices, &bobs);
    everything(&stage, &mut bob, &bobs, &alices);
    others(&stage);
    ends(&stage, &mut alice);
    bob.ping().expect("an answer");
    drop((alice, bob));
    let logs = trace.end();
    let callers = stage.path("");
    let callers = Path::new(callers.trim_end_matches('/'));
    let fronts = threads(&logs, front);
    let mut births = 0;
    for (thread, lines) in &logs {
        if fronts.contains(thread) {
            judge("the front", lines, &[ANY, FRONT], FRONTS_PATHS, callers);
        } else if *thread == spawner {
            judge("the spawner", lines, &[ANY, SPAWNER], SPAWNERS_PATHS, callers);
        } else if let Some(last) = lines.iter().rposition(|line| line.starts_with("setresuid(")) {
            births += 1;
            judge("a child of the spawner", &lines[..=last], &[ANY, BIRTH], BIRTHS_PATHS, callers);
        }
    }
    assert!(births >= 4, "{births} workers were seen");
    for (who, thread) in [("the front", front), ("the spawner", spawner)] {
        let kinds: BTreeSet<_> = logs[&thread].iter().filter_map(|line| call(line)).collect();
        println!("{who} made {} calls of {} kinds: {kinds:?}", logs[&thread].len(), kinds.len());
        assert!(kinds.contains("recvmsg") && kinds.contains("sendmsg"), "{who} was not watched");
    }
}
