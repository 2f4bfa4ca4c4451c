//! Promise G1: whatever a caller achieves through the service, he could have achieved himself. So alice does everything
//! twice, by a program of her own and through the service, in two directories that are alike: both succeed, with the
//! same owner and mode of what they made, or both fail with the same errno.

mod directly;
mod queues;
mod semaphores;
mod sysv_queues;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use ipc_adversary::wire::{Arg, dict, no_options};
use ipc_adversary::{Raw, Stage, errno};
use ipc_harness::system::{ALICE, BOB, ROOT, SHARED, User};
use ipc_harness::{CallError, PATH, Process, or_skip, unique};

/// What is done, to one path (name, host and port, or process and descriptor).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Does {
    MakeFifo,
    MakeFile,
    BindSocket,
    ReadFifo,
    WriteFifo,
    MapForReading,
    MapForBoth,
    Connect,
    Watch,
    Remove,
    Chmod,
    MakeSemaphore,
    OpenSemaphore,
    OpenFutex,
    MakeQueue,
    ReadQueue,
    WriteQueue,
    OpenQueue,
    ChmodQueue,
    RemoveQueue,
    BindPort,
    ConnectPort,
    OpenDescriptor,
    MakeSysvQueue,
    FindQueue,
    SendToQueue,
    ReceiveFromQueue,
    PeekAtQueue,
    ChmodSysvQueue,
    RaiseQueue,
    RemoveSysvQueue,
    AskSignal,
    SendSignal,
}

use Does::*;
use sysv_queues::SysvQueues;

/// Through the service, with the outcome in the same words.
fn through_the_service(alice: &mut Raw, does: Does, path: &str) -> String {
    let outcome = match does {
        MakeFifo => alice.try_make("Create", &format!("fifo:path={path}")).map(drop),
        MakeFile => alice.try_make("Create", &format!("mmap:size=32,path={path}")).map(drop),
        BindSocket => alice.try_make("Create", &format!("unix:path={path},remove-on-close=false")).map(drop),
        MapForReading => alice.try_make("Attach", &format!("mmap:path={path},access=read-only")).map(drop),
        MapForBoth => alice.try_make("Attach", &format!("mmap:path={path}")).map(drop),
        Connect => alice.try_make("Attach", &format!("unix:path={path}")).map(drop),
        Watch => alice.try_make("Create", &format!("inotify:path={path},events=create")).map(drop),
        MakeSemaphore => {
            alice.try_make("Create", &format!("posixsem:name=/{path},remove-on-close=false")).map(drop)
        }
        OpenSemaphore => alice.try_make("Attach", &format!("posixsem:name=/{path}")).map(drop),
        OpenFutex => alice.try_make("Attach", &format!("futex:name=/{path}")).map(drop),
        MakeQueue | ReadQueue | WriteQueue | OpenQueue | ChmodQueue | RemoveQueue => {
            queues::through_the_service(alice, does, path)
        }
        ReadFifo => at(alice, &format!("fifo:path={path}"), "Stream", "Read", &[Arg::U32(1), Arg::U32(0)]),
        WriteFifo => {
            let args = [Arg::Array("y".into(), vec![Arg::Byte(1)]), Arg::U32(0)];
            at(alice, &format!("fifo:path={path}"), "Stream", "Write", &args)
        }
        Remove => at(alice, &format!("fifo:path={path}"), "Endpoint", "Remove", &[]),
        Chmod => {
            let args = [dict(&[("mode", Arg::U32(0o640))])];
            at(alice, &format!("fifo:path={path}"), "Endpoint", "SetPermissions", &args)
        }
        BindPort | ConnectPort => {
            let (host, port) = path.rsplit_once(' ').expect("host and port");
            let verb = if does == BindPort { "Create" } else { "Attach" };
            alice.try_make(verb, &format!("tcp:host={host},port={port}")).map(drop)
        }
        AskSignal | SendSignal => {
            let signal = if does == AskSignal { "0" } else { "SIGURG" };
            at(
                alice,
                &format!("signal:pid={path}"),
                "Process",
                "Send",
                &[Arg::Str(signal.into()), Arg::I32(0)],
            )
        }
        OpenDescriptor => {
            let (pid, fd) = path.split_once(' ').expect("process and descriptor");
            alice.try_make("Attach", &format!("pipe:pid={pid},fd={fd}")).map(drop)
        }
        does => sysv_queues::through_the_service(alice, does, path),
    };
    match outcome {
        Ok(()) => "ok".to_owned(),
        // Of a FIFO that has no other end: it was opened.
        Err(error) if error.is("Busy") || error.is("Closed") => "ok".to_owned(),
        // It says what is there instead of the errno: bind(2) has this one only.
        Err(error) if does == BindSocket && error.is("Exists") => "EADDRINUSE".to_owned(),
        Err(error) => errno(&error),
    }
}

