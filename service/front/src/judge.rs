//! What a worker says, and whether it may.
//!
//! A worker belongs to its user, who may have taken it over. So nothing it sends goes to the bus
//! unless it is a reply to a call that it was given, or a signal of this service to one of its own
//! clients, and of a size that the bus takes. Anything else ends the worker.
//!
//! The herald may be hostile, too: everybody may call it. It replies as a worker does; its signals go to
//! everybody, and are those of its interface on its node. It has nothing else to say.

use std::num::NonZeroU32;
use std::sync::Arc;

use zbus::message::{Message, Type};

use crate::{
    budget::Client,
    herald,
    limits::Limits,
    pending::{Addressee, Members},
};

/// What a message may have beside its payload.
pub const HEADER: usize = 64 * 1024;

/// The most bytes of payload of a signal.
const SIGNAL: usize = 64 * 1024;

/// The interface of what a worker says to the front.
const WORKER: &str = "org.example.IPC.Worker";

/// The clients that a worker may name when it is asked to serve a new front.
const CLIENTS: usize = 4096;

pub enum Said {
    /// For this client; a reply, or an error.
    Reply(Arc<Client>),
    Signal(Arc<Client>),
    /// For everybody.
    Broadcast,
    /// For one that has left, or that asked for nothing.
    Nothing,
    /// It runs.
    Pong,
    /// It has had nothing to do for a while.
    Idle,
    /// It wants a mount, which it cannot make itself.
    Mount,
    /// Who owns or watches something in it.
    Clients(Vec<String>),
}

/// Who is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    Worker,
    Herald,
}

/// What the worker of these clients said; or what is wrong with it. `ping`: the serial of the question
/// whether it runs.
pub fn judge(
    speaker: Speaker,
    message: &Message,
    members: &mut Members,
    ping: Option<NonZeroU32>,
    limits: &Limits,
) -> Result<Said, String> {
    let header = message.header();
    let fds = message.data().fds().len();
    if header.sender().is_some() {
        return Err("it gave itself a sender".to_owned());
    }
    if header.unix_fds().unwrap_or(0) as usize != fds {
        return Err("its message has other file descriptors than it says".to_owned());
    }
    match message.message_type() {
        Type::MethodReturn | Type::Error => {
            // No reply has these. Some values, which zbus takes, end the connection to a bus.
            if header.path().is_some() || header.interface().is_some() || header.member().is_some() {
                return Err("its reply says what only a call or a signal says".to_owned());
            }
            let Some(serial) = header.reply_serial() else { return Err("it replied to no call".to_owned()) };
            let Some(destination) = header.destination() else {
                return if ping == Some(serial) {
                    Ok(Said::Pong)
                } else {
                    Err("it replied to nobody".to_owned())
                };
            };
            if fds > limits.fds_per_reply as usize {
                return Err(format!("its reply has {fds} file descriptors"));
            }
            let size = message.data().len();
            if size > limits.payload as usize + HEADER {
                return Err(format!("its reply has {size} bytes"));
            }
            match members.answer(destination, serial) {
                Addressee::Client(client) => Ok(Said::Reply(client)),
                Addressee::Departed | Addressee::Unasked => Ok(Said::Nothing),
                Addressee::Foreign => Err(format!("it replied to {destination}, which is not its client")),
                Addressee::NotCalled => {
                    Err(format!("it replied to call {serial} of {destination}, which is none"))
                }
            }
        }
        Type::Signal => {
            let size = message.data().len();
            if header.reply_serial().is_some() || header.error_name().is_some() {
                return Err("its signal says what only a reply says".to_owned());
            }
            let broadcast = speaker == Speaker::Herald;
            if fds > 0 || size > SIGNAL + HEADER && (broadcast || header.destination().is_some()) {
                return Err(format!("its signal has {size} bytes and {fds} file descriptors"));
            }
            let destination = match header.destination() {
                Some(destination) if !broadcast => destination,
                None if !broadcast => return aside(message),
                None if herald::is_for(message) => return Ok(Said::Broadcast),
                _ => return Err("it sent a signal that is none of the herald's".to_owned()),
            };
            let path = header.path().is_some_and(|path| ours(path, '/', "/org/example/IPC"));
            let interface = header.interface().is_some_and(|interface| {
                ours(interface, '.', "org.example.IPC")
                    || *interface == "org.freedesktop.DBus.Properties"
                    || *interface == "org.freedesktop.DBus.ObjectManager"
            });
            if !path || !interface {
                return Err("it sent a signal that is none of this service".to_owned());
            }
            match members.signal(destination) {
                Addressee::Client(client) => Ok(Said::Signal(client)),
                Addressee::Departed => Ok(Said::Nothing),
                _ => Err(format!("it sent a signal to {destination}, which is not its client")),
            }
        }
        Type::MethodCall => Err("it called a method".to_owned()),
    }
}

