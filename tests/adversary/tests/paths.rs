//! C. Paths, descriptors, memory: what a caller names or hands over is used with the caller's rights, and cannot be
//! turned against the service.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ipc_adversary::wire::{self, Arg, Outgoing, bytes, dict, no_options, text};
use ipc_adversary::{Raw, Stage, assert_error, error, object, outcome, status};
use ipc_harness::system::{ALICE, ROOT};
use ipc_harness::{CallError, NAME, PATH, or_skip, patience, unique};
use rustix::fs::{MemfdFlags, Mode, OFlags};

const CANARY: &str = "only root may read this";

fn adopt(raw: &mut Raw, fd: impl AsFd) -> Result<String, CallError> {
    let message = Raw::message(PATH, "", "Adopt", &[Arg::Fd(0), no_options()]).with_fds(1);
    raw.ask(message, &[fd.as_fd()]).map(|reply| object(&reply.args()))
}

/// A pipe that alice made, as far as the kernel knows: the service opens it anew, so that it has flags of its own.
fn alices_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reading, writing) = std::io::pipe().expect("a pipe");
    let owner = rustix::process::Uid::from_raw(ALICE.uid);
    rustix::fs::fchown(&reading, Some(owner), None).expect("root may");
    (reading, writing)
}

/// A link that leads now to a file of alice's, now to one of root's: she never reads the other.
#[test]
fn c1_a_link_that_changes() {
    let stage = or_skip!(Stage::new());
    let secret = stage.file((ROOT, 0), 0o600, "secret", CANARY);
    let good = stage.file((ALICE, ALICE.gid), 0o600, "good", "alice's own, of the same length");
    let (link, next) = (stage.path("link"), stage.path("next"));
    std::os::unix::fs::symlink(&good, &link).expect("a link");
    let over = AtomicBool::new(false);
    let (mut opened, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for target in [&secret, &good] {
                    std::os::unix::fs::symlink(target, &next).expect("a link");
                    fs::rename(&next, &link).expect("changing it");
                }
            }
        });
        let mut alice = stage.alice();
        for _ in 0..1500 {
            match alice.try_make("Attach", &format!("mmap:path={link},access=read-only")) {
                Ok(endpoint) => {
                    let args = [Arg::U64(0), Arg::U64(10)];
                    let read = alice.call(&endpoint, "Memory", "ReadText", &args).expect("ReadText").args();
                    assert_eq!(read, [text("alice's ow")]);
                    alice.close(&endpoint);
                    opened += 1;
                }
                Err(refusal) => {
                    assert_error(&refusal, "PermissionDenied", &["EACCES"]);
                    refused += 1;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(opened > 0 && refused > 0, "the race did not happen: {opened} opened, {refused} refused");
}

/// Files that are no use, or a trap: the answer comes at once, and tells nothing of what is in them.
#[test]
fn c2_paths_that_are_traps() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let secret = stage.file((ROOT, 0), 0o600, "secret", CANARY);
    let locked = stage.directory((ROOT, 0), 0o700, "locked");
    fs::write(format!("{locked}/inside"), CANARY).expect("a file");
    let fifo = stage.path("fifo");
    stage.bus.sh_as(&ALICE.into(), &format!("mkfifo '{fifo}'")).finish().success();
    let attempts = [
        ("/etc/shadow", "PermissionDenied"),
        (secret.as_str(), "PermissionDenied"),
        (&format!("{locked}/inside"), "PermissionDenied"),
        (&format!("{locked}/missing"), "PermissionDenied"),
        ("/dev/zero", "InvalidArgument"),
        ("/dev/tty", "InvalidArgument"),
        ("/proc/self/mem", ""),
        ("/tmp", "InvalidArgument"),
        (&fifo, "InvalidArgument"),
    ];
    for (path, name) in attempts {
        for access in ["read-only", "read-write"] {
            let refusal = match alice.try_make("Attach", &format!("mmap:path={path},access={access}")) {
                Err(refusal) => refusal,
                Ok(endpoint) if name.is_empty() => {
                    alice.close(&endpoint);
                    continue;
                }
                Ok(endpoint) => panic!("{path} was attached to, as {endpoint}"),
            };
            assert!(name.is_empty() || refusal.is(name), "{path}: {refusal}");
            assert!(!refusal.text.contains("root:") && !refusal.text.contains(CANARY), "{refusal}");
        }
        for scheme in ["fifo", "unix"] {
            if let Ok(endpoint) = alice.try_make("Attach", &format!("{scheme}:path={path}")) {
                alice.close(&endpoint);
                assert_eq!((scheme, path), ("fifo", fifo.as_str()));
            }
        }
    }
    // What is in a directory that she may not search is not told apart.
    let what = |alice: &mut Raw, name: &str| {
        let refusal = alice.refused("Attach", &format!("mmap:path={locked}/{name}"));
        (refusal.name, refusal.text.replace(name, "NAME"))
    };
    assert_eq!(what(&mut alice, "inside"), what(&mut alice, "missing"));
}

/// Nothing is made in a directory of another.
#[test]
fn c3_directories_of_others() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let directory = stage.directory((ROOT, 0), 0o555, "roots");
    for address in [
        format!("fifo:path={directory}/x"),
        format!("unix:path={directory}/x"),
        format!("mmap:size=1,path={directory}/x"),
    ] {
        assert_error(&alice.refused("Create", &address), "PermissionDenied", &["EACCES"]);
    }
    let opened = OwnedFd::from(fs::File::open(&directory).expect("root may"));
    assert_error(&error(adopt(&mut alice, &opened)), "NotSupported", &["are served"]);
    assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 0);
}

