//! What Python makes of files: random operations against a model, mappings, locks, writers side by side.

use ipc_harness::{Process, or_skip};

use crate::live;

/// 100 seeds are quick; more with `IPC_SEEDS`, and others with `IPC_SEED`.
fn fsx(mount: &ipc_blackbox::Mount, name: &str, kind: &str) -> Process {
    let number = |key: &str, default: &str| std::env::var(key).unwrap_or_else(|_| default.to_owned());
    let (first, count) = (number("IPC_SEED", "0"), number("IPC_SEEDS", "100"));
    let directory = mount.directory.to_str().expect("UTF-8");
    ipc_harness::python(include_str!("fsx.py"), &[directory, name, kind, &first, &count])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_are_those_of_bytes_in_memory() {
    let (_stage, mount) = or_skip!(live("").await);
    mount.publish("content", b"").await;
    let memory = mount.client.create("mmap:size=50000").await;
    mount.publish_endpoint("memory", &memory).await;
    let shared = format!("posixshm:name=/{},size=8192,remove-on-close=true", ipc_harness::unique("s"));
    mount.publish_endpoint("shared", &mount.client.create(&shared).await).await;
    let runs = [("content", "content"), ("memory", "memory"), ("shared", "memory")];
    for run in runs.map(|(name, kind)| fsx(&mount, name, kind)) {
        let said = run.finish().success();
        assert!(said.ends_with(" seeds\n"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_of_several_writers_are_all_there() {
    let (_stage, mount) = or_skip!(live("").await);
    mount.publish("log", b"").await;
    let writer = "
f = os.open('log', os.O_WRONLY | os.O_APPEND)
for number in range(200): os.write(f, b'%s %d\\n' % (sys.argv[2].encode() * 20, number))
";
    let writers: Vec<Process> =
        ["a", "b", "c", "d", "e", "f"].iter().map(|name| mount.python(writer, &[name])).collect();
    for writer in writers {
        writer.finish().success();
    }
    let lines = mount.sh("cat log");
    assert_eq!(lines.lines().count(), 1200);
    for name in ["a", "b", "c", "d", "e", "f"] {
        let own: Vec<&str> = lines.lines().filter(|line| line.starts_with(name)).collect();
        let wanted: Vec<String> = (0..200).map(|number| format!("{} {number}", name.repeat(20))).collect();
        assert_eq!(own, wanted, "each writer's lines are whole and in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_copies_within_the_kernel_work() {
    let (_stage, mount) = or_skip!(live("").await);
    mount.publish_text("a", "0123456789").await;
    mount.publish_text("b", "").await;
    let script = "
import fcntl
a, b = os.open('a', os.O_RDWR), os.open('b', os.O_RDWR)
fcntl.flock(a, fcntl.LOCK_EX)
fcntl.lockf(b, fcntl.LOCK_EX)
other = os.open('a', os.O_RDWR)
try: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: print('locked')
if os.fork() == 0:
    try: fcntl.lockf(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: print('locked')
    os._exit(0)
os.wait()
print(os.sendfile(b, a, 2, 5), os.pread(b, 99, 0))
print(os.copy_file_range(a, b, 3, 0, 0), os.pread(b, 99, 0))
r, w = os.pipe()
print(os.splice(a, w, 4, offset_src=6), os.read(r, 9))
os.fsync(b); os.fdatasync(b)
print(os.lseek(a, 0, os.SEEK_DATA), os.lseek(a, 0, os.SEEK_HOLE), os.fpathconf(a, 'PC_NAME_MAX'))
os.utime(a, ns=(1, 2)); print(os.stat('a').st_atime_ns, os.stat('a').st_mtime_ns)
print(len(os.listdir('.')), [entry.name for entry in os.scandir('.') if entry.is_file()])
";
    let said = mount.python(script, &[]).finish().success();
    let wanted = "locked\nlocked\n5 b'23456'\n3 b'01256'\n4 b'6789'\n0 10 255\n1 2\n2 ['a', 'b']\n";
    assert_eq!(said, wanted);
}

/// What is published reaches who has the file mapped, and what he writes into the mapping is there for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapping_and_what_is_published_are_one() {
    let (_stage, mount) = or_skip!(live("").await);
    mount.publish("a", &[b'0'; 10_000]).await;
    let script = "
import mmap
f = os.open('a', os.O_RDWR)
try: m = mmap.mmap(f, 10_000)
except OSError as e: print(os.strerror(e.errno)); sys.exit()
os.close(f)
print('mapped', flush=True)
for line in sys.stdin:
    if line == 'write\\n': m[5000:5004] = b'mine'
    print(m[5000:5004].decode(), flush=True)
";
    let mut mapper = mount.python(script, &[]);
    if mapper.wait_for(|_| true) == "No such device" {
        ipc_harness::skip!("files that bypass the page cache can be mapped since Linux 6.6");
    }
    for number in 0..20 {
        mapper.write("write\n");
        mapper.wait_for(|line| line == "mine");
        // Without msync(2): a reader has the kernel write it back first.
        assert_eq!(mount.sh("dd if=a bs=1 skip=5000 count=4 status=none"), "mine", "{number}");
        let text = format!("{number:04}");
        mount.publish("a", text.repeat(2500).as_bytes()).await;
        mapper.write("look\n");
        mapper.wait_for(|line| line == text);
    }
    mapper.finish().success();
}
