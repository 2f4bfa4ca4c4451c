//! What is dropped is logged, but a log must not grow at the pace of an attack: at most one line a
//! second and user, with the count since the last.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::admission::User;

const PAUSE: Duration = Duration::from_secs(1);

/// Users that are remembered; when there are more, the counts that were told are forgotten.
const USERS: usize = 1024;

#[derive(Default)]
pub struct Drops {
    users: HashMap<User, (u64, Option<Instant>)>,
}

/// A user, in words.
pub fn user(user: User) -> String {
    user.map_or_else(|| "a connection that is not identified yet".to_owned(), |uid| format!("uid {uid}"))
}

impl Drops {
    /// Counts one dropped call, and tells how many there are to be logged now.
    pub fn count(&mut self, user: User, now: Instant) -> Option<u64> {
        if self.users.len() >= USERS {
            self.users.retain(|_, (count, _)| *count > 0);
        }
        let (count, told) = self.users.entry(user).or_default();
        *count += 1;
        if told.is_some_and(|told| now.duration_since(told) < PAUSE) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_second_and_user() {
        let mut drops = Drops::default();
        let start = Instant::now();
        assert_eq!(drops.count(Some(1), start), Some(1));
        assert_eq!(drops.count(Some(1), start), None);
        assert_eq!(drops.count(Some(1), start), None);
        assert_eq!(drops.count(Some(2), start), Some(1));
        assert_eq!(drops.count(Some(1), start + PAUSE), Some(3));
    }
}
