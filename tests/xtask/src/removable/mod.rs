//! `cargo xtask removable`: each check has a test that fails when the check is taken out, so that no test of the
//! adversary suite is decoration.
//!
//! The checks are taken out of a copy of the sources (target/removable/source), one at a time, and the program that is
//! built of it is handed to the unchanged tests (`IPCD=`). First all those tests have to pass with the unchanged copy:
//! otherwise a failure says nothing.

mod buses;
mod mounts;
mod table;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, root};
use table::{Check, Test};

pub fn removable(name: Option<&str>) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "only root can start the service on a system bus");
    let chosen: Vec<_> = checks().filter(|check| name.is_none_or(|name| check.name.contains(name))).collect();
    ensure!(
        !chosen.is_empty(),
        "no check is named like that; the files in tests/xtask/src/removable have the names"
    );
    let misplaced = misplaced()?;
    ensure!(misplaced.is_empty(), "{}", misplaced.join("\n"));
    let copy = Copy::new()?;
    copy.build()?;
    for test in chosen.iter().map(|check| key(check.test)).collect::<BTreeSet<_>>() {
        let output = copy.run(test)?;
        if !output.status.success() || !ran(&output) {
            bail!("{} {} fails, or is skipped, with all checks in place:\n{}", test.0, test.1, text(&output));
        }
    }
    let mut missed = 0;
    for check in &chosen {
        let outcome = copy.without(check)?;
        missed += u32::from(outcome != "missed");
        println!("  {outcome:12} {}: {}", check.name, key(check.test).1);
    }
    println!("{} checks, {missed} of them are not missed by their test", chosen.len());
    ensure!(missed == 0, "a check that no test misses may break unnoticed");
    Ok(())
}

/// All of them, from the files beside this one.
fn checks() -> impl Iterator<Item = &'static Check> {
    [table::CHECKS, buses::CHECKS, mounts::CHECKS].into_iter().flatten()
}

/// Edits whose place is not there, or there twice; tests that are not where they are said to be.
pub fn misplaced() -> Result<Vec<String>> {
    let mut misplaced = Vec::new();
    for check in checks() {
        let (file, line) = match check.test {
            Test::Adversary(file, name) => {
                (format!("tests/adversary/tests/{file}.rs"), format!("fn {name}("))
            }
            Test::Spawner(name) => {
                ("service/spawner/tests/spawner/main.rs".to_owned(), format!("\"{name}\""))
            }
        };
        if !fs::read_to_string(root().join(&file)).unwrap_or_default().contains(&line) {
            misplaced.push(format!("{file} has no {line}; mend tests/xtask/src/removable"));
        }
        for edit in check.edits {
            let text = fs::read_to_string(root().join(edit.file)).with_context(|| edit.file.to_owned())?;
            let count = text.matches(edit.from).count();
            if count != 1 {
                let (file, from) = (edit.file, edit.from);
                misplaced.push(format!("{file} has {count} times: {from}; mend tests/xtask/src/removable"));
            }
        }
    }
    Ok(misplaced)
}

/// Its file and its name.
fn key(test: Test) -> (&'static str, &'static str) {
    match test {
        Test::Adversary(file, name) => (file, name),
        Test::Spawner(name) => ("spawner", name),
    }
}

/// Whether a test was run and not skipped.
fn ran(output: &Output) -> bool {
    let text = text(output);
    !text.contains("SKIPPED") && (text.contains("1 passed") || text.contains("1 failed"))
}

fn text(output: &Output) -> String {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{error}")
}

/// A copy of the sources, with a target directory of its own.
struct Copy {
    source: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new() -> Result<Self> {
        let directory = root().join("target/removable");
        let copy = Self { source: directory.join("source"), target: directory.join("target") };
        let mut git = Command::new("git");
        git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let output = git.output().context("git ls-files")?;
        ensure!(output.status.success(), "git ls-files: {}", output.status);
        for file in output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let file = Path::new(std::str::from_utf8(file)?);
            // Deleted, and not committed yet.
            if let Ok(bytes) = fs::read(root().join(file)) {
                copy.write(file, &bytes)?;
            }
        }
        Ok(copy)
    }

    /// Only what is another: cargo goes by the time of the last change.
    fn write(&self, file: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.source.join(file);
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo();
        command.current_dir(&self.source).env("CARGO_TARGET_DIR", &self.target).args(arguments);
        // What a check leaves unused is no fault.
        command.env("RUSTFLAGS", "--cap-lints warn");
        command
    }

    fn build(&self) -> Result<()> {
        let mut build = self.cargo(&["build", "--quiet", "--package", "ipcd", "--bin", "ipcd"]);
        let output = build.stdin(Stdio::null()).output().context("cargo build")?;
        ensure!(output.status.success(), "the copy does not build:\n{}", text(&output));
        Ok(())
    }

    /// Runs one test: of the adversary suite, the unchanged one of the checkout, with the program of the copy.
    fn run(&self, (file, name): (&str, &str)) -> Result<Output> {
        let mut test = match file {
            "spawner" => {
                self.cargo(&["test", "--quiet", "--package", "ipc-spawner", "--test", "spawner", name])
            }
            file => {
                let mut test = cargo();
                test.args([
                    "test",
                    "--quiet",
                    "--package",
                    "ipc-adversary",
                    "--test",
                    file,
                    "--",
                    name,
                    "--exact",
                ]);
                test.arg("--nocapture").env("IPCD", self.target.join("debug/ipcd"));
                test
            }
        };
        test.env("RUST_BACKTRACE", "0").stdin(Stdio::null()).output().context("cargo test")
    }

    /// What the test says without the check.
    fn without(&self, check: &Check) -> Result<&'static str> {
        let mut changed = BTreeSet::new();
        for edit in check.edits {
            let file = Path::new(edit.file);
            let text = fs::read_to_string(self.source.join(file))?;
            self.write(file, text.replace(edit.from, edit.to).as_bytes())?;
            changed.insert(file);
        }
        let outcome = self.build().and_then(|()| self.run(key(check.test)));
        for file in changed {
            self.write(file, &fs::read(root().join(file))?)?;
        }
        let output = outcome.with_context(|| check.name.to_owned())?;
        Ok(match (output.status.success(), ran(&output)) {
            (true, _) => "NOT MISSED",
            (false, true) => "missed",
            (false, false) => "NOT RUN",
        })
    }
}
