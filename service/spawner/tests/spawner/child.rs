//! What is tested: this program as the spawner, and as the worker or the front that it forks.
//!
//! `child serve` has its listener as standard input; `child supervise DIRECTORY` starts a front that
//! hands all it has to the test, over DIRECTORY/front, and then does as it is told.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use ipc_spawner::sandbox::{self, Inmate, Violation};
use ipc_spawner::{
    Carried, FrontStart, MounterStart, Role, WorkerStart, serve, supervise, with_empty_environment,
};
use rustix::process::{Resource, getrlimit};

use crate::spawner::{USER, connect, receive, send};

pub fn run() -> ExitCode {
    with_empty_environment(env::args_os()).unwrap();
    let arguments: Vec<_> = env::args().collect();
    let role = match arguments[2].as_str() {
        "serve" => serve(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).unwrap(), USER),
        _ => supervise(USER),
    };
    match role {
        Ok(Role::Worker(start) | Role::Herald(start)) => worker(start),
        Ok(Role::Mounter(start)) => mounter(start),
        Ok(Role::Front(start)) => front(start, &arguments[3]),
        Ok(Role::Ended) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers questions until nobody has the other end of its control socket.
fn worker(start: WorkerStart) -> ExitCode {
    while let Some((question, _)) = receive(&start.control) {
        let answer = match question.as_str() {
            "facts" => facts(&start),
            "sandbox" => format!("{:?}", sandbox::enter(Inmate::Worker, Violation::Errno)),
            "sandbox of the herald" => format!("{:?}", sandbox::enter(Inmate::Herald, Violation::Errno)),
            "sandbox or die" => format!("{:?}", sandbox::enter(Inmate::Worker, Violation::Kill)),
            question => crate::worker::attempt(question),
        };
        send(&start.control, &answer, None);
    }
    ExitCode::SUCCESS
}

/// Answers questions before it makes any mount.
fn mounter(start: MounterStart) -> ExitCode {
    send(&start.worker, &format!("{:?}", start.device.as_ref().map(|_| ())), None);
    while let Some((question, _)) = receive(&start.worker) {
        if question.contains('\n') {
            // Inside it cannot be asked any more: all questions at once.
            sandbox::enter(Inmate::Mounter, Violation::Errno).unwrap();
            let answers: String =
                question.lines().map(|question| crate::worker::attempt(question) + "\n").collect();
            send(&start.worker, &answers, None);
            break;
        }
        send(&start.worker, &crate::worker::attempt(&question), None);
    }
    ExitCode::SUCCESS
}

/// What can be seen from within only.
fn facts(start: &WorkerStart) -> String {
    let mut facts = format!("{:?}\n", start.identity);
    let limit = getrlimit(Resource::Nofile);
    writeln!(facts, "variables {}", env::vars_os().count()).unwrap();
    writeln!(facts, "files {:?} {:?}", limit.current, limit.maximum).unwrap();
    writeln!(facts, "core {:?}", getrlimit(Resource::Core).maximum).unwrap();
    // Mechanisms open descriptors anew through here; it must work although /proc/self is root's.
    writeln!(facts, "reopens {}", fs::File::open("/proc/self/fd/0").is_ok()).unwrap();
    facts
}

/// Sends the test all it has, and then ends with the status that the test wants.
fn front(start: FrontStart, directory: &str) -> ExitCode {
    let test = connect(&format!("{directory}/front"));
    let carried = env::args_os().skip_while(|text| text != "--carried").filter(|text| text != "--carried");
    let carried = Carried::from_arguments(carried).unwrap();
    send(&test, &format!("{} {}", start.workers.len(), carried.get("NOTIFY_SOCKET").is_some()), None);
    send(&test, "spawner", Some(start.spawner.as_fd()));
    for (name, control) in &start.workers {
        send(&test, name, Some(control.as_fd()));
    }
    let told: Option<(String, Option<OwnedFd>)> = receive(&test);
    // Without the test there is nothing to go on for.
    ExitCode::from(told.map_or(ipc_spawner::GIVE_UP, |(status, _)| status.parse().unwrap()))
}
