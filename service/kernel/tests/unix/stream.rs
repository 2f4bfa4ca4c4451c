//! Streams: connections, their peers, pairs, and what is adopted.

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};

use ipc_kernel::{
    mechanism::{Adoption, EndKind},
    shape::{Direction, Shape},
};
use rustix::{
    fs::OFlags,
    net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType},
};

use super::*;

fn read(endpoint: &dyn Endpoint) -> Vec<u8> {
    wait(|| endpoint.stream().expect("shape stream").read(4096)).expect("read")
}

fn write(endpoint: &dyn Endpoint, data: &[u8]) -> Result<usize> {
    wait(|| endpoint.stream().expect("shape stream").write(data))
}

#[test]
fn socat_connects_talks_and_leaves() {
    let directory = directory();
    let endpoint = create(&at(directory.path(), "s", "")).expect("create");
    assert_eq!(endpoint.shapes(), [Shape::Listener]);
    let path = directory.path().join("s");
    let Some(mut socat) = Peer::start("socat", &["-", &format!("UNIX-CONNECT:{}", path.display())]) else {
        return;
    };
    let connection = accept(&*endpoint);
    assert_eq!(connection.shapes(), [Shape::Stream]);
    let state = connection.inspect().expect("inspect");
    assert_eq!(number(&state, "pid"), socat.0.id().into());
    assert_eq!(number(&state, "uid"), rustix::process::geteuid().as_raw().into());
    assert_eq!(text(&state, "command"), "socat");
    assert_eq!(text(&state, "state"), "connected");
    assert!(matches!(state.get("groups"), Some(ipc_kernel::Value::U32s(_))), "{state:?}");

    socat.0.stdin.as_mut().expect("stdin").write_all(b"from socat").expect("write");
    assert_eq!(read(&*connection), b"from socat");
    write(&*connection, b"to socat").expect("write");
    let mut answer = [0; 8];
    socat.0.stdout.as_mut().expect("stdout").read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"to socat");
    connection.stream().expect("stream").shutdown(Direction::Write).expect("shutdown");
    refused(write(&*connection, b"more"), Kind::Closed, "EPIPE");
    drop(socat.0.stdin.take());
    assert_eq!(read(&*connection), b"");
    socat.succeeds();
    assert_eq!(text(&connection.inspect().expect("inspect"), "state"), "peer-gone");
}

#[test]
fn attach_talks_to_a_listener_of_another_program() {
    let directory = directory();
    let listener = UnixListener::bind(directory.path().join("s")).expect("bind");
    let address = at(directory.path(), "s", "");
    let endpoint = attach(&address).expect("attach");
    assert_eq!(endpoint.address().to_string(), address);
    let (mut peer, _) = listener.accept().expect("accept");
    write(&*endpoint, b"hello").expect("write");
    let state = endpoint.inspect().expect("inspect");
    assert_eq!(text(&state, "peer"), address);
    assert_eq!(number(&state, "pid"), std::process::id().into());
    assert!(number(&state, "queued-out") > 0, "{state:?}");
    let mut data = [0; 5];
    peer.read_exact(&mut data).expect("read");
    peer.write_all(b"abc").expect("write");
    assert_eq!(number(&endpoint.inspect().expect("inspect"), "queued-in"), 3);
    for end in [endpoint.stream().expect("stream").source(), endpoint.stream().expect("stream").sink()] {
        let Ok(Attempt::Done(end)) = end else { panic!("no end") };
        assert_eq!(end.kind, EndKind::UnixStream);
    }

    // What is opened shares the queue, and blocks.
    let own = UnixStream::from(open(&*endpoint, "own").expect("open"));
    assert!(!rustix::fs::fcntl_getfl(&own).expect("flags").contains(OFlags::NONBLOCK));
    let mut two = [0; 2];
    (&own).read_exact(&mut two).expect("read");
    assert_eq!(read(&*endpoint), b"c");
    assert!(matches!(endpoint.stream().expect("stream").read(1), Ok(Attempt::Wait(Readiness::Readable(_)))));
    drop(peer);
    assert_eq!(read(&*endpoint), b"");
    refused(write(&*endpoint, b"more"), Kind::Closed, "the peer has gone");
}

