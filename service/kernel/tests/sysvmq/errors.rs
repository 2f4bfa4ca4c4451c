//! Every errno of msgget(2), msgop(2) and msgctl(2), provoked by a C program and through an
//! endpoint: the error names the same errno, and has the kind that the reference says.

use ipc_kernel::{Dict, Kind, Result, dict, mechanism::Permissions};

use crate::support::*;

/// What the C program said stands in the error's text.
#[track_caller]
fn same<T>(theirs: &str, ours: Result<T>, kind: Kind) {
    assert!(theirs.starts_with('E'), "the C program did it: {theirs}");
    refused(ours, kind, theirs);
}

const NOWAIT: &str = "4000";

#[test]
fn errnos_of_the_caller_himself() {
    let Some(mut peer) = program() else { return };
    let queue = create("key=random,qbytes=100");
    let (id, key) = (queue.id(), number(&queue, "key"));

    // msgget(2)
    same(&peer.ask(&format!("get {key} 3600")), try_create(&format!("key={key}")).map(|_| ()), Kind::Exists);
    let free = create("key=random");
    let free_key = number(&free, "key");
    free.remove().unwrap();
    same(&peer.ask(&format!("get {free_key} 0")), attach(&format!("key={free_key}")), Kind::NotFound);

    // msgop(2)
    let send = |data: &[u8], attributes: &Dict| try_send(&queue, data, attributes);
    same(&peer.ask(&format!("sndsize {id} 1 {NOWAIT} 8193")), send(&[0; 8193], &Dict::new()), Kind::TooLarge);
    assert_eq!(peer.ask(&format!("snd {id} 0 {NOWAIT} 41")), "EINVAL");
    refused(send(b"A", &dict! { "type" => 0i64 }), Kind::InvalidArgument, "above 0");
    assert_eq!(peer.ask(&format!("snd {id} -1 {NOWAIT} 41")), "EINVAL");
    refused(send(b"A", &dict! { "type" => -1i64 }), Kind::InvalidArgument, "above 0");
    // It would never have room.
    assert_eq!(peer.ask(&format!("sndsize {id} 1 {NOWAIT} 101")), "EAGAIN");
    refused(send(&[0; 101], &Dict::new()), Kind::TooLarge, "qbytes");
    assert_eq!(peer.ask(&format!("rcv {id} 10 0 {NOWAIT}")), "ENOMSG");
    assert_eq!(now(&queue, &Dict::new()), None);
    send(&[0; 100], &Dict::new()).unwrap();
    assert_eq!(peer.ask(&format!("snd {id} 1 {NOWAIT} 41")), "EAGAIN");
    assert!(matches!(send(b"A", &Dict::new()), Ok(ipc_kernel::Attempt::Wait(_))));
    let small = dict! { "max-size" => 10u32 };
    same(&peer.ask(&format!("rcv {id} 10 0 {NOWAIT}")), try_receive(&queue, &small), Kind::TooLarge);

    // msgctl(2), and all of them when the queue has gone.
    let other = create("key=private");
    let gone = other.id();
    other.remove().unwrap();
    same(&peer.ask(&format!("stat {gone}")), attach(&format!("id={gone}")), Kind::NotFound);
    let set = other.set_permissions(Permissions { mode: Some(0o600), ..Permissions::default() });
    assert_eq!(peer.ask(&format!("set {gone} 0 0 600 1")), "EINVAL");
    refused(set, Kind::Gone, "was removed");
    assert_eq!(peer.ask(&format!("rm {gone}")), "EINVAL");
    refused(other.remove(), Kind::Gone, "was removed");
    same(&peer.ask(&format!("snd {gone} 1 0 41")), try_send(&other, b"A", &Dict::new()), Kind::Gone);
    same(&peer.ask(&format!("rcv {gone} 1 0 0")), try_receive(&other, &Dict::new()), Kind::Gone);
    refused(other.messages().unwrap().peek(&Dict::new()), Kind::Gone, "EINVAL");
    refused(other.messages().unwrap().arrival(), Kind::Gone, "EINVAL");
}

