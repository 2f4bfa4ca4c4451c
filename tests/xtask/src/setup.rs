//! `cargo xtask setup`: the programs of other projects that the tests compare with.
//!
//! None of them is needed to build or to run the service. What cannot be installed is named, and the
//! tests that would use it are skipped, visibly.

use std::{collections::BTreeSet, path::Path, process::Command};

use ipc_harness::has_tool;

/// Program and Debian package: with files and modules below, the one list of what the tests use.
const TOOLS: &[(&str, &str)] = &[
    ("Xvfb", "xvfb"),
    ("appstreamcli", "appstream"),
    ("busctl", "systemd"),
    ("dbus-broker-launch", "dbus-broker"),
    ("dbus-daemon", "dbus-daemon"),
    ("desktop-file-validate", "desktop-file-utils"),
    ("ethtool", "ethtool"),
    ("fusermount3", "fuse3"),
    ("gdbus", "libglib2.0-bin"),
    ("gdbus-codegen", "libglib2.0-dev"),
    ("gjs", "gjs"),
    ("gnome-shell", "gnome-shell"),
    ("inotifywait", "inotify-tools"),
    ("ip", "iproute2"),
    ("ipcs", "util-linux"),
    ("msgfmt", "gettext"),
    ("npx", "npm"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("rsync", "rsync"),
    ("socat", "socat"),
    ("ss", "iproute2"),
    ("strace", "strace"),
    ("udevadm", "udev"),
    ("unshare", "util-linux"),
    ("vim.tiny", "vim-tiny"),
    ("xfce4-panel", "xfce4-panel"),
    ("xmllint", "libxml2-utils"),
];

/// The same of files that are no programs on the path: qmllint, and what draws icons in GNOME Shell and panels.
const FILES: &[(&str, &str)] = &[
    ("/usr/lib/qt6/bin/qmllint", "qt6-declarative-dev-tools"),
    ("/usr/share/doc/librsvg2-common/copyright", "librsvg2-common"),
];

/// The same of modules of the system's Python, which the other sides of the message bus tests are written with.
const MODULES: &[(&str, &str)] = &[("dbus", "python3-dbus"), ("gi", "python3-gi")];

/// Installs what is missing, as far as this machine lets.
pub fn setup() {
    let packages: BTreeSet<_> = missing().map(|(_, package)| package).collect();
    if packages.is_empty() {
        return println!("setup: everything that the tests use is installed");
    }
    let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
    println!("setup: installing {list}");
    if let Err(why) = install(&packages) {
        println!("setup: {why}");
    }
    for (program, package) in missing() {
        println!("setup: {program} is missing (Debian package {package}); tests that use it are skipped");
    }
}

fn missing() -> impl Iterator<Item = (&'static str, &'static str)> {
    let tools = TOOLS.iter().filter(|(program, _)| !has_tool(program));
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).exists());
    tools.chain(files).chain(MODULES.iter().filter(|(module, _)| !has_module(module))).copied()
}

fn has_module(name: &str) -> bool {
    let import = Command::new("/usr/bin/python3").args(["-c", &format!("import {name}")]).output();
    import.is_ok_and(|done| done.status.success())
}

fn install(packages: &BTreeSet<&str>) -> Result<(), String> {
    if !Path::new("/etc/debian_version").exists() || !has_tool("apt-get") {
        return Err("this is no Debian; install them with the package manager of this machine".into());
    }
    // Lists may never have been fetched in a container; where there is no network, what is cached may do.
    if let Err(why) = apt_get(&["update", "-qq"]) {
        println!("setup: {why}; going on with the lists that are there");
    }
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let mut command = match rustix::process::geteuid().is_root() {
        true => Command::new("env"),
        false if has_tool("sudo") => {
            let mut sudo = Command::new("sudo");
            // It fails instead of asking: nobody may be there to answer.
            sudo.args(["--non-interactive", "env"]);
            sudo
        }
        false => return Err("installing needs root or sudo".into()),
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("apt-get {} failed: {status}", arguments.join(" "))),
        Err(error) => Err(format!("apt-get {}: {error}", arguments.join(" "))),
    }
}
