//! What named and unnamed POSIX semaphores have in common: their state in words, leases, and
//! whether they are stale.

use crate::{
    Attempt, Dict, Error, Kind, Result, Value, dict,
    leases::{self, Lent},
    semaphore_word::{SemaphoreWord, State},
    shape::{Held, SemaphoreOperation},
};

/// Takes one on a lease.
pub fn acquire(word: &SemaphoreWord, of: Lent, operations: &[SemaphoreOperation]) -> Result<Attempt<Held>> {
    let may_wait = match operations {
        [(0, -1, 0)] => true,
        [(0, -1, flags)] if i32::from(*flags) == libc::IPC_NOWAIT => false,
        _ => {
            return Err(Error::not_supported(
                "a POSIX semaphore is one semaphore, number 0, and one unit is taken at a time (sem_wait(3)); hold \
                 several leases, or use a set (sysvsem)",
            ));
        }
    };
    match word.wait()? {
        Attempt::Done(()) => {
            let lease = Lease { word: word.clone(), _counted: leases::Counted::new(of) };
            Ok(Attempt::Done(Box::new(lease)))
        }
        Attempt::Wait(readiness) if may_wait => Ok(Attempt::Wait(readiness)),
        Attempt::Wait(_) => Err(Error::new(Kind::Busy, "the semaphore's value is 0 (IPC_NOWAIT)")),
    }
}

/// One unit on a lease.
struct Lease {
    word: SemaphoreWord,
    _counted: leases::Counted,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A semaphore that is at its maximum or gone needs no post.
        let _ = self.word.post(1);
    }
}

/// Posts as sem_post(3), several times at once.
pub fn post(word: &SemaphoreWord, count: u32) -> Result<()> {
    if count == 0 {
        return Err(Error::invalid("the count of a post must be at least 1"));
    }
    word.post(count)
}

/// Whether it is taken, and nobody is known who could give it back. This service has it open for
/// others; of what it took for them, leases are known to be held.
pub fn is_stale(state: State, holders: &[Dict], of: Lent) -> bool {
    let own = i128::from(std::process::id());
    let another = holders.iter().any(|row| row.get("pid").and_then(Value::integer) != Some(own));
    state.value == 0 && !another && leases::count(of) == 0
}

/// The value is a C int for every caller; a larger one can only come from a program that broke it.
pub fn state_dict(state: State) -> Dict {
    dict! { "value" => as_int(state.value), "waiters" => state.waiters }
}

pub fn as_int(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
