//! The engine without a bus: limits, lifetimes, waits and their ends, leases, events.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::atomic::{AtomicU32, Ordering};

use ipc_engine::{Engine, Limits, events::Happening};
use ipc_kernel::{Dict, Error, Kind, blocked::Sent, dict, mechanisms::KERNEL};
use tokio::time::timeout;

mod common;

use common::{WATCHDOG, call, kind};

fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[tokio::test]
async fn a_limit_refuses_releases_and_accepts_again() {
    let engine = Engine::new(Limits { endpoints: 2, ..Limits::default() });
    let call = call(&engine, ":1.1");
    let first = engine.create(&call, "pipe:", Dict::new()).await.unwrap();
    engine.create(&call, "pipe:", Dict::new()).await.unwrap();
    let refused = engine.create(&call, "pipe:", Dict::new()).await.unwrap_err();
    assert_eq!(refused.kind, Kind::LimitExceeded);
    assert!(refused.text.contains("endpoints is 2"), "{refused}");
    assert!(engine.close(&first, "closed"));
    assert!(!engine.close(&first, "closed"), "an endpoint closes once");
    engine.create(&call, "pipe:", Dict::new()).await.unwrap();
}

#[tokio::test]
async fn calls_in_flight_are_limited_by_connection_and_in_all() {
    let engine = Engine::new(Limits { calls_per_connection: 2, calls: 3, ..Limits::default() });
    let held = [call(&engine, ":1.1"), call(&engine, ":1.1")];
    let refused = engine.admit(engine.clients.get(":1.1")).unwrap_err();
    assert!(refused.text.contains("calls-per-connection is 2"), "{refused}");
    let _other = call(&engine, ":1.2");
    let refused = engine.admit(engine.clients.get(":1.3")).unwrap_err();
    assert!(refused.text.contains("calls is 3"), "{refused}");
    drop(held);
    call(&engine, ":1.3");
}

#[tokio::test]
async fn every_wait_ends() {
    let engine = Engine::new(Limits::default());
    let waiting = call(&engine, ":1.1");
    let pipe = engine.create(&waiting, "pipe:", Dict::new()).await.unwrap();
    assert_eq!(kind(engine.read(&waiting, &pipe, 10, 0).await), Kind::Busy);
    assert_eq!(kind(engine.read(&waiting, &pipe, 10, 20).await), Kind::Timeout);
    assert_eq!(kind(engine.read(&waiting, &pipe, 10, 300_001).await), Kind::InvalidArgument);
    assert_eq!(kind(engine.read(&waiting, &pipe, 0, 20).await), Kind::InvalidArgument);

    // The endpoint is closed, the caller leaves, the service stops.
    let other = engine.create(&waiting, "pipe:", Dict::new()).await.unwrap();
    let closer = async { engine.close(&pipe, "closed") };
    let (ended, _) = tokio::join!(engine.read(&waiting, &pipe, 10, 60_000), closer);
    assert_eq!(kind(ended), Kind::Cancelled);
    let leaver = async { engine.client_left(":1.1") };
    let (ended, ()) = tokio::join!(engine.read(&waiting, &other, 10, 60_000), leaver);
    assert_eq!(kind(ended), Kind::Cancelled);
    let staying = call(&engine, ":1.2");
    let stopper = async { drop(engine.stop()) };
    let (ended, ()) = tokio::join!(engine.read(&staying, &other, 10, 60_000), stopper);
    assert_eq!(kind(ended), Kind::Cancelled);
}

#[tokio::test]
async fn what_was_taken_for_a_caller_who_left_is_kept() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let pipe = engine.create(&maker, "pipe:packet=true", Dict::new()).await.unwrap();
    let nothing = Dict::new();
    let sent = Sent::default();
    let message = |data| ipc_kernel::shape::Outgoing { data, attributes: &nothing, fds: &[], sent: &sent };
    engine.send(&maker, &pipe, message(b"first"), 0).await.unwrap();
    engine.send(&maker, &pipe, message(b"second"), 0).await.unwrap();
    let leaver = call(&engine, ":1.2");
    engine.client_left(":1.2");
    assert_eq!(kind(engine.receive(&leaver, &pipe, &nothing, 1000).await), Kind::Cancelled);
    for expected in [b"first".as_slice(), b"second"] {
        assert_eq!(engine.receive(&maker, &pipe, &nothing, 1000).await.unwrap().data, expected);
    }
}

