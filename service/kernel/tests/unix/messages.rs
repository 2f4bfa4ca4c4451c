//! Messages: borders, fds, credentials, sizes, queues.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use ipc_kernel::{Fd, Value, blocked::Sent, dict};
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::*;

/// A pair of this type: ours, and the bare socket at the other end.
fn pair(more: &str) -> (Box<dyn Endpoint>, OwnedFd) {
    let endpoint = create(&format!("unix:pair,{more}")).expect("create");
    let peer = open(&*endpoint, "peer").expect("open");
    (endpoint, peer)
}

fn send_with(endpoint: &dyn Endpoint, data: &[u8], attributes: Dict, fds: &[Fd]) -> Result<()> {
    let messages = endpoint.messages().expect("shape messages");
    wait(|| messages.send(Outgoing { data, attributes: &attributes, fds, sent: &Sent::default() }))
}

#[test]
fn python_passes_fds_both_ways() {
    const PYTHON: &str = "
import os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
    s.connect(sys.argv[1])
    data, fds, flags, _ = socket.recv_fds(s, 100, 10)
    assert data == b'take these' and len(fds) == 2, (data, fds)
    os.write(fds[0], b'written by python')
    for fd in fds: os.close(fd)
    r, w = os.pipe()
    socket.send_fds(s, [b'have mine'], [w])
    os.close(w)
    assert os.read(r, 100) == b'written by rust'
";
    let directory = directory();
    let endpoint = create(&at(directory.path(), "s", ",type=seqpacket")).expect("create");
    let path = directory.path().join("s");
    let Some(python) = Peer::python(PYTHON, &[path.to_str().expect("UTF-8")]) else { return };
    let connection = accept(&*endpoint);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let fds = [Fd::from(OwnedFd::from(writer)), Fd::from(OwnedFd::from(reader.try_clone().expect("dup")))];
    send_with(&*connection, b"take these", Dict::new(), &fds).expect("send");
    drop(fds);
    let mut data = Vec::new();
    reader.read_to_end(&mut data).expect("read");
    assert_eq!(data, b"written by python");

    let message = receive(&*connection).expect("receive");
    assert_eq!(message.data, b"have mine");
    let [fd] = <[OwnedFd; 1]>::try_from(message.fds).expect("one fd");
    assert!(rustix::io::fcntl_getfd(&fd).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
    std::fs::File::from(fd).write_all(b"written by rust").expect("write");
    python.succeeds();
    refused(receive(&*connection), Kind::Closed, "the peer has gone");
}

#[test]
fn an_empty_message_is_not_the_end() {
    for close in [true, false] {
        let (endpoint, peer) = pair("type=seqpacket");
        for data in [&b"a"[..], b"", b"bc", b""] {
            rustix::net::send(&peer, data, SendFlags::empty()).expect("send");
        }
        if close {
            drop(peer);
        } else {
            rustix::net::shutdown(&peer, Shutdown::Write).expect("shutdown");
        }
        for data in [&b"a"[..], b"", b"bc", b""] {
            let messages = endpoint.messages().expect("messages");
            assert_eq!(wait(|| messages.peek(&Dict::new())).expect("peek").data, data);
            assert_eq!(receive(&*endpoint).expect("receive").data, data);
        }
        for _ in 0..2 {
            refused(receive(&*endpoint), Kind::Closed, "the peer has gone");
        }
    }
    let (endpoint, peer) = pair("type=seqpacket");
    rustix::net::send(&peer, b"", SendFlags::empty()).expect("send");
    assert_eq!(receive(&*endpoint).expect("while the peer is there").data, b"");
    send(&*endpoint, b"").expect("send an empty message");
    assert_eq!(rustix::net::recv(&peer, &mut [0; 9][..], RecvFlags::empty()).expect("recv").1, 0);
    drop(peer);
    refused(send(&*endpoint, b"x"), Kind::Closed, "EPIPE");
}

#[test]
fn large_messages_arrive_whole_and_larger_ones_are_refused() {
    for kind in ["dgram", "seqpacket"] {
        let (endpoint, peer) = pair(&format!("type={kind}"));
        let largest = endpoint.messages().expect("messages").max_message_size();
        let data: Vec<u8> = (0..largest).map(|n| n as u8).collect();
        rustix::net::send(&peer, &data, SendFlags::DONTWAIT).expect("the largest message");
        assert!(receive(&*endpoint).expect("receive").data == data, "not whole");
        send(&*endpoint, &data).expect("send the largest");
        let phrase = format!("it has {} bytes, and at most {largest} fit", largest + 1);
        refused(send(&*endpoint, &[&data[..], b"x"].concat()), Kind::TooLarge, &phrase);
        let (small, _peer) = pair(&format!("type={kind},sndbuf=8K"));
        assert_eq!(small.messages().expect("messages").max_message_size(), 16 * 1024 - 32);
    }
}

#[test]
fn peeking_leaves_the_message_and_its_fds() {
    let (endpoint, peer) = pair("type=dgram");
    let sender = create_sender(peer);
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    send_with(&*sender, b"look", Dict::new(), &[Fd::from(OwnedFd::from(reader))]).expect("send");
    let messages = endpoint.messages().expect("messages");
    for _ in 0..3 {
        let peeked = wait(|| messages.peek(&Dict::new())).expect("peek");
        assert_eq!((&peeked.data[..], peeked.fds.len()), (&b"look"[..], 0));
    }
    wait(|| messages.arrival()).expect("arrival");
    assert_eq!(receive(&*endpoint).expect("receive").fds.len(), 1);
    assert!(matches!(messages.arrival(), Ok(Attempt::Wait(Readiness::Readable(_)))));
    assert!(matches!(messages.peek(&Dict::new()), Ok(Attempt::Wait(Readiness::Readable(_)))));
    refused(messages.receive(&dict! { "type" => 1u32 }), Kind::InvalidArgument, "no selector \"type\"");
}

fn create_sender(fd: OwnedFd) -> Box<dyn Endpoint> {
    match (DESCRIPTOR.adopt)(fd).expect("adopt") {
        ipc_kernel::mechanism::Adoption::Taken(endpoint) => endpoint,
        ipc_kernel::mechanism::Adoption::Refused(_) => panic!("refused"),
    }
}

#[test]
fn datagrams_tell_their_sender_who_can_be_answered() {
    let name = unique();
    let server = create(&format!("unix:abstract={name},type=dgram,passcred=true")).expect("create");
    let client = attach(&format!("unix:abstract={name},type=dgram")).expect("attach");
    send(&*client, b"question").expect("send");
    let message = receive(&*server).expect("receive");
    assert_eq!(number(&message.attributes, "pid"), std::process::id().into());
    assert_eq!(number(&message.attributes, "uid"), rustix::process::getuid().as_raw().into());
    assert_eq!(number(&message.attributes, "gid"), rustix::process::getgid().as_raw().into());
    let address = text(&message.attributes, "address").to_owned();
    send_with(&*server, b"answer", dict! { "address" => address }, &[]).expect("answer");
    let answer = receive(&*client).expect("receive");
    assert_eq!(answer.data, b"answer");
    assert_eq!(text(&answer.attributes, "address"), format!("unix:abstract={name}"));

    // A path as sender and as addressee; the address of an endpoint serves, with its type.
    let directory = directory();
    let other = UnixDatagram::bind(directory.path().join("d")).expect("bind");
    let to = SocketAddr::from_abstract_name(name.as_bytes()).expect("an address");
    other.send_to_addr(b"from a path", &to).expect("send");
    let message = receive(&*server).expect("receive");
    assert_eq!(text(&message.attributes, "address"), at(directory.path(), "d", ""));
    let address = at(directory.path(), "d", ",type=dgram");
    send_with(&*server, b"back", dict! { "address" => address }, &[]).expect("answer");
    let mut data = [0; 9];
    assert_eq!(other.recv(&mut data).expect("recv"), 4);

    let quiet = attach(&format!("unix:abstract={name},type=dgram,autobind=false")).expect("attach");
    send(&*quiet, b"x").expect("send");
    assert!(!receive(&*server).expect("receive").attributes.contains_key("address"));
}

#[test]
fn credentials_are_those_of_the_process_that_sent() {
    const PYTHON: &str = "
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b'me', '\\0' + sys.argv[1])
sys.stdin.read()
";
    let name = unique();
    let server = create(&format!("unix:abstract={name},type=dgram,passcred")).expect("create");
    let Some(mut python) = Peer::python(PYTHON, &[&name]) else { return };
    let message = receive(&*server).expect("receive");
    // A launcher may stand between us and the interpreter: ask the kernel whose child it is.
    let pid = number(&message.attributes, "pid");
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).expect("the process is alive");
    assert!(String::from_utf8_lossy(&command).contains(&name), "{pid} is not the sender");
    drop(python.0.stdin.take());
    python.succeeds();
}

