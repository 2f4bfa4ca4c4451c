//! Messages that a netlink socket has no room for: that they are lost is told, and it goes on.

use ipc_blackbox::{Stage, Way, everywhere, is_signal};
use zbus::message::Message;

use super::{Attributes, RTM_NEWLINK, half, inspect, ip, link, number, text};

async fn losses_are_told(stage: Stage) {
    let client = stage.client().await;
    let endpoint = client.attach("netlink:family=route,groups=link,rcvbuf=4K").await;
    ip("for n in $(seq 40); do ip link add t$n type bridge; done");
    let mut lost = 0;
    loop {
        match client.receive(&endpoint, 0).await {
            Ok((data, _)) => assert_eq!(half(&data, 4), RTM_NEWLINK),
            Err(error) if error.is("Overflow") => {
                assert!(error.text.contains("net.core.rmem_max") && error.text.contains("rcvbuf"), "{error}");
                lost +=
                    error.text.split(' ').next().and_then(|word| word.parse::<i64>().ok()).expect("how many");
            }
            Err(error) => {
                assert!(error.is("Busy"), "{error}");
                break;
            }
        }
    }
    assert!(lost > 0);
    assert_eq!(number(&inspect(&client, &endpoint).await, "dropped"), lost, "every loss was told, once");
    ip("ip link add later type bridge");
    let (data, _) = client.receive(&endpoint, 10_000).await.expect("it goes on");
    assert_eq!(link(&data[16..]).1, "later");
}

/// A service that is stopped for a while does not take what comes.
async fn losses_are_told_by_signals(stage: Stage) {
    if stage.way == Way::System {
        ipc_harness::skip!("who is stopped there would be alice's worker, which runs the same code");
    }
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let endpoint = client.attach("netlink:family=route,groups=link,rcvbuf=4K,deliver=true").await;
    stage.sh(&format!("kill -STOP {}", stage.service.pid())).finish().success();
    ip("for n in $(seq 40); do ip link add t$n type bridge; done");
    stage.sh(&format!("kill -CONT {}", stage.service.pid())).finish().success();
    // What has come: the losses that were told, and the names of links.
    let told = |all: &[Message]| -> (Vec<String>, Vec<String>) {
        let (mut losses, mut links) = (Vec::new(), Vec::new());
        for message in all.iter().filter(|message| is_signal(message, &endpoint, "Received")) {
            let (_, data, attributes): (u64, Vec<u8>, Attributes) =
                message.body().deserialize().expect("Received");
            match data.get(16..) {
                Some(data) => links.push(link(data).1),
                None => losses.push(text(&attributes, "overflow")),
            }
        }
        (losses, links)
    };
    let loss = inbox.until(|all| told(all).0.first().cloned()).await;
    assert!(loss.contains("ENOBUFS"), "{loss}");
    // The next one arrives, if the queue was empty by then; else it is among the next loss.
    for n in 1.. {
        let later = format!("later{n}");
        ip(&format!("ip link add {later} type bridge"));
        let arrived = inbox.until(|all| {
            let (losses, links) = told(all);
            if links.contains(&later) { Some(true) } else { (losses.len() > n).then_some(false) }
        });
        if arrived.await {
            break;
        }
    }
}

everywhere!(isolated; losses_are_told, losses_are_told_by_signals);