#[tokio::test]
async fn lifetimes_end_endpoints() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let lasting = engine.create(&maker, "pipe:", Dict::new()).await.unwrap();
    let bound = engine.create(&maker, "pipe:lifetime=client", Dict::new()).await.unwrap();
    engine.client_left(":1.1");
    assert_eq!(bound.closed_reason(), Some("the connection that it belonged to has ended"));
    assert_eq!(lasting.closed_reason(), None);
    // A call that is looked at after its sender has left leaves nothing behind.
    let late = call(&engine, ":1.1");
    let orphan = engine.create(&late, "pipe:lifetime=client", Dict::new()).await.unwrap();
    assert!(orphan.closed.is_set());

    let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let maker = call(&engine, ":1.2");
    let options = || dict! { "lifetime" => format!("pid:{}", process.id()) };
    let (before, after) = (options(), options());
    let guarded = engine.create(&maker, "pipe:", before).await.unwrap();
    assert!(!guarded.closed.is_set());
    process.kill().unwrap();
    timeout(WATCHDOG, guarded.closed.wait()).await.expect("the process ended, the endpoint did not");
    process.wait().unwrap();
    assert_eq!(kind(engine.create(&maker, "pipe:", after).await), Kind::NotFound);
}

#[tokio::test]
async fn a_lease_gives_back_when_its_last_copy_is_closed() {
    let engine = Engine::new(Limits::default());
    let holder = call(&engine, ":1.1");
    let address = format!("posixsem:name=/{},value=1,remove-on-close=true", unique("ipc-lease"));
    let semaphore = engine.create(&holder, &address, Dict::new()).await.unwrap();
    let lease = engine.acquire(&holder, &semaphore, 1000, &Dict::new()).await.unwrap();
    assert_eq!(semaphore.semaphore().unwrap().value().unwrap(), 0);
    let copy = lease.try_clone().unwrap();
    drop(lease);
    // Bytes in it mean nothing.
    rustix::io::write(&copy, b"x").unwrap();
    assert_eq!(kind(engine.semaphore_wait(&holder, &semaphore, 20).await), Kind::Timeout);
    drop(copy);
    engine.semaphore_wait(&holder, &semaphore, 30_000).await.expect("the lease was not given back");
    engine.close(&semaphore, "closed");
}

#[tokio::test]
async fn a_thousand_waits_need_few_threads() {
    let limits = Limits { waits: 2000, calls: 2000, calls_per_connection: 2000, ..Limits::default() };
    let engine = Engine::new(limits);
    let maker = call(&engine, ":1.1");
    let address = format!("posixsem:name=/{},value=0,remove-on-close=true", unique("ipc-crowd"));
    let semaphore = engine.create(&maker, &address, Dict::new()).await.unwrap();
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let (engine, semaphore) = (engine.clone(), semaphore.clone());
        waits.spawn(async move {
            let call = engine.admit(engine.clients.get(":1.2")).unwrap();
            engine.semaphore_wait(&call, &semaphore, 60_000).await
        });
    }
    while engine.counters.waits.value() < 1000 {
        tokio::task::yield_now().await;
    }
    let waiting = futex_threads();
    assert!((1..=8).contains(&waiting), "{waiting} threads for 1000 waits");
    semaphore.semaphore().unwrap().post(1000).unwrap();
    let all = async {
        while let Some(wait) = waits.join_next().await {
            wait.unwrap().unwrap();
        }
    };
    timeout(WATCHDOG, all).await.expect("some waits were never woken");
    assert_eq!(semaphore.semaphore().unwrap().value().unwrap(), 0);
    engine.close(&semaphore, "closed");
}

/// Threads of this process that wait for words in shared memory; by name, as other tests run beside.
fn futex_threads() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|name| name.trim() == "futex-waits")
        .count()
}

