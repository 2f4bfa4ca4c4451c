//! Shared memory against a Python program that maps, writes, seals and truncates it.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    },
    process::Command,
    sync::Arc,
};

use ipc_kernel::{
    Endpoint, Kind, Value,
    guard::Mapping,
    mechanism::{Adoption, EndKind, Permissions},
    mechanisms,
    shape::{Memory, Word},
};

mod peer;
use peer::*;

/// Opens the path that it is given and does what it is told.
const PROGRAM: &str = r#"
import fcntl, mmap, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
m = None
print("ready", flush=True)
for line in sys.stdin:
    words = line.split()
    say = "ok"
    try:
        if words[0] == "map":
            m = mmap.mmap(f, 0)
        elif words[0] == "unmap":
            m.close(); m = None
        elif words[0] == "close":
            os.close(f)
        elif words[0] == "read":
            say = m[int(words[1]):int(words[2])].hex()
        elif words[0] == "write":
            at, data = int(words[1]), bytes.fromhex(words[2])
            m[at:at + len(data)] = data
        elif words[0] == "truncate":
            os.ftruncate(f, int(words[1]))
        elif words[0] == "seal":
            fcntl.fcntl(f, fcntl.F_ADD_SEALS, int(words[1]))
        elif words[0] == "storm":
            for _ in range(int(words[1])):
                os.ftruncate(f, 0); os.ftruncate(f, 8192)
    except OSError as error:
        say = os.strerror(error.errno)
    print(say, flush=True)
"#;

fn memory(endpoint: &dyn Endpoint) -> &dyn Memory {
    endpoint.memory().unwrap()
}

/// A path that another process can open the endpoint's memory by.
fn shared(endpoint: &dyn Endpoint) -> (OwnedFd, String) {
    let fd = endpoint.open(&options("mmap", "")).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    (fd, path)
}

fn integer(endpoint: &dyn Endpoint, key: &str) -> i128 {
    endpoint.inspect().unwrap()[key].integer().unwrap()
}

fn adopt(fd: impl Into<OwnedFd>) -> ipc_kernel::Result<Box<dyn Endpoint>> {
    match (mechanisms::by_name("mmap").unwrap().adopt)(fd.into())? {
        Adoption::Taken(endpoint) => Ok(endpoint),
        Adoption::Refused(_) => panic!("refused"),
    }
}

