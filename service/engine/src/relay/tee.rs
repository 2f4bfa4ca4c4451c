//! The sinks of one direction of messages: one, and with the option `tee` several.
//!
//! A message goes to one after the other, so the slowest sets the pace, and leaves its source when all have taken it.
//! Which have is remembered with the message in hand: what is tried again after a pause is sent to nobody twice.

use std::fmt;

use ipc_kernel::{Dict, Error, Fd, Kind, Result};

use super::{sinks::Sink, skip::Skips, sources::Largest};

#[derive(Debug)]
pub(super) struct Sinks {
    sinks: Vec<Place>,
    /// So many of them are done with the message in hand.
    done: usize,
    /// The one whose largest message is the largest that is sent.
    bounding: usize,
}

#[derive(Debug)]
struct Place {
    sink: Sink,
    largest: Largest,
    /// It has the message in hand.
    took: bool,
}

impl Sinks {
    /// There is at least one. `skip`: a message goes to those that can take it; otherwise it has to fit all.
    pub fn new(sinks: Vec<Sink>, skip: bool) -> Result<Self> {
        let place = |sink: Sink| Ok(Place { largest: sink.largest()?, sink, took: false });
        let sinks = sinks.into_iter().map(place).collect::<Result<Vec<_>>>()?;
        let sizes = sinks.iter().map(|place| place.largest.bytes).enumerate();
        let bounding = match skip {
            true => sizes.max_by_key(|(_, bytes)| *bytes),
            false => sizes.min_by_key(|(_, bytes)| *bytes),
        };
        Ok(Self { done: 0, bounding: bounding.map_or(0, |(index, _)| index), sinks })
    }

    /// The largest message that is sent.
    pub fn largest(&self) -> Largest {
        self.sinks[self.bounding].largest
    }

    /// Sends a message to those that have not yet taken it; may be dropped, and called again with the same one. Says
    /// whether at least one has taken it: what one can never take is, with on-error=skip, dropped for that one.
    pub async fn send(&mut self, data: &[u8], attributes: &Dict, fds: &[Fd], skips: &Skips) -> Result<bool> {
        let several = self.sinks.len() > 1;
        while let Some(place) = self.sinks.get_mut(self.done) {
            let sent = if data.len() as u64 > place.largest.bytes && several {
                Err(too_large(data.len(), place.largest))
            } else {
                place.sink.send(data, attributes, fds).await
            };
            match sent {
                Ok(()) => place.took = true,
                Err(error) if several => {
                    let text = format!("the sink {}: {}", place.sink, error.text);
                    skips.skip(Error { text, ..error })?;
                }
                Err(error) => skips.skip(error)?,
            }
            self.done += 1;
        }
        let taken = self.sinks.iter().any(|place| place.took);
        self.sinks.iter_mut().for_each(|place| place.took = false);
        self.done = 0;
        Ok(taken)
    }

    /// The sinks may have other connections.
    pub fn renew(&mut self) {
        self.sinks.iter_mut().for_each(|place| place.sink.renew());
    }

    /// Whether the message that was on its way has arrived everywhere, when the sending was given up.
    pub async fn arrived(&mut self) -> bool {
        if let Some(place) = self.sinks.get_mut(self.done)
            && place.sink.arrived().await
        {
            place.took = true;
            self.done += 1;
        }
        self.done == self.sinks.len()
    }

    /// At the end, of a message that goes back to the source: which sinks have it.
    pub fn torn(&self) -> Option<String> {
        let have: Vec<_> =
            self.sinks.iter().filter(|place| place.took).map(|place| place.sink.to_string()).collect();
        (!have.is_empty())
            .then(|| format!("a message that was kept at the source is in {}", have.join(" and ")))
    }
}

/// The sink that says how large a message may be.
impl fmt::Display for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sinks[self.bounding].sink.fmt(f)
    }
}

fn too_large(length: usize, largest: Largest) -> Error {
    let text = format!("a message has {length} bytes, more than the {} {}", largest.bytes, largest.because);
    Error::new(Kind::TooLarge, text)
}