#[test]
fn unwanted_fds_are_refused() {
    let name = unique();
    let server = create(&format!("unix:abstract={name},type=dgram,pass-fds=false")).expect("create");
    let client = attach(&format!("unix:abstract={name},type=dgram")).expect("attach");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let fds = [Fd::from(OwnedFd::from(writer))];
    let sent = send_with(&*client, b"x", Dict::new(), &fds);
    drop(fds);
    if sent.is_err() {
        refused(sent, Kind::PermissionDenied, "takes no file descriptors");
        send(&*client, b"x").expect("without fds");
    }
    assert!(receive(&*server).expect("receive").fds.is_empty());
    assert_eq!(reader.read(&mut [0; 1]).expect("read"), 0, "the writing end is still open somewhere");
    // Connections inherit it.
    let listener =
        create(&format!("unix:abstract={},type=seqpacket,pass-fds=false", unique())).expect("create");
    let _client = attach(&listener.address().to_string()).expect("attach");
    let state = accept(&*listener).inspect().expect("inspect");
    assert!(state["pass-fds"].same(&Value::Bool(false)), "{state:?}");
}

#[test]
fn as_many_fds_as_the_kernel_allows() {
    let (endpoint, peer) = pair("type=seqpacket");
    let receiver = create_sender(peer);
    let fd = Fd::from(OwnedFd::from(tempfile::tempfile().expect("a file")));
    let fds = vec![fd; 254];
    refused(send_with(&*endpoint, b"x", Dict::new(), &fds), Kind::LimitExceeded, "253 (SCM_MAX_FD)");
    send_with(&*endpoint, b"x", Dict::new(), &fds[..253]).expect("send");
    assert_eq!(receive(&*receiver).expect("receive").fds.len(), 253);
}

