//! Memory: what is written is read, words are atomic, nothing crashes when memory goes away.

use std::{os::fd::AsFd, thread};

use ipc_kernel::{
    Endpoint, Kind, Result,
    guard::Mapping,
    mechanism::EndKind,
    shape::{Memory, Shape, Word},
};

use crate::{
    fixtures::{MEMORIES, MEMORY_SIZE},
    suite::{self, each, must_fail},
};

fn memory(endpoint: &dyn Endpoint) -> &dyn Memory {
    endpoint.memory().expect("the fixture makes memory")
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// One word of every type, not zero.
const WORDS: [Word; 10] = [
    Word::U8(200),
    Word::U16(60_000),
    Word::U32(4_000_000_000),
    Word::U64(1 << 63 | 5),
    Word::I8(-100),
    Word::I16(-30_000),
    Word::I32(-2_000_000_000),
    Word::I64(i64::MIN + 7),
    Word::F32(-1.5e30),
    Word::F64(-1.5e300),
];

#[track_caller]
fn must_name<T>(what: &str, numbers: [u64; 2], result: Result<T>) {
    let text = must_fail(what, Kind::InvalidArgument, result);
    for number in numbers {
        assert!(text.contains(&number.to_string()), "{what}: the error does not name {number}: {text}");
    }
}

#[test]
fn what_is_written_is_read() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let memory = memory(&*endpoint);
        assert_eq!(memory.size().expect("size"), MEMORY_SIZE);
        assert!(!memory.read_only());
        assert!(memory.read(0, MEMORY_SIZE as usize).expect("read").iter().all(|byte| *byte == 0));
        for (offset, length) in [(0, 1), (1, 3), (4095, 2), (4097, 4099), (MEMORY_SIZE - 7, 7)] {
            let data = bytes(length);
            memory.write(offset, &data).expect("write");
            assert_eq!(memory.read(offset, length).expect("read"), data, "{length} bytes at {offset}");
        }
        let whole = bytes(MEMORY_SIZE as usize);
        memory.write(0, &whole).expect("write");
        assert!(memory.read(0, whole.len()).expect("read") == whole, "the whole memory");
        memory.write(5, b"between").expect("write");
        assert_eq!(memory.read(4, 9).expect("read"), [&whole[4..5], b"between", &whole[12..13]].concat());
        memory.sync().expect("sync");
        assert!(!endpoint.inspect().expect("inspect").is_empty());
    });
}

#[test]
fn ranges_beyond_the_end_are_refused() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let memory = memory(&*endpoint);
        let size = MEMORY_SIZE;
        for (offset, length) in
            [(size - 3, 4), (size, 1), (size + 5000, 10), (0, size + 1), (u64::MAX - 1, 3)]
        {
            let what = format!("{length} bytes at {offset}");
            must_name(&format!("reading {what}"), [offset, size], memory.read(offset, length as usize));
            let data = vec![1; length as usize];
            must_name(&format!("writing {what}"), [offset, size], memory.write(offset, &data));
        }
        must_name("a word beyond the end", [size, size], memory.load(size, Word::U64(0)));
        must_name("a word beyond the end", [size, size], memory.store(size, Word::U8(1)));
        assert!(
            memory.read(0, size as usize).expect("read").iter().all(|byte| *byte == 0),
            "written in part"
        );
    });
}

#[test]
fn no_bytes_are_no_error() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        for offset in [0, 1, 4096, MEMORY_SIZE] {
            assert_eq!(memory(&*endpoint).read(offset, 0).expect("reading nothing"), b"");
            memory(&*endpoint).write(offset, b"").expect("writing nothing");
        }
    });
}

#[test]
fn words_are_atomic() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let memory = memory(&*endpoint);
        for word in WORDS {
            let zero = word.with_bits(0);
            for offset in [0, 8, 4096, MEMORY_SIZE - 8] {
                memory.store(offset, zero).expect("store");
                assert_eq!(memory.load(offset, zero).expect("load"), zero);
                memory.store(offset, word).expect("store");
                assert_eq!(memory.load(offset, zero).expect("load"), word);
                let width = word.width();
                let raw = memory.read(offset, width).expect("read");
                assert_eq!(raw, &word.bits().to_ne_bytes()[..width], "the bytes of {word:?}");
                let exchange = memory.compare_exchange(offset, zero, word).expect("compare_exchange");
                assert_eq!(exchange, (false, word), "exchanged although another value was there");
                let exchange = memory.compare_exchange(offset, word, zero).expect("compare_exchange");
                assert_eq!(exchange, (true, word));
                assert_eq!(memory.fetch_add(offset, word).expect("fetch_add"), zero);
                assert_eq!(memory.fetch_add(offset, word).expect("fetch_add"), word);
                assert_eq!(
                    memory.load(offset, zero).expect("load"),
                    word.wrapping_add(word),
                    "{word:?} twice"
                );
                memory.store(offset, zero).expect("store");
            }
        }
        assert!(memory.read(0, MEMORY_SIZE as usize).expect("read").iter().all(|byte| *byte == 0));
    });
}

