//! Confined callers: those that run in namespaces of their own, under a seccomp filter or under a
//! foreign security label. What is done for them is done outside of their confinement, where a
//! path, a key, a name, an address or a pid may mean something else, or something that they were
//! to be kept from. So they get what has no name: anonymous objects, and what they hand over as
//! file descriptors. Everything on an endpoint that they have works as for anybody else.

use ipc_kernel::{Descriptor, Dict, Error, Kind, Parameters, Result};

use crate::{Engine, options::Lifetime};

impl Engine {
    /// Err(Confined) if the caller is confined; `attempt` reads "attach to something by its name".
    fn unconfined(&self, attempt: impl FnOnce() -> String) -> Result<()> {
        let Some(reasons) = &self.confinement else { return Ok(()) };
        Err(Error::new(
            Kind::Confined,
            format!(
                "cannot {}: the caller is confined ({reasons}), and what it names may be something else outside; \
                 anonymous objects (pipe:, mmap:size=4096, unix:pair), Adopt and everything on the endpoints made \
                 with them work",
                attempt()
            ),
        ))
    }

    pub(crate) fn may_create(&self, mechanism: &Descriptor, parameters: &Parameters) -> Result<()> {
        if (mechanism.anonymous)(parameters) {
            return Ok(());
        }
        self.unconfined(|| format!("create a {} that has a name", mechanism.name))
    }

    pub(crate) fn may_attach(&self, mechanism: &Descriptor) -> Result<()> {
        self.unconfined(|| format!("attach to a {} by its name", mechanism.name))
    }

    pub(crate) fn may_list(&self, mechanism: &Descriptor) -> Result<()> {
        self.unconfined(|| format!("list what there is of {}", mechanism.name))
    }

    pub(crate) fn may_live_as(&self, lifetime: &Lifetime) -> Result<()> {
        match lifetime {
            Lifetime::Service | Lifetime::Client => Ok(()),
            Lifetime::Process(pid) => self.unconfined(|| format!("bind a lifetime to process {pid}")),
        }
    }

    /// A message may say where it is to go.
    pub(crate) fn may_address(&self, attributes: &Dict) -> Result<()> {
        match attributes.contains_key("address") {
            true => self.unconfined(|| "send a message to an address".to_owned()),
            false => Ok(()),
        }
    }
}
