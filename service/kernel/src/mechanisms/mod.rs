//! The register: one line a mechanism, one file a mechanism.
//!
//! To add one, write `<name>.rs` that exports `DESCRIPTOR` and add its name to the list.

use crate::{Descriptor, Error, Kind, Parameter, Result, Type};

macro_rules! mechanisms {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Every mechanism, in the order in which they are shown.
        pub static ALL: &[&Descriptor] = &[$(&$name::DESCRIPTOR),*];
    };
}

mechanisms! {
    pipe,
    fifo,
    sysvmq,
    posixmq,
    sysvshm,
    posixshm,
    sysvsem,
    posixsem,
    futex,
    mmap,
    unix,
    netlink,
    inet,
    inotify,
    signal,
    fuse,
}

/// The rows that a service offers: those above, and those of mechanisms that are no system calls,
/// which live in the layer that has them.
#[derive(Debug, Clone, Copy)]
pub struct Register {
    more: &'static [&'static Descriptor],
}

impl Register {
    /// The rows of this crate, and these.
    pub const fn with(more: &'static [&'static Descriptor]) -> Self {
        Self { more }
    }

    /// Every mechanism, in the order in which they are shown.
    pub fn iter(self) -> impl Iterator<Item = &'static Descriptor> {
        ALL.iter().chain(self.more).copied()
    }

    /// The mechanism of this name.
    pub fn by_name(self, name: &str) -> Result<&'static Descriptor> {
        self.find(name, |descriptor| descriptor.name == name)
    }

    /// The mechanism whose addresses are written with this scheme.
    pub fn by_scheme(self, scheme: &str) -> Result<&'static Descriptor> {
        self.find(scheme, |descriptor| descriptor.schemes.contains(&scheme))
    }

    fn find(self, name: &str, is: impl Fn(&Descriptor) -> bool) -> Result<&'static Descriptor> {
        self.iter().find(|descriptor| is(descriptor)).ok_or_else(|| {
            let known: Vec<_> = self.iter().flat_map(|descriptor| descriptor.schemes).copied().collect();
            Error::new(
                Kind::NoSuchMechanism,
                format!("there is no mechanism {name:?}; there are {}", known.join(", ")),
            )
        })
    }
}

/// The rows of this crate alone.
pub const KERNEL: Register = Register::with(&[]);

/// The mechanism of this name, in this crate.
pub fn by_name(name: &str) -> Result<&'static Descriptor> {
    KERNEL.by_name(name)
}

/// The mechanism of this crate whose addresses are written with this scheme.
pub fn by_scheme(scheme: &str) -> Result<&'static Descriptor> {
    KERNEL.by_scheme(scheme)
}

/// `mode`, for every mechanism whose objects have permission bits.
pub(crate) const MODE: Parameter =
    Parameter::new("mode", Type::Mode, "Permission bits of the new object, exact whatever the umask")
        .default("0600");
