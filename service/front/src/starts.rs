//! How often workers are started for a user: a storm of connections or a worker that dies over and
//! over costs its user, and nobody else. What is started to make a mount is counted in the same way, for itself.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{admission::User, limits::Limits, refusals::Refusal};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// How long nothing is started for a user whose workers die over and over.
const PAUSE: Duration = Duration::from_secs(60);

/// So many times the workers of a second may be started at once, by who started none for a while: a user
/// may be several identities, and each is a worker.
const BURST: u32 = 4;

/// Users that are remembered before those without recent starts are forgotten.
const USERS: usize = 1024;

#[derive(Default)]
pub struct Starts {
    /// None: the herald.
    users: HashMap<User, History>,
}

#[derive(Default)]
struct History {
    /// When the starts so far would have been over, had they been made one by one at the rate.
    over: Option<Instant>,
    crashes: VecDeque<Instant>,
    paused: Option<Instant>,
}

impl Starts {
    /// Counts a start, or says why there is none.
    pub fn start(&mut self, user: User, limits: &Limits, now: Instant) -> Result<(), Refusal> {
        if self.users.len() >= USERS {
            self.users.retain(|_, history| history.is_recent(now));
        }
        let history = self.users.entry(user).or_default();
        if let Some(paused) = history.paused {
            let rest = PAUSE.saturating_sub(now.duration_since(paused));
            if !rest.is_zero() {
                return Err(Refusal::unavailable(format!(
                    "the process {} ended unexpectedly {} times within a minute (worker-crashes); none is started for another {} s",
                    whose(user),
                    limits.worker_crashes,
                    rest.as_secs() + 1,
                )));
            }
            history.paused = None;
        }
        let over = history.over.map_or(now, |over| over.max(now));
        match SECOND.checked_div(limits.worker_starts) {
            Some(each) if over + each <= now + SECOND * BURST => {
                history.over = Some(over + each);
                Ok(())
            }
            _ => Err(Refusal::limit(
                &user.map_or_else(
                    || "the herald is started too often".to_owned(),
                    |uid| format!("too many processes are started for uid {uid}"),
                ),
                "worker-starts",
                limits.worker_starts.into(),
                &format!("a second, and at most {BURST} times as many at once; try again in a second"),
            )),
        }
    }

    /// A worker of this user ended though nobody asked it to.
    pub fn crashed(&mut self, user: User, limits: &Limits, now: Instant) {
        let history = self.users.entry(user).or_default();
        forget(&mut history.crashes, MINUTE, now);
        history.crashes.push_back(now);
        if history.crashes.len() >= limits.worker_crashes as usize {
            history.crashes.clear();
            history.paused = Some(now);
        }
    }
}

fn whose(user: User) -> String {
    user.map_or_else(
        || "that listens to netlink".to_owned(),
        |uid| format!("that holds the endpoints of uid {uid}"),
    )
}

impl History {
    fn is_recent(&mut self, now: Instant) -> bool {
        forget(&mut self.crashes, MINUTE, now);
        let paused = self.paused.is_some_and(|paused| now.duration_since(paused) < PAUSE);
        paused || self.over.is_some_and(|over| over > now) || !self.crashes.is_empty()
    }
}

fn forget(times: &mut VecDeque<Instant>, age: Duration, now: Instant) {
    while times.front().is_some_and(|time| now.duration_since(*time) >= age) {
        times.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_at_once_and_two_a_second() {
        let (mut starts, limits, now) = (Starts::default(), Limits::default(), Instant::now());
        for _ in 0..8 {
            starts.start(Some(1), &limits, now).expect("at once");
        }
        let refusal = starts.start(Some(1), &limits, now).expect_err("the ninth");
        assert!(refusal.text.contains("worker-starts is 2"), "{}", refusal.text);
        starts.start(Some(2), &limits, now).expect("another user");
        for half in 1..=20 {
            let time = now + SECOND / 2 * half;
            starts.start(Some(1), &limits, time).expect("one in half a second");
            starts.start(Some(1), &limits, time).expect_err("a second one");
        }
        let rested = now + SECOND * 60;
        for _ in 0..8 {
            starts.start(Some(1), &limits, rested).expect("at once again, and not more for the rest");
        }
        starts.start(Some(1), &limits, rested).expect_err("the ninth");
        let none = Limits { worker_starts: 0, ..limits };
        starts.start(Some(3), &none, now).expect_err("none at all");
    }

    #[test]
    fn who_crashes_over_and_over_pauses() {
        let (mut starts, limits, now) = (Starts::default(), Limits::default(), Instant::now());
        for count in 0..4 {
            starts.crashed(Some(1), &limits, now + SECOND * count);
        }
        // The first is forgotten by then.
        starts.crashed(Some(1), &limits, now + MINUTE);
        starts.start(Some(1), &limits, now + MINUTE).expect("four in this minute");
        starts.crashed(Some(1), &limits, now + MINUTE);
        let refusal = starts.start(Some(1), &limits, now + MINUTE + SECOND).expect_err("five");
        assert_eq!(refusal.name, "Unavailable");
        assert!(refusal.text.contains("another 60 s"), "{}", refusal.text);
        starts.start(Some(2), &limits, now + MINUTE).expect("another user");
        starts.start(Some(1), &limits, now + MINUTE + PAUSE).expect("a minute later");
    }

    #[test]
    fn users_without_a_recent_past_are_forgotten() {
        let (mut starts, limits, now) = (Starts::default(), Limits::default(), Instant::now());
        for uid in 0..2 * USERS as u32 {
            starts.start(Some(uid), &limits, now + SECOND * uid).expect("one each");
        }
        assert!(starts.users.len() <= USERS);
    }
}