#[test]
fn additions_from_everywhere_count() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let one = (row.make)(scratch);
        let other = (row.rules.other)(&*one);
        for zero in [Word::I8(0), Word::U32(0), Word::F32(0.0), Word::F64(0.0)] {
            let number = |n: u16| match zero {
                Word::F32(_) => Word::F32(n.into()),
                Word::F64(_) => Word::F64(n.into()),
                other => other.with_bits(n.into()),
            };
            memory(&*one).store(64, zero).expect("store");
            thread::scope(|scope| {
                for endpoint in [&one, &other, &one] {
                    scope.spawn(move || {
                        for _ in 0..300 {
                            memory(&**endpoint).fetch_add(64, number(1)).expect("fetch_add");
                        }
                    });
                }
            });
            assert_eq!(memory(&*one).load(64, zero).expect("load"), number(900));
        }
    });
}

#[test]
fn words_that_are_not_aligned_are_refused() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let memory = memory(&*endpoint);
        for word in WORDS.into_iter().filter(|word| word.width() > 1) {
            let offset = 4095 - 4095 % word.width() as u64 + 1;
            let numbers = [offset, word.width() as u64];
            must_name("load", numbers, memory.load(offset, word));
            must_name("store", numbers, memory.store(offset, word));
            must_name("compare_exchange", numbers, memory.compare_exchange(offset, word, word));
            must_name("fetch_add", numbers, memory.fetch_add(offset, word));
        }
    });
}

#[test]
fn endpoints_of_one_object_see_each_other() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let one = (row.make)(scratch);
        let other = (row.rules.other)(&*one);
        memory(&*one).write(3, b"from one").expect("write");
        assert_eq!(memory(&*other).read(3, 8).expect("read"), b"from one");
        memory(&*other).store(16, Word::U32(77)).expect("store");
        assert_eq!(memory(&*one).load(16, Word::U32(0)).expect("load"), Word::U32(77));
        drop(one);
        assert_eq!(memory(&*other).read(3, 8).expect("read"), b"from one", "after one endpoint was closed");
    });
}

#[test]
fn a_resize_is_seen_by_all() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let one = (row.make)(scratch);
        let other = (row.rules.other)(&*one);
        if !row.rules.resizes {
            let error = memory(&*one).resize(2 * MEMORY_SIZE).expect_err("resize must be refused");
            assert!(matches!(error.kind, Kind::NotSupported | Kind::InvalidArgument), "{error}");
            assert_eq!(memory(&*one).size().expect("size"), MEMORY_SIZE);
            return;
        }
        memory(&*one).write(0, b"kept").expect("write");
        memory(&*one).resize(2 * MEMORY_SIZE).expect("growing");
        assert_eq!(memory(&*other).size().expect("size"), 2 * MEMORY_SIZE);
        memory(&*other).write(2 * MEMORY_SIZE - 3, b"end").expect("writing into what is new");
        assert_eq!(memory(&*one).read(2 * MEMORY_SIZE - 3, 3).expect("read"), b"end");
        memory(&*one).resize(4096).expect("shrinking");
        assert_eq!(memory(&*other).size().expect("size"), 4096);
        assert!(memory(&*other).read(8192, 1).is_err(), "reading what was cut off");
        assert_eq!(memory(&*other).read(0, 4).expect("read"), b"kept");
        memory(&*one).resize(MEMORY_SIZE).expect("growing again");
        assert_eq!(
            memory(&*other).read(8192, 4).expect("read"),
            [0; 4],
            "what was cut off comes back as zeros"
        );
    });
}

#[test]
fn space_is_set_aside_and_given_back() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let memory = memory(&*endpoint);
        memory.write(0, &bytes(MEMORY_SIZE as usize)).expect("write");
        let mut expected = bytes(MEMORY_SIZE as usize);
        for (offset, length) in
            [(4096, 4096), (100, 8), (4000, 200), (8190, 5000), (MEMORY_SIZE - 1, 1), (7, 0)]
        {
            let range = offset as usize..(offset + length) as usize;
            match memory.punch_hole(offset, length) {
                Ok(()) => expected[range].fill(0),
                Err(error) if error.kind == Kind::NotSupported => {
                    eprintln!("SKIPPED: {} ({}): {error}", row.mechanism, row.variant);
                    return;
                }
                Err(error) => panic!("punching a hole of {length} bytes at {offset}: {error}"),
            }
            let found = memory.read(0, MEMORY_SIZE as usize).expect("read");
            assert!(found == expected, "{length} bytes at {offset}");
            memory.allocate(offset, length).expect("allocate");
            let found = memory.read(0, MEMORY_SIZE as usize).expect("read");
            assert!(found == expected, "allocating {length} bytes at {offset} has changed something");
        }
        let size = MEMORY_SIZE;
        must_name("allocating beyond the end", [size - 1, size], memory.allocate(size - 1, 2));
        must_name("a hole beyond the end", [u64::MAX, size], memory.punch_hole(u64::MAX, 2));
        let reader = (row.rules.read_only)(&*endpoint);
        let denied = Kind::PermissionDenied;
        must_fail("allocating", denied, reader.memory().expect("memory").allocate(0, 1));
        must_fail("punching a hole", denied, reader.memory().expect("memory").punch_hole(0, 1));
    });
}