#[test]
fn a_program_sees_what_we_write_and_we_see_what_it_writes() {
    let endpoint = create("mmap:size=8192,name=frames").unwrap();
    let (_fd, path) = shared(&*endpoint);
    let Some(mut program) = Peer::start(PROGRAM, &[&path]) else { return };
    assert_eq!(program.ask("map"), "ok");
    memory(&*endpoint).write(4094, b"\x01\x02\x03\x04").unwrap();
    assert_eq!(program.ask("read 4094 4098"), "01020304");
    program.ask("write 8184 0a00000000000000");
    assert_eq!(memory(&*endpoint).read(8184, 8).unwrap(), [10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(memory(&*endpoint).fetch_add(8184, Word::U64(5)).unwrap(), Word::U64(10));
    assert_eq!(program.ask("read 8184 8192"), "0f00000000000000");

    let Value::Dicts(holders) = &endpoint.inspect().unwrap()["holders"] else { panic!("dictionaries") };
    let of_program: Vec<_> =
        holders.iter().filter(|row| row["pid"].integer() == Some(program.pid().into())).collect();
    // Python's mmap keeps a duplicate of the fd.
    assert!(of_program.iter().any(|row| row.contains_key("fd")), "{holders:?}");
    assert!(of_program.iter().any(|row| row.contains_key("mapped")), "{holders:?}");

    let again = attach(&endpoint.address().to_string()).unwrap();
    assert_eq!(memory(&*again).read(4094, 2).unwrap(), [1, 2]);
    let fd = of_program.iter().find_map(|row| row.get("fd")?.integer()).unwrap();
    let by_number = attach(&format!("mmap:pid={},fd={fd}", program.pid())).unwrap();
    assert_eq!(by_number.address(), endpoint.address());
    assert!(again.inspect().unwrap()["name"].same(&"frames".into()));
}

#[test]
fn words_of_every_type() {
    let endpoint = create("mmap:size=64").unwrap();
    let memory = memory(&*endpoint);
    for (word, sum) in [
        (Word::U8(200), Word::U8(144)),
        (Word::U16(40_000), Word::U16(14_464)),
        (Word::U32(7), Word::U32(14)),
        (Word::U64(u64::MAX), Word::U64(u64::MAX - 1)),
        (Word::I16(-3), Word::I16(-6)),
        (Word::I32(i32::MIN), Word::I32(0)),
        (Word::I64(-1), Word::I64(-2)),
        (Word::F64(1.25), Word::F64(2.5)),
    ] {
        memory.store(8, word).unwrap();
        assert_eq!(memory.load(8, word).unwrap(), word);
        assert_eq!(memory.fetch_add(8, word).unwrap(), word);
        assert_eq!(memory.load(8, word).unwrap(), sum);
        assert_eq!(memory.compare_exchange(8, word, word).unwrap(), (false, sum));
        assert_eq!(memory.compare_exchange(8, sum, word).unwrap(), (true, sum));
        assert_eq!(memory.load(8, word).unwrap(), word);
    }
    assert_eq!(memory.read(0, 8).unwrap(), [0; 8]);
    assert_eq!(memory.read(16, 48).unwrap(), [0; 48]);
    refused(memory.load(2, Word::U32(0)), Kind::InvalidArgument, "not aligned");
    refused(memory.load(64, Word::U8(0)), Kind::InvalidArgument, "the memory has 64 bytes");
    refused(memory.store(u64::MAX, Word::U64(0)), Kind::InvalidArgument, "18446744073709551615");
    refused(memory.compare_exchange(0, Word::U32(0), Word::I32(0)), Kind::InvalidArgument, "same type");
}

#[test]
fn additions_of_many_threads_are_all_there() {
    let endpoint: Arc<dyn Endpoint> = Arc::from(create("mmap:size=4096").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    memory(&*endpoint).fetch_add(0, Word::F64(0.5)).unwrap();
                    memory(&*endpoint).fetch_add(8, Word::U32(1)).unwrap();
                }
            });
        }
    });
    assert_eq!(memory(&*endpoint).load(0, Word::F64(0.0)).unwrap(), Word::F64(1000.0));
    assert_eq!(memory(&*endpoint).load(8, Word::U32(0)).unwrap(), Word::U32(2000));
}

#[test]
fn bounds_are_exact() {
    let endpoint = create("mmap:size=100").unwrap();
    let memory = memory(&*endpoint);
    assert_eq!(memory.size().unwrap(), 100);
    memory.write(99, b"x").unwrap();
    assert_eq!(memory.read(99, 1).unwrap(), b"x");
    assert_eq!(memory.read(100, 0).unwrap(), b"");
    let phrase = "2 bytes at offset 99: the memory has 100 bytes";
    refused(memory.read(99, 2), Kind::InvalidArgument, phrase);
    refused(memory.write(99, b"xy"), Kind::InvalidArgument, phrase);
    refused(memory.read(101, 0), Kind::InvalidArgument, "100 bytes");
    refused(memory.read(u64::MAX, 1), Kind::InvalidArgument, "100 bytes");
    memory.resize(50).unwrap();
    refused(memory.read(50, 1), Kind::InvalidArgument, "the memory has 50 bytes");
    memory.resize(5000).unwrap();
    assert_eq!(memory.read(4990, 10).unwrap(), [0; 10]);
    refused(memory.resize(u64::MAX), Kind::TooLarge, "18446744073709551615");
    refused(create("mmap:size=0"), Kind::InvalidArgument, "from 1 to");
    refused(create("mmap:"), Kind::InvalidArgument, "\"size\" is missing");
    refused(create(&format!("mmap:size=1,name={}", "n".repeat(250))), Kind::InvalidArgument, "at most 249");
    refused(create("mmap:size=1,seals=shrink+soft"), Kind::InvalidArgument, "future-write");
}

