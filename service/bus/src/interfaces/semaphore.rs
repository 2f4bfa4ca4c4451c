//! `org.example.IPC.Semaphore`: a counter to wait on.

use ipc_kernel::{Address, Parameters};
use zbus::{OwnedFd, interface, message::Header};

use crate::{
    errors::Result,
    interfaces::served,
    variants::{Given, dict},
};

served!(Semaphore);

#[interface(name = "org.example.IPC.Semaphore")]
impl Semaphore {
    /// Adds count to the value and wakes as many waiters. Beyond SEM_VALUE_MAX (2147483647) nothing
    /// is added: LimitExceeded.
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

    /// Takes one on a lease: the semaphore is posted again when the last copy of the returned file
    /// descriptor is closed, by its holder's close, exit or crash. It takes no options yet.
    #[zbus(out_args("lease"))]
    async fn acquire(
        &self,
        timeout_ms: u32,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd> {
        let call = self.face.call(&header)?;
        Parameters::check(&[], &[], &Address::new("Acquire"), &dict(options)?)?;
        Ok(self.face.engine.acquire(&call, &self.endpoint, timeout_ms).await?.into())
    }

    /// Does several operations on a System V set at once, all or nothing: number of the
    /// semaphore, operation (negative takes, positive adds, 0 waits for zero), flags of semop(2).
    async fn operate(
        &self,
        operations: Vec<(u16, i16, u16)>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.operate(&call, &self.endpoint, &operations, timeout_ms).await?)
    }

    /// Sets the value, where the mechanism has such an operation (System V).
    fn set_value(&self, value: i32, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.semaphore()?.set_values(&[value])?)
    }

    /// Sets the values of a set.
    fn set_values(&self, values: Vec<i32>, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.semaphore()?.set_values(&values)?)
    }

    /// The value; of a set, that of its first semaphore.
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
