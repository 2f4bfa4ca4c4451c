//! The whole front, between a bus, a spawner and workers that are made up.
//!
//! An input is a list of records: a byte that says what it is, two that say how long (little-endian), and so
//! many bytes. An even one is a message that the bus hands to the front, an odd one what a user's worker says.

use std::{io::Write, num::NonZeroU32, time::Duration};

use ipc_front::{Front, Limits, NoStore, Start};
use tokio::time::timeout;
use zbus::message::Message;

use crate::{
    bus::{self, Bus, Ledger},
    workers,
};

/// Who comes at the end, and has to be served.
const LAST: &str = ":1.77";

/// Its serial, which nobody has by chance.
const SERIAL: NonZeroU32 = NonZeroU32::MAX;

const PATIENCE: Duration = Duration::from_secs(20);

/// More records make no other cases.
const RECORDS: usize = 64;

pub fn front(input: &[u8]) {
    let (calls, words) = records(input);
    crate::run(async {
        let (address, listener) = bus::listen();
        let (spawner, spawning) = workers::spawner(words);
        tokio::spawn(spawning);
        let start = Start {
            spawner,
            reconnect: None,
            workers: Vec::new(),
            limits: Limits::default(),
            address: Some(address),
            fd_store: Box::new(NoStore),
        };
        let (front, (socket, mut said)) =
            tokio::join!(async { Front::start(start).await.expect("the front starts") }, async {
                let (bus, socket, said) = Bus::accept(listener).await;
                tokio::spawn(bus.serve());
                (socket, said)
            },);
        let mut ledger = Ledger::default();
        for call in calls {
            if let Ok(message) = ipc_stream::read(call.clone(), Vec::new(), 0).await {
                ledger.asked(&message);
            }
            (&socket).write_all(&call).expect("the front reads");
        }
        let last = Message::method_call("/org/example/IPC", "Ping").sender(LAST).serial(SERIAL);
        let last = last.build(&()).expect("a valid call");
        ledger.asked(&last);
        (&socket).write_all(last.data()).expect("the front reads");
        loop {
            let message = timeout(PATIENCE, said.recv()).await.expect("who comes later is answered");
            let message = message.expect("the front stays on the bus");
            ledger.said(&message);
            let header = message.header();
            let is_last = header.destination().is_some_and(|name| name == LAST);
            if is_last && header.reply_serial() == Some(SERIAL) {
                break;
            }
        }
        timeout(PATIENCE, front.stop()).await.expect("the front stops");
        while let Ok(message) = said.try_recv() {
            ledger.said(&message);
        }
    });
}

/// The messages of callers, and what the worker says.
fn records(mut input: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut calls, mut words) = (Vec::new(), Vec::new());
    for _ in 0..RECORDS {
        let [kind, low, high, rest @ ..] = input else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (bytes, after) = rest.split_at(length);
        match kind % 2 {
            0 => calls.extend(framed(bytes.to_vec())),
            _ => words.extend_from_slice(bytes),
        }
        input = after;
    }
    (calls, words)
}

/// The message with the length that it has: a bus reads whole messages, whatever is in them.
fn framed(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let big = bytes.first() == Some(&b'B');
    if !big && bytes.first() != Some(&b'l') {
        return None;
    }
    let fields: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
    let fields = if big { u32::from_be_bytes(fields) } else { u32::from_le_bytes(fields) };
    let header = (16 + fields as usize).next_multiple_of(8);
    let body = u32::try_from(bytes.len().checked_sub(header)?).ok()?;
    let body = if big { body.to_be_bytes() } else { body.to_le_bytes() };
    bytes[4..8].copy_from_slice(&body);
    Some(bytes)
}