fn at(alice: &mut Raw, address: &str, interface: &str, member: &str, args: &[Arg]) -> Result<(), CallError> {
    let endpoint = alice.try_make("Attach", address)?;
    let done = alice.call(&endpoint, interface, member, args).map(drop);
    // Remove has closed it.
    let _closed = alice.call(&endpoint, "Endpoint", "Close", &[]);
    done
}

/// Files, FIFOs and sockets of everybody, in a directory that alice may enter.
fn furnish(stage: &Stage, root: &str) -> Process {
    let directory = |owner: (User, u32), mode: u32, name: &str| {
        fs::create_dir(format!("{root}/{name}")).expect("a directory");
        own(&format!("{root}/{name}"), owner, mode);
    };
    let (alice, bob, root_user) = ((ALICE, ALICE.gid), (BOB, BOB.gid), (ROOT, 0));
    directory(alice, 0o755, "own");
    directory(bob, 0o755, "bobs");
    directory((BOB, SHARED), 0o770, "group");
    directory((ROOT, SHARED), 0o2775, "setgid");
    directory(root_user, 0o1777, "sticky");
    directory(root_user, 0o555, "readonly");
    directory(root_user, 0o711, "searchable");
    directory(root_user, 0o700, "locked");
    directory(alice, 0o500, "own-readonly");
    for (name, owner, mode) in [
        ("own/file", alice, 0o600),
        ("own/readonly", alice, 0o400),
        ("own/writeonly", alice, 0o200),
        ("own/none", alice, 0o000),
        ("own-readonly/file", alice, 0o600),
        ("bobs/file", bob, 0o600),
        ("bobs/readable", bob, 0o644),
        ("bobs/group", (BOB, SHARED), 0o660),
        ("bobs/group-readable", (BOB, SHARED), 0o640),
        ("bobs/group-denied", (BOB, SHARED), 0o606),
        ("sticky/roots", root_user, 0o600),
        ("sticky/world", root_user, 0o666),
        ("sticky/own", alice, 0o600),
        ("sticky/bobs", bob, 0o666),
        ("searchable/world", root_user, 0o666),
        ("locked/world", root_user, 0o666),
        ("group/world", root_user, 0o666),
    ] {
        fs::write(format!("{root}/{name}"), "x").expect("a file");
        own(&format!("{root}/{name}"), owner, mode);
        let fifo = format!("{root}/{name}.fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::empty()).expect("a FIFO");
        own(&fifo, owner, mode);
    }
    for (link, target) in [
        ("own/to-file", "file"),
        ("own/to-roots", "../sticky/roots"),
        ("own/to-nothing", "nothing"),
        ("own/loop", "loop"),
        ("sticky/bobs-link", "bobs"),
    ] {
        std::os::unix::fs::symlink(target, format!("{root}/{link}")).expect("a link");
    }
    // Bob listens on sockets; their modes decide who may connect.
    let script = "import os,socket,sys\nkept=[]\n\
        for mode in ('600','666','620'):\n\
        \x20 s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]+'/bobs/socket-'+mode); s.listen(); kept.append(s)\n\
        \x20 os.chmod(sys.argv[1]+'/bobs/socket-'+mode,int(mode,8))\n\
        os.chown(sys.argv[1]+'/bobs/socket-620',-1,int(sys.argv[2]))\n\
        s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]+'/bobs/stale'); s.close(); os.chmod(sys.argv[1]+'/bobs/stale',0o666)\n\
        print('listening'); sys.stdin.read()";
    let listener = stage.bus.python_as(&BOB.into(), script, &[root, &SHARED.to_string()]);
    listener.wait_for(|line| line == "listening");
    listener
}

fn own(path: &str, (user, group): (User, u32), mode: u32) {
    std::os::unix::fs::chown(path, Some(user.uid), Some(group)).expect("root may");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("root may");
}

/// Owner, group, mode and kind of everything in the directory, by its name.
fn inventory(root: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("root may").flatten() {
            let path = entry.path().display().to_string();
            let metadata = fs::symlink_metadata(&path).expect("root may");
            let kind = metadata.file_type();
            let kind = (kind.is_dir(), kind.is_fifo(), kind.is_socket(), kind.is_symlink());
            let line = format!("{}:{} {:o} {kind:?}", metadata.uid(), metadata.gid(), metadata.mode());
            if metadata.is_dir() {
                open.push(path.clone());
            }
            found.insert(path.trim_start_matches(root).to_owned(), line);
        }
    }
    found
}