/// A descriptor of the wrong kind, or opened for something else: refused, or used for what it was opened for.
#[test]
fn c4_descriptors_of_every_kind() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let file = stage.file((ALICE, ALICE.gid), 0o600, "file", "content");
    let open = |flags: OFlags| {
        rustix::fs::open(file.as_str(), flags | OFlags::CLOEXEC, Mode::empty()).expect("a file")
    };
    let refused: Vec<(&str, OwnedFd)> = vec![
        ("O_PATH", open(OFlags::PATH)),
        ("epoll", rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("epoll")),
        ("eventfd", rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd")),
        (
            "directory",
            rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("a directory"),
        ),
        ("/dev/zero", rustix::fs::open("/dev/zero", OFlags::RDWR, Mode::empty()).expect("a device")),
    ];
    for (kind, fd) in refused {
        let refusal = error(adopt(&mut alice, &fd));
        assert!(refusal.is("NotSupported") || refusal.is("InvalidArgument"), "{kind}: {refusal}");
    }
    // A pidfd of root's is a process that alice may not signal, as she may not herself.
    let myself = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(myself, rustix::process::PidfdFlags::empty()).expect("pidfd");
    if let Ok(endpoint) = adopt(&mut alice, &pidfd) {
        let refusal = error(alice.call(&endpoint, "Process", "Send", &[text("SIGKILL"), Arg::I32(0)]));
        assert!(refusal.is("PermissionDenied"), "{refusal}");
    }
    // One end of a pipe is that end; a file that is open for reading is not written to.
    let (reading, writing) = alices_pipe();
    if let Ok(endpoint) = adopt(&mut alice, &writing) {
        error(alice.call(&endpoint, "Stream", "Read", &[Arg::U32(1), Arg::U32(0)]));
    }
    if let Ok(endpoint) = adopt(&mut alice, &reading) {
        error(alice.write(&endpoint, "x"));
    }
    for (flags, member, args) in [
        (OFlags::RDONLY, "Write", vec![Arg::U64(0), bytes(b"forged!")]),
        (OFlags::WRONLY, "Read", vec![Arg::U64(0), Arg::U64(7)]),
    ] {
        if let Ok(endpoint) = adopt(&mut alice, open(flags)) {
            error(alice.call(&endpoint, "Memory", member, &args));
        }
    }
    assert_eq!(fs::read_to_string(&file).expect("root may"), "content");
    alice.ping().expect("an answer");
}

