//! The widget for Plasma as archives that kpackagetool6(1) and kpackagetool5(1) install: a zip file of desktop/plasma
//! with the icon of the session and with translations compiled, under the name of the widget's domain.
//!
//! The sources are for Plasma 6. Plasma 5.27, which has Qt 5, wants modules to be imported with versions, and some by
//! other names; the archive for it has the same files with other lines of import, and desktop/plasma5/ui, which stands
//! for what came with Plasma 6. D-Bus in QML came with it, too: that is the plugin in desktop/plasma5/dbus, which is built
//! where it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ipc_harness::TempDir;

use crate::{copy_tree, output, root};

/// The name of the widget for Plasma.
pub const ID: &str = "org.example.IPC";

/// The versions of Plasma that there is an archive for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plasma {
    /// 5.27, the last one with Qt 5.
    Five,
    /// 6.3 and later.
    Six,
}

impl Plasma {
    pub const ALL: [Plasma; 2] = [Plasma::Five, Plasma::Six];

    /// The name of the archive.
    pub fn archive(self) -> String {
        match self {
            Plasma::Five => format!("{ID}-5.plasmoid"),
            Plasma::Six => format!("{ID}.plasmoid"),
        }
    }
}

/// Modules of Plasma 6, and what they are in 5.27.
const MODULES: &[(&str, &str)] = &[
    ("QtCore", "Qt.labs.platform 1.1"),
    ("QtQuick", "QtQuick 2.15"),
    ("QtQuick.Controls", "QtQuick.Controls 2.15"),
    ("QtQuick.Layouts", "QtQuick.Layouts 1.15"),
    ("org.kde.coreaddons", "org.kde.kcoreaddons 1.0"),
    ("org.kde.kcmutils", "org.kde.kcm 1.6"),
    ("org.kde.kirigami", "org.kde.kirigami 2.20"),
    ("org.kde.notification", "org.kde.notification 1.0"),
    ("org.kde.plasma.components", "org.kde.plasma.components 3.0"),
    ("org.kde.plasma.configuration", "org.kde.plasma.configuration 2.0"),
    ("org.kde.plasma.core", "org.kde.plasma.core 2.0"),
    ("org.kde.plasma.extras", "org.kde.plasma.extras 2.0"),
    ("org.kde.plasma.plasmoid", "org.kde.plasma.plasmoid 2.0"),
    // A directory is asked for what its plugin has registered only if a version is named.
    ("org.kde.plasma.workspace.dbus", "\"dbus\" 1.0"),
];

/// Makes the archive in target/desktop.
pub fn pack(version: Plasma) -> Result<PathBuf> {
    let output = output();
    fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    let place = TempDir::new_in(&output).context("a directory")?;
    let tree = place.path().join("widget");
    copy_tree(&root().join("desktop/plasma"), &tree)?;
    if version == Plasma::Five {
        rewrite(&tree)?;
        copy_tree(&root().join("desktop/plasma5/ui"), &tree.join("contents/ui"))?;
    }
    let icon = "org.example.IPC-symbolic.svg";
    fs::create_dir(tree.join("contents/icons"))?;
    fs::copy(
        root().join("desktop/session/icons/hicolor/symbolic/apps").join(icon),
        tree.join("contents/icons").join(icon),
    )?;
    for entry in fs::read_dir(tree.join("po"))? {
        let source = entry?.path();
        let language = source.file_stem().context("a language")?;
        let target = tree.join("contents/locale").join(language).join("LC_MESSAGES");
        fs::create_dir_all(&target)?;
        let catalog = target.join(format!("plasma_applet_{ID}.mo"));
        run(Command::new("msgfmt").arg("--check-format").arg("--output-file").arg(catalog).arg(source))?;
    }
    fs::remove_dir_all(tree.join("po"))?;
    let archive = place.path().join("widget.zip");
    // Entries by name, as in every archive of a kpackage: metadata.json lies at its top.
    let mut zip = Command::new("python3");
    zip.args(["-m", "zipfile", "--create"]).arg(&archive).args(["metadata.json", "contents"]);
    run(zip.current_dir(&tree))?;
    let target = output.join(version.archive());
    fs::rename(archive, &target)?;
    Ok(target)
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Writes all sources in the tree as Plasma 5.27 wants them.
fn rewrite(tree: &Path) -> Result<()> {
    let metadata = tree.join("metadata.json");
    fs::write(&metadata, metadata_of_5(&fs::read_to_string(&metadata)?)?)?;
    for directory in ["contents/ui", "contents/config"] {
        for entry in fs::read_dir(tree.join(directory))? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "qml" || it == "js") {
                let source = fs::read_to_string(&path)?;
                let written = source_of_5(&source).with_context(|| path.display().to_string())?;
                fs::write(&path, written)?;
            }
        }
    }
    Ok(())
}

fn metadata_of_5(text: &str) -> Result<String> {
    let mut metadata: serde_json::Value = serde_json::from_str(text)?;
    metadata["KPlugin"]["ServiceTypes"] = ["Plasma/Applet"].as_slice().into();
    metadata["X-Plasma-API"] = "declarativeappletscript".into();
    metadata["X-Plasma-MainScript"] = "ui/main.qml".into();
    // This key came with Plasma 6, which takes no widget without it.
    metadata.as_object_mut().context("an object")?.remove("X-Plasma-API-Minimum-Version");
    Ok(format!("{metadata:#}"))
}

fn source_of_5(source: &str) -> Result<String> {
    let lines = source.lines().map(|line| line_of_5(line).with_context(|| format!("not known here: {line}")));
    Ok(lines.collect::<Result<Vec<_>>>()?.join("\n") + "\n")
}

fn line_of_5(line: &str) -> Result<String> {
    if let Some(import) = line.strip_prefix("import ") {
        if import.starts_with('"') {
            return Ok(line.to_owned());
        }
        let (module, rest) =
            import.split_once(' ').map_or((import, None), |(module, rest)| (module, Some(rest)));
        let (_, other) = MODULES.iter().find(|(name, _)| *name == module).context("the module")?;
        return Ok(rest.map_or_else(|| format!("import {other}"), |rest| format!("import {other} {rest}")));
    }
    if line.contains("?.") {
        bail!("Qt 5 has no “?.” (it has “??”)");
    }
    // Lists are of objects there.
    Ok(line.replace("property list<string> ", "property var "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_versions_in_plasma_5() {
        let source = "// What it is.\n\nimport QtQuick\nimport org.kde.plasma.workspace.dbus as DBus\n\
            import \"text.js\" as Text\n\nItem {\n    required property list<string> wanted\n}\n";
        let wanted = "// What it is.\n\nimport QtQuick 2.15\nimport \"dbus\" 1.0 as DBus\n\
            import \"text.js\" as Text\n\nItem {\n    required property var wanted\n}\n";
        assert_eq!(source_of_5(source).expect("known forms"), wanted);
    }

    #[test]
    fn what_qt_5_has_not_is_an_error() {
        assert!(source_of_5("import QtQuick3D\n").is_err());
        assert!(source_of_5("    const name = it?.name;\n").is_err());
    }
}
