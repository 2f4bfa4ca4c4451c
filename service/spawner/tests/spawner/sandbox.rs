//! The sandbox, in a worker.

use ipc_spawner::protocol::{Confinement, Reply, Request};

use crate::spawner::{Spawner, USER_ID, ask, await_readable, call, identity, is_closed, pidfd, send, start};
use std::os::fd::AsFd;

pub fn refuses() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let (pid, control) = start(&front, "w", identity(54_321, 54_321, &[]));
    let denied = ["unshare user", "run /bin/true"];
    for question in denied {
        assert_eq!(ask(&control, question), "done", "{question} outside of the sandbox");
    }
    assert_eq!(ask(&control, "sandbox"), "Ok(())");
    for question in denied {
        let answer = ask(&control, question);
        assert!(answer.contains("Operation not permitted"), "{question}: {answer}");
    }
    // clone3 is not there, so threads are made by clone.
    assert_eq!(ask(&control, "thread"), "done");
    // A process with a pidfd, as for a mailbox; no other way of forking, and no namespace with it.
    let mailbox = libc::CLONE_PIDFD | libc::SIGCHLD;
    assert_eq!(ask(&control, &format!("clone {mailbox}")), "done");
    for flags in [
        libc::SIGCHLD,
        libc::CLONE_VM | mailbox,
        libc::CLONE_FILES | mailbox,
        libc::CLONE_NEWUSER | mailbox,
        libc::CLONE_NEWPID | mailbox,
        libc::CLONE_PIDFD | libc::SIGKILL,
    ] {
        let answer = ask(&control, &format!("clone {flags}"));
        assert!(answer.contains("Operation not permitted"), "{flags:#x}: {answer}");
    }
    assert_eq!(ask(&control, "open /etc/passwd"), "done");
    assert!(ask(&control, "facts").contains("reopens true"));
    // No way out, and none deeper in.
    assert!(ask(&control, "sandbox").contains("Operation not permitted"));
    let (reply, _) = call(&front, &Request::Examine { uid: 54_321 }, Some(pidfd(pid).as_fd()));
    let Reply::Examined { confinement, .. } = reply else { panic!("{reply:?}") };
    assert!(confinement.0 & Confinement::SECCOMP != 0, "{confinement:?}");
}

/// As the front's user it could end the front, or be taken for it.
pub fn of_the_herald() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let (Reply::Started { pid }, Some(control)) = call(&front, &Request::Herald, None) else {
        panic!("it was not started");
    };
    let facts = ask(&control, "facts");
    let user = USER_ID;
    assert!(facts.contains(&format!("uid: {user}, gid: {user}, groups: []")), "{facts}");
    let (itself, netlink, unix) =
        (format!("kill {pid}"), format!("socket {}", libc::AF_NETLINK), format!("socket {}", libc::AF_UNIX));
    let denied = [itself.as_str(), &unix, "write /dev/null", "connect /nonexistent", "unshare user"];
    for question in denied.iter().filter(|question| !question.starts_with("connect")) {
        assert_eq!(ask(&control, question), "done", "{question} outside of the sandbox");
    }
    assert_eq!(ask(&control, "sandbox of the herald"), "Ok(())");
    for question in denied {
        let answer = ask(&control, question);
        assert!(answer.contains("Operation not permitted"), "{question}: {answer}");
    }
    for question in ["thread", "open /etc/passwd", &netlink] {
        assert_eq!(ask(&control, question), "done", "{question}");
    }
    // No front keeps it for the next.
    drop(control);
    await_readable(pidfd(pid.cast_signed()));
}

pub fn names_the_call() {
    let (log, stderr) = std::io::pipe().unwrap();
    let spawner = Spawner::serve_logging_to(stderr.into());
    let (pid, control) = start(&spawner.connect(), "w", identity(54_321, 54_321, &[]));
    let pidfd = pidfd(pid);
    assert_eq!(ask(&control, "sandbox or die"), "Ok(())");
    send(&control, "unshare user", None);
    assert!(is_closed(&control));
    await_readable(pidfd);
    drop(spawner);
    let log = std::io::read_to_string(log).unwrap();
    assert!(
        log.contains(&format!("the sandbox does not allow system call {:04}\n", libc::SYS_unshare)),
        "{log}"
    );
}