#[tokio::test]
async fn delivered_bytes_are_numbered_and_kept() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let pipe = engine.create(&maker, "pipe:deliver=true", Dict::new()).await.unwrap();
    for text in ["one", "two"] {
        let before = pipe.events.last();
        engine.write(&maker, &pipe, text.as_bytes(), 1000).await.unwrap();
        let delivered = async {
            while pipe.events.last() == before {
                engine.next_news().await;
            }
        };
        timeout(WATCHDOG, delivered).await.expect("nothing was delivered");
    }
    let (events, lost) = pipe.events.since(0);
    assert_eq!(lost, 0);
    let texts: Vec<_> = events
        .iter()
        .map(|event| match &event.happening {
            Happening::Received { data, .. } => (event.seq, data.as_slice()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(texts, [(1, b"one".as_slice()), (2, b"two")]);
}

#[tokio::test]
async fn options_must_fit_and_refusals_leave_nothing() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let address = format!("unix:path={},deliver=true", socket.display());
    assert_eq!(kind(engine.create(&maker, &address, Dict::new()).await), Kind::InvalidArgument);
    assert!(!socket.exists(), "a Create that was refused left its socket");
    for wrong in
        ["pipe:accept=true", "pipe:notify=true", "pipe:deliver=true,notify=true", "pipe:lifetime=for-ever"]
    {
        assert_eq!(kind(engine.create(&maker, wrong, Dict::new()).await), Kind::InvalidArgument, "{wrong}");
    }
    assert!(engine.objects().is_empty());
    assert_eq!(engine.counters.endpoints.value(), 0);
}

#[tokio::test]
async fn or_attach_takes_what_is_there() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let directory = tempfile::tempdir().unwrap();
    let address = format!("fifo:path={},mode=0600", directory.path().join("fifo").display());
    let first = engine.create(&maker, &address, Dict::new()).await.unwrap();
    assert_eq!(kind(engine.create(&maker, &address, Dict::new()).await), Kind::Exists);
    let second = engine.create(&maker, &address, dict! { "or-attach" => true }).await.unwrap();
    assert_eq!(first.address, second.address);
    engine.stop();
    assert_eq!(first.closed_reason(), Some("shutdown"));
}

/// What Attach opened is not ours to remove, and what Create made is.
#[tokio::test]
async fn a_refusal_removes_what_it_made_and_nothing_else() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    let create = |options: &str| format!("fifo:path={},{options}", path.display());
    // No FIFO accepts connections, and no process has this number.
    for wrong in ["accept=true", "lifetime=pid:2147483647"] {
        assert!(engine.create(&maker, &create(wrong), Dict::new()).await.is_err());
        assert!(!path.exists(), "a refused Create left its FIFO: {wrong}");
    }
    engine.create(&maker, &create("mode=0600"), Dict::new()).await.unwrap();
    for wrong in ["accept=true,remove-on-close=true", "lifetime=pid:2147483647,remove-on-close=true"] {
        assert!(engine.attach(&maker, &create(wrong), Dict::new()).await.is_err());
        assert!(path.exists(), "a refused Attach removed the FIFO: {wrong}");
        let options = dict! { "or-attach" => true };
        assert!(engine.create(&maker, &create(wrong), options).await.is_err());
        assert!(path.exists(), "a refused Create removed the FIFO that was there: {wrong}");
    }
}

/// A call that was admitted before the stop leaves nothing behind after it.
#[tokio::test]
async fn what_is_made_during_the_stop_is_closed() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    engine.stop();
    let address = format!("unix:path={}", socket.display());
    let late = engine.create(&maker, &address, Dict::new()).await.unwrap();
    assert_eq!(late.closed_reason(), Some("shutdown"));
    assert!(!socket.exists() && engine.objects().is_empty());
}

/// Watches and endpoints have a limit each, and neither uses up the other's.
#[tokio::test]
async fn watches_leave_room_for_endpoints() {
    let engine = Engine::new(Limits { endpoints: 1, watches: 2, ..Limits::default() });
    let maker = call(&engine, ":1.1");
    for _ in 0..2 {
        engine.create(&maker, "inotify:path=/tmp,events=delete-self", Dict::new()).await.unwrap();
    }
    engine.create(&maker, "pipe:", Dict::new()).await.unwrap();
    let refused = engine.create(&maker, "pipe:", Dict::new()).await.unwrap_err();
    assert!(refused.text.contains("endpoints is 1"), "{refused}");
    let refused = engine.create(&maker, "inotify:path=/tmp", Dict::new()).await.unwrap_err();
    assert!(refused.text.contains("watches is 2"), "{refused}");
}

