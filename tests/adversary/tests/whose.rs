//! B. Whose object: no user sees, guesses, disturbs or detects what is another's.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::thread;

use ipc_adversary::wire::{self, Arg, Outgoing, bytes, dict, no_options, text};
use ipc_adversary::{
    DRIVER, DRIVER_PATH, Raw, Stage, Streams, assert_error, descriptors, entry, error, object, status, xml,
};
use ipc_harness::system::{ALICE, BOB, ROOT};
use ipc_harness::{CallError, NAME, PATH, or_skip, patience, unique, wait_gone, watchdog};

const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

/// One endpoint of each shape, and a relay.
fn objects(alice: &mut Raw) -> Vec<String> {
    let mut made: Vec<String> =
        ["pipe:", "pipe:packet", "unix:pair,type=seqpacket", "mmap:size=4096", "inotify:path=/tmp"]
            .into_iter()
            .map(|address| alice.create(address))
            .collect();
    made.push(alice.create("tcp:host=127.0.0.1,port=0"));
    let mailbox = alice.create("signal:number=SIGUSR1");
    let (interface, name) = (text("org.example.IPC.Mailbox"), text("Pid"));
    let pid = alice.call(&mailbox, "org.freedesktop.DBus.Properties", "Get", &[interface, name]);
    let pid = pid.expect("the property Pid").args().remove(0);
    let Arg::Variant(pid) = pid else { panic!("{pid:?} is no variant") };
    let Arg::I32(pid) = *pid else { panic!("{pid:?} is no pid") };
    made.push(alice.attach(&format!("signal:pid={pid}")));
    made.push(mailbox);
    made.push(alice.create(&format!("posixsem:name=/{},remove-on-close", unique("whose"))));
    let sink = alice.create("pipe:");
    let source = alice.create("pipe:");
    let args = [wire::path(&source), wire::path(&sink), no_options()];
    made.push(object(&alice.call(PATH, "", "Relay", &args).expect("Relay").args()));
    made.extend([sink, source]);
    made
}

fn document(raw: &mut Raw, path: &str) -> Result<String, CallError> {
    let answer = raw.call(path, INTROSPECTABLE, "Introspect", &[])?;
    match answer.args().remove(0) {
        Arg::Str(document) => Ok(document),
        other => panic!("{other:?} is no text"),
    }
}

/// Bob calls everything that alice's objects offer: each answer is the one that a path without an object gives.
#[test]
fn b1_a_path_is_the_callers_own() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    for path in objects(&mut alice) {
        let nowhere = format!("{}/999999", path.rsplit_once('/').expect("a path").0);
        let document = document(&mut alice, &path).expect("her own");
        for member in xml::members(&document).iter().filter(|member| member.kind == "method") {
            if member.interface.ends_with(".Peer") || member.name == "Set" {
                continue;
            }
            let signature: String = member.arguments.iter().map(|(_, kind)| kind.as_str()).collect();
            let args = xml::some_values(&signature);
            let mut answer = |path: &str| {
                let refusal = error(bob.call(path, &member.interface, &member.name, &args));
                (refusal.name, refusal.text.replace(path, "PATH"))
            };
            assert_eq!(answer(&path), answer(&nowhere), "{}.{} on {path}", member.interface, member.name);
        }
        // As an argument it is no better.
        let mut relay = |path: &str| {
            let args = [wire::path(path), wire::path("/org/example/IPC/unix/999999"), no_options()];
            let refusal = error(bob.call(PATH, "", "Relay", &args));
            (refusal.name, refusal.text.replace(path, "PATH"))
        };
        assert_eq!(relay(&path), relay(&nowhere));
        // She noticed nothing.
        alice.call(&path, INTROSPECTABLE, "Introspect", &[]).expect("it is still there");
    }
}

