//! Places: the right to one more endpoint, within the limits.

use ipc_kernel::{
    Descriptor, Result,
    inotify::budget::{Budget, Share},
    shape::Shape,
};

use crate::{Engine, client::Taken};

/// The right to one more endpoint, given back when the endpoint leaves the table.
#[derive(Debug)]
pub struct Place(pub(crate) Vec<Taken>);

impl Engine {
    /// Watches have a limit of their own, as there may be many more of them.
    pub(crate) fn place_for(&self, mechanism: &Descriptor) -> Result<Place> {
        if mechanism.shapes.contains(&Shape::Watch) {
            let watches = &self.counters.watches;
            let taken = watches.take(self.limits.watches, "there are too many watches", "watches")?;
            return Ok(Place(vec![taken]));
        }
        self.place_for_endpoint()
    }

    /// For the watches that an endpoint makes besides its first.
    pub(crate) fn watches_budget(&self) -> Budget {
        let (watches, limit) = (self.counters.watches.clone(), self.limits.watches);
        Budget::new(move || watches.take(limit, "there are too many watches", "watches").map(Share::new))
    }

    /// Of what costs more than a descriptor there may be fewer: processes, and threads.
    pub(crate) fn place_for_made(&self, mechanism: &Descriptor, place: Place) -> Result<Place> {
        let Place(mut taken) = place;
        if mechanism.shapes.contains(&Shape::Mailbox) {
            let mailboxes = &self.counters.mailboxes;
            taken.push(mailboxes.take(self.limits.mailboxes, "there are too many mailboxes", "mailboxes")?);
        }
        if mechanism.shapes.contains(&Shape::Filesystem) {
            let mounts = &self.counters.mounts;
            taken.push(mounts.take(self.limits.mounts, "there are too many FUSE mounts", "mounts")?);
        }
        Ok(Place(taken))
    }

    pub(crate) fn place_for_endpoint(&self) -> Result<Place> {
        let endpoints = &self.counters.endpoints;
        let taken = endpoints.take(self.limits.endpoints, "there are too many endpoints", "endpoints")?;
        Ok(Place(vec![taken]))
    }
}
