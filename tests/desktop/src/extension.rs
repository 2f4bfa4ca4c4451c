//! The GNOME Shell extension as archives: one for GNOME Shell 45 and later, one for 43 and 44.
//!
//! The sources (desktop/gnome/extension) are ES modules, which GNOME Shell 45 wants and 43 cannot load. What differs
//! is how modules name each other; all else runs on both. So the archive for 43 has the same sources with other lines
//! of import and export, and desktop/gnome/legacy, which stands for what 45 brings. Archives are made by
//! gnome-extensions(1), which compiles schemas and translations.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ipc_harness::TempDir;

use crate::{output, root};

/// The name of the extension for GNOME Shell.
pub const UUID: &str = "ipc@example.org";

/// The versions that take one kind of modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// GNOME Shell 43 and 44: `imports.*`.
    Legacy,
    /// GNOME Shell 45 to 48: ES modules.
    Modules,
}

impl Variant {
    pub const ALL: [Variant; 2] = [Variant::Legacy, Variant::Modules];

    /// For the GNOME Shell of this machine, as gnome-extensions(1), which is a part of it, says.
    pub fn here() -> Result<Variant> {
        let said = Command::new("gnome-extensions").arg("version").output().context("gnome-extensions")?;
        let said = String::from_utf8_lossy(&said.stdout);
        let major = said.trim().split('.').next().unwrap_or_default();
        let major: u32 = major.parse().with_context(|| format!("gnome-extensions version: {said}"))?;
        Ok(if major < 45 { Variant::Legacy } else { Variant::Modules })
    }

    /// The first version, which names the archive.
    fn first(self) -> &'static str {
        match self {
            Variant::Legacy => "43",
            Variant::Modules => "45",
        }
    }
}

/// Makes the archive, `target/desktop/ipc@example.org-43.zip` or `-45.zip`.
pub fn pack(variant: Variant) -> Result<PathBuf> {
    let output = output();
    fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    // Of its own, as tests pack at the same time; beside the archive, into whose place the new one is moved.
    let place = TempDir::new_in(&output).context("a directory")?;
    let tree = place.path().join("extension");
    let source = root().join("desktop/gnome/extension");
    copy(&source, &tree, variant)?;
    if variant == Variant::Legacy {
        copy(&root().join("desktop/gnome/legacy"), &tree, Variant::Modules)?;
    }
    let icon = "org.example.IPC-symbolic.svg";
    fs::create_dir(tree.join("icons"))?;
    fs::copy(
        root().join("desktop/session/icons/hicolor/symbolic/apps").join(icon),
        tree.join("icons").join(icon),
    )?;
    let mut pack = Command::new("gnome-extensions");
    pack.args([
        "pack",
        "--force",
        "--podir=po",
        "--schema=schemas/org.gnome.shell.extensions.ipc.gschema.xml",
    ]);
    for extra in extra_sources(&tree)? {
        pack.arg("--extra-source").arg(extra);
    }
    pack.arg("--out-dir").arg(place.path()).current_dir(&tree);
    let done = pack.output().context("gnome-extensions")?;
    ensure!(done.status.success(), "gnome-extensions pack: {}", String::from_utf8_lossy(&done.stderr));
    let archive = output.join(format!("{UUID}-{}.zip", variant.first()));
    fs::rename(place.path().join(format!("{UUID}.shell-extension.zip")), &archive)?;
    Ok(archive)
}

/// Copies a directory, its modules written as the variant wants them.
fn copy(from: &Path, to: &Path, variant: Variant) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let target = to.join(&name);
        let name = name.to_string_lossy();
        if path.is_dir() {
            copy(&path, &target, variant)?;
        } else if variant == Variant::Legacy && (name.ends_with(".js") || name == "metadata.json") {
            let text = fs::read_to_string(&path)?;
            let written = if name == "metadata.json" { metadata(&text) } else { legacy(&text, &name) };
            fs::write(target, written.with_context(|| path.display().to_string())?)?;
        } else {
            fs::copy(&path, target)?;
        }
    }
    Ok(())
}

/// The files that gnome-extensions(1) does not take by itself.
fn extra_sources(tree: &Path) -> Result<Vec<String>> {
    const KNOWN: &[&str] = &["extension.js", "metadata.json", "po", "prefs.js", "schemas", "stylesheet.css"];
    let names = fs::read_dir(tree)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_>>()?;
    names.retain(|name| !KNOWN.contains(&name.as_str()));
    names.sort_unstable();
    Ok(names)
}

fn metadata(text: &str) -> Result<String> {
    let mut metadata: serde_json::Value = serde_json::from_str(text)?;
    metadata["shell-version"] = ["43", "44"].as_slice().into();
    Ok(format!("{metadata:#}"))
}

