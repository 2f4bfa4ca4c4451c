//! Messages: borders are kept, nothing is lost or sent in part, file descriptors pass or not.

use std::{
    os::fd::AsFd,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ipc_kernel::{
    Attempt, Dict, Endpoint, Fd, Kind, Result, Value,
    blocked::Sent,
    shape::{Message, Messages, Outgoing, Shape},
};
use rustix::{io::FdFlags, pipe::PipeFlags};

use crate::{
    driver::{PATIENCE, finish, must_wait, wait},
    fixtures::MESSAGES,
    making::{Ends, Shared},
    suite::{each, must_fail},
};

/// More than any kernel queues.
const ENOUGH: usize = 1_000_000;

fn messages(endpoint: &dyn Endpoint) -> &dyn Messages {
    endpoint.messages().expect("the fixture makes messages")
}

fn attempt(endpoint: &dyn Endpoint, data: &[u8], sent: &Sent) -> Result<Attempt<()>> {
    messages(endpoint).send(Outgoing { data, attributes: &Dict::new(), fds: &[], sent })
}

fn try_send(endpoint: &dyn Endpoint, data: &[u8]) -> Result<Attempt<()>> {
    attempt(endpoint, data, &Sent::default())
}

fn send(endpoint: &dyn Endpoint, data: &[u8]) {
    let sent = Sent::default();
    finish("sending", || attempt(endpoint, data, &sent)).expect("sending");
}

fn try_receive(endpoint: &dyn Endpoint) -> Result<Attempt<Message>> {
    messages(endpoint).receive(&Dict::new())
}

fn receive(endpoint: &dyn Endpoint) -> Vec<u8> {
    finish("receiving", || try_receive(endpoint)).expect("receiving").data
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Nothing waits at the reader, and what comes next is what is sent next.
#[track_caller]
fn must_be_empty(what: &str, ends: &Ends) {
    must_wait(what, try_receive(&*ends.reader));
    send(&*ends.writer, b"next");
    assert_eq!(receive(&*ends.reader), b"next", "{what}");
}

fn drop_writer(ends: Ends) -> Shared {
    if ends.are_one() {
        // An endpoint that holds both ends lets go of one by handing it over.
        let fd = crate::suite::open(mechanism_of(&*ends.writer), &*ends.writer, "end=write");
        drop(fd.expect("Open"));
    }
    ends.reader
}

fn mechanism_of(endpoint: &dyn Endpoint) -> &'static str {
    crate::REGISTER.by_scheme(&endpoint.address().scheme).expect("its own scheme").name
}

#[test]
fn borders_are_kept() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        let ends = (row.make)(scratch);
        let max = messages(&*ends.writer).max_message_size() as usize;
        let mut directions = vec![(&ends.writer, &ends.reader)];
        if row.rules.duplex {
            directions.push((&ends.reader, &ends.writer));
        }
        for (from, to) in directions {
            for length in [1, 2, 100, 4096, max].into_iter().filter(|length| *length <= max) {
                send(&**from, &bytes(length));
                assert!(receive(&**to) == bytes(length), "a message of {length} bytes came out changed");
            }
            for text in ["one", "two", "three"] {
                send(&**from, text.as_bytes());
            }
            for text in ["one", "two", "three"] {
                assert_eq!(receive(&**to), text.as_bytes(), "messages must not merge");
            }
        }
    });
}

#[test]
fn empty_messages_pass_or_are_refused() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        let ends = (row.make)(scratch);
        if row.rules.empty {
            send(&*ends.writer, b"");
            send(&*ends.writer, b"after");
            assert_eq!(receive(&*ends.reader), b"");
            assert_eq!(receive(&*ends.reader), b"after");
        } else {
            let error = try_send(&*ends.writer, b"").expect_err("an empty message must be refused");
            assert!(matches!(error.kind, Kind::NotSupported | Kind::InvalidArgument), "{error}");
        }
        must_be_empty("after an empty message", &ends);
    });
}

