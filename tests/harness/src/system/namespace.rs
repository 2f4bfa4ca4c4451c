//! A mount namespace with users of its own, and programs run there as one of them.
//!
//! The machine's passwd and group files stay as they are: inside the namespace private ones are mounted over them.
//! One process keeps the namespace, a `cat` whose input is in the harness's hand; everything else enters it with
//! nsenter(1) and becomes a user with setpriv(1). `/run/systemd` is a directory of the harness there, so that the
//! machine's own sockets are out of reach.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::process::Process;
use crate::tools::{Unavailable, need_tool, temp_dir};

/// The group that alice and bob share.
pub const SHARED: u32 = 471_100;
/// A group in which nobody is, as far as the group file says.
pub const EXTRA: u32 = 471_101;

/// A user of the namespace. The numbers are such that no machine uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub name: &'static str,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, as the group file has them.
    pub groups: &'static [u32],
}

pub const ROOT: User = User { name: "root", uid: 0, gid: 0, groups: &[] };
/// Whom the front of the service becomes.
pub const IPCD: User = User { name: "ipcd", uid: 470_999, gid: 470_999, groups: &[] };
pub const ALICE: User = User { name: "alice", uid: 471_001, gid: 471_001, groups: &[SHARED] };
pub const BOB: User = User { name: "bob", uid: 471_002, gid: 471_002, groups: &[SHARED] };
/// For tests that use up what the kernel counts by user, on the whole machine.
pub const CAROL: User = User { name: "carol", uid: 471_003, gid: 471_003, groups: &[] };
pub const NOBODY: User = User { name: "nobody", uid: 65_534, gid: 65_534, groups: &[] };

const USERS: &[User] = &[ROOT, IPCD, ALICE, BOB, CAROL, NOBODY];

/// Everything by which the kernel and the bus tell a process from another: a user, usually.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Words before the program, run by root: `unshare --net`.
    before: Vec<String>,
    /// Words before the program, run by the user: `unshare --user`.
    after: Vec<String>,
}

impl From<User> for Identity {
    fn from(user: User) -> Identity {
        let groups = user.groups.to_vec();
        Identity { uid: user.uid, gid: user.gid, groups, before: Vec::new(), after: Vec::new() }
    }
}

impl Identity {
    /// The same user with other supplementary groups than the group file says.
    pub fn with_groups(mut self, groups: &[u32]) -> Identity {
        self.groups = groups.to_vec();
        self
    }

    /// Run by another program, as root: `["unshare", "--net"]`.
    pub fn within(mut self, words: &[&str]) -> Identity {
        self.before.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Run by another program, as the user: `["unshare", "--user"]`.
    pub fn inside(mut self, words: &[&str]) -> Identity {
        self.after.extend(words.iter().map(|&word| word.to_owned()));
        self
    }
}

/// A mount namespace with those users. Ended on drop.
pub(crate) struct Namespace {
    process: Process,
    /// What is mounted over the machine's files.
    dir: TempDir,
}

/// $1: the directory with the files to mount.
const SCRIPT: &str = r#"
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
[ -d /run/systemd ] || { mount -t tmpfs run /run; mkdir /run/systemd; }
mount --bind "$1/systemd" /run/systemd
echo ready
exec cat
"#;

impl Namespace {
    pub(crate) fn new() -> Result<Namespace, Unavailable> {
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable("only root can become other users".into()));
        }
        for tool in ["unshare", "nsenter", "setpriv", "python3"] {
            need_tool(tool)?;
        }
        let dir = temp_dir();
        let write =
            |name: &str, text: String| fs::write(dir.path().join(name), text).expect("an own directory");
        write("passwd", passwd());
        write("group", group());
        fs::create_dir_all(dir.path().join("systemd/journal")).expect("an own directory");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-ec", SCRIPT, "namespace"])
            .arg(dir.path());
        let mut process = Process::spawn(&mut command);
        if process.stdout().wait_for(|line| line == "ready").is_err() {
            process.kill();
            process.stderr().wait_end();
            let said = process.stderr().text();
            return Err(Unavailable(format!("no private mount namespace here: {}", said.trim())));
        }
        Ok(Namespace { process, dir })
    }

    /// What is `/run/systemd` inside.
    pub(crate) fn run_systemd(&self) -> std::path::PathBuf {
        self.dir.path().join("systemd")
    }

    /// The words that run a program there, as root.
    pub(crate) fn prefix(&self) -> Vec<String> {
        ["nsenter", "--target", &self.process.pid().to_string(), "--mount", "--"].map(String::from).to_vec()
    }

    /// The words that run a program there as this user, with his groups and no capability.
    pub(crate) fn words_as(&self, identity: &Identity) -> Vec<String> {
        let mut words = self.prefix();
        words.extend(identity.before.iter().cloned());
        if identity.uid != 0 {
            let groups: Vec<_> = identity.groups.iter().map(u32::to_string).collect();
            words.extend(["setpriv", "--inh-caps=-all", "--reuid"].map(String::from));
            words.extend([identity.uid.to_string(), "--regid".into(), identity.gid.to_string()]);
            match groups.is_empty() {
                true => words.push("--clear-groups".into()),
                false => words.extend(["--groups".into(), groups.join(",")]),
            }
            words.push("--".into());
        }
        words.extend(identity.after.iter().cloned());
        words
    }

    /// A program as this user, in an environment of the system's own.
    pub(crate) fn command_as(&self, identity: &Identity, program: impl AsRef<Path>) -> Command {
        let words = self.words_as(identity);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program.as_ref());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command
    }
}

fn passwd() -> String {
    let line = |user: &User| {
        let (name, uid, gid) = (user.name, user.uid, user.gid);
        format!("{name}:x:{uid}:{gid}::/nonexistent:/bin/sh\n")
    };
    USERS.iter().map(line).collect()
}

fn group() -> String {
    let own = USERS.iter().map(|user| format!("{}:x:{}:\n", user.name, user.gid));
    let members: Vec<_> =
        USERS.iter().filter(|user| user.groups.contains(&SHARED)).map(|user| user.name).collect();
    own.chain([format!("shared:x:{SHARED}:{}\n", members.join(",")), format!("extra:x:{EXTRA}:\n")]).collect()
}