#[test]
fn a_full_queue_is_waited_for() {
    let name = unique();
    let server = create(&format!("unix:abstract={name},type=dgram")).expect("create");
    let connected = attach(&format!("unix:abstract={name},type=dgram")).expect("attach");
    let unconnected = create("unix:autobind,type=dgram").expect("create");
    let to = dict! { "address" => format!("unix:abstract={name}") };
    let none = Dict::new();
    let attempt = |endpoint: &dyn Endpoint, attributes: &Dict| {
        let outgoing = Outgoing { data: b"x", attributes, fds: &[], sent: &Sent::default() };
        endpoint.messages().expect("messages").send(outgoing).expect("send")
    };
    let mut sent = 0;
    while let Attempt::Done(()) = attempt(&*connected, &none) {
        sent += 1;
        assert!(sent < 1_000_000, "the queue has no end");
    }
    assert!(matches!(attempt(&*connected, &none), Attempt::Wait(Readiness::Writable(_))));
    assert!(matches!(attempt(&*unconnected, &to), Attempt::Wait(Readiness::After(_))));
    std::thread::scope(|scope| {
        let more = [
            scope.spawn(|| send(&*connected, b"last")),
            scope.spawn(|| send_with(&*unconnected, b"last", to.clone(), &[])),
        ];
        for _ in 0..sent + 2 {
            receive(&*server).expect("receive");
        }
        for sender in more {
            sender.join().expect("no panic").expect("send");
        }
    });
    drop(server);
    // A child that another test has just forked may have it open for a moment.
    let dropped = Instant::now();
    while send(&*connected, b"x").is_ok() {
        assert!(dropped.elapsed() < WATCHDOG, "the server is still there");
    }
    refused(send(&*connected, b"x"), Kind::Closed, "the peer has gone");
    refused(send_with(&*unconnected, b"x", to, &[]), Kind::NotFound, "ECONNREFUSED");
}

