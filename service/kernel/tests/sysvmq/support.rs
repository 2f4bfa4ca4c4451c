//! Queues that go when a test ends, however it ends; a C program as the other process; and the
//! waiting that the engine does otherwise.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use ipc_kernel::{
    Attempt, Dict, Endpoint, Readiness, Result,
    blocked::{self, Running, Sent},
    shape::{Message, Outgoing},
};

use crate::peer;
pub use crate::peer::{Peer, eventually, refused};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn try_create(parameters: &str) -> Result<Queue> {
    peer::create(&format!("sysvmq:{parameters}")).map(|endpoint| Queue(endpoint.into()))
}

pub fn create(parameters: &str) -> Queue {
    try_create(parameters).unwrap()
}

pub fn attach(parameters: &str) -> Result<Arc<dyn Endpoint>> {
    peer::attach(&format!("sysvmq:{parameters}")).map(Into::into)
}

/// A queue that is removed at the end.
pub struct Queue(pub Arc<dyn Endpoint>);

impl std::ops::Deref for Queue {
    type Target = Arc<dyn Endpoint>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

impl Queue {
    pub fn id(&self) -> i64 {
        number(&self.0, "id")
    }
}

pub fn number(endpoint: &Arc<dyn Endpoint>, key: &str) -> i64 {
    let state = endpoint.inspect().unwrap();
    let value = state.get(key).unwrap_or_else(|| panic!("no {key} in {state:?}"));
    value.integer().unwrap().try_into().unwrap()
}

/// Starts the blocking call of a readiness; the receiver hears of its end.
pub fn started(readiness: Readiness) -> (Running, mpsc::Receiver<()>) {
    let Readiness::Blocked(call) = readiness else { panic!("queues block, not {readiness:?}") };
    let (told, end) = mpsc::sync_channel(1);
    (blocked::start(call, move || _ = told.send(())).unwrap(), end)
}

pub fn give_up(running: &Running) {
    while !running.interrupt() {
        std::thread::yield_now();
    }
}

/// Repeats the attempt until it is done.
pub fn finish<T>(mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    loop {
        match attempt()? {
            Attempt::Done(value) => return Ok(value),
            Attempt::Wait(Readiness::After(pause)) => std::thread::sleep(pause),
            Attempt::Wait(readiness) => {
                let (running, end) = started(readiness);
                end.recv_timeout(PATIENCE).expect("the wait to end");
                give_up(&running);
            }
        }
    }
}

pub fn try_send(endpoint: &Arc<dyn Endpoint>, data: &[u8], attributes: &Dict) -> Result<Attempt<()>> {
    let sent = Sent::default();
    endpoint.messages().unwrap().send(Outgoing { data, attributes, fds: &[], sent: &sent })
}

pub fn send(endpoint: &Arc<dyn Endpoint>, kind: i64, data: &[u8]) -> Result<()> {
    let (sent, attributes) = (Sent::default(), ipc_kernel::dict! { "type" => kind });
    let messages = endpoint.messages().unwrap();
    finish(|| messages.send(Outgoing { data, attributes: &attributes, fds: &[], sent: &sent }))
}

pub fn try_receive(endpoint: &Arc<dyn Endpoint>, selector: &Dict) -> Result<Attempt<Message>> {
    endpoint.messages().unwrap().receive(selector)
}

/// The type and bytes of the next message, waiting for it.
pub fn receive(endpoint: &Arc<dyn Endpoint>, selector: &Dict) -> Result<(i64, Vec<u8>)> {
    finish(|| try_receive(endpoint, selector)).map(parts)
}

pub fn parts(message: Message) -> (i64, Vec<u8>) {
    (message.attributes["type"].integer().unwrap().try_into().unwrap(), message.data)
}

/// What waits now; None: nothing that is asked for.
pub fn now(endpoint: &Arc<dyn Endpoint>, selector: &Dict) -> Option<(i64, Vec<u8>)> {
    match try_receive(endpoint, selector).unwrap() {
        Attempt::Done(message) => Some(parts(message)),
        Attempt::Wait(_) => None,
    }
}

const PROGRAM: &str = include_str!("peer.c");

/// A program that uses the C library's functions; None, visibly, without a C compiler.
pub fn program() -> Option<Peer> {
    Peer::compiled(PROGRAM)
}

/// The same as another user.
pub fn program_of(user: u32) -> Option<Peer> {
    let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
    Peer::compiled_in(PROGRAM, &["setpriv", &user, &group, "--clear-groups"])
}

/// Waits until the process sleeps in a system call.
pub fn blocks(peer: &Peer) {
    eventually("the peer blocks", || {
        let wchan = std::fs::read_to_string(format!("/proc/{}/syscall", peer.pid())).unwrap_or_default();
        let number = wchan.split(' ').next().and_then(|number| number.parse::<i64>().ok());
        number == Some(libc::SYS_msgrcv) || number == Some(libc::SYS_msgsnd)
    });
}
