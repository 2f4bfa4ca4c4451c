//! on-error=skip: what the sink can never take is dropped and told, and everything else arrives in its order.

use ipc_kernel::{Value, dict};

use super::{
    framed::{messages, packets, queue, receive, send, seqpacket},
    *,
};

fn skip() -> Dict {
    dict! { "on-error" => "skip" }
}

/// How many were dropped, and why the last.
fn skipped(relay: &Relay) -> (u64, String) {
    let state = relay.inspect();
    match (&state["skipped"], &state["skipped-reason"]) {
        (Value::U64(count), Value::Text(why)) => (*count, why.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn large_messages_are_dropped_and_told() {
    let world = World::new();
    let (source, sink) = (queue(&world, "depth=4,size=64").await, queue(&world, "depth=4,size=8").await);
    let relay = world.relay(&source, &sink, skip()).await.unwrap();
    assert_eq!(skipped(&relay), (0, String::new()));
    for (data, priority) in [("more than 8 bytes", 3), ("fits", 2), ("more than 8, too", 1)] {
        send(&world, &source, data.as_bytes(), priority).await;
    }
    assert_eq!(receive(&world, &sink).await, (b"fits".to_vec(), 2));
    until("both are counted", || skipped(&relay).0 == 2).await;
    let why = skipped(&relay).1;
    assert!(why.contains("16 bytes") && !why.contains("kept"), "{why}");
    running(&relay);
    assert_eq!((relay.messages(), source.messages().unwrap().depth()), (1, Some(0)));
}

/// Against what a loop over the same messages says: in any pieces, for each framing.
#[tokio::test]
async fn everything_else_arrives_in_its_order() {
    const MAX: usize = 4096;
    for framing in ["line", "length", "base64", "messages"] {
        for piece in [777, 4095, 70_000] {
            let world = World::new();
            let all = messages(400, 6000);
            let fits: Vec<_> = all.iter().filter(|message| message.len() <= MAX).cloned().collect();
            let (sink, output) = world.packet_sink().await;
            let (source, fed, relay);
            if framing == "messages" {
                let (from, input) = seqpacket(&world).await;
                (source, relay) = (from.clone(), world.relay(&from, &sink, skip()).await.unwrap());
                let sent = all.clone();
                fed = tokio::task::spawn_blocking(move || {
                    sent.iter().for_each(|message| write(&input, message));
                    Ok(())
                });
            } else {
                let (from, input) = world.unix().await;
                let options = dict! { "framing" => framing, "on-error" => "skip" };
                (source, relay) = (from.clone(), world.relay(&from, &sink, options).await.unwrap());
                fed = feed(input, framed(framing, &all), piece);
            }
            let reader = packets(output);
            fed.await.unwrap().unwrap();
            let finished = ended(&relay).await;
            ends_well(&finished);
            assert_eq!(skipped(&relay).0 as usize, all.len() - fits.len(), "{framing} in pieces of {piece}");
            world.engine.close(&sink, "test");
            drop((sink, source, relay));
            world.take_news().await;
            assert!(reader.await.unwrap() == fits, "{framing} in pieces of {piece}");
        }
    }
}

/// The messages as they stand in a stream.
fn framed(framing: &str, messages: &[Vec<u8>]) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let one = |message: &Vec<u8>| match framing {
        "length" => [&(message.len() as u32).to_be_bytes(), message.as_slice()].concat(),
        "base64" => [STANDARD.encode(message).as_bytes(), b"\n"].concat(),
        _ => [message.as_slice(), b"\n"].concat(),
    };
    messages.iter().flat_map(one).collect()
}

#[tokio::test]
async fn what_cannot_be_converted_is_dropped() {
    let world = World::new();
    let (lines, input) = world.pipe_source().await;
    let sink = queue(&world, "depth=4,size=8").await;
    let options = dict! { "framing" => "json", "on-error" => "skip" };
    let relay = world.relay(&lines, &sink, options).await.unwrap();
    write(&input, b"no json\n{\"data\":\"a\",\"priority\":2}\n{\"data\":\"b\",\"colour\":1}\n");
    write(&input, b"{\"data\":\"longer than 8\"}\n{\"data\":\"c\"}\n");
    assert_eq!((receive(&world, &sink).await.0, receive(&world, &sink).await.0), (b"a".into(), b"c".into()));
    assert_eq!((relay.messages(), skipped(&relay).0), (2, 3));
    // Into a stream of lines.
    let (source, far) = seqpacket(&world).await;
    let (out, output) = world.pipe_sink().await;
    let options = dict! { "framing" => "line", "on-error" => "skip" };
    let relay = world.relay(&source, &out, options).await.unwrap();
    for message in [&b"two\nlines"[..], b"one"] {
        write(&far, message);
    }
    assert_eq!(read_exactly(&output, 4).await.unwrap(), b"one\n");
    assert!(skipped(&relay).1.contains("newline"));
}

/// A stop within a message that is dropped says that its rest is still to come.
#[tokio::test]
async fn half_of_a_dropped_message_is_said() {
    let world = World::new();
    let (source, input) = world.pipe_source().await;
    let (sink, _output) = world.packet_sink().await;
    let options = dict! { "framing" => "length", "on-error" => "skip" };
    let relay = world.relay(&source, &sink, options).await.unwrap();
    write(&input, b"\xff\xff\xff\xffabc");
    until("it is dropped", || skipped(&relay).0 == 1).await;
    relay.stop("stopped");
    assert!(ended(&relay).await.reason.starts_with("stopped; the source goes on with the rest"));
}

#[tokio::test]
async fn ends_that_are_gone_still_end_it() {
    let world = World::new();
    for which in ["source", "sink"] {
        let (source, sink) =
            (world.create("sysvmq:key=private").await, world.create("sysvmq:key=private").await);
        let relay = world.relay(&source, &sink, skip()).await.unwrap();
        let (gone, stays) = if which == "source" { (&source, &sink) } else { (&sink, &source) };
        gone.kernel.remove().unwrap();
        if which == "sink" {
            let attributes = dict! { "type" => 1i64 };
            let message = ipc_kernel::shape::Outgoing {
                data: b"x",
                attributes: &attributes,
                fds: &[],
                sent: &Default::default(),
            };
            world.engine.send(&world.call, &source, message, 1000).await.unwrap();
        }
        let finished = ended(&relay).await;
        assert!(finished.failed && skipped(&relay).0 == 0, "{which}: {}", finished.reason);
        if which == "sink" {
            let kept = world.engine.receive(&world.call, &source, &Dict::new(), 1000).await.unwrap();
            assert_eq!(kept.data, b"x");
        }
        stays.kernel.remove().unwrap();
    }
    // Nobody reads any more.
    let (source, input) = seqpacket(&world).await;
    let (sink, output) = world.packet_sink().await;
    let relay = world.relay(&source, &sink, skip()).await.unwrap();
    drop(output);
    write(&input, b"x");
    assert!(ended(&relay).await.failed);
    assert_eq!(world.engine.receive(&world.call, &source, &Dict::new(), 1000).await.unwrap().data, b"x");
}
