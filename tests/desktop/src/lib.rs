//! What desktops get of org.example.IPC, and real desktops to try it in.
//!
//! [`extension`] packs the GNOME Shell extension for both families of versions; [`Shell`] is a GNOME Shell without a
//! screen that runs it beside a service, tells what its menu says and makes pictures of it.

#![forbid(unsafe_code)]

pub mod extension;
mod shell;

use std::path::PathBuf;

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
