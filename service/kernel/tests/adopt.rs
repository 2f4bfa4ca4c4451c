//! Memory that was made by others, of every kind that mmap(2) knows, and with every trap that its giver can set: seals,
//! truncation, flags, huge pages, and memory that nobody has a descriptor of.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use ipc_kernel::{
    Endpoint, Kind,
    mechanism::Adoption,
    mechanisms,
    shape::{Memory, Word},
};
use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
};

mod peer;
use peer::*;

fn adopt(fd: impl Into<OwnedFd>) -> ipc_kernel::Result<Box<dyn Endpoint>> {
    match (mechanisms::by_name("mmap").unwrap().adopt)(fd.into())? {
        Adoption::Taken(endpoint) => Ok(endpoint),
        Adoption::Refused(_) => panic!("refused"),
    }
}

/// A memfd as its giver makes it; he keeps the one, we get the other.
fn foreign(size: u64, flags: MemfdFlags) -> Result<(OwnedFd, OwnedFd), Errno> {
    let file = rustix::fs::memfd_create("foreign", flags | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, size)?;
    let given = file.try_clone().map_err(|_| Errno::MFILE)?;
    Ok((file, given))
}

fn memory(endpoint: &dyn Endpoint) -> &dyn Memory {
    endpoint.memory().unwrap()
}

#[test]
fn sealed_against_writing() {
    let (giver, given) = foreign(8192, MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&giver, b"sealed", 0).unwrap();
    rustix::fs::fcntl_add_seals(&giver, SealFlags::WRITE | SealFlags::SHRINK).unwrap();
    let adopted = adopt(given).unwrap();
    let memory = memory(&*adopted);
    assert!(memory.read_only());
    assert_eq!(memory.seals().iter().filter(|seal| ["write", "shrink"].contains(&seal.as_str())).count(), 2);
    assert_eq!(memory.read(0, 6).unwrap(), b"sealed");
    assert_eq!(memory.load(0, Word::I8(0)).unwrap(), Word::I8(b's' as i8));
    for result in [
        memory.write(0, b"x"),
        memory.store(0, Word::F32(1.0)),
        memory.fetch_add(0, Word::I8(1)).map(drop),
        memory.compare_exchange(0, Word::U8(0), Word::U8(1)).map(drop),
        memory.punch_hole(0, 1),
        memory.sink().map(drop),
    ] {
        refused(result, Kind::PermissionDenied, "sealed against writing (write)");
    }
    refused(memory.resize(4096), Kind::PermissionDenied, "F_SEAL_SHRINK");
    assert_eq!(memory.read(0, 6).unwrap(), b"sealed");
    // The giver cannot seal it against us while we would map it: nothing of ours stays mapped.
    rustix::fs::fcntl_add_seals(&giver, SealFlags::GROW | SealFlags::SEAL).unwrap();
}

/// Sealed for those who map it later; the giver's older mapping may still change it.
#[test]
fn sealed_against_future_writing() {
    let (giver, given) = foreign(4096, MemfdFlags::CLOEXEC).unwrap();
    let mapping = ipc_kernel::guard::Mapping::new(giver.as_fd(), 0, 4096, true).unwrap();
    rustix::fs::fcntl_add_seals(&giver, SealFlags::FUTURE_WRITE).unwrap();
    let adopted = adopt(given).unwrap();
    refused(memory(&*adopted).store(0, Word::U32(1)), Kind::PermissionDenied, "future-write");
    mapping.swap(0, 4, 7).unwrap();
    assert_eq!(memory(&*adopted).load(0, Word::U32(0)).unwrap(), Word::U32(7));
}

/// Taken without a seal against shrinking, as anything can be: its giver cuts it off all the time.
#[test]
fn shrunk_by_its_giver() {
    let (giver, given) = foreign(16384, MemfdFlags::CLOEXEC).unwrap();
    let adopted: Arc<dyn Endpoint> = Arc::from(adopt(given).unwrap());
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            for _ in 0..20_000 {
                rustix::fs::ftruncate(&giver, 0).unwrap();
                rustix::fs::ftruncate(&giver, 16384).unwrap();
            }
        });
        while !storm.is_finished() {
            let memory = memory(&*adopted);
            for result in [
                memory.read(8000, 8000).map(drop),
                memory.write(12_000, &[1; 4000]),
                memory.load(12_288, Word::I8(0)).map(drop),
                memory.fetch_add(16_376, Word::F64(1.0)).map(drop),
                memory.fetch_add(4096, Word::F32(1.0)).map(drop),
                memory.allocate(0, 16384),
                memory.punch_hole(4096, 8192),
            ] {
                if let Err(error) = result {
                    assert!(matches!(error.kind, Kind::Gone | Kind::InvalidArgument), "{error}");
                }
            }
        }
    });
    rustix::fs::ftruncate(&giver, 16384).unwrap();
    memory(&*adopted).store(16_376, Word::U64(5)).unwrap();
    assert_eq!(memory(&*adopted).size().unwrap(), 16384);
}

