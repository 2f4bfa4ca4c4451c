//! Generic netlink: families that modules of the kernel bring along, by name. Which there are, and
//! which multicast groups they have, `nlctrl` tells ([`controller`]).
//!
//! [`Families`] listens to the groups of the families that are known here ([`known`]), as far as
//! the kernel lets the caller; to those that come later, when they come. Each has a socket of its
//! own, so that a flood from one loses nothing of the others, and `Overflow` can name it.

mod controller;
mod ethtool;
mod known;
mod table;

use std::collections::BTreeMap;

use rustix::{io::Errno, net::netlink::GENERIC};

use crate::{
    Attempt, Readiness, Result,
    error::Attempted,
    netlink::{
        Event, Generic, Source,
        generic::{
            controller::Family,
            known::{KNOWN, Known},
        },
        listener::{Datagram, Listener, Trust},
        wire,
    },
};

/// The command, the version and two reserved bytes: `struct genlmsghdr`.
const HEADER: usize = 4;

/// What the families that are known here tell everybody.
#[derive(Debug)]
pub struct Families {
    /// `nlctrl` is the first.
    members: Vec<Member>,
    /// A family may have come of which nobody was told.
    unsure: bool,
}

impl Families {
    /// In the network namespace of this thread. Most families speak in the first one only.
    pub fn open() -> Result<Self> {
        let mut families = Self { members: Vec::new(), unsure: false };
        // Listened to before it is asked, so that nothing comes in between.
        families.learn(Family {
            name: "nlctrl".into(),
            id: controller::ID,
            groups: vec![("notify".into(), controller::ID.into())],
        })?;
        families.look()?;
        Ok(families)
    }

    /// Asks which families there are.
    fn look(&mut self) -> Result<()> {
        for family in controller::families()? {
            self.learn(family)?;
        }
        Ok(())
    }

    /// Listens to a family if it is known here. What it was called before is forgotten when it comes
    /// anew; when it goes, the kernel ends the memberships.
    fn learn(&mut self, family: Family) -> Result<()> {
        let Some(known) = KNOWN.iter().find(|known| known.name == family.name) else { return Ok(()) };
        let place = match self.members.iter().position(|member| member.known.name == known.name) {
            Some(place) => place,
            None => {
                self.members.push(Member::new(known, family.id)?);
                self.members.len() - 1
            }
        };
        self.members[place].join(family)
    }
}

impl Source for Families {
    fn next(&mut self) -> Result<Attempt<Vec<Event>>> {
        let mut events = Vec::new();
        let mut waits = Vec::new();
        // nlctrl's are taken last: what a family said under its former number is read before.
        for member in self.members.iter_mut().rev() {
            let before = events.len();
            let lost = member.take(&mut events)?;
            self.unsure |= lost && member.id == controller::ID;
            if events.len() == before {
                waits.push(member.socket.readable());
            }
        }
        let news: Vec<Family> = events.iter().filter_map(new_family).collect();
        for family in news {
            let name = family.name.clone();
            if self.learn(family).is_err() {
                // Nobody listens to it.
                events.push(Event::Overflow(name));
            }
        }
        // That some are not known was told as a loss of nlctrl; asked again at the next event.
        if self.unsure && self.look().is_ok() {
            self.unsure = false;
        }
        Ok(if events.is_empty() { Attempt::Wait(Readiness::Any(waits)) } else { Attempt::Done(events) })
    }
}

/// The family, with those of its groups that an event of `nlctrl` says are new.
fn new_family(event: &Event) -> Option<Family> {
    let Event::Generic(Generic { family, command, attributes, .. }) = event else { return None };
    let new = family == "nlctrl" && matches!(&**command, "newfamily" | "newmcast-grp");
    new.then(|| Family::from_attributes(attributes)).flatten()
}

