//! Takes everything that comes from the bus.
//!
//! For each call: admit it, find out whose it is, hand it to the worker that is that caller. It is the
//! reader of the bus that calls in here, and nothing here waits: a queue that is full is a refusal, and
//! what takes time is a task. All the rest of the front hangs together here.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use zbus::{
    fdo,
    message::{Message, Type},
};

use crate::{
    admission::{Admission, User},
    budget::{Client, Signal, Standing},
    bus::{self, Bus},
    closer::Closer,
    front::FdStore,
    identity::{Caller, Unknown, identify},
    judge::HEADER,
    limits::Limits,
    lock, log,
    outbox::Outbox,
    parcel::Parcel,
    refusals::Refusal,
    spawner::Spawner,
    starts::Starts,
    worker::Worker,
};

/// The first and the longest pause before the bus is asked again whether a client has read. (No bus
/// tells it by itself.)
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long a client may take to answer a ping before it counts as one that never does.
const PONG: Duration = Duration::from_secs(1);

/// How long a worker waits for the bus to say whether a client is behind, before it counts as behind.
const ANSWER: Duration = Duration::from_millis(100);

pub struct Router {
    pub bus: Bus,
    pub limits: Limits,
    pub spawner: Spawner,
    pub admission: Arc<Admission>,
    pub closer: Arc<Closer>,
    pub starts: Mutex<Starts>,
    pub store: Box<dyn FdStore>,
    /// Whether the service ends; every worker's task hears of it.
    pub stopping: watch::Sender<bool>,
    outbox: Arc<Outbox>,
    /// Every connection that has called and has not left.
    callers: Mutex<HashMap<Arc<str>, Entry>>,
    /// Locked before the state of a worker, never after.
    workers: Mutex<HashMap<String, Arc<Worker>>>,
    drops: Mutex<log::Drops>,
    tasks: Mutex<JoinSet<()>>,
    /// The bus does not tell what it holds for a client.
    no_stats: AtomicBool,
}

/// A connection, and what is known of it.
struct Entry {
    client: Arc<Client>,
    state: Known,
}

enum Known {
    /// It could not be found out whose it is; the next call asks again.
    Not,
    Asking(Waiting),
    Yes(Arc<Worker>),
    Refused(Refusal),
}

/// Who waits until it is known whose connection it is.
#[derive(Default)]
struct Waiting {
    calls: Vec<Parcel>,
    learners: Vec<oneshot::Sender<Learned>>,
}

/// Whose a connection is.
#[derive(Clone)]
pub enum Learned {
    /// It belongs to the worker of this name.
    Worker(String),
    /// It has left, or is nobody's who would be served.
    Gone,
    NotNow,
}

impl Router {
    pub fn new(
        bus: Bus,
        limits: Limits,
        spawner: Spawner,
        closer: Arc<Closer>,
        store: Box<dyn FdStore>,
        outbox: Arc<Outbox>,
    ) -> Arc<Self> {
        Arc::new(Self {
            bus,
            admission: Admission::new(&limits),
            limits,
            spawner,
            closer,
            starts: Mutex::default(),
            store,
            stopping: watch::Sender::new(false),
            outbox,
            callers: Mutex::default(),
            workers: Mutex::default(),
            drops: Mutex::default(),
            tasks: Mutex::default(),
            no_stats: AtomicBool::new(false),
        })
    }

    /// The next call or signal from the bus. `more`: another one follows at once.
    pub fn take(self: &Arc<Self>, message: Message, more: bool) {
        let mut parcel = Parcel::new(message, None, &self.closer);
        parcel.may_wait(more);
        match parcel.message().message_type() {
            Type::MethodCall => self.call(parcel),
            Type::Signal => {
                if let Some(name) = bus::departed(parcel.message()) {
                    self.departed(&name, parcel);
                }
            }
            // Those go to who asked.
            Type::MethodReturn | Type::Error => {}
        }
    }

