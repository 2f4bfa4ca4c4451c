//! Unnamed POSIX semaphores, sem_init(3): a `sem_t` at an offset in shared memory.

use std::os::fd::OwnedFd;

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Kind, Parameters, Result, Value, dict, leases,
    semaphore_lease::{self, as_int, state_dict},
    semaphore_word::{self, SemaphoreWord},
    shape::{Held, Semaphore, SemaphoreOperation, Shape},
    word_place::{Room, WordPlace},
};

/// The key for POSIX shared memory; `name` is a semaphore's own.
pub const SHM: &str = "shm";

const ROOM: Room = Room { what: "semaphore", bytes: semaphore_word::SIZE, alignment: 8 };

#[derive(Debug)]
pub struct PlacedSemaphore(WordPlace);

impl PlacedSemaphore {
    /// sem_init(3) with pshared.
    pub fn create(parameters: &Parameters) -> Result<Self> {
        let placed = Self::open(parameters)?;
        let word = placed.word()?;
        if word.is_marked()? {
            return Err(Error::new(
                Kind::Exists,
                format!(
                    "there is a semaphore at {} already; Attach uses it, and Remove makes it none (sem_destroy(3))",
                    placed.address()
                ),
            ));
        }
        // The table has a default.
        word.initialise(parameters.u32("value").unwrap_or(1))?;
        Ok(placed)
    }

    pub fn attach(parameters: &Parameters) -> Result<Self> {
        let placed = Self::open(parameters)?;
        placed.marked()?;
        Ok(placed)
    }

    fn open(parameters: &Parameters) -> Result<Self> {
        let place = WordPlace::open(parameters, SHM, ROOM)?;
        if place.may_block() {
            return Err(Error::not_supported(
                "the file is not in memory: fetching its page from a disk would stop the service in mid-operation; use \
                 a file on a tmpfs, a memfd, POSIX shared memory or a System V segment",
            ));
        }
        Ok(Self(place))
    }

    /// The memory of the semaphore, mapped anew where it had been truncated away.
    fn word(&self) -> Result<SemaphoreWord> {
        let (mapping, start) = self.0.mapped()?;
        Ok(SemaphoreWord::within(mapping, start))
    }

    /// The semaphore, if it is one.
    fn marked(&self) -> Result<SemaphoreWord> {
        let word = self.word()?;
        match word.is_marked()? {
            true => Ok(word),
            false => Err(Error::new(
                Kind::NotFound,
                format!(
                    "there is no semaphore at {} that processes share; Create makes one, or sem_init(3) with pshared 1",
                    self.address()
                ),
            )),
        }
    }

    /// The same of an endpoint, whose semaphore was there.
    fn still(&self) -> Result<SemaphoreWord> {
        self.marked().map_err(|error| match error.kind {
            Kind::NotFound => Error::new(
                Kind::Gone,
                format!("the semaphore at {} is none any more: its memory was overwritten", self.address()),
            ),
            _ => error,
        })
    }
}

impl Endpoint for PlacedSemaphore {
    fn address(&self) -> Address {
        self.0.address("posixsem", SHM)
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Semaphore]
    }

    fn inspect(&self) -> Result<Dict> {
        let state = self.still()?.state()?;
        let mut inspected = self.0.inspect()?;
        let holders = match inspected.get("holders") {
            Some(Value::Dicts(holders)) => holders.as_slice(),
            _ => &[],
        };
        let stale = semaphore_lease::is_stale(state, holders, self.0.lent());
        inspected.extend(state_dict(state));
        inspected.extend(dict! { "leases" => leases::count(self.0.lent()), "stale" => stale });
        Ok(inspected)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        self.0.hand_out()
    }

    /// sem_destroy(3), which lets Create make another one in its place.
    fn remove(&self) -> Result<()> {
        let word = self.still()?;
        let waiters = word.state()?.waiters;
        if waiters > 0 {
            return Err(Error::new(
                Kind::Busy,
                format!(
                    "cannot remove the semaphore at {}: {waiters} threads wait for it (those that were killed stay \
                     counted)",
                    self.address()
                ),
            ));
        }
        word.destroy()
    }

    fn semaphore(&self) -> Option<&dyn Semaphore> {
        Some(self)
    }
}

impl Semaphore for PlacedSemaphore {
    fn post(&self, count: u32) -> Result<()> {
        semaphore_lease::post(&self.still()?, count)
    }

    fn wait(&self) -> Result<Attempt<()>> {
        self.still()?.wait()
    }

    fn value(&self) -> Result<i32> {
        Ok(as_int(self.still()?.state()?.value))
    }

    fn acquire(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<Held>> {
        semaphore_lease::acquire(&self.still()?, self.0.lent(), operations)
    }
}
