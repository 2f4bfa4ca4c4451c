//! `org.freedesktop.DBus.Introspectable` for the nodes above the endpoints.
//!
//! zbus's own describes a node with everything below it; with thousands of endpoints the reply
//! would be larger than a bus lets through (32 MiB), and the bus would disconnect the service. A
//! node names its children, as the specification asks; who wants more introspects them.

use std::sync::Arc;

use zbus::{interface, message::Header};

use crate::{errors::Result, introspect, tree::Tree};

pub struct Introspectable {
    tree: Arc<Tree>,
}

impl Introspectable {
    pub fn new(tree: &Arc<Tree>) -> Self {
        Self { tree: tree.clone() }
    }
}

#[interface(name = "org.freedesktop.DBus.Introspectable", introspection_docs = false)]
impl Introspectable {
    #[zbus(out_args("xml_data"))]
    fn introspect(&self, #[zbus(header)] header: Header<'_>) -> Result<String> {
        let path = header.path().map(|path| path.as_str()).unwrap_or("/");
        Ok(introspect::node(&self.tree, path))
    }
}
