//! Desktops of another Debian than that of this machine, perhaps, each Debian in a folder: GNOME Shell 48, Plasma 6 and the
//! panel of Xfce of the next one, Plasma 5.27 of the one before. They have no screen, and buses, network and processes of
//! their own. For `cargo xtask desktop --all`, which is a nightly run: the folders take 2.5 and 2 GB, and minutes to make.
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

/// A Debian, and what is needed of it.
pub struct Debian {
    suite: &'static str,
    /// The variable that names such a folder, where somebody has one already.
    folder: &'static str,
    packages: &'static [&'static str],
    /// The scripts in tests/desktop/next for it.
    pub desktops: &'static [&'static str],
}

/// All of them.
pub const DEBIANS: &[Debian] = &[
    Debian {
        suite: "trixie",
        folder: "IPC_DESKTOP_ROOT",
        packages: &[
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
        ],
        desktops: &["lint", "applets", "plasma", "gnome", "tray"],
    },
    Debian {
        suite: "bookworm",
        folder: "IPC_DESKTOP_ROOT_5",
        packages: &[
            "breeze-icon-theme",
            "cmake",
            "dbus",
            "dbus-daemon",
            "fonts-dejavu-core",
            "g++",
            "imagemagick",
            "iproute2",
            "kpackagetool5",
            "libqt5svg5",
            "make",
            "openbox",
            "plasma-desktop",
            "plasma-integration",
            "plasma-workspace",
            "python3",
            "qml-module-org-kde-kcm",
            "qml-module-org-kde-kitemmodels",
            "qml-module-org-kde-notifications",
            "qml-module-qt-labs-platform",
            "qtbase5-dev",
            "qtdeclarative5-dev",
            "qtdeclarative5-dev-tools",
            "systemd",
            "xdotool",
            "xvfb",
        ],
        desktops: &["plasma5"],
    },
];

/// All scripts.
pub fn desktops() -> Vec<&'static str> {
    DEBIANS.iter().flat_map(|debian| debian.desktops).copied().collect()
}

/// A folder with a Debian in it.
pub struct Next {
    folder: PathBuf,
    staged: PathBuf,
}

impl Next {
    /// The folder, made if it is missing, and what is tried in it: `programs` are ipcd and ipc-tray.
    pub fn new(debian: &Debian, programs: &[PathBuf]) -> Result<Next> {
        let folder =
            std::env::var_os(debian.folder).map_or_else(|| output().join(debian.suite), PathBuf::from);
        if !folder.join("usr/bin/plasmashell").exists() {
            make(debian, &folder)?;
        }
        let staged = output().join("next");
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(&staged)?;
        for program in programs {
            let name = program.file_name().context("the name of a program")?;
            fs::copy(program, staged.join(name)).with_context(|| program.display().to_string())?;
        }
        for version in Plasma::ALL {
            fs::copy(plasmoid::pack(version)?, staged.join(version.archive()))?;
        }
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
        command.args([
            "--net",
            "--ipc",
            "--pid",
            "--mount",
            "--propagation",
            "private",
            "--fork",
            "--kill-child",
        ]);
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

    /// Tries one of the desktops of this Debian.
    pub fn desktop(&self, name: &str) -> Result<String> {
        let script = format!("/ipc/next/{name}.sh");
        let told = self.run(&["dbus-run-session", "--", "bash", &script])?;
        ensure!(told.contains("PASSED"), "{name} ended early:\n{told}");
        Ok(told)
    }
}

/// Makes the folder with mmdebstrap(1), from where this machine has its packages.
fn make(debian: &Debian, folder: &Path) -> Result<()> {
    let Debian { suite, packages, .. } = debian;
    println!("making {} with {} packages of {suite}", folder.display(), packages.len());
    let mut apt = Command::new("apt-get");
    let sites = apt
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("apt-get")?;
    let sites = String::from_utf8_lossy(&sites.stdout).into_owned();
    let mirror = sites.lines().find(|site| !site.contains("security")).context("apt-get knows no mirror")?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--variant=apt", "--aptopt=APT::Install-Recommends \"false\""]);
    mmdebstrap.arg(format!("--include={}", packages.join(","))).arg(suite).arg(folder).arg(mirror);
    let status = mmdebstrap.status().context("mmdebstrap")?;
    ensure!(status.success(), "{mmdebstrap:?}: {status}");
    Ok(())
}
