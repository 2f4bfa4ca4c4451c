//! A socket that was connected by address, and can be connected again: another socket then takes the place of the one
//! whose peer has left, and everybody who uses the endpoint has the new one from then on.
//!
//! Whoever holds a file descriptor of the former socket, a reader or a caller of `Open`, goes on with that one until
//! it is at its end. When and how often to connect again is not decided here.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Opening, Parameters, Result,
    datagrams::DatagramSink,
    mechanism::{End, Permissions},
    shape::{Direction, Message, Messages, Outgoing, Shape, Stream},
};

/// Connects a socket, as Attach does.
pub type Connect = fn(&Parameters) -> Result<Opening>;

/// What the default of [`Endpoint::dialed`] says.
pub const NO_CONNECTION: &str = "it is no connection of a socket";

/// What is to be said of a socket with a connection that others made.
pub const ACCEPTED: &str =
    "its connection was accepted or handed over, so there is no address to connect to again";

pub struct Dialed {
    connect: Connect,
    parameters: Parameters,
    current: RwLock<Arc<dyn Endpoint>>,
}

impl Dialed {
    /// Connects, and remembers how.
    pub fn open(parameters: &Parameters, connect: Connect) -> Result<Opening> {
        let parameters = parameters.clone();
        let opening = connect(&parameters)?;
        let dialed = move |socket: Box<dyn Endpoint>| -> Box<dyn Endpoint> {
            Box::new(Self { connect, parameters: parameters.clone(), current: RwLock::new(socket.into()) })
        };
        Ok(match opening {
            Opening::Done(socket) => Opening::Done(dialed(socket)),
            Opening::Pending(mut attempt) => Opening::Pending(Box::new(move || Ok(attempt()?.map(&dialed)))),
        })
    }

    /// What connects another socket, to the same address with the same parameters; a host is looked up anew. It may take
    /// a while, as Attach may.
    pub fn again(&self) -> impl FnOnce() -> Result<Opening> + Send + 'static {
        let (connect, parameters) = (self.connect, self.parameters.clone());
        move || connect(&parameters)
    }

    /// Puts a socket that was connected again into the place of the former one, which is returned.
    pub fn replace(&self, with: Box<dyn Endpoint>) -> Arc<dyn Endpoint> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, with.into())
    }

    fn current(&self) -> Arc<dyn Endpoint> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn on_stream<T>(&self, operation: impl FnOnce(&dyn Stream) -> Result<T>) -> Result<T> {
        operation(self.current().stream().ok_or_else(|| Error::not_supported("the socket is no stream"))?)
    }

    fn on_messages<T>(&self, operation: impl FnOnce(&dyn Messages) -> Result<T>) -> Result<T> {
        let current = self.current();
        operation(current.messages().ok_or_else(|| Error::not_supported("the socket has no messages"))?)
    }
}

impl Endpoint for Dialed {
    fn address(&self) -> Address {
        self.current().address()
    }

    fn shapes(&self) -> Vec<Shape> {
        self.current().shapes()
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn dialed(&self) -> std::result::Result<&Dialed, &'static str> {
        Ok(self)
    }

    fn inspect(&self) -> Result<Dict> {
        self.current().inspect()
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        self.current().open(options)
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        self.current().set_permissions(permissions)
    }

    fn remove(&self) -> Result<()> {
        self.current().remove()
    }

    fn remove_by_default(&self) -> bool {
        self.current().remove_by_default()
    }

    fn stream(&self) -> Option<&dyn Stream> {
        // The type of the socket is among the parameters: the next one has the same shape.
        self.current().stream().is_some().then_some(self)
    }

    fn messages(&self) -> Option<&dyn Messages> {
        self.current().messages().is_some().then_some(self)
    }
}

impl Stream for Dialed {
    fn read(&self, max: usize) -> Result<Attempt<Vec<u8>>> {
        self.on_stream(|stream| stream.read(max))
    }

    fn write(&self, data: &[u8]) -> Result<Attempt<usize>> {
        self.on_stream(|stream| stream.write(data))
    }

    fn shutdown(&self, direction: Direction) -> Result<()> {
        self.on_stream(|stream| stream.shutdown(direction))
    }

    fn source(&self) -> Result<Attempt<End>> {
        self.on_stream(|stream| stream.source())
    }

    fn sink(&self) -> Result<Attempt<End>> {
        self.on_stream(|stream| stream.sink())
    }

    fn depth(&self) -> Result<u64> {
        self.on_stream(|stream| stream.depth())
    }
}

impl Messages for Dialed {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        self.on_messages(|messages| messages.send(message))
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.on_messages(|messages| messages.receive(selector))
    }

    fn selects(&self, selector: &Dict, message: &Message) -> Result<bool> {
        self.on_messages(|messages| messages.selects(selector, message))
    }

    fn peek(&self, selector: &Dict) -> Result<Attempt<Message>> {
        self.on_messages(|messages| messages.peek(selector))
    }

    fn put_back(&self, message: &Message) -> bool {
        self.on_messages(|messages| Ok(messages.put_back(message))).unwrap_or(false)
    }

    fn next_length(&self) -> Option<u64> {
        self.on_messages(|messages| Ok(messages.next_length())).ok().flatten()
    }

    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        self.on_messages(|messages| messages.check_attributes(attributes))
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        self.on_messages(|messages| messages.arrival())
    }

    fn max_message_size(&self) -> u64 {
        self.on_messages(|messages| Ok(messages.max_message_size())).unwrap_or(0)
    }

    fn relayed(&self) -> &'static [&'static str] {
        self.on_messages(|messages| Ok(messages.relayed())).unwrap_or_default()
    }

    fn comes_back(&self) -> bool {
        self.on_messages(|messages| Ok(messages.comes_back())).unwrap_or(true)
    }

    fn depth(&self) -> Option<u64> {
        self.on_messages(|messages| Ok(messages.depth())).ok().flatten()
    }

    fn datagram_sink(&self) -> Option<&dyn DatagramSink> {
        let can = self.on_messages(|messages| Ok(messages.datagram_sink().is_some()));
        can.unwrap_or(false).then_some(self)
    }
}

impl DatagramSink for Dialed {
    fn send(&self, datagrams: &[&[u8]]) -> Result<Attempt<usize>> {
        self.on_messages(|messages| match messages.datagram_sink() {
            Some(sink) => sink.send(datagrams),
            None => Err(Error::not_supported("the socket has no peer")),
        })
    }
}