#[test]
fn huge_pages_of_others() {
    let (giver, given) =
        match foreign(4 << 20, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
            Ok(made) => made,
            Err(errno) => {
                eprintln!("SKIPPED: no memfd of huge pages: {errno}");
                return;
            }
        };
    let adopted = adopt(given).unwrap();
    let memory = memory(&*adopted);
    assert_eq!(memory.size().unwrap(), 4 << 20);
    refused(memory.resize(4096), Kind::InvalidArgument, "multiple of 2097152");
    // Whether or not a page is free for it, nothing crashes.
    match memory.store(2 << 20, Word::U32(7)) {
        Ok(()) => {
            assert_eq!(memory.load(2 << 20, Word::U32(0)).unwrap(), Word::U32(7));
            memory.punch_hole(2 << 20, 2 << 20).unwrap();
            assert_eq!(memory.load(2 << 20, Word::U32(0)).unwrap(), Word::U32(0));
        }
        Err(error) => assert_eq!(error.kind, Kind::LimitExceeded, "{error}"),
    }
    rustix::fs::ftruncate(&giver, 0).unwrap();
    refused(memory.load(0, Word::U32(0)), Kind::InvalidArgument, "the memory has 0 bytes");
}

/// Memory that no process has a descriptor of: anonymous and shared, by its address in the process.
#[test]
fn what_a_process_shares_at_an_address() {
    let Some(mut program) = Peer::start(
        "import ctypes,mmap,sys\nm=mmap.mmap(-1,8192)\np=mmap.mmap(-1,8192,flags=mmap.MAP_PRIVATE)\n\
         at=lambda x:ctypes.addressof(ctypes.c_char.from_buffer(x))\nprint('ready',flush=True)\n\
         for line in sys.stdin:\n\
         \x20 w=line.split()\n\
         \x20 print({'shared':lambda:at(m),'private':lambda:at(p),'read':lambda:m[4096:4100].hex(),\n\
         \x20   'write':lambda:m.__setitem__(slice(0,4),b'abcd')}[w[0]](),flush=True)",
        &[],
    ) else {
        return;
    };
    let shared: u64 = program.ask("shared").parse().unwrap();
    let at = |address: u64| format!("mmap:pid={},address={address:#x}", program.pid());
    let opened = attach(&at(shared + 5000));
    let private = program.ask("private").parse().unwrap();
    let at = |address: u64| format!("mmap:pid={},address={address:#x}", program.pid());
    refused(attach(&at(private)), Kind::InvalidArgument, "MAP_PRIVATE");
    refused(attach(&at(0)), Kind::NotFound, "nothing is mapped there");
    refused(attach("mmap:pid=2147483647,address=1"), Kind::NotFound, "2147483647");
    refused(attach(&format!("{},fd=1", at(0))), Kind::InvalidArgument, "needs one of");
    let endpoint = match opened {
        Ok(endpoint) => endpoint,
        Err(error) => {
            assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
            assert!(error.text.contains("CAP_CHECKPOINT_RESTORE"), "{error}");
            eprintln!("SKIPPED: {error}");
            return;
        }
    };
    program.ask("write");
    assert_eq!(memory(&*endpoint).read(0, 4).unwrap(), b"abcd");
    memory(&*endpoint).write(4096, &[1, 2, 3, 4]).unwrap();
    assert_eq!(program.ask("read"), "01020304");
    let again = attach(&endpoint.address().to_string()).unwrap();
    assert_eq!(memory(&*again).read(0, 4).unwrap(), b"abcd", "found by what we hold");
    assert!(endpoint.open(&options("mmap", "access=read-only")).unwrap().as_raw_fd() > 2);
}
