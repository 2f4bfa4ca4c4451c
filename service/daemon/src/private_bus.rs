//! The embedded private bus: where there is no session bus, the service brings its own (the crate
//! busd), on a thread with a runtime of its own, in a directory that only its user may enter.

use std::{
    env, fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, anyhow};
use busd::bus::Bus;

pub struct PrivateBus {
    directory: PathBuf,
    address: String,
}

impl PrivateBus {
    /// Starts the bus; it lives as long as the process.
    pub fn start() -> Result<Self> {
        let directory = make_directory()?;
        let wanted = format!("unix:path={}", directory.join("bus").display());
        let (tell, told) = mpsc::sync_channel(1);
        thread::Builder::new().name("private-bus".into()).spawn(move || {
            zruntime::block_on(async move {
                let mut bus = match Bus::for_address(Some(&wanted)).await {
                    Ok(bus) => bus,
                    Err(error) => {
                        // The starter waits for it.
                        let _ = tell.send(Err(anyhow!("{error:#}")));
                        return;
                    }
                };
                let _ = tell.send(Ok(bus.address().to_string()));
                if let Err(error) = bus.run().await {
                    tracing::error!("the private bus has ended: {error:#}");
                }
            });
        })?;
        let address = told.recv().context("the bus thread ended at once")??;
        Ok(Self { directory, address })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Removes the socket and its directory.
    pub fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!("{}: {error}", self.directory.display());
        }
    }

    /// The address, and commands to paste that show data moving.
    pub fn welcome(&self) -> String {
        let address = &self.address;
        let fifo = self.directory.join("bell");
        let fifo = fifo.display();
        format!(
            "ipcd: serving org.example.IPC on a private bus of its own:

  {address}

Paste these into another terminal, one after the other:

  busctl --address={address} tree org.example.IPC
  busctl --address={address} call org.example.IPC /org/example/IPC org.example.IPC Create 'sa{{sv}}' fifo:path={fifo} 0
  echo 'hello from a shell' > {fifo} &
  busctl --address={address} call org.example.IPC /org/example/IPC/fifo/1 org.example.IPC.Stream ReadText uu 4096 10000
"
        )
    }
}

/// A fresh directory of mode 0700, in XDG_RUNTIME_DIR or the directory for temporary files.
fn make_directory() -> Result<PathBuf> {
    let parent = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    let parent = parent.unwrap_or_else(env::temp_dir);
    for attempt in 0..100 {
        let directory = parent.join(format!("ipcd-{}-{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| shown(&directory)),
        }
    }
    Err(anyhow!("{}: no free name for a directory", shown(&parent)))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
