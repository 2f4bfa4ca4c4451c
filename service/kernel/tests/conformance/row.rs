//! What fixtures are made of: also those of mechanisms in other layers, which run these suites over their
//! own rows (`service/bus/tests/conformance/`).

use ipc_kernel::shape::Shape;

use crate::making::{Scratch, Shared};

/// One way to make an object of a mechanism.
pub struct Row<Rules: 'static, Object> {
    pub mechanism: &'static str,
    /// What distinguishes it from the mechanism's other rows.
    pub variant: &'static str,
    pub make: fn(&mut Scratch) -> Object,
    pub rules: Rules,
}

/// An endpoint that a fixture made, and the shape that it was made for.
pub struct Made {
    pub shape: Shape,
    pub variant: &'static str,
    pub endpoint: Shared,
    /// Attach finds the object by the endpoint's address.
    pub found: bool,
    /// Options of `Open` for an fd that shows what it is, where there is one.
    pub open: Option<&'static str>,
}

/// The rules of messages.
#[derive(Debug, Clone, Copy)]
pub struct MessageRules {
    /// Messages of no bytes are legal.
    pub empty: bool,
    /// `peek` works.
    pub peek: bool,
    /// File descriptors pass.
    pub fds: bool,
    /// A sender waits for room (else the kernel drops what does not fit).
    pub waits_when_full: bool,
    /// `receive` says `Closed` when the sender has gone.
    pub ends: bool,
    /// Messages also flow from `reader` to `writer`.
    pub duplex: bool,
    /// Attach finds the reader by its address.
    pub found: bool,
    /// Options of `Open` for an fd of the reader that shows that it carries messages.
    pub open_reader: Option<&'static str>,
    /// The same of the writer.
    pub open_writer: Option<&'static str>,
}

/// Whether a mechanism's objects have names that Create takes and Attach finds.
pub enum Names {
    Named {
        /// An address for Create that nothing has, and the address for Attach of the same object.
        fresh: fn(&mut Scratch) -> (String, String),
        /// Mode bits can be given, and `inspect` shows them under `mode`.
        mode: bool,
    },
    /// The kernel chooses the name, a port: an address for Create, and one for Attach that nobody has.
    Chosen { create: &'static str, missing: &'static str },
    /// Create takes no name.
    Anonymous,
}
