//! The connections of this very process, on whatever bus, and the names that they own: what is sent to one
//! of them comes back, and what one of them says has been here already. With them a loop over buses is
//! seen, also one through several endpoints.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The id of a bus, and a name on it.
static OWN: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

fn all() -> MutexGuard<'static, Vec<(String, String)>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stands for a connection, or a name that it owns, as long as that is there.
#[derive(Debug)]
pub struct Own {
    /// As `org.freedesktop.DBus.GetId` tells it.
    pub bus: String,
    /// The unique name, or the one that is owned.
    pub unique: String,
}

impl Own {
    pub fn new(bus: String, unique: String) -> Self {
        all().push((bus.clone(), unique.clone()));
        Self { bus, unique }
    }

    /// Whether this name, on the same bus, is one of this process.
    pub fn has(&self, name: &str) -> bool {
        all().iter().any(|(bus, own)| *bus == self.bus && own == name)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut all = all();
        if let Some(index) = all.iter().position(|(bus, name)| *bus == self.bus && *name == self.unique) {
            all.swap_remove(index);
        }
    }
}
