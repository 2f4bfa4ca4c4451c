//! Published endpoints: what reading and writing a file means for each shape.
//!
//! | shape | read | write |
//! | --- | --- | --- |
//! | stream | takes bytes that wait | writes them all |
//! | messages | takes one message | sends one |
//! | memory | its bytes | its bytes |
//! | semaphore, futex | the value as text | a number, `+N` or `-N` ([`values`]) |
//! | watch, process, mailbox | what happened, a line each ([`lines`]) | |
//! | none: a [`Remote`] value | asks for it | sets it |
//! | none: a [`Callee`] | the answer to what was written | calls it |

pub(crate) mod lines;
mod values;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use event_listener::EventListener;
use futures_util::future::BoxFuture;
use ipc_kernel::{
    Attempt, Dict, Error, Kind, Result,
    fd::poll_now,
    fuse::{
        file::Published,
        requests::{Answered, Asked, Later, Patience as Asker, Ready, What},
        serve::whole_write,
    },
    proc,
    shape::{Outgoing, Shape},
};
use rustix::event::PollFlags;
use tokio::time::{Instant, timeout};

use crate::{
    Engine,
    endpoint::Endpoint,
    wait::{Cancel, Patience, complete, until},
};

/// What a file stands for. It does not keep that: the thread of a mount drops files, and must close nothing, as what
/// it closes may be a file of its own mount.
enum Source {
    Endpoint(Weak<Endpoint>),
    Remote(Weak<dyn Remote>),
    Callee(Weak<dyn Callee>),
}

/// A value that another program has, reached by whoever serves the objects.
pub trait Remote: Send + Sync {
    fn read(&self) -> BoxFuture<'_, Result<Vec<u8>>>;

    fn write(&self, text: Vec<u8>) -> BoxFuture<'_, Result<()>>;

    /// How often it is known to have changed.
    fn version(&self) -> u64;

    /// Notified when that is more.
    fn changed(&self) -> EventListener;
}

/// What another program does when it is told something, reached by whoever serves the objects.
pub trait Callee: Send + Sync {
    /// The answer.
    fn call(&self, data: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>>>;
}

/// How that is published.
pub(crate) fn callee(callee: &Arc<dyn Callee>) -> Published {
    Published::Call(Arc::new(Source::Callee(Arc::downgrade(callee))))
}

/// How such a value is published.
pub(crate) fn remote(remote: &Arc<dyn Remote>) -> Published {
    Published::Told(Arc::new(Source::Remote(Arc::downgrade(remote))))
}

/// How an endpoint is published.
pub(crate) fn source(endpoint: &Arc<Endpoint>) -> Result<Published> {
    let has = |shape| endpoint.shapes.contains(&shape);
    let source = || Arc::new(Source::Endpoint(Arc::downgrade(endpoint)));
    Ok(if has(Shape::Stream) || has(Shape::Messages) {
        Published::Flow(source())
    } else if has(Shape::Memory) {
        Published::Bytes(source())
    } else if has(Shape::Semaphore) || has(Shape::Futex) {
        Published::Text(source())
    } else if has(Shape::Watch) || has(Shape::Process) || has(Shape::Mailbox) {
        Published::Log { shown: !has(Shape::Watch) }
    } else {
        return Err(Error::not_supported(format!(
            "{} cannot be published: there is nothing in it to read or to write",
            endpoint.address
        )));
    })
}

/// A request for a published endpoint.
struct Request<'a> {
    engine: &'a Engine,
    mount: &'a Endpoint,
    target: &'a Arc<Endpoint>,
    pid: u32,
    deadline: Duration,
    /// When that is.
    end: Instant,
}

/// Answers a request, within the mount's deadline.
pub(crate) async fn answer(engine: &Engine, mount: &Endpoint, asked: Asked) {
    let deadline = match mount.filesystem() {
        Ok(filesystem) => filesystem.deadline(),
        Err(error) => return asked.refuse(error),
    };
    let target = match asked.source.downcast_ref::<Source>() {
        Some(Source::Remote(remote)) => {
            return answer_remote(mount, deadline, remote.upgrade(), asked.what).await;
        }
        Some(Source::Callee(callee)) => {
            return answer_call(mount, deadline, callee.upgrade(), asked).await;
        }
        Some(Source::Endpoint(target)) => target.upgrade(),
        None => None,
    };
    let Some(target) = target.filter(|target| !target.closed.is_set()) else {
        return asked.refuse(Error::new(Kind::Gone, "the endpoint was closed"));
    };
    let end = Instant::now() + deadline;
    let request = Request { engine, mount, target: &target, pid: asked.pid, deadline, end };
    match asked.what {
        What::Size(answer) => answer.give(request.in_time(request.size()).await),
        What::Read { offset, size, patience, answer } => {
            answer.give(request.read(offset, size, patience).await)
        }
        What::Write { offset, data, patience, answer } => {
            answer.give(request.write(offset, data, patience).await);
        }
        What::Call { answer, .. } => answer.give(Err(Error::not_supported("it cannot be called"))),
        What::Poll { later, answer } => {
            let (ready, wait) = request.ready();
            answer.give(Ok(ready));
            if let Some(later) = later {
                request.tell(later, wait).await;
            }
        }
    }
}

