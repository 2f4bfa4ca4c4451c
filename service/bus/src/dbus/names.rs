//! A name that is watched: who has it, when that changes, and who has it at the beginning.

use std::sync::atomic::{AtomicBool, Ordering};

use ipc_kernel::{
    Attempt, Dict, Error, Result, dict,
    shape::{Message, Outgoing},
};
use zbus::Message as Wire;

use super::{
    endpoint::Role,
    link::{Core, owner_rule},
};

pub struct WatchedName {
    pub name: String,
    /// Whether anything was heard; then what is asked for at the beginning is old.
    pub heard: AtomicBool,
}

impl WatchedName {
    fn happened(&self, core: &Core, event: &str, owner: &str) {
        let data = serde_json::json!({ "event": event, "name": self.name, "owner": owner }).to_string();
        let attributes = dict! { "event" => event, "name" => self.name.as_str(), "owner" => owner };
        core.inbox.push(Message { data: data.into_bytes(), attributes, fds: Vec::new() });
    }
}

impl Role for WatchedName {
    const SELECTORS: &'static [&'static str] = &["event", "owner"];
    const COMES_BACK: bool = false;

    async fn set_up(&self, core: &Core) -> Result<()> {
        core.add_match(&owner_rule(&self.name)).await?;
        let owner = core.owner(&self.name).await?;
        if !self.heard.swap(true, Ordering::AcqRel) {
            match owner {
                Some(owner) => self.happened(core, "appeared", &owner),
                None => self.happened(core, "vanished", ""),
            }
        }
        Ok(())
    }

    fn send(&self, _core: &Core, _message: Outgoing<'_>) -> Result<Attempt<()>> {
        Err(Error::not_supported("a name that is watched takes no messages; Attach to a method of its owner"))
    }

    fn handle(&self, core: &Core, message: &Wire) {
        let Some((old, new)) = core.new_owner(message, &self.name) else { return };
        self.heard.store(true, Ordering::Release);
        if let Some(old) = old {
            self.happened(core, "vanished", &old);
        }
        if let Some(new) = new {
            self.happened(core, "appeared", &new);
        }
    }

    fn inspect(&self, _core: &Core, into: &mut Dict) {
        into.insert("name".into(), self.name.as_str().into());
    }
}
