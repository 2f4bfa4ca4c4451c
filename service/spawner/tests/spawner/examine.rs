//! Whether processes in namespaces, under filters and elsewhere are seen to be there.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use ipc_spawner::protocol::{Confinement, Reply, Request};
use ipc_spawner::sandbox::{self, Inmate, Violation};

use crate::forked::{become_user, child_of, exit, forked};
use crate::spawner::{Spawner, call, pidfd};

/// As a process of root's.
fn examine(front: &OwnedFd, process: Option<BorrowedFd<'_>>) -> Confinement {
    examine_all(front, 0, process).0
}

fn examine_all(front: &OwnedFd, uid: u32, process: Option<BorrowedFd<'_>>) -> (Confinement, Option<u32>) {
    match call(front, &Request::Examine { uid }, process).0 {
        Reply::Examined { confinement, gid } => (confinement, gid),
        other => panic!("{other:?}"),
    }
}

pub fn own_kind() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let root = forked(|| {});
    let user = forked(|| become_user(54_321));
    for (process, id) in [(root, 0), (user, 54_321)] {
        let examined = |uid| examine_all(&front, uid, Some(process.pidfd.as_fd()));
        assert_eq!(examined(id), (Confinement(0), Some(id)));
        // It cannot be the one that a caller of another user has.
        assert_eq!(examined(54_322), (Confinement(Confinement::UNKNOWN), None));
    }
}

pub fn namespaces_confine() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    for (options, reason) in [
        (&["--mount"][..], Confinement::MOUNT),
        (&["--ipc"], Confinement::IPC),
        (&["--net"], Confinement::NETWORK),
        (&["--user"], Confinement::USER),
        // In the namespace is who is forked there.
        (&["--pid", "--fork"], Confinement::PID),
        (
            &["--user", "--map-root-user", "--mount", "--ipc"],
            Confinement::USER | Confinement::MOUNT | Confinement::IPC,
        ),
    ] {
        let process = Unshared::start(options);
        let pid = process.0.id().cast_signed();
        let pid = if options.contains(&"--fork") { child_of(pid) } else { pid };
        assert_eq!(examine(&front, Some(pidfd(pid).as_fd())), Confinement(reason), "{options:?}");
    }
}

/// `unshare OPTIONS cat`, which has started when it answers.
struct Unshared(Child);

impl Unshared {
    fn start(options: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(options).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\n").unwrap();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        Self(child)
    }
}

impl Drop for Unshared {
    fn drop(&mut self) {
        // The end of its input ends cat.
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

pub fn root_directory_confines() {
    let spawner = Spawner::serve();
    let directory = ipc_harness::temp_dir();
    let process = forked(|| rustix::process::chroot(directory.path()).unwrap());
    assert_eq!(examine(&spawner.connect(), Some(process.pidfd.as_fd())), Confinement(Confinement::MOUNT));
}

pub fn seccomp_confines() {
    let spawner = Spawner::serve();
    let process = forked(|| sandbox::enter(Inmate::Worker, Violation::Errno).unwrap());
    assert_eq!(examine(&spawner.connect(), Some(process.pidfd.as_fd())), Confinement(Confinement::SECCOMP));
}

pub fn unknown() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let unknown = Confinement(Confinement::UNKNOWN);
    assert_eq!(examine_all(&front, 0, None), (unknown, None));
    assert_eq!(examine(&front, Some(front.as_fd())), unknown, "a socket");
    // A zombie, and after it a pid that is free again.
    let ended = forked(|| exit(0));
    ended.status();
    assert_eq!(examine(&front, Some(ended.pidfd.as_fd())), unknown);
    let pidfd = ended.pidfd.try_clone().unwrap();
    drop(ended);
    assert_eq!(examine(&front, Some(pidfd.as_fd())), unknown);
}
