//! Watches on ranges of memory: what changed in them becomes events of their endpoint.
//!
//! The kernel has no event for a store through a mapping. So a watch looks again and again and
//! compares with a copy, at an interval, or whenever somebody who has changed the memory says so
//! by posting a semaphore or waking a futex. What changes and changes back between two looks is not seen.
//!
//! The copies of all watches together are no longer than one call's payload; that bounds their
//! memory, and what a look costs.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use ipc_kernel::{Address, Attempt, Dict, Error, Kind, Parameter, Parameters, Result, Type};

use crate::{
    Call, Client, Endpoint, Engine, client::Taken, events::Happening, flag::Flag, futex::woken,
    pump::happened, wait::until,
};

/// The options of WatchRange besides `with`.
const OPTIONS: &[Parameter] = &[INTERVAL];

const INTERVAL: Parameter = Parameter::new(
    "interval-ms",
    Type::U32 { min: 10, max: 86_400_000 },
    "Milliseconds between two looks at the memory",
)
.default("100");

/// The watches of an engine.
#[derive(Debug, Default)]
pub struct RangeWatches(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: u32,
    bytes: u64,
    /// By endpoint and number: how to end it.
    ends: HashMap<(u64, u32), Arc<Flag>>,
}

impl RangeWatches {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a watch of so many bytes.
    fn enter(self: &Arc<Self>, endpoint: u64, bytes: u64, most: u32, counted: Taken) -> Result<Place> {
        let mut table = self.table();
        if table.bytes.saturating_add(bytes) > most.into() {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "{} bytes of memory are watched already, and with {bytes} more they would be more than one call \
                     carries: the limit payload is {most}; end a watch with UnwatchRange, or watch less",
                    table.bytes
                ),
            ));
        }
        table.bytes += bytes;
        // Numbers that are in use are not given again, even after four thousand million watches.
        loop {
            table.last = table.last.wrapping_add(1).max(1);
            let key = (endpoint, table.last);
            if let Entry::Vacant(vacant) = table.ends.entry(key) {
                let end = vacant.insert(Arc::default()).clone();
                return Ok(Place { watches: self.clone(), key, end, bytes, _counted: counted });
            }
        }
    }
}

/// A watch's place in the table, given back when it ends.
#[derive(Debug)]
struct Place {
    watches: Arc<RangeWatches>,
    key: (u64, u32),
    /// Set, the watch ends.
    end: Arc<Flag>,
    bytes: u64,
    _counted: Taken,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.watches.table();
        table.ends.remove(&self.key);
        table.bytes -= self.bytes;
    }
}

/// When a watch looks.
enum Driver {
    Every(Duration),
    /// For each unit of this semaphore.
    Semaphore(Arc<Endpoint>),
    /// When this futex is woken, or no longer has the value that was seen last.
    Futex(Arc<Endpoint>, u32),
}

impl Driver {
    async fn of(engine: &Engine, options: &Dict, with: Option<Arc<Endpoint>>) -> Result<Self> {
        let parameters = Parameters::check(OPTIONS, &[], &Address::new("WatchRange"), options)?;
        let Some(endpoint) = with else {
            // The table has a default.
            let ms = parameters.u32(INTERVAL.key).unwrap_or(100);
            return Ok(Self::Every(Duration::from_millis(ms.into())));
        };
        if !options.is_empty() {
            return Err(Error::invalid(
                "give either interval-ms or with: a watch that is driven looks when it is told to",
            ));
        }
        if endpoint.kernel.semaphore().is_some() {
            return Ok(Self::Semaphore(endpoint));
        }
        if endpoint.kernel.futex().is_some() {
            let seen = engine.on_futex(&endpoint, |word| word.load()).await?;
            return Ok(Self::Futex(endpoint, seen));
        }
        Err(Error::invalid(format!(
            "with must be a semaphore or a futex, which {} is not: it has {}",
            endpoint.address,
            endpoint.shapes.iter().map(|shape| shape.name()).collect::<Vec<_>>().join(", ")
        )))
    }

    /// Completes when it is time to look.
    async fn next(&mut self, engine: &Engine) -> Result<()> {
        let (endpoint, told): (_, BoxFuture<'_, Result<()>>) = match self {
            Self::Every(interval) => {
                tokio::time::sleep(*interval).await;
                return Ok(());
            }
            Self::Semaphore(endpoint) => (&*endpoint, posted(endpoint).boxed()),
            Self::Futex(endpoint, seen) => {
                let endpoint = &*endpoint;
                let told = async move {
                    woken(endpoint.futex()?, *seen).await?;
                    // Before the look at the memory: who changes that later changes this later still.
                    *seen = engine.on_futex(endpoint, |word| word.load()).await?;
                    Ok(())
                };
                (endpoint, told.boxed())
            }
        };
        tokio::select! {
            () = endpoint.closed.wait() => {
                Err(Error::new(Kind::Closed, "the endpoint that drives the watch was closed"))
            }
            told = told => {
                // One that is told all the time must not starve the others.
                tokio::task::yield_now().await;
                told
            }
        }
    }
}

/// Takes a unit.
async fn posted(semaphore: &Endpoint) -> Result<()> {
    while let Attempt::Wait(readiness) = semaphore.semaphore()?.wait()? {
        until(readiness).await?;
    }
    Ok(())
}

