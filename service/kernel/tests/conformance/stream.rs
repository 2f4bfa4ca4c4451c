//! Streams: bytes arrive unchanged and in order, nothing blocks, ends are seen.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use ipc_kernel::{
    Attempt, Endpoint, Kind, Result,
    shape::{Direction, Shape, Stream},
};
use rustix::{fs::OFlags, io::FdFlags};

use crate::{
    driver::{finish, must_wait, wait},
    fixtures::{Row, STREAMS, StreamRules},
    making::{Ends, Shared},
    suite::{self, each, must_fail},
};

type Fixture = Row<StreamRules, Ends>;

/// More than any kernel buffers.
const ENOUGH: usize = 64 << 20;

fn stream(endpoint: &dyn Endpoint) -> &dyn Stream {
    endpoint.stream().expect("the fixture makes a stream")
}

fn read(endpoint: &dyn Endpoint, max: usize) -> Vec<u8> {
    let data = finish("reading", || stream(endpoint).read(max)).expect("reading");
    assert!(data.len() <= max, "read {} bytes, more than the {max} that were asked for", data.len());
    data
}

fn read_exactly(endpoint: &dyn Endpoint, length: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < length {
        let more = read(endpoint, (length - data.len()).min(70_000));
        assert!(!more.is_empty(), "end of stream after {} of {length} bytes", data.len());
        data.extend(more);
    }
    data
}

fn write_all(endpoint: &dyn Endpoint, data: &[u8]) {
    let mut rest = data;
    while !rest.is_empty() {
        let written = finish("writing", || stream(endpoint).write(rest)).expect("writing");
        assert!((1..=rest.len()).contains(&written), "wrote {written} of {} bytes", rest.len());
        rest = &rest[written..];
    }
}

/// Bytes that tell their position.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[track_caller]
fn must_be_pattern(data: &[u8], from: usize) {
    let wrong = data.iter().zip(pattern(from, data.len())).position(|(found, expected)| *found != expected);
    assert_eq!(wrong, None, "a wrong byte, counted from byte {from}");
}

/// Writes until it would have to wait; says how many bytes went in.
fn fill(endpoint: &dyn Endpoint, from: usize) -> usize {
    let mut total = 0;
    while total < ENOUGH {
        match stream(endpoint).write(&pattern(from + total, 50_000)).expect("writing") {
            Attempt::Done(written) => total += written,
            Attempt::Wait(_) => return total,
        }
    }
    panic!("{ENOUGH} bytes went in although nobody reads")
}

/// The reader goes, as seen from the writer.
fn drop_reader(ends: Ends) -> Shared {
    if ends.are_one() {
        stream(&*ends.reader).shutdown(Direction::Read).expect("shutting the reading end down");
    }
    ends.writer
}

#[track_caller]
fn must_be_end(what: &str, endpoint: &dyn Endpoint) {
    assert_eq!(read(endpoint, 10), b"", "{what}: must be the end of the stream");
    if stream(endpoint).continues() {
        must_wait("reading after an end of stream that continues", stream(endpoint).read(10));
    } else {
        assert_eq!(read(endpoint, 10), b"", "{what}: an end of stream stays");
    }
}

fn open(row: &Fixture, endpoint: &dyn Endpoint, options: &str) -> OwnedFd {
    suite::open(row.mechanism, endpoint, options).expect("Open")
}

fn open_and_keep(row: &Fixture, endpoint: &dyn Endpoint, options: &str) -> OwnedFd {
    open(row, endpoint, &format!("{options}{}", row.rules.keep))
}

#[track_caller]
fn must_close_on_exec(fd: impl AsFd) {
    let flags = rustix::io::fcntl_getfd(fd).expect("the flags of an fd");
    assert!(flags.contains(FdFlags::CLOEXEC), "an fd without close-on-exec");
}

#[test]
fn bytes_arrive_unchanged_and_in_order() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        for length in [1, 2, 100, 4095, 4096, 4097, 65_536, 300 * 1024] {
            let flow = |from: &dyn Endpoint, to: &dyn Endpoint| {
                let data = pattern(length, length);
                let received = thread::scope(|scope| {
                    scope.spawn(|| write_all(from, &data));
                    read_exactly(to, length)
                });
                must_be_pattern(&received, length);
            };
            flow(&*ends.writer, &*ends.reader);
            if row.rules.duplex {
                flow(&*ends.reader, &*ends.writer);
            }
        }
    });
}

