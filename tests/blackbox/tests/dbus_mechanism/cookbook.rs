//! What docs/cookbook says of message buses, run as it stands there.

use std::process::Command;

use ipc_blackbox::{Stage, Way};
use ipc_harness::{Address, Bus, Launch, Process, TempDir, Unavailable, need_tool, or_skip, temp_dir};

use crate::peer::{PYTHON, need_peer};
use crate::real::{Desktop, change, hostnamed, put};

/// The first block of commands under a heading.
fn recipe(heading: &str) -> String {
    let cookbook = include_str!("../../../../docs/cookbook/README.md");
    let section = cookbook.split_once(&format!("\n## {heading}\n")).expect("a heading of the cookbook").1;
    let commands = section.lines().skip_while(|line| !line.starts_with("    "));
    commands.take_while(|line| line.starts_with("    ")).map(|line| format!("{}\n", &line[4..])).collect()
}

/// A shell that runs them, says `done` and stays, as one that somebody types into.
fn shell(address: &str, home: &TempDir, commands: &str) -> Result<Process, Unavailable> {
    need_tool("busctl")?;
    let ipc = r#"ipc() { busctl --user call org.example.IPC "$@"; }"#;
    let mut shell = Command::new("sh");
    shell.args(["-ec", &format!("{ipc}\n{commands}\necho done; cat")]);
    shell.env("DBUS_SESSION_BUS_ADDRESS", address).env("HOME", home.path());
    Ok(Process::spawn_group(&mut shell))
}

fn ran(shell: &Process) {
    shell.wait_for(|line| line == "done");
}

/// A service on a session's bus that finds that and a system's where programs find them.
fn on_two_buses() -> Result<(Stage, Bus), Unavailable> {
    let (session, system) = (Bus::dbus_daemon()?, Bus::dbus_daemon()?);
    let launch = Launch::on(&session)
        .environment("DBUS_SESSION_BUS_ADDRESS", session.address())
        .environment("DBUS_SYSTEM_BUS_ADDRESS", system.address());
    let service = launch.start();
    Ok((Stage { way: Way::DbusDaemon, service, bus: Some(session), system: None }, system))
}

/// A System V queue that goes with the test.
struct Queue(String);

impl Drop for Queue {
    fn drop(&mut self) {
        let removed = Command::new("ipcrm").args(["-q", &self.0]).status();
        removed.expect("ipcrm is of util-linux, as ipcs");
    }
}

#[test]
fn a_queue_is_drained_into_notifications() {
    let (stage, _system) = or_skip!(on_two_buses());
    let desktop = or_skip!(Desktop::start(&stage));
    let queue = Command::new("ipcmk").args(["-Q"]).output().expect("ipcmk is of util-linux, as ipcs");
    let id =
        String::from_utf8(queue.stdout).expect("text").rsplit(' ').next().expect("an id").trim().to_owned();
    let queues = std::fs::read_to_string("/proc/sysvipc/msg").expect("a table of the kernel");
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let _queue = Queue(id.clone());
    let row = queues.lines().map(fields).find(|fields| fields[1] == id).expect("it is there");
    let key = format!("{:#x}", row[0].parse::<i32>().expect("a number"));
    put(&stage, &key, &["the first"]);
    let commands = recipe("Drain a queue into the notifications of the desktop").replace("0x1234", &key);
    let home = temp_dir();
    ran(&or_skip!(shell(stage.address(), &home, &commands)));
    put(&stage, &key, &["and the next"]);
    for text in ["the first", "and the next"] {
        desktop.shows(&format!("queue|Build farm|{text}"));
    }
}

#[test]
fn changes_of_properties_are_appended() {
    let (stage, system) = or_skip!(on_two_buses());
    let _hostnamed = or_skip!(hostnamed(system.address()));
    let home = temp_dir();
    let commands = recipe("Append the changes of properties to a file");
    let shell = or_skip!(shell(stage.address(), &home, &commands));
    ran(&shell);
    let appended = ipc_harness::sh(&format!("exec tail -n +1 -F {}/changes.log", home.path().display()));
    change(system.address(), "SetLocation", "rack 7");
    let line = r#"["org.freedesktop.hostname1",{"Location":{"data":"rack 7","type":"s"}},[]]"#;
    appended.wait_for(|said| said == line);
}

#[test]
fn a_shell_script_answers_calls() {
    or_skip!(need_tool("jq"));
    let (stage, _system) = or_skip!(on_two_buses());
    let home = temp_dir();
    let shell = or_skip!(shell(stage.address(), &home, &recipe("Answer calls from a shell script")));
    shell.wait_for(|line| line == r#"s "hello world""#);
}

#[test]
fn chosen_signals_are_carried_to_another_bus() {
    or_skip!(need_peer());
    let (stage, system) = or_skip!(on_two_buses());
    let home = temp_dir();
    let commands = recipe("Carry chosen signals from the system bus to the session bus");
    ran(&or_skip!(shell(stage.address(), &home, &commands)));
    let watch = "import dbus,sys,dbus.mainloop.glib\nfrom gi.repository import GLib\n\
        dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)\nb=dbus.bus.BusConnection(sys.argv[1])\n\
        b.add_signal_receiver(lambda *a,**k:print(k['p'],k['m'],*a,flush=True),None,\
        'org.freedesktop.login1.Manager',path_keyword='p',member_keyword='m')\nprint('ready',flush=True)\n\
        GLib.MainLoop().run()";
    let mut watching = Command::new(PYTHON);
    let watching = Process::spawn_group(watching.args(["-u", "-c", watch, stage.address()]));
    watching.wait_for(|line| line == "ready");
    let emit = "import dbus,dbus.lowlevel,sys\nb=dbus.bus.BusConnection(sys.argv[1])\n\
        b.request_name('org.freedesktop.login1')\n\
        s=dbus.lowlevel.SignalMessage('/org/freedesktop/login1','org.freedesktop.login1.Manager','SessionNew')\n\
        s.append('c1','/org/freedesktop/login1/session/c1',signature='so')\nb.send_message(s)\nb.flush()";
    let mut emitting = Command::new(PYTHON);
    Process::spawn(emitting.args(["-c", emit, system.address()])).finish().success();
    watching
        .wait_for(|line| line == "/org/freedesktop/login1 SessionNew c1 /org/freedesktop/login1/session/c1");
}
