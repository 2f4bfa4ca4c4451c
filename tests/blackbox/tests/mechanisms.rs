//! Each mechanism against independent programs: what ss, /proc and /dev/shm show, and Python, socat and the shell as
//! peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};

use ipc_blackbox::{Client, Options, Stage, Way, everywhere, options};
use ipc_harness::{need_tool, or_skip, patience, python, sh, temp_dir, unique, watchdog};
use zbus::{OwnedVariant, Variant};

const DEFAULT: u32 = u32::MAX;

fn number(value: &OwnedVariant) -> u64 {
    match &**value {
        Variant::U32(n) => u64::from(*n),
        Variant::U64(n) => *n,
        other => panic!("{other:?} is no number"),
    }
}

async fn numbers(client: &Client, mechanism: &str, column: &str) -> BTreeSet<u64> {
    client.list(mechanism).await.iter().filter_map(|row| row.get(column)).map(number).collect()
}

/// Two listings agree on everything that was there before and after: what comes and goes meanwhile does not count.
/// The kernel's dumps skip an entry now and then while others come and go (they count places in a list), whoever asks;
/// what a listing really lacks, it lacks every time.
async fn agree(client: &Client, mechanism: &str, theirs: impl Fn() -> BTreeSet<u64>, wanted: &BTreeSet<u64>) {
    let mut differing: Option<BTreeSet<u64>> = None;
    for _ in 0..5 {
        let (first, ours) = (theirs(), numbers(client, mechanism, "inode").await);
        let (second, again) = (theirs(), numbers(client, mechanism, "inode").await);
        let missing = first.intersection(&second).filter(|inode| !ours.contains(inode));
        let invented = ours.intersection(&again).filter(|inode| !second.contains(inode));
        let now: BTreeSet<u64> = missing.chain(invented).copied().filter(|&inode| inode != 0).collect();
        let both = differing.map_or(now.clone(), |before| before.intersection(&now).copied().collect());
        if both.is_empty() && wanted.is_subset(&ours) {
            return;
        }
        differing = Some(both);
    }
    panic!("List() of {mechanism} and the other listing differ in {differing:?}, or lack one of {wanted:?}");
}

/// Proves: unix list
/// Proves: inet list
async fn lists_of_sockets(stage: Stage) {
    or_skip!(need_tool("ss"));
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let sockets = [
        client.create(&format!("unix:path={}", dir.path().join("socket").display())).await,
        client.create(&format!("unix:abstract={},type=dgram", unique("list"))).await,
        client.create("unix:pair,type=seqpacket").await,
    ];
    let inet = [
        client.create("tcp:host=127.0.0.1,port=0").await,
        client.create("tcp:host=::1,port=0").await,
        client.create("udp:host=127.0.0.1,port=0").await,
    ];
    // Inodes of our own, as the descriptors themselves say.
    let inodes = async |endpoints: &[String]| {
        let mut inodes = BTreeSet::new();
        for endpoint in endpoints {
            let fd = client.open(endpoint, Options::new()).await.expect("Open");
            inodes.insert(rustix::fs::fstat(&fd).expect("fstat").st_ino);
        }
        inodes
    };
    // u_str LISTEN 0 128 /path 12345 * 0: the address may have blanks, the inode is the fourth from the end.
    let unix = || {
        let said = stage.sh("ss -xaH").finish().success();
        said.lines()
            .map(|line| line.split_whitespace().rev().nth(2).expect("columns").parse().expect("inode"))
            .collect()
    };
    agree(&client, "unix", unix, &inodes(&sockets).await).await;
    let tcp_and_udp = || {
        let said = stage.sh("ss -tuanHe").finish().success();
        said.split_whitespace().filter_map(|word| word.strip_prefix("ino:")?.parse().ok()).collect()
    };
    agree(&client, "inet", tcp_and_udp, &inodes(&inet).await).await;
}

