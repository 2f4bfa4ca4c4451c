//! Waiting: the kernel's order, several selectors at once, giving up, removal.

use std::{sync::Arc, thread};

use ipc_kernel::{
    Attempt, Dict, Endpoint, Kind, Readiness,
    blocked::{Ended, Sent},
    dict,
    shape::Outgoing,
};

use crate::support::*;

/// The readiness of an attempt that has to wait.
fn waits(endpoint: &Arc<dyn Endpoint>, selector: &Dict) -> Readiness {
    match try_receive(endpoint, selector).unwrap() {
        Attempt::Wait(readiness) => readiness,
        Attempt::Done(message) => panic!("there is {message:?}"),
    }
}

#[test]
fn receivers_with_32_selectors_are_each_served() {
    let queue = create("key=private");
    thread::scope(|scope| {
        let receivers: Vec<_> = (1..=32_i64)
            .map(|kind| {
                let queue = queue.0.clone();
                scope.spawn(move || receive(&queue, &dict! { "type" => kind }).unwrap())
            })
            .collect();
        // Against the order in which they wait.
        for kind in (1..=32).rev() {
            send(&queue, kind, &[kind as u8]).unwrap();
        }
        for (n, receiver) in receivers.into_iter().enumerate() {
            let kind = n as i64 + 1;
            assert_eq!(receiver.join().unwrap(), (kind, vec![kind as u8]));
        }
    });
    assert_eq!(number(&queue, "qnum"), 0);
}

#[test]
fn selectors_of_all_kinds_wait_together() {
    let queue = create("key=private");
    let selectors =
        [dict! { "type" => -3i64 }, dict! { "type" => 9i64, "except" => true }, dict! { "type" => 9i64 }];
    for (selector, kind) in selectors.iter().zip([3, 8, 9]) {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| receive(&queue, selector).unwrap());
            send(&queue, kind, b"it").unwrap();
            assert_eq!(waiting.join().unwrap(), (kind, b"it".to_vec()));
        });
    }
}

/// A C program that waited first is served first, and the other way round.
#[test]
fn the_order_among_waiters_is_the_kernels() {
    let Some(mut peer) = program() else { return };
    let queue = create("key=private");
    let id = queue.id();
    peer.tell(&format!("rcv {id} 10 0 0"));
    blocks(&peer);
    let (running, end) = started(waits(&queue, &Dict::new()));
    send(&queue, 1, b"1").unwrap();
    assert_eq!(peer.line(), "ok 1 31");
    send(&queue, 1, b"2").unwrap();
    end.recv_timeout(PATIENCE).unwrap();
    give_up(&running);
    assert_eq!(now(&queue, &Dict::new()), Some((1, b"2".to_vec())));
}

#[test]
fn removal_wakes_everybody_at_once() {
    let Some(mut peer) = program() else { return };
    let queue = create("key=private,qbytes=10");
    let id = queue.id();
    send(&queue, 1, &[0; 10]).unwrap();
    thread::scope(|scope| {
        let receivers: Vec<_> = (0..8)
            .map(|n| {
                let queue = queue.0.clone();
                scope.spawn(move || receive(&queue, &dict! { "type" => 100 + i64::from(n) }))
            })
            .collect();
        let sender = scope.spawn(|| send(&queue, 1, b"no room"));
        let arrival = scope.spawn(|| {
            let queue = attach(&format!("id={id}")).unwrap();
            finish(|| queue.messages().unwrap().peek(&dict! { "type" => 77i64 }))
        });
        peer.tell(&format!("rcv {id} 10 50 0"));
        blocks(&peer);
        // Another process removes it.
        let mut remover = program().unwrap();
        assert_eq!(remover.ask(&format!("rm {id}")), "ok 0");
        assert_eq!(peer.line(), "EIDRM");
        for receiver in receivers {
            refused(receiver.join().unwrap(), Kind::Gone, "was removed");
        }
        refused(sender.join().unwrap(), Kind::Gone, "was removed");
        refused(arrival.join().unwrap(), Kind::Gone, "was removed");
    });
}

#[test]
fn a_wait_that_was_given_up_keeps_what_it_took() {
    let queue = create("key=private");
    let (running, end) = started(waits(&queue, &dict! { "type" => 5i64 }));
    send(&queue, 5, b"five").unwrap();
    end.recv_timeout(PATIENCE).unwrap();
    // Until its own attempt, it is nobody else's.
    assert_eq!(now(&queue, &Dict::new()), None);
    give_up(&running);
    send(&queue, 6, b"six").unwrap();
    assert_eq!(queue.messages().unwrap().depth(), Some(2));
    assert_eq!(number(&queue, "taken-messages"), 1);
    assert_eq!(now(&queue, &dict! { "type" => 7i64 }), None);
    assert!(matches!(queue.messages().unwrap().arrival(), Ok(Attempt::Done(()))));
    refused(try_receive(&queue, &dict! { "max-size" => 3u32 }), Kind::TooLarge, "max-size");
    assert_eq!(now(&queue, &Dict::new()), Some((5, b"five".to_vec())), "what was taken first comes first");
    assert_eq!(now(&queue, &Dict::new()), Some((6, b"six".to_vec())));
}

