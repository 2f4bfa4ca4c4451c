//! What is handed out and taken over: open descriptions, permissions, names that go.

use std::os::fd::{AsFd, OwnedFd};

use ipc_kernel::{
    Kind, Value,
    mechanism::{Adoption, Permissions},
    mechanisms::posixmq::DESCRIPTOR,
};
use rustix::fs::{Mode, OFlags};

use super::{
    alone::{alone, another_ipc_namespace, as_nobody},
    *,
};

fn adopted(fd: OwnedFd) -> Box<dyn Endpoint> {
    match (DESCRIPTOR.adopt)(fd).unwrap() {
        Adoption::Taken(endpoint) => endpoint,
        Adoption::Refused(_) => panic!("a queue was refused"),
    }
}

fn copy(fd: &OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).unwrap()
}

fn flags(fd: impl AsFd) -> OFlags {
    rustix::fs::fcntl_getfl(fd).unwrap()
}

fn open(endpoint: &dyn Endpoint, text: &str) -> Result<OwnedFd> {
    endpoint.open(&options("posixmq", text))
}

fn is(endpoint: &dyn Endpoint, key: &str, value: impl Into<Value>) -> bool {
    endpoint.inspect().unwrap()[key].same(&value.into())
}

#[test]
fn open_gives_a_description_of_its_own() {
    let queue = Queue::new();
    let endpoint = queue.made();
    let fd = open(&*endpoint, "").unwrap();
    assert_eq!(
        flags(&fd) & (OFlags::RWMODE | OFlags::NONBLOCK),
        OFlags::RDWR,
        "it blocks, as mq_open(3) gives it"
    );
    calls::send(&fd, b"through it", 3).unwrap();
    assert_eq!(receive(&*endpoint), ("through it".into(), 3));

    let reader = open(&*endpoint, "access=read").unwrap();
    assert_eq!(calls::send(&reader, b"x", 0), Err(rustix::io::Errno::BADF));
    let writer = open(&*endpoint, "access=write").unwrap();
    assert_eq!(calls::receive(&writer, &mut [0; 64]), Err(rustix::io::Errno::BADF));
    assert_eq!(rustix::io::fcntl_getfd(&reader).unwrap(), rustix::io::FdFlags::CLOEXEC);

    // More than the endpoint has is the kernel's to allow.
    let only_reads = attach(&format!("{},access=read", queue.address())).unwrap();
    assert!(is(&*only_reads, "access", "read"));
    assert_eq!(flags(open(&*only_reads, "").unwrap()) & OFlags::RWMODE, OFlags::RDONLY);
    calls::send(open(&*only_reads, "access=write").unwrap(), b"y", 0).unwrap();
    assert_eq!(receive(&*only_reads), ("y".into(), 0));
}

