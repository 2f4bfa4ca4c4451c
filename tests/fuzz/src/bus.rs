//! A message bus with one client, the front: enough of it for the front to start, and whatever messages of
//! callers the input has.

use std::{
    collections::{HashMap, HashSet},
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixListener},
    sync::atomic::{AtomicU32, Ordering},
};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use zbus::{
    Connection, Guid, MessageStream, Variant,
    connection::Builder,
    message::{Header, Message, Type},
};

const BUS: &str = "org.freedesktop.DBus";

/// The front's own name.
const FRONT: &str = ":1.0";

/// Whom the credentials say that a connection belongs to.
pub const HOSTILE: u32 = 1001;
const OTHER: u32 = 1002;

/// Where the bus is found, and where it waits.
pub fn listen() -> (String, UnixListener) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("ipc-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    (format!("unix:abstract={name}"), UnixListener::bind_addr(&address).expect("a name of its own"))
}

/// The bus, once the front is there.
pub struct Bus {
    messages: MessageStream,
    said: mpsc::Sender<Message>,
}

impl Bus {
    /// Lets the front in; with its socket, and where what the front says comes out.
    pub async fn accept(
        listener: UnixListener,
    ) -> (Self, std::os::unix::net::UnixStream, mpsc::Receiver<Message>) {
        let (stream, _) = listener.accept().expect("the front connects");
        let raw = stream.try_clone().expect("a descriptor");
        let builder = Builder::unix_stream(stream).server(Guid::generate()).p2p();
        let messages = builder.build_message_stream().await.expect("the front authenticates itself");
        let (said, saying) = mpsc::channel(1024);
        (Self { messages, said }, raw, saying)
    }

    /// Answers what the front asks of the bus.
    pub async fn serve(mut self) {
        let connection = Connection::from(&self.messages);
        while let Some(Ok(message)) = self.messages.next().await {
            let header = message.header();
            let asked = message.message_type() == Type::MethodCall
                && header.destination().is_some_and(|destination| destination == BUS);
            if !asked {
                drop(header);
                if self.said.send(message).await.is_err() {
                    return;
                }
                continue;
            }
            let reply = answer(&message, &header);
            if connection.send(&reply).await.is_err() {
                return;
            }
        }
    }
}

fn answer(message: &Message, header: &Header<'_>) -> Message {
    let body = message.body();
    let about: &str = body.deserialize().unwrap_or_default();
    let reply = || Message::method_return(header).sender(BUS).destination(FRONT);
    let error =
        |name: &'static str| Message::error(header, name).sender(BUS).destination(FRONT).build(&("no",));
    let known = |uid: u32, groups: Option<&[u32]>| {
        let mut credentials = HashMap::from([("UnixUserID", Variant::from(uid))]);
        credentials.extend(groups.map(|groups| ("UnixGroupIDs", Variant::from(groups.to_vec()))));
        reply().build(&credentials)
    };
    let built = match (header.member().map_or("", |member| member.as_str()), about) {
        ("Hello", _) => reply().build(&FRONT),
        ("RequestName" | "ReleaseName", _) => reply().build(&1u32),
        ("NameHasOwner", _) => reply().build(&true),
        ("AddMatch", _) => reply().build(&()),
        ("GetConnectionCredentials", ":1.1" | ":1.11") => known(HOSTILE, Some(&[HOSTILE])),
        ("GetConnectionCredentials", ":1.2") => known(OTHER, Some(&[OTHER, 7])),
        ("GetConnectionCredentials", ":1.3") => known(OTHER, None),
        ("GetConnectionCredentials", ":1.4") => error("org.freedesktop.DBus.Error.NameHasNoOwner"),
        ("GetConnectionCredentials", ":1.5") => known(65534, Some(&[65534])),
        ("GetConnectionCredentials", _) => known(2000, Some(&[2000])),
        _ => error("org.freedesktop.DBus.Error.UnknownMethod"),
    };
    built.expect("a valid answer")
}

/// What callers have asked, and what the front may therefore say.
#[derive(Default)]
pub struct Ledger {
    callers: HashSet<String>,
    /// How many answers each call may have.
    calls: HashMap<(String, u32), usize>,
}

impl Ledger {
    /// The front gets this.
    pub fn asked(&mut self, message: &Message) {
        let header = message.header();
        let Some(sender) = header.sender() else { return };
        self.callers.insert(sender.to_string());
        let serial = message.primary_header().serial_num().get();
        let answered = message.message_type() == Type::MethodCall
            && !message.primary_header().flags().contains(zbus::message::Flags::NO_REPLY_EXPECTED);
        if answered {
            *self.calls.entry((sender.to_string(), serial)).or_default() += 1;
        }
    }

    /// The front says this; panics if it may not.
    pub fn said(&mut self, message: &Message) {
        let header = message.header();
        let to = header.destination().map(ToString::to_string).unwrap_or_default();
        assert!(self.callers.contains(&to), "to nobody who called: {message:?}");
        if message.message_type() == Type::MethodCall {
            let ping = header.member().is_some_and(|member| member == "Ping");
            assert!(ping, "the front calls a client: {message:?}");
            return;
        }
        assert!(crate::allowed(message), "not for the bus: {message:?}");
        if let Some(serial) = header.reply_serial() {
            let left = self.calls.get_mut(&(to, serial.get()));
            let left = left.unwrap_or_else(|| panic!("nobody made that call: {message:?}"));
            assert!(*left > 0, "answered once more: {message:?}");
            *left -= 1;
        }
    }
}