/// What is done to which path.
fn cases() -> Vec<(Does, String)> {
    let long = "n".repeat(256);
    let mut cases = Vec::new();
    let mut add = |does: &[Does], names: &[&str]| {
        for does in does {
            cases.extend(names.iter().map(|name| (*does, (*name).to_owned())));
        }
    };
    add(
        &[MapForReading, MapForBoth],
        &[
            "own/file",
            "own/readonly",
            "own/writeonly",
            "own/none",
            "own-readonly/file",
            "bobs/file",
            "bobs/readable",
            "bobs/group",
            "bobs/group-readable",
            "bobs/group-denied",
            "sticky/roots",
            "sticky/world",
            "sticky/bobs",
            "searchable/world",
            "locked/world",
            "locked/missing",
            "group/world",
            "own/missing",
            "missing/missing",
            "own/file/below",
            "own/to-file",
            "own/to-roots",
            "own/to-nothing",
            "own/loop",
            "sticky/bobs-link",
            &format!("own/{long}"),
        ],
    );
    add(
        &[ReadFifo, WriteFifo],
        &[
            "own/file.fifo",
            "own/readonly.fifo",
            "own/writeonly.fifo",
            "own/none.fifo",
            "bobs/file.fifo",
            "bobs/readable.fifo",
            "bobs/group.fifo",
            "bobs/group-denied.fifo",
            "sticky/roots.fifo",
            "sticky/world.fifo",
            "searchable/world.fifo",
            "locked/world.fifo",
            "own/missing.fifo",
        ],
    );
    let new = [
        "own/NEW",
        "bobs/NEW",
        "group/NEW",
        "setgid/NEW",
        "sticky/NEW",
        "readonly/NEW",
        "searchable/NEW",
        "locked/NEW",
        "own-readonly/NEW",
        "missing/NEW",
        "own/file/NEW",
        "own/file",
        "own/to-nothing",
        "own/loop",
        "locked/world",
    ];
    for (does, name) in [(MakeFifo, "fifo"), (MakeFile, "made"), (BindSocket, "bound")] {
        let names: Vec<String> = new.iter().map(|path| path.replace("NEW", name)).collect();
        add(&[does], &names.iter().map(String::as_str).collect::<Vec<_>>());
    }
    add(
        &[Watch],
        &[
            "own",
            "own/file",
            "own/none",
            "bobs",
            "bobs/file",
            "bobs/readable",
            "readonly",
            "searchable",
            "locked",
            "locked/world",
            "own/missing",
            "own/to-roots",
            "own/loop",
            "group",
        ],
    );
    add(
        &[Connect],
        &[
            "bobs/socket-600",
            "bobs/socket-666",
            "bobs/socket-620",
            "bobs/missing",
            "locked/missing",
            "bobs/stale",
        ],
    );
    add(
        &[Chmod],
        &["own/file.fifo", "bobs/group.fifo", "sticky/world.fifo", "locked/world.fifo", "own/missing.fifo"],
    );
    add(
        &[Remove],
        &[
            "own/file.fifo",
            "own-readonly/file.fifo",
            "bobs/readable.fifo",
            "sticky/own.fifo",
            "sticky/bobs.fifo",
            "sticky/world.fifo",
            "group/world.fifo",
            "locked/world.fifo",
            "own/missing.fifo",
        ],
    );
    cases
}

