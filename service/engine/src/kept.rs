//! What becomes of messages that an endpoint has taken and nobody got, when it ends.

use crate::endpoint::Endpoint;

impl Endpoint {
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
