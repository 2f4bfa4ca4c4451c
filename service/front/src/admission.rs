//! Who may take how much: fair pools of what is scarce in the front.
//!
//! There is no cap on the rate of calls. What is capped is what is in flight, and a permit gives it
//! back when it is dropped, wherever that happens. While at most half of a pool is in use, a user may
//! have up to his own limit; beyond that he may hold at most one n-th of what the others leave, n
//! being the users who hold something, so that whoever comes next still finds room.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{limits::Limits, refusals::Refusal};

/// A user, or all connections together of which it is not known yet whose they are.
pub type User = Option<u32>;

/// One thing that is scarce.
pub struct Pool<K> {
    capacity: u64,
    used: u64,
    holders: HashMap<K, u64>,
}

/// Why nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The holder has as much as it may have.
    Holder,
    /// All holders together have nearly everything, and this one its share: so much.
    Share(u64),
}

impl<K: Hash + Eq + Clone> Pool<K> {
    pub fn new(capacity: u64) -> Self {
        Self { capacity, used: 0, holders: HashMap::new() }
    }

    /// Takes this amount, if the holder then has at most `limit` and at most its fair share.
    pub fn take(&mut self, holder: &K, amount: u64, limit: u64) -> Result<(), Full> {
        if amount == 0 {
            return Ok(());
        }
        let held = self.holders.get(holder).copied().unwrap_or(0);
        let wanted = held + amount;
        if wanted > limit {
            return Err(Full::Holder);
        }
        if self.used + amount > self.capacity / 2 {
            let holders = self.holders.len() as u64 + u64::from(held == 0);
            let share = (self.capacity - (self.used - held)) / holders.max(1);
            if wanted > share {
                return Err(Full::Share(share));
            }
        }
        self.used += amount;
        match self.holders.get_mut(holder) {
            Some(held) => *held = wanted,
            None => drop(self.holders.insert(holder.clone(), wanted)),
        }
        Ok(())
    }

    pub fn give_back(&mut self, holder: &K, amount: u64) {
        let Some(held) = self.holders.get_mut(holder) else { return };
        let amount = amount.min(*held);
        *held -= amount;
        self.used -= amount;
        if *held == 0 {
            self.holders.remove(holder);
        }
    }
}

/// What one permit holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    pub calls: u64,
    pub bytes: u64,
    pub fds: u64,
    pub workers: u64,
}

struct Pools {
    calls: Pool<User>,
    bytes: Pool<User>,
    fds: Pool<User>,
    workers: Pool<User>,
    connections: Pool<Arc<str>>,
}

pub struct Admission {
    pools: Mutex<Pools>,
    limits: Limits,
}

/// Holds its amounts until it is dropped.
pub struct Permit {
    admission: Arc<Admission>,
    user: User,
    connection: Option<Arc<str>>,
    amounts: Amounts,
}

impl Admission {
    pub fn new(limits: &Limits) -> Arc<Self> {
        let pools = Pools {
            calls: Pool::new(limits.calls.into()),
            bytes: Pool::new(limits.queued_bytes.into()),
            fds: Pool::new(limits.fds.into()),
            workers: Pool::new(limits.workers.into()),
            // Connections are bounded one by one only; the pool of calls bounds their sum.
            connections: Pool::new(u64::MAX),
        };
        Arc::new(Self { pools: Mutex::new(pools), limits: limits.clone() })
    }