/// What is the same for both, and not in a directory.
fn global_cases(stage: &Stage, marks: [&str; 2]) -> Vec<(Does, [String; 2])> {
    let mut cases = Vec::new();
    let mut both = |does: Does, of: &dyn Fn(&str) -> String| cases.push((does, marks.map(of)));
    for (name, owner, mode) in [
        ("bobs", (BOB, BOB.gid), 0o600),
        ("readable", (BOB, BOB.gid), 0o644),
        ("group", (BOB, SHARED), 0o660),
        ("world", (ROOT, 0), 0o666),
        ("own", (ALICE, ALICE.gid), 0o600),
    ] {
        for mark in marks {
            let path = format!("/dev/shm/sem.{mark}-{name}");
            // A semaphore of glibc's: the value, the waiters, and the mark of one that processes share.
            let mut content = [0; 32];
            (content[0], content[8]) = (1, 128);
            fs::write(&path, content).expect("/dev/shm is everybody's");
            own(&path, owner, mode);
        }
        both(OpenSemaphore, &|mark| format!("{mark}-{name}"));
        // To a futex it is a file with a word.
        both(OpenFutex, &|mark| format!("sem.{mark}-{name}"));
        both(MakeSemaphore, &|mark| format!("{mark}-{name}"));
    }
    for (does, name) in queues::cases() {
        both(does, &|mark| format!("{mark}-{name}"));
    }
    both(OpenSemaphore, &|mark| format!("{mark}-missing"));
    both(OpenFutex, &|mark| format!("sem.{mark}-missing"));
    both(MakeSemaphore, &|mark| format!("{mark}-new"));
    for address in ["127.0.0.1 0", "127.0.0.1 79", "192.0.2.1 0", "::1 0"] {
        both(BindPort, &|_| address.to_owned());
    }
    both(ConnectPort, &|_| "127.0.0.1 1".to_owned());
    let others = [stage.bus.pid(), stage.spawner(), stage.bus.connector_pid(&BOB.into()), 1];
    for pid in others {
        both(OpenDescriptor, &|_| format!("{pid} 0"));
    }
    // SIGURG, which by default is ignored. Process 1 and the spawner are refused without the kernel.
    let own = stage.bus.connector_pid(&ALICE.into());
    for pid in [stage.bus.pid(), stage.front(), stage.bus.connector_pid(&BOB.into()), own, 4_194_304] {
        both(AskSignal, &|_| pid.to_string());
        both(SendSignal, &|_| pid.to_string());
    }
    both(OpenDescriptor, &|_| format!("{} 999999", stage.bus.connector_pid(&ALICE.into())));
    cases
}

#[test]
fn directly_and_through_the_service() {
    let stage = or_skip!(Stage::new());
    let roots = ["directly", "service"].map(|name| stage.directory((ROOT, 0), 0o755, name));
    let _listeners = [&roots[0], &roots[1]].map(|root| furnish(&stage, root));
    let (first, second) = (unique("direct"), unique("served"));
    let _semaphores = semaphores::Marks([first.clone(), second.clone()]);
    let queues = queues::MessageQueues::new(&stage.bus, [first.clone(), second.clone()]);
    let global = global_cases(&stage, [&first, &second]);
    let mut rows: Vec<(Does, [String; 2])> = cases()
        .into_iter()
        .map(|(does, name)| (does, [0, 1].map(|n: usize| format!("{}/{name}", roots[n]))))
        .collect();
    rows.extend(global);
    let mut sysv = SysvQueues::default();
    rows.extend(sysv_queues::cases(&stage, &mut sysv));
    assert!(rows.len() >= 60, "{}", rows.len());

    let mut program = stage.bus.python_as(
        &ALICE.into(),
        &[directly::DIRECTLY, queues::DIRECTLY, sysv_queues::DIRECTLY, directly::LINES].concat(),
        &[],
    );
    for (does, [path, _]) in &rows {
        program.write(format!("{does:?}\t{path}\n"));
    }
    let said = program.finish().success();
    let directly: Vec<&str> = said.lines().collect();
    assert_eq!(directly.len(), rows.len());

    let mut alice = stage.alice();
    let mut differing = Vec::new();
    let mut outcomes = BTreeMap::<&str, u32>::new();
    for ((does, [_, path]), directly) in rows.iter().zip(&directly) {
        let served = through_the_service(&mut alice, *does, path);
        *outcomes.entry(directly).or_default() += 1;
        if served != *directly {
            differing.push(format!("{does:?} {path}: directly {directly}, through the service {served}"));
        }
    }
    let (made, served) = (queues.inventory(&first), queues.inventory(&second));
    assert_eq!(made, served, "owners and modes of message queues");
    assert_eq!(made.len(), queues::QUEUES.len() - 1, "her own one was removed: {made:?}");
    println!("{} operations: {outcomes:?}", rows.len());
    let (made, served) = (inventory(&roots[0]), inventory(&roots[1]));
    for (path, line) in &made {
        if served.get(path) != Some(line) {
            differing.push(format!("{path}: directly {line}, through the service {:?}", served.get(path)));
        }
    }
    differing
        .extend(served.keys().filter(|path| !made.contains_key(*path)).map(|path| format!("{path} is more")));
    assert!(differing.is_empty(), "{} differences:\n{}", differing.len(), differing.join("\n"));
    let refused =
        ["EACCES", "EPERM", "ENOENT", "EEXIST", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "ECONNREFUSED", "ESRCH"];
    for errno in refused {
        assert!(outcomes.contains_key(errno), "no case ends with {errno}");
    }
    alice.call(PATH, "", "Create", &[Arg::Str("pipe:".into()), no_options()]).expect("she goes on");
}
