//! The clients of one worker and their calls that it has not answered.
//!
//! The bus writes the sender into every call, and a client numbers its calls; so (sender, serial)
//! names a call, and a reply carries both as destination and reply serial. A worker may answer each
//! call once, and nothing else (an object server replies to some calls that asked for no reply, such as
//! one to an object that is not there: as many as were forwarded are forgiven); it may signal its clients, and nobody else. A client that has just
//! left is remembered for a while: what the worker said to it before it knew is no offence.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    num::NonZeroU32,
    sync::Arc,
    time::Instant,
};

use crate::{admission::Permit, budget::Client};

/// Clients that have left and are remembered.
const DEPARTED: usize = 1024;

#[derive(Default)]
pub struct Members {
    clients: HashMap<Arc<str>, Member>,
    departed: HashSet<Arc<str>>,
    in_order: VecDeque<Arc<str>>,
    calls: usize,
    /// Calls that asked for no reply, less the replies to them that came nevertheless.
    unasked: u64,
}

struct Member {
    client: Arc<Client>,
    calls: HashMap<NonZeroU32, Call>,
}

struct Call {
    since: Instant,
    _permit: Permit,
}

/// Whether a call may be forwarded.
#[derive(Debug, PartialEq, Eq)]
pub enum Expected {
    Yes,
    /// The client has left.
    NoMember,
    /// A call with this serial is not answered yet.
    SameSerial,
}

/// To whom something that the worker said is addressed.
pub enum Addressee {
    Client(Arc<Client>),
    /// To one that has just left.
    Departed,
    /// To one that is not, and was not lately, this worker's.
    Foreign,
    /// To a client, in reply to a call that asked for none.
    Unasked,
    /// To a client, in reply to a call that it did not make or that is answered.
    NotCalled,
}

impl Members {
    /// A client, if it is not one already.
    pub fn join(&mut self, client: &Arc<Client>) {
        let member = || Member { client: client.clone(), calls: HashMap::new() };
        self.clients.entry(client.name.clone()).or_insert_with(member);
    }

