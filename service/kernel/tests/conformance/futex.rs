//! Futexes: nobody sleeps on another value than he expects, and every wake-up ends one wait.

use std::{
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use ipc_kernel::{
    Endpoint, Kind,
    futex_word::{ANY, FutexWait, FutexWord, Outcome},
    shape::Shape,
};

use crate::{
    driver::{PATIENCE, finish, must_wait, wait},
    fixtures::{FUTEX_VALUE, FUTEXES},
    making::{Shared, attached},
    suite::{each, must_fail},
};

fn word(endpoint: &dyn Endpoint) -> FutexWord {
    endpoint.futex().expect("the fixture makes a futex").word().expect("the word")
}

fn other(endpoint: &dyn Endpoint) -> Shared {
    attached(&endpoint.address().to_string()).into()
}

/// Waits as the engine does.
fn outcome(waiting: FutexWait) -> Outcome {
    let outcome = finish("waiting for the futex", || waiting.attempt()).expect("wait");
    waiting.accept();
    outcome
}

#[test]
fn the_word_is_shared_and_atomic() {
    each(Shape::Futex, FUTEXES, |row, scratch| {
        let one = (row.make)(scratch);
        let two = other(&*one);
        let (one, two) = (word(&*one), word(&*two));
        assert_eq!(two.load().expect("load"), FUTEX_VALUE, "attaching must not change the value");
        one.store(7).expect("store");
        assert_eq!(two.compare_exchange(8, 9).expect("compare"), (false, 7));
        assert_eq!(two.compare_exchange(7, u32::MAX).expect("compare"), (true, 7));
        assert_eq!(one.fetch_add(2).expect("add"), u32::MAX, "it returns what was there");
        assert_eq!(two.load().expect("load"), 1, "it wraps around");
        thread::scope(|scope| {
            for word in [&one, &two] {
                scope.spawn(move || (0..1000).for_each(|_| _ = word.fetch_add(3).expect("add")));
            }
        });
        assert_eq!(one.load().expect("load"), 6001);
    });
}

#[test]
fn another_value_does_not_wait() {
    each(Shape::Futex, FUTEXES, |row, scratch| {
        let one = (row.make)(scratch);
        let word = word(&*one);
        assert_eq!(outcome(word.wait(FUTEX_VALUE + 1, ANY)), Outcome::Changed);
        let waiting = word.wait(FUTEX_VALUE, ANY);
        let readiness = must_wait("waiting on the value that there is", waiting.attempt());
        word.store(1).expect("store");
        assert!(wait(readiness, PATIENCE), "the kernel must look at the value before it waits");
    });
}

#[test]
fn every_wake_up_ends_one_wait() {
    each(Shape::Futex, FUTEXES, |row, scratch| {
        const WAITERS: u32 = 8;
        let one = (row.make)(scratch);
        let two = other(&*one);
        let (here, there) = (word(&*one), word(&*two));
        let ended = AtomicU32::new(0);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..WAITERS {
                let (sender, word, ended) = (sender.clone(), here.clone(), &ended);
                // With bits it waits by itself, in the kernel: exact without an engine.
                scope.spawn(move || {
                    let outcome = outcome(word.wait(FUTEX_VALUE, bits(1)));
                    ended.fetch_add(1, Ordering::SeqCst);
                    sender.send(outcome).expect("the test waits");
                });
            }
            for n in 1..=WAITERS {
                while there.wake(1, bits(3)).expect("wake") == 0 {
                    assert_eq!(there.wake(1, bits(2)).expect("wake"), 0, "bits that do not meet wake nobody");
                    thread::yield_now();
                }
                assert_eq!(receiver.recv_timeout(PATIENCE).expect("a waiter goes on"), Outcome::Woken);
                assert_eq!(ended.load(Ordering::SeqCst), n, "one wake-up ended several waits");
            }
        });
        assert_eq!(there.wake(u32::MAX, ANY).expect("wake"), 0);
    });
}

fn bits(bits: u32) -> std::num::NonZeroU32 {
    std::num::NonZeroU32::new(bits).expect("bits")
}

#[test]
fn a_wait_that_is_given_up_passes_its_wake_up_on() {
    each(Shape::Futex, FUTEXES, |row, scratch| {
        let (one, parking) = ((row.make)(scratch), (row.make)(scratch));
        let (word, parking) = (word(&*one), word(&*parking));
        // Moves the sleepers there and back, to count them.
        let until_asleep = |sleepers| {
            let end = Instant::now() + PATIENCE;
            while word.requeue(0, u32::MAX, &parking, FUTEX_VALUE).expect("requeue").1 != sleepers {
                parking.requeue(0, u32::MAX, &word, FUTEX_VALUE).expect("requeue");
                assert!(Instant::now() < end, "not {sleepers} sleepers in time");
                thread::yield_now();
            }
            parking.requeue(0, u32::MAX, &word, FUTEX_VALUE).expect("requeue");
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let first = word.wait(FUTEX_VALUE, bits(3));
                assert!(wait(must_wait("waiting", first.attempt()), PATIENCE), "woken");
                // It was woken, and nobody will know.
                drop(first);
            });
            until_asleep(1);
            let second = scope.spawn(|| outcome(word.wait(FUTEX_VALUE, bits(1))));
            until_asleep(2);
            // To count them may have changed their order.
            assert_eq!(word.wake(1, bits(2)).expect("wake"), 1, "the first one");
            assert_eq!(second.join().expect("the second waiter"), Outcome::Woken);
        });
    });
}

#[test]
fn waiters_are_requeued() {
    each(Shape::Futex, FUTEXES, |row, scratch| {
        let (one, two) = ((row.make)(scratch), (row.make)(scratch));
        let (from, to) = (word(&*one), word(&*two));
        let refused = from.requeue(1, 1, &to, FUTEX_VALUE + 1);
        let text = must_fail("requeue on another value", Kind::Busy, refused);
        assert!(text.contains(&FUTEX_VALUE.to_string()), "the error must say the value: {text}");
        assert_eq!(from.requeue(1, 1, &to, FUTEX_VALUE).expect("requeue"), (0, 0));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| outcome(from.wait(FUTEX_VALUE, bits(1))));
            while from.requeue(0, 1, &to, FUTEX_VALUE).expect("requeue") != (0, 1) {
                assert!(!waiter.is_finished(), "woken instead of moved");
                thread::yield_now();
            }
            assert_eq!(from.wake(1, ANY).expect("wake"), 0, "it waits elsewhere now");
            assert_eq!(to.wake(1, ANY).expect("wake"), 1);
            assert_eq!(waiter.join().expect("the waiter"), Outcome::Woken);
        });
    });
}

#[test]
fn a_wake_of_nobody_is_refused() {
    each(Shape::Futex, FUTEXES, |row, scratch| {
        let one = (row.make)(scratch);
        must_fail("a wake of none", Kind::InvalidArgument, word(&*one).wake(0, ANY));
        assert_eq!(word(&*one).wake(u32::MAX, ANY).expect("wake"), 0);
    });
}
