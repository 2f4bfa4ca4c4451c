//! The calls on memory: ranges within the limits, and what may block off the event loop.

use std::sync::Arc;

use ipc_kernel::{Result, shape::Memory};

use crate::{Endpoint, Engine, engine::blocking};

impl Engine {
    /// Runs an operation on memory: at once, or where it may block on the blocking pool.
    pub async fn on_memory<T: Send + 'static>(
        &self,
        endpoint: &Arc<Endpoint>,
        operation: impl FnOnce(&dyn Memory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !endpoint.memory()?.may_block() {
            return operation(endpoint.memory()?);
        }
        self.on_memory_at_length(endpoint, operation).await
    }

    /// Runs what may take long even where nothing blocks, such as filling gigabytes, on the blocking
    /// pool.
    pub async fn on_memory_at_length<T: Send + 'static>(
        &self,
        endpoint: &Arc<Endpoint>,
        operation: impl FnOnce(&dyn Memory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let endpoint = endpoint.clone();
        blocking(move || operation(endpoint.memory()?)).await
    }

    pub async fn memory_read(&self, endpoint: &Arc<Endpoint>, offset: u64, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.payload(length)?;
        self.on_memory(endpoint, move |memory| memory.read(offset, length)).await
    }

    pub async fn memory_write(&self, endpoint: &Arc<Endpoint>, offset: u64, data: &[u8]) -> Result<()> {
        self.payload(data.len())?;
        if !endpoint.memory()?.may_block() {
            return endpoint.memory()?.write(offset, data);
        }
        let data = data.to_owned();
        self.on_memory(endpoint, move |memory| memory.write(offset, &data)).await
    }
}