#[test]
fn a_full_backlog_is_waited_for() {
    let directory = directory();
    let endpoint = create(&at(directory.path(), "s", ",backlog=0")).expect("create");
    let first = attach(&at(directory.path(), "s", "")).expect("the one that fits");
    let state = endpoint.inspect().expect("inspect");
    assert_eq!((number(&state, "pending"), number(&state, "backlog")), (1, 0));
    refused(attach(&at(directory.path(), "s", ",timeout=30")), Kind::Timeout, "backlog is full");
    refused(attach(&at(directory.path(), "s", ",timeout=0")), Kind::Timeout, "backlog is full");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| attach(&at(directory.path(), "s", "")));
        drop(accept(&*endpoint));
        drop(accept(&*endpoint));
        second.join().expect("no panic").expect("the second connection");
    });
    drop(first);
}

#[test]
fn the_peer_of_a_pair_is_handed_over_once() {
    let endpoint = create("unix:pair").expect("create");
    assert_eq!(endpoint.shapes(), [Shape::Stream]);
    assert_eq!(text(&endpoint.inspect().expect("inspect"), "peer-end"), "held");
    write(&*endpoint, b"early").expect("write");
    let mut peer = UnixStream::from(open(&*endpoint, "peer").expect("open"));
    assert_eq!(text(&endpoint.inspect().expect("inspect"), "peer-end"), "handed-over");
    refused(open(&*endpoint, "peer"), Kind::Closed, "handed over already");
    let mut data = [0; 5];
    peer.read_exact(&mut data).expect("read");
    assert_eq!(&data, b"early");
    peer.write_all(b"answer").expect("write");
    assert_eq!(read(&*endpoint), b"answer");
    drop(peer);
    assert_eq!(read(&*endpoint), b"");

    let listener = create(&format!("unix:abstract={}", unique())).expect("create");
    refused(open(&*listener, "peer"), Kind::NotSupported, "only a pair");
    let own = open(&*listener, "own").expect("open");
    assert!(rustix::fs::fcntl_getfl(&own).expect("flags").contains(OFlags::NONBLOCK));
}

#[test]
fn fds_that_come_with_bytes_are_closed_by_a_read() {
    let endpoint = create("unix:pair").expect("create");
    let peer = open(&*endpoint, "peer").expect("open");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let fds = [writer.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(&peer, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).expect("send");
    drop(writer);
    assert_eq!(read(&*endpoint), b"x");
    // End of stream: nobody has the writing end any more.
    assert_eq!(reader.read(&mut [0; 1]).expect("read"), 0);
}

fn adopt(fd: impl Into<OwnedFd>) -> Result<Adoption> {
    (DESCRIPTOR.adopt)(fd.into())
}

fn taken(fd: impl Into<OwnedFd>) -> Box<dyn Endpoint> {
    match adopt(fd).expect("adopt") {
        Adoption::Taken(endpoint) => endpoint,
        Adoption::Refused(_) => panic!("refused"),
    }
}

#[test]
fn sockets_of_every_kind_are_adopted_and_nothing_else() {
    let directory = directory();
    let path = directory.path().join("s");
    let listener = taken(UnixListener::bind(&path).expect("bind"));
    assert_eq!(listener.shapes(), [Shape::Listener]);
    assert_eq!(listener.address().to_string(), at(directory.path(), "s", ""));
    let client = UnixStream::connect(&path).expect("connect");
    drop(accept(&*listener));
    assert_eq!(taken(client).shapes(), [Shape::Stream]);

    let (one, two) = UnixDatagram::pair().expect("a pair");
    let adopted = taken(one);
    assert_eq!(adopted.shapes(), [Shape::Messages]);
    two.send(b"hi").expect("send");
    assert_eq!(receive(&*adopted).expect("receive").data, b"hi");
    let bound = taken(UnixDatagram::bind(directory.path().join("d")).expect("bind"));
    assert_eq!(bound.address().to_string(), at(directory.path(), "d", ",type=dgram"));
    assert_eq!(text(&bound.inspect().expect("inspect"), "state"), "unconnected");

    let fresh = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("socket");
    refused(adopt(fresh), Kind::InvalidArgument, "neither listens nor is it connected");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    assert!(matches!(adopt(reader), Ok(Adoption::Refused(_))));
    let tcp = TcpListener::bind("127.0.0.1:0").expect("bind");
    assert!(matches!(adopt(tcp), Ok(Adoption::Refused(_))));
    let file = tempfile::tempfile().expect("a file");
    assert!(matches!(adopt(file), Ok(Adoption::Refused(_))));
}
