//! Something ends: a worker, the spawner, a client, the front.

use ipc_front::Limits;
use ipc_harness::{Bus, Kind, connect, or_skip, patience, watchdog};
use zbus::message::Message;

use crate::{
    Client, Fixture, Store,
    fake::{self, Fake},
    lenient, signal, start,
};

#[tokio::test]
async fn a_worker_dies() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (one, other) = (fixture.client(0).await, fixture.client(0).await);
    let mut signals = other.signals();
    let error = one.call("Die", &()).await.expect_err("Die");
    assert_eq!(error.0, "Gone");
    assert!(error.1.contains("ended unexpectedly"), "{}", error.1);
    // Whoever has called hears of it.
    signal(&mut signals, "Lost").await;
    drop(signals);
    assert_eq!((one.worker().await.1, other.worker().await.1), (2, 2));
}

#[tokio::test]
async fn a_worker_that_dies_over_and_over_pauses() {
    let limits = Limits { worker_starts: 16, worker_crashes: 3, ..Limits::default() };
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), limits).await;
    let client = fixture.client(0).await;
    for _ in 0..3 {
        client.call("Die", &()).await.expect_err("Die");
    }
    let error = client.call("WhoAmI", &()).await.expect_err("paused");
    assert!(error.0 == "Unavailable" && error.1.contains("3 times"), "{error:?}");
    assert_eq!(fixture.fake.started(), 3);
}

#[tokio::test]
async fn workers_are_not_started_faster_than_that() {
    let limits = Limits { worker_starts: 1, ..Limits::default() };
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), limits).await;
    for confinement in 0..4 {
        fixture.client(confinement).await;
    }
    fixture.fake.examine_says(4);
    let other = Client { connection: connect(&fixture.bus).await };
    let error = other.call("WhoAmI", &()).await.expect_err("too fast");
    assert!(error.0 == "LimitExceeded" && error.1.contains("worker-starts is 1"), "{error:?}");
}

#[tokio::test]
async fn a_worker_that_cannot_be_started_is_an_error_that_says_why() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    fixture.fake.starts_fail_with(11);
    let client = Client { connection: connect(&fixture.bus).await };
    let error = client.call("WhoAmI", &()).await.expect_err("EAGAIN");
    assert!(error.0 == "Unavailable" && error.1.contains("Resource temporarily unavailable"), "{error:?}");
    fixture.fake.starts_fail_with(0);
    client.call("WhoAmI", &()).await.expect("now");
}

#[tokio::test]
async fn a_stuck_worker_is_replaced() {
    let limits = Limits { stuck_after_ms: 200, ..lenient() };
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), limits).await;
    let (client, other) = (fixture.client(0).await, fixture.client(1).await);
    let waiting = client.under_way("Never").await;
    let error = client.call("Stop", &()).await.expect_err("Stop");
    assert!(error.0 == "Timeout" && error.1.contains("200 ms"), "{error:?}");
    assert_eq!(watchdog(patience(), waiting).await.expect("a task").expect_err("Never").0, "Timeout");
    assert_eq!(client.worker().await.1, 3);
    // One that takes long but answers whether it runs is left alone: it is asked again and again.
    let pings = fixture.fake.pings();
    let waiting = other.under_way("Never").await;
    let (first, pings) = fake::next(pings).await;
    let (second, _pings) = fake::next(pings).await;
    assert_eq!((&first, &second), (&other.worker().await.0, &first));
    assert!(!waiting.is_finished());
    assert_eq!(other.worker().await.1, 2);
}

