//! `busctl monitor` and `gdbus monitor` in the background: lines are collected and waited for.
//!
//! A monitor that is returned is watching: every message sent from then on is seen.

use crate::busctl;
use crate::cli::{Busctl, Gdbus};
use crate::lines::{Lines, Missing};
use crate::process::Process;

/// A running monitor; ended on drop.
pub struct Monitor {
    process: Process,
}

impl Monitor {
    /// All it has seen.
    pub fn lines(&self) -> &Lines {
        self.process.stdout()
    }

    /// The first wanted line, past or to come; panics with all it saw if none comes within patience.
    #[track_caller]
    pub fn wait_for(&self, wanted: impl FnMut(&str) -> bool) -> String {
        self.process.wait_for(wanted)
    }

    /// The first line that holds all these texts; panics as [`wait_for`](Monitor::wait_for) does.
    #[track_caller]
    pub fn wait_for_all(&self, texts: &[&str]) -> String {
        self.process.wait_for(|line| texts.iter().all(|text| line.contains(text)))
    }
}

/// `busctl monitor --json=short`: every message on the bus (calls, answers, unicast signals too), one JSON object a
/// line, that holds `words` of its own such as `--match=…` or a name.
#[track_caller]
pub fn busctl_monitor(tool: &Busctl, words: &[&str]) -> Monitor {
    let process = Process::spawn(tool.command().args(["--json=short", "monitor"]).args(words));
    // Said after the bus has answered BecomeMonitor.
    ready(process.stderr().wait_for(|line| line.starts_with("Monitoring bus message stream")), &process);
    Monitor { process }
}

/// `gdbus monitor`: the broadcast signals of one name, one a line: `PATH: INTERFACE.MEMBER (ARGUMENTS)`.
#[track_caller]
pub fn gdbus_monitor(tool: &Gdbus) -> Monitor {
    // It says who owns the name before its AddMatch has reached the bus; another monitor sees when that has.
    let witness = busctl_monitor(&busctl(tool), &["--match=type='method_call',member='AddMatch'"]);
    let process = Process::spawn(&mut tool.command("monitor"));
    let owned = process.stdout().wait_for(|line| line.starts_with("The name "));
    if ready(owned, &process).contains(" is owned by ") {
        // Its rule has the name that it was asked for, or the unique one of the owner.
        let by_name = format!("sender='{}'", tool.destination());
        witness.wait_for(|line| {
            line.contains("type='signal'") && (line.contains(&by_name) || line.contains("sender=':"))
        });
    }
    Monitor { process }
}

#[track_caller]
fn ready(line: Result<String, Missing>, process: &Process) -> String {
    match line {
        Ok(line) => line,
        Err(missing) => panic!("the monitor does not start: {missing}\n{}", process.stderr().text()),
    }
}
