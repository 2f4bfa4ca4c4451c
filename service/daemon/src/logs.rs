//! Logs: to the journal under systemd, else to standard error.

use std::{env, io::IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{layer::SubscriberExt, registry, util::SubscriberInitExt};

pub fn start(level: LevelFilter) {
    start_with(level, env::var_os(JOURNAL_STREAM).is_some());
}

/// systemd sets it when it has connected our output to the journal (systemd.exec(5)).
pub const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// For a process whose environment is empty.
pub fn start_with(level: LevelFilter, to_journal: bool) {
    if to_journal && let Ok(journal) = tracing_journald::layer() {
        registry().with(level).with(journal).init();
        return;
    }
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // Colours are for people, not for files.
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    registry().with(level).with(to_stderr).init();
}