async fn lists_of_named_semaphores(stage: Stage) {
    let client = stage.client().await;
    let name = format!("/{}", unique("list"));
    client.create(&format!("posixsem:name={name},value=7,mode=640,remove-on-close")).await;
    // Every semaphore that is there before and after: tests beside this one make and remove theirs.
    let files = || -> BTreeSet<String> {
        let names = std::fs::read_dir("/dev/shm").expect("/dev/shm").filter_map(|file| {
            let file = file.ok().filter(|file| file.metadata().is_ok_and(|meta| meta.len() == 32))?;
            Some(format!("/{}", file.file_name().to_str()?.strip_prefix("sem.")?))
        });
        names.collect()
    };
    let (before, rows, after) = (files(), client.list("posixsem").await, files());
    let text = |row: &BTreeMap<String, OwnedVariant>| String::try_from(row["name"].clone()).expect("a name");
    let names: BTreeSet<String> = rows.iter().map(text).collect();
    let missing: Vec<_> = before.intersection(&after).filter(|name| !names.contains(*name)).collect();
    assert!(missing.is_empty(), "List() lacks {missing:?}");
    let row = rows.iter().find(|row| text(row) == name).expect("our own");
    assert_eq!((i32::try_from(row["value"].clone()), number(&row["mode"])), (Ok(7), 0o640));
}

/// What another process holds is listed with that process.
///
/// Proves: pipe attach, list
/// Proves: fifo attach, list
/// Proves: mmap attach, list
async fn holders(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let fifo = dir.path().join("fifo");
    let script = "import os,sys\nr,w=os.pipe()\nos.mkfifo(sys.argv[1])\nf=os.open(sys.argv[1],os.O_RDWR)\n\
        m=os.memfd_create('held')\nos.ftruncate(m,4096)\nprint(*[os.fstat(x).st_ino for x in (r,f,m)])\nsys.stdin.read()";
    let process = stage.python(script, &[fifo.to_str().expect("a path of text")]);
    let inodes = process.wait_for(|line| line.split(' ').count() == 3);
    for (mechanism, inode) in ["pipe", "fifo", "mmap"].into_iter().zip(inodes.split(' ')) {
        let rows = client.list(mechanism).await;
        let row = rows.iter().find(|row| number(&row["inode"]).to_string() == inode);
        let row = row.unwrap_or_else(|| panic!("{mechanism} {inode} is not listed"));
        let holders = format!("{:?}", row["holders"]);
        assert!(
            holders.contains(&format!("U32({})", process.pid())) && holders.contains("python"),
            "{holders}"
        );
        // The address that it says can be attached to.
        let address = String::try_from(row["address"].clone()).expect("an address");
        client.attach(&address).await;
    }
    process.finish().success();
}

/// An open memfd in another process: both see what the other writes.
///
/// Proves: mmap create, read, write, fd
async fn memory_is_shared(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let memory = client.create("mmap:size=8192").await;
    let fd = client.open(&memory, Options::new()).await.expect("Open");
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let script = "import mmap,os,sys\nm=mmap.mmap(os.open(sys.argv[1],os.O_RDWR),8192)\nprint('mapped')\n\
        sys.stdin.readline()\nprint(m[4096:4101].decode())\nm[0:6]=b'python'";
    let mut process = python(script, &[&path]);
    process.wait_for(|line| line == "mapped");
    client.call::<(), _>(&memory, "Memory", "WriteText", &(4096u64, "hello")).await.expect("WriteText");
    process.write("go\n");
    assert_eq!(process.finish().success(), "mapped\nhello\n");
    let text: String = client.call(&memory, "Memory", "ReadText", &(0u64, 100u64)).await.expect("ReadText");
    assert_eq!(text, "python");
    let before: OwnedVariant =
        client.call(&memory, "Memory", "FetchAdd", &(8u64, Variant::U32(5))).await.expect("FetchAdd");
    assert_eq!(*before, Variant::U32(0));
}

