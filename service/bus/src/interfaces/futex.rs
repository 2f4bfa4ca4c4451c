//! `org.example.IPC.Futex`: a word in shared memory on which processes sleep.

use ipc_engine::{events::Happening, futex::bits};
use ipc_kernel::futex_word::ANY;
use zbus::{ObjectPath, interface, message::Header, object_server::SignalEmitter};

use crate::{errors::Result, interfaces::served, paths};

served!(Futex);

/// A wake-up that was kept: number, time in microseconds since the epoch, value.
type Kept = (u64, u64, u32);

#[interface(name = "org.example.IPC.Futex")]
impl Futex {
    /// Sleeps as long as the value is expected, until somebody wakes it (FUTEX_WAIT): "woken";
    /// or "changed" at once, where the value is another one. A wake-up may come without a reason
    /// that can be seen: look at the value. timeout_ms: 0 does not wait (Busy), 4294967295 is the
    /// default of 20 s, at most 300 s. Errors: Busy, Timeout, Gone, Cancelled, LimitExceeded.
    #[zbus(out_args("outcome"))]
    async fn wait(
        &self,
        expected: u32,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<&'static str> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.futex_wait(&call, &self.endpoint, expected, ANY, timeout_ms).await?.name())
    }

    /// The same for a wake-up that has a bit in common with bitset, which must have one
    /// (FUTEX_WAIT_BITSET).
    #[zbus(out_args("outcome"))]
    async fn wait_bitset(
        &self,
        expected: u32,
        bitset: u32,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<&'static str> {
        let call = self.face.call(&header)?;
        let bits = bits(bitset)?;
        Ok(self.face.engine.futex_wait(&call, &self.endpoint, expected, bits, timeout_ms).await?.name())
    }

    /// Wakes up to count waiters, in this service or any program (FUTEX_WAKE); 4294967295 wakes
    /// all. Says how many there were.
    #[zbus(out_args("woken"))]
    async fn wake(&self, count: u32, #[zbus(header)] header: Header<'_>) -> Result<u32> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.on_futex(&self.endpoint, move |word| word.wake(count, ANY)).await?)
    }

    /// Wakes up to count of the waiters that have a bit in common with bitset
    /// (FUTEX_WAKE_BITSET). Waiters without bits, by Wait or FUTEX_WAIT, have all of them.
    #[zbus(out_args("woken"))]
    async fn wake_bitset(&self, count: u32, bitset: u32, #[zbus(header)] header: Header<'_>) -> Result<u32> {
        let _call = self.face.call(&header)?;
        let bits = bits(bitset)?;
        Ok(self.face.engine.on_futex(&self.endpoint, move |word| word.wake(count, bits)).await?)
    }

    /// Wakes up to wake waiters, and lets up to requeue others wait for target instead, another
    /// futex endpoint; all that only if the value is expected, else Busy (FUTEX_CMP_REQUEUE).
    #[zbus(out_args("woken", "requeued"))]
    async fn requeue(
        &self,
        wake: u32,
        requeue: u32,
        target: ObjectPath<'_>,
        expected: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(u32, u32)> {
        let _call = self.face.call(&header)?;
        let engine = &self.face.engine;
        let target = paths::find_endpoint(engine, &target)?;
        Ok(engine.futex_requeue(&self.endpoint, wake, requeue, target, expected).await?)
    }

    /// Reads the value.
    #[zbus(out_args("value"))]
    async fn load(&self, #[zbus(header)] header: Header<'_>) -> Result<u32> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.on_futex(&self.endpoint, |word| word.load()).await?)
    }

    /// Writes the value. Nobody is woken: Wake does that.
    async fn store(&self, value: u32, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.on_futex(&self.endpoint, move |word| word.store(value)).await?)
    }

    /// Writes desired if the value is expected; says whether it did, and what was there.
    #[zbus(out_args("exchanged", "found"))]
    async fn compare_exchange(
        &self,
        expected: u32,
        desired: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(bool, u32)> {
        let _call = self.face.call(&header)?;
        let exchange =
            move |word: &ipc_kernel::futex_word::FutexWord| word.compare_exchange(expected, desired);
        Ok(self.face.engine.on_futex(&self.endpoint, exchange).await?)
    }

    /// Adds to the value, wrapping around, and returns what was there before. 4294967295 takes
    /// one away.
    #[zbus(out_args("before"))]
    async fn fetch_add(&self, value: u32, #[zbus(header)] header: Header<'_>) -> Result<u32> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.on_futex(&self.endpoint, move |word| word.fetch_add(value)).await?)
    }

    /// For the word of a robust mutex whose owner is dead and who had no robust list: marks that
    /// (FUTEX_OWNER_DIED), takes the owner out and wakes one waiter, who gets EOWNERDEAD. Says how
    /// many were woken. Errors: Busy (the owner lives), PermissionDenied (it is not known whether
    /// he does), InvalidArgument (nobody owns it). Inspect says the same in as-lock.
    #[zbus(out_args("woken"))]
    async fn repair(&self, #[zbus(header)] header: Header<'_>) -> Result<u32> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.futex_repair(&self.endpoint).await?)
    }

    /// What Woken signals have said since number seq, as far as it is kept (1,024 events): number,
    /// time in microseconds since the epoch, value; and how many are no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let kept = events.into_iter().filter_map(|event| match event.happening {
            Happening::Woken(value) => Some((event.seq, event.at, value)),
            _ => None,
        });
        Ok((kept.collect(), lost))
    }

    /// The endpoint was woken, or found that the value has changed (option notify); the value is
    /// that of a moment later. It takes one of the wake-ups, as every waiter does.
    #[zbus(signal)]
    pub async fn woken(emitter: &SignalEmitter<'_>, seq: u64, value: u32) -> zbus::Result<()>;

    /// The value.
    #[zbus(property(emits_changed_signal = "false"))]
    fn value(&self) -> Result<u32> {
        Ok(self.endpoint.futex()?.word()?.load()?)
    }
}
