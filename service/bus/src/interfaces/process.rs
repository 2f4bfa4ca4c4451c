//! `org.example.IPC.Process`: signals to a process, and its end.

use ipc_kernel::signal::names;
use zbus::{interface, message::Header, object_server::SignalEmitter};

use crate::{errors::Result, interfaces::served};

served!(Process);

/// Signal 0, which kill(2) uses to ask whether a signal might be sent.
fn number(signal: &str) -> Result<i32> {
    Ok(if signal == "0" { 0 } else { names::parse(signal)? })
}

#[interface(name = "org.example.IPC.Process")]
impl Process {
    /// Sends a signal (SIGTERM, SIGRTMIN+3, a number) with a value, as sigqueue(3). Signal 0 sends
    /// nothing: the call fails if none might be sent. Errors: PermissionDenied (another user's),
    /// Gone (it has ended), LimitExceeded (RLIMIT_SIGPENDING).
    fn send(&self, signal: &str, value: i32, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.process()?.send(number(signal)?, value)?)
    }

    /// Sends a signal only if the process has a handler for it or blocks it, so that one that does
    /// not expect it is not ended by it; says whether it was sent. Who waits in sigwaitinfo(2) at that
    /// moment does not block the signal, for all that the kernel shows, and gets none.
    #[zbus(out_args("sent"))]
    fn send_if_handled(&self, signal: &str, value: i32, #[zbus(header)] header: Header<'_>) -> Result<bool> {
        let _call = self.face.call(&header)?;
        let (process, signal) = (self.endpoint.process()?, names::parse(signal)?);
        let handled = process.handles(signal)?;
        if handled {
            process.send(signal, value)?;
        }
        Ok(handled)
    }

    /// Waits until it has ended. code is what it gave to exit(3); where a signal ended it, code is
    /// -1 and signal its number; where the kernel does not say, -1 and 0. timeout_ms: 0 does not
    /// wait (Busy), 4294967295 is the default of 20 s, at most 300 s. Errors: Busy, Timeout, Cancelled.
    #[zbus(out_args("code", "signal"))]
    async fn wait_exit(&self, timeout_ms: u32, #[zbus(header)] header: Header<'_>) -> Result<(i32, i32)> {
        let call = self.face.call(&header)?;
        let exit = self.face.engine.wait_exit(&call, &self.endpoint, timeout_ms).await?;
        Ok((exit.code, exit.signal))
    }

    /// Ends it: SIGTERM (and SIGCONT, should it be stopped), and SIGKILL if it has not ended after
    /// grace_ms (0: SIGKILL at once; 4294967295: 20 s; at most 300 s). Returns as WaitExit. A caller who
    /// leaves meanwhile calls SIGKILL off.
    #[zbus(out_args("code", "signal"))]
    async fn terminate(&self, grace_ms: u32, #[zbus(header)] header: Header<'_>) -> Result<(i32, i32)> {
        let call = self.face.call(&header)?;
        let exit = self.face.engine.terminate(&call, &self.endpoint, grace_ms).await?;
        Ok((exit.code, exit.signal))
    }

    /// It has ended: code and signal as WaitExit returns them, and whether it left a core dump.
    #[zbus(signal)]
    pub async fn exited(emitter: &SignalEmitter<'_>, code: i32, signal: i32, core: bool) -> zbus::Result<()>;

    /// Its number.
    #[zbus(property(emits_changed_signal = "const"))]
    fn pid(&self) -> Result<i32> {
        Ok(self.endpoint.process()?.pid())
    }

    /// Whether it has not ended yet.
    #[zbus(property)]
    fn alive(&self) -> Result<bool> {
        Ok(self.endpoint.process()?.alive())
    }

    /// Its command name (comm, at most 15 bytes), the last known one when it has ended.
    #[zbus(property(emits_changed_signal = "false"))]
    fn command(&self) -> Result<String> {
        Ok(self.endpoint.process()?.command())
    }
}
