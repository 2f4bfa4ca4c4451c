//! Waits for words in shared memory, many of them: no wake-up is lost, and few threads wait.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use ipc_engine::wait::until;
use ipc_kernel::{
    Attempt, Kind, Readiness, Result,
    futex_word::{ANY, FutexWord, Outcome},
    semaphore_word::{self, SemaphoreWord},
    word_place::{Room, WordPlace},
};
use tokio::{sync::Mutex, time::timeout};

/// The threads are the process's: one test at a time counts them.
static ONE: Mutex<()> = Mutex::const_new(());

const PATIENCE: Duration = Duration::from_secs(60);

fn word() -> (WordPlace, FutexWord) {
    let place = WordPlace::fresh(&[0; 4], Room { what: "futex", bytes: 4, alignment: 4 }).unwrap();
    let (mapping, offset) = place.mapped().unwrap();
    (place, FutexWord { mapping, offset })
}

async fn wait(word: &FutexWord, expected: u32) -> Result<Outcome> {
    let wait = word.wait(expected, ANY);
    let outcome = finish(|| wait.attempt()).await?;
    wait.accept();
    Ok(outcome)
}

async fn finish<T>(mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    loop {
        match attempt()? {
            Attempt::Done(value) => return Ok(value),
            Attempt::Wait(readiness) => until(readiness).await?,
        }
    }
}

/// Begins to wait.
fn poll(until: &mut (impl Future + Unpin)) -> Poll<()> {
    Pin::new(until).poll(&mut Context::from_waker(Waker::noop())).map(drop)
}

/// The threads of this process that wait for words.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter(|task| std::fs::read(task.path().join("comm")).is_ok_and(|comm| comm == b"futex-waits\n"))
        .count()
}

