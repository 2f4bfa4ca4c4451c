//! A directory of published files, for the suites about them.

use std::fs;
use std::path::{Path, PathBuf};

use ipc_harness::{Process, TempDir, Unavailable, has_tool};
use zbus::ObjectPath;

use crate::{Client, Stage, Way};

/// A mount and where it is. The directory is removed last.
pub struct Mount {
    pub client: Client,
    pub path: String,
    pub directory: PathBuf,
    _scratch: TempDir,
}

/// Whether a user like this one can mount at all.
pub fn can_mount() -> Result<(), Unavailable> {
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(why) = device {
        return Err(Unavailable(format!("/dev/fuse cannot be opened: {why}")));
    }
    match rustix::process::geteuid().is_root() || has_tool("fusermount3") {
        true => Ok(()),
        false => Err(Unavailable("fusermount3 is not installed".to_owned())),
    }
}

/// A mount on a new directory; `settings` are more keys of its address, each with a comma before it.
pub async fn mounted(stage: &Stage, settings: &str) -> Result<Mount, Unavailable> {
    can_mount()?;
    if stage.way == Way::System {
        return Err(Unavailable("workers of the system bus do not mount; another test says how".to_owned()));
    }
    let client = stage.client().await;
    let scratch = stage.temp_dir();
    let directory = scratch.path().join("live");
    fs::create_dir(&directory).expect("a directory");
    let path = client.create(&format!("fuse:path={}{settings}", directory.display())).await;
    Ok(Mount { client, path, directory, _scratch: scratch })
}

impl Mount {
    pub async fn publish(&self, name: &str, data: &[u8]) {
        let done = self.client.reply(&self.path, "Filesystem", "Publish", &(name, data)).await;
        done.unwrap_or_else(|error| panic!("Publish({name}): {error}"));
    }

    pub async fn publish_text(&self, name: &str, text: &str) {
        let done = self.client.reply(&self.path, "Filesystem", "PublishText", &(name, text)).await;
        done.unwrap_or_else(|error| panic!("PublishText({name}): {error}"));
    }

    pub async fn publish_endpoint(&self, name: &str, endpoint: &str) {
        let endpoint = ObjectPath::try_from(endpoint).expect("a path");
        let done = self.client.reply(&self.path, "Filesystem", "PublishEndpoint", &(name, endpoint)).await;
        done.unwrap_or_else(|error| panic!("PublishEndpoint({name}): {error}"));
    }

    pub async fn unpublish(&self, name: &str) {
        let done = self.client.reply(&self.path, "Filesystem", "Unpublish", &(name,)).await;
        done.unwrap_or_else(|error| panic!("Unpublish({name}): {error}"));
    }

    /// Runs a script in the mounted directory.
    pub fn script(&self, script: &str) -> Process {
        ipc_harness::sh(&format!("export LC_ALL=C; cd {}; {script}", self.directory.display()))
    }

    /// The output of a script that succeeds.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.script(script).finish().success()
    }

    pub fn python(&self, script: &str, arguments: &[&str]) -> Process {
        let directory = self.directory.to_str().expect("UTF-8");
        let arguments: Vec<&str> = std::iter::once(directory).chain(arguments.iter().copied()).collect();
        ipc_harness::python(&format!("import os, sys\nos.chdir(sys.argv[1])\n{script}"), &arguments)
    }
}

/// The lines of /proc/self/mountinfo about a directory.
pub fn mountinfo(directory: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let point = directory.to_str().expect("UTF-8");
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(point)).map(str::to_owned).collect()
}
