//! Lifetimes: what ends an endpoint without anybody closing it.

use std::{os::fd::OwnedFd, sync::Arc};

use ipc_kernel::{Error, Fd, Kind, Result, error::Attempted};
use rustix::{
    event::PollFlags,
    io::Errno,
    process::{Pid, PidfdFlags},
};

use crate::{Engine, client::Client, endpoint::Endpoint, options::Lifetime, wait};

/// A process, held so that its number cannot be given to another one.
pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| Error::invalid(format!("{pid} is not the number of a process")))?;
    match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Err(Errno::SRCH) => Err(Error::new(
            Kind::NotFound,
            format!("cannot bind the lifetime to process {pid}: there is no such process"),
        )),
        other => other.attempted(|| format!("bind the lifetime to process {pid}")),
    }
}

/// Closes the endpoint when its lifetime ends: at once if it has ended already. `process` is the
/// one that the lifetime depends on, None if there is no such process any more.
pub(crate) fn guard(
    engine: &Arc<Engine>,
    endpoint: &Arc<Endpoint>,
    client: &Arc<Client>,
    process: Option<OwnedFd>,
) {
    // `stop` and `client_left` close it, by the table; this closes the gap before it was in the table.
    if engine.stopping.is_set() {
        engine.close(endpoint, "shutdown");
        return;
    }
    match (endpoint.lifetime.clone(), process) {
        (Lifetime::Client, _) if client.gone.is_set() => {
            engine.close(endpoint, "the connection that it belonged to has ended");
        }
        (Lifetime::Process(pid), None) => {
            engine.close(endpoint, &format!("process {pid} has ended"));
        }
        (Lifetime::Process(pid), Some(process)) => {
            let (engine, endpoint) = (engine.clone(), endpoint.clone());
            let reason = format!("process {pid} has ended");
            tokio::spawn(async move {
                let process = Fd::from(process);
                tokio::select! {
                    () = endpoint.closed.wait() => {}
                    _ = wait::ready(process, PollFlags::IN) => {
                        engine.close(&endpoint, &reason);
                    }
                }
            });
        }
        _ => {}
    }
}
