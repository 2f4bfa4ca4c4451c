//! Waiting for thousands of words in shared memory without a thread each.
//!
//! futex_waitv(2) waits for up to 128 words; the first word of each thread is its own, by which
//! it is told that the list has changed. A thread ends with its last word.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use ipc_kernel::{
    Error, Kind, Result,
    word::{self, MAX_WORDS, Watched, WordWait},
};

use crate::flag::Flag;

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
                entries.waiting.retain(|_, entry| !entry.done.is_set());
                if entries.waiting.is_empty() {
                    entries.ended = true;
                    return;
                }
                (self.control.load(Ordering::SeqCst), entries.waiting.values().cloned().collect())
            };
            let mut words = vec![Watched::Private { word: self.control.clone(), expected: control }];
            words.extend(waiting.iter().map(|entry| entry.watched.clone()));
            match word::wait_any(&words) {
                Ok(Some(0)) => {}
                Ok(Some(index)) => {
                    waiting[index - 1].done.set();
                }
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
}

/// Ends the waits for words that have changed; says how many those are.
fn changed_among(waiting: &[Arc<Entry>]) -> usize {
    waiting.iter().filter(|entry| has_changed(entry)).inspect(|entry| _ = entry.done.set()).count()
}

fn has_changed(entry: &Entry) -> bool {
    match &entry.watched {
        Watched::Shared { mapping, offset, expected } => {
            // Memory that is gone counts: the next attempt says so.
            mapping.load(*offset, 4).map_or(true, |value| value != u64::from(*expected))
        }
        Watched::Private { word, expected } => word.load(Ordering::SeqCst) != *expected,
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
    let entry = Arc::new(Entry {
        watched: Watched::Shared {
            mapping: wait.mapping.clone(),
            offset: wait.offset,
            expected: wait.expected,
        },
        done: Flag::new(),
        failed: OnceLock::new(),
    });
    let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    workers.retain(|worker| !worker.entries().ended);
    for worker in &*workers {
        let mut entries = worker.entries();
        if !entries.ended && entries.waiting.len() < MAX_WORDS - 1 {
            entries.waiting.insert(id, entry.clone());
            drop(entries);
            word::interrupt(&worker.control);
            return Ok(Registered { worker: worker.clone(), id, entry });
        }
    }
    let worker = Arc::new(Worker::default());
    worker.entries().waiting.insert(id, entry.clone());
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
