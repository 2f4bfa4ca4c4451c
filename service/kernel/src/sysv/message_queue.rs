//! A System V message queue as an endpoint.
//!
//! The kernel has no file descriptor and no event for queues: whoever waits, blocks in msgrcv(2) or
//! msgsnd(2). So do we ([`Blocked`]): receivers with different selectors stand in the kernel's own
//! queue, which serves them in its own order. What such a call has taken when its wait was given
//! up goes to the next Receive that asks for it, and back into the queue when the endpoint goes.

// The types of the fields of msqid_ds, and of a C long, differ between machines.
#![allow(clippy::useless_conversion, clippy::unnecessary_cast)]

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use libc::{c_int, c_long};
use rustix::io::Errno;

use super::{
    Cell, Commands, Family, Object, micros, permission_cells,
    queue::{self, MSG_COPY, Queue},
    selector::{Selector, sent_type},
};
use crate::{
    Address, Attempt, Dict, Endpoint, Error, Kind, Parameters, Readiness, Result, Value,
    blocked::{self, Blocked, Ended, Taken},
    dict,
    fd::retry,
    mechanism::Permissions,
    shape::{Message, Messages, Outgoing, Shape},
};

/// How many messages a Peek by type looks at.
const LOOKS: u64 = 1024;

/// How often a Peek looks again for a message at an index, for which the kernel has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the kernel knows of a queue.
pub fn row(id: c_int, state: &libc::msqid_ds, commands: &mut Commands) -> impl Iterator<Item = Cell> + use<> {
    let (lspid, lrpid) = (state.msg_lspid, state.msg_lrpid);
    let used = lspid != 0 || lrpid != 0;
    let stale = used && !commands.lives(lspid) && !commands.lives(lrpid);
    let own = [
        ("qnum", Value::U64(state.msg_qnum as u64)),
        ("cbytes", Value::U64(state.__msg_cbytes as u64)),
        ("qbytes", Value::U64(state.msg_qbytes as u64)),
        ("lspid", Value::U32(lspid.cast_unsigned())),
        ("lrpid", Value::U32(lrpid.cast_unsigned())),
        ("stime", Value::U64(micros(state.msg_stime))),
        ("rtime", Value::U64(micros(state.msg_rtime))),
        ("ctime", Value::U64(micros(state.msg_ctime))),
        ("stale", Value::Bool(stale)),
    ];
    let names = [("lspid-command", lspid), ("lrpid-command", lrpid)]
        .map(|(key, pid)| commands.name(pid).map(|name| (key, name.into())));
    permission_cells::<Queue>(id, state).into_iter().chain(own).chain(names.into_iter().flatten())
}

/// MSGMAX, the most that msgsnd(2) takes.
fn msgmax() -> usize {
    queue::info(libc::IPC_INFO).ok().and_then(|info| info.msgmax.try_into().ok()).unwrap_or(0)
}

/// A message as the kernel gives it.
#[derive(Debug, Clone)]
struct Letter {
    kind: c_long,
    data: Vec<u8>,
}

impl From<Letter> for Message {
    fn from(letter: Letter) -> Self {
        Self { data: letter.data, attributes: dict! { "type" => i64::from(letter.kind) }, fds: Vec::new() }
    }
}

/// What the endpoint and its blocking calls share.
#[derive(Debug)]
struct Shared {
    object: Object<Queue>,
    taken: Arc<Taken<Letter>>,
    /// Room for any message: MSGMAX, and more where a message was larger.
    room: AtomicUsize,
}

pub struct MessageQueue(Arc<Shared>);

impl MessageQueue {
    pub fn new(object: Object<Queue>) -> Result<Self> {
        let room = msgmax().into();
        Ok(Self(Arc::new(Shared { object, taken: Arc::default(), room })))
    }

    /// A blocking msgrcv(2) that keeps what it takes.
    fn blocked(&self, selector: Selector, max: usize) -> Readiness {
        let shared = self.0.clone();
        Readiness::Blocked(Blocked::taking(&self.0.taken, move || {
            match queue::receive(shared.object.id, max, selector.kind, selector.flags()) {
                Ok((kind, data)) => (Ended::Done, Some(Letter { kind, data })),
                Err(Errno::INTR) => (Ended::Interrupted, None),
                // The next attempt meets the same error, and reports it.
                Err(_) => (Ended::Done, None),
            }
        }))
    }

    /// Waits for a message, which stays: it is larger than nothing. An empty one is taken; it is sent
    /// again at once.
    fn blocked_arrival(&self, selector: Selector) -> Readiness {
        let shared = self.0.clone();
        Readiness::Blocked(Blocked::new(move || {
            match queue::receive(shared.id(), 0, selector.kind, selector.flags()) {
                Ok((kind, data)) => _ = shared.give_back(&Letter { kind, data }),
                Err(Errno::INTR) => return Ended::Interrupted,
                Err(_) => {}
            }
            Ended::Done
        }))
    }
}

impl Shared {
    fn id(&self) -> c_int {
        self.object.id
    }

    fn state(&self) -> Result<libc::msqid_ds> {
        self.object.state()
    }