#[test]
fn an_empty_stream_waits() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        let readiness = must_wait("reading an empty stream", stream(&*ends.reader).read(100));
        write_all(&*ends.writer, b"x");
        assert!(wait(readiness, crate::driver::PATIENCE), "the readiness must come with a byte");
        assert_eq!(read(&*ends.reader, 100), b"x");
        must_wait("reading what was read", stream(&*ends.reader).read(100));
    });
}

#[test]
fn a_full_stream_waits_and_goes_on() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        let _ = stream(&*ends.reader).read(1);
        write_all(&*ends.writer, &pattern(0, 1));
        let total = 1 + fill(&*ends.writer, 1);
        let readiness = must_wait("writing into a full stream", stream(&*ends.writer).write(b"x"));
        let data = read_exactly(&*ends.reader, total);
        must_be_pattern(&data, 0);
        assert!(wait(readiness, crate::driver::PATIENCE), "the readiness must come with room");
        let rest = pattern(total, 100_000);
        let received = thread::scope(|scope| {
            scope.spawn(|| write_all(&*ends.writer, &rest));
            read_exactly(&*ends.reader, rest.len())
        });
        must_be_pattern(&received, total);
        must_wait("reading when all was read", stream(&*ends.reader).read(100));
    });
}

#[test]
fn a_shut_down_writer_is_an_end_of_stream() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        write_all(&*ends.writer, b"last");
        stream(&*ends.writer).shutdown(Direction::Write).expect("shutdown");
        must_fail("writing after shutdown", Kind::Closed, stream(&*ends.writer).write(b"more"));
        assert_eq!(read_exactly(&*ends.reader, 4), b"last", "what was written before the end is read");
        if row.rules.ends {
            must_be_end("after shutdown of the writer", &*ends.reader);
        }
        if row.rules.duplex {
            write_all(&*ends.reader, b"answer");
            assert_eq!(read_exactly(&*ends.writer, 6), b"answer", "the other direction stays open");
        }
    });
}

#[test]
fn a_writer_that_went_is_an_end_of_stream() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        let fd = open(row, &*ends.writer, row.rules.open_writer);
        let reader = ends.reader;
        drop(ends.writer);
        rustix::io::write(&fd, b"last").expect("writing into the opened end");
        assert_eq!(read_exactly(&*reader, 4), b"last");
        must_wait("reading while the caller holds the end", stream(&*reader).read(10));
        drop(fd);
        if row.rules.ends {
            must_be_end("after the caller closed the writing end", &*reader);
        }
    });
}

#[test]
fn writing_without_reader_is_closed() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        write_all(&*ends.writer, b"x");
        read_exactly(&*ends.reader, 1);
        let writer = drop_reader(ends);
        // A peer's absence may be noticed only with the answer to the first bytes.
        let error = loop {
            match finish("writing to a reader that went", || stream(&*writer).write(b"x")) {
                Ok(_) => thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, Kind::Closed, "{error}");
    });
}

#[test]
fn shutting_down_twice_is_harmless() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        for first in [Direction::Read, Direction::Write, Direction::Both] {
            let ends = (row.make)(scratch);
            for direction in [first, first, Direction::Both, Direction::Both] {
                for end in [&ends.writer, &ends.reader] {
                    let done = stream(&**end).shutdown(direction);
                    assert!(done.is_ok(), "shutdown({direction:?}) after {first:?}: {done:?}");
                }
            }
            match stream(&*ends.reader).read(10) {
                Ok(Attempt::Done(data)) => assert_eq!(data, b"", "data after shutdown"),
                other => drop(must_fail("reading after shutdown", Kind::Closed, other)),
            }
            must_fail("writing after shutdown", Kind::Closed, stream(&*ends.writer).write(b"x"));
        }
    });
}

#[test]
fn a_read_takes_at_most_what_was_asked_for() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        write_all(&*ends.writer, &pattern(0, 1000));
        let mut position = 0;
        for max in [1, 10, 500, 488] {
            let data = read(&*ends.reader, max);
            assert_eq!(data.len(), max, "a read of {max} bytes where more wait");
            must_be_pattern(&data, position);
            position += max;
        }
        must_be_pattern(&read(&*ends.reader, 16 << 20), position);
    });
}