/// The same where another program has the value.
async fn answer_remote(mount: &Endpoint, deadline: Duration, remote: Option<Arc<dyn Remote>>, what: What) {
    let gone = || Error::new(Kind::Gone, "it is not published any more");
    match what {
        What::Read { answer, .. } => {
            let read = async { remote.ok_or_else(gone)?.read().await };
            answer.give(in_time(mount, deadline, read).await);
        }
        What::Write { data, answer, .. } => {
            let write = async { remote.ok_or_else(gone)?.write(data).await };
            answer.give(in_time(mount, deadline, write).await);
        }
        // The mount's thread answers these itself.
        What::Poll { answer, .. } => answer.give(Ok(Ready { read: true, write: true })),
        What::Size(answer) => answer.give(Ok(0)),
        What::Call { answer, .. } => answer.give(Err(Error::not_supported("it cannot be called"))),
    }
}

/// The same where another program is called. What went wrong is to be read, too.
async fn answer_call(mount: &Endpoint, deadline: Duration, callee: Option<Arc<dyn Callee>>, asked: Asked) {
    // The mount's thread answers the rest itself.
    let What::Call { data, answer } = asked.what else {
        return asked.refuse(Error::not_supported("it is called"));
    };
    let call = async {
        check_whole(data.len())?;
        callee.ok_or_else(|| Error::new(Kind::Gone, "it is not published any more"))?.call(data).await
    };
    answer.give(Ok(match in_time(mount, deadline, call).await {
        Ok(text) => Answered { text, failed: None },
        Err(error) => Answered { text: format!("{}\n", error.text).into_bytes(), failed: Some(error) },
    }));
}

/// Err(TooLarge): it may be but a part of what was written.
fn check_whole(bytes: usize) -> Result<()> {
    match bytes <= whole_write() {
        true => Ok(()),
        false => Err(Error::new(
            Kind::TooLarge,
            format!("a message of more than {} bytes cannot be written to a file", whole_write()),
        )),
    }
}

/// For what cannot be cancelled but by not waiting for it.
async fn in_time<T>(
    mount: &Endpoint,
    deadline: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = timeout(deadline, work) => done.unwrap_or_else(|_| {
            Err(Error::new(Kind::Timeout, "it did not happen before the deadline of the mount"))
        }),
        () = mount.closed.wait() => Err(Error::new(Kind::Cancelled, "it was unmounted")),
    }
}

/// What to wait for until it is worth looking again.
type Awaited = Option<ipc_kernel::Readiness>;