    fn error(&self, errno: Errno, verb: &str) -> Error {
        self.object.error(errno, format_args!("{verb} {}", self.object.name()))
    }

    /// msgrcv(2) that does not wait: None if there is no such message. `flags` may hold MSG_COPY,
    /// and then `kind` is an index.
    fn receive_now(&self, kind: c_long, flags: c_int, verb: &str) -> Result<Option<Letter>> {
        loop {
            let room = self.room.load(Ordering::Relaxed);
            let received = retry(|| queue::receive(self.id(), room, kind, flags | libc::IPC_NOWAIT));
            match received {
                Ok((kind, data)) => return Ok(Some(Letter { kind, data })),
                Err(Errno::NOMSG) => return Ok(None),
                // MSGMAX was larger when it was sent, or has been raised; no message is larger than
                // all of them together.
                Err(Errno::TOOBIG) => {
                    let all = usize::try_from(self.state()?.__msg_cbytes).unwrap_or(usize::MAX);
                    self.room.fetch_max(all.max(msgmax()), Ordering::Relaxed);
                }
                Err(errno) => return Err(self.error(errno, verb)),
            }
        }
    }

    /// The message at this place, copied.
    fn copy(&self, index: u64) -> Result<Option<Letter>> {
        let Ok(place) = index.try_into() else { return Ok(None) };
        self.receive_now(place, MSG_COPY, "peek at").map_err(|error| match error.kind {
            Kind::NotSupported => error.help("the kernel was built without CONFIG_CHECKPOINT_RESTORE"),
            _ => error,
        })
    }

    /// Puts a message that was taken behind the others; the kernel has no way to put it in front.
    fn give_back(&self, letter: &Letter) -> bool {
        let id = self.id();
        let message = queue::message(letter.kind, &letter.data);
        match retry(|| queue::send(id, &message, libc::IPC_NOWAIT)) {
            Err(Errno::AGAIN) => {}
            sent => return sent.is_ok(),
        }
        // The queue is full: as soon as there is room. Without a thread for that it is lost, as with
        // a receiver that dies.
        let call = Blocked::new(move || match queue::send(id, &message, 0) {
            Err(Errno::INTR) => Ended::Interrupted,
            _ => Ended::Done,
        });
        blocked::start(call, || ()).is_ok()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for letter in self.taken.drain() {
            self.give_back(&letter);
        }
    }
}

impl Endpoint for MessageQueue {
    fn address(&self) -> Address {
        self.0.object.address()
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Messages]
    }

    fn inspect(&self) -> Result<Dict> {
        let row = row(self.0.id(), &self.0.state()?, &mut Commands::default());
        let mut row: Dict = row.map(|(key, value)| (key.to_owned(), value)).collect();
        row.insert("max-message-size".into(), self.max_message_size().into());
        match self.0.taken.free() {
            0 => {}
            kept => drop(row.insert("taken-messages".into(), (kept as u64).into())),
        }
        Ok(row)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        Err(Error::not_supported(
            "the kernel has no file descriptors of System V queues; relay the queue to a pipe and open that, or \
             attach it with the option deliver or notify",
        ))
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        self.0.object.set_permissions(permissions)
    }

    fn remove(&self) -> Result<()> {
        self.0.object.remove()
    }

    fn messages(&self) -> Option<&dyn Messages> {
        Some(self)
    }
}

impl Messages for MessageQueue {
    fn send(&self, outgoing: Outgoing<'_>) -> Result<Attempt<()>> {
        if outgoing.sent.is_set() {
            return Ok(Attempt::Done(()));
        }
        if !outgoing.fds.is_empty() {
            return Err(Error::not_supported(
                "a System V message carries no file descriptors; a unix socket does",
            ));
        }
        let kind = sent_type(outgoing.attributes)?;
        let length = outgoing.data.len();
        let too_large = |most: u64, limit: &str| {
            let text = format!(
                "the message has {length} bytes; {} takes at most {most} ({limit}; EINVAL)",
                self.0.object.name()
            );
            Err(Error::new(Kind::TooLarge, text))
        };
        let message = queue::message(kind, outgoing.data);
        let id = self.0.id();
        match retry(|| queue::send(id, &message, libc::IPC_NOWAIT)) {
            Ok(()) => Ok(Attempt::Done(())),
            Err(Errno::AGAIN) => {
                let qbytes = self.0.state()?.msg_qbytes as u64;
                if length as u64 > qbytes {
                    return too_large(qbytes, "its qbytes");
                }
                let (shared, sent) = (self.0.clone(), outgoing.sent.clone());
                Ok(Attempt::Wait(Readiness::Blocked(Blocked::new(move || {
                    match queue::send(shared.id(), &message, 0) {
                        Ok(()) => sent.set(),
                        Err(Errno::INTR) => return Ended::Interrupted,
                        // The next attempt meets the same error, and reports it.
                        Err(_) => {}
                    }
                    Ended::Done
                }))))
            }
            Err(Errno::INVAL) if length > msgmax() => too_large(msgmax() as u64, "kernel.msgmax"),
            Err(errno) => Err(self.0.error(errno, "send to")),
        }
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        let selector = Selector::taking(selector)?;
        if let Some(mut letter) = self.0.taken.take(|letter: &Letter| selector.rank(letter.kind)) {
            let Some(most) = selector.max_size.filter(|most| letter.data.len() > *most) else {
                return Ok(Attempt::Done(letter.into()));
            };
            if !selector.truncate {
                self.0.taken.put_back(letter);
                return Err(self.larger_than(most));
            }
            letter.data.truncate(most);
            return Ok(Attempt::Done(letter.into()));
        }
        let Some(most) = selector.max_size else {
            return Ok(match self.0.receive_now(selector.kind, selector.flags(), "receive from")? {
                Some(letter) => Attempt::Done(letter.into()),
                None => Attempt::Wait(self.blocked(selector, self.0.room.load(Ordering::Relaxed))),
            });
        };
        let flags = selector.flags() | libc::IPC_NOWAIT;
        let room = most.min(self.0.room.load(Ordering::Relaxed));
        match retry(|| queue::receive(self.0.id(), room, selector.kind, flags)) {
            Ok((kind, data)) => Ok(Attempt::Done(Letter { kind, data }.into())),
            Err(Errno::NOMSG) => Ok(Attempt::Wait(self.blocked(selector, room))),
            Err(Errno::TOOBIG) => Err(self.larger_than(most)),
            Err(errno) => Err(self.0.error(errno, "receive from")),
        }
    }