#[test]
fn concurrent_readers_share_the_bytes() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        const TOTAL: usize = 256 * 1024;
        let ends = (row.make)(scratch);
        let received = AtomicUsize::new(0);
        let inspected = AtomicUsize::new(0);
        let count = |data: &[u8]| {
            let mut histogram = [0usize; 256];
            data.iter().for_each(|byte| histogram[usize::from(*byte)] += 1);
            histogram
        };
        let take = || -> Result<Vec<u8>> {
            let mut mine = Vec::new();
            while received.load(Ordering::SeqCst) < TOTAL {
                match stream(&*ends.reader).read(3001)? {
                    Attempt::Done(data) => {
                        assert!(!data.is_empty(), "end of stream while the writer is there");
                        received.fetch_add(data.len(), Ordering::SeqCst);
                        mine.extend(data);
                    }
                    // Another reader may take the last byte: look again now and then.
                    Attempt::Wait(readiness) => drop(wait(readiness, Duration::from_millis(20))),
                }
            }
            Ok(mine)
        };
        let all: Vec<u8> = thread::scope(|scope| {
            let readers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            scope.spawn(|| write_all(&*ends.writer, &pattern(0, TOTAL)));
            while received.load(Ordering::SeqCst) < TOTAL && !readers.iter().any(|r| r.is_finished()) {
                for end in [&ends.reader, &ends.writer] {
                    assert!(!end.inspect().expect("inspect meanwhile").is_empty());
                }
                inspected.fetch_add(1, Ordering::Relaxed);
            }
            readers.into_iter().flat_map(|reader| reader.join().expect("a reader").expect("read")).collect()
        });
        assert_eq!(all.len(), TOTAL);
        assert!(count(&all) == count(&pattern(0, TOTAL)), "bytes were lost or read twice");
    });
}

#[test]
fn data_flows_through_opened_ends() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        let fd = open_and_keep(row, &*ends.reader, row.rules.open_reader);
        must_close_on_exec(&fd);
        write_all(&*ends.writer, b"from the endpoint");
        let mut buffer = [0; 100];
        let length = rustix::io::read(&fd, &mut buffer).expect("reading from the opened end");
        assert_eq!(&buffer[..length], b"from the endpoint");

        let ends = (row.make)(scratch);
        let fd = open_and_keep(row, &*ends.writer, row.rules.open_writer);
        must_close_on_exec(&fd);
        rustix::io::write(&fd, b"to the endpoint").expect("writing into the opened end");
        assert_eq!(read_exactly(&*ends.reader, 15), b"to the endpoint");
        // The endpoint still writes itself.
        write_all(&*ends.writer, b"!");
        assert_eq!(read_exactly(&*ends.reader, 1), b"!");
    });
}

#[test]
fn a_callers_flags_do_not_make_the_service_block() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        let _ = stream(&*ends.reader).read(1);
        let reading = open_and_keep(row, &*ends.reader, row.rules.open_reader);
        let writing = open_and_keep(row, &*ends.writer, row.rules.open_writer);
        for fd in [&reading, &writing] {
            let flags = rustix::fs::fcntl_getfl(fd).expect("the flags of the opened end");
            rustix::fs::fcntl_setfl(fd, flags - OFlags::NONBLOCK).expect("making it blocking");
        }
        must_wait("reading an empty stream", stream(&*ends.reader).read(10));
        let total = fill(&*ends.writer, 0);
        must_be_pattern(&read_exactly(&*ends.reader, total), 0);
        must_wait("reading an emptied stream", stream(&*ends.reader).read(10));
    });
}

#[test]
fn a_relay_gets_ends_that_work() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        write_all(&*ends.writer, b"out");
        let source = finish("the source", || stream(&*ends.reader).source()).expect("source");
        must_close_on_exec(&source.fd);
        let mut buffer = [0; 10];
        let length = rustix::io::read(&source.fd, &mut buffer).expect("reading from the source");
        assert_eq!(&buffer[..length], b"out");
        let sink = finish("the sink", || stream(&*ends.writer).sink()).expect("sink");
        must_close_on_exec(&sink.fd);
        rustix::io::write(&sink.fd, b"in").expect("writing into the sink");
        assert_eq!(read_exactly(&*ends.reader, 2), b"in");
    });
}

#[test]
fn the_depth_is_what_can_be_read() {
    each(Shape::Stream, STREAMS, |row, scratch| {
        let ends = (row.make)(scratch);
        // Whoever reads a FIFO holds an end of it from then on.
        let readiness = must_wait("reading an empty stream", stream(&*ends.reader).read(100));
        assert_eq!(stream(&*ends.reader).depth().expect("of an empty stream"), 0);
        write_all(&*ends.writer, &pattern(0, 1000));
        assert!(wait(readiness, crate::driver::PATIENCE), "the readiness must come with bytes");
        for (left, read) in [(1000, 300), (700, 699), (1, 1)] {
            assert_eq!(stream(&*ends.reader).depth().expect("the depth"), left);
            read_exactly(&*ends.reader, read);
        }
        assert_eq!(stream(&*ends.reader).depth().expect("of what was read"), 0);
    });
}
