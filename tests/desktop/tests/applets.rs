//! The applets of desktop/README.md: they are what the files in desktop/applets say, and those do what they should.
//! The one in QML needs Plasma 6, and is tried where that is: tests/desktop/next/applets.sh.

use std::fs;
use std::process::Command;

use ipc_desktop::root;
use ipc_harness::{Bus, Launch, Process, Unavailable, need_tool, or_skip};

/// Runs an applet on a session bus beside a service, and has it tell of an interface and its change.
fn tells_of_links(mut applet: Command) -> Result<(), Unavailable> {
    let bus = Bus::dbus_daemon()?;
    let service = Launch::on(&bus).in_own_network()?.start();
    applet.env("DBUS_SESSION_BUS_ADDRESS", bus.address());
    let applet = Process::spawn_group(&mut applet);
    applet.wait_for(|line| line == "lo down");
    service.ip("link set lo up");
    applet.wait_for(|line| line == "lo unknown");
    Ok(())
}

fn applet(program: &str, file: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(root().join("desktop/applets").join(file));
    command
}

#[test]
fn the_readme_has_the_applets() {
    let readme = fs::read_to_string(root().join("desktop/README.md")).expect("the README");
    for file in ["links.js", "links.py", "links.qml"] {
        let text = fs::read_to_string(root().join("desktop/applets").join(file)).expect("an applet");
        assert!(readme.contains(&text), "desktop/README.md has not what is in {file}");
        assert!(text.lines().count() <= 15, "{file} has more than 15 lines");
    }
}

#[test]
fn the_one_in_gjs() {
    or_skip!(need_tool("gjs"));
    let mut gjs = applet("gjs", "links.js");
    gjs.arg("session");
    or_skip!(tells_of_links(gjs));
}

#[test]
fn the_one_in_python() {
    // The interpreter of the distribution is the one that has its modules.
    let has_gi = |python: &&str| {
        Command::new(python).args(["-c", "import gi"]).output().is_ok_and(|it| it.status.success())
    };
    let Some(python) = ["/usr/bin/python3", "python3"].into_iter().find(has_gi) else {
        ipc_harness::skip!("Python has no module gi (Debian package python3-gi)");
    };
    let mut python = applet(python, "links.py");
    python.arg("session");
    or_skip!(tells_of_links(python));
}
