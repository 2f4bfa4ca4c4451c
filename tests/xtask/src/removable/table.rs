//! The checks that can be taken out, and the one test of each that must fail then: the only place that says so.
//!
//! An entry is an edit of the sources, so nothing of this is in the program: no feature, no argument and no variable
//! turns a check off. What is replaced has to be there exactly once; `cargo xtask check` looks.

/// A check, and how it is missed.
pub struct Check {
    pub name: &'static str,
    pub edits: &'static [Edit],
    pub test: Test,
}

pub struct Edit {
    pub file: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

/// Where the test is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// File and name, in tests/adversary/tests.
    Adversary(&'static str, &'static str),
    /// In service/spawner/tests, which needs no bus.
    Spawner(&'static str),
}

use Test::{Adversary, Spawner};

pub const fn edit(file: &'static str, from: &'static str, to: &'static str) -> Edit {
    Edit { file, from, to }
}

pub const fn check(name: &'static str, test: Test, edits: &'static [Edit]) -> Check {
    Check { name, edits, test }
}

const JUDGE: &str = "service/front/src/judge.rs";
const ROUTER: &str = "service/front/src/router.rs";
const WHO: &str = "service/front/src/identity.rs";
const TARGETS: &str = "service/kernel/src/signal/address.rs";
const BIRTH: &str = "service/spawner/src/identity.rs";

/// In a child, the kernel is asked whether everything has been done; that goes with what was.
const VERIFIED: Edit = edit(BIRTH, "facts.iter().find(|(holds, _)| !holds)", "facts.iter().find(|_| false)");

const OTHERS: Test = Adversary("whose", "b7_a_worker_that_answers_for_others");
const GARBAGE: Test = Adversary("whose", "b7_a_worker_that_sends_garbage");
const WORDS: Test = Adversary("bytes", "what_a_worker_says_does_not_end_the_front");

pub const CHECKS: &[Check] = &[
    // What a worker may say.
    check(
        "a reply is for a client of this worker",
        OTHERS,
        &[edit(
            JUDGE,
            r#"Addressee::Foreign => Err(format!("it replied to {destination}, which is not its client"))"#,
            "Addressee::Foreign => Ok(Said::Nothing)",
        )],
    ),
    check(
        "a reply is for a call that waits for one",
        WORDS,
        &[edit(
            JUDGE,
            r#"Err(format!("it replied to call {serial} of {destination}, which is none"))"#,
            "Ok(Said::Nothing)",
        )],
    ),
    check(
        "a signal is for a client of this worker",
        OTHERS,
        &[edit(
            JUDGE,
            r#"_ => Err(format!("it sent a signal to {destination}, which is not its client"))"#,
            "_ => Ok(Said::Nothing)",
        )],
    ),
    check("a signal is one of this service", WORDS, &[edit(JUDGE, "if !path || !interface {", "if false {")]),
    check(
        "a worker calls nobody",
        GARBAGE,
        &[edit(
            JUDGE,
            r#"Type::MethodCall => Err("it called a method".to_owned())"#,
            "Type::MethodCall => Ok(Said::Nothing)",
        )],
    ),
    check(
        "a worker has no say in who sent it",
        WORDS,
        &[edit(JUDGE, "if header.sender().is_some() {", "if false {")],
    ),
    check(
        "a reply has no path",
        WORDS,
        &[edit(JUDGE, "if header.path().is_some() || header.interface()", "if false && header.interface()")],
    ),
    check(
        "the body of what a worker says is valid",
        WORDS,
        &[edit(
            "service/front/src/life.rs",
            "parcel.message().body().validate()",
            "Ok::<(), zbus::Error>(())",
        )],
    ),
    check(
        "a worker's message has a size",
        GARBAGE,
        &[edit("service/stream/src/reader.rs", "if length > self.limit {", "if false {")],
    ),
    check(
        "the front's own words are text",
        WORDS,
        &[
            edit("service/front/src/refusals.rs", ".build(&(plain(&self.text),))", ".build(&(&self.text,))"),
            edit("service/front/src/life.rs", "let why = plain(&why);", "let _ = plain;"),
        ],
    ),
    // What the herald may say.
    check(
        "a worker does not speak to everybody",
        Adversary("herald", "a_worker_does_not_speak_to_everybody"),
        &[edit(
            JUDGE,
            "None if !broadcast => return aside(message),",
            "None if !broadcast && !herald::is_for(message) => return aside(message),",
        )],
    ),
    check(
        "the herald speaks of netlink",
        Adversary("herald", "the_herald_speaks_of_netlink_to_everybody_and_of_nothing_else"),
        &[edit(JUDGE, "None if herald::is_for(message) => return", "None => return")],
    ),
    check(
        "only its interface's calls go to the herald",
        Adversary("herald", "other_calls_on_the_node_are_the_callers_own"),
        &[edit(
            "service/front/src/herald.rs",
            "header.interface().is_some_and(|interface| *interface == INTERFACE)",
            "header.interface().is_some()",
        )],
    ),
    check(
        "the herald's sandbox is a smaller one",
        Spawner("the_herald_is_the_fronts_user_and_can_less"),
        &[edit(
            "service/spawner/src/sandbox/mod.rs",
            "Self::Herald => &calls::HERALD,",
            "Self::Herald => &calls::WORKER,",
        )],
    ),
    // What the bus hands to the front.
    check(
        "a message that cannot be read is left out",
        Adversary("bytes", "what_a_bus_lets_through_does_not_end_the_front"),
        &[edit("service/stream/src/bus.rs", "LONGEST, Unreadable::IsLeftOut,", "LONGEST, Unreadable::Ends,")],
    ),
    check(
        "a message that cannot be read is left out on a session bus",
        Adversary("bytes", "what_a_session_bus_lets_through_does_not_end_the_service"),
        &[edit(
            "service/bus/src/serve.rs",
            "socket.map_or_else(|| Builder::address(address), Builder::socket)",
            "socket.map_or_else(|| Builder::address(address.clone()), |_| Builder::address(address.clone()))",
        )],
    ),
    check(
        "a call has a size",
        Adversary("front", "a_large_call_stops_at_the_front"),
        &[edit(ROUTER, "if parcel.size() > self.limits.payload as usize + HEADER {", "if false {")],
    ),
    check(
        "a call has few descriptors",
        Adversary("exhaustion", "d2_descriptors_by_the_thousand"),
        &[edit(ROUTER, "if fds > self.limits.fds_per_call as usize {", "if false {")],
    ),
    check(
        "a user has few calls in flight",
        Adversary("front", "calls_of_a_user_stop_at_the_front"),
        &[edit(
            "service/front/src/admission.rs",
            "pools.calls.take(&user, wanted.calls, per_user)",
            "pools.calls.take(&user, wanted.calls, u64::MAX)",
        )],
    ),
    check(
        "a connection has few calls in flight",
        Adversary("front", "calls_of_a_connection_stop_at_the_front"),
        &[edit(
            "service/front/src/admission.rs",
            "pools.connections.take(connection, wanted.calls, limit).is_err()",
            "pools.connections.take(connection, wanted.calls, u64::MAX).is_err()",
        )],
    ),
    check(
        "who comes late finds a place",
        Adversary("front", "the_last_places_are_shared"),
        &[edit("service/front/src/admission.rs", "if wanted > share {", "if false {")],
    ),
    check(
        "who does not read gets no signals",
        Adversary("front", "signals_that_are_not_read_stay_in_the_worker"),
        &[edit(
            "service/front/src/budget.rs",
            "if self.unread <= self.limit && self.kept.is_empty() {",
            "if true {",
        )],
    ),
    check(
        "who does not read is not served",
        Adversary("exhaustion", "d5_who_never_reads"),
        &[edit("service/front/src/budget.rs", "if self.unread <= self.refuse {", "if true {")],
    ),
    check(
        "few workers are started in a second",
        Adversary("exhaustion", "d12_connections_that_come_and_go"),
        &[edit(
            "service/front/src/starts.rs",
            "Some(each) if over + each <= now + SECOND * BURST => {",
            "Some(each) => {",
        )],
    ),
    check(
        "a worker that crashes over and over is not started again",
        Adversary("faults", "a_worker_that_crashes_again_and_again"),
        &[edit(
            "service/front/src/starts.rs",
            "if history.crashes.len() >= limits.worker_crashes as usize {",
            "if false {",
        )],
    ),
    // Who is calling.
    check(
        "without a user there is no caller",
        Adversary("who", "a2_credentials_that_are_missing"),
        &[edit(
            WHO,
            r#"let Some(uid) = uid else { return Err(refused("the message bus does not say which user is calling")) };"#,
            "let uid = uid.unwrap_or(0);",
        )],
    ),
    check(
        "without groups there is no caller",
        Adversary("who", "a2_credentials_that_are_missing"),
        &[edit(
            WHO,
            "let (uid, groups) = check(uid, groups)?;",
            "let (uid, groups) = check(uid, groups.or(uid.map(|uid| vec![uid])))?;",
        )],
    ),
    check(
        "who has gone is nobody",
        Adversary("who", "a1_caller_leaves_before_the_lookup"),
        &[
            // As polkit did, CVE-2021-3560.
            edit(
                WHO,
                "            return Err(Unknown::Gone);",
                r#"            let identity = Identity { uid: 0, gid: 0, groups: vec![0], confinement: UNKNOWN };
            return Ok(Caller { identity, worker: format!("w-0-{:032}", 0) });"#,
            ),
            edit(ROUTER, "lock(&self.callers).remove(name)", r#"lock(&self.callers).remove("")"#),
        ],
    ),
    check(
        "an answer of the bus comes from the bus",
        Adversary("who", "a2_credentials_that_are_missing"),
        &[edit(
            "service/front/src/bus.rs",
            "Some(sender) if is_bus(sender) => Ok(reply)",
            "Some(_) => Ok(reply)",
        )],
    ),
    check(
        "the process of another user tells nothing",
        Adversary("pids", "a4_a_recycled_pid_gives_nobody_more"),
        &[edit(
            "service/spawner/src/confinement.rs",
            "if !is_of(&status, uid) {",
            "if !is_of(&status, uid) && false {",
        )],
    ),
    check(
        "a descriptor that cannot be closed stops its sender only",
        Adversary("dead_files", "c5_through_a_bus"),
        &[edit(
            "service/front/src/parcel.rs",
            "self.closer.close(self.user, Box::new((message, held)));",
            "drop((message, held));",
        )],
    ),
    check(
        "nobody is not a user",
        Adversary("who", "a12_nobody_is_refused"),
        &[
            edit(WHO, "if uid == NOBODY || uid == u32::MAX {", "if uid == u32::MAX {"),
            edit(BIRTH, "ids.all(|id| ![NOBODY, u32::MAX].contains(id))", "ids.all(|id| *id != u32::MAX)"),
        ],
    ),
    check(
        "the spawner starts no worker of nobody",
        Spawner("identities_that_are_nobody_are_refused"),
        &[edit(BIRTH, "ids.all(|id| ![NOBODY, u32::MAX].contains(id))", "ids.all(|id| *id != u32::MAX)")],
    ),
    check(
        "the spawner listens to the front's user only",
        Spawner("a_front_that_is_another_user_is_refused"),
        &[edit(
            "service/spawner/src/spawner.rs",
            "Ok((uid, socket)) if uid == self.user.uid => ",
            "Ok((uid, socket)) if uid < u32::MAX => ",
        )],
    ),
    check(
        "who lives in other namespaces is confined",
        Adversary("who", "a13_other_namespaces_are_confined"),
        &[edit(
            "service/spawner/src/confinement.rs",
            "inode(&process, name).ok()? != *own",
            "inode(&process, name).ok()? == (0, own.1)",
        )],
    ),
    check(
        "who is under a seccomp filter is confined",
        Adversary("who", "a14_a_seccomp_filter_is_not_escaped"),
        &[edit(
            "service/spawner/src/confinement.rs",
            r#".is_some_and(|mode| mode != "0")"#,
            ".is_some_and(|_| false)",
        )],
    ),
    check(
        "who is confined gets what has no name",
        Adversary("who", "a13_other_namespaces_are_confined"),
        &[edit(
            "service/engine/src/confinement.rs",
            "let Some(reasons) = &self.confinement else { return Ok(()) };",
            "let Some(reasons) = self.confinement.as_ref().filter(|_| false) else { return Ok(()) };",
        )],
    ),
    // What a worker is.
    check(
        "a worker has its caller's groups",
        Adversary("who", "a9_groups_are_those_of_the_connection"),
        &[
            edit(BIRTH, "set_thread_groups(&groups)", "set_thread_groups(&groups[..groups.len().min(1)])"),
            VERIFIED,
        ],
    ),
    check(
        "a worker of root has no capability",
        Adversary("who", "a11_root_has_no_capabilities_here"),
        &[
            edit(BIRTH, "set_capabilities(None, NO_CAPABILITY)", "Ok::<(), Errno>(())"),
            edit(
                BIRTH,
                "remove_capability_from_bounding_set(capability(number))",
                "Err::<(), _>(Errno::INVAL)",
            ),
            VERIFIED,
        ],
    ),
    check(
        "a worker cannot be looked into",
        Adversary("whose", "b9_a_worker_is_closed_to_its_user"),
        &[
            edit(
                BIRTH,
                "set_dumpable_behavior(DumpableBehavior::NotDumpable)",
                "set_dumpable_behavior(DumpableBehavior::Dumpable)",
            ),
            VERIFIED,
        ],
    ),
    check(
        "a worker is in a sandbox",
        Adversary("who", "a11_root_has_no_capabilities_here"),
        &[edit(
            "service/daemon/src/system_bus.rs",
            "sandbox::enter(inmate, violation)?;",
            "let _ = (inmate, violation);",
        )],
    ),
    check(
        "a worker has nothing open that was",
        Spawner("a_worker_is_the_caller_and_nothing_else"),
        &[edit(BIRTH, "close_all_but(&[control.as_raw_fd()])?;", "")],
    ),
    check(
        "a worker minds no harmless signal",
        Adversary("paths", "c9_signals_to_a_worker"),
        &[edit(BIRTH, "    signals::ignore_harmless();\n", "")],
    ),
    check(
        "a worker has no environment",
        Adversary("paths", "c15_a_worker_has_no_environment"),
        &[
            edit("service/spawner/src/environment.rs", "if env::vars_os().next().is_none() {", "if true {"),
            edit("service/spawner/src/lib.rs", "if std::env::vars_os().next().is_some() {", "if false {"),
        ],
    ),
    // What a worker does.
    check(
        "systemd and the bus are out of reach",
        Adversary("whose", "b13_systemd_is_out_of_reach"),
        &[edit(
            "service/kernel/src/unix/peers.rs",
            "if !forbidden.iter().any(|name| covers(name, peer)) {",
            "if !forbidden.iter().any(|name| covers(name, peer) && false) {",
        )],
    ),
    check(
        "a text has no zero byte",
        Adversary("bytes", "what_others_wrote_does_not_end_a_worker"),
        &[edit(
            "service/bus/src/interfaces/stream.rs",
            "data.iter().position(|byte| *byte == 0)",
            "data.iter().position(|_| false)",
        )],
    ),
    // Signals.
    check(
        "what the service hangs on is no target",
        Adversary("signals", "root_has_no_capability_to_kill"),
        &[edit(TARGETS, "is_some_and(|pids| pids.contains(&pid))", "is_some_and(|_| false)")],
    ),
    check(
        "a command name is that of an own process",
        Adversary("signals", "alice_does_not_signal_bob"),
        &[edit(
            TARGETS,
            "status::status(&directory)?.uids[0] != uid",
            "status::status(&directory)?.uids[0] == u32::MAX",
        )],
    ),
    check(
        "a mailbox has a name, which the confined do not get",
        Adversary("signals", "the_confined_have_no_pids"),
        &[edit("service/kernel/src/mechanisms/signal.rs", "anonymous: |_| false,", "anonymous: |_| true,")],
    ),
    check(
        "a worker forks in one way only",
        Spawner("the_sandbox_refuses_and_the_worker_goes_on"),
        &[edit(
            "service/spawner/src/sandbox/calls.rs",
            "&[(0, ALL, flags(CLONE_PIDFD | SIGCHLD))],",
            "&[(0, flags(SIGCHLD), flags(SIGCHLD))],",
        )],
    ),
];
