//! The option `tee`: each message goes to all sinks, once, and leaves its source when all have it.

use ipc_kernel::{Kind, dict};

use super::{
    framed::{queue, receive, send},
    *,
};

pub(super) async fn tee(
    world: &World,
    source: &Arc<Endpoint>,
    sinks: [&Arc<Endpoint>; 2],
    options: Dict,
) -> Result<Arc<Relay>, Error> {
    let [sink, further] = sinks.map(Arc::clone);
    world.engine.start_tee(&world.call, source.clone(), sink, vec![further], options).await
}

/// The second sink has room for one; a pause in the middle of a message sends nothing twice.
#[tokio::test]
async fn the_slowest_sets_the_pace_and_has_each_once() {
    let world = World::new();
    let source = queue(&world, "depth=9,size=64").await;
    let (wide, narrow) = (queue(&world, "depth=9,size=64").await, queue(&world, "depth=1,size=64").await);
    let relay = tee(&world, &source, [&wide, &narrow], Dict::new()).await.unwrap();
    for priority in [9, 8, 7, 6] {
        send(&world, &source, &[priority as u8], priority).await;
    }
    until("the second is in one of them", || wide.messages().unwrap().depth() == Some(2)).await;
    for _ in 0..3 {
        relay.pause().unwrap();
        relay.resume().unwrap();
        Witness::new(&world).await.turn().await;
    }
    assert_eq!((relay.messages(), wide.messages().unwrap().depth()), (1, Some(2)));
    for priority in [9, 8, 7, 6] {
        assert_eq!(receive(&world, &narrow).await, (vec![priority as u8], priority));
        assert_eq!(receive(&world, &wide).await, (vec![priority as u8], priority));
    }
    until("all are counted", || relay.messages() == 4).await;
    assert_eq!((wide.messages().unwrap().depth(), narrow.messages().unwrap().depth()), (Some(0), Some(0)));
    running(&relay);
}

/// What some have and others not goes back to the source, and that is said.
#[tokio::test]
async fn a_stop_in_between_says_who_has_it() {
    let world = World::new();
    let source = queue(&world, "depth=9,size=64").await;
    let (wide, narrow) = (queue(&world, "depth=9,size=64").await, queue(&world, "depth=1,size=64").await);
    let relay = tee(&world, &source, [&wide, &narrow], Dict::new()).await.unwrap();
    for priority in [2, 1] {
        send(&world, &source, b"x", priority).await;
    }
    until("the second is in one of them", || wide.messages().unwrap().depth() == Some(2)).await;
    relay.stop("stopped");
    let finished = ended(&relay).await;
    let expected = format!("stopped; a message that was kept at the source is in {}", wide.address);
    assert_eq!((finished.reason, finished.messages, finished.failed), (expected, 1, false));
    assert_eq!(receive(&world, &source).await, (b"x".to_vec(), 1));
    // The same out of a stream, and by closing one of them.
    let (lines, input) = world.pipe_source().await;
    let relay = tee(&world, &lines, [&wide, &narrow], dict! { "framing" => "line" }).await.unwrap();
    write(&input, b"line\n");
    until("it is in one of them", || wide.messages().unwrap().depth() == Some(3)).await;
    world.engine.close(&narrow, "test");
    let reason = ended(&relay).await.reason;
    let told =
        [format!("sink endpoint {} was closed: test", narrow.address), format!("is in {}", wide.address)];
    assert!(told.iter().all(|part| reason.contains(part)), "{reason}");
    let kept = world.engine.read(&world.call, &lines, 100, 10_000).await.unwrap();
    assert_eq!(kept, b"line\n");
}

/// One that can never take it: before anybody has it; or, with on-error=skip, for that one alone.
#[tokio::test]
async fn what_one_cannot_take() {
    let world = World::new();
    let source = queue(&world, "depth=9,size=64").await;
    let (wide, narrow) = (queue(&world, "depth=9,size=64").await, queue(&world, "depth=9,size=4").await);
    let relay = tee(&world, &source, [&wide, &narrow], Dict::new()).await.unwrap();
    send(&world, &source, b"longer than 4", 1).await;
    let finished = ended(&relay).await;
    assert!(finished.failed && finished.reason.contains("kept at the source"), "{}", finished.reason);
    assert_eq!(wide.messages().unwrap().depth(), Some(0));
    let relay = tee(&world, &source, [&narrow, &wide], dict! { "on-error" => "skip" }).await.unwrap();
    send(&world, &source, b"fits", 1).await;
    assert_eq!(receive(&world, &wide).await.0, b"longer than 4");
    assert_eq!(receive(&world, &wide).await.0, b"fits");
    assert_eq!(receive(&world, &narrow).await.0, b"fits");
    until("both are counted", || relay.messages() == 2).await;
    let state = relay.inspect();
    assert_eq!(state["skipped"].integer(), Some(1));
    let why = format!("{:?}", state["skipped-reason"]);
    assert!(why.contains(&narrow.address) && why.contains("13 bytes"), "{why}");
}

#[tokio::test]
async fn what_cannot_be() {
    let world = World::new();
    let source = queue(&world, "depth=9,size=64").await;
    let (sink, other) = (queue(&world, "depth=9,size=64").await, queue(&world, "depth=9,size=64").await);
    let (pipe, _reader) = world.pipe_sink().await;
    for (sinks, words) in [
        ([&*sink, &*sink], "a sink of the relay already"),
        ([&*sink, &*source], "would come back"),
        ([&*sink, &pipe], "is a stream of bytes, and the first sink takes messages"),
    ] {
        let error = tee(&world, &source, sinks, Dict::new()).await.unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument);
        assert!(error.text.contains("\"tee\"") && error.text.contains(words), "{}", error.text);
    }
    let error = tee(&world, &source, [&pipe, &sink], dict! { "framing" => "line" }).await.unwrap_err();
    assert!(error.text.contains("takes messages, and the first sink is a stream"), "{}", error.text);
    // Round through another relay, by way of the further sink.
    let _back = world.relay(&other, &source, Dict::new()).await.unwrap();
    let error = tee(&world, &source, [&sink, &other], Dict::new()).await.unwrap_err();
    assert!(error.text.contains("go round for ever"), "{}", error.text);
    let (one, _far) = super::framed::seqpacket(&world).await;
    let (two, _far_too) = super::framed::seqpacket(&world).await;
    let error = tee(&world, &one, [&two, &sink], both()).await.unwrap_err();
    assert!(error.text.contains("\"tee\"") && error.text.contains("one direction"), "{}", error.text);
}
