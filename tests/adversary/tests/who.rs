//! A. Who is calling: the identity of a caller is what the kernel and the bus say of his connection, and nothing else.

use std::fs;

use ipc_adversary::wire::{Arg, Outgoing, bytes, dict, text};
use ipc_adversary::{Credentials, DRIVER, FakeBus, Raw, Stage, assert_error, error, object, status, xml};
use ipc_harness::system::{ALICE, EXTRA, IPCD, Identity, NOBODY, ROOT, SHARED};
use ipc_harness::{NAME, PATH, Process, Signal, SystemBus, need_tool, or_skip, patience};
use rustix::process::{Pid, kill_process};

const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// For tests that start many workers of one user, which is not what they are about.
const MANY_STARTS: &str = "[front]\nworker-starts = 16\n";

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("root may");
}

/// The front is stopped while callers come and go, so each lookup comes too late: CVE-2021-3560.
#[test]
fn a1_caller_leaves_before_the_lookup() {
    let stage = or_skip!(Stage::new());
    let mut bob = stage.bob();
    bob.ping().expect("an answer");
    let before = stage.workers();
    let front = stage.front();
    signal(front, Signal::STOP);
    for round in 0..500 {
        let mut alice = stage.alice();
        let address = format!("fifo:path={}", stage.path(&format!("late-{round}")));
        let args = [text(address), ipc_adversary::wire::no_options()];
        alice.send(Raw::message(PATH, "", "Create", &args).no_reply());
    }
    signal(front, Signal::CONT);
    // Calls are taken in the order in which they came.
    bob.ping().expect("an answer");
    bob.ping().expect("an answer");
    assert_eq!(stage.workers(), before, "no worker is started for who has gone");
    let made = fs::read_dir(stage.path("")).expect("a directory").count();
    assert_eq!(made, 0, "nothing was done for who has gone");

    // The same at full speed: whether or not a lookup comes in time, nothing is ever done as somebody else.
    for round in 0..300 {
        let mut alice = stage.alice();
        let address = format!("fifo:path={}", stage.path(&format!("race-{round}")));
        let args = [text(address), ipc_adversary::wire::no_options()];
        alice.send(Raw::message(PATH, "", "Create", &args).no_reply());
    }
    bob.ping().expect("an answer");
    for entry in fs::read_dir(stage.path("")).expect("a directory").flatten() {
        use std::os::unix::fs::MetadataExt;
        let owner = entry.metadata().map_or(ALICE.uid, |metadata| metadata.uid());
        assert_eq!(owner, ALICE.uid, "{:?} was made as somebody else", entry.path());
    }
}

fn u32s(numbers: &[u32]) -> Arg {
    Arg::Array("u".into(), numbers.iter().map(|&n| Arg::U32(n)).collect())
}

