//! Sets of semaphores: several operations at once, all or none, and leases of them.

use std::{sync::mpsc, thread};

use ipc_kernel::{
    Attempt, Endpoint, Kind, Readiness,
    blocked::{self, Running},
    shape::{Held, Semaphore, SemaphoreOperation, Shape},
};

use crate::{
    driver::{PATIENCE, finish, must_wait, wait},
    fixtures::SEMAPHORES,
    making::attached,
    suite::{each, must_fail},
};

const NOWAIT: u16 = 2048;
const UNDO: u16 = 4096;

fn set(endpoint: &dyn Endpoint) -> &dyn Semaphore {
    endpoint.semaphore().expect("the fixture makes a set")
}

fn values(endpoint: &dyn Endpoint) -> Vec<i32> {
    set(endpoint).values().expect("values")
}

fn operate(endpoint: &dyn Endpoint, operations: &[SemaphoreOperation]) {
    finish("operating", || set(endpoint).operate(operations)).expect("operate");
}

fn acquire(endpoint: &dyn Endpoint, operations: &[SemaphoreOperation]) -> Held {
    finish("acquiring", || set(endpoint).acquire(operations)).expect("acquire")
}

/// Looks again until the kernel has done it.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !is() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        thread::yield_now();
    }
}

fn count(endpoint: &dyn Endpoint, key: &str) -> Vec<u32> {
    match endpoint.inspect().expect("inspect").remove(key) {
        Some(ipc_kernel::Value::U32s(numbers)) => numbers,
        other => panic!("{key}: {other:?}"),
    }
}

/// The readiness as a call that blocks on a thread.
fn start(readiness: Readiness, then: impl FnOnce() + Send + 'static) -> Running {
    let Readiness::Blocked(call) = readiness else { panic!("not a blocking call: {readiness:?}") };
    blocked::start(call, then).expect("a thread")
}

#[test]
fn operations_are_done_all_or_none() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[1, 0, 5]);
        assert_eq!(values(&*one), [1, 0, 5], "the initial values");
        operate(&*one, &[(0, -1, 0), (1, 2, 0), (2, -5, 0)]);
        assert_eq!(values(&*one), [0, 2, 0]);
        must_wait("one of them", set(&*one).operate(&[(1, -2, 0), (2, -1, 0)]));
        must_wait("the first", set(&*one).operate(&[(0, -1, 0), (1, 5, 0)]));
        assert_eq!(values(&*one), [0, 2, 0], "an attempt that waits does nothing of it");
        // In order: what the first adds, the second may take.
        operate(&*one, &[(0, 3, 0), (0, -3, 0)]);
        let over = set(&*one).operate(&[(0, 1, 0), (1, row.rules.max as i16, 0)]);
        let text = must_fail("beyond the largest value", Kind::LimitExceeded, over);
        assert!(text.contains(&row.rules.max.to_string()), "{text}");
        assert_eq!(values(&*one), [0, 2, 0], "an operation that fails does nothing of it");
    });
}

#[test]
fn zero_can_be_waited_for() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[2, 7]);
        let two = attached(&one.address().to_string());
        let readiness = must_wait("at 2", set(&*one).operate(&[(0, 0, 0), (1, 1, 0)]));
        let (ended, end) = mpsc::channel();
        let running = start(readiness, move || ended.send(()).expect("the test waits"));
        until("it waits for zero", || count(&*one, "zero-waiters") == [1, 0]);
        operate(&*two, &[(0, -1, 0)]);
        assert!(end.try_recv().is_err(), "at 1");
        operate(&*two, &[(0, -1, 0)]);
        end.recv_timeout(PATIENCE).expect("at 0");
        running.claim();
        assert_eq!(values(&*one), [0, 8]);
        let done = set(&*one).operate(&[(0, 0, 0), (1, 1, 0)]).expect("operate");
        assert!(matches!(done, Attempt::Done(())), "the wait has done it");
        assert_eq!(values(&*one), [0, 8], "and it is done once");
    });
}

#[test]
fn a_waiter_is_counted_and_served() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[0, 0]);
        let operations = [(0, -2, 0), (1, -1, 0)];
        let (ended, end) = mpsc::channel();
        let running = start(must_wait("at zero", set(&*one).operate(&operations)), move || {
            ended.send(()).expect("the test waits");
        });
        until("the kernel counts it", || count(&*one, "waiters") == [1, 0]);
        set(&*one).post(2).expect("post");
        until("it waits for the other", || count(&*one, "waiters") == [0, 1]);
        assert_eq!(values(&*one), [2, 0]);
        operate(&*one, &[(1, 1, 0)]);
        end.recv_timeout(PATIENCE).expect("both are there");
        running.claim();
        assert_eq!(values(&*one), [0, 0]);
        operate(&*one, &operations);
        assert_eq!(values(&*one), [0, 0], "the attempt finds what the wait has taken");
    });
}

