//! POSIX shared memory against the C library's own shm_open, mmap and ftruncate.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    ffi::CStr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use ipc_kernel::{
    Dict, Endpoint, Kind, Value,
    mechanism::{Adoption, Permissions},
    mechanisms,
    shape::{Memory, Word},
};

mod peer;
use peer::*;

const PROGRAM: &str = include_str!("peer/shm.c");

/// An object's name, unlinked at the end.
struct Name(String);

impl Name {
    fn new() -> Self {
        Self(format!("/{}", unique()))
    }

    fn address(&self) -> String {
        format!("posixshm:name={}", self.0)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/shm{}", self.0))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path()).or_else(|_| std::fs::remove_dir(self.path()));
    }
}

fn memory(endpoint: &dyn Endpoint) -> &dyn Memory {
    endpoint.memory().unwrap()
}

fn integer(endpoint: &dyn Endpoint, key: &str) -> i128 {
    endpoint.inspect().unwrap()[key].integer().unwrap()
}

fn listed(name: &Name) -> Option<Dict> {
    let row = mechanisms::by_name("posixshm").unwrap();
    let rows = row.objects().unwrap();
    assert!(rows.iter().flat_map(|row| row.keys()).all(|key| row.columns.iter().any(|c| c.key == key)));
    rows.into_iter().find(|row| row["name"].same(&name.0.as_str().into()))
}

/// Whom an fd goes to, asked in the order of the register as the engine does.
fn adopt(fd: impl Into<OwnedFd>) -> ipc_kernel::Result<Box<dyn Endpoint>> {
    let mut fd = fd.into();
    for mechanism in mechanisms::ALL {
        match (mechanism.adopt)(fd)? {
            Adoption::Taken(endpoint) => return Ok(endpoint),
            Adoption::Refused(refused) => fd = refused,
        }
    }
    panic!("nobody takes it")
}

#[test]
fn a_program_finds_what_we_made_and_we_find_what_it_made() {
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let ours = Name::new();
    let endpoint = create(&format!("{},size=8192,mode=0640", ours.address())).unwrap();
    assert_eq!(program.ask(&format!("open {} {} 0", ours.0, libc::O_RDWR)), "0");
    assert_eq!(program.ask("map 8192 1"), "0");
    memory(&*endpoint).store(4096, Word::U32(7)).unwrap();
    assert_eq!(program.ask("load 4096"), "7");
    assert_eq!(program.ask("add 4096 5"), "0");
    assert_eq!(memory(&*endpoint).load(4096, Word::U32(0)).unwrap(), Word::U32(12));
    memory(&*endpoint).write(8188, &3u32.to_ne_bytes()).unwrap();
    assert_eq!(program.ask("load 8188"), "3");
    assert_eq!(program.ask("truncate 12288"), "0");
    assert_eq!(memory(&*endpoint).size().unwrap(), 12_288, "a peer's resize is seen");

    let theirs = Name::new();
    assert_eq!(
        program.ask(&format!("open {} {} 0604", theirs.0, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)),
        "0"
    );
    let attached = attach(&theirs.address()).unwrap();
    assert_eq!(memory(&*attached).size().unwrap(), 0, "as it is before ftruncate(2)");
    assert_eq!(integer(&*attached, "mode"), 0o604);
    assert_eq!(program.ask("truncate 100"), "0");
    assert_eq!(program.ask("map 100 1"), "0");
    program.ask("store 96 77");
    assert_eq!(memory(&*attached).read(96, 4).unwrap(), 77u32.to_ne_bytes());
    attached.remove().unwrap();
    assert_eq!(program.ask(&format!("open {} {} 0", theirs.0, libc::O_RDONLY)), "ENOENT");
    assert_eq!(program.ask(&format!("unlink {}", ours.0)), "0");
    refused(endpoint.remove(), Kind::Gone, "removed already");
    assert!(endpoint.inspect().unwrap()["named"].same(&false.into()));
    assert_eq!(memory(&*endpoint).load(4096, Word::U32(0)).unwrap(), Word::U32(12), "it lives on");
}

