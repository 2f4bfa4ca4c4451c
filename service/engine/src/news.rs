//! The news: objects with something to announce, each in the queue once, so that the queue is
//! never longer than the table of objects.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use event_listener::Event;

use crate::{Engine, Object};

#[derive(Default)]
pub(crate) struct News {
    queue: Mutex<VecDeque<Object>>,
    event: Event,
}

impl News {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Object>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, object: Object) {
        let fresh = match &object {
            Object::Endpoint(endpoint) => endpoint.mark(),
            Object::Relay(relay) => relay.mark(),
        };
        if fresh {
            self.queue().push_back(object);
            self.event.notify(1);
        }
    }
}

impl Engine {
    /// Puts an object into the news, unless it is there.
    pub fn announce(&self, object: Object) {
        self.news.put(object);
    }

    /// The next object that has something to announce. What it is, the object says: new events, a
    /// reason why it was closed, a changed state.
    pub async fn next_news(&self) -> Object {
        loop {
            if let Some(object) = self.take_news() {
                return object;
            }
            let listener = self.news.event.listen();
            if let Some(object) = self.take_news() {
                return object;
            }
            listener.await;
        }
    }

    fn take_news(&self) -> Option<Object> {
        let object = self.news.queue().pop_front()?;
        match &object {
            Object::Endpoint(endpoint) => endpoint.dirty.store(false, Ordering::Release),
            Object::Relay(relay) => relay.unmark(),
        }
        Some(object)
    }

    /// Whether nothing is left to announce.
    pub fn news_are_out(&self) -> bool {
        self.news.queue().is_empty()
    }

    /// Whether nothing is left to announce or to answer.
    pub fn is_silent(&self) -> bool {
        self.news_are_out() && self.counters.calls.value() == 0
    }
}
