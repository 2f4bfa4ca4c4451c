//! What can be said of the desktop files without a desktop: they are valid, complete and translated.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipc_desktop::extension::{Variant, pack};
use ipc_desktop::plasmoid::{self, Plasma};
use ipc_desktop::{output, root};
use ipc_harness::{Process, has_tool, need_tool, or_skip, patience};

/// The version of eslint whose rules the sources follow.
const ESLINT: &str = "eslint@9.39.1";

/// Runs a program of the machine to its end; panics with what it says when it fails.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root().join("desktop"));
    let done = Process::spawn(&mut command).finish();
    assert!(done.status.success(), "{program} {arguments:?}: {}\n{}", done.text(), done.stderr);
    done.text()
}

#[test]
fn both_archives_are_packed() {
    or_skip!(need_tool("gnome-extensions").and(need_tool("msgfmt")).and(need_tool("python3")));
    for (variant, versions) in [(Variant::Legacy, "\"43\""), (Variant::Modules, "\"48\"")] {
        let archive = pack(variant).unwrap_or_else(|error| panic!("{error:#}"));
        let archive = archive.to_str().expect("UTF-8");
        let names = run("python3", &["-m", "zipfile", "--list", archive]);
        for wanted in [
            "extension.js",
            "prefs.js",
            "metadata.json",
            "schemas/gschemas.compiled",
            "locale/de/LC_MESSAGES/ipc@example.org.mo",
            "icons/org.example.IPC-symbolic.svg",
        ] {
            assert!(names.contains(wanted), "{wanted} is not in {archive}: {names}");
        }
        assert_eq!(names.contains("base.js"), variant == Variant::Legacy, "{names}");
        let script =
            "import sys, zipfile; print(zipfile.ZipFile(sys.argv[1]).read('metadata.json').decode())";
        assert!(run("python3", &["-c", script, archive]).contains(versions));
    }
}

#[test]
fn both_widgets_are_packed() {
    or_skip!(need_tool("msgfmt").and(need_tool("python3")));
    for version in Plasma::ALL {
        let archive = plasmoid::pack(version).unwrap_or_else(|error| panic!("{error:#}"));
        let archive = archive.to_str().expect("UTF-8");
        let names = run("python3", &["-m", "zipfile", "--list", archive]);
        let names: Vec<_> = names.lines().filter_map(|line| line.split_whitespace().next()).collect();
        for wanted in [
            "metadata.json",
            "contents/config/main.xml",
            "contents/ui/main.qml",
            "contents/icons/org.example.IPC-symbolic.svg",
            "contents/locale/de/LC_MESSAGES/plasma_applet_org.example.IPC.mo",
        ] {
            assert!(names.contains(&wanted), "{wanted} is not in {archive}: {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with("po/")), "{names:?}");
        assert_eq!(names.contains(&"contents/ui/PlasmoidItem.qml"), version == Plasma::Five, "{names:?}");
        let script =
            "import sys, zipfile; print(zipfile.ZipFile(sys.argv[1]).read('metadata.json').decode())";
        let metadata = run("python3", &["-c", script, archive]);
        assert_eq!(metadata.contains("X-Plasma-API-Minimum-Version"), version == Plasma::Six, "{metadata}");
    }
}

#[test]
fn every_text_of_the_extension_is_translated() {
    or_skip!(need_tool("xgettext").and(need_tool("msgcmp")));
    is_translated("gnome/extension", &["."], &["--keyword=_", "--keyword=ngettext:1,2"]);
}

#[test]
fn every_text_of_the_widget_is_translated() {
    or_skip!(need_tool("xgettext").and(need_tool("msgcmp")));
    let keywords = ["--keyword=i18n:1", "--keyword=i18nc:1c,2", "--keyword=i18np:1,2"];
    is_translated("plasma", &["contents/ui", "contents/config"], &keywords);
}

/// All texts in sources below `directory` are in its po/de.po.
#[track_caller]
fn is_translated(directory: &str, sources: &[&str], keywords: &[&str]) {
    let entries = sources.iter().flat_map(|source| {
        fs::read_dir(root().join("desktop").join(directory).join(source)).expect("the sources")
    });
    let files = entries.map(|entry| entry.expect("an entry").path());
    let mut sources: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|it| it == "js" || it == "qml")).collect();
    sources.sort();
    fs::create_dir_all(output()).expect("a directory below target");
    let template = output().join(format!("{}.pot", directory.replace('/', "-")));
    // Whatever locale the tests run in, the texts are in UTF-8.
    let mut arguments =
        vec!["LC_ALL=C.UTF-8", "xgettext", "--from-code=UTF-8", "--language=JavaScript", "--keyword"];
    arguments.extend(keywords);
    let paths = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (template, sources) = (paths(&template), sources.iter().map(paths).collect::<Vec<_>>());
    arguments.extend(["--output", &template]);
    arguments.extend(sources.iter().map(String::as_str));
    run("env", &arguments);
    let translation = format!("{directory}/po/de.po");
    run("msgfmt", &["--check-format", "--output-file=/dev/null", &translation]);
    run("msgcmp", &[&translation, &template]);
}

