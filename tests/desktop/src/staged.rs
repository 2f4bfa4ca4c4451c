//! What a Debian package installs for all users, below /usr/share: the archives, unpacked where the desktops look.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::extension;
use crate::extension::{UUID, Variant};
use crate::plasmoid::{self, Plasma};

/// Makes this directory anew. The extension is the one for the GNOME Shell that this machine has, as the programs are
/// for its libraries. The widget is the one for Plasma 6: that for 5.27 has a plugin, which is built where it is
/// installed.
pub fn stage(share: &Path) -> Result<()> {
    if share.exists() {
        fs::remove_dir_all(share).with_context(|| share.display().to_string())?;
    }
    let extension = extension::pack(Variant::here()?)?;
    unpack(&extension, &share.join("gnome-shell/extensions").join(UUID))?;
    unpack(&plasmoid::pack(Plasma::Six)?, &share.join("plasma/plasmoids").join(plasmoid::ID))
}

fn unpack(archive: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    let done = Command::new("python3")
        .args(["-m", "zipfile", "--extract"])
        .args([archive, to])
        .output()
        .context("python3")?;
    ensure!(done.status.success(), "{}: {}", archive.display(), String::from_utf8_lossy(&done.stderr));
    Ok(())
}
