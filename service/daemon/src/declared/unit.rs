//! One declared object: made, watched, and made again.
//!
//! Each has a task. What cannot be made yet, or has ended, is tried again, later and later; what a client has closed
//! or stopped stays so until somebody asks for it (a change of the file, SIGHUP). Every change of state is shown on the
//! board, and logged when it says something new.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipc_bus::Tree;
use ipc_engine::{
    Call, Endpoint, Engine, Object, Relay,
    declared::{Declared, Verb},
    endpoint::{CLOSED, REMOVED},
    flag::Flag,
    relay::STOPPED,
};
use ipc_kernel::{Error, Kind};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::file::{Restart, Wanted, WantedRelay};

/// The pauses before something is tried again: the first, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// What has lived this long was no failed start.
const WORKED: Duration = Duration::from_secs(10);

/// How long a relay may take to give back what it has taken.
const FAREWELL: Duration = Duration::from_secs(10);

/// What the task of a declared object works with.
pub struct Unit {
    pub tree: Arc<Tree>,
    pub file: String,
    pub name: String,
    /// Set when it is not declared any more, or in another way.
    pub gone: Flag,
    /// Somebody wants it tried now.
    pub again: Arc<Notify>,
    pub said: Mutex<String>,
}

/// An endpoint, while there is one.
pub type Place = watch::Receiver<Option<Arc<Endpoint>>>;

/// How a life ended, and what is to be done.
enum Next {
    Retry(String),
    /// Nothing, for this reason, until somebody wants it.
    Rest(&'static str, String),
    Gone,
}

struct Pause(Duration);

impl Unit {
    fn engine(&self) -> &Arc<Engine> {
        &self.tree.engine
    }

    /// Keeps the endpoint there until it is not declared any more.
    pub async fn keep_endpoint(self: Arc<Self>, wanted: Wanted, place: watch::Sender<Option<Arc<Endpoint>>>) {
        let mut pause = Pause(FIRST_PAUSE);
        // Only once: later it is of more interest why it is not there.
        self.says("starting", "", None);
        loop {
            let started = Instant::now();
            let next = match self.make(&wanted).await {
                Some(Ok(endpoint)) => {
                    self.says("running", "", Some(Object::Endpoint(endpoint.clone())));
                    place.send_replace(Some(endpoint.clone()));
                    let next = self.end_of(&endpoint).await;
                    place.send_replace(None);
                    next
                }
                Some(Err(error)) => Next::Retry(error.text),
                None => Next::Gone,
            };
            if !self.goes_on(next, started, &mut pause).await {
                break;
            }
        }
        self.engine().declared.remove(&self.file, &self.name);
    }

    /// Makes it. None: it is not wanted any more.
    async fn make(self: &Arc<Self>, wanted: &Wanted) -> Option<Result<Arc<Endpoint>, Error>> {
        let (this, wanted) = (self.clone(), wanted.clone());
        let mut making = tokio::spawn(async move {
            let call = this.call()?;
            let endpoint = match wanted.verb {
                Verb::Create => this.engine().create(&call, &wanted.address, wanted.options()).await?,
                Verb::Attach => this.engine().attach(&call, &wanted.address, wanted.options()).await?,
            };
            this.enter(Object::Endpoint(endpoint.clone())).await?;
            Ok(endpoint)
        });
        tokio::select! {
            made = &mut making => Some(made.unwrap_or_else(|_| Err(stopping()))),
            () = self.gone.wait() => {
                // What is on its way is not left behind.
                let this = self.clone();
                tokio::spawn(async move {
                    if let Ok(Ok(endpoint)) = making.await {
                        this.close(&endpoint);
                    }
                });
                None
            }
        }
    }

    /// The call that a declaration is.
    fn call(&self) -> Result<Call, Error> {
        let engine = self.engine();
        engine.admit(engine.clients.get(&format!("relays.d/{}", self.file)))
    }

    async fn enter(&self, object: Object) -> Result<(), Error> {
        let entered = self.tree.enter(&object).await;
        entered.map_err(|_| Error::new(Kind::Closed, "it ended as soon as it was made"))
    }

    fn close(&self, endpoint: &Arc<Endpoint>) {
        self.engine().close(endpoint, &format!("relays.d/{} does not declare it any more", self.file));
    }

    async fn end_of(&self, endpoint: &Arc<Endpoint>) -> Next {
        tokio::select! {
            () = endpoint.closed.wait() => {}
            () = self.gone.wait() => {
                self.close(endpoint);
                return Next::Gone;
            }
        }
        match endpoint.closed_reason().unwrap_or_default() {
            reason @ (CLOSED | REMOVED) => Next::Rest("stopped", format!("a client has {reason} it")),
            reason => Next::Retry(format!("it was closed: {reason}")),
        }
    }