/// Descriptors go both ways through a socket, from and to a program that knows nothing of D-Bus.
///
/// Proves: unix create, read, write, wait
async fn descriptors_are_passed(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let path = dir.path().join("socket").display().to_string();
    let listener = client.create(&format!("unix:path={path},type=seqpacket,pass-fds")).await;
    let script = "import os,socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
        s.connect(sys.argv[1])\nr,w=os.pipe()\nsocket.send_fds(s,[b'writing end'],[w])\nos.close(w)\n\
        print(os.read(r,99).decode())\ndata,fds,_,_=socket.recv_fds(s,99,4)\n\
        print(data.decode(),os.read(fds[0],99).decode())";
    let process = stage.python(script, &[&path]);
    let connection: zbus::OwnedObjectPath =
        client.call(&listener, "Listener", "Accept", &(DEFAULT,)).await.expect("Accept");
    let (data, mut attributes) = client.receive(connection.as_str(), DEFAULT).await.expect("Receive");
    assert_eq!(data, b"writing end");
    let fds = attributes.remove("fds").expect("the attribute fds");
    let Variant::Array(fds) = &*fds else { panic!("{fds:?} is no array") };
    let [Variant::Fd(fd)] = &fds.iter().collect::<Vec<_>>()[..] else {
        panic!("{fds:?} is not one descriptor")
    };
    let fd = fd.as_fd().try_clone_to_owned().expect("a copy");
    drop(attributes);
    File::from(fd).write_all(b"through the service").expect("writing");
    let (read, write) = std::io::pipe().expect("a pipe");
    (&write).write_all(b"back again").expect("writing");
    let fds = Variant::from(vec![zbus::Fd::from(read.as_fd())]);
    client.send(connection.as_str(), b"take this:", options([("fds", fds)])).await.expect("Send");
    let said = process.finish().success();
    assert_eq!(said, "through the service\ntake this: back again\n");
}

const SEMAPHORE: &str = "import ctypes,sys\nlibc=ctypes.CDLL(None,use_errno=True)\n\
    libc.sem_open.restype=ctypes.c_void_p\ns=ctypes.c_void_p(libc.sem_open(sys.argv[1].encode(),0))\nprint('open')\n\
    for line in sys.stdin:\n  print(line.strip(),getattr(libc,'sem_'+line.strip())(s))";

/// A semaphore shared with a C library's sem_wait and sem_post, and a lease whose holder is killed.
///
/// Proves: posixsem create, write, wait
async fn semaphores_are_shared(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let name = format!("/{}", unique("shared"));
    let semaphore = client.create(&format!("posixsem:name={name},value=0,remove-on-close")).await;
    let mut process = stage.python(SEMAPHORE, &[&name]);
    process.wait_for(|line| line == "open");
    process.write("post\n");
    client.call::<(), _>(&semaphore, "Semaphore", "Wait", &(DEFAULT,)).await.expect("woken by sem_post");
    process.write("wait\n");
    client.call::<(), _>(&semaphore, "Semaphore", "Post", &(1u32,)).await.expect("Post");
    process.wait_for(|line| line == "wait 0");

    client.call::<(), _>(&semaphore, "Semaphore", "Post", &(1u32,)).await.expect("Post");
    let body = (DEFAULT, Options::new());
    let lease: zbus::OwnedFd = client.call(&semaphore, "Semaphore", "Acquire", &body).await.expect("Acquire");
    assert_eq!(client.number(&semaphore, "Semaphore", "Value").await, 0);
    let mut command = Command::new("tail");
    command.args(["-f", "/dev/null"]).stdin(Stdio::from(std::os::fd::OwnedFd::from(lease)));
    let mut holder = command.spawn().expect("tail");
    drop(command);
    // Now that process alone holds it; it crashes.
    process.write("wait\n");
    holder.kill().and_then(|()| holder.wait().map(drop)).expect("killing it");
    process
        .stdout()
        .wait_until(|lines| (lines.iter().filter(|line| *line == "wait 0").count() == 2).then_some(()))
        .expect("the lease was given back");
    process.finish().success();
    client.used("leases", 0).await;
}

