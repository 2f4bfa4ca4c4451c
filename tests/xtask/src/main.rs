//! The tasks around the code: `cargo xtask --help`.
//!
//! Three kinds: what is generated (`bless`), what must hold (`check`), and what a developer starts by
//! hand (`bus`, `bench`, `setup`). Everything runs on the checkout that this program was built from.

#![forbid(unsafe_code)]

mod abilities;
mod bench;
mod bless;
mod bus;
mod check;
mod desktop;
mod fuzz;
mod interface;
mod manual;
mod package;
mod policy;
mod proofs;
mod proxy;
mod reference;
mod relays;
mod removable;
mod rules;
mod setup;

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

use clap::{Parser, Subcommand};

/// The tasks around the code of org.example.IPC.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Rewrites everything that is generated and checked in: the interface files, the proxies, the
    /// reference pages, the bus policy, the manual page.
    Bless,
    /// Checks everything that must hold, step by step: formatting, lints, generated files, rules of
    /// the architecture, all tests. Ends with a summary.
    Check,
    /// Starts a shell with a private bus and the service on it: `busctl --user`, `gdbus --session`
    /// and every other client work inside. Bus and service end with the shell.
    Bus {
        /// Runs this instead of $SHELL.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Runs the benchmarks, in a release build.
    Bench {
        /// What is handed to them: names, options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Packs the GNOME Shell extension and the Plasma widget, checks everything for desktops, and tries it in GNOME
    /// Shells without a screen. Archives and pictures are in target/desktop.
    Desktop {
        /// Only packs.
        #[arg(long)]
        pack: bool,
        /// Tries GNOME 48, Plasma 6 and the panel of Xfce, too, in a folder with Debian 13, and Plasma 5.27 in one with
        /// Debian 12. They are made if they are missing (as root; 2.5 and 2 GB); IPC_DESKTOP_ROOT and
        /// IPC_DESKTOP_ROOT_5 name folders that are there already.
        #[arg(long, conflicts_with = "pack")]
        all: bool,
        /// With --all: only these, of lint, applets, plasma, gnome, tray and plasma5.
        #[arg(requires = "all", value_parser = ipc_desktop::next::desktops())]
        only: Vec<String>,
    },
    /// Lets libFuzzer look for bytes that break what reads them, with cargo-fuzz, which is installed if it
    /// is missing.
    Fuzz {
        /// One of tests/fuzz/fuzz_targets; without it, all of them, one after another.
        target: Option<String>,
        /// How long, each.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Takes out one check after another of the sources of a copy, and runs the test that must fail then:
    /// whether each check has a test that needs it. Needs root; takes minutes.
    Removable {
        /// Only the checks whose name contains this.
        name: Option<String>,
    },
    /// Builds the Debian packages, with cargo-deb, which is installed if it is missing; checks them with
    /// lintian.
    Package {
        /// Also installs, uses, upgrades and purges them in a container with a real systemd, once with
        /// each message bus. Needs root, mmdebstrap and systemd-nspawn; takes minutes.
        #[arg(long)]
        test: bool,
    },
    /// Installs what the tests need and this machine lacks (Debian; elsewhere it only says what).
    Setup,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Bless => bless::bless(),
        Task::Check => return check::check(),
        Task::Bus { command } => return bus::shell(command),
        Task::Bench { arguments } => bench::run(arguments),
        Task::Desktop { pack: true, .. } => desktop::pack(),
        Task::Desktop { all: true, only, .. } => desktop::all(&only),
        Task::Desktop { .. } => desktop::here(),
        Task::Fuzz { target, seconds } => fuzz::fuzz(target, seconds),
        Task::Removable { name } => removable::removable(name.as_deref()),
        Task::Package { test } => package::package(test),
        Task::Setup => {
            setup::setup();
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The top of the checkout.
fn root() -> PathBuf {
    // This crate lies two levels below it.
    let crate_directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    crate_directory.ancestors().nth(2).map(PathBuf::from).unwrap_or(crate_directory)
}

/// The cargo that this program was started by, in the checkout.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
