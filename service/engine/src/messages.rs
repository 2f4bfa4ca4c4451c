//! The calls on endpoints that carry messages. Each takes the [`Call`] that was admitted, and ends.

use std::sync::Arc;

use ipc_kernel::{
    Attempt, Dict, Error, Kind, Result, Value,
    shape::{Message, Outgoing},
};

use crate::{Engine, client::Call, endpoint::Endpoint};

/// One Purge takes no more messages; a queue that others fill could go on for ever.
const PURGED: u64 = 65_536;

/// After so many, other tasks have their turn.
const TURN: u64 = 64;

impl Engine {
    pub async fn send(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        message: Outgoing<'_>,
        timeout_ms: u32,
    ) -> Result<()> {
        self.payload(message.data.len())?;
        self.may_address(message.attributes)?;
        let messages = endpoint.messages()?;
        self.wait_on(call, endpoint, "send to", timeout_ms, || messages.send(message)).await
    }

    pub async fn receive(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        selector: &Dict,
        timeout_ms: u32,
    ) -> Result<Message> {
        let attempt = || endpoint.or_given_back(|| endpoint.attempt_receive(selector));
        let message = self.wait_on(call, endpoint, "receive from", timeout_ms, attempt).await?;
        let refused = if let Err(left) = call.still_there() {
            left
        } else if message.fds.len() > self.limits.fds_per_reply as usize {
            Error::new(
                Kind::TooLarge,
                format!(
                    "the next message carries {} file descriptors; one reply carries at most {} (fds-per-reply). \
                     It was kept: raise the limit, or relay it",
                    message.fds.len(),
                    self.limits.fds_per_reply
                ),
            )
        } else if message.data.len() > self.limits.payload as usize {
            Error::new(
                Kind::TooLarge,
                format!(
                    "the next message has {} bytes; one reply carries at most {} (payload). It was kept: raise the \
                     limit, or relay it",
                    message.data.len(),
                    self.limits.payload
                ),
            )
        } else {
            return Ok(message);
        };
        endpoint.keep(message);
        Err(refused)
    }

    pub async fn peek(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        selector: &Dict,
        timeout_ms: u32,
    ) -> Result<Message> {
        let messages = endpoint.messages()?;
        let attempt = || {
            for kept in &*endpoint.kept() {
                if messages.selects(selector, kept)? {
                    let (data, attributes) = (kept.data.clone(), kept.attributes.clone());
                    return Ok(Attempt::Done(Message { data, attributes, fds: Vec::new() }));
                }
            }
            messages.peek(selector)
        };
        self.wait_on(call, endpoint, "peek at", timeout_ms, attempt).await
    }

    /// Takes every message that is there and that the selector asks for, and says how many.
    pub async fn purge(&self, call: &Call, endpoint: &Endpoint, selector: &Dict) -> Result<u64> {
        let mut purged = 0;
        while purged < PURGED && !call.client.gone.is_set() && !endpoint.closed.is_set() {
            match endpoint.attempt_receive(selector) {
                Ok(Attempt::Done(_)) => purged += 1,
                Ok(Attempt::Wait(_)) => break,
                // The next call meets it again.
                Err(_) if purged > 0 => break,
                Err(error) => return Err(error),
            }
            if purged % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(purged)
    }
}

/// The attributes of a message as the bus shows them: with its fds.
pub fn attributes(message: &mut Message) -> Dict {
    let mut attributes = std::mem::take(&mut message.attributes);
    if !message.fds.is_empty() {
        let fds = std::mem::take(&mut message.fds);
        attributes.insert("fds".into(), Value::Fds(fds.into_iter().map(Arc::new).collect()));
    }
    attributes
}