#[test]
fn the_sources_follow_the_rules_of_eslint() {
    or_skip!(need_tool("npx"));
    let npx = |arguments: &[&str]| {
        let mut command = Command::new("npx");
        command.args(["--yes", ESLINT]).args(arguments).current_dir(root().join("desktop/gnome"));
        // Without a network it would try for minutes.
        Process::spawn_group(command.env("npm_config_fetch_retries", "0"))
    };
    let mut here = npx(&["--version"]);
    match here.wait_within(patience()) {
        Some(status) if status.success() => {}
        Some(_) => {
            let why = here.stderr().text();
            ipc_harness::skip!("{ESLINT} is not to be had: {}", why.lines().last().unwrap_or_default());
        }
        None => ipc_harness::skip!("{ESLINT} is not to be had: the registry of npm does not answer"),
    }
    let linted = npx(&["--max-warnings=0", "extension"]).finish();
    assert!(linted.status.success(), "{}{}", linted.text(), linted.stderr);
}

/// What qmllint knows without Plasma: the language, not the types. `cargo xtask desktop --all` has it know those, too.
#[test]
fn the_widget_is_written_as_qml_is() {
    let known = ["qmllint6", "/usr/lib/qt6/bin/qmllint"];
    let Some(qmllint) = known.into_iter().find(|it| has_tool(it) || Path::new(it).exists()) else {
        ipc_harness::skip!("qmllint is not installed (Debian package qt6-declarative-dev-tools)");
    };
    let unknown = ["alias", "import", "property", "required", "signal", "type", "unqualified"];
    let mut arguments: Vec<_> =
        unknown.iter().flat_map(|what| [format!("--{what}"), "disable".to_owned()]).collect();
    for place in ["plasma/contents/ui", "plasma/contents/config", "applets"] {
        let files = fs::read_dir(root().join("desktop").join(place)).expect("the sources");
        let names = files.map(|it| it.expect("an entry").file_name().to_string_lossy().into_owned());
        arguments.extend(names.filter(|it| it.ends_with(".qml")).map(|name| format!("{place}/{name}")));
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    run(qmllint, &arguments);
}

#[test]
fn the_desktop_file_is_valid() {
    or_skip!(need_tool("desktop-file-validate"));
    for file in ["org.example.IPC.desktop", "org.example.IPC.Tray.desktop"] {
        run("desktop-file-validate", &["--warn-kde", &format!("session/{file}")]);
    }
}

#[test]
fn the_metainfo_is_valid() {
    or_skip!(need_tool("appstreamcli"));
    run("appstreamcli", &["validate", "--no-net", "--pedantic", "session/org.example.IPC.metainfo.xml"]);
}

#[test]
fn the_icons_are_drawings() {
    or_skip!(need_tool("xmllint"));
    for (icon, size) in
        [("scalable/apps/org.example.IPC.svg", 128), ("symbolic/apps/org.example.IPC-symbolic.svg", 16)]
    {
        let path = format!("session/icons/hicolor/{icon}");
        run("xmllint", &["--noout", "--nonet", &path]);
        let box_ = run("xmllint", &["--nonet", "--xpath", "string(/*/@viewBox)", &path]);
        assert_eq!(box_.trim(), format!("0 0 {size} {size}"));
    }
}
