//! A worker that its user has taken over harms nobody but him.

use ipc_harness::{Bus, or_skip, patience, watchdog};

use crate::{Client, Fixture, lenient, signal};

/// The client's worker breaks a rule: it ends, its callers are told, the next call has a new one.
async fn offence<B>(fixture: &Fixture, client: &Client, member: &str, body: &B)
where
    B: serde::Serialize + zbus::DynamicType,
{
    let (name, instance) = client.worker().await;
    let mut signals = client.signals();
    let waiting = client.under_way("Never").await;
    let error = client.call(member, body).await.expect_err(member);
    assert_eq!(error.0, "Gone", "{member}: {error:?}");
    let other = watchdog(patience(), waiting).await.expect("a task").expect_err("Never");
    assert_eq!(other.0, "Gone", "{member}: {other:?}");
    let lost = signal(&mut signals, "Lost").await;
    let reason: String = lost.body().deserialize().expect("a reason");
    assert!(reason.contains("ended"), "{member}: {reason}");
    drop(signals);
    let (again, next) = client.worker().await;
    assert_eq!(again, name, "{member}");
    assert!(next > instance, "{member}");
    assert_eq!(fixture.fake.started(), next);
}

#[tokio::test]
async fn rules_are_kept_or_the_worker_ends() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (client, victim) = (fixture.client(0).await, fixture.client(1).await);
    let victims = victim.worker().await;
    let waiting = victim.under_way("Never").await;
    for member in ["WrongSerial", "CallBack", "Oversize", "Fds", "Garbage", "Broken", "Broadcast"] {
        offence(&fixture, &client, member, &()).await;
    }
    for serial in [1u32, 2, 3] {
        offence(&fixture, &client, "Foreign", &(victim.name(), serial)).await;
    }
    // The other has noticed nothing.
    assert_eq!(victim.worker().await, victims);
    assert!(!waiting.is_finished());
}

#[tokio::test]
async fn a_second_reply_ends_the_worker() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let client = fixture.client(0).await;
    let mut signals = client.signals();
    client.call("Twice", &()).await.expect("the first reply");
    signal(&mut signals, "Lost").await;
    drop(signals);
    assert_eq!(client.worker().await.1, 2);
}

#[tokio::test]
async fn signals_reach_the_workers_own_clients_only() {
    let fixture = Fixture::new(or_skip!(Bus::dbus_daemon()), lenient()).await;
    let (client, victim) = (fixture.client(0).await, fixture.client(1).await);
    let mut signals = client.signals();
    client.call("SignalTo", &client.name()).await.expect("to itself");
    signal(&mut signals, "Changed").await;
    drop(signals);
    let mut signals = victim.signals();
    client.call("SignalTo", &victim.name()).await.expect_err("to another");
    // Nothing came before what his own worker sends him then.
    victim.call("Signals", &(1u32, 1u32)).await.expect("his own");
    use futures_util::StreamExt;
    let first = async {
        loop {
            let message = signals.next().await.expect("the bus").expect("a message");
            if message.message_type() == zbus::message::Type::Signal {
                return message;
            }
        }
    };
    let first = watchdog(patience(), first).await;
    assert_eq!(first.header().member().expect("a signal").as_str(), "Event");
}
