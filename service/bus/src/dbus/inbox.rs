//! What has come from a bus and was not received yet: a bounded queue.
//!
//! A bus has no way to hold a sender back, so what does not fit is lost, and the next message that
//! fits says how many were (`lost`).

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use event_listener::Event;
use ipc_kernel::{Attempt, Dict, Error, Kind, Readiness, Result, Value, shape::Message};

use super::body::MOST_BYTES;

/// The most file descriptors of messages that wait: whoever sends them must not use up those of this process.
pub const MOST_WAITING_FDS: usize = 64;

pub struct Inbox {
    /// The most messages that wait.
    pub depth: usize,
    state: Mutex<State>,
    arrived: Event,
    taken: Event,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    /// Of data, and of attributes: the path of an object may be as long as a message.
    bytes: usize,
    fds: usize,
    /// Since the last message that fitted.
    lost: u64,
    lost_in_all: u64,
    /// Why no more will come.
    closed: Option<String>,
}

impl Inbox {
    pub fn new(depth: usize) -> Self {
        Self { depth, state: Mutex::default(), arrived: Event::new(), taken: Event::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message behind the others if there is room, else counts it as lost.
    pub fn push(&self, message: Message) {
        let state = self.state();
        match state.queue.len() >= self.depth || state.is_heavy(&message) {
            true => self.lose(state),
            false => self.append(state, message),
        }
    }

    /// Puts a message behind the others, for which there was room ([`Self::room_beside`]).
    pub fn put(&self, message: Message) {
        self.append(self.state(), message);
    }

    fn append(&self, mut state: MutexGuard<'_, State>, mut message: Message) {
        let lost = std::mem::take(&mut state.lost);
        if lost > 0 {
            message.attributes.insert("lost".into(), lost.into());
        }
        state.bytes += bytes(&message);
        state.fds += message.fds.len();
        state.queue.push_back(message);
        drop(state);
        self.arrived.notify(usize::MAX);
    }

    /// Counts a message that came but cannot be had.
    pub fn lose_one(&self) {
        self.lose(self.state());
    }

    fn lose(&self, mut state: MutexGuard<'_, State>) {
        state.lost += 1;
        state.lost_in_all += 1;
    }

    /// Whether this message has too much for one beside those that wait.
    pub fn is_heavy(&self, message: &Message) -> bool {
        self.state().is_heavy(message)
    }

    /// No more will come; the first reason stays.
    pub fn close(&self, reason: &str) {
        self.state().closed.get_or_insert_with(|| reason.to_owned());
        self.arrived.notify(usize::MAX);
        self.taken.notify(usize::MAX);
    }

    /// Takes the first message that is wanted.
    pub fn take(&self, wanted: impl Fn(&Message) -> bool) -> Result<Attempt<Message>> {
        let arrived = self.arrived.listen();
        let mut state = self.state();
        let Some(index) = state.queue.iter().position(wanted) else { return state.wait(arrived) };
        // The index is that of the position.
        let message = state.queue.remove(index).unwrap_or_default();
        state.bytes -= bytes(&message);
        state.fds -= message.fds.len();
        drop(state);
        self.taken.notify(usize::MAX);
        Ok(Attempt::Done(message))
    }

    /// The data and attributes of the first message that is wanted.
    pub fn peek(&self, wanted: impl Fn(&Message) -> bool) -> Result<Attempt<Message>> {
        let arrived = self.arrived.listen();
        let state = self.state();
        match state.queue.iter().find(|message| wanted(message)) {
            Some(Message { data, attributes, .. }) => Ok(Attempt::Done(Message {
                data: data.clone(),
                attributes: attributes.clone(),
                fds: Vec::new(),
            })),
            None => state.wait(arrived),
        }
    }

    /// Waits for the first message, or the end.
    pub fn arrival(&self) -> Result<Attempt<()>> {
        let arrived = self.arrived.listen();
        let state = self.state();
        match state.queue.is_empty() && state.closed.is_none() {
            true => Ok(Attempt::Wait(Readiness::Notified(arrived))),
            false => Ok(Attempt::Done(())),
        }
    }

    /// Whether there is room for one more message beside as many that are to come; else what to wait for.
    pub fn room_beside(&self, expected: usize) -> Attempt<()> {
        let taken = self.taken.listen();
        match self.state().queue.len() + expected < self.depth {
            true => Attempt::Done(()),
            false => Attempt::Wait(Readiness::Notified(taken)),
        }
    }

    pub fn check_open(&self) -> Result<()> {
        self.state().closed.as_ref().map_or(Ok(()), |reason| Err(Error::new(Kind::Closed, reason.as_str())))
    }

    pub fn len(&self) -> u64 {
        self.state().queue.len() as u64
    }

    pub fn inspect(&self, into: &mut Dict) {
        let state = self.state();
        into.insert("messages".into(), (state.queue.len() as u64).into());
        into.insert("bytes".into(), (state.bytes as u64).into());
        into.insert("lost".into(), state.lost_in_all.into());
        into.insert("connected".into(), state.closed.is_none().into());
    }
}

impl State {
    fn is_heavy(&self, message: &Message) -> bool {
        !self.queue.is_empty()
            && (self.bytes + bytes(message) > MOST_BYTES || self.fds + message.fds.len() > MOST_WAITING_FDS)
    }

    fn wait<T>(&self, arrived: event_listener::EventListener) -> Result<Attempt<T>> {
        match &self.closed {
            Some(reason) => Err(Error::new(Kind::Closed, reason.as_str())),
            None => Ok(Attempt::Wait(Readiness::Notified(arrived))),
        }
    }
}

fn bytes(message: &Message) -> usize {
    let texts = message.attributes.values().map(|value| match value {
        Value::Text(text) => text.len(),
        _ => 0,
    });
    message.data.len() + texts.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        Message { data: text.into(), ..Message::default() }
    }

    fn taken(inbox: &Inbox) -> Message {
        match inbox.take(|_| true) {
            Ok(Attempt::Done(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_lost_is_told_by_the_next() {
        let inbox = Inbox::new(2);
        for text in ["1", "2", "3", "4"] {
            inbox.push(message(text));
        }
        assert_eq!(taken(&inbox).data, b"1");
        inbox.push(message("5"));
        assert!(!taken(&inbox).attributes.contains_key("lost"));
        let after = taken(&inbox);
        assert_eq!(after.data, b"5");
        assert!(after.attributes["lost"].same(&2u64.into()), "{after:?}");
        inbox.push(message("6"));
        assert!(taken(&inbox).attributes.is_empty());
    }

    #[test]
    fn what_waits_has_a_weight() {
        let inbox = Inbox::new(9);
        let path = |bytes: usize| Message {
            attributes: ipc_kernel::dict! { "path" => "/".repeat(bytes).as_str() },
            ..message("x")
        };
        inbox.push(path(MOST_BYTES / 2));
        assert!(inbox.is_heavy(&path(MOST_BYTES / 2)), "what is in an attribute counts");
        inbox.push(path(MOST_BYTES / 2 - 2));
        assert_eq!(inbox.len(), 2);
        taken(&inbox);
        taken(&inbox);
        let (one, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let fd = || std::os::fd::OwnedFd::from(one.try_clone().expect("a duplicate"));
        let with = |count: usize| Message { fds: (0..count).map(|_| fd()).collect(), ..message("x") };
        inbox.push(with(MOST_WAITING_FDS));
        assert!(inbox.is_heavy(&with(1)) && !inbox.is_heavy(&message("x")));
        taken(&inbox);
        assert!(!inbox.is_heavy(&with(1)));
    }

    #[test]
    fn what_came_before_the_end_is_received() {
        let inbox = Inbox::new(2);
        inbox.push(message("last"));
        inbox.close("over");
        inbox.close("again");
        assert_eq!(taken(&inbox).data, b"last");
        let error = inbox.take(|_| true).expect_err("closed");
        assert_eq!((error.kind, error.text.as_str()), (Kind::Closed, "over"));
    }
}
