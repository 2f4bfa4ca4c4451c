//! Whom an endpoint talks to: a name on the bus and an object, and who owns the name now.
//!
//! Nobody is bridged back into this process. The service's own name is refused, and so is every name
//! that a connection of this process has, whenever it comes to have it.

use std::sync::{Mutex, PoisonError};

use ipc_kernel::{Dict, Error, Kind, Result};
use zbus::Message as Wire;

use super::link::{Core, failed, owner_rule};

pub struct Target {
    pub name: String,
    pub path: String,
    /// The unique name of the owner.
    owner: Mutex<Option<String>>,
}

impl Target {
    pub fn new(name: String, path: String) -> Result<Self> {
        if name == crate::NAME {
            return Err(loops(&name, "this service's own name"));
        }
        Ok(Self { name, path, owner: Mutex::default() })
    }

    fn set_owner(&self, owner: Option<String>) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = owner;
    }

    pub fn owner(&self) -> Option<String> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks who has the name now. That it changes must have been asked for before ([`owner_rule`]).
    pub async fn ask(&self, core: &Core) -> Result<()> {
        let owner = core.owner(&self.name).await?;
        self.set_owner(owner.clone());
        self.check(core)?;
        // Through a program that hands everything on to the service's bus, where its connection is another process's.
        if owner.is_some() && core.owner(crate::NAME).await? == owner {
            return Err(loops(&self.name, "this service by another name"));
        }
        Ok(())
    }

    /// Follows who has the name. Err(NotFound) as [`reachable`](Self::reachable) says.
    pub async fn find(&self, core: &Core) -> Result<()> {
        core.add_match(&owner_rule(&self.name)).await?;
        self.ask(core).await?;
        self.reachable(core).await
    }

    /// Err(NotFound): nobody has the name, and the bus could start nobody either. Not every bus answers a call then.
    pub async fn reachable(&self, core: &Core) -> Result<()> {
        if self.owner().is_none() {
            let activatable: Vec<String> = core
                .ask("ListActivatableNames", &())
                .await
                .map_err(|error| failed("ask the bus what it can start", error))?;
            if !activatable.contains(&self.name) {
                return Err(Error::new(
                    Kind::NotFound,
                    format!(
                        "nobody has the name {} on the bus {}, and the bus cannot start it; List of dbus shows who is there",
                        self.name, core.bus.label
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Err if it is this process.
    pub fn check(&self, core: &Core) -> Result<()> {
        match self.owner() {
            Some(owner) if core.own.has(&owner) => {
                Err(loops(&self.name, &format!("the service's own connection {owner}")))
            }
            _ if core.own.has(&self.name) => Err(loops(&self.name, "a name of the service's own connection")),
            _ => Ok(()),
        }
    }

    /// Notices a new owner; says whether there is one. None: the message says nothing of it.
    pub fn handle(&self, core: &Core, message: &Wire) -> Option<bool> {
        let (_, owner) = core.new_owner(message, &self.name)?;
        let some = owner.is_some();
        self.set_owner(owner);
        Some(some)
    }

    pub fn inspect(&self, into: &mut Dict) {
        into.insert("owner".into(), self.owner().unwrap_or_default().into());
    }
}

fn loops(name: &str, what: &str) -> Error {
    Error::invalid(format!(
        "{name} is {what}: what is sent to it would come back here and go round for ever; relay between the two endpoints, or PublishEndpoint, instead"
    ))
}