/// Each errno of shm_open(3) that a name can bring about, there and here.
#[test]
fn names_are_those_of_shm_open() {
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let there = Name::new();
    let _object = create(&format!("{},size=1", there.address())).unwrap();
    let link = Name::new();
    std::os::unix::fs::symlink(there.path(), link.path()).unwrap();
    let directory = Name::new();
    std::fs::create_dir(directory.path()).unwrap();
    let longest = Name(format!("/{:n<255}", unique()));
    let too_long = format!("{}n", longest.0);
    let fresh = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    for (name, flags, errno, kind) in [
        (&*there.0, fresh, "EEXIST", Kind::Exists),
        (&link.0, fresh, "EEXIST", Kind::Exists),
        (&directory.0, fresh, "EEXIST", Kind::Exists),
        ("/no-such-object-here", libc::O_RDWR, "ENOENT", Kind::NotFound),
        (&link.0, libc::O_RDWR, "ELOOP", Kind::InvalidArgument),
        (&directory.0, libc::O_RDWR, "EINVAL", Kind::InvalidArgument),
        ("/", libc::O_RDWR, "EINVAL", Kind::InvalidArgument),
        ("/a/b", libc::O_RDWR, "EINVAL", Kind::InvalidArgument),
        ("/a/b", fresh, "EINVAL", Kind::InvalidArgument),
        (&longest.0, libc::O_RDWR, "ENOENT", Kind::NotFound),
        (&too_long, libc::O_RDWR, "ENAMETOOLONG", Kind::InvalidArgument),
        (&too_long, fresh, "ENAMETOOLONG", Kind::InvalidArgument),
    ] {
        assert_eq!(program.ask(&format!("open {name} {flags} 0600")), errno, "{name}");
        let here = if flags == fresh {
            create(&format!("posixshm:name={name},size=1")).map(drop)
        } else {
            attach(&format!("posixshm:name={name}")).map(drop)
        };
        assert_eq!(here.unwrap_err().kind, kind, "{name}");
    }
    let _object = create(&format!("{},size=1", longest.address())).unwrap();
    assert_eq!(program.ask(&format!("open {} {} 0", longest.0, libc::O_RDONLY)), "0", "the longest name");
    refused(create("posixshm:name=noslash,size=1"), Kind::InvalidArgument, "does not begin with '/'");
    refused(create("posixshm:name=/%00,size=1"), Kind::InvalidArgument, "without NUL");
    refused(create("posixshm:name=/..,size=1"), Kind::InvalidArgument, "name of a directory");
    refused(create("posixshm:name=/x"), Kind::InvalidArgument, "\"size\" is missing");
}

#[test]
fn sizes_from_nothing_to_too_much() {
    let name = Name::new();
    let endpoint = create(&format!("{},size=0", name.address())).unwrap();
    let memory = memory(&*endpoint);
    assert_eq!(memory.read(0, 0).unwrap(), b"");
    refused(memory.read(0, 1), Kind::InvalidArgument, "the memory has 0 bytes");
    refused(memory.load(0, Word::U8(0)), Kind::InvalidArgument, "the memory has 0 bytes");
    memory.resize(100_000).unwrap();
    assert!(integer(&*endpoint, "allocated") >= 100_000, "so that later stores find room");
    refused(memory.resize(u64::MAX), Kind::TooLarge, "18446744073709551615");
    assert!(memory.resize(i64::MAX as u64).is_err());
    assert_eq!(memory.size().unwrap(), 100_000);
    memory.resize(0).unwrap();
    assert_eq!(integer(&*endpoint, "allocated"), 0);
    let huge = Name::new();
    assert!(create(&format!("{},size={}", huge.address(), i64::MAX)).is_err());
    assert!(!huge.path().exists(), "what could not be made leaves no name behind");
    refused(create(&format!("{},size=-1", huge.address())), Kind::InvalidArgument, "number of bytes");
    refused(create(&format!("{},size=16777216T", huge.address())), Kind::InvalidArgument, "number of bytes");
}

