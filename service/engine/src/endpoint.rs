//! An endpoint: a kernel object with a number, a lifetime, its events, and the calls on it.
//!
//! What a call takes and cannot deliver is kept at the front and handed to the next one, so that
//! nothing that was taken is lost.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use event_listener::Event;
use ipc_kernel::{
    Attempt, Descriptor, Dict, Error, Kind, Result,
    fd::poll_now,
    mechanism,
    shape::{Futex, Memory, Message, Messages, Semaphore, SemaphoreOperation, Shape, Stream},
};
use rustix::event::PollFlags;

use crate::{
    Engine,
    client::Call,
    engine::{Object, blocking},
    events::Ring,
    flag::Flag,
    limits::Limits,
    news::News,
    options::Lifetime,
    relay::{Connections, Turns},
    wait::{Cancel, Patience, complete},
};

pub struct Endpoint {
    /// Unique in the service, never used again.
    pub id: u64,
    pub mechanism: &'static Descriptor,
    pub kernel: Box<dyn mechanism::Endpoint>,
    /// Canonical, accepted by Attach.
    pub address: String,
    pub shapes: Vec<Shape>,
    pub lifetime: Lifetime,
    /// The connection that made it.
    pub creator: String,
    /// Microseconds since the epoch.
    pub created_at: u64,
    pub remove_on_close: bool,
    /// What comes is taken and sent as signals, so that nobody else should read.
    pub deliver: bool,
    /// Its events are announced many at once.
    pub batch: bool,
    pub events: Ring,
    /// Set when the endpoint was closed; then there is a reason.
    pub closed: Flag,
    pub(crate) reason: OnceLock<String>,
    /// Set when nothing of its removal goes on any more, after it was closed.
    pub(crate) removed: Flag,
    /// Something is to be announced; see `Engine::next_news`.
    pub(crate) dirty: AtomicBool,
    /// How many messages were received through the service and not brought back.
    pub(crate) delivered: AtomicU64,
    /// Notified when that has changed.
    pub(crate) received: Event,
    /// Messages or bytes that were taken are kept for whoever comes next.
    pub(crate) given_back: Event,
    /// Messages that were taken from the kernel but not delivered.
    pub(crate) kept: Mutex<VecDeque<Message>>,
    /// Bytes likewise.
    pub(crate) kept_bytes: Mutex<VecDeque<u8>>,
    /// The relays that write into it.
    pub(crate) turns: Turns,
    /// Where it is a socket that can be connected again.
    pub(crate) connections: Connections,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", &self.id)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Does it here, or on a thread where it may wait.
pub(crate) fn off_the_loop(may_wait: bool, work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) if may_wait => drop(runtime.spawn_blocking(work)),
        _ => work(),
    }
}

/// How long whoever closes an endpoint waits for the removal of its kernel object by another process.
const REMOVAL: Duration = Duration::from_secs(5);

/// The reasons of endpoints that a client has closed, or removed with what they are endpoints of.
pub const CLOSED: &str = "closed";
pub const REMOVED: &str = "removed";

/// What a new endpoint is made of.
pub(crate) struct Made {
    pub mechanism: &'static Descriptor,
    pub kernel: Box<dyn mechanism::Endpoint>,
    pub lifetime: Lifetime,
    pub creator: String,
    pub remove_on_close: Option<bool>,
    pub deliver: bool,
    pub batch: bool,
}

impl Endpoint {
    pub(crate) fn new(id: u64, made: Made, events_kept: u32) -> Self {
        Self {
            id,
            mechanism: made.mechanism,
            address: made.kernel.address().to_string(),
            shapes: made.kernel.shapes(),
            remove_on_close: made.remove_on_close.unwrap_or_else(|| made.kernel.remove_by_default()),
            kernel: made.kernel,
            deliver: made.deliver,
            batch: made.batch,
            lifetime: made.lifetime,
            creator: made.creator,
            created_at: crate::events::now(),
            events: Ring::new(events_kept),
            closed: Flag::new(),
            reason: OnceLock::new(),
            removed: Flag::new(),
            dirty: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            received: Event::new(),
            given_back: Event::new(),
            kept: Mutex::default(),
            kept_bytes: Mutex::default(),
            turns: Turns::default(),
            connections: Connections::default(),
        }
    }

