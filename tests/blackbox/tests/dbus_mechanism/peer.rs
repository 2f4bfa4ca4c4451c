//! The other side: a program with dbus-python, and what every test says to the service.

use std::collections::BTreeMap;

use ipc_blackbox::{Client, Options, Stage};
use ipc_harness::{Address, Process, Unavailable};
use zbus::{OwnedVariant, Variant};

pub const PEER: &str = include_str!("peer.py");

/// The system's python: others know nothing of Debian's packages.
pub const PYTHON: &str = "/usr/bin/python3";

/// The program, asked one thing after the other.
pub struct Peer {
    pub process: Process,
    pub lines: usize,
}

impl Peer {
    pub fn start(stage: &Stage) -> Result<Peer, Unavailable> {
        need_peer()?;
        let mut command = std::process::Command::new(PYTHON);
        command.args(["-u", "-c", PEER, stage.address()]);
        let mut peer = Peer { process: Process::spawn_group(&mut command), lines: 0 };
        assert_eq!(peer.line(), "ready");
        Ok(peer)
    }

    /// The next line that it says.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let at = self.lines;
        self.lines += 1;
        let said = self.process.stdout().wait_until(|lines| lines.get(at).map(|line| line.to_string()));
        said.unwrap_or_else(|_| panic!("it says no more: {}", self.process.stderr().text()))
    }

    /// Has it do something, which it confirms.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.process.write(format!("{line}\n"));
        self.line()
    }
}

pub fn need_peer() -> Result<(), Unavailable> {
    let imports = std::process::Command::new(PYTHON).args(["-c", "import dbus, gi.repository.GLib"]).output();
    match imports.is_ok_and(|done| done.status.success()) {
        true => Ok(()),
        false => Err(Unavailable("python3-dbus and python3-gi are not installed".to_owned())),
    }
}

/// The bus of the stage, as the value of a key.
pub fn bus(stage: &Stage) -> String {
    stage.address().replace('%', "%25").replace(',', "%2c")
}

pub fn method(stage: &Stage, member: &str, more: &str) -> String {
    format!(
        "dbus:bus={},name=org.test.Peer,path=/peer,interface=org.test.Peer,member={member}{more}",
        bus(stage)
    )
}

pub type Attributes = BTreeMap<String, OwnedVariant>;

#[track_caller]
pub fn text(attributes: &Attributes, key: &str) -> String {
    match attributes.get(key).map(|value| &**value) {
        Some(Variant::Str(text)) => text.to_string(),
        other => panic!("{key} is {other:?}"),
    }
}

pub async fn receive(client: &Client, path: &str) -> (String, Attributes) {
    let (data, attributes) = client.receive(path, 10_000).await.expect("Receive");
    (String::from_utf8(data).expect("text"), attributes)
}

pub async fn send(client: &Client, path: &str, data: &str) {
    client.send(path, data.as_bytes(), Options::new()).await.expect("Send");
}
