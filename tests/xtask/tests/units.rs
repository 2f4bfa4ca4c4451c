//! The systemd units, as systemd itself reads them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ipc_harness::{TempDir, need_tool, or_skip, temp_dir};

/// A setting that systemd knows from version 254 on; older ones say so and go on.
const NEW: &str = "Unknown key 'FileDescriptorStorePreserve'";

#[test]
fn systemd_understands_the_units() {
    or_skip!(need_tool("systemd-analyze"));
    let units = installed();
    let files = ["ipcd.service", "ipcd-spawner.service", "ipcd-spawner.socket"];
    let files = files.map(|file| units.path().join(file));
    verify(&["--system"], &files);
    // The example is a template: it is read as one of its instances.
    let example = fs::read_to_string(source().join("../examples/ipcd-relays@.service")).expect("the example");
    let instance = units.path().join("ipcd-relays@root.service");
    fs::write(&instance, example.replace("/usr/bin/ipcd", "/bin/true")).expect("a file");
    verify(&["--system"], &[instance]);
    verify(&["--user"], &[units.path().join("user/ipcd.service")]);
}

fn verify(manager: &[&str], files: &[PathBuf]) {
    let mut command = Command::new("systemd-analyze");
    command.args(manager).args(["verify", "--man=no", "--recursive-errors=no"]).args(files);
    // A user's manager wants a runtime directory; any will do.
    command.env("XDG_RUNTIME_DIR", files[0].parent().expect("a file in a directory"));
    let output = command.output().expect("systemd-analyze runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let complaints: Vec<_> = text.lines().filter(|line| !line.contains(NEW)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The score differs between versions of systemd; that of 252 is 0.2 for the front, 4.6 for the spawner,
/// whose children must see the system as it is.
#[test]
fn the_units_are_as_closed_as_they_can_be() {
    or_skip!(need_tool("systemd-analyze"));
    let units = installed();
    for (unit, most) in [("ipcd.service", "6"), ("ipcd-spawner.service", "50")] {
        let threshold = format!("--threshold={most}");
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--no-pager", "--offline=true", &threshold]).arg(units.path().join(unit));
        let Output { status, stdout, .. } = command.output().expect("systemd-analyze runs");
        assert!(status.success(), "{unit}: {}", String::from_utf8_lossy(&stdout));
    }
}

/// The units of the spawner may not change what a path or an address means.
#[test]
fn the_spawner_makes_no_namespace() {
    let unit = fs::read_to_string(source().join("ipcd-spawner.service")).expect("the unit");
    let makes_one = |line: &&str| {
        ["Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "Temporary", "NoExec", "Root"]
            .iter()
            .any(|begin| line.starts_with(begin))
    };
    assert_eq!(unit.lines().filter(makes_one).collect::<Vec<_>>(), Vec::<&str>::new());
}

/// The units in a directory of their own, with a program that exists.
fn installed() -> TempDir {
    let directory = temp_dir();
    fs::create_dir(directory.path().join("user")).expect("an own directory");
    for file in ["ipcd.service", "ipcd-spawner.service", "ipcd-spawner.socket", "user/ipcd.service"] {
        let unit = fs::read_to_string(source().join(file)).expect(file);
        fs::write(directory.path().join(file), unit.replace("/usr/bin/ipcd", "/bin/true")).expect(file);
    }
    directory
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dbus-policy/systemd")
}