#[tokio::test]
async fn without_a_spawner_workers_go_on() {
    let bus = or_skip!(Bus::dbus_daemon());
    let (spawner, front_end) = crate::fake::pair();
    let (fake, behind) = Fake::new();
    let relay = std::thread::spawn(move || relay(&spawner, &behind));
    let front = start(&bus, front_end, lenient(), Vec::new(), Box::new(ipc_front::NoStore)).await;
    let fixture = Fixture { bus, fake, front: front.expect("the front starts") };
    let client = fixture.client(0).await;
    relay.join().expect("ends after the first worker");
    let (name, _) = client.worker().await;
    assert!(name.starts_with("w-"));
    let other = Client { connection: connect(&fixture.bus).await };
    let error = other.call("WhoAmI", &()).await.expect_err("no spawner");
    assert!(error.0 == "Unavailable" && error.1.contains("ipcd-spawner"), "{error:?}");
    client.call("Echo", &"still").await.expect("its worker goes on");
}

#[tokio::test]
async fn a_spawner_that_was_started_again_is_found() {
    let bus = or_skip!(Bus::dbus_daemon());
    let (ended, front_end) = crate::fake::pair();
    drop(ended);
    let (fake, spawner) = Fake::new();
    let spawner = std::sync::Mutex::new(Some(spawner));
    let again =
        move || spawner.lock().expect("not poisoned").take().ok_or(std::io::ErrorKind::NotFound.into());
    let start = ipc_front::Start {
        spawner: front_end,
        reconnect: Some(Box::new(again)),
        workers: Vec::new(),
        limits: lenient(),
        address: Some(bus.address().to_owned()),
        fd_store: Box::new(ipc_front::NoStore),
    };
    let front = ipc_front::Front::start(start).await.expect("the front starts");
    let client = Client { connection: connect(&bus).await };
    client.call("WhoAmI", &()).await.expect("the one that was started again");
    assert_eq!(fake.started(), 1);
    front.stop().await;
}

/// Passes on one Start and what comes before it, and then the spawner is gone.
fn relay(front: &std::os::fd::OwnedFd, spawner: &std::os::fd::OwnedFd) {
    use ipc_spawner::{
        client,
        protocol::{REQUEST_SIZE, Request},
    };
    use rustix::event::{PollFd, PollFlags, poll};
    let mut started = false;
    while !started {
        let mut buffer = [0; REQUEST_SIZE];
        let (_, length) =
            rustix::net::recv(front, &mut buffer, rustix::net::RecvFlags::empty()).expect("a request");
        let request = Request::decode(&buffer[..length]).expect("a request");
        started = matches!(request, Request::Start { .. });
        client::send(spawner, &request, None).expect("sent");
        poll(&mut [PollFd::new(spawner, PollFlags::IN)], None).expect("an answer");
        let (reply, control) = client::receive(spawner).expect("a reply");
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = control.iter().map(std::os::fd::AsFd::as_fd).collect();
        if !fds.is_empty() {
            assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        }
        let bytes = reply.encode();
        let flags = rustix::net::SendFlags::NOSIGNAL;
        rustix::net::sendmsg(front, &[std::io::IoSlice::new(&bytes)], &mut ancillary, flags).expect("sent");
    }
    rustix::net::shutdown(front, rustix::net::Shutdown::Both).expect("a socket");
}

#[tokio::test]
async fn who_leaves_in_mid_call_is_forgotten() {
    for kind in Kind::ALL {
        let fixture = Fixture::new(or_skip!(Bus::start(kind)), lenient()).await;
        let departures = fixture.fake.departures();
        let (leaving, staying) = (fixture.client(0).await, fixture.client(0).await);
        let (name, waiting) = (leaving.name(), leaving.under_way("Never").await);
        let call = Message::method_call(ipc_harness::PATH, "Never").interface(ipc_harness::NAME);
        let call = call.destination(ipc_harness::NAME).build(&()).expect("valid");
        leaving.connection.send(&call).await.expect("sent");
        leaving.call("Echo", &"behind").await.expect("Echo");
        leaving.connection.clone().close().await.expect("closed");
        waiting.abort();
        assert_eq!(fake::next(departures).await.0, name);
        // What it says to it now, it said before it knew.
        let serial = call.primary_header().serial_num().get();
        staying.call("Late", &(&name, serial)).await.expect("no offence");
        staying.call("SignalTo", &name).await.expect("no offence");
        assert_eq!(staying.worker().await.1, 1);
    }
}