    /// All of the amounts, or nothing and the reason. The calls count for the connection too.
    pub fn admit(
        self: &Arc<Self>,
        user: User,
        connection: Option<&Arc<str>>,
        wanted: Amounts,
    ) -> Result<Permit, Refusal> {
        let mut permit =
            Permit { admission: self.clone(), user, connection: None, amounts: Amounts::default() };
        let (limits, mut pools) = (&self.limits, self.pools());
        let result = (|| {
            let per_user = allowance(user, limits.calls_per_user, limits.calls);
            let taken = pools.calls.take(&user, wanted.calls, per_user);
            check(taken, "calls in flight", ("calls-per-user", "calls"), per_user, limits.calls)?;
            permit.amounts.calls = wanted.calls;
            if let Some(connection) = connection {
                let limit = limits.calls_per_connection.into();
                if pools.connections.take(connection, wanted.calls, limit).is_err() {
                    return Err(refusal("calls in flight on this connection", "calls-per-connection", limit));
                }
                permit.connection = Some(connection.clone());
            }

            let per_user = allowance(user, limits.queued_bytes_per_user, limits.queued_bytes);
            let keys = ("queued-bytes-per-user", "queued-bytes");
            let taken = pools.bytes.take(&user, wanted.bytes, per_user);
            check(taken, "bytes wait for the worker", keys, per_user, limits.queued_bytes)?;
            permit.amounts.bytes = wanted.bytes;

            let per_user = allowance(user, limits.fds_per_user, limits.fds);
            let taken = pools.fds.take(&user, wanted.fds, per_user);
            check(taken, "file descriptors on their way", ("fds-per-user", "fds"), per_user, limits.fds)?;
            permit.amounts.fds = wanted.fds;

            let taken = pools.workers.take(&user, wanted.workers, limits.workers.into());
            check(taken, "workers", ("workers", "workers"), limits.workers.into(), limits.workers)?;
            permit.amounts.workers = wanted.workers;
            Ok(())
        })();
        // Before the permit may be dropped: it locks the pools too.
        drop(pools);
        result.map(|()| permit)
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        // Nothing panics while it is locked; the numbers stay usable if something did.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those who are not known yet have a quarter of each pool, together.
fn allowance(user: User, per_user: u32, all: u32) -> u64 {
    if user.is_some() { per_user.into() } else { (all / 4).max(1).into() }
}

fn check(
    taken: Result<(), Full>,
    what: &str,
    (own, all): (&str, &str),
    per_user: u64,
    capacity: u32,
) -> Result<(), Refusal> {
    match taken {
        Ok(()) => Ok(()),
        Err(Full::Holder) => Err(refusal(what, own, per_user)),
        Err(Full::Share(share)) => {
            let help = format!("more than half of it is in use, and this user's share is {share}; try again");
            Err(Refusal::limit(&format!("too many {what}"), all, capacity.into(), &help))
        }
    }
}

fn refusal(what: &str, key: &str, value: u64) -> Refusal {
    Refusal::limit(&format!("too many {what}"), key, value, "wait for what is under way to end")
}

impl Permit {
    /// A part of what this permit holds, with a life of its own.
    pub fn split(&mut self, part: Amounts) -> Permit {
        let own = &mut self.amounts;
        let part = Amounts {
            calls: part.calls.min(own.calls),
            bytes: part.bytes.min(own.bytes),
            fds: part.fds.min(own.fds),
            workers: part.workers.min(own.workers),
        };
        own.calls -= part.calls;
        own.bytes -= part.bytes;
        own.fds -= part.fds;
        own.workers -= part.workers;
        Permit {
            admission: self.admission.clone(),
            user: self.user,
            connection: self.connection.clone(),
            amounts: part,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Amounts { calls, bytes, fds, workers } = self.amounts;
        if self.amounts == Amounts::default() {
            return;
        }
        let mut pools = self.admission.pools();
        if let Some(connection) = &self.connection {
            pools.connections.give_back(connection, calls);
        }
        pools.calls.give_back(&self.user, calls);
        pools.bytes.give_back(&self.user, bytes);
        pools.fds.give_back(&self.user, fds);
        pools.workers.give_back(&self.user, workers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Amounts = Amounts { calls: 1, bytes: 0, fds: 0, workers: 0 };

    fn admission() -> Arc<Admission> {
        let limits = Limits { calls_per_connection: 3, calls_per_user: 6, calls: 16, ..Limits::default() };
        Admission::new(&limits)
    }

    #[test]
    fn until_refused_then_released_then_accepted_again() {
        let admission = admission();
        let connection: Arc<str> = ":1.1".into();
        let admit = || admission.admit(Some(1), Some(&connection), CALL);
        let mut permits: Vec<_> = (0..3).map(|_| admit().expect("within the limit")).collect();
        let refusal = admit().err().expect("beyond the limit");
        assert_eq!(refusal.name, "LimitExceeded");
        assert!(refusal.text.contains("calls-per-connection is 3"), "{}", refusal.text);
        permits.pop();
        permits.push(admit().expect("released"));
        // Another connection of the same user has its own limit, and the user's.
        let other: Arc<str> = ":1.2".into();
        permits.extend((0..3).map(|_| admission.admit(Some(1), Some(&other), CALL).expect("own limit")));
        let third: Arc<str> = ":1.3".into();
        let refusal = admission.admit(Some(1), Some(&third), CALL).err().expect("the user's limit");
        assert!(refusal.text.contains("calls-per-user is 6"), "{}", refusal.text);
        drop(permits);
        drop(admission.admit(Some(1), Some(&third), CALL).expect("all released"));
        let pools = admission.pools();
        assert_eq!((pools.calls.used, pools.connections.used), (0, 0));
        assert!(pools.calls.holders.is_empty() && pools.connections.holders.is_empty());
    }

    #[test]
    fn every_kind_is_bounded_and_given_back() {
        let limits = Limits::default();
        let admission = Admission::new(&limits);
        let kinds = [
            (Amounts { bytes: 1 << 20, ..Amounts::default() }, 16, "queued-bytes-per-user is 16777216"),
            (Amounts { fds: 2, ..Amounts::default() }, 32, "fds-per-user is 64"),
            (Amounts { workers: 1, ..Amounts::default() }, 128, "workers is 128"),
        ];
        for (amounts, count, text) in kinds {
            let permits: Vec<_> =
                (0..count).map(|_| admission.admit(Some(1), None, amounts).expect(text)).collect();
            let refusal = admission.admit(Some(1), None, amounts).err().expect(text);
            assert!(refusal.text.contains(text), "{}", refusal.text);
            drop(permits);
            drop(admission.admit(Some(1), None, amounts).expect(text));
        }
    }

    #[test]
    fn beyond_the_half_everybody_gets_a_share() {
        let mut pool = Pool::new(100);
        // Alone, a user may have everything that its own limit allows.
        pool.take(&1, 80, 80).expect("alone");
        assert_eq!(pool.take(&1, 1, 80), Err(Full::Holder));
        // The next finds half of the rest, however small its limit would let the rest become.
        assert_eq!(pool.take(&2, 11, 80), Err(Full::Share(10)));
        pool.take(&2, 10, 80).expect("its share");
        assert_eq!(pool.take(&3, 4, 80), Err(Full::Share(3)));
        pool.take(&3, 3, 80).expect("its share");
        // Who has more than a share gets no more, and may go on once it is below.
        pool.give_back(&1, 40);
        assert_eq!(pool.take(&1, 1, 80), Err(Full::Share(29)));
        pool.give_back(&1, 12);
        pool.take(&1, 1, 80).expect("below its share");
    }

    #[test]
    fn a_refused_admission_holds_nothing() {
        let admission = admission();
        let connection: Arc<str> = ":1.1".into();
        let too_much = Amounts { calls: 1, bytes: 1, fds: 65, workers: 0 };
        assert!(admission.admit(Some(1), Some(&connection), too_much).is_err());
        assert!(admission.admit(Some(1), Some(&connection), Amounts { calls: 7, ..CALL }).is_err());
        let pools = admission.pools();
        assert_eq!(
            (pools.calls.used, pools.bytes.used, pools.fds.used, pools.connections.used),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn a_part_lives_on_its_own() {
        let admission = admission();
        let amounts = Amounts { calls: 1, bytes: 10, fds: 2, workers: 0 };
        let mut whole = admission.admit(Some(1), None, amounts).expect("small");
        let part = whole.split(Amounts { calls: 0, bytes: 10, fds: 2, workers: 9 });
        assert_eq!(part.amounts, Amounts { calls: 0, bytes: 10, fds: 2, workers: 0 });
        drop(part);
        assert_eq!(admission.pools().bytes.used, 0);
        assert_eq!(admission.pools().calls.used, 1);
        drop(whole);
        assert_eq!(admission.pools().calls.used, 0);
    }

    #[test]
    fn the_unknown_have_a_quarter_together() {
        let admission = admission();
        let permits: Vec<_> = (0..4).map(|_| admission.admit(None, None, CALL).expect("a quarter")).collect();
        assert!(admission.admit(None, None, CALL).is_err());
        drop(admission.admit(Some(1), None, CALL).expect("the rest is for the known"));
        drop(permits);
    }
}
