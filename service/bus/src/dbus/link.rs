//! An endpoint's own connection to a bus, and the two tasks beside it: one reads, one writes.
//!
//! Nothing here waits for the endpoint's users. What comes is looked at at once and put into a
//! bounded queue; what is to be sent waits in another one. So a bus is always read, and no endpoint
//! can hold up another.

use std::{
    collections::VecDeque,
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_listener::Event;
use futures_util::StreamExt;
use ipc_kernel::{Attempt, Error, Kind, Readiness, Result};
use ipc_stream::BusSocket;
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};
use zbus::{
    Connection, DBusError, DynamicType, Message, MessageStream, connection::Builder, message,
    wire::DynamicDeserialize,
};

use super::{bus::Bus, endpoint::Role, inbox::Inbox, own::Own};

/// How long a bus may take to authenticate us, and to answer its own methods.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long the bus may leave a message of ours unread.
const WRITING: Duration = Duration::from_secs(30);

/// Messages that are read before they are looked at. Each may have as many descriptors as the bus lets it have, and
/// memory; whoever sends them must not use up those of this process.
const AHEAD: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// Messages that wait to be written.
const OUTGOING: usize = 16;

/// Answers that the reader itself gives and that wait to be handed to the writer: all calls of the deepest endpoint
/// may be over at once.
const ANSWERS: usize = 8192;

pub const DBUS: &str = "org.freedesktop.DBus";

/// What the endpoint and its tasks share.
pub struct Core {
    pub bus: Bus,
    pub own: Own,
    pub inbox: Inbox,
    connection: Connection,
    outgoing: mpsc::Sender<Message>,
    written: Arc<Event>,
    answers: Mutex<VecDeque<Message>>,
    /// Notified when a deadline is there that may be the next one.
    pub due: Notify,
}

impl Core {
    /// Hands a message to the writer, or says what to wait for.
    pub fn offer(&self, message: Message) -> Result<Attempt<()>> {
        self.inbox.check_open()?;
        let written = self.written.listen();
        match self.outgoing.try_send(message) {
            Ok(()) => Ok(Attempt::Done(())),
            Err(mpsc::error::TrySendError::Full(_)) => Ok(Attempt::Wait(Readiness::Notified(written))),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(Error::new(Kind::Closed, "the connection to the bus has ended"))
            }
        }
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an answer sent when the writer has room for it: for the reader, which does not wait for that.
    pub fn answer(&self, answer: Message) {
        let mut answers = self.answers();
        // A bus that has not read so many has no caller that waits.
        if answers.len() < ANSWERS {
            answers.push_back(answer);
        }
    }

    /// Calls a method of the bus itself.
    pub async fn ask<R, B>(&self, member: &str, body: &B) -> zbus::Result<R>
    where
        R: for<'de> DynamicDeserialize<'de>,
        B: Serialize + DynamicType,
    {
        ask(&self.connection, member, body).await
    }

    /// The owner of a name, if it has one.
    pub async fn owner(&self, name: &str) -> Result<Option<String>> {
        match self.ask::<String, _>("GetNameOwner", &(name,)).await {
            Ok(owner) => Ok(Some(owner)),
            Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::NameHasNoOwner(_)) => Ok(None),
            Err(error) => Err(failed(&format!("ask the bus who {name} is"), error)),
        }
    }

    /// Asks for signals.
    pub async fn add_match(&self, rule: &str) -> Result<()> {
        self.ask::<(), _>("AddMatch", &(rule,))
            .await
            .map_err(|error| failed(&format!("ask the bus for signals by the rule {rule}"), error))
    }

    /// Asks for them no more.
    pub async fn remove_match(&self, rule: &str) {
        // Nobody is left to be told; the rules end with the connection, too.
        let _ = self.ask::<(), _>("RemoveMatch", &(rule,)).await;
    }

    /// Whether a message is the bus's own signal of this name, to everybody.
    pub fn is_of_bus(&self, message: &Message, member: &str) -> bool {
        let header = message.header();
        message.message_type() == message::Type::Signal
            && header.sender().is_some_and(|sender| sender.as_str() == DBUS)
            && header.member().is_some_and(|name| name.as_str() == member)
    }

    /// What `NameOwnerChanged` says of this name: the owner before, and the one now.
    pub fn new_owner(&self, message: &Message, name: &str) -> Option<(Option<String>, Option<String>)> {
        if !self.is_of_bus(message, "NameOwnerChanged") {
            return None;
        }
        let body = message.body();
        let (changed, old, new) = body.deserialize::<(&str, &str, &str)>().ok()?;
        let some = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        (changed == name).then(|| (some(old), some(new)))
    }
}