    /// Why it was closed.
    pub fn closed_reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// The kernel object goes with the endpoint if it was made to; where that may wait for another process, on a thread.
    /// Then there is something to announce.
    pub(crate) fn remove_closed(self: &Arc<Self>, news: Arc<News>) {
        let closed = self.clone();
        let remove = move || {
            // What may wait is gone with its endpoint in any case, and is not to be dropped just anywhere.
            if closed.remove_on_close || closed.kernel.removal_may_wait() {
                // The name may be gone already; closing succeeds all the same.
                let _ = closed.kernel.remove();
            }
            closed.removed.set();
            news.put(Object::Endpoint(closed));
        };
        off_the_loop(self.kernel.removal_may_wait(), remove);
    }

    /// Completes when nothing of that goes on any more, or after a while: then it goes on by itself.
    pub async fn removed(&self) {
        let _late = tokio::time::timeout(REMOVAL, self.removed.wait()).await;
    }

    pub fn stream(&self) -> Result<&dyn Stream> {
        self.kernel.stream().ok_or_else(|| self.lacks(Shape::Stream))
    }

    pub fn messages(&self) -> Result<&dyn Messages> {
        self.kernel.messages().ok_or_else(|| self.lacks(Shape::Messages))
    }

    pub fn memory(&self) -> Result<&dyn Memory> {
        self.kernel.memory().ok_or_else(|| self.lacks(Shape::Memory))
    }

    pub fn semaphore(&self) -> Result<&dyn Semaphore> {
        self.kernel.semaphore().ok_or_else(|| self.lacks(Shape::Semaphore))
    }

    pub fn futex(&self) -> Result<&dyn Futex> {
        self.kernel.futex().ok_or_else(|| self.lacks(Shape::Futex))
    }

    pub(crate) fn lacks(&self, shape: Shape) -> Error {
        let shapes: Vec<_> = self.shapes.iter().map(|shape| shape.name()).collect();
        Error::not_supported(format!(
            "{} has no shape {}; it has {}",
            self.address,
            shape.name(),
            shapes.join(", ")
        ))
    }

    /// Live state: the kernel's, and what the service itself holds.
    pub fn inspect(&self) -> Result<Dict> {
        let mut state = self.kernel.inspect()?;
        let (messages, bytes) = self.kept_count();
        if messages > 0 {
            state.insert("kept-messages".into(), (messages as u64).into());
        }
        if bytes > 0 {
            state.insert("kept-bytes".into(), (bytes as u64).into());
        }
        Ok(state)
    }

    /// Whether it is of no use any more, though nobody has closed it: the peer of a connection has gone or will
    /// send nothing more, or the kernel object was removed.
    pub fn is_over(&self) -> bool {
        match self.kernel.stream().filter(|_| self.kernel.is_socket()).map(|stream| stream.source()) {
            Some(Ok(Attempt::Done(end))) => {
                let over = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
                poll_now(&end.fd, PollFlags::RDHUP).is_ok_and(|found| found.intersects(over))
            }
            Some(_) => false,
            None => matches!(self.kernel.inspect(), Err(error) if error.kind == Kind::Gone),
        }
    }
}

/// The calls on endpoints. Each takes the [`Call`] that was admitted, and ends.
impl Engine {
    pub(crate) async fn wait_on<T>(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        verb: &str,
        timeout_ms: u32,
        attempt: impl FnMut() -> Result<Attempt<T>>,
    ) -> Result<T> {
        let what = || format!("{verb} {}", endpoint.address);
        self.wait_for(call, &endpoint.closed, what, timeout_ms, attempt).await
    }

    /// The same with something else that may be closed.
    pub(crate) async fn wait_for<T>(
        &self,
        call: &Call,
        closed: &Flag,
        what: impl Fn() -> String,
        timeout_ms: u32,
        mut attempt: impl FnMut() -> Result<Attempt<T>>,
    ) -> Result<T> {
        let patience = self.patience(timeout_ms)?;
        if let Attempt::Done(value) = attempt()? {
            return Ok(value);
        }
        // From here on it counts as a wait, unless the caller did not want one.
        let _counted = match patience {
            Patience::None => None,
            _ => Some(self.counters.waits.take(self.limits.waits, "there are too many waits", "waits")?),
        };
        let cancel = Cancel { closed, gone: &call.client.gone, stopping: &self.stopping };
        complete(patience, cancel, what, attempt).await
    }

    pub fn patience(&self, timeout_ms: u32) -> Result<Patience> {
        let Limits { default_wait_ms, max_wait_ms, .. } = self.limits;
        Patience::from_ms(timeout_ms, default_wait_ms.min(max_wait_ms), max_wait_ms)
    }

