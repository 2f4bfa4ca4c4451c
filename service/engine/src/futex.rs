//! Futexes: the calls on a word, and the pump that says when it was woken.

use std::{num::NonZeroU32, sync::Arc};

use ipc_kernel::{
    Attempt, Error, Kind, Result,
    futex_word::{ANY, FutexWord, Outcome},
    shape::Futex,
};

use crate::{
    Engine, client::Call, endpoint::Endpoint, engine::blocking, events::Happening, pump::happened,
    wait::until,
};

/// The bits of a wait or a wake, as a caller gives them.
pub fn bits(bitset: u32) -> Result<NonZeroU32> {
    NonZeroU32::new(bitset).ok_or_else(|| {
        Error::invalid("the bitset must have at least one bit; 4294967295 meets every other set (futex(2))")
    })
}

impl Engine {
    /// Runs an operation on the word: at once, or where it may block on the blocking pool.
    pub async fn on_futex<T: Send + 'static>(
        &self,
        endpoint: &Arc<Endpoint>,
        operation: impl FnOnce(&FutexWord) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !endpoint.futex()?.may_block() {
            return operation(&endpoint.futex()?.word()?);
        }
        let endpoint = endpoint.clone();
        blocking(move || operation(&endpoint.futex()?.word()?)).await
    }

    /// Waits for a wake-up whose bits meet, as long as the value is the expected one.
    pub async fn futex_wait(
        &self,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        expected: u32,
        bits: NonZeroU32,
        timeout_ms: u32,
    ) -> Result<Outcome> {
        let begin = move |word: &FutexWord| {
            // What is not in memory yet is read from the disk here, and not in the wait.
            word.load()?;
            Ok(word.wait(expected, bits))
        };
        let wait = self.on_futex(endpoint, begin).await?;
        let outcome = match self.wait_on(call, endpoint, "wait for", timeout_ms, || wait.attempt()).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind == Kind::Timeout => match wait.outcome() {
                Some(outcome) => outcome,
                // Memory that was truncated wakes nobody.
                None => return Err(endpoint.futex()?.word().err().unwrap_or(error)),
            },
            Err(error) => return Err(error),
        };
        call.still_there()?;
        wait.accept();
        Ok(outcome)
    }

    /// Wakes some, and lets others wait for another futex instead.
    pub async fn futex_requeue(
        &self,
        endpoint: &Arc<Endpoint>,
        wake: u32,
        requeue: u32,
        target: Arc<Endpoint>,
        expected: u32,
    ) -> Result<(u32, u32)> {
        let move_on = move |word: &FutexWord| word.requeue(wake, requeue, &target.futex()?.word()?, expected);
        self.on_futex(endpoint, move_on).await
    }

    /// Repairs the lock of an owner who is dead. He is looked for in /proc.
    pub async fn futex_repair(&self, endpoint: &Arc<Endpoint>) -> Result<u32> {
        let endpoint = endpoint.clone();
        blocking(move || endpoint.futex()?.repair()).await
    }
}

/// Says `Woken` for as long as it lives (option `notify`); why it ended.
pub(crate) async fn notify(engine: Arc<Engine>, endpoint: Arc<Endpoint>) -> Error {
    let each = async {
        let load = |word: &FutexWord| word.load();
        let mut seen = engine.on_futex(&endpoint, load).await?;
        loop {
            woken(endpoint.futex()?, seen).await?;
            seen = engine.on_futex(&endpoint, load).await?;
            happened(&engine, &endpoint, Happening::Woken(seen));
            tokio::task::yield_now().await;
        }
    };
    match each.await {
        Err(error) => error,
        Ok(never) => never,
    }
}

/// Completes when the word was woken, or does not have the value that was seen last.
pub(crate) async fn woken(futex: &dyn Futex, seen: u32) -> Result<()> {
    let wait = futex.word()?.wait(seen, ANY);
    while let Attempt::Wait(readiness) = wait.attempt()? {
        until(readiness).await?;
    }
    wait.accept();
    Ok(())
}
