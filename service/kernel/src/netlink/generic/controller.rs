//! `nlctrl`, the family that tells about families, linux/genetlink.h: which there are, with which
//! multicast groups, and which come and go.

use neli::{
    ToBytes,
    consts::{genl::CtrlCmd, nl::NlmF},
    genl::{GenlmsghdrBuilder, NoUserHeader},
    nl::{NlPayload, NlmsghdrBuilder},
    types::{Buffer, GenlBuffer},
};
use rustix::{io::Errno, net::netlink::GENERIC};

use crate::{
    Dict, Error, Kind, Result, Value,
    error::Attempted,
    netlink::{
        generic::table::{self, Form, Table},
        listener::{Listener, Trust},
        message::{self, u32_at},
    },
};

/// The id of `nlctrl`, and of its group: the only ones that nobody has to ask for.
pub const ID: u16 = 16;

/// The commands of notifications.
pub fn command(_group: &str, number: u8) -> Option<(&'static str, Table)> {
    let name = match number {
        1 => "newfamily",
        2 => "delfamily",
        4 => "newops",
        5 => "delops",
        7 => "newmcast-grp",
        8 => "delmcast-grp",
        _ => return None,
    };
    Some((name, FAMILY))
}

const FAMILY: Table = &[
    (1, "id", Form::Number),
    (2, "name", Form::Text),
    (3, "version", Form::Number),
    (4, "header-size", Form::Number),
    (5, "max-attribute", Form::Number),
    (6, "operations", Form::Each(&[(1, "id", Form::Number), (2, "flags", Form::Number)])),
    (7, "groups", Form::Each(&[(1, "name", Form::Text), (2, "id", Form::Number)])),
];

/// A family as `nlctrl` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    pub name: String,
    pub id: u16,
    /// Name and number of its multicast groups.
    pub groups: Vec<(String, u32)>,
}

impl Family {
    /// From the attributes of a message; None where one is missing.
    pub fn from_attributes(attributes: &Dict) -> Option<Self> {
        let number = |dict: &Dict| u32::try_from(dict.get("id")?.integer()?).ok();
        let name = |dict: &Dict| match dict.get("name")? {
            Value::Text(name) => Some(name.clone()),
            _ => None,
        };
        let groups = match attributes.get("groups") {
            Some(Value::Dicts(groups)) => groups.as_slice(),
            _ => &[],
        };
        let groups = groups.iter().map(|group| Some((name(group)?, number(group)?)));
        Some(Self {
            name: name(attributes)?,
            id: u16::try_from(number(attributes)?).ok()?,
            groups: groups.collect::<Option<_>>()?,
        })
    }
}

/// The families that there are in this thread's network namespace. The kernel answers a part at
/// each look into the socket: there is nothing to wait for.
pub fn families() -> Result<Vec<Family>> {
    const WHAT: &str = "the families of generic netlink";
    let attempt = || format!("ask the kernel for {WHAT}");
    let mut socket = Listener::open(GENERIC, Trust::Kernel, WHAT)?;
    socket.ask(&request().ok_or(Errno::INVAL).attempted(attempt)?).attempted(attempt)?;
    let mut families = Vec::new();
    let mut end = None;
    loop {
        let mut idle = true;
        socket.drain(|datagram| {
            idle = false;
            for message in message::messages(datagram.data).unwrap_or_default() {
                match i32::from(message.kind) {
                    // Both begin with 0 or a negative errno.
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => end = Some(u32_at(message.payload, 0)),
                    _ => families.extend(family(message.payload)),
                }
            }
        })?;
        match end {
            Some(Some(0)) => return Ok(families),
            Some(Some(errno)) => {
                let errno = Errno::from_raw_os_error(errno.cast_signed().saturating_neg());
                return Err(errno).attempted(attempt);
            }
            Some(None) => return Err(Errno::BADMSG).attempted(attempt),
            None if idle => {
                let text = format!("cannot {}: its answer has no end", attempt());
                return Err(Error::new(Kind::Unavailable, text));
            }
            None => {}
        }
    }
}

/// From what follows the header of a message: command, version and two bytes more.
fn family(payload: &[u8]) -> Option<Family> {
    let (&[1, ..], attributes) = payload.split_first_chunk::<4>()? else { return None };
    Family::from_attributes(&table::decode(attributes, FAMILY)?)
}

/// None if neli could not write it, which it can.
fn request() -> Option<Vec<u8>> {
    let message = GenlmsghdrBuilder::<_, u16, NoUserHeader>::default()
        .cmd(CtrlCmd::Getfamily)
        .version(2)
        .attrs(GenlBuffer::<u16, Buffer>::new())
        .build();
    let message = NlmsghdrBuilder::default()
        .nl_type(ID)
        .nl_flags(NlmF::REQUEST | NlmF::DUMP)
        .nl_payload(NlPayload::Payload(message.ok()?))
        .build()
        .ok()?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    message.to_bytes(&mut bytes).ok()?;
    Some(bytes.into_inner())
}
