//! Starting and ending the service, tried with shell scripts in its place.

use std::path::PathBuf;

use ipc_harness::{Address, Launch, TempDir, need_tool, or_skip, sh, temp_dir};

/// An executable script that speaks as `ipcd` does. `notify TEXT` sends to the NOTIFY_SOCKET.
fn fake(body: &str) -> (TempDir, PathBuf) {
    let dir = temp_dir();
    let program = dir.path().join("ipcd");
    let notify = r#"notify() { printf "$1" | socat -u STDIN "UNIX-SENDTO:$NOTIFY_SOCKET"; }"#;
    // Written by another process: a test beside this one that forks now would inherit a descriptor of ours, and
    // what is open for writing cannot be executed (ETXTBSY).
    let mut writer = sh(&format!("cat >'{0}'; chmod 755 '{0}'", program.display()));
    writer.write(format!("#!/bin/sh -e\n{notify}\n{body}\n"));
    writer.finish().success();
    (dir, program)
}

#[test]
fn it_is_ready_when_it_says_so() {
    or_skip!(need_tool("socat"));
    // A trap is sure to interrupt "wait" only: before any other blocking call the signal may just have come.
    let (_dir, program) = fake(
        r#"echo "args $*" >&2; cat "$4" >&2; tail -f /dev/null & idle=$!
           trap 'kill $idle; notify STOPPING=1; exit 7' TERM
           notify "STATUS=$WORD"; notify 'READY=1\nSTATUS=serving'; wait"#,
    );
    let launch = Launch::on("unix:path=/nowhere").config("answer = 42\n").argument("--verbose");
    let mut service = launch.environment("WORD", "starting").program(program).start();
    assert_eq!(service.address(), "unix:path=/nowhere");
    assert_eq!(service.notifications().lines(), ["STATUS=starting", "READY=1", "STATUS=serving"]);
    let log = service.log();
    assert!(log.starts_with("args --bus unix:path=/nowhere --config /"), "{log}");
    assert!(log.contains(" --verbose\nanswer = 42\n"), "{log}");
    assert_eq!(service.terminate().code(), Some(7));
    service.notifications().wait_for(|line| line == "STOPPING=1").expect("the last notification");
}

#[test]
fn a_failed_start_tells_why() {
    let (_dir, program) = fake("echo 'no such bus' >&2; exit 3");
    let Err(failed) = Launch::on("unix:path=/nowhere").program(program).try_start() else {
        panic!("it started");
    };
    assert_eq!(failed.status.and_then(|status| status.code()), Some(3));
    assert_eq!(failed.log, "no such bus\n");
}

#[test]
fn a_private_bus_tells_its_address() {
    or_skip!(need_tool("socat"));
    let told = "unix:path=/tmp/private,guid=0123";
    for body in [
        format!("notify 'READY=1\\nSTATUS=private bus at {told}'; exec cat /dev/zero >/dev/null"),
        format!("notify READY=1; echo '{told}'; exec cat /dev/zero >/dev/null"),
    ] {
        let (_dir, program) = fake(&body);
        let service = Launch::private().program(program).start();
        assert_eq!((&service as &dyn Address).address(), told);
    }
}