/// Memory that shrinks while the service uses it: an error, and the worker lives.
#[test]
fn c7_memory_that_shrinks() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let fd = rustix::fs::memfd_create("shrinks", MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&fd, 8192).expect("its size");
    let memory = adopt(&mut alice, &fd).expect("Adopt");
    let worker = stage.worker_of(ALICE);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for size in [0, 8192] {
                    rustix::fs::ftruncate(&fd, size).expect("its size");
                }
            }
        });
        for _ in 0..500 {
            let calls = [
                ("Load", vec![Arg::U64(4096), text("u32")]),
                ("FetchAdd", vec![Arg::U64(4096), wire::variant(Arg::U32(1))]),
                ("Read", vec![Arg::U64(4096), Arg::U64(16)]),
                ("Write", vec![Arg::U64(4096), bytes(b"x")]),
            ];
            for (member, args) in calls {
                // Whether there was memory just then is chance.
                if let Err(refusal) = alice.call(&memory, "Memory", member, &args) {
                    let names = ["Gone", "InvalidArgument"];
                    assert!(names.iter().any(|name| refusal.is(name)), "{member}: {refusal}");
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(stage.worker_of(ALICE), worker, "the same worker lives");
}

/// The other holder of a description makes it block again: no call hangs on it.
#[test]
fn c8_flags_that_change() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let (reading, writing) = alices_pipe();
    let endpoints = [adopt(&mut alice, &theirs).expect("Adopt"), adopt(&mut alice, &reading).expect("Adopt")];
    let over = AtomicBool::new(false);
    let mut other = stage.alice();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for fd in [theirs.as_fd(), reading.as_fd()] {
                    rustix::fs::fcntl_setfl(fd, OFlags::empty()).expect("own flags");
                }
            }
        });
        for _ in 0..100 {
            for endpoint in &endpoints {
                let busy = error(alice.call(endpoint, "Stream", "Read", &[Arg::U32(1), Arg::U32(0)]));
                assert!(busy.is("Busy"), "{busy}");
            }
            other.ping().expect("an answer");
        }
        let timed_out = error(alice.call(&endpoints[1], "Stream", "Read", &[Arg::U32(1), Arg::U32(20)]));
        assert!(timed_out.is("Timeout"), "{timed_out}");
        over.store(true, Ordering::Relaxed);
    });
    (&ours).write_all(b"x").expect("writing");
    (&writing).write_all(b"y").expect("writing");
    assert_eq!(alice.read_text(&endpoints[0]).as_deref(), Ok("x"));
    assert_eq!(alice.read_text(&endpoints[1]).as_deref(), Ok("y"));
}

/// As alice: SIGIO to a process from a pipe that becomes readable.
const ASYNC: &str = "import fcntl,os,sys\nr,w=os.pipe()\nfcntl.fcntl(r,fcntl.F_SETOWN,int(sys.argv[1]))\n\
    fcntl.fcntl(r,fcntl.F_SETFL,os.O_ASYNC|os.O_NONBLOCK)\nfcntl.fcntl(r,10,int(sys.argv[2]))\nos.write(w,b'x')";

/// A user may signal his worker. What a kernel object can send without asking is ignored; the rest ends it, and the
/// next call has another.
#[test]
fn c9_signals_to_a_worker() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let pipe = alice.create("pipe:");
    let worker = stage.worker_of(ALICE);
    let ignored = "URG IO XFSZ PIPE USR1 USR2 ALRM VTALRM PROF CHLD WINCH RTMIN RTMIN+5 RTMAX";
    let script = format!("for s in {ignored}; do /bin/kill -s $s {worker} || kill -s $s {worker}; done");
    stage.bus.sh_as(&ALICE.into(), &script).finish().success();
    for number in [0, 34, 40] {
        let arguments = [worker.to_string(), number.to_string()];
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        stage.bus.python_as(&ALICE.into(), ASYNC, &arguments).finish().success();
    }
    alice.write(&pipe, "still the same").expect("the worker lives");
    assert_eq!(stage.worker_of(ALICE), worker);
    for number in ["SEGV", "HUP", "SYS"] {
        let worker = stage.worker_of(ALICE);
        stage.bus.sh_as(&ALICE.into(), &format!("kill -s {number} {worker}")).finish().success();
        // Some may be ignored too; either way the next call is answered.
        stage.until("she is served", || alice.try_make("Create", "pipe:").is_ok());
    }
}

