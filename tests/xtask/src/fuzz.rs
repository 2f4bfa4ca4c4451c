//! `cargo xtask fuzz`: lets libFuzzer loose on the targets of tests/fuzz, on the stable toolchain.
//!
//! The fuzzer takes more than a minute to build, so `cargo xtask check` does not run it: the tests of tests/fuzz call
//! the same functions with the seeds and thousands of changed ones. What a run finds out stays under target/fuzz;
//! an input that broke something belongs into tests/fuzz/corpus once it is mended.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, root};

/// Longer inputs say nothing new; a request to the spawner fits.
const LONGEST: usize = 8192;

pub fn fuzz(target: Option<String>, seconds: u32) -> Result<()> {
    let targets = targets()?;
    let chosen = match target {
        None => targets,
        Some(target) if targets.contains(&target) => vec![target],
        Some(target) => bail!("there is no target {target:?}; there are {}", targets.join(", ")),
    };
    need_cargo_fuzz()?;
    let mut broken = Vec::new();
    for target in chosen {
        println!("==> {target}, for {seconds} s");
        if !run(&target, seconds)? {
            broken.push(target);
        }
    }
    ensure!(broken.is_empty(), "broken, see target/fuzz/artifacts: {}", broken.join(", "));
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let directory = root().join("tests/fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let file = entry?.path();
        names.extend(file.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn need_cargo_fuzz() -> Result<()> {
    let version = cargo().args(["fuzz", "--version"]).output();
    if version.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("cargo-fuzz is missing: installing it");
    let installed = cargo().args(["install", "--locked", "cargo-fuzz"]).status().context("cargo install")?;
    ensure!(installed.success(), "cargo install cargo-fuzz: {installed}");
    Ok(())
}

/// Whether nothing was found.
fn run(target: &str, seconds: u32) -> Result<bool> {
    let work = root().join("target/fuzz");
    let (found, artifacts) = (work.join("corpus").join(target), work.join("artifacts"));
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory)?;
    }
    let mut fuzz = cargo();
    // The sanitizers need the nightly toolchain. There is no unsafe code in what is fuzzed.
    fuzz.args([
        "fuzz",
        "run",
        "--fuzz-dir",
        "tests/fuzz",
        "--target-dir",
        "target/fuzz",
        "--sanitizer",
        "none",
    ]);
    fuzz.args(["--features", "libfuzzer", target])
        .arg(found)
        .arg(root().join("tests/fuzz/corpus").join(target));
    fuzz.args(["--", &format!("-max_total_time={seconds}"), &format!("-max_len={LONGEST}"), "-timeout=60"]);
    fuzz.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
    // It would cost half of the build.
    fuzz.env("CARGO_PROFILE_RELEASE_LTO", "off");
    Ok(fuzz.status().context("cargo fuzz")?.success())
}