impl Request<'_> {
    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        in_time(self.mount, self.deadline, work).await
    }

    /// Attempts until it completes, for as long as whoever asked has patience.
    async fn waiting<T>(
        &self,
        asker: Asker,
        verb: &str,
        attempt: impl FnMut() -> Result<Attempt<T>>,
    ) -> Result<T> {
        let patience = match asker {
            Asker::Deadline => Patience::Until(self.end, self.deadline),
            Asker::None | Asker::End => Patience::None,
        };
        let cancel =
            Cancel { closed: &self.target.closed, gone: &self.mount.closed, stopping: &self.engine.stopping };
        complete(patience, cancel, || format!("{verb} {}", self.target.address), attempt).await
    }

    async fn size(&self) -> Result<u64> {
        self.engine.on_memory(self.target, |memory| memory.size()).await
    }

    async fn read(&self, offset: u64, size: usize, asker: Asker) -> Result<Vec<u8>> {
        let target = self.target;
        let has = |shape| target.shapes.contains(&shape);
        let read = if has(Shape::Stream) {
            self.take_bytes(size, asker).await
        } else if has(Shape::Messages) {
            self.take_message(asker).await
        } else if has(Shape::Memory) {
            let read = self.engine.on_memory(target, move |memory| {
                let left = memory.size()?.saturating_sub(offset);
                memory.read(offset, size.min(usize::try_from(left).unwrap_or(usize::MAX)))
            });
            self.in_time(read).await
        } else {
            self.in_time(values::read(self.engine, target)).await
        };
        match read {
            // Nothing waits: whoever has read something already has all that there is.
            Err(error) if error.kind == Kind::Busy && asker == Asker::End => Ok(Vec::new()),
            read => read,
        }
    }

    async fn take_bytes(&self, size: usize, asker: Asker) -> Result<Vec<u8>> {
        let attempt = || self.target.or_given_back(|| self.target.attempt_read(size));
        let data = self.waiting(asker, "read from", attempt).await?;
        match self.still_there() {
            Ok(()) => Ok(data),
            Err(killed) => {
                self.target.keep_bytes(&data);
                Err(killed)
            }
        }
    }

    async fn take_message(&self, asker: Asker) -> Result<Vec<u8>> {
        let none = Dict::new();
        let attempt = || self.target.or_given_back(|| self.target.attempt_receive(&none));
        let message = self.waiting(asker, "receive from", attempt).await?;
        let refused = match self.still_there() {
            Err(killed) => killed,
            Ok(()) if message.fds.is_empty() => return Ok(message.data),
            Ok(()) => Error::not_supported(
                "the next message carries file descriptors, which no file can; it was kept",
            ),
        };
        self.target.keep(message);
        Err(refused)
    }

    /// An error once the process that waits was killed: what is given to it is lost.
    fn still_there(&self) -> Result<()> {
        match self.pid != 0 && proc::is_killed(self.pid) {
            true => Err(Error::new(Kind::Cancelled, "the process that waited was killed")),
            false => Ok(()),
        }
    }

    async fn write(&self, offset: u64, data: Vec<u8>, asker: Asker) -> Result<()> {
        let target = self.target;
        let has = |shape| target.shapes.contains(&shape);
        if has(Shape::Stream) {
            let stream = target.stream()?;
            let mut written = 0;
            let attempt = || {
                while written < data.len() {
                    match stream.write(&data[written..])? {
                        Attempt::Done(more) => written += more,
                        Attempt::Wait(readiness) => return Ok(Attempt::Wait(readiness)),
                    }
                }
                Ok(Attempt::Done(()))
            };
            return self.waiting(asker, "write to", attempt).await;
        }
        if has(Shape::Messages) {
            check_whole(data.len())?;
            let messages = target.messages()?;
            let (attributes, sent) = (Dict::new(), Default::default());
            let message = Outgoing { data: &data, attributes: &attributes, fds: &[], sent: &sent };
            return self.waiting(asker, "send to", || messages.send(message)).await;
        }
        if has(Shape::Memory) {
            let write = self.engine.on_memory(target, move |memory| {
                let size = memory.size()?;
                if offset.saturating_add(data.len() as u64) > size {
                    return Err(Error::new(Kind::LimitExceeded, format!("the memory has {size} bytes")));
                }
                memory.write(offset, &data)
            });
            return self.in_time(write).await;
        }
        let wait = |attempt| self.waiting(asker, "wait for", attempt);
        let write = values::write(self.engine, target, &data, wait, || self.still_there());
        if has(Shape::Futex) {
            return self.in_time(write).await;
        }
        // Each wait in it ends in time, and what was taken until then is given back: not to be dropped half-way.
        write.await
    }

    /// What is ready at this moment, and what to wait for if something is not.
    fn ready(&self) -> (Ready, Awaited) {
        let always = (Ready { read: true, write: true }, None);
        let target = self.target;
        if target.shapes.contains(&Shape::Stream) {
            let Ok(stream) = target.stream() else { return always };
            let (read, wait) = if target.kept_count().1 > 0 {
                (true, None)
            } else {
                match stream.source() {
                    Ok(Attempt::Done(end)) => {
                        let now = poll_now(&end.fd, PollFlags::IN).is_ok_and(|events| !events.is_empty());
                        (now, Some(ipc_kernel::Readiness::Readable(end.fd)))
                    }
                    Ok(Attempt::Wait(readiness)) => (false, Some(readiness)),
                    // The read says what is wrong.
                    Err(_) => (true, None),
                }
            };
            let write = match stream.sink() {
                Ok(Attempt::Done(end)) => {
                    poll_now(&end.fd, PollFlags::OUT).is_ok_and(|events| !events.is_empty())
                }
                Ok(Attempt::Wait(_)) => false,
                Err(_) => true,
            };
            return (Ready { read, write }, wait.filter(|_| !read));
        }
        if target.shapes.contains(&Shape::Messages) {
            let Ok(messages) = target.messages() else { return always };
            if target.kept_count().0 > 0 {
                return always;
            }
            return match messages.arrival() {
                Ok(Attempt::Wait(readiness)) => (Ready { read: false, write: true }, Some(readiness)),
                _ => always,
            };
        }
        always
    }

    /// Tells whoever polls when there may be something.
    async fn tell(&self, later: Later, wait: Awaited) {
        if let Some(readiness) = wait {
            tokio::select! {
                () = self.target.closed.wait() => {}
                () = self.mount.closed.wait() => {}
                _ = until(readiness) => {}
            }
        }
        later.tell();
    }
}
