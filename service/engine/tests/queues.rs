//! System V queues through the engine: the waits that are blocking calls, and relays over them. Nothing is lost
//! and nothing comes twice, whenever a wait is given up.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::{sync::Arc, time::Duration};

use ipc_engine::{Call, Endpoint, Engine, Limits, events::Happening};
use ipc_kernel::{Dict, Kind, Result, blocked::Sent, dict, shape::Outgoing};
use tokio::time::timeout;

mod common;

use common::{WATCHDOG, call, kind};

/// An engine whose endpoints remove their queues when it goes, however the test ends.
struct World {
    engine: Arc<Engine>,
    call: Call,
}

impl World {
    fn new() -> Self {
        let engine = Engine::new(Limits { waits: 64, ..Limits::default() });
        let call = call(&engine, ":1.1");
        Self { engine, call }
    }

    async fn queue(&self, options: &str) -> Arc<Endpoint> {
        let address = format!("sysvmq:key=private,remove-on-close=true{options}");
        self.engine.create(&self.call, &address, Dict::new()).await.unwrap()
    }

    async fn send(&self, queue: &Endpoint, kind: i64, data: &[u8], timeout_ms: u32) -> Result<()> {
        let (attributes, sent) = (dict! { "type" => kind }, Sent::default());
        let message = Outgoing { data, attributes: &attributes, fds: &[], sent: &sent };
        self.engine.send(&self.call, queue, message, timeout_ms).await
    }

    async fn receive(&self, queue: &Endpoint, selector: &Dict, timeout_ms: u32) -> Result<(i64, Vec<u8>)> {
        let message = self.engine.receive(&self.call, queue, selector, timeout_ms).await?;
        Ok((message.attributes["type"].integer().unwrap().try_into().unwrap(), message.data))
    }