/// Credentials that are an error, are missing, or make no sense: nobody is taken for root, or for anybody.
#[test]
fn a2_credentials_that_are_missing() {
    let bus = or_skip!(SystemBus::dbus_daemon());
    let fake = FakeBus::start();
    let service = bus.launch_at(fake.address()).start();
    let dir = bus.dir_of(ALICE);
    let address = format!("fifo:path={}", dir.path().join("fifo").display());
    let (uid, gid) = (("UnixUserID", Arg::U32(ALICE.uid)), ALICE.gid);
    let groups = ("UnixGroupIDs", u32s(&[gid, SHARED]));
    let pid = ("ProcessID", Arg::U32(bus.connector_pid(&ALICE.into()).cast_unsigned()));
    let many: Vec<u32> = (1..=1025).collect();
    let cases = [
        Credentials::Fail("org.freedesktop.DBus.Error.Failed"),
        Credentials::Fail("org.freedesktop.DBus.Error.AccessDenied"),
        Credentials::Fail("org.freedesktop.DBus.Error.UnknownMethod"),
        Credentials::Garbage,
        Credentials::Forged(dict(&[uid.clone(), groups.clone(), pid.clone()])),
        Credentials::Are(dict(&[])),
        Credentials::Are(dict(&[groups.clone(), pid.clone()])),
        Credentials::Are(dict(&[uid.clone(), pid.clone()])),
        Credentials::Are(dict(&[("UnixUserID", text("0")), groups.clone(), pid.clone()])),
        Credentials::Are(dict(&[("UnixUserID", Arg::I32(0)), groups.clone(), pid.clone()])),
        Credentials::Are(dict(&[("UnixUserID", Arg::U32(u32::MAX)), groups.clone(), pid.clone()])),
        Credentials::Are(dict(&[("UnixUserID", Arg::U32(65_534)), groups.clone(), pid.clone()])),
        Credentials::Are(dict(&[uid.clone(), ("UnixGroupIDs", bytes(b"\0\0")), pid.clone()])),
        Credentials::Are(dict(&[uid.clone(), ("UnixGroupIDs", u32s(&many)), pid.clone()])),
    ];
    for (number, credentials) in cases.into_iter().enumerate() {
        fake.set_credentials(credentials.clone());
        let sender = format!(":1.{}", number + 10);
        let answer = fake.call(&sender, "Create", &address, patience());
        let answer = answer.unwrap_or_else(|| panic!("no answer with {credentials:?}; {}", service.log()));
        let refusal = error(answer);
        assert!(refusal.is("PermissionDenied"), "{credentials:?}: {refusal}");
        assert!(!dir.path().join("fifo").exists(), "{credentials:?}: it was done");
        // The kernel may refuse the same; but there is nobody whom it could refuse.
        let log = service.log();
        assert!(!log.contains("worker w-"), "{credentials:?}: a worker was started:\n{log}");
    }
    // A bus that does not answer is not waited for without an end, and nothing is done either.
    fake.set_credentials(Credentials::Silence);
    let answer = fake.call(":1.90", "Create", &address, patience()).expect("an answer");
    assert_error(&error(answer), "Unavailable", &["within 10 s who is calling"]);
    assert!(!dir.path().join("fifo").exists());
    // It was the credentials that were missing.
    fake.set_credentials(Credentials::Are(dict(&[uid, groups, pid])));
    let made = fake.call(":1.91", "Create", &address, patience()).expect("an answer");
    made.unwrap_or_else(|error| panic!("{error}; {}", service.log()));
    assert!(dir.path().join("fifo").exists());

    // A3: whom the service asks about is always the sender, by its unique name.
    let asked = fake.asked();
    assert!(!asked.is_empty());
    for (method, name) in asked {
        assert_eq!(method, "GetConnectionCredentials", "one question tells everything, of one moment");
        assert!(name.starts_with(":1."), "{name} is no unique name");
    }
}

/// A name that somebody owns is not whom the service looks up, see also a2.
#[test]
fn a3_the_lookup_is_by_unique_name() {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../../service/front/src");
    let mut lookups = 0;
    for file in fs::read_dir(sources).expect("the front's sources").flatten() {
        let source = fs::read_to_string(file.path()).unwrap_or_default();
        lookups += source.matches("GetConnectionCredentials").count()
            + source.matches("get_connection_credentials").count();
        for other in ["GetConnectionUnixUser", "get_connection_unix_user", "getpwuid", "getgrouplist"] {
            assert!(!source.contains(other), "{:?} has {other}", file.path());
        }
    }
    assert!(lookups > 0, "the lookup is somewhere else by now");
}

