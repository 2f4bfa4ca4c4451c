//! The spawner with real users and real processes, as root.
//!
//! This program is its own runner: the tests run one after the other on its only thread. Started with
//! `child` it is what is tested: a spawner, and what that forks (child.rs).

// A test may, but clippy knows tests by #[test].
#![allow(clippy::unwrap_used)]

mod child;
mod examine;
mod forked;
mod front;
mod mounter;
mod sandbox;
mod spawner;
mod worker;

use std::process::ExitCode;
use std::{env, panic};

use ipc_harness::{patience, report};

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("a_worker_is_the_caller_and_nothing_else", worker::is_the_caller_and_nothing_else),
    ("a_worker_of_root_has_no_capability", worker::of_root_has_no_capability),
    ("a_worker_cannot_be_looked_into_by_its_user", worker::cannot_be_looked_into_by_its_user),
    ("a_worker_minds_no_harmless_signal", worker::minds_no_harmless_signal),
    ("workers_leave_nothing_behind", worker::starts_often),
    ("too_many_workers_are_refused", worker::too_many_are_refused),
    ("identities_that_are_nobody_are_refused", worker::nobody_is_refused),
    ("malformed_requests_are_refused", front::malformed_requests_are_refused),
    ("a_front_that_is_another_user_is_refused", front::another_user_is_refused),
    ("one_front_at_a_time", front::one_at_a_time),
    ("kill_ends_a_worker_by_name", front::kill_ends_a_worker_by_name),
    ("workers_outlive_the_spawner_under_systemd", front::workers_outlive_the_spawner),
    ("a_killed_front_is_restarted_with_the_workers", front::is_restarted_with_the_workers),
    ("a_front_is_its_user_and_nothing_else", front::is_its_user_and_nothing_else),
    ("only_root_and_before_all_threads", front::only_root_and_before_all_threads),
    ("sigterm_ends_front_and_workers", front::sigterm_ends_all),
    ("the_exit_status_of_a_front_decides", front::exit_status_decides),
    ("a_process_like_ours_is_not_confined", examine::own_kind),
    ("namespaces_confine", examine::namespaces_confine),
    ("another_root_directory_confines", examine::root_directory_confines),
    ("a_seccomp_filter_confines", examine::seccomp_confines),
    ("what_cannot_be_examined_is_unknown", examine::unknown),
    ("the_sandbox_refuses_and_the_worker_goes_on", sandbox::refuses),
    ("the_herald_is_the_fronts_user_and_can_less", sandbox::of_the_herald),
    ("a_mounter_is_its_user_in_a_namespace_of_his", mounter::is_the_user_in_a_namespace_of_his),
    ("a_mounter_is_not_for_everybody", mounter::is_not_for_everybody),
    ("a_mounter_does_not_stay", mounter::does_not_stay),
    ("the_sandbox_of_tests_names_the_call", sandbox::names_the_call),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "child") {
        return child::run();
    }
    if !rustix::process::geteuid().is_root() {
        report::skipped("spawner", "only root can start processes as other users");
        return ExitCode::SUCCESS;
    }
    // The watchdog of all tests together: SIGALRM ends this program.
    let seconds = u32::try_from(patience().as_secs() * 4).unwrap();
    // SAFETY: sets a timer.
    unsafe { libc::alarm(seconds) };
    let filter = arguments.iter().filter_map(|text| text.to_str()).find(|text| !text.starts_with('-'));
    let chosen = TESTS.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter)));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in chosen {
        let ok = panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        *if ok { &mut passed } else { &mut failed } += 1;
    }
    println!("\ntest result: {passed} passed; {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
