//! The word in which a POSIX semaphore lives, as glibc lays it out on 64-bit machines.
//!
//! `sem_t` has 32 bytes; the first eight are one number that is only changed atomically: the value
//! in its low half, the number of waiters in its high half. The next four say that the semaphore
//! is shared between processes. A waiter counts itself in, looks once more, and sleeps on the low
//! half as a futex; a poster adds to the value and, if anybody is counted in, wakes as many as it
//! added. Whoever follows the same steps can meet programs that call sem_post(3) and sem_wait(3).

use std::{os::fd::BorrowedFd, sync::Arc};

use crate::{
    Attempt, Error, Kind, Readiness, Result,
    guard::Mapping,
    word::{self, WordWait},
};

/// sizeof(sem_t).
pub const SIZE: usize = 32;

/// SEM_VALUE_MAX (sem_overview(7)).
pub const VALUE_MAX: u32 = i32::MAX as u32;

/// Where the number with value and waiters is.
const DATA: usize = 0;

/// Where the half with the value is.
const VALUE: usize = if cfg!(target_endian = "big") { 4 } else { 0 };

/// Where its mark is.
const MARK: usize = 8;

/// The mark of a semaphore that processes share; waiters of any other are invisible to the kernel
/// outside their process.
const SHARED: u32 = 128;

const WAITER: u64 = 1 << 32;

/// How often a change is tried against others who change the word at the same moment.
const MAX_TRIES: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub value: u32,
    pub waiters: u32,
}

impl From<u64> for State {
    fn from(data: u64) -> Self {
        Self { value: data as u32, waiters: (data >> 32) as u32 }
    }
}

/// The bytes of a new semaphore.
pub fn initial(value: u32) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(&u64::from(value).to_ne_bytes());
    bytes[MARK..MARK + 4].copy_from_slice(&SHARED.to_ne_bytes());
    bytes
}

/// The state in the bytes of a file, if they are those of a shared semaphore.
pub fn parse(bytes: &[u8]) -> Option<State> {
    let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
    let [data, mark, ..] = bytes.as_chunks::<8>().0 else { return None };
    let mark = mark.first_chunk::<4>()?;
    (u32::from_ne_bytes(*mark) == SHARED).then(|| u64::from_ne_bytes(*data).into())
}

/// A semaphore in mapped memory.
#[derive(Debug, Clone)]
pub struct SemaphoreWord {
    mapping: Arc<Mapping>,
    /// Where it begins in the mapping, a multiple of 8.
    start: usize,
}

impl SemaphoreWord {
    /// Maps the semaphore at the start of a file that is open for reading and writing.
    pub fn map(file: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self { mapping: Arc::new(Mapping::new(file, 0, SIZE, true)?), start: 0 })
    }

    /// The memory of a semaphore, whether there is one or not.
    pub fn within(mapping: Arc<Mapping>, start: usize) -> Self {
        Self { mapping, start }
    }

    /// Whether there is one: processes share it, and it was not destroyed.
    pub fn is_marked(&self) -> Result<bool> {
        Ok(self.mapping.load(self.start + MARK, 4)? == u64::from(SHARED))
    }

    /// sem_init(3), with pshared.
    pub fn initialise(&self, value: u32) -> Result<()> {
        self.mapping.swap(self.start + DATA, 8, value.into())?;
        self.mapping.swap(self.start + MARK, 4, SHARED.into()).map(drop)
    }

    /// sem_destroy(3), after which there is none.
    pub fn destroy(&self) -> Result<()> {
        self.mapping.swap(self.start + MARK, 4, 0)?;
        self.mapping.swap(self.start + DATA, 8, 0).map(drop)
    }

    pub fn state(&self) -> Result<State> {
        Ok(self.mapping.load(self.start + DATA, 8)?.into())
    }

    /// Adds `count`, all or nothing, and wakes as many waiters.
    pub fn post(&self, count: u32) -> Result<()> {
        let posted = self.change(|data| {
            let value = State::from(data).value;
            let fits = value.checked_add(count).is_some_and(|sum| sum <= VALUE_MAX);
            fits.then(|| data + u64::from(count))
        })?;
        let before = posted.map_err(|found| {
            Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot add {count} to the semaphore, which has the value {}: the sum would be larger \
                     than {VALUE_MAX} (SEM_VALUE_MAX, EOVERFLOW)",
                    found.value
                ),
            )
        })?;
        self.wake(count.min(before.waiters))
    }

    /// Takes one, or says how to wait for one.
    pub fn wait(&self) -> Result<Attempt<()>> {
        if self.take()? {
            return Ok(Attempt::Done(()));
        }
        let waiter = Waiter::count_in(self.clone())?;
        // Who posted before we were counted did not wake us, but we see what was posted.
        if self.take()? {
            return Ok(Attempt::Done(()));
        }
        Ok(Attempt::Wait(Readiness::Word(WordWait {
            mapping: self.mapping.clone(),
            offset: self.start + VALUE,
            expected: 0,
            token: Some(Box::new(waiter)),
            exact: None,
        })))
    }

    fn take(&self) -> Result<bool> {
        Ok(self.change(|data| (State::from(data).value > 0).then(|| data - 1))?.is_ok())
    }

    /// The kernel counts how many to wake in an int.
    fn wake(&self, count: u32) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        word::wake(&self.mapping, self.start + VALUE, count.min(VALUE_MAX)).map(drop)
    }

    /// Changes the number with what `with` makes of it; `Err` with the state where that is nothing.
    fn change(&self, with: impl Fn(u64) -> Option<u64>) -> Result<Result<State, State>> {
        let mut found = self.mapping.load(self.start + DATA, 8)?;
        for _ in 0..MAX_TRIES {
            let Some(desired) = with(found) else {
                return Ok(Err(found.into()));
            };
            let (done, now) = self.mapping.compare_exchange(self.start + DATA, 8, found, desired)?;
            if done {
                return Ok(Ok(found.into()));
            }
            found = now;
        }
        Err(Error::new(
            Kind::Busy,
            format!("other processes changed the semaphore {MAX_TRIES} times between reading and writing it"),
        ))
    }
}

/// One waiter, counted in for as long as this lives.
struct Waiter {
    semaphore: SemaphoreWord,
}

impl Waiter {
    fn count_in(semaphore: SemaphoreWord) -> Result<Self> {
        semaphore.change(|data| data.checked_add(WAITER))?.map_err(|_| {
            Error::new(Kind::LimitExceeded, "the semaphore counts 4294967295 waiters, as many as it can")
        })?;
        Ok(Self { semaphore })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // A semaphore that was truncated away has no waiters to count, and no other either.
        let Ok(Ok(before)) = self.semaphore.change(|data| data.checked_sub(WAITER)) else {
            return;
        };
        // The wake-up for what is there may have come to this waiter, which may not take it.
        if before.value > 0 && before.waiters > 1 {
            let _ = self.semaphore.wake(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_bytes_that_it_writes_and_no_others() {
        assert_eq!(parse(&initial(7)), Some(State { value: 7, waiters: 0 }));
        assert_eq!(parse(&[0; SIZE]), None, "not shared between processes");
        assert_eq!(parse(&initial(7)[..16]), None, "a semaphore of a 32-bit program");
        assert_eq!(State::from(3 * WAITER + 2), State { value: 2, waiters: 3 });
    }
}