#[test]
fn a_range_is_a_window() {
    let path = TemporaryPath::new();
    std::fs::write(&path.0, b"0123456789abcdef").unwrap();
    let window = attach(&format!("mmap:path={},offset=4,length=8", path.text())).unwrap();
    let memory = memory(&*window);
    assert_eq!(memory.size().unwrap(), 8);
    assert_eq!(memory.read(0, 8).unwrap(), b"456789ab");
    memory.write(6, b"AB").unwrap();
    assert_eq!(std::fs::read(&path.0).unwrap(), b"0123456789ABcdef");
    assert_eq!(memory.load(0, Word::U32(0)).unwrap(), Word::U32(u32::from_le_bytes(*b"4567")));
    refused(memory.load(0, Word::U64(0)), Kind::InvalidArgument, "this is byte 4");
    refused(memory.read(7, 2), Kind::InvalidArgument, "the memory has 8 bytes");
    refused(memory.resize(4), Kind::InvalidArgument, "without offset and length");
    assert_eq!(window.address().to_string(), format!("mmap:path={},offset=4,length=8", path.text()));
    let ends = [memory.source().unwrap(), memory.sink().unwrap()];
    assert!(ends.iter().all(|end| end.kind == EndKind::File { offset: 4, length: 8 }));

    let tail = attach(&format!("mmap:path={},offset=14", path.text())).unwrap();
    assert_eq!(tail.memory().unwrap().size().unwrap(), 2);
    let file = std::fs::File::options().write(true).open(&path.0).unwrap();
    file.set_len(20).unwrap();
    assert_eq!(tail.memory().unwrap().size().unwrap(), 6, "to the end, wherever that is");
    file.set_len(6).unwrap();
    assert_eq!(tail.memory().unwrap().size().unwrap(), 0);
    refused(memory.read(0, 8), Kind::Gone, "of the range 2 bytes are left");
    assert_eq!(memory.read(0, 2).unwrap(), b"45");
    let beyond = format!("mmap:path={},offset=4,length=8", path.text());
    refused(attach(&beyond), Kind::InvalidArgument, "which has 6 bytes");
}

#[test]
fn truncation_by_a_peer_is_an_error_and_never_a_crash() {
    let endpoint = create("mmap:size=8192").unwrap();
    let (_fd, path) = shared(&*endpoint);
    let Some(mut program) = Peer::start(PROGRAM, &[&path]) else { return };
    let memory = memory(&*endpoint);
    program.tell("storm 20000");
    let (mut whole, mut cut) = (0, 0);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.send(program.line()).map(|()| program));
        while receiver.try_recv().is_err() {
            let results = [
                memory.read(0, 8192).map(drop),
                memory.load(4096, Word::U32(0)).map(drop),
                memory.fetch_add(4096, Word::F64(1.0)).map(drop),
                memory.store(0, Word::U8(1)),
            ];
            for result in results {
                match result {
                    Ok(()) => whole += 1,
                    Err(error) => {
                        assert!(matches!(error.kind, Kind::Gone | Kind::InvalidArgument), "{error}");
                        cut += 1;
                    }
                }
            }
        }
    });
    assert!(whole > 0 && cut > 0, "{whole} whole, {cut} cut");
    memory.resize(8192).unwrap();
    memory.store(4096, Word::U32(9)).unwrap();
    assert_eq!(memory.load(4096, Word::U32(0)).unwrap(), Word::U32(9), "after that all is as before");
}

#[test]
fn a_lost_mapping_says_so_and_is_replaced_by_another() {
    let endpoint = create("mmap:size=16384").unwrap();
    let (fd, _) = shared(&*endpoint);
    let mapping = Mapping::new(fd.as_fd(), 0, 16384, true).unwrap();
    mapping.swap(8192, 4, 5).unwrap();
    rustix::fs::ftruncate(&fd, 4096).unwrap();
    assert_eq!(mapping.load(0, 4).unwrap(), 0, "what is left can be used");
    refused(mapping.load(8192, 4), Kind::Gone, "truncated");
    assert!(mapping.lost());
    refused(mapping.swap(0, 4, 7), Kind::Gone, "truncated");
    rustix::fs::ftruncate(&fd, 16384).unwrap();
    let another = Mapping::new(fd.as_fd(), 0, 16384, true).unwrap();
    another.swap(8192, 4, 6).unwrap();
    assert_eq!(memory(&*endpoint).load(8192, Word::U32(0)).unwrap(), Word::U32(6));
    assert_eq!(another.load(0, 4).unwrap(), 0, "the lost mapping is no part of the file any more");
}