/// Every interface that alice sees, on one object of each kind.
fn members(stage: &Stage) -> Vec<xml::Member> {
    let alice = &mut stage.alice();
    let pipe = alice.create("pipe:");
    let objects = [
        PATH.to_owned(),
        format!("{PATH}/pipe"),
        alice.create("pipe:packet"),
        alice.create("tcp:host=127.0.0.1,port=0"),
        alice.create("mmap:size=4096"),
        alice.create("inotify:path=/tmp"),
        alice.create("signal:number=SIGUSR1"),
        alice.attach(&format!("signal:pid={}", stage.bus.connector_pid(&ALICE.into()))),
        alice.create(&format!("posixsem:name=/{},remove-on-close", ipc_harness::unique("who"))),
        pipe,
    ];
    let mut members = Vec::new();
    for object in objects {
        let document = alice.call(&object, INTROSPECTABLE, "Introspect", &[]).expect("Introspect").args();
        let [Arg::Str(document)] = &document[..] else { panic!("{document:?} is no text") };
        for member in xml::members(document) {
            if !members.contains(&member) {
                members.push(member);
            }
        }
    }
    assert!(members.len() > 40, "{members:?}");
    members
}

#[test]
fn a8_nobody_says_who_he_is() {
    let stage = or_skip!(Stage::new());
    for member in members(&stage).iter().filter(|member| member.kind == "method") {
        for (name, _) in &member.arguments {
            let claims = ["uid", "user", "owner", "gid", "group", "credentials", "identity", "as"];
            assert!(!claims.contains(&name.as_str()), "{}.{} takes {name}", member.interface, member.name);
        }
    }
}

/// The worker has exactly the groups of the connection: not those of the group file, neither fewer nor more.
#[test]
fn a9_groups_are_those_of_the_connection() {
    let stage = or_skip!(Stage::with_config(MANY_STARTS));
    let denied = stage.file((ROOT, SHARED), 0o604, "not-for-shared", "x");
    let for_shared = stage.file((ROOT, SHARED), 0o640, "for-shared", "x");
    let for_extra = stage.file((ROOT, EXTRA), 0o640, "for-extra", "x");
    let as_usual: Identity = ALICE.into();
    let fewer = as_usual.clone().with_groups(&[]);
    let more = as_usual.clone().with_groups(&[SHARED, EXTRA]);
    let rows = [
        (&as_usual, [(&denied, false), (&for_shared, true), (&for_extra, false)]),
        (&fewer, [(&denied, true), (&for_shared, false), (&for_extra, false)]),
        (&more, [(&denied, false), (&for_shared, true), (&for_extra, true)]),
    ];
    for (identity, files) in rows {
        let mut raw = stage.raw(identity.clone());
        for (file, may) in files {
            let directly = stage.bus.sh_as(identity, &format!("cat '{file}'")).finish().status.success();
            assert_eq!(directly, may, "the kernel: {identity:?}, {file}");
            let made = raw.try_make("Attach", &format!("mmap:path={file},access=read-only"));
            match made {
                Ok(_) => assert!(may, "{identity:?} may not read {file}"),
                Err(refusal) => {
                    assert!(!may, "{identity:?} may read {file}: {refusal}");
                    assert_error(&refusal, "PermissionDenied", &["EACCES", file]);
                }
            }
        }
    }
}

/// What is made belongs to the group that it would belong to if the caller had made it: not that of the passwd file.
#[test]
fn a9_the_primary_group_is_that_of_the_connection() {
    use std::os::unix::fs::MetadataExt;
    let stage = or_skip!(Stage::new());
    let as_usual: Identity = ALICE.into();
    let mut other = as_usual.clone().with_groups(&[ALICE.gid, EXTRA]);
    other.gid = SHARED;
    for (identity, gid) in [(as_usual, ALICE.gid), (other, SHARED)] {
        let (directly, by_service) =
            (stage.path(&format!("direct-{gid}")), stage.path(&format!("service-{gid}")));
        stage.bus.sh_as(&identity, &format!("mkfifo '{directly}'")).finish().success();
        stage.raw(identity.clone()).create(&format!("fifo:path={by_service}"));
        let group = |path: &str| fs::symlink_metadata(path).expect("it was made").gid();
        assert_eq!((group(&directly), group(&by_service)), (gid, gid), "{identity:?}");
    }
}

