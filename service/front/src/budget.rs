//! What a client has been sent and has not read.
//!
//! A bus holds what a client does not read, up to a limit for the sender; then it reads nothing more
//! from the sender, and everybody waits for one. So the front counts what it sends to each client and
//! asks the bus, before it is much, how much of it is still there; if it becomes much before the bus has
//! answered, its worker waits for that. To a client that is behind no signals are sent; the latest of
//! each object is kept and sent when it has caught up, so that it sees from the sequence numbers what
//! it missed. Its calls are refused when it is far behind.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use tokio::sync::Notify;
use zbus::message::Message;

use crate::{admission::User, limits::Limits, lock, refusals::Refusal};

/// Objects whose latest signal is kept for a client that is behind.
const KEPT: usize = 16;

/// A connection that has called.
pub struct Client {
    pub name: Arc<str>,
    uid: OnceLock<u32>,
    account: Mutex<Account>,
    /// The bus has answered.
    pub answered: Notify,
}

impl Client {
    pub fn new(name: Arc<str>, limits: &Limits) -> Arc<Self> {
        let account = Mutex::new(Account::new(limits));
        Arc::new(Self { name, uid: OnceLock::new(), account, answered: Notify::new() })
    }

    /// It is known whose it is; that never changes.
    pub fn belongs_to(&self, uid: u32) {
        self.uid.get_or_init(|| uid);
    }

    pub fn user(&self) -> User {
        self.uid.get().copied()
    }

    pub fn account(&self) -> MutexGuard<'_, Account> {
        lock(&self.account)
    }
}

/// Whether a client's calls are served.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    Fine,
    Refuse(Refusal),
    /// It would not read the refusal either.
    Drop(Refusal),
}

/// What to do with a signal to a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Signal {
    Send,
    /// The bus is about to tell whether the client is behind.
    Wait,
    /// The client is behind, and this is kept for it.
    Kept,
}

pub struct Account {
    limit: u64,
    refuse: u64,
    unread: u64,
    /// Sent since the bus was last asked.
    since_asked: u64,
    asking: bool,
    /// The bus has said so, or does not answer.
    behind: bool,
    kept: VecDeque<Message>,
}

impl Account {
    fn new(limits: &Limits) -> Self {
        Self {
            limit: limits.unread_bytes.into(),
            refuse: limits.unread_bytes_refuse.into(),
            unread: 0,
            since_asked: 0,
            asking: false,
            behind: false,
            kept: VecDeque::new(),
        }
    }

    /// Counts what is sent. Whether the bus is to be asked now: at half of the limit, so that who reads
    /// as fast as is sent to him never reaches it.
    #[must_use]
    pub fn sent(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.unread += bytes;
        self.since_asked += bytes;
        let ask = !self.asking && self.unread > self.limit / 2;
        self.asking |= ask;
        ask
    }

    /// Whether this signal is to be sent; one that is kept takes the place of the one of the same
    /// object.
    pub fn signal(&mut self, signal: &Message) -> Signal {
        if self.unread <= self.limit && self.kept.is_empty() {
            return Signal::Send;
        }
        if self.asking && !self.behind {
            return Signal::Wait;
        }
        let header = signal.header();
        self.kept.retain(|kept| kept.header().path() != header.path());
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(signal.clone());
        Signal::Kept
    }

    /// The bus has not answered for long.
    pub fn no_answer(&mut self) {
        self.behind = self.asking;
    }

    pub fn standing(&self) -> Standing {
        if self.unread <= self.refuse {
            return Standing::Fine;
        }
        let what = format!("this connection has not read {} bytes that were sent to it", self.unread);
        let refusal = Refusal::limit(&what, "unread-bytes-refuse", self.refuse, "read first");
        if self.unread > self.refuse + self.refuse / 4 {
            Standing::Drop(refusal)
        } else {
            Standing::Refuse(refusal)
        }
    }

    /// The bus is being asked.
    pub fn asked(&mut self) {
        self.since_asked = 0;
    }

    /// The bus held this much when it was asked. Whether the client has caught up; if not, the bus is
    /// to be asked again.
    #[must_use]
    pub fn answered(&mut self, unread: u64) -> bool {
        self.unread = unread + self.since_asked;
        self.behind = self.unread > self.limit / 2;
        self.asking = self.behind;
        !self.behind
    }

    /// The next signal that was kept for a client that has caught up.
    pub fn next_kept(&mut self) -> Option<Message> {
        self.kept.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::new(&Limits { unread_bytes: 100, unread_bytes_refuse: 1000, ..Limits::default() })
    }

    fn signal(path: &str, number: u32) -> Message {
        Message::signal(path, "org.example.IPC.Endpoint", "Event").build(&number).expect("valid")
    }

    fn number(message: &Message) -> u32 {
        message.body().deserialize().expect("a number")
    }

    #[test]
    fn a_client_that_reads_is_asked_about_now_and_then() {
        let mut account = account();
        assert!(!account.sent(50));
        assert!(account.sent(1));
        // Once is enough.
        assert!(!account.sent(10));
        account.asked();
        assert!(!account.sent(20));
        assert!(account.answered(0) && account.next_kept().is_none());
        assert_eq!((account.unread, account.asking), (20, false));
        assert!(account.sent(40));
    }

    #[test]
    fn who_is_behind_gets_the_latest_of_each_object_when_he_has_caught_up() {
        let mut account = account();
        assert_eq!(account.signal(&signal("/a", 0)), Signal::Send);
        assert!(account.sent(101));
        assert_eq!(account.signal(&signal("/a", 1)), Signal::Wait);
        account.asked();
        assert!(!account.answered(101));
        for count in 1..4 {
            assert_eq!(account.signal(&signal("/a", count)), Signal::Kept);
        }
        assert_eq!(account.signal(&signal("/b", 9)), Signal::Kept);
        account.asked();
        assert!(!account.answered(60));
        account.asked();
        assert!(account.answered(50));
        // Until what was kept has left, what is newer waits behind it.
        assert_eq!(account.signal(&signal("/b", 10)), Signal::Kept);
        let kept: Vec<_> = std::iter::from_fn(|| account.next_kept()).collect();
        assert_eq!(kept.iter().map(number).collect::<Vec<_>>(), [3, 10]);
        assert_eq!(account.signal(&signal("/a", 5)), Signal::Send);
        // What is kept is bounded.
        assert!(account.sent(101));
        account.no_answer();
        for object in 0..100 {
            assert_eq!(account.signal(&signal(&format!("/x{object}"), object)), Signal::Kept);
        }
        assert_eq!(account.kept.len(), KEPT);
        assert_eq!(number(&account.kept[0]), 84);
    }

    #[test]
    fn who_is_far_behind_is_refused_and_then_not_heard() {
        let mut account = account();
        assert!(account.sent(1000));
        assert_eq!(account.standing(), Standing::Fine);
        assert!(!account.sent(1));
        let Standing::Refuse(refusal) = account.standing() else { panic!("not refused") };
        assert!(refusal.text.contains("unread-bytes-refuse is 1000"), "{}", refusal.text);
        assert!(!account.sent(250));
        assert!(matches!(account.standing(), Standing::Drop(_)));
        account.asked();
        assert!(account.answered(0));
        assert_eq!(account.standing(), Standing::Fine);
    }
}
