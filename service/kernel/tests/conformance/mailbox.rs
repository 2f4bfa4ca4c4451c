//! Mailboxes: what is sent to their process is received, with its sender, and ends with it.

use ipc_kernel::{
    Attempt, Endpoint, Kind,
    shape::{Mailbox, Received, Shape},
};

use crate::{
    driver::{finish, must_wait},
    fixtures::MAILBOXES,
    suite::{each, must_fail},
};

fn mailbox(endpoint: &dyn Endpoint) -> &dyn Mailbox {
    endpoint.mailbox().expect("the fixture makes a mailbox")
}

/// kill(2), as any other process would.
fn kill(pid: i32, signal: i32) {
    // SAFETY: a system call without pointers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill {pid} {signal}");
}

fn next(mailbox: &dyn Mailbox) -> Vec<Received> {
    finish("a signal", || mailbox.next()).expect("next")
}

#[test]
fn a_signal_is_received_with_its_sender() {
    each(Shape::Mailbox, MAILBOXES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let mailbox = mailbox(&*endpoint);
        must_wait("a mailbox to which nothing was sent", mailbox.next());
        for number in mailbox.numbers() {
            kill(mailbox.pid(), number);
            let received = next(mailbox);
            let own = std::process::id().cast_signed();
            let uid = rustix::process::getuid().as_raw();
            assert_eq!(received, [Received { number, pid: own, uid, value: 0, code: libc::SI_USER }]);
        }
        must_wait("all was received", mailbox.next());
    });
}

#[test]
fn the_end_of_its_process_is_the_end() {
    each(Shape::Mailbox, MAILBOXES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let mailbox = mailbox(&*endpoint);
        kill(mailbox.pid(), libc::SIGKILL);
        let text = must_fail("a mailbox that was killed", Kind::Gone, finish("the end", || mailbox.next()));
        assert!(text.contains("SIGKILL"), "{text}");
        must_fail("and asked again", Kind::Gone, mailbox.next());
        endpoint.inspect().expect("what is left of it");
    });
}

#[test]
fn a_closed_mailbox_leaves_no_process() {
    each(Shape::Mailbox, MAILBOXES, |row, scratch| {
        let endpoint = (row.make)(scratch);
        let pid = mailbox(&*endpoint).pid();
        let watched = crate::making::attached(&format!("signal:pid={pid}"));
        drop(endpoint);
        let exit = finish("its end", || watched.process().expect("a process").exit());
        assert_eq!(exit.expect("exit").signal, libc::SIGKILL);
        let gone = || match watched.process().expect("a process").send(0, 0) {
            Err(_) => Ok(Attempt::Done(())),
            Ok(()) => Ok(Attempt::Wait(ipc_kernel::Readiness::After(std::time::Duration::from_millis(5)))),
        };
        finish("that it is reaped", gone).expect("reaped");
    });
}