#[test]
fn a10_other_groups_are_another_worker() {
    let stage = or_skip!(Stage::with_config(MANY_STARTS));
    let sets: [&[u32]; 3] = [&[SHARED], &[], &[EXTRA, SHARED]];
    let mut connections = Vec::new();
    for groups in sets {
        let mut raw = stage.raw(Identity::from(ALICE).with_groups(groups));
        raw.create("pipe:");
        connections.push(raw);
    }
    let mut seen: Vec<Vec<u32>> = Vec::new();
    for worker in stage.workers_of(ALICE) {
        let groups = status(worker, "Groups").expect("a living worker");
        let groups = groups.split_whitespace().map(|gid| gid.parse().expect("a number"));
        let mut groups: Vec<u32> = groups.filter(|&gid| gid != ALICE.gid).collect();
        groups.sort_unstable();
        seen.push(groups);
    }
    seen.sort();
    assert_eq!(seen, [vec![], vec![SHARED], vec![SHARED, EXTRA]]);
    // What one of them made, the others do not see.
    let pipe = connections[0].create("pipe:");
    for other in &mut connections[1..] {
        let unknown = error(other.call(&pipe, "Endpoint", "Inspect", &[]));
        assert_eq!(unknown.name, "org.freedesktop.DBus.Error.UnknownObject", "{unknown}");
    }
    // The same groups are the same worker.
    let mut again = stage.alice();
    again.call(&pipe, "Endpoint", "Inspect", &[]).expect("her own");
    assert_eq!(stage.workers_of(ALICE).len(), 3);
}

#[test]
fn a11_root_has_no_capabilities_here() {
    let stage = or_skip!(Stage::with_config(MANY_STARTS));
    let file = stage.file((ALICE, ALICE.gid), 0o600, "alices", "x");
    let mut root = stage.raw(ROOT);
    root.create("pipe:");
    let worker = stage.worker_of(ROOT);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(worker, set).as_deref(), Some("0000000000000000"), "{set}");
    }
    assert_eq!(status(worker, "NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(status(worker, "Seccomp").as_deref(), Some("2"));
    assert_error(&root.refused("Attach", &format!("mmap:path={file}")), "PermissionDenied", &["EACCES"]);
    // Root of a container without a user namespace.
    for words in [&["unshare", "--net"][..], &["unshare", "--mount"], &["unshare", "--ipc"]] {
        let mut container = stage.raw(Identity::from(ROOT).within(words));
        let path = stage.path("of-a-container");
        let refusal = container.refused("Create", &format!("fifo:path={path}"));
        assert_error(&refusal, "Confined", &["namespace"]);
        assert!(!fs::exists(&path).expect("an own directory"));
    }
}

#[test]
fn a12_nobody_is_refused() {
    let stage = or_skip!(Stage::new());
    let mut nobody = stage.raw(NOBODY);
    let before = stage.workers();
    assert_error(&nobody.refused("Create", "pipe:"), "PermissionDenied", &["65534"]);
    assert_eq!(stage.workers(), before);
}

/// In other namespaces the same names mean other things: only what has no name is served.
#[test]
fn a13_other_namespaces_are_confined() {
    let stage = or_skip!(Stage::with_config(MANY_STARTS));
    let directory = stage.directory((ALICE, ALICE.gid), 0o755, "alice");
    let alice = || Identity::from(ALICE);
    let rows = [
        (alice().within(&["unshare", "--mount"]), "mount namespace"),
        (alice().within(&["unshare", "--net"]), "network namespace"),
        (alice().within(&["unshare", "--ipc"]), "ipc namespace"),
        (alice().within(&["unshare", "--pid", "--fork", "--kill-child"]), "pid namespace"),
        (alice().inside(&["unshare", "--user", "--ipc"]), "user namespace"),
    ];
    for (identity, reason) in rows {
        let mut raw = stage.raw(identity.clone());
        for (verb, address) in [
            ("Create", format!("fifo:path={directory}/fifo")),
            ("Create", format!("unix:path={directory}/socket")),
            ("Create", format!("unix:abstract={}", ipc_harness::unique("confined"))),
            ("Create", format!("mmap:size=1,path={directory}/file")),
            ("Create", format!("posixsem:name=/{}", ipc_harness::unique("confined"))),
            ("Create", format!("posixmq:name=/{}", ipc_harness::unique("confined"))),
            ("Create", format!("posixshm:size=1,name=/{}", ipc_harness::unique("confined"))),
            ("Create", "sysvshm:size=1,key=private".to_owned()),
            ("Attach", "mmap:pid=1,address=0x1000".to_owned()),
            ("Create", "tcp:host=127.0.0.1,port=0".to_owned()),
            ("Create", format!("inotify:path={directory}")),
            ("Attach", "pipe:pid=1,fd=0".to_owned()),
            ("Create", "pipe:lifetime=pid:1".to_owned()),
        ] {
            let refusal = raw.refused(verb, &address);
            assert!(refusal.is("Confined"), "{identity:?} {address}: {refusal}");
            assert!(refusal.text.contains(reason), "{identity:?} {address}: {refusal}");
        }
        let listing =
            raw.call(&format!("{PATH}/fifo"), "Mechanism", "List", &[ipc_adversary::wire::no_options()]);
        assert_error(&error(listing), "Confined", &[reason]);
        // What has no name is still served.
        let pipe = raw.create("pipe:");
        assert_eq!(raw.write(&pipe, "hello"), Ok(5));
        raw.create("mmap:size=4096");
        raw.create("unix:pair");
    }
    assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 0);
    // The same user as usual has another worker, and another tree.
    stage.alice().create(&format!("fifo:path={directory}/fifo"));
}

