//! Calls that wait for their answer: each has a deadline, and all of an endpoint are given the same time,
//! so that they are over in the order in which they came.

use std::collections::VecDeque;

use tokio::time::Instant;

#[derive(Debug)]
pub struct Waiting<K, T>(VecDeque<(K, Instant, T)>);

impl<K, T> Default for Waiting<K, T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<K: PartialEq, T> Waiting<K, T> {
    pub fn push(&mut self, key: K, due: Instant, call: T) {
        self.0.push_back((key, due, call));
    }

    pub fn get(&self, key: K) -> Option<&T> {
        self.0.iter().find(|(known, ..)| *known == key).map(|(.., call)| call)
    }

    /// The call that this answers.
    pub fn take(&mut self, key: K) -> Option<T> {
        let index = self.0.iter().position(|(known, ..)| *known == key)?;
        self.0.remove(index).map(|(.., call)| call)
    }

    /// One whose time is over at this time; None: any.
    pub fn pop_over(&mut self, now: Option<Instant>) -> Option<T> {
        let (_, due, _) = self.0.front()?;
        match now.is_none_or(|now| *due <= now) {
            true => self.0.pop_front().map(|(.., call)| call),
            false => None,
        }
    }

    pub fn any(&self, is: impl Fn(&T) -> bool) -> bool {
        self.0.iter().any(|(.., call)| is(call))
    }

    pub fn due(&self) -> Option<Instant> {
        self.0.front().map(|(_, due, _)| *due)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}
