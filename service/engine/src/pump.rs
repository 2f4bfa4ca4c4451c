//! Pumps: tasks that take what comes by itself (events, and on request bytes, messages and
//! connections) and put it into the endpoint's ring of events.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ipc_kernel::{
    Attempt, Dict, Error, Kind, Readiness, Result, dict,
    shape::{Message, Notice, Shape},
};

use crate::{
    Engine,
    endpoint::Endpoint,
    engine::Object,
    events::Happening,
    futex,
    options::Options,
    wait::{Hold, until},
};

/// Starts what the endpoint needs.
pub(crate) fn start(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>, options: &Options) {
    let has = |shape| endpoint.shapes.contains(&shape);
    if has(Shape::Watch) {
        let (engine, endpoint) = (engine.clone(), endpoint.clone());
        until_closed(engine.clone(), endpoint.clone(), watch(engine, endpoint));
    }
    crate::process::start_pumps(engine, endpoint);
    crate::filesystem::start_pumps(engine, endpoint);
    if options.accept {
        spawn(engine, endpoint, accept);
    }
    if options.deliver && has(Shape::Stream) {
        spawn(engine, endpoint, deliver_bytes);
    } else if options.deliver {
        spawn(engine, endpoint, deliver_messages);
    }
    if options.notify {
        let (engine, endpoint) = (engine.clone(), endpoint.clone());
        if has(Shape::Futex) {
            until_closed(engine.clone(), endpoint.clone(), futex::notify(engine, endpoint));
        } else {
            until_closed(engine.clone(), endpoint.clone(), notify(engine, endpoint));
        }
    }
}

/// Runs a mechanism's shared driver for as long as the service runs.
pub(crate) fn drive(engine: Arc<Engine>, driver: fn() -> Result<Attempt<()>>) {
    tokio::spawn(async move {
        // What it mostly waits for is one and the same fd, which then stays in epoll.
        let mut hold = Hold::default();
        loop {
            let readiness = match driver() {
                Ok(Attempt::Done(())) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Attempt::Wait(readiness)) => readiness,
                // All endpoints depend on it, and memory may be there again in a moment.
                Err(_) => Readiness::After(LOOK_AGAIN),
            };
            if !matches!(readiness, Readiness::Readable(_)) {
                // That fd may be gone, and is not to be kept open here.
                hold = Hold::default();
            }
            let ready = async {
                if hold.until(readiness).await.is_err() {
                    let _ = until(Readiness::After(LOOK_AGAIN)).await;
                }
            };
            tokio::select! {
                () = engine.stopping.wait() => return,
                () = ready => {}
            }
        }
    });
}

/// How often that is looked at for which the kernel has no event: a queue that somebody else may
/// empty, or a resource that somebody may give back.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One step of a pump; an error ends it and closes the endpoint.
pub(crate) type Step = fn(&Arc<Engine>, &Arc<Endpoint>) -> Result<Attempt<()>>;

pub(crate) fn spawn(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>, step: Step) {
    let (engine, endpoint) = (engine.clone(), endpoint.clone());
    until_closed(engine.clone(), endpoint.clone(), run(engine, endpoint, step));
}

/// Runs a pump until the endpoint is closed; the pump's own end closes it.
pub(crate) fn until_closed(
    engine: Arc<Engine>,
    endpoint: Arc<Endpoint>,
    pump: impl Future<Output = Error> + Send + 'static,
) {
    tokio::spawn(async move {
        let reason = tokio::select! {
            () = endpoint.closed.wait() => return,
            reason = pump => reason,
        };
        engine.close(&endpoint, &reason.text);
    });
}