/// Sets a seccomp filter that forbids nothing of interest, and becomes another program.
const WITH_SECCOMP: &str = "import ctypes,os,struct,sys\n\
    code=struct.pack('HBBI',6,0,0,0x7fff0000)\n\
    buffer=ctypes.create_string_buffer(code)\n\
    class P(ctypes.Structure): _fields_=[('n',ctypes.c_ushort),('f',ctypes.c_void_p)]\n\
    libc=ctypes.CDLL(None,use_errno=True)\n\
    assert libc.prctl(38,1,0,0,0)==0\n\
    assert libc.prctl(22,2,ctypes.byref(P(1,ctypes.cast(buffer,ctypes.c_void_p))),0,0)==0\n\
    os.execvp(sys.argv[1],sys.argv[1:])";

#[test]
fn a14_a_seccomp_filter_is_not_escaped() {
    let stage = or_skip!(Stage::new());
    let filtered = Identity::from(ALICE).inside(&["/usr/bin/python3", "-c", WITH_SECCOMP]);
    let mut raw = stage.raw(filtered);
    let refusal = raw.refused("Create", "tcp:host=127.0.0.1,port=0");
    assert_error(&refusal, "Confined", &["seccomp"]);
    raw.create("pipe:");
}

#[test]
fn a16_a_method_is_one_verb() {
    let stage = or_skip!(Stage::new());
    for member in members(&stage).iter().filter(|member| member.kind == "method") {
        for (name, _) in &member.arguments {
            let verbs = ["action", "command", "verb", "method", "operation"];
            assert!(!verbs.contains(&name.as_str()), "{}.{} takes {name}", member.interface, member.name);
        }
    }
}

/// Nothing can be set, and the bus itself sees to it.
#[test]
fn a17_no_property_is_written() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    for member in members(&stage).iter().filter(|member| member.kind == "property") {
        let value = xml::some_values(&member.arguments[0].1).remove(0);
        let args = [text(&member.interface), text(&member.name), ipc_adversary::wire::variant(value)];
        for object in [PATH, &pipe] {
            let refusal = error(alice.call(object, PROPERTIES, "Set", &args));
            assert_eq!(refusal.name, "org.freedesktop.DBus.Error.AccessDenied", "{member:?}: {refusal}");
        }
    }
}

