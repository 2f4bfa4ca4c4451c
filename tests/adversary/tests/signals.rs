//! Signals between users: the kernel decides who may, as if the caller had called kill(2); the service and what it
//! hangs on are nobody's target.

use ipc_adversary::wire::{Arg, no_options, text};
use ipc_adversary::{Raw, Stage, assert_error, error, number, status};
use ipc_harness::system::{ALICE, BOB, Identity, ROOT, User};
use ipc_harness::{CallError, PATH, Process, or_skip, wait_gone};

/// A process of this user's that sleeps, and dies of whatever reaches it.
fn victim(stage: &Stage, user: User) -> (Process, i32) {
    let process = stage.bus.sh_as(&user.into(), "echo pid $$; exec sleep 600");
    let line = process.wait_for(|line| line.starts_with("pid "));
    let pid = line.trim_start_matches("pid ").parse().expect("a number");
    (process, pid)
}

fn send(raw: &mut Raw, endpoint: &str, signal: &str) -> Result<(), CallError> {
    raw.call(endpoint, "Process", "Send", &[text(signal), Arg::I32(0)]).map(drop)
}

/// The process of a mailbox.
fn pid_of(raw: &mut Raw, mailbox: &str) -> i32 {
    let args = [text("org.example.IPC.Mailbox"), text("Pid")];
    let value =
        raw.call(mailbox, "org.freedesktop.DBus.Properties", "Get", &args).expect("Get").args().remove(0);
    match value {
        Arg::Variant(value) => match *value {
            Arg::I32(pid) => pid,
            other => panic!("{other:?} is no pid"),
        },
        other => panic!("{other:?} is no variant"),
    }
}

#[test]
fn alice_does_not_signal_bob() {
    let stage = or_skip!(Stage::new());
    let (mut alice, mut bob) = (stage.alice(), stage.bob());
    let (_bobs, pid) = victim(&stage, BOB);
    let mailbox = bob.create("signal:numbers=all");
    let mailboxs = pid_of(&mut bob, &mailbox);
    for pid in [pid, mailboxs] {
        let process = alice.attach(&format!("signal:pid={pid}"));
        for signal in ["0", "SIGHUP", "SIGCONT", "SIGKILL", "SIGRTMIN"] {
            assert_error(&error(send(&mut alice, &process, signal)), "PermissionDenied", &["EPERM"]);
        }
        for grace in [0, 1000] {
            let refusal = error(alice.call(&process, "Process", "Terminate", &[Arg::U32(grace)]));
            assert_error(&refusal, "PermissionDenied", &["EPERM"]);
        }
        let directly = stage.bus.sh_as(&ALICE.into(), &format!("kill -9 {pid}")).finish();
        assert!(!directly.status.success(), "nor may she herself");
        // What the kernel shows to everybody, and not more.
        alice.call(&process, "Endpoint", "Inspect", &[]).expect("Inspect");
    }
    let kept = bob.call(&mailbox, "Mailbox", "Since", &[Arg::U64(0)]).expect("Since").args();
    assert!(matches!(&kept[..], [Arg::Array(_, none), Arg::U64(0)] if none.is_empty()), "{kept:?}");
    // His own are not found for her by name, and are not in her list.
    let refusal = alice.refused("Attach", "signal:command=ipcd-mailbox");
    assert_error(&refusal, "NotFound", &["ipcd-mailbox"]);
    let rows =
        alice.call(&format!("{PATH}/signal"), "Mechanism", "List", &[no_options()]).expect("List").args();
    let Arg::Array(_, rows) = &rows[0] else { panic!("{rows:?} is no list") };
    assert!(!rows.is_empty(), "her own");
    for row in rows {
        let uid = ipc_adversary::entry(row, "uid").expect("a column");
        assert_eq!(number(&uid), u64::from(ALICE.uid), "{row:?}");
    }
    // He may, of course.
    let own = bob.attach(&format!("signal:pid={pid}"));
    send(&mut bob, &own, "SIGKILL").expect("Send");
    assert!(wait_gone(pid));
}

/// Root's worker has no capability: it may signal root's processes, as any user may his own, but not the service's.
#[test]
fn root_has_no_capability_to_kill() {
    let stage = or_skip!(Stage::new());
    let mut root = stage.raw(ROOT);
    let (_alices, pid) = victim(&stage, ALICE);
    let process = root.attach(&format!("signal:pid={pid}"));
    assert_error(&error(send(&mut root, &process, "SIGKILL")), "PermissionDenied", &["EPERM"]);
    let (_own, pid) = victim(&stage, ROOT);
    let process = root.attach(&format!("signal:pid={pid}"));
    send(&mut root, &process, "SIGKILL").expect("his own");
    assert!(wait_gone(pid));
    let spawner = stage.spawner();
    let worker = stage.worker_of(ROOT);
    for pid in [spawner, worker] {
        let refusal = root.refused("Attach", &format!("signal:pid={pid}"));
        assert_error(&refusal, "InvalidArgument", &["the service itself"]);
    }
    let front = root.attach(&format!("signal:pid={}", stage.front()));
    assert_error(&error(send(&mut root, &front, "SIGTERM")), "PermissionDenied", &["EPERM"]);
    for pid in ["0", "1", "-1", "4294967295", "x"] {
        assert_error(&root.refused("Attach", &format!("signal:pid={pid}")), "InvalidArgument", &["\"pid\""]);
    }
}

/// A pid means something else there, and a mailbox has one.
#[test]
fn the_confined_have_no_pids() {
    let stage = or_skip!(Stage::new());
    let (_process, pid) = victim(&stage, ALICE);
    let confined = Identity::from(ALICE).within(&["unshare", "--mount"]);
    let mut confined = stage.raw(confined);
    for (verb, address) in [
        ("Attach", format!("signal:pid={pid}")),
        ("Attach", "signal:command=sleep".to_owned()),
        ("Create", "signal:number=SIGUSR1".to_owned()),
    ] {
        assert_error(&confined.refused(verb, &address), "Confined", &["mount namespace"]);
    }
}

/// A mailbox has its user's rights and no more, and is as closed as his worker.
#[test]
fn a_mailbox_is_closed_to_its_user() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let mailbox = alice.create("signal:numbers=all");
    let pid = pid_of(&mut alice, &mailbox);
    for (key, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapEff", "0000000000000000")] {
        assert_eq!(status(pid, key).as_deref(), Some(wanted), "{key}");
    }
    let worker = stage.worker_of(ALICE);
    for key in ["Uid", "Gid", "Groups", "CapBnd", "Seccomp_filters"] {
        assert_eq!(status(pid, key), status(worker, key), "{key}");
    }
    let intrude = format!("cat /proc/{pid}/mem || cat /proc/{pid}/environ || ls /proc/{pid}/fd");
    let intrusion = stage.bus.sh_as(&ALICE.into(), &intrude).finish();
    assert!(!intrusion.status.success(), "{}", intrusion.text());
    // With its worker it goes.
    stage.bus.sh_as(&ALICE.into(), &format!("kill -9 {worker}")).finish().success();
    assert!(wait_gone(pid));
}
