//! Programs that nobody wrote for these tests, each at one end of a single relay: the notifications of a desktop, and the
//! daemon of systemd that knows what the machine is called.

use std::fs;
use std::path::Path;
use std::process::Command;

use ipc_blackbox::{Client, Stage, everywhere, options};
use ipc_harness::{Address, Process, TempDir, Unavailable, need_tool, or_skip, patience, temp_dir};

use crate::peer::bus;

/// A notification daemon on a display of its own; it tells what it shows.
pub struct Desktop {
    shown: Process,
    _dunst: Process,
    _display: Process,
    _dir: TempDir,
}

impl Desktop {
    pub fn start(stage: &Stage) -> Result<Desktop, Unavailable> {
        need_tool("dunst")?;
        need_tool("Xvfb")?;
        need_tool("gdbus")?;
        let dir = stage.temp_dir();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let display = Process::spawn_group(Command::new("Xvfb").args([
            "-displayfd",
            "1",
            "-nolisten",
            "tcp",
            "-screen",
            "0",
            "640x480x24",
        ]));
        let number =
            display.wait_for(|line| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit()));
        // dunst(5): a rule runs a program with what is shown as its arguments.
        let script = format!("#!/bin/sh\nprintf '%s|%s|%s\\n' \"$1\" \"$2\" \"$3\" >> {}\n", at("shown"));
        fs::write(at("show"), script).expect("an own directory");
        fs::set_permissions(at("show"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("an own file");
        fs::write(at("dunstrc"), format!("[global]\n[all]\nscript = {}\n", at("show")))
            .expect("an own directory");
        let shown = ipc_harness::sh(&format!(
            "cd {}; mkfifo shown; echo ready; exec cat <> shown",
            dir.path().display()
        ));
        shown.wait_for(|line| line == "ready");
        let mut dunst = Command::new("dunst");
        dunst.args(["-conf", &at("dunstrc")]).env("DISPLAY", format!(":{number}"));
        let dunst = Process::spawn_group(dunst.env("DBUS_SESSION_BUS_ADDRESS", stage.address()));
        let desktop = Desktop { shown, _dunst: dunst, _display: display, _dir: dir };
        comes(stage.address(), "org.freedesktop.Notifications").map(|()| desktop)
    }

    /// Waits until it has shown this: who says it, what it is about, and what it says.
    #[track_caller]
    pub fn shows(&self, notification: &str) {
        self.shown.wait_for(|line| line == notification);
    }
}

/// Waits until somebody has the name.
fn comes(address: &str, name: &str) -> Result<(), Unavailable> {
    let seconds = patience().as_secs().to_string();
    let mut waiting = Command::new("gdbus");
    waiting.args(["wait", "--address", address, "--timeout", &seconds, name]);
    match Process::spawn(&mut waiting).wait().success() {
        true => Ok(()),
        false => Err(Unavailable(format!("{name} does not start on this machine"))),
    }
}

/// A program of the C library puts messages into a System V queue.
pub fn put(stage: &Stage, key: &str, lines: &[&str]) {
    let program = "import ctypes,struct,sys\nc=ctypes.CDLL(None,use_errno=True)\n\
        q=c.msgget(ctypes.c_int(int(sys.argv[1],16)),0)\n\
        for line in sys.argv[2:]:\n  b=line.encode()\n  assert c.msgsnd(q,struct.pack('l',1)+b,len(b),0)==0";
    stage.python(program, &[&[key], lines].concat()).finish().success();
}

/// A System V queue that a program of the C library has filled is drained into method calls: what waited, and what comes.
async fn a_queue_becomes_notifications(stage: Stage) {
    or_skip!(need_tool("python3"));
    let desktop = or_skip!(Desktop::start(&stage));
    let client = stage.client().await;
    let queue = client.create("sysvmq:key=random,remove-on-close").await;
    let address = client.address(&queue).await;
    let key = address.strip_prefix("sysvmq:key=").expect("its key");
    put(&stage, key, &["disk 91% full", r#"job "nightly" \ failed"#]);
    let notify = "dbus:name=org.freedesktop.Notifications,path=/org/freedesktop/Notifications,\
        interface=org.freedesktop.Notifications,member=Notify,signature=susssasa{sv}i,flags=no-reply-expected";
    let template = r#"["queue",0,"","Build farm","{message}",[],{"urgency":{"type":"y","data":1}},0]"#;
    let sink = client
        .try_attach(&format!("{notify},bus={}", bus(&stage)), options([("template", template.into())]))
        .await
        .expect("Attach");
    client.relay(&queue, &sink, options([])).await;
    put(&stage, key, &["grüße"]);
    for expected in ["disk 91% full", r#"job "nightly" \ failed"#, "grüße"] {
        desktop.shows(&format!("queue|Build farm|{expected}"));
    }
}

/// systemd-hostnamed, in namespaces of its own: neither the name of the machine nor its /etc is touched.
pub fn hostnamed(address: &str) -> Result<(Process, TempDir), Unavailable> {
    const PROGRAM: &str = "/lib/systemd/systemd-hostnamed";
    need_tool("unshare")?;
    need_tool("gdbus")?;
    if !Path::new(PROGRAM).exists() {
        return Err(Unavailable(format!("{PROGRAM} is not installed")));
    }
    let namespaces = Command::new("unshare").args(["--uts", "--mount", "true"]).output();
    if !namespaces.is_ok_and(|done| done.status.success()) {
        return Err(Unavailable("this user may not have namespaces of his own (unshare)".to_owned()));
    }
    let dir = temp_dir();
    let mut program = Command::new("unshare");
    let script = format!("cd \"$1\"; cp -aL /etc/passwd /etc/group .; mount --bind . /etc; exec {PROGRAM}");
    program.args(["--uts", "--mount", "sh", "-ec", &script, "hostnamed"]).arg(dir.path());
    let process = Process::spawn_group(program.env("DBUS_SYSTEM_BUS_ADDRESS", address));
    comes(address, "org.freedesktop.hostname1").map(|()| (process, dir))
}

/// `gdbus call` of a method that changes something.
pub fn change(address: &str, method: &str, value: &str) {
    let mut call = Command::new("gdbus");
    call.args(["call", "--address", address, "--dest", "org.freedesktop.hostname1"]);
    call.args(["--object-path", "/org/freedesktop/hostname1", "--method"]);
    call.args([&format!("org.freedesktop.hostname1.{method}"), value, "false"]);
    Process::spawn(&mut call).finish().success();
}

/// What a service says of its properties is appended to a file, a line each.
async fn changes_are_appended_to_a_file(stage: Stage) {
    let _hostnamed = or_skip!(hostnamed(stage.address()));
    let client: Client = stage.client().await;
    let dir = stage.temp_dir();
    let (spool, log) = (dir.path().join("spool"), dir.path().join("changes.log"));
    fs::write(&log, "what was there\n").expect("an own directory");
    let append =
        format!("cd {}; mkfifo spool; echo ready; exec tee -a changes.log < spool", dir.path().display());
    let appending = ipc_harness::sh(&append);
    appending.wait_for(|line| line == "ready");
    let changes = client
        .attach(&format!(
            "dbus:bus={},signal=true,name=org.freedesktop.hostname1,\
             interface=org.freedesktop.DBus.Properties,member=PropertiesChanged",
            bus(&stage)
        ))
        .await;
    let sink = client.attach(&format!("fifo:path={}", spool.display())).await;
    client.relay(&changes, &sink, options([("framing", "line".into())])).await;
    let mut lines = "what was there\n".to_owned();
    for (method, property, value) in [
        ("SetPrettyHostname", "PrettyHostname", "Anna's machine, grün"),
        ("SetLocation", "Location", "rack \"7\""),
        ("SetChassis", "Chassis", "server"),
    ] {
        change(stage.address(), method, value);
        let value = serde_json::Value::from(value);
        let line =
            format!(r#"["org.freedesktop.hostname1",{{"{property}":{{"data":{value},"type":"s"}}}},[]]"#);
        appending.wait_for(|said| said == line);
        lines.push_str(&format!("{line}\n"));
    }
    assert_eq!(fs::read_to_string(&log).expect("a file"), lines);
}

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", a_queue_becomes_notifications, changes_are_appended_to_a_file);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", a_queue_becomes_notifications, changes_are_appended_to_a_file);