/// A TCP connection joined with a unix socket, both ways.
///
/// Proves: inet create, wait, relay
/// Proves: unix attach, relay
async fn a_bridge_from_tcp_to_unix(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let path = dir.path().join("socket").display().to_string();
    let echo = stage.socat(&["-d", "-d", &format!("UNIX-LISTEN:{path}"), "EXEC:cat"]);
    echo.stderr().wait_for(|line| line.contains("listening on")).expect("socat listens");
    let listener = client.create("tcp:host=127.0.0.1,port=0").await;
    let address = client.address(&listener).await;
    let port = address.rsplit_once("port=").expect("a port").1.parse().expect("its number");
    let mut there = TcpStream::connect(("127.0.0.1", port)).expect("connecting");
    let accepted: zbus::OwnedObjectPath =
        client.call(&listener, "Listener", "Accept", &(DEFAULT,)).await.expect("Accept");
    let served = client.attach(&format!("unix:path={path}")).await;
    let relay = client.relay(accepted.as_str(), &served, options([("both", true.into())])).await;
    let data: Vec<u8> =
        (0..3_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
    let mut sending = there.try_clone().expect("a copy");
    let sent = data.clone();
    let writer = std::thread::spawn(move || {
        sending.write_all(&sent).expect("writing");
        sending.shutdown(Shutdown::Write).expect("the end");
    });
    let returned = tokio::task::spawn_blocking(move || {
        let mut returned = Vec::new();
        there.read_to_end(&mut returned).map(|_| returned)
    });
    let returned = watchdog(patience(), returned).await.expect("a task").expect("reading");
    writer.join().expect("a thread");
    assert!(returned == data, "{} of {} bytes came back as they were", returned.len(), data.len());
    let finished = inbox.signal(&relay, "Finished").await;
    let (reason, bytes, _): (String, u64, u64) = finished.body().deserialize().expect("Finished");
    assert_eq!((reason.as_str(), bytes), ("end of stream", data.len() as u64));
}

everywhere!(
    lists_of_sockets,
    lists_of_named_semaphores,
    holders,
    memory_is_shared,
    descriptors_are_passed,
    semaphores_are_shared,
    a_bridge_from_tcp_to_unix,
);

/// A watch beside inotifywait(1), during a copy: the same events in the same order.
///
/// Proves: inotify create, event
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_what_inotifywait_sees() {
    or_skip!(need_tool("inotifywait"));
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let (from, to) = (temp_dir(), temp_dir());
    let many = "cd '%'; for n in 1 2 3 4 5 6 7 8; do mkdir d$n; echo $n >f$n; echo $n >d$n/f; done; ln -s f1 link; mkfifo p";
    sh(&many.replace('%', &from.path().display().to_string())).finish().success();
    let directory = to.path().display().to_string();
    let other = sh(&format!("exec inotifywait -m --format '%e %w%f' '{directory}'"));
    other.stderr().wait_for(|line| line.contains("Watches established")).expect("inotifywait");
    let watch = client.create(&format!("inotify:path={directory}")).await;
    sh(&format!(
        "cp -r '{}'/. '{directory}'; mv '{directory}/f1' '{directory}/g1'; rm -r '{directory}/d1'; \
         : >'{directory}/end'",
        from.path().display()
    ))
    .finish()
    .success();
    let last = format!("CLOSE_WRITE,CLOSE {directory}/end");
    other.wait_for(|line| line == last);
    type Changed = (u64, Vec<String>, String, String, BTreeMap<String, OwnedVariant>);
    let mut ours = inbox
        .until(|all| {
            let events = all.iter().filter(|message| ipc_blackbox::is_signal(message, &watch, "Changed"));
            let lines: Vec<_> = events
                .flat_map(|event| {
                    let (_, names, path, from, _): Changed = event.body().deserialize().expect("Changed");
                    // A rename is two there.
                    match from.as_str() {
                        "" => vec![format!("{} {path}", names.join(","))],
                        from => vec![format!("MOVED_FROM {from}"), format!("MOVED_TO {path}")],
                    }
                })
                .collect();
            lines.last().is_some_and(|line| *line == format!("CLOSE_WRITE {directory}/end")).then_some(lines)
        })
        .await;
    // inotifywait adds the name of the group, and a slash to the watched directory itself.
    let mut theirs: Vec<_> = other
        .stdout()
        .lines()
        .iter()
        .map(|line| line.replace(",CLOSE ", " ").replace(",CLOSE,", ",").trim_end_matches('/').to_owned())
        .collect();
    ours.dedup();
    theirs.dedup();
    assert!(ours.len() > 40, "{ours:#?}");
    assert_eq!(ours, theirs);
}