/// Runs in a process of its own, which it ends by the signal.
#[test]
#[ignore = "the child of a_sigbus_that_was_sent_kills"]
fn sigbus_child() {
    let endpoint = create("mmap:size=4096").unwrap();
    memory(&*endpoint).load(0, Word::U8(0)).unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS).unwrap();
}

#[test]
fn a_sigbus_that_was_sent_kills() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "sigbus_child"])
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn seals_are_kept_and_named() {
    let endpoint = create("mmap:size=8192,seals=shrink").unwrap();
    let memory = memory(&*endpoint);
    refused(memory.resize(4096), Kind::PermissionDenied, "F_SEAL_SHRINK");
    memory.resize(12288).unwrap();
    memory.seal(&["grow".into()]).unwrap();
    refused(memory.resize(16384), Kind::PermissionDenied, "F_SEAL_GROW");
    refused(memory.seal(&["soft".into()]), Kind::InvalidArgument, "shrink, grow, write, future-write");
    assert!(["shrink", "grow"].iter().all(|seal| memory.seals().contains(&seal.to_string())));

    let (_fd, path) = shared(&*endpoint);
    let Some(mut program) = Peer::start(PROGRAM, &[&path]) else { return };
    memory.store(0, Word::U32(1)).unwrap();
    assert_eq!(program.ask("truncate 0"), "Operation not permitted");
    program.ask("map");
    refused(memory.seal(&["write".into()]), Kind::Busy, "writable mapping");
    program.ask("unmap");
    // The atomic operations above left no mapping of ours behind.
    assert_eq!(program.ask("seal 8"), "ok");
    assert!(memory.read_only());
    refused(memory.write(0, b"x"), Kind::PermissionDenied, "sealed against writing (write)");
    refused(memory.store(0, Word::U8(1)), Kind::PermissionDenied, "sealed against writing");
    assert_eq!(memory.load(0, Word::U32(0)).unwrap(), Word::U32(1));
    memory.seal(&["seal".into()]).unwrap();
    refused(memory.seal(&["future-write".into()]), Kind::PermissionDenied, "F_SEAL_SEAL");

    let path = TemporaryPath::new();
    let file = create(&format!("mmap:path={},size=4096", path.text())).unwrap();
    refused(file.memory().unwrap().seal(&["grow".into()]), Kind::NotSupported, "only memfds");
    // A file of tmpfs, as every shm_open(3) object is one, is sealed against seals by the kernel.
    let file = format!("mmap:path=/dev/shm/{},size=4096", unique());
    let file = create(&file).unwrap();
    refused(file.memory().unwrap().seal(&["grow".into()]), Kind::NotSupported, "only memfds");
    file.remove().unwrap();
}

#[test]
fn a_new_file_is_complete_and_its_own() {
    let path = TemporaryPath::new();
    let address = format!("mmap:path={},size=100K", path.text());
    let endpoint = create(&format!("{address},mode=0622")).unwrap();
    assert_eq!(integer(&*endpoint, "mode"), 0o622);
    assert_eq!(integer(&*endpoint, "size"), 102_400);
    assert!(integer(&*endpoint, "allocated") >= 102_400, "so that later stores find room");
    assert!(endpoint.inspect().unwrap()["path"].same(&path.text().into()));
    refused(create(&address), Kind::Exists, path.text());
    let again = attach(&endpoint.address().to_string()).unwrap();
    memory(&*endpoint).store(0, Word::U64(77)).unwrap();
    memory(&*endpoint).sync().unwrap();
    assert_eq!(memory(&*again).load(0, Word::U64(0)).unwrap(), Word::U64(77));
    endpoint.set_permissions(Permissions { mode: Some(0o600), ..Permissions::default() }).unwrap();
    assert_eq!(integer(&*endpoint, "mode"), 0o600);

    endpoint.remove().unwrap();
    refused(again.remove(), Kind::Gone, "removed already");
    std::fs::write(&path.0, "another").unwrap();
    refused(again.remove(), Kind::Gone, "another object has taken this name");
    std::fs::remove_file(&path.0).unwrap();
    let target = TemporaryPath::new();
    std::os::unix::fs::symlink(&target.0, &path.0).unwrap();
    refused(create(&address), Kind::Exists, "File exists");
    assert!(!target.0.exists(), "a link is not followed");

    refused(create("mmap:path=relative,size=1"), Kind::InvalidArgument, "absolute path");
    refused(create("mmap:path=/tmp/,size=1"), Kind::InvalidArgument, "name of a directory");
    refused(create("mmap:path=/no/such/directory,size=1"), Kind::NotFound, "No such file");
    refused(create("mmap:path=/tmp/x,size=1,seals=grow"), Kind::InvalidArgument, "is for memfds");
    let memfd = create("mmap:size=1").unwrap();
    refused(memfd.remove(), Kind::NotSupported, "no name");
}