#[test]
fn a_full_dev_shm_is_named_and_room_is_used_again() {
    // A mount namespace of this thread alone, with a /dev/shm of one MiB.
    let small = std::thread::spawn(|| {
        let mount = |what: &CStr, at: &CStr, flags, options: &CStr| {
            // SAFETY: mount(2) with texts that end in NUL; only this thread's namespace changes.
            unsafe { libc::mount(what.as_ptr(), at.as_ptr(), what.as_ptr(), flags, options.as_ptr().cast()) }
        };
        // SAFETY: unshare(2) without pointers; only this thread's view of the mounts changes.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return false;
        }
        assert_eq!(mount(c"none", c"/", libc::MS_PRIVATE | libc::MS_REC, c""), 0);
        assert_eq!(mount(c"tmpfs", c"/dev/shm", libc::MS_NOSUID, c"size=1M"), 0);
        let row = mechanisms::by_name("posixshm").unwrap();
        assert_eq!((row.limits)()["shm-size"].integer(), Some(1 << 20));
        let one = create("posixshm:name=/one,size=512K").unwrap();
        let free = (row.limits)()["shm-free"].integer().unwrap();
        assert!(free <= 512 << 10, "{free}");
        refused(create("posixshm:name=/two,size=768K"), Kind::LimitExceeded, "ENOSPC");
        refused(attach("posixshm:name=/two"), Kind::NotFound, "/dev/shm/two");
        refused(one.memory().unwrap().resize(2 << 20), Kind::LimitExceeded, "ENOSPC");
        one.remove().unwrap();
        refused(create("posixshm:name=/two,size=768K"), Kind::LimitExceeded, "ENOSPC");
        drop(one);
        create("posixshm:name=/two,size=768K").unwrap();
        true
    });
    if !small.join().unwrap() {
        eprintln!("SKIPPED: this user may not have a mount namespace");
    }
}

