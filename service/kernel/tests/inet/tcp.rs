//! Listening sockets and streams.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use ipc_kernel::{
    Address, Attempt, Dict, Kind, Parameters, Value,
    mechanism::{Adoption, EndKind},
    mechanisms::inet::DESCRIPTOR,
    shape::{Direction, Shape},
};
use rustix::fs::OFlags;

use crate::support::{accept, attach, create, dict_in, failure, has_ipv6, number, port, read, text, write};

#[test]
fn a_listener_gives_streams() {
    for host in ["127.0.0.1", "::1"] {
        if host == "::1" && !has_ipv6() {
            continue;
        }
        let listener = create(&format!("tcp:host={host},nodelay=true")).unwrap();
        assert_eq!(listener.shapes(), [Shape::Listener]);
        let mut peer = TcpStream::connect((host, port(&*listener))).unwrap();
        let stream = accept(&*listener).unwrap();
        assert_eq!(stream.shapes(), [Shape::Stream]);
        peer.write_all(b"there").unwrap();
        assert_eq!(read(&*stream, 5).unwrap(), b"there");
        write(&*stream, b"and back").unwrap();
        let mut back = [0; 8];
        peer.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"and back");

        let state = stream.inspect().unwrap();
        assert_eq!(text(&state, "peer-host"), host);
        assert_eq!(number(&state, "peer-port"), peer.local_addr().unwrap().port().into());
        assert_eq!(text(&state, "state"), "established");
        assert!(number(dict_in(&state, "tcp"), "rtt-us") > 0);
        assert_eq!(number(dict_in(&state, "tcp"), "bytes-received"), 5);
        // Inherited from the listener.
        assert!(matches!(dict_in(&state, "options").get("nodelay"), Some(Value::Bool(true))));

        // Half-close: what we sent has an end, what the peer sends still comes.
        stream.stream().unwrap().shutdown(Direction::Write).unwrap();
        assert_eq!(peer.read(&mut back).unwrap(), 0);
        peer.write_all(b"last").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read(&*stream, 100).unwrap(), b"last");
        assert_eq!(read(&*stream, 1).unwrap(), b"");
        let error = write(&*stream, b"x").unwrap_err();
        assert_eq!(error.kind, Kind::Closed, "{error}");
        let source = stream.stream().unwrap().source().unwrap();
        assert!(matches!(source, Attempt::Done(end) if end.kind == EndKind::Tcp));
    }
}

#[test]
fn nothing_waits_until_there_is_something() {
    let listener = create("tcp:").unwrap();
    assert_eq!(text(&listener.inspect().unwrap(), "local-host"), "127.0.0.1");
    assert!(matches!(listener.listener().unwrap().accept().unwrap(), Attempt::Wait(_)));
    let _peer = TcpStream::connect(("127.0.0.1", port(&*listener))).unwrap();
    let stream = accept(&*listener).unwrap();
    assert!(matches!(stream.stream().unwrap().read(1).unwrap(), Attempt::Wait(_)));
    let block = vec![0; 1 << 20];
    let full = (0..100).any(|_| matches!(stream.stream().unwrap().write(&block).unwrap(), Attempt::Wait(_)));
    assert!(full, "a peer that does not read must make writing wait");
    assert!(number(&stream.inspect().unwrap(), "queued-out") > 0);
}

#[test]
fn socat_and_python_understand_us() {
    let listener = create("tcp:host=127.0.0.1,backlog=5").unwrap();
    let socat = Command::new("socat")
        .args(["-", &format!("TCP:127.0.0.1:{}", port(&*listener))])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    match socat {
        Err(error) => eprintln!("SKIPPED: socat does not start: {error}"),
        Ok(mut socat) => {
            let stream = accept(&*listener).unwrap();
            socat.stdin.take().unwrap().write_all(b"from socat").unwrap();
            assert_eq!(read(&*stream, 100).unwrap(), b"from socat");
            write(&*stream, b"to socat").unwrap();
            drop(stream);
            let output = socat.wait_with_output().unwrap();
            assert_eq!(output.stdout, b"to socat");
        }
    }
    assert_eq!(number(&listener.inspect().unwrap(), "backlog"), 5);

    let script = "import socket,sys\ns=socket.create_server(('127.0.0.1',0))\n\
                  print(s.getsockname()[1],flush=True)\nc,_=s.accept()\nc.sendall(c.recv(100).upper())\n";
    let python = Command::new("python3").args(["-c", script]).stdout(Stdio::piped()).spawn();
    let Ok(mut python) = python else {
        eprintln!("SKIPPED: python3 does not start");
        return;
    };
    let mut port = String::new();
    let mut output = std::io::BufReader::new(python.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut port).unwrap();
    let stream = attach(&format!("tcp:host=127.0.0.1,port={}", port.trim())).unwrap();
    assert_eq!(stream.address().to_string(), format!("tcp:host=127.0.0.1,port={}", port.trim()));
    write(&*stream, b"loud").unwrap();
    assert_eq!(read(&*stream, 100).unwrap(), b"LOUD");
    python.wait().unwrap();
}