/// The serial of the call that a message answers. A signal may have one, too: it answers nothing.
pub fn answered(message: &Message) -> Option<NonZeroU32> {
    match message.message_type() {
        message::Type::MethodReturn | message::Type::Error => message.header().reply_serial(),
        _ => None,
    }
}

/// Calls a method of the bus on a connection.
pub async fn ask<R, B>(connection: &Connection, member: &str, body: &B) -> zbus::Result<R>
where
    R: for<'de> DynamicDeserialize<'de>,
    B: Serialize + DynamicType,
{
    let reply = connection.call_method(Some(DBUS), "/org/freedesktop/DBus", Some(DBUS), member, body).await?;
    reply.body().deserialize()
}

/// The rule for the signals that tell of a name's owners.
pub fn owner_rule(name: &str) -> String {
    format!("type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{name}'")
}

/// Notes a connection as one of this process.
pub async fn own(connection: &Connection) -> zbus::Result<Own> {
    let bus: String = ask(connection, "GetId", &()).await?;
    Ok(Own::new(bus, connection.unique_name().map(|name| name.to_string()).unwrap_or_default()))
}

/// A task that ends when this is dropped.
pub struct Task(pub AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection to a bus that a socket leads to.
pub async fn connect(bus: &Bus, socket: std::os::fd::OwnedFd) -> Result<MessageStream> {
    let attempt = format!("connect to the bus {}", bus.label);
    let socket = BusSocket::over(socket, Arc::new(drop))
        .map_err(|error| Error::new(Kind::Unavailable, format!("cannot {attempt}: {error}")))?;
    let building = Builder::socket(socket).method_timeout(PATIENCE).max_queued(AHEAD).build_message_stream();
    match timeout(PATIENCE, building).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            Err(Error::new(Kind::Unavailable, format!("cannot {attempt}: {error}"))
                .help("is it a message bus?"))
        }
        Err(_) => Err(Error::new(
            Kind::Timeout,
            format!("cannot {attempt}: nobody there has authenticated us within {} s", PATIENCE.as_secs()),
        )),
    }
}

/// Connects, and starts the tasks.
pub async fn start<R: Role>(
    bus: Bus,
    socket: std::os::fd::OwnedFd,
    depth: usize,
    role: R,
) -> Result<(Arc<Core>, Arc<R>, Task)> {
    let stream = connect(&bus, socket).await?;
    let connection = Connection::from(&stream);
    let own = own(&connection).await.map_err(|error| failed("ask the bus for its id", error))?;
    let (outgoing, to_write) = mpsc::channel(OUTGOING);
    let written = Arc::new(Event::new());
    let core = Arc::new(Core {
        own,
        bus,
        inbox: Inbox::new(depth),
        connection: connection.clone(),
        outgoing,
        written: written.clone(),
        answers: Mutex::default(),
        due: Notify::new(),
    });
    let role = Arc::new(role);
    tokio::spawn(write(connection, to_write, written));
    let reader = tokio::spawn(read(core.clone(), role.clone(), stream));
    Ok((core, role, Task(reader.abort_handle())))
}

/// Ends when the endpoint has gone and everything is written; or when nobody reads.
async fn write(connection: Connection, mut messages: mpsc::Receiver<Message>, written: Arc<Event>) {
    while let Some(message) = messages.recv().await {
        written.notify(usize::MAX);
        let error = match timeout(WRITING, connection.send(&message)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it has not read for {} s", WRITING.as_secs()),
        };
        tracing::info!("a message to a bus was not written: {error}");
        // The reader sees the end, and says so.
        messages.close();
        if let Err(error) = connection.close().await {
            tracing::debug!("the connection could not be closed: {error}");
        }
        return;
    }
}

