//! A directory of published files, for the suites about them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipc_harness::system::ALICE;
use ipc_harness::{Process, TempDir, Unavailable, has_tool};
use zbus::ObjectPath;

use crate::{Client, Options, Stage};

/// A mount and where it is. The directory is removed last.
pub struct Mount {
    pub client: Client,
    pub path: String,
    /// Where it is mounted. On the system bus it is mounted nowhere, and this is a descriptor of alice's.
    pub directory: PathBuf,
    /// Words that run a program as whose the mount is.
    words: Vec<String>,
    _holder: Option<Process>,
    scratch: TempDir,
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

/// The same, and on the system bus whether alice could by herself, which is what is needed there.
pub fn can_mount_on(stage: &Stage) -> Result<(), Unavailable> {
    can_mount()?;
    match &stage.system {
        Some(system) => system.may_mount(&ALICE.into()),
        None => Ok(()),
    }
}

/// A mount on a new directory; `settings` are more keys of its address, each with a comma before it.
pub async fn mounted(stage: &Stage, settings: &str) -> Result<Mount, Unavailable> {
    can_mount_on(stage)?;
    let client = stage.client().await;
    let scratch = stage.temp_dir();
    if let Some(system) = &stage.system {
        let path = client.create(&format!("fuse:{}", settings.trim_start_matches(','))).await;
        let fd = client.open(&path, Options::new()).await.unwrap_or_else(|error| panic!("Open: {error}"));
        let holder = system.holder(&ALICE.into(), fd);
        let directory = PathBuf::from(format!("/proc/{}/fd/0", holder.pid()));
        let command = system.command_as(&ALICE.into(), "env");
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| word.to_string_lossy().into_owned()).collect();
        return Ok(Mount { client, path, directory, words, _holder: Some(holder), scratch });
    }
    let directory = scratch.path().join("live");
    fs::create_dir(&directory).expect("a directory");
    let path = client.create(&format!("fuse:path={}{settings}", directory.display())).await;
    Ok(Mount { client, path, directory, words: vec!["env".to_owned()], _holder: None, scratch })
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

    /// Runs a script in the mounted directory; `$SCRATCH` is another one.
    pub fn script(&self, script: &str) -> Process {
        let script = format!("cd {}; {script}", self.directory.display());
        Process::spawn_group(self.program("/bin/sh").args(["-ec", &script]))
    }

    /// A program that belongs to whose the mount is.
    fn program(&self, program: &str) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).arg(program);
        command.env("LC_ALL", "C").env("SCRATCH", self.scratch.path());
        command
    }

    /// The output of a script that succeeds.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.script(script).finish().success()
    }

    pub fn python(&self, script: &str, arguments: &[&str]) -> Process {
        let script = format!("import os, sys\nos.chdir(sys.argv[1])\n{script}");
        let mut command = self.program("/usr/bin/python3");
        command.args(["-u", "-c", &script]).arg(&self.directory).args(arguments);
        Process::spawn_group(&mut command)
    }
}

/// The lines of /proc/self/mountinfo about a directory.
pub fn mountinfo(directory: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let point = directory.to_str().expect("UTF-8");
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(point)).map(str::to_owned).collect()
}
