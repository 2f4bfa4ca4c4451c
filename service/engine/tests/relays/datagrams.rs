//! Datagrams go several at a time where nothing is asked of each: in order, whole, once, and with their senders where
//! they come back.

use std::{net::UdpSocket, os::unix::net::UnixDatagram};

use ipc_kernel::{Attempt, Value, dict, shape::Message};

use super::*;

const TOGETHER: &str = "recvmmsg and sendmmsg";

/// asm-generic/socket.h.
const SO_TIMESTAMPNS: i32 = 35;

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A bound socket as an endpoint, and one that is connected to it.
async fn udp_source(world: &World) -> (Arc<Endpoint>, UdpSocket) {
    let (ours, theirs) = (socket(), socket());
    theirs.connect(ours.local_addr().unwrap()).unwrap();
    (world.adopt(ours).await, theirs)
}

/// A connected socket as an endpoint, and its peer.
async fn udp_sink(world: &World) -> (Arc<Endpoint>, UdpSocket) {
    let (ours, theirs) = (socket(), socket());
    ours.connect(theirs.local_addr().unwrap()).unwrap();
    (world.adopt(ours).await, theirs)
}

async fn unix_sink(world: &World) -> (Arc<Endpoint>, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (world.adopt(ours).await, theirs)
}

fn receive(source: &Endpoint) -> Message {
    match source.attempt_receive(&Dict::new()).unwrap() {
        Attempt::Done(message) => message,
        Attempt::Wait(_) => panic!("it is lost"),
    }
}

/// So many of this length are more than a sink's buffer of the usual size holds (wmem_default), and fewer than it
/// holds together with a source's.
const LONG: usize = 3000;
const MANY: u8 = 60;

/// The first byte of each that came by now.
fn received(socket: &UnixDatagram) -> Vec<u8> {
    let mut all = Vec::new();
    let mut one = [0; 2 * LONG];
    while let Ok(length) = socket.recv(&mut one) {
        assert!(one[..length].iter().all(|byte| *byte == one[0]), "pieces of several");
        all.push(one[0]);
    }
    all
}

#[tokio::test]
async fn each_arrives_whole_and_in_order() {
    let world = World::new();
    let ((source, input), (sink, output)) = (udp_source(&world).await, udp_sink(&world).await);
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    // No more at once than the receiver's buffer holds for certain.
    let bursts: [&[usize]; 4] = [&[0, 1, 2, 3, 1000, 0, 7], &[65_507], &[64; 40], &[9000, 0, 65_507]];
    let mut seed = 1;
    for burst in bursts {
        let data: Vec<_> = burst
            .iter()
            .map(|length| {
                seed += 1;
                noise(*length, seed)
            })
            .collect();
        for one in &data {
            assert_eq!(input.send(one).unwrap(), one.len());
        }
        let output = output.try_clone().unwrap();
        let count = data.len();
        let came = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; 1 << 16];
            let receive = |_| {
                let length = output.recv(&mut buffer).unwrap();
                buffer[..length].to_vec()
            };
            (0..count).map(receive).collect::<Vec<_>>()
        });
        assert_eq!(came.await.unwrap(), data);
    }
    let all: usize = bursts.iter().flat_map(|burst| burst.iter()).sum();
    until("all are counted", || relay.bytes() == all as u64).await;
    assert_eq!((relay.method(), relay.messages()), (TOGETHER, 51));
    running(&relay);
}

/// The sink has room for fewer than come: what is in hand stays there over a pause, and goes back at the end.
#[tokio::test]
async fn what_has_not_gone_comes_back_with_its_sender() {
    let world = World::new();
    let ((source, input), (sink, output)) = (udp_source(&world).await, unix_sink(&world).await);
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    let witness = Witness::new(&world).await;
    for number in 0..MANY {
        input.send(&[number; LONG]).unwrap();
        // So that most are with the sink before the source has no room.
        witness.turn().await;
    }
    for _ in 0..20 {
        witness.turn().await;
        relay.pause().unwrap();
        witness.turn().await;
        relay.resume().unwrap();
    }
    let mut came = received(&output);
    assert!(came.len() < MANY as usize, "the sink has room for all: nothing is shown");
    until("the sink is full again", || relay.messages() > came.len() as u64).await;
    witness.turn().await;
    relay.stop("stopped");
    let finished = ended(&relay).await;
    came.extend(received(&output));
    assert_eq!((finished.messages, finished.failed), (came.len() as u64, false));
    let sender = format!("udp:host=127.0.0.1,port={}", input.local_addr().unwrap().port());
    while let Attempt::Done(message) = source.attempt_receive(&Dict::new()).unwrap() {
        assert!(
            matches!(&message.attributes["address"], Value::Text(from) if *from == sender),
            "{message:?}"
        );
        came.push(message.data[0]);
    }
    assert_eq!(came, (0..MANY).collect::<Vec<_>>());
}

