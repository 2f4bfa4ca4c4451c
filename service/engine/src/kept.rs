//! What becomes of messages and bytes that an endpoint has taken and nobody got: they are the first that the next one
//! gets, whoever waits for some is told, and when the endpoint ends they go back.

use std::{
    collections::VecDeque,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
};

use ipc_kernel::{
    Attempt, Dict, Error, Readiness, Result,
    datagrams::Batch,
    shape::{Message, Messages},
};

use crate::endpoint::Endpoint;

impl Endpoint {
    /// One attempt to read, what was kept first.
    pub fn attempt_read(&self, max: usize) -> Result<Attempt<Vec<u8>>> {
        if let Some(kept) = self.take_kept_bytes(max) {
            return Ok(Attempt::Done(kept));
        }
        self.stream()?.read(max)
    }

    /// The first message that was kept and that the selector asks for.
    fn take_kept(&self, messages: &dyn Messages, selector: &Dict) -> Result<Option<Message>> {
        let mut kept = self.kept();
        for index in 0..kept.len() {
            if messages.selects(selector, &kept[index])? {
                return Ok(kept.remove(index));
            }
        }
        Ok(None)
    }

    /// One attempt to receive, what was kept first.
    pub fn attempt_receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        let messages = self.messages()?;
        let attempt = match self.take_kept(messages, selector)? {
            Some(kept) => Attempt::Done(kept),
            None => messages.receive(selector)?,
        };
        if matches!(attempt, Attempt::Done(_)) {
            self.taken(1);
        }
        Ok(attempt)
    }

    /// One attempt to receive several datagrams from the kernel; what is kept here is not looked at. None: they come
    /// one by one.
    pub fn attempt_batch(&self, batch: &mut Batch) -> Result<Option<Attempt<()>>> {
        let Some(source) = self.messages()?.datagram_source() else {
            return Ok(None);
        };
        let attempt = source.receive(batch)?;
        if matches!(attempt, Attempt::Done(())) {
            self.taken(batch.len() as u64);
        }
        Ok(Some(attempt))
    }

    fn taken(&self, count: u64) {
        self.delivered.fetch_add(count, Ordering::AcqRel);
        self.received.notify(usize::MAX);
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_bytes(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.kept_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message that was taken back to the front.
    pub fn keep(&self, message: Message) {
        self.kept().push_front(message);
        self.delivered.fetch_sub(1, Ordering::AcqRel);
        self.received.notify(usize::MAX);
        self.given_back.notify(usize::MAX);
    }

    /// Puts a message that came through no call behind those that are kept.
    pub(crate) fn keep_last(&self, message: Message) {
        self.kept().push_back(message);
        self.received.notify(usize::MAX);
        self.given_back.notify(usize::MAX);
    }

    /// Bytes that were taken earlier and not delivered, at most `max`.
    pub fn take_kept_bytes(&self, max: usize) -> Option<Vec<u8>> {
        let mut kept = self.kept_bytes();
        let length = kept.len().min(max);
        (length > 0).then(|| kept.drain(..length).collect())
    }

    /// Puts bytes that were taken back to the front.
    pub fn keep_bytes(&self, data: &[u8]) {
        let mut kept = self.kept_bytes();
        for &byte in data.iter().rev() {
            kept.push_front(byte);
        }
        drop(kept);
        if !data.is_empty() {
            self.given_back.notify(usize::MAX);
        }
    }

    /// Puts bytes behind those that are kept.
    pub(crate) fn keep_bytes_last(&self, data: &[u8]) {
        self.kept_bytes().extend(data);
        self.given_back.notify(usize::MAX);
    }

    /// The number of bytes or messages that are kept, for `Inspect`.
    pub fn kept_count(&self) -> (usize, usize) {
        (self.kept().len(), self.kept_bytes().len())
    }

    /// An attempt to take something; who has to wait is woken by what others give back, too, of which the kernel knows
    /// nothing.
    pub(crate) fn or_given_back<T>(
        &self,
        mut attempt: impl FnMut() -> Result<Attempt<T>>,
    ) -> Result<Attempt<T>> {
        if let Attempt::Done(taken) = attempt()? {
            return Ok(Attempt::Done(taken));
        }
        // Listening first: nothing is given back unnoticed between the attempt and the wait.
        let given_back = Readiness::Notified(self.given_back.listen());
        Ok(match attempt()? {
            // A call that blocks may have taken something when it is given up: it comes to its own end.
            Attempt::Wait(readiness) if !matches!(readiness, Readiness::Blocked(_)) => {
                Attempt::Wait(Readiness::Any(vec![readiness, given_back]))
            }
            attempt => attempt,
        })
    }

    /// How many bytes of a stream can be read now: those that the kernel has, and those that are kept here.
    pub fn depth(&self) -> Result<u64> {
        let (_, kept) = self.kept_count();
        match self.stream()?.depth() {
            Ok(waiting) => Ok(waiting + kept as u64),
            // A direction that was shut down meanwhile: what is kept can be read all the same.
            Err(_) if kept > 0 => Ok(kept as u64),
            Err(error) => Err(error),
        }
    }

    /// How many messages can be received now, likewise.
    pub fn messages_depth(&self) -> Result<u64> {
        let (kept, _) = self.kept_count();
        let waiting = self
            .messages()?
            .depth()
            .ok_or_else(|| Error::not_supported("the kernel does not tell how many messages wait here"))?;
        Ok(waiting + kept as u64)
    }

    /// What was taken and never delivered goes back, where the kernel's object outlives this endpoint
    /// and others receive from it.
    pub(crate) fn give_back_kept(&self) {
        let kept = std::mem::take(&mut *self.kept());
        if let Some(messages) = self.kernel.messages() {
            for message in &kept {
                messages.put_back(message);
            }
        }
    }
}

/// What a call or a relay gives back after the endpoint was closed.
impl Drop for Endpoint {
    fn drop(&mut self) {
        self.give_back_kept();
    }
}