#[test]
fn a_message_too_large_is_refused_whole() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        let ends = (row.make)(scratch);
        let max = messages(&*ends.writer).max_message_size() as usize;
        for length in [max + 1, 2 * max + 100] {
            let text =
                must_fail("a message too large", Kind::TooLarge, try_send(&*ends.writer, &bytes(length)));
            assert!(text.contains(&max.to_string()), "the error must name the limit, {max}: {text}");
        }
        must_be_empty("after a message too large", &ends);
    });
}

#[test]
fn a_full_queue_waits_and_loses_nothing() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        if !row.rules.waits_when_full {
            return;
        }
        let ends = (row.make)(scratch);
        let numbered = |n: usize| format!("{n:0500}").into_bytes();
        let (mut sent, waiting) = (0, Sent::default());
        let readiness = loop {
            assert!(sent < ENOUGH, "{ENOUGH} messages went in although nobody receives");
            match attempt(&*ends.writer, &numbered(sent), &waiting).expect("sending") {
                Attempt::Done(()) => sent += 1,
                Attempt::Wait(readiness) => break readiness,
            }
        };
        assert!(sent > 0, "not even one message fits");
        for n in 0..sent {
            assert_eq!(receive(&*ends.reader), numbered(n), "message {n} of {sent}");
        }
        assert!(wait(readiness, PATIENCE), "the readiness must come with room");
        let last = attempt(&*ends.writer, &numbered(sent), &waiting).expect("sending");
        assert!(matches!(last, Attempt::Done(())), "there is room, or the wait has sent it");
        assert_eq!(receive(&*ends.reader), numbered(sent), "the message that had to wait, once");
        must_be_empty("after all was received", &ends);
    });
}

#[test]
fn peek_leaves_the_message() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        let ends = (row.make)(scratch);
        let peek = || messages(&*ends.reader).peek(&Dict::new());
        if !row.rules.peek {
            must_fail("peek", Kind::NotSupported, peek());
            return;
        }
        must_wait("peeking at nothing", peek());
        send(&*ends.writer, b"first");
        send(&*ends.writer, b"second");
        for _ in 0..2 {
            assert_eq!(finish("peeking", peek).expect("peek").data, b"first");
        }
        assert_eq!(receive(&*ends.reader), b"first");
        assert_eq!(finish("peeking", peek).expect("peek").data, b"second");
        assert_eq!(receive(&*ends.reader), b"second");
        must_wait("peeking when all was received", peek());
    });
}

#[test]
fn arrival_takes_nothing() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        let ends = (row.make)(scratch);
        let arrival = || messages(&*ends.reader).arrival();
        let readiness = must_wait("the arrival of nothing", arrival());
        send(&*ends.writer, b"here");
        assert!(wait(readiness, PATIENCE), "the readiness must come with a message");
        for _ in 0..2 {
            finish("the arrival", arrival).expect("arrival");
        }
        if let Some(depth) = messages(&*ends.reader).depth() {
            assert_eq!(depth, 1, "the depth with one message");
        }
        assert_eq!(receive(&*ends.reader), b"here");
        must_wait("the arrival when all was received", arrival());
    });
}

#[test]
fn unknown_attributes_are_named() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        let ends = (row.make)(scratch);
        let mut unknown = Dict::new();
        unknown.insert("no-such-key".into(), Value::U32(1));
        let message = Outgoing { data: b"x", attributes: &unknown, fds: &[], sent: &Sent::default() };
        let sent = messages(&*ends.writer).send(message);
        let text = must_fail("an unknown attribute", Kind::InvalidArgument, sent);
        assert!(text.contains("no-such-key"), "the error does not name the attribute: {text}");
        must_be_empty("after an unknown attribute", &ends);

        send(&*ends.writer, b"kept");
        let text = must_fail(
            "an unknown selector",
            Kind::InvalidArgument,
            messages(&*ends.reader).receive(&unknown),
        );
        assert!(text.contains("no-such-key"), "the error does not name the selector: {text}");
        assert_eq!(receive(&*ends.reader), b"kept", "a refused receive takes nothing");
    });
}