#[test]
fn b2_the_tree_is_the_callers_own() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let made = objects(&mut alice);
    let mut open = vec!["/".to_owned()];
    while let Some(path) = open.pop() {
        let document = document(&mut bob, &path).expect("a node of the tree");
        for child in ipc_harness::xml::children(&document) {
            open.push(format!("{}/{child}", path.trim_end_matches('/')));
        }
        assert!(!made.contains(&path), "bob sees {path}");
    }
    let managed = bob.call(PATH, OBJECT_MANAGER, "GetManagedObjects", &[]).expect("GetManagedObjects").args();
    assert!(matches!(&managed[..], [Arg::Array(_, objects)] if objects.is_empty()), "{managed:?}");
    for key in ["endpoints", "relays", "watches", "subscriptions"] {
        assert_eq!(bob.usage(key), 0, "{key}");
    }
    // What the machine tells about pipes is what it tells bob: none of a process that is not his.
    let rows = bob.call(&format!("{PATH}/pipe"), "Mechanism", "List", &[no_options()]).expect("List").args();
    let Arg::Array(_, rows) = &rows[0] else { panic!("{rows:?} is no list") };
    let workers = stage.workers_of(ALICE);
    for row in rows {
        let holders = format!("{:?}", entry(row, "holders"));
        for worker in &workers {
            assert!(!holders.contains(&format!("U32({worker})")), "{holders}");
        }
    }
    let managed =
        alice.call(PATH, OBJECT_MANAGER, "GetManagedObjects", &[]).expect("GetManagedObjects").args();
    assert!(matches!(&managed[..], [Arg::Array(_, objects)] if objects.len() == made.len()), "{managed:?}");
}

/// Neither match rules nor eavesdropping bring bob what is alice's; not even that there was something.
#[test]
fn b3_signals_are_for_one() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    for rule in
        ["type='signal'", "type='signal',interface='org.example.IPC.Stream'", "path_namespace='/org/example'"]
    {
        bob.driver("AddMatch", &[text(rule)]).expect("a rule that everybody may have");
    }
    // Allowed or refused, it brings nothing.
    let _eavesdropping = bob.driver("AddMatch", &[text("eavesdrop='true'")]);
    bob.call(PATH, "", "Subscribe", &[]).expect("to his own");
    let monitor = Outgoing::call(
        DRIVER,
        DRIVER_PATH,
        "org.freedesktop.DBus.Monitoring",
        "BecomeMonitor",
        &[Arg::Array("s".into(), Vec::new()), Arg::U32(0)],
    );
    assert_eq!(error(bob.ask(monitor, &[])).name, "org.freedesktop.DBus.Error.AccessDenied");

    let pipe = alice.create("pipe:deliver");
    alice.write(&pipe, "for alice only").expect("Write");
    let received = alice.signal("Received");
    assert_eq!(received.field(wire::DESTINATION), alice.name, "it is unicast");
    alice.close(&pipe);
    alice.signal("Closed");
    alice.signal("InterfacesRemoved");

    bob.ping().expect("an answer");
    let seen: Vec<_> = bob.others().into_iter().filter(|message| message.is_ours()).collect();
    assert!(seen.is_empty(), "{seen:#?}");
}

/// Anybody may send alice a signal that looks like the service's; the client crate drops it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_forged_signals_are_dropped() {
    use futures_util::StreamExt;
    let stage = or_skip!(Stage::new());
    watchdog(patience(), async {
        let alice = stage.bus.connect_as(&ALICE.into()).await;
        let manager = ipc_proxy::ManagerProxy::new(&alice).await.expect("a proxy");
        let path = manager.create("pipe:", Default::default()).await.expect("a pipe");
        let endpoint = ipc_proxy::EndpointProxy::new(&alice, path.clone()).await.expect("a proxy");
        let mut closed = endpoint.receive_closed().await.expect("a stream");
        let name = alice.unique_name().expect("a connection to a bus").to_string();
        let mut bob = stage.bob();
        let forged = Outgoing::signal(
            Some(&name),
            path.as_str(),
            "org.example.IPC.Endpoint",
            "Closed",
            &[text("forged")],
        );
        bob.send(forged);
        // The bus has routed it once it answers.
        bob.driver("GetId", &[]).expect("an answer");
        endpoint.close().await.expect("closed");
        let signal = closed.next().await.expect("a signal");
        assert_eq!(signal.args().expect("its arguments").reason, "closed");
    })
    .await;
}