/// Descriptors that are announced and do not come, come and are not announced, or are not among those that came.
#[test]
fn c10_indices_of_descriptors() {
    let stage = or_skip!(Stage::new());
    let fd = rustix::fs::memfd_create("c10", MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&fd, 4096).expect("its size");
    let adopt = |index: u32, announced: u32| {
        let message = Raw::message(PATH, "", "Adopt", &[Arg::Fd(index), no_options()]);
        if announced > 0 { message.with_fds(announced) } else { message }
    };
    stage.alice().create("pipe:");
    let worker = stage.worker_of(ALICE);
    let rows: [(u32, u32, usize); 8] = [
        (5, 1, 1),
        (1, 1, 1),
        (u32::MAX, 1, 1),
        (0, 2, 1),
        (0, 0, 1),
        (0, 0, 0),
        (0, 1, 0),
        (0, u32::MAX, 1),
    ];
    for (index, announced, sent) in rows {
        let mut alice = stage.alice();
        let fds: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); sent];
        let serial = alice.try_send(adopt(index, announced), &fds).expect("sent");
        // The bus waits for what was announced, or ends the connection; or the service refuses.
        let waits = announced as usize > sent;
        let bound = if waits { std::time::Duration::from_millis(200) } else { patience() };
        match alice.reply_within(serial, bound).map(outcome) {
            Some(Err(refusal)) => {
                assert!(!refusal.is("Gone"), "{index} {announced} {sent}: {refusal:?}");
            }
            Some(Ok(reply)) => panic!("{index} {announced} {sent}: {reply:?}"),
            None => assert!(waits || alice.is_closed(patience()), "{index} {announced} {sent}: no answer"),
        }
        // By now the front and the worker have had to do with it.
        stage.alice().call(PATH, "", "Usage", &[]).expect_err("no such method");
        assert_eq!(stage.workers_of(ALICE), [worker], "{index} {announced} {sent}: it ended the worker");
    }
    // Twice the same is one descriptor.
    let mut alice = stage.alice();
    let made = alice.ask(adopt(0, 2), &[fd.as_fd(), fd.as_fd()]).expect("the first of two");
    alice.close(&object(&made.args()));
    // A signature that says otherwise than the body.
    let mut wrong = Raw::message(PATH, "", "Adopt", &[Arg::U32(0), no_options()]).with_fds(1);
    let refusal = error(alice.ask(wrong.clone(), &[fd.as_fd()]));
    assert_eq!(refusal.name, "org.freedesktop.DBus.Error.InvalidArgs", "{refusal}");
    wrong.body.truncate(2);
    let serial = alice.try_send(wrong, &[fd.as_fd()]).expect("sent");
    assert!(alice.reply_within(serial, patience()).is_none(), "the bus does not pass on what is no message");
    stage.bob().ping().expect("bob notices nothing");
}

/// What a reply may not carry is an error before it is a reply: the bus would disconnect the service.
#[test]
fn c11_replies_that_are_too_large() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let owner = alice.owner();
    let memory = alice.create("mmap:size=64M");
    let refusal = error(alice.call(&memory, "Memory", "Read", &[Arg::U64(0), Arg::U64(40 << 20)]));
    assert_error(&refusal, "TooLarge", &["1048576", "payload"]);
    let pipe = alice.create("pipe:");
    alice.write(&pipe, "x").expect("Write");
    let read = alice.call(&pipe, "Stream", "Read", &[Arg::U32(u32::MAX), Arg::U32(0)]).expect("Read");
    assert_eq!(read.args(), [bytes(b"x")]);
    // A message with more descriptors than a reply may have.
    let pair = alice.create("unix:pair,type=seqpacket,pass-fds");
    let mut open = |end: &str| {
        let options = dict(&[("end", text(end))]);
        alice.call(&pair, "Endpoint", "Open", &[options]).ok().and_then(|mut reply| reply.fds.pop())
    };
    if let Some(end) = open("peer").or_else(|| open("second")) {
        let file = fs::File::open("/dev/null").expect("a file");
        let fds = vec![file.as_fd(); 20];
        Raw::of(end.into()).send_bytes(b"twenty", &fds).expect("the kernel takes it");
        let args = [no_options(), Arg::U32(1000)];
        match alice.call(&pair, "Messages", "Receive", &args) {
            Ok(reply) => assert!(reply.fds.len() <= 8, "{} descriptors", reply.fds.len()),
            Err(refusal) => assert!(refusal.is("TooLarge") || refusal.is("LimitExceeded"), "{refusal}"),
        }
    }
    assert_eq!(alice.owner(), owner, "the service is still the same connection");
}