    /// Everything that is in a queue, in order.
    async fn drain(&self, queue: &Endpoint) -> Vec<(i64, Vec<u8>)> {
        let mut all = Vec::new();
        while let Ok(message) = self.receive(queue, &Dict::new(), 0).await {
            all.push(message);
        }
        all
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

#[tokio::test]
async fn every_wait_on_a_queue_ends() {
    let world = World::new();
    let queue = world.queue("").await;
    let nothing = Dict::new();
    assert_eq!(kind(world.receive(&queue, &nothing, 0).await), Kind::Busy);
    assert_eq!(kind(world.receive(&queue, &nothing, 20).await), Kind::Timeout);
    let closer = async { world.engine.close(&queue, "closed") };
    let (ended, _) = tokio::join!(world.receive(&queue, &nothing, 60_000), closer);
    assert_eq!(kind(ended), Kind::Cancelled);
    let queue = world.queue("").await;
    let remover = async { queue.kernel.remove() };
    let (ended, removed) = tokio::join!(world.receive(&queue, &nothing, 60_000), remover);
    removed.unwrap();
    assert_eq!(kind(ended), Kind::Gone);
    assert_eq!(world.engine.counters.waits.value(), 0);
}

/// A Send that says Timeout has sent nothing, and one that says otherwise has sent once.
#[tokio::test]
async fn a_send_that_times_out_has_sent_nothing() {
    let world = World::new();
    let queue = world.queue(",qbytes=4").await;
    let (mut sent, mut timed_out) = (0, 0);
    for round in 0..400_u32 {
        world.send(&queue, 1, b"full", 0).await.unwrap();
        let data = round.to_ne_bytes();
        let room = async {
            // At about the moment at which the time is up.
            tokio::time::sleep(Duration::from_micros(900 + u64::from(round % 20) * 20)).await;
            assert_eq!(world.receive(&queue, &dict! { "type" => 1i64 }, 0).await.unwrap().1, b"full");
        };
        let (outcome, ()) = tokio::join!(world.send(&queue, 2, &data, 1), room);
        let arrived = world.drain(&queue).await;
        match outcome {
            Ok(()) => {
                assert_eq!(arrived, [(2, data.to_vec())], "round {round}");
                sent += 1;
            }
            Err(error) => {
                assert_eq!((error.kind, arrived), (Kind::Timeout, vec![]), "round {round}");
                timed_out += 1;
            }
        }
    }
    println!("{sent} sent, {timed_out} timed out");
}

/// A Receive that says Timeout has taken nothing.
#[tokio::test]
async fn a_receive_that_times_out_has_taken_nothing() {
    let world = World::new();
    let queue = world.queue("").await;
    for round in 0..400_u32 {
        let data = round.to_ne_bytes();
        let sending = async {
            tokio::time::sleep(Duration::from_micros(900 + u64::from(round % 20) * 20)).await;
            world.send(&queue, 3, &data, 0).await.unwrap();
        };
        let three = dict! { "type" => 3i64 };
        let (received, ()) = tokio::join!(world.receive(&queue, &three, 1), sending);
        match received {
            Ok(message) => assert_eq!(message, (3, data.to_vec())),
            Err(error) => {
                assert_eq!(error.kind, Kind::Timeout);
                assert_eq!(
                    queue.kernel.inspect().unwrap()["qnum"].integer(),
                    Some(1),
                    "it stays in the queue"
                );
                assert_eq!(world.receive(&queue, &Dict::new(), 0).await.unwrap(), (3, data.to_vec()));
            }
        }
    }
}

#[tokio::test]
async fn many_selectors_wait_at_once_up_to_the_limit() {
    let world = World::new();
    let queue = world.queue("").await;
    let waiting: Vec<_> = (1..=32_i64)
        .map(|kind| {
            let (engine, queue, call) =
                (world.engine.clone(), queue.clone(), call(&world.engine, &format!(":2.{kind}")));
            tokio::spawn(
                async move { engine.receive(&call, &queue, &dict! { "type" => kind }, 20_000).await },
            )
        })
        .collect();
    while world.engine.counters.waits.value() < 32 {
        tokio::task::yield_now().await;
    }
    for kind in (1..=32_i64).rev() {
        world.send(&queue, kind, &[kind as u8], 0).await.unwrap();
    }
    for (n, waiting) in waiting.into_iter().enumerate() {
        let message = timeout(WATCHDOG, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!(message.data, [n as u8 + 1]);
    }
}

#[tokio::test]
async fn what_a_caller_who_left_did_not_get_goes_back_on_close() {
    let world = World::new();
    let queue = world.queue("").await;
    let address = format!("sysvmq:id={}", queue.kernel.inspect().unwrap()["id"].integer().unwrap());
    let other = world.engine.attach(&world.call, &address, Dict::new()).await.unwrap();
    let leaver = call(&world.engine, ":1.2");
    world.engine.client_left(":1.2");
    world.send(&queue, 9, b"for nobody", 0).await.unwrap();
    assert_eq!(kind(world.engine.receive(&leaver, &other, &Dict::new(), 1000).await), Kind::Cancelled);
    assert_eq!(other.kept_count().0, 1);
    // The kernel has it no more; whoever receives here still gets it.
    assert_eq!((queue.messages_depth().unwrap(), other.messages_depth().unwrap()), (0, 1));
    world.engine.close(&other, "closed");
    drop(other);
    let back = async {
        while queue.kernel.messages().unwrap().depth() != Some(1) {
            world.engine.next_news().await;
        }
    };
    timeout(WATCHDOG, back).await.expect("it did not come back");
    assert_eq!(world.receive(&queue, &Dict::new(), 0).await.unwrap(), (9, b"for nobody".to_vec()));
}

#[tokio::test]
async fn a_purge_takes_what_is_asked_for() {
    let world = World::new();
    let queue = world.queue("").await;
    for n in 0..300_i64 {
        world.send(&queue, 1 + n % 3, b"x", 0).await.unwrap();
    }
    let purge = async |selector: Dict| world.engine.purge(&world.call, &queue, &selector).await;
    assert_eq!(purge(dict! { "type" => 2i64 }).await, Ok(100));
    assert_eq!(purge(dict! { "type" => 2i64 }).await, Ok(0));
    assert_eq!(purge(dict! { "type" => 3i64, "except" => true }).await, Ok(100));
    assert_eq!(kind(purge(dict! { "no-such" => 2i64 }).await), Kind::InvalidArgument);
    assert_eq!(purge(Dict::new()).await, Ok(100));
    assert_eq!(world.drain(&queue).await, []);
}

#[tokio::test]
async fn ready_comes_and_takes_nothing() {
    let world = World::new();
    let queue = world.queue(",notify=true").await;
    for (n, data) in [&b"full"[..], b""].into_iter().enumerate() {
        world.send(&queue, 5, data, 0).await.unwrap();
        let ready = async {
            while queue.events.last() <= n as u64 {
                world.engine.next_news().await;
            }
        };
        timeout(WATCHDOG, ready).await.expect("no Ready");
        let (events, _) = queue.events.since(0);
        assert!(events.iter().all(|event| matches!(event.happening, Happening::Ready)), "{events:?}");
        assert_eq!(world.receive(&queue, &Dict::new(), 1000).await.unwrap(), (5, data.to_vec()));
    }
}

/// Between two queues each message keeps its type; and whenever the relay is paused or stopped, each is in one
/// place, once.
#[tokio::test]
async fn a_relay_loses_and_doubles_nothing() {
    let world = World::new();
    for round in 0..40_u64 {
        let (source, sink) = (world.queue("").await, world.queue(",qbytes=40").await);
        let all: Vec<(i64, Vec<u8>)> =
            (0..200_u32).map(|n| (1 + i64::from(n % 7), n.to_be_bytes().to_vec())).collect();
        for (kind, data) in &all {
            world.send(&source, *kind, data, 0).await.unwrap();
        }
        let relay =
            world.engine.start_relay(&world.call, source.clone(), sink.clone(), Dict::new()).await.unwrap();
        let mut arrived = Vec::new();
        for _ in 0..round {
            arrived.extend(world.receive(&sink, &Dict::new(), 5000).await);
            if round % 3 == 0 {
                relay.pause().unwrap();
                tokio::task::yield_now().await;
                relay.resume().unwrap();
            }
        }
        relay.stop("stopped");
        timeout(WATCHDOG, relay.ended.wait()).await.expect("the relay did not end");
        arrived.extend(world.drain(&sink).await);
        let counted = relay.finished().unwrap().messages;
        assert_eq!(arrived.len() as u64, counted, "round {round}: the relay says what arrived");
        arrived.extend(world.drain(&source).await);
        assert_eq!(arrived, all, "round {round}");
        world.engine.close(&source, "test");
        world.engine.close(&sink, "test");
    }
}

/// Lines into a queue, stopped while the queue is full.
#[tokio::test]
async fn a_framed_relay_loses_and_doubles_nothing() {
    let world = World::new();
    for round in 0..20_usize {
        let pipe = world.engine.create(&world.call, "pipe:", Dict::new()).await.unwrap();
        let sink = world.queue(",qbytes=30").await;
        let text: String = (0..100).map(|n| format!("{n:04}\n")).collect();
        world.engine.write(&world.call, &pipe, text.as_bytes(), 1000).await.unwrap();
        let framing = dict! { "framing" => "line" };
        let relay = world.engine.start_relay(&world.call, pipe.clone(), sink.clone(), framing).await.unwrap();
        let mut arrived = Vec::new();
        for _ in 0..round {
            arrived.push(world.receive(&sink, &Dict::new(), 5000).await.unwrap().1);
        }
        relay.stop("stopped");
        timeout(WATCHDOG, relay.ended.wait()).await.expect("the relay did not end");
        arrived.extend(world.drain(&sink).await.into_iter().map(|(_, data)| data));
        let mut rest = Vec::new();
        while let Ok(more) = world.engine.read(&world.call, &pipe, 1000, 0).await {
            rest.extend(more);
        }
        let expected: String = (arrived.len()..100).map(|n| format!("{n:04}\n")).collect();
        assert_eq!(String::from_utf8(rest).unwrap(), expected, "round {round}");
        let lines: Vec<_> = (0..arrived.len()).map(|n| format!("{n:04}").into_bytes()).collect();
        assert_eq!(arrived, lines);
        world.engine.close(&sink, "test");
        world.engine.close(&pipe, "test");
    }
}