/// The default is within the maximum, whatever the configuration says of either.
#[tokio::test]
async fn no_wait_is_longer_than_the_maximum() {
    let engine = Engine::new(Limits { max_wait_ms: 20, ..Limits::default() });
    let caller = call(&engine, ":1.1");
    let pipe = engine.create(&caller, "pipe:", Dict::new()).await.unwrap();
    let waited = engine.read(&caller, &pipe, 1, u32::MAX).await.unwrap_err();
    assert!(waited.kind == Kind::Timeout && waited.text.contains("within 20 ms"), "{waited}");
}

/// A message that came back, as its receiver had left, is delivered all the same, and in its place.
#[tokio::test]
async fn what_comes_back_is_delivered() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let packets = engine.create(&maker, "pipe:packet=true,deliver=true", Dict::new()).await.unwrap();
    packets.keep(ipc_kernel::shape::Message {
        data: b"back".into(),
        attributes: Dict::new(),
        fds: Vec::new(),
    });
    let nothing = Dict::new();
    let message =
        ipc_kernel::shape::Outgoing { data: b"next", attributes: &nothing, fds: &[], sent: &Sent::default() };
    engine.send(&maker, &packets, message, 1000).await.unwrap();
    let delivered = async {
        while packets.events.last() < 2 {
            engine.next_news().await;
        }
    };
    timeout(WATCHDOG, delivered).await.expect("not everything was delivered");
    let (events, _) = packets.events.since(0);
    let data = |happening: &Happening| match happening {
        Happening::Received { data, .. } => data.clone(),
        other => panic!("{other:?}"),
    };
    let all: Vec<_> = events.iter().map(|event| data(&event.happening)).collect();
    assert_eq!(all, [b"back".to_vec(), b"next".to_vec()]);
}

/// The kernel says nothing of what came back, so whoever waits for it is told here.
#[tokio::test]
async fn what_comes_back_wakes_whoever_waits() {
    let engine = Engine::new(Limits::default());
    let caller = call(&engine, ":1.1");
    let (pipe, packets) = (
        engine.create(&caller, "pipe:", Dict::new()).await.unwrap(),
        engine.create(&caller, "pipe:packet=true", Dict::new()).await.unwrap(),
    );
    let nothing = Dict::new();
    let waiting = async {
        tokio::join!(
            engine.read(&caller, &pipe, 9, 20_000),
            engine.receive(&caller, &packets, &nothing, 20_000),
            async {
                // Both have found nothing by then.
                tokio::task::yield_now().await;
                pipe.keep_bytes(b"bytes");
                packets.keep(ipc_kernel::shape::Message {
                    data: b"message".into(),
                    attributes: Dict::new(),
                    fds: Vec::new(),
                });
            }
        )
    };
    let (bytes, message, ()) = timeout(WATCHDOG, waiting).await.expect("they were not woken");
    assert_eq!((bytes.unwrap(), message.unwrap().data), (b"bytes".to_vec(), b"message".to_vec()));
}

#[tokio::test]
async fn a_source_that_delivers_is_not_relayed() {
    let engine = Engine::new(Limits::default());
    let maker = call(&engine, ":1.1");
    let source = engine.create(&maker, "pipe:deliver=true", Dict::new()).await.unwrap();
    let sink = engine.create(&maker, "pipe:", Dict::new()).await.unwrap();
    let refused = engine.start_relay(&maker, source, sink, Dict::new()).await.unwrap_err();
    assert!(refused.kind == Kind::Busy && refused.text.contains("deliver"), "{refused}");
}

