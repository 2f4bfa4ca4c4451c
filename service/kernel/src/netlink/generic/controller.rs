//! `nlctrl`, the family that tells about families, linux/genetlink.h: which there are, with which
//! multicast groups, and which come and go.

use neli::consts::genl::CtrlCmd;
use rustix::net::netlink::GENERIC;

use crate::{
    Dict, Result, Value,
    netlink::{
        generic::table::{self, Form, Table},
        socket::Socket,
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

/// The families that there are in this thread's network namespace. One that comes or goes meanwhile
/// is told by the group.
pub fn families() -> Result<Vec<Family>> {
    let header = [CtrlCmd::Getfamily.into(), 2, 0, 0];
    let what = "the families of generic netlink";
    let mut socket = Socket::open(Some(GENERIC), &[], what)?;
    Ok(socket.dump(ID, &header, what, |frame| Ok(family(frame.payload)))?.0)
}

/// From what follows the header of a message: command, version and two bytes more.
fn family(payload: &[u8]) -> Option<Family> {
    let (&[1, ..], attributes) = payload.split_first_chunk::<4>()? else { return None };
    Family::from_attributes(&table::decode(attributes, FAMILY)?)
}
