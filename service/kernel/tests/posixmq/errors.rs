//! Every errno of the man pages, provoked by a C program and through the mechanism: the same one,
//! with a meaning.

use ipc_kernel::{Error, Kind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    alone::{alone, as_nobody, become_nobody, run},
    *,
};

/// That both were refused for the same reason.
#[track_caller]
fn same<T>(errno: &str, program: &str, ours: Result<T>, kind: Kind, phrase: &str) {
    assert_eq!(program, errno, "the C library");
    match ours {
        Ok(_) => panic!("accepted, where C says {errno}"),
        Err(Error { kind: found, text }) => {
            assert_eq!(found, kind, "{text}");
            assert!(text.contains(&format!("({errno})")) || text.contains(&format!(": {errno})")), "{text}");
            assert!(text.contains(phrase), "{text:?} does not say {phrase:?}");
        }
    }
}

fn escaped(name: &[u8]) -> String {
    name.iter().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn names_are_the_kernels() {
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let long = [b"/", &[b'n'; 256][..]].concat();
    let longer = [b"/", &[b'n'; 4096][..]].concat();
    let rows: [(&[u8], &str, &str); 9] = [
        (b"jobs", "EINVAL", "does not begin with '/'"),
        (b"", "EINVAL", "does not begin with '/'"),
        (b"/", "ENOENT", "is empty"),
        (b"//", "EACCES", "second '/'"),
        (b"/a/b", "EACCES", "second '/'"),
        (b"/.", "EACCES", "directory"),
        (b"/..", "EACCES", "directory"),
        (&long, "ENAMETOOLONG", "1 to 255 bytes"),
        (&longer, "ENAMETOOLONG", "1 to 255 bytes"),
    ];
    for (name, errno, phrase) in rows {
        let address = format!("posixmq:name={}", escaped(name));
        let made = program.ask(&format!("create {} {BOTH} 384 1 1", hex(name)));
        same(errno, &made, create(&address), Kind::InvalidArgument, phrase);
        let opened = program.ask(&format!("open {} {BOTH}", hex(name)));
        same(errno, &opened, attach(&address), Kind::InvalidArgument, phrase);
    }
    refused(create("posixmq:name=/a%00b"), Kind::InvalidArgument, "name");
    refused(create("posixmq:depth=1"), Kind::InvalidArgument, "\"name\" is missing");

    // Any other bytes are a name, up to the longest.
    let start = unique();
    let rest = 255 - start.len();
    let name = [b"/", start.as_bytes(), &[b" %\n\xff\x01".as_slice(); 64].concat()[..rest]].concat();
    let address = format!("posixmq:name={}", escaped(&name));
    let endpoint = create(&format!("{address},depth=1,size=1")).unwrap();
    assert_eq!(program.ask(&format!("create {} {BOTH} 384 1 1", hex(&name))), "EEXIST");
    assert!(!program.ask(&format!("open {} {BOTH}", hex(&name))).starts_with('E'));
    attach(&endpoint.address().to_string()).unwrap().remove().unwrap();
    assert_eq!(program.ask(&format!("unlink {}", hex(&name))), "ENOENT");
}

#[test]
fn opening() {
    let (there, missing) = (Queue::new(), Queue::new());
    let _endpoint = there.made();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let opened = program.ask(&format!("open {} {BOTH}", missing.hex()));
    same("ENOENT", &opened, attach(&missing.address()), Kind::NotFound, &missing.0);
    let made = program.ask(&format!("create {} {BOTH} 384 1 1", there.hex()));
    same("EEXIST", &made, create(&there.address()), Kind::Exists, "Attach opens");
    assert_eq!(program.ask(&format!("create {} {BOTH} 384 0 1", missing.hex())), "EINVAL");
    assert_eq!(program.ask(&format!("create {} {BOTH} 384 1 0", missing.hex())), "EINVAL");
    for (key, phrase) in [
        ("depth=0", "from 1 to 65536"),
        ("size=0", "\"size\""),
        ("depth=65537", "from 1 to 65536"),
        ("depth=4294967296", "from 1 to 65536"),
        ("depth=-1", "from 1 to 65536"),
        ("size=16777217", "\"size\""),
        ("size=18446744073709551616", "\"size\""),
        ("access=execute", "read-write, read, write"),
    ] {
        refused(create(&format!("{},{key}", missing.address())), Kind::InvalidArgument, phrase);
    }
    refused(attach(&missing.address()), Kind::NotFound, "ENOENT");
}

/// What only an ordinary user is refused, in an IPC namespace where nothing else is.
#[test]
fn opening_as_an_ordinary_user() {
    alone(|| {
        run("echo 7 > /proc/sys/fs/mqueue/msg_max; echo 128 > /proc/sys/fs/mqueue/msgsize_max");
        run("echo 4 > /proc/sys/fs/mqueue/queues_max");
        let (roots, write_only) = (Queue::new(), Queue::new());
        let _endpoint = roots.made();
        let _other = create(&format!("{},depth=1,size=1,mode=0622", write_only.address())).unwrap();
        become_nobody();
        let Some(mut program) = Peer::compiled(PROGRAM) else { return };
        let opened = program.ask(&format!("open {} {BOTH}", roots.hex()));
        same("EACCES", &opened, attach(&roots.address()), Kind::PermissionDenied, "access=read");
        let opened = program.ask(&format!("open {} {READ}", write_only.hex()));
        let ours = attach(&format!("{},access=read", write_only.address()));
        same("EACCES", &opened, ours, Kind::PermissionDenied, &write_only.0);
        let writer = attach(&format!("{},access=write", write_only.address())).unwrap();
        send(&*writer, "x", 0);
        let unlinked = program.ask(&format!("unlink {}", write_only.hex()));
        same("EACCES", &unlinked, writer.remove(), Kind::PermissionDenied, "owner");

        let own = Queue::new();
        for (depth, size) in [(8, 1), (1, 129)] {
            let made = program.ask(&format!("create {} {BOTH} 384 {depth} {size}", own.hex()));
            let ours = create(&format!("{},depth={depth},size={size}", own.address()));
            same("EINVAL", &made, ours, Kind::InvalidArgument, "fs.mqueue.msg_max, now 7");
        }
        let ours = create(&format!("{},size=129", own.address()));
        refused(ours, Kind::InvalidArgument, "fs.mqueue.msgsize_max, now 128");
        // One of the two, and the kernel's default of the other.
        let (first, second) = (Queue::new(), Queue::new());
        for (queue, given, depth, size) in [(&first, "depth=3", 3, 128), (&second, "size=9", 7, 9)] {
            let made = create(&format!("{},{given}", queue.address())).unwrap();
            assert_eq!((number(&*made, "depth"), number(&*made, "size")), (Some(depth), Some(size)));
        }

        let made = program.ask(&format!("create {} {BOTH} 384 1 1", own.hex()));
        let refused = create(&format!("{},depth=1,size=1", own.address()));
        same("ENOSPC", &made, refused, Kind::LimitExceeded, "fs.mqueue.queues_max, now 4");
        attach(&first.address()).unwrap().remove().unwrap();
        create(&format!("{},depth=1,size=1", own.address())).unwrap();
    });
}

/// The two meanings of EMFILE. In a process of its own: the limit is one of processes.
#[test]
fn no_descriptor_left() {
    const CHILD: &str = "IPC_POSIXMQ_NO_DESCRIPTOR";
    if std::env::var_os(CHILD).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "errors::no_descriptor_left", "--nocapture"]).env(CHILD, "1");
        assert!(again.status().unwrap().success());
        return;
    }
    let queue = Queue::new();
    let _endpoint = queue.made();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: before.maximum }).unwrap();
    let made = create(&Queue::new().address());
    let opened = attach(&queue.address());
    setrlimit(Resource::Nofile, before).unwrap();
    refused(made, Kind::LimitExceeded, "(RLIMIT_NOFILE)");
    refused(opened, Kind::LimitExceeded, "(RLIMIT_NOFILE)");
}