/// Looks at everything that comes, until the bus has gone.
async fn read<R: Role>(core: Arc<Core>, role: Arc<R>, mut stream: MessageStream) {
    loop {
        let changed = core.due.notified();
        let due = async {
            match role.due() {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let answers = !core.answers().is_empty();
        tokio::select! {
            permit = core.outgoing.reserve(), if answers => match permit {
                Ok(permit) => if let Some(answer) = core.answers().pop_front() { permit.send(answer) },
                Err(_) => core.answers().clear(),
            },
            message = stream.next() => match message {
                Some(Ok(message)) if message.message_type() == message::Type::MethodCall => called(&core, &*role, &message),
                Some(Ok(message)) => role.handle(&core, &message),
                Some(Err(_)) | None => break,
            },
            () = due => role.expire(&core, Some(Instant::now())),
            () = changed => {}
        }
    }
    role.expire(&core, None);
    core.inbox.close(&format!("the bus {} has gone, or has ended the connection", core.bus.label));
}

/// Every connection answers a ping (D-Bus specification, `org.freedesktop.DBus.Peer`), and no call
/// stays without an answer.
fn called<R: Role>(core: &Core, role: &R, call: &Message) {
    let header = call.header();
    let is = |interface: &str, member: &str| {
        header.interface().is_none_or(|name| name.as_str() == interface)
            && header.member().is_some_and(|name| name.as_str() == member)
    };
    let answer = if is("org.freedesktop.DBus.Peer", "Ping") {
        Message::method_return(&header).build(&())
    } else {
        match role.called(core, call) {
            Ok(()) => return,
            Err((name, text)) => Message::error(&header, name).build(&(text,)),
        }
    };
    if call.primary_header().flags().contains(message::Flags::NO_REPLY_EXPECTED) {
        return;
    }
    match answer {
        Ok(answer) => core.answer(answer),
        Err(error) => tracing::debug!("an answer to a call cannot be written: {error}"),
    }
}

/// An error of zbus, or of whoever was called, as one of ours; `attempt` reads "ask the bus for its id".
pub fn failed(attempt: &str, error: zbus::Error) -> Error {
    let (name, text) = match &error {
        zbus::Error::MethodError(name, text, _) => (name.to_string(), text.clone().unwrap_or_default()),
        zbus::Error::FDO(error) => {
            (error.name().to_string(), error.description().unwrap_or_default().to_owned())
        }
        zbus::Error::InputOutput(io) if io.kind() == std::io::ErrorKind::TimedOut => {
            return Error::new(
                Kind::Timeout,
                format!("cannot {attempt}: no answer within {} s", PATIENCE.as_secs()),
            );
        }
        other => return Error::new(Kind::Closed, format!("cannot {attempt}: {other}")),
    };
    Error::new(kind_of(&name), format!("cannot {attempt}: {name}: {text}"))
}

/// What an error that came says.
pub fn error_text(message: &Message) -> String {
    message.body().deserialize::<&str>().unwrap_or_default().to_owned()
}

/// What an error of D-Bus means.
pub fn kind_of(name: &str) -> Kind {
    match name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or_default() {
        "ServiceUnknown" | "NameHasNoOwner" | "UnknownObject" | "UnknownInterface" | "UnknownMethod"
        | "UnknownProperty" => Kind::NotFound,
        "AccessDenied" | "AuthFailed" | "PropertyReadOnly" | "InteractiveAuthorizationRequired" => {
            Kind::PermissionDenied
        }
        "NoReply" | "Timeout" | "TimedOut" => Kind::Timeout,
        "LimitsExceeded" => Kind::LimitExceeded,
        "MatchRuleInvalid" | "InvalidArgs" | "InvalidSignature" => Kind::InvalidArgument,
        "NotSupported" => Kind::NotSupported,
        "Disconnected" => Kind::Closed,
        _ => Kind::Unavailable,
    }
}
