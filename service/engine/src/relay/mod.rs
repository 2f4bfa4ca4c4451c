//! Relays (placeholder so that the crate compiles; the real one replaces this file).
use crate::Endpoint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
#[derive(Debug)]
pub struct Relay {
    pub id: u64,
    pub source: Arc<Endpoint>,
    pub sink: Arc<Endpoint>,
    dirty: AtomicBool,
}
impl Relay {
    pub fn stop(&self, _reason: &str) {}
    pub(crate) fn mark(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }
    pub(crate) fn unmark(&self) {
        self.dirty.store(false, Ordering::Release)
    }
}
