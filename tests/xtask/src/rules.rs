//! The rules of the architecture that neither the compiler nor clippy keeps; docs/ARCHITECTURE.md
//! has the reasons. Each is a function that names every place where it is broken.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{cargo, proofs, removable, root};

/// What it says, and how it is checked.
pub type Rule = (&'static str, fn() -> Result<Vec<String>>);

pub const RULES: &[Rule] = &[
    ("ipc-kernel knows no zbus, tokio or tracing", kernel_is_alone),
    ("ipc-bus makes no system calls of its own", bus_only_translates),
    ("only service/kernel and service/spawner contain unsafe code", unsafe_is_fenced),
    ("no method of an interface takes &mut self", interfaces_share),
    ("every queue is bounded", queues_are_bounded),
    ("no future hides behind let _name in ipc-bus", futures_are_awaited),
    ("the register names every mechanism, and nothing else does", register_is_complete),
    ("no source file has more than 500 lines", files_are_short),
    ("every check that cargo xtask removable takes out is there", removable::misplaced),
    ("a test proves everything that a mechanism offers", proofs::missing),
    ("the top level holds only what is allowed there", top_level_is_tidy),
];

/// The file layout that users, GitHub and tools expect; what is not named here goes further down.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".clippy.toml",
    ".rustfmt.toml",
    ".ci",
    ".git",
    ".github",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "dbus-policy",
    "deny.toml",
    "desktop",
    "docs",
    "interfaces",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "service",
    "target",
    "tests",
];

fn kernel_is_alone() -> Result<Vec<String>> {
    let mut tree = cargo();
    tree.args([
        "tree",
        "--package",
        "ipc-kernel",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let output = tree.output().context("cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
    let tree = String::from_utf8_lossy(&output.stdout);
    let crates = tree.lines().filter_map(|line| line.split_whitespace().next());
    let forbidden =
        |name: &&str| ["zbus", "tokio", "tracing"].contains(&name.split('_').next().unwrap_or(name));
    Ok(crates.filter(forbidden).map(|name| format!("ipc-kernel depends on {name}")).collect())
}

fn bus_only_translates() -> Result<Vec<String>> {
    let manifest = "service/bus/Cargo.toml";
    let text = fs::read_to_string(root().join(manifest)).context(manifest)?;
    // Tests may do what they like.
    let built = text.split("[dev-dependencies]").next().unwrap_or_default();
    let names = built.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    Ok(names
        .filter(|name| ["libc", "nix", "rustix"].contains(name))
        .map(|name| format!("{manifest}: {name}"))
        .collect())
}

fn unsafe_is_fenced() -> Result<Vec<String>> {
    let begins = ["{", "fn ", "impl ", "extern ", "trait "].map(|next| format!("unsafe {next}"));
    lines(&["service", "interfaces", "desktop"], |path, line| {
        let fenced = path.starts_with("service/kernel/") || path.starts_with("service/spawner/");
        !fenced && (begins.iter().any(|begin| line.contains(begin)) || line.contains("allow(unsafe_code"))
    })
}

fn interfaces_share() -> Result<Vec<String>> {
    lines(&["service/bus/src/interfaces"], |_, line| line.contains("&mut self"))
}

fn queues_are_bounded() -> Result<Vec<String>> {
    let unbounded =
        ["unbounded_channel", "unbounded()", "unbounded::<", "mpsc::channel()", "mpsc::channel::<"];
    lines(&["service"], |path, line| {
        // tokio's mpsc::channel(n) is bounded; that of the standard library takes no bound.
        !path.contains("/tests/") && unbounded.iter().any(|name| line.contains(name))
    })
}

/// A call whose result is bound and neither awaited nor checked: clippy looks at `let _` only.
fn futures_are_awaited() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in sources("service/bus/src")? {
        let text = fs::read_to_string(root().join(&path))?;
        for (number, statement) in named_underscores(&text) {
            if hides_a_future(statement) {
                found.push(format!("{path}:{number}: {statement}"));
            }
        }
    }
    Ok(found)
}

/// Statements that begin with `let _name`, each with the number of its line.
fn named_underscores(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices("let _").filter_map(|(at, _)| {
        let statement = text[at..].split(';').next()?;
        let named = statement["let _".len()..].starts_with(|c: char| c.is_ascii_alphanumeric());
        named.then(|| (text[..at].lines().count(), statement))
    })
}

fn hides_a_future(statement: &str) -> bool {
    let macro_call = statement.contains("write!(") || statement.contains("writeln!(");
    statement.trim_end().ends_with(')') && !macro_call
}

fn register_is_complete() -> Result<Vec<String>> {
    let directory = "service/kernel/src/mechanisms";
    let register = fs::read_to_string(root().join(directory).join("mod.rs"))?;
    let list = register
        .split_once("\nmechanisms! {")
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(list, _)| list)
        .with_context(|| format!("{directory}/mod.rs has no list mechanisms! {{ … }}"))?;
    let mut listed: Vec<_> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    listed.sort_unstable();
    let files = sources(directory)?;
    let mut files: Vec<_> = files
        .iter()
        .filter_map(|path| path.strip_prefix(directory)?.strip_prefix('/')?.strip_suffix(".rs"))
        .filter(|name| *name != "mod")
        .collect();
    files.sort_unstable();
    let mut broken = Vec::new();
    if listed != files {
        broken.push(format!("the register lists {}, the files are {}", listed.join(" "), files.join(" ")));
    }
    // Another file that matches on names would be a second register.
    broken.extend(lines(&["service"], |path, line| {
        let of_names = listed.iter().filter(|name| line.contains(&format!("\"{name}\""))).count();
        !path.contains("/tests/") && of_names > 2
    })?);
    Ok(broken)
}

fn files_are_short() -> Result<Vec<String>> {
    let mut long = Vec::new();
    for directory in ["service", "interfaces", "tests", "desktop"] {
        for path in sources(directory)? {
            let count = fs::read_to_string(root().join(&path))?.lines().count();
            if count > 500 {
                long.push(format!("{path}: {count} lines"));
            }
        }
    }
    Ok(long)
}

fn top_level_is_tidy() -> Result<Vec<String>> {
    let mut extra = Vec::new();
    for entry in fs::read_dir(root())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !TOP_LEVEL.contains(&name.as_str()) && is_part_of_the_project(&name) {
            extra.push(name);
        }
    }
    Ok(extra)
}

