//! What desktops get of org.example.IPC, and real desktops to try it in.
//!
//! [`plasmoid`] packs the widget for Plasma 6 and 5.27, [`next`] runs the desktops of other Debians in folders.
//! [`extension`] packs the GNOME Shell extension for both families of versions; [`Shell`] is a GNOME Shell without a
//! screen that runs it beside a service, tells what its menu says and makes pictures of it; [`Preferences`] are those of
//! the extension.

#![forbid(unsafe_code)]

pub mod extension;
pub mod next;
pub mod plasmoid;
mod preferences;
mod shell;
pub mod staged;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use preferences::Preferences;
pub use shell::{Desktop, Shell};

/// The top of the checkout.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // This crate lies two levels below it.
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}

/// Where archives and pictures go.
pub fn output() -> PathBuf {
    root().join("target/desktop")
}

/// Copies a directory with all that is in it.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
