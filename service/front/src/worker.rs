//! One worker: the process that is one identity, as the front sees it.
//!
//! A call is written to it at once, or waits in a bounded queue; when there is none to take it, a task starts the process, serves
//! it and buries it, over and over as long as something waits. While it lives, one future writes, one
//! reads and judges, and one watches whether it still runs. `life.rs` has what happens between the
//! queue and the process.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Instant,
};

use ipc_spawner::protocol::{HERALD, Identity};
use ipc_stream::Writer;
use tokio::sync::Notify;
use zbus::message::Message;

use crate::{
    admission::User,
    budget::Client,
    lock,
    parcel::Parcel,
    pending::{Expected, Members},
    refusals::Refusal,
    router::Router,
};

/// Messages that may wait. Calls are bounded by what is admitted; what else waits is the news of
/// clients that have left, and a worker that lets so many of them wait does not read.
const QUEUE: usize = 4096;

/// Processes of one identity that were told to end and have not.
pub const UNDEAD: u32 = 2;

pub struct Worker {
    pub name: String,
    pub uid: u32,
    /// Not known of one that was taken over from a former front until a client of it calls.
    identity: OnceLock<Identity>,
    state: Mutex<State>,
    /// Something is in the queue.
    pub news: Notify,
    /// It has something to answer.
    pub outstanding: Notify,
    pub pong: Notify,
    /// It wants a mount.
    pub mounting: Notify,
}

#[derive(Default)]
pub struct State {
    pub members: Members,
    pub queue: VecDeque<Parcel>,
    /// A task starts, serves or buries the process.
    pub awake: bool,
    /// The stream to the process, while it serves.
    pub stream: Option<Writer>,
    /// Since when the process is being sent a message.
    pub writing: Option<Instant>,
    /// The serial of the question whether it runs.
    pub ping: Option<NonZeroU32>,
    /// Its clients are being looked up, and it waits for that.
    pub adopting: bool,
    /// More waits than it will ever read.
    pub overrun: bool,
    /// Processes that were told to end and have not.
    pub undead: u32,
}

impl Worker {
    pub fn new(name: String, uid: u32) -> Arc<Self> {
        Arc::new(Self {
            name,
            uid,
            identity: OnceLock::new(),
            state: Mutex::default(),
            news: Notify::new(),
            outstanding: Notify::new(),
            pong: Notify::new(),
            mounting: Notify::new(),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A client of this identity.
    pub fn join(&self, client: &Arc<Client>, identity: &Identity) {
        // The same for all of them: the name of the worker stands for it.
        self.identity.get_or_init(|| identity.clone());
        self.state().members.join(client);
    }

    /// Whether it is nobody's.
    pub fn is_herald(&self) -> bool {
        self.name == HERALD
    }

    /// Whose starts are counted.
    pub fn user(&self) -> User {
        (!self.is_herald()).then_some(self.uid)
    }

    pub fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Hands on a call that was admitted: at once if there is room, or it is queued.
    pub fn call(
        self: &Arc<Self>,
        router: &Arc<Router>,
        client: &Client,
        mut parcel: Parcel,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        let quiet = state.members.calls() == 0 && state.queue.is_empty();
        if parcel.asks().is_none() {
            state.members.expect_nothing();
        }
        if let Some(serial) = parcel.asks()
            && let Some(permit) = parcel.split_call()
        {
            match state.members.expect(&client.name, serial, permit) {
                Expected::Yes => {}
                // It has left: nobody waits for anything.
                Expected::NoMember => return Ok(()),
                Expected::SameSerial => return Err(Refusal::serial(serial)),
            }
        }
        if !state.send_now(&mut parcel) {
            state.queue.push_back(parcel);
            if !std::mem::replace(&mut state.awake, true) {
                router.spawn(self.clone().run(router.clone(), None));
            }
            self.news.notify_one();
        }
        drop(state);
        if quiet {
            self.outstanding.notify_one();
        }
        Ok(())
    }

    /// A client has left; the process, if there is one, hears of it with this message.
    pub fn leave(&self, name: &str, news: Parcel) {
        let mut state = self.state();
        if !state.members.leave(name) || !state.awake {
            return;
        }
        state.tell(news);
        drop(state);
        self.news.notify_one();
        self.outstanding.notify_one();
    }

    /// Takes over the process of a former front.
    pub fn resume(self: &Arc<Self>, router: &Arc<Router>, control: OwnedFd) {
        self.state().awake = true;
        router.spawn(self.clone().run(router.clone(), Some(control)));
    }

    /// Whether nothing is known of it that is worth remembering.
    pub fn is_unused(&self) -> bool {
        let state = self.state();
        state.members.is_empty() && !state.awake && state.undead == 0
    }

    /// Whether the task may end, and then it must: nothing waits.
    pub fn rest(&self) -> bool {
        let mut state = self.state();
        state.awake = state.has_calls();
        !state.awake
    }

    /// Asks the process whether it runs.
    pub fn ask(&self, ping: &Message, parcel: Parcel) {
        let mut state = self.state();
        state.ping = Some(ping.primary_header().serial_num());
        // First, but for the rest of what has been begun.
        let begun = state.queue.front().is_some_and(Parcel::is_begun);
        state.queue.insert(begun.into(), parcel);
        drop(state);
        self.news.notify_one();
    }
}

impl State {
    /// Whether calls wait, when there is no process.
    pub fn has_calls(&mut self) -> bool {
        // A new process knows nothing of those who have left.
        self.queue.retain(Parcel::is_call);
        !self.queue.is_empty()
    }

    /// Queues something that is not a call.
    pub fn tell(&mut self, news: Parcel) {
        if self.queue.len() < QUEUE {
            self.queue.push_back(news);
        } else {
            self.overrun = true;
        }
    }

    /// Writes it to the process, if nothing waits and there is room. Whether all of it has left; if not,
    /// it has to be queued.
    fn send_now(&mut self, parcel: &mut Parcel) -> bool {
        let idle = self.queue.is_empty() && self.writing.is_none();
        let Some(stream) = self.stream.as_ref().filter(|_| idle) else { return false };
        // What is wrong with it is for who writes what is queued.
        matches!(parcel.send_now(stream), Ok(true))
    }

    /// The next message to be written.
    pub fn next(&mut self) -> Option<Parcel> {
        let next = self.queue.pop_front();
        self.writing = next.as_ref().map(|_| Instant::now());
        next
    }

    /// Since when it has something to do that it has not done.
    pub fn waits_since(&self) -> Option<Instant> {
        if self.adopting {
            return None;
        }
        self.members.oldest().into_iter().chain(self.writing).min()
    }

    /// Whether it has nothing to do, and nothing is on the way to it.
    pub fn is_quiet(&self) -> bool {
        self.members.calls() == 0 && self.queue.is_empty() && self.writing.is_none()
    }
}