/// Parameters that name something, for each verb that could reach outside.
#[tokio::test]
async fn a_confined_caller_gets_what_has_no_name() {
    let reasons = "mount namespace, seccomp filter";
    let engine = Engine::of(KERNEL, Limits::default(), Some(reasons.into()));
    let call = call(&engine, ":1.1");
    let dir = tempfile::tempdir().unwrap();
    let at = |scheme: &str, name: &str| format!("{scheme}:path={}", dir.path().join(name).display());
    std::fs::write(dir.path().join("there"), "0123").unwrap();
    let confined = |error: Error| {
        assert_eq!(error.kind, Kind::Confined, "{error}");
        assert!(error.text.contains(reasons) && error.text.contains("Adopt"), "{error}");
    };
    for address in [
        at("fifo", "f"),
        at("unix", "u"),
        format!("{},size=4096", at("mmap", "m")),
        format!("unix:abstract={}", unique("ipc")),
        "unix:autobind".to_owned(),
        "tcp:host=127.0.0.1,port=0".to_owned(),
        format!("posixsem:name=/{}", unique("ipc")),
        format!("posixmq:name=/{}", unique("ipc")),
        at("inotify", ""),
        "pipe:lifetime=pid:1".to_owned(),
    ] {
        confined(engine.create(&call, &address, Dict::new()).await.unwrap_err());
        let or_attach = dict! { "or-attach" => true };
        confined(engine.create(&call, &address, or_attach).await.unwrap_err());
    }
    for address in [at("mmap", "there"), "pipe:pid=1,fd=0".to_owned(), "pipe:inode=1".to_owned()] {
        confined(engine.attach(&call, &address, Dict::new()).await.unwrap_err());
    }
    for mechanism in ipc_kernel::mechanisms::ALL {
        confined(engine.list(mechanism, Dict::new()).await.unwrap_err());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made");

    let pipe = engine.create(&call, "pipe:lifetime=client", Dict::new()).await.unwrap();
    engine.create(&call, "mmap:size=4096,seals=shrink", Dict::new()).await.unwrap();
    let pair = engine.create(&call, "unix:pair,type=dgram", Dict::new()).await.unwrap();
    let fd = std::fs::File::open(dir.path().join("there")).unwrap();
    let adopted = engine.adopt(&call, fd.into(), Dict::new()).await.unwrap();
    assert_eq!(engine.memory_read(&adopted, 0, 4).await.unwrap(), b"0123");
    engine.write(&call, &pipe, b"x", 0).await.unwrap();
    let send = |attributes: Dict| {
        let (engine, pair, call) = (&engine, &pair, &call);
        async move {
            let message = ipc_kernel::shape::Outgoing {
                data: b"x",
                attributes: &attributes,
                fds: &[],
                sent: &Sent::default(),
            };
            engine.send(call, pair, message, 0).await
        }
    };
    send(Dict::new()).await.unwrap();
    confined(send(dict! { "address" => at("unix", "u").as_str() }).await.unwrap_err());
    let bound = std::fs::File::open(dir.path().join("there")).unwrap();
    confined(engine.adopt(&call, bound.into(), dict! { "lifetime" => "pid:1" }).await.unwrap_err());
}

#[tokio::test]
async fn who_is_not_confined_may_name_things() {
    let engine = Engine::new(Limits::default());
    let call = call(&engine, ":1.1");
    let dir = tempfile::tempdir().unwrap();
    let fifo = format!("fifo:path={}", dir.path().join("f").display());
    engine.create(&call, &fifo, Dict::new()).await.unwrap();
    engine.attach(&call, &fifo, Dict::new()).await.unwrap();
    engine.create(&call, &fifo, dict! { "or-attach" => true }).await.unwrap();
    for mechanism in ipc_kernel::mechanisms::ALL {
        // What lists the objects may be missing on this machine; that is said after the check.
        if let Err(error) = engine.list(mechanism, Dict::new()).await {
            assert_eq!(error.kind, Kind::Unavailable, "{error}");
        }
    }
}

#[tokio::test]
async fn idle_is_who_has_nothing() {
    let engine = Engine::new(Limits::default());
    assert!(engine.is_idle());
    let admitted = engine.admitted();
    let held = call(&engine, ":1.1");
    assert!(!engine.is_idle() && engine.admitted() > admitted);
    let pipe = engine.create(&held, "pipe:", Dict::new()).await.unwrap();
    drop(held);
    assert!(!engine.is_idle(), "it has an endpoint");
    engine.close(&pipe, "closed");
    assert!(engine.is_idle());
}
