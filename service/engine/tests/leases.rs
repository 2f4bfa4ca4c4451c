//! Leases of semaphores and sets: what they take, and everything that ends them.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ipc_engine::{Endpoint, Engine, Limits};
use ipc_kernel::{Dict, Kind, dict, mechanisms::KERNEL};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::time::timeout;

mod common;

use common::{WATCHDOG, call, kind};

/// A set of these values that is removed at the end, however that comes.
struct Set(Arc<Endpoint>);

impl Set {
    async fn new(engine: &Arc<Engine>, values: &str) -> Self {
        let maker = call(engine, ":1.99");
        let address = format!("sysvsem:key=private,values={values}");
        Self(engine.create(&maker, &address, Dict::new()).await.unwrap())
    }

    fn values(&self) -> Vec<i32> {
        self.0.semaphore().unwrap().values().unwrap()
    }

    /// Until it has these values, and there are so many leases.
    async fn becomes(&self, engine: &Engine, values: &[i32], leases: u32) {
        let so = async {
            while engine.counters.leases.value() != leases || self.values() != values {
                tokio::task::yield_now().await;
            }
        };
        if timeout(WATCHDOG, so).await.is_err() {
            panic!("{:?} with {} leases", self.values(), engine.counters.leases.value());
        }
    }

    fn waiters(&self) -> u32 {
        match self.0.inspect().unwrap().remove("waiters") {
            Some(ipc_kernel::Value::U32s(numbers)) => numbers.iter().sum(),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        let _ = self.0.kernel.remove();
    }
}

#[tokio::test]
async fn a_lease_of_a_set_takes_what_it_says() {
    let engine = Engine::new(Limits::default());
    let holder = call(&engine, ":1.1");
    let set = Set::new(&engine, "5+3+1").await;
    let options = dict! { "number" => 1u32, "count" => 2u32 };
    let first = engine.acquire(&holder, &set.0, 1000, &options).await.unwrap();
    let second = engine.acquire(&holder, &set.0, 1000, &Dict::new()).await.unwrap();
    let third = engine.acquire_set(&holder, &set.0, &[(0, -2, 0), (2, 4, 0)], 1000).await.unwrap();
    assert_eq!(set.values(), [2, 1, 5]);
    let copy = first.try_clone().unwrap();
    drop(first);
    drop(second);
    set.becomes(&engine, &[3, 1, 5], 2).await;
    drop(copy);
    set.becomes(&engine, &[3, 3, 5], 1).await;
    drop(third);
    set.becomes(&engine, &[5, 3, 1], 0).await;
}

#[tokio::test]
async fn what_cannot_be_acquired_takes_nothing() {
    let engine = Engine::new(Limits { leases: 2, ..Limits::default() });
    let holder = call(&engine, ":1.1");
    let set = Set::new(&engine, "1+0").await;
    for (options, phrase) in [
        (dict! { "count" => 0u32 }, "\"count\""),
        (dict! { "count" => 32768u32 }, "32767"),
        (dict! { "number" => 65536u32 }, "\"number\""),
        (dict! { "number" => 2u32 }, "set of 2"),
        (dict! { "lifetime" => "service" }, "fd, client or pid:N"),
        (dict! { "lifetime" => "pid:0" }, "fd, client or pid:N"),
        (dict! { "volume" => 11u32 }, "\"volume\""),
    ] {
        let error = engine.acquire(&holder, &set.0, 0, &options).await.unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
        assert!(error.text.contains(phrase), "{error}");
    }
    let gone = dict! { "lifetime" => "pid:2147483647" };
    assert_eq!(kind(engine.acquire(&holder, &set.0, 0, &gone).await), Kind::NotFound);
    let two = dict! { "count" => 2u32 };
    assert_eq!(kind(engine.acquire(&holder, &set.0, 0, &two).await), Kind::Busy);
    assert_eq!(kind(engine.acquire(&holder, &set.0, 20, &two).await), Kind::Timeout);
    let both = [(0, -1, 0), (1, -1, 0)];
    assert_eq!(kind(engine.acquire_set(&holder, &set.0, &both, 20).await), Kind::Timeout);
    assert_eq!(kind(engine.acquire_set(&holder, &set.0, &[], 20).await), Kind::InvalidArgument);
    let pipe = engine.create(&holder, "pipe:", Dict::new()).await.unwrap();
    assert_eq!(kind(engine.acquire(&holder, &pipe, 0, &Dict::new()).await), Kind::NotSupported);
    // It may take a moment until a wait that timed out has left the kernel's queue.
    let left = async {
        while set.waiters() > 0 {
            tokio::task::yield_now().await
        }
    };
    timeout(WATCHDOG, left).await.expect("a wait that timed out waits on");
    set.becomes(&engine, &[1, 0], 0).await;

    // The limit refuses, releases and accepts again.
    let adding = || engine.acquire_set(&holder, &set.0, &[(1, 1, 0)], 0);
    let (first, second) = (adding().await.unwrap(), adding().await.unwrap());
    let refused = adding().await.unwrap_err();
    assert!(refused.kind == Kind::LimitExceeded && refused.text.contains("leases is 2"), "{refused}");
    set.becomes(&engine, &[1, 2], 2).await;
    drop(first);
    set.becomes(&engine, &[1, 1], 1).await;
    let third = adding().await.unwrap();
    drop((second, third));
    set.becomes(&engine, &[1, 0], 0).await;
}

#[tokio::test]
async fn a_lease_that_had_to_be_waited_for() {
    let engine = Engine::new(Limits::default());
    let holder = call(&engine, ":1.1");
    let set = Set::new(&engine, "0+1").await;
    let post = async {
        while set.waiters() == 0 {
            tokio::task::yield_now().await;
        }
        set.0.semaphore().unwrap().post(1).unwrap();
    };
    let operations = [(0, -1, 0), (1, -1, 0)];
    let acquiring = engine.acquire_set(&holder, &set.0, &operations, 30_000);
    let (lease, ()) = tokio::join!(acquiring, post);
    assert_eq!(set.values(), [0, 0]);
    drop(lease.unwrap());
    set.becomes(&engine, &[1, 1], 0).await;
}

#[tokio::test]
async fn a_wait_for_a_lease_ends_with_the_set_the_endpoint_and_the_caller() {
    let engine = Engine::new(Limits::default());
    let other = call(&engine, ":1.2");
    let waits = async |set: &Set, then: Box<dyn Fn()>| {
        let waiter = call(&engine, ":1.1");
        let options = Dict::new();
        let acquiring = engine.acquire(&waiter, &set.0, 30_000, &options);
        let ending = async {
            while set.waiters() == 0 {
                tokio::task::yield_now().await;
            }
            then();
        };
        kind(tokio::join!(acquiring, ending).0)
    };
    let set = Set::new(&engine, "0").await;
    let kernel = set.0.clone();
    assert_eq!(waits(&set, Box::new(move || kernel.kernel.remove().unwrap())).await, Kind::Gone);
    let set = Set::new(&engine, "0").await;
    let (closer, endpoint) = (engine.clone(), set.0.clone());
    let close = Box::new(move || assert!(closer.close(&endpoint, "closed")));
    assert_eq!(waits(&set, close).await, Kind::Cancelled);
    let set = Set::new(&engine, "0").await;
    let leaving = engine.clone();
    assert_eq!(waits(&set, Box::new(move || leaving.client_left(":1.1"))).await, Kind::Cancelled);
    // Nobody waits any more, so that what comes is there for others.
    let left = async {
        while set.waiters() > 0 {
            tokio::task::yield_now().await
        }
    };
    timeout(WATCHDOG, left).await.expect("a wait that was given up waits on");
    set.0.semaphore().unwrap().post(1).unwrap();
    engine.acquire(&other, &set.0, 0, &Dict::new()).await.unwrap();
}

/// Whether the service has given the lease up.
fn hung_up(lease: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(lease, PollFlags::empty())];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).unwrap();
    polled[0].revents().contains(PollFlags::ERR)
}

