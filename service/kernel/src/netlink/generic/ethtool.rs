//! `ethtool`: what was changed about a network interface's hardware, linux/ethtool_netlink.h. Its
//! group `monitor` is told of every change, also of those that ioctl(2) made.
//!
//! Settings come without the names of their bits (compact bitsets): `value` has the numbers of the
//! bits that are set, in the order of the string sets that `ethtool --show-…` prints.

use crate::netlink::generic::table::{Form, Table};

/// The notifications; replies are never sent to the group.
pub fn command(_group: &str, number: u8) -> Option<(&'static str, Table)> {
    NOTIFICATIONS.iter().find(|(command, ..)| *command == number).map(|(_, name, table)| (*name, *table))
}

const NOTIFICATIONS: &[(u8, &str, Table)] = &[
    (3, "linkinfo-ntf", LINKINFO),
    (5, "linkmodes-ntf", LINKMODES),
    (8, "debug-ntf", &[HEADER, (2, "msgmask", BITSET)]),
    (10, "wol-ntf", &[HEADER, (2, "modes", BITSET)]),
    (13, "features-ntf", FEATURES),
    (15, "privflags-ntf", &[HEADER, (2, "flags", BITSET)]),
    (17, "rings-ntf", RINGS),
    (19, "channels-ntf", CHANNELS),
    (21, "coalesce-ntf", COALESCE),
    (23, "pause-ntf", PAUSE),
    (25, "eee-ntf", EEE),
    (27, "cable-test-ntf", &[HEADER, (2, "status", Form::Name(CABLE_TEST))]),
    (28, "cable-test-tdr-ntf", &[HEADER, (2, "status", Form::Name(CABLE_TEST))]),
    (31, "fec-ntf", &[HEADER, (2, "modes", BITSET), (3, "auto", Form::Number), (4, "active", Form::Number)]),
    (36, "module-ntf", MODULE),
    (41, "plca-ntf", PLCA),
    (43, "mm-ntf", &[HEADER]),
    (44, "module-fw-flash-ntf", MODULE_FW_FLASH),
    (
        46,
        "phy-ntf",
        &[HEADER, (2, "phy-index", Form::Number), (3, "drvname", Form::Text), (4, "name", Form::Text)],
    ),
    (49, "pse-ntf", &[HEADER, (2, "events", Form::Number)]),
    (50, "rss-ntf", &[HEADER]),
    (52, "rss-create-ntf", &[HEADER]),
    (53, "rss-delete-ntf", &[HEADER]),
];

/// Every message says first which interface it is about.
const HEADER: (u16, &str, Form) = (
    1,
    "header",
    Form::Inline(&[
        (1, "index", Form::Number),
        (2, "interface", Form::Text),
        (3, "header-flags", Form::Number),
        (4, "phy-index", Form::Number),
    ]),
);

const BITSET: Form = Form::Dict(&[
    (1, "nomask", Form::Flag),
    (2, "size", Form::Number),
    (4, "value", Form::Bits),
    (5, "mask", Form::Bits),
]);

const CABLE_TEST: &[&str] = &["unspec", "started", "completed"];

const LINKINFO: Table = &[
    HEADER,
    (2, "port", Form::Number),
    (3, "phyaddr", Form::Number),
    (4, "tp-mdix", Form::Number),
    (5, "tp-mdix-ctrl", Form::Number),
    (6, "transceiver", Form::Number),
];

/// Speed is in Mb/s.
const LINKMODES: Table = &[
    HEADER,
    (2, "autoneg", Form::Number),
    (3, "ours", BITSET),
    (4, "peer", BITSET),
    (5, "speed", Form::Number),
    (6, "duplex", Form::Name(&["half", "full"])),
    (7, "master-slave-cfg", Form::Number),
    (8, "master-slave-state", Form::Number),
    (9, "lanes", Form::Number),
    (10, "rate-matching", Form::Number),
];

const FEATURES: Table =
    &[HEADER, (2, "hw", BITSET), (3, "wanted", BITSET), (4, "active", BITSET), (5, "nochange", BITSET)];

