//! File descriptors that come with the bytes of a unix socket: forwarded or refused, never lost
//! silently.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
};

use ipc_kernel::{Attempt, Dict, Kind, dict};
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
};

use super::*;

fn send(socket: &OwnedFd, data: &[u8], fd: &OwnedFd) -> rustix::io::Result<usize> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(socket, &[IoSlice::new(data)], &mut control, SendFlags::empty())
}

fn receive(socket: &OwnedFd, max: usize) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut data = vec![0; max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::empty())
            .unwrap();
    data.truncate(received.bytes);
    let fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    (data, fds.collect())
}

#[tokio::test]
async fn descriptors_are_forwarded_with_their_bytes() {
    let world = World::new();
    let ((a, a_far), (b, b_far)) = (world.unix().await, world.unix().await);
    let relay = world.relay(&a, &b, dict! { "fds" => true, "both" => true }).await.unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    for (from, to) in [(&a_far, &b_far), (&b_far, &a_far)] {
        write(from, b"before");
        send(from, b"with", &writer).unwrap();
        write(from, b"after");
        let to = to.try_clone().unwrap();
        let got = tokio::task::spawn_blocking(move || {
            // A receiver that expects no descriptors yet gets none yet.
            let mut fds = Vec::new();
            for (expected, expected_fds) in [(&b"before"[..], 0), (b"with", 1), (b"after", 0)] {
                let mut data = Vec::new();
                while data.len() < expected.len() {
                    let (more, more_fds) = receive(&to, expected.len() - data.len());
                    assert_eq!(more_fds.len(), if data.is_empty() { expected_fds } else { 0 });
                    data.extend(more);
                    fds.extend(more_fds);
                }
                assert_eq!(data, expected);
            }
            fds
        });
        let fds = got.await.unwrap();
        write(&fds[0], b"it works");
        assert_eq!(read_exactly(&reader, 8).await.unwrap(), b"it works");
    }
    assert_eq!(relay.method(), "recvmsg and sendmsg");
    drop((a_far, b_far));
    ended(&relay).await;
}

#[tokio::test]
async fn descriptors_are_refused_at_the_sender_or_end_the_relay() {
    let world = World::new();
    let ((a, a_far), (b, b_far)) = (world.unix().await, world.unix().await);
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    let relay = world.relay(&a, &b, Dict::new()).await.unwrap();
    write(&a_far, b"bytes");
    assert_eq!(read_exactly(&b_far, 5).await.unwrap(), b"bytes");
    match send(&a_far, b"no", &writer) {
        // Linux 6.16 and later: the sender is told, and the relay goes on.
        Err(Errno::PERM) => {
            write(&a_far, b"more");
            assert_eq!(read_exactly(&b_far, 4).await.unwrap(), b"more");
            relay.stop("stopped");
            ended(&relay).await;
            // As it was before.
            send(&a_far, b"yes", &writer).unwrap();
        }
        sent => {
            sent.unwrap();
            let finished = ended(&relay).await;
            assert!(finished.failed && finished.reason.contains("fds=true"), "{}", finished.reason);
        }
    }
}

/// One that was sent before the relay began.
#[tokio::test]
async fn a_descriptor_in_the_queue_ends_the_relay() {
    let world = World::new();
    for to in ["unix", "pipe", "messages"] {
        let (a, a_far) = world.unix().await;
        let (b, _b_far) = match to {
            "unix" => world.unix().await,
            "pipe" => world.pipe_sink().await,
            _ => world.packet_sink().await,
        };
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        send(&a_far, b"with", &writer).unwrap();
        let options = if to == "messages" {
            dict! { "framing" => "line" }
        } else {
            Dict::new()
        };
        let relay = world.relay(&a, &b, options).await.unwrap();
        let finished = ended(&relay).await;
        assert!(
            finished.failed && finished.reason.contains("1 file descriptors"),
            "{to}: {}",
            finished.reason
        );
        // It is still there, with its bytes.
        let Ok(Attempt::Done(end)) = a.stream().unwrap().source() else { panic!("no end") };
        let (data, fds) = receive(&end.fd, 100);
        assert_eq!((data.as_slice(), fds.len()), (&b"with"[..], 1), "{to}");
    }
}

#[tokio::test]
async fn forwarding_needs_two_unix_sockets() {
    let world = World::new();
    let (a, _a_far) = world.unix().await;
    let (b, _b_far) = world.pipe_sink().await;
    let error = world.relay(&a, &b, dict! { "fds" => true }).await.unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
}

/// A bound may cut the bytes of a message, and its descriptors still come once, with the first of them.
#[tokio::test]
async fn a_bound_within_a_message_leaves_its_descriptors_whole() {
    let world = World::new();
    let ((a, a_far), (b, b_far)) = (world.unix().await, world.unix().await);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    write(&a_far, b"12");
    send(&a_far, b"345678", &writer).unwrap();
    let bound = |bytes: u64| dict! { "fds" => true, "bytes" => bytes };
    for (bytes, expected, descriptors) in [(1, &b"1"[..], 0), (3, b"234", 1), (4, b"5678", 0)] {
        let relay = world.relay(&a, &b, bound(bytes)).await.unwrap();
        assert_eq!(ended(&relay).await.bytes, bytes);
        let (mut data, mut fds) = (Vec::new(), Vec::new());
        while data.len() < expected.len() {
            let (more, more_fds) = receive(&b_far, expected.len() - data.len());
            data.extend(more);
            fds.extend(more_fds);
        }
        assert_eq!((data.as_slice(), fds.len()), (expected, descriptors));
        fds.iter().for_each(|fd| write(fd, b"!"));
    }
    assert_eq!(read_exactly(&reader, 1).await.unwrap(), b"!");
}
