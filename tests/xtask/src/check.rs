//! `cargo xtask check`: everything that must hold, cheapest first. A step that fails does not keep
//! the others from running, so that one run tells everything.

use std::process::{Command, ExitCode};

use ipc_harness::report;

use crate::{bless, cargo, proofs, rules::RULES};

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

type Step = (String, Box<dyn Fn() -> Outcome>);

pub fn check() -> ExitCode {
    report::forget();
    let mut results = Vec::new();
    for (name, step) in steps() {
        println!("==> {name}");
        let outcome = step();
        if let Outcome::Failed(why) = &outcome {
            println!("{why}");
        }
        results.push((name, outcome));
    }
    report_skipped_tests();
    println!("\nSteps");
    let [mut passed, mut failed, mut skipped] = [0; 3];
    for (name, outcome) in &results {
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("  passed   {name}");
            }
            Outcome::Failed(why) => {
                failed += 1;
                println!("  FAILED   {name}: {}", why.lines().next().unwrap_or_default());
            }
            Outcome::Skipped(why) => {
                skipped += 1;
                println!("  SKIPPED  {name}: {why}");
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = vec![
        ("formatting".into(), Box::new(|| tool("fmt", &["--all", "--check"]))),
        (
            "lints".into(),
            Box::new(|| {
                tool("clippy", &["--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"])
            }),
        ),
        ("generated files are fresh".into(), Box::new(fresh)),
    ];
    for (rule, broken) in RULES {
        let step = move || match broken() {
            Ok(places) if places.is_empty() => Outcome::Passed,
            Ok(places) => Outcome::Failed(places.join("\n")),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        steps.push(((*rule).to_owned(), Box::new(step)));
    }
    steps.push(("tests".into(), Box::new(tests)));
    steps
}

/// A component of the toolchain that a machine may lack.
fn tool(name: &str, arguments: &[&str]) -> Outcome {
    match cargo().args([name, "--version"]).output() {
        Ok(output) if output.status.success() => run(cargo().arg(name).args(arguments)),
        _ => Outcome::Skipped(format!("cargo {name} is not installed; rustup component add it")),
    }
}

fn fresh() -> Outcome {
    match bless::stale() {
        Ok(stale) if stale.is_empty() => Outcome::Passed,
        Ok(stale) => Outcome::Failed(format!("stale, run cargo xtask bless: {}", stale.join(" "))),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn tests() -> Outcome {
    // All programs of the run record their skips in the file that is read at the end. One that fails
    // does not keep the others from running.
    let mut test = cargo();
    run(test.args(["test", "--workspace", "--no-fail-fast"]).env("IPC_SKIPPED_TESTS", report::path()))
}

fn run(command: &mut Command) -> Outcome {
    match command.status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(format!("{command:?}: {status}")),
        Err(error) => Outcome::Failed(format!("{command:?}: {error}")),
    }
}

fn report_skipped_tests() {
    let skips = report::skips();
    println!("\n{} tests were skipped, because of what this machine lacks", skips.len());
    // What they would have proved is not proved in this way here; the table of mechanisms does not know.
    let proofs = proofs::collect().unwrap_or_default();
    for skip in skips {
        let cells = proofs.by(&skip.test).join(", ");
        let unproved = if cells.is_empty() { String::new() } else { format!(" (no proof here of {cells})") };
        println!("  SKIPPED  {}: {}{unproved}", skip.test, skip.reason);
    }
}