/// What git ignores is nobody's business; without git, everything counts.
fn is_part_of_the_project(name: &str) -> bool {
    let mut git = std::process::Command::new("git");
    git.current_dir(root()).args(["check-ignore", "--quiet", name]);
    !git.status().is_ok_and(|status| status.success())
}

/// Every line of code, comments cut off, for which `is` says so: path, number and text.
fn lines(directories: &[&str], is: impl Fn(&str, &str) -> bool) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in directories {
        for path in sources(directory)? {
            let text = fs::read_to_string(root().join(&path))?;
            for (index, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or(line);
                if is(&path, code) {
                    found.push(format!("{path}:{}: {}", index + 1, line.trim()));
                }
            }
        }
    }
    Ok(found)
}

/// The Rust files below a directory, relative to the top of the checkout.
pub fn sources(directory: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    if root().join(directory).exists() {
        collect(Path::new(directory), &mut files)?;
    }
    files.sort_unstable();
    Ok(files)
}

fn collect(directory: &Path, files: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(root().join(directory)).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_holds() {
        let mut broken = Vec::new();
        for (rule, check) in RULES {
            let places = check().unwrap_or_else(|error| panic!("{rule}: {error:#}"));
            broken.extend(places.into_iter().map(|place| format!("{rule}: {place}")));
        }
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    #[test]
    fn a_hidden_future_is_seen() {
        let hidden = |text: &str| named_underscores(text).any(|(_, statement)| hides_a_future(statement));
        assert!(hidden("let _sent = emitter.closed(\"x\");"));
        assert!(hidden("let _sent =\n    emitter.closed();"));
        assert!(!hidden("let _sent = emitter.closed().await;"));
        assert!(!hidden("let _call = self.face.call(&header)?;"));
    }
}
