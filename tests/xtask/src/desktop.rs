//! `cargo xtask desktop`: what desktops get, packed and tried. The work is done by tests/desktop.

use anyhow::{Result, ensure};
use ipc_desktop::extension::{Variant, pack};

use crate::cargo;

pub fn desktop(only_pack: bool) -> Result<()> {
    for variant in Variant::ALL {
        println!("packed {}", pack(variant)?.display());
    }
    if only_pack {
        return Ok(());
    }
    let mut test = cargo();
    // They tell what they have measured.
    test.args(["test", "--package", "ipc-desktop", "--", "--nocapture"]);
    let status = test.status()?;
    ensure!(status.success(), "{test:?}: {status}");
    println!("pictures are in target/desktop");
    Ok(())
}
