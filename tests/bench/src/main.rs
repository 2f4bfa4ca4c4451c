//! `ipc-bench`: how the service compares with its peers.
//!
//! Every result is a ratio against a peer in the same run: the rounds alternate, so that the machine's mood hits
//! both, and the table gives the median with the extremes. Where a bar stands beside a row it says whether it is
//! met; a missed bar fails nothing, for a shared machine proves nothing. docs/performance.md has the bars' reasons.

mod calls;
mod cpu;
mod data;
mod events;
mod idle;
mod list;
mod messages;
mod peers;
mod plot;
mod relay;
mod rounds;
mod scale;
mod system;
mod table;
mod waits;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

/// Measures the service against its peers.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// What to measure; without any, everything.
    names: Vec<Name>,
    /// Rounds of each comparison, after one that warms up.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Less data and fewer calls: to see that it works, not to compare.
    #[arg(long)]
    quick: bool,
    /// Of the relay's comparisons only those with this in their name, such as P3 or "unix → unix".
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
    /// Where the JSON goes, and a plot of it.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the program is for itself in another process.
#[derive(Debug, Subcommand)]
enum Role {
    /// Serves org.example.Echo on a bus.
    #[command(hide = true)]
    Echo { address: String },
    /// Waits for words in the memory at this address, with a thread each.
    #[command(hide = true)]
    Waiters { address: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Data through relays, and around them.
    Relay,
    /// Method calls, over the bus and through Connect().
    Calls,
    /// Memory, wake-ups and the first reply.
    Idle,
    /// Lists of very many objects.
    List,
    /// Changes of files as signals.
    Events,
    /// Thousands of waits for futexes and semaphores.
    Waits,
    /// Messages through relays.
    Messages,
    /// One relay, endpoint or client among many.
    Scale,
}

/// What all benchmarks are told.
#[derive(Debug, Clone)]
pub struct Settings {
    pub rounds: usize,
    pub quick: bool,
    only: String,
}

impl Settings {
    /// Whether a comparison was asked for.
    pub fn wants(&self, number: &str, what: &str) -> bool {
        format!("{number} {what}").contains(&self.only)
    }
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Name::Relay => "relay",
            Name::Calls => "calls",
            Name::Idle => "idle",
            Name::List => "list",
            Name::Events => "events",
            Name::Waits => "waits",
            Name::Messages => "messages",
            Name::Scale => "scale",
        }
    }

    fn run(self, settings: &Settings) -> Result<Vec<table::Row>> {
        match self {
            Name::Relay => relay::run(settings),
            Name::Calls => calls::run(settings),
            Name::Idle => idle::run(settings),
            Name::List => list::run(settings),
            Name::Events => events::run(settings),
            Name::Waits => waits::run(settings),
            Name::Messages => messages::run(settings),
            Name::Scale => scale::run(settings),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        Some(Role::Echo { address }) => peers::be_echo(address),
        Some(Role::Waiters { address }) => waits::be_waiters(address),
        None => measure(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ipc-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let settings =
        Settings { rounds: arguments.rounds.into(), quick: arguments.quick, only: arguments.only.clone() };
    let names = match arguments.names.as_slice() {
        [] => Name::value_variants(),
        names => names,
    };
    let mut rows = Vec::new();
    for name in names {
        let started = Instant::now();
        let found = name.run(&settings).with_context(|| name.text())?;
        table::write_json(&arguments.out, name.text(), settings.rounds, &found)?;
        plot::write(&arguments.out, name.text(), &found)?;
        eprintln!("{}: {:.0} s", name.text(), started.elapsed().as_secs_f64());
        rows.extend(found);
    }
    print!("{}", table::render(&rows));
    let missed = rows.iter().filter(|row| !row.met()).count();
    println!("\n{} rows, {missed} below their bar; medians of {} rounds", rows.len(), settings.rounds);
    Ok(())
}