    fn call(self: &Arc<Self>, parcel: Parcel) {
        let found = {
            let header = parcel.message().header();
            // The bus writes it into every message.
            let Some(sender) = header.sender() else { return };
            match lock(&self.callers).get(sender.as_str()) {
                Some(Entry { client, state: Known::Yes(worker) }) => Ok((client.clone(), worker.clone())),
                _ => Err(Arc::from(sender.as_str())),
            }
        };
        match found {
            Ok((client, worker)) => self.forward(&client, &worker, parcel),
            Err(sender) => self.meet(sender, parcel),
        }
    }

    /// A call of who is not known, or not served.
    fn meet(self: &Arc<Self>, sender: Arc<str>, parcel: Parcel) {
        let asks = parcel.asks();
        let mut callers = lock(&self.callers);
        let Entry { client, state } = callers.entry(sender).or_insert_with_key(|name| self.unknown(name));
        let client = client.clone();
        let result = match state {
            Known::Asking(waiting) => self.wait(waiting, &client, parcel),
            Known::Refused(refusal) => Err(refusal.clone()),
            Known::Not => {
                let mut waiting = Waiting::default();
                let result = self.wait(&mut waiting, &client, parcel);
                if result.is_ok() {
                    *state = Known::Asking(waiting);
                    self.spawn(self.clone().identify(client.clone()));
                }
                result
            }
            // Those do not come here.
            Known::Yes(_) => Ok(()),
        };
        drop(callers);
        if let Err(refusal) = result {
            self.answer(&client, asks, &refusal);
        }
    }

    fn unknown(&self, name: &Arc<str>) -> Entry {
        Entry { client: Client::new(name.clone(), &self.limits), state: Known::Not }
    }

    /// Lets a call wait until it is known whose it is.
    fn wait(&self, waiting: &mut Waiting, client: &Client, mut parcel: Parcel) -> Result<(), Refusal> {
        self.check(None, &parcel)?;
        let permit = self.admission.admit(None, Some(&client.name), parcel.amounts())?;
        parcel.hold(None, permit);
        waiting.calls.push(parcel);
        Ok(())
    }

    /// What no call may be, however few there are.
    fn check(&self, user: User, parcel: &Parcel) -> Result<(), Refusal> {
        let fds = parcel.fds();
        if parcel.size() > self.limits.payload as usize + HEADER {
            return Err(Refusal::too_large(parcel.size(), self.limits.payload));
        }
        if fds > self.limits.fds_per_call as usize {
            let what = format!("the call has {fds} file descriptors");
            return Err(Refusal::limit(&what, "fds-per-call", self.limits.fds_per_call.into(), "send fewer"));
        }
        if fds > 0 && self.closer.hangs(user) {
            return Err(Refusal::limit(
                "closing the file descriptors that you sent before hangs",
                "fds-per-user",
                self.limits.fds_per_user.into(),
                "look for a file system that does not answer",
            ));
        }
        Ok(())
    }

    /// Hands a call to the worker that is its caller.
    fn forward(self: &Arc<Self>, client: &Arc<Client>, worker: &Arc<Worker>, mut parcel: Parcel) {
        let (user, asks) = (client.user(), parcel.asks());
        let standing = client.account().standing();
        let result = match standing {
            Standing::Fine => self.check(user, &parcel).and_then(|()| {
                let permit = self.admission.admit(user, Some(&client.name), parcel.amounts())?;
                parcel.hold(user, permit);
                worker.call(self, client, parcel)
            }),
            Standing::Refuse(refusal) | Standing::Drop(refusal) => Err(refusal),
        };
        if let Err(refusal) = result {
            self.answer(client, asks, &refusal);
        }
    }

