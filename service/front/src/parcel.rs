//! A message on its way through the front, with what it holds of the pools; however it ends, what it
//! carries is closed where that can hang without harm.

use std::{io, num::NonZeroU32, sync::Arc};

use ipc_stream::Writer;
use zbus::message::{Flags, Message, Type};

use crate::{
    admission::{Amounts, Permit, User},
    closer::Closer,
};

/// Why a parcel has a message.
const THERE: &str = "it is taken out only when the parcel is dropped";

pub struct Parcel {
    /// Taken only when it is dropped.
    message: Option<Message>,
    /// Bytes of it that have left.
    sent: usize,
    /// Another one follows, and both may go in one write.
    may_wait: bool,
    user: User,
    permit: Option<Permit>,
    closer: Arc<Closer>,
}

impl Parcel {
    pub fn new(message: Message, user: User, closer: &Arc<Closer>) -> Self {
        Self { message: Some(message), sent: 0, may_wait: false, user, permit: None, closer: closer.clone() }
    }

    pub fn message(&self) -> &Message {
        self.message.as_ref().expect(THERE)
    }

    fn rest(&mut self) -> (&Message, &mut usize) {
        (self.message.as_ref().expect(THERE), &mut self.sent)
    }

    /// It is not sent by itself if others follow at once.
    pub fn may_wait(&mut self, more: bool) {
        self.may_wait = more;
    }

    /// Sends what there is room for, unless it may wait. Whether that was the rest of it.
    pub fn send_now(&mut self, writer: &Writer) -> io::Result<bool> {
        if self.may_wait {
            return Ok(false);
        }
        let (message, sent) = self.rest();
        writer.send_now(message, sent)
    }

    /// Sends the rest of it.
    pub async fn send_rest(&mut self, writer: &Writer) -> io::Result<()> {
        let (message, sent) = self.rest();
        writer.send_rest(message, sent).await
    }

    /// Whether a part of it has left: the rest has to be next.
    pub fn is_begun(&self) -> bool {
        self.sent > 0
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

    /// Held until the parcel is dropped or releases it.
    pub fn hold(&mut self, user: User, permit: Permit) {
        self.user = user;
        self.permit = Some(permit);
    }

    /// Holds nothing any more.
    pub fn release(&mut self) {
        self.permit = None;
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