#[tokio::test]
async fn lifetimes_end_leases() {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let engine = Engine::new(Limits::default());
    let set = Set::new(&engine, "3").await;
    let name = format!("ipc-leases-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let address = format!("posixsem:name=/{name},value=3,remove-on-close=true");
    let posix = engine.create(&call(&engine, ":1.99"), &address, Dict::new()).await.unwrap();
    for endpoint in [&set.0, &posix] {
        let becomes = async |value: i32, leases: u32| {
            let so = async {
                while (endpoint.semaphore().unwrap().value().unwrap(), engine.counters.leases.value())
                    != (value, leases)
                {
                    tokio::task::yield_now().await;
                }
            };
            timeout(WATCHDOG, so)
                .await
                .unwrap_or_else(|_| panic!("it never has {value} with {leases} leases"));
        };
        let acquire = async |client: &str, lifetime: String| {
            let options = dict! { "lifetime" => lifetime };
            engine.acquire(&call(&engine, client), endpoint, 1000, &options).await
        };
        let (fd, client) =
            (acquire(":1.5", "fd".into()).await.unwrap(), acquire(":1.5", "client".into()).await.unwrap());
        let other = acquire(":1.6", "client".into()).await.unwrap();
        becomes(0, 3).await;
        engine.client_left(":1.5");
        becomes(1, 2).await;
        assert!(hung_up(&client) && !hung_up(&fd) && !hung_up(&other));
        drop(other);
        becomes(2, 1).await;
        engine.clients.forget_departed();
        let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let lifetime = format!("pid:{}", process.id());
        let bound = acquire(":1.6", lifetime.clone()).await.unwrap();
        let closed = acquire(":1.6", lifetime.clone()).await.unwrap();
        drop(closed);
        becomes(1, 2).await;
        process.kill().unwrap();
        becomes(2, 1).await;
        assert!(hung_up(&bound));
        process.wait().unwrap();
        assert_eq!(kind(acquire(":1.6", lifetime).await), Kind::NotFound);
        drop(fd);
        becomes(3, 0).await;
        // For a caller who has left, nothing is taken.
        let late = call(&engine, ":1.7");
        engine.client_left(":1.7");
        assert_eq!(kind(engine.acquire(&late, endpoint, 1000, &Dict::new()).await), Kind::Cancelled);
        becomes(3, 0).await;
    }
    engine.close(&posix, "closed");
}

#[tokio::test]
async fn a_lease_outlives_its_endpoint_and_ends_with_the_service() {
    let engine = Engine::new(Limits::default());
    let holder = call(&engine, ":1.1");
    let set = Set::new(&engine, "2").await;
    let attached = engine.attach(&holder, &set.0.address, Dict::new()).await.unwrap();
    let first = engine.acquire(&holder, &attached, 1000, &Dict::new()).await.unwrap();
    let second = engine.acquire(&holder, &attached, 1000, &Dict::new()).await.unwrap();
    engine.close(&attached, "closed");
    drop(attached);
    set.becomes(&engine, &[0], 2).await;
    drop(first);
    set.becomes(&engine, &[1], 1).await;
    assert!(!engine.is_idle());
    engine.stop();
    set.becomes(&engine, &[2], 0).await;
    assert!(hung_up(&second));
}

#[tokio::test]
async fn a_confined_caller_binds_no_lease_to_a_process() {
    let (free, engine) =
        (Engine::new(Limits::default()), Engine::of(KERNEL, Limits::default(), Some("a test".into())));
    let (maker, caller) = (call(&free, ":1.1"), call(&engine, ":1.1"));
    let address = format!("posixsem:name=/ipc-confined-{},remove-on-close=true", std::process::id());
    let named = free.create(&maker, &address, Dict::new()).await.unwrap();
    let fd = named.kernel.open(&ipc_kernel::Parameters::default()).unwrap();
    let adopted = engine.adopt(&caller, fd, Dict::new()).await.unwrap();
    let options = dict! { "lifetime" => format!("pid:{}", std::process::id()) };
    assert_eq!(kind(engine.acquire(&caller, &adopted, 0, &options).await), Kind::Confined);
    engine.acquire(&caller, &adopted, 0, &dict! { "lifetime" => "client" }).await.unwrap();
    assert_eq!(kind(engine.create(&caller, "sysvsem:key=private", Dict::new()).await), Kind::Confined);
    free.close(&named, "closed");
}
