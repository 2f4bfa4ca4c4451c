//! Operations on a set that may have to wait.
//!
//! The kernel has no event for a semaphore, only semop(2), which sleeps and takes. So a wait is that
//! very call on a thread ([`Blocked`]): the kernel's order among those who wait holds, and it counts
//! us as one of them. What the call has done is put down here, where the waiter's next attempt finds
//! it; if there is no next attempt, it is undone at once.

use std::sync::Arc;

use libc::c_int;
use rustix::io::Errno;

use super::{
    Object,
    set::{self, Asked, NOWAIT, Sets, UNDO, VALUE_MAX},
    undo::{self, Held, Lease},
};
use crate::{
    Attempt, Error, Kind, Readiness, Result,
    blocked::{Blocked, Ended, Taken},
    leases::Lent,
    shape::{self, SemaphoreOperation},
};

/// What calls of semop(2) on threads have come to, until their waiters fetch it.
type Outcomes = Taken<(Wanted, Outcome)>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    operations: Vec<SemaphoreOperation>,
    on_lease: bool,
}

#[derive(Debug)]
enum Outcome {
    Done,
    OnLease(Lease),
    /// EAGAIN of an operation with IPC_NOWAIT.
    Refused,
    /// The thread could not get an undo list of its own.
    NoList(Errno),
}

fn fetch(outcomes: &Outcomes, wanted: &Wanted) -> Option<Outcome> {
    outcomes.take(|(other, _)| (other == wanted).then_some(())).map(|(_, outcome)| outcome)
}

#[derive(Debug)]
pub struct Waits {
    set: Object<Sets>,
    outcomes: Arc<Outcomes>,
}

impl Waits {
    pub fn new(set: Object<Sets>) -> Self {
        Self { set, outcomes: Arc::default() }
    }

    pub fn set(&self) -> &Object<Sets> {
        &self.set
    }

