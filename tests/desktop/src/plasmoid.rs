//! The widget for Plasma as an archive that kpackagetool6(1) installs: a zip file of desktop/plasma with the icon of
//! the session and with translations compiled, under the name of the widget's domain.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ipc_harness::TempDir;

use crate::{copy_tree, output, root};

/// The name of the widget for Plasma.
pub const ID: &str = "org.example.IPC";

/// Makes the archive, `target/desktop/org.example.IPC.plasmoid`.
pub fn pack() -> Result<PathBuf> {
    let output = output();
    fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    let place = TempDir::new_in(&output).context("a directory")?;
    let tree = place.path().join("widget");
    copy_tree(&root().join("desktop/plasma"), &tree)?;
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
    let target = output.join(format!("{ID}.plasmoid"));
    fs::rename(archive, &target)?;
    Ok(target)
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
