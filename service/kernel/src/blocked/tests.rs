//! Every call is run and every wait ends, whenever it is given up.

use std::sync::mpsc;

use super::*;

const PATIENCE: Duration = Duration::from_secs(15);

fn pause() -> Ended {
    // SAFETY: a system call without pointers.
    unsafe { libc::pause() };
    Ended::Interrupted
}

fn give_up(running: &Running) {
    while !running.interrupt() {
        std::thread::yield_now();
    }
}

#[test]
fn a_call_that_was_given_up_ends() {
    let (ended, end) = mpsc::sync_channel(1);
    let running = start(Blocked::new(pause), move || _ = ended.send(())).expect("a thread");
    give_up(&running);
    end.recv_timeout(PATIENCE).expect("the end");
    assert_eq!(running.ended(), Some(Ended::Interrupted));
}

#[test]
fn a_call_that_is_done_says_so() {
    let (ended, end) = mpsc::sync_channel(1);
    let running = start(Blocked::new(|| Ended::Done), move || _ = ended.send(())).expect("a thread");
    end.recv_timeout(PATIENCE).expect("the end");
    assert_eq!(running.ended(), Some(Ended::Done));
}

#[test]
fn a_call_is_interrupted_although_the_signal_was_blocked_where_it_was_started() {
    // SAFETY: as in receive_signal.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
    a_call_that_was_given_up_ends();
}

#[test]
fn whoever_waits_hears_of_a_panic() {
    let (ended, end) = mpsc::sync_channel(1);
    let call = Blocked::new(|| panic!("a mechanism with a bug"));
    let running = start(call, move || _ = ended.send(())).expect("a thread");
    end.recv_timeout(PATIENCE).expect("the end");
    assert!(running.interrupt());
}

#[test]
fn what_was_taken_belongs_to_the_waiter_until_its_wait_is_over() {
    let taken = Arc::new(Taken::default());
    let (ended, end) = mpsc::sync_channel(1);
    let call = Blocked::taking(&taken, || (Ended::Done, Some(7)));
    let running = start(call, move || _ = ended.send(())).expect("a thread");
    end.recv_timeout(PATIENCE).expect("the end");
    let any = |_: &i32| Some(0);
    assert_eq!((taken.take(any), taken.free()), (None, 0), "somebody else took it");
    assert!(running.interrupt());
    assert_eq!(taken.free(), 1);
    assert_eq!(taken.take(any), Some(7));
}

#[test]
fn the_lowest_rank_is_taken_and_the_earliest_of_these() {
    let taken = Taken::default();
    for value in [(1, 'd'), (2, 'c'), (1, 'b'), (3, 'a')] {
        taken.put_back(value);
    }
    let next = || taken.take(|(rank, _)| (*rank < 3).then_some(*rank));
    assert_eq!([next(), next(), next(), next()], [Some((1, 'b')), Some((1, 'd')), Some((2, 'c')), None]);
    assert_eq!(taken.drain(), [(3, 'a')]);
}

/// Calls that end at once, from many threads, again and again: each must be run.
#[test]
fn no_call_is_forgotten() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    let (ended, end) = mpsc::sync_channel(1);
                    let started = start(Blocked::new(|| Ended::Done), move || _ = ended.send(()));
                    started.expect("a thread");
                    end.recv_timeout(PATIENCE).expect("a call was forgotten");
                }
            });
        }
    });
}

/// Interrupted at any moment, before, in or after the call: each must end.
#[test]
fn a_signal_at_any_moment_ends_the_wait() {
    for spin in 0..2_000 {
        let (ended, end) = mpsc::sync_channel(1);
        let running = start(Blocked::new(pause), move || _ = ended.send(())).expect("a thread");
        (0..spin % 200).for_each(|_| std::hint::spin_loop());
        give_up(&running);
        end.recv_timeout(PATIENCE).expect("the end");
    }
}

#[test]
fn what_a_call_took_goes_back_unless_it_is_claimed() {
    let run = |end: fn(&Running)| {
        let (given, back) = mpsc::sync_channel(1);
        let (ended, end_of_call) = mpsc::sync_channel(1);
        let call = Blocked::new(|| Ended::Done).or_give_back(move || _ = given.send(()));
        let running = start(call, move || _ = ended.send(())).expect("a thread");
        end_of_call.recv_timeout(PATIENCE).expect("the end");
        end(&running);
        assert!(running.interrupt(), "it has ended");
        back.try_recv().is_ok()
    };
    assert!(run(|_| {}), "nobody waited for it");
    assert!(!run(Running::claim), "its waiter has it");
}