#[test]
fn one_listener_serves_both_families_unless_told_otherwise() {
    if !has_ipv6() {
        return;
    }
    let both = create("tcp:host=::").unwrap();
    let _peer = TcpStream::connect(("127.0.0.1", port(&*both))).unwrap();
    let stream = accept(&*both).unwrap();
    assert_eq!(text(&stream.inspect().unwrap(), "peer-host"), "127.0.0.1");

    let only = create("tcp:host=::,v6only=true").unwrap();
    assert!(matches!(only.inspect().unwrap().get("v6only"), Some(Value::Bool(true))));
    TcpStream::connect(("127.0.0.1", port(&*only))).unwrap_err();
    TcpStream::connect(("::1", port(&*only))).unwrap();
}

#[test]
fn a_range_closes_connections_from_elsewhere() {
    let listener = create("tcp:range=127.0.0.8/29").unwrap();
    let at = format!("tcp:host=127.0.0.1,port={}", port(&*listener));
    let outside = attach(&at).unwrap();
    let inside = attach(&format!("{at},local-host=127.0.0.9")).unwrap();
    let stream = accept(&*listener).unwrap();
    assert_eq!(text(&stream.inspect().unwrap(), "peer-host"), "127.0.0.9");
    write(&*inside, b"hello").unwrap();
    assert_eq!(read(&*stream, 5).unwrap(), b"hello");
    assert_eq!(read(&*outside, 5).unwrap(), b"");
    let state = listener.inspect().unwrap();
    assert_eq!(number(&state, "refused"), 1);
    assert_eq!(text(&state, "range"), "127.0.0.8/29");
}

#[test]
fn options_arrive_in_the_kernel() {
    let listener = create(
        "tcp:reuseport=true,keepalive=true,keepalive-idle=7,keepalive-interval=8,keepalive-count=9,\
         user-timeout=1234,sndbuf=16K,rcvbuf=16K,tos=32,ttl=33,device=lo,freebind=true",
    )
    .unwrap();
    let state = listener.inspect().unwrap();
    let options = dict_in(&state, "options");
    for (key, value) in [
        ("keepalive-idle", 7),
        ("keepalive-interval", 8),
        ("keepalive-count", 9),
        ("user-timeout", 1234),
        ("sndbuf", 32768),
        ("rcvbuf", 32768),
        ("tos", 32),
        ("ttl", 33),
    ] {
        assert_eq!(number(options, key), value, "{key}");
    }
    for key in ["reuseaddr", "reuseport", "keepalive", "freebind"] {
        assert!(matches!(options.get(key), Some(Value::Bool(true))), "{key}: {options:?}");
    }
    assert_eq!(text(options, "device"), "lo");
    // With reuseport the same port can be had twice.
    create(&format!("tcp:port={},reuseport=true", port(&*listener))).unwrap();

    let error = failure(create("tcp:rcvbuf=512M"), "a buffer beyond the limit");
    assert_eq!(error.kind, Kind::LimitExceeded);
    assert!(error.text.contains("net.core.rmem_max"), "{error}");
}