    fn selects(&self, selector: &Dict, message: &Message) -> Result<bool> {
        let selector = match selector.contains_key("index") {
            // The kernel counts what is in its queue.
            true => return Ok(false),
            false => Selector::read(selector)?,
        };
        let kind = message.attributes.get("type").and_then(Value::integer).unwrap_or(0);
        Ok(selector.rank(kind.try_into().unwrap_or(0)).is_some())
    }

    fn peek(&self, selector: &Dict) -> Result<Attempt<Message>> {
        let selector = Selector::peeking(selector)?;
        let rank = |letter: &Letter| selector.rank(letter.kind);
        if selector.index.is_none()
            && let Some(letter) = self.0.taken.look(rank)
        {
            return Ok(Attempt::Done(letter.into()));
        }
        let first = selector.index.unwrap_or(0);
        let mut found: Option<(c_long, u64, Letter)> = None;
        let mut looked = first;
        while let Some(letter) = self.0.copy(looked)? {
            if let Some(rank) = rank(&letter)
                && found.as_ref().is_none_or(|(lowest, ..)| rank < *lowest)
            {
                found = Some((rank, looked, letter));
                // Only for the lowest type the others matter.
                if selector.kind >= 0 {
                    break;
                }
            }
            looked += 1;
            if looked - first >= LOOKS {
                break;
            }
        }
        if let Some((_, index, letter)) = found {
            let mut message = Message::from(letter);
            message.attributes.insert("index".into(), index.into());
            return Ok(Attempt::Done(message));
        }
        if looked - first >= LOOKS {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "none of the {LOOKS} messages from index {first} on is of this type, and one Peek looks at no \
                     more; go on with index={looked}"
                ),
            ));
        }
        Ok(Attempt::Wait(match first {
            0 => self.blocked_arrival(selector),
            _ => Readiness::After(LOOK_AGAIN),
        }))
    }

    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        sent_type(attributes).map(drop)
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        if self.0.taken.free() > 0 {
            return Ok(Attempt::Done(()));
        }
        let waits = match self.0.copy(0) {
            // Not all kernels can copy. IPC_STAT, as it asks for the permission to read.
            Err(error) if error.kind == Kind::NotSupported => {
                let mut state = Queue::blank();
                Queue::control(self.0.id(), libc::IPC_STAT, &mut state)
                    .map_err(|errno| self.0.error(errno, "wait for a message in"))?;
                state.msg_qnum > 0
            }
            copied => copied?.is_some(),
        };
        Ok(match waits {
            true => Attempt::Done(()),
            false => Attempt::Wait(self.blocked_arrival(Selector::default())),
        })
    }

    fn put_back(&self, message: &Message) -> bool {
        let kind = message.attributes.get("type").and_then(Value::integer);
        let kind = kind.and_then(|kind| kind.try_into().ok()).unwrap_or(1);
        self.0.give_back(&Letter { kind, data: message.data.clone() })
    }

    fn max_message_size(&self) -> u64 {
        let qbytes = self.0.state().map_or(u64::MAX, |state| state.msg_qbytes as u64);
        qbytes.min(msgmax() as u64)
    }

    fn depth(&self) -> Option<u64> {
        let state = self.0.state().ok()?;
        Some(state.msg_qnum as u64 + self.0.taken.free() as u64)
    }
}

impl MessageQueue {
    fn larger_than(&self, most: usize) -> Error {
        Error::new(
            Kind::TooLarge,
            format!(
                "the next message in {} has more than {most} bytes (max-size; E2BIG); it stays: raise max-size, or cut it \
                 with truncate",
                self.0.object.name()
            ),
        )
    }
}
