//! Other programs run under control, and what cannot run is reported.

use std::path::Path;
use std::process::Command;

use ipc_harness::{
    Process, has_tool, need_tool, or_skip, python, sh, skip, socat, temp_dir, unique, wait_gone,
};

#[test]
fn output_and_status_are_returned() {
    let mut script = sh("read line; echo \"got $line\"; echo problem >&2; exit 4");
    script.write("a line\n");
    let done = script.finish();
    assert_eq!(
        (done.status.code(), done.text().as_str(), done.stderr.as_str()),
        (Some(4), "got a line\n", "problem\n")
    );
}

#[test]
fn what_a_script_leaves_behind_goes_with_it() {
    let done = sh("cat /dev/zero >/dev/null & echo $!").finish();
    let pid = done.success().trim().parse().expect("a pid");
    assert!(wait_gone(pid), "{pid} still runs");
}

#[test]
fn programs_talk_to_each_other() {
    or_skip!(need_tool("socat"));
    or_skip!(need_tool("python3"));
    let name = unique("harness");
    let server = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.bind('\\0'+sys.argv[1])\ns.listen()\n\
        print('listening')\nc=s.accept()[0]\nprint(c.recv(99).decode())";
    let server = python(server, &[&name]);
    server.wait_for(|line| line == "listening");
    let mut client = socat(&["-u", "STDIN", &format!("ABSTRACT-CONNECT:{name}")]);
    client.write("hello");
    assert!(client.finish().status.success());
    assert_eq!(server.finish().success(), "listening\nhello\n");
}

#[test]
fn a_process_is_ended_on_demand_and_on_drop() {
    let mut process = sh("trap 'exit 9' TERM; tail -f /dev/null & echo ready; wait");
    process.wait_for(|line| line == "ready");
    assert_eq!(process.terminate().code(), Some(9));
    let process = sh("echo ready; exec cat");
    process.wait_for(|line| line == "ready");
    let pid = process.pid();
    drop(process);
    assert!(!Path::new("/proc").join(pid.to_string()).exists());
}

/// Run by the next test only: skips in its own process, so that they are counted in a file of their own.
#[test]
#[ignore = "run by skips_are_printed_and_recorded"]
fn skipping() {
    assert!(has_tool("no-such-tool") || skips("no\nsuch tool") == 0, "a skip returns the default");
}

fn skips(reason: &str) -> u32 {
    skip!("{reason}")
}

#[test]
fn skips_are_printed_and_recorded() {
    let dir = temp_dir();
    let record = dir.path().join("skipped");
    let run = |strict: bool| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "skipping", "--ignored"]).env("IPC_SKIPPED_TESTS", &record);
        if strict {
            command.env("IPC_NO_SKIPS", "1")
        } else {
            command.env_remove("IPC_NO_SKIPS")
        };
        Process::spawn(&mut command).finish()
    };
    let done = run(false);
    assert!(done.stderr.contains("SKIPPED tools::skipping: no such tool\n"), "{}", done.stderr);
    assert!(done.status.success());
    assert_eq!(std::fs::read_to_string(&record).expect("the record"), "tools::skipping\tno such tool\n");
    assert!(!run(true).status.success(), "IPC_NO_SKIPS makes a skip a failure");
}