#[test]
fn attach_takes_regular_files_only() {
    let fifo = TemporaryPath::new();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo.0, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for (address, phrase) in [
        (format!("mmap:path={}", fifo.text()), "a pipe or FIFO"),
        ("mmap:path=/tmp".into(), "a directory"),
        ("mmap:path=/dev/null".into(), "a character device"),
        ("mmap:".into(), "needs one of"),
        ("mmap:pid=1".into(), "needs one of"),
        ("mmap:path=/tmp/x,inode=3".into(), "needs one of"),
        ("mmap:path=/tmp/x,access=write".into(), "read-write, read-only"),
    ] {
        refused(attach(&address), Kind::InvalidArgument, phrase);
    }
    refused(attach("mmap:path=/tmp/no-such-file-here"), Kind::NotFound, "No such file");
    refused(attach("mmap:inode=18446744073709551615"), Kind::NotFound, "no process");
    refused(attach("mmap:pid=2147483647,fd=0"), Kind::NotFound, "2147483647");
    // SAFETY: memfd_secret(2) takes flags and returns a new fd or fails.
    let secret = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if secret < 0 {
        eprintln!("SKIPPED: this kernel has no memfd_secret");
        return;
    }
    let address = format!("mmap:pid={},fd={secret}", std::process::id());
    refused(attach(&address), Kind::NotSupported, "secret memory");
}

#[test]
fn read_only_is_read_only() {
    let endpoint = create("mmap:size=4096").unwrap();
    let reader = endpoint.open(&options("mmap", "access=read-only")).unwrap();
    assert_eq!(rustix::io::pwrite(&reader, b"x", 0), Err(rustix::io::Errno::BADF));
    let writer = endpoint.open(&options("mmap", "")).unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::APPEND).unwrap();
    memory(&*endpoint).write(0, b"ours").unwrap();
    assert_eq!(memory(&*endpoint).size().unwrap(), 4096, "the caller's flags are not ours");

    let attached = attach(&format!("{},access=read-only", endpoint.address())).unwrap();
    assert!(memory(&*attached).read_only());
    assert_eq!(memory(&*attached).load(0, Word::U8(0)).unwrap(), Word::U8(b'o'));
    for result in [
        memory(&*attached).write(0, b"x"),
        memory(&*attached).store(0, Word::U8(0)),
        memory(&*attached).resize(1),
        memory(&*attached).seal(&["grow".into()]),
        memory(&*attached).sink().map(drop),
        attached.open(&options("mmap", "access=read-write")).map(drop),
    ] {
        refused(result, Kind::PermissionDenied, "for reading only");
    }
    attached.open(&options("mmap", "")).unwrap();
    assert!(attached.address().to_string().ends_with("access=read-only"));
}

#[test]
fn adopts_memfds_and_files() {
    let endpoint = create("mmap:size=4096").unwrap();
    let adopted = adopt(endpoint.open(&options("mmap", "")).unwrap()).unwrap();
    assert_eq!(adopted.address(), endpoint.address());
    let adopted = adopt(endpoint.open(&options("mmap", "access=read-only")).unwrap()).unwrap();
    assert!(memory(&*adopted).read_only());

    let path = TemporaryPath::new();
    std::fs::write(&path.0, "0123").unwrap();
    let appending = std::fs::File::options().read(true).append(true).open(&path.0).unwrap();
    let adopted = adopt(appending).unwrap();
    assert_eq!(adopted.address().to_string(), format!("mmap:path={}", path.text()));
    memory(&*adopted).write(0, b"ab").unwrap();
    assert_eq!(std::fs::read(&path.0).unwrap(), b"ab23", "written in place, not appended");
    let unreadable = std::fs::File::options().write(true).open(&path.0).unwrap();
    refused(adopt(unreadable), Kind::InvalidArgument, "for writing only");
    let nothing = std::fs::File::options().read(true).custom_flags(libc::O_PATH).open(&path.0).unwrap();
    refused(adopt(nothing), Kind::InvalidArgument, "O_PATH");
    let adopted = adopt(std::fs::File::open(&path.0).unwrap()).unwrap();
    std::fs::remove_file(&path.0).unwrap();
    assert_eq!(memory(&*adopted).read(0, 4).unwrap(), b"ab23");
}