#[test]
fn what_was_taken_goes_back_when_the_endpoint_goes() {
    let queue = create("key=private");
    let other = attach(&format!("id={}", queue.id())).unwrap();
    for kind in [5, 6] {
        let (running, end) = started(waits(&other, &dict! { "type" => i64::from(kind) }));
        send(&queue, kind.into(), &[kind]).unwrap();
        end.recv_timeout(PATIENCE).unwrap();
        give_up(&running);
    }
    // Of the two, one finds the queue full: it goes back when there is room.
    let change = ipc_kernel::mechanism::Permissions { qbytes: Some(1), ..Default::default() };
    queue.set_permissions(change).unwrap();
    assert_eq!(number(&queue, "qnum"), 0);
    drop(other);
    assert_eq!(receive(&queue, &Dict::new()).unwrap(), (5, vec![5]));
    assert_eq!(receive(&queue, &Dict::new()).unwrap(), (6, vec![6]));
}

#[test]
fn an_arrival_takes_nothing_not_even_an_empty_message() {
    let queue = create("key=private");
    for data in [&b"full"[..], b""] {
        let arrival = || queue.messages().unwrap().arrival();
        let Ok(Attempt::Wait(readiness)) = arrival() else { panic!("nothing has arrived") };
        let (running, end) = started(readiness);
        send(&queue, 4, data).unwrap();
        end.recv_timeout(PATIENCE).unwrap();
        give_up(&running);
        assert!(matches!(arrival(), Ok(Attempt::Done(()))));
        assert_eq!(number(&queue, "qnum"), 1, "a C program sees it");
        assert_eq!(now(&queue, &Dict::new()), Some((4, data.to_vec())));
    }
}

/// Given up at any moment, a Send has sent its message once or not at all, and says which.
#[test]
fn a_send_that_was_given_up_knows_whether_it_was_sent() {
    let queue = create("key=private,qbytes=4");
    let (mut sent_by_the_wait, mut not_sent) = (0, 0);
    for round in 0..3_000_u32 {
        send(&queue, 1, b"full").unwrap();
        let sent = Sent::default();
        let data = round.to_ne_bytes();
        let outgoing = Outgoing { data: &data, attributes: &dict! { "type" => 2i64 }, fds: &[], sent: &sent };
        let Ok(Attempt::Wait(readiness)) = queue.messages().unwrap().send(outgoing) else {
            panic!("a full queue took a message")
        };
        let (running, end) = started(readiness);
        // Room comes at about the time at which the wait is given up.
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                assert_eq!(receive(&queue, &dict! { "type" => 1i64 }).unwrap().1, b"full");
            });
            (0..(round / 64) % 64).for_each(|_| thread::yield_now());
            give_up(&running);
        });
        end.recv_timeout(PATIENCE).unwrap();
        let arrived = now(&queue, &dict! { "type" => 2i64 });
        assert_eq!(sent.is_set(), arrived.is_some(), "round {round}");
        match running.ended() {
            Some(Ended::Done) => {
                // The attempt after it sends no second one.
                let again = queue.messages().unwrap().send(outgoing).unwrap();
                assert!(matches!(again, Attempt::Done(())));
                assert_eq!(now(&queue, &Dict::new()), None, "sent twice");
                sent_by_the_wait += 1;
            }
            _ => not_sent += 1,
        }
    }
    println!("{sent_by_the_wait} sent by the wait, {not_sent} not sent");
}

#[test]
fn a_full_queue_takes_the_message_as_soon_as_there_is_room() {
    let Some(mut peer) = program() else { return };
    let queue = create("key=private,qbytes=4");
    send(&queue, 1, b"full").unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&queue, 2, b"next"));
        assert_eq!(peer.ask(&format!("rcv {} 10 0 0", queue.id())), "ok 1 66756c6c");
        sending.join().unwrap().unwrap();
    });
    assert_eq!(peer.ask(&format!("rcv {} 10 0 4000", queue.id())), "ok 2 6e657874");
    // Messages of no bytes fill it by their number.
    for _ in 0..4 {
        send(&queue, 1, b"").unwrap();
    }
    assert!(matches!(try_send(&queue, b"", &Dict::new()), Ok(Attempt::Wait(_))));
}
