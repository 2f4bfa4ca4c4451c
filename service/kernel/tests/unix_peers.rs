//! Peers that a process has forbidden itself. Alone in its program: what is forbidden stays so.

use std::os::{
    fd::OwnedFd,
    unix::net::{UnixDatagram, UnixListener, UnixStream},
};

use ipc_kernel::{
    Address, Dict, Error, Kind, Opening, Parameters, Result, Value,
    blocked::Sent,
    mechanism::{Adoption, Endpoint},
    mechanisms,
    shape::Outgoing,
    unix::{name::Name, peers},
};

fn attach(address: &str) -> Result<Box<dyn Endpoint>> {
    let unix = mechanisms::by_name("unix")?;
    let parameters = Parameters::check(unix.attach_parameters, &[], &Address::parse(address)?, &Dict::new())?;
    match (unix.attach)(&parameters)? {
        Opening::Done(endpoint) => Ok(endpoint),
        Opening::Pending(_) => panic!("nobody has a full backlog here"),
    }
}

fn adopt(fd: impl Into<OwnedFd>) -> Result<Box<dyn Endpoint>> {
    match (mechanisms::by_name("unix")?.adopt)(fd.into())? {
        Adoption::Taken(endpoint) => Ok(endpoint),
        Adoption::Refused(_) => panic!("it is a unix socket"),
    }
}

fn send(from: &dyn Endpoint, to: Option<&str>) -> Result<()> {
    let mut attributes = Dict::new();
    if let Some(to) = to {
        attributes.insert("address".into(), Value::Text(to.to_owned()));
    }
    let messages = from.messages().expect("a datagram socket");
    messages
        .send(Outgoing { data: b"READY=1", attributes: &attributes, fds: &[], sent: &Sent::default() })
        .map(drop)
}

fn refused<T>(result: Result<T>) -> Error {
    let Err(error) = result else { panic!("it must be refused") };
    assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
    assert!(error.text.contains("closed to this service"), "{error}");
    error
}

#[test]
fn forbidden_peers_are_refused_whatever_way_leads_there() {
    let root = tempfile::tempdir().expect("a directory");
    let (closed, open) = (root.path().join("closed"), root.path().join("open"));
    std::fs::create_dir(&closed).expect("a directory");
    std::fs::create_dir(&open).expect("a directory");
    let stream = UnixListener::bind(closed.join("bus")).expect("a listener");
    let _allowed = UnixListener::bind(open.join("bus")).expect("a listener");
    let notify = UnixDatagram::bind(closed.join("notify")).expect("a datagram socket");
    let elsewhere = UnixDatagram::bind(open.join("datagrams")).expect("a datagram socket");
    let at = |path: &std::path::Path, rest: &str| format!("unix:path={}{rest}", path.display());
    // Nobody has forbidden anything yet.
    attach(&at(&closed.join("bus"), "")).expect("allowed");
    assert!(peers::forbid(vec![Name::Path(closed.clone())]));
    assert!(!peers::forbid(Vec::new()), "what is forbidden stays so");

    refused(attach(&at(&closed.join("bus"), "")));
    attach(&at(&open.join("bus"), "")).expect("another path");
    // By a symbolic link, by another name of the inode, by a name that was changed after bind(2).
    std::os::unix::fs::symlink(closed.join("bus"), open.join("link")).expect("a link");
    refused(attach(&at(&open.join("link"), "")));
    std::fs::hard_link(closed.join("bus"), open.join("hard")).expect("a link");
    refused(attach(&at(&open.join("hard"), "")));
    let _moved = UnixListener::bind(open.join("moved")).expect("a listener");
    std::fs::rename(open.join("moved"), closed.join("moved")).expect("renaming");
    refused(attach(&at(&closed.join("moved"), "")));

    // Datagrams: connected, sent to an address, and by sockets that were handed over.
    refused(attach(&at(&closed.join("notify"), ",type=dgram")));
    let unconnected = adopt(UnixDatagram::unbound().expect("a socket")).expect("it is connected to nobody");
    refused(send(&*unconnected, Some(&at(&closed.join("notify"), ""))));
    std::fs::hard_link(closed.join("notify"), open.join("hard-notify")).expect("a link");
    refused(send(&*unconnected, Some(&at(&open.join("hard-notify"), ""))));
    send(&*unconnected, Some(&at(&open.join("datagrams"), ""))).expect("another path");
    refused(adopt(UnixStream::connect(closed.join("bus")).expect("our own rights")));
    let mine = UnixDatagram::unbound().expect("a socket");
    mine.connect(open.join("datagrams")).expect("connecting");
    let adopted = adopt(mine.try_clone().expect("a duplicate")).expect("an allowed peer");
    send(&*adopted, None).expect("an allowed peer");
    mine.connect(closed.join("notify")).expect("connecting elsewhere");
    refused(send(&*adopted, None));

    notify.set_nonblocking(true).expect("non-blocking");
    assert!(notify.recv(&mut [0; 16]).is_err(), "nothing arrived");
    assert_eq!(elsewhere.recv(&mut [0; 16]).expect("what was allowed"), 7);
    drop(stream);
}