#[test]
fn sending_and_receiving() {
    let queue = Queue::new();
    let endpoint = queue.made();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let open = |access| format!("open {} {access}", queue.hex());
    let both = program.ask(&open(BOTH));
    let (reader, writer) = (program.ask(&open(READ)), program.ask(&open(WRITE)));
    let sent = program.ask(&format!("send 61 {reader} 0 0"));
    let only_reads = attach(&format!("{},access=read", queue.address())).unwrap();
    same("EBADF", &sent, try_send(&*only_reads, b"a", 0), Kind::PermissionDenied, "access=write");
    let got = program.ask(&format!("receive {writer} 0"));
    let only_writes = attach(&format!("{},access=write", queue.address())).unwrap();
    same("EBADF", &got, try_receive(&*only_writes), Kind::PermissionDenied, "access=read");
    refused(messages(&*only_writes).arrival(), Kind::PermissionDenied, "access=read");

    for length in [65, 9000] {
        let sent = program.ask(&format!("zeroes {length} {both}"));
        same("EMSGSIZE", &sent, try_send(&*endpoint, &vec![0; length], 0), Kind::TooLarge, "takes 64");
    }
    let sent = program.ask(&format!("send 61 {both} 32768 0"));
    same("EINVAL", &sent, try_send(&*endpoint, b"a", 32768), Kind::InvalidArgument, "0 to 32767");
    for wrong in
        [dict! { "priority" => -1 }, dict! { "priority" => 4_294_967_296_u64 }, dict! { "priority" => "1" }]
    {
        let message = Outgoing { data: b"a", attributes: &wrong, fds: &[], sent: &Default::default() };
        refused(messages(&*endpoint).send(message), Kind::InvalidArgument, "0 to 32767");
    }
    let urgent = dict! { "type" => 1u32 };
    let message = Outgoing { data: b"a", attributes: &urgent, fds: &[], sent: &Default::default() };
    refused(messages(&*endpoint).send(message), Kind::InvalidArgument, "\"type\"; they have priority");
    refused(messages(&*endpoint).receive(&urgent), Kind::InvalidArgument, "no selector \"type\"");
    refused(messages(&*endpoint).peek(&Dict::new()), Kind::NotSupported, "cannot peek");
    assert_eq!(messages(&*endpoint).depth(), Some(0), "nothing of that arrived");

    // What C says of an empty and a full queue is waiting, to whoever may wait.
    let nonblocking = program.ask(&open(BOTH | NONBLOCK));
    assert_eq!(program.ask(&format!("receive {nonblocking} 0")), "EAGAIN");
    assert_eq!(program.ask(&format!("receive {both} 1")), "ETIMEDOUT");
    must_wait(try_receive(&*endpoint));
    assert_eq!(program.ask(&format!("receive {both} 0 63")), "EMSGSIZE", "its own buffer");
    (0..3).for_each(|_| send(&*endpoint, "x", 0));
    assert_eq!(program.ask(&format!("send 61 {nonblocking} 0 0")), "EAGAIN");
    assert_eq!(program.ask(&format!("send 61 {both} 0 1")), "ETIMEDOUT");
    must_wait(try_send(&*endpoint, b"x", 0));
    assert_eq!(program.ask(&format!("close {both}")), "0");
    assert_eq!(program.ask(&format!("attributes {both}")), "EBADF");
}

#[test]
fn removing() {
    let queue = Queue::new();
    let endpoint = queue.made();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    assert_eq!(program.ask(&format!("unlink {}", queue.hex())), "0");
    assert_eq!(program.ask(&format!("unlink {}", queue.hex())), "ENOENT");
    refused(endpoint.remove(), Kind::Gone, "removed already");
    assert_eq!(program.ask(&format!("unlink {}", hex(&[b"/", &[b'n'; 256][..]].concat()))), "ENAMETOOLONG");
    let theirs = Queue::new();
    let _endpoint = create(&format!("{},depth=1,size=1,mode=0666", theirs.address())).unwrap();
    as_nobody(|| {
        let Some(mut program) = Peer::compiled(PROGRAM) else { return };
        let unlinked = program.ask(&format!("unlink {}", theirs.hex()));
        let removed = attach(&theirs.address()).unwrap().remove();
        same("EACCES", &unlinked, removed, Kind::PermissionDenied, "only the owner");
    });
}
