//! What the fuzz targets (tests/fuzz) cannot reach from outside: a worker that is heard without a bus.

use std::{num::NonZeroU32, os::fd::OwnedFd, sync::Arc};

use ipc_stream::Stream;
use zbus::{connection::socket::Socket, message::Message};

use crate::{
    admission::{Admission, Amounts},
    budget::Client,
    judge::{HEADER, Said, Speaker, judge},
    limits::Limits,
    pending::Members,
};

/// Reads and judges what a worker says, to the end or to its first offence, when these clients, named
/// one after another, have made these calls of it. What would go to the bus, with its addressee.
pub async fn hear(stream: OwnedFd, calls: &[(&str, &[NonZeroU32])]) -> Vec<(Arc<str>, Message)> {
    let limits = Limits::default();
    let admission = Admission::new(&limits);
    let mut members = Members::default();
    for (name, serials) in calls {
        members.join(&Client::new((*name).into(), &limits));
        for serial in *serials {
            let amounts = Amounts { calls: 1, ..Amounts::default() };
            if let Ok(permit) = admission.admit(Some(1), None, amounts) {
                members.expect(name, *serial, permit);
            }
        }
    }
    let mut passed = Vec::new();
    let limit = limits.payload as usize + HEADER;
    let Ok(stream) = Stream::new(stream, limit, Arc::new(drop)) else { return passed };
    let (mut reader, _writer) = stream.split().take();
    while let Ok(message) = reader.next().await {
        if message.body().validate().is_err() {
            break;
        }
        match judge(Speaker::Worker, &message, &mut members, None, &limits) {
            Ok(Said::Reply(client) | Said::Signal(client)) => passed.push((client.name.clone(), message)),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    passed
}