#[tokio::test]
async fn an_idle_worker_is_let_go() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let client = fixture.client(0).await;
    // It says so in answer to a call that is not answered: somebody waits, so it is not let go.
    let waiting = client.under_way("Idle").await;
    assert_eq!(client.worker().await.1, 1);
    assert!(!waiting.is_finished());
    client.call("Die", &()).await.expect_err("Die");
    assert_eq!(client.worker().await.1, 2);
    let let_go = fixture.fake.let_go();
    let mut signals = client.signals();
    let quiet = Message::method_call(ipc_harness::PATH, "IdleQuietly").interface(ipc_harness::NAME);
    let quiet = quiet.destination(ipc_harness::NAME).with_flags(zbus::message::Flags::NO_REPLY_EXPECTED);
    client.connection.send(&quiet.build(&()).expect("valid")).await.expect("sent");
    assert_eq!(fake::next(let_go).await.0, client.worker().await.0);
    // A new one has answered; the end of the one before is no loss.
    assert_eq!(client.worker().await.1, 3);
    use futures_util::FutureExt;
    use futures_util::StreamExt;
    while let Some(message) = signals.next().now_or_never() {
        let message = message.expect("the bus").expect("a message");
        assert!(message.header().member().is_none_or(|member| member != "Lost"));
    }
}

#[tokio::test]
async fn the_service_ends() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let client = fixture.client(0).await;
    let waiting = client.under_way("Never").await;
    let (name, _) = client.worker().await;
    let let_go = fixture.fake.let_go();
    let mut signals = client.signals();
    let Fixture { bus: _bus, fake: _fake, front } = fixture;
    watchdog(patience(), front.stop()).await;
    let error = watchdog(patience(), waiting).await.expect("a task").expect_err("Never");
    assert!(error.0 == "Cancelled" && error.1.contains("stopping"), "{error:?}");
    assert_eq!(fake::next(let_go).await.0, name);
    // Nothing was lost without a word.
    use futures_util::{FutureExt, StreamExt};
    while let Some(message) = signals.next().now_or_never() {
        let message = message.expect("the bus").expect("a message");
        assert!(message.header().member().is_none_or(|member| member != "Lost"));
    }
}

#[tokio::test]
async fn the_next_front_goes_on_with_the_workers() {
    let bus = or_skip!(Bus::dbus_daemon());
    let (fake, spawner) = Fake::new();
    let store = Store::default();
    let first = start(
        &bus,
        spawner.try_clone().expect("a duplicate"),
        lenient(),
        Vec::new(),
        Box::new(store.clone()),
    );
    let fixture = Fixture { front: first.await.expect("the first"), bus, fake };
    let (client, leaving) = (fixture.client(0).await, fixture.client(0).await);
    let other = fixture.client(1).await;
    let before = (client.worker().await, other.worker().await);
    let departures = fixture.fake.departures();
    let left = leaving.name();
    fixture.fake.clients_are(vec![client.name(), left.clone()]);
    let Fixture { bus, fake, front } = fixture;
    front.stop().await;
    leaving.connection.close().await.expect("closed");

    let kept: Vec<_> = store.0.lock().expect("not poisoned").drain().collect();
    assert_eq!(kept.len(), 2);
    let (mine, others): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(name, _)| *name == before.0.0);
    drop(others);
    fake.examine_says(0);
    let second = start(&bus, spawner, lenient(), mine, Box::new(store)).await.expect("the second");
    // Who left while there was no front is told of.
    assert_eq!(fake::next(departures).await.0, left);
    assert_eq!(client.worker().await, before.0);
    client.call("SignalTo", &client.name()).await.expect("a client as before");
    assert_eq!(client.worker().await, before.0);
    // One that claims somebody else's client has been taken over.
    fake.clients_are(vec![client.name()]);
    fake.examine_says(1);
    let other_again = other.call("WhoAmI", &()).await;
    assert!(other_again.is_err() || other.worker().await.1 > before.1.1);
    drop(second);
}
