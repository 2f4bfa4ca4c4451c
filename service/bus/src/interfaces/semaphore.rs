//! `org.example.IPC.Semaphore`: a counter to wait on.

use zbus::{OwnedFd, interface, message::Header};

use crate::{
    errors::Result,
    interfaces::served,
    variants::{Given, dict},
};

served!(Semaphore);

#[interface(name = "org.example.IPC.Semaphore")]
impl Semaphore {
    /// Adds count to the value and wakes as many waiters. Beyond SEM_VALUE_MAX (2147483647), of a System V set
    /// SEMVMX (32767), nothing is added: LimitExceeded. It is also the repair of a stale semaphore: it puts back
    /// what a process took that has died.
    fn post(&self, count: u32, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.semaphore()?.post(count)?)
    }

    /// Takes one, waiting until the value is above zero. timeout_ms: 0 does not wait (Busy),
    /// 4294967295 is the default of 20 s, at most 300 s. Errors: Busy, Timeout, Gone, Cancelled.
    async fn wait(&self, timeout_ms: u32, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.semaphore_wait(&call, &self.endpoint, timeout_ms).await?)
    }

    /// Takes one if the value is above zero; says whether it did.
    #[zbus(out_args("taken"))]
    fn try_wait(&self, #[zbus(header)] header: Header<'_>) -> Result<bool> {
        let _call = self.face.call(&header)?;
        Ok(matches!(self.endpoint.semaphore()?.wait()?, ipc_kernel::Attempt::Done(())))
    }

    /// Takes on a lease: what was taken goes back when the last copy of the returned file descriptor is closed, by
    /// its holder's close, exit or crash. Options: `count` (u) units, all or none, default 1 (more than one of
    /// System V sets only); `number` (u) of the semaphore in a set, default the address's; `lifetime` (s): `fd`, or
    /// `client` or `pid:N` to give back at the latest when the caller's connection or that process ends; the
    /// descriptor then polls POLLERR. A lease outlives its endpoint, not the service. Errors: as Wait;
    /// LimitExceeded (leases).
    #[zbus(out_args("lease"))]
    async fn acquire(
        &self,
        timeout_ms: u32,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.acquire(&call, &self.endpoint, timeout_ms, &dict(options)?).await?.into())
    }

    /// Does several operations on a System V set at once, as Operate, on a lease: at its end they are undone as the
    /// kernel undoes those of a process with SEM_UNDO (semop(2)): without waiting, no value below 0 or above
    /// SEMVMX, and not where SetValue or SetValues has come between.
    #[zbus(out_args("lease"))]
    async fn acquire_set(
        &self,
        operations: Vec<(u16, i16, u16)>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.acquire_set(&call, &self.endpoint, &operations, timeout_ms).await?.into())
    }

    /// Does several operations on a System V set at once, all or nothing: number of the semaphore, operation
    /// (negative takes, positive adds, 0 waits for zero), flags: 0, or IPC_NOWAIT (2048) for Busy where this
    /// operation would have to wait. SEM_UNDO (4096) is refused: use AcquireSet. At most SEMOPM operations.
    async fn operate(
        &self,
        operations: Vec<(u16, i16, u16)>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.operate(&call, &self.endpoint, &operations, timeout_ms).await?)
    }

    /// Sets the value of the address's semaphore, where the mechanism has such an operation (System V, SETVAL), and
    /// takes away what leases and SEM_UNDO would undo of it.
    fn set_value(&self, value: i32, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.semaphore()?.set_value(value)?)
    }

    /// Sets all values of a set at once (SETALL), and takes away what leases and SEM_UNDO would undo of them.
    fn set_values(&self, values: Vec<i32>, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.semaphore()?.set_values(&values)?)
    }

    /// The value; of a set, that of the semaphore which the key number of the address names.
    #[zbus(property(emits_changed_signal = "false"))]
    fn value(&self) -> Result<i32> {
        Ok(self.endpoint.semaphore()?.value()?)
    }

    /// The values of a set; of a single semaphore, its value.
    #[zbus(property(emits_changed_signal = "false"))]
    fn values(&self) -> Result<Vec<i32>> {
        Ok(self.endpoint.semaphore()?.values()?)
    }
}