    /// Its calls are no longer expected to be answered. Whether it was a member.
    pub fn leave(&mut self, name: &str) -> bool {
        let Some((name, member)) = self.clients.remove_entry(name) else { return false };
        self.calls -= member.calls.len();
        if self.in_order.len() >= DEPARTED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.departed.remove(&oldest);
        }
        self.departed.insert(name.clone());
        self.in_order.push_back(name);
        true
    }

    /// A call is about to be forwarded; its reply ends the permit.
    pub fn expect(&mut self, name: &str, serial: NonZeroU32, permit: Permit) -> Expected {
        let Some(member) = self.clients.get_mut(name) else { return Expected::NoMember };
        if member.calls.contains_key(&serial) {
            return Expected::SameSerial;
        }
        member.calls.insert(serial, Call { since: Instant::now(), _permit: permit });
        self.calls += 1;
        Expected::Yes
    }

    /// A call that asks for no reply is about to be forwarded.
    pub fn expect_nothing(&mut self) {
        self.unasked = self.unasked.saturating_add(1);
    }

    /// The worker replies.
    pub fn answer(&mut self, destination: &str, serial: NonZeroU32) -> Addressee {
        let Some(member) = self.clients.get_mut(destination) else { return self.stranger(destination) };
        if member.calls.remove(&serial).is_none() {
            let Some(unasked) = self.unasked.checked_sub(1) else { return Addressee::NotCalled };
            self.unasked = unasked;
            return Addressee::Unasked;
        }
        self.calls -= 1;
        Addressee::Client(member.client.clone())
    }

    /// The worker sends a signal.
    pub fn signal(&self, destination: &str) -> Addressee {
        match self.clients.get(destination) {
            Some(member) => Addressee::Client(member.client.clone()),
            None => self.stranger(destination),
        }
    }

    fn stranger(&self, destination: &str) -> Addressee {
        if self.departed.contains(destination) { Addressee::Departed } else { Addressee::Foreign }
    }

    /// Every call that is not answered; none of them is expected to be from now on.
    pub fn give_up(&mut self) -> Vec<(Arc<Client>, NonZeroU32)> {
        self.calls = 0;
        self.unasked = 0;
        let members = self.clients.values_mut();
        members
            .flat_map(|member| {
                let client = member.client.clone();
                member.calls.drain().map(move |(serial, _)| (client.clone(), serial))
            })
            .collect()
    }

    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.clients.values().map(|member| member.client.clone()).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Calls that are not answered.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Since when the oldest of them is waited for.
    pub fn oldest(&self) -> Option<Instant> {
        self.clients.values().flat_map(|member| member.calls.values()).map(|call| call.since).min()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::{
        admission::{Admission, Amounts},
        limits::Limits,
    };

    pub fn serial(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).expect("not 0")
    }

    pub fn permit(admission: &Arc<Admission>) -> Permit {
        let amounts = Amounts { calls: 1, ..Amounts::default() };
        admission.admit(Some(1), None, amounts).expect("within the limits")
    }

    pub fn client(name: &str) -> Arc<Client> {
        Client::new(name.into(), &Limits::default())
    }

    /// A table with the clients :1.1 and :1.2, the first of which has made call 7.
    pub fn members() -> (Members, Arc<Admission>) {
        let admission = Admission::new(&Limits { calls_per_user: 2, ..Limits::default() });
        let mut members = Members::default();
        members.join(&client(":1.1"));
        members.join(&client(":1.2"));
        assert_eq!(members.expect(":1.1", serial(7), permit(&admission)), Expected::Yes);
        (members, admission)
    }

    #[test]
    fn a_call_is_answered_once_and_ends_its_permit() {
        let (mut members, admission) = members();
        let _other = permit(&admission);
        assert!(admission.admit(Some(1), None, Amounts { calls: 1, ..Amounts::default() }).is_err());
        assert!(matches!(members.answer(":1.1", serial(8)), Addressee::NotCalled));
        assert!(matches!(members.answer(":1.2", serial(7)), Addressee::NotCalled));
        assert!(matches!(members.answer(":1.3", serial(7)), Addressee::Foreign));
        assert!(members.oldest().is_some());
        let Addressee::Client(client) = members.answer(":1.1", serial(7)) else { panic!("not found") };
        assert_eq!(&*client.name, ":1.1");
        assert_eq!((members.calls(), members.oldest()), (0, None));
        drop(permit(&admission));
        assert!(matches!(members.answer(":1.1", serial(7)), Addressee::NotCalled));
    }

    /// An object server says that there is no such object, whether it was asked to reply or not.
    #[test]
    fn replies_to_calls_that_asked_for_none_are_forgiven_one_by_one() {
        let (mut members, _admission) = members();
        members.expect_nothing();
        members.expect_nothing();
        assert!(matches!(members.answer(":1.1", serial(9)), Addressee::Unasked));
        assert!(matches!(members.answer(":1.3", serial(9)), Addressee::Foreign));
        assert!(matches!(members.answer(":1.1", serial(7)), Addressee::Client(_)));
        assert!(matches!(members.answer(":1.2", serial(9)), Addressee::Unasked));
        assert!(matches!(members.answer(":1.1", serial(9)), Addressee::NotCalled));
        // A new process was given nothing yet.
        members.expect_nothing();
        members.give_up();
        assert!(matches!(members.answer(":1.1", serial(9)), Addressee::NotCalled));
    }

    #[test]
    fn a_serial_is_free_again_when_it_is_answered() {
        let (mut members, admission) = members();
        assert_eq!(members.expect(":1.1", serial(7), permit(&admission)), Expected::SameSerial);
        assert_eq!(members.expect(":1.9", serial(7), permit(&admission)), Expected::NoMember);
        assert!(matches!(members.answer(":1.1", serial(7)), Addressee::Client(_)));
        assert_eq!(members.expect(":1.1", serial(7), permit(&admission)), Expected::Yes);
    }

    #[test]
    fn who_has_left_is_remembered_for_a_while() {
        let (mut members, admission) = members();
        assert!(members.leave(":1.1") && !members.leave(":1.1"));
        assert_eq!(members.calls(), 0);
        let both = (permit(&admission), permit(&admission));
        assert!(matches!(members.answer(":1.1", serial(7)), Addressee::Departed));
        assert!(matches!(members.signal(":1.1"), Addressee::Departed));
        assert!(matches!(members.signal(":1.2"), Addressee::Client(_)));
        assert!(matches!(members.signal(":1.3"), Addressee::Foreign));
        drop(both);
        for number in 0..DEPARTED {
            let name = format!(":2.{number}");
            members.join(&client(&name));
            assert!(members.leave(&name));
        }
        assert!(matches!(members.signal(":1.1"), Addressee::Foreign));
        assert_eq!((members.departed.len(), members.in_order.len()), (DEPARTED, DEPARTED));
    }

    #[test]
    fn giving_up_leaves_clients_without_calls() {
        let (mut members, admission) = members();
        assert_eq!(members.expect(":1.2", serial(9), permit(&admission)), Expected::Yes);
        let mut calls: Vec<_> = members
            .give_up()
            .into_iter()
            .map(|(client, serial)| (client.name.to_string(), serial.get()))
            .collect();
        calls.sort();
        assert_eq!(calls, [(":1.1".to_owned(), 7), (":1.2".to_owned(), 9)]);
        assert_eq!((members.calls(), members.clients().len()), (0, 2));
        drop((permit(&admission), permit(&admission)));
    }
}
