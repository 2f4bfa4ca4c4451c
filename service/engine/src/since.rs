//! Calls that wait for events: what `Since` says, as soon as there is something to say.
//!
//! For clients that hear no signals. Nothing is lost between two of these calls, as each begins with the number that
//! the last one ended with; nor between the look and the wait, as the ring is listened to first. The last words of an
//! endpoint, which are said in the moment in which it is closed, are given to those who wait before they hear of its end.

use event_listener::EventListener;
use ipc_kernel::{Attempt, Error, Kind, Readiness, Result, netlink};

use crate::{Engine, client::Call, endpoint::Endpoint, events::Numbered, flag::Flag, herald::Herald};

/// Events, and how many before them are no longer kept.
pub type Past<T> = (Vec<Numbered<T>>, u64);

/// One attempt to learn of something new.
fn look<T>(listen: impl FnOnce() -> EventListener, since: impl FnOnce() -> Past<T>) -> Attempt<Past<T>> {
    let pushed = listen();
    let (events, lost) = since();
    if events.is_empty() && lost == 0 {
        return Attempt::Wait(Readiness::Notified(pushed));
    }
    Attempt::Done((events, lost))
}

impl Engine {
    /// What has happened to the endpoint after number `seq`, at least one event.
    pub async fn wait_since(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        seq: u64,
        timeout_ms: u32,
    ) -> Result<Past<crate::events::Happening>> {
        let attempt = || look(|| endpoint.events.pushed(), || endpoint.events.since(seq));
        let waited = self.wait_on(call, endpoint, "see an event of", timeout_ms, || Ok(attempt())).await;
        match (waited, endpoint.closed_reason()) {
            (Err(error), Some(reason)) if error.kind == Kind::Cancelled => match attempt() {
                Attempt::Done(last) => Ok(last),
                Attempt::Wait(_) => {
                    let text = format!("no more events of {} will come: {reason}", endpoint.address);
                    Err(Error::new(Kind::Closed, text))
                }
            },
            (waited, _) => waited,
        }
    }

    /// What the herald has told after number `seq`, at least one event.
    pub async fn wait_told(
        &self,
        call: &Call,
        herald: &Herald,
        seq: u64,
        timeout_ms: u32,
    ) -> Result<Past<netlink::Event>> {
        let attempt = || Ok(look(|| herald.told(), || herald.since(seq)));
        let never = Flag::new();
        self.wait_for(call, &never, || "see an event of netlink".to_owned(), timeout_ms, attempt).await
    }
}