/// A range, and what it held at the last look; nothing where it could not be read.
struct Looker {
    offset: u64,
    length: u64,
    seen: Option<Vec<u8>>,
}

impl Looker {
    /// The smallest range that holds all changes.
    fn compare(&mut self, now: Option<Vec<u8>>) -> Option<(u64, u64)> {
        let changed = match (&self.seen, &now) {
            (Some(seen), Some(now)) => changed(seen, now).map(|(at, length)| (self.offset + at, length)),
            (None, None) => None,
            // It has come or gone.
            _ => Some((self.offset, self.length)),
        };
        if changed.is_some() {
            self.seen = now;
        }
        changed
    }
}

fn changed(seen: &[u8], now: &[u8]) -> Option<(u64, u64)> {
    // Whole ranges are compared fast, and most of them are the same.
    if seen == now {
        return None;
    }
    let differ = |(a, b): (&u8, &u8)| a != b;
    let first = seen.iter().zip(now).position(differ)?;
    let last = seen.iter().zip(now).rposition(differ)?;
    Some((first as u64, (last - first + 1) as u64))
}

impl Engine {
    /// Watches a range of memory, until the endpoint is closed, the caller's connection ends, or
    /// [`Engine::unwatch_range`]. Says the watch's number. `with`: what drives it.
    pub async fn watch_range(
        self: &Arc<Self>,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        (offset, length): (u64, u64),
        options: Dict,
        with: Option<Arc<Endpoint>>,
    ) -> Result<u32> {
        endpoint.memory()?;
        let driver = Driver::of(self, &options, with).await?;
        if length == 0 {
            return Err(Error::invalid("the length of a watched range must be at least 1 byte"));
        }
        let watches = &self.counters.watches;
        let counted = watches.take(self.limits.watches, "there are too many watches", "watches")?;
        // What one call could not carry is refused with the text for that, before it adds up.
        self.payload(usize::try_from(length).unwrap_or(usize::MAX))?;
        let place = self.range_watches.enter(endpoint.id, length, self.limits.payload, counted)?;
        let seen = self.memory_read(endpoint, offset, length).await?;
        let looker = Looker { offset, length, seen: Some(seen) };
        let number = place.key.1;
        tokio::spawn(watch(self.clone(), endpoint.clone(), call.client.clone(), place, looker, driver));
        Ok(number)
    }

    /// Ends a watch.
    pub fn unwatch_range(&self, endpoint: &Endpoint, watch: u32) -> Result<()> {
        let end = self.range_watches.table().ends.get(&(endpoint.id, watch)).cloned();
        // Set already: it is just ending.
        if end.is_some_and(|end| end.set()) {
            return Ok(());
        }
        Err(Error::new(
            Kind::NotFound,
            format!("this endpoint has no watch {watch}; it has ended, or there never was one"),
        ))
    }
}

/// Watches until one of those has gone on whom the watch depends.
async fn watch(
    engine: Arc<Engine>,
    endpoint: Arc<Endpoint>,
    client: Arc<Client>,
    place: Place,
    mut looker: Looker,
    mut driver: Driver,
) {
    let number = place.key.1;
    let (offset, length) = (looker.offset, looker.length);
    let look = async {
        while driver.next(&engine).await.is_ok() {
            // What cannot be read has changed, too; Read says why.
            let now = engine.memory_read(&endpoint, offset, length).await.ok();
            if let Some((offset, length)) = looker.compare(now) {
                happened(&engine, &endpoint, Happening::RangeChanged { watch: number, offset, length });
            }
        }
    };
    tokio::select! {
        biased;
        () = endpoint.closed.wait() => {}
        () = client.gone.wait() => {}
        () = engine.stopping.wait() => {}
        () = place.end.wait() => {}
        // What drove it has gone, and nobody would be told otherwise.
        () = look => happened(&engine, &endpoint, Happening::RangeChanged { watch: number, offset, length: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_range_that_changed() {
        assert_eq!(changed(b"same", b"same"), None);
        assert_eq!(changed(b"0123456789", b"0x2345678y"), Some((1, 9)));
        assert_eq!(changed(b"0123456789", b"012345678x"), Some((9, 1)));
        let mut looker = Looker { offset: 100, length: 4, seen: Some(b"abcd".to_vec()) };
        assert_eq!(looker.compare(Some(b"abXd".to_vec())), Some((102, 1)));
        assert_eq!(looker.compare(Some(b"abXd".to_vec())), None);
        assert_eq!(looker.compare(None), Some((100, 4)), "it has gone");
        assert_eq!(looker.compare(None), None);
        assert_eq!(looker.compare(Some(b"abXd".to_vec())), Some((100, 4)), "it has come back");
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let watches = Arc::new(RangeWatches::default());
        let counter = Arc::<crate::client::Counter>::default();
        let enter =
            |bytes| watches.enter(7, bytes, 100, counter.take(9, "too many", "watches").expect("a place"));
        let one = enter(60).expect("there is room");
        let refused = enter(41).expect_err("there is no room");
        assert!(refused.text.contains("the limit payload is 100"), "{refused}");
        let two = enter(40).expect("there is just room");
        assert_ne!(one.key, two.key);
        drop(one);
        enter(60).expect("there is room again");
        assert_eq!(counter.value(), 1);
    }
}
