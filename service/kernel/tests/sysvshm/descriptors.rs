//! The file descriptor that a segment has in the kernel, and what its holders can do.

use super::*;

#[test]
fn a_segment_that_was_shrunk_is_gone_and_harmless() {
    let key = Key::new();
    let endpoint = create(&format!("{},size=16384", key.address())).unwrap();
    let file = match endpoint.open(&options("sysvshm", "access=read-write")) {
        Ok(file) => file,
        Err(error) => {
            assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
            assert!(error.text.contains("CAP_CHECKPOINT_RESTORE"), "{error}");
            eprintln!("SKIPPED: {error}");
            return;
        }
    };
    memory(&*endpoint).write(8192, b"here").unwrap();
    let mut bytes = [0; 4];
    assert_eq!(rustix::io::pread(&file, &mut bytes, 8192), Ok(4));
    assert_eq!(&bytes, b"here");
    rustix::fs::ftruncate(&file, 4096).unwrap();
    assert_eq!(memory(&*endpoint).read(0, 4096).unwrap(), [0; 4096]);
    refused(memory(&*endpoint).read(0, 16384), Kind::Gone, "truncated");
    refused(memory(&*endpoint).write(4090, &[1; 20]), Kind::Gone, "truncated");
    refused(memory(&*endpoint).load(8192, Word::U8(0)), Kind::Gone, "truncated");
    refused(memory(&*endpoint).fetch_add(16376, Word::F64(1.0)), Kind::Gone, "truncated");
    assert_eq!(integer(&*endpoint, "attached"), 0, "what was lost is detached, too");
    rustix::fs::ftruncate(&file, 0).unwrap();
    refused(memory(&*endpoint).read(0, 1), Kind::Gone, "");
    rustix::fs::ftruncate(&file, 1 << 30).unwrap();
    assert_eq!(memory(&*endpoint).size().unwrap(), 16384);
    refused(memory(&*endpoint).read(16384, 1), Kind::InvalidArgument, "the memory has 16384 bytes");
    memory(&*endpoint).store(16376, Word::U64(5)).unwrap();
    assert_eq!(integer(&*endpoint, "attached"), 0, "what was grown is detached, too");
    rustix::fs::ftruncate(&file, 16384).unwrap();
    memory(&*endpoint).store(8192, Word::U64(5)).unwrap();
    assert_eq!(memory(&*endpoint).load(8192, Word::U64(0)).unwrap(), Word::U64(5));

    // Shrunk and grown all the time.
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            for _ in 0..5000 {
                rustix::fs::ftruncate(&file, 0).unwrap();
                rustix::fs::ftruncate(&file, 16384).unwrap();
            }
        });
        while !storm.is_finished() {
            for result in [
                memory(&*endpoint).read(0, 16384).map(drop),
                memory(&*endpoint).write(0, &[1; 16384]),
                memory(&*endpoint).compare_exchange(8, Word::I8(1), Word::I8(2)).map(drop),
            ] {
                assert!(result.is_ok() || result.as_ref().unwrap_err().kind == Kind::Gone, "{result:?}");
            }
        }
    });
}

#[test]
fn file_descriptors_are_read_only_unless_asked_for() {
    let key = Key::new();
    let endpoint = create(&format!("{},size=4096", key.address())).unwrap();
    let Ok(reader) = endpoint.open(&options("sysvshm", "")) else {
        eprintln!("SKIPPED: the kernel gives this process no descriptor of a segment");
        return;
    };
    assert_eq!(rustix::io::pwrite(&reader, b"x", 0), Err(rustix::io::Errno::BADF));
    let only = attach(&format!("{},access=read-only", key.address())).unwrap();
    let writer = only.open(&options("sysvshm", "access=read-write")).map(drop);
    refused(writer, Kind::PermissionDenied, "for reading only");
    refused(memory(&*only).write(0, b"x"), Kind::PermissionDenied, "for reading only");
    only.open(&options("sysvshm", "")).unwrap();

    // What is handed over again is a file without a name, whoever may attach the segment.
    memory(&*endpoint).write(0, b"words").unwrap();
    let adopted = match (mechanisms::by_name("mmap").unwrap().adopt)(reader).unwrap() {
        Adoption::Taken(endpoint) => endpoint,
        Adoption::Refused(_) => panic!("refused"),
    };
    assert_eq!(memory(&*adopted).read(0, 5).unwrap(), b"words");
    assert!(memory(&*adopted).read_only());
    assert_eq!(
        adopted.address().to_string(),
        format!("mmap:inode={},access=read-only", integer(&*endpoint, "id"))
    );
}

/// Without the right to a descriptor: as another user, in a child of our own.
#[test]
#[ignore = "the child of relays_without_a_descriptor"]
fn child_without_capabilities() {
    // SAFETY: a system call without pointers.
    assert_eq!(unsafe { libc::setuid(65534) }, 0);
    let endpoint = create("sysvshm:key=private,size=3000000").unwrap();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        memory(&*endpoint).write(2_999_990, b"0123456789").unwrap();
        let opened = endpoint.open(&options("sysvshm", "")).map(drop);
        refused(opened, Kind::PermissionDenied, "CAP_CHECKPOINT_RESTORE");
        let source = memory(&*endpoint).source().unwrap();
        assert_eq!(source.kind, EndKind::File { offset: 0, length: 3_000_000 });
        let mut bytes = [0; 10];
        assert_eq!(rustix::io::pread(&source.fd, &mut bytes, 2_999_990), Ok(10));
        assert_eq!(&bytes, b"0123456789");
        refused(memory(&*endpoint).sink(), Kind::NotSupported, "use Write");
    }));
    endpoint.remove().unwrap();
    let large = create("sysvshm:key=private,size=65M").unwrap();
    let source = memory(&*large).source();
    large.remove().unwrap();
    refused(source, Kind::TooLarge, "67108864");
    assert!(done.is_ok());
}

#[test]
fn relays_without_a_descriptor() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to become another user");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "child_without_capabilities"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