#[test]
fn what_a_given_up_wait_took_goes_back() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[0, 3]);
        for on_lease in [false, true] {
            let operations = [(0, -1, 0), (1, -1, 0)];
            let attempt = || match on_lease {
                false => must_wait("at zero", set(&*one).operate(&operations)),
                true => must_wait("at zero", set(&*one).acquire(&operations)),
            };
            // It ends, and only then its waiter gives up.
            let (ended, end) = mpsc::channel();
            let running = start(attempt(), move || ended.send(()).expect("the test waits"));
            set(&*one).post(1).expect("post");
            end.recv_timeout(PATIENCE).expect("it takes");
            assert_eq!(values(&*one), [0, 2]);
            assert!(running.interrupt());
            until("it went back", || values(&*one) == [1, 3]);

            // Its waiter gives up while it waits.
            operate(&*one, &[(0, -1, 0)]);
            let running = start(attempt(), || {});
            until("the kernel counts it", || count(&*one, "waiters") == [1, 0]);
            until("it is interrupted", || running.interrupt());
            assert_eq!(count(&*one, "waiters"), [0, 0]);
            set(&*one).post(1).expect("post");
            assert_eq!(values(&*one), [1, 3], "nobody waits for it");
            operate(&*one, &[(0, -1, 0)]);
        }
    });
}

#[test]
fn flags_of_operations() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[1, 0]);
        must_fail("IPC_NOWAIT", Kind::Busy, set(&*one).operate(&[(1, -1, NOWAIT)]));
        must_fail("IPC_NOWAIT", Kind::Busy, set(&*one).acquire(&[(1, -1, NOWAIT)]));
        // The one that does not want to wait does not have to.
        let readiness = must_wait("the other", set(&*one).operate(&[(0, -1, NOWAIT), (1, -1, 0)]));
        let (ended, end) = mpsc::channel();
        let running = start(readiness, move || ended.send(()).expect("the test waits"));
        until("the kernel counts it", || count(&*one, "waiters") == [0, 1]);
        // Now it has to.
        operate(&*one, &[(0, -1, 0), (1, 1, 0)]);
        end.recv_timeout(PATIENCE).expect("it is refused");
        running.claim();
        must_fail("IPC_NOWAIT later", Kind::Busy, set(&*one).operate(&[(0, -1, NOWAIT), (1, -1, 0)]));
        assert_eq!(values(&*one), [0, 1]);

        let text = must_fail("SEM_UNDO", Kind::NotSupported, set(&*one).operate(&[(1, -1, UNDO)]));
        assert!(text.contains("AcquireSet"), "{text}");
        let text = must_fail("a flag", Kind::InvalidArgument, set(&*one).operate(&[(1, -1, 1)]));
        assert!(text.contains("IPC_NOWAIT"), "{text}");
        must_fail("no operation", Kind::InvalidArgument, set(&*one).operate(&[]));
        let text = must_fail("no such semaphore", Kind::InvalidArgument, set(&*one).operate(&[(2, 1, 0)]));
        assert!(text.contains('2'), "{text}");
        let many = vec![(1, 0, 0); 65536];
        must_fail("too many operations", Kind::TooLarge, set(&*one).operate(&many));
    });
}

#[test]
fn values_are_set() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[1, 2, 3]);
        set(&*one).set_values(&[4, 0, row.rules.max]).expect("set values");
        assert_eq!(values(&*one), [4, 0, row.rules.max]);
        set(&*one).set_value(9).expect("set value");
        assert_eq!(values(&*one), [9, 0, row.rules.max]);
        for wrong in [[-1, 0, 0], [0, 0, row.rules.max + 1], [0, i32::MAX, 0]] {
            let text = must_fail("a wrong value", Kind::LimitExceeded, set(&*one).set_values(&wrong));
            assert!(text.contains(&row.rules.max.to_string()), "{text}");
            must_fail("a wrong value", Kind::LimitExceeded, set(&*one).set_value(wrong[0].min(-1)));
        }
        must_fail("too few values", Kind::InvalidArgument, set(&*one).set_values(&[1, 2]));
        must_fail("too many values", Kind::InvalidArgument, set(&*one).set_values(&[1, 2, 3, 4]));
        assert_eq!(values(&*one), [9, 0, row.rules.max]);
        // Setting a value wakes who waits for it.
        let readiness = must_wait("at zero", set(&*one).operate(&[(1, -2, 0)]));
        set(&*one).set_values(&[0, 2, 0]).expect("set values");
        assert!(wait(readiness, PATIENCE));
        operate(&*one, &[(1, -2, 0)]);
        assert_eq!(values(&*one), [0, 0, 0]);
    });
}