#[test]
fn a_descriptor_of_a_program_is_adopted_and_stays_as_it_is() {
    let queue = Queue::new();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let fd = program.ask(&format!("create {} {BOTH} {} 3 64", queue.hex(), 0o600));
    let given = rustix::fs::open(
        format!("/proc/{}/fd/{fd}", program.pid()),
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let given = given.unwrap();
    let endpoint = adopted(copy(&given));
    assert_eq!(endpoint.address().to_string(), queue.address());
    assert!(is(&*endpoint, "description", "own"));
    assert!(!flags(&given).contains(OFlags::NONBLOCK), "the giver's flags are his");
    rustix::fs::fcntl_setfl(&given, OFlags::NONBLOCK).unwrap();
    rustix::fs::fcntl_setfl(&given, OFlags::empty()).unwrap();
    must_wait(try_receive(&*endpoint));
    assert_eq!(program.ask(&format!("send {} {fd} 6 0", hex(b"hello"))), "0");
    assert_eq!(receive(&*endpoint), ("hello".into(), 6));
    endpoint.remove().unwrap();
    assert_eq!(program.ask(&format!("open {} {READ}", queue.hex())), "ENOENT");

    // Also without a name, and in one direction.
    let reader = adopted(open(&*endpoint, "access=read").unwrap());
    assert!(reader.address().to_string().starts_with("posixmq:inode="), "{}", reader.address());
    assert!(is(&*reader, "removed", true) && is(&*reader, "name", queue.0.as_str()));
    refused(try_send(&*reader, b"x", 0), Kind::PermissionDenied, "access=read (EBADF)");
    send(&*endpoint, "still", 0);
    assert_eq!(receive(&*reader), ("still".into(), 0));
    refused(reader.remove(), Kind::Gone, "removed already");
}

#[test]
fn a_descriptor_that_the_mode_does_not_allow_is_shared_and_never_waited_on() {
    let queue = Queue::new();
    let given = open(&*queue.made(), "").unwrap();
    let before = flags(&given);
    assert!(!before.contains(OFlags::NONBLOCK));
    as_nobody(|| {
        let endpoint = adopted(copy(&given));
        assert!(is(&*endpoint, "description", "shared"));
        // The description blocks; the service does not.
        must_wait(try_receive(&*endpoint));
        (0..3).for_each(|n| send(&*endpoint, "x", n));
        must_wait(try_send(&*endpoint, b"x", 0));
        assert_eq!(receive(&*endpoint), ("x".into(), 2));
        let opened = open(&*endpoint, "").unwrap();
        rustix::fs::fcntl_setfl(&opened, OFlags::NONBLOCK).unwrap();
        assert!(flags(&given).contains(OFlags::NONBLOCK), "what was given comes back");
        rustix::fs::fcntl_setfl(&opened, before - OFlags::RWMODE).unwrap();
        refused(endpoint.remove(), Kind::PermissionDenied, "EACCES");
        refused(
            endpoint.set_permissions(Permissions { mode: Some(0o666), ..Permissions::default() }),
            Kind::PermissionDenied,
            "EPERM",
        );
    });
    assert_eq!(flags(&given), before);
}

#[test]
fn a_queue_of_another_ipc_namespace_works_and_its_name_means_nothing() {
    let queue = Queue::new();
    let ours = queue.made();
    let Some(theirs) = alone(|| open(&*queue.made(), "").unwrap()) else { return };
    let endpoint = adopted(theirs);
    assert!(endpoint.address().to_string().starts_with("posixmq:inode="), "{}", endpoint.address());
    send(&*endpoint, "there", 1);
    assert_eq!(messages(&*ours).depth(), Some(0));
    assert_eq!(receive(&*endpoint), ("there".into(), 1));
    refused(endpoint.remove(), Kind::NotSupported, "IPC namespace");
    attach(&queue.address()).unwrap();
    alone(|| {
        let mine = queue.made();
        another_ipc_namespace();
        refused(attach(&queue.address()), Kind::NotFound, "ENOENT");
        send(&*mine, "still", 0);
    });
}

/// Whoever makes a queue has it open as he likes; to open it again is the mode's to allow.
#[test]
fn open_is_the_modes_to_allow() {
    as_nobody(|| {
        let queue = Queue::new();
        let endpoint = create(&format!("{},depth=3,size=64,mode=0200", queue.address())).unwrap();
        send(&*endpoint, "own", 0);
        assert_eq!(receive(&*endpoint), ("own".into(), 0));
        refused(open(&*endpoint, ""), Kind::PermissionDenied, "SetPermissions");
        open(&*endpoint, "access=write").unwrap();
        endpoint.set_permissions(Permissions { mode: Some(0o600), ..Permissions::default() }).unwrap();
        open(&*endpoint, "").unwrap();
    });
}

#[test]
fn permissions_and_removal() {
    let queue = Queue::new();
    let endpoint = create(&format!("{},depth=3,size=64,mode=0622", queue.address())).unwrap();
    assert_eq!(number(&*endpoint, "mode"), Some(0o622), "exact whatever the umask");
    endpoint.set_permissions(Permissions { mode: Some(0o640), ..Permissions::default() }).unwrap();
    assert_eq!(number(&*endpoint, "mode"), Some(0o640));
    if rustix::process::geteuid().is_root() {
        let to = Permissions { uid: Some(alone::NOBODY), gid: Some(alone::NOBODY), ..Permissions::default() };
        endpoint.set_permissions(to).unwrap();
        assert_eq!((number(&*endpoint, "uid"), number(&*endpoint, "gid")), (Some(65534), Some(65534)));
    }
    assert!(is(&*endpoint, "removed", false));

    let other = attach(&queue.address()).unwrap();
    endpoint.remove().unwrap();
    refused(other.remove(), Kind::Gone, "removed already");
    send(&*other, "kept", 0);
    assert_eq!(receive(&*endpoint), ("kept".into(), 0), "those who have it open keep it");
    assert!(is(&*other, "removed", true));

    let successor = queue.made();
    send(&*successor, "new", 0);
    refused(other.remove(), Kind::Gone, "another queue has taken it");
    assert_eq!(messages(&*attach(&queue.address()).unwrap()).depth(), Some(1));
}

#[test]
fn what_has_the_name_of_a_deleted_queue_is_not_mistaken() {
    let queue = Queue(format!("/{} (deleted)", unique()));
    let endpoint = create(&format!("posixmq:name={},depth=1,size=8", queue.0.replace(' ', "%20"))).unwrap();
    let again = adopted(open(&*endpoint, "").unwrap());
    assert_eq!(again.address(), endpoint.address());
    again.remove().unwrap();
    assert!(is(&*again, "name", queue.0.as_str()));
}