    /// Does the operations, all or nothing.
    pub fn operate(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<()>> {
        check(operations)?;
        let wanted = Wanted { operations: operations.to_owned(), on_lease: false };
        match fetch(&self.outcomes, &wanted) {
            Some(Outcome::Refused) => return Err(self.refused()),
            Some(_) => return Ok(Attempt::Done(())),
            None => {}
        }
        match set::operate(self.set.id, operations, NOWAIT) {
            Ok(()) => Ok(Attempt::Done(())),
            Err(Errno::AGAIN) => self.wait(wanted),
            Err(errno) => Err(self.failed(errno, operations)),
        }
    }

    /// Does the operations, all or nothing, for as long as what is returned lives.
    pub fn acquire(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<shape::Held>> {
        // What a lease does is undone in any case.
        let operations: Vec<_> =
            operations.iter().map(|&(number, operation, flags)| (number, operation, flags & !UNDO)).collect();
        check(&operations)?;
        let held = |lease| Attempt::Done(Box::new(Held::new(lease, Lent::Set(self.set.id))) as shape::Held);
        let wanted = Wanted { operations, on_lease: true };
        match fetch(&self.outcomes, &wanted) {
            Some(Outcome::OnLease(lease)) => return Ok(held(lease)),
            Some(Outcome::NoList(errno)) => return Err(undo::unavailable(errno)),
            Some(Outcome::Refused | Outcome::Done) => return Err(self.refused()),
            None => {}
        }
        match undo::take(self.set.id, &wanted.operations)? {
            Ok(lease) => Ok(held(lease)),
            Err(Errno::AGAIN) => self.wait(wanted),
            Err(errno) => Err(self.failed(errno, &wanted.operations)),
        }
    }

    fn wait<T>(&self, wanted: Wanted) -> Result<Attempt<T>> {
        // Which of the operations it is that has to wait, only the kernel knows; here, all say no.
        if wanted.operations.iter().all(|(.., flags)| flags & NOWAIT != 0) {
            return Err(self.refused());
        }
        let (id, outcomes) = (self.set.id, self.outcomes.clone());
        let blocked = match wanted.on_lease {
            false => blocked(id, &outcomes, wanted.clone()),
            true => blocked_on_lease(id, &outcomes, wanted.clone()),
        };
        let give_back = move || {
            if let Some(Outcome::Done) = fetch(&outcomes, &wanted) {
                undo(id, &wanted.operations);
            }
            // A lease that was fetched is over with that.
        };
        Ok(Attempt::Wait(Readiness::Blocked(blocked.or_give_back(give_back))))
    }

    fn refused(&self) -> Error {
        Error::new(
            Kind::Busy,
            format!(
                "cannot operate on {}: an operation with IPC_NOWAIT would have to wait (EAGAIN)",
                self.set.name()
            ),
        )
    }

    fn failed(&self, errno: Errno, operations: &[SemaphoreOperation]) -> Error {
        self.set.operation_error(errno, format!("operate on {}", self.set.name()), operations)
    }
}

/// What the kernel would not check, or not explain.
fn check(operations: &[SemaphoreOperation]) -> Result<()> {
    if operations.is_empty() {
        return Err(Error::invalid("there must be at least one operation (semop(2))"));
    }
    for (number, _, flags) in operations {
        if flags & UNDO != 0 {
            return Err(Error::not_supported(
                "SEM_UNDO would undo the operation when the service ends, and not when the caller does: undo belongs \
                 to the process that calls semop(2). Use Acquire or AcquireSet, whose lease ends with its holder",
            ));
        }
        if flags & !NOWAIT != 0 {
            return Err(Error::invalid(format!(
                "the flags of the operation on semaphore {number} are {flags}; they may be 0 or {NOWAIT} (IPC_NOWAIT)"
            )));
        }
    }
    Ok(())
}

fn blocked(id: c_int, outcomes: &Arc<Outcomes>, wanted: Wanted) -> Blocked {
    Blocked::taking(outcomes, move || {
        let outcome = match set::operate(id, &wanted.operations, 0) {
            Ok(()) => Outcome::Done,
            Err(Errno::INTR) => return (Ended::Interrupted, None),
            Err(Errno::AGAIN) => Outcome::Refused,
            // The next attempt meets it as well, and says so.
            Err(_) => return (Ended::Done, None),
        };
        (Ended::Done, Some((wanted.clone(), outcome)))
    })
}

fn blocked_on_lease(id: c_int, outcomes: &Arc<Outcomes>, wanted: Wanted) -> Blocked {
    let (lease, thread) = undo::lease();
    let mut lease = Some(lease);
    let call = move || {
        let outcome = match undo::own_list().map(|()| set::operate(id, &wanted.operations, UNDO)) {
            Err(errno) => Outcome::NoList(errno),
            Ok(Err(Errno::INTR)) => return (Ended::Interrupted, None),
            Ok(Err(Errno::AGAIN)) => Outcome::Refused,
            Ok(Err(_)) => return (Ended::Done, None),
            Ok(Ok(())) => match lease.take() {
                Some(lease) => Outcome::OnLease(lease),
                // It is called until it is done, once.
                None => return (Ended::Done, None),
            },
        };
        (Ended::Done, Some((wanted.clone(), outcome)))
    };
    Blocked::taking(outcomes, call).then_stay(move || thread.stay())
}

/// How often it is tried to undo operations one by one, against others who change the values.
const TRIES: usize = 100;

/// Undoes operations whose waiter has gone: without waiting, and no further than to 0 or SEMVMX.
fn undo(id: c_int, operations: &[SemaphoreOperation]) {
    let inverse: Vec<SemaphoreOperation> = operations
        .iter()
        .rev()
        .filter(|(_, operation, _)| *operation != 0)
        .map(|(number, operation, _)| (*number, operation.saturating_neg(), 0))
        .collect();
    if inverse.is_empty() || set::operate(id, &inverse, NOWAIT).is_ok() {
        return;
    }
    for (number, wanted, _) in inverse {
        for _ in 0..TRIES {
            // It cannot be read, or was removed: then nothing can be undone.
            let Ok(value) = set::ask(id, number, Asked::Value) else { break };
            let possible = i32::from(wanted).clamp(-value, VALUE_MAX - value);
            // Within the bounds of `wanted`, an i16.
            let Ok(possible) = i16::try_from(possible) else { break };
            if possible == 0 || set::operate(id, &[(number, possible, 0)], NOWAIT).is_ok() {
                break;
            }
        }
    }
}
