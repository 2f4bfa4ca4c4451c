//! What this process holds on leases: a semaphore that is taken is not stale while one of its
//! units is on a lease that somebody holds.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::named_file::Identity;

/// A semaphore, whatever name it goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lent {
    /// A word in memory: the file, and the offset in it.
    Word(Identity, u64),
    /// A word in a System V segment: its id, and the offset in it.
    Segment(i32, u64),
    /// A System V set: its id.
    Set(i32),
}

/// One lease, counted until this is dropped.
#[derive(Debug)]
pub struct Counted(Lent);

static LEASES: Mutex<Option<HashMap<Lent, u32>>> = Mutex::new(None);

fn leases() -> MutexGuard<'static, Option<HashMap<Lent, u32>>> {
    LEASES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counted {
    pub fn new(of: Lent) -> Self {
        *leases().get_or_insert_default().entry(of).or_default() += 1;
        Self(of)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut leases = leases();
        let Some(table) = leases.as_mut() else { return };
        let Some(count) = table.get_mut(&self.0) else { return };
        *count -= 1;
        if *count == 0 {
            table.remove(&self.0);
        }
    }
}

/// How many leases of it are held here.
pub fn count(of: Lent) -> u32 {
    leases().as_ref().and_then(|table| table.get(&of)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_counted_until_they_are_dropped() {
        let of = Lent::Set(-7);
        let (one, two) = (Counted::new(of), Counted::new(of));
        assert_eq!(count(of), 2);
        drop(one);
        assert_eq!(count(of), 1);
        drop(two);
        assert_eq!(count(of), 0);
    }
}