/// What was given back goes first, and by itself.
#[tokio::test]
async fn what_came_back_goes_with_the_next_relay() {
    let world = World::new();
    let ((source, input), (sink, output)) = (udp_source(&world).await, unix_sink(&world).await);
    for number in 0..3 {
        input.send(&[number]).unwrap();
    }
    // As after a relay that has ended.
    let taken: Vec<_> = (0..2).map(|_| receive(&source)).collect();
    taken.into_iter().rev().for_each(|message| source.keep(message));
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    until("all went", || relay.messages() == 3).await;
    assert_eq!((relay.method(), received(&output)), (TOGETHER, vec![0, 1, 2]));
}

/// Somebody else who has the socket asks for times: then each comes by itself, and nothing is lost.
#[tokio::test]
async fn times_that_are_asked_for_meanwhile_do_no_harm() {
    let world = World::new();
    let (ours, input) = (socket(), socket());
    input.connect(ours.local_addr().unwrap()).unwrap();
    let other = ours.try_clone().unwrap();
    let (source, (sink, output)) = (world.adopt(ours).await, unix_sink(&world).await);
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    for (number, timed) in [false, true, false, true].into_iter().enumerate() {
        ipc_kernel::socket_options::set_flag(&other, SO_TIMESTAMPNS, timed).unwrap();
        input.send(&[number as u8]).unwrap();
        until("it went", || relay.messages() == number as u64 + 1).await;
    }
    assert_eq!(received(&output), [0, 1, 2, 3]);
    running(&relay);
}

/// Whatever is asked of each message has it go by itself, and so does a sink that cannot take every one.
#[tokio::test]
async fn what_is_asked_of_each_goes_one_by_one() {
    let world = World::new();
    for options in [
        dict! { "count" => 9u64 },
        dict! { "on-error" => "skip" },
        dict! { "rate-messages" => 1000u32 },
        dict! { "filter" => dict! { "address" => "udp:host=127.0.0.1,port=1" } },
    ] {
        let ((source, _input), (sink, _output)) = (udp_source(&world).await, udp_sink(&world).await);
        let relay = world.relay(&source, &sink, options.clone()).await.unwrap();
        until("it has begun", || relay.method() != "none yet").await;
        assert_eq!(relay.method(), "messages", "{options:?}");
    }
    let (source, input) = udp_source(&world).await;
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 8192).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let sink = world.adopt(ours).await;
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    until("it has begun", || relay.method() != "none yet").await;
    assert_eq!(relay.method(), "messages");
    input.send(&[0; 60_000]).unwrap();
    let finished = ended(&relay).await;
    assert!(finished.failed && finished.reason.contains("has 60000 bytes, more than the"), "{finished:?}");
    assert_eq!(receive(&source).data.len(), 60_000);
}

#[tokio::test]
async fn a_receiver_that_has_gone_ends_it_and_the_rest_stays() {
    let world = World::new();
    let ((source, input), (sink, output)) = (udp_source(&world).await, udp_sink(&world).await);
    drop(output);
    let relay = world.relay(&source, &sink, Dict::new()).await.unwrap();
    for number in 0..8 {
        input.send(&[number]).unwrap();
    }
    let finished = ended(&relay).await;
    assert!(finished.failed && finished.reason.contains("nobody receives there"), "{finished:?}");
    let mut left = 0;
    while let Attempt::Done(_) = source.attempt_receive(&Dict::new()).unwrap() {
        left += 1;
    }
    // The kernel takes those that ICMP answers; of the others none is lost.
    assert_eq!(finished.messages + left, 8);
}
