//! The checks of the mechanism `dbus`, which connects to whatever bus its caller names.

use super::table::{Check, Test, check, edit};

const BUS: &str = "service/bus/src/dbus/bus.rs";
const CLIENT: &str = "service/kernel/src/unix/client.rs";
const TARGET: &str = "service/bus/src/dbus/target.rs";
const MOD: &str = "service/bus/src/dbus/mod.rs";
const METHOD: &str = "service/bus/src/dbus/method.rs";
const LINK: &str = "service/bus/src/dbus/link.rs";
const BODY: &str = "service/bus/src/dbus/body.rs";
const INBOX: &str = "service/bus/src/dbus/inbox.rs";
const HANDSHAKE: &str = "service/stream/src/handshake.rs";

const CLOSED: Test = Test::Adversary("dbus", "the_system_bus_is_closed_whatever_leads_there");
const ROUND: Test = Test::Adversary("dbus", "nothing_leads_back_through_another_address");
const BECOMES: Test = Test::Adversary("dbus", "a_name_that_becomes_our_own_is_called_no_more");
const NONE: Test = Test::Adversary("dbus_lies", "what_is_no_bus_is_said_to_be_none");
const NEVER: Test = Test::Adversary("dbus_lies", "what_never_answers_is_given_up");
const LIES: Test = Test::Adversary("dbus_lies", "replies_that_lie_answer_nothing");
const BOUNDS: Test = Test::Adversary("dbus_lies", "what_nobody_receives_has_bounds");

pub const CHECKS: &[Check] = &[
    // Where a bus may be.
    check(
        "the session's bus and the system's are none for a worker",
        CLOSED,
        &[edit(
            BUS,
            "\"session\" | \"system\" if peers::any() => {",
            "\"session\" | \"system\" if peers::any() && false => {",
        )],
    ),
    check(
        "a bus is at no socket that is closed to a worker",
        CLOSED,
        &[
            edit(CLIENT, "peers::check_found(&target)?;", ""),
            edit(CLIENT, "peers::check_connected(&socket)?;", ""),
        ],
    ),
    check(
        "the address of a bus is unescaped",
        CLOSED,
        &[edit(BUS, "unescape(\"\", value.to_str()?).ok()", "Some(value.as_encoded_bytes().to_vec())")],
    ),
    // Nobody is bridged back into the service.
    check(
        "the service's own name is not called",
        ROUND,
        &[edit(TARGET, "if name == crate::NAME {", "if name.is_empty() {")],
    ),
    check(
        "the service is not called by another name",
        ROUND,
        &[edit(TARGET, "if owner.is_some() && core", "if owner.is_none() && core")],
    ),
    check(
        "the service's own signals are not heard",
        ROUND,
        &[edit(MOD, "if name.as_deref() == Some(crate::NAME) {", "if name.as_deref() == Some(\"\") {")],
    ),
    check(
        "an own connection is not called",
        BECOMES,
        &[edit(
            TARGET,
            "Some(owner) if core.own.has(&owner) => {",
            "Some(owner) if core.own.has(&owner) && false => {",
        )],
    ),
    check(
        "a name is known to be owned here before the bus says so",
        BECOMES,
        &[edit(TARGET, "_ if core.own.has(&self.name) => Err", "_ if core.own.has(\"\") => Err")],
    ),
    check(
        "who has the name is looked at with each call",
        BECOMES,
        &[edit(METHOD, "self.target.check(core)?;", "")],
    ),
    check(
        "nobody but the bus says who has a name",
        BECOMES,
        &[edit(LINK, "sender.as_str() == DBUS)", "!sender.as_str().is_empty())")],
    ),
    // What a bus may say.
    check(
        "an empty line is no authentication",
        NONE,
        &[edit(
            HANDSHAKE,
            "return Err(bad(\"an empty line in the authentication\".to_owned()));",
            "Place::Beginning",
        )],
    ),
    check(
        "a bus has a time to authenticate",
        NEVER,
        &[edit(LINK, "timeout(PATIENCE, building)", "timeout(PATIENCE * 100, building)")],
    ),
    check("a bus has a time for its own methods", NEVER, &[edit(LINK, ".method_timeout(PATIENCE)", "")]),
    check(
        "a signal answers no call",
        LIES,
        &[edit(
            LINK,
            "        _ => None,\n    }\n}\n\n/// Calls a method of the bus on a connection.",
            "        _ => message.header().reply_serial(),\n    }\n}\n\n/// Calls a method of the bus on a connection.",
        )],
    ),
    check(
        "a reply has so many bytes at most",
        LIES,
        &[edit(BODY, "if body.len() > MOST_BYTES + FRAME {", "if body.is_empty() && false {")],
    ),
    check(
        "a reply has so many descriptors at most",
        LIES,
        &[edit(
            BODY,
            "if fds.len() > MOST_FDS {\n            return Err(de::",
            "if fds.len() > 253 {\n            return Err(de::",
        )],
    ),
    // What it may keep waiting.
    check(
        "so many messages wait to be written at most",
        Test::Adversary("dbus_lies", "a_bus_that_never_reads_keeps_little_waiting"),
        &[edit(LINK, "const OUTGOING: usize = 16;", "const OUTGOING: usize = 256;")],
    ),
    check(
        "all calls that are over at once are answered",
        Test::Adversary("dbus_lies", "every_call_to_an_owned_name_is_answered"),
        &[edit(LINK, "const ANSWERS: usize = 8192;", "const ANSWERS: usize = 16;")],
    ),
    check(
        "so many bytes wait to be received at most",
        BOUNDS,
        &[edit(INBOX, "self.bytes + bytes(message) > MOST_BYTES ||", "")],
    ),
    check(
        "so many descriptors wait to be received at most",
        BOUNDS,
        &[edit(INBOX, "|| self.fds + message.fds.len() > MOST_WAITING_FDS", "")],
    ),
    check("so many messages are read ahead at most", BOUNDS, &[edit(LINK, ".max_queued(AHEAD)", "")]),
];
