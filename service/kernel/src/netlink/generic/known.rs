//! The families that the service listens to, and what their messages say: `acpi_event` (lid, power
//! button, …), `thermal` and `VFS_DQUOT` here, `nlctrl` and `ethtool` in files of their own.
//!
//! Names are those of the kernel's headers, in lower case with dashes, without what every name of a
//! family begins with.

use crate::{
    Dict, Value, dict,
    netlink::{
        generic::{
            controller, ethtool,
            table::{Form, Table},
        },
        wire::{text, u32_at},
    },
};

/// A family that is known here.
#[derive(Debug)]
pub struct Known {
    pub name: &'static str,
    /// The command with this number, in a message to this group, and its attributes.
    pub command: fn(group: &str, number: u8) -> Option<(&'static str, Table)>,
}

/// The families that are listened to.
pub const KNOWN: &[Known] = &[
    Known { name: "nlctrl", command: controller::command },
    Known { name: "acpi_event", command: acpi },
    Known { name: "thermal", command: thermal },
    Known { name: "ethtool", command: ethtool::command },
    Known { name: "VFS_DQUOT", command: quota },
];

/// Commands whose numbers follow one another from 1.
fn nth(names: &[&'static str], number: u8) -> Option<&'static str> {
    names.get(usize::from(number).checked_sub(1)?).copied()
}

/// drivers/acpi/event.c: one command, one attribute, a structure.
fn acpi(_group: &str, number: u8) -> Option<(&'static str, Table)> {
    let table: Table = &[(1, "event", Form::Structure(acpi_event))];
    (number == 1).then_some(("event", table))
}

/// `struct acpi_genl_event`: char[20], char[15], and after a byte of padding two words.
fn acpi_event(event: &[u8]) -> Option<Dict> {
    Some(dict! {
        "device-class" => text(event.get(..20)?),
        "bus-id" => text(event.get(20..35)?),
        "type" => u32_at(event, 36)?,
        "data" => u32_at(event, 40)?,
    })
}

/// linux/thermal.h. The two groups count their commands from different numbers.
fn thermal(group: &str, number: u8) -> Option<(&'static str, Table)> {
    const EVENTS: &[&str] = &[
        "tz-create",
        "tz-delete",
        "tz-disable",
        "tz-enable",
        "tz-trip-up",
        "tz-trip-down",
        "tz-trip-change",
        "tz-trip-add",
        "tz-trip-delete",
        "cdev-add",
        "cdev-delete",
        "cdev-state-update",
        "tz-gov-change",
        "cpu-capability-change",
        "threshold-add",
        "threshold-delete",
        "threshold-flush",
        "threshold-up",
        "threshold-down",
    ];
    let name = match (group, number) {
        ("sampling", 0) => "temp",
        ("sampling", _) => return None,
        (_, number) => nth(EVENTS, number)?,
    };
    Some((name, THERMAL))
}

/// Temperatures are in thousandths of a degree Celsius.
const THERMAL: Table = &[
    (2, "tz-id", Form::Number),
    (3, "tz-temp", Form::Signed),
    (5, "tz-trip-id", Form::Number),
    (6, "tz-trip-type", Form::Name(&["active", "passive", "hot", "critical"])),
    (7, "tz-trip-temp", Form::Signed),
    (8, "tz-trip-hyst", Form::Signed),
    (9, "tz-mode", Form::Name(&["disabled", "enabled"])),
    (10, "tz-name", Form::Text),
    (11, "tz-cdev-weight", Form::Number),
    (13, "tz-gov-name", Form::Text),
    (15, "cdev-id", Form::Number),
    (16, "cdev-cur-state", Form::Number),
    (17, "cdev-max-state", Form::Number),
    (18, "cdev-name", Form::Text),
    (19, "gov-name", Form::Text),
    (20, "cpu-capability", Form::Rows(CPU_CAPABILITY)),
    (25, "threshold-temp", Form::Signed),
    (26, "threshold-direction", Form::Number),
    (27, "tz-prev-temp", Form::Signed),
];

const CPU_CAPABILITY: Table =
    &[(21, "id", Form::Number), (22, "performance", Form::Number), (23, "efficiency", Form::Number)];

/// linux/quota.h: one command.
fn quota(_group: &str, number: u8) -> Option<(&'static str, Table)> {
    const WARNINGS: &[&str] = &[
        "nowarn",
        "ihardwarn",
        "isoftlongwarn",
        "isoftwarn",
        "bhardwarn",
        "bsoftlongwarn",
        "bsoftwarn",
        "ihardbelow",
        "isoftbelow",
        "bhardbelow",
        "bsoftbelow",
    ];
    const TABLE: Table = &[
        (1, "qtype", Form::Name(&["user", "group", "project"])),
        (2, "excess-id", Form::Number),
        (3, "warning", Form::Name(WARNINGS)),
        (4, "dev-major", Form::Number),
        (5, "dev-minor", Form::Number),
        (6, "caused-id", Form::Number),
    ];
    (number == 1).then_some(("warning", TABLE))
}

/// What is put together from several attributes: `device`, as `ls -l` and udev write it.
pub fn complete(attributes: &mut Dict) {
    let number = |key| attributes.get(key).and_then(Value::integer);
    if let (Some(major), Some(minor)) = (number("dev-major"), number("dev-minor")) {
        attributes.insert("device".into(), format!("{major}:{minor}").into());
    }
}
