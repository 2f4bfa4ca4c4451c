//! Objects that a program made without the service, in the lists of their mechanisms.

use ipc_blackbox::{Client, Stage, Way, everywhere, integer, mounted, options};
use ipc_harness::{need_tool, or_skip, skip, unique};
use zbus::Variant;

use crate::{Row, assert_documented};

/// Makes one object of each kind with the C library and the kernel's calls, and says for each which row it has to be:
/// mechanism, column, value. What outlives a process is removed at the end.
const MAKER: &str = r#"
import ctypes, mmap, os, signal, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
directory, name = sys.argv[1:]
def say(*words): print(*words, flush=True)
def made(result):
    if result < 0: sys.exit(os.strerror(ctypes.get_errno()))
    return result
inode = lambda fd: os.fstat(fd).st_ino
read, write = os.pipe(); say('pipe', 'inode', inode(read))
os.mkfifo(directory + '/fifo'); fifo = os.open(directory + '/fifo', os.O_RDWR); say('fifo', 'inode', inode(fifo))
queue = made(libc.msgget(0, 0o1600)); say('sysvmq', 'id', queue)
segment = made(libc.shmget(0, ctypes.c_size_t(4096), 0o1600)); say('sysvshm', 'id', segment)
semaphores = made(libc.semget(0, 2, 0o1600)); say('sysvsem', 'id', semaphores)
shm = made(libc.shm_open(name.encode(), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
os.ftruncate(shm, 4096); say('posixshm', 'name', name)
libc.sem_open.restype = ctypes.c_void_p
assert libc.sem_open(name.encode(), os.O_CREAT | os.O_EXCL, 0o600, 3); say('posixsem', 'name', name)
memfd = os.memfd_create('made'); os.ftruncate(memfd, 4096); say('mmap', 'inode', inode(memfd))
memory = mmap.mmap(memfd, 4096); word = ctypes.c_uint32.from_buffer(memory, 64)
number = {'x86_64': 202, 'aarch64': 98, 'riscv64': 98}[os.uname().machine]
threading.Thread(target=lambda: libc.syscall(number, ctypes.byref(word), 0, 0, None, None, 0), daemon=True).start()
say('futex', 'inode', inode(memfd))
one = socket.socket(socket.AF_UNIX); one.bind(directory + '/socket'); one.listen(); say('unix', 'inode', inode(one.fileno()))
two = socket.create_server(('127.0.0.1', 0)); say('inet', 'inode', inode(two.fileno()))
three = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2); three.bind((0, 0)); say('netlink', 'inode', inode(three.fileno()))
watch = libc.inotify_init(); made(libc.inotify_add_watch(watch, directory.encode(), 0x100)); say('inotify', 'pid', os.getpid())
say('signal', 'pid', os.getpid())
say('all')
sys.stdin.read()
libc.msgctl(queue, 0, None); libc.shmctl(segment, 0, None); libc.semctl(semaphores, 0, 0)
libc.shm_unlink(name.encode()); libc.sem_unlink(name.encode())
"#;

/// The rows with this value in this column: those that List() gives, and of them all those that its filter gives.
async fn rows(client: &Client, mechanism: &str, column: &str, value: &str) -> Vec<Row> {
    let is = |row: &Row| match row.get(column).map(|value| &**value) {
        Some(Variant::Str(text)) => text.as_str() == value,
        Some(number) => integer(number).to_string() == value,
        None => false,
    };
    let rows: Vec<Row> = client.list(mechanism).await.into_iter().filter(is).collect();
    for row in &rows {
        let filter = options([(column, (*row[column]).try_clone().expect("no descriptor"))]);
        let node = format!("{}/{mechanism}", ipc_harness::PATH);
        let found: Vec<Row> =
            client.call(&node, "Mechanism", "List", &(filter,)).await.expect("List with a filter");
        assert!(found.iter().any(is), "{mechanism} by the filter {column}={value}");
    }
    rows
}

/// Each in its list as the kernel has it, with who has it and with an address that leads to it.
///
/// Proves: pipe attach, list
/// Proves: fifo attach, list
/// Proves: sysvmq attach, list
/// Proves: sysvshm attach, list
/// Proves: posixshm attach, list
/// Proves: sysvsem attach, list
/// Proves: posixsem attach, list
/// Proves: futex attach, list
/// Proves: mmap attach, list
/// Proves: unix attach, list
/// Proves: netlink attach, list
/// Proves: inet attach, list
/// Proves: inotify list
/// Proves: signal attach, list
async fn objects_of_programs_are_listed(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let name = format!("/{}", unique("made"));
    let mut maker = stage.python(MAKER, &[dir.path().to_str().expect("UTF-8"), &name]);
    maker.wait_for(|line| line == "all");
    let pid = maker.pid();
    let mut seen = 0;
    for line in maker.stdout().lines().iter().filter(|line| *line != "all") {
        let [mechanism, column, value] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let found = loop {
            let found = rows(&client, mechanism, column, value).await;
            // Its thread is about to sleep; each question is a call.
            if mechanism != "futex" || !found.is_empty() {
                break found;
            }
        };
        assert!(!found.is_empty(), "{mechanism} {column}={value} is not listed");
        found.iter().for_each(|row| assert_documented(mechanism, row));
        // Who has it; nobody has attached the segment.
        let holders = ["holders", "waiters"].iter().find_map(|column| found[0].get(*column));
        if let Some(holders) = holders.filter(|_| !mechanism.starts_with("sysv")) {
            let holders = format!("{holders:?}");
            assert!(holders.contains(&format!("U32({pid})")), "{mechanism}: {holders}");
        }
        // Where its row says an address, it can be attached to; no other process's watch can.
        if mechanism != "inotify" {
            let address = String::try_from(found[0]["address"].clone()).expect("an address");
            client.close(&client.attach(&address).await).await;
        }
        seen += 1;
    }
    assert_eq!(seen, 14, "mechanisms");
    maker.close_stdin();
    maker.finish().success();
    for (mechanism, column) in [("posixshm", "name"), ("posixsem", "name"), ("signal", "pid")] {
        let value = if column == "name" { name.clone() } else { pid.to_string() };
        assert!(rows(&client, mechanism, column, &value).await.is_empty(), "{mechanism} has gone");
    }
}

/// A mount that another service serves.
///
/// Proves: fuse list
async fn mounts_of_others_are_listed(stage: Stage) {
    if stage.way == Way::System {
        skip!("the service on the tests' system bus is in a mount namespace of its own");
    }
    let client = stage.client().await;
    let other = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&other, "").await);
    let path = mount.directory.to_str().expect("UTF-8");
    let found = rows(&client, "fuse", "path", path).await;
    let [row] = &found[..] else { panic!("one row, not {found:?}") };
    assert_documented("fuse", row);
    assert_eq!(*row["type"], Variant::from("fuse.ipcd"));
    assert_eq!(integer(&row["owner"]), i64::from(rustix::process::geteuid().as_raw()));
    mount.client.close(&mount.path).await;
    assert!(rows(&client, "fuse", "path", path).await.is_empty());
}

everywhere!(objects_of_programs_are_listed, mounts_of_others_are_listed);
