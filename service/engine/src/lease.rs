//! Leases: a semaphore that is posted again when its holder is gone.
//!
//! `Acquire` takes one from the semaphore and hands out the writing end of a pipe. When the last
//! copy of that end is closed, by a `close(2)`, an exit or a crash, the reading end hangs up and
//! the semaphore is posted again. The kernel does that bookkeeping; no connection to a bus and no
//! process number is involved, and the holder may pass the fd on.

use std::{os::fd::OwnedFd, sync::Arc};

use ipc_kernel::{Attempt, Fd, Readiness, Result, error::Attempted, pipe_io};
use rustix::pipe::PipeFlags;

use crate::{Engine, client::Call, endpoint::Endpoint, pump::LOOK_AGAIN, wait};

impl Engine {
    /// Takes one from the semaphore for as long as the returned fd is open somewhere.
    pub async fn acquire(
        self: &Arc<Self>,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        timeout_ms: u32,
    ) -> Result<OwnedFd> {
        endpoint.semaphore()?;
        let counted = self.counters.leases.take(self.limits.leases, "there are too many leases", "leases")?;
        let (held_here, held_there) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .attempted(|| "create a pipe for the lease")?;
        self.semaphore_wait(call, endpoint, timeout_ms).await?;
        let (engine, endpoint) = (self.clone(), endpoint.clone());
        tokio::spawn(async move {
            tokio::select! {
                // A lease outlives its endpoint: the semaphore is still taken.
                () = released(Fd::from(held_here)) => {}
                // At the service's end nobody would be left to give it back.
                () = engine.stopping.wait() => {}
            }
            if let Ok(semaphore) = endpoint.semaphore() {
                // A semaphore that is at its maximum or gone needs no post.
                let _ = semaphore.post(1);
            }
            drop(counted);
        });
        Ok(held_there)
    }
}

/// Completes when the last copy of the lease's writing end is closed. Bytes that its holder
/// writes mean nothing.
async fn released(held_here: Fd) {
    loop {
        match pipe_io::read(&held_here, 4096) {
            Ok(Attempt::Done(bytes)) if !bytes.is_empty() => {}
            Ok(Attempt::Wait(readiness)) => {
                // It is held even while there is no memory to wait with.
                if wait::until(readiness).await.is_err() {
                    let _ = wait::until(Readiness::After(LOOK_AGAIN)).await;
                }
            }
            Ok(Attempt::Done(_)) | Err(_) => return,
        }
    }
}
