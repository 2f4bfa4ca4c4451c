//! A mounter: a user in namespaces of his own, who may mount there and nothing else.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use ipc_spawner::protocol::{Confinement, Identity, Refusal, Reply, Request};
use rustix::process::{Pid, Signal, kill_process};

use crate::forked::{become_user, exit, forked};
use crate::spawner::{
    Spawner, USER_ID, ask, await_readable, call, identity, is_closed, pidfd, receive, start,
};
use crate::worker::{ATTEMPTS, Status};

const UID: u32 = 54_321;

/// CAP_SYS_ADMIN, of its own user namespace.
const MAY_MOUNT: &str = "0000000000200000";

fn mount(name: &str, identity: Identity) -> Request {
    Request::Mount { name: name.into(), identity }
}

/// A mounter that has told how far it has come; None: users may not do what it does here.
fn mounter(front: &OwnedFd, name: &str) -> Option<(i32, OwnedFd)> {
    let (Reply::Started { pid }, Some(socket)) = call(front, &mount(name, identity(UID, UID, &[4])), None)
    else {
        panic!("it was not started");
    };
    let (device, _) = receive(&socket).unwrap();
    if device != "Ok(())" {
        ipc_harness::report::skipped("mounter", &device);
        return None;
    }
    Some((pid.cast_signed(), socket))
}

pub fn is_the_user_in_a_namespace_of_his() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let Some((pid, socket)) = mounter(&front, "w") else { return };
    let status = Status::of(pid);
    assert_eq!(status.field("Name"), ["ipcd-mounter"]);
    // The last is who opens files.
    assert_eq!(status.field("Uid"), vec![UID.to_string(); 4]);
    assert_eq!(status.field("Gid"), vec![UID.to_string(); 4]);
    assert_eq!(status.field("Groups"), ["4"]);
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(status.field(set), [MAY_MOUNT], "{set}");
    }
    assert_eq!(status.field("CapInh"), ["0000000000000000"]);
    assert_eq!(status.field("NoNewPrivs"), ["1"]);
    let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    for map in ["uid_map", "gid_map"] {
        assert_eq!(of(map).split_whitespace().collect::<Vec<_>>(), [&UID.to_string(), &UID.to_string(), "1"]);
    }
    assert_eq!(of("setgroups"), "deny\n");
    for namespace in ["user", "mnt"] {
        let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(link(pid), link(spawner.pid()), "{namespace}");
    }
    assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0, "it is dumpable");
    for (name, attempt) in ATTEMPTS {
        let as_user = forked(|| {
            become_user(UID);
            exit(attempt(pid).map_or_else(|error| error.raw_os_error().unwrap_or(255), |()| 0))
        });
        assert!([libc::EPERM, libc::EACCES].contains(&as_user.status()), "{name} of a mounter");
    }
    assert!(ask(&socket, "open /etc/shadow").contains("Permission denied"));
    // What it was made for, it does with what it has open.
    let denied =
        ["open /etc/passwd", "unshare user", "run /bin/true", "socket 1", "connect /nonexistent", "thread"];
    assert_eq!(ask(&socket, "open /etc/passwd"), "done");
    let answers = ask(&socket, &denied.join("\n"));
    assert_eq!(answers.lines().count(), denied.len(), "{answers}");
    for (question, answer) in denied.iter().zip(answers.lines()) {
        assert!(answer.contains("Operation not permitted"), "{question}: {answer}");
    }
    drop(socket);
    await_readable(pidfd(pid));
}

pub fn is_not_for_everybody() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let mut refused =
        vec![identity(USER_ID, 100, &[100]), identity(65_534, 100, &[100]), identity(UID, u32::MAX, &[100])];
    // A filter or a profile may forbid him to.
    for reason in [Confinement::USER, Confinement::SECCOMP, Confinement::LABEL, Confinement::UNKNOWN] {
        refused.push(Identity { confinement: Confinement(reason), ..identity(UID, UID, &[]) });
    }
    for identity in refused {
        let (reply, socket) = call(&front, &mount("w", identity), None);
        assert_eq!((reply, socket.is_some()), (Reply::Refused(Refusal::Identity), false));
    }
}

/// Its user may stop it, and not for long.
pub fn does_not_stay() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let (_worker, control) = start(&front, "w", identity(UID, UID, &[]));
    let Some((pid, socket)) = mounter(&front, "w") else { return };
    let ended = pidfd(pid);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let (reply, _) = call(&front, &mount("w", identity(UID, UID, &[])), None);
    assert_eq!(reply, Reply::Refused(Refusal::Errno(libc::EBUSY)));
    let Some((other, _socket)) = mounter(&front, "w-other") else { return };
    assert!(other != pid);
    await_readable(ended);
    assert!(is_closed(&socket));
    // The worker of the same name is another process, and goes on.
    assert!(ask(&control, "facts").contains("variables 0"));
    loop {
        match call(&front, &mount("w", identity(UID, UID, &[])), None) {
            // It has the first word.
            (Reply::Started { .. }, Some(socket)) => break drop(receive(&socket)),
            (reply, _) => assert_eq!(reply, Reply::Refused(Refusal::Errno(libc::EBUSY))),
        }
    }
}