#[test]
fn file_descriptors_pass_or_are_refused() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        let ends = (row.make)(scratch);
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let fds = [Fd::from(theirs)];
        let message =
            Outgoing { data: b"take this", attributes: &Dict::new(), fds: &fds, sent: &Sent::default() };
        let send = || messages(&*ends.writer).send(message);
        if !row.rules.fds {
            must_fail("sending a file descriptor", Kind::NotSupported, send());
            must_be_empty("after a message that was refused", &ends);
            return;
        }
        finish("sending", send).expect("sending");
        drop(fds);
        if row.rules.peek {
            let peek = || messages(&*ends.reader).peek(&Dict::new());
            assert!(finish("peeking", peek).expect("peek").fds.is_empty(), "peek passes no fds");
        }
        let received = finish("receiving", || try_receive(&*ends.reader)).expect("receiving");
        assert_eq!(received.data, b"take this");
        let [fd] = &received.fds[..] else { panic!("{} fds came instead of one", received.fds.len()) };
        let flags = rustix::io::fcntl_getfd(fd).expect("the flags of the fd");
        assert!(flags.contains(FdFlags::CLOEXEC), "a received fd without close-on-exec");
        rustix::io::write(fd, b"through it").expect("writing through the received fd");
        let mut buffer = [0; 20];
        let length = rustix::io::read(&ours, &mut buffer).expect("reading at the other end");
        assert_eq!(&buffer[..length], b"through it");
        drop(received);
        let length = rustix::io::read(ours.as_fd(), &mut buffer).expect("reading at the other end");
        assert_eq!(length, 0, "somebody kept a copy of the fd");
    });
}

#[test]
fn a_sender_that_went_is_the_end() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        if !row.rules.ends {
            return;
        }
        let ends = (row.make)(scratch);
        send(&*ends.writer, b"last");
        let reader = drop_writer(ends);
        assert_eq!(receive(&*reader), b"last", "what was sent before the end is received");
        finish("the arrival of the end", || messages(&*reader).arrival()).expect("arrival");
        for _ in 0..2 {
            must_fail("receiving after the end", Kind::Closed, try_receive(&*reader));
        }
    });
}

#[test]
fn a_sender_without_receiver_is_told() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        if !row.rules.ends {
            return;
        }
        let ends = (row.make)(scratch);
        if ends.are_one() {
            let reading = crate::suite::open(row.mechanism, &*ends.reader, "end=read");
            drop(reading.expect("Open"));
        }
        let Ends { reader, writer } = ends;
        drop(reader);
        must_fail("sending to nobody", Kind::Closed, try_send(&*writer, b"x"));
    });
}

#[test]
fn concurrent_receivers_get_each_message_once() {
    each(Shape::Messages, MESSAGES, |row, scratch| {
        const COUNT: usize = 400;
        let ends = (row.make)(scratch);
        let received = Mutex::new(Vec::new());
        let taken = AtomicUsize::new(0);
        let take = || {
            while taken.load(Ordering::SeqCst) < COUNT {
                match try_receive(&*ends.reader).expect("receiving") {
                    Attempt::Done(message) => {
                        taken.fetch_add(1, Ordering::SeqCst);
                        received.lock().expect("no receiver panics").push(message.data);
                    }
                    // Another receiver may take the last one: look again now and then.
                    Attempt::Wait(readiness) => drop(wait(readiness, Duration::from_millis(20))),
                }
            }
        };
        thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(take)));
            for n in 0..COUNT {
                send(&*ends.writer, format!("{n:06}").as_bytes());
                // Where the kernel drops what does not fit, the receivers set the pace.
                while !row.rules.waits_when_full && taken.load(Ordering::SeqCst) + 50 < n {
                    thread::yield_now();
                }
                assert!(!ends.reader.inspect().expect("inspect meanwhile").is_empty());
            }
        });
        let mut received = received.into_inner().expect("no receiver panics");
        received.sort();
        let expected: Vec<_> = (0..COUNT).map(|n| format!("{n:06}").into_bytes()).collect();
        assert!(received == expected, "messages were lost or received twice");
    });
}