#[tokio::test]
async fn no_wake_up_is_lost_where_the_value_stays() {
    const WAITERS: usize = 64;
    const EACH: u64 = 100;
    let _one = ONE.lock().await;
    // On several words, so that some are woken at the same moment.
    let words: Vec<_> = (0..4).map(|_| word()).collect();
    let ended = Arc::new(AtomicU64::new(0));
    let waiters: Vec<_> = (0..WAITERS)
        .map(|n| {
            let (word, ended) = (words[n % words.len()].1.clone(), ended.clone());
            tokio::spawn(async move {
                for _ in 0..EACH {
                    assert_eq!(wait(&word, 0).await.unwrap(), Outcome::Woken, "nobody changes the value");
                    ended.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let waker = tokio::task::spawn_blocking(move || {
        let mut woken = 0;
        while woken < WAITERS as u64 * EACH {
            woken += words.iter().map(|(_, word)| u64::from(word.wake(1, ANY).unwrap())).sum::<u64>();
        }
        woken
    });
    let woken = timeout(PATIENCE, waker).await.expect("wake-ups were lost: somebody waits for ever").unwrap();
    for waiter in waiters {
        timeout(PATIENCE, waiter).await.expect("a wake-up was lost").unwrap();
    }
    assert_eq!(ended.load(Ordering::SeqCst), woken);
}

#[tokio::test]
async fn ten_thousand_are_woken_by_a_change() {
    let _one = ONE.lock().await;
    let words: Vec<_> = (0..16).map(|_| word()).collect();
    let started = Arc::new(AtomicU64::new(0));
    let waiters: Vec<_> = (0..10_000)
        .map(|n| {
            let (word, started) = (words[n % words.len()].1.clone(), started.clone());
            tokio::spawn(async move {
                let wait = word.wait(0, ANY);
                let Attempt::Wait(readiness) = wait.attempt().unwrap() else { panic!("it must wait") };
                let until = until(readiness);
                started.fetch_add(1, Ordering::SeqCst);
                until.await.unwrap();
                let outcome = finish(|| wait.attempt()).await.unwrap();
                wait.accept();
                outcome
            })
        })
        .collect();
    while started.load(Ordering::SeqCst) < 10_000 {
        tokio::task::yield_now().await;
    }
    assert!((1..=96).contains(&threads()), "{} threads", threads());
    for (_, word) in &words {
        word.store(1).unwrap();
        word.wake(u32::MAX, ANY).unwrap();
    }
    for waiter in waiters {
        timeout(PATIENCE, waiter).await.expect("a waiter was not told").unwrap();
    }
}

#[tokio::test]
async fn what_is_beyond_the_limit_is_refused_and_named() {
    let _one = ONE.lock().await;
    let (_place, word) = word();
    let waits: Vec<_> = (0..96 * 127 + 1).map(|_| word.wait(0, ANY)).collect();
    let mut pending = Vec::new();
    for wait in &waits {
        let Attempt::Wait(readiness) = wait.attempt().unwrap() else { panic!("it must wait") };
        let mut until = until(readiness);
        if poll(&mut until).is_pending() {
            pending.push(until);
        }
    }
    assert_eq!(pending.len(), 96 * 127);
    let Attempt::Wait(readiness) = waits[0].attempt().unwrap() else { panic!("it must wait") };
    let refused = until(readiness).await.unwrap_err();
    assert_eq!(refused.kind, Kind::LimitExceeded);
    assert!(refused.text.contains("12192"), "{refused}");
    drop(pending.pop());
    let Attempt::Wait(readiness) = waits[0].attempt().unwrap() else { panic!("it must wait") };
    assert!(poll(&mut until(readiness)).is_pending(), "there is room again");
}

#[tokio::test]
async fn a_wake_up_of_a_wait_that_was_given_up_is_passed_on() {
    let _one = ONE.lock().await;
    let ((_place, word), (_other, parking)) = (word(), word());
    for _ in 0..200 {
        let (first, second) = (word.wait(0, ANY), word.wait(0, ANY));
        let Attempt::Wait(readiness) = first.attempt().unwrap() else { panic!("it must wait") };
        let mut giving_up = until(readiness);
        assert!(poll(&mut giving_up).is_pending());
        let waiter = tokio::spawn(async move {
            let outcome = finish(|| second.attempt()).await.unwrap();
            second.accept();
            outcome
        });
        // Moved there and back, they can be counted.
        while word.requeue(0, u32::MAX, &parking, 0).unwrap().1 < 2 {
            parking.requeue(0, u32::MAX, &word, 0).unwrap();
            tokio::task::yield_now().await;
        }
        parking.requeue(0, u32::MAX, &word, 0).unwrap();
        let waker = word.clone();
        let waker = tokio::task::spawn_blocking(move || waker.wake(1, ANY).unwrap());
        // Whether it comes before, at the same time, or to the other one: one wake-up, one waiter.
        drop((giving_up, first));
        assert_eq!(waker.await.unwrap(), 1);
        assert_eq!(timeout(PATIENCE, waiter).await.expect("the wake-up was lost").unwrap(), Outcome::Woken);
    }
}

#[tokio::test]
async fn semaphores_fill_a_thread_before_the_next_starts() {
    let _one = ONE.lock().await;
    let place = WordPlace::fresh(
        &semaphore_word::initial(0),
        Room { what: "semaphore", bytes: semaphore_word::SIZE, alignment: 8 },
    );
    let file = place.unwrap().hand_out().unwrap();
    let semaphore = SemaphoreWord::map(std::os::fd::AsFd::as_fd(&file)).unwrap();
    while threads() > 0 {
        tokio::task::yield_now().await;
    }
    let mut waits = Vec::new();
    for _ in 0..127 * 2 {
        let Attempt::Wait(readiness @ Readiness::Word(_)) = semaphore.wait().unwrap() else {
            panic!("it waits")
        };
        let mut until = until(readiness);
        assert!(poll(&mut until).is_pending());
        waits.push(until);
    }
    // They give themselves their names.
    timeout(PATIENCE, async {
        while threads() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("two threads");
    assert_eq!(threads(), 2);
}
