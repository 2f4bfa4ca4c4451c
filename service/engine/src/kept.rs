//! What becomes of messages and bytes that an endpoint has taken and nobody got: whoever waits for some is told, and
//! when the endpoint ends they go back.

use ipc_kernel::{Attempt, Readiness, Result};

use crate::endpoint::Endpoint;

impl Endpoint {
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
