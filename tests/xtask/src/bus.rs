//! `cargo xtask bus`: the service to play with, away from the user's own session.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use ipc_harness::{Bus, Kind, Service};

/// Runs the command ($SHELL if there is none) with a private session bus that has the service on it.
pub fn shell(command: Vec<OsString>) -> ExitCode {
    let bus = match Kind::ALL.iter().map(|&kind| Bus::start(kind)).reduce(Result::or) {
        Some(Ok(bus)) => bus,
        Some(Err(lacking)) => {
            eprintln!("cargo xtask bus: {lacking}; cargo xtask setup installs it");
            return ExitCode::FAILURE;
        }
        None => return ExitCode::FAILURE,
    };
    let service = Service::on(&bus);
    let mut words = command.into_iter();
    let program = words.next().or_else(|| std::env::var_os("SHELL")).unwrap_or_else(|| "/bin/sh".into());
    eprintln!("org.example.IPC (process {}) is on {}", service.pid(), bus.address());
    eprintln!("try: busctl --user tree org.example.IPC; exit ends both");
    let status = Command::new(&program).args(words).env("DBUS_SESSION_BUS_ADDRESS", bus.address()).status();
    match status {
        // Ended by a signal: no code, which is a failure all the same.
        Ok(status) => status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).into(),
        Err(error) => {
            eprintln!("cargo xtask bus: {}: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}
