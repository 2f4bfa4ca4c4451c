//! Messages between a program and an endpoint: neither can tell the other from its own kind.

use super::*;

#[test]
fn a_program_finds_what_we_made_and_we_find_what_it_made() {
    let (ours, theirs) = (Queue::new(), Queue::new());
    let endpoint = ours.made();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let queue = program.ask(&format!("open {} {BOTH}", ours.hex()));
    assert_eq!(program.ask(&format!("attributes {queue}")), "0 3 64 0");
    send(&*endpoint, "to them", 5);
    assert_eq!(messages(&*endpoint).depth(), Some(1));
    assert_eq!(program.ask(&format!("attributes {queue}")), "0 3 64 1");
    assert_eq!(program.ask(&format!("receive {queue} 0")), received("to them", 5));
    assert_eq!(program.ask(&format!("send {} {queue} 9 0", hex(b"to us"))), "0");
    assert_eq!(receive(&*endpoint), ("to us".into(), 9));

    let queue = program.ask(&format!("create {} {BOTH} {} 4 100", theirs.hex(), 0o640));
    let endpoint = attach(&theirs.address()).unwrap();
    assert_eq!(endpoint.address().to_string(), theirs.address());
    assert_eq!(messages(&*endpoint).max_message_size(), 100);
    for (key, value) in [("depth", 4), ("size", 100), ("messages", 0), ("bytes", 0), ("mode", 0o640)] {
        assert_eq!(number(&*endpoint, key), Some(value), "{key}");
    }
    assert_eq!(program.ask(&format!("send - {queue} 0 0")), "0");
    assert_eq!(program.ask(&format!("send {} {queue} 0 0", hex(&[0; 100]))), "0");
    assert_eq!((number(&*endpoint, "messages"), number(&*endpoint, "bytes")), (Some(2), Some(100)));
    assert_eq!(receive(&*endpoint), (String::new(), 0), "an empty message is a message");
    assert_eq!(receive(&*endpoint), ("\0".repeat(100), 0));
}

#[test]
fn priorities_and_order_are_the_kernels_both_ways() {
    let queue = Queue::new();
    let endpoint = create(&format!("{},depth=8,size=16", queue.address())).unwrap();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let fd = program.ask(&format!("open {} {BOTH}", queue.hex()));
    let sent = [("low", 0), ("a", 7), ("b", 7), ("top", 32767), ("c", 7), ("mid", 100)];
    let expected = [("top", 32767), ("mid", 100), ("a", 7), ("b", 7), ("c", 7), ("low", 0)];
    sent.iter().for_each(|(text, priority)| send(&*endpoint, text, *priority));
    for (text, priority) in expected {
        assert_eq!(program.ask(&format!("receive {fd} 0")), received(text, priority));
    }
    for (text, priority) in sent {
        assert_eq!(program.ask(&format!("send {} {fd} {priority} 0", hex(text.as_bytes()))), "0");
    }
    for (text, priority) in expected {
        assert_eq!(receive(&*endpoint), (text.into(), priority.into()));
    }
    // Without the attribute it is 0.
    let plain = Outgoing { data: b"plain", attributes: &Dict::new(), fds: &[], sent: &Default::default() };
    messages(&*endpoint).send(plain).unwrap();
    assert_eq!(program.ask(&format!("receive {fd} 0")), received("plain", 0));
}

#[test]
fn who_waits_is_woken_and_a_blocked_program_comes_first() {
    let queue = Queue::new();
    let endpoint = queue.made();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let fd = program.ask(&format!("open {} {BOTH}", queue.hex()));
    let readiness = must_wait(try_receive(&*endpoint));
    assert_eq!(program.ask(&format!("send {} {fd} 1 0", hex(b"wake"))), "0");
    assert!(comes(&readiness, WATCHDOG));
    assert_eq!(receive(&*endpoint), ("wake".into(), 1));

    assert_eq!(program.ask(&format!("wait {fd}")), "waiting");
    eventually("the program blocks", || blocked(&program) == 1);
    let readiness = must_wait(try_receive(&*endpoint));
    send(&*endpoint, "theirs", 2);
    assert_eq!(program.line(), format!("woken {}", received("theirs", 2)));
    assert!(!comes(&readiness, Duration::ZERO), "it went past the queue");

    // A full queue, the same way.
    (0..3).for_each(|n| send(&*endpoint, "x", n));
    let readiness = must_wait(try_send(&*endpoint, b"no room", 0));
    assert!(!comes(&readiness, Duration::ZERO));
    assert_eq!(program.ask(&format!("send 61 {fd} 0 1")), "ETIMEDOUT");
    assert_eq!(program.ask(&format!("receive {fd} 0")), received("x", 2));
    assert!(comes(&readiness, WATCHDOG));
    send(&*endpoint, "room", 0);
}

/// `Ready` and waits look by poll(2): the one notification of a queue stays the program's.
#[test]
fn a_programs_notification_is_its_own() {
    let queue = Queue::new();
    let endpoint = queue.made();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let fd = program.ask(&format!("open {} {READ}", queue.hex()));
    for round in 0..3 {
        must_wait(messages(&*endpoint).arrival());
        let readiness = must_wait(try_receive(&*endpoint));
        assert_eq!(program.ask(&format!("notify {fd}")), "0", "round {round}");
        let state = endpoint.inspect().unwrap();
        assert_eq!(state["notify-pid"].integer(), Some(program.pid().into()));
        assert_eq!(state["notify-signal"].integer(), Some(libc::SIGUSR1.into()));
        assert!(state["notify"].same(&"signal".into()), "{state:?}");
        send(&*endpoint, "news", 0);
        assert_eq!(program.line(), "notified");
        assert!(comes(&readiness, WATCHDOG), "and so are we");
        assert!(matches!(messages(&*endpoint).arrival(), Ok(Attempt::Done(()))));
        assert!(!endpoint.inspect().unwrap().contains_key("notify"), "it is for once");
        assert_eq!(receive(&*endpoint), ("news".into(), 0));
    }
}

#[test]
fn killed_programs_take_nothing_along() {
    let queue = Queue::new();
    let endpoint = queue.made();
    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let fd = program.ask(&format!("open {} {BOTH}", queue.hex()));
    assert_eq!(program.ask(&format!("notify {fd}")), "0");
    assert_eq!(program.ask(&format!("wait {fd}")), "waiting");
    eventually("the program blocks", || blocked(&program) == 1);
    drop(program);
    assert!(!endpoint.inspect().unwrap().contains_key("notify"), "the registration went with it");
    send(&*endpoint, "kept", 3);
    assert_eq!(receive(&*endpoint), ("kept".into(), 3));

    let Some(mut program) = Peer::compiled(PROGRAM) else { return };
    let fd = program.ask(&format!("open {} {BOTH}", queue.hex()));
    assert_eq!(program.ask(&format!("notify {fd}")), "0", "the queue has its registration again");
    program.tell(&format!("send {} {fd} 4 0", hex(b"last words")));
    let mut said = [program.line(), program.line()];
    said.sort();
    assert_eq!(said, ["0", "notified"]);
    drop(program);
    assert_eq!(receive(&*endpoint), ("last words".into(), 4));
}