/// This name, or one below it.
fn ours(name: &str, separator: char, root: &str) -> bool {
    name.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

/// A word to the front.
fn aside(message: &Message) -> Result<Said, String> {
    let header = message.header();
    let member = header.member().map(|member| member.as_str());
    match (header.interface().map(|interface| interface.as_str()), member) {
        (Some(WORKER), Some("Idle")) => Ok(Said::Idle),
        (Some(WORKER), Some("Mount")) => Ok(Said::Mount),
        (Some(WORKER), Some("Clients")) => {
            let names: Vec<String> =
                message.body().deserialize().map_err(|error| format!("its clients: {error}"))?;
            if names.len() > CLIENTS || names.iter().any(|name| !name.starts_with(':')) {
                return Err("its clients are too many, or none of a bus".to_owned());
            }
            Ok(Said::Clients(names))
        }
        _ => Err("it sent a signal to everybody".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use zbus::message::Builder;

    use super::*;
    use crate::pending::tests::{members, serial};

    const PATH: &str = "/org/example/IPC/pipe/1";
    const EVENTS: &str = "org.example.IPC.Events";

    fn verdict_of(speaker: Speaker, message: &Message) -> Result<Said, String> {
        let (mut members, _admission) = members();
        assert!(members.leave(":1.2"));
        judge(speaker, message, &mut members, Some(serial(99)), &Limits::default())
    }

    fn verdict(message: &Message) -> Result<Said, String> {
        verdict_of(Speaker::Worker, message)
    }

    fn offence(message: &Message) -> String {
        match verdict(message) {
            Err(offence) => offence,
            Ok(_) => panic!("accepted: {message:?}"),
        }
    }

    /// To a call of this sender with this serial.
    fn reply(sender: &str, number: u32) -> Builder<'static> {
        let call =
            Message::method_call("/", "X").sender(sender).serial(serial(number)).build(&()).expect("valid");
        Message::method_return(&call.header())
    }

    fn built(builder: Builder<'_>) -> Message {
        builder.build(&()).expect("valid")
    }

    #[test]
    fn replies_to_calls_are_passed_on() {
        assert!(
            matches!(verdict(&built(reply(":1.1", 7))), Ok(Said::Reply(client)) if &*client.name == ":1.1")
        );
        assert!(matches!(verdict(&built(reply(":1.2", 7))), Ok(Said::Nothing)));
        let pong = Message::method_call("/", "Ping").serial(serial(99)).build(&()).expect("valid");
        assert!(matches!(verdict(&built(Message::method_return(&pong.header()))), Ok(Said::Pong)));
    }

    #[test]
    fn other_replies_are_offences() {
        assert!(offence(&built(reply(":1.1", 8))).contains("call 8 of :1.1"));
        assert!(offence(&built(reply(":1.9", 7))).contains("not its client"));
        assert!(offence(&built(reply(":1.1", 7).sender(":1.1"))).contains("sender"));
        let nobody = Message::method_call("/", "X").serial(serial(7)).build(&()).expect("valid");
        assert!(offence(&built(Message::method_return(&nobody.header()))).contains("nobody"));
        let large = reply(":1.1", 7).build(&vec![0u8; (1 << 20) + HEADER]).expect("valid");
        assert!(offence(&large).contains("bytes"));
        let file = std::fs::File::open("/dev/null").expect("exists");
        let many: Vec<_> = (0..9)
            .map(|_| zbus::OwnedFd::from(std::os::fd::OwnedFd::from(file.try_clone().expect("few"))))
            .collect();
        assert!(offence(&reply(":1.1", 7).build(&many).expect("valid")).contains("9 file descriptors"));
        assert!(offence(&Message::method_call("/", "X").build(&()).expect("valid")).contains("called"));
        let local = reply(":1.1", 7).path("/org/freedesktop/DBus/Local");
        assert!(offence(&built(local)).contains("only a call"));
    }

    #[test]
    fn signals_go_to_clients_only() {
        let signal = |path: &str, interface: &str, to: &str| {
            Message::signal(path, interface, "Changed").destination(to).build(&()).expect("valid")
        };
        assert!(matches!(verdict(&signal(PATH, EVENTS, ":1.1")), Ok(Said::Signal(_))));
        assert!(matches!(
            verdict(&signal("/org/example/IPC", "org.example.IPC", ":1.1")),
            Ok(Said::Signal(_))
        ));
        let properties = "org.freedesktop.DBus.Properties";
        assert!(matches!(verdict(&signal(PATH, properties, ":1.1")), Ok(Said::Signal(_))));
        assert!(matches!(verdict(&signal(PATH, EVENTS, ":1.2")), Ok(Said::Nothing)));
        for (path, interface, to) in [
            (PATH, EVENTS, ":1.9"),
            (PATH, EVENTS, "org.example.Somebody"),
            ("/org/example/IPCx", EVENTS, ":1.1"),
            ("/", EVENTS, ":1.1"),
            (PATH, "org.example.IPCx", ":1.1"),
            (PATH, "org.freedesktop.DBus", ":1.1"),
            (PATH, "org.freedesktop.systemd1.Manager", ":1.1"),
        ] {
            offence(&signal(path, interface, to));
        }
        let large = Message::signal(PATH, EVENTS, "X").destination(":1.1").build(&vec![0u8; SIGNAL + HEADER]);
        assert!(offence(&large.expect("valid")).contains("bytes"));
        offence(&Message::signal(PATH, EVENTS, "X").build(&()).expect("valid"));
    }

    #[test]
    fn the_herald_speaks_to_everybody_and_of_netlink_only() {
        let herald = |message: &Message| verdict_of(Speaker::Herald, message);
        let signal =
            |path: &'static str, interface: &'static str| Message::signal(path, interface, "LinkChanged");
        let netlink = || signal(herald::PATH, herald::INTERFACE);
        assert!(matches!(herald(&built(netlink())), Ok(Said::Broadcast)));
        assert!(matches!(herald(&built(reply(":1.1", 7))), Ok(Said::Reply(_))));
        assert!(herald(&built(reply(":1.1", 8))).is_err());
        for other in [
            netlink().destination(":1.1"),
            signal(herald::PATH, EVENTS),
            signal(PATH, herald::INTERFACE),
            signal("/org/example/IPC", "org.example.IPC"),
            signal("/org/example/IPC", WORKER),
            Message::signal("/org/example/IPC", WORKER, "Mount"),
        ] {
            assert!(herald(&built(other)).is_err());
        }
        let large = netlink().build(&vec![0u8; SIGNAL + HEADER]).expect("valid");
        assert!(herald(&large).is_err());
        // A worker does not.
        assert!(offence(&built(netlink())).contains("everybody"));
    }

    #[test]
    fn words_to_the_front() {
        fn word(member: &str) -> Builder<'_> {
            Message::signal("/org/example/IPC", WORKER, member)
        }
        assert!(matches!(verdict(&built(word("Idle"))), Ok(Said::Idle)));
        assert!(matches!(verdict(&built(word("Mount"))), Ok(Said::Mount)));
        let clients = word("Clients").build(&vec![":1.1", ":1.7"]).expect("valid");
        assert!(matches!(verdict(&clients), Ok(Said::Clients(names)) if names == [":1.1", ":1.7"]));
        offence(&word("Clients").build(&vec!["org.example.X"]).expect("valid"));
        offence(&word("Clients").build(&vec![":1.1"; CLIENTS + 1]).expect("valid"));
        offence(&word("Clients").build(&7u32).expect("valid"));
        offence(&built(word("Else")));
    }
}
