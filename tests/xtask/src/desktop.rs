//! `cargo xtask desktop`: what desktops get, packed and tried. The work is done by tests/desktop.

use anyhow::{Result, bail, ensure};
use ipc_desktop::extension::{self, Variant};
use ipc_desktop::next::{DEBIANS, Next};
use ipc_desktop::plasmoid::{self, Plasma};
use ipc_desktop::root;

use crate::cargo;

/// Makes the archives.
pub fn pack() -> Result<()> {
    for variant in Variant::ALL {
        println!("packed {}", extension::pack(variant)?.display());
    }
    for version in Plasma::ALL {
        println!("packed {}", plasmoid::pack(version)?.display());
    }
    Ok(())
}

/// Tries what this machine has.
pub fn here() -> Result<()> {
    pack()?;
    let mut test = cargo();
    // They tell what they have measured.
    test.args(["test", "--package", "ipc-desktop", "--package", "ipc-tray", "--", "--nocapture"]);
    let status = test.status()?;
    ensure!(status.success(), "{test:?}: {status}");
    println!("pictures are in target/desktop");
    Ok(())
}

/// Tries what other Debians have: all of it, and says at the end what failed.
pub fn all(only: &[String]) -> Result<()> {
    if only.is_empty() {
        here()?;
    }
    let mut build = cargo();
    build.args(["build", "--package", "ipcd", "--package", "ipc-tray"]);
    let status = build.status()?;
    ensure!(status.success(), "{build:?}: {status}");
    let programs = ["ipcd", "ipc-tray"].map(|program| root().join("target/debug").join(program));
    let mut failed = Vec::new();
    for debian in DEBIANS {
        let wanted = |name: &&&str| only.is_empty() || only.iter().any(|it| it == **name);
        let desktops: Vec<_> = debian.desktops.iter().filter(wanted).collect();
        if desktops.is_empty() {
            continue;
        }
        let next = Next::new(debian, &programs)?;
        for name in desktops {
            match next.desktop(name) {
                Ok(told) => println!("{name}:\n{told}"),
                Err(error) => {
                    eprintln!("{name}: {error:#}");
                    failed.push(*name);
                }
            }
        }
    }
    println!("pictures are in target/desktop");
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}
