//! `org.example.IPC.Mechanism`, on the node of each mechanism.

use std::sync::Arc;

use ipc_engine::options::OPTIONS;
use ipc_kernel::{Descriptor, Parameter};
use zbus::{interface, message::Header};

use crate::{
    errors::Result,
    face::Face,
    rows::Rows,
    variants::{Given, Vardict, dict, vardict},
};

pub struct Mechanism {
    face: Arc<Face>,
    descriptor: &'static Descriptor,
}

impl Mechanism {
    pub fn new(face: &Arc<Face>, descriptor: &'static Descriptor) -> Self {
        Self { face: face.clone(), descriptor }
    }
}

/// A key: name, the verbs that take it, D-Bus type, default, whether it is required, meaning.
type Key = (String, Vec<String>, String, String, bool, String);

#[interface(name = "org.example.IPC.Mechanism")]
impl Mechanism {
    /// The keys of an address of this mechanism: name, the verbs that take it (create, attach,
    /// open), D-Bus type, default as written in an address (empty: none), whether it is required,
    /// and what it means. Behind them the options that every Create and Attach takes.
    #[zbus(out_args("keys"))]
    fn describe(&self, #[zbus(header)] header: Header<'_>) -> Result<Vec<Key>> {
        let _call = self.face.call(&header)?;
        let mut keys: Vec<Key> = Vec::new();
        let tables: [(&str, &[Parameter]); 5] = [
            ("create", self.descriptor.create_parameters),
            ("attach", self.descriptor.attach_parameters),
            ("open", self.descriptor.open_parameters),
            ("create", OPTIONS),
            ("attach", OPTIONS),
        ];
        for (verb, parameter) in
            tables.iter().flat_map(|(verb, table)| table.iter().map(move |row| (*verb, row)))
        {
            let same = keys.iter_mut().find(|key| {
                key.0 == parameter.key
                    && key.5 == parameter.summary
                    && key.3 == parameter.default
                    && key.4 == parameter.required
            });
            match same {
                Some(key) => key.1.push(verb.to_owned()),
                None => keys.push((
                    parameter.key.to_owned(),
                    vec![verb.to_owned()],
                    parameter.kind.signature().to_owned(),
                    parameter.default.to_owned(),
                    parameter.required,
                    format!("{}; {}", parameter.summary, parameter.kind.expected()),
                )),
            }
        }
        Ok(keys)
    }

    /// Every object of this mechanism on the machine that the caller may see, made through this
    /// service or not. The filter holds columns and the values that they must have; an empty one
    /// lists everything. Which columns there are, the reference page says. TooLarge: the reply would
    /// have more than 24 MiB (list), on the system bus 1 MiB (payload) except through Connect().
    #[zbus(out_args("objects"))]
    async fn list(&self, filter: Given<'_>, #[zbus(header)] header: Header<'_>) -> Result<Rows> {
        let _call = self.face.call(&header)?;
        let listing = self.face.engine.list(self.descriptor, dict(filter)?).await?;
        let (longest, limit) = self.face.longest_list();
        Ok(Rows::new(&listing, longest, limit)?)
    }

    /// The short name, as in the manual pages.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> &str {
        self.descriptor.name
    }

    /// One line on what it is.
    #[zbus(property(emits_changed_signal = "const"))]
    fn summary(&self) -> &str {
        self.descriptor.summary
    }

    /// The schemes that its addresses are written with.
    #[zbus(property(emits_changed_signal = "const"))]
    fn schemes(&self) -> Vec<&str> {
        self.descriptor.schemes.to_vec()
    }

    /// The shapes that its endpoints may have.
    #[zbus(property(emits_changed_signal = "const"))]
    fn shapes(&self) -> Vec<&str> {
        self.descriptor.shapes.iter().map(|shape| shape.name()).collect()
    }

    /// Whether it can be used on this machine now.
    #[zbus(property(emits_changed_signal = "false"))]
    fn available(&self) -> bool {
        (self.descriptor.available)().is_ok()
    }

    /// Why it cannot be used, and what to do; empty where it can.
    #[zbus(property(emits_changed_signal = "false"))]
    fn reason(&self) -> String {
        (self.descriptor.available)().err().map(|error| error.text).unwrap_or_default()
    }

    /// The kernel's limits for it, under their names in the manual pages, with the current use
    /// where the kernel tells.
    #[zbus(property(emits_changed_signal = "false"))]
    fn limits(&self) -> Result<Vardict> {
        vardict((self.descriptor.limits)())
    }
}