#[test]
fn a_wrong_attribute_is_named() {
    let server = create("unix:autobind,type=dgram").expect("create");
    let (connection, _peer) = pair("type=seqpacket");
    let listener = create(&format!("unix:abstract={}", unique())).expect("create");
    let to_listener = listener.address().to_string();
    let directory = directory();
    let stream = create(&at(directory.path(), "s", "")).expect("create");
    let to_stream = stream.address().to_string();
    for (attributes, kind, phrase) in [
        (dict! {}, Kind::InvalidArgument, "say where to send with the attribute address"),
        (dict! { "priority" => 1u32 }, Kind::InvalidArgument, "no attribute \"priority\""),
        (dict! { "address" => 1u32 }, Kind::InvalidArgument, "must be a text"),
        (dict! { "address" => "/tmp/x" }, Kind::InvalidAddress, "no ':'"),
        (dict! { "address" => "tcp:path=/x" }, Kind::InvalidArgument, "unix:path=/x or"),
        (dict! { "address" => "unix:path=x" }, Kind::InvalidArgument, "unix:path=/x or"),
        (dict! { "address" => "unix:path=/x,abstract=y" }, Kind::InvalidArgument, "unix:path=/x or"),
        (dict! { "address" => "unix:pair" }, Kind::InvalidArgument, "unix:path=/x or"),
        (dict! { "address" => "unix:path=/no/such/socket" }, Kind::NotFound, "ENOENT"),
        (dict! { "address" => "unix:path=/etc/passwd" }, Kind::InvalidArgument, "not a socket"),
        (dict! { "address" => to_listener }, Kind::NotFound, "no dgram socket"),
        (dict! { "address" => to_stream }, Kind::InvalidArgument, "of another type, stream"),
    ] {
        refused(send_with(&*server, b"x", attributes, &[]), kind, phrase);
    }
    let attributes = dict! { "address" => "unix:abstract=x" };
    refused(send_with(&*connection, b"x", attributes, &[]), Kind::InvalidArgument, "to its peer only");
}

#[test]
fn a_message_is_whole_even_when_receivers_compete() {
    let (endpoint, peer) = pair("type=dgram");
    const MESSAGES: usize = 2_000;
    std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut count = 0;
                    loop {
                        let data = receive(&*endpoint).expect("receive").data;
                        let Some(first) = data.first() else { return count };
                        assert!(data.iter().all(|byte| byte == first), "two messages in one");
                        assert_eq!(data.len(), usize::from(*first) * 10);
                        count += 1;
                    }
                })
            })
            .collect();
        for n in 0..MESSAGES {
            let byte = (n % 250 + 1) as u8;
            rustix::net::send(&peer, &vec![byte; usize::from(byte) * 10], SendFlags::empty()).expect("send");
        }
        for _ in &receivers {
            rustix::net::send(peer.as_fd(), b"", SendFlags::empty()).expect("send");
        }
        let total: usize = receivers.into_iter().map(|receiver| receiver.join().expect("no panic")).sum();
        assert_eq!(total, MESSAGES);
    });
}

/// In a process of its own, as the limit is the process's: too few fds are left for a message's.
#[test]
fn a_full_table_of_fds_is_an_error_and_leaks_nothing() {
    const CHILD: &str = "IPC_TEST_FULL_TABLE";
    if std::env::var_os(CHILD).is_none() {
        let name = "messages::a_full_table_of_fds_is_an_error_and_leaks_nothing";
        let status = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env(CHILD, "1")
            .status()
            .expect("run this test again");
        assert!(status.success());
        return;
    }
    let (endpoint, peer) = pair("type=seqpacket");
    let receiver = create_sender(peer);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let fds = vec![Fd::from(OwnedFd::from(writer)); 20];
    send_with(&*endpoint, b"x", Dict::new(), &fds).expect("send");
    send(&*endpoint, b"after").expect("send");
    drop(fds);
    let used = std::fs::read_dir("/proc/self/fd").expect("list").count() as u64;
    let limit = rustix::process::Rlimit { current: Some(used + 3), maximum: Some(used + 3) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("setrlimit");
    refused(receive(&*receiver), Kind::LimitExceeded, "RLIMIT_NOFILE");
    assert_eq!(reader.read(&mut [0; 1]).expect("read"), 0, "the writing end is still open somewhere");
    assert_eq!(receive(&*receiver).expect("receive").data, b"after");
}
