//! Waiting for thousands of words in shared memory without a thread each.
//!
//! futex_waitv(2) waits for up to 128 words; the first word of each thread is its own, by which
//! it is told that the list has changed. A thread ends with its last word.
//!
//! Where the value tells what happened (semaphores), a thread is filled before the next one starts.
//! Not so for waits that are *exact* (futexes): of words that are woken at once the call names only
//! one, and while a thread takes in a longer list, it waits for nothing. So each of these has a
//! thread of its own as long as there are not many (docs/decisions/0013-exact-waits.md).

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use ipc_kernel::{
    Error, Kind, Result,
    futex_word::{Outcome, Shared},
    guard::Mapping,
    word::{self, MAX_WORDS, Watched, WordWait},
};

use crate::flag::Flag;

/// How many words one thread waits for, beside its own.
const WORDS: usize = MAX_WORDS - 1;

/// How many threads there may be before exact waits share one.
const OWN_THREADS: usize = 64;

/// How many threads there may be.
const MAX_THREADS: usize = 96;

/// Completes when the word was woken or no longer has its expected value.
pub async fn changed(wait: WordWait) -> Result<()> {
    let registered = register(&wait)?;
    registered.entry.done.wait().await;
    match registered.entry.failed.get() {
        Some(error) => Err(error.clone()),
        None => Ok(()),
    }
    // `registered` goes first, then `wait` with its token: the word is watched no longer then.
}

struct Entry {
    watched: Watched,
    /// Who is told whether it was woken.
    exact: Option<Arc<Shared>>,
    done: Flag,
    /// Set before `done` when the kernel refuses to wait.
    failed: OnceLock<Error>,
}

/// One thread and the words that it waits for.
#[derive(Default)]
struct Worker {
    control: Arc<AtomicU32>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    ended: bool,
    /// Has had an exact wait.
    exact: bool,
    waiting: HashMap<u64, Arc<Entry>>,
}

impl Worker {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let (control, waiting): (u32, Vec<_>) = {
                let mut entries = self.entries();
                if entries.waiting.is_empty() {
                    entries.ended = true;
                    return;
                }
                (self.control.load(Ordering::SeqCst), entries.to_wait_for())
            };
            let mut words = vec![Watched::Private { word: self.control.clone(), expected: control }];
            words.extend(waiting.iter().map(|entry| entry.watched.clone()));
            match word::wait_any(&words) {
                Ok(Some(0)) => {}
                Ok(Some(index)) => self.woken(&waiting[index - 1]),
                // Something changed before the wait began, or memory went away: look at each.
                Ok(None) => {
                    changed_among(&waiting);
                }
                // A word whose memory is gone fails the wait for all; without one, no other wait would do better.
                Err(error) if changed_among(&waiting) == 0 => waiting.iter().for_each(|entry| {
                    let _ = entry.failed.set(error.clone());
                    entry.done.set();
                }),
                Err(_) => {}
            }
        }
    }

    /// A wake-up that came to a wait which was given up is passed on: to another wait for the word here, for
    /// which this thread may not have waited at that moment, or else by the kernel.
    fn woken(&self, entry: &Entry) {
        if entry.end(Outcome::Woken) {
            return;
        }
        let entries = self.entries();
        let heirs = entries.waiting.values().filter(|other| !other.done.is_set() && entry.same_word(other));
        if !heirs.into_iter().any(|heir| heir.end(Outcome::Woken))
            && let Some(exact) = &entry.exact
        {
            exact.pass_on();
        }
    }
}

impl Entries {
    /// Those that have not ended. Where one has, and its caller has not yet looked at the value, the
    /// others for the same word come after him: a post is for one of them, not for a crowd.
    fn to_wait_for(&self) -> Vec<Arc<Entry>> {
        let ended = |entry: &&Arc<Entry>| entry.is_lost() || entry.done.is_set();
        let before: HashSet<_> =
            self.waiting.values().filter(ended).filter_map(|entry| entry.turn()).collect();
        let next = self.waiting.values().filter(|entry| !ended(entry));
        next.filter(|entry| entry.turn().is_none_or(|word| !before.contains(&word))).cloned().collect()
    }
}

/// Ends the waits for words that have changed, one for each word where they take turns; says how
/// many those are.
fn changed_among(waiting: &[Arc<Entry>]) -> usize {
    let mut had = HashSet::new();
    let mut turn = |entry: &Entry| {
        entry.turn().is_none_or(|word| !had.contains(&word)) && {
            let changed = entry.end_if_changed();
            had.extend(entry.turn().filter(|_| changed));
            changed
        }
    };
    waiting.iter().filter(|entry| turn(entry)).count()
}

impl Entry {
    fn of(wait: &WordWait) -> Self {
        Self {
            watched: Watched::Shared {
                mapping: wait.mapping.clone(),
                offset: wait.offset,
                expected: wait.expected,
            },
            exact: wait.exact.clone(),
            done: Flag::new(),
            failed: OnceLock::new(),
        }
    }

    /// False: it was woken for nobody.
    fn end(&self, outcome: Outcome) -> bool {
        let taken = self.exact.as_ref().is_none_or(|exact| exact.settle(outcome));
        self.done.set();
        taken
    }

    /// Whether both are exact waits for one word, with one value.
    fn same_word(&self, other: &Self) -> bool {
        let place = |entry: &Self| match &entry.watched {
            Watched::Shared { mapping, offset, expected } if entry.exact.is_some() => {
                Some((Arc::as_ptr(mapping), *offset, *expected))
            }
            _ => None,
        };
        place(self).is_some() && place(self) == place(other)
    }

