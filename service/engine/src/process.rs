//! Processes and mailboxes: the calls that wait for an end, and the pumps that tell of an end and of
//! what was received.

use std::sync::Arc;

use ipc_kernel::{
    Attempt, Error, Kind, Result,
    shape::{Exit, Mailbox, Process, Shape},
};
use rustix::process::Signal;

use crate::{
    Engine,
    client::Call,
    endpoint::Endpoint,
    events::Happening,
    pump::{happened, spawn},
    wait::until,
};

impl Endpoint {
    pub fn process(&self) -> Result<&dyn Process> {
        self.kernel.process().ok_or_else(|| self.lacks(Shape::Process))
    }

    pub fn mailbox(&self) -> Result<&dyn Mailbox> {
        self.kernel.mailbox().ok_or_else(|| self.lacks(Shape::Mailbox))
    }
}

impl Engine {
    /// Waits until the process has ended, and says how.
    pub async fn wait_exit(&self, call: &Call, endpoint: &Endpoint, timeout_ms: u32) -> Result<Exit> {
        let process = endpoint.process()?;
        self.wait_on(call, endpoint, "see the end of", timeout_ms, || process.exit()).await
    }

    /// SIGTERM, and SIGKILL if it has not ended in time. A stopped process is continued, as it
    /// could not heed SIGTERM. A caller who leaves, or an endpoint that is closed, calls the
    /// second signal off.
    pub async fn terminate(&self, call: &Call, endpoint: &Endpoint, grace_ms: u32) -> Result<Exit> {
        let process = endpoint.process()?;
        // Before anything is sent.
        self.patience(grace_ms)?;
        let send = |signal: Signal| match process.send(signal.as_raw(), 0) {
            // It has ended by itself meanwhile.
            Err(error) if error.kind == Kind::Gone => Ok(()),
            sent => sent,
        };
        send(Signal::TERM)?;
        send(Signal::CONT)?;
        match self.wait_exit(call, endpoint, grace_ms).await {
            Err(Error { kind: Kind::Timeout | Kind::Busy, .. }) => {}
            ended => return ended,
        }
        send(Signal::KILL)?;
        self.wait_exit(call, endpoint, u32::MAX).await
    }
}

/// Starts what the endpoint needs.
pub(crate) fn start_pumps(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>) {
    if endpoint.kernel.mailbox().is_some() {
        spawn(engine, endpoint, receive);
    }
    if endpoint.kernel.process().is_some() {
        let (engine, endpoint) = (engine.clone(), endpoint.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = endpoint.closed.wait() => {}
                ended = end(&endpoint) => match ended {
                    // The endpoint stays, so that WaitExit can be asked afterwards.
                    Ok(exit) => happened(&engine, &endpoint, Happening::Exited(exit)),
                    Err(error) => _ = engine.close(&endpoint, &error.text),
                }
            }
        });
    }
}

async fn end(endpoint: &Endpoint) -> Result<Exit> {
    loop {
        match endpoint.process()?.exit()? {
            Attempt::Done(exit) => return Ok(exit),
            Attempt::Wait(readiness) => until(readiness).await?,
        }
    }
}

fn receive(engine: &Arc<Engine>, endpoint: &Arc<Endpoint>) -> Result<Attempt<()>> {
    Ok(endpoint.mailbox()?.next()?.map(|received| {
        for signal in received {
            happened(engine, endpoint, Happening::Signalled(signal));
        }
    }))
}