#[test]
fn a18_one_connection_owns_one_name() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    alice.ping().expect("an answer");
    let owner = alice.owner();
    let names = alice.driver("ListNames", &[]).expect("names").args().remove(0);
    let Arg::Array(_, names) = names else { panic!("{names:?} is no list") };
    let mut of_the_service = Vec::new();
    for name in names {
        let Arg::Str(name) = name else { panic!("{name:?} is no name") };
        let user = alice.driver("GetConnectionUnixUser", &[text(&name)]).expect("its user").args();
        if user == [Arg::U32(IPCD.uid)] && name != DRIVER {
            of_the_service.push(name);
        }
    }
    of_the_service.sort();
    assert_eq!(of_the_service, [owner, NAME.to_owned()]);
    // Other paths and interfaces have no looser rules: they do not exist.
    for path in ["/", "/org/example/IPC2", "/org/freedesktop/DBus"] {
        let call = Outgoing::call(
            NAME,
            path,
            "org.example.IPC",
            "Create",
            &[text("pipe:"), ipc_adversary::wire::no_options()],
        );
        let refusal = error(alice.ask(call, &[]));
        assert!(refusal.name.starts_with("org.freedesktop.DBus.Error.Unknown"), "{path}: {refusal}");
    }
    let call = Outgoing::call(NAME, PATH, "", "Create", &[text("pipe:"), ipc_adversary::wire::no_options()])
        .without(ipc_adversary::wire::INTERFACE);
    let made = alice.ask(call, &[]);
    match made {
        // Without an interface no rule of the policy allows it.
        Err(refusal) => assert_eq!(refusal.name, "org.freedesktop.DBus.Error.AccessDenied", "{refusal}"),
        Ok(reply) => panic!("a call without an interface made {}", object(&reply.args())),
    }
}

/// Oracle 1: while alice makes, uses and removes objects by their paths, neither the front nor the spawner ever names
/// one of them to the kernel.
#[test]
fn front_and_spawner_touch_no_object() {
    or_skip!(need_tool("strace"));
    let stage = or_skip!(Stage::new());
    let directory = stage.directory((ALICE, ALICE.gid), 0o755, "alice");
    let trace = stage.path("trace");
    let pids = [stage.front(), stage.spawner()].map(|pid| pid.to_string());
    // Not -f: the workers that the spawner forks are alice herself.
    let words = [
        "-qq",
        "-s",
        "4096",
        "-e",
        "trace=!recvmsg,sendmsg,epoll_wait",
        "-o",
        &trace,
        "-p",
        &pids[0],
        "-p",
        &pids[1],
    ];
    let mut strace = Process::spawn(std::process::Command::new("strace").args(words));
    let traced = |pid: &String| status(pid.parse().expect("a pid"), "TracerPid").is_some_and(|by| by != "0");
    stage.until("both are traced", || pids.iter().all(traced));
    let mut alice = stage.alice();
    let fifo = alice.create(&format!("fifo:path={directory}/fifo,remove-on-close"));
    alice.create(&format!("unix:path={directory}/socket"));
    let file = alice.create(&format!("mmap:size=4096,path={directory}/file"));
    alice.create(&format!("inotify:path={directory}"));
    alice.refused("Attach", "mmap:path=/etc/shadow");
    alice.call(&file, "Endpoint", "Open", &[ipc_adversary::wire::no_options()]).expect("Open");
    alice
        .call(&format!("{PATH}/fifo"), "Mechanism", "List", &[ipc_adversary::wire::no_options()])
        .expect("List");
    alice.close(&fifo);
    strace.signal(Signal::INT);
    strace.wait();
    let trace = fs::read_to_string(trace).expect("the trace");
    assert!(trace.lines().count() > 10, "nothing was traced: {trace}");
    for line in trace.lines() {
        assert!(!line.contains(&directory) && !line.contains("/etc/shadow"), "{line}");
    }
}
