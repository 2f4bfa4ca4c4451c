//! What can be done with a mechanism: the columns of the table of all mechanisms, docs/reference/mechanisms.md.
//!
//! What concerns the content of an object comes with its shapes. What concerns the object itself every mechanism has,
//! unless its row says otherwise ([`Lack`]), with the reason. So a cell of the table is what the code is made of; the
//! conformance suite holds both against the endpoints themselves, and `cargo test -p xtask` wants a test for each.

use crate::{Descriptor, shape::Shape};

/// One thing that can be done with a mechanism's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ability {
    Create,
    Attach,
    List,
    Read,
    Write,
    Wait,
    Event,
    Fd,
    Relay,
    Permissions,
    Remove,
}

impl Ability {
    pub const ALL: &[Ability] = &[
        Self::Create,
        Self::Attach,
        Self::List,
        Self::Read,
        Self::Write,
        Self::Wait,
        Self::Event,
        Self::Fd,
        Self::Relay,
        Self::Permissions,
        Self::Remove,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Attach => "attach",
            Self::List => "list",
            Self::Read => "read",
            Self::Write => "write",
            Self::Wait => "wait",
            Self::Event => "event",
            Self::Fd => "fd",
            Self::Relay => "relay",
            Self::Permissions => "permissions",
            Self::Remove => "remove",
        }
    }

    /// What it means, in Markdown.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Create => "`Create` makes the kernel's object",
            Self::Attach => "`Attach` makes an endpoint for an object that exists, whoever made it",
            Self::List => {
                "`List` shows every object that the caller may see, also those made without the service"
            }
            Self::Read => {
                "what is in it comes out: `Read`, `Receive`, `Load`, `Value`, `Since` of what has happened"
            }
            Self::Write => "something goes in, or happens to it: `Write`, `Send`, `Store`, `Post`, `Publish`",
            Self::Wait => {
                "a call that ends when something has happened, or with `Timeout`: `Read`, `Receive`, `Accept`, `Wait`, \
                 `WaitExit`, `WaitSince`"
            }
            Self::Event => {
                "what happens at it arrives as a D-Bus signal of its shape, without a call that waits (`Closed`, which all \
                 have, does not count)"
            }
            Self::Fd => "`Open` hands out the kernel's own file descriptor",
            Self::Relay => "`Relay` takes from it, or puts into it, with no client in between",
            Self::Permissions => "`Create` takes a `mode` that is exact, or `SetPermissions` changes it",
            Self::Remove => "`Remove` takes the kernel's object, or its name, away",
        }
    }

    /// Whether it comes with a shape, and so with an interface of its own.
    pub fn is_of_shapes(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Wait | Self::Event | Self::Relay)
    }
}

impl Shape {
    /// What can be done with the content of whatever has this shape.
    pub fn abilities(self) -> &'static [Ability] {
        use Ability::{Event, Read, Relay, Wait, Write};
        match self {
            Self::Stream | Self::Messages => &[Read, Write, Wait, Event, Relay],
            Self::Listener => &[Wait, Event],
            Self::Memory => &[Read, Write, Event, Relay],
            Self::Semaphore => &[Read, Write, Wait],
            Self::Futex => &[Read, Write, Wait, Event],
            Self::Watch => &[Read, Wait, Event],
            Self::Mailbox => &[Read, Event],
            Self::Process => &[Write, Wait, Event],
            Self::Filesystem => &[Read, Write, Event],
        }
    }
}

/// Something that a mechanism does not offer: why, and what there is instead.
#[derive(Debug, Clone, Copy)]
pub struct Lack {
    pub ability: Ability,
    pub reason: &'static str,
}

impl Lack {
    pub const fn new(ability: Ability, reason: &'static str) -> Self {
        Self { ability, reason }
    }
}

impl Descriptor {
    /// Whether its objects have this ability, at least those of one shape.
    pub fn offers(&self, ability: Ability) -> bool {
        match ability.is_of_shapes() {
            true => self.shapes.iter().any(|shape| shape.abilities().contains(&ability)),
            false => self.lack(ability).is_none(),
        }
    }

    /// Why it lacks it, where it says so.
    pub fn lack(&self, ability: Ability) -> Option<&'static str> {
        self.lacks.iter().find(|lack| lack.ability == ability).map(|lack| lack.reason)
    }
}