    /// Finds out whose a connection is, and then does what waited for that.
    async fn identify(self: Arc<Self>, client: Arc<Client>) {
        let found = identify(&self.bus, &self.spawner, &client.name).await;
        let mut callers = lock(&self.callers);
        // It may have left meanwhile, and what waited with it.
        let Some(Entry { state, .. }) = callers.get_mut(&client.name) else { return };
        let Known::Asking(Waiting { calls, learners }) = std::mem::replace(state, Known::Not) else { return };
        let (result, learned) = match found {
            Ok(caller) => {
                client.belongs_to(caller.identity.uid);
                let worker = self.join(&client, &caller);
                *state = Known::Yes(worker.clone());
                (Ok(worker), Learned::Worker(caller.worker))
            }
            Err(Unknown::Refused(refusal)) => {
                *state = Known::Refused(refusal.clone());
                (Err(Some(refusal)), Learned::Gone)
            }
            Err(Unknown::Unavailable(refusal)) => (Err(Some(refusal)), Learned::NotNow),
            Err(Unknown::Gone) => {
                callers.remove(&client.name);
                (Err(None), Learned::Gone)
            }
        };
        drop(callers);
        for parcel in calls {
            match &result {
                Ok(worker) => self.forward(&client, worker, parcel),
                Err(Some(refusal)) => self.answer(&client, parcel.asks(), refusal),
                // Nobody waits for an answer.
                Err(None) => {}
            }
        }
        for learner in learners {
            // Who asked may have ended.
            let _heard = learner.send(learned.clone());
        }
    }

    /// Whose this connection is, for a worker that says it is its client.
    pub async fn learn(self: &Arc<Self>, name: &str) -> Learned {
        let (learner, learned) = oneshot::channel();
        {
            let mut callers = lock(&self.callers);
            let entry = callers.entry(name.into()).or_insert_with_key(|name| self.unknown(name));
            match &mut entry.state {
                Known::Yes(worker) => return Learned::Worker(worker.name.clone()),
                Known::Refused(_) => return Learned::Gone,
                Known::Asking(waiting) => waiting.learners.push(learner),
                Known::Not => {
                    entry.state = Known::Asking(Waiting { learners: vec![learner], ..Waiting::default() });
                    self.spawn(self.clone().identify(entry.client.clone()));
                }
            }
        }
        // It is dropped unanswered when the connection leaves.
        learned.await.unwrap_or(Learned::Gone)
    }

    fn departed(&self, name: &str, news: Parcel) {
        let entry = lock(&self.callers).remove(name);
        if let Some(Entry { state: Known::Yes(worker), .. }) = entry {
            worker.leave(name, news);
            self.forget(&worker);
        }
    }

    /// The worker of this caller, with this client among its clients.
    fn join(&self, client: &Arc<Client>, caller: &Caller) -> Arc<Worker> {
        let mut workers = lock(&self.workers);
        let worker = workers
            .entry(caller.worker.clone())
            .or_insert_with(|| Worker::new(caller.worker.clone(), caller.identity.uid));
        worker.join(client, &caller.identity);
        worker.clone()
    }

    /// Takes over the process of a former front.
    pub fn resume(self: &Arc<Self>, name: String, uid: u32, control: std::os::fd::OwnedFd) {
        let worker = Worker::new(name.clone(), uid);
        lock(&self.workers).insert(name, worker.clone());
        worker.resume(self, control);
    }

    /// Nothing is remembered of a worker without clients that does not run.
    pub fn forget(&self, worker: &Arc<Worker>) {
        let mut workers = lock(&self.workers);
        if worker.is_unused() && workers.get(&worker.name).is_some_and(|entry| Arc::ptr_eq(entry, worker)) {
            workers.remove(&worker.name);
        }
    }

    /// Sends what a worker said to a client. False: the bus is gone.
    pub async fn deliver(self: &Arc<Self>, client: &Arc<Client>, parcel: Parcel) -> bool {
        self.charge(client, parcel.size());
        self.outbox.send(parcel).await
    }

    /// Sends a signal of a worker to a client, or keeps it. False: the bus is gone.
    pub async fn signal(self: &Arc<Self>, client: &Arc<Client>, parcel: Parcel) -> bool {
        loop {
            let verdict = client.account().signal(parcel.message());
            match verdict {
                Signal::Send => return self.deliver(client, parcel).await,
                Signal::Kept => return true,
                Signal::Wait => {
                    if timeout(ANSWER, client.answered.notified()).await.is_err() {
                        client.account().no_answer();
                    }
                }
            }
        }
    }