/// Names with everything that spoils a log or an error.
#[test]
fn c12_names_that_spoil_logs() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let directory = stage.directory((ALICE, ALICE.gid), 0o755, "alice");
    let forged = "FORGED LINE root logged in";
    for name in [
        format!("a%0a{forged}"),
        format!("a%0d{forged}"),
        "%1b%5b31mred%1b%5b0m".to_owned(),
        "nul%00nul".to_owned(),
        "n".repeat(300),
        "%ff%fe".to_owned(),
        "%e2%80%ae".to_owned(),
    ] {
        for address in [
            format!("fifo:path={directory}/{name}"),
            format!("posixsem:name=/{name},remove-on-close"),
            format!("posixmq:name=/{name},depth=1,size=1,remove-on-close"),
            format!("unix:path=/{name}/missing"),
            format!("pipe:{name}=1"),
            format!("{name}:"),
        ] {
            match alice.try_make("Create", &address) {
                Ok(endpoint) => alice.close(&endpoint),
                Err(refusal) => {
                    let plain = refusal.text.chars().all(|c| !c.is_control());
                    assert!(plain, "{address}: {:?}", refusal.text);
                }
            }
        }
    }
    // As a member and as an interface, where the bus itself looks first.
    for member in ["a\nb", "\u{1b}[31m", &"m".repeat(300)] {
        let mut own = stage.alice();
        let sent = own.try_send(Outgoing::call(NAME, PATH, NAME, member, &[]), &[]);
        if let Ok(serial) = sent {
            assert!(own.reply_within(serial, patience()).is_none_or(|reply| outcome(reply).is_err()));
        }
    }
    let log = stage.service.log();
    assert!(!log.contains('\u{1b}') && !log.lines().any(|line| line.starts_with(forged)), "{log}");
}

/// Permission bits are what was asked for, and 0600 where nothing was; whatever the umask.
#[test]
fn c13_modes_are_exact() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let directory = stage.directory((ALICE, ALICE.gid), 0o755, "alice");
    let semaphore = unique("mode");
    let mode_of = |path: &str| fs::metadata(path).expect("it was made").permissions().mode() & 0o7777;
    let cases = [
        (format!("fifo:path={directory}/fifo"), format!("{directory}/fifo")),
        (format!("unix:path={directory}/unix"), format!("{directory}/unix")),
        (format!("mmap:size=1,path={directory}/mmap"), format!("{directory}/mmap")),
        (format!("posixsem:name=/{semaphore}"), format!("/dev/shm/sem.{semaphore}")),
        (format!("posixshm:size=1,name=/{semaphore}"), format!("/dev/shm/{semaphore}")),
    ];
    for (address, path) in cases {
        for (given, mode) in [("", 0o600), (",mode=666", 0o666), (",mode=640", 0o640)] {
            let endpoint = alice.create(&format!("{address},remove-on-close{given}"));
            assert_eq!(mode_of(&path), mode, "{address}{given}");
            let metadata = fs::metadata(&path).expect("it was made");
            assert_eq!((metadata.uid(), metadata.gid()), (ALICE.uid, ALICE.gid), "{address}");
            alice.close(&endpoint);
        }
    }
    assert_eq!(status(stage.worker_of(ALICE), "Umask").as_deref(), Some("0077"));
}

#[test]
fn c15_a_worker_has_no_environment() {
    let stage = or_skip!(Stage::new());
    stage.alice().create("pipe:");
    let mut environment = Vec::new();
    let worker = stage.worker_of(ALICE);
    let file = fs::File::open(format!("/proc/{worker}/environ"));
    file.expect("root may").read_to_end(&mut environment).expect("root may");
    // How much, not what: it is the environment of whoever runs the tests.
    assert_eq!(environment.len(), 0);
    assert_eq!(status(worker, "Name").as_deref(), Some("ipcd-worker"));
    assert_eq!(status(worker, "NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(status(worker, "Seccomp").as_deref(), Some("2"));
    let ids: Vec<u32> = status(worker, "Uid")
        .expect("a worker")
        .split_whitespace()
        .map(|id| id.parse().expect("a number"))
        .collect();
    assert_eq!(ids, [ALICE.uid; 4]);
}