/// Repeats the step until it fails; says why.
async fn run(engine: Arc<Engine>, endpoint: Arc<Endpoint>, step: Step) -> Error {
    loop {
        match step(&engine, &endpoint) {
            Ok(Attempt::Done(())) => tokio::task::yield_now().await,
            Ok(Attempt::Wait(readiness)) => {
                if let Err(error) = until(readiness).await {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}

/// Numbers it, keeps it, and has it announced.
pub(crate) fn happened(engine: &Engine, endpoint: &Arc<Endpoint>, happening: Happening) {
    endpoint.events.push(happening);
    engine.announce(Object::Endpoint(endpoint.clone()));
}

/// How many events of an endpoint with `batch` are announced at once, and how long fewer wait.
const BATCH: u64 = 64;
const BATCH_WAIT: Duration = Duration::from_millis(20);

/// Puts events into the ring no faster than they are announced, so that a burst costs nobody a signal:
/// what waits, waits in the queue of the mechanism, which says when it is full.
async fn watch(engine: Arc<Engine>, endpoint: Arc<Endpoint>) -> Error {
    let Some(events) = endpoint.kernel.events() else {
        return Error::new(Kind::Closed, "the endpoint has no events");
    };
    let announce = || engine.announce(Object::Endpoint(endpoint.clone()));
    // When a batch that is not full is announced.
    let mut due = None;
    loop {
        let notices = match events.next() {
            Ok(Attempt::Done(notices)) => notices,
            Ok(Attempt::Wait(readiness)) => {
                let mut ready = until(readiness);
                loop {
                    let late = async {
                        match due {
                            Some(due) => tokio::time::sleep_until(due).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        done = &mut ready => match done {
                            Ok(()) => break,
                            Err(error) => return error,
                        },
                        () = late => {
                            due = None;
                            announce();
                        }
                    }
                }
                continue;
            }
            Err(error) => return error,
        };
        for notice in notices {
            let happening = match notice {
                Notice::Event(event) => Happening::Changed(event),
                Notice::Overflow => Happening::Overflow,
                Notice::End(reason) => return Error::new(Kind::Gone, reason),
            };
            while let Some(room) = endpoint.events.full() {
                announce();
                room.await;
            }
            endpoint.events.push(happening);
            if !endpoint.batch || endpoint.events.backlog() >= BATCH {
                announce();
                due = None;
            } else if due.is_none() {
                due = Some(tokio::time::Instant::now() + BATCH_WAIT);
            }
        }
        tokio::task::yield_now().await;
    }
}

fn accept(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>) -> Result<Attempt<()>> {
    let Some(listener) = endpoint.kernel.listener() else {
        return Err(Error::new(Kind::Closed, "the endpoint does not listen"));
    };
    // At the limit connections stay in the kernel's backlog until there is room again.
    let Ok(place) = engine.place_for_endpoint() else {
        return Ok(Attempt::Wait(Readiness::After(LOOK_AGAIN)));
    };
    let attempt = match listener.accept() {
        // No file descriptor or no memory is left: they stay there likewise.
        Err(error) if error.kind == Kind::LimitExceeded => {
            return Ok(Attempt::Wait(Readiness::After(LOOK_AGAIN)));
        }
        attempt => attempt?,
    };
    Ok(attempt.map(|kernel| {
        let accepted = engine.accepted(endpoint, kernel, place);
        engine.announce(Object::Endpoint(accepted.clone()));
        happened(engine, endpoint, Happening::Accepted(accepted.id));
    }))
}

fn deliver_bytes(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>) -> Result<Attempt<()>> {
    let stream = endpoint.stream()?;
    let data = match endpoint.attempt_read(engine.limits.signal_payload as usize)? {
        Attempt::Done(data) => data,
        Attempt::Wait(readiness) => return Ok(Attempt::Wait(readiness)),
    };
    let end = data.is_empty();
    happened(engine, endpoint, Happening::Received { data, attributes: Dict::new() });
    if end && !stream.continues() {
        return Err(Error::new(Kind::Closed, "end of stream"));
    }
    Ok(Attempt::Done(()))
}

/// A message that no signal can carry, for its size or its fds, is kept and announced by `Ready`;
/// delivery goes on when a `Receive` has taken it.
fn deliver_messages(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>) -> Result<Attempt<()>> {
    let most = engine.limits.signal_payload as usize;
    let fits = |message: &Message| message.fds.is_empty() && message.data.len() <= most;
    let attempt = match endpoint.attempt_deliver(fits) {
        // Where messages were lost is told; those that are still there, and what comes, are delivered.
        Err(error) if error.kind == Kind::Overflow => {
            let attributes = dict! { "overflow" => error.text };
            happened(engine, endpoint, Happening::Received { data: Vec::new(), attributes });
            return Ok(Attempt::Done(()));
        }
        attempt => attempt?,
    };
    Ok(attempt.map(|message| {
        let happening = message.map_or(Happening::Ready, |message| Happening::Received {
            data: message.data,
            attributes: message.attributes,
        });
        happened(engine, endpoint, happening);
    }))
}

impl Endpoint {
    /// One attempt to receive a message for a signal, what was kept first. A message for which
    /// there is no signal is kept, and given out as None once.
    fn attempt_deliver(&self, deliverable: impl Fn(&Message) -> bool) -> Result<Attempt<Option<Message>>> {
        let changed = self.received.listen();
        match self.kept().front() {
            Some(first) if !deliverable(first) => {
                return Ok(Attempt::Wait(Readiness::Notified(changed)));
            }
            _ => {}
        }
        Ok(match self.attempt_receive(&Dict::new())? {
            Attempt::Done(message) if deliverable(&message) => Attempt::Done(Some(message)),
            Attempt::Done(message) => {
                self.keep(message);
                Attempt::Done(None)
            }
            // A message that somebody else has taken may come back.
            Attempt::Wait(arrival) => {
                Attempt::Wait(Readiness::Any(vec![Readiness::Notified(changed), arrival]))
            }
        })
    }
}

/// Says `Ready` when something waits, and again when something still waits after a `Receive` that
/// has taken something.
async fn notify(engine: Arc<Engine>, endpoint: Arc<Endpoint>) -> Error {
    let waiting = || {
        let messages = endpoint.messages()?;
        if endpoint.kept_count().0 > 0 { Ok(Attempt::Done(())) } else { messages.arrival() }
    };
    // How many had been received when the one that waits was announced.
    let mut announced = None;
    loop {
        let changed = Readiness::Notified(endpoint.received.listen());
        let delivered = endpoint.delivered.load(Ordering::Acquire);
        let next = match waiting() {
            Err(error) => return error,
            Ok(Attempt::Done(())) => {
                if announced != Some(delivered) {
                    announced = Some(delivered);
                    happened(&engine, &endpoint, Happening::Ready);
                }
                // Another process may take it, and the kernel has no event for that: look again.
                Readiness::After(LOOK_AGAIN)
            }
            Ok(Attempt::Wait(arrival)) => {
                announced = None;
                arrival
            }
        };
        if let Err(error) = until(Readiness::Any(vec![changed, next])).await {
            return error;
        }
    }
}