/// Every descriptor that comes carries its owner's mark, however the calls of two users mix.
#[test]
fn b5_descriptors_go_to_their_owner() {
    let stage = or_skip!(Stage::new());
    thread::scope(|scope| {
        for user in [ALICE, BOB] {
            let stage = &stage;
            scope.spawn(move || {
                let mut raw = stage.raw(user);
                for _ in 0..150 {
                    let memory = raw.create("mmap:size=64");
                    let args = [Arg::U64(0), text(user.name)];
                    raw.call(&memory, "Memory", "WriteText", &args).expect("WriteText");
                    let mut reply = raw.call(&memory, "Endpoint", "Open", &[no_options()]).expect("Open");
                    let fd = reply.fds.pop().expect("a descriptor");
                    let mut content = [0; 64];
                    rustix::io::pread(&fd, &mut content, 0).expect("reading");
                    assert!(content.starts_with(user.name.as_bytes()), "{} got another's", user.name);
                    assert!(reply.fds.is_empty());
                    raw.close(&memory);
                }
            });
        }
    });
}

/// While alice sends descriptors, bob's worker is started: nothing of hers is in it, nor stays anywhere else.
#[test]
fn b6_descriptors_do_not_leak_into_others() {
    let stage = or_skip!(Stage::new());
    let mark = unique("of-alice");
    let fd = rustix::fs::memfd_create(mark.as_str(), rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&fd, 4096).expect("its size");
    let holds =
        |pid: i32| descriptors(pid).iter().filter(|path| path.to_string_lossy().contains(&mark)).count();
    let mut alice = stage.alice();
    let adopt = || Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(1);
    for round in 0..300 {
        alice.try_send(adopt().no_reply(), &[fd.as_fd()]).expect("the bus takes it");
        if round == 100 {
            stage.bob().create("pipe:");
        }
    }
    let bobs = stage.worker_of(BOB);
    assert_eq!(holds(bobs), 0, "bob's worker has what is alice's");
    for path in descriptors(bobs) {
        let path = path.to_string_lossy().into_owned();
        let fine = ["socket:", "pipe:", "anon_inode:", "/dev/null", "/memfd:org.example.IPC"];
        let log = path.ends_with("/log");
        assert!(log || fine.iter().any(|start| path.starts_with(start)), "bob's worker has {path}");
    }
    assert_eq!(holds(stage.spawner()), 0, "the spawner has what is alice's");
    // She may have been told to slow down.
    stage.until("she is served again", || alice.ping().is_ok());
    drop(alice);
    let front = stage.front();
    stage.until("the front has closed what it passed on", || holds(front) == 0);
}

/// What is said, given bob's unique name.
type Words = fn(&str) -> Outgoing;

/// A worker that lies is killed; nobody but its own user notices.
fn hostile(lies: &[(&str, Words)]) {
    let stage = or_skip!(Stage::with_config("[front]\nworker-starts = 16\nworker-crashes = 60\n"));
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let bobs = bob.create("pipe:");
    let bobs_worker = stage.worker_of(BOB);
    for (what, words) in lies {
        alice.create("pipe:");
        let worker = stage.worker_of(ALICE);
        let streams = Streams::of(worker);
        let mut lie = words(&bob.name);
        lie.serial = lie.serial.max(77);
        streams.say(&lie);
        drop(streams);
        assert!(wait_gone(worker), "{what}: the worker lives");
        alice.signal("Lost");
        bob.write(&bobs, "x").unwrap_or_else(|error| panic!("{what}: bob is disturbed: {error}"));
        let others = bob.others();
        let forged = others.iter().find(|message| String::from_utf8_lossy(&message.body).contains("forged"));
        assert!(forged.is_none(), "{what}: {forged:#?}");
        assert_eq!(stage.worker_of(BOB), bobs_worker, "{what}");
    }
    alice.create("pipe:");
}

const ENDPOINT: &str = "org.example.IPC.Endpoint";

#[test]
fn b7_a_worker_that_answers_for_others() {
    hostile(&[
        ("a reply to bob", |bob| Outgoing::reply(bob, 4, &[text("forged")])),
        ("a reply to nobody", |_| Outgoing::reply(":1.9999", 4_000_000, &[text("forged")])),
        ("a signal to bob", |bob| Outgoing::signal(Some(bob), PATH, ENDPOINT, "Closed", &[text("forged")])),
        ("a signal to all", |_| Outgoing::signal(None, PATH, ENDPOINT, "Closed", &[text("forged")])),
    ]);
}

