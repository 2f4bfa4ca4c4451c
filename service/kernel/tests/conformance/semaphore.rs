//! Semaphores: every unit that is posted is taken once, and waiters are woken.

use std::{
    sync::{
        atomic::{AtomicI32, Ordering},
        mpsc,
    },
    thread,
};

use ipc_kernel::{
    Attempt, Endpoint,
    shape::{Semaphore, Shape},
};

use crate::{
    driver::{PATIENCE, finish, must_wait, wait},
    fixtures::{SEMAPHORE_VALUE, SEMAPHORES},
    making::{Shared, attached},
    suite::each,
};

fn semaphore(endpoint: &dyn Endpoint) -> &dyn Semaphore {
    endpoint.semaphore().expect("the fixture makes a semaphore")
}

fn value(endpoint: &dyn Endpoint) -> i32 {
    semaphore(endpoint).value().expect("value")
}

fn take(endpoint: &dyn Endpoint) {
    finish("waiting for the semaphore", || semaphore(endpoint).wait()).expect("wait");
}

fn drain(endpoint: &dyn Endpoint) {
    (0..value(endpoint)).for_each(|_| take(endpoint));
}

fn other(endpoint: &dyn Endpoint) -> Shared {
    attached(&endpoint.address().to_string()).into()
}

#[test]
fn the_value_counts() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let one = (row.make)(scratch);
        assert_eq!(value(&*one), SEMAPHORE_VALUE, "the initial value");
        semaphore(&*one).post(1).expect("post");
        assert_eq!(value(&*one), SEMAPHORE_VALUE + 1);
        semaphore(&*one).post(5).expect("post");
        assert_eq!(value(&*one), SEMAPHORE_VALUE + 6);
        take(&*one);
        assert_eq!(value(&*one), SEMAPHORE_VALUE + 5);
        let number = usize::from(semaphore(&*one).number());
        assert_eq!(semaphore(&*one).values().expect("values")[number], SEMAPHORE_VALUE + 5);
        drain(&*one);
        assert_eq!(value(&*one), 0);
        assert!(!one.inspect().expect("inspect").is_empty());
    });
}

#[test]
fn zero_waits() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let one = (row.make)(scratch);
        drain(&*one);
        let readiness = must_wait("waiting at zero", semaphore(&*one).wait());
        assert_eq!(value(&*one), 0, "an attempt that waits takes nothing, and the value is never negative");
        semaphore(&*one).post(1).expect("post");
        assert!(wait(readiness, PATIENCE), "the readiness must come with a post");
        assert!(matches!(semaphore(&*one).wait().expect("wait"), Attempt::Done(())));
        must_wait("waiting at zero again", semaphore(&*one).wait());
    });
}

#[test]
fn a_post_wakes_one_of_several() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let one = (row.make)(scratch);
        let two = other(&*one);
        drain(&*one);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for endpoint in [&one, &two, &one] {
                let sender = sender.clone();
                scope.spawn(move || {
                    take(&**endpoint);
                    sender.send(()).expect("the test waits");
                });
            }
            for _ in 0..3 {
                assert!(receiver.try_recv().is_err(), "a waiter went on without a post");
                semaphore(&*two).post(1).expect("post");
                receiver.recv_timeout(PATIENCE).expect("a waiter must go on with a post");
                assert_eq!(value(&*one), 0, "the waiter takes what was posted");
            }
        });
    });
}

#[test]
fn every_unit_is_taken_once() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        const EACH: i32 = 200;
        let one = (row.make)(scratch);
        let two = other(&*one);
        drain(&*one);
        let taken = AtomicI32::new(0);
        thread::scope(|scope| {
            for endpoint in [&one, &two] {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        take(&**endpoint);
                        taken.fetch_add(1, Ordering::SeqCst);
                        assert!(value(&**endpoint) >= 0, "a negative value");
                    }
                });
                scope.spawn(|| {
                    for _ in 0..EACH / 2 {
                        semaphore(&**endpoint).post(2).expect("post");
                    }
                });
            }
        });
        assert_eq!(taken.load(Ordering::SeqCst), 2 * EACH);
        assert_eq!(value(&*one), 0);
    });
}

#[test]
fn endpoints_of_one_semaphore_share_the_value() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let one = (row.make)(scratch);
        let two = other(&*one);
        assert_eq!(value(&*two), SEMAPHORE_VALUE, "attaching must not set the value");
        semaphore(&*one).post(1).expect("post");
        assert_eq!(value(&*two), SEMAPHORE_VALUE + 1);
        drain(&*two);
        let readiness = must_wait("waiting at zero", semaphore(&*one).wait());
        semaphore(&*two).post(1).expect("post");
        assert!(wait(readiness, PATIENCE), "a post at one endpoint wakes the other");
        take(&*one);
        drop(one);
        assert_eq!(value(&*two), 0, "after one endpoint was closed");
    });
}

#[test]
fn an_overflow_is_refused_whole() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let one = (row.make)(scratch);
        for count in [row.rules.max as u32, u32::MAX] {
            let error = semaphore(&*one).post(count).expect_err("a post beyond the largest value");
            assert!(
                error.text.contains(&row.rules.max.to_string()),
                "the error must name the limit: {error}"
            );
            assert_eq!(value(&*one), SEMAPHORE_VALUE, "posted in part");
        }
        let room = (row.rules.max - SEMAPHORE_VALUE) as u32;
        semaphore(&*one).post(room).expect("a post up to the largest value");
        assert_eq!(value(&*one), row.rules.max);
        assert!(semaphore(&*one).post(1).is_err(), "a post beyond the largest value");
        take(&*one);
        assert_eq!(value(&*one), row.rules.max - 1);
    });
}