/// A family that is listened to.
#[derive(Debug)]
struct Member {
    known: &'static Known,
    id: u16,
    groups: BTreeMap<u32, String>,
    socket: Listener,
}

impl Member {
    fn new(known: &'static Known, id: u16) -> Result<Self> {
        let socket = Listener::open(GENERIC, Trust::Kernel, &format!("the events of {}", known.name))?;
        Ok(Self { known, id, groups: BTreeMap::new(), socket })
    }

    fn join(&mut self, family: Family) -> Result<()> {
        if self.id != family.id {
            self.id = family.id;
            self.groups.clear();
        }
        for (name, group) in family.groups {
            match self.socket.join(group) {
                Ok(()) => _ = self.groups.insert(group, name),
                // For administrators only; or the family has gone again.
                Err(Errno::PERM | Errno::NOENT | Errno::INVAL) => {}
                Err(errno) => {
                    let attempt = || format!("listen to the group {name} of {}", self.known.name);
                    return Err(errno).attempted(attempt);
                }
            }
        }
        Ok(())
    }

    /// Adds what has come; true when something was lost.
    fn take(&mut self, events: &mut Vec<Event>) -> Result<bool> {
        let Self { known, id, groups, socket } = self;
        let lost = socket.drain(|datagram| {
            let decoded = decode(known, *id, groups, datagram).unwrap_or_default();
            events.extend(decoded.into_iter().map(Event::Generic));
        })?;
        if lost {
            events.push(Event::Overflow(known.name.into()));
        }
        Ok(lost)
    }
}

/// None for a damaged datagram, and for one that is not of the family.
fn decode(
    known: &Known,
    id: u16,
    groups: &BTreeMap<u32, String>,
    datagram: Datagram<'_>,
) -> Option<Vec<Generic>> {
    let group = groups.get(&datagram.group)?;
    let decode = |message: wire::Frame<'_>| {
        let (&[number, ..], attributes) = message.payload.split_first_chunk::<HEADER>()?;
        let command = (known.command)(group, number);
        let (command, table) = command.map_or_else(
            || (number.to_string(), Default::default()),
            |(command, table)| (command.to_owned(), table),
        );
        let mut attributes = table::decode(attributes, table)?;
        known::complete(&mut attributes);
        (message.kind == id).then(|| Generic {
            family: known.name.into(),
            group: group.clone(),
            command,
            attributes,
        })
    };
    wire::messages(datagram.data)?.into_iter().map(decode).collect()
}

#[cfg(test)]
mod testing {
    //! Messages as the kernel sends them, written by neli.

    use neli::{
        ToBytes,
        consts::nl::NlmF,
        genl::{AttrType, GenlmsghdrBuilder, NlattrBuilder, NoUserHeader},
        nl::{NlPayload, NlmsghdrBuilder},
        types::{Buffer, GenlBuffer},
    };

    fn bytes(of: &impl ToBytes) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        of.to_bytes(&mut bytes).expect("bytes");
        bytes.into_inner()
    }

    /// An attribute with its padding; NLA_F_NESTED is part of `kind`.
    pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let attribute = NlattrBuilder::default()
            .nla_type(AttrType::<u16>::from(kind))
            .nla_payload(Buffer::from(payload))
            .build();
        bytes(&attribute.expect("an attribute"))
    }

    /// A message with attributes that are bytes already.
    pub fn message(id: u16, command: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let header = GenlmsghdrBuilder::<u8, u16, NoUserHeader>::default()
            .cmd(command)
            .version(1)
            .attrs(GenlBuffer::<u16, Buffer>::new())
            .build();
        let payload = [bytes(&header.expect("a header")), attributes.concat()].concat();
        let message = NlmsghdrBuilder::default()
            .nl_type(id)
            .nl_flags(NlmF::empty())
            .nl_payload(NlPayload::Payload(Buffer::from(payload)))
            .build();
        bytes(&message.expect("a message"))
    }
}

#[cfg(test)]
mod tests;
