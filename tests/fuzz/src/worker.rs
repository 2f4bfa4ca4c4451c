//! What a worker says on its stream, as far as the judge.
//!
//! The first byte of an input says what comes with the rest, the bytes of the stream: bit 0, that calls wait for
//! an answer; the two bits above it, how many descriptors come with the first byte.

use std::{
    collections::HashSet,
    io::IoSlice,
    mem::MaybeUninit,
    num::NonZeroU32,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use ipc_front::fuzzing::hear;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown};
use zbus::message::{Message, Type};

/// The clients, and the serials of the calls that they wait for.
const CALLS: &[(&str, &[u32])] = &[(":1.1", &[7, 8]), (":1.2", &[7])];

/// How many descriptors may come along.
const FDS: [usize; 4] = [0, 1, 2, 9];

/// More does not fit into the socket at once; nobody reads before everything is said.
const LONGEST: usize = 64 * 1024;

pub fn worker(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let waiting = how & 1 != 0;
    let serials = |serials: &[u32]| serials.iter().filter_map(|n| NonZeroU32::new(*n)).collect::<Vec<_>>();
    let calls: Vec<_> =
        CALLS.iter().map(|(name, list)| (*name, if waiting { serials(list) } else { Vec::new() })).collect();
    let passed = crate::run(async {
        let (front, worker) = UnixStream::pair().expect("a socket pair");
        say(&worker, &bytes[..bytes.len().min(LONGEST)], FDS[usize::from(how >> 1 & 3)]);
        let calls: Vec<_> = calls.iter().map(|(name, serials)| (*name, &serials[..])).collect();
        hear(front.into(), &calls).await
    });
    let mut answered = HashSet::new();
    for (client, message) in passed {
        assert!(allowed(&message), "not for the bus: {message:?}");
        let header = message.header();
        let to = header.destination().map(|name| name.as_str());
        assert_eq!(to, Some(&*client), "{message:?}");
        let serials = calls.iter().find(|(name, _)| *name == &*client).map(|(_, serials)| serials);
        let serials = serials.unwrap_or_else(|| panic!("a stranger is spoken to: {message:?}"));
        if let Some(serial) = header.reply_serial() {
            assert!(serials.contains(&serial), "nobody made that call: {message:?}");
            assert!(answered.insert((client.clone(), serial)), "answered twice: {message:?}");
        }
    }
}

/// Whether a message of a worker may go to the bus, whoever it is for.
pub fn allowed(message: &Message) -> bool {
    let header = message.header();
    let below = |name: Option<&str>, roots: &[&str], separator: char| {
        let is_below =
            |name: &str, root: &str| name == root || name.starts_with(&format!("{root}{separator}"));
        name.is_some_and(|name| roots.iter().any(|root| is_below(name, root)))
    };
    let interface = header.interface().map(|interface| interface.as_str());
    let path = header.path().map(|path| path.as_str());
    let kind = match message.message_type() {
        Type::MethodReturn | Type::Error => {
            header.reply_serial().is_some()
                && path.is_none()
                && interface.is_none()
                && header.member().is_none()
        }
        Type::Signal => {
            let interfaces =
                ["org.example.IPC", "org.freedesktop.DBus.Properties", "org.freedesktop.DBus.ObjectManager"];
            below(path, &["/org/example/IPC"], '/') && below(interface, &interfaces, '.')
        }
        Type::MethodCall => false,
    };
    let fds = message.data().fds().len();
    kind && header.sender().is_none()
        && fds <= 8
        && header.unix_fds().unwrap_or(0) as usize == fds
        && message.data().len() <= (1 << 20) + (64 << 10)
        && message.body().validate().is_ok()
}

fn say(to: &UnixStream, bytes: &[u8], fds: usize) {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("it exists"));
    let fds: Vec<_> = (0..fds).map(|_| null()).collect();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    if !bytes.is_empty() {
        let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT);
        assert_eq!(sent.expect("an empty socket takes it"), bytes.len());
    }
    shutdown(to, Shutdown::Write).expect("an own socket");
}