#[test]
fn linger_zero_resets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let stream = attach(&format!("tcp:host=127.0.0.1,port={},linger=0", at.port())).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    assert_eq!(number(dict_in(&stream.inspect().unwrap(), "options"), "linger"), 0);
    drop(stream);
    let error = peer.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_is_told_as_closed() {
    let listener = create("tcp:").unwrap();
    let peer = attach(&format!("tcp:host=127.0.0.1,port={},linger=0", port(&*listener))).unwrap();
    let stream = accept(&*listener).unwrap();
    drop(peer);
    let error = read(&*stream, 1).unwrap_err();
    assert_eq!(error.kind, Kind::Closed);
    assert!(error.text.contains("ECONNRESET"), "{error}");
}

#[test]
fn open_gives_a_blocking_duplicate() {
    let listener = create("tcp:").unwrap();
    let mut peer = TcpStream::connect(("127.0.0.1", port(&*listener))).unwrap();
    let stream = accept(&*listener).unwrap();
    let address = Address::new("tcp").with("end", "own");
    let options = Parameters::check(DESCRIPTOR.open_parameters, &[], &address, &Dict::new()).unwrap();
    let fd = stream.open(&options).unwrap();
    assert!(!rustix::fs::fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK));
    assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    TcpStream::from(fd).write_all(b"direct").unwrap();
    let mut got = [0; 6];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"direct");
    // Ours still does not wait, although the description is a blocking one.
    assert!(matches!(stream.stream().unwrap().read(1).unwrap(), Attempt::Wait(_)));
    let connected = attach(&format!("tcp:host=127.0.0.1,port={}", port(&*listener))).unwrap();
    let fd = connected.open(&options).unwrap();
    assert!(!rustix::fs::fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK));
}

#[test]
fn adopt_takes_what_is_of_its_kind() {
    let adopt = |fd: OwnedFd| match (DESCRIPTOR.adopt)(fd).unwrap() {
        Adoption::Taken(endpoint) => Some(endpoint),
        Adoption::Refused(_) => None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let mut peer = TcpStream::connect(at).unwrap();
    let listener = adopt(listener.into()).unwrap();
    assert_eq!(listener.address().to_string(), format!("tcp:host=127.0.0.1,port={}", at.port()));
    let accepted = accept(&*listener).unwrap();
    write(&*accepted, b"hi").unwrap();
    peer.read_exact(&mut [0; 2]).unwrap();
    let peer = adopt(peer.into()).unwrap();
    write(&*peer, b"ho").unwrap();
    assert_eq!(read(&*accepted, 2).unwrap(), b"ho");

    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(adopt(udp.into()).unwrap().shapes(), [Shape::Messages]);
    let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(adopt(unix.into()).is_none());
    assert!(adopt(std::fs::File::open("/dev/null").unwrap().into()).is_none());
    let unused = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
    let Err(error) = (DESCRIPTOR.adopt)(unused.unwrap()) else {
        panic!("a socket that is nothing yet was taken");
    };
    assert!(error.text.contains("neither connected nor listening"), "{error}");
}

#[test]
fn an_adopted_socket_that_lingers_does_not_hold_us_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let linger = Some(std::time::Duration::from_secs(60));
    rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
    let Adoption::Taken(stream) = (DESCRIPTOR.adopt)(stream.into()).unwrap() else {
        panic!("not adopted");
    };
    // More than the peer, who does not read, can take.
    while let Attempt::Done(_) = stream.stream().unwrap().write(&[0; 65536]).unwrap() {}
    let start = std::time::Instant::now();
    drop(stream);
    assert!(start.elapsed().as_secs() < 10, "closing waited");
}

#[test]
fn multipath_tcp_is_a_stream_like_any_other() {
    let listener = match create("tcp:protocol=mptcp") {
        Err(error) if error.kind == Kind::Unavailable => {
            eprintln!("SKIPPED: {error}");
            return;
        }
        other => other.unwrap(),
    };
    let peer = attach(&format!("tcp:host=127.0.0.1,port={},protocol=mptcp", port(&*listener))).unwrap();
    let stream = accept(&*listener).unwrap();
    write(&*peer, b"two ways").unwrap();
    assert_eq!(read(&*stream, 8).unwrap(), b"two ways");
    assert_eq!(text(&stream.inspect().unwrap(), "state"), "established");
    let Adoption::Taken(_) = (DESCRIPTOR.adopt)(peer.open(&Parameters::default()).unwrap()).unwrap() else {
        panic!("an MPTCP socket was refused");
    };
}
