//! The program: its command line, its configuration, its name on the bus, and its clients that are killed.

use std::process::Command;

use ipc_harness::{
    Bus, Process, Service, busctl, busctl_monitor, need_tool, object_path, on_each_bus, temp_dir, unique,
};

/// What comes after busctl was killed in the middle of a Receive is for the next one.
fn busctl_is_killed(bus: Bus) {
    let service = Service::on(&bus);
    let busctl = busctl(&service);
    let made = busctl.manager("Create", "sa{sv}", &["pipe:packet", "0"]).expect("Create");
    let packets = object_path(&made);
    let monitor = busctl_monitor(&busctl, &["--match=type='method_call',member='Receive'"]);
    let mut command = Command::new("busctl");
    command.arg(format!("--address={}", bus.address()));
    command.args([
        "call",
        ipc_harness::NAME,
        &packets,
        "org.example.IPC.Messages",
        "Receive",
        "a{sv}u",
        "0",
        "30000",
    ]);
    let mut killed = Process::spawn(&mut command);
    monitor.wait_for_all(&["\"member\":\"Receive\""]);
    killed.kill();
    let messages = "org.example.IPC.Messages";
    let send = busctl.call(&packets, messages, "SendText", "sa{sv}u", &["kept for you", "0", "1000"]);
    assert_eq!(send.as_deref(), Ok(""));
    let received = busctl.call(&packets, messages, "ReceiveText", "a{sv}u", &["0", "10000"]);
    assert!(
        received.as_deref().is_ok_and(|text| text.starts_with("sa{sv} \"kept for you\"")),
        "{received:?}"
    );
}

fn a_second_instance(bus: Bus) {
    let first = Service::on(&bus);
    let Err(failed) = ipc_harness::Launch::on(&bus).try_start() else { panic!("two services on one bus") };
    assert_eq!(failed.status.and_then(|status| status.code()), Some(1));
    let owner = format!("process {} (ipcd)", first.pid());
    assert!(failed.log.contains("org.example.IPC") && failed.log.contains(&owner), "{}", failed.log);
    assert!(busctl(&first).manager("Create", "sa{sv}", &["pipe:", "0"]).is_ok(), "the first one goes on");
}

/// Without its bus the service ends, and says why.
fn the_bus_ends(bus: Bus) {
    let mut service = Service::on(&bus);
    drop(bus);
    assert_eq!(service.wait().code(), Some(1));
    assert!(service.log().contains("the bus has gone"), "{}", service.log());
}

on_each_bus!(busctl_is_killed, a_second_instance, the_bus_ends);

/// The program without a bus: its configuration and its introspection data.
#[test]
fn the_command_line() {
    let service = Service::private();
    let program = std::fs::read_link(format!("/proc/{}/exe", service.pid())).expect("the program");
    drop(service);
    let run = |words: &[&str]| Process::spawn(Command::new(&program).args(words)).finish();
    let dir = temp_dir();
    let file = dir.path().join(unique("config"));
    let file = file.to_str().expect("a path of text");
    for (text, line, phrase) in [
        ("[limits]\nendpoints = 7\nendpoint = 8\n", "line 3", "unknown field `endpoint`"),
        ("\n[limit]\n", "line 2", "unknown field `limit`"),
        ("[limits]\nendpoints = \"many\"\n", "line 2", "invalid type"),
        ("[limits]\n\n\nwaits = 100000\n", "line 4", "at most 16384"),
        ("[limits]\npayload = 0\n", "line 2", "at least 1"),
        ("[limits\n", "line 1", ""),
    ] {
        std::fs::write(file, text).expect("a file");
        for words in [&["--check-config", "--config", file][..], &["--bus", "private", "--config", file]] {
            let done = run(words);
            assert_eq!(done.status.code(), Some(1), "{text:?}");
            for phrase in [file, line, phrase] {
                assert!(done.stderr.contains(phrase), "{phrase:?} is not in {}", done.stderr);
            }
        }
    }
    std::fs::write(file, "[limits]\nendpoints = 7\n").expect("a file");
    assert!(run(&["--check-config", "--config", file]).success().contains("valid"));
    let missing = run(&["--check-config", "--config", "/no/such/file"]);
    assert!(!missing.status.success() && missing.stderr.contains("/no/such/file"), "{}", missing.stderr);
    let nowhere = run(&["--bus", "unix:path=/no/such/bus"]);
    assert!(!nowhere.status.success() && nowhere.stderr.contains("bus"), "{}", nowhere.stderr);
    assert!(!run(&["--bus", "omni"]).status.success());

    let interfaces = run(&["--introspect"]).success();
    assert!(interfaces.lines().any(|name| name == "org.example.IPC.Relay"), "{interfaces}");
    for name in interfaces.lines() {
        let document = run(&["--introspect", name]).success();
        assert!(document.contains(&format!("<interface name=\"{name}\">")), "{document}");
        if need_tool("xmllint").is_ok() {
            let mut lint = Process::spawn(Command::new("xmllint").args(["--noout", "--nonet", "-"]));
            lint.write(document);
            lint.finish().success();
        }
    }
    let unknown = run(&["--introspect", "org.example.IPC.Nothing"]);
    assert!(!unknown.status.success() && unknown.stderr.contains("org.example.IPC.Relay"));
}
