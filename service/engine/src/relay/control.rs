//! Pause, resume, stop: what is wanted of a relay's task, and the waiting for a change of that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use event_listener::Event;

/// What the task has to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    Pause,
    Stop(String),
}

#[derive(Debug, Default)]
pub(super) struct Control {
    order: Mutex<Option<Order>>,
    changed: Event,
}

impl Control {
    fn current(&self) -> MutexGuard<'_, Option<Order>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order, or takes a pause back. Nothing overrules a stop. Says whether something
    /// has changed.
    pub fn set(&self, order: Option<Order>) -> bool {
        {
            let mut current = self.current();
            if matches!(*current, Some(Order::Stop(_))) || *current == order {
                return false;
            }
            *current = order;
        }
        self.changed.notify(usize::MAX);
        true
    }

    pub fn is_paused(&self) -> bool {
        *self.current() == Some(Order::Pause)
    }

    /// Completes when there is an order.
    pub async fn order(&self) -> Order {
        self.when(|order| order.clone()).await
    }

    /// Completes when the relay is not paused.
    pub async fn running(&self) {
        self.when(|order| (*order != Some(Order::Pause)).then_some(())).await
    }

    async fn when<T>(&self, is: impl Fn(&Option<Order>) -> Option<T>) -> T {
        loop {
            if let Some(found) = is(&self.current()) {
                return found;
            }
            let listener = self.changed.listen();
            if let Some(found) = is(&self.current()) {
                return found;
            }
            listener.await;
        }
    }
}
