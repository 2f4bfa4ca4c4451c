//! The tests that prove what the service says it can do, as the tests themselves say.
//!
//! A black-box test has a line for each mechanism that it proves something of, in its doc comment:
//!
//!     /// A shell writes into it, and the service reads.
//!     /// Proves: fifo create, read, wait
//!     async fn a_shell_writes(stage: Stage) {
//!
//! [`collect`] finds them, and everything that is wrong with them: a marker that is no test's, of a mechanism that
//! there is not, of something that is not offered, or of a test that is ignored, is an error, so that no mark is
//! decoration. [`missing`] names what is offered and has no test.

use std::{collections::BTreeMap, fs};

use anyhow::Result;
use ipc_bus::MECHANISMS;
use ipc_kernel::Ability;

use crate::{root, rules::sources};

const MARKER: &str = "/// Proves: ";

/// Where tests go through D-Bus, as a client does; what others find is no proof.
const SUITES: &[&str] = &["tests/blackbox/tests/", "tests/adversary/tests/"];

/// A test by its file, below the top of the checkout, and its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Test {
    pub file: String,
    pub name: String,
}

/// A cell of the table of mechanisms.
pub type Cell = (&'static str, Ability);

/// The tests of each cell, in the order of files and lines.
#[derive(Debug, Default)]
pub struct Proofs {
    cells: BTreeMap<Cell, Vec<Test>>,
    /// Markers that are wrong, each with its place.
    pub wrong: Vec<String>,
}

impl Proofs {
    pub fn of(&self, cell: Cell) -> &[Test] {
        self.cells.get(&cell).map(Vec::as_slice).unwrap_or_default()
    }

    /// The cells that a test proves, by its name as it is told when it is skipped: `program::module::name`.
    pub fn by(&self, path: &str) -> Vec<String> {
        let program = path.split("::").next().unwrap_or_default();
        let name = path.rsplit("::").next().unwrap_or_default();
        let is = |test: &Test| {
            let file = SUITES.iter().find_map(|suite| test.file.strip_prefix(suite)).unwrap_or_default();
            test.name == name && file.split(['/', '.']).next() == Some(program)
        };
        let cells = self.cells.iter().filter(|(_, tests)| tests.iter().any(is));
        cells.map(|((mechanism, ability), _)| format!("{mechanism} {}", ability.name())).collect()
    }

    fn read(&mut self, file: &str, text: &str) {
        let tests = tests_of_macros(text);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, line) in lines.iter().enumerate() {
            let place = format!("{file}:{}", index + 1);
            if !is_marker(line) {
                continue;
            }
            let found = cells_of(line).and_then(|cells| {
                if !SUITES.iter().any(|suite| file.starts_with(suite)) {
                    return Err(format!("only tests in {} go through D-Bus", SUITES.join(" and ")));
                }
                Ok((cells, test_below(&lines[index..], &tests)?))
            });
            match found {
                Ok((cells, name)) => {
                    let test = Test { file: file.to_owned(), name: name.to_owned() };
                    for cell in cells {
                        let known = self.cells.entry(cell).or_default();
                        if known.contains(&test) {
                            self.wrong.push(format!("{place}: said twice: {} {}", cell.0, cell.1.name()));
                        } else {
                            known.push(test.clone());
                        }
                    }
                }
                Err(why) => self.wrong.push(format!("{place}: {why}")),
            }
        }
    }
}

/// Every marker of the checkout.
pub fn collect() -> Result<Proofs> {
    let mut proofs = Proofs::default();
    for directory in ["tests", "service"] {
        // This crate speaks of markers.
        for file in sources(directory)?.iter().filter(|file| !file.starts_with("tests/xtask/")) {
            proofs.read(file, &fs::read_to_string(root().join(file))?);
        }
    }
    Ok(proofs)
}

/// Markers that are wrong, and cells that are offered and have none.
pub fn missing() -> Result<Vec<String>> {
    let proofs = collect()?;
    let mut missing = proofs.wrong.clone();
    for descriptor in MECHANISMS.iter() {
        for &ability in Ability::ALL {
            if descriptor.offers(ability) && proofs.of((descriptor.name, ability)).is_empty() {
                let (name, ability) = (descriptor.name, ability.name());
                missing.push(format!(
                    "no test proves {name} {ability}: mark the one that does with {MARKER}{name} {ability}"
                ));
            }
        }
    }
    Ok(missing)
}

/// Anything in a comment that could be meant as one, so that a slip is an error and no silence.
fn is_marker(line: &str) -> bool {
    let comment = line.trim_start_matches(['/', '!', '*', ' ']);
    line.starts_with("//") && comment.to_ascii_lowercase().starts_with("proves:")
}