#[test]
fn what_the_kernel_cannot_mean_is_refused_before_it_is_asked() {
    for (wrong, phrase) in [
        ("key=0", "IPC_PRIVATE"),
        ("", "missing"),
        ("key=private,mode=1777", "0777"),
        ("key=private,path=/tmp,project=1", "either"),
        ("key=private,qbytes=0", "qbytes"),
    ] {
        refused(try_create(wrong).map(|_| ()), Kind::InvalidArgument, phrase);
    }
    for (wrong, phrase) in
        [("key=private", "key"), ("id=1,key=1", "not both"), ("id=-1", "id"), ("", "missing")]
    {
        refused(attach(wrong), Kind::InvalidArgument, phrase);
    }
    let queue = create("key=private");
    for (wrong, phrase) in [
        (Permissions { mode: Some(0o1600), ..Permissions::default() }, "0777"),
        (Permissions { uid: Some(u32::MAX), ..Permissions::default() }, "no user"),
        (Permissions { gid: Some(u32::MAX), ..Permissions::default() }, "no user"),
    ] {
        refused(queue.set_permissions(wrong), Kind::InvalidArgument, phrase);
    }
    refused(queue.open(&ipc_kernel::Parameters::default()), Kind::NotSupported, "pipe");
}

/// As another user: the C program by its process, we by the thread.
#[test]
fn errnos_of_somebody_else() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let Some(mut peer) = program_of(NOBODY) else { return };
    let (closed, reading) = (create("key=random"), create("key=random,mode=0644"));
    let theirs = |peer: &mut Peer, line: &str| peer.ask(line);
    let become_nobody = || {
        let nobody = rustix::process::Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
    };
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            become_nobody();
            let id = closed.id();
            // Found by its key, as by msgget(key, 0); not more than that.
            assert_eq!(theirs(&mut peer, &format!("get {} 0", number(&closed, "key"))), format!("ok {id}"));
            let closed = attach(&closed.address().to_string()["sysvmq:".len()..]).unwrap();
            assert_eq!(theirs(&mut peer, &format!("stat {id}")), "EACCES");
            assert_eq!(number(&closed, "id"), id, "MSG_STAT_ANY and /proc show it to everybody");
            let denied = Kind::PermissionDenied;
            same(
                &theirs(&mut peer, &format!("snd {id} 1 4000 41")),
                try_send(&closed, b"A", &Dict::new()),
                denied,
            );
            same(
                &theirs(&mut peer, &format!("rcv {id} 1 0 4000")),
                try_receive(&closed, &Dict::new()),
                denied,
            );
            same(
                &theirs(&mut peer, &format!("rcv {id} 1 0 44000")),
                closed.messages().unwrap().peek(&Dict::new()),
                denied,
            );
            refused(closed.messages().unwrap().arrival(), denied, "EACCES");
            let change = Permissions { mode: Some(0o666), ..Permissions::default() };
            same(
                &theirs(&mut peer, &format!("set {id} 0 0 666 16384")),
                closed.set_permissions(change),
                denied,
            );
            same(&theirs(&mut peer, &format!("rm {id}")), closed.remove(), denied);

            let id = reading.id();
            let reading = attach(&format!("id={id}")).unwrap();
            same(
                &theirs(&mut peer, &format!("snd {id} 1 4000 41")),
                try_send(&reading, b"A", &Dict::new()),
                denied,
            );
            assert_eq!(theirs(&mut peer, &format!("rcv {id} 1 0 4000")), "ENOMSG");
            assert_eq!(now(&reading, &Dict::new()), None);

            // Of a queue of one's own: qbytes over kernel.msgmnb.
            let own = create("key=private");
            let change = Permissions { qbytes: Some(1 << 24), ..Permissions::default() };
            let set = format!("set {} {NOBODY} {NOBODY} 600 {}", own.id(), 1 << 24);
            same(&theirs(&mut peer, &set), own.set_permissions(change), denied);
            refused(try_create("key=private,qbytes=1000000").map(|_| ()), denied, "msgmnb");
            // What could not be made as it was asked for is not there.
            let rows = ipc_kernel::mechanisms::sysvmq::DESCRIPTOR.objects().unwrap();
            let made = rows.iter().filter(|row| row["creator-uid"].integer() == Some(NOBODY.into()));
            assert_eq!(made.count(), 1);
        });
        work.join().unwrap();
    });
}
