//! Processes: signals reach them, their end is told to everybody who asks, and nothing afterwards
//! reaches another process.

use ipc_kernel::{
    Attempt, Endpoint, Kind,
    shape::{Exit, Process, Shape},
};

use crate::{
    driver::{finish, must_wait},
    fixtures::PROCESSES,
    suite::{each, must_fail},
};

fn process(endpoint: &dyn Endpoint) -> &dyn Process {
    endpoint.process().expect("the fixture makes a process")
}

#[test]
fn who_it_is() {
    each(Shape::Process, PROCESSES, |row, scratch| {
        let (pid, endpoint) = (row.make)(scratch);
        let process = process(&*endpoint);
        assert_eq!(process.pid().cast_unsigned(), pid);
        assert!(process.alive());
        process.send(0, 0).expect("the null signal");
        must_wait("a process that runs", process.exit());
    });
}

#[test]
fn a_signal_ends_it_and_the_end_is_told_again_and_again() {
    each(Shape::Process, PROCESSES, |row, scratch| {
        let (_, endpoint) = (row.make)(scratch);
        let process = process(&*endpoint);
        process.send(libc::SIGTERM, 0).expect("SIGTERM");
        let exit = finish("the end of the process", || process.exit()).expect("exit");
        assert_eq!(exit, Exit { code: -1, signal: libc::SIGTERM, core: false });
        assert!(!process.alive());
        match process.exit().expect("exit again") {
            Attempt::Done(again) => assert_eq!(again, exit),
            Attempt::Wait(_) => panic!("it waits for an end that has been"),
        }
        endpoint.inspect().expect("what is left of it");
    });
}

#[test]
fn what_has_ended_is_gone() {
    each(Shape::Process, PROCESSES, |row, scratch| {
        let (_, endpoint) = (row.make)(scratch);
        let process = process(&*endpoint);
        let address = endpoint.address().to_string();
        process.send(libc::SIGKILL, 0).expect("SIGKILL");
        finish("the end of the process", || process.exit()).expect("exit");
        // Reaped by the fixture.
        *scratch = crate::making::Scratch::new();
        let text = must_fail("a signal to what was reaped", Kind::Gone, process.send(libc::SIGTERM, 0));
        assert!(text.contains("ESRCH"), "{text}");
        must_fail("attaching to what was reaped", Kind::NotFound, crate::suite::attach(&address));
    });
}

#[test]
fn handlers_are_seen() {
    each(Shape::Process, PROCESSES, |row, scratch| {
        let (_, endpoint) = (row.make)(scratch);
        let process = process(&*endpoint);
        assert!(!process.handles(libc::SIGUSR1).expect("a look at the process"));
    });
}