    /// Keeps the relay running until it is not declared any more.
    pub async fn keep_relay(self: Arc<Self>, wanted: WantedRelay, mut ends: Vec<Place>) {
        let mut pause = Pause(FIRST_PAUSE);
        loop {
            let all = async {
                let mut found = Vec::new();
                for (place, name) in ends.iter_mut().zip(&wanted.names) {
                    found.push(self.there(place, name).await?);
                }
                Some(found)
            };
            let found = tokio::select! {
                found = all => found,
                () = self.gone.wait() => None,
            };
            let Some(ends) = found else { break };
            let started = Instant::now();
            let next = match self.start(&wanted, &ends).await {
                Ok(relay) => {
                    self.says("running", "", Some(Object::Relay(relay.clone())));
                    self.finish_of(&relay, wanted.restart).await
                }
                Err(error) => Next::Retry(error.text),
            };
            // A relay on what has gone would fail again: its ends are made anew.
            if matches!(next, Next::Retry(_)) {
                for end in ends.iter().filter(|end| end.is_over()) {
                    self.engine().close(end, "what it was connected to has gone");
                }
            }
            // To end with its ends is no failure: they come back, or say why not.
            let ended = ends.iter().any(|end| end.closed.is_set());
            if ended && matches!(next, Next::Retry(_) | Next::Rest("finished", _)) {
                continue;
            }
            if !self.goes_on(next, started, &mut pause).await {
                break;
            }
        }
        self.engine().declared.remove(&self.file, &self.name);
    }

    /// Waits until an end is there. None: it never will be.
    async fn there(&self, place: &mut Place, name: &str) -> Option<Arc<Endpoint>> {
        let is_there =
            |endpoint: &Option<Arc<Endpoint>>| endpoint.as_ref().is_some_and(|it| !it.closed.is_set());
        if !is_there(&place.borrow()) {
            self.says("waiting", &format!("{name} is not there"), None);
        }
        place.wait_for(is_there).await.ok()?.clone()
    }

    async fn start(&self, wanted: &WantedRelay, ends: &[Arc<Endpoint>]) -> Result<Arc<Relay>, Error> {
        let [source, sink, tee @ ..] = ends else {
            return Err(Error::invalid("a relay needs a source and a sink"));
        };
        let (source, sink, tee) = (source.clone(), sink.clone(), tee.to_vec());
        let call = self.call()?;
        let relay = self.engine().start_tee(&call, source, sink, tee, wanted.options()).await?;
        self.enter(Object::Relay(relay.clone())).await?;
        Ok(relay)
    }

    async fn finish_of(&self, relay: &Arc<Relay>, restart: Restart) -> Next {
        tokio::select! {
            () = relay.ended.wait() => {}
            () = self.gone.wait() => {
                relay.stop(&format!("relays.d/{} does not declare it any more", self.file));
                if timeout(FAREWELL, relay.ended.wait()).await.is_err() {
                    tracing::warn!("relays.d/{}: {} does not end", self.file, self.name);
                }
                return Next::Gone;
            }
        }
        let Some(finished) = relay.finished() else { return Next::Gone };
        match (restart, finished.failed) {
            _ if finished.reason == STOPPED => Next::Rest("stopped", "a client has stopped it".to_owned()),
            (Restart::Always, _) | (Restart::OnFailure, true) => Next::Retry(finished.reason.clone()),
            _ => Next::Rest("finished", finished.reason.clone()),
        }
    }

    /// Waits for what there is to wait for; says whether to try again.
    async fn goes_on(&self, next: Next, started: Instant, pause: &mut Pause) -> bool {
        if started.elapsed() >= WORKED {
            pause.0 = FIRST_PAUSE;
        }
        let wait = match &next {
            Next::Gone => return false,
            Next::Rest(state, why) => {
                self.says(state, why, None);
                None
            }
            Next::Retry(why) => {
                self.says("retrying", why, None);
                Some(pause.next())
            }
        };
        let over = async {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => true,
            () = self.again.notified() => {
                pause.0 = FIRST_PAUSE;
                true
            }
            () = self.gone.wait() => false,
        }
    }

    fn says(&self, state: &'static str, why: &str, object: Option<Object>) {
        let (file, name) = (self.file.clone(), self.name.clone());
        self.engine().declared.set(Declared { file, name, state, why: why.to_owned(), object });
        let new = format!("{state}: {why}");
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // Every attempt starts; what comes of it is what matters.
        if state == "starting" || *said == new {
            return;
        }
        match state {
            "retrying" => {
                tracing::warn!("relays.d/{}: {} is not there, tried again later: {why}", self.file, self.name)
            }
            // Whatever it waits for has its own line.
            "waiting" => tracing::debug!("relays.d/{}: {} is waiting: {why}", self.file, self.name),
            _ if why.is_empty() => tracing::info!("relays.d/{}: {} is {state}", self.file, self.name),
            _ => tracing::info!("relays.d/{}: {} is {state}: {why}", self.file, self.name),
        }
        *said = new;
    }
}

impl Pause {
    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = LAST_PAUSE.min(now * 2);
        now
    }
}

fn stopping() -> Error {
    Error::new(Kind::Cancelled, "the service is stopping")
}