/// A module with `imports` instead of `import`. The sources keep to the few forms that are known here, each on one
/// line; anything else is an error.
fn legacy(source: &str, name: &str) -> Result<String> {
    let mut class = None;
    let lines: Vec<_> = source.lines().map(|line| legacy_line(line, &mut class)).collect::<Result<_>>()?;
    let mut text = lines.join("\n") + "\n";
    if text.contains("Me.imports.") {
        // Below the comment that a module begins with.
        let place = text.find("\n\n").map_or(0, |place| place + 2);
        text.insert_str(place, "const Me = imports.misc.extensionUtils.getCurrentExtension();\n\n");
    }
    match (name, class) {
        ("extension.js", Some(class)) => {
            text += &format!("\nfunction init(metadata) {{\n    return new {class}(metadata);\n}}\n");
        }
        ("prefs.js", Some(class)) => {
            text += &format!(
                "\nlet preferences = null;\n\nfunction init(metadata) {{\n    preferences = new {class}(metadata);\n}}\n\n\
                 function fillPreferencesWindow(window) {{\n    preferences.fillPreferencesWindow(window);\n}}\n"
            );
        }
        ("extension.js" | "prefs.js", None) => bail!("no class is exported by default"),
        _ => {}
    }
    Ok(text)
}

fn legacy_line(line: &str, class: &mut Option<String>) -> Result<String> {
    if let Some(import) = line.strip_prefix("import ") {
        return legacy_import(import).with_context(|| format!("not known here: {line}"));
    }
    let Some(exported) = line.strip_prefix("export ") else { return Ok(line.to_owned()) };
    if let Some(rest) = exported.strip_prefix("default class ") {
        let name = rest.split(' ').next().unwrap_or_default();
        *class = Some(name.to_owned());
        return Ok(format!("var {name} = class {rest}"));
    }
    if let Some(rest) = exported.strip_prefix("class ") {
        return Ok(format!("var {} = class {rest}", rest.split(' ').next().unwrap_or_default()));
    }
    if let Some(rest) = exported.strip_prefix("const ") {
        return Ok(format!("var {rest}"));
    }
    ensure!(exported.starts_with("function "), "not known here: {line}");
    Ok(exported.to_owned())
}

/// `X from 'gi://X';`, `* as X from 'resource:///…';` or `{X, Y as Z} from '…';`
fn legacy_import(import: &str) -> Option<String> {
    let (names, module) = import.strip_suffix("';")?.split_once(" from '")?;
    let names = match names.strip_prefix("* as ") {
        Some(name) => name.to_owned(),
        None if names.starts_with('{') => names.replace(" as ", ": "),
        None => format!("{{{names}}}"),
    };
    let shell = module.strip_prefix("resource:///org/gnome/shell/").and_then(|path| path.strip_suffix(".js"));
    let from = if module.starts_with("gi://") {
        "imports.gi".to_owned()
    } else if module.ends_with("/extensions/extension.js") || module.ends_with("/extensions/prefs.js") {
        "Me.imports.base".to_owned()
    } else if let Some(path) = shell {
        format!("imports.{}", path.replace('/', "."))
    } else {
        format!("Me.imports.{}", module.strip_prefix("./")?.strip_suffix(".js")?)
    };
    Some(format!("const {names} = {from};"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_written_in_the_old_way() {
        let source = "// What it is.\n\nimport Gio from 'gi://Gio';\n\
            import * as Main from 'resource:///org/gnome/shell/ui/main.js';\n\
            import {Extension, gettext as _} from 'resource:///org/gnome/shell/extensions/extension.js';\n\
            import {Feed} from './feed.js';\n\nexport const A = 1;\nexport function f() {}\n\
            export default class X extends Extension {\n}\n";
        let written = legacy(source, "extension.js").expect("known forms");
        let wanted = "// What it is.\n\nconst Me = imports.misc.extensionUtils.getCurrentExtension();\n\n\
            const {Gio} = imports.gi;\nconst Main = imports.ui.main;\n\
            const {Extension, gettext: _} = Me.imports.base;\nconst {Feed} = Me.imports.feed;\n\n\
            var A = 1;\nfunction f() {}\nvar X = class X extends Extension {\n}\n\n\
            function init(metadata) {\n    return new X(metadata);\n}\n";
        assert_eq!(written, wanted);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        assert!(legacy("import {\n", "a.js").is_err());
        assert!(legacy("export {a};\n", "a.js").is_err());
        assert!(legacy("// no class\n", "extension.js").is_err());
    }
}