#[test]
fn the_list_has_what_is_held_and_what_is_only_mapped() {
    let name = unique();
    let endpoint = create(&format!("mmap:size=8192,name={name},seals=shrink+grow")).unwrap();
    let (fd, path) = shared(&*endpoint);
    let Some(mut program) = Peer::start(PROGRAM, &[&path]) else { return };
    let list = || {
        let row = mechanisms::by_name("mmap").unwrap();
        let rows = row.objects().unwrap();
        assert!(rows.iter().flat_map(|row| row.keys()).all(|key| row.columns.iter().any(|c| c.key == key)));
        rows.into_iter().find(|row| row["name"].same(&name.as_str().into()))
    };
    program.ask("map");
    let row = list().unwrap();
    assert_eq!(row["size"].integer(), Some(8192));
    assert_eq!(row["mode"].integer(), Some(0o600));
    assert!(row["address"].same(&endpoint.address().to_string().as_str().into()));
    let Value::Texts(seals) = &row["seals"] else { panic!("texts") };
    assert!(seals.contains(&"grow".into()) && seals.contains(&"exec".into()), "{seals:?}");
    let Value::Dicts(holders) = &row["holders"] else { panic!("dictionaries") };
    let pids: Vec<_> = holders.iter().filter_map(|row| row["pid"].integer()).collect();
    assert!(pids.contains(&program.pid().into()) && pids.contains(&std::process::id().into()));
    let mapping = Mapping::new(fd.as_fd(), 0, 8192, false).unwrap();
    drop((endpoint, fd));
    assert!(list().unwrap().contains_key("address"), "the program holds it");
    drop(program);
    let row = list().unwrap();
    assert!(!row.contains_key("address") && !row.contains_key("size"), "only mapped: {row:?}");
    let Value::Dicts(holders) = &row["holders"] else { panic!("dictionaries") };
    assert!(holders.len() == 1 && holders[0]["access"].same(&"read".into()), "{holders:?}");
    drop(mapping);
    assert!(list().is_none());
}

#[test]
fn huge_pages() {
    refused(create("mmap:size=3M,huge=2M"), Kind::InvalidArgument, "multiple of 2097152");
    refused(create("mmap:size=16G,huge=16G"), Kind::Unavailable, "no huge pages of 16G");
    let endpoint = create("mmap:size=4M,huge=2M").unwrap();
    let memory = memory(&*endpoint);
    assert_eq!(integer(&*endpoint, "page-size"), 2 << 20);
    refused(memory.resize(4096), Kind::InvalidArgument, "multiple of 2097152");
    let limits = (mechanisms::by_name("mmap").unwrap().limits)();
    if limits["hugepages-2048kB-free"].integer() < Some(2) {
        refused(memory.store(0, Word::U8(1)), Kind::LimitExceeded, "vm.nr_hugepages");
        eprintln!("SKIPPED: no huge pages are free; set vm.nr_hugepages to 4 for the rest");
        return;
    }
    let across = (2 << 20) - 2;
    memory.write(across, b"abcd").unwrap();
    assert_eq!(memory.read(across, 4).unwrap(), b"abcd");
    assert_eq!(memory.fetch_add(across & !3, Word::U32(0)).unwrap(), Word::U32(0x6261_0000));
    refused(memory.sink(), Kind::NotSupported, "no write(2)");
    let (fd, _) = shared(&*endpoint);
    let mapping = Mapping::new(fd.as_fd(), 0, 4 << 20, true).unwrap();
    memory.resize(0).unwrap();
    refused(mapping.load(0, 4), Kind::Gone, "truncated");
}
