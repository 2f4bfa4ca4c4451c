//! What Open() hands out is the kernel's own object: it is used here without the service.

use std::io::Read;
use std::os::fd::AsRawFd;

use ipc_blackbox::{Options, Stage, everywhere, mounted, options};
use ipc_harness::{or_skip, unique};
use rustix::fs::{Mode, OFlags};

use crate::DEFAULT;

/// Bytes that were written over D-Bus come out of the descriptor, and the other way round.
///
/// Proves: pipe create, read, write, fd
/// Proves: fifo read, write, fd
/// Proves: unix read, write, fd
async fn streams(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let fifo = format!("fifo:path={},hold", dir.path().join("fifo").display());
    let ends = |end: &'static str| options([("end", end.into())]);
    // A pipe's end is otherwise handed over, and the service has none.
    let kept = |address: &str, end: &'static str| match address {
        "pipe:" => options([("end", end.into()), ("keep", true.into())]),
        _ => ends(end),
    };
    for address in ["pipe:", &fifo] {
        let endpoint = client.create(address).await;
        let (read, write) = (
            client.open(&endpoint, kept(address, "read")).await,
            client.open(&endpoint, kept(address, "write")).await,
        );
        assert_eq!(client.write(&endpoint, b"out", DEFAULT).await, Ok(3));
        let mut data = [0; 9];
        assert_eq!(rustix::io::read(read.expect("Open"), &mut data), Ok(3), "{address}");
        assert_eq!(&data[..3], b"out");
        rustix::io::write(write.expect("Open"), b"in").expect("writing");
        assert_eq!(client.read(&endpoint, 9, DEFAULT).await.as_deref(), Ok(&b"in"[..]), "{address}");
    }
    let pair = client.create("unix:pair").await;
    let peer = client.open(&pair, ends("peer")).await.expect("Open");
    assert_eq!(client.write(&pair, b"out", DEFAULT).await, Ok(3));
    let mut data = [0; 9];
    assert_eq!(rustix::io::read(&peer, &mut data), Ok(3));
    rustix::io::write(&peer, b"in").expect("writing");
    let own = client.open(&pair, ends("own")).await.expect("Open");
    assert_eq!(rustix::io::read(&own, &mut data), Ok(2), "the same queue as that of Read");
    assert_eq!(&data[..2], b"in");
}

/// The memory of a semaphore and of a futex.
///
/// Proves: posixsem fd
/// Proves: futex create, read, write, fd
async fn words(stage: Stage) {
    let client = stage.client().await;
    let semaphore =
        client.create(&format!("posixsem:name=/{},value=7,remove-on-close", unique("open"))).await;
    let futex = client.create("futex:value=8").await;
    let word = async |endpoint: &str| {
        let fd = client.open(endpoint, Options::new()).await.expect("Open");
        let mut word = [0; 4];
        assert_eq!(rustix::io::pread(&fd, &mut word, 0), Ok(4));
        u32::from_ne_bytes(word)
    };
    assert_eq!((word(&semaphore).await, word(&futex).await), (7, 8));
    client.call::<(), _>(&semaphore, "Semaphore", "Post", &(2u32,)).await.expect("Post");
    client.call::<(), _>(&futex, "Futex", "Store", &(99u32,)).await.expect("Store");
    assert_eq!((word(&semaphore).await, word(&futex).await), (9, 99));
    let fd = client.open(&futex, Options::new()).await.expect("Open");
    rustix::io::pwrite(&fd, &5u32.to_ne_bytes(), 0).expect("writing");
    assert_eq!(client.call::<u32, _>(&futex, "Futex", "Load", &()).await, Ok(5));
}

/// The listening socket itself, and the process of a mailbox as a pidfd.
///
/// Proves: inet create, fd
/// Proves: signal create, fd
async fn sockets_and_processes(stage: Stage) {
    let client = stage.client().await;
    let listener = client.create("tcp:host=127.0.0.1,port=0").await;
    let address = client.address(&listener).await;
    let socket = std::net::TcpListener::from(client.open(&listener, Options::new()).await.expect("Open"));
    let bound = socket.local_addr().expect("a bound socket");
    assert!(address.ends_with(&format!("port={}", bound.port())), "{address} {bound}");
    let mailbox = client.create("signal:number=SIGUSR1").await;
    let pid = client.number(&mailbox, "Mailbox", "Pid").await;
    let process = client.open(&mailbox, Options::new()).await.expect("Open");
    let info =
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).expect("proc(5)");
    let shown = info.lines().find_map(|line| line.strip_prefix("Pid:")).expect("a pidfd").trim().to_owned();
    assert_eq!(shown, pid.to_string());
}

/// The mounted directory: files are opened below it.
///
/// Proves: fuse read, write, fd
async fn directories(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish_text("file", "text").await;
    let directory = mount.client.open(&mount.path, Options::new()).await.expect("Open");
    // What is served by this process's own peer must not be waited for on the runtime's thread.
    let text = tokio::task::spawn_blocking(move || {
        let file = rustix::fs::openat(&directory, "file", OFlags::RDWR, Mode::empty()).expect("openat(2)");
        let mut text = String::new();
        std::fs::File::from(file.try_clone().expect("a copy")).read_to_string(&mut text).expect("reading");
        rustix::io::pwrite(&file, b"T", 0).expect("writing");
        text
    });
    assert_eq!(text.await.expect("a task"), "text");
    assert_eq!(mount.sh("cat file"), "Text");
}

everywhere!(streams, words, sockets_and_processes, directories);