    /// The word for which waits take turns: the value tells each of them what there is.
    fn turn(&self) -> Option<(*const Mapping, usize)> {
        match &self.watched {
            Watched::Shared { mapping, offset, .. } if self.exact.is_none() => {
                Some((Arc::as_ptr(mapping), *offset))
            }
            _ => None,
        }
    }

    /// Says whether it ended.
    fn end_if_changed(&self) -> bool {
        let changed = match &self.watched {
            Watched::Shared { mapping, offset, expected } => match mapping.load(*offset, 4) {
                Ok(value) => value != u64::from(*expected),
                // Memory that is gone: the next attempt says so.
                Err(_) => return self.is_lost(),
            },
            Watched::Private { word, expected } => word.load(Ordering::SeqCst) != *expected,
        };
        if changed {
            let _ = self.end(Outcome::Changed);
        }
        changed
    }

    /// Whether its memory was truncated; then what is mapped in its place is not waited for.
    fn is_lost(&self) -> bool {
        matches!(&self.watched, Watched::Shared { mapping, .. } if mapping.lost()) && {
            self.done.set();
            true
        }
    }
}

/// A place in a worker's list, given up on drop.
struct Registered {
    worker: Arc<Worker>,
    id: u64,
    entry: Arc<Entry>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.entries().waiting.remove(&self.id);
        word::interrupt(&self.worker.control);
    }
}

fn register(wait: &WordWait) -> Result<Registered> {
    static WORKERS: Mutex<Vec<Arc<Worker>>> = Mutex::new(Vec::new());
    static NEXT: AtomicU64 = AtomicU64::new(0);

    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let entry = Arc::new(Entry::of(wait));
    let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    workers.retain(|worker| !worker.entries().ended);
    // A worker may end while one is looked for.
    while let Some(worker) = choose(&workers, entry.exact.is_some()) {
        let mut entries = worker.entries();
        if !entries.ended {
            entries.exact |= entry.exact.is_some();
            entries.waiting.insert(id, entry.clone());
            drop(entries);
            word::interrupt(&worker.control);
            return Ok(Registered { worker: worker.clone(), id, entry });
        }
    }
    if workers.len() >= MAX_THREADS {
        return Err(Error::new(
            Kind::LimitExceeded,
            format!(
                "there are {} waits for words in shared memory ({MAX_THREADS} threads with {WORDS} words each), the \
                 limit of this process; end some of them",
                MAX_THREADS * WORDS
            ),
        ));
    }
    let worker = Arc::new(Worker::default());
    {
        let mut entries = worker.entries();
        entries.exact = entry.exact.is_some();
        entries.waiting.insert(id, entry.clone());
    }
    let run = worker.clone();
    std::thread::Builder::new()
        .name("futex-waits".into())
        .stack_size(64 * 1024)
        .spawn(move || run.run())
        .map_err(|error| {
            Error::new(
                Kind::LimitExceeded,
                format!("cannot start a thread to wait on: {error}; raise RLIMIT_NPROC"),
            )
        })?;
    workers.push(worker.clone());
    Ok(Registered { worker, id, entry })
}

/// The thread that another wait is to go to; none: a new one, if there may be one. One that has
/// ended meanwhile does not count.
fn choose(workers: &[Arc<Worker>], exact: bool) -> Option<&Arc<Worker>> {
    let state = |worker| {
        let entries = Worker::entries(worker);
        (!entries.ended).then_some((entries.waiting.len(), entries.exact))
    };
    let alive: Vec<_> = workers
        .iter()
        .filter_map(|worker| state(worker).map(|(load, exact)| (worker, load, exact)))
        .collect();
    let places = alive.iter().filter(|(_, load, _)| *load < WORDS);
    let chosen = if exact {
        // One that is about to end has no other words, and may go on.
        let may_start = alive.len() < OWN_THREADS;
        places.min_by_key(|(_, load, _)| *load).filter(|(_, load, _)| *load == 0 || !may_start)
    } else {
        // Its coming and going would disturb exact waits.
        let may_start = alive.len() < MAX_THREADS;
        places.min_by_key(|(.., exact)| *exact).filter(|(.., exact)| !exact || !may_start)
    };
    chosen.map(|(worker, ..)| *worker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{num::NonZeroU32, os::fd::AsFd};

    use ipc_kernel::{
        Attempt, Readiness,
        futex_word::{FutexWait, FutexWord},
    };
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    /// A wait, and its entry in a worker's list.
    fn waits(word: &FutexWord) -> (FutexWait, Arc<Entry>) {
        let wait = word.wait(0, NonZeroU32::MAX);
        let Ok(Attempt::Wait(Readiness::Word(on))) = wait.attempt() else { panic!("the word is 0") };
        (wait, Arc::new(Entry::of(&on)))
    }

    #[test]
    fn what_comes_to_a_wait_that_was_given_up_goes_to_the_next() {
        let file = memfd_create("futex", MemfdFlags::empty()).unwrap();
        ftruncate(&file, 4096).unwrap();
        let mapping = Arc::new(Mapping::new(file.as_fd(), 0, 4096, true).unwrap());
        let word = |offset| FutexWord { mapping: mapping.clone(), offset };
        let worker = Worker::default();
        let (given_up, before) = waits(&word(0));
        let (also_given_up, between) = waits(&word(0));
        let (waiting, next) = waits(&word(0));
        let (elsewhere, other) = waits(&word(4));
        worker.entries().waiting =
            [between, next, other].into_iter().enumerate().map(|(id, entry)| (id as u64, entry)).collect();
        drop((given_up, also_given_up));
        // The thread still waited for the first of them when the wake-up came.
        worker.woken(&before);
        assert_eq!(waiting.outcome(), Some(Outcome::Woken));
        assert_eq!(elsewhere.outcome(), None);
    }
}