    /// Whether one call may carry so much.
    pub(crate) fn payload(&self, length: usize) -> Result<()> {
        let limit = self.limits.payload;
        if length > limit as usize {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "the payload has {length} bytes; one call carries at most {limit} (payload): split it, or use Open() and the file descriptor"
                ),
            ));
        }
        Ok(())
    }

    pub async fn read(&self, call: &Call, endpoint: &Endpoint, max: u32, timeout_ms: u32) -> Result<Vec<u8>> {
        self.read_until(call, endpoint, max, timeout_ms, |_| true).await
    }

    /// Reads on until it is enough, or the end of the stream. What was read and is not enough is kept.
    pub async fn read_until(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        max: u32,
        timeout_ms: u32,
        enough: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<u8>> {
        if max == 0 {
            return Err(Error::invalid("max must be at least 1 byte"));
        }
        let max = max.min(self.limits.payload) as usize;
        let mut data = Vec::new();
        let mut attempt = || loop {
            match endpoint.attempt_read(max.saturating_sub(data.len()).max(1))? {
                Attempt::Wait(readiness) => return Ok(Attempt::Wait(readiness)),
                Attempt::Done(more) => {
                    let end = more.is_empty();
                    data.extend(more);
                    if end || enough(&data) {
                        return Ok(Attempt::Done(()));
                    }
                }
            }
        };
        let attempt = || endpoint.or_given_back(&mut attempt);
        let done = self.wait_on(call, endpoint, "read from", timeout_ms, attempt).await;
        if let Err(error) = done.and_then(|()| call.still_there()) {
            endpoint.keep_bytes(&data);
            return Err(error);
        }
        Ok(data)
    }

    /// Writes all of it and says how much that is: less where the time ran out after a part.
    pub async fn write(&self, call: &Call, endpoint: &Endpoint, data: &[u8], timeout_ms: u32) -> Result<u64> {
        self.payload(data.len())?;
        let stream = endpoint.stream()?;
        let mut written = 0;
        if data.is_empty() {
            return Ok(0);
        }
        let attempt = || loop {
            match stream.write(&data[written..])? {
                Attempt::Done(more) => written += more,
                Attempt::Wait(readiness) => return Ok(Attempt::Wait(readiness)),
            }
            if written >= data.len() {
                return Ok(Attempt::Done(()));
            }
        };
        let done = self.wait_on(call, endpoint, "write to", timeout_ms, attempt).await;
        match done {
            Ok(()) => Ok(written as u64),
            // Part of it is in the kernel: the caller must know how much.
            Err(error) if written > 0 && matches!(error.kind, Kind::Timeout | Kind::Busy) => {
                Ok(written as u64)
            }
            Err(error) if written > 0 => {
                Err(error.help(format_args!("{written} of {} bytes were written", data.len())))
            }
            Err(error) => Err(error),
        }
    }

    pub async fn accept(
        self: &Arc<Self>,
        call: &Call,
        endpoint: &Endpoint,
        timeout_ms: u32,
    ) -> Result<Arc<Endpoint>> {
        let listener = endpoint.kernel.listener().ok_or_else(|| {
            Error::not_supported(format!("{} does not listen for connections", endpoint.address))
        })?;
        let place = self.place_for_endpoint()?;
        let kernel = self.wait_on(call, endpoint, "accept on", timeout_ms, || listener.accept()).await?;
        Ok(self.accepted(endpoint, kernel, place))
    }

    /// Opens, removes or changes permissions: file systems may be slow.
    pub async fn on_kernel<T: Send + 'static>(
        &self,
        endpoint: &Arc<Endpoint>,
        operation: impl FnOnce(&dyn mechanism::Endpoint) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let endpoint = endpoint.clone();
        blocking(move || operation(&*endpoint.kernel)).await
    }

    pub async fn semaphore_wait(&self, call: &Call, endpoint: &Endpoint, timeout_ms: u32) -> Result<()> {
        let semaphore = endpoint.semaphore()?;
        self.wait_on(call, endpoint, "wait for", timeout_ms, || semaphore.wait()).await?;
        if let Err(left) = call.still_there() {
            semaphore.post(1)?;
            return Err(left);
        }
        Ok(())
    }

    pub async fn operate(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        operations: &[SemaphoreOperation],
        timeout_ms: u32,
    ) -> Result<()> {
        let semaphore = endpoint.semaphore()?;
        call.still_there()?;
        self.wait_on(call, endpoint, "operate on", timeout_ms, || semaphore.operate(operations)).await
    }
}

impl Endpoint {
    /// Marks that something is to be announced; says whether it was not marked before.
    pub(crate) fn mark(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }
}
