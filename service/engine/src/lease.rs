//! Leases: what was taken of a semaphore goes back when its holder is gone.
//!
//! `Acquire` and `AcquireSet` take, and hand out the writing end of a pipe. When the last copy of
//! that end is closed, by a `close(2)`, an exit or a crash, the reading end hangs up and what was
//! taken goes back. The kernel does that bookkeeping; no connection to a bus and no process number
//! is involved, and the holder may pass the fd on. On request a lease also ends with the connection
//! that asked for it, or with a process; then the pipe is closed here, which the holder can poll.

use std::{os::fd::OwnedFd, sync::Arc};

use ipc_kernel::{
    Address, Attempt, Dict, Error, Fd, Parameter, Parameters, Readiness, Result, Type,
    error::Attempted,
    pipe_io,
    shape::{Held, SemaphoreOperation},
};
use rustix::{event::PollFlags, pipe::PipeFlags};

use crate::{
    Engine,
    client::{Call, Client, Taken},
    endpoint::Endpoint,
    options::{Lifetime, process},
    pump::LOOK_AGAIN,
    wait,
};

/// The options of `Acquire`.
static OPTIONS: &[Parameter] = &[
    Parameter::new("number", Type::U32 { min: 0, max: 65535 }, "Semaphore of the set"),
    Parameter::new("count", Type::U32 { min: 1, max: 32767 }, "How many units are taken, all or none")
        .default("1"),
    Parameter::new(
        "lifetime",
        Type::Text,
        "fd: until the last copy of the file descriptor is closed; client, pid:N: at the latest when the caller's \
         connection or that process ends",
    )
    .default("fd"),
];

/// What ends a lease besides the closing of its file descriptor.
enum End {
    Nothing,
    Client(Arc<Client>),
    Process(Fd),
}

impl Engine {
    /// Takes from a semaphore for as long as the returned fd is open somewhere.
    pub async fn acquire(
        self: &Arc<Self>,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        timeout_ms: u32,
        options: &Dict,
    ) -> Result<OwnedFd> {
        let semaphore = endpoint.semaphore()?;
        let options = Parameters::check(OPTIONS, &[], &Address::new("Acquire"), options)?;
        // The table keeps both within their types.
        let number = options.u32("number").and_then(|number| u16::try_from(number).ok());
        let count = options.u32("count").and_then(|count| i16::try_from(count).ok()).unwrap_or(1);
        let end = self.end(call, options.text("lifetime").unwrap_or("fd"))?;
        let operation = (number.unwrap_or(semaphore.number()), -count, 0);
        self.lease(call, endpoint, &[operation], timeout_ms, end).await
    }

    /// Does several operations on a set, all or nothing, and undoes them at the end of the lease.
    pub async fn acquire_set(
        self: &Arc<Self>,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        operations: &[SemaphoreOperation],
        timeout_ms: u32,
    ) -> Result<OwnedFd> {
        self.lease(call, endpoint, operations, timeout_ms, End::Nothing).await
    }

    fn end(&self, call: &Call, lifetime: &str) -> Result<End> {
        match (lifetime, process(lifetime)) {
            ("fd", _) => Ok(End::Nothing),
            ("client", _) => Ok(End::Client(call.client.clone())),
            (_, Some(pid)) => {
                self.may_live_as(&Lifetime::Process(pid))?;
                Ok(End::Process(crate::lifetime::pidfd(pid)?.into()))
            }
            _ => Err(Error::invalid(format!(
                "the option \"lifetime\" must be fd, client or pid:N with the number of a process, not {lifetime:?}"
            ))),
        }
    }

    async fn lease(
        self: &Arc<Self>,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        operations: &[SemaphoreOperation],
        timeout_ms: u32,
        end: End,
    ) -> Result<OwnedFd> {
        let semaphore = endpoint.semaphore()?;
        let counted = self.counters.leases.take(self.limits.leases, "there are too many leases", "leases")?;
        let (held_here, held_there) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .attempted(|| "create a pipe for the lease")?;
        let attempt = || semaphore.acquire(operations);
        let held = self.wait_on(call, endpoint, "acquire", timeout_ms, attempt).await?;
        call.still_there()?;
        tokio::spawn(self.clone().keep(held, held_here.into(), end, counted));
        Ok(held_there)
    }

    /// Holds until the lease ends. It outlives its endpoint: the semaphore is still taken.
    async fn keep(self: Arc<Self>, held: Held, held_here: Fd, end: End, counted: Taken) {
        let ended = async {
            match end {
                End::Nothing => std::future::pending().await,
                End::Client(client) => client.gone.wait().await,
                // Whatever is wrong with a pidfd, its process is not known to live.
                End::Process(process) => _ = wait::ready(process, PollFlags::IN).await,
            }
        };
        tokio::select! {
            () = released(held_here) => {}
            () = ended => {}
            // At the service's end nobody would be left to give it back.
            () = self.stopping.wait() => {}
        }
        // In this order: who sees that there is one lease less finds the semaphore free.
        drop(held);
        drop(counted);
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