#[test]
fn truncation_by_a_program_is_an_error_and_never_a_crash() {
    let name = Name::new();
    let endpoint = create(&format!("{},size=8192", name.address())).unwrap();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    program.ask(&format!("open {} {} 0", name.0, libc::O_RDWR));
    let memory = memory(&*endpoint);
    program.tell("storm 50000 8192");
    let (mut whole, mut cut) = (0, 0);
    std::thread::scope(|scope| {
        let storm = scope.spawn(move || {
            program.line();
            program
        });
        while !storm.is_finished() {
            for result in [
                memory.read(0, 8192).map(drop),
                memory.write(4000, &[1; 200]),
                memory.load(4096, Word::U32(0)).map(drop),
                memory.fetch_add(4096, Word::F32(1.0)).map(drop),
                memory.compare_exchange(8, Word::I8(0), Word::I8(1)).map(drop),
            ] {
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
}

#[test]
fn read_only_memory_cannot_be_written_by_whoever_gets_it() {
    let name = Name::new();
    let endpoint = create(&format!("{},size=4096", name.address())).unwrap();
    memory(&*endpoint).write(0, b"ours").unwrap();
    let reader = endpoint.open(&options("posixshm", "access=read-only")).unwrap();
    assert_eq!(rustix::io::pwrite(&reader, b"x", 0), Err(rustix::io::Errno::BADF));
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a mapping at an address of the kernel's choice; it is refused.
    let mapped = unsafe { mmap(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED, &reader, 0) };
    assert_eq!(mapped.err(), Some(rustix::io::Errno::ACCESS));
    let attached = attach(&format!("{},access=read-only", name.address())).unwrap();
    assert_eq!(memory(&*attached).load(0, Word::U8(0)).unwrap(), Word::U8(b'o'));
    refused(memory(&*attached).store(0, Word::U8(0)), Kind::PermissionDenied, "for reading only");
    let writing = attached.open(&options("posixshm", "access=read-write")).map(drop);
    refused(writing, Kind::PermissionDenied, "for reading only");
    refused(memory(&*endpoint).seal(&["write".into()]), Kind::NotSupported, "only memfds can be sealed");
}

#[test]
fn adopts_objects_and_leaves_semaphores_and_other_files() {
    let name = Name::new();
    let endpoint = create(&format!("{},size=4096", name.address())).unwrap();
    let fd = endpoint.open(&options("posixshm", "")).unwrap();
    assert_eq!(adopt(fd).unwrap().address(), endpoint.address());
    let reader = std::fs::File::open(name.path()).unwrap();
    let adopted = adopt(reader).unwrap();
    assert_eq!(adopted.address().to_string(), format!("{},access=read-only", name.address()));
    let held = endpoint.open(&options("posixshm", "")).unwrap();
    endpoint.remove().unwrap();
    let adopted = adopt(held).unwrap();
    assert!(adopted.address().to_string().starts_with("mmap:inode="), "the name would lead elsewhere");
    assert_eq!(memory(&*adopted).size().unwrap(), 4096);

    let semaphore = create(&format!("posixsem:name={}", name.0)).unwrap();
    let fd = semaphore.open(&options("posixsem", "")).unwrap();
    assert_eq!(adopt(fd).unwrap().address(), semaphore.address());
    semaphore.remove().unwrap();
    let fake = Name(format!("/sem.{}", unique()));
    std::fs::write(fake.path(), [0; 31]).unwrap();
    let adopted = adopt(std::fs::File::open(fake.path()).unwrap()).unwrap();
    assert_eq!(adopted.address().scheme, "mmap", "a file that is no semaphore in spite of its name");
    let path = TemporaryPath::new();
    std::fs::write(&path.0, "x").unwrap();
    assert_eq!(adopt(std::fs::File::open(&path.0).unwrap()).unwrap().address().scheme, "mmap");
}

#[test]
fn removal_is_of_this_object_only() {
    let name = Name::new();
    let endpoint = create(&format!("{},size=1", name.address())).unwrap();
    endpoint.set_permissions(Permissions { mode: Some(0o644), ..Permissions::default() }).unwrap();
    assert_eq!(integer(&*endpoint, "mode"), 0o644);
    assert!(endpoint.inspect().unwrap()["named"].same(&true.into()));
    endpoint.remove().unwrap();
    let another = create(&format!("{},size=2", name.address())).unwrap();
    refused(endpoint.remove(), Kind::Gone, "another object has taken this name");
    assert!(endpoint.inspect().unwrap()["named"].same(&false.into()));
    another.remove().unwrap();
}

#[test]
fn the_list_is_what_is_in_dev_shm() {
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let name = Name::new();
    let endpoint = create(&format!("{},size=8192,mode=0640", name.address())).unwrap();
    program.ask(&format!("open {} {} 0", name.0, libc::O_RDWR));
    let holders = |program: &Peer| -> Vec<Dict> {
        let Value::Dicts(holders) = listed(&name).unwrap()["holders"].clone() else { panic!("dictionaries") };
        holders.into_iter().filter(|row| row["pid"].integer() == Some(program.pid().into())).collect()
    };
    assert!(
        holders(&program)
            .iter()
            .any(|row| row.contains_key("fd") && row["access"].same(&"read-write".into()))
    );
    program.ask("map 8192 0");
    program.ask("close");
    let mapped = holders(&program);
    assert!(mapped.len() == 1 && mapped[0].contains_key("mapped"), "{mapped:?}");
    let row = listed(&name).unwrap();
    let metadata = std::fs::metadata(name.path()).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(row["size"].integer(), Some(metadata.size().into()));
    assert_eq!(row["inode"].integer(), Some(metadata.ino().into()));
    assert_eq!(row["mode"].integer(), Some(0o640));
    assert_eq!(row["owner"].integer(), Some(metadata.uid().into()));
    assert!(row["address"].same(&endpoint.address().to_string().as_str().into()));
    assert!(row["stale"].same(&false.into()));
    drop(program);
    drop(endpoint);
    assert!(listed(&name).unwrap()["stale"].same(&true.into()), "nobody holds it any more");
    // All of it, and no semaphores.
    let sem = create(&format!("posixsem:name={}", name.0)).unwrap();
    let rows = mechanisms::by_name("posixshm").unwrap().objects().unwrap();
    assert!(!rows.iter().any(|row| row["name"].same(&format!("/sem.{}", &name.0[1..]).as_str().into())));
    sem.remove().unwrap();
    attach(&name.address()).unwrap().remove().unwrap();
    assert!(listed(&name).is_none());
}

/// A word in an object, changed by the program and by us at the same time.
#[test]
fn words_are_shared_with_programs() {
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let name = Name::new();
    let endpoint = create(&format!("{},size=4096", name.address())).unwrap();
    program.ask(&format!("open {} {} 0", name.0, libc::O_RDWR));
    program.ask("map 4096 1");
    program.tell("add 64 2000000");
    for _ in 0..2000 {
        memory(&*endpoint).fetch_add(64, Word::U32(1)).unwrap();
    }
    assert_eq!(program.line(), "0");
    assert_eq!(memory(&*endpoint).load(64, Word::U32(0)).unwrap(), Word::U32(2_002_000));
    let fd = endpoint.open(&options("posixshm", "")).unwrap();
    assert!(rustix::io::fcntl_getfd(fd.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}
