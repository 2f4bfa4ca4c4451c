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
    inet,
    inotify,
    signal,
    fuse,
}

/// The mechanism of this name.
pub fn by_name(name: &str) -> Result<&'static Descriptor> {
    find(name, |descriptor| descriptor.name == name)
}

/// The mechanism whose addresses are written with this scheme.
pub fn by_scheme(scheme: &str) -> Result<&'static Descriptor> {
    find(scheme, |descriptor| descriptor.schemes.contains(&scheme))
}

fn find(name: &str, is: impl Fn(&Descriptor) -> bool) -> Result<&'static Descriptor> {
    ALL.iter().copied().find(|descriptor| is(descriptor)).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().flat_map(|descriptor| descriptor.schemes).copied().collect();
        Error::new(
            Kind::NoSuchMechanism,
            format!("there is no mechanism {name:?}; there are {}", known.join(", ")),
        )
    })
}

/// `mode`, for every mechanism whose objects have permission bits.
pub(crate) const MODE: Parameter =
    Parameter::new("mode", Type::Mode, "Permission bits of the new object, exact whatever the umask")
        .default("0600");