fn cells_of(line: &str) -> Result<Vec<Cell>, String> {
    let malformed = || format!("{line:?} is not as it must be: {MARKER}MECHANISM ABILITY, ABILITY");
    let (mechanism, abilities) =
        line.strip_prefix(MARKER).and_then(|rest| rest.split_once(' ')).ok_or_else(malformed)?;
    let descriptor = MECHANISMS.iter().find(|descriptor| descriptor.name == mechanism);
    let descriptor = descriptor.ok_or_else(|| format!("there is no mechanism {mechanism:?}"))?;
    let cell = |name: &str| {
        let ability = Ability::ALL.iter().find(|ability| ability.name() == name);
        let &ability = ability.ok_or_else(|| {
            let known: Vec<_> = Ability::ALL.iter().map(|ability| ability.name()).collect();
            format!("there is no ability {name:?}; there are {}", known.join(", "))
        })?;
        match descriptor.offers(ability) {
            true => Ok((descriptor.name, ability)),
            false => Err(format!("{mechanism} does not offer {name}, its row in the register says")),
        }
    };
    abilities.split(", ").map(cell).collect()
}

/// The name of the test whose doc comment this is the rest of.
fn test_below<'a>(lines: &[&'a str], tests: &[&str]) -> Result<&'a str, String> {
    let head = lines.iter().take_while(|line| line.starts_with("///") || line.starts_with("#["));
    let attributes: Vec<_> = head.clone().filter(|line| line.starts_with("#[")).collect();
    let name = lines
        .get(head.count())
        .and_then(|line| line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")))
        .and_then(|rest| rest.split(['(', '<']).next())
        .ok_or("it is not directly above a test")?;
    if attributes.iter().any(|line| line.starts_with("#[ignore")) {
        return Err(format!("{name} is ignored and proves nothing"));
    }
    let own = attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
    match own || tests.contains(&name) {
        true => Ok(name),
        false => Err(format!(
            "{name} is no test: it has no #[test], and neither everywhere! nor on_each_bus! names it"
        )),
    }
}

/// The functions of which a macro makes tests, one for each kind of bus.
fn tests_of_macros(text: &str) -> Vec<&str> {
    let calls = ["everywhere!(", "on_each_bus!("].into_iter().flat_map(|name| text.split(name).skip(1));
    let calls = calls.filter_map(|rest| rest.split(");").next());
    calls.flat_map(|call| call.split(|c: char| !c.is_alphanumeric() && c != '_')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, text: &str) -> Proofs {
        let mut proofs = Proofs::default();
        proofs.read(file, text);
        proofs
    }

    /// What is wrong with it, in a file of a suite.
    fn wrong(text: &str) -> String {
        let proofs = read("tests/blackbox/tests/x.rs", text);
        assert!(proofs.cells.is_empty(), "{proofs:?}");
        proofs.wrong.concat()
    }

    #[test]
    fn markers_of_tests_are_found() {
        let text = "/// What it does.\n/// Proves: fifo create, read\n/// Proves: pipe list\n#[test]\nfn one() {\n}\n\
            \n/// Proves: fifo read\nasync fn two(stage: Stage) {\n}\neverywhere!(\n    two,\n);\n";
        let proofs = read("tests/blackbox/tests/x.rs", text);
        assert_eq!(proofs.wrong, [""; 0]);
        let names = |cell| proofs.of(cell).iter().map(|test| test.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names(("fifo", Ability::Create)), ["one"]);
        assert_eq!(names(("fifo", Ability::Read)), ["one", "two"]);
        assert_eq!(names(("pipe", Ability::List)), ["one"]);
        assert!(names(("pipe", Ability::Read)).is_empty());
        assert_eq!(proofs.by("x::dbus_broker::two"), ["fifo read"]);
        assert!(proofs.by("y::dbus_broker::two").is_empty() && proofs.by("x::three").is_empty());
    }

    #[test]
    fn a_marker_that_proves_nothing_is_an_error() {
        let test = "#[test]\nfn one() {\n}\n";
        let above = |marker: &str| wrong(&format!("{marker}\n{test}"));
        for malformed in
            ["// Proves: fifo read", "/// proves: fifo read", "/// Proves: fifo", "/// Proves:fifo read"]
        {
            assert!(above(malformed).contains("is not as it must be"), "{malformed}");
        }
        assert!(above("/// Proves: fifos read").contains("no mechanism"));
        assert!(above("/// Proves: fifo read,write").contains("no ability"));
        assert!(above("/// Proves: pipe remove").contains("does not offer"));
        assert!(above("/// Proves: fifo read\n").contains("directly above a test"));
        assert!(above("/// Proves: fifo read\n#[ignore]").contains("is ignored"));
        assert!(wrong("/// Proves: fifo read\nfn helper() {}\n").contains("is no test"));
        assert!(wrong("/// Proves: fifo read\nlet x = 1;\n").contains("directly above a test"));
        let kernel = read("service/kernel/tests/x.rs", &format!("/// Proves: fifo read\n{test}"));
        assert!(kernel.wrong.concat().contains("go through D-Bus"));
        let twice = read("tests/blackbox/tests/x.rs", &format!("/// Proves: fifo read, read\n{test}"));
        assert!(twice.wrong.concat().contains("said twice"));
    }
}
