//! `cargo xtask bless`: everything that is generated and checked in, from its one source.
//!
//! | files | source |
//! | --- | --- |
//! | `interfaces/org.example.IPC*.xml` | what the service says of itself, without a bus |
//! | `interfaces/proxy/src/*.rs` but lib.rs | the same |
//! | `docs/reference/*.md` | the same, the tables of mechanisms, options, limits and errors, and the markers of tests |
//! | `dbus-policy/org.example.IPC.conf` and an example | the same, and the limit of fds |
//! | `docs/*.1` | the command lines |
//!
//! [`stale`] compares without writing; a test holds it to be empty.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, anyhow};
use ipc_bus::introspect;

use crate::{interface::Interface, manual, policy, proofs, proxy, reference, root};

/// Directory, how a generated file's name begins and ends, and the hand-written exceptions: every
/// other such file is generated, so one that is no longer generated is stale.
const GENERATED: &[(&str, &str, &str, &[&str])] = &[
    ("interfaces", "org.example.IPC", ".xml", &[]),
    ("interfaces/proxy/src", "", ".rs", &["lib.rs"]),
    ("docs/reference", "", ".md", &[]),
    ("dbus-policy", "", ".conf", &[]),
    ("docs", "", ".1", &[]),
];

/// Rewrites what is stale.
pub fn bless() -> Result<()> {
    let files = files()?;
    let stale = stale_of(&files)?;
    for name in &stale {
        let path = root().join(name);
        match files.get(name) {
            Some(text) => {
                fs::create_dir_all(path.parent().context("a file in a directory")?)?;
                fs::write(&path, text).with_context(|| format!("writing {name}"))?;
                println!("wrote {name}");
            }
            None => {
                fs::remove_file(&path).with_context(|| format!("removing {name}"))?;
                println!("removed {name}");
            }
        }
    }
    println!("{} generated files, {} were stale", files.len(), stale.len());
    Ok(())
}

/// The generated files that are not as they would be written now.
pub fn stale() -> Result<Vec<String>> {
    stale_of(&files()?)
}

fn stale_of(files: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut stale: Vec<String> = Vec::new();
    for (name, text) in files {
        // A file that cannot be read is not as it should be either.
        if fs::read_to_string(root().join(name)).ok().as_ref() != Some(text) {
            stale.push(name.clone());
        }
    }
    for (directory, begin, end, exceptions) in GENERATED {
        for name in names_in(&root().join(directory))? {
            let path = format!("{directory}/{name}");
            let generated = name.starts_with(begin) && name.ends_with(end);
            if generated && !exceptions.contains(&name.as_str()) && !files.contains_key(&path) {
                stale.push(path);
            }
        }
    }
    Ok(stale)
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Every generated file: path below the top of the checkout, and text.
fn files() -> Result<BTreeMap<String, String>> {
    let interfaces = interfaces()?;
    let mut files = BTreeMap::new();
    for interface in &interfaces {
        files.insert(format!("interfaces/{}.xml", interface.name), interface.to_xml());
        let module = proxy::module_name(interface);
        files.insert(format!("interfaces/proxy/src/{module}.rs"), proxy::module(interface)?);
    }
    for (name, text) in reference::pages(&interfaces, &proofs::collect()?) {
        files.insert(format!("docs/reference/{name}"), text);
    }
    files.extend(policy::files(&interfaces)?);
    files.extend(manual::pages()?.map(|(name, text)| (format!("docs/{name}"), text)));
    Ok(files)
}

fn interfaces() -> Result<Vec<Interface>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let documents = runtime
        .block_on(introspect::documents())
        .map_err(|failure| anyhow!("the service cannot describe itself: {failure:?}"))?;
    documents.iter().map(|(name, xml)| Interface::parse(name, xml)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_fresh() {
        let stale = stale().expect("the files can be generated");
        assert!(stale.is_empty(), "stale, run cargo xtask bless: {}", stale.join(" "));
    }

    #[test]
    fn everything_is_documented_and_every_argument_has_a_name() {
        let mut bare = Vec::new();
        for interface in interfaces().expect("the service describes itself") {
            let name = &interface.name;
            if interface.doc.is_empty() {
                bare.push(name.clone());
            }
            for member in interface.methods.iter().chain(&interface.signals) {
                let mut args = member.inputs.iter().chain(&member.outputs);
                if member.doc.is_empty() || args.any(|arg| arg.name.is_empty()) {
                    bare.push(format!("{name}.{}", member.name));
                }
            }
            let undocumented = interface.properties.iter().filter(|property| property.doc.is_empty());
            bare.extend(undocumented.map(|property| format!("{name}.{}", property.name)));
        }
        assert!(bare.is_empty(), "without a doc comment or a name of an argument: {}", bare.join(" "));
    }
}
