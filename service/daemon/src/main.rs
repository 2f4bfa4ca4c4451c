//! `ipcd`: arguments, configuration, and the wiring of the layers.

#![forbid(unsafe_code)]

mod arguments;
mod config;
mod declared;
mod logs;
mod private_bus;
mod system_bus;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use arguments::{Arguments, BusChoice};
use clap::Parser;
use declared::Directories;
use ipc_bus::{Service, introspect};
use ipc_engine::Engine;
use private_bus::PrivateBus;
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match system_bus::part(&arguments) {
        Some(part) => ended(system_bus::run(part, arguments)),
        None => ended(serve_one_user(arguments)),
    }
}

fn ended(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ipcd: {error:#}");
            match error.downcast_ref() {
                // Nothing would be different the next time.
                Some(ipc_front::StartError::NameTaken(_)) => ExitCode::from(ipc_spawner::GIVE_UP),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// On every bus but the system bus: this process is the user's, and holds the objects.
fn serve_one_user(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Opens and listings run there, so that a slow file system delays nobody else.
        .max_blocking_threads(16)
        .build()
        .context("the runtime could not be started")?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> Result<()> {
    if let Some(interface) = arguments.introspect {
        return print_introspection(&interface).await;
    }
    let config = config::load(arguments.config.as_deref())?;
    if arguments.check_config {
        println!("the configuration is valid");
        return Ok(());
    }
    let directories = declarations(&arguments);
    if arguments.check_relays {
        return declared::check(&directories, ipc_bus::MECHANISMS);
    }
    logs::start(arguments.log_level);
    raise_file_limit();
    let choice = arguments.bus.unwrap_or_else(arguments::default_bus);
    let private = match choice {
        BusChoice::Private => Some(PrivateBus::start().context("the private bus could not be started")?),
        _ => None,
    };
    let address = match (&choice, &private) {
        (BusChoice::Address(address), _) => Some(address.as_str()),
        (_, Some(private)) => Some(private.address()),
        _ => None,
    };
    let service = Service::start(Engine::of(ipc_bus::MECHANISMS, config.limits, None), address).await?;
    // Before readiness: a signal that comes right after it is handled.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let declared =
        tokio::spawn(declared::keep(service.tree.clone(), directories, signal(SignalKind::hangup())?));
    ready(&choice, private.as_ref());
    let lost = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = service.connection.closed() => true,
    };
    notify(&[NotifyState::Stopping]);
    // What ends now is not to come back.
    declared.abort();
    tokio::select! {
        () = service.stop() => {}
        // Somebody insists.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Some(private) = private {
        private.remove();
    }
    if lost {
        bail!("the bus has gone");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Where declarations are read from. There is one service on a session bus; who starts others on buses of his
/// choice says what they are to do, or all would do the same.
fn declarations(arguments: &Arguments) -> Directories {
    match (&arguments.relays, &arguments.bus) {
        (Some(directory), _) => Directories::one(directory.clone()),
        (None, None | Some(BusChoice::Session)) => Directories::usual(),
        _ => Directories::default(),
    }
}

/// Says that calls are served, to whoever started us.
fn ready(choice: &BusChoice, private: Option<&PrivateBus>) {
    let status = match (choice, private) {
        (_, Some(private)) => {
            println!("{}", private.welcome());
            format!("serving on the private bus {}", private.address())
        }
        (BusChoice::Address(address), _) => format!("serving on {address}"),
        _ => "serving on the session bus".to_owned(),
    };
    tracing::info!("{status}");
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("readiness could not be told: {error}");
    }
}

async fn print_introspection(interface: &str) -> Result<()> {
    let documents = introspect::documents().await.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    if interface.is_empty() {
        for (name, _) in documents {
            println!("{name}");
        }
        return Ok(());
    }
    let Some((_, document)) = documents.iter().find(|(name, _)| name == interface) else {
        let known: Vec<_> = documents.iter().map(|(name, _)| name.as_str()).collect();
        bail!("there is no interface {interface:?}; there are {}", known.join(", "));
    };
    print!("{document}");
    Ok(())
}

/// Endpoints are file descriptors: as many as the administrator allows, not as the shell does.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("RLIMIT_NOFILE could not be raised: {error}");
    }
}
