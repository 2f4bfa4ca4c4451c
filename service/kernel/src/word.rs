//! Waiting for 32-bit words in shared memory to change, many at once: futex_waitv(2).
//!
//! A [`WordWait`] names a word and the value that it has while there is nothing to do. The
//! engine waits for thousands of them on a few threads ([`wait_any`]).

use std::{
    any::Any,
    sync::{Arc, atomic::AtomicU32},
};

use rustix::io::Errno;

use crate::{Error, Result, error::Attempted, futex_word::Shared, guard::Mapping};

/// How many words one thread can wait for (FUTEX_WAITV_MAX).
pub const MAX_WORDS: usize = 128;

/// A word and the value that means "wait".
pub struct WordWait {
    pub mapping: Arc<Mapping>,
    pub offset: usize,
    pub expected: u32,
    /// Held for as long as the wait lasts; a semaphore counts its waiters with it.
    pub token: Option<Box<dyn Any + Send + Sync>>,
    /// Told how it ended, where a wake-up means something without a change of the value.
    pub exact: Option<Arc<Shared>>,
}

impl std::fmt::Debug for WordWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordWait")
            .field("offset", &self.offset)
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

/// One word for [`wait_any`].
#[derive(Clone)]
pub enum Watched {
    /// A word shared with other processes.
    Shared { mapping: Arc<Mapping>, offset: usize, expected: u32 },
    /// A word of this process, to interrupt the wait.
    Private { word: Arc<AtomicU32>, expected: u32 },
}

/// Blocks until one of the words is woken or does not have its expected value (at most
/// [`MAX_WORDS`]). Where several are woken at once, only the last one is named (futex_waitv(2)).
/// `Ok(None)`: interrupted or changed before the wait began; look at all of them.
pub fn wait_any(words: &[Watched]) -> Result<Option<usize>> {
    let mut waiters = Vec::with_capacity(words.len());
    for word in words {
        let mut waiter = rustix::thread::futex::Wait::new();
        let (address, expected, flags) = match word {
            Watched::Shared { mapping, offset, expected } => (
                mapping.address(*offset, 4)?.cast::<AtomicU32>().cast_const(),
                *expected,
                rustix::thread::futex::WaitFlags::SIZE_U32,
            ),
            Watched::Private { word, expected } => (
                Arc::as_ptr(word),
                *expected,
                rustix::thread::futex::WaitFlags::SIZE_U32 | rustix::thread::futex::WaitFlags::PRIVATE,
            ),
        };
        waiter.val = expected.into();
        waiter.uaddr = rustix::thread::futex::WaitPtr::new(address.cast_mut().cast());
        waiter.flags = flags;
        waiters.push(waiter);
    }
    // Every address lies in a mapping, or in an Arc, that `words` keeps alive for the call.
    let none = rustix::thread::futex::WaitvFlags::empty();
    match rustix::thread::futex::waitv(&waiters, none, None, rustix::thread::ClockId::Monotonic) {
        Ok(index) => Ok(Some(index)),
        // EFAULT: a peer truncated the memory of one of them; that one's next attempt finds out.
        Err(Errno::AGAIN | Errno::INTR | Errno::FAULT) => Ok(None),
        Err(errno) => Err(Error::from_errno(errno, "wait for words in shared memory")),
    }
}

/// Wakes up to `count` waiters on a shared word; says how many there were.
pub fn wake(mapping: &Mapping, offset: usize, count: u32) -> Result<u32> {
    let address = mapping.address(offset, 4)?;
    // SAFETY: the address is valid as long as `mapping` is, and aligned.
    let word = unsafe { AtomicU32::from_ptr(address.cast()) };
    let woken = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), count)
        .attempted(|| "wake the waiters of a word in shared memory")?;
    Ok(u32::try_from(woken).unwrap_or(u32::MAX))
}

/// Wakes a thread out of [`wait_any`] by its private word.
pub fn interrupt(word: &AtomicU32) {
    word.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    // Waking a private futex of our own cannot fail.
    let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::PRIVATE, 1);
}