#[test]
fn a_lease_is_undone_when_it_ends() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[3, 0, row.rules.max]);
        let lease = acquire(&*one, &[(0, -2, 0), (1, 4, 0)]);
        assert_eq!(values(&*one)[..2], [1, 4]);
        assert!(one.inspect().expect("inspect")["leases"].same(&1u32.into()));
        drop(lease);
        assert_eq!(values(&*one)[..2], [3, 0], "when the drop is over, it is undone");
        assert!(one.inspect().expect("inspect")["leases"].same(&0u32.into()));

        // It keeps within the bounds.
        let lease = acquire(&*one, &[(1, 4, 0), (2, -1, 0)]);
        operate(&*one, &[(1, -3, 0), (2, 1, 0)]);
        drop(lease);
        assert_eq!(values(&*one), [3, 0, row.rules.max]);

        // What was set in between counts, each semaphore by itself.
        let lease = acquire(&*one, &[(0, -1, 0), (1, 1, 0)]);
        set(&*one).set_value(7).expect("set value");
        drop(lease);
        assert_eq!(values(&*one)[..2], [7, 0]);
        let (first, second) = (acquire(&*one, &[(0, -1, 0)]), acquire(&*one, &[(0, -1, 0)]));
        set(&*one).set_values(&[5, 5, 5]).expect("set values");
        let third = acquire(&*one, &[(0, -1, 0)]);
        drop(first);
        assert_eq!(values(&*one), [4, 5, 5]);
        drop(third);
        assert_eq!(values(&*one), [5, 5, 5], "its own is undone, whatever became of the others");
        drop(second);
        assert_eq!(values(&*one), [5, 5, 5]);
    });
}

#[test]
fn a_lease_that_was_waited_for() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[0]);
        let two = attached(&one.address().to_string());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| acquire(&*one, &[(0, -1, 0)]));
            until("the kernel counts it", || count(&*two, "waiters") == [1]);
            set(&*two).post(1).expect("post");
            let lease = waiting.join().expect("a lease");
            assert_eq!(values(&*two), [0]);
            drop(lease);
            assert_eq!(values(&*two), [1]);
        });
        // A lease outlives its endpoint, and a set that is gone has nothing to undo.
        let lease = acquire(&*one, &[(0, -1, 0)]);
        drop(one);
        assert_eq!(values(&*two), [0]);
        two.remove().expect("remove");
        drop(lease);
    });
}

#[test]
fn a_set_that_is_removed_ends_waits() {
    each(Shape::Semaphore, SEMAPHORES, |row, scratch| {
        let Some(make) = row.rules.set else { return };
        let one = make(scratch, &[0]);
        for on_lease in [false, true] {
            let one = if on_lease { make(scratch, &[0]) } else { one.clone() };
            let attempt = || match on_lease {
                false => set(&*one).operate(&[(0, -1, 0)]),
                true => set(&*one).acquire(&[(0, -1, 0)]).map(|attempt| attempt.map(drop)),
            };
            let (ended, end) = mpsc::channel();
            let running = start(must_wait("at zero", attempt()), move || {
                ended.send(()).expect("the test waits");
            });
            until("the kernel counts it", || count(&*one, "waiters") == [1]);
            one.remove().expect("remove");
            end.recv_timeout(PATIENCE).expect("it ends at once");
            running.claim();
            must_fail("after the removal", Kind::Gone, attempt());
        }
        must_fail("post", Kind::Gone, set(&*one).post(1));
        must_fail("value", Kind::Gone, set(&*one).value());
        must_fail("values", Kind::Gone, set(&*one).values());
        must_fail("set values", Kind::Gone, set(&*one).set_values(&[1]));
        must_fail("set value", Kind::Gone, set(&*one).set_value(1));
        must_fail("inspect", Kind::Gone, one.inspect());
    });
}
