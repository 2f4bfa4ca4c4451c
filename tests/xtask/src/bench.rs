//! `cargo xtask bench`: the benchmarks, always in a release build: a debug build measures nothing.

use std::ffi::OsString;

use anyhow::{Context, Result, ensure};

/// Runs the crate `ipc-bench` with these arguments.
pub fn run(arguments: Vec<OsString>) -> Result<()> {
    let mut command = crate::cargo();
    command.args(["run", "--release", "--package", "ipc-bench", "--"]).args(arguments);
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "the benchmarks failed: {status}");
    Ok(())
}
