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

pub enum State { Running }
impl State { pub fn name(&self) -> &'static str { "running" } }
pub struct Finished { pub reason: String, pub bytes: u64, pub messages: u64 }
impl Relay {
    pub fn pause(&self, _e: &Arc<crate::Engine>) {}
    pub fn resume(&self, _e: &Arc<crate::Engine>) {}
    pub fn state(&self) -> State { State::Running }
    pub fn bytes(&self) -> u64 { 0 }
    pub fn messages(&self) -> u64 { 0 }
    pub fn rate(&self) -> u64 { 0 }
    pub fn error(&self) -> String { String::new() }
    pub fn inspect(&self) -> ipc_kernel::Dict { ipc_kernel::Dict::new() }
    pub fn finished(&self) -> Option<Finished> { None }
}
impl crate::Engine {
    pub async fn start_relay(self: &Arc<Self>, _call: &crate::Call, source: Arc<Endpoint>, sink: Arc<Endpoint>, _options: ipc_kernel::Dict) -> ipc_kernel::Result<Arc<Relay>> {
        Ok(Arc::new(Relay { id: self.next_id(), source, sink, dirty: AtomicBool::new(false) }))
    }
}
