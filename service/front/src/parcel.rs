//! A message on its way through the front, with what it holds of the pools; however it ends, what it
//! carries is closed where that can hang without harm.

use std::{num::NonZeroU32, sync::Arc};

use zbus::message::{Flags, Message, Type};

use crate::{
    admission::{Amounts, Permit, User},
    closer::Closer,
};

pub struct Parcel {
    /// Taken only when it is dropped.
    message: Option<Message>,
    user: User,
    permit: Option<Permit>,
    closer: Arc<Closer>,
}

impl Parcel {
    pub fn new(message: Message, user: User, closer: &Arc<Closer>) -> Self {
        Self { message: Some(message), user, permit: None, closer: closer.clone() }
    }

    pub fn message(&self) -> &Message {
        // It is there until the drop.
        self.message.as_ref().expect("a parcel has a message until it is dropped")
    }

    pub fn size(&self) -> usize {
        self.message().data().len()
    }

    pub fn fds(&self) -> usize {
        self.message().data().fds().len()
    }

    pub fn is_call(&self) -> bool {
        self.message().message_type() == Type::MethodCall
    }

    /// The serial of a call that expects a reply.
    pub fn asks(&self) -> Option<NonZeroU32> {
        let header = self.message().primary_header();
        let asks = self.is_call() && !header.flags().contains(Flags::NO_REPLY_EXPECTED);
        asks.then(|| header.serial_num())
    }

    /// What this call takes of the pools, while it is in the front.
    pub fn amounts(&self) -> Amounts {
        Amounts { calls: 1, bytes: self.size() as u64, fds: self.fds() as u64, workers: 0 }
    }

    /// Held until the parcel is dropped, in place of what it held before.
    pub fn hold(&mut self, user: User, permit: Permit) {
        self.user = user;
        self.permit = Some(permit);
    }

    /// Of what it holds, the call itself: it goes on when the message has left the front.
    pub fn split_call(&mut self) -> Option<Permit> {
        let call = Amounts { calls: 1, ..Amounts::default() };
        self.permit.as_mut().map(|permit| permit.split(call))
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        if let Some(message) = self.message.take()
            && !message.data().fds().is_empty()
        {
            let fds = Amounts { fds: u64::MAX, ..Amounts::default() };
            let held = self.permit.as_mut().map(|permit| permit.split(fds));
            self.closer.close(self.user, Box::new((message, held)));
        }
    }
}