    /// Answers a call with an error, if it expects an answer and the caller reads any.
    fn answer(self: &Arc<Self>, client: &Arc<Client>, asks: Option<NonZeroU32>, refusal: &Refusal) {
        match asks {
            Some(serial) => self.refuse(client, serial, refusal),
            None => self.dropped(client.user(), &refusal.text),
        }
    }

    /// Answers a call that expects an answer.
    pub fn refuse(self: &Arc<Self>, client: &Arc<Client>, serial: NonZeroU32, refusal: &Refusal) {
        let standing = client.account().standing();
        if let Standing::Drop(refusal) = standing {
            self.dropped(client.user(), &refusal.text);
        } else if let Ok(message) = refusal.message(&client.name, serial) {
            self.charge(client, message.data().len());
            self.say(client.user(), message);
        }
    }

    /// Tells a client that what it owned is gone.
    pub fn lost(self: &Arc<Self>, client: &Arc<Client>, reason: &str) {
        let signal = Message::signal("/org/example/IPC", bus::NAME, "Lost").destination(&*client.name);
        let Ok(signal) = signal.build(&(reason,)) else { return };
        let verdict = client.account().signal(&signal);
        if verdict != Signal::Kept {
            self.charge(client, signal.data().len());
            self.say(client.user(), signal);
        }
    }

    fn say(&self, user: User, message: Message) {
        if !self.outbox.say(message) {
            self.dropped(user, "the message bus reads nothing");
        }
    }

    fn dropped(&self, user: User, why: &str) {
        if let Some(count) = lock(&self.drops).count(user, Instant::now()) {
            tracing::warn!(
                "{count} calls or answers of {} were dropped; the last because {why}",
                log::user(user)
            );
        }
    }

    fn charge(self: &Arc<Self>, client: &Arc<Client>, bytes: usize) {
        let ask = client.account().sent(bytes);
        if ask {
            self.spawn(self.clone().acknowledge(client.clone()));
        }
    }

    /// Asks the bus until the client has read, and then sends what was kept for it.
    async fn acknowledge(self: Arc<Self>, client: Arc<Client>) {
        let mut pause = PAUSES.0;
        loop {
            client.account().asked();
            let Some(unread) = self.unread(&client.name).await else { return };
            let caught_up = client.account().answered(unread);
            client.answered.notify_waiters();
            if caught_up {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        loop {
            let Some(signal) = client.account().next_kept() else { return };
            if !self.deliver(&client, Parcel::new(signal, client.user(), &self.closer)).await {
                return;
            }
        }
    }

    /// What the bus holds for a client. None: it has left.
    async fn unread(&self, name: &str) -> Option<u64> {
        if !self.no_stats.load(Ordering::Relaxed) {
            match self.bus.unread(name).await {
                Ok(unread) => return Some(unread),
                Err(zbus::Error::FDO(error)) if matches!(*error, fdo::Error::NameHasNoOwner(_)) => {
                    return None;
                }
                Err(error) => {
                    tracing::info!(
                        "the bus does not tell what clients have not read ({error}); they are pinged instead"
                    );
                    self.no_stats.store(true, Ordering::Relaxed);
                }
            }
        }
        // Some libraries never answer. The bus that has no statistics, dbus-broker, disconnects who does
        // not read; for the others this is a bound on the rate.
        let _answered = timeout(PONG, self.bus.ping(name)).await;
        Some(0)
    }

    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.limits.stuck_after_ms.into())
    }

    /// Tells every worker to end, passes on what they say then, and starts none any more. Completes when
    /// all of them have ended, and the bus has taken their last words.
    pub async fn dismiss_workers(&self) {
        self.stopping.send_replace(true);
        self.stopping.closed().await;
        self.flush().await;
    }

    pub async fn flush(&self) {
        self.outbox.flush().await;
    }

    /// A task that ends with the front at the latest.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Ends all tasks.
    pub async fn end_tasks(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }
}