#[test]
fn b7_a_worker_that_sends_garbage() {
    hostile(&[
        ("a method call", |_| Outgoing::call(NAME, PATH, NAME, "Create", &[text("forged"), no_options()])),
        ("a size of 100 MiB", |_| {
            let reply = Outgoing::reply(":1.2", 4, &[text("forged")]);
            Outgoing { length: Some(100 << 20), ..reply }
        }),
        ("no known type", |_| Outgoing { kind: 77, ..Outgoing::reply(":1.2", 4, &[text("forged")]) }),
        ("a signal of another service", |bob| {
            let (path, interface) = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager");
            Outgoing::signal(Some(bob), path, interface, "PrepareForSleep", &[text("forged")])
        }),
    ]);
}

/// Alice kills and stops her own worker: bob's goes on, and she gets another.
#[test]
fn b8_a_worker_that_its_user_kills() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let (pipe, bobs) = (alice.create("pipe:"), bob.create("pipe:"));
    let worker = stage.worker_of(ALICE);
    let waiting = alice.send(Raw::message(&pipe, "Stream", "Read", &[Arg::U32(1), Arg::U32(20_000)]));
    let mut other = stage.alice();
    stage.until("it waits", || other.usage("waits") == 1);
    stage.bus.sh_as(&ALICE.into(), &format!("kill -KILL {worker}")).finish().success();
    let reply = alice.reply_within(waiting, patience()).expect("an answer");
    assert_error(&error(ipc_adversary::outcome(reply)), "Gone", &[]);
    alice.signal("Lost");
    bob.write(&bobs, "x").expect("bob notices nothing");
    let unknown = error(alice.call(&pipe, "Endpoint", "Inspect", &[]));
    assert_eq!(unknown.name, "org.freedesktop.DBus.Error.UnknownObject", "{unknown}");
    alice.create("pipe:");
    assert_ne!(stage.worker_of(ALICE), worker);
}

/// As alice: everything by which one process gets into another of the same user.
const INTRUDE: &str = "import ctypes,os,sys\n\
    pid=int(sys.argv[1])\nlibc=ctypes.CDLL(None,use_errno=True)\n\
    def call(name,*args):\n\
    \x20 r=libc.syscall(*args); print(name, 'ok' if r>=0 else ctypes.get_errno())\n\
    \x20 return r\n\
    fd=os.pidfd_open(pid)\n\
    call('getfd',438,fd,0,0)\n\
    call('getfd3',438,fd,3,0)\n\
    call('seize',101,0x4206,pid,0,0)\n\
    b=ctypes.create_string_buffer(16)\n\
    class V(ctypes.Structure): _fields_=[('p',ctypes.c_void_p),('n',ctypes.c_size_t)]\n\
    v=V(ctypes.cast(b,ctypes.c_void_p),16); r=V(0x400000,16)\n\
    call('readv',310,pid,ctypes.byref(v),1,ctypes.byref(r),1,0)\n\
    for name in ('mem','environ','maps','fd','exe','cwd','root'):\n\
    \x20 path=f'/proc/{pid}/{name}'\n\
    \x20 try:\n\
    \x20   os.listdir(path) if name=='fd' else os.readlink(path) if name in ('exe','cwd','root') else open(path,'rb').read(1)\n\
    \x20   print(name,'ok')\n\
    \x20 except OSError as e: print(name,e.errno)";

#[test]
fn b9_a_worker_is_closed_to_its_user() {
    let stage = or_skip!(Stage::new());
    stage.alice().create("pipe:");
    let worker = stage.worker_of(ALICE);
    let said = stage.bus.python_as(&ALICE.into(), INTRUDE, &[&worker.to_string()]).finish().success();
    assert_eq!(said.lines().count(), 11, "{said}");
    for line in said.lines() {
        let (_, outcome) = line.split_once(' ').expect("two words");
        assert!(["1", "13"].contains(&outcome), "{line}: EPERM or EACCES is expected");
    }
    // Nothing is in there that would be worth it.
    let parent = status(worker, "PPid").expect("a living worker");
    assert_eq!(parent, stage.spawner().to_string());
    assert_eq!(fs::read(format!("/proc/{worker}/environ")).expect("root may"), b"");
}

