//! `org.example.IPC.Mailbox`: signals that were received for the caller.

// `Received` has as many arguments as the contract says, and zbus makes functions of it.
#![allow(clippy::too_many_arguments)]

use ipc_engine::events::Happening;
use ipc_kernel::{shape::Received, signal::names};
use zbus::{interface, message::Header, object_server::SignalEmitter};

use crate::{errors::Result, interfaces::served};

served!(Mailbox);

/// A signal that was kept: number, time in microseconds since the epoch, then as in Received.
type Kept = (u64, u64, i32, String, i32, u32, i32, i32);

/// What `Received` says.
pub fn body(seq: u64, received: &Received) -> (u64, i32, String, i32, u32, i32, i32) {
    let Received { number, pid, uid, value, code } = *received;
    (seq, number, names::name(number), pid, uid, value, code)
}

#[interface(name = "org.example.IPC.Mailbox")]
impl Mailbox {
    /// The signals received since number seq, as far as they are kept (1,024): number of the
    /// event, time in microseconds since the epoch, then as in Received; and how many are no
    /// longer kept.
    #[zbus(out_args("signals", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let kept = events.into_iter().filter_map(|event| match event.happening {
            Happening::Signalled(received) => {
                let (seq, number, name, pid, uid, value, code) = body(event.seq, &received);
                Some((seq, event.at, number, name, pid, uid, value, code))
            }
            _ => None,
        });
        Ok((kept.collect(), lost))
    }

    /// A signal was received: its number and name, the sender's pid and uid, the value that
    /// sigqueue(3) sent along, and si_code of sigaction(2): 0 is kill(2), -1 sigqueue(3), -6 tgkill(2).
    #[zbus(signal)]
    pub async fn received(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        number: i32,
        name: &str,
        pid: i32,
        uid: u32,
        value: i32,
        code: i32,
    ) -> zbus::Result<()>;

    /// The number of the process to send signals to.
    #[zbus(property(emits_changed_signal = "const"))]
    fn pid(&self) -> Result<i32> {
        Ok(self.endpoint.mailbox()?.pid())
    }

    /// The signals that it receives.
    #[zbus(property(emits_changed_signal = "const"))]
    fn numbers(&self) -> Result<Vec<String>> {
        Ok(self.endpoint.mailbox()?.numbers().into_iter().map(names::name).collect())
    }
}