const RINGS: Table = &[
    HEADER,
    (2, "rx-max", Form::Number),
    (3, "rx-mini-max", Form::Number),
    (4, "rx-jumbo-max", Form::Number),
    (5, "tx-max", Form::Number),
    (6, "rx", Form::Number),
    (7, "rx-mini", Form::Number),
    (8, "rx-jumbo", Form::Number),
    (9, "tx", Form::Number),
    (10, "rx-buf-len", Form::Number),
    (11, "tcp-data-split", Form::Name(&["unknown", "disabled", "enabled"])),
    (12, "cqe-size", Form::Number),
    (13, "tx-push", Form::Number),
    (14, "rx-push", Form::Number),
    (15, "tx-push-buf-len", Form::Number),
    (16, "tx-push-buf-len-max", Form::Number),
    (17, "hds-thresh", Form::Number),
    (18, "hds-thresh-max", Form::Number),
];

const CHANNELS: Table = &[
    HEADER,
    (2, "rx-max", Form::Number),
    (3, "tx-max", Form::Number),
    (4, "other-max", Form::Number),
    (5, "combined-max", Form::Number),
    (6, "rx-count", Form::Number),
    (7, "tx-count", Form::Number),
    (8, "other-count", Form::Number),
    (9, "combined-count", Form::Number),
];

/// Times are in microseconds.
const COALESCE: Table = &[
    HEADER,
    (2, "rx-usecs", Form::Number),
    (3, "rx-max-frames", Form::Number),
    (4, "rx-usecs-irq", Form::Number),
    (5, "rx-max-frames-irq", Form::Number),
    (6, "tx-usecs", Form::Number),
    (7, "tx-max-frames", Form::Number),
    (8, "tx-usecs-irq", Form::Number),
    (9, "tx-max-frames-irq", Form::Number),
    (10, "stats-block-usecs", Form::Number),
    (11, "use-adaptive-rx", Form::Number),
    (12, "use-adaptive-tx", Form::Number),
    (13, "pkt-rate-low", Form::Number),
    (14, "rx-usecs-low", Form::Number),
    (15, "rx-max-frames-low", Form::Number),
    (16, "tx-usecs-low", Form::Number),
    (17, "tx-max-frames-low", Form::Number),
    (18, "pkt-rate-high", Form::Number),
    (19, "rx-usecs-high", Form::Number),
    (20, "rx-max-frames-high", Form::Number),
    (21, "tx-usecs-high", Form::Number),
    (22, "tx-max-frames-high", Form::Number),
    (23, "rate-sample-interval", Form::Number),
    (24, "use-cqe-mode-tx", Form::Number),
    (25, "use-cqe-mode-rx", Form::Number),
    (26, "tx-aggr-max-bytes", Form::Number),
    (27, "tx-aggr-max-frames", Form::Number),
    (28, "tx-aggr-time-usecs", Form::Number),
];

const PAUSE: Table = &[
    HEADER,
    (2, "autoneg", Form::Number),
    (3, "rx", Form::Number),
    (4, "tx", Form::Number),
    (6, "stats-src", Form::Number),
];

const EEE: Table = &[
    HEADER,
    (2, "modes-ours", BITSET),
    (3, "modes-peer", BITSET),
    (4, "active", Form::Number),
    (5, "enabled", Form::Number),
    (6, "tx-lpi-enabled", Form::Number),
    (7, "tx-lpi-timer", Form::Number),
];

const MODULE: Table = &[
    HEADER,
    (2, "power-mode-policy", Form::Name(&["unspec", "high", "auto"])),
    (3, "power-mode", Form::Name(&["unspec", "low", "high"])),
];

const PLCA: Table = &[
    HEADER,
    (2, "version", Form::Number),
    (3, "enabled", Form::Number),
    (4, "status", Form::Number),
    (5, "node-cnt", Form::Number),
    (6, "node-id", Form::Number),
    (7, "to-tmr", Form::Number),
    (8, "burst-cnt", Form::Number),
    (9, "burst-tmr", Form::Number),
];

/// Done and total are in bytes.
const MODULE_FW_FLASH: Table = &[
    HEADER,
    (4, "status", Form::Name(&["unspec", "started", "in-progress", "completed", "error"])),
    (5, "status-msg", Form::Text),
    (6, "done", Form::Number),
    (7, "total", Form::Number),
];