#[test]
fn b10_pids_that_are_no_process() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    for pid in ["0", "-1", "-4711", "4294967295", "99999999999", "x", ""] {
        let refusal = alice.refused("Create", &format!("pipe:lifetime=pid:{pid}"));
        assert_error(&refusal, "InvalidArgument", &["lifetime"]);
        let refusal = alice.refused("Attach", &format!("pipe:pid={pid},fd=0"));
        assert_error(&refusal, "InvalidArgument", &["\"pid\""]);
    }
    // Processes that are not hers: the kernel's answer is the answer.
    for pid in [1, stage.spawner(), stage.front(), stage.bus.connector_pid(&BOB.into())] {
        let refusal = alice.refused("Attach", &format!("pipe:pid={pid},fd=0"));
        assert!(refusal.is("PermissionDenied"), "{pid}: {refusal}");
    }
    assert_eq!(alice.usage("endpoints"), 0);
}

/// /run/systemd is not for a process that may be taken for the service's own unit.
#[test]
fn b13_systemd_is_out_of_reach() {
    let stage = or_skip!(Stage::new());
    let directory = stage.bus.run_systemd();
    let notify = UnixDatagram::bind(directory.join("notify")).expect("an own directory");
    let stream = UnixListener::bind(directory.join("private")).expect("an own directory");
    stage.bus.sh_as(&ROOT.into(), "chmod 777 /run/systemd/notify /run/systemd/private").finish().success();
    let link = stage.path("link");
    std::os::unix::fs::symlink("/run/systemd/notify", &link).expect("an own directory");
    let mut alice = stage.alice();
    for (address, kind) in [
        ("/run/systemd/notify".to_owned(), "dgram"),
        ("/run/../run/./systemd//notify".to_owned(), "dgram"),
        (link, "dgram"),
        ("/proc/self/root/run/systemd/notify".to_owned(), "dgram"),
        ("/run/systemd/private".to_owned(), "stream"),
    ] {
        let refusal = alice.refused("Attach", &format!("unix:path={address},type={kind}"));
        assert!(refusal.is("PermissionDenied"), "{address}: {refusal}");
    }
    // A socket of no connection that sends to an address is no way either.
    let socket = alice.create(&format!("unix:abstract={},type=dgram", unique("b13")));
    let attributes = dict(&[("address", text("/run/systemd/notify"))]);
    let sent = alice.call(&socket, "Messages", "Send", &[bytes(b"READY=1"), attributes, Arg::U32(0)]);
    error(sent);
    notify.set_nonblocking(true).expect("an own socket");
    let mut heard = [0; 64];
    assert!(notify.recv(&mut heard).is_err(), "something arrived: {heard:?}");
    stream.set_nonblocking(true).expect("an own socket");
    assert!(stream.accept().is_err(), "somebody connected");
}

#[test]
fn b14_the_bus_is_not_reached_through_the_service() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let link = stage.path("bus");
    std::os::unix::fs::symlink(stage.bus.socket(), &link).expect("an own directory");
    for path in [stage.bus.socket(), &link] {
        let refusal = alice.refused("Attach", &format!("unix:path={path}"));
        assert!(refusal.is("PermissionDenied"), "{path}: {refusal}");
    }
    // Nor through an fd of it.
    let socket = stage.bus.socket_of(&ALICE.into());
    let adopt = Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(1);
    let refusal = error(alice.ask(adopt, &[socket.as_fd()]));
    assert!(refusal.is("PermissionDenied"), "{refusal}");
}

/// Who a message is from is what the kernel says, whatever the attributes say.
#[test]
fn b16_credentials_are_not_forged() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let name = unique("b16");
    let receiver = alice.create(&format!("unix:abstract={name},type=dgram,passcred"));
    let sender = alice.attach(&format!("unix:abstract={name},type=dgram"));
    for (key, value) in [("uid", 0), ("pid", 1), ("gid", 0)] {
        let args = [bytes(b"forged"), dict(&[(key, Arg::U32(value))]), Arg::U32(0)];
        let refusal = error(alice.call(&sender, "Messages", "Send", &args));
        assert!(refusal.is("InvalidArgument") || refusal.is("PermissionDenied"), "{key}: {refusal}");
    }
    alice.call(&sender, "Messages", "Send", &[bytes(b"true"), no_options(), Arg::U32(0)]).expect("Send");
    let received =
        alice.call(&receiver, "Messages", "Receive", &[no_options(), Arg::U32(1000)]).expect("Receive");
    let uid = entry(&received.args()[1], "uid").expect("who sent it");
    assert_eq!(ipc_adversary::number(&uid), u64::from(ALICE.uid));
}
