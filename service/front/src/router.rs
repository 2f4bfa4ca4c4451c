//! Takes everything that comes from the bus.
//!
//! For each call: admit it, find out whose it is, hand it to the worker that is that caller. It is the
//! reader of the bus that calls in here, and nothing here waits: a queue that is full is a refusal, and
//! what takes time is a task. All the rest of the front hangs together here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};
use zbus::message::{Message, Type};

use crate::{
    admission::{Admission, User},
    budget::{Client, Standing},
    bus::{self, Bus},
    closer::Closer,
    front::FdStore,
    herald,
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

pub struct Router {
    pub bus: Bus,
    pub limits: Limits,
    pub spawner: Spawner,
    pub admission: Arc<Admission>,
    pub closer: Arc<Closer>,
    pub starts: Mutex<Starts>,
    /// Those of mounters.
    pub mounts: Mutex<Starts>,
    pub store: Box<dyn FdStore>,
    /// Whether the service ends; every worker's task hears of it.
    pub stopping: watch::Sender<bool>,
    pub outbox: Arc<Outbox>,
    /// What is nobody's: everybody may ask it, and it speaks to everybody.
    herald: Arc<Worker>,
    /// Every connection that has called and has not left.
    callers: Mutex<HashMap<Arc<str>, Entry>>,
    /// Locked before the state of a worker, never after.
    workers: Mutex<HashMap<String, Arc<Worker>>>,
    pub drops: Mutex<log::Drops>,
    tasks: Mutex<JoinSet<()>>,
    /// The bus does not tell what it holds for a client.
    pub no_stats: AtomicBool,
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
            mounts: Mutex::default(),
            store,
            stopping: watch::Sender::new(false),
            outbox,
            herald: herald::new(),
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
                Some(Entry { client, state: Known::Yes(worker) }) => {
                    Ok((client.clone(), self.addressee(client, worker, &parcel)))
                }
                _ => Err(Arc::from(sender.as_str())),
            }
        };
        match found {
            Ok((client, worker)) => self.forward(&client, &worker, parcel),
            Err(sender) => self.meet(sender, parcel),
        }
    }

    /// Whom a call of this client is for. Asked under the lock of `callers`, so that who leaves leaves
    /// everywhere.
    fn addressee(&self, client: &Arc<Client>, worker: &Arc<Worker>, parcel: &Parcel) -> Arc<Worker> {
        if !herald::is_for(parcel.message()) {
            return worker.clone();
        }
        self.herald.state().members.join(client);
        self.herald.clone()
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
                // What it held while it waited is not to count beside what it holds now.
                parcel.release();
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
                let whose = calls.iter().map(|parcel| self.addressee(&client, &worker, parcel)).collect();
                *state = Known::Yes(worker);
                (Ok(whose), Learned::Worker(caller.worker))
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
        match result {
            Ok(whose) => {
                let whose: Vec<Arc<Worker>> = whose;
                calls
                    .into_iter()
                    .zip(&whose)
                    .for_each(|(parcel, worker)| self.forward(&client, worker, parcel));
            }
            Err(Some(refusal)) => {
                calls.iter().for_each(|parcel| self.answer(&client, parcel.asks(), &refusal));
            }
            // Nobody waits for an answer.
            Err(None) => {}
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
        let told = Parcel::new(news.message().clone(), None, &self.closer);
        self.herald.leave(name, told);
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

    /// Starts the herald, and keeps it running.
    pub fn start_herald(self: &Arc<Self>) {
        self.spawn(herald::keep(self.herald.clone(), self.clone()));
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
