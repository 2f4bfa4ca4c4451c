//! `cargo xtask package`: the Debian packages, and their life on a machine with a real systemd.
//!
//! There are two: ipcd, which is all that a server wants, and ipcd-desktop. What goes into them stands in
//! service/daemon/Cargo.toml and desktop/tray/Cargo.toml, for cargo-deb. The test starts a minimal Debian in a
//! container, once with each message bus, and runs tests/package/scenario.sh in it as a unit; the container powers
//! off when the script ends. The root file system is made once and kept under target/.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use ipc_desktop::staged;
use ipc_harness::{Kind, has_tool};

use crate::{cargo, root};

/// What the container has beside the essential packages and what the package asks for.
const INCLUDE: &str = "systemd-sysv,dbus,dbus-broker";

/// Tools of the test, with their Debian packages.
const TOOLS: &[(&str, &str)] = &[("mmdebstrap", "mmdebstrap"), ("systemd-nspawn", "systemd-container")];

/// The scenario as a unit of the container. It is started with everything else, and the end of it is the end
/// of the container.
const UNIT: &str = "\
[Unit]
After=dbus.socket multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/package/scenario.sh
StandardOutput=file:/package/log
StandardError=inherit
TimeoutStartSec=300
";

pub fn package(test: bool) -> Result<()> {
    let directory = root().join("target/package");
    fs::create_dir_all(&directory)?;
    need_cargo_deb()?;
    let package = build(&directory, "ipcd", &[])?;
    staged::stage(&directory.join("staged"))?;
    let desktop = build(&directory, "ipc-tray", &[])?;
    for package in [&package, &desktop] {
        println!("built {}", package.display());
        lint(package)?;
    }
    if !test {
        return Ok(());
    }
    if let Some(why) = lacking() {
        println!("SKIPPED  the test of the package: {why}");
        return Ok(());
    }
    // The same program under a higher version: what an upgrade does is for the scripts to show.
    let higher = concat!(env!("CARGO_PKG_VERSION"), "-1+upgrade");
    let upgrade = build(&directory, "ipcd", &["--no-build", "--deb-version", higher])?;
    let system = root_file_system(&directory)?;
    for bus in Kind::ALL {
        println!("==> the package with {bus}");
        live(
            &directory,
            &system,
            bus,
            &[(&package, "old.deb"), (&upgrade, "new.deb"), (&desktop, "desktop.deb")],
        )?;
    }
    fs::remove_file(upgrade).context("removing the package of the upgrade")
}

fn need_cargo_deb() -> Result<()> {
    let version = cargo().args(["deb", "--version"]).output();
    if version.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("cargo-deb is missing: installing it");
    run(cargo().args(["install", "--locked", "cargo-deb"]))
}

/// Where cargo-deb says that it put the package that is made of this crate.
fn build(directory: &Path, name: &str, more: &[&str]) -> Result<PathBuf> {
    let mut deb = cargo();
    deb.args(["deb", "--quiet", "--package", name, "--strip", "--output"]).arg(directory).args(more);
    let output = deb.stderr(Stdio::inherit()).output().context("cargo deb")?;
    ensure!(output.status.success(), "{deb:?}: {}", output.status);
    let printed = String::from_utf8_lossy(&output.stdout);
    Ok(printed.lines().last().context("cargo deb names no package")?.into())
}

/// Everything that lintian knows to say is a failure; the lintian-overrides in dbus-policy/debian and desktop/debian have the
/// exceptions.
fn lint(package: &Path) -> Result<()> {
    if !has_tool("lintian") {
        println!("SKIPPED  lintian is not installed");
        return Ok(());
    }
    let mut lintian = Command::new("lintian");
    lintian.args([
        "--allow-root",
        "--pedantic",
        "--display-info",
        "--fail-on",
        "error,warning,info,pedantic",
    ]);
    run(lintian.arg(package))
}

/// Why the package cannot be tested here.
fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root, to start a container".into());
    }
    let missing = TOOLS.iter().find(|(tool, _)| !has_tool(tool));
    missing.map(|(tool, package)| format!("{tool} is not installed (Debian package {package})"))
}

/// An archive of a minimal system, made once.
fn root_file_system(directory: &Path) -> Result<PathBuf> {
    let archive = directory.join("root.tar");
    if !archive.exists() {
        println!("making a minimal Debian with mmdebstrap, once");
        let unfinished = directory.join("unfinished.tar");
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--quiet", "--variant=minbase", "--include", INCLUDE, &codename()]);
        run(mmdebstrap.arg(&unfinished))?;
        fs::rename(&unfinished, &archive)?;
    }
    Ok(archive)
}

/// The Debian that this machine runs, so that the program finds the libraries it was linked with.
fn codename() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.unwrap_or("stable").trim_matches('"').to_owned()
}

/// Boots a fresh copy and lets the scenario run.
fn live(directory: &Path, archive: &Path, bus: Kind, packages: &[(&PathBuf, &str)]) -> Result<()> {
    let system = directory.join(format!("root-{bus}"));
    remove(&system)?;
    fs::create_dir(&system)?;
    run(Command::new("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(&system))?;
    furnish(&system, bus, packages)?;

    let console = fs::File::create(directory.join(format!("{bus}-console.log")))?;
    // Whatever hangs in there, this ends.
    let mut container = Command::new("timeout");
    container.args(["--kill-after=20", "400", "systemd-nspawn", "--quiet", "--boot", "--register=no"]);
    container.args(["--keep-unit", "--private-network", "--console=pipe", "--directory"]).arg(&system);
    // With systemd-nspawn's system call filter, every caller in there would be a confined one.
    container.env("SYSTEMD_SECCOMP", "0");
    container.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    let status = container.status().context("systemd-nspawn")?;

    let log = fs::read_to_string(system.join("package/log")).unwrap_or_default();
    print!("{log}");
    ensure!(
        log.ends_with("PASSED\n"),
        "the package does not live with {bus} ({status}); the container's console is in target/package"
    );
    remove(&system)
}

/// The packages, the scenario, and the bus that is wanted: Debian's dbus-broker takes over where it is installed.
fn furnish(system: &Path, bus: Kind, packages: &[(&PathBuf, &str)]) -> Result<()> {
    let package = system.join("package");
    fs::create_dir(&package)?;
    for (file, name) in packages {
        fs::copy(file, package.join(name)).with_context(|| file.display().to_string())?;
    }
    fs::copy(root().join("tests/package/scenario.sh"), package.join("scenario.sh"))?;
    let units = system.join("etc/systemd/system");
    fs::write(units.join("scenario.service"), UNIT)?;
    let wanted = units.join("default.target.wants");
    fs::create_dir_all(&wanted)?;
    std::os::unix::fs::symlink("../scenario.service", wanted.join("scenario.service"))?;
    if bus == Kind::DbusDaemon {
        fs::remove_file(units.join("dbus.service")).context("the alias that dbus-broker makes")?;
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    match status.success() {
        true => Ok(()),
        false => bail!("{command:?}: {status}"),
    }
}
