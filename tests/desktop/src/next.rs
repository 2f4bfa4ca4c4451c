//! The desktops of the next Debian, in a folder: GNOME Shell 48, Plasma 6 and the panel of Xfce, each without a screen,
//! with buses, network and processes of its own. For `cargo xtask desktop --all`, which is a nightly run: the folder takes
//! 2.5 GB, and minutes to make.
//!
//! What is tried there is in tests/desktop/next, as what one does with desktops is most clearly said as a shell
//! script: each waits for what the desktop tells, makes pictures, and ends with PASSED.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::extension::Variant;
use crate::plasmoid::{self, Plasma};
use crate::{copy_tree, extension, output, root};

/// The suite, and what is needed of it.
const SUITE: &str = "trixie";
const PACKAGES: &[&str] = &[
    "breeze-icon-theme",
    "dbus",
    "dbus-daemon",
    "fonts-dejavu-core",
    "gnome-shell",
    "imagemagick",
    "iproute2",
    "kf6-breeze-icon-theme",
    "kpackagetool6",
    "libglib2.0-bin",
    "libkf6iconthemes-bin",
    "openbox",
    "plasma-desktop",
    "plasma-workspace",
    "qml-qt6",
    "qml6-module-org-kde-kcmutils",
    "qml6-module-org-kde-notifications",
    "qml6-module-qtquick",
    "qt6-declarative-dev-tools",
    "qt6-svg-plugins",
    "systemd",
    "xdotool",
    "xfce4-panel",
    "xvfb",
];

/// Where somebody has such a folder already.
const FOLDER: &str = "IPC_DESKTOP_ROOT";

/// The scripts in tests/desktop/next.
pub const DESKTOPS: &[&str] = &["lint", "applets", "plasma", "gnome", "tray"];

/// A folder with the next Debian in it.
pub struct Next {
    folder: PathBuf,
    staged: PathBuf,
}

impl Next {
    /// The folder, made if it is missing, and what is tried in it: `programs` are ipcd and ipc-tray.
    pub fn new(programs: &[PathBuf]) -> Result<Next> {
        let folder = std::env::var_os(FOLDER).map_or_else(|| output().join(SUITE), PathBuf::from);
        if !folder.join("usr/bin/plasmashell").exists() {
            make(&folder)?;
        }
        let staged = output().join("next");
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(&staged)?;
        for program in programs {
            let name = program.file_name().context("the name of a program")?;
            fs::copy(program, staged.join(name)).with_context(|| program.display().to_string())?;
        }
        fs::copy(plasmoid::pack(Plasma::Six)?, staged.join("org.example.IPC.plasmoid"))?;
        fs::copy(extension::pack(Variant::Modules)?, staged.join("extension.zip"))?;
        copy_tree(&root().join("tests/desktop/next"), &staged.join("next"))?;
        copy_tree(&root().join("desktop"), &staged.join("desktop"))?;
        Ok(Next { folder, staged })
    }

    /// Runs a program in the folder, in namespaces that end with it, and gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        const INSIDE: &str = "set -e; cd \"$1\"; mount -t proc proc proc; mount -t sysfs sysfs sys; mount --rbind /dev dev
            mount -t tmpfs tmp tmp; mount -t tmpfs run run; mkdir -p run/dbus ipc pictures; mkdir -m 1777 tmp/.X11-unix
            mount --bind \"$2\" ipc; mount --bind \"$3\" pictures; ip link set lo up; folder=$1; shift 3
            exec chroot \"$folder\" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--mount", "--propagation", "private", "--fork", "--kill-child"]);
        command
            .args(["sh", "-c", INSIDE, "sh"])
            .arg(&self.folder)
            .arg(&self.staged)
            .arg(output())
            .args(arguments);
        let done = command.stdin(Stdio::null()).output().context("unshare")?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(
            done.status.success(),
            "{arguments:?}: {}\n{text}{}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(text)
    }

    /// Tries one of [`DESKTOPS`].
    pub fn desktop(&self, name: &str) -> Result<String> {
        let script = format!("/ipc/next/{name}.sh");
        let told = self.run(&["dbus-run-session", "--", "bash", &script])?;
        ensure!(told.contains("PASSED"), "{name} ended early:\n{told}");
        Ok(told)
    }
}

/// Makes the folder with mmdebstrap(1), from where this machine has its packages.
fn make(folder: &Path) -> Result<()> {
    println!("making {} with {} packages of {SUITE}", folder.display(), PACKAGES.len());
    let mut apt = Command::new("apt-get");
    let sites = apt
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("apt-get")?;
    let sites = String::from_utf8_lossy(&sites.stdout).into_owned();
    let mirror = sites.lines().find(|site| !site.contains("security")).context("apt-get knows no mirror")?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--variant=apt", "--aptopt=APT::Install-Recommends \"false\""]);
    mmdebstrap.arg(format!("--include={}", PACKAGES.join(","))).arg(SUITE).arg(folder).arg(mirror);
    let status = mmdebstrap.status().context("mmdebstrap")?;
    ensure!(status.success(), "{mmdebstrap:?}: {status}");
    Ok(())
}