/// The peer shrinks and grows the memory all the time: every access ends, with a value or with an
/// error that says so. (Without care, the kernel kills the process with SIGBUS.)
#[test]
fn truncation_by_a_peer_never_crashes() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        if !row.rules.resizes {
            return;
        }
        let one = (row.make)(scratch);
        let peer = (row.rules.other)(&*one);
        let must_be_told = |result: Result<()>| match result {
            Ok(()) => {}
            Err(error) => {
                assert!(
                    matches!(error.kind, Kind::Gone | Kind::InvalidArgument),
                    "{:?}: {error}",
                    error.kind
                );
            }
        };
        thread::scope(|scope| {
            let accesses = scope.spawn(|| {
                for n in 0..3000 {
                    let offset = n * 8 % MEMORY_SIZE;
                    let memory = memory(&*one);
                    must_be_told(memory.load(offset, Word::U64(0)).map(drop));
                    must_be_told(memory.store(offset, Word::U64(n)));
                    must_be_told(memory.fetch_add(offset, Word::U32(1)).map(drop));
                    must_be_told(memory.read(offset, 8).map(drop));
                    must_be_told(memory.write(offset, &n.to_ne_bytes()));
                    must_be_told(memory.punch_hole(offset, 8));
                }
            });
            while !accesses.is_finished() {
                memory(&*peer).resize(0).expect("shrinking");
                memory(&*peer).resize(MEMORY_SIZE).expect("growing");
            }
        });
        memory(&*peer).resize(MEMORY_SIZE).expect("growing");
        memory(&*one).store(0, Word::U64(5)).expect("the endpoint works again when the memory is back");
        assert_eq!(memory(&*peer).load(0, Word::U64(0)).expect("load"), Word::U64(5));
    });
}

#[test]
fn read_only_endpoints_refuse_writes() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let one = (row.make)(scratch);
        memory(&*one).write(0, &bytes(64)).expect("write");
        let reader = (row.rules.read_only)(&*one);
        let memory = memory(&*reader);
        assert!(memory.read_only());
        assert_eq!(memory.read(0, 64).expect("read"), bytes(64));
        assert_eq!(memory.load(0, Word::U8(0)).expect("load"), Word::U8(bytes(1)[0]));
        let denied = Kind::PermissionDenied;
        must_fail("write", denied, memory.write(0, b"x"));
        must_fail("store", denied, memory.store(0, Word::U32(1)));
        must_fail("compare_exchange", denied, memory.compare_exchange(0, Word::U32(0), Word::U32(1)));
        must_fail("fetch_add", denied, memory.fetch_add(0, Word::U32(1)));
        if row.rules.resizes {
            must_fail("resize", denied, memory.resize(1));
        }
        assert!(memory.sink().is_err(), "a relay cannot write into it");
        assert_eq!(memory.read(0, 64).expect("read"), bytes(64), "changed through a read-only endpoint");
    });
}

#[test]
fn an_opened_fd_is_the_same_memory() {
    each(Shape::Memory, MEMORIES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let fd = match suite::open(row.mechanism, &*endpoint, row.rules.open) {
            Err(error) if !row.rules.adopted && error.kind == Kind::PermissionDenied => {
                eprintln!("SKIPPED: {} ({}): {error}", row.mechanism, row.variant);
                return;
            }
            opened => opened.expect("Open"),
        };
        let flags = rustix::io::fcntl_getfd(&fd).expect("the flags of the fd");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "an fd without close-on-exec");
        let offset = row.rules.offset;
        let mapping = Mapping::new(fd.as_fd(), offset, 4096, false).expect("mapping the opened fd");
        memory(&*endpoint).store(32, Word::U32(0xdead_beef)).expect("store");
        assert_eq!(mapping.load(32, 4).expect("load"), 0xdead_beef);
        memory(&*endpoint).write(40, &7u64.to_ne_bytes()).expect("write");
        assert_eq!(mapping.load(40, 8).expect("load"), 7);

        let source = memory(&*endpoint).source().expect("the source of a relay");
        assert_eq!(source.kind, EndKind::File { offset, length: MEMORY_SIZE });
        let mut data = [0; 8];
        assert_eq!(rustix::io::pread(&source.fd, &mut data, offset + 40).expect("reading the source"), 8);
        assert_eq!(u64::from_ne_bytes(data), 7);
        let sink = memory(&*endpoint).sink().expect("the sink of a relay");
        rustix::io::pwrite(&sink.fd, b"relayed", offset + 100).expect("writing into the sink");
        assert_eq!(memory(&*endpoint).read(100, 7).expect("read"), b"relayed");
    });
}
