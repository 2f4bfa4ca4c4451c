//! The preferences of the extension beside a [`Shell`], in which their window opens.
//!
//! The program that opens it is GNOME Shell's own, started by src/preferences.js, which can press what is in it.

use std::fs;

use ipc_harness::Process;
use serde_json::Value;

use crate::extension::UUID;
use crate::{Desktop, Shell};

/// The open window, closed on drop.
pub struct Preferences {
    program: Process,
}

impl Preferences {
    /// Opens it as “Settings” in the menu does.
    pub async fn open(desktop: &Desktop, shell: &mut Shell) -> Preferences {
        let script = desktop.home().join("preferences.js");
        fs::write(&script, include_str!("preferences.js")).expect("a file in an own directory");
        let mut program = desktop.command("gjs");
        program.arg(script).env("WAYLAND_DISPLAY", "wayland-0").env("GDK_BACKEND", "wayland");
        // No card to draw with.
        program.env("GSK_RENDERER", "cairo").env("GDK_DEBUG", "gl-disable").env("GTK_USE_PORTAL", "0");
        let program = Process::spawn_group(&mut program);
        shell.owned("org.gnome.Shell.Extensions").await;
        let mut preferences = desktop.command("gnome-extensions");
        Process::spawn(preferences.args(["prefs", UUID])).finish().success();
        let preferences = Preferences { program };
        shell.until(|state| state["windows"].as_array()?.contains(&"IPC".into()).then_some(())).await;
        preferences
    }

    /// Evaluates JavaScript in its program; panics with what it throws.
    #[track_caller]
    pub fn eval(&mut self, script: &str) -> Value {
        let before = self.program.stdout().lines().len();
        self.program.write(format!("{script}\n"));
        let answer = self
            .program
            .stdout()
            .wait_until(|lines| lines.iter().skip(before).find(|line| line.starts_with(['=', '!'])).cloned());
        let answer = answer.unwrap_or_else(|missing| panic!("{missing}\n{}", self.log()));
        let value = answer.strip_prefix("= ").unwrap_or_else(|| panic!("{script}: {answer}\n{}", self.log()));
        serde_json::from_str(value).expect("JSON")
    }

    /// Calls one of the hands of src/preferences.js.
    #[track_caller]
    pub fn hand(&mut self, name: &str, arguments: &[Value]) -> Value {
        let arguments = Value::from(arguments);
        self.eval(&format!("hands.{name}(...{arguments})"))
    }

    /// Waits until the line with this title is there, or not, and its switch, if it has one, is on or off.
    #[track_caller]
    pub fn line(&mut self, title: &str, there: bool, active: Option<bool>) {
        let text = format!("{title} {there} {active:?} {}", self.program.stdout().lines().len());
        self.hand("when", &[text.as_str().into(), title.into(), there.into(), active.into()]);
        self.program.wait_for(|line| line == text);
    }

    /// What its program has complained of.
    pub fn log(&self) -> String {
        self.program.stderr().text()
    }
}
